//! Pods as their controllers make and remove them (`controller_utils.go`): from a template, with an owner and events;
//! and which of them go first when there are too many.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::ownership;
use super::plan::Action;
use super::pod_status::{is_active, is_ready, node_name, phase, ready_since};
use crate::client::recorder::{EventType, reference};
use crate::client::typed::{Meta, Typed};

/// A pod of the template, controlled by `owner`, with a name to be generated (`GetPodFromTemplate`).
pub fn from_template<O: Typed>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(generated_prefix(owner.name())),
            namespace: owner.metadata().namespace.clone(),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![ownership::controller_reference(owner)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// `<controller name>-`, unless that cannot begin a name.
fn generated_prefix(name: &str) -> String {
    let prefix = format!("{name}-");
    if crate::api::meta::validate_subdomain(&format!("{prefix}x")).is_empty() { prefix } else { name.to_owned() }
}

/// Creates a pod of `owner` and tells of it.
pub fn create<O: Typed>(owner: &O, pod: &Pod) -> Action {
    Action::create(pod).tell(
        reference(owner),
        Some((EventType::Normal, "SuccessfulCreate", "Created pod: {name}".into())),
        Some((EventType::Warning, "FailedCreate", "Error creating: {error}".into())),
    )
}

/// Deletes a pod of `owner` and tells of it.
pub fn delete<O: Typed>(owner: &O, pod: &Pod) -> Action {
    Action::delete(pod).tell(
        reference(owner),
        Some((EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()))),
        Some((EventType::Warning, "FailedDelete", "Error deleting: {error}".into())),
    )
}

/// Puts the pods to delete first in front (`ActivePodsWithRanks`). `related` are the pods of all owners that share a
/// controller: of two equal pods the one goes whose node has more of them.
pub fn rank(pods: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut crowd: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| is_active(pod)) {
        *crowd.entry(node_name(pod)).or_default() += 1;
    }
    pods.sort_by(|a, b| compare(a, b, &crowd, now));
}

fn compare(a: &Pod, b: &Pod, crowd: &HashMap<&str, usize>, now: Timestamp) -> Ordering {
    let assigned = |pod: &Pod| !node_name(pod).is_empty();
    let stage = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |pod: &Pod| -> i32 {
        let cost = pod.annotation("controller.kubernetes.io/pod-deletion-cost");
        cost.and_then(|cost| cost.parse().ok()).unwrap_or_default()
    };
    let crowded = |pod: &Pod| crowd.get(node_name(pod)).copied().unwrap_or_default();
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| stage(a).cmp(&stage(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| crowded(b).cmp(&crowded(a)))
        .then_with(|| younger_first(ready_since(a), ready_since(b), now))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| younger_first(created(a), created(b), now))
        .then_with(|| a.uid().cmp(b.uid()))
}

/// Younger before older, on a logarithmic scale so that a scale-down does not always hit the same (KEP-2185).
fn younger_first(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let age = |time: Timestamp| {
        let nanos = now.duration_since(time).as_nanos();
        if nanos <= 0 { 0 } else { u128::BITS - nanos.unsigned_abs().leading_zeros() }
    };
    match (a, b) {
        (Some(a), Some(b)) => age(a).cmp(&age(b)),
        // Without a time: nothing is known of it, it goes first.
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().map(|status| status.restart_count).max().unwrap_or_default()
}
