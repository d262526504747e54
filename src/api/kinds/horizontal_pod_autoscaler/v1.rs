//! `autoscaling/v1`: the CPU target is a field, everything else of `v2` travels in annotations
//! (`pkg/apis/autoscaling/v1/conversion.go`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{V2, columns};
use crate::api::kind::{Column, Gvr, Strategy};
use crate::api::kinds::defaulting::{ensure_object, set};
use crate::api::kinds::gvr;
use crate::api::meta::{items, metadata_mut, text};
use crate::api::status::FieldError;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

/// The strategy of the older version.
pub struct V1;

impl Strategy for V1 {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = ensure_object(object, "spec") {
            set(spec, "minReplicas", 1);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        // The CPU target is a default of the newer version, in which objects are stored.
        let mut stored = object.clone();
        self.to_stored(&mut stored);
        self.from_stored(&mut stored);
        if let Some(map) = object.as_object_mut() {
            map.insert("spec".into(), stored.get_mut("spec").map(Value::take).unwrap_or_default());
            map.insert("status".into(), json!({"currentReplicas": 0, "desiredReplicas": 0}));
        }
    }

    fn stored_as(&self) -> Option<Gvr> {
        Some(gvr::HORIZONTAL_POD_AUTOSCALERS)
    }

    fn to_stored(&self, object: &mut Value) {
        to_v2(object);
        V2.default(object);
    }

    fn from_stored(&self, object: &mut Value) {
        to_v1(object);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        V2.validate(&self.newer(object))
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        V2.validate_update(&self.newer(object), &self.newer(old))
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        V2.validate_status_update(object, old)
    }

    fn columns(&self) -> Vec<Column> {
        columns::columns()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::cells(&self.newer(object), now)
    }
}

impl V1 {
    fn newer(&self, object: &Value) -> Value {
        let mut object = object.clone();
        self.to_stored(&mut object);
        object
    }
}

/// A metric as the annotations have it: flat, without `target`. The order of the fields is that of Go's.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Flat {
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<FlatSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<FlatSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<FlatSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_resource: Option<FlatSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external: Option<FlatSource>,
}

/// All fields that some source has; targets (`target…`) or current values (`current…`).
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FlatSource {
    #[serde(skip_serializing_if = "Value::is_null")]
    target: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    name: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    metric_name: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    metric_selector: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    target_value: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    target_average_utilization: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    target_average_value: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    current_value: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    current_average_utilization: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    current_average_value: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    container: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    selector: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    average_value: Value,
}

/// `behavior` as the annotation has it: Go's internal type, whose fields have no other names.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Behavior {
    scale_up: Option<Rules>,
    scale_down: Option<Rules>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rules {
    stabilization_window_seconds: Option<i64>,
    select_policy: Option<String>,
    policies: Option<Vec<Policy>>,
    tolerance: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Policy {
    r#type: String,
    value: i64,
    period_seconds: i64,
}

const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
    ("External", "external"),
];

impl Flat {
    fn source(&mut self, name: &str) -> &mut Option<FlatSource> {
        match name {
            "object" => &mut self.object,
            "pods" => &mut self.pods,
            "resource" => &mut self.resource,
            "containerResource" => &mut self.container_resource,
            _ => &mut self.external,
        }
    }
}

