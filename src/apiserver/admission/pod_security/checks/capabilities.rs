//! Capabilities: baseline adds none beyond the runtime's defaults; restricted drops all and may add one.

use std::collections::BTreeSet;

use super::{Check, Forbidden, Level, Pod, Revision, containers, quoted};
use crate::api::meta::{items, text};

pub(super) const BASELINE: Check = Check {
    id: "capabilities_baseline",
    level: Level::Baseline,
    revisions: &[Revision { since: 0, overrides: None, forbids: baseline }],
};

pub(super) const RESTRICTED: Check = Check {
    id: "capabilities_restricted",
    level: Level::Restricted,
    revisions: &[
        Revision { since: 22, overrides: Some(BASELINE.id), forbids: restricted_since_22 },
        Revision { since: 25, overrides: Some(BASELINE.id), forbids: restricted_since_25 },
    ],
};

const DEFAULTS: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// `containers "a" must not include "X" in securityContext.capabilities.add`, for what is added beyond `allowed`.
fn added_beyond(pod: &Pod<'_>, allowed: &[&str]) -> Option<String> {
    let mut forbidden = BTreeSet::new();
    let bad = pod.containers_where(|c| {
        let added = items(&c["securityContext"]["capabilities"]["add"]).iter().map(text);
        let before: Vec<&str> = added.filter(|c| !allowed.contains(c)).collect();
        forbidden.extend(before.iter().copied());
        !before.is_empty()
    });
    (!bad.is_empty()).then(|| {
        format!("{} must not include {} in securityContext.capabilities.add", containers(&bad), quoted(forbidden))
    })
}

fn baseline(pod: &Pod<'_>) -> Option<Forbidden> {
    added_beyond(pod, &DEFAULTS).map(|detail| Forbidden { reason: "non-default capabilities", detail })
}

fn restricted_since_22(pod: &Pod<'_>) -> Option<Forbidden> {
    let keeping = pod.containers_where(|c| {
        !items(&c["securityContext"]["capabilities"]["drop"]).iter().any(|dropped| dropped == "ALL")
    });
    let keeps = (!keeping.is_empty())
        .then(|| format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    let adds = added_beyond(pod, &["NET_BIND_SERVICE"]);
    let details: Vec<String> = keeps.into_iter().chain(adds).collect();
    (!details.is_empty()).then(|| Forbidden { reason: "unrestricted capabilities", detail: details.join("; ") })
}

fn restricted_since_25(pod: &Pod<'_>) -> Option<Forbidden> {
    if pod.is_windows() { None } else { restricted_since_22(pod) }
}
