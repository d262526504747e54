//! Validation of HorizontalPodAutoscalers (`pkg/apis/autoscaling/validation`).

use serde_json::Value;

use crate::api::meta::{items, number, text};
use crate::api::quantity::Quantity;
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, path_segment_messages};
use crate::api::validation::{Errors, invalid_all};

const LONGEST_WINDOW: i64 = 3600;
const LONGEST_PERIOD: i64 = 1800;
const SOURCES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];

/// A specification; `lowest` is the smallest `minReplicas`.
pub fn spec(errors: &mut Errors, spec: &Value, lowest: i64) {
    let (min, max) = (&spec["minReplicas"], &spec["maxReplicas"]);
    if min.as_i64().is_some_and(|count| count < lowest) {
        let detail = format!("must be greater than or equal to {lowest}");
        errors.push(FieldError::invalid("spec.minReplicas", min, &detail));
    }
    let shown = Value::from(number(max));
    if number(max) < 1 {
        errors.push(FieldError::invalid("spec.maxReplicas", &shown, "must be greater than 0"));
    }
    if min.as_i64().is_some_and(|min| number(max) < min) {
        let detail = "must be greater than or equal to `minReplicas`";
        errors.push(FieldError::invalid("spec.maxReplicas", &shown, detail));
    }
    object_reference(errors, &spec["scaleTargetRef"], "spec.scaleTargetRef");
    metrics(errors, spec);
    for direction in ["scaleUp", "scaleDown"] {
        let rules = &spec["behavior"][direction];
        if rules.is_object() {
            scaling_rules(errors, rules, &format!("spec.behavior.{direction}"));
        }
    }
}

fn object_reference(errors: &mut Errors, reference: &Value, path: &str) {
    for field in ["kind", "name"] {
        let (value, path) = (&reference[field], format!("{path}.{field}"));
        if text(value).is_empty() {
            errors.push(FieldError::required(path, ""));
        } else {
            invalid_all(errors, &path, value, path_segment_messages(text(value)));
        }
    }
    // Since 1.31 the API version must make sense.
    let (value, path) = (&reference["apiVersion"], format!("{path}.apiVersion"));
    if text(value).split('/').count() > 2 {
        let detail = format!("unexpected GroupVersion string: {}", text(value));
        errors.push(FieldError::invalid(path, value, &detail));
    }
}

fn metrics(errors: &mut Errors, spec: &Value) {
    let (metrics, path) = (items(&spec["metrics"]), "spec.metrics");
    for (index, one) in metrics.iter().enumerate() {
        metric(errors, one, &format!("{path}[{index}]"));
    }
    let outside = metrics.iter().any(|metric| ["Object", "External"].contains(&text(&metric["type"])));
    if spec["minReplicas"] == 0 && !outside {
        let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.push(FieldError::forbidden(path, detail));
    }
}

fn metric(errors: &mut Errors, metric: &Value, path: &str) {
    let (kind, type_path) = (&metric["type"], format!("{path}.type"));
    if text(kind).is_empty() {
        errors.push(FieldError::required(&type_path, "must specify a metric source type"));
    }
    if !SOURCES.contains(&text(kind)) {
        errors.push(FieldError::not_supported(&type_path, kind, &SOURCES));
    }
    let present: Vec<&str> = ["object", "external", "pods", "resource", "containerResource"]
        .into_iter()
        .filter(|source| !metric[*source].is_null())
        .collect();
    if let Some(source) = present.first() {
        self::source(errors, source, &metric[*source], &format!("{path}.{source}"));
    }
    let expected = match text(kind) {
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        "External" => "external",
        "ContainerResource" => "containerResource",
        _ => {
            errors.push(FieldError::not_supported(&type_path, kind, &SOURCES));
            ""
        }
    };
    if !expected.is_empty() && metric[expected].is_null() {
        let detail = "must populate information for the given metric source";
        errors.push(FieldError::required(format!("{path}.{expected}"), detail));
    }
    if present.len() != 1 {
        for other in present.iter().filter(|source| **source != expected) {
            let detail = "must populate the given metric source only";
            errors.push(FieldError::forbidden(format!("{path}.{other}"), detail));
        }
    }
}

