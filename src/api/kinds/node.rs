//! Nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set};
use super::pod::{TAINT_EFFECTS, container_quantity};
use super::{cluster_scoped, gvr, names};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{items, text};
use crate::api::printers::{age, age_column, column, name, name_column, or_none, wide_column};
use crate::api::quantity::canonicalize_resource_list;
use crate::api::status::FieldError;
use crate::api::validation::meta::{label_name, label_value_messages};
use crate::api::validation::{Errors, invalid_all, net, one_of};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["no"]),
        subresources: vec![Subresource::Proxy, Subresource::Status],
        ..cluster_scoped(gvr::NODES, "Node", Arc::new(Nodes))
    }
}

struct Nodes;

impl Strategy for Nodes {
    fn default(&self, object: &mut Value) {
        if let Some(status) = ensure_object(object, "status") {
            set(status, "daemonEndpoints", json!({"kubeletEndpoint": {"Port": 0}}));
            if let Some(info) = ensure_object(status, "nodeInfo") {
                for field in [
                    "machineID",
                    "systemUUID",
                    "bootID",
                    "kernelVersion",
                    "osImage",
                    "containerRuntimeVersion",
                    "kubeletVersion",
                    "kubeProxyVersion",
                    "operatingSystem",
                    "architecture",
                ] {
                    set(info, field, "");
                }
            }
            for list in ["capacity", "allocatable"] {
                if let Some(list) = status.get_mut(list) {
                    canonicalize_resource_list(list);
                }
            }
            if let Some(capacity) = status.get("capacity").filter(|c| c.is_object()).cloned() {
                set(status, "allocatable", capacity);
            }
        }
        if let Some(spec) = ensure_object(object, "spec") {
            // Clients that know only the single field mean the list too.
            match (text(&spec["podCIDR"]).to_owned(), items(&spec["podCIDRs"]).first().map(|c| text(c).to_owned())) {
                (cidr, first) if !cidr.is_empty() && first.as_ref() != Some(&cidr) => spec["podCIDRs"] = json!([cidr]),
                (cidr, Some(first)) if cidr.is_empty() => spec["podCIDR"] = first.into(),
                _ => {}
            }
        }
    }

