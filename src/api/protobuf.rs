//! `application/vnd.kubernetes.protobuf`: the envelope (`k8s\0` and `runtime.Unknown`) and all built-in types, by the
//! field numbers of the schema table.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value, json};

use super::schema::{Field, Kind, Shape, TypeId, format_time, of, parse_time};
use super::{Gvk, Status};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
/// How deep messages may nest.
const MAX_DEPTH: usize = 100;

/// Decodes a body, envelope and all, to the JSON form of its object.
///
/// # Errors
/// 400 when it is malformed or of an unknown kind.
pub fn decode(bytes: &[u8]) -> Result<Value, Status> {
    let (gvk, raw) = envelope(bytes)?;
    let Some(ty) = of(&gvk) else {
        let version =
            if gvk.group.is_empty() { gvk.version.to_string() } else { format!("{}/{}", gvk.group, gvk.version) };
        return Err(Status::bad_request(format!("no kind {:?} is registered for version {version:?}", gvk.kind)));
    };
    let mut map = message(ty, raw, &[], 0).map_err(malformed)?;
    let api_version =
        if gvk.group.is_empty() { gvk.version.to_string() } else { format!("{}/{}", gvk.group, gvk.version) };
    map.insert("apiVersion".to_owned(), api_version.into());
    map.insert("kind".to_owned(), gvk.kind.as_ref().into());
    Ok(Value::Object(map))
}

/// The kind that the envelope names and the message inside.
fn envelope(bytes: &[u8]) -> Result<(Gvk, &[u8]), Status> {
    let Some(unknown) = bytes.strip_prefix(MAGIC) else {
        let text = "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]";
        return Err(Status::bad_request(text));
    };
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for part in Reader(unknown) {
        match part.map_err(malformed)? {
            (1, Wire::Bytes(meta)) => {
                for part in Reader(meta) {
                    match part.map_err(malformed)? {
                        (1, Wire::Bytes(text)) => api_version = String::from_utf8_lossy(text).into_owned(),
                        (2, Wire::Bytes(text)) => kind = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    Ok((Gvk { group: group.to_owned().into(), version: version.to_owned().into(), kind: kind.into() }, raw))
}

fn malformed(why: &'static str) -> Status {
    Status::bad_request(format!("proto: {why}"))
}

/// A field's value on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// Splits a message into its fields.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0u64;
        for shift in 0..10 {
            let (byte, rest) = self.0.split_first().ok_or("unexpected EOF")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << (7 * shift);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("integer overflow")
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        if length > self.0.len() {
            return Err("unexpected EOF");
        }
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Wire<'a>), &'static str> {
        let key = self.varint()?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes were taken"))),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| "unexpected EOF")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes were taken")).into()),
            _ => return Err("illegal wireType"),
        };
        Ok((key >> 3, wire))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u64, Wire<'a>), &'static str>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// A message of the type; `prefix` is where in it, for messages that Go embeds.
fn message(ty: TypeId, bytes: &[u8], prefix: &[u8], depth: usize) -> Result<Map<String, Value>, &'static str> {
    if depth > MAX_DEPTH {
        return Err("nested too deeply");
    }
    let mut map = Map::new();
    for part in Reader(bytes) {
        let (tag, wire) = part?;
        let Ok(tag) = u8::try_from(tag) else { continue };
        let mut path = prefix.to_vec();
        path.push(tag);
        let Some(field) = ty.get().fields.iter().find(|f| f.tags().starts_with(&path)) else { continue };
        if field.tags().len() > path.len() {
            if let Wire::Bytes(inner) = wire {
                map.append(&mut message(ty, inner, &path, depth + 1)?);
            }
            continue;
        }
        match field.shape {
            Shape::One => {
                let value = one(field, wire, depth)?;
                if !value.is_null() {
                    map.insert(field.name.to_owned(), value);
                }
            }
            Shape::List => {
                let list = map.entry(field.name).or_insert_with(|| json!([]));
                let items = list.as_array_mut().expect("only lists are put under this name");
                match (field.kind, wire) {
                    (Kind::Int32 | Kind::Int64, Wire::Bytes(packed)) => {
                        let mut packed = Reader(packed);
                        while !packed.0.is_empty() {
                            let number = packed.varint()?;
                            items.push(one(field, Wire::Varint(number), depth)?);
                        }
                    }
                    _ => items.push(one(field, wire, depth)?),
                }
            }
            Shape::Map => {
                let Wire::Bytes(entry) = wire else { return Err("wrong wireType") };
                let (mut key, mut value) = (String::new(), None);
                for part in Reader(entry) {
                    match part? {
                        (1, Wire::Bytes(text)) => key = string(text)?,
                        (2, wire) => value = Some(one(field, wire, depth)?),
                        _ => {}
                    }
                }
                let value = match value {
                    Some(value) => value,
                    None if field.kind == Kind::String || field.kind == Kind::Bytes => json!(""),
                    None => one(field, Wire::Bytes(&[]), depth)?,
                };
                let object = map.entry(field.name).or_insert_with(|| json!({}));
                object.as_object_mut().expect("only maps are put under this name").insert(key, value);
            }
        }
    }
    Ok(map)
}

fn string(bytes: &[u8]) -> Result<String, &'static str> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "string field contains invalid UTF-8")
}

/// The parts of a well-known message by field number.
fn parts(bytes: &[u8]) -> Result<Vec<(u64, Wire<'_>)>, &'static str> {
    Reader(bytes).collect()
}

fn first_bytes<'a>(parts: &[(u64, Wire<'a>)], tag: u64) -> Option<&'a [u8]> {
    parts.iter().find_map(|(t, w)| match w {
        Wire::Bytes(bytes) if *t == tag => Some(*bytes),
        _ => None,
    })
}

