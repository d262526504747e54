//! Pods must not mount directories of their node.

use super::{Check, Forbidden, Level, Pod, Revision, plural, quoted};
use crate::api::meta::{items, text};

pub(super) const CHECK: Check = Check {
    id: "hostPathVolumes",
    level: Level::Baseline,
    revisions: &[Revision { since: 0, overrides: None, forbids }],
};

fn forbids(pod: &Pod<'_>) -> Option<Forbidden> {
    let volumes = items(&pod.spec["volumes"]).iter().filter(|v| v["hostPath"].is_object());
    let names: Vec<&str> = volumes.map(|v| text(&v["name"])).collect();
    (!names.is_empty()).then(|| Forbidden {
        reason: "hostPath volumes",
        detail: format!("{} {}", plural(names.len(), "volume", "volumes"), quoted(names)),
    })
}
