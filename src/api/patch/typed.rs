//! Objects by their schema, as `structured-merge-diff/typed` walks them: which fields one sets, merging, comparing and
//! taking items away.

use serde_json::{Map, Value};

use super::field_set::{Element, FieldSet};
use crate::api::schema::{Field, Kind, ListType, Root, Shape, TypeId};
use crate::api::structural::{Additional, Structural, Type};

/// What a value is.
#[derive(Clone, Copy)]
pub(super) enum Schema<'a> {
    /// An object of a type; atomic ones have one owner.
    Struct(TypeId, bool),
    /// A map of what the field says.
    Map(&'static Field),
    /// A list of what the field says.
    List(&'static Field),
    /// A string, a number or a boolean.
    Scalar(Kind),
    /// Anything, with one owner.
    Atomic,
    /// Anything, whose maps are merged (`RawExtension`).
    Deduced,
    /// A part of a custom resource, and whether it has kind and metadata of its own.
    Custom(&'a Structural, bool),
}

impl<'a> Schema<'a> {
    pub(super) fn of(root: Root<'a>) -> Self {
        match root {
            Root::Table(ty) => Self::Struct(ty, false),
            Root::Custom(schema, _) => Self::Custom(schema, true),
        }
    }

    fn part(schema: &'a Structural) -> Self {
        if schema.int_or_string {
            return Self::Atomic;
        }
        match schema.kind {
            Type::Any if schema.properties.is_empty() => Self::Deduced,
            Type::String => Self::Scalar(Kind::String),
            Type::Boolean => Self::Scalar(Kind::Bool),
            Type::Integer => Self::Scalar(Kind::Int64),
            Type::Number => Self::Scalar(Kind::Double),
            Type::Any | Type::Object | Type::Array => Self::Custom(schema, schema.embedded_resource),
        }
    }

    fn of_field(field: &'static Field) -> Self {
        match field.shape {
            Shape::One => Self::of_item(field),
            Shape::List => Self::List(field),
            Shape::Map => Self::Map(field),
        }
    }

    fn of_item(field: &'static Field) -> Self {
        match field.kind {
            Kind::Type(ty) => Self::Struct(ty, ty.get().atomic || field.markers().atomic && field.shape == Shape::One),
            Kind::RawExtension | Kind::FieldsV1 => Self::Deduced,
            Kind::Json | Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStrings | Kind::Strings => {
                Self::Atomic
            }
            scalar => Self::Scalar(scalar),
        }
    }

    /// The schema of a member and whether the type declares it; `None` when it may not be there.
    fn member(self, name: &str) -> Option<(Self, bool)> {
        match self {
            Self::Struct(ty, _) => {
                if let Some(field) = ty.get().field(name) {
                    return Some((Self::of_field(field), true));
                }
                let meta = ty.get().is_kind() && (name == "apiVersion" || name == "kind");
                meta.then_some((Self::Scalar(Kind::String), true))
            }
            Self::Map(field) => Some((Self::of_item(field), false)),
            Self::Custom(schema, resource) => {
                match name {
                    "apiVersion" | "kind" if resource => return Some((Self::Scalar(Kind::String), true)),
                    "metadata" if resource => return Some((Self::Struct(object_meta(), false), true)),
                    _ => {}
                }
                if let Some(property) = schema.properties.get(name) {
                    return Some((Self::part(property), true));
                }
                match &schema.additional {
                    Some(Additional::Schema(values)) => Some((Self::part(values), false)),
                    Some(Additional::Allowed(true)) => Some((Self::Deduced, false)),
                    _ => schema.preserve_unknown.then_some((Self::Deduced, false)),
                }
            }
            Self::List(_) | Self::Scalar(_) => None,
            Self::Atomic => Some((Self::Atomic, false)),
            Self::Deduced => Some((Self::Deduced, false)),
        }
    }

    /// What the value is walked as.
    fn shape(self, value: Option<&Value>, other: Option<&Value>) -> Walk<'a> {
        match self {
            Self::Custom(schema, _) if schema.kind == Type::Array => match schema.list_type {
                Some(ListType::Map | ListType::Set) => Walk::List(List::Custom(schema)),
                _ => Walk::Leaf,
            },
            Self::Custom(schema, _) if !schema.atomic_map => Walk::Map,
            Self::Struct(_, false) => Walk::Map,
            Self::Map(field) if !field.markers().atomic => Walk::Map,
            Self::List(field) if matches!(field.markers().list_type, Some(ListType::Map | ListType::Set)) => {
                Walk::List(List::Field(field))
            }
            Self::Deduced if value.or(other).is_some_and(Value::is_object) => Walk::Map,
            _ => Walk::Leaf,
        }
    }
}

enum Walk<'a> {
    Leaf,
    Map,
    List(List<'a>),
}

/// An associative list.
#[derive(Clone, Copy)]
enum List<'a> {
    Field(&'static Field),
    Custom(&'a Structural),
}

impl<'a> List<'a> {
    fn item(self) -> Schema<'a> {
        match self {
            Self::Field(field) => Schema::of_item(field),
            Self::Custom(schema) => schema.items.as_deref().map_or(Schema::Deduced, Schema::part),
        }
    }

    fn is_set(self) -> bool {
        let list_type = match self {
            Self::Field(field) => field.markers().list_type,
            Self::Custom(schema) => schema.list_type,
        };
        list_type == Some(ListType::Set)
    }

    fn keys(self) -> Vec<&'a str> {
        match self {
            Self::Field(field) => field.markers().list_map_keys.clone(),
            Self::Custom(schema) => schema.list_map_keys.iter().map(String::as_str).collect(),
        }
    }

    fn key_default(self, key: &str) -> Option<Value> {
        match self {
            Self::Field(field) => {
                let Kind::Type(ty) = field.kind else { return None };
                let default = ty.get().field(key)?.markers().default;
                serde_json::from_str(default).ok()
            }
            Self::Custom(schema) => schema.items.as_ref()?.properties.get(key)?.default.clone(),
        }
    }
}

