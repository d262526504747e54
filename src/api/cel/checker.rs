//! Types of expressions, found before anything runs (cel-go's `checker`, with its messages).

use std::sync::Arc;

use super::Issue;
use super::ast::{Expr, Fold, FoldKind, Literal, Node};
use super::declarations::{Overload, overloads};
use super::eval::dotted;
use super::types::{self, Type};

/// The variables that an expression may use.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: Vec<(String, Type)>,
}

impl Env {
    /// Without variables.
    pub fn new() -> Self {
        Self::default()
    }
    /// With one more variable.
    #[must_use]
    pub fn with(mut self, name: &str, ty: Type) -> Self {
        self.variables.push((name.to_owned(), ty));
        self
    }
}

/// The type of an expression.
pub(super) fn check(env: &Env, expr: &Expr) -> Result<Type, Vec<Issue>> {
    let mut checker = Checker { scope: env.variables.clone(), issues: Vec::new() };
    let ty = checker.of(expr);
    if checker.issues.is_empty() { Ok(ty) } else { Err(checker.issues) }
}

struct Checker {
    scope: Vec<(String, Type)>,
    issues: Vec<Issue>,
}

/// What the parameters of a signature stand for.
type Bound = [Option<Type>; 2];

fn slot(param: u8) -> usize {
    usize::from(param == b'B')
}

/// Whether a value of `from` may be used as `to`; binds parameters.
fn assignable(to: &Type, from: &Type, bound: &mut Bound) -> bool {
    match (to, from) {
        (Type::Param(param), _) => match bound[slot(*param)].clone() {
            None => {
                bound[slot(*param)] = Some(from.clone());
                true
            }
            Some(known) => match join(&known, from) {
                Some(joined) => {
                    bound[slot(*param)] = Some(joined);
                    true
                }
                None => false,
            },
        },
        // What is not known yet may be anything.
        (_, Type::Param(_)) | (Type::Dyn, _) | (_, Type::Dyn) => true,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => assignable(a, b, bound),
        (Type::Map(ak, av), Type::Map(bk, bv)) => assignable(ak, bk, bound) && assignable(av, bv, bound),
        (Type::Timestamp | Type::Duration | Type::Object(_) | Type::Opaque(_), Type::Null) => true,
        (Type::Object(a), Type::Object(b)) => Arc::ptr_eq(a, b) || a == b,
        _ => to == from,
    }
}

/// The type that both are, the more definite one.
fn join(a: &Type, b: &Type) -> Option<Type> {
    Some(match (a, b) {
        (Type::Dyn, _) | (_, Type::Dyn) => Type::Dyn,
        (Type::Param(_), other) | (other, Type::Param(_)) => other.clone(),
        (Type::List(a), Type::List(b)) => Type::list(join(a, b)?),
        (Type::Optional(a), Type::Optional(b)) => Type::optional(join(a, b)?),
        (Type::Map(ak, av), Type::Map(bk, bv)) => Type::Map(Arc::new(join(ak, bk)?), Arc::new(join(av, bv)?)),
        (Type::Null, other) | (other, Type::Null)
            if matches!(other, Type::Null | Type::Timestamp | Type::Duration | Type::Object(_) | Type::Opaque(_)) =>
        {
            other.clone()
        }
        (a, b) if a == b => a.clone(),
        _ => return None,
    })
}

/// A result with what its parameters stand for; what nothing is known of may be anything.
fn substitute(ty: &Type, bound: &Bound) -> Type {
    match ty {
        Type::Param(param) => bound[slot(*param)].clone().unwrap_or(Type::Dyn),
        Type::List(inner) => Type::list(substitute(inner, bound)),
        Type::Optional(inner) => Type::optional(substitute(inner, bound)),
        Type::Map(key, value) => Type::Map(Arc::new(substitute(key, bound)), Arc::new(substitute(value, bound))),
        other => other.clone(),
    }
}

impl Checker {
    fn fail(&mut self, at: usize, message: String) -> Type {
        self.issues.push(Issue { at, message });
        Type::Dyn
    }

    fn with<T>(&mut self, names: &[(&str, Type)], inside: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.scope.len();
        self.scope.extend(names.iter().map(|(name, ty)| ((*name).to_owned(), ty.clone())));
        let result = inside(self);
        self.scope.truncate(before);
        result
    }

