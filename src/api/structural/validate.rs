//! Values against a schema, with the messages of kube-openapi's validator; what an update leaves alone is not held against it
//! (KEP-4008, ratcheting).

use serde_json::Value;

use super::{Limits, Structural, Type, formats};
use crate::api::schema::ListType;
use crate::api::status::FieldError;

/// What is wrong with an object. With `old`, parts that are as they were are right.
pub fn validate(schema: &Structural, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    visit(schema, value, old, "", &mut errors);
    errors
}

/// The elements of an old list by their keys, where the schema says that it is a map.
pub(super) fn correlated<'a>(schema: &Structural, element: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
    if schema.list_type != Some(ListType::Map) {
        return None;
    }
    let same = |other: &&Value| schema.list_map_keys.iter().all(|key| other.get(key) == element.get(key));
    old?.as_array()?.iter().find(same)
}

/// The path of a member.
pub(super) fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn visit(schema: &Structural, value: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    if old == Some(value) || value.is_null() && schema.nullable {
        return;
    }
    check_type(schema, value, path, errors);
    combine(&schema.limits, value, path, errors);
    check_value(schema, value, path, errors);
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                if let Some(member) = schema.member(name) {
                    visit(member, inner, old.and_then(|old| old.get(name)), &below(path, name), errors);
                }
            }
        }
        Value::Array(elements) => {
            let Some(items) = &schema.items else { return };
            for (index, element) in elements.iter().enumerate() {
                visit(items, element, correlated(schema, element, old), &format!("{path}[{index}]"), errors);
            }
        }
        _ => {}
    }
}

/// The name of a value's type.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
        Value::Number(_) if is_whole(value) => "integer",
        Value::Number(_) => "number",
    }
}

fn is_whole(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0 && n.abs() < 9.0e15)
}

fn wrong_type(path: &str, shown: &str, expected: &str) -> FieldError {
    let message = format!("Invalid value: {shown:?}: {path} in body must be of type {expected}: {shown:?}");
    FieldError { reason: "FieldValueTypeInvalid", field: field(path), message }
}

/// Errors at the root have a path too.
fn field(path: &str) -> String {
    if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() }
}

fn check_type(schema: &Structural, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let (fits, expected) = match schema.kind {
        Type::Any if schema.int_or_string => (value.is_string() || is_whole(value), "integer,string"),
        Type::Any => (true, ""),
        Type::Object => (value.is_object(), "object"),
        Type::Array => (value.is_array(), "array"),
        Type::String => (value.is_string(), "string"),
        Type::Integer => (is_whole(value), "integer"),
        Type::Number => (value.is_number(), "number"),
        Type::Boolean => (value.is_boolean(), "boolean"),
    };
    if !fits {
        errors.push(wrong_type(path, type_name(value), expected));
    }
}

/// `allOf`, `anyOf`, `oneOf` and `not`. These errors belong to no field.
fn combine(limits: &Limits, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let unnamed = |message: String| FieldError {
        reason: "FieldValueInvalid",
        field: "<nil>".to_owned(),
        message: format!("Invalid value: \"\": {message}"),
    };
    let results = |schemas: &[Structural]| -> Vec<Vec<FieldError>> {
        let one = |schema: &Structural| {
            let mut errors = Vec::new();
            visit(schema, value, None, path, &mut errors);
            errors
        };
        schemas.iter().map(one).collect()
    };
    let fewest = |all: Vec<Vec<FieldError>>| all.into_iter().min_by_key(Vec::len).unwrap_or_default();
    if !limits.any_of.is_empty() {
        let all = results(&limits.any_of);
        if all.iter().all(|errors| !errors.is_empty()) {
            errors.push(unnamed(format!("{path:?} must validate at least one schema (anyOf)")));
            errors.extend(fewest(all));
        }
    }
    if !limits.one_of.is_empty() {
        let all = results(&limits.one_of);
        match all.iter().filter(|errors| errors.is_empty()).count() {
            1 => {}
            0 => {
                let found = "Found none valid";
                errors.push(unnamed(format!("{path:?} must validate one and only one schema (oneOf). {found}")));
                errors.extend(fewest(all));
            }
            valid => {
                let found = format!("Found {valid} valid alternatives");
                errors.push(unnamed(format!("{path:?} must validate one and only one schema (oneOf). {found}")));
            }
        }
    }
    if !limits.all_of.is_empty() {
        let all = results(&limits.all_of);
        let valid = all.iter().filter(|errors| errors.is_empty()).count();
        if valid < all.len() {
            let none = if valid == 0 { ". None validated" } else { "" };
            errors.extend(all.into_iter().flatten());
            errors.push(unnamed(format!("{path:?} must validate all the schemas (allOf){none}")));
        }
    }
    if let Some(not) = &limits.not
        && results(std::slice::from_ref(not))[0].is_empty()
    {
        errors.push(unnamed(format!("{path:?} must not validate the schema (not)")));
    }
}

