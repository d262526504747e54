//! StorageClasses.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::defaulting::set;
use super::{cluster_scoped, gvr, names};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{self, text};
use crate::api::printers::{age, age_column, column, name_column};
use crate::api::status::FieldError;
use crate::api::validation::meta::qualified_name_messages;
use crate::api::validation::{Errors, immutable, invalid_all, one_of, required};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["sc"]),
        ..cluster_scoped(gvr::STORAGE_CLASSES, "StorageClass", Arc::new(StorageClasses))
    }
}

/// Whether it is the class of claims that name none.
pub fn is_default(class: &Value) -> bool {
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
        .iter()
        .any(|annotation| meta::annotation(class, annotation) == Some("true"))
}

struct StorageClasses;

impl Strategy for StorageClasses {
    fn default(&self, object: &mut Value) {
        set(object, "reclaimPolicy", "Delete");
        set(object, "volumeBindingMode", "Immediate");
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let provisioner = &object["provisioner"];
        required(&mut errors, "provisioner", provisioner);
        if !text(provisioner).is_empty() {
            let messages = qualified_name_messages(&text(provisioner).to_lowercase());
            invalid_all(&mut errors, "provisioner", provisioner, messages);
        }
        let parameters = object["parameters"].as_object();
        if parameters.is_some_and(|map| map.len() > 512) {
            errors.push(FieldError::too_long("parameters", 512));
        }
        if parameters.into_iter().flatten().any(|(key, _)| key.is_empty()) {
            errors.push(FieldError::invalid("parameters", &"".into(), "field can not be empty."));
        }
        one_of(&mut errors, "reclaimPolicy", &object["reclaimPolicy"], &["Delete", "Retain"]);
        let modes = ["Immediate", "WaitForFirstConsumer"];
        one_of(&mut errors, "volumeBindingMode", &object["volumeBindingMode"], &modes);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            if !super::pod::update::same(&object[field], &old[field]) {
                errors.push(FieldError::forbidden(field, &format!("updates to {field} are forbidden.")));
            }
        }
        immutable(&mut errors, "volumeBindingMode", &object["volumeBindingMode"], &old["volumeBindingMode"]);
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Provisioner", "string", "provisioner indicates the type of the provisioner."),
            column(
                "ReclaimPolicy",
                "string",
                "reclaimPolicy controls the reclaimPolicy for dynamically provisioned PersistentVolumes of this \
                    storage class. Defaults to Delete.",
            ),
            column(
                "VolumeBindingMode",
                "string",
                "volumeBindingMode indicates how PersistentVolumeClaims should be provisioned and bound.  When \
                    unset, VolumeBindingImmediate is used. This field is only honored by servers that enable the \
                    VolumeScheduling feature.",
            ),
            column(
                "AllowVolumeExpansion",
                "string",
                "allowVolumeExpansion shows whether the storage class allow volume expand.",
            ),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let suffix = if is_default(object) { " (default)" } else { "" };
        let or = |field: &str, default: &str| match text(&object[field]) {
            "" => default.to_owned(),
            text => text.to_owned(),
        };
        vec![
            format!("{}{suffix}", meta::name(object)).into(),
            text(&object["provisioner"]).into(),
            or("reclaimPolicy", "Delete").into(),
            or("volumeBindingMode", "Immediate").into(),
            (object["allowVolumeExpansion"] == true).into(),
            age(object, now),
        ]
    }
}
