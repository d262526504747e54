//! The Pod Security Standards: one file per control, each with its versions (`k8s.io/pod-security-admission/policy` of v1.35).

mod allow_privilege_escalation;
mod app_armor_profile;
mod capabilities;
mod host_namespaces;
mod host_path_volumes;
mod host_ports;
mod host_probes;
mod privileged;
mod proc_mount;
mod restricted_volumes;
mod run_as_non_root;
mod run_as_user;
mod se_linux_options;
mod seccomp_profile;
mod sysctls;
#[cfg(test)]
mod tests;
mod windows_host_process;

use std::collections::BTreeSet;

use serde_json::Value;

pub(super) use seccomp_profile::container_annotation as seccomp_container_annotation;

use super::policy::{Level, LevelVersion, Version};
use crate::api::meta::{items, text};

/// A control of a standard.
pub(super) struct Check {
    /// Its name in Kubernetes.
    pub id: &'static str,
    /// The standard that it belongs to; restricted has those of baseline too.
    pub level: Level,
    /// Its revisions, the oldest first.
    pub revisions: &'static [Revision],
}

/// What a control says from a release on.
pub(super) struct Revision {
    /// The first minor release that it applies to.
    pub since: u64,
    /// The control of baseline that it replaces where it applies.
    pub overrides: Option<&'static str>,
    /// What forbids the pod, if anything does.
    pub forbids: fn(&Pod<'_>) -> Option<Forbidden>,
}

/// All controls in the order in which Kubernetes tells of them: baseline, then restricted, each by name.
const ALL: [&Check; 19] = [
    &app_armor_profile::CHECK,
    &capabilities::BASELINE,
    &host_namespaces::CHECK,
    &host_path_volumes::CHECK,
    &host_ports::CHECK,
    &host_probes::CHECK,
    &privileged::CHECK,
    &proc_mount::BASELINE,
    &se_linux_options::CHECK,
    &seccomp_profile::BASELINE,
    &sysctls::CHECK,
    &windows_host_process::CHECK,
    &allow_privilege_escalation::CHECK,
    &capabilities::RESTRICTED,
    &proc_mount::RESTRICTED,
    &restricted_volumes::CHECK,
    &run_as_non_root::CHECK,
    &run_as_user::CHECK,
    &seccomp_profile::RESTRICTED,
];

/// Why a control forbids a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forbidden {
    /// In a few words: all that is said about the pods of a whole namespace.
    pub reason: &'static str,
    /// With names and values.
    pub detail: String,
}

/// What checks look at: a pod, or the template of one.
pub(super) struct Pod<'a> {
    /// Its metadata.
    pub metadata: &'a Value,
    /// Its spec.
    pub spec: &'a Value,
}

impl<'a> Pod<'a> {
    /// Init containers, containers and ephemeral containers.
    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| items(&self.spec[list]))
    }

    /// The names of the containers of which something holds.
    fn containers_where(&self, mut holds: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| holds(c)).map(|c| text(&c["name"])).collect()
    }

    /// The pod's own security context.
    fn security(&self) -> &'a Value {
        &self.spec["securityContext"]
    }

    /// Whether it is a pod of Windows, which fields of Linux do not concern.
    fn is_windows(&self) -> bool {
        self.spec["os"]["name"] == "windows"
    }

    /// Whether its root is not the node's (`hostUsers: false`, KEP-127).
    fn has_user_namespace(&self) -> bool {
        self.spec["hostUsers"] == false
    }
}

/// Everything that a standard forbids about a pod.
pub(super) fn evaluate(standard: LevelVersion, pod: &Pod<'_>) -> Violations {
    let applicable: Vec<(&Check, &Revision)> = ALL
        .into_iter()
        .filter(|check| check.level <= standard.level)
        .filter_map(|check| {
            let revision = check.revisions.iter().rev().find(|r| Version::Minor(r.since) <= standard.version)?;
            Some((check, revision))
        })
        .collect();
    let overridden: BTreeSet<&str> = applicable.iter().filter_map(|(_, revision)| revision.overrides).collect();
    let kept = applicable.into_iter().filter(|(check, _)| !overridden.contains(check.id));
    Violations(kept.filter_map(|(_, revision)| (revision.forbids)(pod)).collect())
}

/// What a standard forbids about a pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violations(Vec<Forbidden>);

impl Violations {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The reasons alone.
    pub fn reasons(&self) -> String {
        self.0.iter().map(|f| f.reason).collect::<Vec<_>>().join(", ")
    }

    /// The reasons with their details.
    pub fn details(&self) -> String {
        self.0.iter().map(|f| format!("{} ({})", f.reason, f.detail)).collect::<Vec<_>>().join(", ")
    }
}

/// `"a", "b"`.
fn quoted<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    names.into_iter().map(|name| format!("\"{}\"", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// One of two words.
fn plural(count: usize, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`.
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural(names.len(), "container", "containers"), quoted(names))
}

/// `pod and containers "a", "b"`: who set something that they must not.
fn setters(pod: bool, names: &[&str]) -> Option<String> {
    match (pod, names.is_empty()) {
        (false, true) => None,
        (true, true) => Some("pod".to_owned()),
        (false, false) => Some(containers(names)),
        (true, false) => Some(format!("pod and {}", containers(names))),
    }
}
