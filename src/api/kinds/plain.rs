//! The strategy of kinds that have nothing particular: the default columns, no defaults, no validation.

use jiff::Timestamp;
use serde_json::Value;

use crate::api::kind::{Column, Strategy};
use crate::api::printers::{age, column, name, name_column};

/// Nothing particular.
pub struct Plain;

impl Strategy for Plain {
    fn columns(&self) -> Vec<Column> {
        vec![name_column(), column("Age", "string", super::super::printers::CREATED)]
    }
    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), age(object, now)]
    }
}
