//! Ingresses.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, items, text};
use crate::api::printers::{age, age_column, column, name, name_column, or_none};
use crate::api::status::FieldError;
use crate::api::validation::meta::{
    dns_subdomain_messages, dns1035_label_messages, path_segment_messages, wildcard_subdomain_messages,
};
use crate::api::validation::net::{ip, port_name_messages, port_number};
use crate::api::validation::{Errors, invalid_all, required};

/// The old way to name the class.
pub const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const NOT_AN_ADDRESS: &str = "must be a DNS name, not an IP address";
/// How wide the addresses are shown.
const ADDRESS_WIDTH: usize = 16;

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["ing"]),
        subresources: vec![Subresource::Status],
        has_generation: true,
        ..namespaced(gvr::INGRESSES, "Ingress", Arc::new(Ingresses))
    }
}

struct Ingresses;

impl Strategy for Ingresses {
    fn default(&self, object: &mut Value) {
        ensure_object(object, "spec");
        if let Some(status) = ensure_object(object, "status") {
            set(status, "loadBalancer", json!({}));
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"loadBalancer": {}}));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = spec_errors(&object["spec"]);
        let class = &object["spec"]["ingressClassName"];
        if let Some(annotation) = meta::annotation(object, CLASS_ANNOTATION)
            && class.as_str().is_some_and(|class| class != annotation)
        {
            let detail = "must match `ingressClassName` when both are specified";
            errors.push(FieldError::invalid(format!("annotations.{CLASS_ANNOTATION}"), &annotation.into(), detail));
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> Vec<FieldError> {
        spec_errors(&object["spec"])
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for (index, ingress) in items(&object["status"]["loadBalancer"]["ingress"]).iter().enumerate() {
            let path = format!("status.loadBalancer.ingress[{index}]");
            if !text(&ingress["ip"]).is_empty() {
                ip(&mut errors, &format!("{path}.ip"), &ingress["ip"]);
            }
            let host = &ingress["hostname"];
            if !text(host).is_empty() {
                let path = format!("{path}.hostname");
                invalid_all(&mut errors, &path, host, dns_subdomain_messages(text(host)));
                if text(host).parse::<IpAddr>().is_ok() {
                    errors.push(FieldError::invalid(path, host, NOT_AN_ADDRESS));
                }
            }
        }
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let annotated = meta::annotation(object, CLASS_ANNOTATION).is_some();
        let warning =
            format!("annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead");
        if annotated { vec![warning] } else { Vec::new() }
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Class",
                "string",
                "The name of the IngressClass resource that should be used for additional configuration",
            ),
            column("Hosts", "string", "Hosts that incoming requests are matched against before the ingress rule"),
            column("Address", "string", "Address is a list containing ingress points for the load-balancer"),
            column("Ports", "string", "Ports of TLS configurations that open"),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let ports = if items(&spec["tls"]).is_empty() { "80" } else { "80, 443" };
        vec![
            name(object),
            or_none(text(&spec["ingressClassName"])).into(),
            hosts(items(&spec["rules"])).into(),
            addresses(items(&object["status"]["loadBalancer"]["ingress"])).into(),
            ports.into(),
            age(object, now),
        ]
    }
}

/// `formatHosts`.
fn hosts(rules: &[Value]) -> String {
    const SHOWN: usize = 3;
    let named: Vec<&str> =
        rules.iter().take(SHOWN).map(|rule| text(&rule["host"])).filter(|host| !host.is_empty()).collect();
    match (named.is_empty(), rules.len() > SHOWN && named.len() == SHOWN) {
        (true, _) => "*".to_owned(),
        (false, false) => named.join(","),
        (false, true) => format!("{} + {} more...", named.join(","), rules.len() - SHOWN),
    }
}

fn addresses(ingress: &[Value]) -> String {
    let of = |point: &Value| match text(&point["ip"]) {
        "" => text(&point["hostname"]).to_owned(),
        ip => ip.to_owned(),
    };
    let all: std::collections::BTreeSet<String> = ingress.iter().map(of).filter(|text| !text.is_empty()).collect();
    let joined = all.into_iter().collect::<Vec<_>>().join(",");
    match joined.get(..ADDRESS_WIDTH - 3) {
        Some(head) if joined.len() > ADDRESS_WIDTH => format!("{head}..."),
        _ => joined,
    }
}

fn spec_errors(spec: &Value) -> Errors {
    let mut errors = Errors::new();
    let (rules, backend) = (items(&spec["rules"]), &spec["defaultBackend"]);
    if rules.is_empty() && !backend.is_object() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid("spec", &Value::Null, detail));
    }
    if backend.is_object() {
        self::backend(&mut errors, backend, "spec.defaultBackend");
    }
    for (index, rule) in rules.iter().enumerate() {
        self::rule(&mut errors, rule, &format!("spec.rules[{index}]"));
    }
    for (index, tls) in items(&spec["tls"]).iter().enumerate() {
        for (host_index, host) in items(&tls["hosts"]).iter().enumerate() {
            let path = format!("spec.tls[{index}].hosts[{host_index}]");
            invalid_all(&mut errors, &path, host, host_messages(text(host)));
        }
        let secret = &tls["secretName"];
        if !text(secret).is_empty() {
            let path = format!("spec.tls[{index}].secretName");
            invalid_all(&mut errors, &path, secret, dns_subdomain_messages(text(secret)));
        }
    }
    let class = &spec["ingressClassName"];
    if let Some(name) = class.as_str() {
        invalid_all(&mut errors, "spec.ingressClassName", class, dns_subdomain_messages(name));
    }
    errors
}

fn host_messages(host: &str) -> Vec<String> {
    if host.contains('*') { wildcard_subdomain_messages(host) } else { dns_subdomain_messages(host) }
}

