//! Services. Cluster IPs and node ports are allocated by the API server; here is everything that needs no allocator.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{items, number, text};
use crate::api::printers::{age, age_column, column, joined, name, name_column, or_none, wide_column};
use crate::api::status::FieldError;
use crate::api::validation::Errors;
use crate::api::validation::meta::dns1035_label_messages;

mod defaults;
mod validation;

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["svc"]),
        categories: names(&["all"]),
        subresources: vec![Subresource::Proxy, Subresource::Status],
        create_on_update: true,
        ..namespaced(gvr::SERVICES, "Service", Arc::new(Services))
    }
}

/// `spec.type`.
pub fn kind_of(service: &Value) -> &str {
    text(&service["spec"]["type"])
}
/// Whether the cluster IP is `None`.
pub fn is_headless(service: &Value) -> bool {
    let spec = &service["spec"];
    items(&spec["clusterIPs"]).first().unwrap_or(&spec["clusterIP"]) == "None"
}
/// Whether it has a cluster IP (also `None`).
pub fn needs_cluster_ip(service: &Value) -> bool {
    matches!(kind_of(service), "ClusterIP" | "NodePort" | "LoadBalancer")
}
/// Whether its ports get node ports.
pub fn needs_node_ports(service: &Value) -> bool {
    match kind_of(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}
/// Whether it needs `spec.healthCheckNodePort`.
pub fn needs_health_check_node_port(service: &Value) -> bool {
    kind_of(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}
/// Whether it is reachable from outside (`ExternallyAccessible`).
pub fn is_externally_accessible(service: &Value) -> bool {
    match kind_of(service) {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !items(&service["spec"]["externalIPs"]).is_empty(),
        _ => false,
    }
}

struct Services;

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        defaults::service(object);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), json!({"loadBalancer": {}}));
        }
        defaults::normalize_cluster_ips(object, &Value::Null);
        defaults::families(object);
    }

    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        defaults::normalize_cluster_ips(object, old);
        defaults::drop_dependent(object, old);
        defaults::keep_allocated(object, old);
        defaults::families(object);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validation::service(&mut errors, object);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validation::update(&mut errors, object, old);
        validation::service(&mut errors, object);
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let mut warnings = Vec::new();
        if !text(&object["spec"]["loadBalancerIP"]).is_empty() {
            warnings.push(
                "spec.loadBalancerIP: deprecated in v1.24+, use the platform-specific annotations instead if available"
                    .to_owned(),
            );
        }
        if kind_of(object) == "ExternalName" && text(&object["spec"]["externalName"]).is_empty() {
            return Vec::new();
        }
        if is_headless(object) {
            if !text(&object["spec"]["loadBalancerIP"]).is_empty() {
                warnings.push("spec.loadBalancerIP: ignored when `clusterIP` is None".to_owned());
            }
            if !items(&object["spec"]["externalIPs"]).is_empty() {
                warnings.push("spec.externalIPs: ignored when `clusterIP` is \"None\"".to_owned());
            }
            if object["spec"]["sessionAffinity"] == "ClientIP" {
                warnings.push("spec.SessionAffinity is ignored for headless services".to_owned());
            }
        }
        warnings
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Type",
                "string",
                "type determines how the Service is exposed. Defaults to ClusterIP. Valid options are ExternalName, \
                    ClusterIP, NodePort, and LoadBalancer. \"ClusterIP\" allocates a cluster-internal IP address \
                    for load-balancing to endpoints. Endpoints are determined by the selector or if that is not \
                    specified, by manual construction of an Endpoints object or EndpointSlice objects. If clusterIP \
                    is \"None\", no virtual IP is allocated and the endpoints are published as a set of endpoints \
                    rather than a virtual IP. \"NodePort\" builds on ClusterIP and allocates a port on every node \
                    which routes to the same endpoints as the clusterIP. \"LoadBalancer\" builds on NodePort and \
                    creates an external load-balancer (if supported in the current cloud) which routes to the same \
                    endpoints as the clusterIP. \"ExternalName\" aliases this service to the specified \
                    externalName. Several other fields do not apply to ExternalName services. More info: \
                    https://kubernetes.io/docs/concepts/services-networking/service/#publishing-services-service-types",
            ),
            column(
                "Cluster-IP",
                "string",
                "clusterIP is the IP address of the service and is usually assigned randomly. If an address is \
                    specified manually, is in-range (as per system configuration), and is not in use, it will be \
                    allocated to the service; otherwise creation of the service will fail. This field may not be \
                    changed through updates unless the type field is also being changed to ExternalName (which \
                    requires this field to be blank) or the type field is being changed from ExternalName (in which \
                    case this field may optionally be specified, as describe above).  Valid values are \"None\", \
                    empty string (\"\"), or a valid IP address. Setting this to \"None\" makes a \"headless \
                    service\" (no virtual IP), which is useful when direct endpoint connections are preferred and \
                    proxying is not required.  Only applies to types ClusterIP, NodePort, and LoadBalancer. If this \
                    field is specified when creating a Service of type ExternalName, creation will fail. This field \
                    will be wiped when updating a Service to type ExternalName. More info: \
                    https://kubernetes.io/docs/concepts/services-networking/service/#virtual-ips-and-service-proxies",
            ),
            column(
                "External-IP",
                "string",
                "externalIPs is a list of IP addresses for which nodes in the cluster will also accept traffic for \
                    this service.  These IPs are not managed by Kubernetes.  The user is responsible for ensuring \
                    that traffic arrives at a node with this IP.  A common example is external load-balancers that \
                    are not part of the Kubernetes system.",
            ),
            column(
                "Port(s)",
                "string",
                "The list of ports that are exposed by this service. More info: \
                    https://kubernetes.io/docs/concepts/services-networking/service/#virtual-ips-and-service-proxies",
            ),
            age_column(),
            wide_column(
                "Selector",
                "string",
                "Route service traffic to pods with label keys and values matching this selector. If empty or not \
                    present, the service is assumed to have an external process managing its endpoints, which \
                    Kubernetes will not modify. Only applies to types ClusterIP, NodePort, and LoadBalancer. \
                    Ignored if type is ExternalName. More info: \
                    https://kubernetes.io/docs/concepts/services-networking/service/",
            ),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let ip = items(&spec["clusterIPs"]).first().unwrap_or(&spec["clusterIP"]);
        let port = |port: &Value| {
            let protocol = text(&port["protocol"]);
            match number(&port["nodePort"]) {
                0 => format!("{}/{protocol}", number(&port["port"])),
                node_port => format!("{}:{node_port}/{protocol}", number(&port["port"])),
            }
        };
        let ports: Vec<String> = items(&spec["ports"]).iter().map(port).collect();
        let selector = spec["selector"].as_object().into_iter().flatten();
        let mut selector: Vec<String> = selector.map(|(key, value)| format!("{key}={}", text(value))).collect();
        selector.sort();
        vec![
            name(object),
            kind_of(object).into(),
            or_none(text(ip)).into(),
            external_ips(object).into(),
            or_none(&ports.join(",")).into(),
            age(object, now),
            or_none(&selector.join(",")).into(),
        ]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![
            ("spec.clusterIP", text(&object["spec"]["clusterIP"]).to_owned()),
            ("spec.type", kind_of(object).to_owned()),
        ]
    }

    fn knows_field(&self, field: &str) -> bool {
        matches!(field, "spec.clusterIP" | "spec.type")
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        dns1035_label_messages(name)
    }
}

fn external_ips(service: &Value) -> String {
    let listed = items(&service["spec"]["externalIPs"]).iter().map(text);
    match kind_of(service) {
        "ClusterIP" | "NodePort" => joined(listed),
        "LoadBalancer" => {
            let ingress = items(&service["status"]["loadBalancer"]["ingress"]).iter();
            let addresses: std::collections::BTreeSet<&str> = ingress
                .filter_map(|i| [&i["ip"], &i["hostname"]].into_iter().map(text).find(|a| !a.is_empty()))
                .collect();
            let all: Vec<&str> = addresses.into_iter().chain(listed).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => text(&service["spec"]["externalName"]).to_owned(),
        _ => "<unknown>".to_owned(),
    }
}
