//! ComponentStatuses: never stored, made when asked for (deprecated since v1.19).

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{cluster_scoped, gvr, names};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{items, text};
use crate::api::printers::{column, name, name_column};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["cs"]),
        verbs: vec!["get", "list"],
        ..cluster_scoped(gvr::COMPONENT_STATUSES, "ComponentStatus", Arc::new(ComponentStatuses))
    }
}

struct ComponentStatuses;

impl Strategy for ComponentStatuses {
    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Status", "string", "Status of the component conditions"),
            column("Message", "string", "Message of the component conditions"),
            column("Error", "string", "Error of the component conditions"),
        ]
    }

    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let healthy = items(&object["conditions"]).iter().find(|condition| text(&condition["type"]) == "Healthy");
        let (status, message, error) = match healthy {
            Some(condition) if text(&condition["status"]) == "True" => {
                ("Healthy", text(&condition["message"]), text(&condition["error"]))
            }
            Some(condition) => ("Unhealthy", text(&condition["message"]), text(&condition["error"])),
            None => ("Unknown", "", ""),
        };
        vec![name(object), status.into(), message.into(), error.into()]
    }
}
