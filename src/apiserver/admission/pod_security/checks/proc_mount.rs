//! What the runtime masks in /proc stays masked; baseline lets go of it where the pod has users of its own.

use std::collections::BTreeSet;

use super::{Check, Forbidden, Level, Pod, Revision, containers, quoted};

pub(super) const BASELINE: Check = Check {
    id: "procMount",
    level: Level::Baseline,
    revisions: &[
        Revision { since: 0, overrides: None, forbids: since_0 },
        Revision { since: 35, overrides: None, forbids: baseline_since_35 },
    ],
};

pub(super) const RESTRICTED: Check = Check {
    id: "procMount_restricted",
    level: Level::Restricted,
    revisions: &[Revision { since: 35, overrides: Some(BASELINE.id), forbids: since_0 }],
};

fn since_0(pod: &Pod<'_>) -> Option<Forbidden> {
    let mut types = BTreeSet::new();
    let bad = pod.containers_where(|c| {
        let mount = c["securityContext"]["procMount"].as_str().filter(|mount| *mount != "Default");
        types.extend(mount);
        mount.is_some()
    });
    (!bad.is_empty()).then(|| Forbidden {
        reason: "procMount",
        detail: format!("{} must not set securityContext.procMount to {}", containers(&bad), quoted(types)),
    })
}

fn baseline_since_35(pod: &Pod<'_>) -> Option<Forbidden> {
    if pod.has_user_namespace() { None } else { since_0(pod) }
}
