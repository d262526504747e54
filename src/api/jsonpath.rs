//! JSONPath as printer columns and scale paths use it (`k8s.io/client-go/util/jsonpath`, without its templates).

use serde_json::Value;

/// One step of a path.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// `.name` or `['name']`.
    Field(String),
    /// `.*` or `[*]`.
    All,
    /// `..`: the value and everything below.
    Descend,
    /// `[1:3:2]`; a single index is a slice of one.
    Slice(Option<i64>, Option<i64>, i64),
    /// `[?(@.type=="Ready")]`.
    Filter(Vec<Step>, Option<(Operator, Term)>),
    /// `['a','b']` and `[0,1]`.
    Union(Vec<Step>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq)]
enum Term {
    Literal(Value),
    Path(Vec<Step>),
}

/// A path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Reads a path such as `.status.conditions[?(@.type=="Ready")].status`; `None` when it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('$').unwrap_or(text);
        let mut parser = Parser { text, at: 0 };
        let steps = parser.steps(0)?;
        (parser.at == text.len()).then_some(Self(steps))
    }

    /// All values that it leads to; where a field is missing there are none.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        walk(&self.0, vec![value])
    }

    /// The first value that it leads to.
    pub fn first<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.find(value).into_iter().next()
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

/// How deep filters may nest.
const MAX_DEPTH: usize = 16;

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }
    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }
    fn space(&mut self) {
        while self.eat(" ") {}
    }

    /// Steps until something that is none.
    fn steps(&mut self, depth: usize) -> Option<Vec<Step>> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut steps = Vec::new();
        loop {
            if self.eat("..") {
                steps.push(Step::Descend);
                if !self.rest().starts_with('[') {
                    steps.push(self.name()?);
                }
            } else if self.eat(".") {
                // A dot alone is the value itself.
                if !self.rest().starts_with('[') && (!self.rest().is_empty() || !steps.is_empty()) {
                    steps.push(self.name()?);
                }
            } else if self.eat("[") {
                steps.push(self.brackets(depth)?);
            } else {
                return Some(steps);
            }
        }
    }

    fn name(&mut self) -> Option<Step> {
        if self.eat("*") {
            return Some(Step::All);
        }
        let mut name = String::new();
        let mut escaped = false;
        let mut end = self.rest().len();
        for (index, c) in self.rest().char_indices() {
            if !escaped && c == '\\' {
                escaped = true;
                continue;
            }
            if !escaped && " .[]()=!<>,|@{}'\"".contains(c) {
                end = index;
                break;
            }
            escaped = false;
            name.push(c);
        }
        self.at += end;
        (!name.is_empty()).then_some(Step::Field(name))
    }

    /// What follows `[`.
    fn brackets(&mut self, depth: usize) -> Option<Step> {
        if self.eat("?(") {
            let filter = self.filter(depth)?;
            return self.eat(")]").then_some(filter);
        }
        let mut members = Vec::new();
        loop {
            self.space();
            members.push(self.member()?);
            self.space();
            if self.eat("]") {
                break;
            }
            if !self.eat(",") {
                return None;
            }
        }
        if members.len() == 1 { members.pop() } else { Some(Step::Union(members)) }
    }

    fn member(&mut self) -> Option<Step> {
        if self.eat("*") {
            return Some(Step::All);
        }
        if let Some(name) = self.quoted() {
            return Some(Step::Field(name));
        }
        let first = self.number();
        if !self.eat(":") {
            let first = first?;
            let end = if first == -1 { None } else { Some(first + 1) };
            return Some(Step::Slice(Some(first), end, 1));
        }
        let end = self.number();
        let step = if self.eat(":") { self.number()? } else { 1 };
        (step > 0).then_some(Step::Slice(first, end, step))
    }

    fn quoted(&mut self) -> Option<String> {
        let quote = ['\'', '"'].into_iter().find(|quote| self.rest().starts_with(*quote))?;
        let mut text = String::new();
        let mut escaped = false;
        for (index, c) in self.rest().char_indices().skip(1) {
            match c {
                '\\' if !escaped => escaped = true,
                c if c == quote && !escaped => {
                    self.at += index + 1;
                    return Some(text);
                }
                c => {
                    escaped = false;
                    text.push(c);
                }
            }
        }
        None
    }

    fn number(&mut self) -> Option<i64> {
        let end = self.rest().find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(self.rest().len());
        let number = self.rest()[..end].parse().ok()?;
        self.at += end;
        Some(number)
    }

    fn filter(&mut self, depth: usize) -> Option<Step> {
        self.space();
        if !self.eat("@") {
            return None;
        }
        let left = self.steps(depth + 1)?;
        self.space();
        const OPERATORS: [(&str, Operator); 6] = [
            ("==", Operator::Equal),
            ("!=", Operator::NotEqual),
            ("<=", Operator::LessOrEqual),
            (">=", Operator::GreaterOrEqual),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ];
        let Some((_, operator)) = OPERATORS.into_iter().find(|(token, _)| self.eat(token)) else {
            return Some(Step::Filter(left, None));
        };
        self.space();
        let right = if self.eat("@") {
            Term::Path(self.steps(depth + 1)?)
        } else if let Some(text) = self.quoted() {
            Term::Literal(text.into())
        } else {
            let end = self.rest().find([' ', ')'])?;
            let literal: Value = serde_json::from_str(&self.rest()[..end]).ok()?;
            self.at += end;
            (!literal.is_object() && !literal.is_array()).then_some(Term::Literal(literal))?
        };
        self.space();
        Some(Step::Filter(left, Some((operator, right))))
    }
}

