//! AppArmor profiles of containers: the annotation of old, and the field (`pkg/registry/core/pod/strategy.go`, KEP-24).

use serde_json::{Value, json};

use super::meta::text;

/// What the annotations that name profiles begin with; the container's name follows.
pub const ANNOTATION_PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The profile that an annotation means; `None` when it cannot be read.
pub fn from_annotation(value: &str) -> Option<Value> {
    match value {
        "" => None,
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        other => {
            let name = other.strip_prefix("localhost/").filter(|name| !name.is_empty())?;
            Some(json!({"type": "Localhost", "localhostProfile": name}))
        }
    }
}

/// The annotation that means a profile; `None` when nothing does.
pub fn to_annotation(profile: &Value) -> Option<String> {
    match text(&profile["type"]) {
        "Unconfined" => Some("unconfined".to_owned()),
        "RuntimeDefault" => Some("runtime/default".to_owned()),
        "Localhost" => profile["localhostProfile"].as_str().map(|name| format!("localhost/{name}")),
        _ => None,
    }
}
