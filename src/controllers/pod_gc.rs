//! Deletes pods that nobody looks after any more (`pkg/controller/podgc`): their node is gone or out of service, or they
//! were deleted before they had one, or there are too many finished ones.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use super::caches::Caches;
use super::plan::{Action, Plan, Write};
use super::pod_status::{is_finished, node_name};
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::typed::{Meta, gvr};
use crate::client::{DeleteOptions, Patch};
use crate::env::rfc3339;

/// `--terminated-pod-gc-threshold`.
const MOST_FINISHED: usize = 12_500;
/// A node that is gone may come back within this time (`quarantineTime`).
const QUARANTINE: Duration = Duration::from_secs(40);

/// The controller. Its keys are pods, and [`FINISHED`] for the number of finished ones.
pub struct PodGcController;

/// The key for the number of finished pods (no pod has an empty name).
const FINISHED: Key = Key { namespace: String::new(), name: String::new() };

impl Controller for PodGcController {
    fn name(&self) -> &'static str {
        "podgc"
    }
    fn account(&self) -> &'static str {
        "pod-garbage-collector"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let (nodes, add) = (caches.nodes.clone(), enqueue.clone());
        caches.pods.subscribe(move |change| {
            let Some(pod) = &change.new else { return };
            let node = node_name(pod);
            let out = || nodes.get(&Key::new("", node)).is_some_and(|node| is_out_of_service(&node));
            if pod.is_terminating() && (node.is_empty() || out()) {
                add.add(Key::of(&**pod));
            } else if !node.is_empty() && nodes.get(&Key::new("", node)).is_none() {
                add.add_after(Key::of(&**pod), QUARANTINE);
            }
            if is_finished(pod) && !change.old.as_ref().is_some_and(|old| is_finished(old)) {
                add.add(FINISHED);
            }
        });
        let (pods, add) = (caches.pods.clone(), enqueue.clone());
        caches.nodes.subscribe(move |change| {
            let here = || pods.list().into_iter().filter(|pod| node_name(pod) == change.object().name());
            match &change.new {
                None => here().for_each(|pod| add.add_after(Key::of(&*pod), QUARANTINE)),
                Some(node) if is_out_of_service(node) => {
                    here().filter(|pod| pod.is_terminating()).for_each(|pod| add.add(Key::of(&*pod)));
                }
                Some(_) => {}
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        if *key == FINISHED {
            if caches.pods.len() > MOST_FINISHED {
                let finished = caches.pods.list().into_iter().filter(|pod| is_finished(pod)).collect();
                surplus(finished, MOST_FINISHED).iter().for_each(|pod| plan.push(delete(pod)));
            }
            return plan;
        }
        let Some(pod) = caches.pods.get(key) else { return plan };
        let name = node_name(&pod);
        let node = caches.nodes.get(&Key::new("", name));
        let reason = match (name, node) {
            ("", _) if pod.is_terminating() => None,
            ("", _) => return plan,
            (_, None) => {
                // This cache may be behind: the node may have come back under its name.
                let key = Key::new("", name);
                plan.push(Action::write(Write::ExpectAbsent { gvr: gvr::<Node>(), key, uid: String::new() }));
                Some(("DeletionByPodGC", "PodGC: node no longer exists"))
            }
            (_, Some(node)) if pod.is_terminating() && is_out_of_service(&node) => None,
            (_, Some(_)) => return plan,
        };
        if !is_finished(&pod) {
            plan.push(fail(&pod, reason, now));
        }
        plan.push(delete(&pod));
        plan
    }
}

/// The finished pods beyond `most`: evicted ones go first, then the oldest (`byEvictionAndCreationTimestamp`).
fn surplus(mut finished: Vec<Arc<Pod>>, most: usize) -> Vec<Arc<Pod>> {
    let surplus = finished.len().saturating_sub(most);
    finished.sort_by_key(|pod| {
        let evicted = pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("Evicted");
        (!evicted, pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
    });
    finished.truncate(surplus);
    finished
}

/// Whether somebody has said that the machine is off, and the node is not ready.
fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    taints.into_iter().any(|taint| taint.key == "node.kubernetes.io/out-of-service")
        && !conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn delete(pod: &Pod) -> Action {
    let options = DeleteOptions { grace_period_seconds: Some(0), uid: pod.metadata.uid.clone(), ..Default::default() };
    Action::delete_with::<Pod>(Key::of(pod), options)
}

/// Nobody else will say that the pod's containers do not run any more.
fn fail(pod: &Pod, why: Option<(&str, &str)>, now: Timestamp) -> Action {
    let mut status = json!({"phase": "Failed"});
    if let Some((reason, message)) = why {
        status["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": reason,
            "message": message, "lastTransitionTime": rfc3339(now)}]);
    }
    let patch = Patch::Strategic(json!({ "status": status }));
    Action::patch(gvr::<Pod>(), Key::of(pod), "status", patch).tolerate(&["NotFound"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use serde_json::Value;

    fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
        let mut pod =
            json!({"metadata": {"name": name, "namespace": "a"}, "spec": {"containers": [], "nodeName": "n"}});
        change(&mut pod);
        Arc::new(Pod::parse(&pod).expect("a pod"))
    }

    /// The writes for a pod when the node `n` is this one, or not there.
    fn check(node: Value, change: impl FnOnce(&mut Value), expected: &[&str]) {
        let caches = Caches::default();
        if node.is_object() {
            caches.nodes.put(Arc::new(Node::parse(&node).expect("a node")));
        }
        caches.pods.put(pod("p", change));
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        let plan = PodGcController.reconcile(&caches, &Key::new("a", "p"), now);
        let said: Vec<String> = plan.actions().map(|action| format!("{:?}", action.write)).collect();
        assert_eq!(said.len(), expected.len(), "{said:?}");
        said.iter().zip(expected).for_each(|(said, word)| assert!(said.contains(word), "{said}: {word}"));
    }

    fn ends(pod: &mut Value) {
        pod["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:00Z".into();
    }

    #[test]
    fn pods_without_anybody_to_look_after_them_go() {
        let node = |ready: &str, taint: &str| {
            json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}})
        };
        let out = "node.kubernetes.io/out-of-service";
        check(Value::Null, |_| {}, &["ExpectAbsent", "PodGC: node no longer exists", "Delete"]);
        check(Value::Null, |pod| pod["status"] = json!({"phase": "Succeeded"}), &["ExpectAbsent", "Delete"]);
        check(node("True", "other"), ends, &[]);
        check(node("Unknown", "other"), ends, &[]);
        check(node("Unknown", out), ends, &["Failed", "Delete"]);
        check(node("True", out), ends, &[]);
        check(node("Unknown", out), |_| {}, &[]);
        let unbound = |pod: &mut Value| pod["spec"]["nodeName"] = "".into();
        check(Value::Null, unbound, &[]);
        check(
            Value::Null,
            |pod| {
                unbound(pod);
                ends(pod);
            },
            &["Failed", "Delete"],
        );
    }

    #[test]
    fn of_too_many_finished_pods_evicted_and_old_ones_go_first() {
        let made = |name: &str, time: &str, reason: &str| {
            pod(name, |pod| {
                pod["metadata"]["creationTimestamp"] = time.into();
                pod["status"] = json!({"phase": "Failed", "reason": reason});
            })
        };
        let pods = vec![
            made("new", "2026-01-02T00:00:00Z", ""),
            made("old", "2026-01-01T00:00:00Z", ""),
            made("evicted", "2026-01-03T00:00:00Z", "Evicted"),
        ];
        let names = |most| surplus(pods.clone(), most).iter().map(|pod| pod.name().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(1), ["evicted", "old"]);
        assert!(names(3).is_empty());
    }
}
