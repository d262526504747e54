//! Containers must not ask for root.

use super::{Check, Forbidden, Level, Pod, Revision, setters};

pub(super) const CHECK: Check = Check {
    id: "runAsUser",
    level: Level::Restricted,
    revisions: &[
        Revision { since: 23, overrides: None, forbids: since_23 },
        Revision { since: 35, overrides: None, forbids: since_35 },
    ],
};

fn since_23(pod: &Pod<'_>) -> Option<Forbidden> {
    let bad = pod.containers_where(|c| c["securityContext"]["runAsUser"] == 0);
    setters(pod.security()["runAsUser"] == 0, &bad)
        .map(|setters| Forbidden { reason: "runAsUser=0", detail: format!("{setters} must not set runAsUser=0") })
}

fn since_35(pod: &Pod<'_>) -> Option<Forbidden> {
    if pod.has_user_namespace() { None } else { since_23(pod) }
}
