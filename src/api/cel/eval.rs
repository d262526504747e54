//! Evaluation. Every step is paid for out of a budget, so that no expression runs without end.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Expr, Fold, FoldKind, Literal, Node};
use super::library;
use super::value::{Key, Map, Text, Value};

/// Why there is no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The expression failed, in cel-go's words.
    #[error("{0}")]
    Failed(String),
    /// The budget has run out.
    #[error("operation cancelled: actual cost limit exceeded")]
    Budget,
}

impl Error {
    /// A failure.
    pub fn new(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }
    /// No function takes these values.
    pub fn overload() -> Self {
        Self::new("no such overload")
    }
}

/// The result of an evaluation.
pub type Evaluated<'a> = Result<Value<'a>, Error>;

/// A variable of a macro, and those around it.
#[derive(Clone, Copy)]
pub(super) struct Scope<'s, 'a> {
    name: &'a str,
    value: &'s Value<'a>,
    up: Option<&'s Scope<'s, 'a>>,
}

type Around<'s, 'a> = Option<&'s Scope<'s, 'a>>;

/// What an expression is evaluated with.
pub struct Machine<'a> {
    /// Variables by name.
    globals: Vec<(&'a str, Value<'a>)>,
    /// `variables.<name>` of a policy: evaluated when first asked for.
    composed: &'a [(String, Expr)],
    memo: Vec<Option<Evaluated<'a>>>,
    /// What is left of the budget.
    pub(super) left: u64,
}

impl<'a> Machine<'a> {
    /// With variables and a budget.
    pub fn new(globals: Vec<(&'a str, Value<'a>)>, budget: u64) -> Self {
        Self { globals, composed: &[], memo: Vec::new(), left: budget }
    }
    /// With variables that are expressions themselves; each may use those before it.
    pub fn with_variables(mut self, composed: &'a [(String, Expr)]) -> Self {
        self.composed = composed;
        self.memo = vec![None; composed.len()];
        self
    }
    /// Replaces a variable.
    pub fn set(&mut self, name: &'a str, value: Value<'a>) {
        self.globals.retain(|(known, _)| *known != name);
        self.globals.push((name, value));
    }
    /// What is left of the budget.
    pub fn left(&self) -> u64 {
        self.left
    }
    /// Changes what is left of the budget (each expression has one of its own beside that of all).
    pub fn refill(&mut self, left: u64) {
        self.left = left;
    }

