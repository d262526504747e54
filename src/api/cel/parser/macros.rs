//! What is called like a method: Kubernetes' and CEL's macros, functions of a namespace, methods.

use super::lexer::Token;
use super::{Parsed, Parser, call};
use crate::api::cel::Issue;
use crate::api::cel::ast::{Expr, Fold, FoldKind, Node};

/// Namespaces whose members are functions and no methods.
const NAMESPACES: [&str; 6] = ["cel", "cidr", "format", "ip", "optional", "sets"];

impl Parser {
    /// `target.name(…)`: a macro, a function of a namespace, or a method.
    pub(super) fn method(&mut self, target: Expr, name: String, at: usize) -> Parsed {
        if let Node::Ident(namespace) = &target.node
            && NAMESPACES.contains(&namespace.as_str())
            && !self.bound.contains(namespace)
        {
            let qualified = format!("{namespace}.{name}");
            if qualified == "cel.bind" {
                return self.bind(at);
            }
            let args = self.arguments()?;
            return Ok(call(at, &qualified, args));
        }
        if let Some(shape) = macro_shape(&name) {
            return self.comprehension(target, name, shape, at);
        }
        let args = self.arguments()?;
        Ok(Expr { at, node: Node::Call { function: name, target: Some(Box::new(target)), args } })
    }

    /// The variable that an argument of a macro names.
    fn variable(&mut self) -> Result<String, Issue> {
        match self.peek().clone() {
            Token::Ident(name) if matches!(self.tokens[self.at + 1].0, Token::Symbol(",")) => {
                self.at += 1;
                Ok(name)
            }
            _ => Err(Issue { at: self.place(), message: "argument must be a simple name".to_owned() }),
        }
    }

    fn bind(&mut self, at: usize) -> Parsed {
        let name = self.variable()?;
        self.expect(",")?;
        let value = Box::new(self.expression()?);
        self.expect(",")?;
        self.bound.push(name.clone());
        let body = Box::new(self.expression()?);
        self.bound.pop();
        self.expect(")")?;
        Ok(Expr { at, node: Node::Bind { name, value, body } })
    }

    fn comprehension(&mut self, target: Expr, name: String, shape: Shape, at: usize) -> Parsed {
        // A method of the same name with another count of arguments is no macro.
        let start = self.at;
        let names = self.names_ahead();
        let count = self.count_arguments();
        let two = names >= 2 && count == shape.with_two();
        if !(count == shape.with_one() || shape.takes_condition() && count == 3 || two) || names == 0 && count > 0 {
            if names == 0 && count == shape.with_one() {
                return Err(Issue { at: self.tokens[start].1, message: "argument must be a simple name".to_owned() });
            }
            let args = self.arguments()?;
            return Ok(Expr { at, node: Node::Call { function: name, target: Some(Box::new(target)), args } });
        }
        let var = self.variable()?;
        self.expect(",")?;
        let value = if shape.always_two() || two && !shape.takes_condition() {
            let value = self.variable()?;
            self.expect(",")?;
            Some(value)
        } else {
            None
        };
        self.bound.push(var.clone());
        self.bound.extend(value.clone());
        let mut body = self.expression()?;
        let mut condition = None;
        if self.eat(",") {
            condition = Some(body);
            body = self.expression()?;
        }
        self.bound.truncate(self.bound.len() - 1 - usize::from(value.is_some()));
        self.expect(")")?;
        let node = match shape {
            Shape::Optional(flat) => Node::OptMap { target: Box::new(target), var, body: Box::new(body), flat },
            Shape::Predicate(kind) | Shape::Image(kind) | Shape::Transform(kind) => {
                Node::Fold(Box::new(Fold { kind, range: target, var, value, condition, body }))
            }
        };
        Ok(Expr { at, node })
    }

    /// How many arguments from here on are bare names.
    fn names_ahead(&self) -> usize {
        let pairs = self.tokens[self.at..].chunks(2);
        pairs.take_while(|pair| matches!(pair, [(Token::Ident(_), _), (Token::Symbol(","), _)])).count()
    }

    /// How many arguments there are until the closing parenthesis.
    fn count_arguments(&self) -> usize {
        let (mut depth, mut commas) = (0_usize, 0);
        for (index, (token, _)) in self.tokens[self.at..].iter().enumerate() {
            match token {
                Token::Symbol("(" | "[" | "{") => depth += 1,
                Token::Symbol(")") if depth == 0 => return if index == 0 { 0 } else { commas + 1 },
                Token::Symbol(")" | "]" | "}") => depth = depth.saturating_sub(1),
                Token::Symbol(",") if depth == 0 => commas += 1,
                _ => {}
            }
        }
        commas + 1
    }
}

/// The arguments of a macro.
#[derive(Clone, Copy)]
enum Shape {
    /// `(x, p)` or `(i, x, p)`.
    Predicate(FoldKind),
    /// `(x, e)` or `(x, p, e)`.
    Image(FoldKind),
    /// `(i, x, e)` or `(i, x, p, e)`.
    Transform(FoldKind),
    /// `(x, e)` on an optional.
    Optional(bool),
}

impl Shape {
    fn with_one(self) -> usize {
        match self {
            Self::Transform(_) => 3,
            _ => 2,
        }
    }
    fn with_two(self) -> usize {
        match self {
            Self::Predicate(_) => 3,
            Self::Transform(_) => 4,
            _ => usize::MAX,
        }
    }
    fn takes_condition(self) -> bool {
        matches!(self, Self::Image(FoldKind::Map))
    }
    fn always_two(self) -> bool {
        matches!(self, Self::Transform(_))
    }
}

fn macro_shape(name: &str) -> Option<Shape> {
    Some(match name {
        "all" => Shape::Predicate(FoldKind::All),
        "exists" => Shape::Predicate(FoldKind::Exists),
        "exists_one" | "existsOne" => Shape::Predicate(FoldKind::ExistsOne),
        "filter" => Shape::Image(FoldKind::Filter),
        "map" => Shape::Image(FoldKind::Map),
        "transformList" => Shape::Transform(FoldKind::Map),
        "transformMap" => Shape::Transform(FoldKind::TransformMap),
        "transformMapEntry" => Shape::Transform(FoldKind::TransformMapEntry),
        "optMap" => Shape::Optional(false),
        "optFlatMap" => Shape::Optional(true),
        _ => return None,
    })
}
