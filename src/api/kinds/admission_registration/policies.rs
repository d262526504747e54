//! ValidatingAdmissionPolicies and their bindings.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::defaulting::{each, ensure_object, set};
use super::super::{cluster_scoped, gvr};
use super::rules;
use crate::api::cel::admission;
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{items, text};
use crate::api::printers::{age, age_column, column, name, name_column, or_none};
use crate::api::status::FieldError;
use crate::api::validation::{Errors, one_of_or_unset, required, selector};

/// Policies and bindings.
pub(super) fn kinds() -> [Kind; 2] {
    [
        Kind {
            has_generation: true,
            subresources: vec![Subresource::Status],
            ..cluster_scoped(gvr::VALIDATING_ADMISSION_POLICIES, "ValidatingAdmissionPolicy", Arc::new(Policies))
        },
        Kind {
            has_generation: true,
            ..cluster_scoped(
                gvr::VALIDATING_ADMISSION_POLICY_BINDINGS,
                "ValidatingAdmissionPolicyBinding",
                Arc::new(Bindings),
            )
        },
    ]
}

fn default_match(resources: &mut Value) {
    if !resources.is_object() {
        return;
    }
    set(resources, "matchPolicy", "Equivalent");
    set(resources, "namespaceSelector", json!({}));
    set(resources, "objectSelector", json!({}));
    for field in ["resourceRules", "excludeResourceRules"] {
        for rule in each(resources, field) {
            set(rule, "scope", "*");
        }
    }
}

fn validate_match(errors: &mut Errors, resources: &Value, path: &str) {
    one_of_or_unset(errors, &format!("{path}.matchPolicy"), &resources["matchPolicy"], &["Equivalent", "Exact"]);
    for field in ["namespaceSelector", "objectSelector"] {
        selector::label_selector(errors, &resources[field], &format!("{path}.{field}"));
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in items(&resources[field]).iter().enumerate() {
            rules::validate(errors, rule, &format!("{path}.{field}[{index}]"));
        }
    }
}

struct Policies;

impl Strategy for Policies {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        set(spec, "failurePolicy", "Fail");
        if let Some(constraints) = spec.get_mut("matchConstraints") {
            default_match(constraints);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let spec = &object["spec"];
        one_of_or_unset(&mut errors, "spec.failurePolicy", &spec["failurePolicy"], &["Fail", "Ignore"]);
        if spec["paramKind"].is_object() {
            for field in ["apiVersion", "kind"] {
                required(&mut errors, &format!("spec.paramKind.{field}"), &spec["paramKind"][field]);
            }
        }
        if spec["matchConstraints"].is_null() {
            errors.push(FieldError::required("spec.matchConstraints", ""));
        } else {
            validate_match(&mut errors, &spec["matchConstraints"], "spec.matchConstraints");
            if items(&spec["matchConstraints"]["resourceRules"]).is_empty() {
                errors.push(FieldError::required("spec.matchConstraints.resourceRules", ""));
            }
        }
        if items(&spec["validations"]).is_empty() && items(&spec["auditAnnotations"]).is_empty() {
            let why = "validations or auditAnnotations must contain at least one item";
            errors.push(FieldError::required("spec.validations", why));
            errors.push(FieldError::required("spec.auditAnnotations", why));
        }
        admission::policy(&mut errors, spec);
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Validations",
                "integer",
                "Validations indicates the number of validation rules defined in this configuration",
            ),
            column("ParamKind", "string", "ParamKind specifies the kind of resources used to parameterize this policy"),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, param) = (&object["spec"], &object["spec"]["paramKind"]);
        let kind = match param.is_object() {
            true => format!("{}/{}", text(&param["apiVersion"]), text(&param["kind"])),
            false => "<unset>".to_owned(),
        };
        vec![name(object), items(&spec["validations"]).len().into(), kind.into(), age(object, now)]
    }
}

struct Bindings;

impl Strategy for Bindings {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        if let Some(resources) = spec.get_mut("matchResources") {
            default_match(resources);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let spec = &object["spec"];
        required(&mut errors, "spec.policyName", &spec["policyName"]);
        param_ref(&mut errors, &spec["paramRef"]);
        if spec["matchResources"].is_object() {
            validate_match(&mut errors, &spec["matchResources"], "spec.matchResources");
        }
        actions(&mut errors, &spec["validationActions"]);
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "PolicyName",
                "string",
                "PolicyName indicates the policy definition which the policy binding binded to",
            ),
            column("ParamRef", "string", "ParamRef indicates the param resource which sets the configration param"),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, param) = (&object["spec"], &object["spec"]["paramRef"]);
        let shown = match (param.is_object(), text(&param["namespace"]), text(&param["name"])) {
            (false, ..) => "<unset>".to_owned(),
            (true, namespace, "") if param["selector"].is_object() => format!("{}/<selector>", or_none(namespace)),
            (true, "", name) => name.to_owned(),
            (true, namespace, name) => format!("{namespace}/{name}"),
        };
        vec![name(object), text(&spec["policyName"]).into(), shown.into(), age(object, now)]
    }
}

fn param_ref(errors: &mut Errors, reference: &Value) {
    if !reference.is_object() {
        return;
    }
    let has_name = !text(&reference["name"]).is_empty();
    let has_selector = reference["selector"].is_object();
    if has_name && has_selector {
        errors.push(FieldError::forbidden("spec.paramRef.name", "name and selector are mutually exclusive"));
    } else if !has_name && !has_selector {
        errors.push(FieldError::required("spec.paramRef", "one of name or selector must be specified"));
    }
    selector::label_selector(errors, &reference["selector"], "spec.paramRef.selector");
    let action = &reference["parameterNotFoundAction"];
    if action.is_null() {
        errors.push(FieldError::required("spec.paramRef.parameterNotFoundAction", ""));
    } else {
        one_of_or_unset(errors, "spec.paramRef.parameterNotFoundAction", action, &["Allow", "Deny"]);
    }
}

fn actions(errors: &mut Errors, actions: &Value) {
    const PATH: &str = "spec.validationActions";
    const KNOWN: [&str; 3] = ["Audit", "Deny", "Warn"];
    let all = items(actions);
    if all.is_empty() {
        errors.push(FieldError::required(PATH, "at least one validation action is required"));
    }
    for (index, action) in all.iter().enumerate() {
        if !KNOWN.contains(&text(action)) {
            errors.push(FieldError::not_supported(format!("{PATH}[{index}]"), action, &KNOWN));
        }
        if all[..index].contains(action) {
            errors.push(FieldError::duplicate(format!("{PATH}[{index}]"), action));
        }
    }
    let has = |wanted: &str| all.iter().any(|action| action == wanted);
    if has("Deny") && has("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and \
            headers serves no purpose)";
        errors.push(FieldError::invalid(PATH, actions, why));
    }
}
