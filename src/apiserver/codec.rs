//! Bytes to objects and back: JSON, YAML, protobuf, with the schema's strictness.

use bytes::Bytes;
use serde_json::Value;

use super::http::negotiate::Encoding;
use crate::api::schema::{self, Parsed, Root, Strictness};
use crate::api::{Kind, StatusResult, protobuf};
use crate::storage::Body;

/// `fieldValidation`; the wrong text itself is the error.
pub fn strictness(text: &str) -> Result<Strictness, String> {
    match text {
        "" | "Warn" => Ok(Strictness::Warn),
        "Ignore" => Ok(Strictness::Ignore),
        "Strict" => Ok(Strictness::Strict),
        other => Err(other.to_owned()),
    }
}

/// An object of this process's own making, as if it had been parsed.
pub fn made(value: Value) -> Parsed {
    Parsed { value, duplicates: Vec::new() }
}

/// Parses a body into an untyped value; `kind` is what the request should carry.
pub fn parse(bytes: &[u8], encoding: Encoding, kind: &str) -> StatusResult<Parsed> {
    match encoding {
        Encoding::Json => schema::parse_json(bytes, kind),
        Encoding::Yaml => schema::parse_yaml(bytes, kind),
        Encoding::Protobuf => protobuf::decode(bytes).map(made),
    }
}

/// Brings a parsed object of a kind into the form in which it is stored: unknown fields go (or are told), nulls go, types are
/// checked. Returns the warnings.
pub fn canonical(kind: &Kind, mut object: Parsed, strictness: Strictness) -> StatusResult<(Value, Vec<String>)> {
    match kind.schema() {
        Some(Root::Table(ty)) => {
            let warnings = schema::decode_parsed(ty, &mut object, strictness)?;
            Ok((object.value, warnings))
        }
        Some(Root::Custom(schema, _)) => {
            let warnings = schema::decode_custom(schema, &mut object, strictness)?;
            Ok((object.value, warnings))
        }
        None => {
            drop_nulls(&mut object.value);
            Ok((object.value, Vec::new()))
        }
    }
}

/// The defaults of the schema table.
pub fn schema_defaults(kind: &Kind, object: &mut Value) {
    if let Some(Root::Table(ty)) = kind.schema() {
        schema::apply_defaults(ty, object);
    }
}

/// Null equals absent, as in Go: null members of objects go.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// An object as protobuf; `None` when its kind has no such form.
pub fn encode_protobuf(object: &Value) -> Option<Bytes> {
    protobuf::encode(object).map(Bytes::from)
}

/// An object as YAML.
pub fn to_yaml(object: &Value) -> String {
    serde_saphyr::to_string(object).unwrap_or_else(|_| object.to_string())
}

/// Encodes an object for storage: kind and apiVersion first, the resourceVersion left out where storage splices it in.
pub fn encode(kind: &Kind, object: &Value) -> Body {
    encode_as(&kind.kind, &kind.gvr.api_version(), object)
}

/// The same with a kind and `apiVersion`.
pub fn encode_as(kind: &str, api_version: &str, object: &Value) -> Body {
    let empty = serde_json::Map::new();
    let top = object.as_object().unwrap_or(&empty);
    let metadata = top.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut before = prefix(kind, api_version).into_bytes();
    before.extend_from_slice(b"\"metadata\":{");
    for (key, value) in metadata.iter().filter(|(key, _)| *key != "resourceVersion") {
        write_member(&mut before, key, value);
        before.push(b',');
    }
    before.extend_from_slice(b"\"resourceVersion\":\"");
    let mut after = b"\"}".to_vec();
    for (key, value) in top.iter().filter(|(key, _)| !["kind", "apiVersion", "metadata"].contains(&key.as_str())) {
        after.push(b',');
        write_member(&mut after, key, value);
    }
    after.push(b'}');
    Body { before: before.into(), after: after.into() }
}

/// What every stored object of a kind begins with; items of lists leave it out.
pub fn item_prefix(kind: &Kind) -> String {
    prefix(&kind.kind, &kind.gvr.api_version())
}

fn prefix(kind: &str, api_version: &str) -> String {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",")
}

fn write_member(out: &mut Vec<u8>, key: &str, value: &Value) {
    serde_json::to_writer(&mut *out, key).expect("a text can be written to memory");
    out.push(b':');
    serde_json::to_writer(out, value).expect("a JSON value can be written to memory");
}
