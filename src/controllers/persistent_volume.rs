//! Binds claims to volumes and follows their lives (`pkg/controller/volume/persistentvolume`).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::caches::Caches;
use super::plan::{Action, Plan, Write};
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::recorder::{EventType, reference};
use crate::client::typed::{Meta, gvr};
use crate::client::{Patch, selector};
use crate::env::rfc3339;

/// The claim is bound, whatever its volume says now.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The controller chose the partner (nobody named it).
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Who provisioned a volume.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Who is asked to provision for a claim.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The node that the scheduler chose for the first consumer.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// The controller. Its keys are claims, and volumes (whose keys have no namespace).
pub struct PersistentVolumeController;

impl Controller for PersistentVolumeController {
    fn name(&self) -> &'static str {
        "persistentvolume-binder"
    }
    fn account(&self) -> &'static str {
        "persistent-volume-binder"
    }
    fn component(&self) -> &'static str {
        "persistentvolume-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let (volumes, add) = (caches.volumes.clone(), enqueue.clone());
        caches.claims.subscribe(move |change| {
            let claim = change.object();
            add.add(Key::of(&**claim));
            let mine = |volume: &PersistentVolume| refers_to(volume, &Key::of(&**claim));
            volumes.select("", mine).iter().for_each(|volume| add.add(Key::of(&**volume)));
        });
        let (claims, add) = (caches.claims.clone(), enqueue.clone());
        caches.volumes.subscribe(move |change| {
            add.add(Key::of(&**change.object()));
            // A volume that is free may be what some claim waits for.
            claims
                .list()
                .iter()
                .filter(|claim| !is_bound(claim) || volume_name(claim) == change.object().name())
                .for_each(|claim| add.add(Key::of(&**claim)));
        });
        let (claims, add) = (caches.claims.clone(), enqueue.clone());
        caches.storage_classes.subscribe(move |_| {
            claims.list().iter().filter(|claim| !is_bound(claim)).for_each(|claim| add.add(Key::of(&**claim)));
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        if key.namespace.is_empty() {
            let Some(volume) = caches.volumes.get(key) else { return Plan::default() };
            let claim = claim_key(&volume).and_then(|key| caches.claims.get(&key));
            return reconcile_volume(&volume, claim.as_deref(), now);
        }
        let Some(claim) = caches.claims.get(key) else { return Plan::default() };
        let class = class_name(&claim).and_then(|name| caches.storage_classes.get(&Key::new("", name)));
        reconcile_claim(&claim, class.as_deref(), &caches.volumes.list(), now)
    }
}

/// Whether the claim has its volume.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.annotation(BIND_COMPLETED).is_some() && !volume_name(claim).is_empty()
}

/// `spec.volumeName`; empty when absent.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// `spec.storageClassName`; `None` when absent or empty.
pub fn class_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.storage_class_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether volumes of the class wait for the pod that uses them first.
pub fn waits_for_consumer(class: Option<&StorageClass>) -> bool {
    class.and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer")
}

fn claim_reference(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

fn claim_key(volume: &PersistentVolume) -> Option<Key> {
    let reference = claim_reference(volume)?;
    Some(Key::new(reference.namespace.clone()?, reference.name.clone()?))
}

fn refers_to(volume: &PersistentVolume, claim: &Key) -> bool {
    claim_key(volume).as_ref() == Some(claim)
}

/// Whether the volume is, or was made to be, this claim's.
fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let uid = claim_reference(volume).and_then(|reference| reference.uid.as_deref()).unwrap_or_default();
    refers_to(volume, &Key::of(claim)) && (uid.is_empty() || uid == claim.uid())
}

fn bytes(list: Option<&BTreeMap<String, Quantity>>) -> i64 {
    let amount = list.and_then(|list| list.get("storage")).and_then(|quantity| quantity.0.parse().ok());
    amount.map_or(0, |amount: crate::api::quantity::Quantity| amount.value())
}

/// The smallest volume that suits the claim; one that is reserved for it wins.
fn find(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>]) -> Option<Arc<PersistentVolume>> {
    let spec = claim.spec.as_ref()?;
    let wanted = bytes(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    let class = class_name(claim).unwrap_or_default();
    let suits = |volume: &&Arc<PersistentVolume>| {
        let Some(own) = &volume.spec else { return false };
        let modes = own.access_modes.as_deref().unwrap_or_default();
        let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
        let labels = spec.selector.as_ref().is_none_or(|wanted| selector::matches(Some(wanted), volume.labels()));
        !volume.is_terminating()
            && mode(&own.volume_mode) == mode(&spec.volume_mode)
            && bytes(own.capacity.as_ref()) >= wanted
            && (is_for(volume, claim)
                || (own.claim_ref.is_none()
                    && own.storage_class_name.as_deref().unwrap_or_default() == class
                    && spec.access_modes.iter().flatten().all(|mode| modes.contains(mode))
                    && labels))
    };
    let rank = |volume: &&Arc<PersistentVolume>| {
        (
            !is_for(volume, claim),
            bytes(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref())),
            volume.name().to_owned(),
        )
    };
    volumes.iter().filter(suits).min_by_key(rank).cloned()
}

