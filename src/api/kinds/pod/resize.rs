//! What `pods/resize` may change (`ValidatePodResize`, KEP-1287): CPU and memory of containers and sidecars.

use serde_json::Value;

use super::update::same;
use crate::api::meta::{items, text};
use crate::api::pod::{is_restartable_init, qos_class, resource_list};
use crate::api::status::FieldError;
use crate::api::validation::Errors;

/// The resources that can be resized.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// A resize of `old` to `pod`; everything but the containers is the same in both.
pub fn pod_resize(errors: &mut Errors, pod: &Value, old: &Value) {
    let refuse = |errors: &mut Errors, detail: &str| errors.push(FieldError::forbidden("", detail));
    let of_pod =
        |pod: &Value| ["requests", "limits"].iter().any(|l| !resource_list(&pod["spec"]["resources"][*l]).is_empty());
    if of_pod(pod) || of_pod(old) {
        return refuse(errors, "pods with pod-level resources cannot be resized");
    }
    if !old["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
        return refuse(errors, "static pods cannot be resized");
    }
    if old["spec"]["os"]["name"] == "windows" {
        return refuse(errors, "windows pods cannot be resized");
    }
    let before = match text(&old["status"]["qosClass"]) {
        "" => qos_class(old),
        known => known,
    };
    if qos_class(pod) != before {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", &before.into(), detail));
    }
    if !order(errors, pod, old) {
        return;
    }
    for (list, what) in [("initContainers", "sidecar containers"), ("containers", "")] {
        for (index, (new, old)) in items(&pod["spec"][list]).iter().zip(items(&old["spec"][list])).enumerate() {
            if list == "initContainers" && !is_restartable_init(old) {
                if !same(new, old) {
                    let detail = "resources for non-sidecar init containers are immutable";
                    errors.push(FieldError::forbidden("spec", detail));
                }
                continue;
            }
            removed(errors, &new["resources"], &old["resources"], &format!("spec.{list}[{index}].resources"));
            if !same(&without(new), &without(old)) {
                let detail = match what {
                    "" => "only cpu and memory resources are mutable".to_owned(),
                    what => format!("only cpu and memory resources for {what} are mutable"),
                };
                errors.push(FieldError::forbidden("spec", &detail));
            }
        }
    }
}

/// Whether the containers are the same, in the same order.
fn order(errors: &mut Errors, pod: &Value, old: &Value) -> bool {
    let before = errors.len();
    for list in ["containers", "initContainers"] {
        let (new, old) = (items(&pod["spec"][list]), items(&old["spec"][list]));
        if new.len() != old.len() {
            let detail = format!("{list} may not be added or removed on resize");
            errors.push(FieldError::forbidden(format!("spec.{list}"), &detail));
            continue;
        }
        for (index, (new, old)) in new.iter().zip(old).enumerate() {
            if new["name"] != old["name"] {
                let detail = format!("{list} may not be renamed or reordered on resize");
                errors.push(FieldError::forbidden(format!("spec.{list}[{index}].name"), &detail));
            }
        }
    }
    errors.len() == before
}

fn removed(errors: &mut Errors, new: &Value, old: &Value, path: &str) {
    for (list, detail) in
        [("requests", "resource requests cannot be removed"), ("limits", "resource limits cannot be removed")]
    {
        let has = |name: &String| new[list].get(name).is_some_and(|quantity| !quantity.is_null());
        if old[list].as_object().into_iter().flatten().any(|(name, _)| !has(name)) {
            errors.push(FieldError::forbidden(format!("{path}.{list}"), detail));
        }
    }
}

/// A container without what may change.
fn without(container: &Value) -> Value {
    let mut container = container.clone();
    for list in ["requests", "limits"] {
        if let Some(list) = container.pointer_mut(&format!("/resources/{list}")).and_then(Value::as_object_mut) {
            list.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
        }
    }
    container
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(change: impl Fn(&mut Value)) -> Vec<String> {
        let old = json!({"metadata": {"name": "p"}, "status": {"qosClass": "Burstable"}, "spec": {
            "containers": [{"name": "c", "image": "a", "resources": {"requests": {"cpu": "100m", "ephemeral-storage": "1Gi"},
                "limits": {"memory": "64Mi"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}}},
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}]}});
        let mut new = old.clone();
        change(&mut new);
        let mut errors = Errors::new();
        pod_resize(&mut errors, &new, &old);
        errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn cpu_and_memory_may_change() {
        let allowed = errors(|pod| {
            let spec = &mut pod["spec"];
            spec["containers"][0]["resources"] = json!({"requests": {"cpu": "200m", "memory": "16Mi",
                "ephemeral-storage": "1Gi"}, "limits": {"memory": "32Mi", "cpu": "1"}});
            spec["initContainers"][1]["resources"]["requests"]["cpu"] = "2".into();
        });
        assert_eq!(allowed, Vec::<String>::new());
    }

    #[test]
    fn all_else_is_refused_with_the_words_of_kubernetes() {
        let of = |path: &'static str, value: Value| {
            errors(move |pod| *pod.pointer_mut(path).expect("it is there") = value.clone())
        };
        assert_eq!(
            of("/spec/containers/0/resources/requests/ephemeral-storage", json!("2Gi")),
            ["spec: Forbidden: only cpu and memory resources are mutable"]
        );
        assert_eq!(
            of("/spec/initContainers/0/resources/requests/cpu", json!("2")),
            ["spec: Forbidden: resources for non-sidecar init containers are immutable"]
        );
        assert_eq!(
            of("/spec/containers/0/resources/limits", json!({})),
            ["spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"]
        );
        assert_eq!(
            of("/spec/containers", json!([])),
            ["spec.containers: Forbidden: containers may not be added or removed on resize"]
        );
        assert_eq!(
            of("/spec/containers/0/name", json!("d")),
            ["spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize"]
        );
        let guaranteed = json!({"requests": {"cpu": "1", "memory": "1"}, "limits": {"cpu": "1", "memory": "1"}});
        let changed = errors(|pod| {
            for path in
                ["/spec/containers/0/resources", "/spec/initContainers/0/resources", "/spec/initContainers/1/resources"]
            {
                *pod.pointer_mut(path).expect("it is there") = guaranteed.clone();
            }
        });
        assert_eq!(
            changed[0],
            "spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing"
        );
    }
}
