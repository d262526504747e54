//! DeviceClasses.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::defaulting::ensure_object;
use super::devices::{at_most, configuration, selectors};
use super::plain::Plain;
use super::{cluster_scoped, gvr};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::items;
use crate::api::status::FieldError;
use crate::api::validation::Errors;

/// The kind.
pub fn kind() -> Kind {
    Kind { has_generation: true, ..cluster_scoped(gvr::DEVICE_CLASSES, "DeviceClass", Arc::new(DeviceClasses)) }
}

struct DeviceClasses;

impl Strategy for DeviceClasses {
    fn default(&self, object: &mut Value) {
        ensure_object(object, "spec");
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        selectors(&mut errors, &spec["selectors"], "spec.selectors");
        at_most(&mut errors, items(&spec["config"]), 32, "spec.config");
        for (index, config) in items(&spec["config"]).iter().enumerate() {
            configuration(&mut errors, config, &format!("spec.config[{index}]"));
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        Plain.columns()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        Plain.cells(object, now)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_are_expressions_and_configurations_have_a_driver() {
        let spec = json!({"selectors": [{"cel": {"expression": "true"}}, {}], "config": [{"opaque": {"driver": "a.b", "parameters": []}}]});
        let errors = DeviceClasses.validate(&json!({"spec": spec}));
        let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["spec.selectors[1].cel", "spec.config[0].opaque.parameters"]);
    }
}
