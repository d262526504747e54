//! ResourceSlices: devices that a driver offers.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::csi_driver::driver_name;
use super::defaulting::ensure_object;
use super::devices::{at_most, c_identifier};
use super::{cluster_scoped, gvr};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{items, number, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::quantity::Quantity;
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, dns_subdomain_messages};
use crate::api::validation::selector::node_selector;
use crate::api::validation::{Errors, immutable, invalid_all};

/// The kind.
pub fn kind() -> Kind {
    Kind { has_generation: true, ..cluster_scoped(gvr::RESOURCE_SLICES, "ResourceSlice", Arc::new(ResourceSlices)) }
}

const MAX_DEVICES: usize = 128;
const MAX_ATTRIBUTES: usize = 32;

struct ResourceSlices;

impl Strategy for ResourceSlices {
    fn default(&self, object: &mut Value) {
        ensure_object(object, "spec");
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        driver_name(&mut errors, &spec["driver"], "spec.driver");
        pool(&mut errors, &spec["pool"], "spec.pool");
        place(&mut errors, spec);
        let (devices, mut names) = (items(&spec["devices"]), BTreeSet::new());
        at_most(&mut errors, devices, MAX_DEVICES, "spec.devices");
        for (index, device) in devices.iter().enumerate() {
            let path = format!("spec.devices[{index}]");
            self::device(&mut errors, device, &path);
            if !names.insert(text(&device["name"])) {
                errors.push(FieldError::duplicate(&path, &device["name"]));
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        let (spec, before) = (&object["spec"], &old["spec"]);
        immutable(&mut errors, "spec.pool.name", &spec["pool"]["name"], &before["pool"]["name"]);
        for field in ["driver", "nodeName"] {
            immutable(&mut errors, &format!("spec.{field}"), &spec[field], &before[field]);
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Node",
                "string",
                "NodeName identifies the node which provides the resources in this pool. A field selector can be used to \
                 list only ResourceSlice objects belonging to a certain node.",
            ),
            column(
                "Driver",
                "string",
                "Driver identifies the DRA driver providing the capacity information. A field selector can be used to \
                 list only ResourceSlice objects with a certain driver name.",
            ),
            column(
                "Pool",
                "string",
                "Name is used to identify the pool. For node-local devices, this is often the node name, but this is not \
                 required.",
            ),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        vec![
            name(object),
            text(&spec["nodeName"]).into(),
            text(&spec["driver"]).into(),
            text(&spec["pool"]["name"]).into(),
            age(object, now),
        ]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let spec = &object["spec"];
        vec![("spec.driver", text(&spec["driver"]).to_owned()), ("spec.nodeName", text(&spec["nodeName"]).to_owned())]
    }

    fn knows_field(&self, field: &str) -> bool {
        matches!(field, "spec.driver" | "spec.nodeName")
    }
}

fn pool(errors: &mut Errors, pool: &Value, path: &str) {
    let (name, name_path) = (&pool["name"], format!("{path}.name"));
    if text(name).is_empty() {
        errors.push(FieldError::required(&name_path, ""));
    } else {
        for part in text(name).split('/') {
            invalid_all(errors, &name_path, &part.into(), dns_subdomain_messages(part));
        }
    }
    if number(&pool["resourceSliceCount"]) <= 0 {
        let path = format!("{path}.resourceSliceCount");
        let given = number(&pool["resourceSliceCount"]).into();
        errors.push(FieldError::invalid(path, &given, "must be greater than zero"));
    }
    if number(&pool["generation"]) < 0 {
        let path = format!("{path}.generation");
        errors.push(FieldError::invalid(path, &pool["generation"], "must be greater than or equal to zero"));
    }
}

/// Exactly one way to say where the devices are.
fn place(errors: &mut Errors, spec: &Value) {
    const WAYS: &str = "`nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection`";
    let node = &spec["nodeName"];
    if !node.is_null() {
        invalid_all(errors, "spec.nodeName", node, dns_subdomain_messages(text(node)));
    }
    if spec["nodeSelector"].is_object() {
        node_selector(errors, &spec["nodeSelector"], "spec.nodeSelector");
    }
    let ways = [
        !node.is_null(),
        spec["nodeSelector"].is_object(),
        spec["allNodes"] == true,
        spec["perDeviceNodeSelection"] == true,
    ];
    match ways.iter().filter(|way| **way).count() {
        1 => {}
        0 => errors.push(FieldError::required("spec", &format!("exactly one of {WAYS} is required"))),
        _ => {
            let detail = format!("exactly one of {WAYS} is required, but multiple fields are set");
            errors.push(FieldError::invalid("spec", &Value::Null, &detail));
        }
    }
}

fn device(errors: &mut Errors, device: &Value, path: &str) {
    let name_path = format!("{path}.name");
    if text(&device["name"]).is_empty() {
        errors.push(FieldError::required(&name_path, ""));
    } else {
        invalid_all(errors, &name_path, &device["name"], dns_label_messages(text(&device["name"])));
    }
    let mut count = 0;
    for (name, value) in device["attributes"].as_object().into_iter().flatten() {
        let path = format!("{path}.attributes[{name}]");
        qualified_name(errors, name, &path);
        let kinds = ["int", "bool", "string", "version"];
        match kinds.iter().filter(|kind| !value[**kind].is_null()).count() {
            1 => {}
            0 => errors.push(FieldError::required(path, "exactly one value must be specified")),
            _ => errors.push(FieldError::invalid(path, value, "exactly one value must be specified")),
        }
        count += 1;
    }
    for (name, value) in device["capacity"].as_object().into_iter().flatten() {
        let path = format!("{path}.capacity[{name}]");
        qualified_name(errors, name, &path);
        if let Err(e) = Quantity::from_value(&value["value"]) {
            errors.push(FieldError::invalid(format!("{path}.value"), &value["value"], &e.to_string()));
        }
        count += 1;
    }
    if count > MAX_ATTRIBUTES {
        let detail = format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        errors.push(FieldError::invalid(path, &count.into(), &detail));
    }
}

/// An identifier, with a domain before it or not.
fn qualified_name(errors: &mut Errors, name: &str, path: &str) {
    match name.split_once('/') {
        None => c_identifier(errors, &name.into(), path),
        Some((domain, identifier)) => {
            invalid_all(errors, path, &domain.into(), dns_subdomain_messages(domain));
            c_identifier(errors, &identifier.into(), path);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_are_in_one_place() {
        let slice = |place: Value| {
            let mut spec = json!({"driver": "d.example.com", "pool": {"name": "p", "resourceSliceCount": 1},
                "devices": [{"name": "d", "attributes": {"model": {"string": "x"}}}]});
            spec.as_object_mut().expect("an object").extend(place.as_object().expect("an object").clone());
            json!({"spec": spec})
        };
        assert!(ResourceSlices.validate(&slice(json!({"nodeName": "n"}))).is_empty());
        let errors = ResourceSlices.validate(&slice(json!({})));
        assert!(errors[0].message.starts_with("Required value: exactly one of"), "{}", errors[0].message);
        let moved = ResourceSlices.validate_update(&slice(json!({"nodeName": "m"})), &slice(json!({"nodeName": "n"})));
        assert_eq!((moved[0].field.as_str(), moved.len()), ("spec.nodeName", 1));
    }
}
