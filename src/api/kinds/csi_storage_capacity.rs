//! CSIStorageCapacities.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::pod::container_quantity;
use super::{gvr, namespaced};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::text;
use crate::api::printers::{column, name, name_column};
use crate::api::quantity::Quantity;
use crate::api::status::FieldError;
use crate::api::validation::meta::dns_subdomain_messages;
use crate::api::validation::selector::label_selector;
use crate::api::validation::{Errors, immutable, invalid_all};

/// The kind.
pub fn kind() -> Kind {
    let strategy = Arc::new(CsiStorageCapacities);
    Kind { unconditional_update: false, ..namespaced(gvr::CSI_STORAGE_CAPACITIES, "CSIStorageCapacity", strategy) }
}

struct CsiStorageCapacities;

impl Strategy for CsiStorageCapacities {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let class = text(&object["storageClassName"]);
        invalid_all(&mut errors, "storageClassName", &class.into(), dns_subdomain_messages(class));
        for field in ["capacity", "maximumVolumeSize"] {
            if !object[field].is_null() {
                container_quantity(&mut errors, "storage", &object[field], field);
            }
        }
        label_selector(&mut errors, &object["nodeTopology"], "nodeTopology");
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        for field in ["nodeTopology", "storageClassName"] {
            immutable(&mut errors, field, &object[field], &old[field]);
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        const CLASS: &str = "storageClassName represents the name of the StorageClass that the reported capacity applies \
            to. It must meet the same requirements as the name of a StorageClass object (non-empty, DNS subdomain). If \
            that object no longer exists, the CSIStorageCapacity object is obsolete and should be removed by its \
            creator. This field is immutable.";
        const CAPACITY: &str = "capacity is the value reported by the CSI driver in its GetCapacityResponse for a \
            GetCapacityRequest with topology and parameters that match the previous fields.";
        vec![name_column(), column("StorageClassName", "string", CLASS), column("Capacity", "string", CAPACITY)]
    }

    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let capacity = object.get("capacity").filter(|capacity| !capacity.is_null());
        let shown = capacity.map_or("<unset>".to_owned(), |capacity| Quantity::of(capacity).to_string());
        vec![name(object), text(&object["storageClassName"]).into(), shown.into()]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_class_stays_and_capacities_are_not_negative() {
        let of = |class: &str, capacity: &str| json!({"storageClassName": class, "capacity": capacity});
        assert!(CsiStorageCapacities.validate(&of("s", "10Gi")).is_empty());
        assert_eq!(CsiStorageCapacities.validate(&of("s", "-1"))[0].field, "capacity");
        assert_eq!(CsiStorageCapacities.validate_update(&of("t", "1"), &of("s", "1"))[0].field, "storageClassName");
    }
}
