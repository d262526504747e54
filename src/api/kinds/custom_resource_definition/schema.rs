//! Validation of one schema of a definition: what OpenAPI v3 in definitions allows, defaults, list and map types.

use serde_json::Value;

use super::structure;
use crate::api::meta::{items, text};
use crate::api::status::FieldError;
use crate::api::structural::{self, Structural};
use crate::api::validation::Errors;

/// Formats of strings that are checked or at least known.
pub(super) const KNOWN_FORMATS: [&str; 27] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "date-time",
    "datetime",
    "k8s-short-name",
    "k8s-long-name",
];

/// Fields that a root with a status subresource may have.
const ALLOWED_AT_ROOT: [(&str, &str); 22] = [
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    ("x-kubernetes-preserve-unknown-fields", "XPreserveUnknownFields"),
    ("x-kubernetes-validations", "XValidations"),
];

/// What a place in a schema allows.
#[derive(Clone, Default)]
struct Place {
    /// Why defaults are forbidden here.
    no_defaults: Option<String>,
    inside_metadata: bool,
}

/// The schemas of members and items, with the names of their places.
pub(super) fn children(schema: &Value) -> Vec<(String, &Value)> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let mut found: Vec<(String, &Value)> =
        properties.map(|(name, inner)| (format!("properties[{name}]"), inner)).collect();
    for field in ["items", "additionalProperties"] {
        if schema[field].is_object() {
            found.push((field.to_owned(), &schema[field]));
        }
    }
    found
}

/// Validates a schema. `unchanged`: it is stored already.
pub(super) fn validate(errors: &mut Errors, schema: &Value, has_status: bool, path: &str, unchanged: bool) {
    let before = errors.len();
    let root = format!("{path}.openAPIV3Schema");
    if has_status {
        check_root(errors, schema, &root);
    }
    if schema["nullable"] == true {
        errors.push(FieldError::forbidden(format!("{root}.nullable"), "nullable cannot be true at the root"));
    }
    let not_structural = structure::validate(schema, &root);
    let is_structural = not_structural.is_empty();
    errors.extend(not_structural);
    if is_structural {
        defaults(errors, schema, &root, true);
    }
    let mut found = Errors::new();
    visit(&mut found, schema, &Place::default(), &root, true);
    errors.extend(found);
    if errors.len() == before {
        super::rules::validate(errors, schema, &root, unchanged);
    }
}

fn check_root(errors: &mut Errors, schema: &Value, path: &str) {
    let kind = &schema["type"];
    if !kind.is_null() && kind != "object" {
        let why =
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.push(FieldError::invalid(format!("{path}.type"), kind, why));
        return;
    }
    let others = schema.as_object().into_iter().flatten();
    let other =
        others.filter(|(_, value)| !value.is_null()).any(|(name, _)| !ALLOWED_AT_ROOT.iter().any(|(n, _)| n == name));
    if other {
        let names: Vec<&str> = ALLOWED_AT_ROOT.iter().map(|(_, go)| *go).collect();
        let why = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            names.join(" ")
        );
        errors.push(FieldError::invalid(path, schema, &why));
    }
}

/// Defaults fit their own schema and have nothing that would be pruned.
fn defaults(errors: &mut Errors, schema: &Value, path: &str, root: bool) {
    if let Some(default) = schema.get("default").filter(|default| !default.is_null() && !root) {
        let path = format!("{path}.default");
        let compiled = Structural::new(schema);
        if !structural::is_pruned(&compiled, default, compiled.embedded_resource) {
            errors.push(FieldError::invalid(path, default, "must not have unknown fields"));
            return;
        }
        for mut error in structural::validate(&compiled, default, None) {
            error.field = match error.field.as_str() {
                "<nil>" => path.clone(),
                below => format!("{path}.{below}"),
            };
            errors.push(error);
        }
        for mut error in structural::validate_list_types(&compiled, default) {
            error.field = format!("{path}{}", error.field);
            errors.push(error);
        }
    }
    for (place, inner) in children(schema) {
        defaults(errors, inner, &format!("{path}.{place}"), false);
    }
}

