//! The ReplicaSets of a Deployment: which is the new one, revisions, annotations, the template's hash.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::math::{DESIRED_ANNOTATION, MAX_ANNOTATION, max_surge, replicas};
use crate::client::typed::{Meta, to_value};
use crate::controllers::ownership::controller_reference;

/// The label that tells the pods of one revision from another's.
pub const HASH_LABEL: &str = "pod-template-hash";
/// The revision that a set stands for.
pub const REVISION_ANNOTATION: &str = "deployment.kubernetes.io/revision";
/// The revisions that a set stood for before.
const HISTORY_ANNOTATION: &str = "deployment.kubernetes.io/revision-history";
/// The history keeps at most this many characters.
const LONGEST_HISTORY: usize = 2000;
/// Annotations that sets do not inherit.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION_ANNOTATION,
    HISTORY_ANNOTATION,
    DESIRED_ANNOTATION,
    MAX_ANNOTATION,
    "deprecated.deployment.rollback.to",
];

/// `(creationTimestamp, name)`: the order of age.
pub fn age(set: &ReplicaSet) -> (Option<jiff::Timestamp>, String) {
    (set.metadata.creation_timestamp.as_ref().map(|time| time.0), set.name().to_owned())
}

/// The revision of a set; 0 when it has none.
pub fn revision(set: &ReplicaSet) -> i64 {
    set.annotation(REVISION_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The oldest set whose template is the Deployment's, its hash aside (`FindNewReplicaSet`).
pub fn find_new(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Option<Arc<ReplicaSet>> {
    let template = &deployment.spec.as_ref()?.template;
    let same = |set: &&Arc<ReplicaSet>| {
        let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        own.is_some_and(|own| equal_but_for_hash(own, template))
    };
    sets.iter().filter(same).min_by_key(|set| age(set)).cloned()
}

fn equal_but_for_hash(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let bare = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(labels) = template.metadata.as_mut().and_then(|metadata| metadata.labels.as_mut()) {
            labels.remove(HASH_LABEL);
        }
        let empty = |metadata: &ObjectMeta| {
            metadata.labels.as_ref().is_none_or(BTreeMap::is_empty)
                && metadata.annotations.as_ref().is_none_or(BTreeMap::is_empty)
        };
        if template.metadata.as_ref().is_some_and(empty) {
            template.metadata = None;
        }
        if let Some(metadata) = &mut template.metadata {
            metadata.labels = metadata.labels.take().filter(|labels| !labels.is_empty());
            metadata.annotations = metadata.annotations.take().filter(|annotations| !annotations.is_empty());
            metadata.creation_timestamp = None;
        }
        template
    };
    a.spec == b.spec && bare(a) == bare(b)
}

/// The hash of a template (FNV-1a, 32 bits, in the letters of generated names); a collision count changes it.
pub fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = to_value(template).to_string().into_bytes();
    bytes.extend(collisions.into_iter().flat_map(i32::to_le_bytes));
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let digits = hash.to_string();
    digits.bytes().map(|digit| LETTERS[usize::from(digit) % LETTERS.len()] as char).collect()
}

/// A new set for the Deployment's template, without annotations and replicas.
pub fn build(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name())),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// Copies annotations and writes the revision into a set. `exists`: the sizes are left to the scaling (`SetNewReplicaSetAnnotations`).
pub fn annotate_new(deployment: &Deployment, set: &mut ReplicaSet, new_revision: i64, exists: bool) {
    let old = set.annotation(REVISION_ANNOTATION).map(str::to_owned);
    let is_newer = revision(set) < new_revision;
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    if is_newer {
        annotations.insert(REVISION_ANNOTATION.into(), new_revision.to_string());
        if let Some(old) = old.filter(|old| !old.is_empty()) {
            let known = annotations.get(HISTORY_ANNOTATION).map(String::as_str).unwrap_or_default();
            let mut history: Vec<&str> = known.split(',').filter(|part| !part.is_empty()).collect();
            if !history.contains(&old.as_str()) {
                history.push(&old);
            }
            while history.len() > 1 && history.join(",").len() > LONGEST_HISTORY {
                history.remove(0);
            }
            let history = history.join(",");
            annotations.insert(HISTORY_ANNOTATION.into(), history);
        }
    }
    if !exists {
        annotate_sizes(deployment, set);
    }
    set.metadata.annotations = set.metadata.annotations.take().filter(|annotations| !annotations.is_empty());
}

/// Writes the wanted and the largest number of pods into a set (`SetReplicasAnnotations`).
pub fn annotate_sizes(deployment: &Deployment, set: &mut ReplicaSet) {
    let wanted = replicas(deployment);
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED_ANNOTATION.into(), wanted.to_string());
    annotations.insert(MAX_ANNOTATION.into(), (wanted.saturating_add(max_surge(deployment))).to_string());
}
