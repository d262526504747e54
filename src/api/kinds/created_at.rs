//! The columns of kinds for which Kubernetes has no table of their own (`rest.DefaultTableConvertor`).

use jiff::Timestamp;
use serde_json::Value;

use crate::api::kind::{Column, Strategy};
use crate::api::printers::{CREATED, column, name, name_column};

/// Name and `Created At`; nothing else particular.
pub struct CreatedAt;

impl Strategy for CreatedAt {
    fn columns(&self) -> Vec<Column> {
        vec![name_column(), column("Created At", "date", CREATED)]
    }

    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        vec![name(object), object["metadata"]["creationTimestamp"].clone()]
    }
}
