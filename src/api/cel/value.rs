//! Values at run time. JSON is looked at where it lies: members and elements become values when they are asked for.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value as Json;

use super::library::authorizer::Authorization;
use super::library::semver::Version;
use crate::api::quantity::Quantity;
use crate::api::schema::{ListType, parse_time};
use crate::api::structural::{Structural, Type};

/// A text, borrowed or shared.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    /// Of the input or the source.
    Borrowed(&'a str),
    /// Made by the expression.
    Shared(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

/// A value.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// `bool`.
    Bool(bool),
    /// `int`.
    Int(i64),
    /// `uint`.
    Uint(u64),
    /// `double`.
    Double(f64),
    /// `string`.
    String(Text<'a>),
    /// `bytes`.
    Bytes(Arc<[u8]>),
    /// `google.protobuf.Timestamp`.
    Timestamp(Timestamp),
    /// `google.protobuf.Duration`.
    Duration(SignedDuration),
    /// `list`.
    List(List<'a>),
    /// `map`, and objects.
    Map(Map<'a>),
    /// A type.
    Type(Cow<'static, str>),
    /// `optional_type`.
    Optional(Option<Box<Value<'a>>>),
    /// `kubernetes.Quantity`.
    Quantity(Arc<Quantity>),
    /// `kubernetes.URL`.
    Url(Arc<http::Uri>),
    /// `net.IP`.
    Ip(IpAddr),
    /// `net.CIDR`.
    Cidr(IpNet),
    /// `kubernetes.Semver`.
    Semver(Arc<Version>),
    /// `kubernetes.NamedFormat`.
    Format(&'static str),
    /// `kubernetes.authorization.*`.
    Authorization(Authorization<'a>),
}

/// A list.
#[derive(Clone, Debug)]
pub enum List<'a> {
    /// Of the input, with its schema.
    Json(&'a [Json], Option<&'a Structural>),
    /// Made by the expression.
    Made(Arc<Vec<Value<'a>>>),
}

/// A map.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    /// Of the input, with its schema.
    Json(&'a serde_json::Map<String, Json>, Option<&'a Structural>, bool),
    /// Made by the expression.
    Made(Arc<BTreeMap<Key, Value<'a>>>),
}

/// A key of a map that the expression made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `bool`.
    Bool(bool),
    /// `int`, and `uint` that fits.
    Int(i64),
    /// `uint` beyond.
    Uint(u64),
    /// `string`.
    String(Arc<str>),
}

impl Key {
    /// The key that a value is.
    pub fn of(value: &Value<'_>) -> Option<Self> {
        Some(match value {
            Value::Bool(flag) => Self::Bool(*flag),
            Value::Int(number) => Self::Int(*number),
            Value::Uint(number) => i64::try_from(*number).map_or(Self::Uint(*number), Self::Int),
            Value::Double(number) if number.fract() == 0.0 && number.abs() < 9.0e15 =>
            {
                #[expect(clippy::cast_possible_truncation, reason = "it was checked to be whole and small")]
                Self::Int(*number as i64)
            }
            Value::String(text) => Self::String((&**text).into()),
            _ => return None,
        })
    }
    fn value<'a>(&self) -> Value<'a> {
        match self {
            Self::Bool(flag) => Value::Bool(*flag),
            Self::Int(number) => Value::Int(*number),
            Self::Uint(number) => Value::Uint(*number),
            Self::String(text) => Value::String(Text::Shared(text.clone())),
        }
    }
}

impl<'a> Value<'a> {
    /// A text of the expression's making.
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Self::String(Text::Shared(text.into()))
    }
    /// A list of the expression's making.
    pub fn list(items: Vec<Value<'a>>) -> Self {
        Self::List(List::Made(Arc::new(items)))
    }
    /// An optional.
    pub fn optional(value: Option<Value<'a>>) -> Self {
        Self::Optional(value.map(Box::new))
    }

    /// A JSON value; a schema says what its strings are.
    pub fn json(value: &'a Json, schema: Option<&'a Structural>) -> Self {
        Self::json_in(value, schema, false)
    }
    /// The same for the root of a resource, whose kind and metadata are there whatever the schema says.
    pub fn resource(value: &'a Json, schema: Option<&'a Structural>) -> Self {
        Self::json_in(value, schema, true)
    }
    fn json_in(value: &'a Json, schema: Option<&'a Structural>, resource: bool) -> Self {
        match value {
            Json::Null => Self::Null,
            Json::Bool(flag) => Self::Bool(*flag),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(whole), _) if schema.is_none_or(|schema| schema.kind != Type::Number) => Self::Int(whole),
                (_, Some(float)) if schema.is_some_and(|schema| schema.kind == Type::Integer) =>
                {
                    #[expect(clippy::cast_possible_truncation, reason = "validated to be a whole number")]
                    Self::Int(float as i64)
                }
                (_, float) => Self::Double(float.unwrap_or_default()),
            },
            Json::String(text) => Self::string(text, schema),
            Json::Array(items) => Self::List(List::Json(items, schema)),
            Json::Object(map) => {
                let resource = resource || schema.is_some_and(|schema| schema.embedded_resource);
                Self::Map(Map::Json(map, schema, resource))
            }
        }
    }
    fn string(text: &'a str, schema: Option<&'a Structural>) -> Self {
        let format = schema.filter(|schema| schema.kind == Type::String).map_or("", |schema| &schema.limits.format);
        let converted = match format {
            "byte" => {
                use base64::Engine as _;
                base64::engine::general_purpose::STANDARD.decode(text).ok().map(|bytes| Self::Bytes(bytes.into()))
            }
            "date-time" => parse_time(text).map(Self::Timestamp),
            "date" => parse_time(&format!("{text}T00:00:00Z")).map(Self::Timestamp),
            "duration" => super::library::time::parse_duration(text).map(Self::Duration),
            _ => None,
        };
        converted.unwrap_or(Self::String(Text::Borrowed(text)))
    }

    /// The name of its type.
    pub fn type_name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Authorization(authorization) => authorization.type_name(),
        })
    }

    /// Whether it is the zero value of its type (`optional.ofNonZeroValue`).
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(flag) => !flag,
            Self::Int(number) => *number == 0,
            Self::Uint(number) => *number == 0,
            Self::Double(number) => *number == 0.0,
            Self::String(text) => text.is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::List(list) => list.len() == 0,
            Self::Map(map) => map.len() == 0,
            Self::Duration(duration) => duration.is_zero(),
            Self::Optional(value) => value.is_none(),
            _ => false,
        }
    }

    /// How much it costs to look at all of it.
    pub fn size(&self) -> u64 {
        match self {
            Self::String(text) => text.len() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::List(list) => list.len() as u64,
            Self::Map(map) => map.len() as u64,
            _ => 1,
        }
    }

    /// Order among values that can be compared; `None` for others (and for not-a-number).
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::String(a), Self::String(b)) => Some((**a).cmp(&**b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Uint(a), Self::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            #[expect(clippy::cast_precision_loss, reason = "as CEL compares across types of numbers")]
            (Self::Double(a), Self::Int(b)) => a.partial_cmp(&(*b as f64)),
            #[expect(clippy::cast_precision_loss, reason = "as CEL compares across types of numbers")]
            (Self::Double(a), Self::Uint(b)) => a.partial_cmp(&(*b as f64)),
            (Self::Int(_) | Self::Uint(_), Self::Double(_)) => other.compare(self).map(Ordering::reverse),
            _ => None,
        }
    }

    /// Equality (`_==_`); values of different types are not equal. `left` is the budget: when it has run out the answer means
    /// nothing, as the caller can see.
    pub fn equals(&self, other: &Self, left: &mut u64) -> bool {
        if *left == 0 {
            return false;
        }
        *left -= 1;
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::List(a), Self::List(b)) => a.equals(b, left),
            (Self::Map(a), Self::Map(b)) => {
                a.len() == b.len()
                    && a.keys().into_iter().all(|key| match (a.get(&key), b.get(&key)) {
                        (Some(a), Some(b)) => a.equals(&b, left),
                        _ => false,
                    })
            }
            (Self::Type(a), Self::Type(b)) => a == b,
            (Self::Optional(a), Self::Optional(b)) => match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => a.equals(b, left),
                _ => false,
            },
            (Self::Quantity(a), Self::Quantity(b)) => a.cmp(b).is_eq(),
            (Self::Url(a), Self::Url(b)) => a == b,
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a), Self::Cidr(b)) => a == b,
            (Self::Semver(a), Self::Semver(b)) => a.cmp(b).is_eq(),
            (Self::Format(a), Self::Format(b)) => a == b,
            (Self::String(a), Self::String(b)) => {
                *left = left.saturating_sub(a.len().min(b.len()) as u64 / 10);
                **a == **b
            }
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }
}

