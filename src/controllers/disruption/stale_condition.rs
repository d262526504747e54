//! Takes `DisruptionTarget` back from pods that were not deleted after all (`syncStalePodDisruption`).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::client::Patch;
use crate::client::cache::Key;
use crate::client::typed::{Meta, gvr};
use crate::controllers::caches::Caches;
use crate::controllers::plan::{Action, Plan};
use crate::controllers::pod_status::{condition, is_finished};
use crate::controllers::{Controller, Enqueue};
use crate::env::rfc3339;

/// How long the condition may be there without a deletion (`stalePodDisruptionTimeout`).
const PATIENCE: SignedDuration = SignedDuration::from_mins(2);

/// The controller; its keys are pods.
pub struct StaleConditionController;

impl Controller for StaleConditionController {
    fn name(&self) -> &'static str {
        "disruption-stale-condition"
    }
    fn account(&self) -> &'static str {
        "disruption-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let add = enqueue.clone();
        caches.pods.subscribe(move |change| {
            if let Some(pod) = change.new.as_ref().filter(|pod| stale_at(pod).is_some()) {
                add.add(Key::of(&**pod));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(pod) = caches.pods.get(key) else { return plan };
        match stale_at(&pod) {
            Some(at) if at > now => plan.requeue(Duration::try_from(at.duration_since(now)).unwrap_or_default()),
            Some(_) => {
                let condition = json!({"type": "DisruptionTarget", "status": "False", "reason": null, "message": null,
                    "lastTransitionTime": rfc3339(now)});
                let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
                let patch = Action::patch(gvr::<Pod>(), key.clone(), "status", Patch::Strategic(patch));
                plan.push(patch.tolerate(&["NotFound"]));
            }
            None => {}
        }
        plan
    }
}

/// When the condition becomes stale; `None` when it is not there, or is nobody's mistake.
fn stale_at(pod: &Pod) -> Option<Timestamp> {
    let target = condition(pod, "DisruptionTarget").filter(|condition| condition.status == "True")?;
    // The kubelet may take any time to end a pod.
    if pod.is_terminating() || is_finished(pod) || target.reason.as_deref() == Some("TerminationByKubelet") {
        return None;
    }
    let since = target.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    Some(since.saturating_add(PATIENCE).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use std::sync::Arc;

    #[test]
    fn an_eviction_that_did_not_happen_is_forgotten_after_two_minutes() {
        let caches = Caches::default();
        let plan = |reason: &str, phase: &str, now: &str| {
            let pod = json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "status": {"phase": phase,
                "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason,
                    "lastTransitionTime": "2026-01-02T03:00:00Z"}]}});
            caches.pods.put(Arc::new(Pod::parse(&pod).expect("a pod")));
            let plan = StaleConditionController.reconcile(&caches, &Key::new("a", "p"), now.parse().expect("a time"));
            (plan.actions().count(), plan.requeue_after.map(|delay| delay.as_secs()))
        };
        assert_eq!(plan("EvictionByEvictionAPI", "Running", "2026-01-02T03:01:30Z"), (0, Some(30)));
        assert_eq!(plan("EvictionByEvictionAPI", "Running", "2026-01-02T03:02:00Z"), (1, None));
        assert_eq!(plan("TerminationByKubelet", "Running", "2026-01-02T04:00:00Z"), (0, None));
        assert_eq!(plan("EvictionByEvictionAPI", "Failed", "2026-01-02T04:00:00Z"), (0, None));
    }
}
