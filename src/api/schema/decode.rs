//! Decoding a request body the way Go decodes into its types: what is of a wrong type is refused, what is unknown is
//! dropped and told, and what is left has the form in which Go would write it again.

use std::borrow::Cow;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::json::Parsed;
use super::table::{Field, Kind, Shape, TypeId};
use super::time;
use crate::api::Status;
use crate::api::quantity::Quantity;
use crate::api::structural::{self, Structural};

/// What becomes of unknown and duplicate fields (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// They are dropped silently.
    Ignore,
    /// They are dropped and told as warnings.
    #[default]
    Warn,
    /// The request is refused.
    Strict,
}

/// `sigs.k8s.io/json` stops collecting strict errors here.
const MAX_STRICT_ERRORS: usize = 100;

/// Decodes an object in place and returns the warnings (only with [`Strictness::Warn`]).
///
/// # Errors
/// 400 with the words of kube-apiserver.
pub fn decode(ty: TypeId, object: &mut Value, strictness: Strictness) -> Result<Vec<String>, Status> {
    decode_with(ty, object, Vec::new(), strictness)
}

/// The same for a parsed body; duplicate fields count as unknown ones do.
///
/// # Errors
/// 400 with the words of kube-apiserver.
pub fn decode_parsed(ty: TypeId, body: &mut Parsed, strictness: Strictness) -> Result<Vec<String>, Status> {
    let duplicates = std::mem::take(&mut body.duplicates);
    decode_with(ty, &mut body.value, duplicates, strictness)
}

/// Decodes a custom resource: metadata as everywhere, the rest pruned to its schema, nulls that mean absence left out.
///
/// # Errors
/// 400 with the words of kube-apiserver.
pub fn decode_custom(schema: &Structural, body: &mut Parsed, strictness: Strictness) -> Result<Vec<String>, Status> {
    let kind = body.value["kind"].as_str().unwrap_or_default().to_owned();
    let refuse = |object: &Value, why: &str| refuse(object, &kind, "", why);
    if !body.value.is_object() {
        body.value = Value::Object(Map::new());
    }
    let object = &mut body.value;
    let mut decoder = Decoder::new(std::mem::take(&mut body.duplicates));
    decoder.metadata(object);
    if let Some(why) = decoder.error.or(decoder.unmarshal) {
        return Err(refuse(object, &why));
    }
    let mut strict = decoder.strict;
    let room = MAX_STRICT_ERRORS.saturating_sub(strict.len());
    let pruned = structural::prune(schema, object);
    strict.extend(pruned.iter().take(room).map(|path| format!("unknown field {path:?}")));
    structural::drop_nulls(schema, object);
    told(strict, strictness, |why| refuse(object, why))
}

fn decode_with(
    ty: TypeId,
    object: &mut Value,
    duplicates: Vec<String>,
    strictness: Strictness,
) -> Result<Vec<String>, Status> {
    let refuse = |object: &Value, why: &str| refuse(object, ty.get().name(), ty.get().version, why);
    let mut decoder = Decoder::new(duplicates);
    decoder.structure(ty, object, true);
    if let Some(why) = decoder.error.or(decoder.unmarshal) {
        return Err(refuse(object, &why));
    }
    told(decoder.strict, strictness, |why| refuse(object, why))
}

/// 400: `Pod in version "v1" cannot be handled as a Pod: <why>`.
fn refuse(object: &Value, expected: &str, version: &str, why: &str) -> Status {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let kind = object["kind"].as_str().filter(|k| !k.is_empty()).unwrap_or(expected);
    let version = api_version.rsplit('/').next().filter(|v| !v.is_empty()).unwrap_or(version);
    Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {expected}: {why}"))
}

/// What becomes of unknown and duplicate fields.
fn told(strict: Vec<String>, strictness: Strictness, refuse: impl Fn(&str) -> Status) -> Result<Vec<String>, Status> {
    match strictness {
        Strictness::Ignore => Ok(Vec::new()),
        Strictness::Warn => Ok(strict),
        Strictness::Strict if strict.is_empty() => Ok(Vec::new()),
        Strictness::Strict => Err(refuse(&format!("strict decoding error: {}", strict.join(", ")))),
    }
}

struct Decoder<'a> {
    strict: Vec<String>,
    /// The error of a type with its own decoding; it ends the decoding.
    error: Option<String>,
    /// The first wrong type.
    unmarshal: Option<String>,
    /// JSON names of structs' fields on the way here (Go's `FieldStack`).
    names: Vec<&'a str>,
    /// The whole path with indexes and map keys, for unknown fields.
    steps: Vec<Step>,
}

