//! `AppArmor`: the annotations of old become fields (as `applyAppArmorVersionSkew` does), and with the feature gate off nobody may ask
//! for a profile.

use async_trait::async_trait;
use serde_json::Value;

use super::{Attributes, Operation, Plugin, pod_template};
use crate::api::app_armor::{ANNOTATION_PREFIX, from_annotation};
use crate::api::meta::{self, items, text};
use crate::api::status::FieldError;
use crate::api::{Status, StatusResult};
use crate::apiserver::ApiServer;

pub(super) struct AppArmor;

const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

#[async_trait]
impl Plugin for AppArmor {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        matches!(attributes.operation, Operation::Create | Operation::Update)
            && attributes.subresource.is_none()
            && pod_template::path(attributes.kind).is_some()
    }

    async fn admit(
        &self,
        _: &ApiServer,
        attributes: &Attributes<'_>,
        object: &mut Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        if !attributes.is("", "pods") {
            if let Some(template) = pod_template::of(attributes.kind, object) {
                let path = pod_template::path(attributes.kind).unwrap_or_default();
                attributes.context.warn(template_warnings(template, &path.replace('/', ".")[1..]));
            }
        } else if attributes.operation == Operation::Create {
            attributes.context.warn(fill_fields(object));
        }
        Ok(())
    }

    async fn validate(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        object: &Value,
        old: Option<&Value>,
    ) -> StatusResult<()> {
        // Pods that run already may be changed; asking anew may nobody.
        if server.options.feature_gates.enabled("AppArmor") || (old.is_some() && attributes.is("", "pods")) {
            return Ok(());
        }
        let Some(pod) = pod_template::of(attributes.kind, object) else { return Ok(()) };
        let path = pod_template::path(attributes.kind).unwrap_or_default().replace('/', ".");
        let errors = asked(pod, path.trim_start_matches('.'));
        if errors.is_empty() {
            return Ok(());
        }
        Err(Status::invalid(&attributes.kind.gvr.group, &attributes.kind.kind, meta::name(object), &errors))
    }
}

/// Gives containers the field that their annotation means; returns what to tell about it.
fn fill_fields(pod: &mut Value) -> Vec<String> {
    if pod["spec"]["os"]["name"] == "windows" {
        return Vec::new();
    }
    let annotations = pod["metadata"]["annotations"].clone();
    let of_pod = pod["spec"]["securityContext"]["appArmorProfile"].clone();
    let mut warnings = Vec::new();
    for list in LISTS {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten().filter(|c| c.is_object()) {
            let key = format!("{ANNOTATION_PREFIX}{}", text(&container["name"]));
            let Some(annotation) = annotations[&key].as_str() else { continue };
            if !container["securityContext"]["appArmorProfile"].is_null() {
                continue;
            }
            let field = from_annotation(annotation);
            let says_more = field.as_ref() != Some(&of_pod);
            if let Some(field) = field.filter(|_| says_more) {
                container["securityContext"]["appArmorProfile"] = field;
            }
            if says_more {
                warnings.push(deprecated(&format!("metadata.annotations[{key}]")));
            }
        }
    }
    warnings
}

/// Annotations of a template that no field accompanies.
fn template_warnings(template: &Value, path: &str) -> Vec<String> {
    if !template["spec"]["securityContext"]["appArmorProfile"].is_null() {
        return Vec::new();
    }
    let containers = LISTS.into_iter().flat_map(|list| items(&template["spec"][list]));
    let bare = containers.filter(|c| c["securityContext"]["appArmorProfile"].is_null());
    let keys = bare.map(|c| format!("{ANNOTATION_PREFIX}{}", text(&c["name"])));
    keys.filter(|key| meta::annotation(template, key).is_some())
        .map(|key| deprecated(&format!("{path}.metadata.annotations[{key}]")))
        .collect()
}

fn deprecated(path: &str) -> String {
    format!("{path}: deprecated since v1.30; use the \"appArmorProfile\" field instead")
}

