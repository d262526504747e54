//! Windows pods must not be processes of their host.

use super::{Check, Forbidden, Level, Pod, Revision, setters};

pub(super) const CHECK: Check = Check {
    id: "windowsHostProcess",
    level: Level::Baseline,
    revisions: &[Revision { since: 0, overrides: None, forbids }],
};

fn forbids(pod: &Pod<'_>) -> Option<Forbidden> {
    let is_host = |security: &serde_json::Value| security["windowsOptions"]["hostProcess"] == true;
    let bad = pod.containers_where(|c| is_host(&c["securityContext"]));
    setters(is_host(pod.security()), &bad).map(|setters| Forbidden {
        reason: "hostProcess",
        detail: format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"),
    })
}
