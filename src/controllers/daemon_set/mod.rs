//! DaemonSets: one pod on every node that should have one (`pkg/controller/daemon`).

pub mod backoff;
pub mod nodes;
pub mod pods;
pub mod revisions;
pub mod rolling;
pub mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::caches::Caches;
use super::plan::{Action, Plan, Step};
use super::pod_status::{available_at, is_finished};
use super::{Controller, Enqueue, ownership, pod_control};
use crate::client::cache::Key;
use crate::client::selector;
use crate::client::typed::Meta;
use backoff::Backoff;
use nodes::Verdict;

/// Creates or deletes at most this many pods per reconcile (`BurstReplicas`).
const BURST: usize = 250;

/// The controller.
#[derive(Default)]
pub struct DaemonSetController {
    /// How often pods have failed lately: it delays the next attempt, and a restart may forget it.
    failures: Mutex<Backoff>,
}

impl Controller for DaemonSetController {
    fn name(&self) -> &'static str {
        "daemonset"
    }
    fn account(&self) -> &'static str {
        "daemon-set-controller"
    }
    fn component(&self) -> &'static str {
        "daemonset-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.daemon_sets);
        watch_dependents(caches, enqueue, &caches.pods);
        watch_dependents(caches, enqueue, &caches.controller_revisions);
        let (sets, add) = (caches.daemon_sets.clone(), enqueue.clone());
        caches.nodes.subscribe(move |change| {
            let verdict = |node: &Option<Arc<Node>>, set: &DaemonSet| {
                node.as_ref().map_or(Verdict::NoPod, |node| nodes::verdict(set, node))
            };
            for set in sets.list() {
                if verdict(&change.old, &set) != verdict(&change.new, &set) {
                    add.add(Key::of(&*set));
                }
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let Some(set) = caches.daemon_sets.get(key) else { return Plan::default() };
        let snapshot = Snapshot {
            nodes: caches.nodes.list(),
            pods: caches.pods.claimable(&key.namespace, set.uid()),
            revisions: caches.controller_revisions.in_namespace(&key.namespace),
            set,
        };
        let mut failures = self.failures.lock().expect("no panic while it is held");
        let decision = reconcile(&snapshot, &failures, now);
        decision.failed.iter().for_each(|place| failures.failed(place, now));
        decision.plan
    }
}

/// Keys of the sets that own, or would adopt, a pod or a revision that changes.
fn watch_dependents<T: crate::client::typed::Typed>(
    caches: &Caches,
    enqueue: &Enqueue,
    dependents: &crate::client::Cache<T>,
) {
    let (sets, add) = (caches.daemon_sets.clone(), enqueue.clone());
    dependents.subscribe(move |change| {
        for object in change.old.iter().chain(&change.new) {
            match object.controller() {
                Some(owner) if owner.kind == "DaemonSet" => add.add(Key::new(object.namespace(), &*owner.name)),
                Some(_) => {}
                None => {
                    let wants = |set: &DaemonSet| {
                        selector::matches(set.spec.as_ref().map(|spec| &spec.selector), object.labels())
                    };
                    sets.select(object.namespace(), wants).iter().for_each(|set| add.add(Key::of(&**set)));
                }
            }
        }
    });
}

/// What a reconcile sees.
pub struct Snapshot {
    /// The set.
    pub set: Arc<DaemonSet>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// The pods of its namespace that are its own or nobody's.
    pub pods: Vec<Arc<Pod>>,
    /// All ControllerRevisions of its namespace.
    pub revisions: Vec<Arc<ControllerRevision>>,
}

/// What a reconcile decides.
#[derive(Default)]
pub struct Decision {
    /// What is to be done.
    pub plan: Plan,
    /// Where a failed pod is replaced now, for the [`Backoff`].
    pub failed: Vec<String>,
}

/// The pods of a set by the node for which they are meant.
pub type ByNode = BTreeMap<String, Vec<Arc<Pod>>>;

/// What is known of a set while it is reconciled.
pub struct View<'a> {
    /// The set.
    pub set: &'a DaemonSet,
    /// `controller-revision-hash` of pods that are up to date.
    pub hash: String,
    /// All nodes.
    pub nodes: &'a [Arc<Node>],
    /// Its pods; those that ended and are terminating do not count any more.
    pub pods: ByNode,
    /// The time.
    pub now: Timestamp,
}

