//! Types, and how schemas declare them (`k8s.io/apiserver/pkg/cel/common/schemas.go`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::api::structural::{self, Additional, Structural};

/// The type of an expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Anything, known at run time only.
    Dyn,
    /// `null_type`.
    Null,
    /// `bool`.
    Bool,
    /// `int`.
    Int,
    /// `uint`.
    Uint,
    /// `double`.
    Double,
    /// `string`.
    String,
    /// `bytes`.
    Bytes,
    /// `google.protobuf.Timestamp`.
    Timestamp,
    /// `google.protobuf.Duration`.
    Duration,
    /// The type of types.
    Type,
    /// A list.
    List(Arc<Type>),
    /// A map.
    Map(Arc<Type>, Arc<Type>),
    /// An optional.
    Optional(Arc<Type>),
    /// An object with these fields.
    Object(Arc<Object>),
    /// A type of Kubernetes' library.
    Opaque(&'static str),
    /// A parameter of a signature.
    Param(u8),
}

/// The fields of an object.
#[derive(Debug, PartialEq)]
pub struct Object {
    /// Its name, for messages.
    pub name: String,
    /// Its fields by the names that expressions use.
    pub fields: BTreeMap<String, Type>,
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::Type => f.write_str("type"),
            Self::List(inner) => write!(f, "list({inner})"),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Object(object) => f.write_str(&object.name),
            Self::Opaque(name) => f.write_str(name),
            Self::Param(letter) => write!(f, "{}", char::from(*letter)),
        }
    }
}

impl Type {
    /// A list of something.
    pub fn list(inner: Type) -> Self {
        Self::List(Arc::new(inner))
    }
    /// A map from strings.
    pub fn map(inner: Type) -> Self {
        Self::Map(Arc::new(Self::String), Arc::new(inner))
    }
    /// An optional.
    pub fn optional(inner: Type) -> Self {
        Self::Optional(Arc::new(inner))
    }
    /// An object.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (&'static str, Type)>) -> Self {
        let fields = fields.into_iter().map(|(name, ty)| (name.to_owned(), ty)).collect();
        Self::Object(Arc::new(Object { name: name.to_owned(), fields }))
    }
}

/// Names of types that expressions can use as values.
const NAMED: [(&str, &str); 14] = [
    ("bool", "bool"),
    ("bytes", "bytes"),
    ("double", "double"),
    ("int", "int"),
    ("list", "list"),
    ("map", "map"),
    ("null_type", "null_type"),
    ("string", "string"),
    ("type", "type"),
    ("uint", "uint"),
    ("google.protobuf.Timestamp", "google.protobuf.Timestamp"),
    ("google.protobuf.Duration", "google.protobuf.Duration"),
    ("optional_type", "optional_type"),
    ("kubernetes.Quantity", "kubernetes.Quantity"),
];

/// The type of that name.
pub(super) fn named(name: &str) -> Option<&'static str> {
    NAMED.iter().find(|(known, _)| *known == name).map(|(_, ty)| *ty)
}

const OPAQUE: [&str; 12] = [
    "kubernetes.Quantity",
    "kubernetes.URL",
    "net.IP",
    "net.CIDR",
    "kubernetes.Semver",
    "kubernetes.NamedFormat",
    "kubernetes.authorization.Authorizer",
    "kubernetes.authorization.PathCheck",
    "kubernetes.authorization.GroupCheck",
    "kubernetes.authorization.ResourceCheck",
    "kubernetes.authorization.Decision",
    "timestamp",
];

/// Reads a type of a signature: `list<A>`, `map<string, dyn>`, `kubernetes.Quantity`.
pub(super) fn parse(text: &str) -> Type {
    let text = text.trim();
    if let Some((outer, inner)) = text.strip_suffix('>').and_then(|text| text.split_once('<')) {
        return match outer {
            "list" => Type::list(parse(inner)),
            "optional" => Type::optional(parse(inner)),
            _ => {
                let (key, value) = split_once_outside(inner);
                Type::Map(Arc::new(parse(key)), Arc::new(parse(value)))
            }
        };
    }
    match text {
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Type,
        "A" | "B" => Type::Param(text.as_bytes()[0]),
        other => OPAQUE.into_iter().find(|known| *known == other).map_or(Type::Dyn, Type::Opaque),
    }
}

/// Splits at the first comma that is not within angle brackets.
fn split_once_outside(text: &str) -> (&str, &str) {
    let mut depth = 0;
    for (index, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => return (&text[..index], &text[index + 1..]),
            _ => {}
        }
    }
    (text, "")
}

/// The type that a schema declares; `None` where expressions cannot look. `resource`: kind and metadata are there too.
pub fn declared(schema: &Structural, resource: bool) -> Option<Type> {
    if schema.int_or_string {
        return Some(Type::Dyn);
    }
    let resource = resource || schema.embedded_resource;
    Some(match schema.kind {
        structural::Type::Any => return None,
        structural::Type::Boolean => Type::Bool,
        structural::Type::Integer => Type::Int,
        structural::Type::Number => Type::Double,
        structural::Type::String => match schema.limits.format.as_str() {
            "byte" => Type::Bytes,
            "duration" => Type::Duration,
            "date" | "date-time" => Type::Timestamp,
            _ => Type::String,
        },
        structural::Type::Array => Type::list(declared(schema.items.as_ref()?, false)?),
        structural::Type::Object => {
            if let Some(Additional::Schema(values)) = &schema.additional {
                return Some(Type::map(declared(values, false)?));
            }
            let mut fields: BTreeMap<String, Type> = BTreeMap::new();
            for (name, property) in &schema.properties {
                if let Some(ty) = declared(property, false) {
                    fields.insert(escape(name), ty);
                }
            }
            if resource {
                let meta = [("name", Type::String), ("generateName", Type::String)];
                fields.insert("metadata".to_owned(), Type::object("object", meta));
                fields.insert("kind".to_owned(), Type::String);
                fields.insert("apiVersion".to_owned(), Type::String);
            }
            Type::Object(Arc::new(Object { name: "object".to_owned(), fields }))
        }
    })
}

const KEYWORDS: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A property's name as expressions write it (`cel.Escape`). Names that cannot be escaped are written in backticks.
pub(super) fn escape(name: &str) -> String {
    if KEYWORDS.contains(&name) {
        return format!("__{name}__");
    }
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-/".contains(&b));
    if !plain || name.starts_with(|c: char| c.is_ascii_digit()) {
        return name.to_owned();
    }
    let name = name.replace("__", "__underscores__");
    name.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__")
}

/// The property that an escaped name means.
pub(super) fn unescape(name: &str) -> String {
    let keyword = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"));
    if let Some(keyword) = keyword.filter(|keyword| KEYWORDS.contains(keyword)) {
        return keyword.to_owned();
    }
    let name = name.replace("__dot__", ".").replace("__dash__", "-").replace("__slash__", "/");
    name.replace("__underscores__", "__")
}
