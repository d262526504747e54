//! Validation of Services (`ValidateService`, v1.35).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{is_externally_accessible, is_headless, kind_of, needs_health_check_node_port};
use crate::api::meta::{items, number, text};
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, dns_subdomain_messages, labels, qualified_name_messages};
use crate::api::validation::{Errors, invalid_all, net, one_of, required};

/// A Service.
pub fn service(errors: &mut Errors, service: &Value) {
    let spec = &service["spec"];
    let kind = kind_of(service);
    let headless = is_headless(service);
    let ports = items(&spec["ports"]);
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid("spec.clusterIPs[0]", &"None".into(), &detail));
        }
        "ExternalName" => external_name(errors, spec),
        _ => {}
    }
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        self::port(errors, port, &format!("spec.ports[{index}]"), ports.len() > 1, &mut names);
    }
    errors.extend(labels(&spec["selector"], "spec.selector"));
    session_affinity(errors, spec);
    cluster_ips(errors, service);
    for (index, ip) in items(&spec["externalIPs"]).iter().enumerate() {
        net::non_special_ip(errors, &format!("spec.externalIPs[{index}]"), ip);
    }
    one_of(errors, "spec.type", &spec["type"], &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    one_family(errors, service);
    port_conflicts(errors, kind, ports);
    load_balancer(errors, spec, kind);
    traffic_policies(errors, service);
}

fn external_name(errors: &mut Errors, spec: &Value) {
    if !items(&spec["clusterIPs"]).is_empty() {
        errors.push(FieldError::forbidden("spec.clusterIPs", "may not be set for ExternalName services"));
    }
    if !items(&spec["ipFamilies"]).is_empty() {
        errors.push(FieldError::forbidden("spec.ipFamilies", "may not be set for ExternalName services"));
    }
    if !spec["ipFamilyPolicy"].is_null() {
        errors.push(FieldError::forbidden("spec.ipFamilyPolicy", "may not be set for ExternalName services"));
    }
    let name = text(&spec["externalName"]);
    let name = name.strip_suffix('.').unwrap_or(name);
    required(errors, "spec.externalName", &name.into());
    if !name.is_empty() {
        invalid_all(errors, "spec.externalName", &name.into(), dns_subdomain_messages(name));
    }
}

fn port<'a>(errors: &mut Errors, port: &'a Value, path: &str, name_required: bool, names: &mut BTreeSet<&'a str>) {
    let name = text(&port["name"]);
    if !name.is_empty() {
        invalid_all(errors, &format!("{path}.name"), &port["name"], dns_label_messages(name));
        if !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &port["name"]));
        }
    } else if name_required {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    }
    net::port_number(errors, &format!("{path}.port"), &number(&port["port"]).into());
    one_of(errors, &format!("{path}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
    net::port_number_or_name(errors, &format!("{path}.targetPort"), &port["targetPort"]);
    let protocol = &port["appProtocol"];
    if !protocol.is_null() {
        invalid_all(errors, &format!("{path}.appProtocol"), protocol, qualified_name_messages(text(protocol)));
    }
}

fn session_affinity(errors: &mut Errors, spec: &Value) {
    one_of(errors, "spec.sessionAffinity", &spec["sessionAffinity"], &["ClientIP", "None"]);
    let config = &spec["sessionAffinityConfig"];
    match text(&spec["sessionAffinity"]) {
        "ClientIP" => {
            let seconds = &config["clientIP"]["timeoutSeconds"];
            if !(1..=86_400).contains(&number(seconds)) {
                let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                let detail = "must be greater than 0 and less than 86400";
                errors.push(FieldError::invalid(path, seconds, detail));
            }
        }
        "None" if config.is_object() => {
            let detail = "must not be set when session affinity is None";
            errors.push(FieldError::forbidden("spec.sessionAffinityConfig", detail));
        }
        _ => {}
    }
}

fn cluster_ips(errors: &mut Errors, service: &Value) {
    let spec = &service["spec"];
    if kind_of(service) == "ExternalName" {
        return;
    }
    let (ips, ip) = (items(&spec["clusterIPs"]), text(&spec["clusterIP"]));
    for (index, family) in items(&spec["ipFamilies"]).iter().enumerate() {
        let path = format!("spec.ipFamilies[{index}]");
        if !["IPv4", "IPv6"].contains(&text(family)) {
            errors.push(FieldError::not_supported(path, family, &["IPv4", "IPv6"]));
        } else if items(&spec["ipFamilies"])[..index].contains(family) {
            errors.push(FieldError::duplicate(path, family));
        }
    }
    let policy = &spec["ipFamilyPolicy"];
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if !policy.is_null() && !policies.contains(&text(policy)) {
        errors.push(FieldError::not_supported("spec.ipFamilyPolicy", policy, &policies));
    }
    if ip.is_empty() && !ips.is_empty() {
        let detail = "must be empty when `clusterIP` is not specified";
        errors.push(FieldError::invalid("spec.clusterIPs", &spec["clusterIPs"], detail));
    } else if ips.first().is_some_and(|first| *first != *ip) {
        let detail = "first value must match `clusterIP`";
        errors.push(FieldError::invalid("spec.clusterIPs", &spec["clusterIPs"], detail));
    }
    if ips.len() > 2 {
        let detail = "may only hold up to 2 values";
        errors.push(FieldError::invalid("spec.clusterIPs", &spec["clusterIPs"], detail));
    }
    for (index, ip) in ips.iter().enumerate() {
        let path = format!("spec.clusterIPs[{index}]");
        if ip == "None" {
            if index > 0 || ips.len() > 1 {
                errors.push(FieldError::invalid(path, ip, "may not contain other values when 'None' is set"));
            }
        } else {
            net::ip(errors, &path, ip);
        }
    }
}

fn port_conflicts(errors: &mut Errors, kind: &str, ports: &[Value]) {
    let (mut node_ports, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let (path, protocol) = (format!("spec.ports[{index}]"), text(&port["protocol"]));
        let node_port = number(&port["nodePort"]);
        if node_port != 0 {
            let path = format!("{path}.nodePort");
            if kind == "ClusterIP" {
                errors.push(FieldError::forbidden(&path, "may not be used when `type` is 'ClusterIP'"));
            }
            if !node_ports.insert((protocol, node_port)) {
                errors.push(FieldError::duplicate(path, &port["nodePort"]));
            }
        }
        if !seen.insert((protocol, number(&port["port"]))) {
            // The Go type has no JSON names of its own.
            let key = json!({"Name": "", "Protocol": protocol, "AppProtocol": null, "Port": port["port"], "TargetPort": 0, "NodePort": 0});
            errors.push(FieldError::duplicate(path, &key));
        }
    }
}

fn load_balancer(errors: &mut Errors, spec: &Value, kind: &str) {
    let ranges = &spec["loadBalancerSourceRanges"];
    if !items(ranges).is_empty() {
        let path = "spec.LoadBalancerSourceRanges";
        if kind != "LoadBalancer" {
            errors.push(FieldError::forbidden(path, "may only be used when `type` is 'LoadBalancer'"));
        }
        for (index, range) in items(ranges).iter().enumerate() {
            if !net::is_cidr(text(range).trim()) {
                let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.push(FieldError::invalid(format!("{path}[{index}]"), range, detail));
            }
        }
    }
    let allocate = &spec["allocateLoadBalancerNodePorts"];
    if kind == "LoadBalancer" && allocate.is_null() {
        errors.push(FieldError::required("spec.allocateLoadBalancerNodePorts", ""));
    } else if kind != "LoadBalancer" && !allocate.is_null() {
        let detail = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("spec.allocateLoadBalancerNodePorts", detail));
    }
    let class = &spec["loadBalancerClass"];
    if kind != "LoadBalancer" && !class.is_null() {
        let detail = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("spec.loadBalancerClass", detail));
    } else if !class.is_null() {
        invalid_all(errors, "spec.loadBalancerClass", class, qualified_name_messages(text(class)));
    }
}