    fn keeps_status_on_create(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        taints(&mut errors, &object["spec"]["taints"], "metadata.taints");
        for (index, address) in items(&object["status"]["addresses"]).iter().enumerate() {
            if items(&object["status"]["addresses"])[..index].contains(address) {
                errors.push(FieldError::duplicate(format!("status.addresses[{index}]"), address));
            }
        }
        for (index, cidr) in items(&object["spec"]["podCIDRs"]).iter().enumerate() {
            if !net::is_cidr(text(cidr)) {
                let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.push(FieldError::invalid(format!("spec.podCIDRs[{index}]"), cidr, detail));
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        taints(&mut errors, &object["spec"]["taints"], "metadata.taints");
        let (spec, old_spec) = (&object["spec"], &old["spec"]);
        let mut others_changed = false;
        let set_before = |field: &str| !matches!(&old_spec[field], Value::Null) && old_spec[field] != "";
        for (field, reported) in [("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
            if set_before(field) && spec[field] != old_spec[field] {
                let detail = format!("node updates may not change {reported} except from \"\" to valid");
                errors.push(FieldError::forbidden(format!("spec.{field}"), &detail));
                others_changed = true;
            }
        }
        let keys = |spec: &Value| -> BTreeSet<String> {
            spec.as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect()
        };
        for list in ["capacity", "allocatable"] {
            for (name, amount) in object["status"][list].as_object().into_iter().flatten() {
                container_quantity(&mut errors, name, amount, &format!("status.{list}.{name}"));
            }
        }
        let fields = &keys(spec) | &keys(old_spec);
        let allowed = ["taints", "unschedulable", "podCIDR", "podCIDRs", "providerID", "configSource"];
        let differs = |field: &String| !super::pod::update::same(&spec[field], &old_spec[field]);
        others_changed |= fields.iter().any(|field| !allowed.contains(&field.as_str()) && differs(field));
        if others_changed {
            let detail = "node updates may only change labels, taints, or capacity";
            errors.push(FieldError::forbidden("[]", detail));
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        self.validate_update(object, old)
    }

    fn columns(&self) -> Vec<Column> {
        const ADDRESSES: &str = "List of addresses reachable to the node. Queried from cloud provider, if \
            available. More \
            info: https://kubernetes.io/docs/reference/node/node-status/#addresses Note: This field is declared as \
            mergeable, but the merge key is not sufficiently unique, which can cause data corruption when it is merged. \
            Callers should instead use a full-replacement patch. See https://pr.k8s.io/79391 for an example. Consumers \
            should assume that addresses can change during the lifetime of a Node. However, there are some exceptions \
            where this may not be possible, such as Pods that inherit a Node's address in its own status or consumers of \
            the downward API (status.hostIP).";
        vec![
            name_column(),
            column("Status", "string", "The status of the node"),
            column("Roles", "string", "The roles of the node"),
            age_column(),
            column("Version", "string", "Kubelet Version reported by the node."),
            wide_column("Internal-IP", "string", ADDRESSES),
            wide_column("External-IP", "string", ADDRESSES),
            wide_column(
                "OS-Image",
                "string",
                "OS Image reported by the node from /etc/os-release (e.g. Debian GNU/Linux 7 (wheezy)).",
            ),
            wide_column(
                "Kernel-Version",
                "string",
                "Kernel Version reported by the node from 'uname -r' (e.g. 3.16.0-0.bpo.4-amd64).",
            ),
            wide_column(
                "Container-Runtime",
                "string",
                "ContainerRuntime Version reported by the node through runtime remote API (e.g. containerd://1.4.2).",
            ),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let status = &object["status"];
        let info = |field: &str| text(&status["nodeInfo"][field]);
        let known = |field: &str| if info(field).is_empty() { "<unknown>" } else { info(field) };
        let address = |kind: &str| {
            let found = items(&status["addresses"]).iter().find(|a| text(&a["type"]) == kind);
            or_none(found.map_or("", |a| text(&a["address"])))
        };
        vec![
            name(object),
            readiness(object).into(),
            roles(object).into(),
            age(object, now),
            info("kubeletVersion").into(),
            address("InternalIP").into(),
            address("ExternalIP").into(),
            known("osImage").into(),
            known("kernelVersion").into(),
            known("containerRuntimeVersion").into(),
        ]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("spec.unschedulable", (object["spec"]["unschedulable"] == true).to_string())]
    }

    fn knows_field(&self, field: &str) -> bool {
        field == "spec.unschedulable"
    }
}

fn taints(errors: &mut Errors, taints: &Value, path: &str) {
    let mut seen = BTreeSet::new();
    for (index, taint) in items(taints).iter().enumerate() {
        let path = format!("{path}[{index}]");
        errors.extend(label_name(text(&taint["key"]), &format!("{path}.key")));
        let value = &taint["value"];
        invalid_all(errors, &format!("{path}.value"), value, label_value_messages(text(value)));
        one_of(errors, &format!("{path}.effect"), &taint["effect"], &TAINT_EFFECTS);
        if !seen.insert((text(&taint["key"]), text(&taint["effect"]))) {
            let mut error = FieldError::duplicate(path, taint);
            error.message += ": taints must be unique by key and effect pair";
            errors.push(error);
        }
    }
}

fn readiness(object: &Value) -> String {
    let ready = items(&object["status"]["conditions"]).iter().find(|c| text(&c["type"]) == "Ready");
    let mut parts = vec![match ready.map(|c| text(&c["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if object["spec"]["unschedulable"] == true {
        parts.push("SchedulingDisabled");
    }
    parts.join(",")
}

fn roles(object: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (label, value) in object["metadata"]["labels"].as_object().into_iter().flatten() {
        match label.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => roles.insert(role),
            _ if label == "kubernetes.io/role" && !text(value).is_empty() => roles.insert(text(value)),
            _ => false,
        };
    }
    or_none(&roles.into_iter().collect::<Vec<_>>().join(","))
}
