//! ResourceClaims and their templates.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set};
use super::plain::Plain;
use super::{devices, gvr, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, items, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::{Errors, immutable};

/// Both kinds.
pub fn kinds() -> [Kind; 2] {
    [
        Kind {
            subresources: vec![Subresource::Status],
            ..namespaced(gvr::RESOURCE_CLAIMS, "ResourceClaim", Arc::new(ResourceClaims))
        },
        namespaced(gvr::RESOURCE_CLAIM_TEMPLATES, "ResourceClaimTemplate", Arc::new(ResourceClaimTemplates)),
    ]
}

struct ResourceClaims;
struct ResourceClaimTemplates;

impl Strategy for ResourceClaims {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = ensure_object(object, "spec") {
            ensure_object(spec, "devices");
            devices::default_spec(spec);
        }
        ensure_object(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        devices::validate_spec(&mut errors, &object["spec"], "spec");
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable(&mut errors, "spec", &object["spec"], &old["spec"]);
        errors.extend(self.validate(object));
        errors
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let (status, before, mut errors) = (&object["status"], &old["status"], Errors::new());
        let users = items(&status["reservedFor"]);
        devices::at_most(&mut errors, users, 256, "status.reservedFor");
        for (index, user) in users.iter().enumerate() {
            let path = format!("status.reservedFor[{index}]");
            for field in ["resource", "name", "uid"] {
                if text(&user[field]).is_empty() {
                    errors.push(FieldError::required(format!("{path}.{field}"), ""));
                }
            }
            if users[..index].iter().any(|other| other["uid"] == user["uid"]) {
                errors.push(FieldError::duplicate(format!("{path}.uid"), &user["uid"]));
            }
        }
        if !users.is_empty() && !status["allocation"].is_object() {
            let detail = "may not be specified when `allocated` is not set";
            errors.push(FieldError::forbidden("status.reservedFor", detail));
        }
        if before["allocation"].is_object() && status["allocation"].is_object() {
            immutable(&mut errors, "status.allocation", &status["allocation"], &before["allocation"]);
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        const STATE: &str = "A summary of the current state (allocated, pending, reserved, etc.).";
        vec![name_column(), column("State", "string", STATE), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let deleted = meta::is_terminating(object);
        let allocated = object["status"]["allocation"].is_object();
        let reserved = allocated && !items(&object["status"]["reservedFor"]).is_empty();
        let states = [
            ("deleted", deleted),
            ("pending", !allocated && !deleted),
            ("allocated", allocated),
            ("reserved", reserved),
        ];
        let shown: Vec<&str> = states.into_iter().filter(|(_, is)| *is).map(|(state, _)| state).collect();
        vec![name(object), shown.join(",").into(), age(object, now)]
    }
}

impl Strategy for ResourceClaimTemplates {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = ensure_object(object, "spec").and_then(|template| ensure_object(template, "spec")) {
            ensure_object(spec, "devices");
            devices::default_spec(spec);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        devices::validate_spec(&mut errors, &object["spec"]["spec"], "spec.spec");
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable(&mut errors, "spec", &object["spec"], &old["spec"]);
        errors
    }

    fn columns(&self) -> Vec<Column> {
        Plain.columns()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        Plain.cells(object, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(requests: Value) -> Value {
        let mut claim = json!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": requests}}});
        ResourceClaims.default(&mut claim);
        claim
    }

    #[test]
    fn one_device_is_the_default() {
        let claim = claim(json!([{"name": "r", "exactly": {"deviceClassName": "gpu"}}]));
        let exactly = &claim["spec"]["devices"]["requests"][0]["exactly"];
        assert_eq!((&exactly["allocationMode"], &exactly["count"]), (&json!("ExactCount"), &json!(1)));
        assert!(ResourceClaims.validate(&claim).is_empty());
    }

    #[test]
    fn requests_are_complete_and_named_once() {
        let claim = claim(
            json!([{"name": "r"}, {"name": "r", "exactly": {"deviceClassName": "", "allocationMode": "All", "count": 2}}]),
        );
        let errors: Vec<String> =
            ResourceClaims.validate(&claim).into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        assert_eq!(
            errors,
            [
                "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
                "spec.devices.requests[1].exactly.deviceClassName: Required value",
                "spec.devices.requests[1].exactly.count: Invalid value: 2: must not be specified when allocationMode is 'All'",
                "spec.devices.requests[1]: Duplicate value: \"r\""
            ]
        );
    }

    #[test]
    fn the_state_is_summed_up() {
        let mut claim = claim(json!([]));
        assert_eq!(ResourceClaims.cells(&claim, Timestamp::UNIX_EPOCH)[1], "pending");
        claim["status"] = json!({"allocation": {}, "reservedFor": [{}]});
        assert_eq!(ResourceClaims.cells(&claim, Timestamp::UNIX_EPOCH)[1], "allocated,reserved");
    }
}
