//! CustomResourceDefinitions.

mod rules;
mod schema;
mod structure;
#[cfg(test)]
mod tests;
mod validation;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{each, ensure_object, set, set_number, set_text};
use super::{cluster_scoped, gvr, names};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, items, text};
use crate::api::printers::{self, column, name_column};
use crate::api::status::FieldError;

/// The finalizer that stands for the objects of a definition.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// The annotation that allows a group of Kubernetes' own.
pub const APPROVAL: &str = "api-approved.kubernetes.io";

/// Whether a group belongs to the Kubernetes community.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["crd", "crds"]),
        categories: names(&["api-extensions"]),
        subresources: vec![Subresource::Status],
        has_generation: true,
        unconditional_update: false,
        ..cluster_scoped(
            gvr::CUSTOM_RESOURCE_DEFINITIONS,
            "CustomResourceDefinition",
            Arc::new(CustomResourceDefinitions),
        )
    }
}

struct CustomResourceDefinitions;

/// Adds the storage version to `status.storedVersions`.
fn note_stored_version(object: &mut Value) {
    let versions = items(&object["spec"]["versions"]);
    let Some(storage) = versions.iter().find(|version| version["storage"] == true) else { return };
    let storage = storage["name"].clone();
    if !object["status"].is_object() {
        object["status"] =
            json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []});
    }
    let stored = &mut object["status"]["storedVersions"];
    match stored.as_array_mut() {
        Some(list) if list.contains(&storage) => {}
        Some(list) => list.push(storage),
        None => *stored = json!([storage]),
    }
}

impl Strategy for CustomResourceDefinitions {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        if let Some(names) = spec.get_mut("names").filter(|names| names.is_object()) {
            let kind = text(&names["kind"]).to_owned();
            set_text(names, "singular", &kind.to_lowercase());
            if !kind.is_empty() {
                set_text(names, "listKind", &format!("{kind}List"));
            }
        }
        set(spec, "conversion", json!({"strategy": "None"}));
        if let Some(service) = spec.pointer_mut("/conversion/webhook/clientConfig/service").filter(|s| s.is_object()) {
            set_number(service, "port", 443);
        }
        for version in each(spec, "versions") {
            for column in each(version, "additionalPrinterColumns") {
                set(column, "type", "");
            }
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
        note_stored_version(object);
    }

    fn prepare_for_update(&self, object: &mut Value, _: &Value) {
        note_stored_version(object);
    }

    fn prepare_for_delete(&self, object: &mut Value, now: Timestamp) {
        if !meta::finalizers(object).any(|finalizer| finalizer == CLEANUP) {
            let mut finalizers: Vec<Value> = meta::finalizers(object).map(Value::from).collect();
            finalizers.push(CLEANUP.into());
            meta::metadata_mut(object).insert("finalizers".to_owned(), finalizers.into());
        }
        ensure_object(object, "status");
        let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        let condition = json!({"type": "Terminating", "status": "True", "reason": "InstanceDeletionPending",
            "message": message, "lastTransitionTime": crate::env::rfc3339(now)});
        let mut conditions = items(&object["status"]["conditions"]).to_vec();
        conditions.retain(|known| known["type"] != "Terminating");
        conditions.push(condition);
        object["status"]["conditions"] = conditions.into();
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        validation::validate(object, None)
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        validation::validate(object, Some(old))
    }

    fn validate_status_update(&self, object: &Value, _: &Value) -> Vec<FieldError> {
        validation::validate_status(object)
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let mut warnings = Vec::new();
        let group = text(&object["spec"]["group"]);
        if is_protected(group) && meta::annotation(object, APPROVAL).is_some_and(|v| v.starts_with("unapproved")) {
            warnings.push(format!("{group} is a protected group and this definition is not approved"));
        }
        for (index, version) in items(&object["spec"]["versions"]).iter().enumerate() {
            let root = format!("spec.versions[{index}].schema.openAPIV3Schema");
            validation::unrecognized_formats(&version["schema"]["openAPIV3Schema"], &root, &mut warnings);
        }
        warnings
    }

    fn columns(&self) -> Vec<Column> {
        vec![name_column(), column("Created At", "date", printers::CREATED)]
    }

    fn cells(&self, object: &Value, _: Timestamp) -> Vec<Value> {
        vec![printers::name(object), object["metadata"]["creationTimestamp"].clone()]
    }
}
