//! The schema of each type, in the two dialects.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::api::schema::{Descriptions, Field, Kind, ListType, Shape, TypeId};

/// OpenAPI v2 (Swagger) or v3.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// A reference to a definition (without `io.k8s.`).
    pub(super) fn reference(self, definition: &str) -> Value {
        json!({"$ref": format!("{}io.k8s.{definition}", self.place())})
    }
    /// Where definitions are.
    pub(super) fn place(self) -> &'static str {
        match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        }
    }
}

const QUANTITY: &str = "apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "apimachinery.pkg.apis.meta.v1.MicroTime";
const RAW_EXTENSION: &str = "apimachinery.pkg.runtime.RawExtension";
const FIELDS_V1: &str = "apimachinery.pkg.apis.meta.v1.FieldsV1";
const JSON: &str = "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";
const SCHEMA_OR_ARRAY: &str = "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray";
const SCHEMA_OR_BOOL: &str = "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool";
const SCHEMA_OR_STRINGS: &str = "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray";
const SCHEMA: &str = "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Definitions of types that are no structs of fields; every document has them all.
pub(super) fn leaves(dialect: Dialect, texts: &Descriptions) -> impl Iterator<Item = (String, Value)> {
    let number_or_string = json!([{"type": "string"}, {"type": "number"}]);
    let int_or_string = match dialect {
        Dialect::V2 => json!({"type": "string", "format": "int-or-string"}),
        Dialect::V3 => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
    };
    let quantity = match dialect {
        Dialect::V2 => json!({"type": "string"}),
        Dialect::V3 => json!({"oneOf": number_or_string}),
    };
    let time = json!({"type": "string", "format": "date-time"});
    let leaves = [
        (QUANTITY, quantity),
        (INT_OR_STRING, int_or_string),
        (TIME, time.clone()),
        (MICRO_TIME, time),
        (RAW_EXTENSION, json!({"type": "object"})),
        (FIELDS_V1, json!({"type": "object"})),
        (JSON, json!({})),
        (SCHEMA_OR_ARRAY, json!({})),
        (SCHEMA_OR_BOOL, json!({})),
        (SCHEMA_OR_STRINGS, json!({})),
    ];
    let leaves = leaves.map(|(definition, mut schema)| {
        let text = match TypeId::of_definition(definition).and_then(|ty| texts.of(ty).next()) {
            Some(text) => text,
            None if definition == INT_OR_STRING => {
                "IntOrString is a type that can hold an int32 or a string.  When used in JSON or YAML marshalling and \
                 unmarshalling, it produces or consumes the inner type.  This allows you to have, for example, a JSON \
                 field that can accept a name or number."
            }
            None => "A JSON Schema, or another of the forms that JSON Schema allows in this place.",
        };
        schema["description"] = text.into();
        (format!("io.k8s.{definition}"), schema)
    });
    leaves.into_iter()
}

/// The types that these need, themselves included.
pub(super) fn reachable(roots: impl Iterator<Item = TypeId>) -> Vec<TypeId> {
    let mut found: BTreeSet<TypeId> = BTreeSet::new();
    let mut open: Vec<TypeId> = roots.chain(TypeId::of_definition(SCHEMA)).collect();
    while let Some(ty) = open.pop() {
        if found.insert(ty) {
            open.extend(ty.get().fields.iter().filter_map(|f| match f.kind {
                Kind::Type(inner) => Some(inner),
                _ => None,
            }));
        }
    }
    found.into_iter().filter(|ty| !is_leaf(ty.get().definition)).collect()
}

fn is_leaf(definition: &str) -> bool {
    [QUANTITY, TIME, MICRO_TIME, RAW_EXTENSION, FIELDS_V1, JSON].contains(&definition)
}

/// The definition of a type.
pub(super) fn of(ty: TypeId, dialect: Dialect, texts: &Descriptions) -> (String, Value) {
    let info = ty.get();
    let mut texts = texts.of(ty);
    let mut schema = Map::new();
    schema.insert("description".into(), texts.next().unwrap_or_default().into());
    schema.insert("type".into(), "object".into());
    let mut properties = Map::new();
    if info.is_kind() {
        properties.insert("apiVersion".into(), json!({"description": API_VERSION, "type": "string"}));
        properties.insert("kind".into(), json!({"description": KIND, "type": "string"}));
    }
    for (field, text) in info.fields.iter().zip(texts) {
        properties.insert(field.name.to_owned(), property(field, text, dialect));
    }
    if !properties.is_empty() {
        schema.insert("properties".into(), properties.into());
    }
    let required: Vec<&str> = info.fields.iter().filter(|f| f.required).map(|f| f.name).collect();
    if !required.is_empty() {
        schema.insert("required".into(), required.into());
    }
    if info.atomic {
        schema.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if info.is_kind() {
        let gvk = json!([{"group": info.group, "kind": info.kind, "version": info.version}]);
        schema.insert("x-kubernetes-group-version-kind".into(), gvk);
    }
    (format!("io.k8s.{}", info.definition), schema.into())
}

pub(super) const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should \
    convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
pub(super) const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer \
    this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// The schema of one value.
fn item(field: &Field, dialect: Dialect) -> Value {
    match field.kind {
        Kind::String => json!({"type": "string"}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 => json!({"type": "integer", "format": "int32"}),
        Kind::Int64 => json!({"type": "integer", "format": "int64"}),
        Kind::Double => json!({"type": "number", "format": "double"}),
        Kind::Bytes => json!({"type": "string", "format": "byte"}),
        Kind::Strings => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Quantity => dialect.reference(QUANTITY),
        Kind::IntOrString => dialect.reference(INT_OR_STRING),
        Kind::Time => dialect.reference(TIME),
        Kind::MicroTime => dialect.reference(MICRO_TIME),
        Kind::RawExtension => dialect.reference(RAW_EXTENSION),
        Kind::FieldsV1 => dialect.reference(FIELDS_V1),
        Kind::Json => dialect.reference(JSON),
        Kind::SchemaOrArray => dialect.reference(SCHEMA_OR_ARRAY),
        Kind::SchemaOrBool => dialect.reference(SCHEMA_OR_BOOL),
        Kind::SchemaOrStrings => dialect.reference(SCHEMA_OR_STRINGS),
        Kind::Type(ty) => dialect.reference(ty.get().definition),
    }
}

fn property(field: &Field, text: &str, dialect: Dialect) -> Value {
    let item = item(field, dialect);
    let mut schema = match field.shape {
        Shape::List => json!({"type": "array", "items": item}),
        Shape::Map => json!({"type": "object", "additionalProperties": item}),
        // In v3 a reference may have no siblings.
        Shape::One if dialect == Dialect::V3 && item.get("$ref").is_some() => json!({"allOf": [item]}),
        Shape::One => item,
    };
    if !text.is_empty() {
        schema["description"] = text.into();
    }
    let markers = field.markers();
    if let Some(list_type) = markers.list_type {
        schema["x-kubernetes-list-type"] = match list_type {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        }
        .into();
    }
    if !markers.list_map_keys.is_empty() {
        schema["x-kubernetes-list-map-keys"] = markers.list_map_keys.clone().into();
    }
    if markers.atomic {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    if !markers.patch_strategy.is_empty() {
        schema["x-kubernetes-patch-strategy"] = markers.patch_strategy.into();
    }
    if !markers.patch_merge_key.is_empty() {
        schema["x-kubernetes-patch-merge-key"] = markers.patch_merge_key.into();
    }
    if !markers.default.is_empty() {
        schema["default"] = serde_json::from_str(markers.default).expect("the generator checked it");
    }
    schema
}
