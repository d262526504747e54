//! Validation of pod specs (`ValidatePodSpec`), in pods and in templates.

use std::collections::BTreeSet;

use serde_json::Value;

use super::container::{self, Surroundings};
use super::{app_armor, placement, resources, security, volumes};
use crate::api::meta::{items, text};
use crate::api::status::FieldError;
use crate::api::validation::meta::{
    annotations, dns_label_messages, dns_subdomain_messages, labels, qualified_name_messages,
};
use crate::api::validation::{Errors, invalid_all, net, one_of, one_of_or_unset};

/// A pod.
pub fn pod(errors: &mut Errors, pod: &Value) {
    let spec = &pod["spec"];
    app_armor::annotations(errors, pod, "metadata.annotations");
    app_armor::annotations_match_fields(errors, pod, "spec");
    pod_spec(errors, spec, "spec");
    if text(&spec["serviceAccountName"]).is_empty() {
        for (index, volume) in items(&spec["volumes"]).iter().enumerate() {
            for (source, projection) in items(&volume["projected"]["sources"]).iter().enumerate() {
                if projection["serviceAccountToken"].is_object() {
                    let path = format!("spec.volumes[{index}].projected.sources[{source}].serviceAccountToken");
                    let detail = "must not be specified when serviceAccountName is not set";
                    errors.push(FieldError::forbidden(path, detail));
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        container::only_for_pods(errors, &spec[list], &format!("spec.{list}"));
    }
}

/// A template of pods (`ValidatePodTemplateSpec`).
pub fn pod_template(errors: &mut Errors, template: &Value, path: &str) {
    errors.extend(labels(&template["metadata"]["labels"], &format!("{path}.labels")));
    errors.extend(annotations(&template["metadata"]["annotations"], &format!("{path}.annotations")));
    app_armor::annotations(errors, template, &format!("{path}.annotations"));
    app_armor::annotations_match_fields(errors, template, &format!("{path}.spec"));
    pod_spec(errors, &template["spec"], &format!("{path}.spec"));
    if !items(&template["spec"]["ephemeralContainers"]).is_empty() {
        let path = format!("{path}.spec.ephemeralContainers");
        errors.push(FieldError::forbidden(path, "ephemeral containers not allowed in pod template"));
    }
}

/// A pod spec.
pub fn pod_spec(errors: &mut Errors, spec: &Value, path: &str) {
    let at = |field: &str| format!("{path}.{field}");
    let names = volumes::volumes(errors, &spec["volumes"], &at("volumes"));
    let around = Surroundings { spec, volumes: &names };
    container::containers(errors, &at("containers"), &around);
    container::init_containers(errors, &at("initContainers"), &around);
    container::ephemeral_containers(errors, &at("ephemeralContainers"), &around);
    if spec["resources"].is_object() {
        resources::resources(errors, &spec["resources"], &at("resources"));
    }
    host_network_ports(errors, spec, path);
    one_of(errors, &at("restartPolicy"), &spec["restartPolicy"], &["Always", "OnFailure", "Never"]);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(errors, &at("dnsPolicy"), &spec["dnsPolicy"], &policies);
    errors.extend(labels(&spec["nodeSelector"], &at("nodeSelector")));
    security_context(errors, spec, &at("securityContext"));
    for (index, secret) in items(&spec["imagePullSecrets"]).iter().enumerate() {
        if text(&secret["name"]).is_empty() {
            errors.push(FieldError::required(format!("{path}.imagePullSecrets[{index}].name"), ""));
        }
    }
    placement::affinity(errors, &spec["affinity"], &at("affinity"));
    dns_config(errors, spec, &at("dnsConfig"));
    gates(errors, spec, path);
    placement::topology_spread(errors, &spec["topologySpreadConstraints"], &at("topologySpreadConstraints"));
    let account = &spec["serviceAccountName"];
    optional_name(errors, &at("serviceAccountName"), account, dns_subdomain_messages);
    optional_name(errors, &at("nodeName"), &spec["nodeName"], dns_subdomain_messages);
    let deadline = &spec["activeDeadlineSeconds"];
    if deadline.as_i64().is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
        let detail = "must be between 1 and 2147483647, inclusive";
        errors.push(FieldError::invalid(at("activeDeadlineSeconds"), deadline, detail));
    }
    optional_name(errors, &at("hostname"), &spec["hostname"], dns_label_messages);
    optional_name(errors, &at("subdomain"), &spec["subdomain"], dns_label_messages);
    placement::tolerations(errors, &spec["tolerations"], &at("tolerations"));
    for (index, alias) in items(&spec["hostAliases"]).iter().enumerate() {
        let path = format!("{path}.hostAliases[{index}]");
        net::ip(errors, &format!("{path}.ip"), &alias["ip"]);
        for (index, name) in items(&alias["hostnames"]).iter().enumerate() {
            let path = format!("{path}.hostnames[{index}]");
            invalid_all(errors, &path, name, dns_subdomain_messages(text(name)));
        }
    }
    optional_name(errors, &at("priorityClassName"), &spec["priorityClassName"], dns_subdomain_messages);
    optional_name(errors, &at("runtimeClassName"), &spec["runtimeClassName"], dns_subdomain_messages);
    let policies = ["Never", "PreemptLowerPriority"];
    one_of_or_unset(errors, &at("preemptionPolicy"), &spec["preemptionPolicy"], &policies);
    for (name, value) in spec["overhead"].as_object().into_iter().flatten() {
        resources::quantity(errors, name, value, &format!("{path}.overhead[{name}]"));
    }
    if spec["os"].is_object() {
        one_of(errors, &at("os.name"), &spec["os"]["name"], &["linux", "windows"]);
    }
}

fn optional_name(errors: &mut Errors, path: &str, value: &Value, messages: fn(&str) -> Vec<String>) {
    if !text(value).is_empty() {
        invalid_all(errors, path, value, messages(text(value)));
    }
}

fn host_network_ports(errors: &mut Errors, spec: &Value, path: &str) {
    if spec["hostNetwork"] != true {
        return;
    }
    for list in ["containers", "initContainers"] {
        for (index, container) in items(&spec[list]).iter().enumerate() {
            for (port_index, port) in items(&container["ports"]).iter().enumerate() {
                if port["hostPort"] != port["containerPort"] {
                    let path = format!("{path}.{list}[{index}].ports[{port_index}].containerPort");
                    let detail = "must match `hostPort` when `hostNetwork` is true";
                    errors.push(FieldError::invalid(path, &port["containerPort"], detail));
                }
            }
        }
    }
}

fn security_context(errors: &mut Errors, spec: &Value, path: &str) {
    let context = &spec["securityContext"];
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        security::id(errors, &format!("{path}.{field}"), &context[field]);
    }
    for (index, group) in items(&context["supplementalGroups"]).iter().enumerate() {
        security::id(errors, &format!("{path}.supplementalGroups[{index}]"), group);
    }
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(format!("{path}.shareProcessNamespace"), &true.into(), detail));
    }
    let mut names = BTreeSet::new();
    for (index, sysctl) in items(&context["sysctls"]).iter().enumerate() {
        let (name, path) = (&sysctl["name"], format!("{path}.sysctls[{index}].name"));
        if text(name).is_empty() {
            errors.push(FieldError::required(path, ""));
        } else if !is_sysctl(text(name)) {
            let detail = "must have at most 253 characters and match regex \
                ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid(path, name, detail));
        } else if !names.insert(text(name)) {
            errors.push(FieldError::duplicate(path, name));
        }
    }
    let policies = ["Always", "OnRootMismatch"];
    one_of_or_unset(errors, &format!("{path}.fsGroupChangePolicy"), &context["fsGroupChangePolicy"], &policies);
    let policies = ["Merge", "Strict"];
    let policy = &context["supplementalGroupsPolicy"];
    one_of_or_unset(errors, &format!("{path}.supplementalGroupsPolicy"), policy, &policies);
    security::seccomp_profile(errors, &context["seccompProfile"], &format!("{path}.seccompProfile"));
    security::app_armor_profile(errors, &context["appArmorProfile"], &format!("{path}.appArmorProfile"));
}

