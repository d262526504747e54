//! Defaults of a schema, and nulls that stand for absence (`apiserver/schema/defaulting` of apiextensions-apiserver).

use serde_json::Value;

use super::{Additional, Structural};

/// Writes defaults where fields are absent, or null although their schema is not nullable.
pub fn apply_defaults(schema: &Structural, value: &mut Value) {
    if !schema.has_defaults {
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                match map.get(name) {
                    None => drop(map.insert(name.clone(), default.clone())),
                    Some(Value::Null) if !property.nullable => drop(map.insert(name.clone(), default.clone())),
                    Some(_) => {}
                }
            }
            for (name, inner) in map.iter_mut() {
                if let Some(property) = schema.properties.get(name) {
                    apply_defaults(property, inner);
                } else if let Some(Additional::Schema(values)) = &schema.additional {
                    if let (Value::Null, Some(default), false) = (&*inner, &values.default, values.nullable) {
                        *inner = default.clone();
                    }
                    apply_defaults(values, inner);
                }
            }
        }
        Value::Array(elements) => {
            let Some(items) = &schema.items else { return };
            for element in elements {
                if let (Value::Null, Some(default), false) = (&*element, &items.default, items.nullable) {
                    *element = default.clone();
                }
                apply_defaults(items, element);
            }
        }
        _ => {}
    }
}

/// Removes nulls of members that are not nullable and have no default (`PruneNonNullableNullsWithoutDefaults`).
pub fn drop_nulls(schema: &Structural, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|name, inner| {
                let Some(member) = schema.member(name) else { return true };
                if inner.is_null() && !member.nullable && member.default.is_none() {
                    return false;
                }
                drop_nulls(member, inner);
                true
            });
        }
        Value::Array(elements) => {
            if let Some(items) = &schema.items {
                elements.iter_mut().for_each(|element| drop_nulls(items, element));
            }
        }
        _ => {}
    }
}