/// Everything in a pod that asks for a profile.
fn asked(pod: &Value, path: &str) -> Vec<FieldError> {
    const DETAIL: &str = "AppArmor is disabled by feature-gate";
    let at = |rest: String| if path.is_empty() { rest } else { format!("{path}.{rest}") };
    let mut errors = Vec::new();
    for (key, _) in pod["metadata"]["annotations"].as_object().into_iter().flatten() {
        if key.starts_with(ANNOTATION_PREFIX) {
            errors.push(FieldError::forbidden(at(format!("metadata.annotations[{key}]")), DETAIL));
        }
    }
    // What an annotation became is told once.
    let is_asked = |security: &Value| !security["appArmorProfile"].is_null();
    if is_asked(&pod["spec"]["securityContext"]) {
        errors.push(FieldError::forbidden(at("spec.securityContext.appArmorProfile".to_owned()), DETAIL));
    }
    for list in LISTS {
        for (index, container) in items(&pod["spec"][list]).iter().enumerate() {
            let key = format!("{ANNOTATION_PREFIX}{}", text(&container["name"]));
            if is_asked(&container["securityContext"]) && meta::annotation(pod, &key).is_none() {
                let field = format!("spec.{list}[{index}].securityContext.appArmorProfile");
                errors.push(FieldError::forbidden(at(field), DETAIL));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = "container.apparmor.security.beta.kubernetes.io/hello";

    fn pod(annotation: &str, own: Value, of_pod: Value) -> Value {
        json!({"metadata": {"name": "p", "annotations": {KEY: annotation}},
            "spec": {"securityContext": {"appArmorProfile": of_pod},
                "containers": [{"name": "hello", "securityContext": {"appArmorProfile": own}}]}})
    }

    #[test]
    fn annotations_become_fields_with_a_warning() {
        let warning =
            format!("metadata.annotations[{KEY}]: deprecated since v1.30; use the \"appArmorProfile\" field instead");
        let check = |mut pod: Value, expected: Value, warned: bool| {
            let warnings = fill_fields(&mut pod);
            assert_eq!(pod["spec"]["containers"][0]["securityContext"]["appArmorProfile"], expected);
            assert_eq!(warnings, if warned { vec![warning.clone()] } else { Vec::new() });
            let once = pod.clone();
            fill_fields(&mut pod);
            assert_eq!(pod, once);
        };
        let localhost = json!({"type": "Localhost", "localhostProfile": "deny-write"});
        check(pod("localhost/deny-write", Value::Null, Value::Null), localhost.clone(), true);
        check(pod("localhost/deny-write", localhost.clone(), Value::Null), localhost.clone(), false);
        check(pod("localhost/deny-write", Value::Null, localhost), Value::Null, false);
        check(pod("docker-default", Value::Null, Value::Null), Value::Null, true);
    }

    /// `TestTemplateOnlyWarnings` of `pkg/api/pod`.
    #[test]
    fn templates_are_warned_about() {
        let warned = |pod: &Value| template_warnings(pod, "template");
        assert_eq!(
            warned(&pod("unconfined", Value::Null, Value::Null)),
            [format!(
                "template.metadata.annotations[{KEY}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"
            )]
        );
        assert!(warned(&pod("unconfined", Value::Null, json!({"type": "Unconfined"}))).is_empty());
        assert!(warned(&pod("unconfined", json!({"type": "Unconfined"}), Value::Null)).is_empty());
    }

    #[test]
    fn with_the_gate_off_asking_is_forbidden() {
        let told = |pod: &Value, path: &str| -> Vec<String> {
            asked(pod, path).into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
        };
        let mut annotated = pod("runtime/default", Value::Null, Value::Null);
        fill_fields(&mut annotated);
        assert_eq!(
            told(&annotated, ""),
            [format!("metadata.annotations[{KEY}]: Forbidden: AppArmor is disabled by feature-gate")]
        );
        let field = json!({"spec": {"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": "Unconfined"}}}]}});
        assert_eq!(
            told(&field, "spec.template"),
            [
                "spec.template.spec.containers[0].securityContext.appArmorProfile: Forbidden: AppArmor is disabled by feature-gate"
            ]
        );
        assert!(told(&json!({"spec": {"containers": [{"name": "c"}]}}), "").is_empty());
    }
}
