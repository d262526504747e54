//! What an update may change about a pod (`ValidatePodUpdate`, `ValidatePodStatusUpdate`).

use serde_json::Value;

use crate::api::app_armor::ANNOTATION_PREFIX;
use crate::api::meta::{items, number, text};
use crate::api::status::FieldError;
use crate::api::validation::meta::dns_subdomain_messages;
use crate::api::validation::{Errors, diff, invalid_all, net};

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
    `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// An update of the pod itself.
pub fn pod_update(errors: &mut Errors, pod: &Value, old: &Value) {
    let (spec, old_spec) = (&pod["spec"], &old["spec"]);
    annotations(errors, pod, old);
    for list in ["containers", "initContainers"] {
        if items(&spec[list]).len() != items(&old_spec[list]).len() {
            let detail = "pod updates may not add or remove containers";
            return errors.push(FieldError::forbidden(format!("spec.{list}"), detail));
        }
        for (index, container) in items(&spec[list]).iter().enumerate() {
            if text(&container["image"]).trim().is_empty() {
                errors.push(FieldError::required(format!("spec.{list}[{index}].image"), ""));
            }
        }
    }
    active_deadline(errors, spec, old_spec);
    scheduling_gates(errors, spec, old_spec);
    tolerations(errors, spec, old_spec);

    // What may change is made equal; the rest has to be.
    let mut munged = spec.clone();
    let Some(map) = munged.as_object_mut() else { return };
    let mut keep = |field: &str| match old_spec.get(field) {
        Some(value) => map.insert(field.to_owned(), value.clone()),
        None => map.remove(field),
    };
    keep("activeDeadlineSeconds");
    keep("schedulingGates");
    keep("tolerations");
    if number(&old_spec["terminationGracePeriodSeconds"]) < 0 && spec["terminationGracePeriodSeconds"] == 1 {
        keep("terminationGracePeriodSeconds");
    }
    if !items(&old_spec["schedulingGates"]).is_empty() {
        super::gated::narrowing(errors, &mut munged, old_spec);
    }
    for list in ["containers", "initContainers"] {
        for (index, container) in items(&old_spec[list]).iter().enumerate() {
            if let Some(new) = munged.get_mut(list).and_then(|l| l.get_mut(index)).and_then(Value::as_object_mut) {
                new.insert("image".into(), container["image"].clone());
            }
        }
    }
    if !same(&munged, old_spec) {
        let detail = format!("{ALLOWED}\n{}", diff::unified(old_spec, &munged));
        errors.push(FieldError::forbidden("spec", &detail));
    }
}

/// Equality that takes null, absent and empty for the same, as Go structs do.
pub fn same(a: &Value, b: &Value) -> bool {
    let is_zero = |v: &Value| match v {
        Value::Null => true,
        Value::Array(array) => array.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let null = Value::Null;
            x.keys().chain(y.keys()).all(|key| same(x.get(key).unwrap_or(&null), y.get(key).unwrap_or(&null)))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        _ => a == b || (is_zero(a) && is_zero(b)),
    }
}

/// Annotations that the kubelet acts upon stay as they are (`ValidatePodSpecificAnnotationUpdates`).
fn annotations(errors: &mut Errors, pod: &Value, old: &Value) {
    let of = |pod: &Value| pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    let (new, old) = (of(pod), of(old));
    let names = |key: &str| match key {
        "kubernetes.io/config.mirror" => Some("mirror pod annotation"),
        key if key.starts_with(ANNOTATION_PREFIX) => Some("AppArmor annotations"),
        _ => None,
    };
    for (key, _) in old.iter().filter(|(key, value)| new.get(*key) != Some(*value)) {
        if let Some(what) = names(key) {
            let detail = format!("may not remove or update {what}");
            errors.push(FieldError::forbidden(format!("metadata.annotations[{key}]"), &detail));
        }
    }
    for key in new.keys().filter(|key| !old.contains_key(*key)) {
        if let Some(what) = names(key) {
            errors.push(FieldError::forbidden(format!("metadata.annotations[{key}]"), &format!("may not add {what}")));
        }
    }
}

fn active_deadline(errors: &mut Errors, spec: &Value, old: &Value) {
    let Some(before) = old["activeDeadlineSeconds"].as_i64() else { return };
    let (value, path) = (&spec["activeDeadlineSeconds"], "spec.activeDeadlineSeconds");
    match value.as_i64() {
        None => errors.push(FieldError::invalid(path, value, "must not update from a positive integer to nil value")),
        Some(seconds) if seconds > before => {
            errors.push(FieldError::invalid(path, value, "must be less than or equal to previous value"));
        }
        Some(_) => {}
    }
}

fn scheduling_gates(errors: &mut Errors, spec: &Value, old: &Value) {
    for (index, gate) in items(&spec["schedulingGates"]).iter().enumerate() {
        if !items(&old["schedulingGates"]).contains(gate) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", text(&gate["name"]));
            errors.push(FieldError::forbidden(format!("spec.schedulingGates[{index}]"), &detail));
        }
    }
}

fn tolerations(errors: &mut Errors, spec: &Value, old: &Value) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(map) = toleration.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        toleration
    };
    let new: Vec<Value> = items(&spec["tolerations"]).iter().map(without_seconds).collect();
    if !items(&old["tolerations"]).iter().all(|toleration| new.contains(&without_seconds(toleration))) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", detail));
    }
}

/// Ephemeral containers are only added (`ValidatePodEphemeralContainersUpdate`).
pub fn ephemeral_containers(errors: &mut Errors, pod: &Value, old: &Value) {
    let path = "spec.ephemeralContainers";
    let new = items(&pod["spec"]["ephemeralContainers"]);
    for before in items(&old["spec"]["ephemeralContainers"]) {
        let name = text(&before["name"]);
        let change = match new.iter().find(|c| c["name"] == before["name"]) {
            None => "removed",
            Some(now) if !same(now, before) => "changed",
            Some(_) => continue,
        };
        errors.push(FieldError::forbidden(
            path,
            &format!("existing ephemeral containers {name:?} may not be {change}\n"),
        ));
    }
}

/// An update of the status.
pub fn status_update(errors: &mut Errors, pod: &Value, old: &Value) {
    let status = &pod["status"];
    let node = &status["nominatedNodeName"];
    if !text(node).is_empty() {
        invalid_all(errors, "status.nominatedNodeName", node, dns_subdomain_messages(text(node)));
    }
    let (ip, ips) = (&status["podIP"], items(&status["podIPs"]));
    if ips.is_empty() {
        if !text(ip).is_empty() {
            net::ip(errors, "status.podIPs[0]", ip);
        }
    }
    for (index, entry) in ips.iter().enumerate() {
        // The single address is the first of the list, and wins.
        let value = if index == 0 && !text(ip).is_empty() { ip } else { &entry["ip"] };
        net::ip(errors, &format!("status.podIPs[{index}]"), value);
    }
    let restart_policy = text(&old["spec"]["restartPolicy"]);
    if restart_policy == "Always" {
        return;
    }
    for list in ["containerStatuses", "initContainerStatuses"] {
        let old_statuses = items(&old["status"][list]);
        for (index, status) in items(&status[list]).iter().enumerate() {
            let Some(before) = old_statuses.iter().find(|s| s["name"] == status["name"]) else { continue };
            let ended = &before["state"]["terminated"];
            let may_restart = restart_policy == "OnFailure" && number(&ended["exitCode"]) != 0;
            let sidecar = items(&old["spec"]["initContainers"])
                .iter()
                .any(|c| c["name"] == status["name"] && crate::api::pod::is_restartable_init(c));
            if ended.is_object() && !status["state"]["terminated"].is_object() && !may_restart && !sidecar {
                let path = format!("status.{list}[{index}].state");
                errors.push(FieldError::forbidden(path, "may not be transitioned to non-terminated state"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(change: impl Fn(&mut Value)) -> Vec<String> {
        let old = json!({"spec": {"containers": [{"name": "c", "image": "a", "env": []}], "activeDeadlineSeconds": 5,
            "tolerations": [{"key": "k", "tolerationSeconds": 1}]}});
        let mut new = old.clone();
        change(&mut new["spec"]);
        let mut errors = Errors::new();
        pod_update(&mut errors, &new, &old);
        errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn images_deadlines_and_tolerations_may_change() {
        let allowed = errors(|spec| {
            spec["containers"][0]["image"] = "b".into();
            spec["containers"][0].as_object_mut().expect("an object").remove("env");
            spec["activeDeadlineSeconds"] = 4.into();
            spec["tolerations"] = json!([{"key": "k", "tolerationSeconds": 9}, {"key": "l"}]);
        });
        assert_eq!(allowed, Vec::<String>::new());
    }

    #[test]
    fn ephemeral_containers_are_only_added() {
        let pod = |names: &[&str]| {
            let list: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            json!({"spec": {"ephemeralContainers": list}})
        };
        let check = |new: &[&str], old: &[&str]| {
            let mut errors = Errors::new();
            ephemeral_containers(&mut errors, &pod(new), &pod(old));
            errors.len()
        };
        assert_eq!((check(&["b", "a"], &["a"]), check(&["b"], &["a"])), (0, 1));
    }

    #[test]
    fn other_fields_may_not() {
        assert_eq!(
            errors(|spec| spec["tolerations"] = json!([])),
            ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
        );
        let found = errors(|spec| spec["nodeName"] = "n".into());
        assert!(found[0].starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers"));
        assert!(found[0].contains("\n+ \"nodeName\": \"n\""), "{}", found[0]);
        assert_eq!(
            errors(|spec| spec["containers"] = json!([])),
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
    }
}
