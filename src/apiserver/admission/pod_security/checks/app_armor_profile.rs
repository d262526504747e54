//! AppArmor profiles may be the runtime's default or one that the node has loaded, not none.

use std::collections::BTreeSet;

use super::{Check, Forbidden, Level, Pod, Revision, containers, plural, quoted};
use crate::api::app_armor::ANNOTATION_PREFIX;
use crate::api::meta::text;

pub(super) const CHECK: Check = Check {
    id: "appArmorProfile",
    level: Level::Baseline,
    revisions: &[Revision { since: 0, overrides: None, forbids }],
};

fn forbids(pod: &Pod<'_>) -> Option<Forbidden> {
    let mut setters = Vec::new();
    let mut types = BTreeSet::new();
    let mut is_bad = |security: &serde_json::Value| {
        let profile = &security["appArmorProfile"];
        let is_bad = profile.is_object() && !["RuntimeDefault", "Localhost"].contains(&text(&profile["type"]));
        if is_bad {
            types.insert(text(&profile["type"]).to_owned());
        }
        is_bad
    };
    if is_bad(pod.security()) {
        setters.push("pod".to_owned());
    }
    let bad = pod.containers_where(|c| is_bad(&c["securityContext"]));
    if !bad.is_empty() {
        setters.push(containers(&bad));
    }
    let annotations: BTreeSet<String> = pod.metadata["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| key.starts_with(ANNOTATION_PREFIX) && !is_allowed(text(value)))
        .map(|(key, value)| format!("{key}={:?}", text(value)))
        .collect();
    if !annotations.is_empty() {
        setters.push(plural(annotations.len(), "annotation", "annotations").to_owned());
    }
    let values: Vec<String> = types.into_iter().chain(annotations).collect();
    (!setters.is_empty()).then(|| Forbidden {
        reason: plural(values.len(), "forbidden AppArmor profile", "forbidden AppArmor profiles"),
        detail: format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quoted(values)),
    })
}

fn is_allowed(annotation: &str) -> bool {
    annotation.is_empty() || annotation == "runtime/default" || annotation.starts_with("localhost/")
}
