//! Leases.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{gvr, namespaced};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;

/// The kind. Renewals reach the disk lazily.
pub fn kind() -> Kind {
    Kind {
        create_on_update: true,
        unconditional_update: false,
        lazy: true,
        ..namespaced(gvr::LEASES, "Lease", Arc::new(Leases))
    }
}

struct Leases;

impl Strategy for Leases {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let spec = &object["spec"];
        let mut errors = Vec::new();
        if spec["leaseDurationSeconds"].as_i64().is_some_and(|seconds| seconds <= 0) {
            let path = "spec.leaseDurationSeconds";
            errors.push(FieldError::invalid(path, &spec["leaseDurationSeconds"], "must be greater than 0"));
        }
        if spec["leaseTransitions"].as_i64().is_some_and(|count| count < 0) {
            let path = "spec.leaseTransitions";
            errors.push(FieldError::invalid(path, &spec["leaseTransitions"], "must to greater or equal than 0"));
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        const HOLDER: &str = "holderIdentity contains the identity of the holder of a current lease. If Coordinated \
            Leader \
            Election is used, the holder identity must be equal to the elected LeaseCandidate.metadata.name field.";
        vec![name_column(), column("Holder", "string", HOLDER), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let holder = object["spec"]["holderIdentity"].as_str().unwrap_or_default();
        vec![name(object), holder.into(), age(object, now)]
    }
}