fn object_meta() -> TypeId {
    TypeId::of_definition("apimachinery.pkg.apis.meta.v1.ObjectMeta").expect("the table has all built-in types")
}

/// The step to an element of an associative list.
fn element(list: List<'_>, item: &Value) -> Result<Element, String> {
    if list.is_set() {
        return match item {
            Value::Object(_) | Value::Array(_) => {
                Err("associative list without keys has an element that's a map type".into())
            }
            Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
            scalar => Ok(Element::Value(scalar.to_string())),
        };
    }
    let Value::Object(map) = item else {
        return Err("associative list with keys may not have non-map elements".to_owned());
    };
    let mut keys = Map::new();
    for key in list.keys() {
        let value = match map.get(key).filter(|v| !v.is_null()) {
            Some(value) => value.clone(),
            None => list.key_default(key).ok_or_else(|| {
                format!("associative list with keys has an element that omits key field {key:?} (and doesn't have default value)")
            })?,
        };
        keys.insert(key.to_owned(), value);
    }
    Ok(Element::Key(Value::Object(keys).to_string()))
}

/// Elements with their steps; those that have none are left out.
fn elements<'a>(list: List<'_>, value: Option<&'a Value>) -> Vec<(Element, &'a Value)> {
    let items = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|item| Some((element(list, item).ok()?, item))).collect()
}

/// What is wrong with a value (`TypedValue.Validate`).
pub(super) fn validate(schema: Schema<'_>, value: &Value, path: &str, errors: &mut Vec<String>) {
    let mut wrong = |what: String| errors.push(if path.is_empty() { what } else { format!("{path}: {what}") });
    if value.is_null() {
        return;
    }
    match schema {
        Schema::Scalar(kind) => {
            let right = match kind {
                Kind::String | Kind::Bytes | Kind::Time | Kind::MicroTime => value.is_string(),
                Kind::Bool => value.is_boolean(),
                Kind::Int32 | Kind::Int64 | Kind::Double => value.is_number(),
                _ => value.is_string() || value.is_number(),
            };
            if !right {
                wrong(match kind {
                    Kind::Bool => format!("expected boolean, got {}", super::go_print(value)),
                    Kind::Int32 | Kind::Int64 | Kind::Double => {
                        format!("expected numeric (int or float), got {}", go_type(value))
                    }
                    _ => format!("expected string, got {value}"),
                });
            }
        }
        Schema::Custom(schema, _) if schema.kind == Type::Array => {
            let Value::Array(items) = value else { return wrong(format!("expected list, got {value}")) };
            let list = List::Custom(schema);
            let associative = matches!(schema.list_type, Some(ListType::Map | ListType::Set));
            validate_items(list, associative, items, path, errors);
        }
        Schema::Struct(..) | Schema::Map(_) | Schema::Custom(..) => {
            let Value::Object(map) = value else { return wrong(format!("expected map, got {value}")) };
            for (name, inner) in map {
                let below = format!("{path}.{name}");
                match schema.member(name) {
                    Some((schema, _)) => validate(schema, inner, &below, errors),
                    None => errors.push(format!("{below}: field not declared in schema")),
                }
            }
        }
        Schema::List(field) => {
            let Value::Array(items) = value else { return wrong(format!("expected list, got {value}")) };
            let associative = matches!(schema.shape(Some(value), None), Walk::List(_));
            validate_items(List::Field(field), associative, items, path, errors);
        }
        Schema::Atomic | Schema::Deduced => {}
    }
}

