//! Label selectors: `a=b,c in (x,y),!d` and `metav1.LabelSelector`.

use std::fmt;

use serde_json::{Map, Value};

use crate::api::validation::meta::{label_value_messages, qualified_name_messages};

/// A requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// The operator's values, sorted.
    pub values: Vec<String>,
}

/// The operators of label selectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `a=b` and `a==b`.
    Equals,
    /// `a!=b`: also true without the label.
    NotEquals,
    /// `a in (b,c)`.
    In,
    /// `a notin (b,c)`: also true without the label.
    NotIn,
    /// `a`.
    Exists,
    /// `!a`.
    DoesNotExist,
    /// `a>1`.
    GreaterThan,
    /// `a<1`.
    LessThan,
}

/// A conjunction of requirements; the empty one selects everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector {
    /// Sorted by key. `None` inside [`LabelSelector::nothing`].
    requirements: Option<Vec<Requirement>>,
}

impl Default for LabelSelector {
    fn default() -> Self {
        Self::everything()
    }
}

impl LabelSelector {
    /// Selects every object.
    pub fn everything() -> Self {
        Self { requirements: Some(Vec::new()) }
    }
    /// Selects no object (what a null `metav1.LabelSelector` means).
    pub fn nothing() -> Self {
        Self { requirements: None }
    }
    /// Whether every object is selected.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }
    /// The requirements; none for everything and for nothing.
    pub fn requirements(&self) -> &[Requirement] {
        self.requirements.as_deref().unwrap_or_default()
    }

