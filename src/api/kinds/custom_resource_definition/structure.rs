//! Whether a schema is structural (`apiserver/schema/validation.go` and `complete.go` of apiextensions-apiserver).

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::api::meta::{items, text};
use crate::api::status::FieldError;
use crate::api::validation::Errors;

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What keeps a schema from being structural.
pub(super) fn validate(schema: &Value, path: &str) -> Errors {
    let mut errors = Errors::new();
    invariants(&mut errors, schema, Level::Root, path);
    complete_all(&mut errors, schema, path);
    errors.sort_by_key(|error| format!("{}: {}", error.field, error.message));
    errors
}

fn flag(schema: &Value, name: &str) -> bool {
    schema[name] == true
}

fn members<'a>(schema: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    schema[name].as_object().into_iter().flatten()
}

fn invariants(errors: &mut Errors, schema: &Value, level: Level, path: &str) {
    let kind = text(&schema["type"]);
    if kind == "array" && !schema["items"].is_object() {
        errors.push(FieldError::required(format!("{path}.items"), "must be specified"));
    }
    if schema["items"].is_object() {
        invariants(errors, &schema["items"], Level::Item, &format!("{path}.items"));
    }
    for (name, property) in members(schema, "properties") {
        invariants(errors, property, Level::Field, &format!("{path}.properties[{name}]"));
    }
    let additional = &schema["additionalProperties"];
    if !additional.is_null() {
        if level == Level::Root {
            let path = format!("{path}.additionalProperties");
            errors.push(FieldError::forbidden(path, "must not be used at the root"));
        }
        if additional.is_object() {
            invariants(errors, additional, Level::Field, &format!("{path}.additionalProperties"));
        }
    }
    let int_or_string = flag(schema, "x-kubernetes-int-or-string");
    for other in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
        if int_or_string && flag(schema, other) {
            let why = "must be false if x-kubernetes-int-or-string is true";
            errors.push(FieldError::invalid(format!("{path}.{other}"), &true.into(), why));
        }
    }
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    let skip_any_of = schema["anyOf"] == either;
    let skip_first = schema["allOf"][0]["anyOf"] == either;
    combinations(errors, schema, skip_any_of, skip_first, path);
    types(errors, schema, level, path);
}

fn types(errors: &mut Errors, schema: &Value, level: Level, path: &str) {
    let kind = text(&schema["type"]);
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let preserves = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let type_path = format!("{path}.type");
    if embedded && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match kind {
            "" => FieldError::required(type_path.clone(), why),
            _ => FieldError::invalid(type_path.clone(), &schema["type"], why),
        });
    } else if kind.is_empty() && !flag(schema, "x-kubernetes-int-or-string") && !preserves {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(type_path.clone(), why));
    }
    if embedded && !schema["additionalProperties"].is_null() {
        let why = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), why));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(FieldError::invalid(type_path, &schema["type"], "must be object at the root"));
    }
    let resource = level == Level::Root || embedded;
    for name in ["kind", "apiVersion"] {
        let property = &schema["properties"][name];
        if resource && property.is_object() && property["type"] != "string" {
            let path = format!("{path}.properties[{name}].type");
            errors.push(FieldError::invalid(path, &text(&property["type"]).into(), "must be string"));
        }
    }
    let metadata = &schema["properties"]["metadata"];
    if metadata.is_object() {
        self::metadata(errors, metadata, resource, level, &format!("{path}.properties[metadata]"));
    }
    if embedded && !preserves && members(schema, "properties").next().is_none() {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without \
            x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(format!("{path}.properties"), why));
    }
}

fn metadata(errors: &mut Errors, metadata: &Value, resource: bool, level: Level, path: &str) {
    if resource && metadata["type"] != "object" {
        errors.push(FieldError::invalid(format!("{path}.type"), &text(&metadata["type"]).into(), "must be object"));
    }
    if level != Level::Root {
        return;
    }
    let mut rest: Map<String, Value> = metadata.as_object().cloned().unwrap_or_default();
    rest.retain(|name, value| !value.is_null() && !["type", "default"].contains(&name.as_str()));
    let named = members(metadata, "properties").all(|(name, _)| name == "name" || name == "generateName");
    if named {
        rest.remove("properties");
    }
    if !rest.is_empty() {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(FieldError::forbidden(path, why));
    }
}

