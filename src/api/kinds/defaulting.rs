//! Setting defaults in objects whose shape may be wrong (the schema has not necessarily been checked).

use serde_json::{Map, Value};

/// Sets a field that is absent or null.
pub fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        if map.get(key).is_none_or(Value::is_null) {
            map.insert(key.to_owned(), value.into());
        }
    }
}

/// Sets a string field whose empty value means unset.
pub fn set_text(object: &mut Value, key: &str, value: &str) {
    if object.get(key).is_none_or(|old| old.is_null() || old == "") {
        if let Some(map) = object.as_object_mut() {
            map.insert(key.to_owned(), value.into());
        }
    }
}

/// Sets a number field whose 0 means unset.
pub fn set_number(object: &mut Value, key: &str, value: impl Into<Value>) {
    if object.get(key).is_none_or(|old| old.is_null() || old.as_i64() == Some(0)) {
        if let Some(map) = object.as_object_mut() {
            map.insert(key.to_owned(), value.into());
        }
    }
}

/// The field as an object, made empty when absent; `None` when it (or its owner) is something else.
pub fn ensure_object<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    set(object, key, Map::new());
    object.get_mut(key).filter(|value| value.is_object())
}

/// The items of an array field, for writing.
pub fn each<'a>(object: &'a mut Value, key: &str) -> std::slice::IterMut<'a, Value> {
    object.get_mut(key).and_then(Value::as_array_mut).map(|array| array.iter_mut()).unwrap_or_default()
}
