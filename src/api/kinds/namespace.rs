//! Namespaces.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::ensure_object;
use super::{cluster_scoped, gvr, names};
use crate::api::kind::{ALL_VERBS, Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, items, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::{Errors, invalid_all, meta as names_of};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["ns"]),
        subresources: vec![Subresource::Finalize, Subresource::Status],
        verbs: ALL_VERBS.into_iter().filter(|verb| *verb != "deletecollection").collect(),
        ..cluster_scoped(gvr::NAMESPACES, "Namespace", Arc::new(Namespaces))
    }
}

struct Namespaces;

/// Every namespace carries its name as a label, so that selectors can name it.
fn label_name(object: &mut Value) {
    let name = meta::name(object).to_owned();
    if name.is_empty() {
        return;
    }
    let labels = ensure_object(object, "metadata").and_then(|m| ensure_object(m, "labels"));
    if let Some(labels) = labels.and_then(Value::as_object_mut) {
        labels.insert(NAME_LABEL.to_owned(), name.into());
    }
}

impl Strategy for Namespaces {
    fn default(&self, object: &mut Value) {
        label_name(object);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        label_name(object);
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), json!({"phase": "Active"}));
        }
        if let Some(spec) = ensure_object(object, "spec") {
            let mut finalizers: Vec<Value> = items(&spec["finalizers"]).to_vec();
            if !finalizers.iter().any(|f| f == "kubernetes") {
                finalizers.push("kubernetes".into());
            }
            spec["finalizers"] = finalizers.into();
        }
    }

    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        // Finalizers are released through the subresource only.
        if let Some(map) = object.as_object_mut() {
            match old.get("spec") {
                Some(spec) => map.insert("spec".into(), spec.clone()),
                None => map.remove("spec"),
            };
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for (index, finalizer) in items(&object["spec"]["finalizers"]).iter().enumerate() {
            let path = format!("spec.finalizers[{index}]");
            let messages = names_of::qualified_name_messages(text(finalizer));
            let is_qualified = messages.is_empty();
            invalid_all(&mut errors, &path, finalizer, messages);
            if is_qualified && !text(finalizer).contains('/') && !["kubernetes", "orphan"].contains(&text(finalizer)) {
                let detail = "name is neither a standard finalizer name nor is it fully qualified";
                errors.push(FieldError::invalid(path, finalizer, detail));
            }
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let phase = text(&object["status"]["phase"]);
        let mut errors = Errors::new();
        let deleting = meta::is_terminating(old);
        if deleting && phase != "Terminating" {
            let detail = "may only be 'Terminating' if `deletionTimestamp` is not empty";
            errors.push(FieldError::invalid("status.Phase", &phase.into(), detail));
        } else if !deleting && phase != "Active" {
            let detail = "may only be 'Active' if `deletionTimestamp` is empty";
            errors.push(FieldError::invalid("status.Phase", &phase.into(), detail));
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![name_column(), column("Status", "string", "The status of the namespace"), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), object["status"]["phase"].clone(), age(object, now)]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.phase", text(&object["status"]["phase"]).to_owned())]
    }

    fn knows_field(&self, field: &str) -> bool {
        field == "status.phase"
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names_of::dns_label_messages(name)
    }
}
