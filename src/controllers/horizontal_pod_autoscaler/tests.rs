//! Rounds of an autoscaler, without an API.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerBehavior};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::behavior::{Memory, Sizes};
use super::round::{Rescale, Round, Scale, View, decide, not_rescaled};
use crate::client::Object;
use crate::client::typed::to_value;

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().expect("a time")
}

fn later(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

fn hpa(spec: Value) -> HorizontalPodAutoscaler {
    let mut value = json!({
        "metadata": {"name": "h", "namespace": "a", "uid": "h"},
        "spec": {"minReplicas": 1, "maxReplicas": 10, "scaleTargetRef": {"kind": "Deployment", "name": "web"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]},
    });
    for (field, given) in spec.as_object().expect("fields") {
        value["spec"][field] = given.clone();
    }
    HorizontalPodAutoscaler::parse(&value).expect("an autoscaler")
}

fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]},
        "status": {"phase": "Running", "startTime": "2026-01-02T02:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T02:00:10Z"}]},
    });
    change(&mut value);
    Arc::new(Pod::parse(&value).expect("a pod"))
}

fn usage(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "a"}, "timestamp": "2026-01-02T03:04:00Z", "window": "15.5s",
        "containers": [{"name": "c", "usage": {"cpu": cpu, "memory": "1Mi"}}]})
}

struct World {
    scale: Result<Scale, String>,
    measured: Result<Vec<Value>, String>,
    pods: Result<Vec<Arc<Pod>>, String>,
    rivals: Vec<String>,
    memory: Memory,
    now: Timestamp,
}

fn world(replicas: i32, pods: Vec<Arc<Pod>>, measured: Vec<Value>) -> World {
    World {
        scale: Ok(Scale { replicas, selector: "app=web".into() }),
        measured: Ok(measured),
        pods: Ok(pods),
        rivals: vec!["a/h".into()],
        memory: Memory::default(),
        now: now(),
    }
}

impl World {
    fn round(&mut self, hpa: &HorizontalPodAutoscaler) -> Round {
        let view = View {
            scale: &self.scale,
            measured: &self.measured,
            pods: &self.pods,
            rivals: &self.rivals,
            now: self.now,
        };
        decide(hpa, &view, &mut self.memory)
    }
}

fn conditions(round: &Round) -> Vec<String> {
    let conditions = round.status.conditions.iter().flatten();
    conditions.map(|c| format!("{}={} {}", c.type_, c.status, c.reason.clone().unwrap_or_default())).collect()
}

fn size(round: &Round) -> Option<i32> {
    round.rescale.as_ref().map(|rescale| rescale.to)
}

#[test]
fn usage_above_the_target_asks_for_more() {
    let mut world = world(2, vec![pod("a", |_| {}), pod("b", |_| {})], vec![usage("a", "60m"), usage("b", "100m")]);
    let round = world.round(&hpa(json!({})));
    let reason = "cpu resource utilization (percentage of request) above target".to_owned();
    assert_eq!(round.rescale, Some(Rescale { from: 2, to: 4, reason }));
    assert_eq!(
        conditions(&round),
        [
            "AbleToScale=True SucceededRescale",
            "ScalingActive=True ValidMetricFound",
            "ScalingLimited=False DesiredWithinRange"
        ]
    );
    let status = to_value(&round.status);
    assert_eq!((&status["currentReplicas"], &status["desiredReplicas"]), (&json!(2), &json!(4)));
    assert_eq!(
        status["currentMetrics"],
        json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 80, "averageValue": "80m"}}}])
    );
    let failed = not_rescaled(&Default::default(), round.status, "no", now());
    let able = failed.conditions.iter().flatten().next().and_then(|condition| condition.message.clone());
    assert_eq!(able.as_deref(), Some("the HPA controller was unable to update the target scale: no"));
    assert_eq!((failed.desired_replicas, failed.last_scale_time), (0, None));
}

