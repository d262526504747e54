//! The annotations that name AppArmor profiles: they must be readable, and say what the fields say.

use serde_json::Value;

use crate::api::app_armor::{ANNOTATION_PREFIX, from_annotation};
use crate::api::meta::{items, text};
use crate::api::status::FieldError;
use crate::api::validation::Errors;

const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// The annotations of a pod or template (`ValidateAppArmorPodAnnotations`).
pub fn annotations(errors: &mut Errors, pod: &Value, path: &str) {
    let annotations = pod["metadata"]["annotations"].as_object();
    for (key, value) in annotations.into_iter().flatten() {
        let Some(container) = key.strip_prefix(ANNOTATION_PREFIX) else { continue };
        let path = format!("{path}[{key}]");
        let mut containers = LISTS.into_iter().flat_map(|list| items(&pod["spec"][list]));
        if !containers.any(|c| text(&c["name"]) == container) {
            errors.push(FieldError::invalid(&path, &container.into(), "container not found"));
        }
        if !is_profile(text(value)) {
            let detail = format!("invalid AppArmor profile name: {:?}", text(value));
            errors.push(FieldError::invalid(path, value, &detail));
        }
    }
}

fn is_profile(value: &str) -> bool {
    value.is_empty() || value == "runtime/default" || value == "unconfined" || value.starts_with("localhost/")
}

/// Where a container has both, they agree (`validateAppArmorAnnotationsAndFieldsMatchOnCreate`).
pub fn annotations_match_fields(errors: &mut Errors, pod: &Value, path: &str) {
    if pod["spec"]["os"]["name"] == "windows" {
        return;
    }
    for list in LISTS {
        for (index, container) in items(&pod["spec"][list]).iter().enumerate() {
            let key = format!("{ANNOTATION_PREFIX}{}", text(&container["name"]));
            let Some(annotation) = pod["metadata"]["annotations"][&key].as_str() else { continue };
            let field = &container["securityContext"]["appArmorProfile"];
            let (false, Some(meant)) = (field.is_null(), from_annotation(annotation)) else { continue };
            let path = format!("{path}.{list}[{index}].securityContext.appArmorProfile");
            if meant["type"] != field["type"] {
                let detail = "apparmor type in annotation and field must match";
                errors.push(FieldError::forbidden(format!("{path}.type"), detail));
            } else if meant["localhostProfile"] != field["localhostProfile"] {
                let detail = "apparmor profile in annotation and field must match";
                errors.push(FieldError::forbidden(format!("{path}.localhostProfile"), detail));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(annotations: Value, profile: Value) -> Vec<String> {
        let pod = json!({"metadata": {"annotations": annotations},
            "spec": {"containers": [{"name": "hello", "securityContext": {"appArmorProfile": profile}}]}});
        let mut errors = Errors::new();
        super::annotations(&mut errors, &pod, "metadata.annotations");
        annotations_match_fields(&mut errors, &pod, "spec");
        errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn annotations_name_containers_and_profiles() {
        let key = |name: &str| format!("{ANNOTATION_PREFIX}{name}");
        assert!(check(json!({key("hello"): "localhost/x"}), json!(null)).is_empty());
        assert_eq!(
            check(json!({key("other"): "docker-default"}), json!(null)),
            [
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/other]: Invalid value: \"other\": container not found",
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/other]: Invalid value: \"docker-default\": \
                 invalid AppArmor profile name: \"docker-default\"",
            ]
        );
        assert_eq!(
            check(json!({key("hello"): "unconfined"}), json!({"type": "RuntimeDefault"})),
            [
                "spec.containers[0].securityContext.appArmorProfile.type: Forbidden: apparmor type in annotation and field must match"
            ]
        );
        assert_eq!(
            check(json!({key("hello"): "localhost/a"}), json!({"type": "Localhost", "localhostProfile": "b"})),
            ["spec.containers[0].securityContext.appArmorProfile.localhostProfile: Forbidden: \
              apparmor profile in annotation and field must match"]
        );
    }
}