fn walk<'a>(steps: &[Step], mut values: Vec<&'a Value>) -> Vec<&'a Value> {
    for step in steps {
        let mut next = Vec::new();
        for value in values {
            take(step, value, &mut next);
        }
        values = next;
    }
    values
}

fn take<'a>(step: &Step, value: &'a Value, out: &mut Vec<&'a Value>) {
    match step {
        Step::Field(name) => out.extend(value.get(name)),
        Step::All => match value {
            Value::Object(map) => out.extend(map.values()),
            Value::Array(elements) => out.extend(elements),
            _ => {}
        },
        Step::Descend => {
            let mut open = vec![value];
            while let Some(value) = open.pop() {
                out.push(value);
                match value {
                    Value::Object(map) => open.extend(map.values()),
                    Value::Array(elements) => open.extend(elements),
                    _ => {}
                }
            }
        }
        Step::Slice(start, end, by) => {
            let Some(elements) = value.as_array() else { return };
            let length = i64::try_from(elements.len()).unwrap_or(i64::MAX);
            let place = |index: i64| if index < 0 { index.saturating_add(length) } else { index }.clamp(0, length);
            if start.is_some_and(|start| start < -length) {
                return;
            }
            let (from, to) = (place(start.unwrap_or(0)), place(end.unwrap_or(length)));
            let mut at = from;
            while at < to {
                out.extend(usize::try_from(at).ok().and_then(|at| elements.get(at)));
                at = at.saturating_add(*by);
            }
        }
        Step::Filter(left, condition) => {
            let elements = value.as_array().into_iter().flatten();
            out.extend(elements.filter(|element| holds(left, condition.as_ref(), element)));
        }
        Step::Union(steps) => steps.iter().for_each(|step| take(step, value, out)),
    }
}

fn holds(left: &[Step], condition: Option<&(Operator, Term)>, element: &Value) -> bool {
    let left = walk(left, vec![element]);
    let Some((operator, right)) = condition else { return !left.is_empty() };
    let right = match right {
        Term::Literal(value) => vec![value],
        Term::Path(steps) => walk(steps, vec![element]),
    };
    let (Some(left), Some(right)) = (left.first(), right.first()) else { return false };
    match operator {
        Operator::Equal => left == right,
        Operator::NotEqual => left != right,
        _ => {
            let order = match (left, right) {
                (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
                (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
                _ => None,
            };
            order.is_some_and(|order| match operator {
                Operator::Less => order.is_lt(),
                Operator::LessOrEqual => order.is_le(),
                Operator::Greater => order.is_gt(),
                _ => order.is_ge(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(path: &str) -> Value {
        let object = json!({"spec": {"size": "small", "list": [{"a": 1}, {"a": 2}, {"a": 3}], "x.y": 7},
            "status": {"conditions": [{"type": "Other", "status": "x"}, {"type": "Ready", "status": "True"}]}});
        let path = JsonPath::parse(path).expect("well-formed");
        path.find(&object).into_iter().cloned().collect()
    }

    #[test]
    fn paths_of_printer_columns() {
        assert_eq!(found(".spec.size"), json!(["small"]));
        assert_eq!(found(".status.conditions[?(@.type==\"Ready\")].status"), json!(["True"]));
        assert_eq!(found(".status.conditions[?(@.type=='Ready')].status"), json!(["True"]));
        assert_eq!(found(".spec.list[*].a"), json!([1, 2, 3]));
        assert_eq!(found(".spec.list[1].a"), json!([2]));
        assert_eq!(found(".spec.list[-1].a"), json!([3]));
        assert_eq!(found(".spec.list[0:2].a"), json!([1, 2]));
        assert_eq!(found(".spec.list[?(@.a>1)].a"), json!([2, 3]));
        assert_eq!(found(".spec['x.y']"), json!([7]));
        assert_eq!(found(".spec.x\\.y"), json!([7]));
        assert_eq!(found("..status[0]"), json!([]));
        assert_eq!(found(".nothing.here"), json!([]));
    }

    #[test]
    fn malformed_paths_are_refused() {
        for path in ["spec", ".spec[", ".spec[?(@.a==]", ".a[1", ".a]", ".a..", ".spec[?(@.a", ".a[::0]"] {
            assert_eq!(JsonPath::parse(path), None, "{path}");
        }
    }
}
