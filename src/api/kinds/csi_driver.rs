//! CSIDrivers.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set};
use super::{cluster_scoped, gvr};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{self, items, text};
use crate::api::printers::{age, age_column, column, joined, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::meta::dns_subdomain_messages;
use crate::api::validation::{Errors, immutable, invalid_all, one_of_or_unset};

/// The kind.
pub fn kind() -> Kind {
    Kind { unconditional_update: false, ..cluster_scoped(gvr::CSI_DRIVERS, "CSIDriver", Arc::new(CsiDrivers)) }
}

/// The name of a CSI driver (`ValidateCSIDriverName`).
pub fn driver_name(errors: &mut Errors, name: &Value, path: &str) {
    if text(name).is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    if text(name).len() > 63 {
        errors.push(FieldError::too_long(path, 63));
    }
    let given = Value::from(text(name));
    invalid_all(errors, path, &given, dns_subdomain_messages(&text(name).to_lowercase()));
}

/// Requests for tokens: an audience once, and lives that the API server would grant (`validateTokenRequests`).
fn token_requests(errors: &mut Errors, requests: &Value, path: &str) {
    let mut audiences = BTreeSet::new();
    for (index, request) in items(requests).iter().enumerate() {
        let path = format!("{path}[{index}]");
        if !audiences.insert(text(&request["audience"])) {
            errors.push(FieldError::duplicate(format!("{path}.audience"), &text(&request["audience"]).into()));
            continue;
        }
        let seconds = &request["expirationSeconds"];
        let detail = match seconds.as_i64() {
            Some(n) if n < 600 => "may not specify a duration less than 10 minutes",
            Some(n) if n > 1 << 32 => "may not specify a duration larger than 2^32 seconds",
            _ => continue,
        };
        errors.push(FieldError::invalid(format!("{path}.expirationSeconds"), seconds, detail));
    }
}

struct CsiDrivers;

impl Strategy for CsiDrivers {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        set(spec, "attachRequired", true);
        for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
            set(spec, field, false);
        }
        set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if items(&spec["volumeLifecycleModes"]).is_empty() && spec.is_object() {
            spec["volumeLifecycleModes"] = json!(["Persistent"]);
        }
    }

    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        // Unlike other kinds it begins to count with its first change.
        if object["spec"] != old["spec"] {
            meta::metadata_mut(object).insert("generation".into(), (meta::generation(old) + 1).into());
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        driver_name(&mut errors, &object["metadata"]["name"], "name");
        let policies = ["File", "None", "ReadWriteOnceWithFSType"];
        one_of_or_unset(&mut errors, "spec.fsGroupPolicy", &spec["fsGroupPolicy"], &policies);
        token_requests(&mut errors, &spec["tokenRequests"], "spec.tokenRequests");
        for mode in items(&spec["volumeLifecycleModes"]) {
            one_of_or_unset(&mut errors, "spec.volumeLifecycleModes", mode, &["Ephemeral", "Persistent"]);
        }
        let period = &spec["nodeAllocatableUpdatePeriodSeconds"];
        if period.as_i64().is_some_and(|seconds| seconds < 10) {
            let path = "spec.nodeAllocatableUpdatePeriodSeconds";
            errors.push(FieldError::invalid(path, period, "must be greater than or equal to 10 seconds"));
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let (spec, before, mut errors) = (&object["spec"], &old["spec"], Errors::new());
        immutable(&mut errors, "spec.attachedRequired", &spec["attachRequired"], &before["attachRequired"]);
        let modes = "volumeLifecycleModes";
        immutable(&mut errors, "spec.volumeLifecycleModes", &spec[modes], &before[modes]);
        token_requests(&mut errors, &spec["tokenRequests"], "spec.tokenRequests");
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "AttachRequired",
                "boolean",
                "attachRequired indicates this CSI volume driver requires an attach operation (because it implements the \
                 CSI ControllerPublishVolume() method), and that the Kubernetes attach detach controller should call the \
                 attach volume interface which checks the volumeattachment status and waits until the volume is attached \
                 before proceeding to mounting.",
            ),
            column(
                "PodInfoOnMount",
                "boolean",
                "podInfoOnMount indicates this CSI volume driver requires additional pod information (like podName, \
                 podUID, etc.) during mount operations, if set to true.",
            ),
            column(
                "StorageCapacity",
                "boolean",
                "storageCapacity indicates that the CSI volume driver wants pod scheduling to consider the storage \
                 capacity that the driver deployment will report by creating CSIStorageCapacity objects with capacity \
                 information, if set to true.",
            ),
            column(
                "TokenRequests",
                "string",
                "tokenRequests indicates the CSI driver needs pods' service account tokens it is mounting volume for to \
                 do necessary authentication.",
            ),
            column(
                "RequiresRepublish",
                "boolean",
                "requiresRepublish indicates the CSI driver wants `NodePublishVolume` being periodically called to \
                 reflect any possible change in the mounted volume. This field defaults to false.",
            ),
            column(
                "Modes",
                "string",
                "volumeLifecycleModes defines what kind of volumes this CSI volume driver supports. The default if the \
                 list is empty is \"Persistent\", which is the usage defined by the CSI specification and implemented in \
                 Kubernetes via the usual PV/PVC mechanism.",
            ),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let tokens = spec["tokenRequests"].as_array().map_or("<unset>".to_owned(), |requests| {
            requests.iter().map(|request| text(&request["audience"])).collect::<Vec<_>>().join(",")
        });
        vec![
            name(object),
            (spec["attachRequired"] != false).into(),
            (spec["podInfoOnMount"] == true).into(),
            (spec["storageCapacity"] == true).into(),
            tokens.into(),
            (spec["requiresRepublish"] == true).into(),
            joined(items(&spec["volumeLifecycleModes"]).iter().map(text)).into(),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_asked_for_once_each() {
        let requests = json!([{"audience": "a"}, {"audience": "a"}, {"audience": "b", "expirationSeconds": 1}]);
        let object = json!({"metadata": {"name": "a.b"}, "spec": {"tokenRequests": requests}});
        let errors: Vec<String> =
            CsiDrivers.validate(&object).into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        assert_eq!(
            errors,
            [
                "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
                "spec.tokenRequests[2].expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes"
            ]
        );
    }
}
