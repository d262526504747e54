//! Nodes that stop reporting: conditions become Unknown, taints follow the conditions (`pkg/controller/nodelifecycle`).

mod health;
mod zones;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::caches::Caches;
use super::plan::{Action, Plan};
use super::pod_status::{node_name, ready_since};
use super::{Controller, Enqueue};
use crate::client::Patch;
use crate::client::cache::Key;
use crate::client::recorder::{EventType, reference};
use crate::client::typed::{Meta, gvr};
use crate::env::rfc3339;
use health::Health;
use zones::{Eviction, Zones};

const LEASES: &str = "kube-node-lease";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition, the status in which it taints, the taint (`NoSchedule`).
const PRESSURE: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];
/// Conditions that a node agent keeps alive.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The controller.
pub struct NodeLifecycleController {
    /// The node that runs in this process: it cannot fall silent while this controller speaks, so it sends no heartbeats.
    local_node: String,
    /// What was heard of the others. It is not in the API: their clocks may be wrong, and ours began when we did.
    health: Mutex<Health>,
    zones: Mutex<Zones>,
}

impl NodeLifecycleController {
    /// With the name of the node that runs in this process; empty: none.
    pub fn new(local_node: String) -> Self {
        Self { local_node, health: Mutex::default(), zones: Mutex::default() }
    }
}

const UNPOISONED: &str = "no panic while what was heard is held";

impl Controller for NodeLifecycleController {
    fn name(&self) -> &'static str {
        "nodelifecycle"
    }
    fn account(&self) -> &'static str {
        "node-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let (nodes, add) = (caches.nodes.clone(), enqueue.clone());
        caches.nodes.subscribe(move |change| {
            add.add(Key::of(&**change.object()));
            // How many nodes are well decides about the evictions of those that are not.
            let status = |node: &Option<Arc<Node>>| {
                node.as_ref().map(|node| ready(node).map(|condition| condition.status.clone()))
            };
            if status(&change.old) != status(&change.new) {
                let lost = nodes.list().into_iter().filter(|node| ready(node).is_none_or(|c| c.status != "True"));
                lost.for_each(|node| add.add(Key::of(&*node)));
            }
        });
        let add = enqueue.clone();
        caches.leases.subscribe(move |change| {
            let lease = change.object();
            if lease.namespace() == LEASES {
                add.add(Key::new("", lease.name()));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let mut health = self.health.lock().expect(UNPOISONED);
        let Some(node) = caches.nodes.get(key) else {
            health.forget(&key.name);
            return Plan::default();
        };
        let lease = caches.leases.get(&Key::new(LEASES, &*key.name));
        let silence = health.look(&node, lease.as_deref(), now);
        let pods = || caches.pods.list().into_iter().filter(|pod| node_name(pod) == key.name).collect();
        let silent_at = (key.name != self.local_node).then_some(silence.at);
        let mut zones = self.zones.lock().expect(UNPOISONED);
        let mut plan = reconcile(&node, silent_at, pods, || zones.ask(&node, &caches.nodes.list(), now), now);
        if silence.is_new {
            let message = format!("Node {0} event: Registered Node {0} in Controller", node.name());
            plan.push(Action::event(reference(&*node), EventType::Normal, "RegisteredNode", message));
        }
        plan
    }
}

fn ready(node: &Node) -> Option<&NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == "Ready")
}

/// The decision. `silent_at`: when the node counts as lost, `None` for a node without heartbeats. `pods` gives the pods of
/// the node, `eviction` whether they may be evicted; they are asked only when the node is lost.
fn reconcile(
    node: &Node,
    silent_at: Option<Timestamp>,
    pods: impl FnOnce() -> Vec<Arc<Pod>>,
    eviction: impl FnOnce() -> Eviction,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    if silent_at.is_some_and(|at| now >= at) {
        let was = ready(node).map(|condition| condition.status.clone());
        let mut updated = node.clone();
        mark_unknown(&mut updated, now);
        if updated.status != node.status {
            // Nobody else will say that the pods do not serve any more. They come first: after the node's status is
            // written, nothing reminds us of them.
            let lost = pods();
            let ready = lost.iter().filter(|pod| ready_since(pod).is_some());
            ready.for_each(|pod| plan.push(mark_pod_not_ready(pod, now)));
            plan.push(Action::update_status(&updated));
            if was.as_deref() == Some("True") {
                let message = format!("Node {} status is now: NodeNotReady", node.name());
                plan.push(Action::event(reference(node), EventType::Normal, "NodeNotReady", message));
            }
            // The write gives the node a new resourceVersion: the taints come with the next look.
            return plan;
        }
    } else if let Some(silent_at) = silent_at {
        plan.requeue(Duration::try_from(silent_at.duration_since(now)).unwrap_or_default());
    }
    let current = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let mut wanted = taints(node, now);
    let evicts = |taint: &Taint| [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) && taint.effect == "NoExecute";
    if wanted.iter().any(evicts) {
        let has = current.iter().any(evicts);
        match eviction() {
            Eviction::Revoked => wanted.retain(|taint| !evicts(taint)),
            // One that exchanges the reason is not evicted anew.
            Eviction::Now => {}
            _ if has => {}
            Eviction::At(next) => {
                wanted.retain(|taint| !evicts(taint));
                plan.requeue(Duration::try_from(next.duration_since(now)).unwrap_or_default());
            }
            Eviction::Halted => wanted.retain(|taint| !evicts(taint)),
        }
    }
    if wanted != current {
        // A patch that carries the version: the node agent writes the same object all the time.
        let wanted = if wanted.is_empty() { serde_json::Value::Null } else { json!(wanted) };
        let version = node.metadata.resource_version.clone();
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": wanted}});
        plan.push(Action::patch(gvr::<Node>(), Key::of(node), "", Patch::Merge(patch)));
    }
    plan
}

