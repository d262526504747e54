//! ControllerRevisions: the templates that a StatefulSet or DaemonSet has had (`pkg/controller/history`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use super::ownership::controller_reference;
use super::plan::Action;
use crate::api::kinds::pod::update::same;
use crate::client::typed::{Meta, Typed, to_value};

/// The label on pods that names the revision of which they were made.
pub const REVISION_LABEL: &str = "controller-revision-hash";

/// Letters of hashes: no vowels, and nothing that is taken for something else.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// The oldest first.
pub fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    let order = |revision: &Arc<ControllerRevision>| {
        let created = revision.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (revision.revision, created, revision.name().to_owned())
    };
    revisions.sort_by_cached_key(order);
}

/// The strategic patch that brings a template back: what a revision stores.
pub fn patch(template: &PodTemplateSpec) -> Value {
    let mut template = to_value(template);
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template that a revision stores; `None` when it stores something else.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let stored = revision.data.as_ref()?.0["spec"].get("template")?;
    serde_json::from_value(stored.clone()).ok()
}

/// Whether the revision stores this template, however it is written down.
pub fn stores(revision: &ControllerRevision, wanted: &PodTemplateSpec) -> bool {
    template(revision).is_some_and(|stored| same(&to_value(&stored), &to_value(wanted)))
}

/// The hash of a patch and the number of collisions so far, as Kubernetes computes it for a StatefulSet: FNV-1 of the
/// JSON as Go writes it, in letters.
pub fn hash(patch: &Value, collisions: i32) -> String {
    // Go escapes these in strings; they stand nowhere else in JSON.
    let text = patch.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let text = text.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    let bytes = text.bytes().chain(collisions.to_string().into_bytes());
    encode(bytes.fold(0x811c_9dc5, |hash: u32, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(byte)))
}

/// A number in letters (`SafeEncodeString`).
fn encode(number: u32) -> String {
    number.to_string().bytes().map(|digit| LETTERS[usize::from(digit) % LETTERS.len()] as char).collect()
}

/// The first name that is free, counting collisions up from `collisions`; names of revisions that are about to go are
/// not free either.
pub fn free_name(
    neighbours: &[Arc<ControllerRevision>],
    collisions: i32,
    name: impl Fn(i32) -> String,
) -> (String, i32) {
    let taken: BTreeSet<&str> = neighbours.iter().map(|revision| revision.name()).collect();
    let mut count = collisions;
    loop {
        let candidate = name(count);
        if !taken.contains(&*candidate) {
            return (candidate, count);
        }
        count += 1;
    }
}

/// A new revision of `owner` that stores the template. It has the owner's annotations and the template's labels.
pub fn build<O: Typed>(
    owner: &O,
    name: String,
    hash_label: (&str, String),
    template: &PodTemplateSpec,
    number: i64,
) -> ControllerRevision {
    let from = template.metadata.as_ref().and_then(|metadata| metadata.labels.clone());
    let mut labels: BTreeMap<String, String> = from.unwrap_or_default();
    labels.insert(hash_label.0.into(), hash_label.1);
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: owner.metadata().namespace.clone(),
            labels: Some(labels),
            annotations: owner.metadata().annotations.clone(),
            owner_references: Some(vec![controller_reference(owner)]),
            ..Default::default()
        },
        data: Some(RawExtension(patch(template))),
        revision: number,
    }
}

/// The revision with another number.
pub fn renumbered(revision: &ControllerRevision, number: i64) -> ControllerRevision {
    ControllerRevision { revision: number, ..revision.clone() }
}

/// Deletes the oldest of `old` beyond `limit`; those that are in use do not count as history where `count_live` is
/// false, and are never deleted.
pub fn truncate(
    old: &[Arc<ControllerRevision>],
    limit: Option<i32>,
    is_live: impl Fn(&ControllerRevision) -> bool,
    count_live: bool,
) -> Vec<Action> {
    // A negative limit keeps everything.
    let Ok(limit) = usize::try_from(limit.unwrap_or(10)) else { return Vec::new() };
    let (live, rest): (Vec<_>, Vec<_>) = old.iter().partition(|revision| is_live(revision));
    let count = if count_live { live.len() + rest.len() } else { rest.len() };
    rest.into_iter().take(count.saturating_sub(limit)).map(|revision| Action::delete(&**revision)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;

    fn template_with(image: &str) -> PodTemplateSpec {
        let value = json!({"metadata": {"annotations": {"test": "value"}, "labels": {"app": "foo"}},
            "spec": {"containers": [{"image": image, "imagePullPolicy": "Always", "name": "test", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {}, "terminationGracePeriodSeconds": 30}});
        serde_json::from_value(value).expect("a template")
    }

    fn revision(name: &str, number: i64, data: Value) -> Arc<ControllerRevision> {
        let value = json!({"metadata": {"name": name, "uid": name}, "revision": number, "data": data});
        Arc::new(ControllerRevision::parse(&value).expect("a revision"))
    }

    #[test]
    fn hashes_are_those_of_kubernetes() {
        // The name `test-776999688b` of Kubernetes 1.34 for this template (its test of compatibility).
        assert_eq!(hash(&patch(&template_with("test")), 0), "776999688b");
        assert_ne!(hash(&patch(&template_with("test")), 1), "776999688b");
    }

    #[test]
    fn what_differs_only_in_writing_is_the_same() {
        let mut data = patch(&template_with("test"));
        data["spec"]["template"]["metadata"]["creationTimestamp"] = Value::Null;
        data["spec"]["template"]["spec"]["volumes"] = json!([]);
        let stored = revision("r", 1, data);
        assert!(stores(&stored, &template_with("test")));
        assert!(!stores(&stored, &template_with("other")));
        assert!(!stores(&revision("r", 1, json!({"spec": 1})), &template_with("test")));
    }

    #[test]
    fn collisions_are_counted_until_a_name_is_free() {
        let taken = [revision("web-0", 1, Value::Null), revision("web-1", 1, Value::Null)];
        assert_eq!(free_name(&taken, 0, |count| format!("web-{count}")), ("web-2".into(), 2));
    }

    #[test]
    fn history_is_cut_at_its_old_end() {
        let mut all: Vec<_> = (1..=5).rev().map(|n| revision(&format!("r{n}"), n, Value::Null)).collect();
        sort(&mut all);
        let cut = |limit: i32, count_live: bool| {
            let actions = truncate(&all, Some(limit), |revision| revision.name() == "r1", count_live);
            let names = actions.into_iter().map(|action| match action.write {
                super::super::plan::Write::Delete { key, .. } => key.name,
                other => panic!("not a delete: {other:?}"),
            });
            names.collect::<Vec<_>>()
        };
        assert_eq!(cut(2, false), ["r2", "r3"]);
        assert_eq!(cut(2, true), ["r2", "r3", "r4"]);
        assert_eq!(cut(0, false), ["r2", "r3", "r4", "r5"]);
        assert!(cut(-1, false).is_empty());
    }
}