impl<'a> List<'a> {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(items, _) => items.len(),
            Self::Made(items) => items.len(),
        }
    }
    /// An element.
    pub fn get(&self, index: usize) -> Option<Value<'a>> {
        match self {
            Self::Json(items, schema) => {
                items.get(index).map(|item| Value::json(item, schema.and_then(|schema| schema.items.as_deref())))
            }
            Self::Made(items) => items.get(index).cloned(),
        }
    }
    /// All elements.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    fn list_type(&self) -> Option<(ListType, &'a Structural)> {
        match self {
            Self::Json(_, Some(schema)) => schema.list_type.map(|kind| (kind, *schema)),
            _ => None,
        }
    }

    /// What tells an element of an associative list from others.
    fn identity(element: &Value<'a>, kind: ListType, schema: &Structural) -> Option<Vec<Option<Key>>> {
        match (kind, element) {
            (ListType::Set, scalar) => Some(vec![Some(Key::of(scalar)?)]),
            (ListType::Map, Value::Map(map)) => {
                let key = |name: &String| map.get(&Key::String(name.as_str().into())).and_then(|value| Key::of(&value));
                Some(schema.list_map_keys.iter().map(key).collect())
            }
            _ => None,
        }
    }

    fn equals(&self, other: &Self, left: &mut u64) -> bool {
        if self.len() != other.len() {
            return false;
        }
        let in_order = |left: &mut u64| self.iter().zip(other.iter()).all(|(a, b)| a.equals(&b, left));
        // Sets and maps are equal whatever their order.
        let Some((kind @ (ListType::Set | ListType::Map), schema)) = self.list_type() else { return in_order(left) };
        let mut mine = BTreeMap::new();
        for element in self.iter() {
            let Some(identity) = Self::identity(&element, kind, schema) else { return in_order(left) };
            mine.insert(identity, element);
        }
        other.iter().all(|element| {
            let identity = Self::identity(&element, kind, schema);
            identity.and_then(|identity| mine.get(&identity)).is_some_and(|known| known.equals(&element, left))
        })
    }

    /// `self + other`: sets and maps keep each element once (KEP-2876, "list type").
    pub fn concat(&self, other: &Self) -> Vec<Value<'a>> {
        let mut items: Vec<Value<'a>> = self.iter().collect();
        let Some((kind @ (ListType::Set | ListType::Map), schema)) = self.list_type() else {
            items.extend(other.iter());
            return items;
        };
        let mut places: BTreeMap<Vec<Option<Key>>, usize> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            places.extend(Self::identity(item, kind, schema).map(|identity| (identity, index)));
        }
        for item in other.iter() {
            let place = Self::identity(&item, kind, schema).and_then(|identity| places.get(&identity));
            match place {
                Some(place) => items[*place] = item,
                None => items.push(item),
            }
        }
        items
    }
}

