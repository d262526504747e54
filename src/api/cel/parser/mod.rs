//! Source to tree: the grammar of the CEL specification with Kubernetes' macros.

mod lexer;
mod macros;

use super::Issue;
use super::ast::{Expr, Literal, Node};
use lexer::{Token, bad_number, lex};

/// How deep expressions may nest (cel-go: 250).
const MAX_DEPTH: usize = 100;
/// The longest expression in characters (cel-go: `ExpressionSizeCodePointLimit`).
const MAX_LENGTH: usize = 100_000;

/// Parses an expression.
pub(super) fn parse(source: &str) -> Result<Expr, Vec<Issue>> {
    if source.chars().count() > MAX_LENGTH {
        let why =
            format!("expression code point size exceeds limit: size: {}, limit {MAX_LENGTH}", source.chars().count());
        return Err(vec![Issue { at: 0, message: why }]);
    }
    let one = |issue| vec![issue];
    let tokens = lex(source).map_err(one)?;
    let mut parser = Parser { tokens, at: 0, depth: 0, bound: Vec::new() };
    let expr = parser.expression().map_err(one)?;
    match parser.peek() {
        Token::End => Ok(expr),
        _ => Err(vec![parser.unexpected()]),
    }
}

/// A binary operator.
struct Operator {
    symbol: &'static str,
    function: &'static str,
    strength: u8,
}

const fn operator(symbol: &'static str, function: &'static str, strength: u8) -> Operator {
    Operator { symbol, function, strength }
}

const OPERATORS: [Operator; 14] = [
    operator("||", "_||_", 0),
    operator("&&", "_&&_", 1),
    operator("==", "_==_", 2),
    operator("!=", "_!=_", 2),
    operator("<=", "_<=_", 2),
    operator(">=", "_>=_", 2),
    operator("<", "_<_", 2),
    operator(">", "_>_", 2),
    operator("in", "@in", 2),
    operator("+", "_+_", 3),
    operator("-", "_-_", 3),
    operator("*", "_*_", 4),
    operator("/", "_/_", 4),
    operator("%", "_%_", 4),
];

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    /// Variables of macros around here: they hide namespaces.
    bound: Vec<String>,
}

type Parsed = Result<Expr, Issue>;

