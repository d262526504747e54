//! Validation of containers (`validateContainers` and what it calls, v1.35).

use std::collections::BTreeSet;

use serde_json::Value;

use super::resources::resources;
use super::security::security_context;
use super::sources::{field_selector, key_selector, resource_field_selector};
use crate::api::meta::{items, number, text};
use crate::api::status::FieldError;
use crate::api::validation::meta::dns_label_messages;
use crate::api::validation::net::{port_name_messages, port_number, port_number_or_name};
use crate::api::validation::{Errors, invalid_all, non_negative, one_of, one_of_or_unset, required};

/// What containers are validated against.
pub struct Surroundings<'a> {
    /// The pod spec.
    pub spec: &'a Value,
    /// The names of its valid volumes.
    pub volumes: &'a BTreeSet<String>,
}

/// Field paths that environment variables may take from the pod.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// `spec.containers`.
pub fn containers(errors: &mut Errors, path: &str, around: &Surroundings) {
    let list = items(&around.spec["containers"]);
    if list.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    let mut names = BTreeSet::new();
    for (index, container) in list.iter().enumerate() {
        let path = format!("{path}[{index}]");
        common(errors, container, &path, around);
        if !names.insert(text(&container["name"])) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &container["name"]));
        }
        running(errors, container, &path, around);
        restart_policy(errors, container, &path);
    }
    host_port_conflicts(errors, list, |index| format!("{path}[{index}]"));
}

/// `spec.initContainers`; names must differ from those of `spec.containers` too.
pub fn init_containers(errors: &mut Errors, path: &str, around: &Surroundings) {
    let mut names: BTreeSet<&str> = items(&around.spec["containers"]).iter().map(|c| text(&c["name"])).collect();
    for (index, container) in items(&around.spec["initContainers"]).iter().enumerate() {
        let path = format!("{path}[{index}]");
        common(errors, container, &path, around);
        if !names.insert(text(&container["name"])) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &container["name"]));
        }
        host_port_conflicts(errors, std::slice::from_ref(container), |_| path.clone());
        let policy = &container["restartPolicy"];
        restart_policy(errors, container, &path);
        if text(policy) == "Always" {
            running(errors, container, &path, around);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if !container[field].is_null() {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.push(FieldError::forbidden(format!("{path}.{field}"), detail));
            }
        }
    }
}

/// `spec.ephemeralContainers`.
pub fn ephemeral_containers(errors: &mut Errors, path: &str, around: &Surroundings) {
    let others = ["containers", "initContainers"].into_iter().flat_map(|list| items(&around.spec[list]));
    let mut names: BTreeSet<&str> = others.map(|c| text(&c["name"])).collect();
    let targets: BTreeSet<&str> = names.clone();
    for (index, container) in items(&around.spec["ephemeralContainers"]).iter().enumerate() {
        let path = format!("{path}[{index}]");
        common(errors, container, &path, around);
        if !names.insert(text(&container["name"])) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &container["name"]));
        }
        let target = &container["targetContainerName"];
        if !text(target).is_empty() && !targets.contains(text(target)) {
            errors.push(FieldError::not_found(format!("{path}.targetContainerName"), target));
        }
        for field in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy"] {
            if !container[field].is_null() {
                let detail = "cannot be set for an Ephemeral Container";
                errors.push(FieldError::forbidden(format!("{path}.{field}"), detail));
            }
        }
        if container["resources"].as_object().is_some_and(|r| !r.is_empty()) {
            let detail = "cannot be set for an Ephemeral Container";
            errors.push(FieldError::forbidden(format!("{path}.resources"), detail));
        }
        for (index, mount) in items(&container["volumeMounts"]).iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !text(&mount[field]).is_empty() {
                    let path = format!("{path}.volumeMounts[{index}].{field}");
                    errors.push(FieldError::forbidden(path, "cannot be set for an Ephemeral Container"));
                }
            }
        }
    }
}

/// Leading and trailing blanks of images, which templates may have and pods may not.
pub fn only_for_pods(errors: &mut Errors, list: &Value, path: &str) {
    for (index, container) in items(list).iter().enumerate() {
        let image = text(&container["image"]);
        if image.len() != image.trim().len() {
            let path = format!("{path}[{index}].image");
            errors.push(FieldError::invalid(path, &container["image"], "must not have leading or trailing whitespace"));
        }
    }
}