/// A metric of a specification (its numbers are in `target`) or of a status (they are in `current`).
fn flatten(metric: &Value, is_status: bool) -> Flat {
    let mut flat = Flat { r#type: text(&metric["type"]).into(), ..Default::default() };
    let Some((_, name)) = SOURCES.iter().find(|(kind, _)| *kind == flat.r#type) else { return flat };
    let from = &metric[*name];
    let numbers = &from[if is_status { "current" } else { "target" }];
    let (value, average) = (numbers["value"].clone(), numbers["averageValue"].clone());
    let utilization = numbers["averageUtilization"].clone();
    let mut source = FlatSource {
        name: from["name"].clone(),
        container: from["container"].clone(),
        target: from["describedObject"].clone(),
        metric_name: from["metric"]["name"].clone(),
        ..Default::default()
    };
    match *name {
        "external" => source.metric_selector = from["metric"]["selector"].clone(),
        _ => source.selector = from["metric"]["selector"].clone(),
    }
    let average = if *name == "object" { std::mem::replace(&mut source.average_value, average) } else { average };
    if is_status {
        (source.current_value, source.current_average_value, source.current_average_utilization) =
            (value, average, utilization);
    } else {
        (source.target_value, source.target_average_value, source.target_average_utilization) =
            (value, average, utilization);
    }
    *flat.source(name) = Some(source);
    flat
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>().into(),
        value => value,
    }
}

/// The way back.
fn unflatten(mut flat: Flat, is_status: bool) -> Value {
    let kind = flat.r#type.clone();
    let Some((_, name)) = SOURCES.iter().find(|(known, _)| *known == kind) else { return json!({"type": kind}) };
    let source = flat.source(name).take().unwrap_or_default();
    let (value, average, utilization) = if is_status {
        (source.current_value, source.current_average_value, source.current_average_utilization)
    } else {
        (source.target_value, source.target_average_value, source.target_average_utilization)
    };
    let average = if *name == "object" { source.average_value } else { average };
    let target_type = match () {
        () if !utilization.is_null() => "Utilization",
        () if !average.is_null() => "AverageValue",
        () => "Value",
    };
    let mut numbers = json!({"value": value, "averageValue": average, "averageUtilization": utilization});
    if !is_status {
        numbers["type"] = target_type.into();
    }
    let numbers = without_nulls(numbers);
    let selector = if *name == "external" { source.metric_selector } else { source.selector };
    let metric = match source.metric_name.is_null() {
        true => Value::Null,
        false => without_nulls(json!({"name": source.metric_name, "selector": selector})),
    };
    let inner = without_nulls(json!({
        "describedObject": source.target, "metric": metric, "name": source.name, "container": source.container,
        if is_status { "current" } else { "target" }: numbers,
    }));
    json!({"type": kind, *name: inner})
}

fn is_cpu_utilization(metric: &Value, numbers: &str) -> bool {
    let resource = &metric["resource"];
    metric["type"] == "Resource" && resource["name"] == "cpu" && !resource[numbers]["averageUtilization"].is_null()
}

/// Whether the parts are where they belong; validation refuses what is not.
fn has_shape(object: &Value) -> bool {
    let is_map = |value: &Value| value.is_null() || value.is_object();
    object.is_object()
        && ["spec", "status", "metadata"].iter().all(|part| is_map(&object[*part]))
        && is_map(&object["metadata"]["annotations"])
}

fn to_v1(object: &mut Value) {
    if !has_shape(object) {
        return;
    }
    let (mut spec, mut status) = (object["spec"].take(), object["status"].take());
    let mut annotations: Vec<(&str, String)> = Vec::new();
    let write = |list: Vec<Flat>| serde_json::to_string(&list).expect("plain values are JSON");
    let metrics = spec.get_mut("metrics").map(Value::take).unwrap_or_default();
    let (cpu, others): (Vec<&Value>, Vec<&Value>) =
        items(&metrics).iter().partition(|metric| is_cpu_utilization(metric, "target"));
    if !others.is_empty() {
        annotations.push((METRICS, write(others.into_iter().map(|metric| flatten(metric, false)).collect())));
    }
    if let Some(cpu) = cpu.last() {
        spec["targetCPUUtilizationPercentage"] = cpu["resource"]["target"]["averageUtilization"].clone();
    }
    if spec["behavior"].is_object() {
        annotations.push((BEHAVIOR, behavior_to_text(&spec["behavior"])));
    }
    if let Some(map) = spec.as_object_mut() {
        map.retain(|field, _| !["metrics", "behavior"].contains(&field.as_str()));
    }
    let current = items(&status["currentMetrics"]);
    if !current.is_empty() {
        annotations.push((CURRENT_METRICS, write(current.iter().map(|metric| flatten(metric, true)).collect())));
        if let Some(cpu) = current.iter().rfind(|metric| is_cpu_utilization(metric, "current")).cloned() {
            status["currentCPUUtilizationPercentage"] = cpu["resource"]["current"]["averageUtilization"].clone();
        }
    }
    if !items(&status["conditions"]).is_empty() {
        annotations.push((CONDITIONS, conditions_to_text(&status["conditions"])));
    }
    if let Some(map) = status.as_object_mut() {
        map.retain(|field, _| !["currentMetrics", "conditions"].contains(&field.as_str()));
        map.entry("currentReplicas").or_insert_with(|| 0.into());
        map.entry("desiredReplicas").or_insert_with(|| 0.into());
    }
    (object["spec"], object["status"]) = (spec, status);
    for (name, text) in annotations {
        object["metadata"]["annotations"][name] = text.into();
    }
    object["apiVersion"] = "autoscaling/v1".into();
}

/// Conditions in the order of Go's fields.
fn conditions_to_text(conditions: &Value) -> String {
    let fields = ["type", "status", "lastTransitionTime", "reason", "message"];
    let one = |condition: &Value| {
        let present = fields.iter().filter(|field| !condition[**field].is_null());
        let pairs: Vec<String> = present.map(|field| format!("{field:?}:{}", condition[*field])).collect();
        format!("{{{}}}", pairs.join(","))
    };
    format!("[{}]", items(conditions).iter().map(one).collect::<Vec<_>>().join(","))
}

fn behavior_to_text(behavior: &Value) -> String {
    let policy = |policy: &Value| Policy {
        r#type: text(&policy["type"]).into(),
        value: policy["value"].as_i64().unwrap_or_default(),
        period_seconds: policy["periodSeconds"].as_i64().unwrap_or_default(),
    };
    let rules = |rules: &Value| {
        rules.is_object().then(|| Rules {
            stabilization_window_seconds: rules["stabilizationWindowSeconds"].as_i64(),
            select_policy: rules["selectPolicy"].as_str().map(str::to_owned),
            policies: rules["policies"].as_array().map(|all| all.iter().map(policy).collect()),
            tolerance: rules["tolerance"].as_str().map(str::to_owned),
        })
    };
    let behavior = Behavior { scale_up: rules(&behavior["scaleUp"]), scale_down: rules(&behavior["scaleDown"]) };
    serde_json::to_string(&behavior).expect("plain values are JSON")
}

fn behavior_from_text(text: &str) -> Option<Value> {
    let behavior: Behavior = serde_json::from_str(text).ok()?;
    let policy =
        |policy: Policy| json!({"type": policy.r#type, "value": policy.value, "periodSeconds": policy.period_seconds});
    let rules = |rules: Option<Rules>| {
        rules.map(|rules| {
            without_nulls(json!({
                "stabilizationWindowSeconds": rules.stabilization_window_seconds, "selectPolicy": rules.select_policy,
                "policies": rules.policies.map(|all| all.into_iter().map(policy).collect::<Vec<_>>()),
                "tolerance": rules.tolerance,
            }))
        })
    };
    let found = without_nulls(json!({"scaleUp": rules(behavior.scale_up), "scaleDown": rules(behavior.scale_down)}));
    found.as_object().is_some_and(|map| !map.is_empty()).then_some(found)
}

fn to_v2(object: &mut Value) {
    if !has_shape(object) {
        return;
    }
    let mut annotations = object["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    let mut taken = |name: &str| annotations.remove(name).and_then(|text| text.as_str().map(str::to_owned));
    let (metrics, behavior) = (taken(METRICS), taken(BEHAVIOR));
    let (current, conditions) = (taken(CURRENT_METRICS), taken(CONDITIONS));
    let read = |text: Option<String>, is_status: bool| -> Vec<Value> {
        // Nonsense in an annotation is left alone, as if it were not there.
        let flat: Vec<Flat> = text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        flat.into_iter().map(|flat| unflatten(flat, is_status)).collect()
    };
    let mut metrics = read(metrics, false);
    if let Some(spec) = object["spec"].as_object_mut() {
        if let Some(percent) = spec.remove("targetCPUUtilizationPercentage").filter(|percent| !percent.is_null()) {
            metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": percent}}}));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".into(), metrics.into());
        }
        if let Some(behavior) = behavior.and_then(|text| behavior_from_text(&text)) {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = object["status"].as_object_mut() {
        status.remove("currentCPUUtilizationPercentage");
        let current = read(current, true);
        status.insert("currentMetrics".into(), if current.is_empty() { Value::Null } else { current.into() });
        let conditions: Option<Value> = conditions.and_then(|text| serde_json::from_str(&text).ok());
        if let Some(conditions) = conditions.filter(Value::is_array) {
            status.insert("conditions".into(), conditions);
        }
        status.entry("desiredReplicas").or_insert_with(|| 0.into());
        if status.get("currentReplicas").is_some_and(|count| *count == 0) {
            status.remove("currentReplicas");
        }
    }
    let metadata = metadata_mut(object);
    if annotations.is_empty() {
        metadata.remove("annotations");
    } else {
        metadata.insert("annotations".into(), annotations.into());
    }
    object["apiVersion"] = "autoscaling/v2".into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newer(spec: Value, status: Value) -> Value {
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": spec, "status": status})
    }

    #[test]
    fn the_cpu_target_is_a_field_and_the_rest_are_annotations() {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
        let rps = json!({"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "10"}}});
        let rules = json!({"stabilizationWindowSeconds": 60, "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]});
        let status = json!({"currentReplicas": 2, "desiredReplicas": 2, "currentMetrics": [
            {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 30, "averageValue": "30m"}}}],
            "conditions": [{"type": "AbleToScale", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z", "reason": "R", "message": "m"}]});
        let spec = json!({"maxReplicas": 3, "minReplicas": 1, "metrics": [rps, cpu], "behavior": {"scaleDown": rules}});
        let stored = newer(spec, status);
        let mut older = stored.clone();
        V1.from_stored(&mut older);
        assert_eq!(older["spec"], json!({"maxReplicas": 3, "minReplicas": 1, "targetCPUUtilizationPercentage": 50}));
        assert_eq!(
            older["status"],
            json!({"currentReplicas": 2, "desiredReplicas": 2, "currentCPUUtilizationPercentage": 30})
        );
        let annotations = &older["metadata"]["annotations"];
        assert_eq!(
            annotations[METRICS],
            "[{\"type\":\"Pods\",\"pods\":{\"metricName\":\"rps\",\"targetAverageValue\":\"10\"}}]"
        );
        assert_eq!(
            annotations[CURRENT_METRICS],
            "[{\"type\":\"Resource\",\"resource\":{\"name\":\"cpu\",\"currentAverageUtilization\":30,\"currentAverageValue\":\"30m\"}}]"
        );
        assert_eq!(
            annotations[BEHAVIOR],
            "{\"ScaleUp\":null,\"ScaleDown\":{\"StabilizationWindowSeconds\":60,\"SelectPolicy\":\"Max\",\
             \"Policies\":[{\"Type\":\"Percent\",\"Value\":100,\"PeriodSeconds\":15}],\"Tolerance\":null}}"
        );
        to_v2(&mut older);
        assert_eq!(older, stored);
    }

    #[test]
    fn every_source_comes_back_as_it_was() {
        let metrics = json!([
            {"type": "Object", "object": {"describedObject": {"kind": "Ingress", "name": "i"}, "metric": {"name": "rps", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "Value", "value": "2k"}}},
            {"type": "Object", "object": {"describedObject": {"kind": "Ingress", "name": "i"}, "metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
            {"type": "External", "external": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "AverageValue", "averageValue": "5"}}},
            {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "c", "target": {"type": "Utilization", "averageUtilization": 50}}},
            {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "100Mi"}}},
        ]);
        let stored =
            newer(json!({"maxReplicas": 3, "metrics": metrics}), json!({"desiredReplicas": 0, "currentMetrics": null}));
        let mut object = stored.clone();
        V1.from_stored(&mut object);
        to_v2(&mut object);
        assert_eq!(object, stored);
    }

    #[test]
    fn nonsense_in_annotations_is_left_out() {
        let mut object = json!({"metadata": {"annotations": {METRICS: "[{", BEHAVIOR: "7", CONDITIONS: "{}", "own": "x"}},
            "spec": {"maxReplicas": 1}, "status": {}});
        V1.to_stored(&mut object);
        assert_eq!(object["metadata"]["annotations"], json!({"own": "x"}));
        assert_eq!(object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    }
}