fn is_sysctl(name: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(|b| edge(*b))
                && bytes.last().is_some_and(|b| edge(*b))
                && bytes.iter().all(|b| edge(*b) || b"-_".contains(b))
        })
}

fn dns_config(errors: &mut Errors, spec: &Value, path: &str) {
    let config = &spec["dnsConfig"];
    let servers = items(&config["nameservers"]);
    let servers_path = format!("{path}.nameservers");
    if text(&spec["dnsPolicy"]) == "None" {
        if !config.is_object() {
            return errors.push(FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
        }
        if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return errors.push(FieldError::required(servers_path, detail));
        }
    }
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(&servers_path, &config["nameservers"], detail));
    }
    for (index, server) in servers.iter().enumerate() {
        net::ip(errors, &format!("{servers_path}[{index}]"), server);
    }
    let searches = items(&config["searches"]);
    let searches_path = format!("{path}.searches");
    let mut refuse = |detail| errors.push(FieldError::invalid(&searches_path, &config["searches"], detail));
    if searches.len() > 32 {
        refuse("must not have more than 32 search paths");
    }
    if searches.iter().map(|s| text(s).len() + 1).sum::<usize>() > 2049 {
        refuse("must not have more than 2048 characters (including spaces) in the search list");
    }
    for (index, search) in searches.iter().enumerate() {
        let name = text(search).trim_end_matches('.');
        if !name.is_empty() {
            invalid_all(errors, &format!("{searches_path}[{index}]"), search, dns_subdomain_messages(name));
        }
    }
    for (index, option) in items(&config["options"]).iter().enumerate() {
        if text(&option["name"]).is_empty() {
            errors.push(FieldError::required(format!("{path}.options[{index}]"), "must not be empty"));
        }
    }
}

fn gates(errors: &mut Errors, spec: &Value, path: &str) {
    for (index, gate) in items(&spec["readinessGates"]).iter().enumerate() {
        let (kind, path) = (&gate["conditionType"], format!("{path}.readinessGates[{index}].conditionType"));
        invalid_all(errors, &path, kind, qualified_name_messages(text(kind)));
    }
    let mut names = BTreeSet::new();
    for (index, gate) in items(&spec["schedulingGates"]).iter().enumerate() {
        let path = format!("{path}.schedulingGates[{index}]");
        invalid_all(errors, &path, &gate["name"], qualified_name_messages(text(&gate["name"])));
        if !names.insert(text(&gate["name"])) {
            errors.push(FieldError::duplicate(path, &gate["name"]));
        }
    }
}
