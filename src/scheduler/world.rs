//! What the scheduler knows, and what it makes of it: events in, attempts out. No I/O, no clock.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;

use super::DEFAULT_SCHEDULER;
use super::cycle::{Decision, schedule};
use super::happened::Happened;
use super::node_info::{NodeInfo, is_unschedulable, taints};
use super::nodes::Nodes;
use super::pod_info::PodInfo;
use super::preemption::Preemption;
use super::queue::Queue;
use super::volumes::Choice;
use super::workloads::Workload;
use crate::client::Change;
use crate::client::cache::Key;
use crate::client::typed::Meta;

/// One try to place a pod.
#[derive(Debug)]
pub struct Attempt {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of an attempt, to be written to the API.
#[derive(Debug)]
pub enum Outcome {
    /// The pod is to be bound; [`World::bind_failed`] if that does not succeed.
    Bind {
        /// To this node.
        node: String,
        /// When its claims are bound, in this way.
        volumes: Vec<Choice>,
    },
    /// It fits nowhere.
    Fail {
        /// Why.
        message: String,
        /// What `status.nominatedNodeName` becomes (empty: it goes), if it changes.
        nomination: Option<String>,
        /// Pods that are to be deleted for it, then [`World::preempted`]. Empty: none, or they go already.
        victims: Vec<Arc<PodInfo>>,
        /// Pods that lose their nomination to it.
        demoted: Vec<Arc<PodInfo>>,
    },
}

/// The queue and the nodes.
#[derive(Default)]
pub struct World {
    /// Pods that wait.
    pub queue: Queue,
    /// Nodes with their pods.
    pub nodes: Nodes,
    /// Where the next cycle begins to look.
    start: usize,
}

/// `spec.nodeName`; empty when the pod has no node.
pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn is_ours(pod: &Pod) -> bool {
    let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    name.is_none_or(|name| name.is_empty() || name == DEFAULT_SCHEDULER)
}

fn nominated(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref()).unwrap_or_default()
}

/// Whether two states of a bound pod are the same to the scheduler. Updates of the status, the bulk of all changes, mean
/// nothing here beside when it started and what its containers have been given.
fn same(old: &Pod, new: &Pod) -> bool {
    let started = |pod: &Pod| pod.status.as_ref().and_then(|status| status.start_time.clone());
    fn given(pod: &Pod) -> impl Iterator<Item = (&str, Option<&ContainerStatus>)> {
        let status = pod.status.as_ref();
        let lists = [
            status.and_then(|s| s.container_statuses.as_ref()),
            status.and_then(|s| s.init_container_statuses.as_ref()),
        ];
        let all = lists.into_iter().flatten().flatten();
        let all = all.filter(|status| status.resources.is_some() || status.allocated_resources.is_some());
        all.map(|status| (status.name.as_str(), Some(status)))
    }
    let given_same = given(old)
        .map(|(name, status)| (name, status.map(|s| (&s.resources, &s.allocated_resources))))
        .eq(given(new).map(|(name, status)| (name, status.map(|s| (&s.resources, &s.allocated_resources)))));
    old.spec == new.spec
        && old.metadata.labels == new.metadata.labels
        && old.is_terminating() == new.is_terminating()
        && started(old) == started(new)
        && given_same
}

impl World {
    fn wake(&mut self, happened: &Happened<'_>, now: Timestamp) {
        self.queue.wake(happened, &self.nodes, now);
    }

    /// A pod has changed.
    pub fn pod(&mut self, change: &Change<Pod>, now: Timestamp) {
        if let Some(old) = &change.old
            && change.new.as_ref().is_none_or(|new| new.uid() != old.uid())
        {
            self.gone(old, now);
        }
        let Some(pod) = &change.new else { return };
        let key = Key::of(&**pod);
        if is_finished(pod) {
            self.gone(pod, now);
        } else if !node_name(pod).is_empty() {
            self.queue.remove(&key);
            self.bound(change.old.as_deref(), pod, now);
        } else if pod.is_terminating() || !is_ours(pod) {
            self.queue.remove(&key);
        } else if !self.nodes.has_pod(pod.uid()) {
            let info = Arc::new(PodInfo::new(pod.clone()));
            let before = change.old.as_ref().filter(|old| old.uid() == pod.uid());
            // As long as the API does not say otherwise, a nomination that is being written holds.
            let told = before.is_none_or(|old| nominated(old) != nominated(pod));
            let node = if told { nominated(pod) } else { self.nodes.nomination(&info.uid) }.to_owned();
            self.nominate(&info, &node, now);
            self.queue.put(info, &self.nodes, now);
        }
    }