impl View<'_> {
    fn min_ready(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or_default()
    }
    fn is_available(&self, pod: &Pod) -> bool {
        available_at(pod, self.min_ready()).is_some_and(|at| at <= self.now)
    }
    fn is_updated(&self, pod: &Pod) -> bool {
        pods::is_updated(self.set, pod, &self.hash)
    }
    fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name() == name).map(|node| &**node)
    }
}

/// Pods to make and to delete.
#[derive(Default)]
pub struct Changes {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    /// Pods that go.
    pub delete: Vec<Arc<Pod>>,
}

/// The decision.
pub fn reconcile(snapshot: &Snapshot, failures: &Backoff, now: Timestamp) -> Decision {
    let set = &*snapshot.set;
    let mut decision = Decision::default();
    let Some(spec) = set.spec.as_ref().filter(|_| !set.is_terminating()) else { return decision };
    let plan = &mut decision.plan;
    let (history, adoptions) = ownership::claim(set, Some(&spec.selector), snapshot.revisions.iter().cloned());
    adoptions.into_iter().for_each(|action| plan.push(action));
    let (own, adoptions) = ownership::claim(set, Some(&spec.selector), snapshot.pods.iter().cloned());
    adoptions.into_iter().for_each(|action| plan.push(action));
    let revisions = revisions::Revisions::find(set, &history, &snapshot.revisions, &own, plan);

    let counted = own.iter().filter(|pod| !(is_finished(pod) && pod.is_terminating()));
    let mut by_node = ByNode::new();
    for pod in counted {
        if let Some(node) = pods::target_node(pod) {
            by_node.entry(node.to_owned()).or_default().push(pod.clone());
        }
    }
    by_node.values_mut().for_each(|pods| pods::sort(pods));
    let view = View { set, hash: revisions.hash.clone(), nodes: &snapshot.nodes, pods: by_node, now };

    let managed = nodes::manage(&view, failures);
    managed.told.into_iter().for_each(|action| plan.push(action));
    let mut changes = managed.changes;
    if changes.create.is_empty() && changes.delete.is_empty() && rolling::is_rolling(set) {
        changes = rolling::update(&view);
    }
    push_changes(plan, &view, changes);
    revisions.clean_up(set, &own).into_iter().for_each(|action| plan.push(action));

    let status = status::calculate(&view, revisions.collisions);
    let write = (set.status.as_ref() != Some(&status))
        .then(|| Action::update_status(&DaemonSet { status: Some(status), ..set.clone() }));
    write.iter().for_each(|action| plan.push(action.clone()));
    plan.on_failure = Some(Box::new(move |_| write.into_iter().collect()));
    // Availability comes with time alone: look again when the next pod has been ready for long enough.
    let ready = own.iter().filter_map(|pod| available_at(pod, view.min_ready())).filter(|at| *at > now);
    if let Some(at) = ready.chain(managed.again_at).min() {
        plan.requeue(Duration::try_from(at.duration_since(now)).unwrap_or_default());
    }
    decision.failed = managed.failed;
    decision
}

fn push_changes(plan: &mut Plan, view: &View, mut changes: Changes) {
    changes.create.truncate(BURST);
    changes.delete.truncate(BURST);
    if !changes.create.is_empty() {
        let create = |node: &String| pod_control::create(view.set, &pods::new_pod(view.set, &view.hash, node));
        plan.steps.push(Step::SlowStart(changes.create.iter().map(create).collect()));
    }
    if !changes.delete.is_empty() {
        let delete = |pod: &Arc<Pod>| pod_control::delete(view.set, pod);
        plan.steps.push(Step::All(changes.delete.iter().map(delete).collect()));
    }
}
