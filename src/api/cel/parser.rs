//! Source to tree: the grammar of the CEL specification with Kubernetes' macros.

use super::Issue;
use super::ast::{Expr, Fold, FoldKind, Literal, Node};

/// How deep expressions may nest (cel-go: 250).
const MAX_DEPTH: usize = 100;
/// The longest expression in characters (cel-go: `ExpressionSizeCodePointLimit`).
const MAX_LENGTH: usize = 100_000;
/// Words that are no identifiers.
const RESERVED: [&str; 17] = [
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
/// Namespaces whose members are functions and no methods.
const NAMESPACES: [&str; 6] = ["cel", "cidr", "format", "ip", "optional", "sets"];

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Ident(String),
    Literal(Literal),
    Symbol(&'static str),
    End,
}

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

const SYMBOLS: [&str; 27] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}", "=", "&", "|",
];

fn lex(source: &str) -> Result<Vec<(Token, usize)>, Issue> {
    let chars: Vec<char> = source.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if c.is_whitespace() {
            at += 1;
            continue;
        }
        if c == '/' && chars.get(at + 1) == Some(&'/') {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
            continue;
        }
        let start = at;
        if let Some(token) = string(&chars, &mut at)? {
            tokens.push((token, start));
        } else if c.is_ascii_digit() || c == '.' && chars.get(at + 1).is_some_and(char::is_ascii_digit) {
            tokens.push((number(&chars, &mut at)?, start));
        } else if c.is_ascii_alphabetic() || c == '_' {
            while at < chars.len() && (chars[at].is_ascii_alphanumeric() || chars[at] == '_') {
                at += 1;
            }
            tokens.push((word(chars[start..at].iter().collect(), start)?, start));
        } else if c == '`' {
            let end = (at + 1..chars.len()).find(|end| chars[*end] == '`');
            let Some(end) = end.filter(|end| *end > at + 1) else {
                return Err(Issue { at, message: "Syntax error: token recognition error at: '`'".to_owned() });
            };
            tokens.push((Token::Ident(chars[at + 1..end].iter().collect()), start));
            at = end + 1;
        } else {
            let rest: String = chars[at..chars.len().min(at + 2)].iter().collect();
            let Some(symbol) = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) else {
                return Err(Issue { at, message: format!("Syntax error: token recognition error at: '{c}'") });
            };
            at += symbol.chars().count();
            tokens.push((Token::Symbol(symbol), start));
        }
    }
    tokens.push((Token::End, chars.len()));
    Ok(tokens)
}

fn word(word: String, at: usize) -> Result<Token, Issue> {
    Ok(match word.as_str() {
        "true" => Token::Literal(Literal::Bool(true)),
        "false" => Token::Literal(Literal::Bool(false)),
        "null" => Token::Literal(Literal::Null),
        "in" => Token::Symbol("in"),
        reserved if RESERVED.contains(&reserved) => {
            return Err(Issue { at, message: format!("reserved identifier: {reserved}") });
        }
        _ => Token::Ident(word),
    })
}

fn number(chars: &[char], at: &mut usize) -> Result<Token, Issue> {
    let start = *at;
    let digits = |at: &mut usize, is: fn(&char) -> bool| {
        while chars.get(*at).is_some_and(is) {
            *at += 1;
        }
    };
    if chars[*at] == '0' && matches!(chars.get(*at + 1), Some('x' | 'X')) {
        *at += 2;
        let from = *at;
        digits(at, char::is_ascii_hexdigit);
        let text: String = chars[from..*at].iter().collect();
        if matches!(chars.get(*at), Some('u' | 'U')) {
            *at += 1;
            let value = u64::from_str_radix(&text, 16);
            return value.map(|n| Token::Literal(Literal::Uint(n))).map_err(|_| bad_number("uint", start));
        }
        let value = i64::from_str_radix(&text, 16);
        return value.map(|n| Token::Literal(Literal::Int(n))).map_err(|_| bad_number("int", start));
    }
    digits(at, char::is_ascii_digit);
    let mut float = false;
    if chars.get(*at) == Some(&'.') && chars.get(*at + 1).is_some_and(char::is_ascii_digit) {
        float = true;
        *at += 1;
        digits(at, char::is_ascii_digit);
    }
    if matches!(chars.get(*at), Some('e' | 'E')) {
        let sign = usize::from(matches!(chars.get(*at + 1), Some('+' | '-')));
        if chars.get(*at + 1 + sign).is_some_and(char::is_ascii_digit) {
            float = true;
            *at += 1 + sign;
            digits(at, char::is_ascii_digit);
        }
    }
    let text: String = chars[start..*at].iter().collect();
    if float {
        return text.parse().map(|n| Token::Literal(Literal::Double(n))).map_err(|_| bad_number("double", start));
    }
    if matches!(chars.get(*at), Some('u' | 'U')) {
        *at += 1;
        return text.parse().map(|n| Token::Literal(Literal::Uint(n))).map_err(|_| bad_number("uint", start));
    }
    match text.parse::<i64>() {
        Ok(number) => Ok(Token::Literal(Literal::Int(number))),
        // The smallest number is written with a sign in front of what is too large without it.
        Err(_) if text == "9223372036854775808" => Ok(Token::Literal(Literal::Int(i64::MIN))),
        Err(_) => Err(bad_number("int", start)),
    }
}

