//! References from environment variables and volumes to fields, resources and keys.

use serde_json::Value;

use crate::api::meta::text;
use crate::api::status::FieldError;
use crate::api::validation::meta::{label_name, qualified_name_messages};
use crate::api::validation::{Errors, invalid_all, required};

/// All paths that the downward API can convert.
const KNOWN_FIELDS: [&str; 15] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "spec.host",
];

const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// The path and the key of `metadata.labels['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

/// `fieldRef`, whose plain paths must be among `allowed`.
pub fn field_selector(errors: &mut Errors, selector: &Value, path: &str, allowed: &[&str]) {
    if text(&selector["apiVersion"]).is_empty() {
        return errors.push(FieldError::required(format!("{path}.apiVersion"), ""));
    }
    let (field, path) = (&selector["fieldPath"], format!("{path}.fieldPath"));
    if text(field).is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    let convert = |detail: String| FieldError::invalid(&path, field, &format!("error converting fieldPath: {detail}"));
    if text(&selector["apiVersion"]) != "v1" {
        return errors.push(convert(format!("unsupported pod version: {}", text(&selector["apiVersion"]))));
    }
    match subscript(text(field)) {
        Some(("metadata.annotations", key)) => {
            invalid_all(errors, &path, &key.into(), qualified_name_messages(&key.to_lowercase()));
        }
        Some(("metadata.labels", key)) => errors.extend(label_name(key, &path)),
        Some((other, _)) => errors.push(convert(format!("field label does not support subscript: {other}"))),
        None if !KNOWN_FIELDS.contains(&text(field)) => {
            errors.push(convert(format!("field label not supported: {}", text(field))));
        }
        None if !allowed.contains(&text(field)) => errors.push(FieldError::not_supported(path, field, allowed)),
        None => {}
    }
}

/// `resourceFieldRef`; in a volume it has to name the container.
pub fn resource_field_selector(errors: &mut Errors, selector: &Value, path: &str, in_volume: bool) {
    let resource = &selector["resource"];
    if in_volume && text(&selector["containerName"]).is_empty() {
        return errors.push(FieldError::required(format!("{path}.containerName"), ""));
    }
    if text(resource).is_empty() {
        return errors.push(FieldError::required(format!("{path}.resource"), ""));
    }
    let is_pages = |r: &str| r.starts_with("requests.hugepages-") || r.starts_with("limits.hugepages-");
    if !RESOURCE_FIELDS.contains(&text(resource)) && !is_pages(text(resource)) {
        errors.push(FieldError::not_supported(format!("{path}.resource"), resource, &RESOURCE_FIELDS));
    }
    let divisor = text(&selector["divisor"]);
    let (kind, allowed): (&str, &[&str]) = match text(resource).split_once('.').map_or("", |(_, name)| name) {
        "cpu" => ("cpu", &["1m", "1"]),
        name @ ("memory" | "ephemeral-storage") => {
            (name, &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"])
        }
        _ => return,
    };
    if !matches!(divisor, "" | "0") && !allowed.contains(&divisor) {
        let list = match kind {
            "cpu" => "1m and 1".to_owned(),
            _ => allowed.join(", "),
        };
        let detail = format!("only divisor's values {list} are supported with the {kind} resource");
        errors.push(FieldError::invalid(format!("{path}.divisor"), resource, &detail));
    }
}

/// Messages against a key of a ConfigMap or Secret (`IsConfigMapKey`).
pub fn config_key_messages(key: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if key.len() > 253 {
        messages.push("must be no more than 253 bytes".to_owned());
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        messages.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
                'KEY_NAME',  \
             or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    if key == "." {
        messages.push("must not be '.'".to_owned());
    } else if key == ".." {
        messages.push("must not be '..'".to_owned());
    } else if key.starts_with("..") {
        messages.push("must not start with '..'".to_owned());
    }
    messages
}

/// `configMapKeyRef` and `secretKeyRef`.
pub fn key_selector(errors: &mut Errors, selector: &Value, path: &str) {
    required(errors, &format!("{path}.name"), &selector["name"]);
    let (key, path) = (&selector["key"], format!("{path}.key"));
    if text(key).is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        invalid_all(errors, &path, key, config_key_messages(text(key)));
    }
}
