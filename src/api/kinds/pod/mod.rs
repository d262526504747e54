//! Pods.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{items, text};
use crate::api::pod as facts;
use crate::api::status::FieldError;
use crate::api::validation::Errors;

mod app_armor;
mod columns;
mod container;
pub mod defaults;
mod gated;
mod label_keys;
mod placement;
mod resize;
mod resources;
mod security;
mod sources;
pub mod update;
pub mod validation;
#[cfg(test)]
mod validation_test;
pub mod volumes;
pub mod warnings;

pub use columns::status_text;
pub use placement::{TAINT_EFFECTS, tolerations as toleration_errors};
pub use resources::quantity as container_quantity;
pub use resources::{allows_overcommit, container_resource_name, is_extended, resource_name};
pub use sources::config_key_messages;

/// The kind.
pub fn kind() -> Kind {
    use Subresource::*;
    Kind {
        short_names: names(&["po"]),
        categories: names(&["all"]),
        subresources: vec![
            Attach,
            Binding,
            EphemeralContainers,
            Eviction,
            Exec,
            Log,
            PortForward,
            Proxy,
            Resize,
            Status,
        ],
        has_generation: true,
        ..namespaced(gvr::PODS, "Pod", Arc::new(Pods))
    }
}

struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        defaults::pod(object);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        label_keys::merge(object);
        let mut status = json!({"phase": "Pending", "qosClass": facts::qos_class(object)});
        if !items(&object["spec"]["schedulingGates"]).is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), status);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validation::pod(&mut errors, object);
        if !items(&object["spec"]["ephemeralContainers"]).is_empty() {
            errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
        }
        if !items(&object["spec"]["resourceClaims"]).is_empty() {
            // Nobody here would ever allocate a device.
            let detail = "dynamic resource allocation is not available in this cluster";
            errors.push(FieldError::forbidden("spec.resourceClaims", detail));
        }
        if !items(&object["spec"]["schedulingGates"]).is_empty() && !text(&object["spec"]["nodeName"]).is_empty() {
            let detail = "cannot be set until all schedulingGates have been cleared";
            errors.push(FieldError::forbidden("spec.nodeName", detail));
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validation::pod(&mut errors, object);
        update::pod_update(&mut errors, object, old);
        errors
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        update::status_update(&mut errors, object, old);
        errors
    }

    fn validate_special_update(&self, subresource: Subresource, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        match subresource {
            Subresource::EphemeralContainers => {
                validation::pod(&mut errors, object);
                update::ephemeral_containers(&mut errors, object, old);
            }
            Subresource::Resize => {
                validation::pod(&mut errors, object);
                resize::pod_resize(&mut errors, object, old);
            }
            _ => {}
        }
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        warnings::pod_spec(&object["spec"], "spec")
    }

    fn columns(&self) -> Vec<Column> {
        columns::columns()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::cells(object, now)
    }

    fn row_conditions(&self, object: &Value) -> Vec<Value> {
        columns::row_conditions(object)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let ip = items(&status["podIPs"]).first().map_or(&status["podIP"], |ip| &ip["ip"]);
        vec![
            ("spec.nodeName", text(&spec["nodeName"]).to_owned()),
            ("spec.restartPolicy", text(&spec["restartPolicy"]).to_owned()),
            ("spec.schedulerName", text(&spec["schedulerName"]).to_owned()),
            ("spec.serviceAccountName", text(&spec["serviceAccountName"]).to_owned()),
            ("spec.hostNetwork", (spec["hostNetwork"] == true).to_string()),
            ("status.phase", facts::phase(object).to_owned()),
            ("status.podIP", text(ip).to_owned()),
            ("status.nominatedNodeName", text(&status["nominatedNodeName"]).to_owned()),
        ]
    }

    fn knows_field(&self, field: &str) -> bool {
        self.selectable_fields(&Value::Null).iter().any(|(known, _)| *known == field)
    }
}
