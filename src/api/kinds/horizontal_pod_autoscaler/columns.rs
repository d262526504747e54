//! The columns of HorizontalPodAutoscalers (`printHorizontalPodAutoscaler`).

use jiff::Timestamp;
use serde_json::Value;

use crate::api::kind::Column;
use crate::api::meta::{items, number, text};
use crate::api::printers::{age, age_column, column, name, name_column};

/// So many metrics are shown.
const SHOWN: usize = 2;
const UNKNOWN: &str = "<unknown>";

/// The columns.
pub fn columns() -> Vec<Column> {
    vec![
        name_column(),
        column(
            "Reference",
            "string",
            "scaleTargetRef points to the target resource to scale, and is used to the pods for which metrics should be \
             collected, as well as to actually change the replica count.",
        ),
        column(
            "Targets",
            "string",
            "metrics contains the specifications for which to use to calculate the desired replica count (the maximum \
             replica count across all metrics will be used).  The desired replica count is calculated multiplying the \
             ratio between the target value and the current value by the current number of pods.  Ergo, metrics used must \
             decrease as the pod count is increased, and vice-versa.  See the individual metric source types for more \
             information about how each type of metric must respond.",
        ),
        column(
            "MinPods",
            "string",
            "minReplicas is the lower limit for the number of replicas to which the autoscaler can scale down.  It \
             defaults to 1 pod.  minReplicas is allowed to be 0 if the alpha feature gate HPAScaleToZero is enabled and at \
             least one Object or External metric is configured.  Scaling is active as long as at least one metric value is \
             available.",
        ),
        column(
            "MaxPods",
            "string",
            "maxReplicas is the upper limit for the number of replicas to which the autoscaler can scale up. It cannot be \
             less that minReplicas.",
        ),
        column(
            "Replicas",
            "string",
            "currentReplicas is current number of replicas of pods managed by this autoscaler, as last seen by the \
             autoscaler.",
        ),
        age_column(),
    ]
}

/// Their cells.
pub fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let target = &spec["scaleTargetRef"];
    vec![
        name(object),
        format!("{}/{}", text(&target["kind"]), text(&target["name"])).into(),
        targets(items(&spec["metrics"]), items(&status["currentMetrics"])).into(),
        spec["minReplicas"].as_i64().map_or_else(|| "<unset>".to_owned(), |count| count.to_string()).into(),
        number(&spec["maxReplicas"]).into(),
        number(&status["currentReplicas"]).into(),
        age(object, now),
    ]
}

fn targets(specs: &[Value], statuses: &[Value]) -> String {
    if specs.is_empty() {
        return "<none>".into();
    }
    let all: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| target(spec, statuses.get(index).unwrap_or(&Value::Null)))
        .collect();
    let shown = all[..all.len().min(SHOWN)].join(", ");
    if all.len() > SHOWN { format!("{shown} + {} more...", all.len() - SHOWN) } else { shown }
}

fn or_unknown(value: &Value) -> String {
    value.as_str().map_or_else(|| UNKNOWN.to_owned(), str::to_owned)
}

/// One metric: what it is and what it should be.
fn target(spec: &Value, status: &Value) -> String {
    let source = match text(&spec["type"]) {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".into(),
    };
    let (target, current) = (&spec[source]["target"], &status[source]["current"]);
    let averaged = !target["averageValue"].is_null();
    match source {
        "pods" => format!("{}/{}", or_unknown(&current["averageValue"]), text(&target["averageValue"])),
        "external" | "object" if averaged => {
            format!("{}/{} (avg)", or_unknown(&current["averageValue"]), text(&target["averageValue"]))
        }
        "external" | "object" => format!("{}/{}", or_unknown(&current["value"]), text(&target["value"])),
        _ => {
            let name = text(&spec[source]["name"]);
            if averaged {
                let current = or_unknown(&current["averageValue"]);
                return format!("{name}: {current}/{}", text(&target["averageValue"]));
            }
            let percent = |value: &Value, otherwise: &str| {
                value.as_i64().map_or_else(|| otherwise.to_owned(), |percent| format!("{percent}%"))
            };
            let (have, want) = (&current["averageUtilization"], &target["averageUtilization"]);
            format!("{name}: {}/{}", percent(have, UNKNOWN), percent(want, "<auto>"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn targets_name_their_metric() {
        // printers_test.go
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
        let pods = json!({"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"averageValue": "100m"}}});
        let external = json!({"type": "External", "external": {"target": {"averageValue": "100m"}}});
        let have =
            json!({"type": "Resource", "resource": {"current": {"averageUtilization": 50, "averageValue": "40m"}}});
        assert_eq!(targets(&[cpu.clone()], &[have]), "cpu: 50%/80%");
        assert_eq!(targets(&[cpu.clone()], &[]), "cpu: <unknown>/80%");
        let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"averageValue": "100Mi"}}});
        assert_eq!(targets(&[memory], &[]), "memory: <unknown>/100Mi");
        assert_eq!(targets(&[pods.clone(), external, cpu], &[]), "<unknown>/100m, <unknown>/100m (avg) + 1 more...");
        let have = json!({"type": "Pods", "pods": {"current": {"averageValue": "50m"}}});
        assert_eq!(targets(&[pods], &[have]), "50m/100m");
        assert_eq!(targets(&[], &[]), "<none>");
    }
}
