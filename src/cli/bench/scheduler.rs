//! The scheduler's decisions alone: no API, no binding.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::Row;
use super::samples::rate;
use crate::client::{Change, Object};
use crate::scheduler::world::{Outcome, World};

const PODS: usize = 10_000;
const PEER: &str = "kube-scheduler's own benchmark asks for 680/s at 5,000 nodes";

pub(super) async fn run() -> Result<Vec<Row>> {
    let plain = |_: usize, _: &mut Value| {};
    // Ten pods of an app: they spread over zones, and keep away from each other.
    let app = |n: usize, pod: &mut Value| {
        let labels = json!({"app": format!("app-{}", n / 10)});
        let selector = json!({ "matchLabels": labels });
        pod["metadata"]["labels"] = labels;
        pod["spec"]["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}]);
        pod["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}]}});
    };
    let mut rows = Vec::new();
    for nodes in [100, 1_000, 5_000] {
        let took = place(nodes, plain)?;
        let goal = if nodes == 100 { "5,000/s" } else { "" };
        rows.push(Row::new(format!("decisions, {nodes} nodes"), rate(PODS, took), goal, PEER));
    }
    let took = place(1_000, app)?;
    rows.push(Row::new("decisions, 1000 nodes, topology spread and anti-affinity", rate(PODS, took), "", ""));
    Ok(rows)
}

/// Places [`PODS`] pods on so many nodes; returns how long the cycles took.
fn place(nodes: usize, change: impl Fn(usize, &mut Value)) -> Result<Duration> {
    let mut world = World::default();
    let now = jiff::Timestamp::now();
    for n in 0..nodes {
        let (name, zone) = (format!("node-{n:04}"), format!("zone-{}", n % 3));
        let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone});
        let has = json!({"cpu": "64", "memory": "256Gi", "pods": "250"});
        let node = json!({"metadata": {"name": name, "labels": labels}, "status": {"allocatable": has}});
        world.node(&Change { old: None, new: Some(Arc::new(Node::parse(&node)?)) }, now);
    }
    for n in 0..PODS {
        let mut pod = json!({"metadata": {"name": format!("pod-{n}"), "namespace": "a", "uid": n.to_string()},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}]}});
        change(n, &mut pod);
        world.pod(&Change { old: None, new: Some(Arc::new(Pod::parse(&pod)?)) }, now);
    }
    let began = Instant::now();
    let mut placed = 0;
    while let Some(attempt) = world.next(now, |count| placed % count) {
        ensure!(matches!(attempt.outcome, Outcome::Bind { .. }), "a pod does not fit");
        placed += 1;
    }
    ensure!(placed == PODS, "{placed} pods were placed");
    Ok(began.elapsed())
}
