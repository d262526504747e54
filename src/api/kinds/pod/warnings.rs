//! Warnings about pods and templates (`pod.GetWarningsForPod`).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::api::meta::{items, text};

/// Warnings about a spec at `path` (`spec` or `spec.template.spec`).
pub fn pod_spec(spec: &Value, path: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, volume) in items(&spec["volumes"]).iter().enumerate() {
        let path = format!("{path}.volumes[{index}]");
        for (source, text) in [
            ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
            ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
            ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
            ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
            ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
            ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
            ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
            ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
            ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ] {
            if volume[source].is_object() {
                warnings.push(format!("{path}.{source}: {text}"));
            }
        }
    }
    let mut aliases = BTreeSet::new();
    for (index, alias) in items(&spec["hostAliases"]).iter().enumerate() {
        if !aliases.insert(text(&alias["ip"])) {
            warnings.push(format!("{path}.hostAliases[{index}].ip: duplicate ip {:?}", text(&alias["ip"])));
        }
    }
    for list in ["initContainers", "containers"] {
        for (index, container) in items(&spec[list]).iter().enumerate() {
            self::container(&mut warnings, container, &format!("{path}.{list}[{index}]"));
        }
    }
    let mut names = BTreeSet::new();
    for (index, secret) in items(&spec["imagePullSecrets"]).iter().enumerate() {
        let name = text(&secret["name"]);
        if name.is_empty() {
            warnings.push(format!("{path}.imagePullSecrets[{index}].name: invalid empty name \"\""));
        } else if !names.insert(name) {
            warnings.push(format!("{path}.imagePullSecrets[{index}].name: duplicate name {name:?}"));
        }
    }
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        warnings.push(format!(
            "{path}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    deprecated_labels(&mut warnings, spec, path);
    duplicate_ports(&mut warnings, spec, path);
    warnings
}

fn container(warnings: &mut Vec<String>, container: &Value, path: &str) {
    let mut seen = BTreeSet::new();
    for (index, variable) in items(&container["env"]).iter().enumerate() {
        let name = text(&variable["name"]);
        // A value that refers to its own name builds on the first one: that is how it is meant to be used.
        if !seen.insert(name) && !text(&variable["value"]).contains(&format!("$({name})")) {
            warnings.push(format!(
                "{path}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
    for list in ["limits", "requests"] {
        for (name, value) in container["resources"][list].as_object().into_iter().flatten() {
            let milli = crate::api::quantity::Quantity::of(value);
            if matches!(name.as_str(), "memory" | "ephemeral-storage") && !milli.is_integer() {
                warnings.push(format!(
                    "{path}.resources.{list}[{name}]: fractional byte value {:?} is invalid, must be an integer",
                    milli.to_string()
                ));
            }
        }
    }
}

fn deprecated_labels(warnings: &mut Vec<String>, spec: &Value, path: &str) {
    const LABELS: [(&str, &str); 5] = [
        ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
        ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
        (
            "failure-domain.beta.kubernetes.io/region",
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
        ),
        (
            "failure-domain.beta.kubernetes.io/zone",
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
        ),
        (
            "beta.kubernetes.io/instance-type",
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
        ),
    ];
    for (label, text) in LABELS {
        if !spec["nodeSelector"][label].is_null() {
            warnings.push(format!("{path}.nodeSelector[{label}]: {text}"));
        }
    }
}

fn duplicate_ports(warnings: &mut Vec<String>, spec: &Value, path: &str) {
    for (index, container) in items(&spec["containers"]).iter().enumerate() {
        let ports = items(&container["ports"]);
        for (at, port) in ports.iter().enumerate() {
            let same = |other: &&Value| {
                ["containerPort", "protocol", "hostPort", "hostIP"].iter().all(|field| other[*field] == port[*field])
            };
            if let Some(first) = ports[..at].iter().position(|other| same(&other)) {
                warnings.push(format!(
                    "{path}.containers[{index}].ports[{at}]: duplicate port definition with \
                        {path}.containers[{index}].ports[{first}]"
                ));
            }
        }
    }
}
