//! Structural schemas of custom resources: what the schema of a CustomResourceDefinition says, in the form in which objects are
//! pruned, defaulted and validated by it (API reference, `JSONSchemaProps`; KEP-1152).

mod defaults;
mod formats;
mod lists;
mod prune;
mod rules;
#[cfg(test)]
mod tests;
mod validate;

pub use defaults::{apply_defaults, drop_nulls};
pub use lists::validate_list_types;
pub use prune::{is_pruned, prune};
pub use rules::{Compiled, check_rules};
pub use validate::validate;

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use super::meta::{items, text};
use super::schema::ListType;

/// Whether a text has a format of OpenAPI; `None` when the format is not checked.
pub fn has_format(format: &str, text: &str) -> Option<bool> {
    formats::matches(format, text)
}

/// The `type` of a schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Type {
    /// None: `x-kubernetes-preserve-unknown-fields` or `x-kubernetes-int-or-string` say what it may be.
    #[default]
    Any,
    /// `object`.
    Object,
    /// `array`.
    Array,
    /// `string`.
    String,
    /// `integer`.
    Integer,
    /// `number`.
    Number,
    /// `boolean`.
    Boolean,
}

/// `additionalProperties`.
#[derive(Debug)]
pub enum Additional {
    /// `true` or `false`.
    Allowed(bool),
    /// A schema of the values.
    Schema(Box<Structural>),
}

/// One of `x-kubernetes-validations`.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// The expression.
    pub rule: String,
    /// What is said when it is false.
    pub message: String,
    /// An expression that makes the message.
    pub message_expression: String,
    /// `FieldValueInvalid` and others; empty: `FieldValueInvalid`.
    pub reason: String,
    /// The field that the error names, below the schema's own.
    pub field_path: String,
    /// Whether `oldSelf` is an optional that is empty at a create.
    pub optional_old_self: bool,
}

/// What values must be like.
#[derive(Debug, Default)]
pub struct Limits {
    /// `format`.
    pub format: String,
    /// `maximum`, and whether it is exclusive.
    pub maximum: Option<(Value, bool)>,
    /// `minimum`, and whether it is exclusive.
    pub minimum: Option<(Value, bool)>,
    /// `maxLength`.
    pub max_length: Option<u64>,
    /// `minLength`.
    pub min_length: Option<u64>,
    /// `pattern`, with its expression (none: it cannot be compiled, which a definition's validation refuses).
    pub pattern: Option<(String, Option<Regex>)>,
    /// `maxItems`.
    pub max_items: Option<u64>,
    /// `minItems`.
    pub min_items: Option<u64>,
    /// `multipleOf`.
    pub multiple_of: Option<Value>,
    /// `enum`.
    pub enumeration: Vec<Value>,
    /// `maxProperties`.
    pub max_properties: Option<u64>,
    /// `minProperties`.
    pub min_properties: Option<u64>,
    /// `required`.
    pub required: Vec<String>,
    /// `allOf`.
    pub all_of: Vec<Structural>,
    /// `anyOf`.
    pub any_of: Vec<Structural>,
    /// `oneOf`.
    pub one_of: Vec<Structural>,
    /// `not`.
    pub not: Option<Box<Structural>>,
}