fn common(errors: &mut Errors, container: &Value, path: &str, around: &Surroundings) {
    let name = format!("{path}.name");
    match text(&container["name"]) {
        "" => errors.push(FieldError::required(name, "")),
        text => invalid_all(errors, &name, &container["name"], dns_label_messages(text)),
    }
    required(errors, &format!("{path}.image"), &container["image"]);
    let policy = &container["terminationMessagePolicy"];
    one_of(errors, &format!("{path}.terminationMessagePolicy"), policy, &["FallbackToLogsOnError", "File"]);
    ports(errors, container, path);
    environment(errors, container, path);
    environment_from(errors, container, path);
    volume_mounts(errors, container, path, around);
    volume_devices(errors, container, path, around);
    let policy = &container["imagePullPolicy"];
    one_of(errors, &format!("{path}.imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    resources(errors, &container["resources"], &format!("{path}.resources"));
    security_context(errors, &container["securityContext"], &format!("{path}.securityContext"));
}

/// What only containers that keep running may have.
fn running(errors: &mut Errors, container: &Value, path: &str, around: &Surroundings) {
    let grace = around.spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    for hook in ["postStart", "preStop"] {
        if container["lifecycle"][hook].is_object() {
            handler(errors, &container["lifecycle"][hook], &format!("{path}.lifecycle.{hook}"), grace);
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let (value, path) = (&container[kind], format!("{path}.{kind}"));
        if !value.is_object() {
            continue;
        }
        probe(errors, value, &path, grace);
        if kind == "readinessProbe" {
            let seconds = &value["terminationGracePeriodSeconds"];
            if !seconds.is_null() {
                let path = format!("{path}.terminationGracePeriodSeconds");
                errors.push(FieldError::invalid(path, seconds, "must not be set for readinessProbes"));
            }
        } else if number(&value["successThreshold"]) != 1 {
            let path = format!("{path}.successThreshold");
            errors.push(FieldError::invalid(path, &number(&value["successThreshold"]).into(), "must be 1"));
        }
    }
}

/// A container's own restart policy and the rules that come before it (KEP-5307).
fn restart_policy(errors: &mut Errors, container: &Value, path: &str) {
    let (policy, policy_path) = (&container["restartPolicy"], format!("{path}.restartPolicy"));
    one_of_or_unset(errors, &policy_path, policy, &["Always", "Never", "OnFailure"]);
    let rules = items(&container["restartPolicyRules"]);
    if !rules.is_empty() && policy.is_null() {
        errors.push(FieldError::required(policy_path, "must specify restartPolicy when restart rules are used"));
    }
    if rules.len() > 20 {
        errors.push(FieldError::too_many(format!("{path}.restartPolicyRules"), rules.len(), 20));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = format!("{path}.restartPolicyRules[{index}]");
        one_of(errors, &format!("{path}.action"), &rule["action"], &["Restart"]);
        let (codes, path) = (&rule["exitCodes"], format!("{path}.exitCodes"));
        if !codes.is_object() {
            errors.push(FieldError::required(path, "must be specified"));
            continue;
        }
        one_of(errors, &format!("{path}.operator"), &codes["operator"], &["In", "NotIn"]);
        match items(&codes["values"]).len() {
            0 => errors.push(FieldError::required(format!("{path}.values"), "must specify at least one value")),
            count @ 256.. => errors.push(FieldError::too_many(format!("{path}.values"), count, 255)),
            _ => {}
        }
    }
}

fn probe(errors: &mut Errors, probe: &Value, path: &str, grace: i64) {
    handler(errors, probe, path, grace);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        non_negative(errors, &format!("{path}.{field}"), &probe[field]);
    }
    let seconds = &probe["terminationGracePeriodSeconds"];
    if seconds.as_i64().is_some_and(|seconds| seconds <= 0) {
        let path = format!("{path}.terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(path, seconds, "must be greater than 0"));
    }
}

fn handler(errors: &mut Errors, handler: &Value, path: &str, grace: i64) {
    let mut found = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let (value, path) = (&handler[kind], format!("{path}.{kind}"));
        if !value.is_object() {
            continue;
        }
        found += 1;
        if found > 1 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        match kind {
            "exec" if items(&value["command"]).is_empty() => {
                errors.push(FieldError::required(format!("{path}.command"), ""));
            }
            "httpGet" => http_get(errors, value, &path),
            "tcpSocket" => port_number_or_name(errors, &format!("{path}.port"), &value["port"]),
            "grpc" => port_number(errors, &format!("{path}.port"), &value["port"]),
            "sleep" => {
                let seconds = number(&value["seconds"]);
                if seconds < 0 || seconds > grace {
                    let detail = format!(
                        "must be non-negative and less than terminationGracePeriodSeconds ({grace}). Enable \
                         AllowPodLifecycleSleepActionZeroValue feature gate for zero sleep."
                    );
                    errors.push(FieldError::invalid(path, &seconds.into(), &detail));
                }
            }
            _ => {}
        }
    }
    if found == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn http_get(errors: &mut Errors, get: &Value, path: &str) {
    required(errors, &format!("{path}.path"), &get["path"]);
    port_number_or_name(errors, &format!("{path}.port"), &get["port"]);
    one_of_or_unset(errors, &format!("{path}.scheme"), &get["scheme"], &["HTTP", "HTTPS"]);
    for header in items(&get["httpHeaders"]) {
        let name = text(&header["name"]);
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let detail = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', \
                regex \
                used for validation is '[-A-Za-z0-9]+')";
            errors.push(FieldError::invalid(format!("{path}.httpHeaders"), &header["name"], detail));
        }
    }
}

fn ports(errors: &mut Errors, container: &Value, path: &str) {
    let mut names = BTreeSet::new();
    for (index, port) in items(&container["ports"]).iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = text(&port["name"]);
        if !name.is_empty() {
            let messages = port_name_messages(name);
            if messages.is_empty() && !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &port["name"]));
            }
            invalid_all(errors, &format!("{path}.name"), &port["name"], messages);
        }
        if number(&port["containerPort"]) == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else {
            port_number(errors, &format!("{path}.containerPort"), &port["containerPort"]);
        }
        if number(&port["hostPort"]) != 0 {
            port_number(errors, &format!("{path}.hostPort"), &port["hostPort"]);
        }
        one_of(errors, &format!("{path}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
    }
}

