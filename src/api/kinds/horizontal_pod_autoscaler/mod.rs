//! HorizontalPodAutoscalers: `autoscaling/v2` is stored, `autoscaling/v1` is another shape of it.

mod columns;
mod v1;
mod validation;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::items;
use crate::api::status::FieldError;
use crate::api::validation::{Errors, non_negative};

/// The kinds of both versions.
pub fn kinds() -> [Kind; 2] {
    let kind = |gvr, strategy| Kind {
        short_names: names(&["hpa"]),
        categories: names(&["all"]),
        subresources: vec![Subresource::Status],
        ..namespaced(gvr, "HorizontalPodAutoscaler", strategy)
    };
    [
        kind(gvr::HORIZONTAL_POD_AUTOSCALERS, Arc::new(V2) as Arc<dyn Strategy>),
        kind(gvr::HORIZONTAL_POD_AUTOSCALERS_V1, Arc::new(v1::V1)),
    ]
}

struct V2;

/// The target when none is given, in percent of the requests (`DefaultCPUUtilization`).
const CPU_UTILIZATION: i64 = 80;

impl Strategy for V2 {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        set(spec, "minReplicas", 1);
        if items(&spec["metrics"]).is_empty() {
            spec["metrics"] = json!([{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": CPU_UTILIZATION}}}]);
        }
        if spec["behavior"].is_object() {
            behavior(&mut spec["behavior"]);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), json!({"desiredReplicas": 0, "currentMetrics": null}));
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validation::spec(&mut errors, &object["spec"], 1);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let lowest = i64::from(old["spec"]["minReplicas"] != 0);
        validation::spec(&mut errors, &object["spec"], lowest);
        errors
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for field in ["currentReplicas", "desiredReplicas"] {
            non_negative(&mut errors, &format!("status.{field}"), &object["status"][field]);
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        columns::columns()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::cells(object, now)
    }
}

/// What a behavior leaves open (`SetDefaults_HorizontalPodAutoscalerBehavior`). The window of a scale-down is the
/// controller's default, which is not written.
fn behavior(behavior: &mut Value) {
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    if let Some(up) = ensure_object(behavior, "scaleUp") {
        set(up, "stabilizationWindowSeconds", 0);
        set(up, "selectPolicy", "Max");
        set(up, "policies", json!([pods, percent]));
    }
    if let Some(down) = ensure_object(behavior, "scaleDown") {
        set(down, "selectPolicy", "Max");
        set(down, "policies", json!([percent]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_open_is_filled_in() {
        let mut object =
            json!({"spec": {"maxReplicas": 3, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}}}});
        V2.default(&mut object);
        assert_eq!(object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert_eq!(object["spec"]["minReplicas"], 1);
        let behavior = &object["spec"]["behavior"];
        assert_eq!(behavior["scaleUp"]["policies"][0], json!({"type": "Pods", "value": 4, "periodSeconds": 15}));
        assert_eq!(behavior["scaleDown"]["stabilizationWindowSeconds"], 60);
        let again = object.clone();
        V2.default(&mut object);
        assert_eq!(object, again);
    }
}
