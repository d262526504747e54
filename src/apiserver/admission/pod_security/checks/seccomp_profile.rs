//! Seccomp profiles: baseline forbids to switch them off, restricted requires one.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Check, Forbidden, Level, Pod, Revision, containers, plural, quoted, setters};
use crate::api::meta::text;

pub(super) const BASELINE: Check = Check {
    id: "seccompProfile_baseline",
    level: Level::Baseline,
    revisions: &[
        Revision { since: 0, overrides: None, forbids: annotations },
        Revision { since: 19, overrides: None, forbids: baseline_since_19 },
    ],
};

pub(super) const RESTRICTED: Check = Check {
    id: "seccompProfile_restricted",
    level: Level::Restricted,
    revisions: &[
        Revision { since: 19, overrides: Some(BASELINE.id), forbids: restricted_since_19 },
        Revision { since: 25, overrides: Some(BASELINE.id), forbids: restricted_since_25 },
    ],
};

const REASON: &str = "seccompProfile";
const POD_ANNOTATION: &str = "seccomp.security.alpha.kubernetes.io/pod";

/// The annotation of a container.
pub(in super::super) fn container_annotation(container: &str) -> String {
    format!("container.seccomp.security.alpha.kubernetes.io/{container}")
}

fn annotations(pod: &Pod<'_>) -> Option<Forbidden> {
    let keys = pod.containers().map(|c| container_annotation(text(&c["name"])));
    let forbidden: BTreeSet<String> = [POD_ANNOTATION.to_owned()]
        .into_iter()
        .chain(keys)
        .filter_map(|key| {
            let value = pod.metadata["annotations"][&key].as_str()?;
            let allowed = ["runtime/default", "docker/default"].contains(&value) || value.starts_with("localhost/");
            (!allowed).then(|| format!("{key}={value:?}"))
        })
        .collect();
    (!forbidden.is_empty()).then(|| Forbidden {
        reason: REASON,
        detail: format!(
            "forbidden {} {}",
            plural(forbidden.len(), "annotation", "annotations"),
            forbidden.into_iter().collect::<Vec<_>>().join(", ")
        ),
    })
}

/// Whether a security context names a profile, and the type if it is a wrong one.
fn profile(security: &Value) -> (bool, Option<&str>) {
    let profile = &security["seccompProfile"];
    let wrong = profile.is_object() && !["RuntimeDefault", "Localhost"].contains(&text(&profile["type"]));
    (profile.is_object(), wrong.then(|| text(&profile["type"])))
}

fn baseline_since_19(pod: &Pod<'_>) -> Option<Forbidden> {
    let (_, wrong) = profile(pod.security());
    let mut values: BTreeSet<&str> = wrong.into_iter().collect();
    let bad = pod.containers_where(|c| {
        let (_, wrong) = profile(&c["securityContext"]);
        values.extend(wrong);
        wrong.is_some()
    });
    setters(wrong.is_some(), &bad).map(|setters| Forbidden {
        reason: REASON,
        detail: format!("{setters} must not set securityContext.seccompProfile.type to {}", quoted(values)),
    })
}

fn restricted_since_19(pod: &Pod<'_>) -> Option<Forbidden> {
    if let Some(forbidden) = baseline_since_19(pod) {
        return Some(forbidden);
    }
    let (of_pod, _) = profile(pod.security());
    let bad = pod.containers_where(|c| !of_pod && !profile(&c["securityContext"]).0);
    (!bad.is_empty()).then(|| Forbidden {
        reason: REASON,
        detail: format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers(&bad)
        ),
    })
}

fn restricted_since_25(pod: &Pod<'_>) -> Option<Forbidden> {
    if pod.is_windows() { None } else { restricted_since_19(pod) }
}