fn traffic_policies(errors: &mut Errors, service: &Value) {
    let spec = &service["spec"];
    let external = &spec["externalTrafficPolicy"];
    if is_externally_accessible(service) {
        one_of(errors, "spec.externalTrafficPolicy", external, &["Cluster", "Local"]);
    } else if !text(external).is_empty() {
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", external, detail));
    }
    let health = &spec["healthCheckNodePort"];
    if number(health) != 0 && !needs_health_check_node_port(service) {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid("spec.healthCheckNodePort", health, detail));
    }
    let internal = &spec["internalTrafficPolicy"];
    if !internal.is_null() {
        one_of(errors, "spec.internalTrafficPolicy", internal, &["Cluster", "Local"]);
    } else if super::needs_cluster_ip(service) {
        errors.push(FieldError::required("spec.internalTrafficPolicy", ""));
    }
    let distribution = &spec["trafficDistribution"];
    if !distribution.is_null() {
        let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        one_of(errors, "spec.trafficDistribution", distribution, &known);
    }
}

/// What a cluster with IPv4 only cannot give. A headless Service without selector may have any families.
fn one_family(errors: &mut Errors, service: &Value) {
    let spec = &service["spec"];
    let without_selector = spec["selector"].as_object().is_none_or(|selector| selector.is_empty());
    if kind_of(service) == "ExternalName" || (is_headless(service) && without_selector) {
        return;
    }
    let policy = &spec["ipFamilyPolicy"];
    if policy == "RequireDualStack" {
        let detail = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy, detail));
    }
    for (index, family) in items(&spec["ipFamilies"]).iter().enumerate().filter(|(_, family)| *family == "IPv6") {
        let detail = "not configured on this cluster";
        errors.push(FieldError::invalid(format!("spec.ipFamilies[{index}]"), family, detail));
    }
}

/// What may not change: the first cluster IP and its family.
pub fn update(errors: &mut Errors, service: &Value, old: &Value) {
    if kind_of(service) == "ExternalName" || kind_of(old) == "ExternalName" {
        return;
    }
    let (spec, old_spec) = (&service["spec"], &old["spec"]);
    if let Some(before) = items(&old_spec["clusterIPs"]).first() {
        match items(&spec["clusterIPs"]).first() {
            None => errors.push(FieldError::invalid(
                "spec.clusterIPs[0]",
                &spec["clusterIPs"],
                "primary clusterIP can not be unset",
            )),
            Some(now) if now != before => {
                errors.push(FieldError::invalid("spec.clusterIPs[0]", &spec["clusterIPs"], "may not change once set"));
            }
            Some(_) => {}
        }
    }
    if let Some(before) = items(&old_spec["ipFamilies"]).first() {
        match items(&spec["ipFamilies"]).first() {
            None => errors.push(FieldError::invalid(
                "spec.ipFamilies[0]",
                &spec["ipFamilies"],
                "primary ipFamily can not be unset",
            )),
            Some(now) if now != before => {
                errors.push(FieldError::invalid("spec.ipFamilies[0]", &spec["ipFamilies"], "may not change once set"));
            }
            Some(_) => {}
        }
    }
}
