//! Containers must be required to run as another user than root.

use super::{Check, Forbidden, Level, Pod, Revision, containers, setters};

pub(super) const CHECK: Check = Check {
    id: "runAsNonRoot",
    level: Level::Restricted,
    revisions: &[
        Revision { since: 0, overrides: None, forbids: since_0 },
        Revision { since: 35, overrides: None, forbids: since_35 },
    ],
};

fn since_0(pod: &Pod<'_>) -> Option<Forbidden> {
    const REASON: &str = "runAsNonRoot != true";
    let of_pod = &pod.security()["runAsNonRoot"];
    let explicit = pod.containers_where(|c| c["securityContext"]["runAsNonRoot"] == false);
    if let Some(setters) = setters(*of_pod == false, &explicit) {
        let detail = format!("{setters} must not set securityContext.runAsNonRoot=false");
        return Some(Forbidden { reason: REASON, detail });
    }
    let implicit = pod.containers_where(|c| c["securityContext"]["runAsNonRoot"].is_null() && *of_pod != true);
    (!implicit.is_empty()).then(|| Forbidden {
        reason: REASON,
        detail: format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&implicit)),
    })
}

fn since_35(pod: &Pod<'_>) -> Option<Forbidden> {
    if pod.has_user_namespace() { None } else { since_0(pod) }
}
