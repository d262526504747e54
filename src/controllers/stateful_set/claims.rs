//! Who owns the claims of a StatefulSet: `persistentVolumeClaimRetentionPolicy` as owner references (KEP-1847).

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::client::typed::{Meta, Typed};
use crate::controllers::ownership::controller_reference;

/// When claims go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// With the set.
    pub with_set: bool,
    /// With a pod that is scaled away.
    pub with_pod: bool,
}

impl Policy {
    /// The set's policy; without one all claims stay.
    pub fn of(set: &StatefulSet) -> Self {
        let policy = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
        let deletes = |word: Option<&String>| word.map(String::as_str) == Some("Delete");
        Self {
            with_set: deletes(policy.and_then(|policy| policy.when_deleted.as_ref())),
            with_pod: deletes(policy.and_then(|policy| policy.when_scaled.as_ref())),
        }
    }
    /// Whether the set owns the claims of a pod that is, or is not, scaled away.
    fn set_owns(self, scaled_away: bool) -> bool {
        self.with_set && !(self.with_pod && scaled_away)
    }
    /// Whether the pod owns its claims.
    fn pod_owns(self, scaled_away: bool) -> bool {
        self.with_pod && scaled_away
    }
}

/// The owners of a claim that is made for a pod that stays.
pub fn first_owners(set: &StatefulSet) -> Option<Vec<OwnerReference>> {
    Policy::of(set).set_owns(false).then(|| vec![controller_reference(set)])
}

fn names<O: Typed>(reference: &OwnerReference, object: &O) -> bool {
    reference.api_version == O::API_VERSION && reference.kind == O::KIND && reference.name == object.name()
}

/// Whether the claim belongs to an earlier object with the name of `owner`: then it is not touched.
pub fn is_stale<O: Typed>(claim: &PersistentVolumeClaim, owner: &O) -> bool {
    claim.owners().iter().find(|reference| names(reference, owner)).is_some_and(|found| found.uid != owner.uid())
}

fn has_owner<O: Typed>(claim: &PersistentVolumeClaim, owner: &O) -> bool {
    claim.owners().iter().any(|reference| reference.uid == owner.uid())
}

/// What is to be done about the owners of a claim.
#[derive(Debug, PartialEq)]
pub struct Correction {
    /// The owners as they should be.
    pub owners: Vec<OwnerReference>,
    /// Somebody else controls the claim, so the policy does not hold for it.
    pub is_conflict: bool,
}

/// Brings the owners of a pod's claim in line with the policy; `None` when they are, or when it is not the set's to
/// touch them (`isClaimOwnerUpToDate`, `updateClaimOwnerRefForSetAndPod`).
pub fn correction(
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod: &Pod,
    scaled_away: bool,
) -> Option<Correction> {
    if is_stale(claim, set) || is_stale(claim, pod) {
        return None;
    }
    let policy = Policy::of(set);
    let ours = |reference: &OwnerReference| names(reference, set) || names(reference, pod);
    let keeps_all = !policy.with_set && !policy.with_pod;
    let is_foreign = |reference: &OwnerReference| reference.controller == Some(true) && !ours(reference);
    let is_conflict = !keeps_all && claim.owners().iter().any(is_foreign);
    let (by_set, by_pod) = (has_owner(claim, set), has_owner(claim, pod));
    let is_current = if is_conflict {
        !by_set && !by_pod
    } else {
        let mine = |reference: &&OwnerReference| reference.uid == set.uid() || reference.uid == pod.uid();
        let controlled = claim.owners().iter().filter(mine).all(|reference| reference.controller == Some(true));
        controlled && by_set == policy.set_owns(scaled_away) && by_pod == policy.pod_owns(scaled_away)
    };
    if is_current {
        return None;
    }
    let mut owners: Vec<_> = claim.owners().iter().filter(|reference| !ours(reference)).cloned().collect();
    if !is_conflict {
        owners.extend(policy.set_owns(scaled_away).then(|| controller_reference(set)));
        owners.extend(policy.pod_owns(scaled_away).then(|| controller_reference(pod)));
    }
    Some(Correction { owners, is_conflict })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use serde_json::{Value, json};

    fn set(policy: Value) -> StatefulSet {
        let value = json!({"metadata": {"name": "web", "namespace": "a", "uid": "set"},
            "spec": {"selector": {}, "template": {}, "persistentVolumeClaimRetentionPolicy": policy}});
        StatefulSet::parse(&value).expect("a set")
    }

    fn reference(kind: &str, name: &str, uid: &str) -> Value {
        let version = if kind == "StatefulSet" { "apps/v1" } else { "v1" };
        json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true,
            "blockOwnerDeletion": true})
    }

    /// The uids of the owners after the correction, or what `None` means.
    fn check(policy: Value, owners: Value, scaled_away: bool, expected: Option<&[&str]>) {
        let claim = json!({"metadata": {"name": "www-web-0", "namespace": "a", "ownerReferences": owners}});
        let claim = PersistentVolumeClaim::parse(&claim).expect("a claim");
        let pod = Pod::parse(&json!({"metadata": {"name": "web-0", "namespace": "a", "uid": "pod"}})).expect("a pod");
        let corrected = correction(&claim, &set(policy.clone()), &pod, scaled_away);
        let uids = corrected.map(|c| c.owners.into_iter().map(|owner| owner.uid).collect::<Vec<_>>());
        let expected = expected.map(|uids| uids.iter().map(|uid| (*uid).to_owned()).collect());
        assert_eq!(uids, expected, "{policy} {owners} {scaled_away}");
    }

    #[test]
    fn each_policy_has_its_owners() {
        let by_set = json!([reference("StatefulSet", "web", "set")]);
        let by_pod = json!([reference("Pod", "web-0", "pod")]);
        let retain = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
        check(retain.clone(), json!([]), true, None);
        check(retain, by_set.clone(), false, Some(&[]));
        let with_set = json!({"whenDeleted": "Delete", "whenScaled": "Retain"});
        check(with_set.clone(), json!([]), false, Some(&["set"]));
        check(with_set, by_set.clone(), true, None);
        let with_pod = json!({"whenDeleted": "Retain", "whenScaled": "Delete"});
        check(with_pod.clone(), json!([]), false, None);
        check(with_pod.clone(), json!([]), true, Some(&["pod"]));
        check(with_pod, by_pod.clone(), false, Some(&[]));
        let both = json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
        check(both.clone(), json!([]), false, Some(&["set"]));
        check(both.clone(), by_set, true, Some(&["pod"]));
        check(both, by_pod, false, Some(&["set"]));
    }

    #[test]
    fn claims_of_others_are_left_alone() {
        let both = json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
        // Owners of the same name that are gone: the garbage collector decides.
        check(both.clone(), json!([reference("StatefulSet", "web", "earlier")]), false, None);
        check(both.clone(), json!([reference("Pod", "web-0", "earlier")]), false, None);
        // Another controller: our own references go.
        let other = reference("Backup", "nightly", "other");
        check(both.clone(), json!([other]), false, None);
        let mixed = json!([reference("Backup", "nightly", "other"), reference("StatefulSet", "web", "set")]);
        check(both, mixed, false, Some(&["other"]));
    }

    #[test]
    fn an_owner_that_does_not_control_is_replaced() {
        let mut weak = reference("StatefulSet", "web", "set");
        weak["controller"] = Value::Null;
        check(json!({"whenDeleted": "Delete"}), json!([weak]), false, Some(&["set"]));
    }
}
