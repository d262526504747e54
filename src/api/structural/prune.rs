//! Pruning: what a schema does not specify goes (`apiserver/schema/pruning` of apiextensions-apiserver).

use serde_json::{Map, Value};

use super::{Additional, Structural};

/// What every object may have beside its schema's properties, at the root and in embedded resources.
const TYPE_META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes unspecified fields of a custom resource and returns their paths, such as `spec.parts[0].extra`, sorted.
pub fn prune(schema: &Structural, object: &mut Value) -> Vec<String> {
    let mut found = Vec::new();
    visit(schema, object, true, &mut String::new(), &mut found);
    found.sort();
    found
}

/// Whether a value has only what its schema specifies.
pub fn is_pruned(schema: &Structural, value: &Value, root: bool) -> bool {
    let mut found = Vec::new();
    visit(schema, &mut value.clone(), root, &mut String::new(), &mut found);
    found.is_empty()
}

fn visit(schema: &Structural, value: &mut Value, resource: bool, path: &mut String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => object(schema, map, resource || schema.embedded_resource, path, found),
        Value::Array(elements) => {
            let Some(items) = &schema.items else {
                // A list without a schema: only what nothing prunes is kept in its elements.
                if !schema.preserve_unknown {
                    elements.iter_mut().for_each(|v| visit(&NOTHING, v, false, path, found));
                }
                return;
            };
            let length = path.len();
            for (index, element) in elements.iter_mut().enumerate() {
                path.push_str(&format!("[{index}]"));
                visit(items, element, false, path, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// The schema of what has none: every field goes.
static NOTHING: std::sync::LazyLock<Structural> = std::sync::LazyLock::new(Structural::default);

fn object(
    schema: &Structural,
    map: &mut Map<String, Value>,
    resource: bool,
    path: &mut String,
    found: &mut Vec<String>,
) {
    let length = path.len();
    let enter = |name: &str, path: &mut String| {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
    };
    map.retain(|name, value| {
        if resource && TYPE_META.contains(&name.as_str()) {
            return true;
        }
        enter(name, path);
        let keep = match (schema.properties.get(name), &schema.additional) {
            (Some(property), _) => {
                visit(property, value, false, path, found);
                true
            }
            (None, Some(Additional::Schema(values))) => {
                visit(values, value, false, path, found);
                true
            }
            (None, Some(Additional::Allowed(true))) => true,
            (None, _) => schema.preserve_unknown,
        };
        if !keep {
            found.push(path.clone());
        }
        path.truncate(length);
        keep
    });
}