fn visit(errors: &mut Errors, schema: &Value, place: &Place, path: &str, root: bool) {
    forbidden(errors, schema, place, path);
    if schema["uniqueItems"] == true {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(format!("{path}.uniqueItems"), why));
    }
    let additional = &schema["additionalProperties"];
    let has_properties = schema["properties"].as_object().is_some_and(|map| !map.is_empty());
    if !additional.is_null() && has_properties && (*additional == false || additional.is_object()) {
        let why = "additionalProperties and properties are mutual exclusive";
        errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), why));
    }
    if additional.is_object() {
        let mut inner = place.clone();
        if place.inside_metadata {
            inner.no_defaults = Some("inside additionalProperties applying to object metadata".to_owned());
        }
        visit(errors, additional, &inner, &format!("{path}.additionalProperties"), false);
    }
    let resource = root || schema["x-kubernetes-embedded-resource"] == true;
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let mut inner = place.clone();
        if resource && ["metadata", "kind", "apiVersion"].contains(&name.as_str()) {
            inner.inside_metadata = true;
            if root {
                inner.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        visit(errors, property, &inner, &format!("{path}.properties[{name}]"), false);
    }
    if schema["not"].is_object() {
        visit(errors, &schema["not"], place, &format!("{path}.not"), false);
    }
    for field in ["allOf", "oneOf", "anyOf"] {
        for (index, inner) in items(&schema[field]).iter().enumerate() {
            visit(errors, inner, place, &format!("{path}.{field}[{index}]"), false);
        }
    }
    if schema["items"].is_object() {
        visit(errors, &schema["items"], place, &format!("{path}.items"), false);
    }
    list_and_map_types(errors, schema, path);
    super::rules::shape(errors, schema, path);
}

/// What JSON Schema has and definitions do not.
fn forbidden(errors: &mut Errors, schema: &Value, place: &Place, path: &str) {
    const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
    let kind = text(&schema["type"]);
    if !kind.is_empty() && !TYPES.contains(&kind) {
        errors.push(FieldError::not_supported(format!("{path}.type"), &schema["type"], &TYPES));
    }
    if let (false, Some(reason)) = (schema["default"].is_null(), &place.no_defaults) {
        errors.push(FieldError::forbidden(format!("{path}.default"), &format!("must not be set {reason}")));
    }
    for field in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        let value = &schema[field];
        if !value.is_null() && *value != "" && value.as_object().is_none_or(|map| !map.is_empty()) {
            errors.push(FieldError::forbidden(format!("{path}.{field}"), &format!("{field} is not supported")));
        }
    }
    if kind == "null" {
        let why = "type cannot be set to null, use nullable as an alternative";
        errors.push(FieldError::forbidden(format!("{path}.type"), why));
    }
    if schema["items"].is_array() {
        errors.push(FieldError::forbidden(format!("{path}.items"), "items must be a schema object and not an array"));
    }
    if place.inside_metadata && schema["x-kubernetes-embedded-resource"] == true {
        let path = format!("{path}.x-kubernetes-embedded-resource");
        errors.push(FieldError::forbidden(path, "must not be used inside of resource meta"));
    }
}

