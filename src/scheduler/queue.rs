//! Pods that wait: active by priority, backing off, or unschedulable until something happens that may help. No I/O, no clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::happened::{self, Happened};
use super::nodes::Nodes;
use super::plugins;
use super::pod_info::PodInfo;
use crate::client::cache::Key;

/// Backoff begins with this and doubles (`podInitialBackoffSeconds`, `podMaxBackoffSeconds`).
const FIRST_BACKOFF: SignedDuration = SignedDuration::from_secs(1);
const LONGEST_BACKOFF: SignedDuration = SignedDuration::from_secs(10);

/// Plugins that rejected a pod, one bit for each place in [`plugins::ALL`].
pub type Rejectors = u32;

/// There was no node at all.
pub const NO_NODES: Rejectors = 1 << 31;

/// Where a pod waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    /// It may fit now; it is tried when its time has come or nobody else waits.
    BackingOff(Timestamp),
    /// It met an error and is tried at this time.
    Failed(Timestamp),
    Unschedulable,
    Gated,
    /// The scheduler has it.
    Out,
}

struct Waiting {
    pod: Arc<PodInfo>,
    place: Place,
    /// Order of arrival among equals.
    since: u64,
    attempts: u32,
    last_attempt: Timestamp,
    rejected_by: Rejectors,
    /// Its victims are being deleted: before that is done it is not tried.
    held: bool,
    /// Something that helps has happened while it was held.
    missed: bool,
}

type Order = (Reverse<i32>, u64, Key);

/// The queue.
#[derive(Default)]
pub struct Queue {
    pods: HashMap<Key, Waiting>,
    active: BTreeSet<Order>,
    backing_off: BTreeMap<(Timestamp, u64), Key>,
    failed: BTreeMap<(Timestamp, u64), Key>,
    /// How many unschedulable pods each kind of event may help.
    interested: [usize; happened::KINDS],
    arrivals: u64,
}

/// When a pod may be tried again after `attempts` attempts.
fn backoff(attempts: u32) -> SignedDuration {
    let factor = 1i32 << attempts.saturating_sub(1).min(10);
    FIRST_BACKOFF.saturating_mul(factor).min(LONGEST_BACKOFF)
}

fn is_gated(pod: &PodInfo) -> bool {
    pod.spec().and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty())
}

/// The plugins of a set.
fn plugins_of(rejectors: Rejectors) -> impl Iterator<Item = &'static plugins::Registered> {
    plugins::ALL.iter().enumerate().filter(move |(at, _)| rejectors & (1 << at) != 0).map(|(_, plugin)| plugin)
}

/// The kinds of events that may help a pod which these plugins rejected.
fn helped_by(rejectors: Rejectors) -> u16 {
    let no_nodes = if rejectors & NO_NODES == 0 { 0 } else { happened::NODE_ADDED };
    plugins_of(rejectors).fold(no_nodes, |bits, plugin| bits | plugin.helped_by)
}

fn is_helped(waiting: &Waiting, happened: &Happened<'_>, nodes: &Nodes) -> bool {
    let bit = happened.bit();
    (waiting.rejected_by & NO_NODES != 0 && bit == happened::NODE_ADDED)
        || plugins_of(waiting.rejected_by)
            .any(|plugin| plugin.helped_by & bit != 0 && (plugin.helped)(&waiting.pod, happened, nodes))
}

impl Queue {
    fn order(waiting: &Waiting) -> Order {
        (Reverse(waiting.pod.priority()), waiting.since, waiting.pod.key.clone())
    }

    fn leave(&mut self, key: &Key) {
        let Some(waiting) = self.pods.get(key) else { return };
        match waiting.place {
            Place::Active => drop(self.active.remove(&Self::order(waiting))),
            Place::BackingOff(until) => drop(self.backing_off.remove(&(until, waiting.since))),
            Place::Failed(until) => drop(self.failed.remove(&(until, waiting.since))),
            Place::Unschedulable => {
                let bits = helped_by(waiting.rejected_by);
                self.interested.iter_mut().enumerate().for_each(|(at, count)| *count -= usize::from(bits >> at & 1));
            }
            Place::Gated | Place::Out => {}
        }
    }

