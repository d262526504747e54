//! The patch types of the API as pure functions: JSON patch, JSON merge patch, strategic merge patch, server-side apply.

mod apply;
mod field_set;
mod json;
pub mod managed_fields;
mod merge;
mod strategic;
mod typed;

pub use apply::apply;
pub use field_set::{Element, FieldSet};
pub use json::{MAX_OPERATIONS, json};
pub use managed_fields::Writer;
pub use merge::merge;
pub use strategic::strategic;

use serde_json::Value;

use super::Status;

/// A value as Go's `%v` prints it.
fn go_print(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_print).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_print(v))).collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

/// A plain Go error that reached the response: 500 without a reason.
fn plain_error(message: String) -> Status {
    Status::new(500, "", message)
}

#[cfg(test)]
mod apply_tests;
#[cfg(test)]
mod tests;