/// A schema.
#[derive(Debug, Default)]
pub struct Structural {
    /// `type`.
    pub kind: Type,
    /// `default`.
    pub default: Option<Value>,
    /// `nullable`.
    pub nullable: bool,
    /// `items`.
    pub items: Option<Box<Structural>>,
    /// `properties`.
    pub properties: BTreeMap<String, Structural>,
    /// `additionalProperties`.
    pub additional: Option<Additional>,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve_unknown: bool,
    /// `x-kubernetes-embedded-resource`.
    pub embedded_resource: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`.
    pub list_type: Option<ListType>,
    /// `x-kubernetes-list-map-keys`.
    pub list_map_keys: Vec<String>,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic_map: bool,
    /// `x-kubernetes-validations`.
    pub rules: Vec<Compiled>,
    /// What values must be like.
    pub limits: Limits,
    /// Whether there is a default at or below this schema.
    has_defaults: bool,
    /// Whether there is a list of type set or map at or below this schema.
    has_list_types: bool,
    /// Whether there is a rule at or below this schema.
    has_rules: bool,
}

impl Structural {
    /// Reads a schema as a decoded CustomResourceDefinition has it (`openAPIV3Schema`). What is not structural is left out:
    /// the validation of definitions has refused it.
    pub fn new(schema: &Value) -> Self {
        Self::read(schema, false)
    }

    /// The same for the root of a resource, whose rules see kind and metadata.
    pub fn root(schema: &Value) -> Self {
        Self::read(schema, true)
    }

    fn read(schema: &Value, root: bool) -> Self {
        let flag = |name: &str| schema[name] == true;
        let boxed = |value: &Value| value.is_object().then(|| Box::new(Self::new(value)));
        let mut made = Self {
            kind: type_of(text(&schema["type"])),
            default: schema.get("default").filter(|value| !value.is_null()).cloned(),
            nullable: flag("nullable"),
            items: boxed(&schema["items"]),
            properties: properties(&schema["properties"]),
            additional: match &schema["additionalProperties"] {
                Value::Bool(allowed) => Some(Additional::Allowed(*allowed)),
                value => boxed(value).map(Additional::Schema),
            },
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded_resource: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            list_type: match text(&schema["x-kubernetes-list-type"]) {
                "map" => Some(ListType::Map),
                "set" => Some(ListType::Set),
                "atomic" => Some(ListType::Atomic),
                _ => None,
            },
            list_map_keys: texts(&schema["x-kubernetes-list-map-keys"]),
            atomic_map: schema["x-kubernetes-map-type"] == "atomic",
            limits: limits(schema),
            ..Self::default()
        };
        made.has_defaults = made.default.is_some() || made.children().any(|s| s.has_defaults);
        made.has_list_types =
            matches!(made.list_type, Some(ListType::Map | ListType::Set)) || made.children().any(|s| s.has_list_types);
        let written: Vec<Rule> = items(&schema["x-kubernetes-validations"]).iter().map(rule).collect();
        if !written.is_empty() {
            made.rules = rules::compile(&made, written, root);
        }
        made.has_rules = !made.rules.is_empty() || made.children().any(|s| s.has_rules);
        made
    }

    /// The schemas of members and items.
    pub fn children(&self) -> impl Iterator<Item = &Structural> {
        let additional = match &self.additional {
            Some(Additional::Schema(schema)) => Some(&**schema),
            _ => None,
        };
        self.properties.values().chain(self.items.as_deref()).chain(additional)
    }

    /// Whether there is a rule at or below this schema.
    pub fn has_rules(&self) -> bool {
        self.has_rules
    }

    /// The schema of a member, where there is one.
    pub fn member(&self, name: &str) -> Option<&Structural> {
        self.properties.get(name).or(match &self.additional {
            Some(Additional::Schema(schema)) => Some(schema),
            _ => None,
        })
    }
}

/// The type of that name.
fn type_of(name: &str) -> Type {
    match name {
        "object" => Type::Object,
        "array" => Type::Array,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        _ => Type::Any,
    }
}

fn texts(value: &Value) -> Vec<String> {
    items(value).iter().map(|item| text(item).to_owned()).collect()
}

fn properties(value: &Value) -> BTreeMap<String, Structural> {
    value.as_object().into_iter().flatten().map(|(name, schema)| (name.clone(), Structural::new(schema))).collect()
}

fn rule(value: &Value) -> Rule {
    let field = |name: &str| text(&value[name]).to_owned();
    Rule {
        rule: field("rule"),
        message: field("message"),
        message_expression: field("messageExpression"),
        reason: field("reason"),
        field_path: field("fieldPath"),
        optional_old_self: value["optionalOldSelf"] == true,
    }
}

fn limits(schema: &Value) -> Limits {
    let number = |name: &str| schema[name].as_u64();
    let bound = |name: &str, exclusive: &str| {
        schema.get(name).filter(|value| value.is_number()).map(|value| (value.clone(), schema[exclusive] == true))
    };
    let schemas = |name: &str| items(&schema[name]).iter().map(Structural::new).collect();
    let pattern = text(&schema["pattern"]);
    Limits {
        format: text(&schema["format"]).to_owned(),
        maximum: bound("maximum", "exclusiveMaximum"),
        minimum: bound("minimum", "exclusiveMinimum"),
        max_length: number("maxLength"),
        min_length: number("minLength"),
        pattern: (!pattern.is_empty()).then(|| (pattern.to_owned(), Regex::new(pattern).ok())),
        max_items: number("maxItems"),
        min_items: number("minItems"),
        multiple_of: schema.get("multipleOf").filter(|value| value.is_number()).cloned(),
        enumeration: items(&schema["enum"]).to_vec(),
        max_properties: number("maxProperties"),
        min_properties: number("minProperties"),
        required: texts(&schema["required"]),
        all_of: schemas("allOf"),
        any_of: schemas("anyOf"),
        one_of: schemas("oneOf"),
        not: schema["not"].is_object().then(|| Box::new(Structural::new(&schema["not"]))),
    }
}