fn source(errors: &mut Errors, source: &str, value: &Value, path: &str) {
    let target = &value["target"];
    let unset = |field: &str| target[field].is_null();
    let at = |field: &str| format!("{path}.target.{field}");
    match source {
        "object" => object_reference(errors, &value["describedObject"], &format!("{path}.describedObject")),
        "containerResource" | "resource" => resource(errors, source, value, path),
        _ => {}
    }
    if ["object", "external", "pods"].contains(&source) {
        let (name, path) = (&value["metric"]["name"], format!("{path}.metric.name"));
        if text(name).is_empty() {
            errors.push(FieldError::required(path, "must specify a metric name"));
        } else {
            invalid_all(errors, &path, name, path_segment_messages(text(name)));
        }
    }
    metric_target(errors, target, &format!("{path}.target"));
    match source {
        "object" if unset("value") && unset("averageValue") => {
            errors.push(FieldError::required(at("averageValue"), "must set either a target value or averageValue"));
        }
        "external" if unset("value") && unset("averageValue") => {
            let detail = "must set either a target value for metric or a per-pod target";
            errors.push(FieldError::required(at("averageValue"), detail));
        }
        "external" if !unset("value") && !unset("averageValue") => {
            let detail = "may not set both a target value for metric and a per-pod target";
            errors.push(FieldError::forbidden(at("value"), detail));
        }
        "pods" if unset("averageValue") => {
            errors.push(FieldError::required(at("averageValue"), "must specify a positive target averageValue"));
        }
        "resource" | "containerResource" if unset("averageUtilization") && unset("averageValue") => {
            let detail = "must set either a target raw value or a target utilization";
            errors.push(FieldError::required(at("averageUtilization"), detail));
        }
        "resource" | "containerResource" if !unset("averageUtilization") && !unset("averageValue") => {
            let detail = "may not set both a target raw value and a target utilization";
            errors.push(FieldError::forbidden(at("averageValue"), detail));
        }
        _ => {}
    }
}

fn resource(errors: &mut Errors, source: &str, value: &Value, path: &str) {
    if text(&value["name"]).is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), "must specify a resource name"));
    }
    if source == "containerResource" {
        let (container, path) = (&value["container"], format!("{path}.container"));
        if text(container).is_empty() {
            errors.push(FieldError::required(path, "must specify a container"));
        } else {
            invalid_all(errors, &path, container, dns_label_messages(text(container)));
        }
    }
}

fn metric_target(errors: &mut Errors, target: &Value, path: &str) {
    let (kind, path_of) = (&target["type"], |field: &str| format!("{path}.{field}"));
    if text(kind).is_empty() {
        errors.push(FieldError::required(path_of("type"), "must specify a metric target type"));
    }
    if !["Utilization", "Value", "AverageValue"].contains(&text(kind)) {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.push(FieldError::invalid(path_of("type"), kind, detail));
    }
    for field in ["value", "averageValue"].iter().filter(|field| !target[**field].is_null()) {
        let positive = |quantity: Quantity| !quantity.is_zero() && !quantity.is_negative();
        if !text(&target[*field]).parse::<Quantity>().is_ok_and(positive) {
            errors.push(FieldError::invalid(path_of(field), &target[*field], "must be positive"));
        }
    }
    let utilization = &target["averageUtilization"];
    if utilization.as_i64().is_some_and(|percent| percent < 1) {
        errors.push(FieldError::invalid(path_of("averageUtilization"), utilization, "must be greater than 0"));
    }
}

