//! Rules of custom resources (`x-kubernetes-validations`; `apiserver/schema/cel` of apiextensions-apiserver).

use serde_json::Value as Json;

use super::validate::{below, correlated, type_name};
use super::{Rule, Structural};
use crate::api::cel::{self, Env, Error, Machine, PER_CALL_LIMIT, Program, TOTAL_LIMIT, Type, Value, types};
use crate::api::status::FieldError;

/// A rule that has been compiled.
#[derive(Debug)]
pub struct Compiled {
    /// The rule as it was written.
    pub rule: Rule,
    /// The expression; the error tells why there is none.
    pub program: Result<Program, String>,
    /// The expression of the message.
    pub message: Option<Result<Program, String>>,
    /// Whether it is about a change.
    pub uses_old_self: bool,
}

/// Compiles the rules of a schema; `resource`: it has kind and metadata.
pub(super) fn compile(schema: &Structural, rules: Vec<Rule>, resource: bool) -> Vec<Compiled> {
    let ty = types::declared(schema, resource);
    let one = |rule: Rule| {
        let Some(ty) = &ty else {
            let why = "the schema declares no type that rules could look at".to_owned();
            return Compiled { rule, program: Err(why), message: None, uses_old_self: false };
        };
        let old = if rule.optional_old_self { Type::optional(ty.clone()) } else { ty.clone() };
        let env = Env::new().with("self", ty.clone()).with("oldSelf", old);
        let program = cel::compile(&env, &rule.rule);
        let message = rule.message_expression.trim();
        let message = (!message.is_empty()).then(|| cel::compile(&env, message));
        let uses_old_self = program.as_ref().is_ok_and(|program| program.expr.mentions("oldSelf"));
        Compiled { rule, program, message, uses_old_self }
    };
    rules.into_iter().map(one).collect()
}

/// What the rules say against an object. With `old`, rules about changes are asked too, and others do not hold against what an
/// update leaves alone.
pub fn check_rules(schema: &Structural, value: &Json, old: Option<&Json>) -> Vec<FieldError> {
    let mut checker = Checker { errors: Vec::new(), left: TOTAL_LIMIT, over: false };
    if schema.has_rules {
        checker.visit(schema, value, old, "", true);
    }
    checker.errors
}

struct Checker {
    errors: Vec<FieldError>,
    left: u64,
    /// Whether no further rule is run.
    over: bool,
}

impl Checker {
    fn visit(&mut self, schema: &Structural, value: &Json, old: Option<&Json>, path: &str, root: bool) {
        if !schema.has_rules || self.over || value.is_null() && schema.nullable && schema.rules.is_empty() {
            return;
        }
        for compiled in &schema.rules {
            if self.over {
                return;
            }
            self.check(schema, compiled, value, old, path, root);
        }
        match value {
            Json::Object(map) => {
                for (name, inner) in map {
                    let Some(member) = schema.member(name) else { continue };
                    let old = old.and_then(|old| old.get(name)).filter(|_| !schema.atomic_map);
                    let path = match schema.properties.contains_key(name) {
                        true => below(path, name),
                        false => format!("{path}[{name}]"),
                    };
                    self.visit(member, inner, old, &path, false);
                }
            }
            Json::Array(elements) => {
                let Some(items) = &schema.items else { return };
                for (index, element) in elements.iter().enumerate() {
                    let old = correlated(schema, element, old);
                    self.visit(items, element, old, &format!("{path}[{index}]"), false);
                }
            }
            _ => {}
        }
    }

    fn check(
        &mut self,
        schema: &Structural,
        compiled: &Compiled,
        value: &Json,
        old: Option<&Json>,
        path: &str,
        root: bool,
    ) {
        let (rule, Ok(program)) = (&compiled.rule, &compiled.program) else { return };
        // A rule about a change needs two states, unless it takes an optional; another one does not hold against what was left alone.
        if compiled.uses_old_self && old.is_none() && !rule.optional_old_self
            || !compiled.uses_old_self && old == Some(value)
        {
            return;
        }
        let of = |json| if root { Value::resource(json, Some(schema)) } else { Value::json(json, Some(schema)) };
        let mut globals = vec![("self", of(value))];
        match (rule.optional_old_self, old) {
            (true, old) => globals.push(("oldSelf", Value::optional(old.map(of)))),
            (false, Some(old)) => globals.push(("oldSelf", of(old))),
            (false, None) => {}
        }
        let limit = PER_CALL_LIMIT.min(self.left);
        let mut machine = Machine::new(globals, limit);
        let result = machine.run(&program.expr);
        self.left -= limit - machine.left();
        let field = if path.is_empty() { "<nil>" } else { path };
        let shown = Json::from(type_name(value));
        let about = match rule.message.trim() {
            "" => rule.rule.trim(),
            message => message,
        };
        match result {
            Ok(Value::Bool(true)) => {}
            Err(Error::Budget) => {
                self.over = true;
                let why = match limit < PER_CALL_LIMIT {
                    true => {
                        "validation failed due to running out of cost budget, no further validation rules will be run"
                            .to_owned()
                    }
                    false => format!(
                        "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {about}",
                        Error::Budget
                    ),
                };
                self.errors.push(FieldError::invalid(field, &shown, &why));
            }
            Err(error) => {
                let why = match error.to_string() {
                    text if text.starts_with("no such overload") => format!(
                        "'{text}': call arguments did not match a supported operator, function or macro signature for rule: {about}"
                    ),
                    text => format!("{text} evaluating rule: {about}"),
                };
                self.errors.push(FieldError::invalid(field, &shown, &why));
            }
            Ok(_) => {
                let detail = self.message(&mut machine, compiled);
                let field = match rule.field_path.trim() {
                    "" => field.to_owned(),
                    inner if path.is_empty() => inner.trim_start_matches('.').to_owned(),
                    inner => format!("{path}{inner}"),
                };
                self.errors.push(match rule.reason.as_str() {
                    "FieldValueForbidden" => FieldError::forbidden(field, &detail),
                    "FieldValueRequired" => FieldError::required(field, &detail),
                    "FieldValueDuplicate" => FieldError::duplicate(field, &shown),
                    _ => FieldError::invalid(field, &shown, &detail),
                });
            }
        }
    }

    /// What is said of a rule that does not hold.
    fn message<'a>(&mut self, machine: &mut Machine<'a>, compiled: &'a Compiled) -> String {
        if let Some(Ok(program)) = &compiled.message {
            let limit = PER_CALL_LIMIT.min(self.left);
            machine.refill(limit);
            let made = machine.run(&program.expr);
            self.left -= limit - machine.left();
            if let Ok(Value::String(text)) = made {
                let text = text.trim();
                if !text.is_empty() && !text.contains(['\n', '\r']) {
                    return text.to_owned();
                }
            }
        }
        match compiled.rule.message.trim() {
            "" => format!("failed rule: {}", compiled.rule.rule.trim()),
            message => message.to_owned(),
        }
    }
}
