//! IPAddresses: an address of the service range and the Service that has it.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{cluster_scoped, gvr, names};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::text;
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_subdomain_messages, path_segment_messages};
use crate::api::validation::net::{NOT_AN_IP, canonical_message};
use crate::api::validation::{Errors, immutable, invalid_all, required};

/// The kind.
pub fn kind() -> Kind {
    Kind { short_names: names(&["ip"]), ..cluster_scoped(gvr::IP_ADDRESSES, "IPAddress", Arc::new(IpAddresses)) }
}

struct IpAddresses;

impl Strategy for IpAddresses {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (parent, path, mut errors) = (&object["spec"]["parentRef"], "spec.parentRef", Errors::new());
        if !parent.is_object() {
            return vec![FieldError::required(path, "")];
        }
        let group = &parent["group"];
        if !text(group).is_empty() {
            invalid_all(&mut errors, &format!("{path}.group"), group, dns_subdomain_messages(text(group)));
        }
        for field in ["resource", "name"] {
            required(&mut errors, &format!("{path}.{field}"), &parent[field]);
        }
        for field in ["resource", "name", "namespace"] {
            let messages = path_segment_messages(text(&parent[field]));
            invalid_all(&mut errors, &format!("{path}.{field}"), &parent[field], messages);
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable(&mut errors, "spec.parentRef", &object["spec"]["parentRef"], &old["spec"]["parentRef"]);
        errors
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        match name.parse::<IpAddr>() {
            Err(_) => vec![NOT_AN_IP.to_owned()],
            Ok(address) if address.to_string() != name => vec![canonical_message(&address)],
            Ok(_) => Vec::new(),
        }
    }

    fn columns(&self) -> Vec<Column> {
        const PARENT: &str = "ParentRef references the resource that an IPAddress is attached to. An IPAddress must reference a parent object.";
        vec![name_column(), column("ParentRef", "string", PARENT), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let parent = &object["spec"]["parentRef"];
        let shown = if parent.is_object() {
            let dot = if text(&parent["group"]).is_empty() { "" } else { "." };
            let resource = format!("{}{dot}{}", text(&parent["resource"]), text(&parent["group"])).to_lowercase();
            let parts = [&resource, text(&parent["namespace"]), text(&parent["name"])];
            parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
        } else {
            "<none>".to_owned()
        };
        vec![name(object), shown.into(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_name_is_an_address_in_its_canonical_form() {
        assert!(
            IpAddresses.validate_name("10.0.0.1").is_empty() && IpAddresses.validate_name("2001:db8::1").is_empty()
        );
        assert_eq!(IpAddresses.validate_name("10.0.0.256"), [NOT_AN_IP]);
        assert_eq!(IpAddresses.validate_name("2001:DB8::1"), ["must be in canonical form (\"2001:db8::1\")"]);
    }

    #[test]
    fn the_parent_is_shown_as_a_path() {
        let object = json!({"metadata": {"name": "a"}, "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "s"}}});
        assert!(IpAddresses.validate(&object).is_empty());
        assert_eq!(IpAddresses.cells(&object, Timestamp::UNIX_EPOCH)[1], "services/default/s");
    }
}
