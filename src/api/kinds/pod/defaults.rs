//! Defaults of pods and pod templates (`SetDefaults_PodSpec`, `SetDefaults_Container`, … of v1.35).

use serde_json::{Value, json};

use crate::api::kinds::defaulting::{each, ensure_object, set, set_number, set_text};
use crate::api::quantity::canonicalize_resource_list;

/// A pod: its spec, and what holds only outside of templates.
pub fn pod(pod: &mut Value) {
    let Some(spec) = ensure_object(pod, "spec") else { return };
    set(spec, "enableServiceLinks", true);
    pod_spec(spec);
    for list in ["containers", "initContainers"] {
        each(spec, list).for_each(requests_from_limits);
    }
    requests_from_limits(spec);
}

/// Requests default to the limits, name by name.
fn requests_from_limits(owner: &mut Value) {
    let Some(resources) = owner.get_mut("resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let Some(requests) = ensure_object(resources, "requests") else { return };
    for (name, quantity) in limits {
        set(requests, &name, quantity);
    }
}

/// A template (`spec.template` of workloads).
pub fn pod_template(template: &mut Value) {
    if let Some(spec) = ensure_object(template, "spec") {
        pod_spec(spec);
    }
}

/// A pod spec, in a pod or in a template.
pub fn pod_spec(spec: &mut Value) {
    set_text(spec, "restartPolicy", "Always");
    set_text(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "securityContext", json!({}));
    set_text(spec, "schedulerName", "default-scheduler");
    // The deprecated alias always follows the field.
    if let Some(account) = spec["serviceAccount"].as_str().map(str::to_owned) {
        set_text(spec, "serviceAccountName", &account);
    }
    if let Some(account) = spec["serviceAccountName"].as_str().filter(|a| !a.is_empty()).map(str::to_owned) {
        spec["serviceAccount"] = account.into();
    }
    let host_network = spec["hostNetwork"] == true;
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in each(spec, list) {
            self::container(container);
            if host_network {
                each(container, "ports").for_each(host_port);
            }
        }
    }
    each(spec, "volumes").for_each(volume);
    for list in ["limits", "requests"] {
        resource_list(spec.get_mut("resources"), list);
    }
    if let Some(overhead) = spec.get_mut("overhead") {
        canonicalize_resource_list(overhead);
    }
}

fn host_port(port: &mut Value) {
    let number = port["containerPort"].clone();
    set_number(port, "hostPort", number);
}

fn resource_list(resources: Option<&mut Value>, list: &str) {
    if let Some(list) = resources.and_then(|r| r.get_mut(list)) {
        canonicalize_resource_list(list);
    }
}

fn container(container: &mut Value) {
    let policy = pull_policy(container["image"].as_str().unwrap_or_default());
    set_text(container, "imagePullPolicy", policy);
    set_text(container, "terminationMessagePath", "/dev/termination-log");
    set_text(container, "terminationMessagePolicy", "File");
    set(container, "resources", json!({}));
    for list in ["limits", "requests"] {
        resource_list(container.get_mut("resources"), list);
    }
    for port in each(container, "ports") {
        set_text(port, "protocol", "TCP");
    }
    for variable in each(container, "env") {
        if let Some(source) = variable.get_mut("valueFrom") {
            field_source(source);
            if let Some(file) = source.get_mut("fileKeyRef") {
                set(file, "optional", false);
            }
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|p| p.is_object()) {
            set_number(probe, "timeoutSeconds", 1);
            set_number(probe, "periodSeconds", 10);
            set_number(probe, "successThreshold", 1);
            set_number(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)) {
            handler(hook);
        }
    }
}

/// `fieldRef` and `resourceFieldRef` of an environment variable or a volume item.
fn field_source(source: &mut Value) {
    if let Some(field) = source.get_mut("fieldRef") {
        set_text(field, "apiVersion", "v1");
    }
    if let Some(resource) = source.get_mut("resourceFieldRef") {
        set(resource, "divisor", "0");
    }
}

fn handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        set_text(get, "path", "/");
        set_text(get, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc") {
        set(grpc, "service", "");
    }
}

/// `Always` for the tag `latest` (also when neither tag nor digest is given), else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    match tag {
        Some("latest") => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

const VOLUME_MODE: i64 = 0o644;

fn volume(volume: &mut Value) {
    let Some(map) = volume.as_object_mut() else { return };
    if map.iter().all(|(key, value)| key == "name" || value.is_null()) {
        map.insert("emptyDir".into(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source) {
            set(source, "defaultMode", VOLUME_MODE);
        }
    }
    if let Some(downward) = volume.get_mut("downwardAPI") {
        each(downward, "items").for_each(field_source);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in each(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken") {
                set(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI") {
                each(downward, "items").for_each(field_source);
            }
        }
    }
    if let Some(image) = volume.get_mut("image") {
        let policy = pull_policy(image["reference"].as_str().unwrap_or_default());
        set_text(image, "pullPolicy", policy);
    }
    if let Some(template) = volume.get_mut("ephemeral").and_then(|e| e.get_mut("volumeClaimTemplate")) {
        if let Some(spec) = ensure_object(template, "spec") {
            crate::api::kinds::persistent_volume_claim::default_spec(spec);
        }
    }
    persistent_source(volume);
}

/// Defaults of the volume sources that pods and PersistentVolumes share.
pub fn persistent_source(volume: &mut Value) {
    if let Some(path) = volume.get_mut("hostPath") {
        set(path, "type", "");
    }
    if let Some(iscsi) = volume.get_mut("iscsi") {
        set_text(iscsi, "iscsiInterface", "default");
    }
    if let Some(rbd) = volume.get_mut("rbd") {
        set_text(rbd, "pool", "rbd");
        set_text(rbd, "user", "admin");
        set_text(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = volume.get_mut("azureDisk") {
        set(disk, "cachingMode", "ReadWrite");
        set(disk, "kind", "Shared");
        set(disk, "fsType", "ext4");
        set(disk, "readOnly", false);
    }
    if let Some(scale_io) = volume.get_mut("scaleIO") {
        set_text(scale_io, "storageMode", "ThinProvisioned");
        set_text(scale_io, "fsType", "xfs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_depends_on_the_tag() {
        for image in ["nginx", "nginx:latest", "registry:5000/a/nginx", "a/b:latest"] {
            assert_eq!(pull_policy(image), "Always", "{image}");
        }
        for image in ["nginx:1", "registry:5000/nginx:1", "nginx@sha256:ab", "nginx:1@sha256:ab"] {
            assert_eq!(pull_policy(image), "IfNotPresent", "{image}");
        }
    }

    #[test]
    fn defaulting_twice_changes_nothing_and_odd_shapes_do_not_panic() {
        let mut object = json!({"spec": {"hostNetwork": true, "serviceAccount": "x", "volumes": [{"name": "v"}, "odd"],
            "containers": [{"image": "a", "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}},
                "resources": {"limits": {"cpu": "0.1"}}}, 7]}});
        pod(&mut object);
        assert_eq!(object["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
        assert_eq!(object["spec"]["containers"][0]["resources"]["requests"]["cpu"], "100m");
        assert_eq!(object["spec"]["serviceAccountName"], "x");
        let once = object.clone();
        pod(&mut object);
        assert_eq!(object, once);
        for odd in [json!({"spec": []}), json!(1), json!({"spec": {"containers": {"a": 1}, "securityContext": 5}})] {
            pod(&mut odd.clone());
        }
    }
}
