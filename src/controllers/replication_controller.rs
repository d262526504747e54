//! ReplicationControllers: the same decision as for ReplicaSets ([`super::replicas`]).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::caches::Caches;
use super::plan::Plan;
use super::replicas::{self, Replicated, Snapshot, Wanted};
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::selector;
use crate::client::typed::Meta;

/// The controller.
pub struct ReplicationControllerController;

impl Controller for ReplicationControllerController {
    fn name(&self) -> &'static str {
        "replicationcontroller"
    }
    fn account(&self) -> &'static str {
        "replication-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        replicas::watch(&caches.replication_controllers, &caches.pods, enqueue);
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let Some(set) = caches.replication_controllers.get(key) else { return Plan::default() };
        let pods = caches.pods.claimable(&key.namespace, set.uid());
        let related = caches.pods.owned_by(set.uid());
        replicas::reconcile(&Snapshot { set, pods, related }, now)
    }
}

impl Replicated for ReplicationController {
    fn wanted(&self) -> Option<Wanted> {
        let spec = self.spec.as_ref()?;
        Some(Wanted {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or_default(),
            // An empty selector would be everybody's pods; validation does not let it pass.
            selector: LabelSelector {
                match_labels: Some(spec.selector.clone().filter(|labels| !labels.is_empty())?),
                match_expressions: None,
            },
            template: spec.template.clone(),
        })
    }
    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let wanted = self.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        wanted.is_some_and(|wanted| !wanted.is_empty() && selector::contains(labels, wanted))
    }
    fn status(&self) -> Option<ReplicaSetStatus> {
        let status = self.status.clone()?;
        let condition = |condition: ReplicationControllerCondition| ReplicaSetCondition {
            type_: condition.type_,
            status: condition.status,
            reason: condition.reason,
            message: condition.message,
            last_transition_time: condition.last_transition_time,
        };
        Some(ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            terminating_replicas: None,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
        })
    }
    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let condition = |condition: ReplicaSetCondition| ReplicationControllerCondition {
            type_: condition.type_,
            status: condition.status,
            reason: condition.reason,
            message: condition.message,
            last_transition_time: condition.last_transition_time,
        };
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
        };
        Self { status: Some(status), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn its_pods_and_status_are_its_own() {
        let object = json!({
            "metadata": {"name": "rc", "namespace": "a", "uid": "u", "generation": 3},
            "spec": {"replicas": 1, "selector": {"app": "rc"},
                "template": {"metadata": {"labels": {"app": "rc"}}, "spec": {"containers": []}}},
        });
        let set = Arc::new(ReplicationController::parse(&object).expect("a controller"));
        let snapshot = Snapshot { set, pods: Vec::new(), related: Vec::new() };
        let plan = replicas::reconcile(&snapshot, Timestamp::UNIX_EPOCH);
        let writes: Vec<_> = plan.actions().map(|action| &action.write).collect();
        let [super::super::plan::Write::Create { object: pod, .. }, super::super::plan::Write::Update { object, .. }] =
            writes[..]
        else {
            panic!("a pod and the status, not {writes:?}")
        };
        let owner = &pod["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["apiVersion"], &owner["kind"]), (&json!("v1"), &json!("ReplicationController")));
        assert_eq!(object["status"], json!({"replicas": 0, "observedGeneration": 3}));
    }
}
