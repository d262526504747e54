//! The status of a DaemonSet (`updateDaemonSetStatus`).

use k8s_openapi::api::apps::v1::DaemonSetStatus;

use super::View;
use super::nodes::{Verdict, verdict};
use crate::client::typed::Meta;
use crate::controllers::pod_status::is_ready;

/// The status as the pods are now.
pub fn calculate(view: &View, collisions: Option<i32>) -> DaemonSetStatus {
    let (mut desired, mut current, mut misscheduled, mut ready, mut updated, mut available) = (0, 0, 0, 0, 0, 0);
    for node in view.nodes {
        // The oldest pod of the node speaks for it.
        let pod = view.pods.get(node.name()).and_then(|pods| pods.first());
        if verdict(view.set, node) != Verdict::Run {
            misscheduled += i32::from(pod.is_some());
            continue;
        }
        desired += 1;
        let Some(pod) = pod else { continue };
        current += 1;
        ready += i32::from(is_ready(pod));
        available += i32::from(view.is_available(pod));
        updated += i32::from(view.is_updated(pod));
    }
    let some = |number: i32| (number != 0).then_some(number);
    DaemonSetStatus {
        observed_generation: view.set.metadata.generation,
        desired_number_scheduled: desired,
        current_number_scheduled: current,
        number_misscheduled: misscheduled,
        number_ready: ready,
        updated_number_scheduled: some(updated),
        number_available: some(available),
        number_unavailable: some(desired - available),
        collision_count: collisions,
        conditions: view.set.status.as_ref().and_then(|status| status.conditions.clone()),
    }
}