/// What the value itself must be like.
fn check_value(schema: &Structural, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let limits = &schema.limits;
    if !limits.enumeration.is_empty() && !limits.enumeration.iter().any(|allowed| same(allowed, value)) {
        let words: Vec<String> = limits
            .enumeration
            .iter()
            .map(|allowed| allowed.as_str().map_or_else(|| allowed.to_string(), str::to_owned))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(field(path), value, &words));
    }
    match value {
        Value::String(text) => check_text(limits, text, path, errors),
        Value::Number(_) => check_number(limits, value, path, errors),
        Value::Array(elements) => {
            let mut invalid = |why: &str| {
                errors.push(FieldError::invalid(field(path), &elements.len().into(), &format!("{path} in body {why}")));
            };
            if let Some(min) = limits.min_items.filter(|min| (elements.len() as u64) < *min) {
                invalid(&format!("should have at least {min} items"));
            }
            if let Some(max) = limits.max_items.filter(|max| elements.len() as u64 > *max) {
                errors.push(FieldError::too_many(field(path), elements.len(), size(max)));
            }
        }
        Value::Object(map) => {
            if let Some(min) = limits.min_properties.filter(|min| (map.len() as u64) < *min) {
                let why = format!("{path} in body should have at least {min} properties");
                errors.push(FieldError::invalid(field(path), &map.len().into(), &why));
            }
            if let Some(max) = limits.max_properties.filter(|max| map.len() as u64 > *max) {
                errors.push(FieldError::too_many(field(path), map.len(), size(max)));
            }
            for name in limits.required.iter().filter(|name| !map.contains_key(*name)) {
                errors.push(FieldError::required(below(path, name), ""));
            }
        }
        _ => {}
    }
}

fn size(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Equality in which 1 and 1.0 are the same.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.is_number() && b.is_number() && a.as_f64() == b.as_f64()
}

fn check_text(limits: &Limits, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let value = Value::from(text);
    let length = if limits.max_length.is_some() || limits.min_length.is_some() { text.chars().count() } else { 0 };
    if let Some(max) = limits.max_length.filter(|max| length as u64 > *max) {
        errors.push(FieldError::too_long(field(path), size(max)));
    }
    if let Some(min) = limits.min_length.filter(|min| (length as u64) < *min) {
        let why = format!("{path} in body should be at least {min} chars long");
        errors.push(FieldError::invalid(field(path), &value, &why));
    }
    if let Some((source, Some(pattern))) = &limits.pattern
        && !pattern.is_match(text)
    {
        let why = format!("{path} in body should match '{source}'");
        errors.push(FieldError::invalid(field(path), &value, &why));
    }
    if !limits.format.is_empty() && formats::matches(&limits.format, text) == Some(false) {
        errors.push(wrong_type(path, text, &limits.format));
    }
}

fn check_number(limits: &Limits, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let number = value.as_f64().unwrap_or_default();
    let mut invalid = |why: String| {
        errors.push(FieldError::invalid(field(path), value, &format!("{path} in body should be {why}")));
    };
    if let Some(factor) = &limits.multiple_of {
        let quotient = number / factor.as_f64().unwrap_or(1.0);
        if quotient.fract() != 0.0 || !quotient.is_finite() {
            invalid(format!("a multiple of {factor}"));
        }
    }
    // Whole numbers beyond 2^53 are not the same as floats.
    let order = |bound: &Value| match (value.as_i64(), bound.as_i64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b),
        _ => number.partial_cmp(&bound.as_f64().unwrap_or_default()),
    };
    if let Some((max, exclusive)) = &limits.maximum {
        let order = order(max);
        if order == Some(std::cmp::Ordering::Greater) || *exclusive && order == Some(std::cmp::Ordering::Equal) {
            invalid(format!("less than {}{max}", if *exclusive { "" } else { "or equal to " }));
        }
    }
    if let Some((min, exclusive)) = &limits.minimum {
        let order = order(min);
        if order == Some(std::cmp::Ordering::Less) || *exclusive && order == Some(std::cmp::Ordering::Equal) {
            invalid(format!("greater than {}{min}", if *exclusive { "" } else { "or equal to " }));
        }
    }
}
