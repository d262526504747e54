//! RuntimeClasses.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::pod::{container_quantity, container_resource_name, toleration_errors};
use super::{cluster_scoped, gvr};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{items, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::quantity::canonicalize_resource_list;
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, labels};
use crate::api::validation::{Errors, immutable, invalid_all};

/// The kind.
pub fn kind() -> Kind {
    cluster_scoped(gvr::RUNTIME_CLASSES, "RuntimeClass", Arc::new(RuntimeClasses))
}

struct RuntimeClasses;

impl Strategy for RuntimeClasses {
    fn default(&self, object: &mut Value) {
        if let Some(overhead) = object.get_mut("overhead").and_then(|overhead| overhead.get_mut("podFixed")) {
            canonicalize_resource_list(overhead);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let handler = &object["handler"];
        invalid_all(&mut errors, "handler", &text(handler).into(), dns_label_messages(text(handler)));
        for (name, quantity) in object["overhead"]["podFixed"].as_object().into_iter().flatten() {
            let path = format!("overhead.podFixed.limits[{name}]");
            container_resource_name(&mut errors, name, &path);
            container_quantity(&mut errors, name, quantity, &path);
        }
        let scheduling = &object["scheduling"];
        errors.extend(labels(&scheduling["nodeSelector"], "scheduling.nodeSelector"));
        let tolerations = items(&scheduling["tolerations"]);
        toleration_errors(&mut errors, &scheduling["tolerations"], "scheduling.tolerations");
        for (index, toleration) in tolerations.iter().enumerate() {
            if tolerations[..index].contains(toleration) {
                let path = format!("scheduling.tolerations[{index}]");
                errors.push(FieldError::duplicate(path, toleration));
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        immutable(&mut errors, "handler", &object["handler"], &old["handler"]);
        errors
    }

    fn columns(&self) -> Vec<Column> {
        const HANDLER: &str = "handler specifies the underlying runtime and configuration that the CRI implementation \
            will use to handle pods of this class. The possible values are specific to the node & CRI configuration.  It \
            is assumed that all handlers are available on every node, and handlers of the same name are equivalent on \
            every node. For example, a handler called \"runc\" might specify that the runc OCI runtime (using native \
            Linux containers) will be used to run the containers in a pod. The Handler must be lowercase, conform to the \
            DNS Label (RFC 1123) requirements, and is immutable.";
        vec![name_column(), column("Handler", "string", HANDLER), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), text(&object["handler"]).into(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_handler_is_a_label_and_stays() {
        let class = |handler: &str| json!({"handler": handler});
        assert!(RuntimeClasses.validate(&class("runc")).is_empty());
        assert_eq!(RuntimeClasses.validate(&class("&!@#")).len(), 1);
        let errors = RuntimeClasses.validate_update(&class("b"), &class("a"));
        assert_eq!(errors[0].message, "Invalid value: \"b\": field is immutable");
    }
}
