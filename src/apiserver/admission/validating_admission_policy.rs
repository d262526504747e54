//! `ValidatingAdmissionPolicy`: policies in CEL and their bindings (`k8s.io/apiserver/pkg/admission/plugin/policy`).

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::registry::list::Page;
use super::super::selector::Selection;
use super::registrations::{Binding, Registered};
use super::request::{Decider, Request, Seen, failed, name_of};
use super::webhooks::{Meant, meant};
use crate::api::cel::admission::Validation;
use crate::api::cel::{Error, Machine, PER_CALL_LIMIT, TOTAL_LIMIT, Value as CelValue};
use crate::api::meta::{items, text};
use crate::api::selector::LabelSelector;
use crate::api::{Kind, Status, StatusResult};
use crate::apiserver::ApiServer;

/// A validation that does not hold.
struct Violation {
    message: String,
    reason: String,
    index: usize,
}

/// Asks every policy about the object as it will be stored.
pub(super) async fn validate(
    server: &ApiServer,
    request: &Request<'_>,
    object: &Value,
    old: Option<&Value>,
) -> StatusResult<()> {
    let snapshot = server.registrations.snapshot();
    for policy in &snapshot.policies {
        let bindings: Vec<&Arc<Binding>> =
            snapshot.bindings.iter().filter(|binding| binding.policy == policy.name).collect();
        if bindings.is_empty() || !policy_means(server, request, policy, object, old).await? {
            continue;
        }
        let namespace = request.namespace(server, object, old).await?;
        for binding in bindings {
            let rules = items(&binding.spec["matchResources"]["resourceRules"]);
            let resources = &binding.spec["matchResources"];
            if !is_meant(server, request, resources, &binding.selectors, rules.is_empty(), object, old).await? {
                continue;
            }
            let params = match params(server, request, policy, binding).await {
                Ok(params) => params,
                Err(why) => {
                    fail(request, policy, binding, &why, object)?;
                    continue;
                }
            };
            for param in &params {
                judge(server, request, policy, binding, param.as_deref(), namespace.as_deref(), object, old)?;
            }
        }
    }
    Ok(())
}

async fn policy_means(
    server: &ApiServer,
    request: &Request<'_>,
    policy: &Registered,
    object: &Value,
    old: Option<&Value>,
) -> StatusResult<bool> {
    let constraints = &policy.spec["matchConstraints"];
    is_meant(server, request, constraints, &policy.selectors, false, object, old).await
}

/// Whether `MatchResources` mean a request. `all`: without rules everything is meant.
async fn is_meant(
    server: &ApiServer,
    request: &Request<'_>,
    resources: &Value,
    selectors: &super::registrations::Selectors,
    all: bool,
    object: &Value,
    old: Option<&Value>,
) -> StatusResult<bool> {
    let equivalent = resources["matchPolicy"] != "Exact";
    let everything = [json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]})];
    let rules = if all { &everything[..] } else { items(&resources["resourceRules"]) };
    let found = meant(server, request, rules, equivalent, selectors, object, old).await?;
    if matches!(found, Meant::No) {
        return Ok(false);
    }
    let excluded = items(&resources["excludeResourceRules"]);
    if excluded.is_empty() {
        return Ok(true);
    }
    let found = meant(server, request, excluded, equivalent, selectors, object, old).await?;
    Ok(matches!(found, Meant::No))
}

/// The parameters of a binding, one `None` when it has none.
async fn params(
    server: &ApiServer,
    request: &Request<'_>,
    policy: &Registered,
    binding: &Binding,
) -> Result<Vec<Option<Arc<Value>>>, String> {
    let (wanted, reference) = (&policy.spec["paramKind"], &binding.spec["paramRef"]);
    if !wanted.is_object() || !reference.is_object() {
        return Ok(vec![None]);
    }
    let api_version = text(&wanted["apiVersion"]);
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let served = server.kinds.snapshot();
    let of = |kind: &&Arc<Kind>| {
        kind.gvr.group == group && kind.gvr.version == version && kind.kind == text(&wanted["kind"])
    };
    let unknown =
        || format!("failed to find resource referenced by paramKind: '{api_version}, Kind={}'", text(&wanted["kind"]));
    let kind = served.all.iter().find(of).ok_or_else(unknown)?;
    let namespace = match (kind.namespaced, text(&reference["namespace"])) {
        (false, "") => String::new(),
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned()),
        (true, "") if request.attributes.namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned()
            );
        }
        (true, "") => request.attributes.namespace.to_owned(),
        (true, given) => given.to_owned(),
    };
    let mut found: Vec<Option<Arc<Value>>> = Vec::new();
    if !text(&reference["name"]).is_empty() {
        match server.get_entry(kind, &namespace, text(&reference["name"])).await {
            Ok(entry) => found.push(Some(entry.value())),
            Err(status) if status.is_not_found() => {}
            Err(status) => return Err(status.message),
        }
    } else {
        let selector = LabelSelector::from_label_selector(&reference["selector"])?;
        let selection = Selection::parse(kind, &selector.to_string(), "").map_err(|status| status.message)?;
        let listed =
            server.list(kind, &namespace, &selection, &Page::default()).await.map_err(|status| status.message)?;
        found.extend(listed.entries.iter().map(|entry| Some(entry.value())));
    }
    if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found)
}

