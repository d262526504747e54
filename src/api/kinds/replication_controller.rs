//! ReplicationControllers.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set};
use super::pod::{defaults::pod_template, warnings};
use super::workload::{replica_counts, template, wide_cells, wide_columns};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::number;
use crate::api::printers::{age, age_column, column, name, name_column, or_none};
use crate::api::selector::LabelSelector;
use crate::api::status::FieldError;
use crate::api::validation::{Errors, non_negative};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["rc"]),
        categories: names(&["all"]),
        subresources: vec![Subresource::Scale, Subresource::Status],
        has_generation: true,
        ..namespaced(gvr::REPLICATION_CONTROLLERS, "ReplicationController", Arc::new(ReplicationControllers))
    }
}

struct ReplicationControllers;

fn is_empty(labels: &Value) -> bool {
    labels.as_object().is_none_or(|labels| labels.is_empty())
}

impl Strategy for ReplicationControllers {
    fn default(&self, object: &mut Value) {
        // Without labels of its own it has those of its pods.
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if !is_empty(&labels) && object["spec"].is_object() {
            if is_empty(&object["spec"]["selector"]) {
                object["spec"]["selector"] = labels.clone();
            }
            if is_empty(&object["metadata"]["labels"]) && object["metadata"].is_object() {
                object["metadata"]["labels"] = labels;
            }
        }
        let Some(spec) = ensure_object(object, "spec") else { return };
        set(spec, "replicas", 1);
        if spec["template"].is_object() {
            pod_template(&mut spec["template"]);
        }
    }

    fn orphans_by_default(&self) -> bool {
        true
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"replicas": 0}));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        non_negative(&mut errors, "spec.minReadySeconds", &spec["minReadySeconds"]);
        if is_empty(&spec["selector"]) {
            errors.push(FieldError::required("spec.selector", ""));
        }
        if spec["replicas"].is_null() {
            errors.push(FieldError::required("spec.replicas", ""));
        }
        non_negative(&mut errors, "spec.replicas", &spec["replicas"]);
        if spec["template"].is_object() {
            let empty = serde_json::Map::new();
            let selector = LabelSelector::from_map(spec["selector"].as_object().unwrap_or(&empty));
            template(&mut errors, &spec["template"], &selector, "ReplicationController");
        } else {
            errors.push(FieldError::required("spec.template", ""));
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let parts = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
        replica_counts(&mut errors, &object["status"], &parts, "readyReplicas");
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        warnings::pod_spec(&object["spec"]["template"]["spec"], "spec.template.spec")
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![
            name_column(),
            column(
                "Desired",
                "integer",
                "Replicas is the number of desired replicas. This is a pointer to distinguish between explicit zero and \
                 unspecified. Defaults to 1. More info: \
                 https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller#what-is-a-replicationcontroller",
            ),
            column(
                "Current",
                "integer",
                "Replicas is the most recently observed number of replicas. More info: \
                 https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller#what-is-a-replicationcontroller",
            ),
            column("Ready", "integer", "The number of ready replicas for this replication controller."),
            age_column(),
        ];
        columns.extend(wide_columns(
            "Selector is a label query over pods that should match the Replicas count. If Selector is empty, it is \
             defaulted to the labels present on the Pod template. Label keys and values that must match in order to be \
             controlled by this replication controller, if empty defaulted to labels on Pod template. More info: \
             https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
        ));
        columns
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let mut cells = vec![
            name(object),
            number(&spec["replicas"]).into(),
            number(&status["replicas"]).into(),
            number(&status["readyReplicas"]).into(),
            age(object, now),
        ];
        let [containers, images, _] = wide_cells(spec);
        let labels = spec["selector"].as_object().cloned().unwrap_or_default();
        cells.extend([containers, images, or_none(&LabelSelector::from_map(&labels).to_string()).into()]);
        cells
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.replicas", number(&object["status"]["replicas"]).to_string())]
    }

    fn knows_field(&self, field: &str) -> bool {
        field == "status.replicas"
    }
}
