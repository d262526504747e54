//! Probes and lifecycle hooks must not make the kubelet connect to other hosts.

use std::collections::BTreeSet;

use super::{Check, Forbidden, Level, Pod, Revision, containers, plural, quoted};
use crate::api::meta::text;

pub(super) const CHECK: Check = Check {
    id: "hostProbesAndHostLifecycle",
    level: Level::Baseline,
    revisions: &[Revision { since: 34, overrides: None, forbids }],
};

fn forbids(pod: &Pod<'_>) -> Option<Forbidden> {
    let mut hosts = BTreeSet::new();
    let bad: BTreeSet<&str> = pod
        .containers_where(|c| {
            let handlers = ["livenessProbe", "readinessProbe", "startupProbe"].map(|probe| &c[probe]);
            let hooks = ["postStart", "preStop"].map(|hook| &c["lifecycle"][hook]);
            let asked: Vec<&str> = handlers
                .into_iter()
                .chain(hooks)
                .flat_map(|handler| ["httpGet", "tcpSocket"].map(|way| text(&handler[way]["host"])))
                .filter(|host| !host.is_empty())
                .collect();
            hosts.extend(asked.iter().copied());
            !asked.is_empty()
        })
        .into_iter()
        .collect();
    let bad: Vec<&str> = bad.into_iter().collect();
    (!bad.is_empty()).then(|| Forbidden {
        reason: "probe or lifecycle host",
        detail: format!(
            "{} {} {} {}",
            containers(&bad),
            plural(bad.len(), "uses", "use"),
            plural(hosts.len(), "probe or lifecycle host", "probe or lifecycle hosts"),
            quoted(hosts),
        ),
    })
}
