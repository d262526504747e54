//! Kernel parameters: only those that concern nobody but the pod.

use super::{Check, Forbidden, Level, Pod, Revision};
use crate::api::meta::{items, text};

pub(super) const CHECK: Check = Check {
    id: "sysctls",
    level: Level::Baseline,
    revisions: &[
        Revision { since: 0, overrides: None, forbids: |pod| beyond(pod, 5) },
        Revision { since: 27, overrides: None, forbids: |pod| beyond(pod, 6) },
        Revision { since: 29, overrides: None, forbids: |pod| beyond(pod, 10) },
        Revision { since: 32, overrides: None, forbids: |pod| beyond(pod, 12) },
    ],
};

/// In the order in which they were found safe.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

fn beyond(pod: &Pod<'_>, safe: usize) -> Option<Forbidden> {
    let asked = items(&pod.security()["sysctls"]).iter().map(|sysctl| text(&sysctl["name"]));
    let unsafe_ones: Vec<&str> = asked.filter(|name| !SAFE[..safe].contains(name)).collect();
    (!unsafe_ones.is_empty()).then(|| Forbidden { reason: "forbidden sysctls", detail: unsafe_ones.join(", ") })
}
