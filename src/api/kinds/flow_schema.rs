//! FlowSchemas: which requests belong to which priority level.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set, set_number};
use super::{cluster_scoped, gvr};
use crate::api::flow_control;
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, items, number, text};
use crate::api::printers::{age, age_column, column, name, name_column, or_none};
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, dns_subdomain_messages};
use crate::api::validation::{Errors, invalid_all, required};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        subresources: vec![Subresource::Status],
        has_generation: true,
        unconditional_update: false,
        ..cluster_scoped(gvr::FLOW_SCHEMAS, "FlowSchema", Arc::new(FlowSchemas))
    }
}

const VERBS: [&str; 9] = ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
/// The largest `matchingPrecedence`.
const LAST: i64 = 10_000;

struct FlowSchemas;

impl Strategy for FlowSchemas {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = ensure_object(object, "spec") {
            set_number(spec, "matchingPrecedence", 1000);
            ensure_object(spec, "priorityLevelConfiguration");
        }
        ensure_object(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (name, spec) = (meta::name(object), &object["spec"]);
        let mut errors = Errors::new();
        precedence(&mut errors, name, spec);
        let method = &spec["distinguisherMethod"];
        if method.is_object() && !matches!(text(&method["type"]), "ByNamespace" | "ByUser") {
            let path = "spec.distinguisherMethod.type";
            errors.push(FieldError::not_supported(path, method, &["ByNamespace", "ByUser"]));
        }
        let (level, path) = (&spec["priorityLevelConfiguration"]["name"], "spec.priorityLevelConfiguration.name");
        if text(level).is_empty() {
            errors.push(FieldError::required(path, "must reference a priority level"));
        } else {
            invalid_all(&mut errors, path, level, dns_subdomain_messages(text(level)));
        }
        for (index, rule) in items(&spec["rules"]).iter().enumerate() {
            self::rule(&mut errors, rule, &format!("spec.rules[{index}]"));
        }
        if let Some(fixed) = flow_control::mandatory_flow_schema(name)
            && fixed["spec"] != *spec
        {
            errors.push(FieldError::invalid("spec", spec, &format!("spec of '{name}' must equal the fixed value")));
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> Vec<FieldError> {
        conditions(&object["status"])
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "PriorityLevel",
                "string",
                "`name` is the name of the priority level configuration being referenced Required.",
            ),
            column(
                "MatchingPrecedence",
                "string",
                "`matchingPrecedence` is used to choose among the FlowSchemas that match a given request. The chosen \
                 FlowSchema is among those with the numerically lowest (which we take to be logically highest) \
                 MatchingPrecedence.  Each MatchingPrecedence value must be ranged in [1,10000]. Note that if the \
                 precedence is not specified, it will be set to 1000 as default.",
            ),
            column(
                "DistinguisherMethod",
                "string",
                "`distinguisherMethod` defines how to compute the flow distinguisher for requests that match this \
                 schema. `nil` specifies that the distinguisher is disabled and thus will always be the empty string.",
            ),
            age_column(),
            column("MissingPL", "string", "references a broken or non-existent PriorityLevelConfiguration"),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let conditions = items(&object["status"]["conditions"]);
        let dangling = conditions.iter().find(|c| text(&c["type"]) == "Dangling").map_or("?", |c| text(&c["status"]));
        vec![
            name(object),
            text(&spec["priorityLevelConfiguration"]["name"]).into(),
            number(&spec["matchingPrecedence"]).into(),
            or_none(text(&spec["distinguisherMethod"]["type"])).into(),
            age(object, now),
            dangling.into(),
        ]
    }
}

/// Conditions of a status: each type once.
pub fn conditions(status: &Value) -> Errors {
    let (mut errors, mut types) = (Errors::new(), BTreeSet::new());
    for (index, condition) in items(&status["conditions"]).iter().enumerate() {
        let path = format!("status.conditions[{index}].type");
        if !types.insert(text(&condition["type"])) {
            errors.push(FieldError::duplicate(&path, &condition["type"]));
        }
        if text(&condition["type"]).is_empty() {
            errors.push(FieldError::required(&path, "must not be empty"));
        }
    }
    errors
}

fn precedence(errors: &mut Errors, name: &str, spec: &Value) {
    let (path, given) = ("spec.matchingPrecedence", &spec["matchingPrecedence"]);
    let mut refuse = |detail: &str| errors.push(FieldError::invalid(path, given, detail));
    match number(given) {
        n if n <= 0 => refuse("must be a positive value"),
        n if n > LAST => refuse(&format!("must not be greater than {LAST}")),
        1 if name != "exempt" => refuse("only the schema named 'exempt' may have matchingPrecedence 1"),
        _ => {}
    }
}

fn rule(errors: &mut Errors, rule: &Value, path: &str) {
    let (subjects, resource, other) =
        (items(&rule["subjects"]), items(&rule["resourceRules"]), items(&rule["nonResourceRules"]));
    if subjects.is_empty() {
        let detail = "subjects must contain at least one value";
        errors.push(FieldError::required(format!("{path}.subjects"), detail));
    }
    for (index, subject) in subjects.iter().enumerate() {
        self::subject(errors, subject, &format!("{path}.subjects[{index}]"));
    }
    if resource.is_empty() && other.is_empty() {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(FieldError::required(path, detail));
    }
    for (index, rule) in resource.iter().enumerate() {
        let path = format!("{path}.resourceRules[{index}]");
        verbs(errors, rule, &path);
        list(errors, rule, "apiGroups", "resource rules must supply at least one api group", "api groups", &path);
        list(errors, rule, "resources", "resource rules must supply at least one resource", "resources", &path);
        namespaces(errors, rule, &path);
    }
    for (index, rule) in other.iter().enumerate() {
        let path = format!("{path}.nonResourceRules[{index}]");
        verbs(errors, rule, &path);
        let missing = "nonResourceURLs must contain at least one value";
        list(errors, rule, "nonResourceURLs", missing, "non-resource URLs", &path);
        urls(errors, rule, &format!("{path}.nonResourceURLs"));
    }
}

fn has_wildcard(list: &[Value]) -> bool {
    list.iter().any(|item| text(item) == "*")
}

fn list(errors: &mut Errors, rule: &Value, field: &str, missing: &str, noun: &str, path: &str) {
    let (all, path) = (items(&rule[field]), format!("{path}.{field}"));
    if all.is_empty() {
        errors.push(FieldError::required(path, missing));
    } else if all.len() > 1 && has_wildcard(all) {
        let detail = format!("if '*' is present, must not specify other {noun}");
        errors.push(FieldError::invalid(path, &rule[field], &detail));
    }
}

fn verbs(errors: &mut Errors, rule: &Value, path: &str) {
    let all = items(&rule["verbs"]);
    list(errors, rule, "verbs", "verbs must contain at least one value", "verbs", path);
    if !has_wildcard(all) && all.iter().any(|verb| !VERBS.contains(&text(verb))) {
        errors.push(FieldError::not_supported(format!("{path}.verbs"), &rule["verbs"], &VERBS));
    }
}

fn namespaces(errors: &mut Errors, rule: &Value, path: &str) {
    let all = items(&rule["namespaces"]);
    if rule["clusterScope"] != true || !all.is_empty() {
        let missing = "resource rules that are not cluster scoped must supply at least one namespace";
        list(errors, rule, "namespaces", missing, "namespaces", path);
    }
    if !has_wildcard(all) {
        for (index, namespace) in all.iter().enumerate() {
            let path = format!("{path}.namespaces[{index}]");
            let messages = dns_label_messages(text(namespace)).into_iter();
            let full = messages.map(|m| format!("each member of this list must be '*' or a DNS-1123 label; {m}"));
            invalid_all(errors, &path, namespace, full.collect());
        }
    }
}

/// `ValidateNonResourceURLPath`.
fn urls(errors: &mut Errors, rule: &Value, path: &str) {
    let all = items(&rule["nonResourceURLs"]);
    if has_wildcard(all) {
        return;
    }
    for (index, given) in all.iter().enumerate() {
        let (path, url) = (format!("{path}[{index}]"), text(given));
        let mut refuse = |detail: &str| errors.push(FieldError::invalid(&path, given, detail));
        match url {
            "" => refuse("must not be empty"),
            "/" => {}
            _ if !url.starts_with('/') => refuse("must start with slash"),
            _ if url.contains(' ') => refuse("must not contain white-space"),
            _ if url.contains("//") => refuse("must not contain double slash"),
            _ => {
                if let Some(at) = url.find('*')
                    && (at + 1 != url.len() || !url.ends_with("/*"))
                {
                    refuse("wildcard can only do suffix matching");
                }
            }
        }
    }
}

fn subject(errors: &mut Errors, subject: &Value, path: &str) {
    const KINDS: [(&str, &str); 3] = [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
    let kind = text(&subject["kind"]);
    let Some((_, own)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        let kinds = ["Group", "ServiceAccount", "User"];
        return errors.push(FieldError::not_supported(format!("{path}.kind"), &kind.into(), &kinds));
    };
    let (of_kind, own_path) = (&subject[*own], format!("{path}.{own}"));
    if !of_kind.is_object() {
        let detail = format!("{own} is required when subject kind is '{kind}'");
        errors.push(FieldError::required(&own_path, &detail));
    } else {
        required(errors, &format!("{own_path}.name"), &of_kind["name"]);
        if kind == "ServiceAccount" {
            service_account(errors, of_kind, &own_path);
        }
    }
    for (name, field) in KINDS.iter().filter(|(name, field)| *name != kind && subject[*field].is_object()) {
        let detail = format!("{field} is forbidden when subject kind is not '{name}'");
        errors.push(FieldError::forbidden(format!("{path}.{field}"), &detail));
    }
}

fn service_account(errors: &mut Errors, account: &Value, path: &str) {
    let (name, namespace) = (&account["name"], &account["namespace"]);
    if !matches!(text(name), "" | "*") {
        invalid_all(errors, &format!("{path}.name"), name, dns_subdomain_messages(text(name)));
    }
    let path = format!("{path}.namespace");
    if text(namespace).is_empty() {
        errors.push(FieldError::required(path, "must specify namespace for service account"));
    } else {
        invalid_all(errors, &path, namespace, dns_label_messages(text(namespace)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(name: &str, spec: Value) -> Vec<String> {
        let mut object = json!({"metadata": {"name": name}, "spec": spec});
        FlowSchemas.default(&mut object);
        FlowSchemas.validate(&object).into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn rules_need_subjects_and_something_to_match() {
        // TestFlowSchemaValidation of validation_test.go.
        let level = json!({"name": "bar"});
        assert_eq!(errors("eg", json!({"priorityLevelConfiguration": level})), [""; 0]);
        assert_eq!(
            errors("eg", json!({"priorityLevelConfiguration": level, "matchingPrecedence": 1, "rules": [{}]})),
            [
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
                "spec.rules[0].subjects: Required value: subjects must contain at least one value",
                "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty"
            ]
        );
        let subjects = json!([{"kind": "User", "user": {"name": "noxu"}, "group": {"name": "g"}}]);
        let url = |url: &str| json!([{"verbs": ["*"], "nonResourceURLs": [url]}]);
        assert_eq!(
            errors(
                "eg",
                json!({"priorityLevelConfiguration": level, "rules": [{"subjects": subjects, "nonResourceRules": url("/a*b")}]})
            ),
            [
                "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
                "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"/a*b\": wildcard can only do suffix \
                    matching"
            ]
        );
    }

    #[test]
    fn the_mandatory_ones_stay() {
        let fixed = flow_control::mandatory_flow_schema("catch-all").expect("it is mandatory");
        assert_eq!(errors("catch-all", fixed["spec"].clone()), [""; 0]);
        let mut other = fixed["spec"].clone();
        other["matchingPrecedence"] = 9999.into();
        assert!(errors("catch-all", other)[0].ends_with("spec of 'catch-all' must equal the fixed value"));
    }
}
