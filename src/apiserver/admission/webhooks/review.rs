//! `AdmissionReview` v1: one call of a webhook and what its answer means.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::registrations::Hook;
use super::super::request::Request;
use super::Meant;
use crate::api::meta::{items, text};
use crate::api::{Kind, Status, StatusResult, patch};
use crate::apiserver::{ApiServer, outbound};
use crate::storage::Entry;

/// What a webhook said of a request that it allows.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The object as the webhook wants it (in the version that it was shown); none: as it is.
    pub object: Option<Value>,
    /// Texts for the user.
    pub warnings: Vec<String>,
    /// Audit annotations.
    pub annotations: Vec<(String, String)>,
}

/// Why a webhook did not allow a request.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It said no.
    Denied(Status),
    /// It could not be asked, or its answer is no answer: the failure policy decides.
    Failed(String),
}

/// Asks a webhook.
pub(super) async fn ask(
    server: &ApiServer,
    request: &Request<'_>,
    hook: &Hook,
    meant: &Meant,
    object: &Value,
    old: Option<&Value>,
) -> Result<Answer, Refusal> {
    if request.attributes.context.dry_run && !hook.dry_runs {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Refusal::Denied(Status::bad_request(why)));
    }
    if !hook.speaks_v1 {
        let why = "the server speaks AdmissionReview v1 only, which the webhook does not".to_owned();
        return Err(Refusal::Failed(why));
    }
    let shown: &Kind = match meant {
        Meant::As(kind) => kind,
        _ => request.attributes.kind,
    };
    let failed = |status: Status| Refusal::Failed(status.message);
    let (object, old) = match meant {
        Meant::As(kind) if !request.is_scale() => {
            let object = converted(server, kind, Some(object)).await.map_err(failed)?;
            (object.unwrap_or_default(), converted(server, kind, old).await.map_err(failed)?)
        }
        _ => (object.clone(), old.cloned()),
    };
    let mut described = request.described(server, shown);
    let uid = text(&described["uid"]).to_owned();
    described["object"] = object.clone();
    described["oldObject"] = old.unwrap_or_default();
    let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": described});
    let called = |why: String| Refusal::Failed(format!("failed to call webhook: {why}"));
    let target = hook.target.as_ref().map_err(|why| called(why.clone()))?;
    let answer = outbound::post(server, target, &review, hook.timeout).await.map_err(called)?;
    read(&hook.name, &answer, &uid, object)
}

/// An object in another version of its resource.
async fn converted(server: &ApiServer, kind: &Arc<Kind>, object: Option<&Value>) -> StatusResult<Option<Value>> {
    let Some(object) = object.filter(|object| object.is_object()) else { return Ok(None) };
    let entry = Arc::new(Entry::new(Arc::from(""), 0, object.to_string().into()));
    Ok(Some((*server.in_version(kind, entry).await?.value()).clone()))
}

/// What an answer means (`request.VerifyAdmissionResponse`, `errors.ToStatusErr`).
fn read(hook: &str, answer: &Value, uid: &str, object: Value) -> Result<Answer, Refusal> {
    if answer["kind"] != "AdmissionReview" || answer["apiVersion"] != "admission.k8s.io/v1" {
        let (version, kind) = (text(&answer["apiVersion"]), text(&answer["kind"]));
        let expected = "admission.k8s.io/v1, Kind=AdmissionReview";
        return Err(Refusal::Failed(format!(
            "received invalid webhook response: expected webhook response of {expected}, got {version}, Kind={kind}"
        )));
    }
    let response = &answer["response"];
    let invalid = |why: String| Err(Refusal::Failed(format!("received invalid webhook response: {why}")));
    if response.is_null() {
        return invalid("webhook response was absent".to_owned());
    }
    if response["uid"] != uid {
        return invalid(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
    }
    if response["allowed"] != true {
        return Err(Refusal::Denied(denied(hook, &response["status"])));
    }
    let (patch, patch_type) = (text(&response["patch"]), text(&response["patchType"]));
    match (patch, patch_type) {
        ("", "") => {}
        ("", _) => return invalid("webhook returned response.patchType but not response.patch".to_owned()),
        (_, "") => return invalid("webhook returned response.patch but not response.patchType".to_owned()),
        (_, "JSONPatch") => {}
        (_, other) => return invalid(format!("invalid value of response.patchType {other:?} returned")),
    }
    let object = match patch {
        "" => None,
        _ => Some(patched(object, patch).map_err(Refusal::Failed)?),
    };
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
    Ok(Answer {
        object,
        warnings: items(&response["warnings"]).iter().map(|warning| text(warning).to_owned()).collect(),
        annotations: annotations.map(|(key, value)| (key.clone(), text(value).to_owned())).collect(),
    })
}

fn patched(mut object: Value, encoded: &str) -> Result<Value, String> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded);
    let bytes = bytes.map_err(|error| format!("received undecodable patch in webhook response: {error}"))?;
    let operations: Value = serde_json::from_slice(&bytes)
        .map_err(|error| format!("received undecodable patch in webhook response: {error}"))?;
    if !object.is_object() {
        return Err(
            "admission webhook attempted to modify the object, which is not supported for this operation".to_owned()
        );
    }
    patch::json(&mut object, &operations).map_err(|status| status.message)?;
    Ok(object)
}

/// The status of a request that a webhook refused.
fn denied(hook: &str, result: &Value) -> Status {
    let by = format!("admission webhook {hook:?} denied the request");
    let message = match (text(&result["message"]), text(&result["reason"])) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = result["code"].as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400);
    let mut status = Status::new(code.unwrap_or(400), text(&result["reason"]), message);
    status.details = result["details"].clone();
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: Value) -> Value {
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
    }

    fn refused(response: Value) -> String {
        match read("h.example.com", &answer(response), "u", json!({"a": 1})) {
            Ok(answer) => format!("allowed: {answer:?}"),
            Err(Refusal::Denied(status)) => format!("{} {}", status.code, status.message),
            Err(Refusal::Failed(why)) => why,
        }
    }

    #[test]
    fn refusals_in_the_words_of_kubernetes() {
        let by = "admission webhook \"h.example.com\" denied the request";
        assert_eq!(refused(json!({"uid": "u", "allowed": false})), format!("400 {by} without explanation"));
        assert_eq!(
            refused(json!({"uid": "u", "allowed": false, "status": {"code": 403, "message": "because"}})),
            format!("403 {by}: because")
        );
        assert_eq!(
            refused(json!({"uid": "other", "allowed": true})),
            "received invalid webhook response: expected response.uid=\"u\", got \"other\""
        );
        assert_eq!(
            refused(json!({"uid": "u", "allowed": true, "patch": "W10="})),
            "received invalid webhook response: webhook returned response.patch but not response.patchType"
        );
    }

    #[test]
    fn patches_change_the_object() {
        use base64::Engine as _;
        let patch = base64::engine::general_purpose::STANDARD.encode(r#"[{"op": "add", "path": "/b", "value": 2}]"#);
        let response =
            json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": patch, "warnings": ["w"]});
        let answer = read("h", &answer(response), "u", json!({"a": 1})).expect("allowed");
        assert_eq!(answer.object, Some(json!({"a": 1, "b": 2})));
        assert_eq!(answer.warnings, ["w"]);
    }
}