fn rule(errors: &mut Errors, rule: &Value, path: &str) {
    let host = &rule["host"];
    if !text(host).is_empty() {
        let path = format!("{path}.host");
        if text(host).parse::<IpAddr>().is_ok() {
            errors.push(FieldError::invalid(&path, host, NOT_AN_ADDRESS));
        }
        invalid_all(errors, &path, host, host_messages(text(host)));
    }
    if !rule["http"].is_object() {
        return;
    }
    let (paths, list) = (items(&rule["http"]["paths"]), format!("{path}.http.paths"));
    if paths.is_empty() {
        errors.push(FieldError::required(&list, ""));
    }
    for (index, path) in paths.iter().enumerate() {
        http_path(errors, path, &format!("{list}[{index}]"));
    }
}

fn http_path(errors: &mut Errors, http: &Value, path: &str) {
    let (kind, given) = (&http["pathType"], &http["path"]);
    if kind.is_null() {
        return errors.push(FieldError::required(format!("{path}.pathType"), "pathType must be specified"));
    }
    let mut refuse =
        |detail: &str| errors.push(FieldError::invalid(format!("{path}.path"), &text(given).into(), detail));
    let is_absolute = text(given).starts_with('/');
    match text(kind) {
        "Exact" | "Prefix" => {
            if !is_absolute {
                refuse("must be an absolute path");
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|s| text(given).contains(**s)) {
                refuse(&format!("must not contain '{sequence}'"));
            }
            for suffix in ["/..", "/."].iter().filter(|s| text(given).ends_with(**s)) {
                refuse(&format!("cannot end with '{suffix}'"));
            }
        }
        "ImplementationSpecific" if !is_absolute && !text(given).is_empty() => refuse("must be an absolute path"),
        "ImplementationSpecific" => {}
        _ => {
            let types = ["Exact", "ImplementationSpecific", "Prefix"];
            errors.push(FieldError::not_supported(format!("{path}.pathType"), kind, &types));
        }
    }
    backend(errors, &http["backend"], &format!("{path}.backend"));
}

fn backend(errors: &mut Errors, backend: &Value, path: &str) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    let mut refuse = |detail: &str| errors.push(FieldError::invalid(path, &"".into(), detail));
    match (service.is_object(), resource.is_object()) {
        (true, true) => return refuse("cannot set both resource and service backends"),
        (false, false) => return refuse("resource or service backend is required"),
        (false, true) => return typed_reference(errors, resource, &format!("{path}.resource")),
        (true, false) => {}
    }
    let name = &service["name"];
    let name_path = format!("{path}.service.name");
    required(errors, &name_path, name);
    if !text(name).is_empty() {
        invalid_all(errors, &name_path, name, dns1035_label_messages(text(name)));
    }
    let (named, number) = (&service["port"]["name"], &service["port"]["number"]);
    match (!text(named).is_empty(), number.as_i64().unwrap_or_default() != 0) {
        (true, true) => errors.push(FieldError::invalid(path, &"".into(), "cannot set both port name & port number")),
        (true, false) => {
            invalid_all(errors, &format!("{path}.service.port.name"), named, port_name_messages(text(named)));
        }
        (false, true) => port_number(errors, &format!("{path}.service.port.number"), number),
        (false, false) => errors.push(FieldError::required(path, "port name or number is required")),
    }
}

/// A reference to an object by group, kind and name.
pub fn typed_reference(errors: &mut Errors, reference: &Value, path: &str) {
    let group = &reference["apiGroup"];
    if let Some(name) = group.as_str() {
        invalid_all(errors, &format!("{path}.apiGroup"), group, dns_subdomain_messages(name));
    }
    for field in ["kind", "name"] {
        let path = format!("{path}.{field}");
        required(errors, &path, &reference[field]);
        invalid_all(errors, &path, &reference[field], path_segment_messages(text(&reference[field])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        let errors = Ingresses.validate(&json!({"spec": spec}));
        errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }
    fn path(kind: &str, path: &str) -> Value {
        json!({"rules": [{"host": "*.bar.com", "http": {"paths": [{"path": path, "pathType": kind,
            "backend": {"resource": {"kind": "k", "name": "n"}}}]}}]})
    }

    #[test]
    fn paths_by_their_types() {
        // TestValidateIngressCreate of validation_test.go.
        assert_eq!(errors(path("Prefix", "/foo")), [""; 0]);
        assert_eq!(
            errors(path("Exact", "/foo/..")),
            ["spec.rules[0].http.paths[0].path: Invalid value: \"/foo/..\": cannot end with '/..'"]
        );
        assert_eq!(
            errors(path("Other", "/")),
            ["spec.rules[0].http.paths[0].pathType: Unsupported value: \"Other\": supported values: \"Exact\", \
                \"ImplementationSpecific\", \"Prefix\""]
        );
        assert_eq!(errors(path("ImplementationSpecific", "")), [""; 0]);
    }

    #[test]
    fn a_backend_or_rules_are_needed() {
        assert_eq!(
            errors(json!({})),
            ["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]
        );
        let wild =
            json!({"tls": [{"hosts": ["*"]}], "defaultBackend": {"service": {"name": "s", "port": {"name": "http"}}}});
        assert!(
            errors(wild)[0].starts_with("spec.tls[0].hosts[0]: Invalid value: \"*\": a wildcard DNS-1123 subdomain")
        );
    }

    #[test]
    fn long_addresses_are_cut() {
        let point = |ip: &str| json!({"ip": ip});
        assert_eq!(addresses(&[point("1.2.3.4")]), "1.2.3.4");
        assert_eq!(addresses(&[point("10.20.30.40"), point("10.20.30.41")]), "10.20.30.40,1...");
    }
}
