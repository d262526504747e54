//! Deployments: a ReplicaSet per revision, rolled over (`pkg/controller/deployment`).

pub mod math;
pub mod progress;
pub mod replica_sets;
pub mod rollout;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;

use super::caches::Caches;
use super::plan::{Action, Plan};
use super::{Controller, Enqueue, ownership};
use crate::client::cache::Key;
use crate::client::recorder::{EventType, reference};
use crate::client::selector;
use crate::client::typed::Meta;

/// The controller.
pub struct DeploymentController;

impl Controller for DeploymentController {
    fn name(&self) -> &'static str {
        "deployment"
    }
    fn account(&self) -> &'static str {
        "deployment-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.deployments);
        let (deployments, add) = (caches.deployments.clone(), enqueue.clone());
        caches.replica_sets.subscribe(move |change| {
            for set in change.old.iter().chain(&change.new) {
                match set.controller() {
                    Some(owner) if owner.kind == "Deployment" => add.add(Key::new(set.namespace(), &*owner.name)),
                    Some(_) => {}
                    None => {
                        let wants = |deployment: &Deployment| {
                            let wanted = deployment.spec.as_ref().map(|spec| &spec.selector);
                            selector::matches(wanted, set.labels())
                        };
                        deployments.select(set.namespace(), wants).iter().for_each(|d| add.add(Key::of(&**d)));
                    }
                }
            }
        });
        // Strategy Recreate waits for the last pod to go.
        let (sets, add) = (caches.replica_sets.clone(), enqueue.clone());
        caches.pods.subscribe(move |change| {
            let Some(owner) = change.object().controller().filter(|owner| owner.kind == "ReplicaSet") else { return };
            if change.new.as_ref().is_some_and(|pod| super::pod_status::is_active(pod)) {
                return;
            }
            let set = sets.get(&Key::new(change.object().namespace(), &*owner.name));
            if let Some(deployment) = set.as_ref().and_then(|set| set.controller()) {
                add.add(Key::new(change.object().namespace(), &*deployment.name));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let Some(deployment) = caches.deployments.get(key) else { return Plan::default() };
        let sets = caches.replica_sets.in_namespace(&key.namespace);
        let others = |set: &ReplicaSet| set.controller().is_some_and(|owner| owner.uid != deployment.uid());
        let pods = sets.iter().filter(|set| !others(set)).flat_map(|set| caches.pods.owned_by(set.uid())).collect();
        reconcile(&Snapshot { deployment, sets, pods }, now)
    }
}

/// What a reconcile sees.
pub struct Snapshot {
    /// The Deployment.
    pub deployment: Arc<Deployment>,
    /// All ReplicaSets of its namespace.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// The pods of those sets that are its own, or may become so.
    pub pods: Vec<Arc<Pod>>,
}

/// The decision.
pub fn reconcile(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let deployment = &*snapshot.deployment;
    let Some(spec) = &deployment.spec else { return Plan::default() };
    if selector::is_empty(&spec.selector) {
        return select_all(deployment);
    }
    let (claimed, adoptions) = ownership::claim(deployment, Some(&spec.selector), snapshot.sets.iter().cloned());
    let mut rollout = rollout::Rollout::new(deployment, claimed, &snapshot.sets, now);
    adoptions.into_iter().for_each(|action| rollout.plan.push(action));

    if deployment.is_terminating() {
        rollout.find_sets();
        return rollout.finish_status_only();
    }
    rollout.check_paused();
    let paused = spec.paused.unwrap_or_default();
    if paused || rollout.is_scaling() {
        rollout.find_sets();
        rollout.scale();
        if paused {
            rollout.cleanup();
        }
        return rollout.finish_status_only();
    }
    match math::is_recreate(deployment) {
        true => rollout.recreate(&snapshot.pods),
        false => rollout.rolling(),
    }
    rollout.finish()
}

fn select_all(deployment: &Deployment) -> Plan {
    let mut plan = Plan::default();
    let message = "This deployment is selecting all pods. A non-empty selector is required.";
    let status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation < deployment.metadata.generation {
        plan.push(Action::event(reference(deployment), EventType::Warning, "SelectingAll", message.into()));
        let mut updated = deployment.clone();
        updated.status.get_or_insert_default().observed_generation = deployment.metadata.generation;
        plan.push(Action::update_status(&updated));
    }
    plan
}
