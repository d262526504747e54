//! Secrets.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::config_map::{MAX_SIZE, decoded_length, locked};
use super::defaulting::{ensure_object, set_text};
use super::pod::config_key_messages;
use super::{gvr, namespaced};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{self, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::{Errors, immutable, invalid_all};

const REDACTED: &str = "<secret contents redacted>";

/// The kind.
pub fn kind() -> Kind {
    namespaced(gvr::SECRETS, "Secret", Arc::new(Secrets))
}

struct Secrets;

impl Strategy for Secrets {
    fn default(&self, object: &mut Value) {
        // stringData is only a way to write data.
        let plain = object.as_object_mut().and_then(|map| map.remove("stringData"));
        if let Some(data) = plain.as_ref().and_then(Value::as_object).filter(|plain| !plain.is_empty()) {
            if let Some(target) = ensure_object(object, "data").and_then(Value::as_object_mut) {
                for (key, value) in data {
                    target.insert(key.clone(), STANDARD.encode(text(value)).into());
                }
            }
        }
        set_text(object, "type", "Opaque");
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let mut size = 0;
        for (key, value) in object["data"].as_object().into_iter().flatten() {
            invalid_all(&mut errors, &format!("data[{key}]"), &key.as_str().into(), config_key_messages(key));
            size += decoded_length(value);
        }
        if size > MAX_SIZE {
            errors.push(FieldError::too_long("data", MAX_SIZE));
        }
        let missing = |key: &str| object["data"][key].is_null();
        let required = |errors: &mut Errors, key: &str| {
            if missing(key) {
                errors.push(FieldError::required(format!("data[{key}]"), ""));
            }
        };
        match text(&object["type"]) {
            "kubernetes.io/service-account-token" => {
                let annotation = "kubernetes.io/service-account.name";
                if meta::annotation(object, annotation).unwrap_or_default().is_empty() {
                    errors.push(FieldError::required(format!("metadata.annotations[{annotation}]"), ""));
                }
            }
            "kubernetes.io/dockercfg" => docker_config(&mut errors, object, ".dockercfg"),
            "kubernetes.io/dockerconfigjson" => docker_config(&mut errors, object, ".dockerconfigjson"),
            "kubernetes.io/basic-auth" if missing("username") && missing("password") => {
                required(&mut errors, "username");
                required(&mut errors, "password");
            }
            "kubernetes.io/ssh-auth" => {
                if object["data"]["ssh-privatekey"].as_str().is_none_or(str::is_empty) {
                    errors.push(FieldError::required("data[ssh-privatekey]", ""));
                }
            }
            "kubernetes.io/tls" => {
                required(&mut errors, "tls.crt");
                required(&mut errors, "tls.key");
            }
            _ => {}
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable(&mut errors, "type", &object["type"], &old["type"]);
        locked(&mut errors, object, old, &["data"]);
        errors.extend(self.validate(object));
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Type",
                "string",
                "Used to facilitate programmatic handling of secret data. More info: \
                 https://kubernetes.io/docs/concepts/configuration/secret/#secret-types",
            ),
            column(
                "Data",
                "string",
                "Data contains the secret data. Each key must consist of alphanumeric characters, '-', '_' or '.'. The \
                 serialized form of the secret data is a base64 encoded string, representing the arbitrary (possibly \
                 non-string) data value here. Described in https://tools.ietf.org/html/rfc4648#section-4",
            ),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let count = object["data"].as_object().map_or(0, |data| data.len());
        vec![name(object), object["type"].clone(), count.into(), age(object, now)]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("type", text(&object["type"]).to_owned())]
    }

    fn knows_field(&self, field: &str) -> bool {
        field == "type"
    }
}

fn docker_config(errors: &mut Errors, object: &Value, key: &str) {
    let path = format!("data[{key}]");
    let Some(encoded) = object["data"][key].as_str() else { return errors.push(FieldError::required(path, "")) };
    let decoded = STANDARD.decode(encoded).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&decoded) {
        errors.push(FieldError::invalid(path, &REDACTED.into(), &go_json_error(&decoded, &error)));
    }
}

/// The message of Go's decoder for the commonest mistakes.
fn go_json_error(bytes: &[u8], error: &serde_json::Error) -> String {
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
    match first {
        None => "unexpected end of JSON input".to_owned(),
        Some(b) if !b"{[\"-0123456789tfn".contains(b) => {
            format!("invalid character '{}' looking for beginning of value", *b as char)
        }
        _ if error.is_eof() => "unexpected end of JSON input".to_owned(),
        _ => error.to_string(),
    }
}
