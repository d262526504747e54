//! Pods must not share namespaces with their node.

use super::{Check, Forbidden, Level, Pod, Revision};

pub(super) const CHECK: Check = Check {
    id: "hostNamespaces",
    level: Level::Baseline,
    revisions: &[Revision { since: 0, overrides: None, forbids }],
};

fn forbids(pod: &Pod<'_>) -> Option<Forbidden> {
    let shared: Vec<_> = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|f| pod.spec[*f] == true).collect();
    (!shared.is_empty()).then(|| Forbidden {
        reason: "host namespaces",
        detail: shared.iter().map(|field| format!("{field}=true")).collect::<Vec<_>>().join(", "),
    })
}