fn bad_number(kind: &str, at: usize) -> Issue {
    Issue { at, message: format!("invalid {kind} literal") }
}

/// A string or bytes literal, when one begins here.
fn string(chars: &[char], at: &mut usize) -> Result<Option<Token>, Issue> {
    let start = *at;
    let mut cursor = start;
    let (mut raw, mut bytes) = (false, false);
    while let Some(prefix) = chars.get(cursor) {
        match prefix {
            'r' | 'R' if !raw => raw = true,
            'b' | 'B' if !bytes => bytes = true,
            _ => break,
        }
        cursor += 1;
    }
    let Some(quote) = chars.get(cursor).copied().filter(|c| *c == '"' || *c == '\'') else { return Ok(None) };
    let triple = chars.get(cursor + 1) == Some(&quote) && chars.get(cursor + 2) == Some(&quote);
    cursor += if triple { 3 } else { 1 };
    let unterminated = || Issue { at: start, message: "Syntax error: unterminated string".to_owned() };
    let mut text: Vec<u8> = Vec::new();
    loop {
        let Some(c) = chars.get(cursor).copied() else { return Err(unterminated()) };
        if c == quote {
            if !triple {
                cursor += 1;
                break;
            }
            if chars.get(cursor + 1) == Some(&quote) && chars.get(cursor + 2) == Some(&quote) {
                cursor += 3;
                break;
            }
        }
        if !triple && (c == '\n' || c == '\r') {
            return Err(unterminated());
        }
        if c == '\\' && !raw {
            cursor += 1;
            escape(chars, &mut cursor, bytes, &mut text)
                .ok_or_else(|| Issue { at: start, message: "Syntax error: invalid escape sequence".to_owned() })?;
            continue;
        }
        text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        cursor += 1;
    }
    *at = cursor;
    if bytes {
        return Ok(Some(Token::Literal(Literal::Bytes(text.into()))));
    }
    Ok(Some(Token::Literal(Literal::String(String::from_utf8_lossy(&text).into()))))
}

/// What follows a backslash.
fn escape(chars: &[char], at: &mut usize, bytes: bool, out: &mut Vec<u8>) -> Option<()> {
    let c = *chars.get(*at)?;
    *at += 1;
    let mut code = |digits: usize, radix: u32| {
        let text: String = chars.get(*at..*at + digits)?.iter().collect();
        *at += digits;
        u32::from_str_radix(&text, radix).ok()
    };
    let value = match c {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => 10,
        'r' => 13,
        't' => 9,
        'v' => 11,
        '\\' | '\'' | '"' | '`' | '?' => u32::from(c),
        'x' | 'X' => code(2, 16)?,
        'u' if !bytes => code(4, 16)?,
        'U' if !bytes => code(8, 16)?,
        '0'..='3' => {
            *at -= 1;
            let text: String = chars.get(*at..*at + 3)?.iter().collect();
            *at += 3;
            u32::from_str_radix(&text, 8).ok()?
        }
        _ => return None,
    };
    if bytes {
        out.push(u8::try_from(value).ok()?);
    } else {
        out.extend_from_slice(char::from_u32(value)?.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Some(())
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

    /// `target.name(…)`: a macro, a function of a namespace, or a method.
    fn method(&mut self, target: Expr, name: String, at: usize) -> Parsed {
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
