//! Deletes pods that do not tolerate a `NoExecute` taint of their node, now or after a while (`pkg/controller/tainteviction`).

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use serde_json::json;

use super::caches::Caches;
use super::plan::{Action, Plan};
use super::pod_status::{condition, is_finished, node_name};
use super::{Controller, Enqueue};
use crate::client::Patch;
use crate::client::cache::Key;
use crate::client::placement::tolerates;
use crate::client::recorder::{EventType, reference};
use crate::client::typed::{Meta, gvr};
use crate::env::rfc3339;

/// The controller; its keys are pods.
#[derive(Default)]
pub struct TaintEvictionController {
    memory: Mutex<Memory>,
}

/// What is not in the API.
#[derive(Default)]
struct Memory {
    /// Node -> its taints that do not say when they were added (kubectl's do not), and when they were first seen.
    taints: HashMap<String, Vec<(Taint, Timestamp)>>,
    /// Pods whose time runs.
    scheduled: HashSet<Key>,
}

impl Memory {
    /// Gives every taint of the node its time.
    fn dated(&mut self, node: &Node, now: Timestamp) -> Vec<(Taint, Timestamp)> {
        let known = self.taints.remove(node.name()).unwrap_or_default();
        let since = |taint: &Taint| match &taint.time_added {
            Some(time) => time.0,
            None => known.iter().find(|(known, _)| known == taint).map_or(now, |(_, since)| *since),
        };
        let dated: Vec<_> = no_execute(node).map(|taint| (taint.clone(), since(taint))).collect();
        if !dated.is_empty() {
            self.taints.insert(node.name().to_owned(), dated.clone());
        }
        dated
    }
}

impl Controller for TaintEvictionController {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }
    fn account(&self) -> &'static str {
        "node-controller"
    }
    fn component(&self) -> &'static str {
        "taint-eviction-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let (nodes, add) = (caches.nodes.clone(), enqueue.clone());
        caches.pods.subscribe(move |change| {
            let pod = change.object();
            let tainted = |node: &Node| no_execute(node).next().is_some();
            if nodes.get(&Key::new("", node_name(pod))).is_some_and(|node| tainted(&node)) {
                add.add(Key::of(&**pod));
            }
        });
        let (pods, add) = (caches.pods.clone(), enqueue.clone());
        caches.nodes.subscribe(move |change| {
            let taints = |node: &Node| no_execute(node).cloned().collect::<Vec<_>>();
            let Some(node) = &change.new else { return };
            if change.old.as_ref().map(|old| taints(old)).unwrap_or_default() != taints(node) {
                let here = pods.list().into_iter().filter(|pod| node_name(pod) == node.name());
                here.for_each(|pod| add.add(Key::of(&*pod)));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let mut memory = self.memory.lock().expect("no panic while the memory is held");
        let pod = caches.pods.get(key);
        let node = pod.as_ref().and_then(|pod| caches.nodes.get(&Key::new("", node_name(pod))));
        let (Some(pod), Some(node)) = (pod, node) else {
            memory.scheduled.remove(key);
            return Plan::default();
        };
        let taints = memory.dated(&node, now);
        let mut plan = reconcile(&pod, &taints, now);
        if plan.requeue_after.is_some() {
            memory.scheduled.insert(key.clone());
        } else if memory.scheduled.remove(key) && plan.is_empty() && !pod.is_terminating() {
            let message = format!("Cancelling deletion of Pod {key}");
            plan.push(Action::event(reference(&*pod), EventType::Normal, "TaintManagerEviction", message));
        }
        plan
    }
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute")
}

/// When the pod has to go; `None`: it may stay. Its time runs from when the taint and the pod were both there.
fn deadline(pod: &Pod, taints: &[(Taint, Timestamp)], now: Timestamp) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut first: Option<Timestamp> = None;
    let mut shortest: Option<i64> = None;
    for (taint, since) in taints {
        let mut fitting = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if fitting.peek().is_none() {
            return Some(now);
        }
        let seconds = fitting.filter_map(|toleration| toleration.toleration_seconds).min();
        if let Some(seconds) = seconds {
            first = Some(first.map_or(*since, |known| known.min(*since)));
            shortest = Some(shortest.map_or(seconds, |known| known.min(seconds)));
        }
    }
    let scheduled = condition(pod, "PodScheduled").filter(|condition| condition.status == "True");
    let arrived = scheduled.and_then(|condition| condition.last_transition_time.as_ref());
    let arrived = arrived.or(pod.metadata.creation_timestamp.as_ref()).map_or(Timestamp::MIN, |time| time.0);
    first?.max(arrived).saturating_add(SignedDuration::from_secs(shortest?.max(0))).ok()
}

