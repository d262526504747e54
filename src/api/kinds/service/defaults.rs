//! Defaults of Services, and what an update keeps of, or takes from, the old one.

use serde_json::{Value, json};

use super::{is_externally_accessible, is_headless, needs_cluster_ip, needs_health_check_node_port, needs_node_ports};
use crate::api::kinds::defaulting::{each, ensure_object, set, set_number, set_text};
use crate::api::meta::{items, number, text};

/// How long an address sticks to its backend with `sessionAffinity: ClientIP`, in seconds.
const AFFINITY_TIMEOUT: i64 = 10_800;

/// `SetDefaults_Service`.
pub fn service(object: &mut Value) {
    let Some(spec) = ensure_object(object, "spec") else { return };
    set_text(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "None" {
        if let Some(map) = spec.as_object_mut() {
            if map.get("sessionAffinityConfig").is_some_and(Value::is_null) {
                map.remove("sessionAffinityConfig");
            }
        }
    }
    if spec["sessionAffinity"] == "ClientIP" {
        let config = ensure_object(spec, "sessionAffinityConfig").and_then(|c| ensure_object(c, "clientIP"));
        if let Some(client_ip) = config {
            set(client_ip, "timeoutSeconds", AFFINITY_TIMEOUT);
        }
    }
    set_text(spec, "type", "ClusterIP");
    for port in each(spec, "ports") {
        set_text(port, "protocol", "TCP");
        let number = port["port"].clone();
        if port["targetPort"] == "" {
            port["targetPort"] = Value::Null;
        }
        if port.is_object() {
            set_number(port, "targetPort", number);
        }
    }
    if text(&spec["type"]) == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    if matches!(text(&spec["type"]), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if is_externally_accessible(object) {
        set_text(&mut object["spec"], "externalTrafficPolicy", "Cluster");
    }
    let ingress = object.get_mut("status").and_then(|s| s.get_mut("loadBalancer"));
    if let Some(balancer) = ingress {
        for ingress in each(balancer, "ingress") {
            if !text(&ingress["ip"]).is_empty() {
                set(ingress, "ipMode", "VIP");
            }
        }
    }
}

/// `ipFamilies` and `ipFamilyPolicy` of a cluster that has IPv4 only.
pub fn families(object: &mut Value) {
    if !needs_cluster_ip(object) {
        return;
    }
    let without_selector = object["spec"]["selector"].as_object().is_none_or(|selector| selector.is_empty());
    let any_family = is_headless(object) && without_selector;
    let address = text(&object["spec"]["clusterIP"]).to_owned();
    let Some(spec) = ensure_object(object, "spec") else { return };
    // A headless Service without selector has endpoints of whatever family its author gives it.
    set(spec, "ipFamilyPolicy", if any_family { "RequireDualStack" } else { "SingleStack" });
    if items(&spec["ipFamilies"]).is_empty() {
        let both = any_family && spec["ipFamilyPolicy"] != "SingleStack";
        let family = if address.parse::<std::net::Ipv6Addr>().is_ok() { "IPv6" } else { "IPv4" };
        spec["ipFamilies"] = if both { json!(["IPv4", "IPv6"]) } else { json!([family]) };
    }
}

/// Clients that know only `clusterIP` are taken to mean `clusterIPs` too (`NormalizeClusterIPs`).
pub fn normalize_cluster_ips(object: &mut Value, old: &Value) {
    let Some(spec) = ensure_object(object, "spec") else { return };
    let ip = text(&spec["clusterIP"]).to_owned();
    let old_ip = text(&old["spec"]["clusterIP"]);
    let unchanged_list = !old.is_null() && spec["clusterIPs"] == old["spec"]["clusterIPs"];
    if ip.is_empty() {
        if !old.is_null() && !old_ip.is_empty() && unchanged_list {
            set_list(spec, None);
        }
        return;
    }
    if items(&spec["clusterIPs"]).is_empty() || (ip != old_ip && unchanged_list) {
        set_list(spec, Some(ip));
    }
}

fn set_list(spec: &mut Value, first: Option<String>) {
    let Some(map) = spec.as_object_mut() else { return };
    match first {
        None => {
            map.remove("clusterIPs");
        }
        Some(ip) => {
            let mut list = map.get("clusterIPs").and_then(Value::as_array).cloned().unwrap_or_default();
            list.splice(..list.len().min(1), [Value::from(ip)]);
            map.insert("clusterIPs".into(), list.into());
        }
    }
}

/// A change of type takes away what only the old type had, unless the client changed it as well
/// (`dropTypeDependentFields`).
pub fn drop_dependent(object: &mut Value, old: &Value) {
    let (new, spec_of_old) = (object.clone(), &old["spec"]);
    let same = |field: &str| new["spec"][field] == spec_of_old[field];
    let Some(spec) = ensure_object(object, "spec") else { return };
    let mut drop = |fields: &[&str]| {
        for field in fields {
            spec.as_object_mut().and_then(|map| map.remove(*field));
        }
    };
    if needs_cluster_ip(old) && !needs_cluster_ip(&new) && same("clusterIP") && same("clusterIPs") {
        drop(&["clusterIP", "clusterIPs"]);
        if same("ipFamilies") {
            drop(&["ipFamilies"]);
        }
        if same("ipFamilyPolicy") {
            drop(&["ipFamilyPolicy"]);
        }
    }
    if needs_health_check_node_port(old) && !needs_health_check_node_port(&new) && same("healthCheckNodePort") {
        drop(&["healthCheckNodePort"]);
    }
    let is_balancer = |service: &Value| super::kind_of(service) == "LoadBalancer";
    if is_balancer(old) && !is_balancer(&new) {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(field) {
                drop(&[field]);
            }
        }
    }
    if is_externally_accessible(old) && !is_externally_accessible(&new) && same("externalTrafficPolicy") {
        drop(&["externalTrafficPolicy"]);
    }
    if needs_cluster_ip(old) && !needs_cluster_ip(&new) && same("internalTrafficPolicy") {
        drop(&["internalTrafficPolicy"]);
    }
    let node_ports = |service: &Value| -> Vec<i64> {
        items(&service["spec"]["ports"]).iter().map(|port| number(&port["nodePort"])).collect()
    };
    let had_ports = matches!(super::kind_of(old), "NodePort" | "LoadBalancer");
    let has_ports = matches!(super::kind_of(&new), "NodePort" | "LoadBalancer");
    if had_ports && !has_ports && node_ports(old) == node_ports(&new) {
        for port in each(spec, "ports") {
            port.as_object_mut().and_then(|port| port.remove("nodePort"));
        }
    }
}

/// An update that leaves out what was allocated keeps it (`patchAllocatedValues`).
pub fn keep_allocated(object: &mut Value, old: &Value) {
    let (new, old_spec) = (object.clone(), &old["spec"]);
    let Some(spec) = ensure_object(object, "spec") else { return };
    if needs_cluster_ip(old) && needs_cluster_ip(&new) {
        if text(&new["spec"]["clusterIP"]).is_empty() {
            set_text(spec, "clusterIP", text(&old_spec["clusterIP"]));
        }
        if items(&new["spec"]["clusterIPs"]).is_empty() && spec["clusterIP"] == old_spec["clusterIP"] {
            if let Some(list) = old_spec.get("clusterIPs") {
                spec["clusterIPs"] = list.clone();
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if let Some(value) = old_spec.get(field) {
                set(spec, field, value.clone());
            }
        }
    }
    if needs_node_ports(old) && needs_node_ports(&new) {
        let taken: Vec<i64> = items(&new["spec"]["ports"]).iter().map(|port| number(&port["nodePort"])).collect();
        for port in each(spec, "ports") {
            let same = |other: &&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
            if let Some(before) = items(&old_spec["ports"]).iter().find(same) {
                let node_port = number(&before["nodePort"]);
                if node_port != 0 && !taken.contains(&node_port) {
                    set_number(port, "nodePort", node_port);
                }
            }
        }
    }
    if needs_health_check_node_port(old) && needs_health_check_node_port(&new) {
        let port = number(&old_spec["healthCheckNodePort"]);
        if port != 0 {
            set_number(spec, "healthCheckNodePort", port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kind::Strategy;
    use crate::api::kinds::service::Services;

    fn old() -> Value {
        let mut service = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "selector": {"a": "b"},
            "ports": [{"port": 80, "nodePort": 30080}]}});
        Services.default(&mut service);
        Services.prepare_for_create(&mut service);
        service
    }

    #[test]
    fn a_service_on_one_family() {
        let spec = &old()["spec"];
        assert_eq!((&spec["clusterIPs"], &spec["ipFamilies"]), (&json!(["10.0.0.1"]), &json!(["IPv4"])));
        assert_eq!((&spec["ipFamilyPolicy"], &spec["ports"][0]["targetPort"]), (&json!("SingleStack"), &json!(80)));
        assert_eq!(
            (&spec["internalTrafficPolicy"], &spec["externalTrafficPolicy"]),
            (&json!("Cluster"), &json!("Cluster"))
        );
    }

    #[test]
    fn an_update_keeps_what_was_allocated() {
        let old = old();
        let mut new = json!({"spec": {"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80}]}});
        Services.default(&mut new);
        Services.prepare_for_update(&mut new, &old);
        assert_eq!(new["spec"], old["spec"]);
    }

    #[test]
    fn a_change_of_type_drops_what_the_new_type_has_not() {
        let old = old();
        let mut new = old.clone();
        new["spec"]["type"] = "ExternalName".into();
        new["spec"]["externalName"] = "example.com".into();
        Services.prepare_for_update(&mut new, &old);
        for field in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "externalTrafficPolicy",
            "internalTrafficPolicy",
        ] {
            assert!(new["spec"][field].is_null(), "{field}");
        }
        assert!(new["spec"]["ports"][0]["nodePort"].is_null());
    }
}
