//! Validators that several kinds share, with the field paths and messages of Kubernetes' own validation.

use serde_json::Value;

use super::meta::text;
use super::status::FieldError;

pub mod diff;
pub mod meta;
pub mod net;
pub mod selector;

/// The errors found so far.
pub type Errors = Vec<FieldError>;

/// `field is immutable`.
pub const IMMUTABLE: &str = "field is immutable";

/// One `Invalid value` error for each message.
pub fn invalid_all(errors: &mut Errors, path: &str, value: &Value, messages: Vec<String>) {
    errors.extend(messages.iter().map(|message| FieldError::invalid(path, value, message)));
}

/// `must be greater than or equal to 0`.
pub fn non_negative(errors: &mut Errors, path: &str, value: &Value) {
    if value.as_i64().is_some_and(|number| number < 0) {
        errors.push(FieldError::invalid(path, value, "must be greater than or equal to 0"));
    }
}

/// One of the values; an empty one is `Required value`.
pub fn one_of(errors: &mut Errors, path: &str, value: &Value, supported: &[&str]) {
    if text(value).is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        one_of_or_unset(errors, path, value, supported);
    }
}

/// One of the values, or absent.
pub fn one_of_or_unset(errors: &mut Errors, path: &str, value: &Value, supported: &[&str]) {
    if !value.is_null() && !supported.contains(&text(value)) {
        errors.push(FieldError::not_supported(path, value, supported));
    }
}

/// Not empty.
pub fn required(errors: &mut Errors, path: &str, value: &Value) {
    if text(value).is_empty() {
        errors.push(FieldError::required(path, ""));
    }
}

/// Unchanged since `old` (`ValidateImmutableField`).
pub fn immutable(errors: &mut Errors, path: &str, value: &Value, old: &Value) {
    if value != old {
        errors.push(FieldError::invalid(path, value, IMMUTABLE));
    }
}
