//! Keeps claims and volumes while they are used (`pvc-protection`, `pv-protection`): gives them a finalizer, and takes it away
//! when nobody uses them any more.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use serde_json::{Value, json};

use super::caches::Caches;
use super::plan::{Action, Plan, Step, Write};
use super::pod_status::{is_finished, node_name};
use super::{Controller, Enqueue};
use crate::api::meta::{CLAIM_PROTECTION, VOLUME_PROTECTION};
use crate::client::Patch;
use crate::client::cache::Key;
use crate::client::typed::{Meta, Object, Typed, gvr};

/// The controller. Its keys are claims, and volumes (whose keys have no namespace).
pub struct VolumeProtectionController;

/// The claims that a pod uses, generic ephemeral ones included.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name(), volume.name)),
        (None, None) => None,
    })
}

/// Whether a pod keeps the claims that it uses. One without a node does not: it will not start with a claim that goes. One
/// that has been deleted and stopped (but waits for a finalizer) does not either (`IsPodTerminated`).
fn holds_claims(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let statuses = status.into_iter().flat_map(|status| [&status.init_container_statuses, &status.container_statuses]);
    let mut states = statuses.flatten().flatten().map(|status| status.state.clone().unwrap_or_default());
    let runs = states.any(|state| state.terminated.is_none() && state.waiting.is_none());
    !node_name(pod).is_empty() && !is_finished(pod) && (runs || !pod.is_terminating())
}

/// Whether a pod keeps a claim, as the API shows it.
fn may_use(pod: &Value, claim: &str) -> bool {
    Pod::parse(pod).map_or(true, |pod| holds_claims(&pod) && claims_of(&pod).any(|name| name == claim))
}

impl Controller for VolumeProtectionController {
    fn name(&self) -> &'static str {
        "persistentvolumeclaim-protection"
    }
    fn account(&self) -> &'static str {
        "pvc-protection-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.claims);
        enqueue.on_change(&caches.volumes);
        let add = enqueue.clone();
        caches.pods.subscribe(move |change| {
            let pod = change.object();
            if change.new.as_ref().is_none_or(|pod| !holds_claims(pod)) {
                claims_of(pod).for_each(|claim| add.add(Key::new(pod.namespace(), claim)));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        if key.namespace.is_empty() {
            let Some(volume) = caches.volumes.get(key) else { return plan };
            let bound = |volume: &PersistentVolume| {
                volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
            };
            plan.steps.extend(protect(&*volume, VOLUME_PROTECTION, bound(&volume)).map(Step::One));
            return plan;
        }
        let Some(claim) = caches.claims.get(key) else { return plan };
        let uses = |pod: &Pod| holds_claims(pod) && claims_of(pod).any(|name| name == key.name);
        let is_used = claim.is_terminating() && !caches.pods.select(&key.namespace, uses).is_empty();
        let change = protect(&*claim, CLAIM_PROTECTION, is_used);
        if change.is_some() && claim.is_terminating() {
            // The pods' cache may be behind: its data would be lost to a pod that has just got its node.
            let (gvr, namespace, name) = (gvr::<Pod>(), key.namespace.clone(), key.name.clone());
            plan.push(Action::write(Write::ExpectUnused { gvr, namespace, name, uses: may_use }));
        }
        plan.steps.extend(change.map(Step::One));
        plan
    }
}

/// The write that gives an object its finalizer (admission does so for new ones), or takes it away when it shall go and is not
/// used.
fn protect<T: Typed>(object: &T, finalizer: &str, is_used: bool) -> Option<Action> {
    let mut finalizers = object.metadata().finalizers.clone().unwrap_or_default();
    let is_protected = finalizers.iter().any(|known| known == finalizer);
    match (object.is_terminating(), is_protected) {
        (false, false) => finalizers.push(finalizer.to_owned()),
        (true, true) if !is_used => finalizers.retain(|known| known != finalizer),
        _ => return None,
    }
    let version = object.metadata().resource_version.clone();
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}});
    Some(Action::patch(gvr::<T>(), Key::of(object), "", Patch::Merge(patch)).tolerate(&["NotFound"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Value), expected: bool) {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]}});
        change(&mut pod);
        assert_eq!(holds_claims(&Pod::parse(&pod).expect("a pod")), expected, "{pod}");
    }

    #[test]
    fn only_pods_that_may_write_hold_their_claims() {
        let deleted = |pod: &mut Value| pod["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
        check(|_| {}, true);
        check(deleted, true);
        check(|pod| pod["spec"]["nodeName"] = Value::Null, false);
        check(|pod| pod["status"]["phase"] = "Succeeded".into(), false);
        let stopped =
            |pod: &mut Value| pod["status"]["containerStatuses"][0]["state"] = json!({"terminated": {"exitCode": 0}});
        check(stopped, true);
        check(
            |pod| {
                stopped(pod);
                deleted(pod);
            },
            false,
        );
    }
}