impl<'a> Map<'a> {
    /// How many members there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(map, ..) => map.len(),
            Self::Made(map) => map.len(),
        }
    }
    /// A member.
    pub fn get(&self, key: &Key) -> Option<Value<'a>> {
        match (self, key) {
            (Self::Json(..), Key::String(name)) => self.field(name),
            (Self::Json(..), _) => None,
            (Self::Made(map), _) => map.get(key).cloned(),
        }
    }
    /// The member of a name.
    pub fn field(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Self::Json(map, schema, resource) => {
                let value = map.get(name)?;
                let inner = schema.and_then(|schema| schema.member(name));
                let meta = *resource && ["apiVersion", "kind", "metadata"].contains(&name);
                // What a schema does not say cannot be looked at.
                if schema.is_some() && inner.is_none() && !meta {
                    return None;
                }
                if value.is_null() && inner.is_some_and(|inner| !inner.nullable) {
                    return None;
                }
                Some(Value::json(value, inner))
            }
            Self::Made(map) => map.get(&Key::String(name.into())).cloned(),
        }
    }
    /// Whether it is an object of properties (and no map), whose names expressions write escaped.
    pub fn is_object(&self) -> bool {
        matches!(self, Self::Json(_, Some(schema), _) if schema.additional.is_none())
    }
    /// All keys.
    pub fn keys(&self) -> Vec<Key> {
        match self {
            Self::Json(map, ..) => map.keys().map(|name| Key::String(name.as_str().into())).collect(),
            Self::Made(map) => map.keys().cloned().collect(),
        }
    }
    /// All keys with their values.
    pub fn entries(&self) -> Vec<(Value<'a>, Value<'a>)> {
        let entry = |key: Key| self.get(&key).map(|value| (key.value(), value));
        self.keys().into_iter().filter_map(entry).collect()
    }
}