fn host_port_conflicts(errors: &mut Errors, containers: &[Value], path: impl Fn(usize) -> String) {
    let mut taken = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        for (port_index, port) in items(&container["ports"]).iter().enumerate() {
            let number = number(&port["hostPort"]);
            if number == 0 {
                continue;
            }
            let key = (text(&port["protocol"]), text(&port["hostIP"]), number);
            if !taken.insert(key) {
                let path = format!("{}.ports[{port_index}].hostPort", path(index));
                errors.push(FieldError::duplicate(path, &format!("{}/{}/{number}", key.0, key.1).into()));
            }
        }
    }
}

/// Any printable ASCII but `=` (KEP-4369, stable in v1.34).
fn environment_name_messages(name: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if name.is_empty() {
        messages.push("environment variable name must be non-empty".to_owned());
    }
    if !name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        messages.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    messages
}

fn environment(errors: &mut Errors, container: &Value, path: &str) {
    for (index, variable) in items(&container["env"]).iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        let name = &variable["name"];
        if text(name).is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            invalid_all(errors, &format!("{path}.name"), name, environment_name_messages(text(name)));
        }
        if variable["valueFrom"].is_object() {
            value_from(errors, variable, &format!("{path}.valueFrom"));
        }
    }
}

fn value_from(errors: &mut Errors, variable: &Value, path: &str) {
    let source = &variable["valueFrom"];
    let mut found = 0;
    for kind in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let (value, path) = (&source[kind], format!("{path}.{kind}"));
        if !value.is_object() {
            continue;
        }
        found += 1;
        match kind {
            "fieldRef" => field_selector(errors, value, &path, &ENV_FIELDS),
            "resourceFieldRef" => resource_field_selector(errors, value, &path, false),
            "configMapKeyRef" | "secretKeyRef" => key_selector(errors, value, &path),
            _ => {}
        }
    }
    let mut refuse = |detail: &str| errors.push(FieldError::invalid(path, &"".into(), detail));
    if found == 0 {
        refuse("must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`");
    } else if !text(&variable["value"]).is_empty() {
        refuse("may not be specified when `value` is not empty");
    } else if found > 1 {
        refuse("may not have more than one field specified at a time");
    }
}

