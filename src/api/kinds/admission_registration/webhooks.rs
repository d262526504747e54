//! MutatingWebhookConfigurations and ValidatingWebhookConfigurations.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::defaulting::{each, set, set_number};
use super::super::{cluster_scoped, gvr};
use super::rules;
use crate::api::cel::admission;
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{items, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::Errors;
use crate::api::validation::meta::dns_subdomain_messages;
use crate::api::validation::selector;
use crate::api::webhook_client;

/// Both kinds, the mutating one first.
pub(super) fn kinds() -> [Kind; 2] {
    let kind = |gvr, name, mutating| Kind {
        has_generation: true,
        ..cluster_scoped(gvr, name, Arc::new(Webhooks { mutating }))
    };
    [
        kind(gvr::MUTATING_WEBHOOK_CONFIGURATIONS, "MutatingWebhookConfiguration", true),
        kind(gvr::VALIDATING_WEBHOOK_CONFIGURATIONS, "ValidatingWebhookConfiguration", false),
    ]
}

struct Webhooks {
    mutating: bool,
}

impl Strategy for Webhooks {
    fn default(&self, object: &mut Value) {
        for hook in each(object, "webhooks") {
            set(hook, "failurePolicy", "Fail");
            set(hook, "matchPolicy", "Equivalent");
            set(hook, "namespaceSelector", json!({}));
            set(hook, "objectSelector", json!({}));
            set(hook, "timeoutSeconds", 10);
            if self.mutating {
                set(hook, "reinvocationPolicy", "Never");
            }
            if let Some(service) = hook.pointer_mut("/clientConfig/service").filter(|service| service.is_object()) {
                set_number(service, "port", 443);
            }
            for rule in each(hook, "rules") {
                set(rule, "scope", "*");
            }
        }
    }

    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        object["webhooks"] != old["webhooks"]
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let mut seen: Vec<&str> = Vec::new();
        for (index, hook) in items(&object["webhooks"]).iter().enumerate() {
            let path = format!("webhooks[{index}]");
            self.hook(&mut errors, hook, &path);
            versions(&mut errors, &hook["admissionReviewVersions"], &format!("{path}.admissionReviewVersions"));
            let name = text(&hook["name"]);
            if seen.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &hook["name"]));
            }
            seen.push(name);
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        let text = "Webhooks indicates the number of webhooks registered in this configuration";
        vec![name_column(), column("Webhooks", "integer", text), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), items(&object["webhooks"]).len().into(), age(object, now)]
    }
}

impl Webhooks {
    fn hook(&self, errors: &mut Errors, hook: &Value, path: &str) {
        qualified(errors, &hook["name"], &format!("{path}.name"));
        for (index, rule) in items(&hook["rules"]).iter().enumerate() {
            rules::validate(errors, rule, &format!("{path}.rules[{index}]"));
        }
        let mut one_of = |field: &str, supported: &[&str]| {
            if !hook[field].is_null() && !supported.contains(&text(&hook[field])) {
                errors.push(FieldError::not_supported(format!("{path}.{field}"), &hook[field], supported));
            }
        };
        one_of("failurePolicy", &["Fail", "Ignore"]);
        one_of("matchPolicy", &["Equivalent", "Exact"]);
        one_of("sideEffects", &["None", "NoneOnDryRun"]);
        if self.mutating {
            one_of("reinvocationPolicy", &["IfNeeded", "Never"]);
        }
        if hook["sideEffects"].is_null() {
            let why = "must specify one of None, NoneOnDryRun";
            errors.push(FieldError::required(format!("{path}.sideEffects"), why));
        }
        if let Some(seconds) = hook["timeoutSeconds"].as_i64().filter(|seconds| !(1..=30).contains(seconds)) {
            let why = "the timeout value must be between 1 and 30 seconds";
            errors.push(FieldError::invalid(format!("{path}.timeoutSeconds"), &seconds.into(), why));
        }
        for field in ["namespaceSelector", "objectSelector"] {
            selector::label_selector(errors, &hook[field], &format!("{path}.{field}"));
        }
        webhook_client::validate(errors, &hook["clientConfig"], &format!("{path}.clientConfig"));
        let env = admission::conditions_env();
        admission::conditions(errors, &env, &hook["matchConditions"], &format!("{path}.matchConditions"));
    }
}

/// A name with at least three segments (`IsFullyQualifiedName`).
fn qualified(errors: &mut Errors, value: &Value, path: &str) {
    let name = text(value);
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let messages = dns_subdomain_messages(name);
    if !messages.is_empty() {
        errors.push(FieldError::invalid(path, value, &messages.join(",")));
    } else if name.split('.').count() < 3 {
        let why = "should be a domain with at least three segments separated by dots";
        errors.push(FieldError::invalid(path, value, why));
    }
}

fn versions(errors: &mut Errors, versions: &Value, path: &str) {
    const KNOWN: [&str; 2] = ["v1", "v1beta1"];
    if items(versions).is_empty() {
        errors.push(FieldError::required(path, &format!("must specify one of {}", KNOWN.join(", "))));
        return;
    }
    for (index, version) in items(versions).iter().enumerate() {
        if items(versions)[..index].contains(version) {
            errors.push(FieldError::invalid(format!("{path}[{index}]"), version, "duplicate version"));
        }
    }
    if !items(versions).iter().any(|version| KNOWN.contains(&text(version))) {
        let why = format!("must include at least one of {}", KNOWN.join(", "));
        errors.push(FieldError::invalid(path, versions, &why));
    }
}
