//! Definitions of custom resources: their own schema with what every object has around it (`builder` of apiextensions-apiserver).

use serde_json::{Map, Value, json};

use super::schemas::{API_VERSION, Dialect, KIND};
use crate::api::kind::Kind;

const OBJECT_META: &str = "apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "apimachinery.pkg.apis.meta.v1.ListMeta";

/// The name of a definition: the group's domain from behind, the version and the kind.
fn name(kind: &Kind, of: &str) -> String {
    let mut parts: Vec<&str> = kind.gvr.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{of}", parts.join("."), kind.gvr.version)
}

/// A reference to the kind's definition, or its list's; `None` when it is about another kind.
pub(super) fn reference(kind: &Kind, of: &str, dialect: Dialect) -> Option<Value> {
    kind.strategy.custom()?;
    (of == kind.kind || of == kind.list_kind())
        .then(|| json!({"$ref": format!("{}{}", dialect.place(), name(kind, of))}))
}

/// The definitions of a custom resource and its list.
pub(super) fn definitions(kind: &Kind, dialect: Dialect) -> Vec<(String, Value)> {
    let Some(custom) = kind.strategy.custom() else { return Vec::new() };
    let mut object = (*custom.published).clone();
    publish(&mut object, dialect);
    object["type"] = "object".into();
    let gvk = |kind_name: &str| json!([{"group": kind.gvr.group, "version": kind.gvr.version, "kind": kind_name}]);
    object["x-kubernetes-group-version-kind"] = gvk(&kind.kind);
    let properties = object.as_object_mut().expect("it was just indexed").entry("properties");
    if let Some(properties) = properties.or_insert_with(|| Value::Object(Map::new())).as_object_mut() {
        type_meta(properties);
        let text = "Standard object's metadata. More info: \
            https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
        properties.insert("metadata".into(), described(dialect, OBJECT_META, text));
    }
    let list_kind = kind.list_kind();
    let mut properties = Map::new();
    type_meta(&mut properties);
    let text = "Standard list metadata. More info: \
        https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
    properties.insert("metadata".into(), described(dialect, LIST_META, text));
    let about = format!(
        "List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md",
        kind.gvr.resource
    );
    let items = reference(kind, &kind.kind, dialect);
    properties.insert("items".into(), json!({"description": about, "type": "array", "items": items}));
    let list = json!({
        "description": format!("{list_kind} is a list of {}", kind.kind), "type": "object", "required": ["items"],
        "properties": properties, "x-kubernetes-group-version-kind": gvk(&list_kind),
    });
    vec![(name(kind, &kind.kind), object), (name(kind, &list_kind), list)]
}

fn type_meta(properties: &mut Map<String, Value>) {
    properties.insert("apiVersion".into(), json!({"description": API_VERSION, "type": "string"}));
    properties.insert("kind".into(), json!({"description": KIND, "type": "string"}));
}

fn described(dialect: Dialect, definition: &str, text: &str) -> Value {
    let reference = dialect.reference(definition);
    match dialect {
        Dialect::V2 => json!({"$ref": reference["$ref"], "description": text}),
        Dialect::V3 => json!({"allOf": [reference], "description": text}),
    }
}

/// What the dialect can say of a schema. OpenAPI v2 has no combinations and no null (`ToStructuralOpenAPIV2`).
fn publish(schema: &mut Value, dialect: Dialect) {
    let Some(map) = schema.as_object_mut() else { return };
    map.retain(|_, value| !value.is_null());
    let embedded = map.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true));
    if dialect == Dialect::V2 {
        for field in ["allOf", "anyOf", "oneOf", "not"] {
            map.remove(field);
        }
        if map.remove("nullable") == Some(Value::Bool(true)) {
            for field in ["type", "items", "properties", "additionalProperties", "format"] {
                map.remove(field);
            }
        }
        if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
            map.remove("properties");
            map.remove("items");
        }
    }
    if embedded && let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        type_meta(properties);
        properties.insert("metadata".into(), described(dialect, OBJECT_META, ""));
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|property| publish(property, dialect));
    }
    for field in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(field) {
            publish(inner, dialect);
        }
    }
}