    fn of(&mut self, expr: &Expr) -> Type {
        match &expr.node {
            Node::Literal(literal) => match literal {
                Literal::Null => Type::Null,
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) => Type::Int,
                Literal::Uint(_) => Type::Uint,
                Literal::Double(_) => Type::Double,
                Literal::String(_) => Type::String,
                Literal::Bytes(_) => Type::Bytes,
            },
            Node::Ident(name) => match self.scope.iter().rev().find(|(known, _)| known == name) {
                Some((_, ty)) => ty.clone(),
                None if types::named(name).is_some() => Type::Type,
                None => self.fail(expr.at, format!("undeclared reference to '{name}' (in container '')")),
            },
            Node::Select { operand, field, optional } => {
                if let Some(name) = dotted(expr) {
                    // A dotted name may be that of a variable or a type.
                    if let Some((_, ty)) = self.scope.iter().rev().find(|(known, _)| *known == name) {
                        return ty.clone();
                    }
                    if types::named(&name).is_some() {
                        return Type::Type;
                    }
                }
                let operand = self.of(operand);
                self.select(expr.at, &operand, field, *optional)
            }
            Node::Has { operand, field } => {
                let operand = self.of(operand);
                self.select(expr.at, &operand, field, false);
                Type::Bool
            }
            Node::Index { operand, index, optional } => {
                let (operand, index) = (self.of(operand), self.of(index));
                self.index(expr.at, &operand, &index, *optional)
            }
            Node::Call { function, target, args } => {
                let target = target.as_ref().map(|target| self.of(target));
                let args: Vec<Type> = args.iter().map(|arg| self.of(arg)).collect();
                self.call(expr.at, function, target, args)
            }
            Node::And(terms) | Node::Or(terms) => {
                let name = if matches!(expr.node, Node::And(_)) { "_&&_" } else { "_||_" };
                for term in terms {
                    let ty = self.of(term);
                    if !matches!(ty, Type::Bool | Type::Dyn) {
                        let why = format!("found no matching overload for '{name}' applied to '({ty}, bool)'");
                        self.fail(expr.at, why);
                    }
                }
                Type::Bool
            }
            Node::Conditional(parts) => self.conditional(expr.at, parts),
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Struct { name, .. } => {
                self.fail(expr.at, format!("undeclared reference to '{name}' (in container '')"))
            }
            Node::Fold(fold) => self.fold(fold),
            Node::Bind { name, value, body } => {
                let value = self.of(value);
                self.with(&[(name, value)], |checker| checker.of(body))
            }
            Node::OptMap { target, var, body, flat } => {
                let function = if *flat { "optFlatMap" } else { "optMap" };
                let inner = match self.of(target) {
                    Type::Optional(inner) => (*inner).clone(),
                    Type::Dyn => Type::Dyn,
                    other => {
                        let why = format!("found no matching overload for '{function}' applied to '{other}.()'");
                        self.fail(expr.at, why)
                    }
                };
                let made = self.with(&[(var, inner)], |checker| checker.of(body));
                if *flat { made } else { Type::optional(made) }
            }
        }
    }

    fn select(&mut self, at: usize, operand: &Type, field: &str, optional: bool) -> Type {
        let found = match operand {
            Type::Dyn | Type::Param(_) => Type::Dyn,
            Type::Map(_, value) => (**value).clone(),
            Type::Object(object) => match object.fields.get(field) {
                Some(ty) => ty.clone(),
                // In backticks the name is written as it is.
                None => match object.fields.get(&types::escape(field)) {
                    Some(ty) => ty.clone(),
                    None => return self.fail(at, format!("undefined field '{field}'")),
                },
            },
            Type::Optional(inner) => {
                let inner = self.select(at, inner, field, false);
                return Type::optional(inner);
            }
            other => return self.fail(at, format!("type '{other}' does not support field selection")),
        };
        if optional { Type::optional(found) } else { found }
    }

    fn index(&mut self, at: usize, operand: &Type, index: &Type, optional: bool) -> Type {
        let found = match (operand, index) {
            (Type::Optional(inner), _) => {
                let inner = self.index(at, inner, index, false);
                return Type::optional(inner);
            }
            (Type::Dyn | Type::Param(_), _) => Some(Type::Dyn),
            (Type::List(inner), Type::Int | Type::Dyn) => Some((**inner).clone()),
            (Type::Map(key, value), _) if assignable(key, index, &mut Bound::default()) => Some((**value).clone()),
            _ => None,
        };
        match found {
            Some(found) if optional => Type::optional(found),
            Some(found) => found,
            None => {
                let why = format!("found no matching overload for '_[_]' applied to '({operand}, {index})'");
                self.fail(at, why)
            }
        }
    }

    fn call(&mut self, at: usize, function: &str, target: Option<Type>, args: Vec<Type>) -> Type {
        let all = overloads(function);
        let method = target.is_some();
        if all.iter().all(|overload| overload.method != method) {
            return self.fail(at, format!("undeclared reference to '{function}' (in container '')"));
        }
        let given: Vec<Type> = target.into_iter().chain(args).collect();
        let mut result: Option<Type> = None;
        for Overload { args, result: made, .. } in all.iter().filter(|overload| overload.method == method) {
            let mut bound = Bound::default();
            if args.len() != given.len() || !args.iter().zip(&given).all(|(to, from)| assignable(to, from, &mut bound))
            {
                continue;
            }
            let made = substitute(made, &bound);
            // Several may fit what is not known yet.
            result = Some(match result {
                Some(known) if known != made => Type::Dyn,
                _ => made,
            });
        }
        result.unwrap_or_else(|| {
            let shown: Vec<String> = given.iter().map(Type::to_string).collect();
            let signature = match method {
                true => format!("{}.({})", shown[0], shown[1..].join(", ")),
                false => format!("({})", shown.join(", ")),
            };
            self.fail(at, format!("found no matching overload for '{function}' applied to '{signature}'"))
        })
    }

    fn conditional(&mut self, at: usize, parts: &[Expr; 3]) -> Type {
        let [condition, yes, no] = parts;
        let (condition, yes, no) = (self.of(condition), self.of(yes), self.of(no));
        let joined = join(&yes, &no).filter(|_| matches!(condition, Type::Bool | Type::Dyn));
        joined.unwrap_or_else(|| {
            let why = format!("found no matching overload for '_?_:_' applied to '({condition}, {yes}, {no})'");
            self.fail(at, why)
        })
    }

    /// One type of several expressions; literals are of one type (`HomogeneousAggregateLiterals`).
    fn common(&mut self, known: Option<Type>, expr: &Expr, ty: Type) -> Type {
        match known {
            None => ty,
            Some(known) => match join(&known, &ty) {
                Some(joined) => joined,
                None => self.fail(expr.at, format!("expected type '{known}' but found '{ty}'")),
            },
        }
    }

    fn unwrapped(&mut self, expr: &Expr, ty: Type, optional: bool) -> Type {
        match (optional, ty) {
            (false, ty) => ty,
            (true, Type::Optional(inner)) => (*inner).clone(),
            (true, Type::Dyn) => Type::Dyn,
            (true, other) => self.fail(expr.at, format!("expected type 'optional_type({other})' but found '{other}'")),
        }
    }

    fn list(&mut self, items: &[(Expr, bool)]) -> Type {
        let mut known = None;
        for (item, optional) in items {
            let ty = self.of(item);
            let ty = self.unwrapped(item, ty, *optional);
            known = Some(self.common(known, item, ty));
        }
        Type::list(known.unwrap_or(Type::Param(b'A')))
    }

    fn map(&mut self, entries: &[(Expr, Expr, bool)]) -> Type {
        let (mut keys, mut values) = (None, None);
        for (key, value, optional) in entries {
            let ty = self.of(key);
            keys = Some(self.common(keys, key, ty));
            let ty = self.of(value);
            let ty = self.unwrapped(value, ty, *optional);
            values = Some(self.common(values, value, ty));
        }
        let unknown = || Type::Param(b'A');
        Type::Map(Arc::new(keys.unwrap_or_else(unknown)), Arc::new(values.unwrap_or_else(unknown)))
    }

    fn fold(&mut self, fold: &Fold) -> Type {
        let range = self.of(&fold.range);
        let two = fold.value.is_some();
        let (first, second) = match &range {
            Type::List(inner) if two => (Type::Int, (**inner).clone()),
            Type::List(inner) => ((**inner).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Param(_) => (Type::Dyn, Type::Dyn),
            other => {
                let why = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                (self.fail(fold.range.at, why), Type::Dyn)
            }
        };
        let element = first.clone();
        let mut names = vec![(fold.var.as_str(), first.clone())];
        if let Some(value) = &fold.value {
            names.push((value.as_str(), second));
        }
        let body = self.with(&names, |checker| {
            if let Some(condition) = &fold.condition {
                let ty = checker.of(condition);
                checker.predicate(condition, &ty);
            }
            checker.of(&fold.body)
        });
        match fold.kind {
            FoldKind::All | FoldKind::Exists | FoldKind::ExistsOne => {
                self.predicate(&fold.body, &body);
                Type::Bool
            }
            FoldKind::Filter => {
                self.predicate(&fold.body, &body);
                Type::list(element)
            }
            FoldKind::Map => Type::list(body),
            FoldKind::TransformMap => Type::Map(Arc::new(first), Arc::new(body)),
            FoldKind::TransformMapEntry => body,
        }
    }

    fn predicate(&mut self, expr: &Expr, ty: &Type) {
        if !matches!(ty, Type::Bool | Type::Dyn | Type::Param(_)) {
            self.fail(expr.at, format!("expected type 'bool' but found '{ty}'"));
        }
    }
}
