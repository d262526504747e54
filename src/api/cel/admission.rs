//! What expressions of admission see: match conditions of webhooks, and ValidatingAdmissionPolicies
//! (`k8s.io/apiserver/pkg/admission/plugin/cel`).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::ast::Expr;
use super::types::Object;
use super::{Env, Program, Type, compile};
use crate::api::meta::{items, text};
use crate::api::status::FieldError;
use crate::api::validation::Errors;
use crate::api::validation::meta::qualified_name_messages;

/// The variable of `authorizer.requestResource`, a dotted name.
pub const REQUEST_RESOURCE: &str = "authorizer.requestResource";

fn request() -> Type {
    let gvk = Type::object(
        "kubernetes.GroupVersionKind",
        [("group", Type::String), ("version", Type::String), ("kind", Type::String)],
    );
    let gvr = Type::object(
        "kubernetes.GroupVersionResource",
        [("group", Type::String), ("version", Type::String), ("resource", Type::String)],
    );
    let user = Type::object(
        "kubernetes.UserInfo",
        [
            ("username", Type::String),
            ("uid", Type::String),
            ("groups", Type::list(Type::String)),
            ("extra", Type::map(Type::list(Type::String))),
        ],
    );
    Type::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", gvk.clone()),
            ("resource", gvr.clone()),
            ("subResource", Type::String),
            ("requestKind", gvk),
            ("requestResource", gvr),
            ("requestSubResource", Type::String),
            ("name", Type::String),
            ("namespace", Type::String),
            ("operation", Type::String),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
}

/// What match conditions of webhooks may use.
pub fn conditions_env() -> Env {
    Env::new()
        .with("object", Type::Dyn)
        .with("oldObject", Type::Dyn)
        .with("request", request())
        .with("authorizer", Type::Opaque("kubernetes.authorization.Authorizer"))
        .with(REQUEST_RESOURCE, Type::Opaque("kubernetes.authorization.ResourceCheck"))
}

/// What a policy's expressions may use, but for its own variables.
pub fn policy_env(has_params: bool) -> Env {
    let env = conditions_env().with("namespaceObject", Type::Dyn);
    if has_params { env.with("params", Type::Dyn) } else { env }
}

/// The same with a policy's own variables.
pub(super) fn with_variables(env: &Env, known: &BTreeMap<String, Type>) -> Env {
    let object = Object { name: "kubernetes.variables".to_owned(), fields: known.clone() };
    env.clone().with("variables", Type::Object(Arc::new(object)))
}

/// A policy's expressions, compiled.
#[derive(Debug, Default)]
pub struct Policy {
    /// `matchConditions` by name.
    pub conditions: Vec<(String, Expr)>,
    /// `variables` by name, each after those that it uses.
    pub variables: Vec<(String, Expr)>,
    /// `validations`.
    pub validations: Vec<Validation>,
    /// `auditAnnotations` by key.
    pub annotations: Vec<(String, Expr)>,
}

/// One validation.
#[derive(Debug)]
pub struct Validation {
    /// The expression as it was written.
    pub source: String,
    /// The expression.
    pub expr: Expr,
    /// What is said when it is false; empty: a default.
    pub message: String,
    /// The expression of the message.
    pub message_expr: Option<Expr>,
    /// `Forbidden` and others; empty: `Invalid`.
    pub reason: String,
}

/// Compiles match conditions, or tells what is wrong with them.
pub fn conditions(errors: &mut Errors, env: &Env, list: &Value, path: &str) -> Vec<(String, Expr)> {
    let mut compiled: Vec<(String, Expr)> = Vec::new();
    for (index, condition) in items(list).iter().enumerate() {
        let path = format!("{path}[{index}]");
        let name = text(&condition["name"]);
        if let Some(program) =
            expression(errors, env, &condition["expression"], &format!("{path}.expression"), &[Type::Bool])
        {
            compiled.push((name.to_owned(), program.expr));
        }
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
            continue;
        }
        for message in qualified_name_messages(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), &condition["name"], &message));
        }
        if items(list)[..index].iter().any(|other| other["name"] == condition["name"]) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &condition["name"]));
        }
    }
    if items(list).len() > 64 {
        errors.push(FieldError::too_many(path, items(list).len(), 64));
    }
    compiled
}

