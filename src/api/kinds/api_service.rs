//! APIServices: who serves a group version.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::defaulting::set_number;
use super::{cluster_scoped, gvr, names};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, items, number, text};
use crate::api::printers::{age, age_column, column, name_column};
use crate::api::status::FieldError;
use crate::api::validation::Errors;
use crate::api::validation::meta::{dns_subdomain_messages, dns1035_label_messages, path_segment_messages};

/// The label of an APIService that the server made: `onstart` for what it always serves, `true` for what follows a definition.
pub const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// The kind.
pub fn kind() -> Kind {
    Kind {
        categories: names(&["api-extensions"]),
        subresources: vec![Subresource::Status],
        ..cluster_scoped(gvr::API_SERVICES, "APIService", Arc::new(ApiServices))
    }
}

/// The condition `Available`.
pub fn available(object: &Value) -> Option<&Value> {
    items(&object["status"]["conditions"]).iter().find(|condition| condition["type"] == "Available")
}

/// Whether requests can be passed on.
pub fn is_available(object: &Value) -> bool {
    available(object).is_some_and(|condition| condition["status"] == "True")
}

struct ApiServices;

fn check_service(errors: &mut Errors, spec: &Value) {
    let bundle = text(&spec["caBundle"]);
    let insecure = &spec["insecureSkipTLSVerify"];
    if !spec["service"].is_object() {
        if !bundle.is_empty() {
            // Four characters of base64 are three bytes.
            let size = format!("{} bytes", bundle.trim_end_matches('=').len() * 3 / 4);
            errors.push(FieldError::invalid(
                "spec.caBundle",
                &size.into(),
                "local APIServices may not have a caBundle",
            ));
        }
        if insecure == true {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", insecure, why));
        }
        return;
    }
    for field in ["namespace", "name"] {
        if text(&spec["service"][field]).is_empty() {
            errors.push(FieldError::required(format!("spec.service.{field}"), ""));
        }
    }
    if insecure == true && !bundle.is_empty() {
        let why = "may not be true if caBundle is present";
        errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", insecure, why));
    }
}

impl Strategy for ApiServices {
    fn default(&self, object: &mut Value) {
        if let Some(service) = object.pointer_mut("/spec/service").filter(|service| service.is_object()) {
            set_number(service, "port", 443);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        if let Some(object) = object.as_object_mut() {
            object.insert("status".to_owned(), serde_json::json!({}));
        }
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        path_segment_messages(name)
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let spec = &object["spec"];
        let (group, version) = (text(&spec["group"]), text(&spec["version"]));
        let name = format!("{version}.{group}");
        if meta::name(object) != name {
            let why = format!("must be `spec.version+\".\"+spec.group`: {name:?}");
            errors.push(FieldError::invalid("metadata.name", &object["metadata"]["name"], &why));
        }
        if group.is_empty() && version != "v1" {
            let why = "only v1 may have an empty group and it better be legacy kube";
            errors.push(FieldError::required("spec.group", why));
        }
        if !group.is_empty() {
            for why in dns_subdomain_messages(group) {
                errors.push(FieldError::invalid("spec.group", &spec["group"], &why));
            }
        }
        for why in dns1035_label_messages(version) {
            errors.push(FieldError::invalid("spec.version", &version.into(), &why));
        }
        for (field, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
            let priority = number(&spec[field]);
            if !(1..=max).contains(&priority) {
                let why = format!("must be positive and less than {max}");
                errors.push(FieldError::invalid(format!("spec.{field}"), &priority.into(), &why));
            }
        }
        check_service(&mut errors, spec);
        errors
    }

    fn validate_status_update(&self, object: &Value, _: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for (index, condition) in items(&object["status"]["conditions"]).iter().enumerate() {
            if !["True", "False", "Unknown"].contains(&text(&condition["status"])) {
                let field = format!("status.conditions[{index}].status");
                let known = ["True", "False", "Unknown"];
                errors.push(FieldError::not_supported(field, &text(&condition["status"]).into(), &known));
            }
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Service", "string", "The reference to the service that hosts this API endpoint."),
            column("Available", "string", "Whether this service is available."),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let service = &object["spec"]["service"];
        let service = match service.is_object() {
            true => format!("{}/{}", text(&service["namespace"]), text(&service["name"])),
            false => "Local".to_owned(),
        };
        let available = match available(object) {
            None => "Unknown".to_owned(),
            Some(condition) if condition["status"] == "True" => "True".to_owned(),
            Some(condition) => format!("{} ({})", text(&condition["status"]), text(&condition["reason"])),
        };
        vec![meta::name(object).into(), service.into(), available.into(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(name: &str, spec: Value) -> Vec<String> {
        let errors = ApiServices.validate(&json!({"metadata": {"name": name}, "spec": spec}));
        errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn name_group_and_priorities_are_checked() {
        let spec = json!({"group": "g", "version": "v1", "groupPriorityMinimum": 0, "versionPriority": 0});
        assert_eq!(
            said("wrong", spec),
            [
                "metadata.name: Invalid value: \"wrong\": must be `spec.version+\".\"+spec.group`: \"v1.g\"",
                "spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000",
                "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
            ]
        );
        let spec = json!({"group": "", "version": "v2", "groupPriorityMinimum": 1, "versionPriority": 1});
        let why = "spec.group: Required value: only v1 may have an empty group and it better be legacy kube";
        assert_eq!(said("v2.", spec), [why]);
    }

    #[test]
    fn what_a_service_needs_a_local_one_may_not_have() {
        let spec = |more: Value| {
            let mut spec = json!({"group": "g.io", "version": "v1", "groupPriorityMinimum": 10, "versionPriority": 5});
            spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            spec
        };
        assert_eq!(said("v1.g.io", spec(json!({}))), [""; 0]);
        assert_eq!(
            said("v1.g.io", spec(json!({"caBundle": "YWJj", "insecureSkipTLSVerify": true}))),
            [
                "spec.caBundle: Invalid value: \"3 bytes\": local APIServices may not have a caBundle",
                "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify",
            ]
        );
        let service =
            json!({"service": {"name": "", "namespace": "n"}, "caBundle": "YWJj", "insecureSkipTLSVerify": true});
        assert_eq!(
            said("v1.g.io", spec(service)),
            [
                "spec.service.name: Required value",
                "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present",
            ]
        );
    }
}