/// `allOf`, `anyOf`, `oneOf`, `not` and `pattern`.
fn combinations(errors: &mut Errors, schema: &Value, skip_any_of: bool, skip_first_all_of: bool, path: &str) {
    for (field, skip) in [("anyOf", skip_any_of), ("allOf", false), ("oneOf", false)] {
        for (index, inner) in items(&schema[field]).iter().enumerate().filter(|_| !skip) {
            let skip_any_of = field == "allOf" && index == 0 && skip_first_all_of;
            nested(errors, inner, skip_any_of, &format!("{path}.{field}[{index}]"));
        }
    }
    if schema["not"].is_object() {
        nested(errors, &schema["not"], false, &format!("{path}.not"));
    }
    let pattern = text(&schema["pattern"]);
    if !pattern.is_empty()
        && let Err(error) = Regex::new(pattern)
    {
        let why = format!("must be a valid regular expression, but isn't: {}", one_line(&error.to_string()));
        errors.push(FieldError::invalid(format!("{path}.pattern"), &schema["pattern"], &why));
    }
}

/// The last line of a multi-line explanation, which says what is wrong.
fn one_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default().trim()
}

/// A schema below a combination: only value validations.
fn nested(errors: &mut Errors, schema: &Value, skip_any_of: bool, path: &str) {
    combinations(errors, schema, skip_any_of, false, path);
    if schema["items"].is_object() {
        nested(errors, &schema["items"], false, &format!("{path}.items"));
    }
    for (name, property) in members(schema, "properties") {
        nested(errors, property, false, &format!("{path}.properties[{name}]"));
    }
    const UNDEFINED: &str = "must be undefined to be structural";
    const EMPTY: &str = "must be empty to be structural";
    const FALSE: &str = "must be false to be structural";
    let forbidden = [
        ("type", EMPTY),
        ("additionalProperties", UNDEFINED),
        ("default", UNDEFINED),
        ("title", EMPTY),
        ("description", EMPTY),
        ("nullable", FALSE),
        ("x-kubernetes-preserve-unknown-fields", FALSE),
        ("x-kubernetes-embedded-resource", FALSE),
        ("x-kubernetes-int-or-string", FALSE),
        ("x-kubernetes-list-map-keys", EMPTY),
        ("x-kubernetes-list-type", UNDEFINED),
        ("x-kubernetes-map-type", UNDEFINED),
        ("x-kubernetes-validations", EMPTY),
    ];
    for (field, why) in forbidden {
        let value = &schema[field];
        let empty = value.is_null() || *value == false && why == FALSE || value.as_array().is_some_and(Vec::is_empty);
        if !empty {
            errors.push(FieldError::forbidden(format!("{path}.{field}"), why));
        }
    }
    if schema["properties"]["metadata"].is_object() {
        let path = format!("{path}.properties[metadata]");
        errors.push(FieldError::forbidden(path, "must not be specified in a nested context"));
    }
}

/// Every field that a combination speaks of is specified outside of it.
fn complete_all(errors: &mut Errors, schema: &Value, path: &str) {
    if !errors.is_empty() {
        return;
    }
    complete(errors, schema, schema, path, path);
    if schema["items"].is_object() {
        complete_all(errors, &schema["items"], &format!("{path}.items"));
    }
    for (name, property) in members(schema, "properties") {
        complete_all(errors, property, &format!("{path}.properties[{name}]"));
    }
    if schema["additionalProperties"].is_object() {
        complete_all(errors, &schema["additionalProperties"], &format!("{path}.additionalProperties"));
    }
}

fn complete(errors: &mut Errors, nested: &Value, schema: &Value, schema_path: &str, path: &str) {
    let lists = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|field| {
        items(&nested[field]).iter().enumerate().map(move |(index, inner)| (format!("{path}.{field}[{index}]"), inner))
    });
    let not = nested["not"].is_object().then(|| (format!("{path}.not"), &nested["not"]));
    for (path, inner) in lists.chain(not) {
        complete_nested(errors, inner, schema, schema_path, &path);
    }
}

fn complete_nested(errors: &mut Errors, nested: &Value, schema: &Value, schema_path: &str, path: &str) {
    if !schema.is_object() {
        errors.push(FieldError::required(schema_path, &format!("because it is defined in {path}")));
        return;
    }
    complete(errors, nested, schema, schema_path, path);
    if nested["items"].is_object() {
        let (schema_path, path) = (format!("{schema_path}.items"), format!("{path}.items"));
        complete_nested(errors, &nested["items"], &schema["items"], &schema_path, &path);
    }
    for (name, property) in members(nested, "properties") {
        let (schema_path, path) = (format!("{schema_path}.properties[{name}]"), format!("{path}.properties[{name}]"));
        complete_nested(errors, property, &schema["properties"][name], &schema_path, &path);
    }
}