fn first_number(parts: &[(u64, Wire<'_>)], tag: u64) -> u64 {
    let number = parts.iter().find_map(|(t, w)| match w {
        Wire::Varint(number) if *t == tag => Some(*number),
        _ => None,
    });
    number.unwrap_or_default()
}

#[expect(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "protobuf encodes signed numbers so")]
fn one(field: &Field, wire: Wire<'_>, depth: usize) -> Result<Value, &'static str> {
    let bytes = match wire {
        Wire::Varint(number) => {
            return match field.kind {
                Kind::Bool => Ok((number != 0).into()),
                Kind::Int32 => Ok((number as i32).into()),
                Kind::Int64 => Ok((number as i64).into()),
                _ => Err("wrong wireType"),
            };
        }
        Wire::Fixed(bits) if field.kind == Kind::Double => {
            return Ok(Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number));
        }
        Wire::Fixed(_) => return Err("wrong wireType"),
        Wire::Bytes(bytes) => bytes,
    };
    Ok(match field.kind {
        Kind::String => string(bytes)?.into(),
        Kind::Bytes => STANDARD.encode(bytes).into(),
        Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Double => return Err("wrong wireType"),
        Kind::Quantity => match first_bytes(&parts(bytes)?, 1) {
            Some(text) => string(text)?.into(),
            None => json!("0"),
        },
        Kind::IntOrString => {
            let parts = parts(bytes)?;
            if first_number(&parts, 1) == 1 {
                string(first_bytes(&parts, 3).unwrap_or_default())?.into()
            } else {
                (first_number(&parts, 2) as i32).into()
            }
        }
        Kind::Time | Kind::MicroTime => {
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            let parts = parts(bytes)?;
            let nanos = first_number(&parts, 2) as i32;
            let time = jiff::Timestamp::new(first_number(&parts, 1) as i64, nanos).map_err(|_| "bad time")?;
            format_time(time, field.kind == Kind::MicroTime).into()
        }
        Kind::RawExtension | Kind::FieldsV1 | Kind::Json => match first_bytes(&parts(bytes)?, 1) {
            None | Some([]) => Value::Null,
            Some(inner) if inner.starts_with(MAGIC) => return Err("protobuf inside a RawExtension is not supported"),
            Some(inner) => serde_json::from_slice(inner).map_err(|_| "bad JSON inside a RawExtension")?,
        },
        Kind::Strings => strings(&parts(bytes)?, 1)?,
        Kind::SchemaOrArray => {
            let parts = parts(bytes)?;
            match first_bytes(&parts, 1) {
                Some(inner) => Value::Object(message(json_schema(), inner, &[], depth + 1)?),
                None => {
                    let mut items = Vec::new();
                    for (tag, wire) in parts {
                        if let (2, Wire::Bytes(inner)) = (tag, wire) {
                            items.push(Value::Object(message(json_schema(), inner, &[], depth + 1)?));
                        }
                    }
                    Value::Array(items)
                }
            }
        }
        Kind::SchemaOrBool => {
            let parts = parts(bytes)?;
            match first_bytes(&parts, 2) {
                Some(inner) => Value::Object(message(json_schema(), inner, &[], depth + 1)?),
                None => (first_number(&parts, 1) != 0).into(),
            }
        }
        Kind::SchemaOrStrings => {
            let parts = parts(bytes)?;
            match first_bytes(&parts, 1) {
                Some(inner) => Value::Object(message(json_schema(), inner, &[], depth + 1)?),
                None => strings(&parts, 2)?,
            }
        }
        Kind::Type(ty) => Value::Object(message(ty, bytes, &[], depth + 1)?),
    })
}

fn strings(parts: &[(u64, Wire<'_>)], tag: u64) -> Result<Value, &'static str> {
    let mut items = Vec::new();
    for (number, wire) in parts {
        if let Wire::Bytes(text) = wire
            && *number == tag
        {
            items.push(Value::String(string(text)?));
        }
    }
    Ok(Value::Array(items))
}

fn json_schema() -> TypeId {
    TypeId::of_definition("apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        .expect("the table has all built-in types")
}

/// Encodes an object or list of a built-in kind, or its metadata only, with its envelope; `None` for other kinds.
pub fn encode(object: &Value) -> Option<Vec<u8>> {
    let api_version = object["apiVersion"].as_str()?;
    let kind = object["kind"].as_str()?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let gvk = Gvk { group: group.to_owned().into(), version: version.to_owned().into(), kind: kind.to_owned().into() };
    let mut raw = Vec::new();
    match of(&gvk) {
        Some(ty) => write_message(ty, object.as_object()?, &[], &mut raw),
        None => write_virtual(&gvk, object, &mut raw)?,
    }
    let mut meta = Vec::new();
    write_bytes(&mut meta, 1, api_version.as_bytes());
    write_bytes(&mut meta, 2, kind.as_bytes());
    let mut out = MAGIC.to_vec();
    write_bytes(&mut out, 1, &meta);
    write_bytes(&mut out, 2, &raw);
    write_bytes(&mut out, 3, b"");
    write_bytes(&mut out, 4, b"");
    Some(out)
}

/// Lists, and what only carries metadata: they are not in the table, but all look alike (1: metadata, 2: items).
fn write_virtual(gvk: &Gvk, object: &Value, out: &mut Vec<u8>) -> Option<()> {
    let metadata = |ty: &str, object: &Value| {
        let ty = TypeId::of_definition(&format!("apimachinery.pkg.apis.meta.v1.{ty}"))?;
        let mut metadata = Vec::new();
        if let Some(map) = object["metadata"].as_object() {
            write_message(ty, map, &[], &mut metadata);
        }
        Some(metadata)
    };
    if gvk.kind == "PartialObjectMetadata" {
        write_bytes(out, 1, &metadata("ObjectMeta", object)?);
        return Some(());
    }
    let item = Gvk { kind: gvk.kind.strip_suffix("List")?.to_owned().into(), ..gvk.clone() };
    let ty = of(&item);
    if ty.is_none() && item.kind != "PartialObjectMetadata" {
        return None;
    }
    write_bytes(out, 1, &metadata("ListMeta", object)?);
    for object in object["items"].as_array().into_iter().flatten() {
        let mut one = Vec::new();
        match ty {
            Some(ty) => write_message(ty, object.as_object()?, &[], &mut one),
            None => write_virtual(&item, object, &mut one)?,
        }
        write_bytes(out, 2, &one);
    }
    Some(())
}

/// One frame of a watch: a length and a `WatchEvent` without an envelope, whose object has one
/// (`application/vnd.kubernetes.protobuf;stream=watch`).
pub fn watch_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let (mut raw, mut event) = (Vec::with_capacity(object.len() + 8), Vec::new());
    write_bytes(&mut raw, 1, object);
    write_bytes(&mut event, 1, kind.as_bytes());
    write_bytes(&mut event, 2, &raw);
    let length = u32::try_from(event.len()).expect("objects are smaller than 4 GiB");
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&event);
    frame
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("seven bits"));
}

fn write_number(out: &mut Vec<u8>, tag: u8, value: i64) {
    write_varint(out, u64::from(tag) << 3);
    write_varint(out, value.cast_unsigned());
}

fn write_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    write_varint(out, u64::from(tag) << 3 | 2);
    write_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn write_message(ty: TypeId, map: &Map<String, Value>, prefix: &[u8], out: &mut Vec<u8>) {
    let below = |f: &&Field| f.tags().starts_with(prefix) && f.tags().len() > prefix.len();
    let mut fields: Vec<&Field> = ty.get().fields.iter().filter(below).collect();
    fields.sort_by_key(|f| f.tags());
    let mut embedded = 0;
    for field in fields {
        let tag = field.tags()[prefix.len()];
        if field.tags().len() > prefix.len() + 1 {
            if embedded != tag {
                embedded = tag;
                let mut inner = Vec::new();
                write_message(ty, map, &field.tags()[..=prefix.len()], &mut inner);
                write_bytes(out, tag, &inner);
            }
            continue;
        }
        let Some(value) = map.get(field.name).filter(|v| !v.is_null()) else { continue };
        match (field.shape, value) {
            (Shape::One, value) => write_one(field, tag, value, out),
            (Shape::List, Value::Array(items)) => items.iter().for_each(|item| write_one(field, tag, item, out)),
            (Shape::Map, Value::Object(entries)) => {
                for (key, value) in entries {
                    let mut entry = Vec::new();
                    write_bytes(&mut entry, 1, key.as_bytes());
                    write_one(field, 2, value, &mut entry);
                    write_bytes(out, tag, &entry);
                }
            }
            _ => {}
        }
    }
}

fn write_one(field: &Field, tag: u8, value: &Value, out: &mut Vec<u8>) {
    let text = value.as_str().unwrap_or_default();
    let mut inner = Vec::new();
    match field.kind {
        Kind::String => return write_bytes(out, tag, text.as_bytes()),
        Kind::Bool => return write_number(out, tag, value.as_bool().unwrap_or_default().into()),
        Kind::Int32 | Kind::Int64 => return write_number(out, tag, value.as_i64().unwrap_or_default()),
        Kind::Double => {
            write_varint(out, u64::from(tag) << 3 | 1);
            out.extend_from_slice(&value.as_f64().unwrap_or_default().to_le_bytes());
            return;
        }
        Kind::Bytes => inner = STANDARD.decode(text).unwrap_or_default(),
        Kind::Quantity => write_bytes(&mut inner, 1, text.as_bytes()),
        Kind::IntOrString => match value.as_i64() {
            Some(number) => {
                write_number(&mut inner, 1, 0);
                write_number(&mut inner, 2, number);
                write_bytes(&mut inner, 3, b"");
            }
            None => {
                write_number(&mut inner, 1, 1);
                write_number(&mut inner, 2, 0);
                write_bytes(&mut inner, 3, text.as_bytes());
            }
        },
        Kind::Time | Kind::MicroTime => {
            if let Some(time) = parse_time(text) {
                write_number(&mut inner, 1, time.as_second());
                write_number(&mut inner, 2, time.subsec_nanosecond().into());
            }
        }
        Kind::RawExtension | Kind::FieldsV1 | Kind::Json => write_bytes(&mut inner, 1, value.to_string().as_bytes()),
        Kind::Strings => write_strings(&mut inner, 1, value),
        Kind::SchemaOrArray => match value {
            Value::Array(items) => items.iter().for_each(|item| write_schema(&mut inner, 2, item)),
            _ => write_schema(&mut inner, 1, value),
        },
        Kind::SchemaOrBool => match value.as_bool() {
            Some(allows) => write_number(&mut inner, 1, allows.into()),
            None => {
                write_number(&mut inner, 1, 1);
                write_schema(&mut inner, 2, value);
            }
        },
        Kind::SchemaOrStrings if value.is_array() => write_strings(&mut inner, 2, value),
        Kind::SchemaOrStrings => write_schema(&mut inner, 1, value),
        Kind::Type(ty) => {
            if let Value::Object(map) = value {
                write_message(ty, map, &[], &mut inner);
            }
        }
    }
    write_bytes(out, tag, &inner);
}

fn write_strings(out: &mut Vec<u8>, tag: u8, value: &Value) {
    for text in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
        write_bytes(out, tag, text.as_bytes());
    }
}

fn write_schema(out: &mut Vec<u8>, tag: u8, value: &Value) {
    let mut inner = Vec::new();
    if let Value::Object(map) = value {
        write_message(json_schema(), map, &[], &mut inner);
    }
    write_bytes(out, tag, &inner);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::schema::{Strictness, decode as normalise};

    /// To protobuf and back is the same object.
    fn round_trip(object: &Value) -> Value {
        decode(&encode(object).expect("a built-in kind")).expect("valid")
    }

    #[test]
    fn objects_survive() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "labels": {"a": "b", "c": ""}, "creationTimestamp": "2020-01-02T03:04:05Z",
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": false}],
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {".": {}}}}]},
            "spec": {"terminationGracePeriodSeconds": 0, "priority": -5,
                "volumes": [{"name": "v", "hostPath": {"path": "/x", "type": ""}}, {"name": "w", "emptyDir": {}}],
                "containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}}, "tty": true,
                    "livenessProbe": {"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 3},
                    "ports": [{"containerPort": 80}]}]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}]}});
        assert_eq!(round_trip(&pod), pod);
        let secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "AAEC", "b": ""}});
        assert_eq!(round_trip(&secret), secret);
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
            "spec": {"renewTime": "2020-01-02T03:04:05.678900Z"}});
        assert_eq!(round_trip(&lease), lease);
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
            "spec": {"user": "u", "extra": {"k": ["v", "w"]}}});
        assert_eq!(round_trip(&review), review);
    }

    /// What client-go sends for `SelfSubjectAccessReview` of pods, byte by byte from the definition of the types.
    #[test]
    fn a_body_from_the_wire() {
        let mut body = b"k8s\0".to_vec();
        let meta = b"\x0a\x17authorization.k8s.io/v1\x12\x17SelfSubjectAccessReview";
        body.extend_from_slice(&[0x0a, u8::try_from(meta.len()).expect("short")]);
        body.extend_from_slice(meta);
        // spec (2) { resourceAttributes (1) { namespace (1): "d", verb (2): "get", resource (5): "pods" } }
        let attributes = b"\x0a\x01d\x12\x03get\x2a\x04pods";
        let spec = [&[0x0a, u8::try_from(attributes.len()).expect("short")], &attributes[..]].concat();
        let raw = [&[0x12, u8::try_from(spec.len()).expect("short")], &spec[..]].concat();
        body.extend_from_slice(&[0x12, u8::try_from(raw.len()).expect("short")]);
        body.extend_from_slice(&raw);
        assert_eq!(
            decode(&body).expect("valid"),
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {"namespace": "d", "verb": "get", "resource": "pods"}}})
        );
    }

    #[test]
    fn lists_metadata_and_watches_have_their_forms() {
        // As protoc writes messages: a field is tag << 3 | 2, its length, its bytes.
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"},
            "items": [{"metadata": {"name": "a"}}]});
        let encoded = encode(&list).expect("pods are built in");
        let (gvk, raw) = envelope(&encoded).expect("an envelope");
        assert_eq!(gvk.kind, "PodList");
        let fields = parts(raw).expect("well-formed");
        assert_eq!(fields.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), [1, 2]);
        let item = first_bytes(&fields, 2).expect("an item");
        assert_eq!(item[..5], [0x0a, 0x03, 0x0a, 0x01, b'a'], "the name in the metadata of the item");
        let partial =
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "a"}});
        let encoded = encode(&partial).expect("it has a form");
        assert_eq!(envelope(&encoded).expect("an envelope").1[..5], [0x0a, 0x03, 0x0a, 0x01, b'a']);
        assert_eq!(encode(&json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1"})), None);
        assert_eq!(watch_frame("ADDED", b"xy"), b"\0\0\0\x0d\x0a\x05ADDED\x12\x04\x0a\x02xy");
    }

    #[test]
    fn bad_bodies() {
        assert_eq!(decode(b"{}").expect_err("no magic").code, 400);
        let unknown = encode(&json!({"apiVersion": "v1", "kind": "Pod"})).expect("a built-in kind");
        let renamed: Vec<u8> = unknown.iter().map(|b| if *b == b'P' { b'Q' } else { *b }).collect();
        assert_eq!(
            decode(&renamed).expect_err("no such kind").message,
            "no kind \"Qod\" is registered for version \"v1\""
        );
    }

    #[test]
    fn every_kind_survives_its_zero_value() {
        for id in TypeId::all().filter(|t| t.get().is_kind()) {
            let ty = id.get();
            let api_version =
                if ty.group.is_empty() { ty.version.to_owned() } else { format!("{}/{}", ty.group, ty.version) };
            let mut object = json!({"apiVersion": api_version, "kind": ty.kind});
            normalise(id, &mut object, Strictness::Strict).expect("an empty object decodes");
            let mut back = round_trip(&object);
            normalise(id, &mut back, Strictness::Strict).expect("it still decodes");
            assert_eq!(back, object, "{}", ty.definition);
        }
    }

    fn api_version(ty: &crate::api::schema::Type) -> String {
        if ty.group.is_empty() { ty.version.to_owned() } else { format!("{}/{}", ty.group, ty.version) }
    }

    proptest! {
        /// Any object of any kind: decoding is idempotent, and protobuf loses nothing that JSON has.
        #[test]
        fn random_objects_survive(seed in any::<u64>(), which in any::<prop::sample::Index>()) {
            let kinds: Vec<TypeId> = TypeId::all().filter(|t| t.get().is_kind()).collect();
            let id = *which.get(&kinds);
            let mut object = crate::api::schema::arbitrary::Arbitrary(seed).object(id, 0);
            object["kind"] = id.get().kind.into();
            object["apiVersion"] = api_version(id.get()).into();
            // Protobuf has no room for kind and version of options inside an Eviction.
            if let Some(options) = object.get_mut("deleteOptions").and_then(Value::as_object_mut) {
                options.retain(|field, _| field != "kind" && field != "apiVersion");
            }
            normalise(id, &mut object, Strictness::Strict).expect("it is of its type");
            let mut again = object.clone();
            normalise(id, &mut again, Strictness::Strict).expect("it is of its type");
            prop_assert_eq!(&again, &object);
            let mut back = round_trip(&object);
            normalise(id, &mut back, Strictness::Strict).expect("it is of its type");
            prop_assert_eq!(back, object);
        }

        #[test]
        fn hostile_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..60usize, flip in any::<u8>()) {
            let mut body = b"k8s\0".to_vec();
            body.append(&mut bytes);
            let _ = decode(&body);
            let mut pod = encode(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
                "spec": {"containers": [{"name": "c", "image": "i"}]}})).expect("a built-in kind");
            let length = pod.len();
            pod[at % length] ^= flip;
            let _ = decode(&pod);
        }
    }
}