#[test]
fn small_differences_and_pods_that_start_change_nothing() {
    let pods = vec![pod("a", |_| {}), pod("b", |_| {})];
    let mut close = world(2, pods.clone(), vec![usage("a", "52m"), usage("b", "55m")]);
    assert_eq!(size(&close.round(&hpa(json!({})))), None);
    let strict = hpa(
        json!({"behavior": {"scaleUp": {"tolerance": "0.01", "stabilizationWindowSeconds": 0, "selectPolicy": "Max",
        "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}, "scaleDown": {"selectPolicy": "Max", "policies": []}}}),
    );
    assert_eq!(size(&close.round(&strict)), Some(3));
    let starting = pod("b", |pod| pod["status"]["startTime"] = "2026-01-02T03:03:55Z".into());
    let unready = pod("b", |pod| {
        pod["status"]["startTime"] = "2026-01-02T03:03:00Z".into();
        pod["status"]["conditions"][0]["status"] = "False".into();
    });
    // The new pod counts as idle: (55 + 0) / 2 is below the target.
    let mut unready = world(2, vec![pods[0].clone(), unready], vec![usage("a", "75m"), usage("b", "900m")]);
    assert_eq!(size(&unready.round(&hpa(json!({})))), None);
    // So does one that has not been ready for a whole window of measurement.
    let fresh = pod("b", |pod| {
        pod["status"] = starting.status.as_ref().map(to_value).unwrap_or_default();
        pod["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-02T03:03:58Z".into();
    });
    let mut fresh = world(2, vec![pods[0].clone(), fresh], vec![usage("a", "75m"), usage("b", "900m")]);
    assert_eq!(size(&fresh.round(&hpa(json!({})))), None);
    // Without a measurement a pod counts as busy when there would be fewer.
    let mut missing = world(2, pods, vec![usage("a", "10m")]);
    assert_eq!(size(&missing.round(&hpa(json!({})))), None);
}

#[test]
fn bounds_hold_whatever_is_measured() {
    let mut high = world(20, Vec::new(), Vec::new());
    assert_eq!(size(&high.round(&hpa(json!({})))), Some(10));
    let mut low = world(1, Vec::new(), Vec::new());
    let round = low.round(&hpa(json!({"minReplicas": 3})));
    assert_eq!(
        round.rescale.map(|rescale| rescale.words()).as_deref(),
        Some("New size: 3; reason: Current number of replicas below Spec.MinReplicas")
    );
    let mut off = world(0, Vec::new(), Vec::new());
    let round = off.round(&hpa(json!({})));
    assert_eq!(
        (size(&round), conditions(&round).pop().as_deref()),
        (None, Some("ScalingActive=False ScalingDisabled"))
    );
    let mut busy = world(2, vec![pod("a", |_| {}), pod("b", |_| {})], vec![usage("a", "9"), usage("b", "9")]);
    let round = busy.round(&hpa(json!({})));
    assert_eq!(
        (size(&round), conditions(&round).pop().as_deref()),
        (Some(4), Some("ScalingLimited=True ScaleUpLimit"))
    );
}

#[test]
fn what_cannot_be_measured_is_told() {
    let mut nobody = world(1, vec![pod("a", |_| {})], Vec::new());
    nobody.measured = Err("unable to fetch metrics from resource metrics API: the server could not find the requested resource (get pods.metrics.k8s.io)".into());
    let round = nobody.round(&hpa(json!({})));
    let error = "failed to get cpu utilization: unable to get metrics for resource cpu: unable to fetch metrics from resource metrics API: \
                 the server could not find the requested resource (get pods.metrics.k8s.io)";
    let told: Vec<(&str, &str)> = round.told.iter().map(|(_, reason, message)| (*reason, message.as_str())).collect();
    let all = format!(
        "invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: {error}"
    );
    assert_eq!(told, [("FailedGetResourceMetric", error), ("FailedComputeMetricsReplicas", &all)]);
    assert_eq!(to_value(&round.status)["currentMetrics"], json!([{"type": ""}]));

    let custom = json!([
        {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "1"}}},
        {"type": "External", "external": {"metric": {"name": "q", "selector": {"matchLabels": {"x": "y"}}}, "target": {"type": "Value", "value": "1"}}},
    ]);
    let round = nobody.round(&hpa(json!({"metrics": custom})));
    let messages: Vec<&str> = round.told.iter().map(|(_, _, message)| message.as_str()).collect();
    assert_eq!(
        messages[0],
        "unable to get metric rps: unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered"
    );
    assert_eq!(
        messages[1],
        "unable to get external metric a/q/&LabelSelector{MatchLabels:map[string]string{x: y,},MatchExpressions:[]LabelSelectorRequirement{},}: \
         unable to fetch metrics from external metrics API: the server could not find the requested resource (get q.external.metrics.k8s.io)"
    );
    let mut without_request =
        world(1, vec![pod("a", |pod| pod["spec"]["containers"][0]["resources"] = json!({}))], vec![usage("a", "1")]);
    let round = without_request.round(&hpa(json!({})));
    assert_eq!(round.told[0].2, "failed to get cpu utilization: missing request for cpu in container c of Pod a");
}

#[test]
fn targets_without_or_with_others_selectors_are_left_alone() {
    let mut gone = world(1, Vec::new(), Vec::new());
    gone.scale = Err("deployments.apps \"web\" not found".into());
    assert_eq!(conditions(&gone.round(&hpa(json!({})))), ["AbleToScale=False FailedGetScale"]);
    let mut blind = world(1, Vec::new(), Vec::new());
    blind.scale = Ok(Scale { replicas: 1, selector: String::new() });
    assert_eq!(conditions(&blind.round(&hpa(json!({})))).pop().as_deref(), Some("ScalingActive=False InvalidSelector"));
    let mut shared = world(1, vec![pod("a", |_| {})], vec![usage("a", "1")]);
    shared.rivals.push("a/other".into());
    let round = shared.round(&hpa(json!({})));
    assert_eq!(size(&round), None);
    assert_eq!(round.told[0].2, "pods by selector app=web are controlled by multiple HPAs: [a/h a/other]");
}

#[test]
fn shrinking_waits_for_the_window() {
    let pods: Vec<_> = ["a", "b", "c", "d"].map(|name| pod(name, |_| {})).into();
    let idle: Vec<_> = ["a", "b", "c", "d"].map(|name| usage(name, "1m")).into();
    let mut world = world(4, pods, idle);
    let round = world.round(&hpa(json!({})));
    assert_eq!((size(&round), conditions(&round)[0].as_str()), (None, "AbleToScale=True ScaleDownStabilized"));
    world.now = later(301);
    assert_eq!(size(&world.round(&hpa(json!({})))), Some(1));
}

#[test]
fn policies_limit_the_rate() {
    let rules = |select: &str| {
        let policies = json!([{"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]);
        let rules = json!({"stabilizationWindowSeconds": 0, "selectPolicy": select, "policies": policies});
        serde_json::from_value::<HorizontalPodAutoscalerBehavior>(json!({"scaleUp": rules, "scaleDown": rules}))
            .expect("rules")
    };
    let ask = |memory: &mut Memory, select: &str, current, wanted, at| {
        let sizes = Sizes { lowest: 1, highest: 100, current, wanted };
        memory.allow(Some(&rules(select)), sizes, later(at)).replicas
    };
    let fresh = Memory::default;
    assert_eq!(ask(&mut fresh(), "Max", 10, 90, 0), 15);
    assert_eq!(ask(&mut fresh(), "Min", 10, 90, 0), 12);
    assert_eq!(ask(&mut fresh(), "Disabled", 10, 90, 0), 10);
    assert_eq!(ask(&mut fresh(), "Max", 10, 1, 0), 5);
    assert_eq!(ask(&mut fresh(), "Min", 10, 1, 0), 8);
    // What was done within the period counts.
    let mut memory = fresh();
    memory.scaled(Some(&rules("Max")), 10, 15, later(0));
    assert_eq!(ask(&mut memory, "Max", 15, 90, 30), 15);
    assert_eq!(ask(&mut memory, "Max", 15, 90, 61), 23);
    memory.scaled(Some(&rules("Max")), 15, 23, later(61));
    memory.not_scaled(Some(&rules("Max")), 15, 23);
    assert_eq!(ask(&mut memory, "Max", 15, 90, 62), 23);
}
