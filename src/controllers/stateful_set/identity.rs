//! Who a pod of a StatefulSet is: ordinal, name, labels, host name, volumes and claims (`stateful_set_utils.go`).

use std::collections::BTreeMap;
use std::ops::Range;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::client::typed::Meta;
use crate::controllers::history::REVISION_LABEL;
use crate::controllers::pod_control;

/// The label that carries the pod's name, so that a Service can select one pod.
pub const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// The label that carries the pod's ordinal.
pub const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The name before the last dash, and the number behind it: `web-0` is number 0 of `web`. A number that would be
/// written otherwise (`web-00`) names nobody.
pub fn parent(pod: &str) -> Option<(&str, i64)> {
    let (parent, digits) = pod.rsplit_once('-')?;
    let ordinal: i32 = digits.parse().ok()?;
    (ordinal.to_string() == digits).then_some((parent, ordinal.into()))
}

/// The ordinal of a pod with this name in the set; `None` when the name is not one of the set's.
pub fn ordinal_in(set: &StatefulSet, pod: &str) -> Option<i64> {
    parent(pod).filter(|(parent, _)| *parent == set.name()).map(|(_, ordinal)| ordinal)
}

/// The ordinals that the set wants: `replicas` from `ordinals.start` on.
pub fn wanted(set: &StatefulSet) -> Range<i64> {
    let spec = set.spec.as_ref();
    let start: i64 = spec.and_then(|spec| spec.ordinals.as_ref()?.start).unwrap_or_default().into();
    let replicas: i64 = spec.and_then(|spec| spec.replicas).unwrap_or(1).into();
    start..start + replicas.max(0)
}

/// The name of the pod with this ordinal.
pub fn pod_name(set: &StatefulSet, ordinal: i64) -> String {
    format!("{}-{ordinal}", set.name())
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default()
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i64) -> String {
    format!("{}-{}-{ordinal}", template.name(), set.name())
}

/// The names of the claims of an ordinal, in the order of the templates.
pub fn claim_names(set: &StatefulSet, ordinal: i64) -> impl Iterator<Item = String> {
    templates(set).iter().map(move |template| claim_name(set, template, ordinal))
}

/// Whose claim this is, by its name.
pub fn claim_ordinal(set: &StatefulSet, claim: &str) -> Option<i64> {
    let (_, ordinal) = parent(claim)?;
    claim_names(set, ordinal).any(|name| name == claim).then_some(ordinal)
}

/// The claims that a pod with this ordinal needs (`getPersistentVolumeClaims`).
pub fn claims(set: &StatefulSet, ordinal: i64) -> Vec<PersistentVolumeClaim> {
    let selected = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    let claim = |template: &PersistentVolumeClaim| {
        let mut labels = template.labels().clone();
        labels.extend(selected.clone());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name(set, template, ordinal)),
                namespace: set.metadata.namespace.clone(),
                labels: Some(labels).filter(|labels| !labels.is_empty()),
                annotations: template.metadata.annotations.clone(),
                finalizers: template.metadata.finalizers.clone(),
                ..Default::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    templates(set).iter().map(claim).collect()
}

/// A new pod of the template, with the identity of `ordinal` (`newStatefulSetPod`).
pub fn new_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i64) -> Pod {
    let mut pod = pod_control::from_template(set, template);
    pod.metadata.name = Some(pod_name(set, ordinal));
    set_identity(&mut pod, ordinal);
    label(&mut pod, REVISION_LABEL, revision);
    let spec = pod.spec.get_or_insert_default();
    // These never change afterwards.
    spec.hostname = pod.metadata.name.clone();
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone()).filter(|name| !name.is_empty());
    set_storage(set, &mut pod, ordinal);
    pod
}

fn label(pod: &mut Pod, key: &str, value: &str) {
    let labels: &mut BTreeMap<String, String> = pod.metadata.labels.get_or_insert_default();
    labels.insert(key.into(), value.into());
}

/// Writes the labels of the identity into a pod (`updateIdentity`).
pub fn set_identity(pod: &mut Pod, ordinal: i64) {
    let name = pod.name().to_owned();
    label(pod, POD_NAME_LABEL, &name);
    label(pod, POD_INDEX_LABEL, &ordinal.to_string());
}

/// Whether a pod says itself who it is (`identityMatches`).
pub fn has_identity(pod: &Pod) -> bool {
    pod.labels().get(POD_NAME_LABEL).map(String::as_str) == Some(pod.name())
}

/// Puts the claims of the ordinal in the place of volumes with the names of their templates (`updateStorage`).
pub fn set_storage(set: &StatefulSet, pod: &mut Pod, ordinal: i64) {
    let spec = pod.spec.get_or_insert_default();
    let others = spec.volumes.take().unwrap_or_default();
    let is_claimed = |volume: &Volume| templates(set).iter().any(|template| template.name() == volume.name);
    let claimed = templates(set).iter().map(|template| Volume {
        name: template.name().to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(set, template, ordinal),
            read_only: None,
        }),
        ..Default::default()
    });
    let volumes: Vec<Volume> = claimed.chain(others.into_iter().filter(|volume| !is_claimed(volume))).collect();
    spec.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
}

/// Whether a pod has the volumes of its claims (`storageMatches`).
pub fn has_storage(set: &StatefulSet, pod: &Pod, ordinal: i64) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    templates(set).iter().all(|template| {
        let volume = volumes.iter().find(|volume| volume.name == template.name());
        let claim = volume.and_then(|volume| volume.persistent_volume_claim.as_ref());
        claim.is_some_and(|claim| claim.claim_name == claim_name(set, template, ordinal))
    })
}

/// The revision of which a pod was made; empty when it does not say.
pub fn revision(pod: &Pod) -> &str {
    pod.labels().get(REVISION_LABEL).map(String::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_stand_behind_the_last_dash() {
        assert_eq!(parent("web-0"), Some(("web", 0)));
        assert_eq!(parent("my-web-12"), Some(("my-web", 12)));
        for name in ["web", "web-", "web-x", "web-00", "web-+1", "web-99999999999"] {
            assert_eq!(parent(name), None, "{name}");
        }
    }
}
