//! Deployments.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set, set_text};
use super::pod::{defaults::pod_template, warnings};
use super::workload::{amount, replica_counts, selector_and_template, wide_cells, wide_columns};
use super::{gvr, names, namespaced};
use crate::api::int_or_string::percent;
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{number, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::{Errors, immutable, non_negative};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["deploy"]),
        categories: names(&["all"]),
        subresources: vec![Subresource::Scale, Subresource::Status],
        has_generation: true,
        ..namespaced(gvr::DEPLOYMENTS, "Deployment", Arc::new(Deployments))
    }
}

struct Deployments;

impl Strategy for Deployments {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        set(spec, "replicas", 1);
        set(spec, "revisionHistoryLimit", 10);
        set(spec, "progressDeadlineSeconds", 600);
        if let Some(strategy) = ensure_object(spec, "strategy") {
            set_text(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                if let Some(update) = ensure_object(strategy, "rollingUpdate") {
                    set(update, "maxUnavailable", "25%");
                    set(update, "maxSurge", "25%");
                }
            }
        }
        if let Some(template) = ensure_object(spec, "template") {
            pod_template(template);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        non_negative(&mut errors, "spec.replicas", &spec["replicas"]);
        selector_and_template(&mut errors, spec, "deployment");
        strategy(&mut errors, &spec["strategy"], "spec.strategy");
        non_negative(&mut errors, "spec.minReadySeconds", &spec["minReadySeconds"]);
        non_negative(&mut errors, "spec.revisionHistoryLimit", &spec["revisionHistoryLimit"]);
        let deadline = &spec["progressDeadlineSeconds"];
        if let Some(seconds) = deadline.as_i64() {
            non_negative(&mut errors, "spec.progressDeadlineSeconds", deadline);
            if seconds <= number(&spec["minReadySeconds"]) {
                let detail = "must be greater than minReadySeconds";
                errors.push(FieldError::invalid("spec.progressDeadlineSeconds", deadline, detail));
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        immutable(&mut errors, "spec.selector", &object["spec"]["selector"], &old["spec"]["selector"]);
        errors
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let status = &object["status"];
        replica_counts(
            &mut errors,
            status,
            &["updatedReplicas", "readyReplicas", "availableReplicas"],
            "readyReplicas",
        );
        if number(&status["collisionCount"]) < number(&old["status"]["collisionCount"]) {
            let value = number(&status["collisionCount"]).into();
            errors.push(FieldError::invalid("status.collisionCount", &value, "cannot be decremented"));
        }
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        warnings::pod_spec(&object["spec"]["template"]["spec"], "spec.template.spec")
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![
            name_column(),
            column("Ready", "string", "Number of the pod with ready state"),
            column(
                "Up-to-date",
                "string",
                "Total number of non-terminating pods targeted by this deployment that have the desired template spec.",
            ),
            column(
                "Available",
                "string",
                "Total number of available non-terminating pods (ready for at least minReadySeconds) targeted by this \
                 deployment.",
            ),
            age_column(),
        ];
        columns.extend(wide_columns(
            "Label selector for pods. Existing ReplicaSets whose pods are selected by this will be the ones \
                affected by \
             this deployment. It must match the pod template's labels.",
        ));
        columns
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let mut cells = vec![
            name(object),
            format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"])).into(),
            number(&status["updatedReplicas"]).into(),
            number(&status["availableReplicas"]).into(),
            age(object, now),
        ];
        cells.extend(wide_cells(spec));
        cells
    }
}

fn strategy(errors: &mut Errors, strategy: &Value, path: &str) {
    let rolling = &strategy["rollingUpdate"];
    let rolling_path = format!("{path}.rollingUpdate");
    match text(&strategy["type"]) {
        "Recreate" if !rolling.is_null() => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(rolling_path, detail));
        }
        "Recreate" => {}
        "RollingUpdate" if rolling.is_null() => {
            errors.push(FieldError::required(rolling_path, "this should be defaulted and never be nil"));
        }
        "RollingUpdate" => rolling_update(errors, rolling, &rolling_path),
        kind => {
            let value = json!({"Type": kind, "RollingUpdate": rolling});
            errors.push(FieldError::not_supported(path, &value, &["Recreate", "RollingUpdate"]));
        }
    }
}

fn rolling_update(errors: &mut Errors, rolling: &Value, path: &str) {
    let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
    let unavailable_path = format!("{path}.maxUnavailable");
    positive_int_or_percent(errors, unavailable, &unavailable_path);
    positive_int_or_percent(errors, surge, &format!("{path}.maxSurge"));
    if amount(unavailable) == 0 && amount(surge) == 0 {
        errors.push(FieldError::invalid(&unavailable_path, unavailable, "may not be 0 when `maxSurge` is 0"));
    }
    not_more_than_100_percent(errors, unavailable, &unavailable_path);
}

/// A number that is not negative, or a percentage (`ValidatePositiveIntOrPercent`).
pub fn positive_int_or_percent(errors: &mut Errors, value: &Value, path: &str) {
    match value.as_str() {
        Some(text) => {
            let digits = text.strip_suffix('%').unwrap_or_default();
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. \
                    '1%',  or \
                    '93%', regex used for validation is '[0-9]+%')";
                errors.push(FieldError::invalid(path, value, detail));
            }
        }
        None => non_negative(errors, path, value),
    }
}

/// `IsNotMoreThan100Percent`.
pub fn not_more_than_100_percent(errors: &mut Errors, value: &Value, path: &str) {
    if value.as_str().and_then(|text| percent(text).ok()).is_some_and(|percent| percent > 100) {
        errors.push(FieldError::invalid(path, value, "must not be greater than 100%"));
    }
}
