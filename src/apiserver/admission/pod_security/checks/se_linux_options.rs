//! SELinux: only types made for containers, no user and no role.

use std::collections::BTreeSet;

use super::{Check, Forbidden, Level, Pod, Revision, plural, quoted, setters};
use crate::api::meta::text;

pub(super) const CHECK: Check = Check {
    id: "seLinuxOptions",
    level: Level::Baseline,
    revisions: &[
        Revision { since: 0, overrides: None, forbids: |pod| beyond(pod, &SINCE_0) },
        Revision { since: 31, overrides: None, forbids: |pod| beyond(pod, &SINCE_31) },
    ],
};

const SINCE_0: [&str; 4] = ["", "container_t", "container_init_t", "container_kvm_t"];
const SINCE_31: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

fn beyond(pod: &Pod<'_>, allowed: &[&str]) -> Option<Forbidden> {
    let mut types = BTreeSet::new();
    let (mut user, mut role) = (false, false);
    let mut is_bad = |security: &serde_json::Value| {
        let options = &security["seLinuxOptions"];
        let bad_type = !allowed.contains(&text(&options["type"]));
        if bad_type {
            types.insert(text(&options["type"]).to_owned());
        }
        let (sets_user, sets_role) = (!text(&options["user"]).is_empty(), !text(&options["role"]).is_empty());
        user |= sets_user;
        role |= sets_role;
        bad_type || sets_user || sets_role
    };
    let of_pod = is_bad(pod.security());
    let bad = pod.containers_where(|c| is_bad(&c["securityContext"]));
    let setters = setters(of_pod, &bad)?;
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural(types.len(), "type", "types"), quoted(types)));
    }
    if user {
        data.push("user may not be set".to_owned());
    }
    if role {
        data.push("role may not be set".to_owned());
    }
    let detail = format!("{setters} set forbidden securityContext.seLinuxOptions: {}", data.join("; "));
    Some(Forbidden { reason: "seLinuxOptions", detail })
}
