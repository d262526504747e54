//! IngressClasses.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::defaulting::set;
use super::ingress::typed_reference;
use super::{cluster_scoped, gvr};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{self, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, domain_prefixed_path};
use crate::api::validation::{Errors, immutable, invalid_all};

/// The kind.
pub fn kind() -> Kind {
    Kind { has_generation: true, ..cluster_scoped(gvr::INGRESS_CLASSES, "IngressClass", Arc::new(IngressClasses)) }
}

/// Whether it is the class of Ingresses that name none.
pub fn is_default(class: &Value) -> bool {
    meta::annotation(class, "ingressclass.kubernetes.io/is-default-class") == Some("true")
}

struct IngressClasses;

impl Strategy for IngressClasses {
    fn default(&self, object: &mut Value) {
        if let Some(parameters) = object.get_mut("spec").and_then(|spec| spec.get_mut("parameters")) {
            set(parameters, "scope", "Cluster");
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        let controller = &spec["controller"];
        if text(controller).len() > 250 {
            errors.push(FieldError::too_long("spec.controller", 250));
        }
        domain_prefixed_path(&mut errors, controller, "spec.controller");
        if spec["parameters"].is_object() {
            parameters(&mut errors, &spec["parameters"], "spec.parameters");
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let (controller, before) = (&object["spec"]["controller"], &old["spec"]["controller"]);
        immutable(&mut errors, "spec.controller", controller, before);
        errors.extend(self.validate(object));
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Controller", "string", "Controller that is responsible for handling this class"),
            column("Parameters", "string", "A reference to a resource with additional parameters"),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let parameters = &spec["parameters"];
        let mut shown = "<none>".to_owned();
        if parameters.is_object() {
            shown = text(&parameters["kind"]).to_owned();
            if !text(&parameters["apiGroup"]).is_empty() {
                shown = format!("{shown}.{}", text(&parameters["apiGroup"]));
            }
            shown = format!("{shown}/{}", text(&parameters["name"]));
        }
        vec![name(object), text(&spec["controller"]).into(), shown.into(), age(object, now)]
    }
}

fn parameters(errors: &mut Errors, parameters: &Value, path: &str) {
    typed_reference(errors, parameters, path);
    let (scope, namespace) = (&parameters["scope"], &parameters["namespace"]);
    let namespace_path = format!("{path}.namespace");
    match text(scope) {
        "Namespace" if namespace.is_null() => {
            errors.push(FieldError::required(namespace_path, "`parameters.scope` is set to 'Namespace'"));
        }
        "Namespace" => invalid_all(errors, &namespace_path, namespace, dns_label_messages(text(namespace))),
        "Cluster" if !namespace.is_null() => {
            errors.push(FieldError::forbidden(namespace_path, "`parameters.scope` is set to 'Cluster'"));
        }
        "Cluster" => {}
        _ => errors.push(FieldError::not_supported(format!("{path}.scope"), scope, &["Cluster", "Namespace"])),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_have_a_scope() {
        let mut object = json!({"spec": {"controller": "a.b/c", "parameters": {"kind": "k", "name": "n"}}});
        IngressClasses.default(&mut object);
        assert_eq!(object["spec"]["parameters"]["scope"], "Cluster");
        assert!(IngressClasses.validate(&object).is_empty());
        object["spec"]["parameters"]["scope"] = "Namespace".into();
        let errors = IngressClasses.validate(&object);
        assert_eq!(
            (errors[0].field.as_str(), errors[0].message.as_str()),
            ("spec.parameters.namespace", "Required value: `parameters.scope` is set to 'Namespace'")
        );
    }
}
