//! Validation of resource names, quantities and requirements.

use serde_json::Value;

use crate::api::quantity::Quantity;
use crate::api::status::FieldError;
use crate::api::validation::meta::qualified_name_messages;
use crate::api::validation::{Errors, invalid_all};

/// `ResourceRequirements` of a container.
pub fn resources(errors: &mut Errors, resources: &Value, path: &str) {
    let empty = serde_json::Map::new();
    let list = |name: &str| resources[name].as_object().unwrap_or(&empty);
    for (kind, quantities) in [("limits", list("limits")), ("requests", list("requests"))] {
        for (name, value) in quantities {
            let key = format!("{path}.{kind}[{name}]");
            container_resource_name(errors, name, &key);
            quantity(errors, name, value, &key);
            if kind == "limits" {
                continue;
            }
            let asked = Quantity::of(value);
            match list("limits").get(name).map(Quantity::of) {
                Some(limit) if asked != limit && !allows_overcommit(name) => {
                    let detail = format!("must be equal to {name} limit of {limit}");
                    errors.push(FieldError::invalid(format!("{path}.requests"), &asked.to_string().into(), &detail));
                }
                Some(limit) if asked > limit => {
                    let detail = format!("must be less than or equal to {name} limit of {limit}");
                    errors.push(FieldError::invalid(format!("{path}.requests"), &asked.to_string().into(), &detail));
                }
                None if !allows_overcommit(name) => {
                    let detail = "Limit must be set for non overcommitable resources";
                    errors.push(FieldError::required(format!("{path}.limits"), detail));
                }
                _ => {}
            }
        }
    }
    let names = || list("limits").keys().chain(list("requests").keys()).map(String::as_str);
    if names().any(|n| n.starts_with("hugepages-")) && !names().any(|n| matches!(n, "cpu" | "memory")) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

/// A quantity that is not negative, and whole where only whole ones make sense.
pub fn quantity(errors: &mut Errors, name: &str, value: &Value, path: &str) {
    let amount = match Quantity::from_value(value) {
        Ok(amount) => amount,
        Err(e) => return errors.push(FieldError::invalid(path, value, &e.to_string())),
    };
    if amount.is_negative() {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(path, &amount.to_string().into(), detail));
    }
    if is_integer_resource(name) && !amount.is_integer() {
        errors.push(FieldError::invalid(path, &amount.to_string().into(), "must be an integer"));
    }
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether the name is of an extended resource such as `example.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && qualified_name_messages(&format!("requests.{name}")).is_empty()
}

/// Whether requests may be smaller than limits (`IsOvercommitAllowed`).
pub fn allows_overcommit(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

fn is_integer_resource(name: &str) -> bool {
    const COUNTED: [&str; 10] = [
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
        "count",
    ];
    COUNTED.contains(&name) || is_extended(name)
}

fn is_standard(name: &str) -> bool {
    const STANDARD: [&str; 20] = [
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "storage",
        "requests.storage",
        "services.nodeports",
        "services.loadbalancers",
    ];
    STANDARD.contains(&name) || name.starts_with("hugepages-") || name.starts_with("requests.hugepages-")
}

/// A resource name of any kind of list (`ValidateResourceName`); says whether it is a qualified name.
pub fn resource_name(errors: &mut Errors, name: &str, path: &str) -> bool {
    let messages = qualified_name_messages(name);
    if !messages.is_empty() {
        invalid_all(errors, path, &name.into(), messages);
        return false;
    }
    if !name.contains('/') && !is_standard(name) {
        errors.push(FieldError::invalid(path, &name.into(), "must be a standard resource type or fully qualified"));
    }
    true
}

/// A resource name in the resources of a container.
pub fn container_resource_name(errors: &mut Errors, name: &str, path: &str) {
    if !resource_name(errors, name, path) {
        return;
    }
    let value = Value::from(name);
    let mut refuse = |detail: &str| errors.push(FieldError::invalid(path, &value, detail));
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with("hugepages-") {
            refuse("must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        refuse("doesn't follow extended resource name standard");
    }
}