    /// Room on a node was made for the pod (empty: on none); room elsewhere is free for others again.
    fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str, now: Timestamp) {
        let known = self.nodes.nomination(&pod.uid).to_owned();
        self.nodes.nominate(pod, node);
        if !known.is_empty() && known != node {
            self.wake(&Happened::PodGone { pod, node: &known }, now);
        }
    }

    fn gone(&mut self, pod: &Arc<Pod>, now: Timestamp) {
        let waiting = self.queue.get(&Key::of(&**pod)).filter(|known| known.uid() == pod.uid()).cloned();
        if let Some(waiting) = &waiting {
            self.queue.remove(&waiting.key);
        }
        let nomination = self.nodes.nomination(pod.uid()).to_owned();
        if let Some((pod, node)) = self.nodes.remove_pod(pod.uid()) {
            self.wake(&Happened::PodGone { pod: &pod, node: &node }, now);
        } else if let Some(pod) = waiting.filter(|_| !nomination.is_empty()) {
            self.wake(&Happened::PodGone { pod: &pod, node: &nomination }, now);
        }
    }

    fn bound(&mut self, old: Option<&Pod>, pod: &Arc<Pod>, now: Timestamp) {
        let node = node_name(pod);
        let before = old.filter(|old| node_name(old) == node);
        if before.is_some_and(|old| same(old, pod)) && self.nodes.has_pod(pod.uid()) {
            return;
        }
        let known = self.nodes.pods.get(pod.uid()).map(|placed| placed.pod.clone());
        let info = Arc::new(PodInfo::new(pod.clone()));
        self.nodes.add_pod(node, info.clone());
        match known.filter(|_| before.is_some()) {
            None => self.wake(&Happened::PodPlaced(&info), now),
            Some(old) if old.labels() != info.labels() || info.requests.is_less_than(&old.requests) => {
                self.wake(&Happened::PodChanged { old: &old, new: &info, node }, now);
            }
            Some(_) => {}
        }
    }

    /// A node has changed.
    pub fn node(&mut self, change: &Change<Node>, now: Timestamp) {
        let Some(node) = &change.new else {
            let node = change.object();
            self.nodes.remove_node(node.name());
            // The room that was made for them there is gone: they have to look elsewhere.
            let waiting: Vec<_> = self.nodes.nominated_on(node.name()).cloned().collect();
            waiting.iter().for_each(|pod| self.queue.activate(&pod.key, now));
            return self.wake(&Happened::NodeGone(node), now);
        };
        let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
        let images = |node: &Node| node.status.as_ref().and_then(|status| status.images.clone());
        let matters = |old: &Node| {
            is_unschedulable(old) != is_unschedulable(node)
                || taints(old) != taints(node)
                || old.metadata.labels != node.metadata.labels
                || allocatable(old) != allocatable(node)
        };
        let old = change.old.as_deref();
        if let Some(old) = old
            && !matters(old)
            && images(old) == images(node)
        {
            return; // heartbeats
        }
        self.nodes.set_node(node.clone());
        let new: &NodeInfo = self.nodes.get(node.name()).expect("it was just set");
        match old {
            Some(old) if matters(old) => {
                self.queue.wake(&Happened::NodeChanged { old, new }, &self.nodes, now);
            }
            Some(_) => {}
            None => self.queue.wake(&Happened::NodeAdded(new), &self.nodes, now),
        }
    }

    /// A claim has changed.
    pub fn claim(&mut self, change: &Change<PersistentVolumeClaim>, now: Timestamp) {
        self.nodes.volumes.claim(change);
        self.wake(&Happened::Claim(&Key::of(&**change.object())), now);
    }
    /// A volume has changed.
    pub fn volume(&mut self, change: &Change<PersistentVolume>, now: Timestamp) {
        self.nodes.volumes.volume(change);
        self.wake(&Happened::Volume, now);
    }
    /// A storage class has changed.
    pub fn class(&mut self, change: &Change<StorageClass>, now: Timestamp) {
        self.nodes.volumes.class(change);
        self.wake(&Happened::Class, now);
    }
    /// A namespace has changed.
    pub fn namespace(&mut self, change: &Change<Namespace>, now: Timestamp) {
        let name = change.object().name().to_owned();
        let Some(namespace) = &change.new else { return drop(self.nodes.namespaces.remove(&name)) };
        let labels = namespace.labels().clone();
        if self.nodes.namespaces.get(&name) != Some(&labels) {
            self.nodes.namespaces.insert(name, labels);
            self.wake(&Happened::Namespace, now);
        }
    }
    /// A Service or a controller has changed.
    pub fn workload(&mut self, change: &Change<Workload>) {
        self.nodes.workloads.apply(change);
    }
    /// A budget has changed.
    pub fn budget(&mut self, change: &Change<PodDisruptionBudget>) {
        self.nodes.budgets.apply(change);
    }

    /// Tries to place the next pod. `choose` picks one of so many equal nodes.
    pub fn next(&mut self, now: Timestamp, choose: impl FnOnce(usize) -> usize) -> Option<Attempt> {
        let pod = self.queue.pop(now)?;
        let outcome = match schedule(&pod, &self.nodes, &mut self.start, choose) {
            Decision::Node { name, volumes } => {
                let nomination = self.nodes.nomination(&pod.uid).to_owned();
                self.nodes.add_pod(&name, pod.clone());
                self.nodes.volumes.promise(&volumes, &name);
                if !nomination.is_empty() && nomination != name {
                    self.wake(&Happened::PodGone { pod: &pod, node: &nomination }, now);
                }
                Outcome::Bind { node: name, volumes }
            }
            Decision::Nowhere { message, rejected_by, preemption } => {
                self.queue.unschedulable(&pod.key, rejected_by);
                self.fail(&pod, message, preemption, now)
            }
        };
        Some(Attempt { pod, outcome })
    }

    fn fail(&mut self, pod: &Arc<PodInfo>, message: String, preemption: Preemption, now: Timestamp) -> Outcome {
        let (node, victims, demoted) = match preemption {
            Preemption::Keep(_) => {
                return Outcome::Fail { message, nomination: None, victims: Vec::new(), demoted: Vec::new() };
            }
            Preemption::Hopeless(_) => (String::new(), Vec::new(), Vec::new()),
            Preemption::Victims { node, victims, demoted } => (node, victims, demoted),
        };
        let known = self.nodes.nomination(&pod.uid).to_owned();
        self.nominate(pod, &node, now);
        for other in &demoted {
            self.nodes.nominate(other, "");
            self.queue.activate(&other.key, now);
        }
        let victims: Vec<_> = victims.into_iter().filter(|victim| !victim.pod.is_terminating()).collect();
        if !victims.is_empty() {
            self.queue.hold(&pod.key);
        }
        let nomination = (known != node || pod.nominated_node() != node).then_some(node);
        Outcome::Fail { message, nomination, victims, demoted }
    }

    /// The pod could not be bound after all. Returns whether it still waits for a node.
    pub fn bind_failed(&mut self, pod: &Arc<PodInfo>, volumes: &[Choice], now: Timestamp) -> bool {
        self.nodes.volumes.forget(volumes);
        if !volumes.is_empty() {
            self.wake(&Happened::Volume, now);
        }
        // Unless it is gone, or bound by somebody else: then its event has said so, or will.
        if self.queue.get(&pod.key).is_none_or(|known| known.uid != pod.uid) {
            return false;
        }
        self.queue.failed(&pod.key, now);
        if let Some((pod, node)) = self.nodes.remove_pod(&pod.uid) {
            self.wake(&Happened::PodGone { pod: &pod, node: &node }, now);
        }
        true
    }

    /// The pod's victims have been deleted, or (`failed`) not all of them.
    pub fn preempted(&mut self, pod: &Key, failed: bool, now: Timestamp) {
        self.queue.release(pod, failed, now);
    }
}
