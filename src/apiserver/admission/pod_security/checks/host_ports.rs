//! Containers must not take ports of their node.

use std::collections::BTreeSet;

use super::{Check, Forbidden, Level, Pod, Revision, containers, plural};
use crate::api::meta::{items, number};

pub(super) const CHECK: Check =
    Check { id: "hostPorts", level: Level::Baseline, revisions: &[Revision { since: 0, overrides: None, forbids }] };

fn forbids(pod: &Pod<'_>) -> Option<Forbidden> {
    let mut ports = BTreeSet::new();
    let bad = pod.containers_where(|c| {
        let taken: Vec<i64> = items(&c["ports"]).iter().map(|p| number(&p["hostPort"])).filter(|p| *p != 0).collect();
        ports.extend(taken.iter().map(ToString::to_string));
        !taken.is_empty()
    });
    (!bad.is_empty()).then(|| Forbidden {
        reason: "hostPort",
        detail: format!(
            "{} {} {} {}",
            containers(&bad),
            plural(bad.len(), "uses", "use"),
            plural(ports.len(), "hostPort", "hostPorts"),
            ports.into_iter().collect::<Vec<_>>().join(", "),
        ),
    })
}
