//! ReplicaSets.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set};
use super::pod::{defaults::pod_template, warnings};
use super::workload::{replica_counts, selector_and_template, wide_cells, wide_columns};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::number;
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::{Errors, immutable, non_negative};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["rs"]),
        categories: names(&["all"]),
        subresources: vec![Subresource::Scale, Subresource::Status],
        has_generation: true,
        ..namespaced(gvr::REPLICA_SETS, "ReplicaSet", Arc::new(ReplicaSets))
    }
}

struct ReplicaSets;

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        set(spec, "replicas", 1);
        if let Some(template) = ensure_object(spec, "template") {
            pod_template(template);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"replicas": 0}));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        non_negative(&mut errors, "spec.replicas", &spec["replicas"]);
        non_negative(&mut errors, "spec.minReadySeconds", &spec["minReadySeconds"]);
        selector_and_template(&mut errors, spec, "deployment");
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        immutable(&mut errors, "spec.selector", &object["spec"]["selector"], &old["spec"]["selector"]);
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
                "Replicas is the number of desired pods. This is a pointer to distinguish between explicit zero and \
                 unspecified. Defaults to 1. More info: \
                 https://kubernetes.io/docs/concepts/workloads/controllers/replicaset",
            ),
            column(
                "Current",
                "integer",
                "Replicas is the most recently observed number of non-terminating pods. More info: \
                 https://kubernetes.io/docs/concepts/workloads/controllers/replicaset",
            ),
            column(
                "Ready",
                "integer",
                "The number of non-terminating pods targeted by this ReplicaSet with a Ready Condition.",
            ),
            age_column(),
        ];
        columns.extend(wide_columns(
            "Selector is a label query over pods that should match the replica count. Label keys and values that must \
             match in order to be controlled by this replica set. It must match the pod template's labels. More info: \
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
        cells.extend(wide_cells(spec));
        cells
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.replicas", number(&object["status"]["replicas"]).to_string())]
    }

    fn knows_field(&self, field: &str) -> bool {
        field == "status.replicas"
    }
}
