//! The table of pods as `kubectl get pods` shows it (`printPod`).

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::kind::Column;
use crate::api::meta::{self, items, number, text};
use crate::api::pod;
use crate::api::printers::{age, age_column, column, name, name_column, or_none, since, wide_column};

/// The columns.
pub fn columns() -> Vec<Column> {
    vec![
        name_column(),
        column("Ready", "string", "The aggregate readiness state of this pod for accepting traffic."),
        column("Status", "string", "The aggregate status of the containers in this pod."),
        column(
            "Restarts",
            "string",
            "The number of times the containers in this pod have been restarted and when the last container in this \
                pod \
             has restarted.",
        ),
        age_column(),
        wide_column(
            "IP",
            "string",
            "podIP address allocated to the pod. Routable at least within the cluster. Empty if not yet allocated.",
        ),
        wide_column(
            "Node",
            "string",
            "NodeName indicates in which node this pod is scheduled. If empty, this pod is a candidate for \
                scheduling by \
             the scheduler defined in schedulerName. Once this field is set, the kubelet for this node becomes \
             responsible for the lifecycle of this pod. This field should not be used to express a desire for the pod to \
             be scheduled on a specific node. \
             https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#nodename",
        ),
        wide_column(
            "Nominated Node",
            "string",
            "nominatedNodeName is set only when this pod preempts other pods on the node, but it cannot be scheduled \
             right away as preemption victims receive their graceful termination periods. This field does not guarantee \
             that the pod will be scheduled on this node. Scheduler may decide to place the pod elsewhere if other nodes \
             become available sooner. Scheduler may also decide to give the resources on this node to a higher priority \
             pod that is created after preemption. As a result, this field may be different than PodSpec.nodeName when \
             the pod is scheduled.",
        ),
        wide_column(
            "Readiness Gates",
            "string",
            "If specified, all readiness gates will be evaluated for pod readiness. A pod is ready when all its \
             containers are ready AND all conditions specified in the readiness gates have status equal to \"True\" \
             More \
             info: https://git.k8s.io/enhancements/keps/sig-network/580-pod-readiness-gates",
        ),
    ]
}

/// The cells of one pod.
pub fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(object);
    let restarts = match summary.last_restart {
        Some(time) if summary.restarts != 0 => format!("{} ({} ago)", summary.restarts, since(time, now)),
        _ => summary.restarts.to_string(),
    };
    let status = &object["status"];
    let ip = items(&status["podIPs"]).first().map_or(&status["podIP"], |ip| &ip["ip"]);
    vec![
        name(object),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(object, now),
        or_none(text(ip)).into(),
        or_none(text(&object["spec"]["nodeName"])).into(),
        or_none(text(&status["nominatedNodeName"])).into(),
        readiness_gates(object).into(),
    ]
}

/// The row's conditions: a terminated pod is `Completed`.
pub fn row_conditions(object: &Value) -> Vec<Value> {
    let (reason, message) = match pod::phase(object) {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Vec::new(),
    };
    vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
}

/// The STATUS that `kubectl get pods` shows, such as `CrashLoopBackOff`.
pub fn status_text(object: &Value) -> String {
    summarize(object).reason
}

fn readiness_gates(object: &Value) -> String {
    let gates = items(&object["spec"]["readinessGates"]);
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let passed = gates.iter().filter(|gate| pod::is_condition_true(object, text(&gate["conditionType"]))).count();
    format!("{passed}/{}", gates.len())
}

/// Restarts and when the last of them ended.
#[derive(Clone, Copy, Default)]
struct Restarts<'a> {
    count: i64,
    last: Option<&'a Value>,
}

impl<'a> Restarts<'a> {
    fn add(&mut self, status: &'a Value) {
        self.count += number(&status["restartCount"]);
        let finished = &status["lastState"]["terminated"]["finishedAt"];
        // RFC 3339 in UTC with whole seconds: their order is that of their text.
        if finished.is_string() && self.last.is_none_or(|last| text(last) < text(finished)) {
            self.last = Some(finished);
        }
    }
}

struct Summary<'a> {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<&'a Value>,
}

fn summarize(object: &Value) -> Summary<'_> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let init_containers = items(&spec["initContainers"]);
    let is_sidecar =
        |status: &Value| init_containers.iter().any(|c| c["name"] == status["name"] && pod::is_restartable_init(c));
    let total =
        items(&spec["containers"]).len() + init_containers.iter().filter(|c| pod::is_restartable_init(c)).count();
    let mut reason = match text(&status["reason"]) {
        "" => pod::phase(object).to_owned(),
        reason => reason.to_owned(),
    };
    if pod::condition(object, "PodScheduled").is_some_and(|c| text(&c["reason"]) == "SchedulingGated") {
        reason = "SchedulingGated".to_owned();
    }

    let (mut restarts, mut of_sidecars) = (Restarts::default(), Restarts::default());
    let (mut ready, mut initializing) = (0, false);
    for (index, container) in items(&status["initContainerStatuses"]).iter().enumerate() {
        restarts.add(container);
        let sidecar = is_sidecar(container);
        if sidecar {
            of_sidecars.add(container);
        }
        let terminated = &container["state"]["terminated"];
        if terminated.is_object() && number(&terminated["exitCode"]) == 0 {
            continue;
        }
        if sidecar && container["started"] == true {
            ready += usize::from(container["ready"] == true);
            continue;
        }
        reason = match text(&container["state"]["waiting"]["reason"]) {
            _ if terminated.is_object() => format!("Init:{}", terminated_reason(terminated)),
            "" | "PodInitializing" => format!("Init:{index}/{}", init_containers.len()),
            waiting => format!("Init:{waiting}"),
        };
        initializing = true;
        break;
    }

    if !initializing || pod::is_condition_true(object, "Initialized") {
        restarts = of_sidecars;
        let mut has_running = false;
        for container in items(&status["containerStatuses"]).iter().rev() {
            restarts.add(container);
            let state = &container["state"];
            let waiting = text(&state["waiting"]["reason"]);
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if state["terminated"].is_object() {
                reason = terminated_reason(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                has_running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && has_running {
            reason = if pod::is_ready(object) { "Running" } else { "NotReady" }.to_owned();
        }
    }

    if meta::is_terminating(object) {
        if text(&status["reason"]) == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if !pod::is_terminal(object) {
            reason = "Terminating".to_owned();
        }
    }
    Summary { ready, total, reason, restarts: restarts.count, last_restart: restarts.last }
}

fn terminated_reason(terminated: &Value) -> String {
    match (text(&terminated["reason"]), number(&terminated["signal"])) {
        ("", 0) => format!("ExitCode:{}", number(&terminated["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_count_and_restarts_say_when() {
        let pod = json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]},
            "status": {"phase": "Running",
                "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}],
                "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2, "state": {"running": {}},
                    "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}}]}
        });
        let cells = cells(&pod, "2026-01-01T01:00:00Z".parse().expect("a time"));
        assert_eq!(cells[1..5], [json!("2/2"), json!("Running"), json!("3 (5m ago)"), json!("60m")]);
    }
}