enum Step {
    Name(Cow<'static, str>),
    Index(usize),
}

impl Decoder<'static> {
    fn new(duplicates: Vec<String>) -> Self {
        Self { strict: duplicates, error: None, unmarshal: None, names: Vec::new(), steps: Vec::new() }
    }

    /// The metadata of an object whose type the table does not have.
    fn metadata(&mut self, object: &mut Value) {
        let Some(metadata) = object.get_mut("metadata") else { return };
        self.names.push("metadata");
        self.steps.push(Step::Name(Cow::Borrowed("metadata")));
        self.structure(object_meta(), metadata, false);
        self.steps.pop();
        self.names.pop();
    }

    fn path(&self, last: &str) -> String {
        let mut path = String::new();
        for step in &self.steps {
            match step {
                Step::Index(index) => path.push_str(&format!("[{index}]")),
                Step::Name(name) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(name);
                }
            }
        }
        if path.is_empty() { last.to_owned() } else { format!("{path}.{last}") }
    }

    /// `json: cannot unmarshal string into Go struct field PodSpec.spec.priority of type int32`.
    fn wrong(&mut self, found: &Value, owner: TypeId, go: &str) {
        let what = match found {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(n) if is_number(go) => format!("number {n}"),
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        let target = if self.names.is_empty() {
            format!("Go value of type {go}")
        } else {
            format!("Go struct field {}.{} of type {go}", owner.get().name(), self.names.join("."))
        };
        self.unmarshal.get_or_insert_with(|| format!("json: cannot unmarshal {what} into {target}"));
    }

    fn structure(&mut self, ty: TypeId, value: &mut Value, top: bool) {
        let info = ty.get();
        let Value::Object(map) = value else {
            if !value.is_null() {
                self.wrong(&value.clone(), ty, &format!("{}.{}", info.package(), info.name()));
            }
            *value = Value::Object(Map::new());
            return self.fill(ty, value.as_object_mut().expect("it was just made an object"));
        };
        let mut unknown = Vec::new();
        for (name, inner) in map.iter_mut() {
            if info.is_kind() && (name == "apiVersion" || name == "kind") {
                if !inner.is_string() && !inner.is_null() {
                    let static_name = if name == "kind" { "kind" } else { "apiVersion" };
                    self.names.push(static_name);
                    self.wrong(&inner.clone(), ty, "string");
                    self.names.pop();
                }
                continue;
            }
            let Some(field) = info.field(name) else {
                if self.strict.len() < MAX_STRICT_ERRORS && !(top && (name == "apiVersion" || name == "kind")) {
                    let path = self.path(name);
                    self.strict.push(format!("unknown field {path:?}"));
                }
                unknown.push(name.clone());
                continue;
            };
            if inner.is_null() {
                continue;
            }
            self.names.push(field.name);
            self.steps.push(Step::Name(Cow::Borrowed(field.name)));
            self.field(ty, field, inner);
            self.steps.pop();
            self.names.pop();
        }
        for name in unknown {
            if !(top && (name == "apiVersion" || name == "kind")) {
                map.remove(&name);
            }
        }
        self.fill(ty, map);
    }

    fn field(&mut self, owner: TypeId, field: &'static Field, value: &mut Value) {
        match field.shape {
            Shape::One => self.one(owner, field, value),
            Shape::List => {
                let Value::Array(items) = value else {
                    return self.wrong(&value.clone(), owner, &format!("[]{}", go_type(field)));
                };
                for (index, item) in items.iter_mut().enumerate() {
                    self.steps.push(Step::Index(index));
                    self.one(owner, field, item);
                    self.steps.pop();
                }
            }
            Shape::Map => {
                let Value::Object(map) = value else {
                    return self.wrong(&value.clone(), owner, &format!("map[string]{}", go_type(field)));
                };
                let nested = matches!(field.kind, Kind::Type(_));
                for (key, item) in map.iter_mut() {
                    if !nested {
                        // Only objects can hold unknown fields, for which the path is kept.
                        self.one(owner, field, item);
                        continue;
                    }
                    self.steps.push(Step::Name(Cow::Owned(key.clone())));
                    self.one(owner, field, item);
                    self.steps.pop();
                }
            }
        }
    }

    /// One value; null, which only elements of lists and maps can be here, becomes the zero value.
    fn one(&mut self, owner: TypeId, field: &'static Field, value: &mut Value) {
        let go = || go_type(field);
        match field.kind {
            Kind::String => match value {
                Value::String(_) => {}
                Value::Null => *value = json!(""),
                _ => self.wrong(&value.clone(), owner, &go()),
            },
            Kind::Bool => match value {
                Value::Bool(_) => {}
                Value::Null => *value = json!(false),
                _ => self.wrong(&value.clone(), owner, &go()),
            },
            Kind::Int32 => match value.as_i64() {
                Some(number) if i32::try_from(number).is_ok() => {}
                _ if value.is_null() => *value = json!(0),
                _ => self.wrong(&value.clone(), owner, &go()),
            },
            Kind::Int64 => match value {
                Value::Number(n) if n.is_i64() => {}
                Value::Null => *value = json!(0),
                _ => self.wrong(&value.clone(), owner, &go()),
            },
            Kind::Double => match value {
                Value::Number(_) => {}
                Value::Null => *value = json!(0),
                _ => self.wrong(&value.clone(), owner, &go()),
            },
            Kind::Bytes => self.bytes(owner, value),
            Kind::Quantity => self.quantity(value),
            Kind::IntOrString => match value {
                Value::String(_) => {}
                Value::Null => *value = json!(0),
                _ if value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
                _ => {
                    let what = match value {
                        Value::Bool(_) => "bool".to_owned(),
                        Value::Array(_) => "array".to_owned(),
                        Value::Object(_) => "object".to_owned(),
                        other => format!("number {other}"),
                    };
                    let text = format!("json: cannot unmarshal {what} into Go value of type int32");
                    self.error.get_or_insert(text);
                }
            },
            Kind::Time => self.time(value, false),
            Kind::MicroTime => self.time(value, true),
            Kind::RawExtension | Kind::FieldsV1 | Kind::Json => {}
            Kind::Strings => match value {
                Value::Array(items) if items.iter().all(Value::is_string) => {}
                Value::Null => *value = json!([]),
                _ => self.wrong(&value.clone(), owner, "[]string"),
            },
            Kind::SchemaOrBool if value.is_boolean() => {}
            Kind::SchemaOrStrings if value.as_array().is_some_and(|a| a.iter().all(Value::is_string)) => {}
            Kind::SchemaOrArray if value.is_array() => {
                for (index, item) in value.as_array_mut().into_iter().flatten().enumerate() {
                    self.steps.push(Step::Index(index));
                    self.structure(json_schema(), item, false);
                    self.steps.pop();
                }
            }
            Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStrings => {
                if value.is_object() {
                    self.structure(json_schema(), value, false);
                } else {
                    let text = "json: cannot unmarshal into Go value of type v1.JSONSchemaProps";
                    self.error.get_or_insert_with(|| text.to_owned());
                }
            }
            Kind::Type(inner) => {
                if !value.is_object() && !value.is_null() {
                    return self.wrong(&value.clone(), owner, &go());
                }
                self.structure(inner, value, false);
            }
        }
    }

    fn bytes(&mut self, owner: TypeId, value: &mut Value) {
        match value {
            Value::String(text) => {
                // Go's decoder skips line breaks.
                if text.contains(['\n', '\r']) {
                    text.retain(|c| c != '\n' && c != '\r');
                }
                if base64::engine::general_purpose::STANDARD.decode(text.as_bytes()).is_err() {
                    let at = bad_base64(text);
                    self.error.get_or_insert(format!("illegal base64 data at input byte {at}"));
                }
            }
            Value::Null => *value = json!(""),
            _ => self.wrong(&value.clone(), owner, "[]uint8"),
        }
    }

    fn quantity(&mut self, value: &mut Value) {
        let text = match &*value {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            Value::Null => "0".to_owned(),
            _ => String::new(),
        };
        match text.parse::<Quantity>() {
            Ok(quantity) => *value = Value::String(quantity.to_string()),
            Err(why) => {
                self.error.get_or_insert_with(|| why.to_string());
            }
        }
    }

    fn time(&mut self, value: &mut Value, micro: bool) {
        let Value::String(text) = value else {
            if !value.is_null() {
                let what = kind_of(value);
                let text = format!("json: cannot unmarshal {what} into Go value of type string");
                self.error.get_or_insert(text);
            }
            return;
        };
        match time::canonical(text, micro) {
            Ok(canonical) => *value = Value::String(canonical),
            Err(why) => {
                self.error.get_or_insert(why);
            }
        }
    }

    /// Writes what Go would write for fields that are absent, and leaves out what it would leave out.
    fn fill(&mut self, ty: TypeId, map: &mut Map<String, Value>) {
        for field in &ty.get().fields {
            let keep = match map.get(field.name) {
                None | Some(Value::Null) => false,
                Some(value) if field.omit_empty => !is_empty(field, value),
                Some(_) => true,
            };
            if keep {
                continue;
            }
            let zero = zero(field);
            match (field.shape, field.kind) {
                (Shape::One, Kind::Type(inner)) if field.value => {
                    let mut value = Value::Null;
                    self.structure(inner, &mut value, false);
                    map.insert(field.name.to_owned(), value);
                }
                // A time that is zero prints as null, whether or not it may be left out.
                (Shape::One, Kind::Time | Kind::MicroTime) if field.value && !field.omit_zero => {
                    map.insert(field.name.to_owned(), Value::Null);
                }
                (Shape::One, Kind::Quantity) if field.value => {
                    map.insert(field.name.to_owned(), zero);
                }
                _ if !field.omit_empty => {
                    map.insert(field.name.to_owned(), if field.value { zero } else { Value::Null });
                }
                _ => {
                    map.remove(field.name);
                }
            }
        }
    }
}

