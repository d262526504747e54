//! What an expression may cost at most, estimated from the sizes that schemas allow (cel-go's `checker/cost.go` and
//! `k8s.io/apiserver/pkg/cel/library/cost.go`).

use super::ast::{Expr, Fold, FoldKind, Literal, Node};
use crate::api::schema::ListType;
use crate::api::structural::{Additional, Structural, Type};

/// The largest request, in bytes: no value can be larger.
const MAX_REQUEST: u64 = 3 * 1024 * 1024;

/// What is known of a value.
#[derive(Clone, Debug)]
pub enum Shape<'a> {
    /// Nothing: it may be as large as a request.
    Unknown,
    /// Of a fixed size.
    Scalar,
    /// What a schema says; `true`: the root of a resource.
    Schema(&'a Structural, bool),
    /// A text of at most so many bytes.
    Text(u64),
    /// A list of at most so many elements.
    List(u64, Box<Shape<'a>>),
}

/// The bytes that the smallest value of a schema has in JSON.
fn smallest(schema: &Structural) -> u64 {
    match schema.kind {
        Type::Boolean => 4,
        Type::String => match schema.limits.format.as_str() {
            "duration" => 3,
            "date" => 12,
            "date-time" => 22,
            _ => 2,
        },
        Type::Object => {
            let required = schema
                .properties
                .iter()
                .filter(|(name, property)| schema.limits.required.contains(*name) && property.default.is_none());
            required.fold(2, |sum, (name, property)| sum + name.len() as u64 + smallest(property) + 4)
        }
        Type::Array => 2,
        Type::Any if schema.preserve_unknown => 2,
        _ => 1,
    }
}

/// How many elements a list or map may have, how many bytes a text; 1 for the rest.
pub fn largest(schema: &Structural) -> u64 {
    let limits = &schema.limits;
    match schema.kind {
        Type::Array => limits.max_items.unwrap_or_else(|| {
            let element = schema.items.as_ref().map_or(1, |items| smallest(items));
            (MAX_REQUEST - 2) / (element + 1)
        }),
        Type::Object => match &schema.additional {
            Some(Additional::Schema(values)) => {
                limits.max_properties.unwrap_or_else(|| (MAX_REQUEST - 2) / (smallest(values) + 6))
            }
            _ => schema.properties.len() as u64,
        },
        Type::String => {
            let longest = limits.enumeration.iter().filter_map(|value| value.as_str()).map(str::len).max();
            match (limits.max_length, longest, limits.format.as_str()) {
                (_, Some(longest), _) => longest as u64,
                // A character has up to four bytes.
                (Some(max), ..) => max.saturating_mul(4),
                (None, None, "duration") => 32,
                (None, None, "date") => 12,
                (None, None, "date-time") => 38,
                _ => MAX_REQUEST - 2,
            }
        }
        Type::Any if schema.int_or_string => MAX_REQUEST - 2,
        _ => 1,
    }
}

/// How often the schemas below a list or map may occur for each of it, when that is bounded.
pub fn occurrences(schema: &Structural) -> Option<u64> {
    match (schema.kind, &schema.additional) {
        (Type::Array, _) => schema.limits.max_items,
        (Type::Object, Some(Additional::Schema(_))) => schema.limits.max_properties,
        _ => Some(1),
    }
}

/// How often a schema may occur in one request.
pub fn cardinality(schema: &Structural) -> u64 {
    MAX_REQUEST / (smallest(schema) + 1)
}

impl<'a> Shape<'a> {
    fn size(&self) -> u64 {
        match self {
            Self::Unknown => MAX_REQUEST,
            Self::Scalar => 1,
            Self::Schema(schema, _) => largest(schema),
            Self::Text(size) | Self::List(size, _) => *size,
        }
    }
    fn is_text(&self) -> bool {
        match self {
            Self::Unknown | Self::Text(_) => true,
            Self::Schema(schema, _) => schema.kind == Type::String || schema.int_or_string,
            _ => false,
        }
    }
    fn member(&self, name: &str) -> Self {
        match self {
            Self::Schema(schema, resource) => {
                if *resource && ["apiVersion", "kind"].contains(&name) {
                    return Self::Text(253);
                }
                let found = schema.member(name).or_else(|| schema.member(&super::types::unescape(name)));
                found.map_or(Self::Unknown, |inner| Self::Schema(inner, inner.embedded_resource))
            }
            Self::Scalar => Self::Scalar,
            _ => Self::Unknown,
        }
    }
    /// Key (or index) and value of a range.
    fn element(&self) -> (Self, Self) {
        match self {
            Self::Schema(schema, _) => match (&schema.items, &schema.additional) {
                (Some(items), _) if schema.kind == Type::Array => {
                    (Self::Scalar, Self::Schema(items, items.embedded_resource))
                }
                (_, Some(Additional::Schema(values))) => {
                    (Self::Unknown, Self::Schema(values, values.embedded_resource))
                }
                _ => (Self::Unknown, Self::Unknown),
            },
            Self::List(_, item) => (Self::Scalar, (**item).clone()),
            _ => (Self::Unknown, Self::Unknown),
        }
    }
    fn is_map(&self) -> bool {
        matches!(self, Self::Schema(schema, _) if schema.kind == Type::Object)
    }
}

/// The highest cost of an expression with these variables.
pub fn estimate<'a>(expr: &Expr, variables: &[(&str, Shape<'a>)]) -> u64 {
    let scope = variables.iter().map(|(name, shape)| ((*name).to_owned(), shape.clone())).collect();
    Estimator { scope }.of(expr).0
}

