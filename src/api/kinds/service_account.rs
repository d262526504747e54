//! ServiceAccounts.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::items;
use crate::api::printers::{age, age_column, column, name, name_column};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["sa"]),
        subresources: vec![Subresource::Token],
        ..namespaced(gvr::SERVICE_ACCOUNTS, "ServiceAccount", Arc::new(ServiceAccounts))
    }
}

struct ServiceAccounts;

impl Strategy for ServiceAccounts {
    fn columns(&self) -> Vec<Column> {
        const SECRETS: &str = "Secrets is a list of the secrets in the same namespace that pods running using this \
            ServiceAccount are allowed to use. Pods are only limited to this list if this service account has a \
            \"kubernetes.io/enforce-mountable-secrets\" annotation set to \"true\". The \
            \"kubernetes.io/enforce-mountable-secrets\" annotation is deprecated since v1.32. Prefer separate \
            namespaces to \
            isolate access to mounted secrets. This field should not be used to find auto-generated service account token \
            secrets for use outside of pods. Instead, tokens can be requested directly using the TokenRequest API, or \
            service account token secrets can be manually created. More info: \
            https://kubernetes.io/docs/concepts/configuration/secret";
        vec![name_column(), column("Secrets", "string", SECRETS), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), items(&object["secrets"]).len().into(), age(object, now)]
    }
}
