//! Containers must give up the way to more privileges (set-user-ID programs).

use super::{Check, Forbidden, Level, Pod, Revision, containers};

pub(super) const CHECK: Check = Check {
    id: "allowPrivilegeEscalation",
    level: Level::Restricted,
    revisions: &[
        Revision { since: 8, overrides: None, forbids: since_8 },
        Revision { since: 25, overrides: None, forbids: since_25 },
    ],
};

fn since_8(pod: &Pod<'_>) -> Option<Forbidden> {
    let bad = pod.containers_where(|c| c["securityContext"]["allowPrivilegeEscalation"] != false);
    (!bad.is_empty()).then(|| Forbidden {
        reason: "allowPrivilegeEscalation != false",
        detail: format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&bad)),
    })
}

fn since_25(pod: &Pod<'_>) -> Option<Forbidden> {
    if pod.is_windows() { None } else { since_8(pod) }
}
