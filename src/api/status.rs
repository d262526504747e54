//! `metav1.Status`: the one error type at the API, with Kubernetes' reasons and messages.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::kind::Gvr;

/// The result of an API operation.
pub type StatusResult<T> = Result<T, Status>;

/// A failure as `metav1.Status` says it (API conventions, "Response Status Kind").
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// A machine-readable reason such as `NotFound`; empty where Kubernetes gives none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The message for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// `metav1.StatusDetails`, or null.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub details: Value,
    /// `metadata.continue`: how to go on with a list whose own token has expired.
    #[serde(skip)]
    pub continue_token: String,
}

/// One invalid field (`field.Error` of apimachinery).
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// `FieldValueInvalid`, `FieldValueRequired`, `FieldValueDuplicate`, `FieldValueForbidden`,
    /// `FieldValueNotFound`, `FieldValueNotSupported`, `FieldValueTooLong`, `FieldValueTooMany`.
    pub reason: &'static str,
    /// The path, such as `spec.containers[0].name`.
    pub field: String,
    /// What follows the path in the message: `Invalid value: "x": must be …`, `Required value`, ….
    pub message: String,
}

impl FieldError {
    /// `Invalid value: <value>: <detail>`.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self { reason: "FieldValueInvalid", field: field.into(), message: format!("Invalid value: {value}: {detail}") }
    }
    /// `Required value[: <detail>]`.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message = if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }
    /// `Duplicate value: <value>`.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self { reason: "FieldValueDuplicate", field: field.into(), message: format!("Duplicate value: {value}") }
    }
    /// `Forbidden: <detail>`.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), message: format!("Forbidden: {detail}") }
    }
    /// `Not found: <value>`.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self { reason: "FieldValueNotFound", field: field.into(), message: format!("Not found: {value}") }
    }
    /// `Unsupported value: <value>: supported values: "a", "b"`.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let supported = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        let message = format!("Unsupported value: {value}: supported values: {supported}");
        Self { reason: "FieldValueNotSupported", field: field.into(), message }
    }
    /// `Too long: may not be more than <max> bytes`.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self {
            reason: "FieldValueTooLong",
            field: field.into(),
            message: format!("Too long: may not be more than {max} bytes"),
        }
    }
    /// `Too many: <actual>: must have at most <max> items`.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        let message = format!("Too many: {actual}: must have at most {max} items");
        Self { reason: "FieldValueTooMany", field: field.into(), message }
    }
}

impl Status {
    /// A status with a code, reason and message, and no details.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            details: Value::Null,
            continue_token: String::new(),
        }
    }

    /// 404: `pods "a" not found`.
    pub fn not_found(gvr: &Gvr, name: &str) -> Self {
        Self::about(404, "NotFound", gvr, name, format!("{} {name:?} not found", gvr.qualified()))
    }
    /// 409: `pods "a" already exists`.
    pub fn already_exists(gvr: &Gvr, name: &str) -> Self {
        Self::about(409, "AlreadyExists", gvr, name, format!("{} {name:?} already exists", gvr.qualified()))
    }
    /// 409: `Operation cannot be fulfilled on pods "a": <why>`.
    pub fn conflict(gvr: &Gvr, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", gvr.qualified());
        Self::about(409, "Conflict", gvr, name, message)
    }
    /// The conflict of an update that carried an old resourceVersion.
    pub fn modified(gvr: &Gvr, name: &str) -> Self {
        Self::conflict(
            gvr,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }
    /// 403: `pods "a" is forbidden: <why>`.
    pub fn forbidden(gvr: &Gvr, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", gvr.qualified())
        } else {
            format!("{} {name:?} is forbidden: {why}", gvr.qualified())
        };
        Self::about(403, "Forbidden", gvr, name, message)
    }
    /// 422: `Pod "a" is invalid: spec.x: Required value`, all errors listed when there are several.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        // The same error twice is two causes, but is said once.
        let mut texts: Vec<String> = Vec::new();
        for text in errors.iter().map(|e| format!("{}: {}", e.field, e.message)) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let texts = if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) };
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let causes: Vec<Value> =
            errors.iter().map(|e| json!({"reason": e.reason, "message": e.message, "field": e.field})).collect();
        let mut details = json!({"causes": causes});
        if !kind.is_empty() {
            details["kind"] = kind.into();
        }
        if !name.is_empty() {
            details["name"] = name.into();
        }
        if !group.is_empty() {
            details["group"] = group.into();
        }
        let message = format!("{qualified} {name:?} is invalid: {texts}");
        Self { details, ..Self::new(422, "Invalid", message) }
    }
    /// 400 with reason `BadRequest`.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }
    /// 410 with reason `Expired`: a watch or continue token older than what is kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }
    /// 500 with reason `InternalError`: `Internal error occurred: <why>`.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let mut status = Self::new(500, "InternalError", format!("Internal error occurred: {why}"));
        status.details = json!({"causes": [{"message": why.to_string()}]});
        status
    }

    /// Whether the object was not there.
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }
    /// Whether an update lost against another (reason `Conflict`).
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }
    /// Whether a create found the name taken.
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    /// The whole `Status` object as the API answers it.
    pub fn to_object(&self) -> Value {
        let mut object = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"});
        if !self.continue_token.is_empty() {
            object["metadata"]["continue"] = self.continue_token.as_str().into();
        }
        if !self.message.is_empty() {
            object["message"] = self.message.as_str().into();
        }
        if !self.reason.is_empty() {
            object["reason"] = self.reason.as_str().into();
        }
        if !self.details.is_null() {
            object["details"] = self.details.clone();
        }
        object["code"] = self.code.into();
        object
    }

    fn about(code: u16, reason: &str, gvr: &Gvr, name: &str, message: String) -> Self {
        let mut details = serde_json::Map::new();
        if !name.is_empty() {
            details.insert("name".into(), name.into());
        }
        if !gvr.group.is_empty() {
            details.insert("group".into(), gvr.group.as_ref().into());
        }
        details.insert("kind".into(), gvr.resource.as_ref().into());
        Self { details: Value::Object(details), ..Self::new(code, reason, message) }
    }
}
