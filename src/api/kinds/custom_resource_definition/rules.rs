//! `x-kubernetes-validations` of a definition's schema: their form, types and cost.

use serde_json::Value;

use crate::api::cel::cost::{self, Shape};
use crate::api::cel::{Program, Type};
use crate::api::meta::{items, text};
use crate::api::schema::ListType;
use crate::api::status::FieldError;
use crate::api::structural::{Additional, Compiled, Structural};
use crate::api::validation::Errors;

const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// What one rule may cost for all its occurrences (`StaticEstimatedCostLimit`).
const RULE_LIMIT: u64 = 10_000_000;
/// What all rules of a schema may cost (`StaticEstimatedCRDCostLimit`).
const SCHEMA_LIMIT: u64 = 100_000_000;
/// How many of the most expensive rules are named.
const NAMED: usize = 4;

/// The form of the rules at one schema.
pub(super) fn shape(errors: &mut Errors, schema: &Value, path: &str) {
    let has_breaks = |text: &str| text.contains(['\n', '\r']);
    for (index, rule) in items(&schema["x-kubernetes-validations"]).iter().enumerate() {
        let at = |field: &str| format!("{path}.x-kubernetes-validations[{index}].{field}");
        let (expression, message) = (text(&rule["rule"]).trim(), text(&rule["message"]));
        if expression.is_empty() {
            errors.push(FieldError::required(at("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid(at("message"), &rule["message"], "message must be non-empty if specified"));
        } else if has_breaks(message.trim()) {
            errors.push(FieldError::invalid(at("message"), &rule["message"], "message must not contain line breaks"));
        } else if has_breaks(expression) && message.trim().is_empty() {
            let why = "message must be specified if rule contains line breaks";
            errors.push(FieldError::required(at("message"), why));
        }
        let message_expression = text(&rule["messageExpression"]);
        if !message_expression.is_empty() && message_expression.trim().is_empty() {
            let why = "messageExpression must be non-empty if specified";
            errors.push(FieldError::required(at("messageExpression"), why));
        }
        if !rule["reason"].is_null() && !REASONS.contains(&text(&rule["reason"])) {
            errors.push(FieldError::not_supported(at("reason"), &rule["reason"], &REASONS));
        }
        let field_path = text(&rule["fieldPath"]);
        if field_path.is_empty() {
            continue;
        }
        if field_path.trim().is_empty() {
            let why = "fieldPath must be non-empty if specified";
            errors.push(FieldError::invalid(at("fieldPath"), &rule["fieldPath"], why));
        }
        if has_breaks(field_path) {
            let why = "fieldPath must not contain line breaks";
            errors.push(FieldError::invalid(at("fieldPath"), &rule["fieldPath"], why));
        }
        if super::schema::field_at(schema, field_path).is_err() {
            errors.push(FieldError::invalid(at("fieldPath"), &rule["fieldPath"], "fieldPath must be a valid path"));
        }
    }
}

/// The expressions of a schema that is right otherwise. `unchanged`: it is stored already, so single costs are not held against it.
pub(super) fn validate(errors: &mut Errors, schema: &Value, path: &str, unchanged: bool) {
    let compiled = Structural::root(schema);
    if !compiled.has_rules() {
        return;
    }
    let mut walk = Walk { errors, costs: Vec::new(), total: 0, unchanged };
    walk.visit(&compiled, schema, path, Some(1), None, true);
    let (mut costs, total) = (walk.costs, walk.total);
    if total > SCHEMA_LIMIT {
        costs.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        for (_, path) in costs.into_iter().take(NAMED).filter(|(cost, _)| *cost >= SCHEMA_LIMIT / 100) {
            let why = "contributed to estimated rule & messageExpression cost total exceeding cost limit for entire OpenAPIv3 schema";
            errors.push(FieldError::forbidden(path, why));
        }
        let name = "x-kubernetes-validations estimated rule & messageExpression cost total for entire OpenAPIv3 schema";
        errors.push(FieldError::forbidden(path, &too_expensive(name, total, SCHEMA_LIMIT)));
    }
}

/// `<name> exceeds budget by factor of 1.8x (try …)`.
fn too_expensive(name: &str, cost: u64, limit: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a factor for people")]
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        f if f > 100.0 => "more than 100x".to_owned(),
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    format!(
        "{name} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength \
         where arrays, maps, and strings are declared)"
    )
}

struct Walk<'e> {
    errors: &'e mut Errors,
    costs: Vec<(u64, String)>,
    total: u64,
    unchanged: bool,
}

impl Walk<'_> {
    /// `times`: how often the schema may occur, when that is bounded; `uncorrelated`: the list around it whose elements have no
    /// identity.
    fn visit(
        &mut self,
        schema: &Structural,
        raw: &Value,
        path: &str,
        times: Option<u64>,
        uncorrelated: Option<&str>,
        root: bool,
    ) {
        if !schema.has_rules() {
            return;
        }
        for (index, compiled) in schema.rules.iter().enumerate() {
            let at = format!("{path}.x-kubernetes-validations[{index}]");
            let written = &raw["x-kubernetes-validations"][index];
            self.rule(schema, compiled, written, &at, times, uncorrelated, root);
        }
        let below = times.zip(cost::occurrences(schema)).map(|(times, each)| times.saturating_mul(each));
        let inner = uncorrelated.or((schema.atomic_map).then_some(path));
        for (name, property) in &schema.properties {
            let path = format!("{path}.properties[{name}]");
            self.visit(property, &raw["properties"][name.as_str()], &path, below, inner, false);
        }
        if let Some(Additional::Schema(values)) = &schema.additional {
            let path = format!("{path}.additionalProperties");
            self.visit(values, &raw["additionalProperties"], &path, below, inner, false);
        }
        if let Some(element) = &schema.items {
            let inner = uncorrelated.or((schema.list_type != Some(ListType::Map)).then_some(path));
            self.visit(element, &raw["items"], &format!("{path}.items"), below, inner, false);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a rule and where it is")]
    fn rule(
        &mut self,
        schema: &Structural,
        compiled: &Compiled,
        written: &Value,
        path: &str,
        times: Option<u64>,
        uncorrelated: Option<&str>,
        root: bool,
    ) {
        let times = times.unwrap_or_else(|| cost::cardinality(schema));
        let shape = Shape::Schema(schema, root);
        let estimate = |program: &Program| {
            let one = cost::estimate(&program.expr, &[("self", shape.clone()), ("oldSelf", shape.clone())]);
            one.saturating_mul(times)
        };
        let rule_path = format!("{path}.rule");
        match &compiled.program {
            Err(why) => {
                let why = format!("compilation failed: {why}");
                self.errors.push(FieldError::invalid(rule_path.clone(), written, &why));
            }
            Ok(program) if !matches!(program.ty, Type::Bool | Type::Dyn) => {
                let why = "cel expression must evaluate to a bool";
                self.errors.push(FieldError::invalid(rule_path.clone(), written, why));
            }
            Ok(program) => self.expensive("estimated rule cost", estimate(program), &rule_path),
        }
        let message_path = format!("{path}.messageExpression");
        match &compiled.message {
            Some(Err(why)) => {
                let why = format!("messageExpression compilation failed: {why}");
                self.errors.push(FieldError::invalid(message_path, written, &why));
            }
            Some(Ok(program)) if !matches!(program.ty, Type::String | Type::Dyn) => {
                let why = "messageExpression must evaluate to a string";
                self.errors.push(FieldError::invalid(message_path, written, why));
            }
            Some(Ok(program)) => {
                self.expensive("estimated messageExpression cost", estimate(program), &message_path);
            }
            None => {}
        }
        if compiled.uses_old_self {
            if let Some(list) = uncorrelated {
                let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
                self.errors.push(FieldError::invalid(rule_path, &written["rule"], &why));
            }
        } else if !written["optionalOldSelf"].is_null() {
            let why = "may not be set if oldSelf is not used in rule";
            self.errors.push(FieldError::invalid(format!("{path}.optionalOldSelf"), &written["optionalOldSelf"], why));
        }
    }

    fn expensive(&mut self, name: &str, cost: u64, path: &str) {
        if cost > RULE_LIMIT && !self.unchanged {
            self.errors.push(FieldError::forbidden(path, &too_expensive(name, cost, RULE_LIMIT)));
        }
        self.total = self.total.saturating_add(cost);
        self.costs.push((cost, path.to_owned()));
    }
}