fn object_meta() -> TypeId {
    TypeId::of_definition("apimachinery.pkg.apis.meta.v1.ObjectMeta").expect("the table has all built-in types")
}

fn json_schema() -> TypeId {
    TypeId::of_definition("apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        .expect("the table has all built-in types")
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_number(go: &str) -> bool {
    matches!(go, "int32" | "int64" | "float64")
}

/// The Go name of one value's type.
fn go_type(field: &Field) -> String {
    let alias = field.markers().go_type;
    if !alias.is_empty() {
        return alias.to_owned();
    }
    match field.kind {
        Kind::String => "string",
        Kind::Bool => "bool",
        Kind::Int32 => "int32",
        Kind::Int64 => "int64",
        Kind::Double => "float64",
        Kind::Bytes => "[]uint8",
        Kind::Quantity => "resource.Quantity",
        Kind::IntOrString => "intstr.IntOrString",
        Kind::Time => "v1.Time",
        Kind::MicroTime => "v1.MicroTime",
        Kind::RawExtension => "runtime.RawExtension",
        Kind::FieldsV1 => "v1.FieldsV1",
        Kind::Json => "v1.JSON",
        Kind::SchemaOrArray => "v1.JSONSchemaPropsOrArray",
        Kind::SchemaOrBool => "v1.JSONSchemaPropsOrBool",
        Kind::SchemaOrStrings => "v1.JSONSchemaPropsOrStringArray",
        Kind::Strings => "[]string",
        Kind::Type(ty) => return format!("{}.{}", ty.get().package(), ty.get().name()),
    }
    .to_owned()
}

/// What Go writes for a zero value.
fn zero(field: &Field) -> Value {
    match field.kind {
        _ if field.shape != Shape::One => Value::Null,
        Kind::String => json!(""),
        Kind::Bool => json!(false),
        Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => json!(0),
        Kind::Quantity => json!("0"),
        _ => Value::Null,
    }
}

/// Whether `omitempty` leaves the value out.
fn is_empty(field: &Field, value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty() && (field.shape == Shape::List || field.kind == Kind::Strings),
        Value::Object(map) => map.is_empty() && field.shape == Shape::Map,
        Value::String(text) => {
            text.is_empty()
                && field.shape == Shape::One
                && (field.kind == Kind::Bytes || field.value && field.kind == Kind::String)
        }
        Value::Bool(flag) => !flag && field.value && field.kind == Kind::Bool,
        Value::Number(number) => {
            field.value
                && matches!(field.kind, Kind::Int32 | Kind::Int64 | Kind::Double)
                && number.as_f64().is_some_and(|n| n == 0.0)
        }
        Value::Null => true,
    }
}

/// The byte that Go's base64 decoder complains about.
fn bad_base64(text: &str) -> usize {
    let bytes = text.as_bytes();
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    let end = bytes.iter().position(|b| !good(*b)).unwrap_or(bytes.len());
    if end == bytes.len() {
        // A last group that is not whole.
        return end - end % 4;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::super::of;
    use super::*;
    use crate::api::Gvk;

    fn ty(group: &'static str, kind: &'static str) -> TypeId {
        of(&Gvk { group: group.into(), version: "v1".into(), kind: kind.into() }).expect("a built-in kind")
    }

    fn decoded(group: &'static str, mut object: Value) -> Value {
        let kind: &'static str = Box::leak(object["kind"].as_str().expect("kind").to_owned().into_boxed_str());
        decode(ty(group, kind), &mut object, Strictness::Strict).expect("valid");
        object
    }

    fn refused(group: &'static str, mut object: Value) -> String {
        let kind: &'static str = Box::leak(object["kind"].as_str().expect("kind").to_owned().into_boxed_str());
        decode(ty(group, kind), &mut object, Strictness::Strict).expect_err("invalid").message
    }

    #[test]
    fn what_go_writes() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {}, "annotations": null},
            "spec": {"hostNetwork": false, "restartPolicy": "", "terminationGracePeriodSeconds": 0, "priority": null,
                "containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": ""}],
                    "resources": {"limits": {"cpu": 1, "memory": "1024Mi"}}}]}});
        assert_eq!(
            decoded("", pod),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
                "spec": {"terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "c", "image": "i", "env": [{"name": "A"}],
                        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]},
                "status": {}})
        );
    }

    #[test]
    fn zero_values_of_required_fields() {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 0}});
        assert_eq!(
            decoded("apps", deployment),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {}, "status": {},
                "spec": {"replicas": 0, "selector": null, "strategy": {},
                    "template": {"metadata": {}, "spec": {"containers": null}}}})
        );
    }

    #[test]
    fn wrong_types_in_go_words() {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": "x"}});
        assert_eq!(
            refused("apps", deployment),
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct \
             field DeploymentSpec.spec.replicas of type int32"
        );
        let pod = |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "spec": spec});
        let prefix = "Pod in version \"v1\" cannot be handled as a Pod: ";
        for (spec, why) in [
            (
                json!({"containers": [{"image": 1}]}),
                "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string",
            ),
            (
                json!({"containers": {}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                json!({"restartPolicy": 1}),
                "json: cannot unmarshal number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
            ),
            (
                json!({"priority": 1.5}),
                "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                json!({"containers": [{"resources": {"limits": {"cpu": "1x"}}}]}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ] {
            assert_eq!(refused("", pod(spec)), format!("{prefix}{why}"));
        }
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "not base64"}});
        assert!(refused("", secret).ends_with(": illegal base64 data at input byte 3"));
    }

    #[test]
    fn quantities_are_canonical() {
        let limits = |text: &str| {
            let pod = json!({"apiVersion": "v1", "kind": "Pod",
                "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": text}}}]}});
            decoded("", pod)["spec"]["containers"][0]["resources"]["limits"]["cpu"].take()
        };
        for (text, canonical) in [
            ("0.1", "100m"),
            ("1.5Gi", "1536Mi"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("12e6", "12e6"),
            (" 0.1Ki ", "102400m"),
        ] {
            assert_eq!(limits(text), canonical, "{text}");
        }
    }

    #[test]
    fn unknown_fields() {
        let pod =
            json!({"apiVersion": "v1", "kind": "Pod", "spec": {"foo": 1, "containers": [{"name": "c", "bar": 2}]}});
        assert_eq!(
            refused("", pod.clone()),
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \
             \"spec.containers[0].bar\", unknown field \"spec.foo\""
        );
        let mut warned = pod.clone();
        let warnings = decode(ty("", "Pod"), &mut warned, Strictness::Warn).expect("valid");
        assert_eq!(warnings, ["unknown field \"spec.containers[0].bar\"", "unknown field \"spec.foo\""]);
        assert_eq!(warned["spec"], json!({"containers": [{"name": "c", "resources": {}}]}));
    }

    #[test]
    fn times_and_conditions() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": []},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00.5+01:00"}]}});
        assert_eq!(
            decoded("", pod)["status"]["conditions"],
            json!([{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2019-12-31T23:00:00Z"}])
        );
    }

    #[test]
    fn decoding_twice_changes_nothing() {
        for id in TypeId::all().filter(|t| t.get().is_kind()) {
            let mut once = json!({"apiVersion": "x", "kind": "y"});
            decode(id, &mut once, Strictness::Strict).expect("an empty object decodes");
            let mut twice = once.clone();
            decode(id, &mut twice, Strictness::Strict).expect("what was decoded decodes");
            assert_eq!(once, twice, "{}", id.get().definition);
        }
    }
}