/// A binding that cannot be used counts as the policy's failure policy says.
fn fail(request: &Request<'_>, policy: &Registered, binding: &Binding, why: &str, object: &Value) -> StatusResult<()> {
    if policy.spec["failurePolicy"] == "Ignore" {
        return Ok(());
    }
    let why = format!("failed to configure binding: {why}");
    let violation = Violation { message: why, reason: "Invalid".to_owned(), index: 0 };
    Err(denied(request, policy, binding, &violation, object))
}

#[expect(clippy::too_many_arguments, reason = "everything that expressions look at")]
fn judge(
    server: &ApiServer,
    request: &Request<'_>,
    policy: &Registered,
    binding: &Binding,
    params: Option<&Value>,
    namespace: Option<&Value>,
    object: &Value,
    old: Option<&Value>,
) -> StatusResult<()> {
    let fails_closed = policy.spec["failurePolicy"] != "Ignore";
    match request.conditions_hold(server, &policy.policy.conditions, object, old, params, namespace) {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(why) => return fail(request, policy, binding, &why, object),
    }
    let described = request.described(server, request.attributes.kind);
    let decider = Decider { server, user: request.attributes.user };
    let seen = Seen { request: &described, object, old, params, namespace, decider: &decider };
    let mut machine = seen.machine(request, PER_CALL_LIMIT).with_variables(&policy.policy.variables);
    let mut left = TOTAL_LIMIT;
    let mut violations = Vec::new();
    for (index, validation) in policy.policy.validations.iter().enumerate() {
        match run(&mut machine, &mut left, &validation.expr) {
            Ok(CelValue::Bool(true)) => {}
            Ok(_) => {
                let message = message(&mut machine, &mut left, validation);
                violations.push(Violation { message, reason: validation.reason.clone(), index });
            }
            Err(error) if fails_closed => {
                let message = failed(&validation.source, &error);
                violations.push(Violation { message, reason: validation.reason.clone(), index });
            }
            Err(_) => {}
        }
    }
    annotate(request, policy, binding, &mut machine, &mut left);
    act(request, policy, binding, &violations, object)
}

/// Runs one expression with what is left of the budget.
fn run<'a>(
    machine: &mut Machine<'a>,
    left: &mut u64,
    expr: &'a crate::api::cel::ast::Expr,
) -> Result<CelValue<'a>, Error> {
    let limit = PER_CALL_LIMIT.min(*left);
    machine.refill(limit);
    let result = machine.run(expr);
    *left -= limit - machine.left();
    result
}

fn message<'a>(machine: &mut Machine<'a>, left: &mut u64, validation: &'a Validation) -> String {
    if let Some(expr) = &validation.message_expr
        && let Ok(CelValue::String(text)) = run(machine, left, expr)
    {
        let text = text.trim();
        if !text.is_empty() && !text.contains(['\n', '\r']) {
            return text.to_owned();
        }
    }
    match validation.message.as_str() {
        "" => format!("failed expression: {}", validation.source),
        message => message.to_owned(),
    }
}

fn annotate<'a>(
    request: &Request<'_>,
    policy: &'a Registered,
    binding: &Binding,
    machine: &mut Machine<'a>,
    left: &mut u64,
) {
    for (key, expr) in &policy.policy.annotations {
        let key = format!("{}/{key}", policy.name);
        match run(machine, left, expr) {
            Ok(CelValue::String(text)) if !text.is_empty() => request.attributes.context.annotate(&key, &text),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(policy = policy.name, binding = binding.name, %error, "an audit annotation cannot be made")
            }
        }
    }
}

/// Denies, warns and audits as the binding says.
fn act(
    request: &Request<'_>,
    policy: &Registered,
    binding: &Binding,
    violations: &[Violation],
    object: &Value,
) -> StatusResult<()> {
    let actions = items(&binding.spec["validationActions"]);
    let has = |wanted: &str| actions.iter().any(|action| action == wanted);
    let context = request.attributes.context;
    for violation in violations {
        if has("Audit") {
            let told = json!([{"message": violation.message, "policy": policy.name, "binding": binding.name,
                "expressionIndex": violation.index, "validationActions": actions}]);
            context.annotate("validation.policy.admission.k8s.io/validation_failure", &told.to_string());
        }
        if has("Warn") {
            context.warn([format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                policy.name, binding.name, violation.message
            )]);
        }
    }
    match violations.first().filter(|_| has("Deny")) {
        Some(violation) => Err(denied(request, policy, binding, violation, object)),
        None => Ok(()),
    }
}

fn denied(
    request: &Request<'_>,
    policy: &Registered,
    binding: &Binding,
    violation: &Violation,
    object: &Value,
) -> Status {
    let why = format!(
        "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {}",
        policy.name, binding.name, violation.message
    );
    let attributes = request.attributes;
    let mut status = Status::forbidden(&attributes.kind.gvr, name_of(attributes, object), &why);
    let (code, reason) = match violation.reason.as_str() {
        "Unauthorized" => (401, "Unauthorized"),
        "Forbidden" => (403, "Forbidden"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    status.code = code;
    status.reason = reason.to_owned();
    status.details["causes"] = json!([{"message": why}]);
    status
}