struct Estimator<'a> {
    scope: Vec<(String, Shape<'a>)>,
}

type Estimate<'a> = (u64, Shape<'a>);

fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

impl<'a> Estimator<'a> {
    fn with(&mut self, names: Vec<(String, Shape<'a>)>, expr: &Expr) -> Estimate<'a> {
        let before = self.scope.len();
        self.scope.extend(names);
        let estimate = self.of(expr);
        self.scope.truncate(before);
        estimate
    }

    fn of(&mut self, expr: &Expr) -> Estimate<'a> {
        match &expr.node {
            Node::Literal(Literal::String(text)) => (0, Shape::Text(text.len() as u64)),
            Node::Literal(Literal::Bytes(bytes)) => (0, Shape::Text(bytes.len() as u64)),
            Node::Literal(_) => (0, Shape::Scalar),
            Node::Ident(name) => {
                let known = self.scope.iter().rev().find(|(known, _)| known == name);
                (1, known.map_or(Shape::Unknown, |(_, shape)| shape.clone()))
            }
            Node::Select { operand, field, .. } => {
                let (cost, shape) = self.of(operand);
                (cost.saturating_add(1), shape.member(field))
            }
            Node::Has { operand, .. } => (self.of(operand).0.saturating_add(1), Shape::Scalar),
            Node::Index { operand, index, .. } => {
                let ((cost, shape), (more, _)) = (self.of(operand), self.of(index));
                (cost.saturating_add(more).saturating_add(1), shape.element().1)
            }
            Node::Call { function, target, args } => {
                let all: Vec<Estimate<'a>> = target.iter().map(|t| &**t).chain(args).map(|arg| self.of(arg)).collect();
                let arguments = all.iter().fold(0_u64, |sum, (cost, _)| sum.saturating_add(*cost));
                let shapes: Vec<Shape<'a>> = all.into_iter().map(|(_, shape)| shape).collect();
                let (cost, shape) = call(function, &shapes);
                (arguments.saturating_add(cost), shape)
            }
            Node::And(terms) | Node::Or(terms) => {
                (terms.iter().fold(0, |sum: u64, term| sum.saturating_add(self.of(term).0)), Shape::Scalar)
            }
            Node::Conditional(parts) => {
                let [condition, yes, no] = &**parts;
                let condition = self.of(condition).0;
                let ((yes, a), (no, b)) = (self.of(yes), self.of(no));
                let shape = if a.size() >= b.size() { a } else { b };
                (condition.saturating_add(yes.max(no)), shape)
            }
            Node::List(items) => {
                let all: Vec<Estimate<'a>> = items.iter().map(|(item, _)| self.of(item)).collect();
                let cost = all.iter().fold(10_u64, |sum, (cost, _)| sum.saturating_add(*cost));
                let item = all.into_iter().map(|(_, shape)| shape).max_by_key(Shape::size).unwrap_or(Shape::Scalar);
                (cost, Shape::List(items.len() as u64, Box::new(item)))
            }
            Node::Map(entries) => {
                let costs = entries.iter().map(|(key, value, _)| self.of(key).0.saturating_add(self.of(value).0));
                (costs.fold(30, u64::saturating_add), Shape::List(entries.len() as u64, Box::new(Shape::Unknown)))
            }
            Node::Struct { fields, .. } => {
                (fields.iter().fold(40, |sum: u64, (_, value)| sum.saturating_add(self.of(value).0)), Shape::Unknown)
            }
            Node::Fold(fold) => self.fold(fold),
            Node::Bind { name, value, body } => {
                let (cost, shape) = self.of(value);
                let (more, result) = self.with(vec![(name.clone(), shape)], body);
                (cost.saturating_add(more), result)
            }
            Node::OptMap { target, var, body, .. } => {
                let (cost, shape) = self.of(target);
                let (more, result) = self.with(vec![(var.clone(), shape)], body);
                (cost.saturating_add(more).saturating_add(2), result)
            }
        }
    }

    fn fold(&mut self, fold: &Fold) -> Estimate<'a> {
        let (range_cost, range) = self.of(&fold.range);
        let (key, value) = range.element();
        let first = if range.is_map() || fold.value.is_some() { key } else { value.clone() };
        let mut names = vec![(fold.var.clone(), first.clone())];
        names.extend(fold.value.iter().map(|name| (name.clone(), value.clone())));
        let condition = fold.condition.as_ref().map_or(0, |condition| self.with(names.clone(), condition).0);
        let (body, image) = self.with(names, &fold.body);
        // What the loop around the body costs, as its macro spells it out.
        let (start, each) = match fold.kind {
            FoldKind::All | FoldKind::Exists => (1, 3),
            FoldKind::ExistsOne => (2, 2),
            FoldKind::Filter => (11, 13),
            FoldKind::Map => (11, 12),
            FoldKind::TransformMap | FoldKind::TransformMapEntry => (31, 32),
        };
        let size = range.size();
        let step = condition.saturating_add(body).saturating_add(each);
        let cost = range_cost.saturating_add(start).saturating_add(size.saturating_mul(step));
        let shape = match fold.kind {
            FoldKind::All | FoldKind::Exists | FoldKind::ExistsOne => Shape::Scalar,
            FoldKind::Filter => Shape::List(size, Box::new(first)),
            _ => Shape::List(size, Box::new(image)),
        };
        (cost, shape)
    }
}