    /// Evaluates an expression.
    ///
    /// # Errors
    /// When it fails or the budget runs out.
    pub fn run(&mut self, expr: &'a Expr) -> Evaluated<'a> {
        self.eval(expr, None)
    }

    /// Pays for something.
    pub(super) fn charge(&mut self, cost: u64) -> Result<(), Error> {
        if cost > self.left {
            self.left = 0;
            return Err(Error::Budget);
        }
        self.left -= cost;
        Ok(())
    }

    /// Equality, paid for.
    pub(super) fn equals(&mut self, a: &Value<'a>, b: &Value<'a>) -> Result<bool, Error> {
        let equal = a.equals(b, &mut self.left);
        if self.left == 0 { Err(Error::Budget) } else { Ok(equal) }
    }

    fn eval(&mut self, expr: &'a Expr, around: Around<'_, 'a>) -> Evaluated<'a> {
        match &expr.node {
            Node::Literal(literal) => Ok(constant(literal)),
            Node::Ident(name) => {
                self.charge(1)?;
                self.variable(name, around)
            }
            Node::Select { operand, field, optional } => self.select(operand, field, *optional, around),
            Node::Has { operand, field } => {
                self.charge(1)?;
                match self.eval(operand, around)? {
                    Value::Map(map) => Ok(Value::Bool(member(&map, field).is_some())),
                    Value::Optional(None) => Ok(Value::Bool(false)),
                    Value::Optional(Some(inner)) => match *inner {
                        Value::Map(map) => Ok(Value::Bool(member(&map, field).is_some())),
                        _ => Err(Error::overload()),
                    },
                    _ => Err(Error::overload()),
                }
            }
            Node::Index { operand, index, optional } => {
                self.charge(1)?;
                let operand = self.eval(operand, around)?;
                let index = self.eval(index, around)?;
                at(operand, &index, *optional)
            }
            Node::Call { function, target, args } => {
                let target = match target {
                    Some(target) => Some(self.eval(target, around)?),
                    None => None,
                };
                let mut values = Vec::with_capacity(args.len());
                for arg in args {
                    values.push(self.eval(arg, around)?);
                }
                library::call(self, function, target, values)
            }
            Node::And(terms) => self.logic(terms, false, around),
            Node::Or(terms) => self.logic(terms, true, around),
            Node::Conditional(parts) => {
                let [condition, yes, no] = &**parts;
                match self.eval(condition, around)? {
                    Value::Bool(true) => self.eval(yes, around),
                    Value::Bool(false) => self.eval(no, around),
                    _ => Err(Error::overload()),
                }
            }
            Node::List(items) => self.list(items, around),
            Node::Map(entries) => self.map(entries, around),
            Node::Struct { name, .. } => Err(Error::new(format!("unknown type: {name}"))),
            Node::Fold(fold) => self.fold(fold, around),
            Node::Bind { name, value, body } => {
                let value = self.eval(value, around)?;
                self.eval(body, Some(&Scope { name, value: &value, up: around }))
            }
            Node::OptMap { target, var, body, flat } => {
                self.charge(1)?;
                let Value::Optional(inner) = self.eval(target, around)? else { return Err(Error::overload()) };
                let Some(inner) = inner else { return Ok(Value::Optional(None)) };
                let made = self.eval(body, Some(&Scope { name: var, value: &inner, up: around }))?;
                Ok(if *flat { made } else { Value::optional(Some(made)) })
            }
        }
    }

    fn variable(&mut self, name: &'a str, around: Around<'_, 'a>) -> Evaluated<'a> {
        let mut scope = around;
        while let Some(here) = scope {
            if here.name == name {
                return Ok(here.value.clone());
            }
            scope = here.up;
        }
        if let Some((_, value)) = self.globals.iter().find(|(known, _)| *known == name) {
            return Ok(value.clone());
        }
        super::types::named(name)
            .map(|name| Value::Type(name.into()))
            .ok_or_else(|| Error::new(format!("no such attribute(s): {name}")))
    }

    fn select(&mut self, operand: &'a Expr, field: &'a str, optional: bool, around: Around<'_, 'a>) -> Evaluated<'a> {
        self.charge(1)?;
        if let Node::Ident(name) = &operand.node
            && name == "variables"
            && let Some(place) = self.composed.iter().position(|(known, _)| known == field)
        {
            return self.composed(place);
        }
        if let Node::Ident(name) = &operand.node {
            let whole = |known: &str| {
                known.strip_prefix(name.as_str()).is_some_and(|rest| rest.strip_prefix('.') == Some(field))
            };
            if let Some((_, value)) = self.globals.iter().find(|(known, _)| whole(known)) {
                return Ok(value.clone());
            }
        }
        let value = match self.eval(operand, around) {
            Ok(value) => value,
            // A dotted name may be that of a type.
            Err(error) => {
                let dotted = dotted(operand).map(|prefix| format!("{prefix}.{field}"));
                let found = dotted.and_then(|name| super::types::named(&name));
                return found.map(|name| Value::Type(name.into())).ok_or(error);
            }
        };
        let missing = || Error::new(format!("no such key: {field}"));
        match value {
            Value::Map(map) => {
                let found = member(&map, field);
                if optional { Ok(Value::optional(found)) } else { found.ok_or_else(missing) }
            }
            // Members of an optional are optional.
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => match *inner {
                Value::Map(map) => Ok(Value::optional(member(&map, field))),
                _ => Err(Error::overload()),
            },
            _ => Err(Error::overload()),
        }
    }

    fn composed(&mut self, place: usize) -> Evaluated<'a> {
        if let Some(known) = &self.memo[place] {
            return known.clone();
        }
        let composed = self.composed;
        let value = self.eval(&composed[place].1, None);
        if value != Err(Error::Budget) {
            self.memo[place] = Some(value.clone());
        }
        value
    }

    /// `&&` and `||`: an error counts only when nothing decides (CEL specification, "Logical Operators").
    fn logic(&mut self, terms: &'a [Expr], decisive: bool, around: Around<'_, 'a>) -> Evaluated<'a> {
        let mut failure = None;
        for term in terms {
            match self.eval(term, around) {
                Ok(Value::Bool(value)) if value == decisive => return Ok(Value::Bool(decisive)),
                Ok(Value::Bool(_)) => {}
                Err(Error::Budget) => return Err(Error::Budget),
                Ok(_) => failure = failure.or(Some(Error::overload())),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    fn list(&mut self, items: &'a [(Expr, bool)], around: Around<'_, 'a>) -> Evaluated<'a> {
        self.charge(10)?;
        let mut values = Vec::with_capacity(items.len());
        for (item, optional) in items {
            match (self.eval(item, around)?, optional) {
                (value, false) => values.push(value),
                (Value::Optional(value), true) => values.extend(value.map(|value| *value)),
                _ => return Err(Error::overload()),
            }
        }
        Ok(Value::list(values))
    }

    fn map(&mut self, entries: &'a [(Expr, Expr, bool)], around: Around<'_, 'a>) -> Evaluated<'a> {
        self.charge(30)?;
        let mut map = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.eval(key, around)?;
            let value = match (self.eval(value, around)?, optional) {
                (value, false) => value,
                (Value::Optional(None), true) => continue,
                (Value::Optional(Some(value)), true) => *value,
                _ => return Err(Error::overload()),
            };
            let key = Key::of(&key).ok_or_else(|| Error::new("unsupported key type"))?;
            if map.insert(key, value).is_some() {
                return Err(Error::new("Failed with repeated key"));
            }
        }
        Ok(Value::Map(Map::Made(Arc::new(map))))
    }

    fn fold(&mut self, fold: &'a Fold, around: Around<'_, 'a>) -> Evaluated<'a> {
        self.charge(1)?;
        let range = self.eval(&fold.range, around)?;
        let pairs: Box<dyn Iterator<Item = (Value<'a>, Value<'a>)> + '_> = match (&range, &fold.value) {
            (Value::List(list), None) => Box::new(list.iter().map(|value| (value, Value::Null))),
            (Value::List(list), Some(_)) => {
                let index = |index: usize| Value::Int(i64::try_from(index).unwrap_or(i64::MAX));
                Box::new(list.iter().enumerate().map(move |(place, value)| (index(place), value)))
            }
            (Value::Map(map), _) => Box::new(map.entries().into_iter()),
            _ => return Err(Error::overload()),
        };
        let mut folding = Folding::default();
        for (first, second) in pairs {
            self.charge(2)?;
            let scope = Scope { name: &fold.var, value: &first, up: around };
            let two = fold.value.as_ref().map(|name| Scope { name, value: &second, up: Some(&scope) });
            let inner = two.as_ref().unwrap_or(&scope);
            if self.step(fold, &first, inner, &mut folding)? {
                break;
            }
        }
        folding.result(fold.kind)
    }

    /// One element; whether the result is decided.
    fn step(
        &mut self,
        fold: &'a Fold,
        element: &Value<'a>,
        scope: &Scope<'_, 'a>,
        folding: &mut Folding<'a>,
    ) -> Result<bool, Error> {
        if let Some(condition) = &fold.condition {
            match self.eval(condition, Some(scope))? {
                Value::Bool(true) => {}
                Value::Bool(false) => return Ok(false),
                _ => return Err(Error::overload()),
            }
        }
        let value = self.eval(&fold.body, Some(scope));
        match fold.kind {
            FoldKind::All | FoldKind::Exists => match value {
                Ok(Value::Bool(flag)) => {
                    folding.decided = flag == (fold.kind == FoldKind::Exists);
                    return Ok(folding.decided);
                }
                Err(Error::Budget) => return Err(Error::Budget),
                Ok(_) => drop(folding.failure.get_or_insert_with(Error::overload)),
                Err(error) => drop(folding.failure.get_or_insert(error)),
            },
            FoldKind::ExistsOne | FoldKind::Filter => match value? {
                Value::Bool(true) => folding.items.push(element.clone()),
                Value::Bool(false) => {}
                _ => return Err(Error::overload()),
            },
            FoldKind::Map => {
                self.charge(1)?;
                folding.items.push(value?);
            }
            FoldKind::TransformMap => {
                let key = Key::of(element).ok_or_else(|| Error::new("unsupported key type"))?;
                folding.map.insert(key, value?);
            }
            FoldKind::TransformMapEntry => {
                let Value::Map(made) = value? else { return Err(Error::overload()) };
                for (key, value) in made.entries() {
                    let key = Key::of(&key).ok_or_else(|| Error::new("unsupported key type"))?;
                    if folding.map.insert(key, value).is_some() {
                        return Err(Error::new("insert failed: key already exists"));
                    }
                }
            }
        }
        Ok(false)
    }
}

/// A comprehension in the making.
#[derive(Default)]
struct Folding<'a> {
    items: Vec<Value<'a>>,
    map: BTreeMap<Key, Value<'a>>,
    decided: bool,
    failure: Option<Error>,
}

impl<'a> Folding<'a> {
    fn result(self, kind: FoldKind) -> Evaluated<'a> {
        match (kind, self.failure) {
            (FoldKind::All, None) => Ok(Value::Bool(!self.decided)),
            (FoldKind::Exists, None) => Ok(Value::Bool(self.decided)),
            (FoldKind::All, _) if self.decided => Ok(Value::Bool(false)),
            (FoldKind::Exists, _) if self.decided => Ok(Value::Bool(true)),
            (_, Some(error)) => Err(error),
            (FoldKind::ExistsOne, None) => Ok(Value::Bool(self.items.len() == 1)),
            (FoldKind::Filter | FoldKind::Map, None) => Ok(Value::list(self.items)),
            (FoldKind::TransformMap | FoldKind::TransformMapEntry, None) => {
                Ok(Value::Map(Map::Made(Arc::new(self.map))))
            }
        }
    }
}

/// `a.b.c` as a name.
pub(super) fn dotted(expr: &Expr) -> Option<String> {
    match &expr.node {
        Node::Ident(name) => Some(name.clone()),
        Node::Select { operand, field, optional: false } => Some(format!("{}.{field}", dotted(operand)?)),
        _ => None,
    }
}

fn constant(literal: &Literal) -> Value<'_> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(flag) => Value::Bool(*flag),
        Literal::Int(number) => Value::Int(*number),
        Literal::Uint(number) => Value::Uint(*number),
        Literal::Double(number) => Value::Double(*number),
        Literal::String(text) => Value::String(Text::Borrowed(text)),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}

/// A member by the name that an expression writes: names of properties that are no identifiers are escaped.
fn member<'a>(map: &Map<'a>, field: &str) -> Option<Value<'a>> {
    match map.field(field) {
        None if map.is_object() && field.contains("__") => map.field(&super::types::unescape(field)),
        found => found,
    }
}

/// `operand[index]`.
fn at<'a>(operand: Value<'a>, index: &Value<'a>, optional: bool) -> Evaluated<'a> {
    let (operand, optional) = match operand {
        Value::Optional(None) => return Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => (*inner, true),
        other => (other, optional),
    };
    let found = match (&operand, Key::of(index)) {
        (Value::List(list), Some(Key::Int(place))) => usize::try_from(place)
            .ok()
            .and_then(|place| list.get(place))
            .ok_or_else(|| Error::new(format!("index out of bounds: {place}"))),
        (Value::Map(map), Some(key)) => map.get(&key).ok_or_else(|| {
            let shown = match &key {
                Key::String(text) => text.to_string(),
                Key::Int(number) => number.to_string(),
                Key::Uint(number) => number.to_string(),
                Key::Bool(flag) => flag.to_string(),
            };
            Error::new(format!("no such key: {shown}"))
        }),
        _ => return Err(Error::overload()),
    };
    if optional { Ok(Value::optional(found.ok())) } else { found }
}

impl PartialEq for Value<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other, &mut u64::MAX.clone())
    }
}