fn environment_from(errors: &mut Errors, container: &Value, path: &str) {
    let list = format!("{path}.envFrom");
    for (index, source) in items(&container["envFrom"]).iter().enumerate() {
        let path = format!("{list}[{index}]");
        let prefix = &source["prefix"];
        if !text(prefix).is_empty() {
            invalid_all(errors, &format!("{path}.prefix"), prefix, environment_name_messages(text(prefix)));
        }
        let mut found = 0;
        for kind in ["configMapRef", "secretRef"] {
            if source[kind].is_object() {
                found += 1;
                required(errors, &format!("{path}.{kind}.name"), &source[kind]["name"]);
            }
        }
        match found {
            0 => errors.push(FieldError::invalid(
                &list,
                &"".into(),
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            1 => {}
            _ => errors.push(FieldError::invalid(
                &list,
                &"".into(),
                "may not have more than one field specified at a time",
            )),
        }
    }
}

/// A path below a directory (`validateLocalDescendingPath`).
pub fn descending_path(errors: &mut Errors, path: &str, value: &Value) {
    let text = text(value);
    if text.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    no_backsteps(errors, path, value);
}

/// No part of the path is `..`.
pub fn no_backsteps(errors: &mut Errors, path: &str, value: &Value) {
    if text(value).split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
}

fn volume_mounts(errors: &mut Errors, container: &Value, path: &str, around: &Surroundings) {
    let mut seen = BTreeSet::new();
    for (index, mount) in items(&container["volumeMounts"]).iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let (name, mount_path) = (&mount["name"], &mount["mountPath"]);
        required(errors, &format!("{path}.name"), name);
        if !around.volumes.contains(text(name)) {
            errors.push(FieldError::not_found(format!("{path}.name"), name));
        }
        required(errors, &format!("{path}.mountPath"), mount_path);
        if !seen.insert(text(mount_path)) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), mount_path, "must be unique"));
        }
        let devices = items(&container["volumeDevices"]);
        if devices.iter().any(|device| device["name"] == *name) {
            let detail = "must not already exist in volumeDevices";
            errors.push(FieldError::invalid(format!("{path}.name"), name, detail));
        }
        if devices.iter().any(|device| device["devicePath"] == *mount_path) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.push(FieldError::invalid(format!("{path}.mountPath"), mount_path, detail));
        }
        if !text(&mount["subPath"]).is_empty() {
            descending_path(errors, &format!("{path}.subPath"), &mount["subPath"]);
        }
        let expression = &mount["subPathExpr"];
        if !text(expression).is_empty() {
            let path = format!("{path}.subPathExpr");
            if !text(&mount["subPath"]).is_empty() {
                errors.push(FieldError::invalid(&path, expression, "subPathExpr and subPath are mutually exclusive"));
            }
            descending_path(errors, &path, expression);
        }
        let propagation = &mount["mountPropagation"];
        let kinds = ["Bidirectional", "HostToContainer", "None"];
        one_of_or_unset(errors, &format!("{path}.mountPropagation"), propagation, &kinds);
        if text(propagation) == "Bidirectional" && container["securityContext"]["privileged"] != true {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(format!("{path}.mountPropagation"), detail));
        }
        let recursive = &mount["recursiveReadOnly"];
        let kinds = ["Disabled", "Enabled", "IfPossible"];
        one_of_or_unset(errors, &format!("{path}.recursiveReadOnly"), recursive, &kinds);
        if matches!(text(recursive), "Enabled" | "IfPossible") && mount["readOnly"] != true {
            let detail = "may only be specified when readOnly is true";
            errors.push(FieldError::forbidden(format!("{path}.recursiveReadOnly"), detail));
        }
    }
}

fn volume_devices(errors: &mut Errors, container: &Value, path: &str, around: &Surroundings) {
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for (index, device) in items(&container["volumeDevices"]).iter().enumerate() {
        let path = format!("{path}.volumeDevices[{index}]");
        let (name, device_path) = (&device["name"], &device["devicePath"]);
        required(errors, &format!("{path}.name"), name);
        if !names.insert(text(name)) {
            errors.push(FieldError::invalid(format!("{path}.name"), name, "must be unique"));
        }
        let is_claim = items(&around.spec["volumes"])
            .iter()
            .any(|v| v["name"] == *name && (v["persistentVolumeClaim"].is_object() || v["ephemeral"].is_object()));
        if !around.volumes.contains(text(name)) {
            errors.push(FieldError::not_found(format!("{path}.name"), name));
        } else if !is_claim {
            let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
            errors.push(FieldError::invalid(format!("{path}.name"), name, detail));
        }
        required(errors, &format!("{path}.devicePath"), device_path);
        if !paths.insert(text(device_path)) {
            errors.push(FieldError::invalid(format!("{path}.devicePath"), device_path, "must be unique"));
        }
        no_backsteps(errors, &format!("{path}.devicePath"), device_path);
    }
}
