//! CSINodes: the CSI drivers of a node.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::csi_driver::driver_name;
use super::defaulting::ensure_object;
use super::{cluster_scoped, gvr};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{items, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::meta::qualified_name_messages;
use crate::api::validation::{Errors, IMMUTABLE, invalid_all, non_negative};

/// The kind.
pub fn kind() -> Kind {
    Kind { unconditional_update: false, ..cluster_scoped(gvr::CSI_NODES, "CSINode", Arc::new(CsiNodes)) }
}

const MAX_NODE_ID: usize = 192;

struct CsiNodes;

impl Strategy for CsiNodes {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = ensure_object(object, "spec") {
            super::defaulting::set(spec, "drivers", Vec::<Value>::new());
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (mut errors, mut names) = (Errors::new(), BTreeSet::new());
        for (index, driver) in items(&object["spec"]["drivers"]).iter().enumerate() {
            let path = format!("spec.drivers[{index}]");
            self::driver(&mut errors, driver, &path);
            if !names.insert(text(&driver["name"])) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &driver["name"]));
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        let without_count = |driver: &Value| {
            let mut driver = driver.clone();
            driver.as_object_mut().map(|driver| driver.remove("allocatable"));
            driver
        };
        for before in items(&old["spec"]["drivers"]) {
            for driver in items(&object["spec"]["drivers"]).iter().filter(|d| d["name"] == before["name"]) {
                if without_count(driver) != without_count(before) {
                    errors.push(FieldError::invalid("CSINodeDriver", driver, IMMUTABLE));
                }
            }
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        const DRIVERS: &str = "Drivers indicates the number of CSI drivers registered on the node";
        vec![name_column(), column("Drivers", "integer", DRIVERS), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), items(&object["spec"]["drivers"]).len().into(), age(object, now)]
    }
}

fn driver(errors: &mut Errors, driver: &Value, path: &str) {
    driver_name(errors, &driver["name"], &format!("{path}.name"));
    let id = &driver["nodeID"];
    if text(id).is_empty() {
        errors.push(FieldError::required(format!("{path}.nodeID"), ""));
    } else if text(id).len() > MAX_NODE_ID {
        let detail = format!("must be {MAX_NODE_ID} characters or less");
        errors.push(FieldError::invalid(format!("{path}.nodeID"), id, &detail));
    }
    non_negative(errors, &format!("{path}.allocatable.count"), &driver["allocatable"]["count"]);
    let keys = items(&driver["topologyKeys"]);
    for (index, key) in keys.iter().enumerate() {
        if text(key).is_empty() {
            errors.push(FieldError::required(path, ""));
        }
        if keys[..index].contains(key) {
            errors.push(FieldError::duplicate(path, key));
        }
        invalid_all(errors, path, &driver["topologyKeys"], qualified_name_messages(text(key)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_driver_keeps_its_node_id() {
        let node =
            |id: &str| json!({"spec": {"drivers": [{"name": "d.example.com", "nodeID": id, "topologyKeys": ["z"]}]}});
        assert!(CsiNodes.validate(&node("n")).is_empty());
        assert_eq!(CsiNodes.validate_update(&node("m"), &node("n"))[0].field, "CSINodeDriver");
        assert_eq!(CsiNodes.validate(&node(""))[0].message, "Required value");
    }
}
