//! Containers must not be privileged.

use super::{Check, Forbidden, Level, Pod, Revision, containers};

pub(super) const CHECK: Check =
    Check { id: "privileged", level: Level::Baseline, revisions: &[Revision { since: 0, overrides: None, forbids }] };

fn forbids(pod: &Pod<'_>) -> Option<Forbidden> {
    let bad = pod.containers_where(|c| c["securityContext"]["privileged"] == true);
    (!bad.is_empty()).then(|| Forbidden {
        reason: "privileged",
        detail: format!("{} must not set securityContext.privileged=true", containers(&bad)),
    })
}