    fn enter(&mut self, key: &Key, place: Place) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.place = place;
        match place {
            Place::Active => drop(self.active.insert(Self::order(waiting))),
            Place::BackingOff(until) => drop(self.backing_off.insert((until, waiting.since), key.clone())),
            Place::Failed(until) => drop(self.failed.insert((until, waiting.since), key.clone())),
            Place::Unschedulable => {
                let bits = helped_by(waiting.rejected_by);
                self.interested.iter_mut().enumerate().for_each(|(at, count)| *count += usize::from(bits >> at & 1));
            }
            Place::Gated | Place::Out => {}
        }
    }

    fn move_to(&mut self, key: &Key, place: Place) {
        self.leave(key);
        self.enter(key, place);
    }

    /// Active at once, or after what is left of the backoff; while it is held, later.
    fn try_again(&mut self, key: &Key, now: Timestamp) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        if waiting.held {
            waiting.missed = true;
            return;
        }
        let until = waiting.last_attempt.saturating_add(backoff(waiting.attempts)).expect("a duration saturates");
        let soon = waiting.attempts == 0 || until <= now;
        self.move_to(key, if soon { Place::Active } else { Place::BackingOff(until) });
    }

    /// A pod without a node is new or has changed.
    pub fn put(&mut self, pod: Arc<PodInfo>, nodes: &Nodes, now: Timestamp) {
        let key = pod.key.clone();
        let gated = is_gated(&pod);
        let Some(known) = self.pods.get(&key).filter(|known| known.pod.uid == pod.uid) else {
            self.remove(&key);
            self.arrivals += 1;
            let waiting = Waiting {
                pod,
                place: Place::Out,
                since: self.arrivals,
                attempts: 0,
                last_attempt: now,
                rejected_by: 0,
                held: false,
                missed: false,
            };
            self.pods.insert(key.clone(), waiting);
            return self.enter(&key, if gated { Place::Gated } else { Place::Active });
        };
        let place = known.place;
        self.leave(&key);
        let known = self.pods.get_mut(&key).expect("it was just seen");
        let before = std::mem::replace(&mut known.pod, pod);
        let helped = is_helped(known, &Happened::Itself(&before), nodes);
        match place {
            Place::Out => {}
            _ if gated => self.enter(&key, Place::Gated),
            Place::Gated => self.enter(&key, Place::Active),
            place => self.enter(&key, place),
        }
        if place == Place::Unschedulable && helped {
            self.try_again(&key, now);
        }
    }
    /// A pod has a node now, or is gone.
    pub fn remove(&mut self, key: &Key) {
        self.leave(key);
        self.pods.remove(key);
    }
    /// The next pod to schedule.
    pub fn pop(&mut self, now: Timestamp) -> Option<Arc<PodInfo>> {
        while let Some(key) = self.due(now) {
            self.move_to(&key, Place::Active);
        }
        // Who backs off only makes way for others: nobody else is there.
        let early = || self.backing_off.first_key_value().map(|(_, key)| key.clone());
        let key = self.active.first().map(|(_, _, key)| key.clone()).or_else(early)?;
        self.move_to(&key, Place::Out);
        let waiting = self.pods.get_mut(&key).expect("what waits is known");
        waiting.attempts += 1;
        waiting.last_attempt = now;
        Some(waiting.pod.clone())
    }
    /// A pod whose time has come.
    fn due(&self, now: Timestamp) -> Option<Key> {
        let first = |list: &BTreeMap<(Timestamp, u64), Key>| {
            list.first_key_value().filter(|((until, _), _)| *until <= now).map(|(_, key)| key.clone())
        };
        first(&self.failed).or_else(|| first(&self.backing_off))
    }
    /// When the next pod that met an error is to be tried.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.failed.first_key_value().map(|(&(until, _), _)| until)
    }
    /// The pod that was popped fits nowhere, because of `rejected_by`, until something happens that helps.
    pub fn unschedulable(&mut self, key: &Key, rejected_by: Rejectors) {
        self.arrivals += 1;
        if let Some(waiting) = self.pods.get_mut(key).filter(|waiting| waiting.place == Place::Out) {
            waiting.rejected_by = rejected_by;
            waiting.since = self.arrivals;
            self.enter(key, Place::Unschedulable);
        }
    }
    /// The pod that was popped met an error: it is tried again after its backoff.
    pub fn failed(&mut self, key: &Key, now: Timestamp) {
        self.arrivals += 1;
        if let Some(waiting) = self.pods.get_mut(key).filter(|waiting| waiting.place == Place::Out) {
            waiting.since = self.arrivals;
            let until = now.saturating_add(backoff(waiting.attempts)).expect("a duration saturates");
            self.enter(key, Place::Failed(until));
        }
    }
    /// Something happened: pods that it may help are tried again. `nodes` knows of it already.
    pub fn wake(&mut self, happened: &Happened<'_>, nodes: &Nodes, now: Timestamp) {
        if self.interested[happened.bit().trailing_zeros() as usize] == 0 {
            return;
        }
        let helped = |waiting: &Waiting| waiting.place == Place::Unschedulable && is_helped(waiting, happened, nodes);
        let keys: Vec<Key> = self.pods.iter().filter(|(_, w)| helped(w)).map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|key| self.try_again(key, now));
    }
    /// An unschedulable pod is to be tried again, whatever the plugins say.
    pub fn activate(&mut self, key: &Key, now: Timestamp) {
        if self.pods.get(key).is_some_and(|waiting| waiting.place == Place::Unschedulable) {
            self.try_again(key, now);
        }
    }
    /// The victims of the pod are being deleted.
    pub fn hold(&mut self, key: &Key) {
        if let Some(waiting) = self.pods.get_mut(key) {
            (waiting.held, waiting.missed) = (true, false);
        }
    }
    /// The victims of the pod are deleted; with `again` that did not succeed and the pod has to look anew.
    pub fn release(&mut self, key: &Key, again: bool, now: Timestamp) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.held = false;
        if std::mem::take(&mut waiting.missed) || again {
            self.activate(key, now);
        }
    }
    /// The pod as the queue knows it.
    pub fn get(&self, key: &Key) -> Option<&Arc<PodInfo>> {
        self.pods.get(key).map(|waiting| &waiting.pod)
    }
    /// How many pods wait, in which state ever.
    pub fn len(&self) -> usize {
        self.pods.len()
    }
    /// Whether no pod waits.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::{Value, json};

    fn pod(name: &str, spec: Value) -> Arc<PodInfo> {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([]);
        }
        let pod = json!({"metadata": {"name": name, "namespace": "a", "uid": name}, "spec": spec});
        Arc::new(PodInfo::new(Arc::new(Pod::parse(&pod).expect("a pod"))))
    }

    fn nodes() -> Nodes {
        let mut nodes = Nodes::default();
        let node = json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "1", "pods": "9"}}});
        nodes.set_node(Arc::new(Node::parse(&node).expect("a node")));
        nodes
    }

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().expect("a time")
    }

    fn rejector(name: &str) -> Rejectors {
        1 << plugins::ALL.iter().position(|plugin| plugin.name == name).expect("a plugin")
    }

    #[test]
    fn pods_come_by_priority_and_then_by_arrival() {
        let (mut queue, nodes) = (Queue::default(), nodes());
        for (name, priority) in [("low", 0), ("high", 9), ("later", 9)] {
            queue.put(pod(name, json!({"priority": priority})), &nodes, now());
        }
        queue.put(pod("gated", json!({"priority": 99, "schedulingGates": [{"name": "g"}]})), &nodes, now());
        let mut order = Vec::new();
        while let Some(next) = queue.pop(now()) {
            order.push(next.key.name.clone());
        }
        assert_eq!(order, ["high", "later", "low"]);
        queue.put(pod("gated", json!({})), &nodes, now());
        assert!(queue.pop(now()).is_some(), "the gate is open");
    }

    #[test]
    fn unschedulable_pods_wait_for_what_helps_them() {
        let (mut queue, nodes) = (Queue::default(), nodes());
        queue.put(pod("p", json!({"nodeName": "n"})), &nodes, now());
        let key = queue.pop(now()).expect("it is active").key.clone();
        queue.unschedulable(&key, rejector("NodeName"));
        queue.wake(&Happened::Volume, &nodes, now());
        assert!(queue.pop(now()).is_none(), "volumes have nothing to do with names of nodes");
        let node = nodes.get("n").expect("a node");
        let other = crate::scheduler::node_info::NodeInfo { name: "other".into(), ..node.clone() };
        queue.wake(&Happened::NodeAdded(&other), &nodes, now());
        assert!(queue.pop(now()).is_none(), "the plugin looks at the node");
        queue.wake(&Happened::NodeAdded(node), &nodes, now());
        assert!(queue.pop(now()).is_some() && queue.next_deadline().is_none());
        queue.unschedulable(&key, NO_NODES);
        queue.wake(&Happened::NodeAdded(node), &nodes, now());
        assert!(queue.pop(now()).is_some());
        assert!(queue.interested.iter().all(|count| *count == 0));
    }

    #[test]
    fn who_backs_off_makes_way_for_others_and_errors_wait() {
        let (mut queue, nodes) = (Queue::default(), nodes());
        for name in ["p", "q"] {
            queue.put(pod(name, json!({})), &nodes, now());
        }
        let key = queue.pop(now()).expect("it is active").key.clone();
        queue.unschedulable(&key, NO_NODES);
        queue.activate(&key, now());
        let next = || "a pod waits";
        assert_eq!(queue.pop(now()).expect(next()).key.name, "q", "p backs off");
        assert_eq!(queue.pop(now()).expect(next()).key.name, "p", "nobody else is there");
        queue.failed(&key, now());
        assert!(queue.pop(now()).is_none());
        let deadline = queue.next_deadline().expect("it backs off");
        assert_eq!(deadline.duration_since(now()), SignedDuration::from_secs(2));
        assert!(queue.pop(deadline).is_some());
        assert_eq!((1..7).map(|n| backoff(n).as_secs()).collect::<Vec<_>>(), [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn who_preempts_waits_until_its_victims_are_deleted() {
        let (mut queue, nodes) = (Queue::default(), nodes());
        queue.put(pod("p", json!({})), &nodes, now());
        let key = queue.pop(now()).expect("it is active").key.clone();
        queue.unschedulable(&key, rejector("NodeResourcesFit"));
        queue.hold(&key);
        queue.wake(&Happened::PodGone { pod: &pod("v", json!({})), node: "n" }, &nodes, now());
        assert!(queue.pop(now()).is_none(), "one victim is gone, another not yet");
        queue.release(&key, false, now());
        assert!(queue.pop(now()).is_some());
        queue.unschedulable(&key, rejector("NodeResourcesFit"));
        queue.hold(&key);
        queue.release(&key, false, now());
        assert!(queue.pop(now()).is_none(), "nothing has happened yet");
    }

    #[test]
    fn a_pod_that_changes_is_tried_again_when_that_helps() {
        let (mut queue, nodes) = (Queue::default(), nodes());
        queue.put(pod("p", json!({})), &nodes, now());
        let key = queue.pop(now()).expect("it is active").key.clone();
        queue.unschedulable(&key, rejector("TaintToleration"));
        queue.put(pod("p", json!({"activeDeadlineSeconds": 1})), &nodes, now());
        assert!(queue.pop(now()).is_none());
        queue.put(pod("p", json!({"tolerations": [{"operator": "Exists"}]})), &nodes, now());
        assert!(queue.pop(now()).is_some());
    }
}