/// The decision for a claim.
pub fn reconcile_claim(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    volumes: &[Arc<PersistentVolume>],
    now: Timestamp,
) -> Plan {
    let named = volumes.iter().find(|volume| volume.name() == volume_name(claim));
    if is_bound(claim) {
        return match named {
            Some(volume) if claim_reference(volume).is_none() || is_for(volume, claim) => bind(volume, claim, now),
            Some(_) => {
                lost(claim, "ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
            }
            None => lost(claim, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!"),
        };
    }
    if !volume_name(claim).is_empty() {
        return match named {
            Some(volume) if claim_reference(volume).is_none() || is_for(volume, claim) => bind(volume, claim, now),
            _ => pending(claim, None),
        };
    }
    let delayed = waits_for_consumer(class) && claim.annotation(SELECTED_NODE).is_none();
    if let Some(volume) = find(claim, volumes).filter(|volume| !delayed || claim_reference(volume).is_some()) {
        return bind(&volume, claim, now);
    }
    let say = |type_, reason, message: &str| Some(Action::event(reference(claim), type_, reason, message.to_owned()));
    match (class_name(claim), class) {
        _ if delayed => pending(
            claim,
            say(EventType::Normal, "WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        ),
        (None, _) => pending(
            claim,
            say(
                EventType::Normal,
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            ),
        ),
        (Some(name), None) => pending(
            claim,
            say(EventType::Warning, "ProvisioningFailed", &format!("storageclass.storage.k8s.io {name:?} not found")),
        ),
        (Some(_), Some(class)) if class.provisioner == NO_PROVISIONER => pending(claim, None),
        (Some(_), Some(class)) => ask(claim, &class.provisioner),
    }
}

/// Asks an external provisioner by annotation.
fn ask(claim: &PersistentVolumeClaim, provisioner: &str) -> Plan {
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
         administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
    );
    let mut plan = Plan::default();
    if claim.annotation(STORAGE_PROVISIONER) != Some(provisioner) {
        let annotations = json!({STORAGE_PROVISIONER: provisioner, BETA_STORAGE_PROVISIONER: provisioner});
        let told = Some((EventType::Normal, "ExternalProvisioning", message));
        plan.push(patch_claim(claim, "", json!({"metadata": {"annotations": annotations}})).tell(
            reference(claim),
            told,
            None,
        ));
    }
    plan
}

/// Tells the event the first time, together with the phase; the API gives new claims the phase Pending.
fn pending(claim: &PersistentVolumeClaim, event: Option<Action>) -> Plan {
    let mut plan = Plan::default();
    plan.steps.extend(event.map(super::plan::Step::One));
    if claim_phase(claim) != "Pending" {
        plan.push(patch_claim(claim, "status", json!({"status": {"phase": "Pending"}})));
    }
    plan
}

fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn lost(claim: &PersistentVolumeClaim, reason: &'static str, message: &str) -> Plan {
    let mut plan = Plan::default();
    if claim_phase(claim) != "Lost" {
        let told = Some((EventType::Warning, reason, message.to_owned()));
        let patch = json!({"status": {"phase": "Lost", "accessModes": null, "capacity": null}});
        plan.push(patch_claim(claim, "status", patch).tell(reference(claim), told, None));
    }
    plan
}

fn patch_claim(claim: &PersistentVolumeClaim, subresource: &'static str, mut patch: Value) -> Action {
    patch["metadata"]["uid"] = claim.uid().into();
    Action::patch(gvr::<PersistentVolumeClaim>(), Key::of(claim), subresource, Patch::Merge(patch))
}

fn patch_volume(volume: &PersistentVolume, subresource: &'static str, mut patch: Value) -> Action {
    patch["metadata"]["uid"] = volume.uid().into();
    Action::patch(gvr::<PersistentVolume>(), Key::of(volume), subresource, Patch::Merge(patch))
}

/// Changes the status of this state of a volume only: it may have been bound since.
fn patch_seen_volume(volume: &PersistentVolume, mut patch: Value) -> Action {
    patch["metadata"]["resourceVersion"] = volume.metadata.resource_version.clone().into();
    patch_volume(volume, "status", patch)
}

/// Volume first, claim second, each with its status; what is done already is left out.
fn bind(volume: &PersistentVolume, claim: &PersistentVolumeClaim, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &volume.spec else { return plan };
    let known = claim_reference(volume).filter(|known| known.uid.as_deref() == Some(claim.uid()));
    if known.is_none() {
        let target = json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": claim.namespace(),
            "name": claim.name(), "uid": claim.uid(), "resourceVersion": claim.metadata.resource_version});
        let mut patch =
            json!({"spec": {"claimRef": target}, "metadata": {"resourceVersion": volume.metadata.resource_version}});
        if claim_reference(volume).is_none() {
            patch["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
        }
        plan.push(patch_volume(volume, "", patch));
    }
    if volume_phase(volume) != "Bound" {
        plan.push(patch_volume(volume, "status", phase_patch("Bound", now)));
    }
    let mut change = json!({});
    if volume_name(claim) != volume.name() {
        change["spec"]["volumeName"] = volume.name().into();
        change["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
    }
    if claim.annotation(BIND_COMPLETED).is_none() {
        change["metadata"]["annotations"][BIND_COMPLETED] = "yes".into();
    }
    if change != json!({}) {
        plan.push(patch_claim(claim, "", change));
    }
    // Later the capacity is told by whoever makes a bound claim's volume larger.
    if claim_phase(claim) != "Bound" {
        let status = json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity});
        plan.push(patch_claim(claim, "status", json!({"status": status})));
    }
    plan
}

fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// `status.phase` with the time at which it came.
fn phase_patch(phase: &str, now: Timestamp) -> Value {
    json!({"status": {"phase": phase, "lastPhaseTransitionTime": rfc3339(now)}})
}

/// The decision for a volume; `claim` is what its `claimRef` names, if that is there.
pub fn reconcile_volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let reference_uid = claim_reference(volume).and_then(|reference| reference.uid.as_deref()).unwrap_or_default();
    let phase = match (claim_reference(volume), claim) {
        (None, _) => "Available",
        // Reserved by its maker for a claim that has not taken it yet.
        (Some(_), _) if reference_uid.is_empty() => "Available",
        (Some(_), Some(claim)) if claim.uid() == reference_uid => {
            if volume_name(claim) != volume.name() {
                return plan; // the claim's reconcile completes or refuses the binding
            }
            "Bound"
        }
        (Some(_), _) => "Released",
    };
    let told = |type_, reason, message: String| Some((type_, reason, message));
    match (volume_phase(volume), phase) {
        ("Released", "Released") => {
            if let Some((reason, message)) = reclaim_failure(volume) {
                let mut patch = phase_patch("Failed", now);
                patch["status"]["message"] = message.as_str().into();
                let told = told(EventType::Warning, reason, message);
                plan.push(patch_seen_volume(volume, patch).tell(reference(volume), told, None));
            }
        }
        (known, wanted) if known == wanted => {}
        ("Failed", "Released") => {}
        _ => {
            if let Some(key) = claim_key(volume).filter(|_| phase == "Released") {
                // The claims' cache may be behind the volumes': what is released may be deleted.
                let (gvr, uid) = (gvr::<PersistentVolumeClaim>(), reference_uid.to_owned());
                plan.push(Action::write(Write::ExpectAbsent { gvr, key, uid }));
            }
            plan.push(patch_seen_volume(volume, phase_patch(phase, now)));
        }
    }
    plan
}