/// The decision.
fn reconcile(pod: &Pod, taints: &[(Taint, Timestamp)], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if pod.is_terminating() || is_finished(pod) {
        return plan;
    }
    let Some(deadline) = deadline(pod, taints, now) else { return plan };
    if deadline > now {
        plan.requeue(Duration::try_from(deadline.duration_since(now)).unwrap_or_default());
        return plan;
    }
    let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": rfc3339(now)});
    let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    plan.push(Action::patch(gvr::<Pod>(), Key::of(pod), "status", patch).tolerate(&["NotFound"]));
    let message = format!("Marking for deletion Pod {}", Key::of(pod));
    let told = (EventType::Normal, "TaintManagerEviction", message);
    plan.push(Action::delete(pod).tell(reference(pod), Some(told), None));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use serde_json::Value;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().expect("a time")
    }

    fn ago(seconds: i64) -> String {
        rfc3339(now() - SignedDuration::from_secs(seconds))
    }

    fn node(taints: Value) -> Node {
        Node::parse(&json!({"metadata": {"name": "n"}, "spec": {"taints": taints}})).expect("a node")
    }

    fn pod(tolerations: Value, seconds_here: i64) -> Pod {
        let scheduled = json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(seconds_here)}]);
        let pod = json!({"metadata": {"name": "p", "namespace": "a"}, "status": {"conditions": scheduled},
            "spec": {"containers": [], "nodeName": "n", "tolerations": tolerations}});
        Pod::parse(&pod).expect("a pod")
    }

    fn outcome(plan: &Plan) -> (usize, Option<u64>) {
        (plan.actions().count(), plan.requeue_after.map(|delay| delay.as_secs()))
    }

    fn toleration(seconds: Value) -> Value {
        json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}])
    }

    fn check(pod: &Pod, seconds_tainted: i64, expected: (usize, Option<u64>)) {
        let taint =
            json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute", "timeAdded": ago(seconds_tainted)}]);
        let taints = Memory::default().dated(&node(taint), now());
        assert_eq!(outcome(&reconcile(pod, &taints, now())), expected);
    }

    #[test]
    fn tolerations_delay_or_prevent_eviction() {
        check(&pod(json!([]), 900), 0, (2, None));
        check(&pod(toleration(Value::Null), 900), 900, (0, None));
        check(&pod(toleration(300.into()), 900), 100, (0, Some(200)));
        check(&pod(toleration(300.into()), 900), 300, (2, None));
        check(&pod(toleration((-1).into()), 900), 0, (2, None));
        // Its time begins when it comes.
        check(&pod(toleration(300.into()), 10), 900, (0, Some(290)));
    }

    #[test]
    fn a_taint_without_a_time_counts_from_when_it_was_seen() {
        let controller = TaintEvictionController::default();
        let caches = Caches::default();
        caches
            .nodes
            .put(std::sync::Arc::new(node(json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]))));
        caches.pods.put(std::sync::Arc::new(pod(toleration(300.into()), 900)));
        let key = Key::new("a", "p");
        let at =
            |seconds: i64| outcome(&controller.reconcile(&caches, &key, now() + SignedDuration::from_secs(seconds)));
        assert_eq!([at(0), at(100), at(300)], [(0, Some(300)), (0, Some(200)), (2, None)]);
        // One that is taken back and added again counts anew; that a deletion was cancelled is told once.
        assert_eq!(at(10), (0, Some(290)));
        caches.nodes.put(std::sync::Arc::new(node(json!([]))));
        assert_eq!([at(20), at(21)], [(1, None), (0, None)]);
        caches
            .nodes
            .put(std::sync::Arc::new(node(json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]))));
        assert_eq!(at(50), (0, Some(300)));
    }
}
