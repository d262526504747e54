//! ResourceQuotas.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::ensure_object;
use super::pod::{container_quantity, resource_name};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{items, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::quantity::{Quantity, canonicalize_resource_list};
use crate::api::status::FieldError;
use crate::api::validation::{Errors, IMMUTABLE};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["quota"]),
        subresources: vec![Subresource::Status],
        ..namespaced(gvr::RESOURCE_QUOTAS, "ResourceQuota", Arc::new(ResourceQuotas))
    }
}

const OBJECTS: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
const COMPUTE: [&str; 9] = [
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
const CONFLICTING: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

struct ResourceQuotas;

impl Strategy for ResourceQuotas {
    fn default(&self, object: &mut Value) {
        for (part, lists) in [("spec", &["hard"][..]), ("status", &["hard", "used"])] {
            for list in lists {
                if let Some(list) = object.get_mut(part).and_then(|part| part.get_mut(list)) {
                    canonicalize_resource_list(list);
                }
            }
        }
        ensure_object(object, "spec");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), json!({}));
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        quantities(&mut errors, &spec["hard"], "spec.hard");
        scopes(&mut errors, spec);
        if spec["scopeSelector"].is_object() {
            selector(&mut errors, spec);
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        let set = |object: &'_ Value| -> BTreeSet<String> {
            items(&object["spec"]["scopes"]).iter().map(|scope| text(scope).to_owned()).collect()
        };
        if set(object) != set(old) {
            errors.push(FieldError::invalid("spec.scopes", &object["spec"]["scopes"], IMMUTABLE));
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        quantities(&mut errors, &object["status"]["hard"], "status.hard");
        quantities(&mut errors, &object["status"]["used"], "status.used");
        errors
    }

    fn columns(&self) -> Vec<Column> {
        const REQUEST: &str = "Request represents a minimum amount of cpu/memory that a container may consume.";
        const LIMIT: &str = "Limits control the maximum amount of cpu/memory that a container may use independent of \
            contention on the node.";
        vec![name_column(), column("Request", "string", REQUEST), column("Limit", "string", LIMIT), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let status = &object["status"];
        let part = |limits: bool| {
            let hard = status["hard"].as_object().into_iter().flatten();
            let of_part = hard.filter(|(name, _)| name.starts_with("limits.") == limits);
            let shown = of_part
                .map(|(name, hard)| format!("{name}: {}/{}", Quantity::of(&status["used"][name]), Quantity::of(hard)));
            shown.collect::<Vec<_>>().join(", ")
        };
        vec![name(object), part(false).into(), part(true).into(), age(object, now)]
    }
}

/// `IsStandardQuotaResourceName`.
fn is_standard(name: &str) -> bool {
    OBJECTS.contains(&name)
        || COMPUTE.contains(&name)
        || name == "requests.storage"
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

fn quantities(errors: &mut Errors, list: &Value, path: &str) {
    for (name, value) in list.as_object().into_iter().flatten() {
        let path = format!("{path}[{name}]");
        resource_name(errors, name, &path);
        if !name.contains('/') && !is_standard(name) {
            errors.push(FieldError::invalid(&path, &name.as_str().into(), "must be a standard resource for quota"));
        }
        container_quantity(errors, name, value, &path);
    }
}

/// Whether quotas with this scope can limit the resource (`IsResourceQuotaScopeValidForResource`).
fn fits(scope: &str, resource: &str) -> bool {
    let of_pods = resource == "pods";
    match scope {
        "BestEffort" => of_pods,
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            of_pods || COMPUTE.contains(&resource)
        }
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

fn misfits<'a>(scope: &'a str, spec: &'a Value) -> impl Iterator<Item = &'a String> {
    let hard = spec["hard"].as_object().into_iter().flatten();
    hard.map(|(name, _)| name).filter(move |name| is_standard(name) && !fits(scope, name))
}

fn scopes(errors: &mut Errors, spec: &Value) {
    let (path, all) = ("spec.scopes", &spec["scopes"]);
    let mut refuse = |detail: &str| errors.push(FieldError::invalid(path, all, detail));
    for scope in items(all).iter().map(text) {
        if !SCOPES.contains(&scope) {
            refuse("unsupported scope");
        }
        misfits(scope, spec).for_each(|_| refuse("unsupported scope applied to resource"));
    }
    let has = |scope: &str| items(all).iter().any(|s| text(s) == scope);
    for _ in CONFLICTING.iter().filter(|pair| pair.iter().all(|scope| has(scope))) {
        refuse("conflicting scopes");
    }
}

fn selector(errors: &mut Errors, spec: &Value) {
    let path = "spec.scopeSelector.matchExpressions";
    let expressions = items(&spec["scopeSelector"]["matchExpressions"]);
    for expression in expressions {
        let (scope, values) = (text(&expression["scopeName"]), items(&expression["values"]));
        let operator = text(&expression["operator"]);
        if !SCOPES.contains(&scope) {
            let path = format!("{path}.scopeName");
            errors.push(FieldError::invalid(path, &scope.into(), "unsupported scope"));
        }
        for _ in misfits(scope, spec) {
            let detail = "unsupported scope applied to resource";
            errors.push(FieldError::invalid(path, &spec["scopeSelector"], detail));
        }
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass")
            && SCOPES.contains(&scope)
            && operator != "Exists"
        {
            let detail = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
                ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
                ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(FieldError::invalid(format!("{path}.operator"), &operator.into(), detail));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(FieldError::required(format!("{path}.values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.push(FieldError::invalid(format!("{path}.values"), &expression["values"], detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.push(FieldError::invalid(
                format!("{path}.operator"),
                &operator.into(),
                "not a valid selector operator",
            )),
        }
    }
    let has = |scope: &str| expressions.iter().any(|e| text(&e["scopeName"]) == scope);
    for _ in CONFLICTING.iter().filter(|pair| pair.iter().all(|scope| has(scope))) {
        errors.push(FieldError::invalid(path, &spec["scopes"], "conflicting scopes"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        let errors = ResourceQuotas.validate(&json!({"spec": spec}));
        errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn scopes_must_fit_the_resources() {
        // TestValidateResourceQuota of validation_test.go.
        assert_eq!(
            errors(json!({"hard": {"pods": "1", "requests.cpu": "1"}, "scopes": ["BestEffort"]})),
            ["spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource"]
        );
        assert_eq!(errors(json!({"hard": {"count/deployments.apps": "1", "requests.nvidia.com/gpu": "4"}})), [""; 0]);
        let class = |operator: &str| json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator}]}});
        assert_eq!(errors(class("Exists")), [""; 0]);
        assert_eq!(
            errors(class("In")),
            [
                "spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is \
                'In' or 'NotIn' for scope selector"
            ]
        );
    }

    #[test]
    fn scopes_cannot_change() {
        let quota = |scopes: Value| json!({"spec": {"scopes": scopes}});
        let errors = ResourceQuotas.validate_update(&quota(json!(["BestEffort"])), &quota(json!(["NotBestEffort"])));
        assert_eq!(errors[0].message, "Invalid value: [\"BestEffort\"]: field is immutable");
    }

    #[test]
    fn the_table_shows_requests_and_limits_apart() {
        let status = json!({"hard": {"limits.cpu": "2", "pods": "3", "requests.cpu": "1"}, "used": {"limits.cpu": "500m", "pods": "1"}});
        let object = json!({"metadata": {"name": "q"}, "status": status});
        let cells = ResourceQuotas.cells(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(cells[1..3], ["pods: 1/3, requests.cpu: 0/1", "limits.cpu: 500m/2"]);
    }
}
