//! The status of a Deployment: counts, conditions, and the progress deadline.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::math::{max_unavailable, replicas};
use crate::client::typed::Meta;

/// The condition types.
pub const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
/// Reasons of `Progressing`.
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const COMPLETE: &str = "NewReplicaSetAvailable";

/// A condition that begins now.
pub fn condition(type_: &str, status: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// A condition of a status.
pub fn find<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Sets a condition unless it is there with the same status and reason (`SetDeploymentCondition`).
pub fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(known) = find(status, &new.type_) {
        if known.status == new.status && known.reason == new.reason {
            return;
        }
        if known.status == new.status {
            new.last_transition_time = known.last_transition_time.clone();
        }
    }
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

/// Removes a condition.
pub fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
    }
    status.conditions = status.conditions.take().filter(|conditions| !conditions.is_empty());
}

/// `spec.progressDeadlineSeconds`, if there is one (the largest number means none).
pub fn deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    Some(SignedDuration::from_secs(seconds.into()))
}

/// Counts over the sets, and the condition `Available` (`calculateStatus`).
pub fn calculate(
    deployment: &Deployment,
    conditions_of: &DeploymentStatus,
    all: &[Arc<ReplicaSet>],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |count: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        all.iter().filter_map(|set| set.status.as_ref()).map(count).sum()
    };
    let some = |number: i32| (number > 0).then_some(number);
    let total = sum(|status| status.replicas);
    let available = sum(|status| status.available_replicas.unwrap_or_default());
    let updated = new.and_then(|set| set.status.as_ref()).map(|status| status.replicas).unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(total),
        updated_replicas: some(updated),
        ready_replicas: some(sum(|status| status.ready_replicas.unwrap_or_default())),
        available_replicas: some(available),
        unavailable_replicas: some(total - available),
        terminating_replicas: Some(sum(|status| status.terminating_replicas.unwrap_or_default())),
        collision_count: conditions_of.collision_count,
        conditions: conditions_of.conditions.clone(),
    };
    let (word, reason, message) = if available >= replicas(deployment) - max_unavailable(deployment) {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut status, condition(AVAILABLE, word, reason, message.into(), now));
    status
}

/// Whether all wanted pods are of the new template and available (`DeploymentComplete`).
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = replicas(deployment);
    let counts = [status.updated_replicas, status.replicas, status.available_replicas];
    counts.iter().all(|count| count.unwrap_or_default() == wanted)
        && status.observed_generation >= deployment.metadata.generation
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let number = |count: Option<i32>| count.unwrap_or_default();
    let outdated = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(new.updated_replicas) > number(old.updated_replicas)
        || outdated(new) < outdated(old)
        || number(new.ready_replicas) > number(old.ready_replicas)
        || number(new.available_replicas) > number(old.available_replicas)
}

fn is_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some((deadline, condition)) = deadline(deployment).zip(find(status, PROGRESSING)) else { return false };
    match condition.reason.as_deref() {
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => condition.last_update_time.as_ref().is_some_and(|since| now.duration_since(since.0) > deadline),
    }
}

/// Conditions `Progressing` and `ReplicaFailure` of a running rollout (`syncRolloutStatus`).
pub fn roll(
    deployment: &Deployment,
    old: &DeploymentStatus,
    status: &mut DeploymentStatus,
    all: &[Arc<ReplicaSet>],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) {
    let subject = match new {
        Some(set) => format!("ReplicaSet {:?}", set.name()),
        None => format!("Deployment {:?}", deployment.name()),
    };
    let current = find(old, PROGRESSING).cloned();
    if deadline(deployment).is_none() {
        remove(status, PROGRESSING);
    }
    let finished = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|condition| condition.reason.as_deref() == Some(COMPLETE));
    if deadline(deployment).is_some() && !finished {
        if is_complete(deployment, status) {
            let message = format!("{subject} has successfully progressed.");
            set(status, condition(PROGRESSING, "True", COMPLETE, message, now));
        } else if is_progressing(old, status) {
            let message = format!("{subject} is progressing.");
            let mut fresh = condition(PROGRESSING, "True", "ReplicaSetUpdated", message, now);
            if let Some(current) = current.filter(|current| current.status == "True") {
                fresh.last_transition_time = current.last_transition_time;
            }
            // Removed first, so that the time of the last update moves.
            remove(status, PROGRESSING);
            set(status, fresh);
        } else if is_timed_out(deployment, status, now) {
            let message = format!("{subject} has timed out progressing.");
            set(status, condition(PROGRESSING, "False", TIMED_OUT, message, now));
        }
    }
    match failure(all, new) {
        Some(condition) => set(status, condition),
        None => remove(status, REPLICA_FAILURE),
    }
}

fn failure(all: &[Arc<ReplicaSet>], new: Option<&ReplicaSet>) -> Option<DeploymentCondition> {
    let of = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE).cloned()
    };
    let found = new.and_then(of).or_else(|| all.iter().find_map(|set| of(set)))?;
    Some(DeploymentCondition {
        type_: REPLICA_FAILURE.into(),
        status: found.status,
        reason: found.reason,
        message: found.message,
        last_update_time: found.last_transition_time.clone(),
        last_transition_time: found.last_transition_time,
    })
}

/// When the progress deadline has to be looked at again (`requeueStuckDeployment`).
pub fn next_check(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline = deadline(deployment)?;
    let condition = find(status, PROGRESSING)?;
    if is_complete(deployment, status) || matches!(condition.reason.as_deref(), Some(TIMED_OUT | COMPLETE)) {
        return None;
    }
    let left = deadline - now.duration_since(condition.last_update_time.as_ref()?.0);
    // A second more, because times are kept in whole seconds.
    Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
}
