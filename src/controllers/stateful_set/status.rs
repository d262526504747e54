//! The status of a StatefulSet (`updateStatus`, `completeRollingUpdate`).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::identity;
use super::revisions::Revisions;
use crate::client::typed::Meta;
use crate::controllers::pod_status::{available_at, is_ready, phase};

/// Whether the pod runs and is ready.
pub fn runs(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}

/// Whether the pod has been ready for as long as the set wants.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_at(pod, min_ready_seconds).is_some_and(|at| at <= now)
}

/// The strategy is `RollingUpdate`.
pub fn is_rolling(set: &StatefulSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("RollingUpdate")
}

/// The status as the pods are now.
pub fn calculate(set: &StatefulSet, pods: &[Arc<Pod>], revisions: &Revisions, now: Timestamp) -> StatefulSetStatus {
    let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or_default();
    let count =
        |what: &dyn Fn(&Pod) -> bool| i32::try_from(pods.iter().filter(|pod| what(pod)).count()).unwrap_or(i32::MAX);
    let of = |revision: &str| count(&|pod| !pod.is_terminating() && identity::revision(pod) == revision);
    let (replicas, ready) = (count(&|_| true), count(&runs));
    let available = count(&|pod| runs(pod) && is_available(pod, min_ready, now));
    let (mut current, updated) = (of(&revisions.current), of(&revisions.update));
    let mut revision = &revisions.current;
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    if is_rolling(set) && [updated, ready, replicas] == [wanted; 3] {
        // The roll-out is complete.
        (current, revision) = (updated, &revisions.update);
    }
    let some = |number: i32| (number != 0).then_some(number);
    let name = |name: &String| Some(name.clone()).filter(|name| !name.is_empty());
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas,
        ready_replicas: some(ready),
        available_replicas: Some(available),
        current_replicas: some(current),
        updated_replicas: some(updated),
        current_revision: name(revision),
        update_revision: name(&revisions.update),
        collision_count: Some(revisions.collisions),
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    }
}