/// The cost of a call itself, and what it makes.
fn call<'a>(function: &str, args: &[Shape<'a>]) -> Estimate<'a> {
    let size = |index: usize| args.get(index).map_or(1, Shape::size);
    let once = tenth(size(0));
    match function {
        "_==_" | "_!=_" => (tenth(size(0).min(size(1))).max(1), Shape::Scalar),
        "_<_" | "_<=_" | "_>_" | "_>=_" => {
            let texts = args.iter().all(Shape::is_text);
            (if texts { tenth(size(0).min(size(1))).max(1) } else { 1 }, Shape::Scalar)
        }
        "_+_" => match args {
            [Shape::List(a, item), other] => (1, Shape::List(a.saturating_add(other.size()), item.clone())),
            [Shape::Schema(schema, _), other] if schema.kind == Type::Array => {
                let element = args[0].element().1;
                let unique = matches!(schema.list_type, Some(ListType::Set | ListType::Map));
                let total = largest(schema).saturating_add(other.size());
                (if unique { total } else { 1 }, Shape::List(total, Box::new(element)))
            }
            [a, b] if a.is_text() || b.is_text() => {
                let total = a.size().saturating_add(b.size());
                (tenth(total), Shape::Text(total))
            }
            _ => (1, Shape::Scalar),
        },
        "@in" => (if args.get(1).is_some_and(Shape::is_map) { 1 } else { size(1) }, Shape::Scalar),
        "contains" => (once.saturating_mul(tenth(size(1)).max(1)), Shape::Scalar),
        "startsWith" | "endsWith" => (tenth(size(1)).max(1), Shape::Scalar),
        "matches" | "find" | "findAll" => {
            let cost = tenth(size(0).saturating_add(1)).saturating_mul((size(1) / 4).max(1));
            let shape = match function {
                "matches" => Shape::Scalar,
                "find" => Shape::Text(size(0)),
                _ => Shape::List(size(0), Box::new(Shape::Text(size(0)))),
            };
            (cost, shape)
        }
        "indexOf" | "lastIndexOf" => match args[0].is_text() {
            true => (once.saturating_mul(tenth(size(1)).max(1)), Shape::Scalar),
            false => (size(0), Shape::Scalar),
        },
        "isSorted" | "sum" => (size(0), Shape::Scalar),
        "min" | "max" => (size(0), args[0].element().1),
        "sets.contains" | "sets.intersects" => (size(0).saturating_mul(size(1)), Shape::Scalar),
        "sets.equivalent" => (size(0).saturating_mul(size(1)).saturating_mul(2), Shape::Scalar),
        "lowerAscii" | "upperAscii" | "trim" | "substring" | "reverse" | "string" | "bytes" => {
            (once.max(1), Shape::Text(size(0)))
        }
        "charAt" => (once.max(1), Shape::Text(4)),
        "replace" => {
            let total = size(0).saturating_mul(size(2).max(1));
            (tenth(total), Shape::Text(total.min(MAX_REQUEST)))
        }
        "split" => (once.max(1), Shape::List(size(0), Box::new(Shape::Text(size(0))))),
        "join" => {
            let item = args[0].element().1.size().saturating_add(args.get(1).map_or(0, Shape::size));
            let total = size(0).saturating_mul(item);
            (tenth(total), Shape::Text(total))
        }
        "format" => (once.saturating_add(size(1)), Shape::Unknown),
        "quantity" | "isQuantity" | "url" | "isURL" | "ip" | "isIP" | "ip.isCanonical" | "cidr" | "isCIDR"
        | "semver" | "isSemver" | "int" | "uint" | "double" | "bool" | "timestamp" | "duration" => {
            (once.max(1), Shape::Scalar)
        }
        "validate" => (tenth(size(1)).max(1), Shape::List(8, Box::new(Shape::Text(256)))),
        "check" => (350_000, Shape::Scalar),
        "orValue" | "or" => {
            let larger = args.iter().max_by_key(|shape| shape.size()).cloned().unwrap_or(Shape::Unknown);
            (1, larger)
        }
        "value" | "optional.of" | "optional.ofNonZeroValue" | "dyn" => {
            (1, args.first().cloned().unwrap_or(Shape::Unknown))
        }
        _ => (1, Shape::Scalar),
    }
}