fn validate_items(list: List<'_>, associative: bool, items: &[Value], path: &str, errors: &mut Vec<String>) {
    let mut seen = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let mut step = Element::Index(index);
        if associative {
            match element(list, item) {
                Ok(found) if seen.contains(&found) => {
                    errors.push(format!("{path}: duplicate entries for key {}", found.print()));
                    continue;
                }
                Ok(found) => {
                    seen.push(found.clone());
                    step = found;
                }
                Err(why) => {
                    errors.push(format!("{path}: element {index}: {why}"));
                    continue;
                }
            }
        }
        validate(list.item(), item, &format!("{path}{}", step.print()), errors);
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        Value::Number(_) | Value::Null => "int64",
    }
}

/// The fields that a value sets (`ToFieldSet`).
pub(super) fn field_set(schema: Schema<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match schema.shape(Some(value), None) {
        Walk::Leaf => {}
        Walk::Map => {
            for (name, inner) in value.as_object().into_iter().flatten() {
                let Some((below, declared)) = schema.member(name) else { continue };
                let step = Element::Field(name.clone());
                let empty = inner.is_null() || inner.as_object().is_some_and(Map::is_empty);
                if empty || !declared || is_leaf(below, inner) {
                    set.members.insert(step.clone());
                }
                let inner = field_set(below, inner);
                if !inner.is_empty() {
                    set.children.insert(step, inner);
                }
            }
        }
        Walk::List(list) => {
            for (step, item) in elements(list, Some(value)) {
                let inner = field_set(list.item(), item);
                if !inner.is_empty() {
                    set.children.insert(step.clone(), inner);
                }
                set.members.insert(step);
            }
        }
    }
    set
}