/// Compiles a policy's `spec`, or tells what is wrong with its expressions.
pub fn policy(errors: &mut Errors, spec: &Value) -> Policy {
    let env = policy_env(spec["paramKind"].is_object());
    let mut policy = Policy {
        conditions: conditions(errors, &env, &spec["matchConditions"], "spec.matchConditions"),
        ..Policy::default()
    };
    let mut known = BTreeMap::new();
    for (index, variable) in items(&spec["variables"]).iter().enumerate() {
        let path = format!("spec.variables[{index}]");
        let name = text(&variable["name"]);
        let identifier = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !name.chars().all(identifier) || name.starts_with(|c: char| c.is_ascii_digit()) {
            let why = "name is not a valid CEL identifier";
            errors.push(FieldError::invalid(format!("{path}.name"), &variable["name"], why));
        }
        if known.contains_key(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &variable["name"]));
        }
        let compiled = expression(
            errors,
            &with_variables(&env, &known),
            &variable["expression"],
            &format!("{path}.expression"),
            &[],
        );
        let ty = compiled.as_ref().map_or(Type::Dyn, |program| program.ty.clone());
        known.insert(name.to_owned(), ty);
        policy.variables.extend(compiled.map(|program| (name.to_owned(), program.expr)));
    }
    let env = with_variables(&env, &known);
    for (index, validation) in items(&spec["validations"]).iter().enumerate() {
        let path = format!("spec.validations[{index}]");
        let compiled =
            expression(errors, &env, &validation["expression"], &format!("{path}.expression"), &[Type::Bool]);
        let message = text(&validation["messageExpression"]).trim();
        let message_expr = match message {
            "" => None,
            _ => {
                let path = format!("{path}.messageExpression");
                expression(errors, &env, &validation["messageExpression"], &path, &[Type::String])
            }
        };
        check_validation(errors, validation, &path);
        policy.validations.extend(compiled.map(|program| Validation {
            source: text(&validation["expression"]).trim().to_owned(),
            expr: program.expr,
            message: text(&validation["message"]).trim().to_owned(),
            message_expr: message_expr.map(|program| program.expr),
            reason: text(&validation["reason"]).to_owned(),
        }));
    }
    for (index, annotation) in items(&spec["auditAnnotations"]).iter().enumerate() {
        let path = format!("spec.auditAnnotations[{index}]");
        for message in qualified_name_messages(text(&annotation["key"])) {
            errors.push(FieldError::invalid(format!("{path}.key"), &annotation["key"], &message));
        }
        let path = format!("{path}.valueExpression");
        let value = expression(errors, &env, &annotation["valueExpression"], &path, &[Type::String, Type::Null]);
        policy.annotations.extend(value.map(|program| (text(&annotation["key"]).to_owned(), program.expr)));
    }
    policy
}

fn check_validation(errors: &mut Errors, validation: &Value, path: &str) {
    let (source, message) = (text(&validation["expression"]).trim(), text(&validation["message"]));
    let has_breaks = |text: &str| text.contains(['\n', '\r']);
    if !message.is_empty() && message.trim().is_empty() {
        let why = "message must be non-empty if specified";
        errors.push(FieldError::invalid(format!("{path}.message"), &validation["message"], why));
    } else if has_breaks(message.trim()) {
        let why = "message must not contain line breaks";
        errors.push(FieldError::invalid(format!("{path}.message"), &validation["message"], why));
    } else if has_breaks(source) && message.is_empty() {
        let why = "message must be specified if expression contains line breaks";
        errors.push(FieldError::required(format!("{path}.message"), why));
    }
    const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
    if !validation["reason"].is_null() && !REASONS.contains(&text(&validation["reason"])) {
        errors.push(FieldError::not_supported(format!("{path}.reason"), &validation["reason"], &REASONS));
    }
}

/// One expression that must give one of these types (none: any).
fn expression(errors: &mut Errors, env: &Env, source: &Value, path: &str, wanted: &[Type]) -> Option<Program> {
    let given = text(source).trim();
    if given.is_empty() {
        errors.push(FieldError::required(path, ""));
        return None;
    }
    match compile(env, given) {
        Err(why) => {
            errors.push(FieldError::invalid(path, source, &format!("compilation failed: {why}")));
            None
        }
        Ok(program) if wanted.is_empty() || program.ty == Type::Dyn || wanted.contains(&program.ty) => Some(program),
        Ok(_) => {
            let names: Vec<String> = wanted.iter().map(Type::to_string).collect();
            let why = match &names[..] {
                [one] => format!("must evaluate to {one}"),
                many => format!("must evaluate to one of [{}]", many.join(" ")),
            };
            errors.push(FieldError::invalid(path, source, &why));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(spec: Value) -> Vec<String> {
        let mut errors = Errors::new();
        policy(&mut errors, &spec);
        errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn policies_are_compiled() {
        let good = json!({"matchConditions": [{"name": "a", "expression": "request.userInfo.username != 'x'"}],
            "variables": [{"name": "n", "expression": "object.spec.replicas"}, {"name": "m", "expression": "variables.n + 1"}],
            "validations": [{"expression": "variables.m <= 5 && authorizer.requestResource.check('x').allowed()",
                "messageExpression": "'too many: ' + string(variables.n)"}],
            "auditAnnotations": [{"key": "high", "valueExpression": "variables.n > 50 ? 'yes' : 'no'"}]});
        assert_eq!(told(good), Vec::<String>::new());
        let bad = told(json!({"validations": [{"expression": "object.spec.replicas"}, {"expression": "1"},
            {"expression": "request.foo == ''"}, {"expression": "params.x == 1"}, {"expression": "variables.x"}]}));
        assert_eq!(bad[0], "spec.validations[1].expression: Invalid value: \"1\": must evaluate to bool");
        assert!(bad[1].contains("undefined field 'foo'"), "{bad:?}");
        assert!(bad[2].contains("undeclared reference to 'params' (in container '')"), "{bad:?}");
        assert!(bad[3].contains("undefined field 'x'"), "{bad:?}");
    }
}
