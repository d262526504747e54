//! Where an object holds a pod: itself, or the template of a workload.

use serde_json::Value;

use crate::api::Kind;

/// The kinds that hold a pod, with the path of what has its `metadata` and `spec` (`DefaultPodSpecExtractor`).
const HOLDERS: [(&str, &str, &str); 9] = [
    ("", "pods", ""),
    ("", "podtemplates", "/template"),
    ("", "replicationcontrollers", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "replicasets", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
    ("batch", "jobs", "/spec/template"),
];

/// The path of the pod in objects of a kind; `None` when they hold none.
pub(super) fn path(kind: &Kind) -> Option<&'static str> {
    let found = HOLDERS.iter().find(|(group, resource, _)| kind.gvr.group == *group && kind.gvr.resource == *resource);
    found.map(|(.., path)| *path)
}

/// The pod in an object of a kind.
pub(super) fn of<'a>(kind: &Kind, object: &'a Value) -> Option<&'a Value> {
    object.pointer(path(kind)?).filter(|template| template.is_object())
}