fn list_and_map_types(errors: &mut Errors, schema: &Value, path: &str) {
    let preserve = &schema["x-kubernetes-preserve-unknown-fields"];
    if *preserve == false {
        let path = format!("{path}.x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(path, preserve, "must be true or undefined"));
    }
    let kind = text(&schema["type"]);
    let type_path = format!("{path}.type");
    for (extension, wanted, allowed) in [
        ("x-kubernetes-map-type", "object", &["atomic", "granular"][..]),
        ("x-kubernetes-list-type", "array", &["atomic", "set", "map"][..]),
    ] {
        let value = &schema[extension];
        if value.is_null() {
            continue;
        }
        if kind != wanted {
            let why = format!("must be {wanted} if {extension} is specified");
            errors.push(match kind {
                "" => FieldError::required(type_path.clone(), &why),
                _ => FieldError::invalid(type_path.clone(), &schema["type"], &why),
            });
        }
        if !allowed.contains(&text(value)) {
            errors.push(FieldError::not_supported(format!("{path}.{extension}"), value, allowed));
        }
    }
    let (list_type, element) = (text(&schema["x-kubernetes-list-type"]), &schema["items"]);
    if list_type == "set" && element.is_object() {
        set_items(errors, element, path);
    }
    map_keys(errors, schema, path);
    if ["set", "map"].contains(&list_type) && element["nullable"] == true {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(FieldError::forbidden(format!("{path}.items.nullable"), &why));
    }
}

fn set_items(errors: &mut Errors, element: &Value, path: &str) {
    let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let (field, fits) = match text(&element["type"]) {
        "array" => ("x-kubernetes-list-type", ["", "atomic"].contains(&text(&element["x-kubernetes-list-type"]))),
        "object" => ("x-kubernetes-map-type", element["x-kubernetes-map-type"] == "atomic"),
        _ => return,
    };
    if !fits {
        errors.push(FieldError::invalid(format!("{path}.items.{field}"), &element[field], why));
    }
}

fn map_keys(errors: &mut Errors, schema: &Value, path: &str) {
    let (list_type, keys) = (&schema["x-kubernetes-list-type"], &schema["x-kubernetes-list-map-keys"]);
    let keys_path = format!("{path}.x-kubernetes-list-map-keys");
    if !items(keys).is_empty() && list_type != "map" {
        let (path, why) =
            (format!("{path}.x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty");
        errors.push(match list_type.is_null() {
            true => FieldError::required(path, why),
            false => FieldError::invalid(path, list_type, why),
        });
    }
    if list_type != "map" {
        return;
    }
    if items(keys).is_empty() {
        errors.push(FieldError::required(keys_path.clone(), "must not be empty if x-kubernetes-list-type is map"));
    }
    let element = &schema["items"];
    if !element.is_object() {
        let why = "must have a schema if x-kubernetes-list-type is map";
        errors.push(FieldError::required(format!("{path}.items"), why));
        return;
    }
    if element["type"] != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(format!("{path}.items.type"), &text(&element["type"]).into(), why));
        return;
    }
    for (index, key) in items(keys).iter().enumerate() {
        let property = &element["properties"][text(key)];
        let property_path = format!("{path}.items.properties[{}]", text(key));
        if !property.is_object() {
            let why = "entries must all be names of item properties";
            errors.push(FieldError::invalid(keys_path.clone(), keys, why));
            continue;
        }
        if ["array", "object"].contains(&text(&property["type"])) {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.push(FieldError::invalid(format!("{property_path}.type"), &element["type"], why));
        }
        if items(keys)[..index].contains(key) {
            errors.push(FieldError::invalid(keys_path.clone(), keys, "must not contain duplicate entries"));
        }
        if !items(&element["required"]).contains(key) && property["default"].is_null() {
            let why =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(format!("{property_path}.default"), why));
        }
        if property["nullable"] == true {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(format!("{property_path}.nullable"), why));
        }
    }
}

/// The schema at a path such as `.spec.color` or `.spec['a.b']` (`cel.ValidFieldPath`).
///
/// # Errors
/// Why the path leads nowhere.
pub(super) fn field_at<'a>(schema: &'a Value, path: &str) -> Result<&'a Value, String> {
    let mut current = schema;
    let mut rest = path;
    while !rest.is_empty() {
        let name;
        if let Some(quoted) = rest.strip_prefix("['") {
            let Some((inner, after)) = quoted.split_once("']") else {
                return Err(format!("expected closing bracket in {rest:?}"));
            };
            (name, rest) = (inner.replace("\\'", "'"), after);
        } else if let Some(dotted) = rest.strip_prefix('.') {
            let end = dotted.find(['.', '[']).unwrap_or(dotted.len());
            (name, rest) = (dotted[..end].to_owned(), &dotted[end..]);
        } else {
            return Err(format!("expected [ or . but got: {}", rest.chars().next().unwrap_or_default()));
        }
        let property = &current["properties"][name.as_str()];
        let additional = &current["additionalProperties"];
        current = if property.is_object() {
            property
        } else if additional.is_object() {
            additional
        } else {
            return Err(format!("does not refer to a valid field"));
        };
    }
    Ok(current)
}
