//! ServiceCIDRs: the ranges that ClusterIPs come from.

use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set};
use super::{cluster_scoped, gvr};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{items, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::net::{NOT_A_CIDR, canonical_message};
use crate::api::validation::{Errors, IMMUTABLE};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        subresources: vec![Subresource::Status],
        ..cluster_scoped(gvr::SERVICE_CIDRS, "ServiceCIDR", Arc::new(ServiceCidrs))
    }
}

const PATH: &str = "spec.cidrs";

struct ServiceCidrs;

impl Strategy for ServiceCidrs {
    fn default(&self, object: &mut Value) {
        ensure_object(object, "spec");
        ensure_object(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (cidrs, mut errors) = (&object["spec"]["cidrs"], Errors::new());
        match items(cidrs).len() {
            0 => return vec![FieldError::required(PATH, "at least one CIDR required")],
            1 | 2 => {}
            _ => return vec![FieldError::invalid(PATH, &object["spec"], "may only hold up to 2 values")],
        }
        let mut families = Vec::new();
        for (index, cidr) in items(cidrs).iter().enumerate() {
            let path = format!("{PATH}[{index}]");
            match text(cidr).parse::<IpNet>() {
                Err(_) => errors.push(FieldError::invalid(path, cidr, NOT_A_CIDR)),
                Ok(net) if net.trunc().to_string() != text(cidr) => {
                    errors.push(FieldError::invalid(path, cidr, &canonical_message(&net.trunc())));
                    families.push(net.addr().is_ipv4());
                }
                Ok(net) => families.push(net.addr().is_ipv4()),
            }
        }
        if families.len() == 2 && families[0] == families[1] {
            let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
            errors.push(FieldError::invalid(PATH, cidrs, detail));
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let (cidrs, before) = (items(&object["spec"]["cidrs"]), items(&old["spec"]["cidrs"]));
        let changed = |index: usize| {
            (cidrs[index] != before[index])
                .then(|| FieldError::invalid(format!("{PATH}[{index}]"), &cidrs[index], IMMUTABLE))
        };
        match (before.len(), cidrs.len()) {
            (a, b) if a == b => (0..a).filter_map(changed).collect(),
            // A second family may be added.
            (1, 2) => changed(0).into_iter().chain(self.validate(object)).collect(),
            _ => vec![FieldError::invalid(PATH, &object["spec"]["cidrs"], IMMUTABLE)],
        }
    }

    fn columns(&self) -> Vec<Column> {
        const CIDRS: &str = "CIDRs defines the IP blocks in CIDR notation (e.g. \"192.168.0.0/24\" or \
            \"2001:db8::/64\") from which to assign service cluster IPs. Max of two CIDRs is allowed, one of each IP \
            family. This field is immutable.";
        vec![name_column(), column("CIDRs", "string", CIDRS), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let cidrs = items(&object["spec"]["cidrs"]).iter().map(text).collect::<Vec<_>>().join(",");
        vec![name(object), cidrs.into(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_canonical_and_stay() {
        let of = |cidrs: Value| json!({"spec": {"cidrs": cidrs}});
        let messages = |errors: Vec<FieldError>| -> Vec<String> {
            errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
        };
        assert_eq!(messages(ServiceCidrs.validate(&of(json!(["10.0.0.0/24", "fd00::/64"])))), [""; 0]);
        assert_eq!(
            messages(ServiceCidrs.validate(&of(json!(["10.0.0.1/24"])))),
            ["spec.cidrs[0]: Invalid value: \"10.0.0.1/24\": must be in canonical form (\"10.0.0.0/24\")"]
        );
        assert_eq!(
            messages(
                ServiceCidrs.validate_update(&of(json!(["10.0.0.0/24", "fd00::/64"])), &of(json!(["10.0.0.0/24"])))
            ),
            [""; 0]
        );
        assert_eq!(
            messages(ServiceCidrs.validate_update(&of(json!(["10.1.0.0/24"])), &of(json!(["10.0.0.0/24"])))),
            ["spec.cidrs[0]: Invalid value: \"10.1.0.0/24\": field is immutable"]
        );
    }
}
