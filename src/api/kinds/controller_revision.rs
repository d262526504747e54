//! ControllerRevisions.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{gvr, namespaced};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{number, text};
use crate::api::pod::controller_of;
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::{Errors, immutable, non_negative};

/// The kind.
pub fn kind() -> Kind {
    namespaced(gvr::CONTROLLER_REVISIONS, "ControllerRevision", Arc::new(ControllerRevisions))
}

struct ControllerRevisions;

impl Strategy for ControllerRevisions {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        if object["data"].is_null() {
            errors.push(FieldError::required("data", "data is mandatory"));
        }
        non_negative(&mut errors, "revision", &object["revision"]);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        immutable(&mut errors, "data", &object["data"], &old["data"]);
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Controller", "string", "Controller of the object"),
            column("Revision", "string", "Revision indicates the revision of the state represented by Data."),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let controller = controller_of(object).map_or("<none>".to_owned(), |owner| {
            let kind = text(&owner["kind"]).to_lowercase();
            let group = text(&owner["apiVersion"]).split_once('/').map_or("", |(group, _)| group);
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", text(&owner["name"]))
        });
        vec![name(object), controller.into(), number(&object["revision"]).into(), age(object, now)]
    }
}