fn scaling_rules(errors: &mut Errors, rules: &Value, path: &str) {
    let (window, window_path) = (&rules["stabilizationWindowSeconds"], format!("{path}.stabilizationWindowSeconds"));
    if window.as_i64().is_some_and(|seconds| seconds < 0) {
        errors.push(FieldError::invalid(&window_path, window, "must be greater than or equal to zero"));
    }
    if window.as_i64().is_some_and(|seconds| seconds > LONGEST_WINDOW) {
        let detail = format!("must be less than or equal to {LONGEST_WINDOW}");
        errors.push(FieldError::invalid(window_path, window, &detail));
    }
    let select = &rules["selectPolicy"];
    if !select.is_null() && !["Disabled", "Max", "Min"].contains(&text(select)) {
        let path = format!("{path}.selectPolicy");
        errors.push(FieldError::not_supported(path, select, &["Disabled", "Max", "Min"]));
    }
    let tolerance = &rules["tolerance"];
    let refused = text(tolerance).parse::<Quantity>().map_or(true, |quantity| quantity.is_negative());
    if !tolerance.is_null() && refused {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(format!("{path}.tolerance"), tolerance, detail));
    }
    let (policies, path) = (items(&rules["policies"]), format!("{path}.policies"));
    if policies.is_empty() {
        errors.push(FieldError::required(&path, "must specify at least one Policy"));
    }
    for (index, policy) in policies.iter().enumerate() {
        scaling_policy(errors, policy, &format!("{path}[{index}]"));
    }
}

fn scaling_policy(errors: &mut Errors, policy: &Value, path: &str) {
    if !["Pods", "Percent"].contains(&text(&policy["type"])) {
        errors.push(FieldError::not_supported(format!("{path}.type"), &policy["type"], &["Percent", "Pods"]));
    }
    for field in ["value", "periodSeconds"].iter().filter(|field| number(&policy[**field]) <= 0) {
        let value = number(&policy[*field]).into();
        errors.push(FieldError::invalid(format!("{path}.{field}"), &value, "must be greater than zero"));
    }
    if number(&policy["periodSeconds"]) > LONGEST_PERIOD {
        let detail = format!("must be less than or equal to {LONGEST_PERIOD}");
        errors.push(FieldError::invalid(format!("{path}.periodSeconds"), &policy["periodSeconds"], &detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn messages(change: Value) -> Vec<String> {
        let mut object =
            json!({"maxReplicas": 3, "minReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "d"}});
        crate::api::patch::merge(&mut object, &change).expect("a patch");
        let mut errors = Errors::new();
        spec(&mut errors, &object, 1);
        errors.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn absurd_sizes_and_targets_are_refused() {
        assert_eq!(messages(json!({})), Vec::<String>::new());
        assert_eq!(
            messages(json!({"minReplicas": 5})),
            ["spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"]
        );
        assert_eq!(messages(json!({"maxReplicas": -1, "minReplicas": -2})).len(), 2);
        assert_eq!(
            messages(json!({"scaleTargetRef": {"kind": "a/b", "name": ".."}})),
            [
                "spec.scaleTargetRef.kind: Invalid value: \"a/b\": may not contain '/'",
                "spec.scaleTargetRef.name: Invalid value: \"..\": may not be '..'"
            ]
        );
        let cpu =
            |target: Value| json!({"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]});
        let path = "spec.metrics[0].resource.target";
        assert_eq!(
            messages(cpu(json!({"type": "Utilization", "averageUtilization": 0}))),
            [format!("{path}.averageUtilization: Invalid value: 0: must be greater than 0")]
        );
        assert_eq!(
            messages(cpu(json!({"type": "AverageValue", "averageValue": "-1"}))),
            [format!("{path}.averageValue: Invalid value: \"-1\": must be positive")]
        );
        assert_eq!(
            messages(cpu(json!({"type": "Utilization"}))),
            [format!(
                "{path}.averageUtilization: Required value: must set either a target raw value or a target utilization"
            )]
        );
    }

    #[test]
    fn behaviors_are_checked() {
        let up = |rules: Value| messages(json!({"behavior": {"scaleUp": rules}}));
        let policy = json!([{"type": "Pods", "value": 1, "periodSeconds": 1801}]);
        let path = "spec.behavior.scaleUp";
        assert_eq!(
            up(json!({"policies": policy, "stabilizationWindowSeconds": 3601, "selectPolicy": "Any"})),
            [
                format!("{path}.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600"),
                format!(
                    "{path}.selectPolicy: Unsupported value: \"Any\": supported values: \"Disabled\", \"Max\", \"Min\""
                ),
                format!("{path}.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800"),
            ]
        );
        assert_eq!(up(json!({})), [format!("{path}.policies: Required value: must specify at least one Policy")]);
    }
}
