//! Which nodes should have a pod of a DaemonSet, and what that means for the pods there (`manage`, `podsShouldBeOnNode`).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint};

use super::backoff::{self, Backoff};
use super::{Changes, View, pods, rolling};
use crate::client::placement::{allows, tolerates};
use crate::client::recorder::{EventType, reference};
use crate::client::typed::Meta;
use crate::controllers::plan::Action;
use crate::controllers::pod_status::{is_ready, node_name, phase};

/// What a node is to a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It should run a pod.
    Run,
    /// A pod that is there may stay, but no new one comes.
    Stay,
    /// No pod.
    NoPod,
}

/// Whether the node should run a pod of the set (`NodeShouldRunDaemonPod`).
pub fn verdict(set: &DaemonSet, node: &Node) -> Verdict {
    let template = set.spec.as_ref().and_then(|spec| spec.template.spec.clone());
    let mut spec: PodSpec = template.unwrap_or_default();
    let pinned = spec.node_name.as_deref().unwrap_or_default();
    if (!pinned.is_empty() && pinned != node.name()) || !allows(&spec, node) {
        return Verdict::NoPod;
    }
    pods::add_tolerations(&mut spec);
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let untolerated = |taint: &&Taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint));
    let effects: Vec<&str> = taints.iter().filter(untolerated).map(|taint| &*taint.effect).collect();
    if effects.contains(&"NoExecute") {
        Verdict::NoPod
    } else if effects.contains(&"NoSchedule") {
        Verdict::Stay
    } else {
        Verdict::Run
    }
}

/// What managing the nodes comes to.
#[derive(Default)]
pub struct Managed {
    /// Pods to make and to delete.
    pub changes: Changes,
    /// Events.
    pub told: Vec<Action>,
    /// Where failed pods are replaced.
    pub failed: Vec<String>,
    /// When a failed pod that has to stay for now may go.
    pub again_at: Option<Timestamp>,
}

/// Every node gets its pod, and nothing is where it should not be.
pub fn manage(view: &View, failures: &Backoff) -> Managed {
    let mut managed = Managed::default();
    for node in view.nodes {
        let verdict = verdict(view.set, node);
        match view.pods.get(node.name()) {
            None if verdict == Verdict::Run => managed.changes.create.push(node.name().to_owned()),
            None => {}
            Some(pods) if verdict == Verdict::NoPod => {
                managed.changes.delete.extend(pods.iter().filter(|pod| !pod.is_terminating()).cloned());
            }
            Some(pods) => on_node(view, failures, node.name(), verdict, pods, &mut managed),
        }
    }
    // Nobody else would ever delete a pod that waits for a node that does not exist.
    let lost = view.pods.iter().filter(|(name, _)| view.node(name).is_none());
    let unscheduled = lost.flat_map(|(_, pods)| pods).filter(|pod| node_name(pod).is_empty() && !pod.is_terminating());
    managed.changes.delete.extend(unscheduled.cloned());
    managed
}

fn on_node(view: &View, failures: &Backoff, node: &str, verdict: Verdict, pods: &[Arc<Pod>], managed: &mut Managed) {
    let mut running = Vec::new();
    for pod in pods.iter().filter(|pod| !pod.is_terminating()) {
        match phase(pod) {
            "Failed" => replace_failed(view, failures, node, pod, managed),
            "Succeeded" => {
                let what = format!("Found succeeded daemon pod {} on node {node}, will try to delete it", key(pod));
                let event = Action::event(reference(view.set), EventType::Normal, "SucceededDaemonPod", what);
                managed.told.push(event);
                managed.changes.delete.push(pod.clone());
            }
            _ => running.push(pod.clone()),
        }
    }
    if !rolling::allows_surge(view.set) {
        // All but the oldest.
        managed.changes.delete.extend(running.into_iter().skip(1));
    } else if running.is_empty() {
        if verdict == Verdict::Run {
            managed.changes.create.push(node.to_owned());
        }
    } else if running.len() > 1 {
        managed.changes.delete.extend(too_many_while_surging(view, running));
    }
}

fn key(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace(), pod.name())
}

fn replace_failed(view: &View, failures: &Backoff, node: &str, pod: &Arc<Pod>, managed: &mut Managed) {
    let place = backoff::place(view.set, node);
    if let Some(until) = failures.until(&place, view.now) {
        managed.again_at = Some(managed.again_at.map_or(until, |known| known.min(until)));
        return;
    }
    let what = format!("Found failed daemon pod {} on node {node}, will try to kill it", key(pod));
    managed.told.push(Action::event(reference(view.set), EventType::Warning, "FailedDaemonPod", what));
    managed.changes.delete.push(pod.clone());
    managed.failed.push(place);
}

/// While surging a node may have an old pod that is ready and a new one that is not yet; everything else is too much.
fn too_many_while_surging(view: &View, running: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    let (mut new, mut old) = (None, None);
    let mut delete = Vec::new();
    for pod in running {
        let is_new = pods::has_hash(&pod, &view.hash);
        let place = if is_new { &mut new } else { &mut old };
        match place {
            None => *place = Some(pod),
            Some(_) => delete.push(pod),
        }
    }
    if let (Some(new), Some(old)) = (new, old) {
        if !is_ready(&old) || view.is_available(&new) {
            delete.push(old);
        }
    }
    delete
}
