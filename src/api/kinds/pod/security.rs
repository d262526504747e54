//! Validation of security contexts.

use serde_json::Value;

use super::container::descending_path;
use crate::api::meta::{items, text};
use crate::api::status::FieldError;
use crate::api::validation::{Errors, one_of_or_unset};

/// A user or group id.
pub fn id(errors: &mut Errors, path: &str, value: &Value) {
    if value.as_i64().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
        errors.push(FieldError::invalid(path, value, "must be between 0 and 2147483647, inclusive"));
    }
}

/// A seccomp profile.
pub fn seccomp_profile(errors: &mut Errors, profile: &Value, path: &str) {
    if let Some(localhost) = profile_kind(errors, profile, path, "seccomp type", "seccompProfile") {
        descending_path(errors, &format!("{path}.localhostProfile"), localhost);
    }
}

/// An AppArmor profile.
pub fn app_armor_profile(errors: &mut Errors, profile: &Value, path: &str) {
    const LIMIT: usize = 4095;
    if let Some(localhost) = profile_kind(errors, profile, path, "AppArmor type", "appArmorProfile") {
        let path = format!("{path}.localhostProfile");
        if text(localhost).trim() != text(localhost) {
            errors.push(FieldError::invalid(&path, localhost, "must not be padded with whitespace"));
        }
        if text(localhost).len() > LIMIT {
            errors.push(FieldError::too_long(path, LIMIT));
        }
    }
}

/// The type of a profile and whether it names a local one, which is returned.
fn profile_kind<'a>(errors: &mut Errors, profile: &'a Value, path: &str, noun: &str, field: &str) -> Option<&'a Value> {
    if !profile.is_object() {
        return None;
    }
    let (kind, localhost) = (&profile["type"], &profile["localhostProfile"]);
    let local_path = format!("{path}.localhostProfile");
    match text(kind) {
        "Localhost" if text(localhost).is_empty() => {
            errors.push(FieldError::required(local_path, &format!("must be set when {noun} is Localhost")));
        }
        "Localhost" => return Some(localhost),
        "RuntimeDefault" | "Unconfined" if !localhost.is_null() => {
            let detail = format!("can only be set when {noun} is Localhost");
            errors.push(FieldError::invalid(local_path, localhost, &detail));
        }
        "RuntimeDefault" | "Unconfined" => {}
        "" => {
            let detail = format!("type is required when {field} is set");
            errors.push(FieldError::required(format!("{path}.type"), &detail));
        }
        _ => {
            let kinds = ["Localhost", "RuntimeDefault", "Unconfined"];
            errors.push(FieldError::not_supported(format!("{path}.type"), kind, &kinds));
        }
    }
    None
}

/// A container's security context (`ValidateSecurityContext`).
pub fn security_context(errors: &mut Errors, context: &Value, path: &str) {
    if !context.is_object() {
        return;
    }
    id(errors, &format!("{path}.runAsUser"), &context["runAsUser"]);
    id(errors, &format!("{path}.runAsGroup"), &context["runAsGroup"]);
    let mount = &context["procMount"];
    one_of_or_unset(errors, &format!("{path}.procMount"), mount, &["Default", "Unmasked"]);
    seccomp_profile(errors, &context["seccompProfile"], &format!("{path}.seccompProfile"));
    app_armor_profile(errors, &context["appArmorProfile"], &format!("{path}.appArmorProfile"));
    if context["allowPrivilegeEscalation"] == false {
        let mut refuse = |detail: &str| errors.push(FieldError::invalid(path, context, detail));
        if context["privileged"] == true {
            refuse("cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        if items(&context["capabilities"]["add"]).iter().any(|c| text(c) == "CAP_SYS_ADMIN") {
            refuse("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
}
