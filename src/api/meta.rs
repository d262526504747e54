//! Reading and writing `metadata` of an object that is a JSON value.

use serde_json::{Map, Value};

/// The finalizer of claims that pods may use.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// The finalizer of volumes that claims may be bound to.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

/// `metadata.<field>` as a string; empty when absent.
fn field<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"][name].as_str().unwrap_or_default()
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    field(object, "name")
}
/// `metadata.namespace`; empty for cluster-scoped objects.
pub fn namespace(object: &Value) -> &str {
    field(object, "namespace")
}
/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    field(object, "uid")
}
/// `metadata.resourceVersion`.
pub fn resource_version(object: &Value) -> &str {
    field(object, "resourceVersion")
}
/// Whether `metadata.deletionTimestamp` is set.
pub fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}
/// The value of a label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["labels"][key].as_str()
}
/// The value of an annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"][key].as_str()
}
/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}
/// `metadata.generation`; 0 when absent.
pub fn generation(object: &Value) -> i64 {
    object["metadata"]["generation"].as_i64().unwrap_or_default()
}
/// `metadata` for writing; it is created when absent, and a wrong type is replaced.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().expect("it was just made an object")
}

/// Messages against `name` as an RFC 1123 subdomain (`validation.IsDNS1123Subdomain`); none when it is one.
pub fn validate_subdomain(name: &str) -> Vec<String> {
    const MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
        and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
        '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    let mut messages = Vec::new();
    if name.len() > 253 {
        messages.push("must be no more than 253 bytes".to_owned());
    }
    if !name.split('.').all(is_label) {
        messages.push(MESSAGE.to_owned());
    }
    messages
}

fn is_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = label.as_bytes();
    bytes.first().is_some_and(|b| inner(*b))
        && bytes.last().is_some_and(|b| inner(*b))
        && bytes.iter().all(|b| inner(*b) || *b == b'-')
}

/// The items of an array; none when it is absent or no array.
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
/// A string; empty when it is absent or no string.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
/// An integer; 0 when it is absent or none.
pub fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}
