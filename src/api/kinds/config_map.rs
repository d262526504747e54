//! ConfigMaps.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{gvr, names, namespaced, pod::config_key_messages};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::{Errors, invalid_all};

/// The limit of all values together, here and in Secrets (`MaxSecretSize`).
pub const MAX_SIZE: usize = 1024 * 1024;
const LOCKED: &str = "field is immutable when `immutable` is set";

/// The kind.
pub fn kind() -> Kind {
    Kind { short_names: names(&["cm"]), ..namespaced(gvr::CONFIG_MAPS, "ConfigMap", Arc::new(ConfigMaps)) }
}

struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let mut size = 0;
        for (key, value) in object["data"].as_object().into_iter().flatten() {
            let (path, name) = (format!("data[{key}]"), Value::from(key.as_str()));
            invalid_all(&mut errors, &path, &name, config_key_messages(key));
            if !object["binaryData"][key].is_null() {
                errors.push(FieldError::invalid(path, &name, "duplicate of key present in binaryData"));
            }
            size += value.as_str().map_or(0, str::len);
        }
        for (key, value) in object["binaryData"].as_object().into_iter().flatten() {
            invalid_all(&mut errors, &format!("binaryData[{key}]"), &key.as_str().into(), config_key_messages(key));
            size += decoded_length(value);
        }
        if size > MAX_SIZE {
            errors.push(FieldError::too_long("[]", MAX_SIZE));
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        locked(&mut errors, object, old, &["data", "binaryData"]);
        errors.extend(self.validate(object));
        errors
    }

    fn columns(&self) -> Vec<Column> {
        const DATA: &str = "Data contains the configuration data. Each key must consist of alphanumeric characters, \
            '-', \
            '_' or '.'. Values with non-UTF-8 byte sequences must use the BinaryData field. The keys stored in Data must \
            not overlap with the keys in the BinaryData field, this is enforced during validation process.";
        vec![name_column(), column("Data", "string", DATA), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let count = |field: &str| object[field].as_object().map_or(0, |map| map.len());
        vec![name(object), (count("data") + count("binaryData")).into(), age(object, now)]
    }
}

/// Nothing of an object that is `immutable` changes, nor that it is.
pub fn locked(errors: &mut Errors, object: &Value, old: &Value, fields: &[&str]) {
    if old["immutable"] != true {
        return;
    }
    if object["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", LOCKED));
    }
    for field in fields {
        if !super::pod::update::same(&object[*field], &old[*field]) {
            errors.push(FieldError::forbidden(*field, LOCKED));
        }
    }
}

/// How many bytes a base64 text stands for.
pub fn decoded_length(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count().min(text.len() / 4 * 3)
}