fn call(at: usize, function: &str, args: Vec<Expr>) -> Expr {
    Expr { at, node: Node::Call { function: function.to_owned(), target: None, args } }
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }
    fn place(&self) -> usize {
        self.tokens[self.at].1
    }
    fn eat(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Token::Symbol(found) if *found == symbol);
        if found {
            self.at += 1;
        }
        found
    }
    fn expect(&mut self, symbol: &str) -> Result<(), Issue> {
        if self.eat(symbol) { Ok(()) } else { Err(self.unexpected()) }
    }
    fn unexpected(&self) -> Issue {
        let shown = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Ident(name) => name.clone(),
            Token::Symbol(symbol) => (*symbol).to_owned(),
            Token::Literal(Literal::String(text)) => format!("{text:?}"),
            Token::Literal(Literal::Bool(flag)) => flag.to_string(),
            Token::Literal(Literal::Int(number)) => number.to_string(),
            Token::Literal(_) => "literal".to_owned(),
        };
        Issue { at: self.place(), message: format!("Syntax error: mismatched input '{shown}'") }
    }

    fn deeper(&mut self, at: usize) -> Result<(), Issue> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Issue { at, message: format!("expression recursion limit exceeded: {MAX_DEPTH}") });
        }
        Ok(())
    }

    fn expression(&mut self) -> Parsed {
        self.deeper(self.place())?;
        let mut parsed = self.binary(0)?;
        let at = self.place();
        if self.eat("?") {
            parsed = self.choice(parsed, at)?;
        }
        self.depth -= 1;
        Ok(parsed)
    }

    #[inline(never)]
    fn choice(&mut self, condition: Expr, at: usize) -> Parsed {
        let yes = self.binary(0)?;
        self.expect(":")?;
        let no = self.expression()?;
        Ok(Expr { at, node: Node::Conditional(Box::new([condition, yes, no])) })
    }

    /// The operator that comes next if it binds as strongly as `weakest`.
    fn operator(&self, weakest: u8) -> Option<&'static Operator> {
        let Token::Symbol(symbol) = self.peek() else { return None };
        OPERATORS.iter().find(|operator| operator.symbol == *symbol && operator.strength >= weakest)
    }

    /// Operators that bind at least as strongly as `weakest`, from the left. One function for all of them: each level of
    /// parentheses goes through it once.
    fn binary(&mut self, weakest: u8) -> Parsed {
        let mut left = self.unary()?;
        let before = self.depth;
        while let Some(operator) = self.operator(weakest) {
            let at = self.place();
            self.at += 1;
            let right = self.binary(operator.strength + 1)?;
            left = self.joined(left, operator, right, at)?;
        }
        self.depth = before;
        Ok(left)
    }

    /// An operation. Chains of `&&` and `||` are one node, others a level of the tree for each operator.
    #[inline(never)]
    fn joined(&mut self, left: Expr, operator: &Operator, right: Expr, at: usize) -> Parsed {
        let node = match (operator.symbol, left) {
            ("||", Expr { node: Node::Or(mut terms), at }) => {
                terms.push(right);
                return Ok(Expr { at, node: Node::Or(terms) });
            }
            ("&&", Expr { node: Node::And(mut terms), at }) => {
                terms.push(right);
                return Ok(Expr { at, node: Node::And(terms) });
            }
            ("||", left) => Node::Or(vec![left, right]),
            ("&&", left) => Node::And(vec![left, right]),
            (_, left) => {
                self.deeper(at)?;
                return Ok(call(at, operator.function, vec![left, right]));
            }
        };
        Ok(Expr { at, node })
    }

    fn unary(&mut self) -> Parsed {
        let at = self.place();
        for (symbol, function) in [("!", "!_"), ("-", "-_")] {
            let mut count = 0;
            while self.eat(symbol) {
                count += 1;
            }
            if count == 0 {
                continue;
            }
            let operand = self.member()?;
            if symbol == "-" && count % 2 == 1 {
                match operand.node {
                    Node::Literal(Literal::Int(number)) => {
                        let node = Node::Literal(Literal::Int(number.checked_neg().unwrap_or(number)));
                        return Ok(Expr { at, node });
                    }
                    Node::Literal(Literal::Double(number)) => {
                        return Ok(Expr { at, node: Node::Literal(Literal::Double(-number)) });
                    }
                    _ => {}
                }
            }
            return Ok(if count % 2 == 1 { call(at, function, vec![operand]) } else { operand });
        }
        let member = self.member()?;
        match member.node {
            Node::Literal(Literal::Int(i64::MIN)) => Err(bad_number("int", member.at)),
            _ => Ok(member),
        }
    }

    fn member(&mut self) -> Parsed {
        let mut expr = self.primary()?;
        let before = self.depth;
        loop {
            let at = self.place();
            if self.eat(".") {
                let optional = self.eat("?");
                let Token::Ident(name) = self.peek().clone() else { return Err(self.unexpected()) };
                self.at += 1;
                let open = self.place();
                expr = if !optional && self.eat("(") {
                    self.method(expr, name, open)?
                } else {
                    Expr { at, node: Node::Select { operand: Box::new(expr), field: name, optional } }
                };
            } else if self.eat("[") {
                let optional = self.eat("?");
                let index = self.expression()?;
                self.expect("]")?;
                let (operand, index) = (Box::new(expr), Box::new(index));
                expr = Expr { at, node: Node::Index { operand, index, optional } };
            } else if matches!(self.peek(), Token::Symbol("{")) && type_name(&expr).is_some() {
                expr = self.structure(expr)?;
            } else {
                self.depth = before;
                return Ok(expr);
            }
            self.deeper(at)?;
        }
    }

    /// `Name{field: value}`.
    fn structure(&mut self, expr: Expr) -> Parsed {
        let name = type_name(&expr).expect("the caller has seen that it is a name");
        let at = self.place();
        self.expect("{")?;
        let mut fields = Vec::new();
        while !self.eat("}") {
            let Token::Ident(field) = self.peek().clone() else { return Err(self.unexpected()) };
            self.at += 1;
            self.expect(":")?;
            fields.push((field, self.expression()?));
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Expr { at, node: Node::Struct { name, fields } })
    }

    fn primary(&mut self) -> Parsed {
        let at = self.place();
        match self.peek().clone() {
            Token::Literal(literal) => {
                self.at += 1;
                Ok(Expr { at, node: Node::Literal(literal) })
            }
            Token::Ident(name) => {
                self.at += 1;
                let open = self.place();
                if self.eat("(") {
                    return self.function(name, open);
                }
                Ok(Expr { at, node: Node::Ident(name) })
            }
            Token::Symbol("(") => {
                self.at += 1;
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Symbol("[") => {
                self.at += 1;
                let mut items = Vec::new();
                while !self.eat("]") {
                    let optional = self.eat("?");
                    items.push((self.expression()?, optional));
                    if !self.eat(",") {
                        self.expect("]")?;
                        break;
                    }
                }
                Ok(Expr { at, node: Node::List(items) })
            }
            Token::Symbol("{") => {
                self.at += 1;
                let mut entries = Vec::new();
                while !self.eat("}") {
                    let optional = self.eat("?");
                    let key = self.expression()?;
                    self.expect(":")?;
                    entries.push((key, self.expression()?, optional));
                    if !self.eat(",") {
                        self.expect("}")?;
                        break;
                    }
                }
                Ok(Expr { at, node: Node::Map(entries) })
            }
            Token::Symbol(".") => {
                self.at += 1;
                match self.peek().clone() {
                    Token::Ident(name) => {
                        self.at += 1;
                        Ok(Expr { at, node: Node::Ident(name) })
                    }
                    _ => Err(self.unexpected()),
                }
            }
            _ => Err(self.unexpected()),
        }
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, Issue> {
        let mut args = Vec::new();
        if self.eat(")") {
            return Ok(args);
        }
        loop {
            args.push(self.expression()?);
            if !self.eat(",") {
                self.expect(")")?;
                return Ok(args);
            }
        }
    }

    /// A function or the macro `has`.
    fn function(&mut self, name: String, at: usize) -> Parsed {
        let mut args = self.arguments()?;
        if name == "has" && args.len() == 1 {
            let arg = args.remove(0);
            return match arg.node {
                Node::Select { operand, field, optional: false } => Ok(Expr { at, node: Node::Has { operand, field } }),
                _ => Err(Issue { at: arg.at, message: "invalid argument to has() macro".to_owned() }),
            };
        }
        Ok(call(at, &name, args))
    }
}

/// The dotted name that an expression is, when it begins with a capital somewhere (else `x {` would be ambiguous to people).
fn type_name(expr: &Expr) -> Option<String> {
    match &expr.node {
        Node::Ident(name) => Some(name.clone()),
        Node::Select { operand, field, optional: false } => Some(format!("{}.{field}", type_name(operand)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::cel::ast::FoldKind;

    fn error(source: &str) -> String {
        parse(source).expect_err(source).remove(0).message
    }

    #[test]
    fn trees() {
        let Node::Call { function, args, .. } = parse("1 + 2 * 3 - 4").expect("valid").node else { panic!("a call") };
        assert_eq!(function, "_-_");
        assert!(matches!(&args[0].node, Node::Call { function, .. } if function == "_+_"));
        let Node::And(terms) = parse("a && b && !c").expect("valid").node else { panic!("an and") };
        assert_eq!(terms.len(), 3);
        let Node::Fold(fold) = parse("self.l.map(x, x > 1, x * 2)").expect("valid").node else { panic!("a fold") };
        assert!(fold.kind == FoldKind::Map && fold.condition.is_some() && fold.value.is_none());
        let Node::Fold(fold) = parse("self.l.all(i, x, x > i)").expect("valid").node else { panic!("a fold") };
        assert_eq!(fold.value.as_deref(), Some("x"));
        let Node::Call { function, target: None, .. } = parse("optional.of(1)").expect("valid").node else {
            panic!("a function")
        };
        assert_eq!(function, "optional.of");
        assert!(matches!(parse("a.?b[?0]").expect("valid").node, Node::Index { optional: true, .. }));
        assert!(matches!(parse("has(a.b.c)").expect("valid").node, Node::Has { .. }));
        assert!(matches!(parse("-9223372036854775808").expect("valid").node, Node::Literal(Literal::Int(i64::MIN))));
        assert!(matches!(parse("r'\\d' + \"\\u00e9\" + '''a\nb'''").expect("valid").node, Node::Call { .. }));
        assert!(parse("object.`foo-bar` == 1 // why").is_ok());
    }

    #[test]
    fn malformed() {
        assert_eq!(error("1 +"), "Syntax error: mismatched input '<EOF>'");
        assert_eq!(error("a b"), "Syntax error: mismatched input 'b'");
        assert_eq!(error("'a"), "Syntax error: unterminated string");
        assert_eq!(error("has(a)"), "invalid argument to has() macro");
        assert_eq!(error("l.all(1, true)"), "argument must be a simple name");
        assert_eq!(error("#"), "Syntax error: token recognition error at: '#'");
        assert!(error(&"(".repeat(10_000)).starts_with("expression recursion limit exceeded"));
        assert!(error(&format!("1{}", "+1".repeat(10_000))).starts_with("expression recursion limit exceeded"));
        assert!(error(&format!("a{}", ".b".repeat(10_000))).starts_with("expression recursion limit exceeded"));
        assert!(error(&"!".repeat(200_000)).starts_with("expression code point size exceeds limit"));
        assert!(parse(&format!("{}true", "true && ".repeat(5_000))).is_ok(), "logic is not deep");
        assert!(parse(&format!("{}1{}", "(1 * ".repeat(98), ")".repeat(98))).is_ok());
        let mixed = parse("1 + 2 * 3 < 4 - 5 - 6 || !a && b in c").expect("valid").node;
        let Node::Or(terms) = mixed else { panic!("{mixed:?}") };
        let Node::Call { function, args, .. } = &terms[0].node else { panic!("{terms:?}") };
        assert_eq!(function, "_<_");
        assert!(
            matches!(&args[1].node, Node::Call { args, .. } if matches!(args[0].node, Node::Call { .. })),
            "from the left"
        );
        assert!(matches!(&terms[1].node, Node::And(terms) if terms.len() == 2));
    }
}
