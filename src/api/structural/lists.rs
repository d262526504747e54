//! Lists that are sets or maps: no element twice (`apiserver/schema/listtype` of apiextensions-apiserver).

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::Structural;
use crate::api::schema::ListType;
use crate::api::status::FieldError;

/// What is there twice in lists of the object.
pub fn validate_list_types(schema: &Structural, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    visit(schema, value, "", &mut errors);
    errors
}

fn visit(schema: &Structural, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if !schema.has_list_types {
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                let Some(member) = schema.member(name) else { continue };
                let below = match (schema.properties.contains_key(name), path) {
                    (true, "") => name.clone(),
                    (true, _) => format!("{path}.{name}"),
                    (false, _) => format!("{path}[{name}]"),
                };
                visit(member, inner, &below, errors);
            }
        }
        Value::Array(elements) => {
            duplicates(schema, elements, path, errors);
            let Some(items) = &schema.items else { return };
            for (index, element) in elements.iter().enumerate() {
                visit(items, element, &format!("{path}[{index}]"), errors);
            }
        }
        _ => {}
    }
}

fn duplicates(schema: &Structural, elements: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let key: Box<dyn Fn(&Value) -> Value> = match schema.list_type {
        Some(ListType::Set) => Box::new(Value::clone),
        Some(ListType::Map) => Box::new(|element| keys(schema, element)),
        _ => return,
    };
    let mut seen = HashSet::new();
    let mut told = HashSet::new();
    for (index, element) in elements.iter().enumerate() {
        let key = key(element);
        let text = key.to_string();
        if !seen.insert(text.clone()) && told.insert(text) {
            errors.push(FieldError::duplicate(format!("{path}[{index}]"), &key));
        }
    }
}

fn keys(schema: &Structural, element: &Value) -> Value {
    let present = schema.list_map_keys.iter().filter_map(|key| Some((key.clone(), element.get(key)?.clone())));
    Value::Object(present.collect::<Map<String, Value>>())
}
