//! What Deployments, ReplicaSets and other workloads share: selectors that match templates, columns of containers.

use serde_json::Value;

use super::pod::validation::pod_template;
use crate::api::int_or_string::percent;
use crate::api::kind::Column;
use crate::api::meta::{items, number, text};
use crate::api::printers::{selector, wide_column};
use crate::api::selector::LabelSelector;
use crate::api::status::FieldError;
use crate::api::validation::selector::label_selector;
use crate::api::validation::{Errors, non_negative};

/// `spec.selector` and `spec.template` of a workload whose pods always restart; `noun` as in
/// `empty selector is invalid for deployment`.
pub fn selector_and_template(errors: &mut Errors, spec: &Value, noun: &str) {
    let selector = &spec["selector"];
    if !selector.is_object() {
        errors.push(FieldError::required("spec.selector", ""));
    } else {
        label_selector(errors, selector, "spec.selector");
        if selector["matchLabels"].as_object().is_none_or(|labels| labels.is_empty())
            && items(&selector["matchExpressions"]).is_empty()
        {
            let detail = format!("empty selector is invalid for {noun}");
            errors.push(FieldError::invalid("spec.selector", selector, &detail));
        }
    }
    match LabelSelector::from_label_selector(selector) {
        Err(_) => errors.push(FieldError::invalid("spec.selector", selector, "invalid label selector")),
        Ok(selector) => template(errors, &spec["template"], &selector, "ReplicaSet"),
    }
}

/// `spec.template` of a workload whose pods always restart; `kind` as in `activeDeadlineSeconds in ReplicaSet is not Supported`.
pub fn template(errors: &mut Errors, template: &Value, selector: &LabelSelector, kind: &str) {
    let path = "spec.template";
    if !selector.is_everything() && !selector.matches_object(template) {
        let labels = &template["metadata"]["labels"];
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(format!("{path}.metadata.labels"), labels, detail));
    }
    pod_template(errors, template, path);
    let policy = &template["spec"]["restartPolicy"];
    if text(policy) != "Always" {
        errors.push(FieldError::not_supported(format!("{path}.spec.restartPolicy"), policy, &["Always"]));
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        let path = format!("{path}.spec.activeDeadlineSeconds");
        errors.push(FieldError::forbidden(path, &format!("activeDeadlineSeconds in {kind} is not Supported")));
    }
}

/// A number, or that of a percentage (`getIntOrPercentValue`).
pub fn amount(value: &Value) -> i64 {
    value.as_str().map_or(value.as_i64(), |text| percent(text).ok()).unwrap_or_default()
}

/// `status.collisionCount`: neither negative nor ever less.
pub fn collision_count(errors: &mut Errors, status: &Value, old: &Value) {
    let (path, count) = ("status.collisionCount", &status["collisionCount"]);
    non_negative(errors, path, count);
    if number(count) < number(&old["collisionCount"]) {
        errors.push(FieldError::invalid(path, &number(count).into(), "cannot be decremented"));
    }
}

/// Counts of replicas in a status: none negative, the parts not more than all. `ready`: how the message about too many
/// available ones calls the ready ones.
pub fn replica_counts(errors: &mut Errors, status: &Value, parts: &[&str], ready: &str) {
    let count = |field: &str| status[field].as_i64().unwrap_or_default();
    for field in ["replicas"].iter().chain(parts).chain(&["observedGeneration"]) {
        non_negative(errors, &format!("status.{field}"), &status[*field]);
    }
    for field in parts {
        if count(field) > count("replicas") {
            let detail = "cannot be greater than status.replicas";
            errors.push(FieldError::invalid(format!("status.{field}"), &status[*field], detail));
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let detail = format!("cannot be greater than {ready}");
        errors.push(FieldError::invalid("status.availableReplicas", &status["availableReplicas"], &detail));
    }
}

/// The columns Containers, Images and Selector of `-o wide`.
pub fn wide_columns(about_selector: &'static str) -> [Column; 3] {
    [
        wide_column("Containers", "string", "Names of each container in the template."),
        wide_column("Images", "string", "Images referenced by each container in the template."),
        wide_column("Selector", "string", about_selector),
    ]
}

/// Their cells.
pub fn wide_cells(spec: &Value) -> [Value; 3] {
    let containers = items(&spec["template"]["spec"]["containers"]);
    let list = |field: &str| containers.iter().map(|c| text(&c[field])).collect::<Vec<_>>().join(",");
    [list("name").into(), list("image").into(), selector(&spec["selector"]).into()]
}
