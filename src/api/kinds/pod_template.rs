//! PodTemplates.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::defaulting::ensure_object;
use super::pod::validation::pod_template as validate_template;
use super::pod::{defaults, warnings};
use super::{gvr, namespaced};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{generation, items, metadata_mut, text};
use crate::api::printers::{column, joined, name, name_column, or_none};
use crate::api::selector::LabelSelector;
use crate::api::status::FieldError;
use crate::api::validation::Errors;

/// The kind.
pub fn kind() -> Kind {
    namespaced(gvr::POD_TEMPLATES, "PodTemplate", Arc::new(PodTemplates))
}

struct PodTemplates;

impl Strategy for PodTemplates {
    fn default(&self, object: &mut Value) {
        if let Some(template) = ensure_object(object, "template") {
            defaults::pod_template(template);
        }
    }

    // It has no spec, so its generation counts changes of the template.
    fn prepare_for_create(&self, object: &mut Value) {
        metadata_mut(object).insert("generation".into(), 1.into());
    }

    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        let changed = i64::from(object["template"] != old["template"]);
        metadata_mut(object).insert("generation".into(), (generation(old) + changed).into());
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validate_template(&mut errors, &object["template"], "template");
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        warnings::pod_spec(&object["template"]["spec"], "template.spec")
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Containers", "string", "Names of each container in the template."),
            column("Images", "string", "Images referenced by each container in the template."),
            column("Pod Labels", "string", "The labels for the pod template."),
        ]
    }

    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let template = &object["template"];
        let list = |field: &str| joined(items(&template["spec"]["containers"]).iter().map(|c| text(&c[field])));
        let labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        let labels = or_none(&LabelSelector::from_map(&labels).to_string());
        vec![name(object), list("name").into(), list("image").into(), labels.into()]
    }
}