    /// The string form that requests carry.
    ///
    /// # Errors
    /// The message that Kubernetes gives, without its prefix `unable to parse requirement`… (it is included where
    /// Kubernetes includes it).
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: lex(text), position: 0 };
        let mut requirements = parser.requirements()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements: Some(requirements) })
    }

    /// A `metav1.LabelSelector`: null selects nothing, `{}` everything.
    ///
    /// # Errors
    /// A text for an operator that does not exist or values that do not fit it.
    pub fn from_label_selector(selector: &Value) -> Result<Self, String> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let values = vec![value.as_str().unwrap_or_default().to_owned()];
            requirements.push(Requirement::new(key, Operator::Equals, values)?);
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let values = strings(&expression["values"]);
            requirements.push(Requirement::new(expression["key"].as_str().unwrap_or_default(), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements: Some(requirements) })
    }

    /// A node selector term's `matchExpressions` (operators In, NotIn, Exists, DoesNotExist, Gt, Lt).
    ///
    /// # Errors
    /// A text for an operator that does not exist or values that do not fit it.
    pub fn from_node_expressions(expressions: &Value) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for expression in expressions.as_array().into_iter().flatten() {
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "Gt" => Operator::GreaterThan,
                "Lt" => Operator::LessThan,
                other => return Err(format!("{other:?} is not a valid node selector operator")),
            };
            let values = strings(&expression["values"]);
            requirements.push(Requirement::new(expression["key"].as_str().unwrap_or_default(), operator, values)?);
        }
        Ok(Self { requirements: Some(requirements) })
    }

    /// A plain map of labels, all of which must be there (a Service's or ReplicationController's `spec.selector`).
    pub fn from_map(map: &Map<String, Value>) -> Self {
        let requirement = |(key, value): (&String, &Value)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.as_str().unwrap_or_default().to_owned()],
        };
        Self { requirements: Some(map.iter().map(requirement).collect()) }
    }

    /// Whether labels satisfy every requirement.
    pub fn matches(&self, labels: &Map<String, Value>) -> bool {
        self.holds(|key| labels.get(key).map(|v| v.as_str().unwrap_or_default()))
    }

    /// Whether labels with these values satisfy every requirement.
    pub fn holds<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.as_ref().is_some_and(|all| all.iter().all(|r| r.matches(value(&r.key))))
    }

    /// Whether the labels of an object satisfy every requirement.
    pub fn matches_object(&self, object: &Value) -> bool {
        static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
        self.matches(object["metadata"]["labels"].as_object().unwrap_or(&NONE))
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Requirement {
    /// A checked requirement (`labels.NewRequirement`).
    ///
    /// # Errors
    /// Kubernetes' message.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, String> {
        let messages = qualified_name_messages(key);
        if !messages.is_empty() {
            return Err(format!("key: Invalid value: {key:?}: {}", messages.join("; ")));
        }
        let list = || format!("[{}]", values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(","));
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return Err(format!(
                    "values: Invalid value: {}: for 'in', 'notin' operators, values set can't be empty",
                    list()
                ));
            }
            Operator::Equals | Operator::NotEquals if values.len() != 1 => {
                return Err(format!(
                    "values: Invalid value: {}: exact-match compatibility requires one single value",
                    list()
                ));
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                return Err(format!(
                    "values: Invalid value: {}: values set must be empty for exists and does not exist",
                    list()
                ));
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                return Err(format!(
                    "values: Invalid value: {}: for 'Gt', 'Lt' operators, exactly one value is required",
                    list()
                ));
            }
            Operator::GreaterThan | Operator::LessThan if values[0].parse::<i64>().is_err() => {
                return Err(format!(
                    "values[0]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer",
                    values[0]
                ));
            }
            _ => {}
        }
        for (index, value) in values.iter().enumerate() {
            let messages = label_value_messages(value);
            if !messages.is_empty() {
                return Err(format!("values[{index}][{key}]: Invalid value: {value:?}: {}", messages.join("; ")));
            }
        }
        values.sort();
        Ok(Self { key: key.to_owned(), operator, values })
    }

    /// Whether a label's value (or its absence) satisfies this.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|v| v == value);
        let number = |text: &str| text.parse::<i64>().ok();
        match self.operator {
            Operator::Equals | Operator::In => value.is_some_and(listed),
            Operator::NotEquals | Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let Some((left, right)) = value.and_then(number).zip(self.values.first().and_then(|v| number(v)))
                else {
                    return false;
                };
                if self.operator == Operator::GreaterThan { left > right } else { left < right }
            }
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements().iter().enumerate() {
            write!(f, "{}{requirement}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// A lexical token: operators and punctuation by their text, everything else a word.
#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

fn lex(text: &str) -> Vec<Token> {
    const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", ",", "(", ")", ">", "<"];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', '\r', '\n']);
    while !rest.is_empty() {
        if let Some(symbol) = SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
            tokens.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
        } else {
            let end = rest.find([' ', '\t', '\r', '\n', '=', '!', '(', ')', ',', '>', '<']).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    position: usize,
}

impl Parser {
    fn peek(&self) -> Token {
        self.tokens.get(self.position).cloned().unwrap_or(Token::End)
    }
    fn next(&mut self) -> Token {
        let token = self.peek();
        self.position += 1;
        token
    }
    fn literal(token: &Token) -> &str {
        match token {
            Token::Word(word) => word,
            Token::Symbol(symbol) => symbol,
            Token::End => "",
        }
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, String> {
        let mut all = Vec::new();
        loop {
            match self.peek() {
                Token::End => return Ok(all),
                Token::Word(_) | Token::Symbol("!") => {
                    all.push(self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
                    match self.next() {
                        Token::End => return Ok(all),
                        Token::Symbol(",") => match self.peek() {
                            Token::Word(_) | Token::Symbol("!") => {}
                            token => {
                                return Err(format!(
                                    "found '{}', expected: identifier after ','",
                                    Self::literal(&token)
                                ));
                            }
                        },
                        token => {
                            return Err(format!("found '{}', expected: ',' or 'end of string'", Self::literal(&token)));
                        }
                    }
                }
                token => {
                    return Err(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        Self::literal(&token)
                    ));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = self.peek() == Token::Symbol("!");
        if negated {
            self.next();
        }
        let key = match self.next() {
            Token::Word(word) => word,
            token => return Err(format!("found '{}', expected: identifier", Self::literal(&token))),
        };
        let messages = qualified_name_messages(&key);
        if !messages.is_empty() {
            return Err(format!("<nil>: Invalid value: {key:?}: {}", messages.join("; ")));
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let operator = match self.next() {
            Token::Symbol("=" | "==") => Operator::Equals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            Token::Word(word) if word == "in" => Operator::In,
            Token::Word(word) if word == "notin" => Operator::NotIn,
            token => {
                let literal = Self::literal(&token);
                return Err(format!("found '{literal}', expected: '=', '!=', '==', 'in', notin'"));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(&key, operator, values)
    }

    /// `(a,b)`; commas without a value mean the empty value.
    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != Token::Symbol("(") {
            return Err(format!("found '{}' expected: '('", Self::literal(&open)));
        }
        let mut values = Vec::new();
        if self.peek() == Token::Symbol(")") {
            self.next();
            return Ok(vec![String::new()]);
        }
        loop {
            match self.peek() {
                Token::Word(word) => {
                    self.next();
                    values.push(word);
                }
                Token::Symbol("," | ")") => values.push(String::new()),
                token => return Err(format!("found '{}', expected: ',', or identifier", Self::literal(&token))),
            }
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => {
                    values.sort();
                    values.dedup();
                    return Ok(values);
                }
                token => return Err(format!("found '{}', expected: ',' or ')'", Self::literal(&token))),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(word) => {
                self.next();
                Ok(word)
            }
            token => Err(format!("found '{}', expected: identifier", Self::literal(&token))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(selector: &str, labels: Value) -> bool {
        let selector = LabelSelector::parse(selector).unwrap_or_else(|e| panic!("{selector}: {e}"));
        selector.matches(labels.as_object().expect("labels are an object"))
    }

    #[test]
    fn label_selectors_match() {
        let labels = json!({"app": "web", "tier": "front", "n": "5", "empty": ""});
        for selector in [
            "",
            "app=web",
            "app==web,tier!=back",
            "app in (api, web)",
            "x notin (a),!x",
            "app",
            "n>4,n<6",
            "x!=1",
            "empty=",
            "empty in ()",
            "app notin (,api)",
            " app = web , tier ",
        ] {
            assert!(matches(selector, labels.clone()), "{selector}");
        }
        for selector in ["app=api", "x", "!app", "n>5", "tier notin (front)", "app!=web", "x>1", "app in (,)"] {
            assert!(!matches(selector, labels.clone()), "{selector}");
        }
    }

    #[test]
    fn label_selectors_are_printed_sorted() {
        let selector = LabelSelector::parse("z in (b,a),!y,x==1,w!=2,v").expect("valid");
        assert_eq!(selector.to_string(), "v,w!=2,x=1,!y,z in (a,b)");
    }

    #[test]
    fn bad_label_selectors_have_the_messages_of_kubernetes() {
        let message = |text: &str| LabelSelector::parse(text).expect_err(text);
        assert_eq!(message("a b c"), "unable to parse requirement: found 'b', expected: '=', '!=', '==', 'in', notin'");
        assert_eq!(message("a in b"), "unable to parse requirement: found 'b' expected: '('");
        assert_eq!(message("a,"), "found '', expected: identifier after ','");
        assert_eq!(message("a=b)"), "found ')', expected: ',' or 'end of string'");
        assert!(message("a=-b-").starts_with(
            "unable to parse requirement: values[0][a]: Invalid value: \"-b-\": a valid label must be an empty string"
        ));
    }

    #[test]
    fn label_selector_objects() {
        let parse = |v: Value| LabelSelector::from_label_selector(&v);
        assert_eq!(parse(Value::Null), Ok(LabelSelector::nothing()));
        assert!(parse(json!({})).expect("valid").is_everything());
        let selector = parse(json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "d", "operator": "DoesNotExist"}]}));
        assert_eq!(selector.expect("valid").to_string(), "a=b,c in (x,y),!d");
        assert_eq!(
            parse(json!({"matchExpressions": [{"key": "a", "operator": "Foo"}]})),
            Err("\"Foo\" is not a valid label selector operator".to_owned())
        );
        assert!(!LabelSelector::nothing().matches(&Map::new()));
    }
}
