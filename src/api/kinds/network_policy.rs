//! NetworkPolicies.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::defaulting::{each, ensure_object, set, set_text};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{items, text};
use crate::api::printers::{age, age_column, column, name, name_column, selector};
use crate::api::status::FieldError;
use crate::api::validation::net::{NOT_A_CIDR, NOT_A_PORT, port_name_messages};
use crate::api::validation::selector::label_selector;
use crate::api::validation::{Errors, invalid_all};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["netpol"]),
        has_generation: true,
        ..namespaced(gvr::NETWORK_POLICIES, "NetworkPolicy", Arc::new(NetworkPolicies))
    }
}

/// The lists of rules and of the peers in them.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

struct NetworkPolicies;

impl Strategy for NetworkPolicies {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        for (direction, _) in DIRECTIONS {
            for rule in each(spec, direction) {
                for port in each(rule, "ports") {
                    set_text(port, "protocol", "TCP");
                }
            }
        }
        if items(&spec["policyTypes"]).is_empty() {
            let egress = !items(&spec["egress"]).is_empty();
            let types = if egress { vec!["Ingress", "Egress"] } else { vec!["Ingress"] };
            if let Some(map) = spec.as_object_mut() {
                map.remove("policyTypes");
            }
            set(spec, "policyTypes", types);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        label_selector(&mut errors, &spec["podSelector"], "spec.podSelector");
        for (direction, peers) in DIRECTIONS {
            for (index, rule) in items(&spec[direction]).iter().enumerate() {
                let path = format!("spec.{direction}[{index}]");
                for (index, of_rule) in items(&rule["ports"]).iter().enumerate() {
                    port(&mut errors, of_rule, &format!("{path}.ports[{index}]"));
                }
                for (index, of_rule) in items(&rule[peers]).iter().enumerate() {
                    peer(&mut errors, of_rule, &format!("{path}.{peers}[{index}]"));
                }
            }
        }
        let (types, path) = (&spec["policyTypes"], "spec.policyTypes");
        if items(types).len() > 2 {
            errors.push(FieldError::invalid(path, types, "may not specify more than two policyTypes"));
            return errors;
        }
        for (index, kind) in items(types).iter().enumerate() {
            if !matches!(text(kind), "Ingress" | "Egress") {
                errors.push(FieldError::not_supported(format!("{path}[{index}]"), kind, &["Ingress", "Egress"]));
            }
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        const SELECTOR: &str = "podSelector selects the pods to which this NetworkPolicy object applies. The array of \
            rules is applied to any pods selected by this field. An empty selector matches all pods in the policy's \
            namespace. Multiple network policies can select the same set of pods. In this case, the ingress rules for \
            each are combined additively. This field is optional. If it is not specified, it defaults to an empty \
            selector.";
        vec![name_column(), column("Pod-Selector", "string", SELECTOR), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), selector(&object["spec"]["podSelector"]).into(), age(object, now)]
    }
}

fn port(errors: &mut Errors, rule: &Value, path: &str) {
    let (protocol, port, end) = (&rule["protocol"], &rule["port"], &rule["endPort"]);
    if !protocol.is_null() && !matches!(text(protocol), "TCP" | "UDP" | "SCTP") {
        let path = format!("{path}.protocol");
        errors.push(FieldError::not_supported(path, protocol, &["TCP", "UDP", "SCTP"]));
    }
    let end_path = format!("{path}.endPort");
    let is_port = |value: &Value| value.as_i64().is_some_and(|port| (1..=65535).contains(&port));
    match port {
        Value::Null if !end.is_null() => {
            errors.push(FieldError::invalid(end_path, end, "may not be specified when `port` is not specified"));
        }
        Value::Null => {}
        Value::String(named) => {
            if !end.is_null() {
                errors.push(FieldError::invalid(end_path, end, "may not be specified when `port` is non-numeric"));
            }
            invalid_all(errors, &format!("{path}.port"), port, port_name_messages(named));
        }
        number => {
            if !is_port(number) {
                errors.push(FieldError::invalid(format!("{path}.port"), number, NOT_A_PORT));
            }
            if end.as_i64().is_some_and(|end| end < number.as_i64().unwrap_or_default()) {
                errors.push(FieldError::invalid(&end_path, end, "must be greater than or equal to `port`"));
            }
            if !end.is_null() && !is_port(end) {
                errors.push(FieldError::invalid(&end_path, end, NOT_A_PORT));
            }
        }
    }
}

fn peer(errors: &mut Errors, peer: &Value, path: &str) {
    let mut kinds = 0;
    for kind in ["podSelector", "namespaceSelector"] {
        if peer[kind].is_object() {
            kinds += 1;
            label_selector(errors, &peer[kind], &format!("{path}.{kind}"));
        }
    }
    if peer["ipBlock"].is_object() {
        ip_block(errors, &peer["ipBlock"], &format!("{path}.ipBlock"));
        if kinds > 0 {
            errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
        }
    } else if kinds == 0 {
        errors.push(FieldError::required(path, "must specify a peer"));
    }
}

fn ip_block(errors: &mut Errors, block: &Value, path: &str) {
    let given = &block["cidr"];
    let cidr_path = format!("{path}.cidr");
    if text(given).is_empty() {
        return errors.push(FieldError::required(cidr_path, ""));
    }
    let Ok(cidr) = text(given).parse::<ipnet::IpNet>() else {
        return errors.push(FieldError::invalid(cidr_path, given, NOT_A_CIDR));
    };
    for (index, except) in items(&block["except"]).iter().enumerate() {
        let path = format!("{path}.except[{index}]");
        match text(except).parse::<ipnet::IpNet>() {
            Err(_) => errors.push(FieldError::invalid(path, except, NOT_A_CIDR)),
            Ok(part) if !cidr.contains(&part.addr()) || cidr.prefix_len() >= part.prefix_len() => {
                errors.push(FieldError::invalid(path, except, "must be a strict subset of `cidr`"));
            }
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        let errors = NetworkPolicies.validate(&json!({"spec": spec}));
        errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn peers_and_ports() {
        // TestValidateNetworkPolicy of validation_test.go.
        let ingress = |rule: Value| json!({"ingress": [rule]});
        let block = json!({"cidr": "192.168.0.0/16", "except": ["192.168.3.0/24", "192.168.0.0/16", "10.0.0.0/24"]});
        assert_eq!(
            errors(ingress(json!({"from": [{"ipBlock": block}]}))),
            [
                "spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: \"192.168.0.0/16\": must be a strict subset of `cidr`",
                "spec.ingress[0].from[0].ipBlock.except[2]: Invalid value: \"10.0.0.0/24\": must be a strict subset of `cidr`"
            ]
        );
        assert_eq!(
            errors(ingress(json!({"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}, {}]}))),
            [
                "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
                "spec.ingress[0].from[1]: Required value: must specify a peer"
            ]
        );
        assert_eq!(
            errors(
                json!({"egress": [{"ports": [{"port": 32000, "endPort": 31000}, {"endPort": 1}, {"port": "http", "endPort": 2}]}]})
            ),
            [
                "spec.egress[0].ports[0].endPort: Invalid value: 31000: must be greater than or equal to `port`",
                "spec.egress[0].ports[1].endPort: Invalid value: 1: may not be specified when `port` is not specified",
                "spec.egress[0].ports[2].endPort: Invalid value: 2: may not be specified when `port` is non-numeric"
            ]
        );
    }
}