/// Whether a value is owned as a whole.
fn is_leaf(schema: Schema<'_>, value: &Value) -> bool {
    matches!(schema.shape(Some(value), None), Walk::Leaf)
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

/// Puts `right` over `left` (`Merge`).
pub(super) fn merge(schema: Schema<'_>, left: Option<&Value>, right: Option<&Value>) -> Option<Value> {
    let walk = schema.shape(right, left);
    if matches!(walk, Walk::Leaf) || is_empty(left) && is_empty(right) {
        return right.or(left).cloned();
    }
    let Walk::List(list) = walk else {
        let mut merged = Map::new();
        let names = |v: Option<&Value>| v.and_then(Value::as_object).into_iter().flat_map(Map::keys).cloned().collect();
        let mut all: Vec<String> = names(left);
        all.extend(names(right));
        for name in all {
            let Some((below, _)) = schema.member(&name) else {
                // What the table does not know stays as it is.
                if let Some(kept) = right.and_then(|r| r.get(&name)).or_else(|| left.and_then(|l| l.get(&name))) {
                    merged.insert(name, kept.clone());
                }
                continue;
            };
            if let Some(value) = merge(below, left.and_then(|l| l.get(&name)), right.and_then(|r| r.get(&name))) {
                merged.insert(name, value);
            }
        }
        return Some(Value::Object(merged));
    };
    Some(Value::Array(merge_lists(list, &elements(list, left), &elements(list, right))))
}

/// The left list's order, except that the right one's is kept among its own elements.
fn merge_lists(list: List<'_>, left: &[(Element, &Value)], right: &[(Element, &Value)]) -> Vec<Value> {
    let schema = list.item();
    let get = |list: &[(Element, &'_ Value)], step: &Element| list.iter().position(|(s, _)| s == step);
    let both = |step: &Element| {
        let l = get(left, step).map(|at| left[at].1);
        let r = get(right, step).map(|at| right[at].1);
        merge(schema, l, r)
    };
    let mut shared = right.iter().map(|(step, _)| step).filter(|step| get(left, step).is_some());
    let mut next_shared = shared.next();
    let mut merged: Vec<&Element> = Vec::new();
    let mut out = Vec::new();
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if l < left.len() && r < right.len() {
            let step = &left[l].0;
            if *step == right[r].0 {
                merged.push(step);
                out.extend(both(step));
                l += 1;
                r += 1;
                next_shared = shared.next();
                continue;
            }
            if get(right, step).is_some() && next_shared.is_some_and(|next| next != step) {
                l += 1;
                continue;
            }
        }
        if l < left.len() {
            let step = &left[l].0;
            if get(right, step).is_none() {
                out.extend(merge(schema, Some(left[l].1), None));
                l += 1;
                continue;
            }
            if merged.contains(&step) {
                l += 1;
            }
        }
        if r < right.len() {
            let step = &right[r].0;
            merged.push(step);
            out.extend(both(step));
            r += 1;
            if next_shared == Some(step) {
                next_shared = shared.next();
            }
        }
    }
    out
}

/// What differs between two objects.
#[derive(Default)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

/// Compares two objects (`Compare`).
pub(super) fn compare(schema: Schema<'_>, left: &Value, right: &Value) -> Comparison {
    let mut comparison = Comparison::default();
    compare_at(schema, Some(left), Some(right), &mut Vec::new(), &mut comparison);
    comparison
}

fn compare_at(
    schema: Schema<'_>,
    left: Option<&Value>,
    right: Option<&Value>,
    path: &mut Vec<Element>,
    out: &mut Comparison,
) {
    let walk = schema.shape(left, right);
    if matches!(walk, Walk::Leaf) || is_empty(left) && is_empty(right) {
        match (left, right) {
            (None, _) => out.added.insert(path),
            (_, None) => out.removed.insert(path),
            (Some(left), Some(right)) if !equal(left, right) => out.modified.insert(path),
            _ => {}
        }
        return;
    }
    match walk {
        Walk::List(list) => {
            let (lefts, rights) = (elements(list, left), elements(list, right));
            let find = |list: &[(Element, &'_ Value)], step: &Element| list.iter().position(|(s, _)| s == step);
            for (step, item) in &lefts {
                let other = find(&rights, step).map(|at| rights[at].1);
                path.push(step.clone());
                compare_at(list.item(), Some(item), other, path, out);
                path.pop();
            }
            for (step, item) in rights.iter().filter(|(step, _)| find(&lefts, step).is_none()) {
                path.push(step.clone());
                compare_at(list.item(), None, Some(item), path, out);
                path.pop();
            }
        }
        _ => {
            let (lefts, rights) = (left.and_then(Value::as_object), right.and_then(Value::as_object));
            let keys = lefts.into_iter().flat_map(Map::keys);
            let only_right = rights.into_iter().flat_map(Map::keys);
            for name in keys.chain(only_right.filter(|k| !lefts.is_some_and(|l| l.contains_key(*k)))) {
                let Some((below, _)) = schema.member(name) else { continue };
                let (l, r) = (lefts.and_then(|m| m.get(name)), rights.and_then(|m| m.get(name)));
                path.push(Element::Field(name.clone()));
                compare_at(below, l, r, path, out);
                path.pop();
            }
        }
    }
    match (left, right) {
        (None, _) => out.added.insert(path),
        (_, None) => out.removed.insert(path),
        _ => {}
    }
}

/// Equality in which 1 and 1.0 are the same.
pub(super) fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64() && a.is_f64() != b.is_f64(),
        _ => left == right,
    }
}

/// The set with the declared fields on the way to its paths as members (`EnsureNamedFieldsAreMembers`).
pub(super) fn with_named(schema: Schema<'_>, set: &FieldSet) -> FieldSet {
    let mut named = FieldSet { members: set.members.clone(), ..FieldSet::default() };
    for (step, inner) in &set.children {
        let below = match (step, schema) {
            (Element::Field(name), _) => {
                let member = schema.member(name);
                if member.is_some_and(|(_, declared)| declared) {
                    named.members.insert(step.clone());
                }
                member.map_or(Schema::Deduced, |(below, _)| below)
            }
            (_, Schema::List(field)) => List::Field(field).item(),
            (_, Schema::Custom(schema, _)) => List::Custom(schema).item(),
            _ => Schema::Deduced,
        };
        named.children.insert(step.clone(), with_named(below, inner));
    }
    named
}

/// The value without the items of the set; `None` when nothing is left (`RemoveItems`).
pub(super) fn remove_items(schema: Schema<'_>, value: &Value, set: &FieldSet) -> Option<Value> {
    match (schema.shape(Some(value), None), value) {
        (Walk::Map, Value::Object(map)) => {
            let mut kept = Map::new();
            for (name, inner) in map {
                let step = Element::Field(name.clone());
                if set.members.contains(&step) {
                    continue;
                }
                let below = schema.member(name).map_or(Schema::Deduced, |(below, _)| below);
                let inner = match set.children.get(&step).filter(|s| !s.is_empty()) {
                    Some(subset) => remove_items(below, inner, subset).unwrap_or(Value::Null),
                    None => inner.clone(),
                };
                kept.insert(name.clone(), inner);
            }
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        (Walk::List(list), Value::Array(items)) => {
            let mut kept = Vec::new();
            for item in items {
                let Ok(step) = element(list, item) else {
                    kept.push(item.clone());
                    continue;
                };
                if set.members.contains(&step) {
                    continue;
                }
                match set.children.get(&step).filter(|s| !s.is_empty()) {
                    Some(subset) => kept.extend(remove_items(list.item(), item, subset)),
                    None => kept.push(item.clone()),
                }
            }
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        _ => Some(value.clone()),
    }
}