fn mark_unknown(node: &mut Node, now: Timestamp) {
    let created = node.metadata.creation_timestamp.clone();
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    for type_ in REPORTED {
        match conditions.iter_mut().find(|condition| condition.type_ == type_) {
            None => conditions.push(NodeCondition {
                type_: type_.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: created.clone(),
                last_transition_time: Some(Time(now)),
            }),
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
        }
    }
}

/// The taints that the conditions ask for, beside those that are none of this controller's business.
fn taints(node: &Node, now: Timestamp) -> Vec<Taint> {
    let spec: NodeSpec = node.spec.clone().unwrap_or_default();
    let current = spec.taints.unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is = |type_: &str, status: &str| conditions.iter().any(|c| c.type_ == type_ && c.status == status);
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (status, key) in [("False", NOT_READY), ("Unknown", UNREACHABLE)] {
        if is("Ready", status) {
            wanted.extend([(key, "NoSchedule"), (key, "NoExecute")]);
        }
    }
    wanted.extend(PRESSURE.iter().filter(|(type_, _)| is(type_, "True")).map(|(_, key)| (*key, "NoSchedule")));
    if spec.unschedulable == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |key: &str, effect: &str| match key {
        NOT_READY | UNREACHABLE => effect != "PreferNoSchedule",
        UNSCHEDULABLE => effect == "NoSchedule",
        key => effect == "NoSchedule" && PRESSURE.iter().any(|(_, known)| *known == key),
    };
    // A node that has not reported anything yet keeps the taint it registered with.
    let reports = !conditions.is_empty();
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> = current
        .iter()
        .filter(|taint| is_wanted(taint) || !ours(&taint.key, &taint.effect) || (!reports && taint.key == NOT_READY))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint { key: key.into(), effect: effect.into(), time_added: Some(Time(now)), value: None });
        }
    }
    taints
}

fn mark_pod_not_ready(pod: &Pod, now: Timestamp) -> Action {
    let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": rfc3339(now)});
    let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    let told = (EventType::Warning, "NodeNotReady", "Node is not ready".to_owned());
    Action::patch(gvr::<Pod>(), Key::of(pod), "status", patch)
        .tell(reference(pod), Some(told), None)
        .tolerate(&["NotFound"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use jiff::SignedDuration;
    use serde_json::Value;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().expect("a time")
    }

    fn check(seconds_left: i64, eviction: Eviction, change: impl FnOnce(&mut Value), expected: &[&str]) -> Plan {
        let mut node = json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        change(&mut node);
        let node = Node::parse(&node).expect("a node");
        let pod = |name: &str, ready: &str| {
            let pod = json!({"metadata": {"name": name}, "status": {"conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
            Arc::new(Pod::parse(&pod).expect("a pod"))
        };
        let pods = || vec![pod("serves", "True"), pod("starts", "False")];
        let silent_at = now() + SignedDuration::from_secs(seconds_left);
        let plan = reconcile(&node, Some(silent_at), pods, || eviction, now());
        let said: Vec<String> = plan.actions().map(|action| format!("{:?}", action.write)).collect();
        assert_eq!(said.len(), expected.len(), "{said:?}");
        for (said, expected) in said.iter().zip(expected) {
            let (no, word) = expected.strip_prefix('!').map_or((false, *expected), |word| (true, word));
            assert!(said.contains(word) != no, "{said}: {expected}");
        }
        plan
    }

    fn lost(node: &mut Value) {
        node["status"]["conditions"] =
            REPORTED.map(|type_| json!({"type": type_, "status": "Unknown"})).to_vec().into();
    }

    fn tainted(node: &mut Value) {
        lost(node);
        let taint = |effect: &str| json!({"key": UNREACHABLE, "effect": effect});
        node["spec"]["taints"] = json!([taint("NoSchedule"), taint("NoExecute")]);
    }

    #[test]
    fn silence_makes_conditions_unknown_and_taints_follow() {
        check(1, Eviction::Now, |_| {}, &[]);
        check(0, Eviction::Now, |_| {}, &["serves", "Kubelet stopped posting node status.", "Nothing"]);
        check(0, Eviction::Now, |node| node["status"] = json!({}), &["serves", "Kubelet never posted node status."]);
        check(0, Eviction::Now, lost, &["NoExecute"]);
        check(9, Eviction::Now, |node| node["spec"]["unschedulable"] = true.into(), &[UNSCHEDULABLE]);
        let healed = |node: &mut Value| {
            node["spec"]["taints"] =
                json!([{"key": NOT_READY, "effect": "NoExecute"}, {"key": "mine", "effect": "NoExecute"}]);
        };
        check(9, Eviction::Now, healed, &["mine"]);
    }

    #[test]
    fn evictions_wait_for_their_turn() {
        let next = now() + SignedDuration::from_secs(10);
        let plan = check(0, Eviction::At(next), lost, &["!NoExecute"]);
        assert_eq!(plan.requeue_after, Some(Duration::from_secs(10)));
        check(0, Eviction::Halted, lost, &["!NoExecute"]);
        check(0, Eviction::Halted, tainted, &[]);
        check(0, Eviction::At(next), tainted, &[]);
        check(0, Eviction::Revoked, tainted, &["!NoExecute"]);
        let not_ready = |node: &mut Value| {
            tainted(node);
            node["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
        };
        check(9, Eviction::Halted, not_ready, &[NOT_READY]);
    }
}
