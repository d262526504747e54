//! PodDisruptionBudgets.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::deployment::{not_more_than_100_percent, positive_int_or_percent};
use super::{gvr, names, namespaced};
use crate::api::int_or_string;
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{items, number, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::meta::qualified_name_messages;
use crate::api::validation::selector::label_selector;
use crate::api::validation::{Errors, invalid_all, non_negative, one_of_or_unset};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["pdb"]),
        subresources: vec![Subresource::Status],
        has_generation: true,
        unconditional_update: false,
        ..namespaced(gvr::POD_DISRUPTION_BUDGETS, "PodDisruptionBudget", Arc::new(PodDisruptionBudgets))
    }
}

struct PodDisruptionBudgets;

impl Strategy for PodDisruptionBudgets {
    fn prepare_for_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            let status = json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
            map.insert("status".into(), status);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
            errors.push(FieldError::invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set"));
        }
        for field in ["minAvailable", "maxUnavailable"].iter().filter(|field| !spec[**field].is_null()) {
            let path = format!("spec.{field}");
            positive_int_or_percent(&mut errors, &spec[*field], &path);
            not_more_than_100_percent(&mut errors, &spec[*field], &path);
        }
        let policy = &spec["unhealthyPodEvictionPolicy"];
        let path = "spec.unhealthyPodEvictionPolicy";
        one_of_or_unset(&mut errors, path, policy, &["AlwaysAllow", "IfHealthyBudget"]);
        if !spec["selector"].is_null() {
            label_selector(&mut errors, &spec["selector"], "spec.selector");
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> Vec<FieldError> {
        let (status, mut errors) = (&object["status"], Errors::new());
        conditions(&mut errors, &status["conditions"], "status.conditions");
        for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            non_negative(&mut errors, &format!("status.{field}"), &status[field]);
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Min Available", "string", "The minimum number of pods that must be available."),
            column("Max Unavailable", "string", "The maximum number of pods that may be unavailable."),
            column("Allowed Disruptions", "integer", "Calculated number of pods that may be disrupted at this time."),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let amount = |field: &str| match &object["spec"][field] {
            Value::Null => "N/A".to_owned(),
            value => int_or_string::text(value),
        };
        vec![
            name(object),
            amount("minAvailable").into(),
            amount("maxUnavailable").into(),
            number(&object["status"]["disruptionsAllowed"]).into(),
            age(object, now),
        ]
    }
}

/// Conditions of the newer form (`metav1.Condition`, `ValidateConditions`).
fn conditions(errors: &mut Errors, conditions: &Value, path: &str) {
    let mut known = Vec::new();
    for (index, condition) in items(conditions).iter().enumerate() {
        let path = format!("{path}[{index}]");
        if known.contains(&text(&condition["type"])) {
            errors.push(FieldError::duplicate(format!("{path}.type"), &condition["type"]));
        }
        known.push(text(&condition["type"]));
        if text(&condition["type"]).is_empty() {
            errors.push(FieldError::required(format!("{path}.type"), "must be set"));
        } else {
            let messages = qualified_name_messages(text(&condition["type"]));
            invalid_all(errors, &format!("{path}.type"), &condition["type"], messages);
        }
        if !["True", "False", "Unknown"].contains(&text(&condition["status"])) {
            let (path, known) = (format!("{path}.status"), ["False", "True", "Unknown"]);
            errors.push(FieldError::not_supported(path, &condition["status"], &known));
        }
        non_negative(errors, &format!("{path}.observedGeneration"), &condition["observedGeneration"]);
        if text(&condition["lastTransitionTime"]).is_empty() {
            errors.push(FieldError::required(format!("{path}.lastTransitionTime"), "must be set"));
        }
        if text(&condition["reason"]).is_empty() {
            errors.push(FieldError::required(format!("{path}.reason"), "must be set"));
        }
        if text(&condition["message"]).len() > 32_768 {
            errors.push(FieldError::too_long(format!("{path}.message"), 32_768));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(spec: Value) -> Vec<String> {
        let errors = PodDisruptionBudgets.validate(&json!({"spec": spec}));
        errors.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn amounts_are_numbers_or_percentages_and_only_one_is_given() {
        // pkg/apis/policy/validation/validation_test.go
        assert!(messages(json!({"minAvailable": "100%", "selector": {}})).is_empty());
        assert!(messages(json!({"maxUnavailable": 0, "unhealthyPodEvictionPolicy": "IfHealthyBudget"})).is_empty());
        assert_eq!(
            messages(json!({"minAvailable": "101%"})),
            ["spec.minAvailable: Invalid value: \"101%\": must not be greater than 100%"]
        );
        assert_eq!(messages(json!({"minAvailable": "a"})).len(), 1);
        assert_eq!(
            messages(json!({"unhealthyPodEvictionPolicy": "Never"})),
            [
                "spec.unhealthyPodEvictionPolicy: Unsupported value: \"Never\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\""
            ]
        );
    }
}
