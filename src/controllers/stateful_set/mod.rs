//! StatefulSets: pods with ordinals, names and claims of their own, made and replaced in order (`pkg/controller/statefulset`).

pub mod claims;
pub mod identity;
pub mod revisions;
pub mod round;
pub mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use super::caches::Caches;
use super::plan::{Action, Plan};
use super::pod_status::available_at;
use super::{Controller, Enqueue, ownership};
use crate::client::cache::Key;
use crate::client::selector;
use crate::client::typed::Meta;
use revisions::Revisions;
use round::Round;

/// The controller.
pub struct StatefulSetController;

impl Controller for StatefulSetController {
    fn name(&self) -> &'static str {
        "statefulset"
    }
    fn account(&self) -> &'static str {
        "statefulset-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.stateful_sets);
        let (sets, add) = (caches.stateful_sets.clone(), enqueue.clone());
        caches.pods.subscribe(move |change| {
            for pod in change.old.iter().chain(&change.new) {
                if let Some(owner) = pod.controller().filter(|owner| owner.kind == "StatefulSet") {
                    add.add(Key::new(pod.namespace(), &*owner.name));
                }
                // A pod may be an orphan to adopt, or a stranger whose name is in the way.
                let named = identity::parent(pod.name()).map(|(set, _)| Key::new(pod.namespace(), set));
                if let Some(key) = named.filter(|key| sets.get(key).is_some()) {
                    add.add(key);
                }
            }
        });
        let (sets, add) = (caches.stateful_sets.clone(), enqueue.clone());
        caches.controller_revisions.subscribe(move |change| {
            let revision = change.object();
            match revision.controller() {
                Some(owner) if owner.kind == "StatefulSet" => add.add(Key::new(revision.namespace(), &*owner.name)),
                Some(_) => {}
                None => {
                    let wants = |set: &StatefulSet| selector::matches(spec_selector(set), revision.labels());
                    sets.select(revision.namespace(), wants).iter().for_each(|set| add.add(Key::of(&**set)));
                }
            }
        });
        // A claim that goes, or changes hands, may be what a pod waits for.
        let (sets, add) = (caches.stateful_sets.clone(), enqueue.clone());
        caches.claims.subscribe(move |change| {
            let claim = change.object();
            let owners = |claim: &Arc<PersistentVolumeClaim>| claim.owners().to_vec();
            if change.new.is_some() && change.old.as_ref().map(owners) == change.new.as_ref().map(owners) {
                return;
            }
            let of = |set: &StatefulSet| identity::claim_ordinal(set, claim.name()).is_some();
            sets.select(claim.namespace(), of).iter().for_each(|set| add.add(Key::of(&**set)));
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let Some(set) = caches.stateful_sets.get(key) else { return Plan::default() };
        let snapshot = Snapshot {
            pods: caches.pods.in_namespace(&key.namespace),
            revisions: caches.controller_revisions.in_namespace(&key.namespace),
            claims: caches.claims.select(&key.namespace, |claim| identity::claim_ordinal(&set, claim.name()).is_some()),
            set,
        };
        reconcile(&snapshot, now)
    }
}

fn spec_selector(set: &StatefulSet) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector> {
    set.spec.as_ref().map(|spec| &spec.selector)
}

/// What a reconcile sees.
pub struct Snapshot {
    /// The set.
    pub set: Arc<StatefulSet>,
    /// All pods of its namespace.
    pub pods: Vec<Arc<Pod>>,
    /// All ControllerRevisions of its namespace.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// Claims whose names are those of its templates.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
}

/// The decision.
pub fn reconcile(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let set = &*snapshot.set;
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else { return plan };
    let history = snapshot.revisions.iter().cloned();
    let (mut history, adoptions) = ownership::claim(set, Some(&spec.selector), history);
    adoptions.into_iter().for_each(|action| plan.push(action));
    let member = |pod: &Pod| {
        selector::matches(Some(&spec.selector), pod.labels()) && identity::ordinal_in(set, pod.name()).is_some()
    };
    let (pods, adoptions) = ownership::claim_if(set, member, snapshot.pods.iter().cloned());
    adoptions.into_iter().for_each(|action| plan.push(action));

    super::history::sort(&mut history);
    // A set that goes makes nothing any more, a revision neither.
    let revisions = match set.is_terminating() {
        true => Revisions::known(set),
        false => Revisions::find(set, &history, &snapshot.revisions, &mut plan),
    };
    if !set.is_terminating() {
        Round::new(set, &revisions, &pods, strangers(snapshot, &pods), &snapshot.claims, now).work(&mut plan);
    }
    let status = status::calculate(set, &pods, &revisions, now);
    let write = (set.status.as_ref() != Some(&status))
        .then(|| Action::update_status(&StatefulSet { status: Some(status), ..set.clone() }));
    write.iter().for_each(|action| plan.push(action.clone()));
    plan.on_failure = Some(Box::new(move |_| write.into_iter().collect()));
    if !set.is_terminating() {
        revisions.truncate(spec.revision_history_limit, &history, &pods).into_iter().for_each(|a| plan.push(a));
    }
    // Availability comes with time alone: look again when the next pod has been ready for long enough.
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    let next = pods.iter().filter_map(|pod| available_at(pod, min_ready)).filter(|at| *at > now).min();
    if let Some(at) = next {
        plan.requeue(Duration::try_from(at.duration_since(now)).unwrap_or_default());
    }
    plan
}

/// Ordinals whose names belong to pods that are not the set's.
fn strangers(snapshot: &Snapshot, pods: &[Arc<Pod>]) -> BTreeSet<i64> {
    let own: BTreeSet<&str> = pods.iter().map(|pod| pod.uid()).collect();
    let others = snapshot.pods.iter().filter(|pod| !own.contains(pod.uid()));
    others.filter_map(|pod| identity::ordinal_in(&snapshot.set, pod.name())).collect()
}
