//! What the server itself writes into CertificateSigningRequests: who asked, and when conditions changed
//! (`pkg/registry/certificates/certificates/strategy.go`).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::User;
use super::registry::update::Part;
use crate::api::Kind;
use crate::api::kinds::gvr::CERTIFICATE_SIGNING_REQUESTS;
use crate::env::rfc3339;

/// Writes the user into a new request, over whatever the client says.
pub(crate) fn note_requester(kind: &Kind, object: &mut Value, user: &User) {
    if kind.gvr != CERTIFICATE_SIGNING_REQUESTS {
        return;
    }
    let Some(spec) = object["spec"].as_object_mut() else { return };
    ["username", "uid", "groups", "extra"].iter().for_each(|field| drop(spec.remove(*field)));
    spec.insert("username".into(), user.name.as_str().into());
    if !user.uid.is_empty() {
        spec.insert("uid".into(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        spec.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
}

/// Gives conditions their times. Whoever issues does not change what was approved.
pub(crate) fn fill_conditions(kind: &Kind, object: &mut Value, old: &Value, part: Part, now: Timestamp) {
    if kind.gvr != CERTIFICATE_SIGNING_REQUESTS || part == Part::Main {
        return;
    }
    let of = |object: &Value, kind: &str| -> Vec<Value> {
        let all = object["status"]["conditions"].as_array().into_iter().flatten();
        all.filter(|c| c["type"] == kind).cloned().collect()
    };
    if part == Part::Status {
        for lasting in ["Approved", "Denied"] {
            let kept = of(old, lasting);
            if kept.len() != of(object, lasting).len() {
                continue;
            }
            let conditions = object["status"]["conditions"].as_array_mut().into_iter().flatten();
            conditions.filter(|c| c["type"] == lasting).zip(kept).for_each(|(condition, kept)| *condition = kept);
        }
    }
    for condition in object["status"]["conditions"].as_array_mut().into_iter().flatten().filter(|c| c.is_object()) {
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = rfc3339(now).into();
        }
        if condition["lastTransitionTime"].is_null() {
            let before = of(old, condition["type"].as_str().unwrap_or_default());
            let same =
                before.iter().find(|c| c["status"] == condition["status"] && c["lastTransitionTime"].is_string());
            condition["lastTransitionTime"] =
                same.map_or_else(|| rfc3339(now).into(), |c| c["lastTransitionTime"].clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requester_is_who_asks_and_times_are_the_servers() {
        let kind = crate::api::kinds::certificate_signing_request::kind();
        let mut object = json!({"spec": {"username": "somebody else", "uid": "x", "groups": ["system:masters"]}});
        note_requester(&kind, &mut object, &User::new("jane", &["readers"]));
        assert_eq!(object["spec"], json!({"username": "jane", "groups": ["readers"]}));
        let old = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Fine",
            "lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let mut new = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Mine"},
            {"type": "Failed", "status": "True"}]}});
        let now = "2026-01-02T00:00:00Z".parse().expect("a time");
        fill_conditions(&kind, &mut new, &old, Part::Status, now);
        assert_eq!(new["status"]["conditions"][0], old["status"]["conditions"][0]);
        assert_eq!(new["status"]["conditions"][1]["lastUpdateTime"], "2026-01-02T00:00:00Z");
    }
}