/// Why a released volume cannot be reclaimed as its policy says: nobody here can do it.
fn reclaim_failure(volume: &PersistentVolume) -> Option<(&'static str, String)> {
    match volume.spec.as_ref()?.persistent_volume_reclaim_policy.as_deref()? {
        "Recycle" => Some(("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned())),
        // What a provisioner made, it takes back.
        "Delete" if volume.annotation(PROVISIONED_BY).is_none() => {
            let why = "no deletable volume plugin matched";
            let name = volume.name();
            Some(("VolumeFailedDelete", format!("error getting deleter volume plugin for volume {name:?}: {why}")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn volume(name: &str, size: &str, change: impl FnOnce(&mut Value)) -> Arc<PersistentVolume> {
        let mut value = json!({"metadata": {"name": name, "uid": name}, "spec": {"capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"], "storageClassName": "standard"}, "status": {"phase": "Available"}});
        change(&mut value);
        Arc::new(PersistentVolume::parse(&value).expect("a volume"))
    }

    fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
        let mut value = json!({"metadata": {"name": "c", "namespace": "a", "uid": "u"}, "spec": {"storageClassName": "standard",
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Pending"}});
        change(&mut value);
        PersistentVolumeClaim::parse(&value).expect("a claim")
    }

    fn class(mode: &str) -> StorageClass {
        let value = json!({"metadata": {"name": "standard"}, "provisioner": "k8s.io/minikube-hostpath", "volumeBindingMode": mode});
        StorageClass::parse(&value).expect("a class")
    }

    fn reasons(plan: &Plan) -> Vec<&'static str> {
        plan.actions().filter_map(|action| action.told.as_ref()?.success.as_ref().map(|words| words.1)).collect()
    }

    fn targets(plan: &Plan) -> Vec<String> {
        let patched = plan.actions().filter_map(|action| match &action.write {
            Write::Patch { key, subresource, .. } => Some(format!("{key} {subresource}").trim().to_owned()),
            _ => None,
        });
        patched.collect()
    }

    #[test]
    fn the_smallest_volume_that_suits_is_bound() {
        let volumes = [
            volume("big", "10Gi", |_| {}),
            volume("fits", "2Gi", |_| {}),
            volume("small", "1Mi", |_| {}),
            volume("other", "1Gi", |volume| volume["spec"]["storageClassName"] = "fast".into()),
            volume("taken", "1Gi", |volume| {
                volume["spec"]["claimRef"] = json!({"namespace": "a", "name": "x", "uid": "y"})
            }),
        ];
        let plan = reconcile_claim(&claim(|_| {}), Some(&class("Immediate")), &volumes, NOW);
        assert_eq!(targets(&plan), ["fits", "fits status", "a/c", "a/c status"]);
    }

    #[test]
    fn claims_wait_for_their_consumer_or_ask_the_provisioner() {
        let waiting = reconcile_claim(&claim(|_| {}), Some(&class("WaitForFirstConsumer")), &[], NOW);
        assert_eq!(reasons(&waiting), ["WaitForFirstConsumer"]);
        let selected = claim(|claim| claim["metadata"]["annotations"] = json!({SELECTED_NODE: "n"}));
        assert_eq!(
            reasons(&reconcile_claim(&selected, Some(&class("WaitForFirstConsumer")), &[], NOW)),
            ["ExternalProvisioning"]
        );
        assert_eq!(
            reasons(&reconcile_claim(&claim(|_| {}), Some(&class("Immediate")), &[], NOW)),
            ["ExternalProvisioning"]
        );
        let none = claim(|claim| claim["spec"]["storageClassName"] = "".into());
        assert_eq!(reasons(&reconcile_claim(&none, None, &[], NOW)), ["FailedBinding"]);
    }

    #[test]
    fn volumes_are_released_and_claims_lost() {
        let bound = volume("v", "1Gi", |volume| {
            volume["spec"]["claimRef"] = json!({"namespace": "a", "name": "c", "uid": "u"});
            volume["status"]["phase"] = "Bound".into();
        });
        let mine = claim(|claim| {
            claim["spec"]["volumeName"] = "v".into();
            claim["metadata"]["annotations"] = json!({BIND_COMPLETED: "yes"});
            claim["status"] =
                json!({"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}});
        });
        assert!(reconcile_volume(&bound, Some(&mine), NOW).is_empty());
        assert!(reconcile_claim(&mine, None, &[bound.clone()], NOW).is_empty());
        assert_eq!(targets(&reconcile_volume(&bound, None, NOW)), ["v status"]);
        assert_eq!(reasons(&reconcile_claim(&mine, None, &[], NOW)), ["ClaimLost"]);
    }

    #[test]
    fn what_nobody_can_reclaim_fails() {
        let released = |policy: &str, by: Option<&str>| {
            let volume = volume("v", "1Gi", |volume| {
                volume["spec"]["claimRef"] = json!({"namespace": "a", "name": "gone", "uid": "u"});
                volume["spec"]["persistentVolumeReclaimPolicy"] = policy.into();
                volume["metadata"]["annotations"] = by.map_or(json!(null), |by| json!({PROVISIONED_BY: by}));
                volume["status"]["phase"] = "Released".into();
            });
            reasons(&reconcile_volume(&volume, None, NOW))
        };
        assert_eq!(released("Retain", None), Vec::<&str>::new());
        assert_eq!(released("Recycle", None), ["VolumeFailedRecycle"]);
        assert_eq!(released("Delete", None), ["VolumeFailedDelete"]);
        assert_eq!(released("Delete", Some("k8s.io/minikube-hostpath")), Vec::<&str>::new());
    }

    #[test]
    fn a_volume_that_is_being_deleted_is_released_too() {
        let leaving = volume("v", "1Gi", |volume| {
            volume["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            volume["spec"]["claimRef"] = json!({"namespace": "a", "name": "gone", "uid": "u"});
            volume["status"]["phase"] = "Bound".into();
        });
        assert_eq!(targets(&reconcile_volume(&leaving, None, NOW)), ["v status"]);
    }
}
