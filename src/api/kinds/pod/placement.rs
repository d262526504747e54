//! Validation of what decides where a pod runs: affinity, tolerations, topology spread.

use serde_json::Value;

use crate::api::meta::{items, number, text};
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, label_name, label_value_messages};
use crate::api::validation::selector::{label_selector, node_selector, node_selector_term};
use crate::api::validation::{Errors, invalid_all, one_of_or_unset};

/// `spec.affinity` (`validateAffinity`).
pub fn affinity(errors: &mut Errors, affinity: &Value, path: &str) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let node = &affinity["nodeAffinity"];
    if node[REQUIRED].is_object() {
        node_selector(errors, &node[REQUIRED], &format!("{path}.nodeAffinity.{REQUIRED}"));
    }
    for (index, preference) in items(&node[PREFERRED]).iter().enumerate() {
        let path = format!("{path}.nodeAffinity.{PREFERRED}[{index}]");
        weight(errors, preference, &path);
        node_selector_term(errors, &preference["preference"], &format!("{path}.preference"));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (index, term) in items(&affinity[kind][REQUIRED]).iter().enumerate() {
            pod_affinity_term(errors, term, &format!("{path}.{kind}.{REQUIRED}[{index}]"));
        }
        for (index, preference) in items(&affinity[kind][PREFERRED]).iter().enumerate() {
            let path = format!("{path}.{kind}.{PREFERRED}[{index}]");
            weight(errors, preference, &path);
            pod_affinity_term(errors, &preference["podAffinityTerm"], &format!("{path}.podAffinityTerm"));
        }
    }
}

fn weight(errors: &mut Errors, preference: &Value, path: &str) {
    let weight = number(&preference["weight"]);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(format!("{path}.weight"), &weight.into(), "must be in the range 1-100"));
    }
}

fn pod_affinity_term(errors: &mut Errors, term: &Value, path: &str) {
    super::label_keys::affinity_term(errors, term, path);
    label_selector(errors, &term["labelSelector"], &format!("{path}.labelSelector"));
    label_selector(errors, &term["namespaceSelector"], &format!("{path}.namespaceSelector"));
    for name in items(&term["namespaces"]) {
        invalid_all(errors, &format!("{path}.namespace"), name, dns_label_messages(text(name)));
    }
    let key = text(&term["topologyKey"]);
    if key.is_empty() {
        errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
    }
    errors.extend(label_name(key, &format!("{path}.topologyKey")));
}

/// `spec.topologySpreadConstraints` (`validateTopologySpreadConstraints`).
pub fn topology_spread(errors: &mut Errors, constraints: &Value, path: &str) {
    const ACTIONS: [&str; 2] = ["DoNotSchedule", "ScheduleAnyway"];
    let all = items(constraints);
    for (index, constraint) in all.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let (key, action) = (text(&constraint["topologyKey"]), &constraint["whenUnsatisfiable"]);
        if number(&constraint["maxSkew"]) <= 0 {
            let skew = number(&constraint["maxSkew"]).into();
            errors.push(FieldError::invalid(format!("{path}.maxSkew"), &skew, "must be greater than zero"));
        }
        if key.is_empty() {
            errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        } else {
            errors.extend(label_name(key, &format!("{path}.topologyKey")));
        }
        if !ACTIONS.contains(&text(action)) {
            let value = text(action).into();
            errors.push(FieldError::not_supported(format!("{path}.whenUnsatisfiable"), &value, &ACTIONS));
        }
        // The earlier one of a pair is the one that is reported.
        if all[index + 1..].iter().any(|c| text(&c["topologyKey"]) == key && c["whenUnsatisfiable"] == *action) {
            let path = format!("{path}.{{topologyKey, whenUnsatisfiable}}");
            errors.push(FieldError::duplicate(path, &format!("{{{key}, {}}}", text(action)).into()));
        }
        let domains = &constraint["minDomains"];
        if let Some(count) = domains.as_i64() {
            let path = format!("{path}.minDomains");
            if count <= 0 {
                errors.push(FieldError::invalid(&path, domains, "must be greater than zero"));
            }
            if text(action) != "DoNotSchedule" {
                let detail = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
                errors.push(FieldError::invalid(&path, domains, detail));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            one_of_or_unset(errors, &format!("{path}.{policy}"), &constraint[policy], &["Honor", "Ignore"]);
        }
        super::label_keys::spread_constraint(errors, constraint, &path);
        label_selector(errors, &constraint["labelSelector"], &format!("{path}.labelSelector"));
    }
}

/// The effects of taints.
pub const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// `spec.tolerations` (`ValidateTolerations`).
pub fn tolerations(errors: &mut Errors, tolerations: &Value, path: &str) {
    for (index, toleration) in items(tolerations).iter().enumerate() {
        let path = format!("{path}[{index}]");
        let (key, operator) = (text(&toleration["key"]), &toleration["operator"]);
        let operator_path = format!("{path}.operator");
        if !key.is_empty() {
            errors.extend(label_name(key, &format!("{path}.key")));
        }
        if key.is_empty() && text(operator) != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&operator_path, &text(operator).into(), detail));
        }
        let effect = &toleration["effect"];
        if !toleration["tolerationSeconds"].is_null() && text(effect) != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format!("{path}.effect"), &text(effect).into(), detail));
        }
        match text(operator) {
            "" | "Equal" => {
                let value = &toleration["value"];
                invalid_all(errors, &operator_path, value, label_value_messages(text(value)));
            }
            "Exists" if !text(&toleration["value"]).is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(&operator_path, toleration, detail));
            }
            "Exists" => {}
            _ => errors.push(FieldError::not_supported(&operator_path, operator, &["Equal", "Exists"])),
        }
        if !text(effect).is_empty() {
            one_of_or_unset(errors, &format!("{path}.effect"), effect, &TAINT_EFFECTS);
        }
    }
}
