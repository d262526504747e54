//! ReplicaSets: the pods of one template ([`super::replicas`] decides).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};

use super::caches::Caches;
use super::plan::Plan;
use super::replicas::{self, Replicated, Snapshot, Wanted};
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::selector;
use crate::client::typed::Meta;

/// The controller.
pub struct ReplicaSetController;

impl Controller for ReplicaSetController {
    fn name(&self) -> &'static str {
        "replicaset"
    }
    fn account(&self) -> &'static str {
        "replicaset-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        replicas::watch(&caches.replica_sets, &caches.pods, enqueue);
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let Some(set) = caches.replica_sets.get(key) else { return Plan::default() };
        let pods = caches.pods.claimable(&key.namespace, set.uid());
        // Pods of sibling sets (same controller) tell which nodes are crowded.
        let siblings = match set.controller() {
            Some(owner) => caches.replica_sets.owned_by(&owner.uid),
            None => vec![set.clone()],
        };
        let related = siblings.iter().flat_map(|sibling| caches.pods.owned_by(sibling.uid())).collect();
        replicas::reconcile(&Snapshot { set, pods, related }, now)
    }
}

impl Replicated for ReplicaSet {
    fn wanted(&self) -> Option<Wanted> {
        let spec = self.spec.as_ref()?;
        Some(Wanted {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or_default(),
            selector: spec.selector.clone(),
            template: spec.template.clone(),
        })
    }
    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        selector::matches(self.spec.as_ref().map(|spec| &spec.selector), labels)
    }
    fn status(&self) -> Option<ReplicaSetStatus> {
        self.status.clone()
    }
    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}
