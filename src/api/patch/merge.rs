//! JSON merge patch (RFC 7386).

use serde_json::{Map, Value, json};

use crate::api::Status;

/// Applies a merge patch.
///
/// # Errors
/// 422 when the patch of an object is not an object: what it would replace has no version and kind.
pub fn merge(object: &mut Value, patch: &Value) -> Result<(), Status> {
    if !patch.is_object() {
        return Err(no_object(patch));
    }
    apply(object, patch);
    Ok(())
}

/// What kube-apiserver says when it decodes the result.
fn no_object(patch: &Value) -> Status {
    let what = match patch {
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        _ => "number",
    };
    let value = Value::from(patch.to_string());
    let message = format!(
        "Invalid value: {value}: couldn't get version/kind; json parse error: json: cannot unmarshal {what} into Go value \
         of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \
         \"json:\\\"kind,omitempty\\\"\" }}"
    );
    let mut status = Status::new(422, "Invalid", format!(" \"\" is invalid: patch: {message}"));
    status.details = json!({"causes": [{"reason": "FieldValueInvalid", "message": message, "field": "patch"}]});
    status
}

fn apply(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let map = target.as_object_mut().expect("it was just made an object");
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            apply(map.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}
