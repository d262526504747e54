//! PersistentVolumeClaims.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set};
use super::persistent_volume::{access_mode_errors, access_modes, class, unset};
use super::pod::{container_quantity, update::same};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, text};
use crate::api::printers::{age, age_column, column, name, name_column, wide_column};
use crate::api::quantity::{Quantity, canonicalize_resource_list};
use crate::api::status::FieldError;
use crate::api::validation::meta::dns_subdomain_messages;
use crate::api::validation::selector::label_selector;
use crate::api::validation::{Errors, diff, invalid_all, one_of_or_unset};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["pvc"]),
        subresources: vec![Subresource::Status],
        ..namespaced(gvr::PERSISTENT_VOLUME_CLAIMS, "PersistentVolumeClaim", Arc::new(PersistentVolumeClaims))
    }
}

/// Defaults of a spec, also of those in templates.
pub fn default_spec(spec: &mut Value) {
    set(spec, "volumeMode", "Filesystem");
    set(spec, "resources", json!({}));
    if let Some(resources) = spec.get_mut("resources") {
        for list in ["limits", "requests"] {
            if let Some(list) = resources.get_mut(list) {
                canonicalize_resource_list(list);
            }
        }
    }
    // The old field and the new one name the same source.
    for (from, to) in [("dataSource", "dataSourceRef"), ("dataSourceRef", "dataSource")] {
        if let Some(source) = spec.get(from).filter(|s| s.is_object() && s["namespace"].is_null()).cloned() {
            set(spec, to, source);
        }
    }
}

/// A spec, also of those in templates (`ValidatePersistentVolumeClaimSpec`).
pub fn validate_spec(errors: &mut Errors, spec: &Value, path: &str) {
    access_mode_errors(errors, &spec["accessModes"], &format!("{path}.accessModes"));
    if spec["selector"].is_object() {
        label_selector(errors, &spec["selector"], &format!("{path}.selector"));
    }
    let storage = &spec["resources"]["requests"]["storage"];
    let storage_path = format!("{path}.resources[storage]");
    if storage.is_null() {
        errors.push(FieldError::required(storage_path, ""));
    } else {
        container_quantity(errors, "storage", storage, &storage_path);
        if Quantity::of(storage).is_zero() {
            errors.push(FieldError::invalid(storage_path, &"0".into(), "must be greater than zero"));
        }
    }
    let class = &spec["storageClassName"];
    if !text(class).is_empty() {
        invalid_all(errors, &format!("{path}.storageClassName"), class, dns_subdomain_messages(text(class)));
    }
    one_of_or_unset(errors, &format!("{path}.volumeMode"), &spec["volumeMode"], &["Block", "Filesystem"]);
}

struct PersistentVolumeClaims;

impl Strategy for PersistentVolumeClaims {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = ensure_object(object, "spec") {
            default_spec(spec);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), json!({"phase": "Pending"}));
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validate_spec(&mut errors, &object["spec"], "spec");
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        let (spec, old_spec) = (&object["spec"], &old["spec"]);
        let mut munged = spec.clone();
        let Some(map) = munged.as_object_mut() else { return errors };
        // Binding sets the volume once; a default class may still be filled in; bound claims may grow.
        if text(&old_spec["volumeName"]).is_empty() {
            map.remove("volumeName");
        }
        if old_spec["storageClassName"].is_null() && text(&old_spec["volumeName"]).is_empty() {
            map.remove("storageClassName");
        }
        let is_bound = text(&old["status"]["phase"]) == "Bound";
        let (asked, before) =
            (&spec["resources"]["requests"]["storage"], &old_spec["resources"]["requests"]["storage"]);
        if is_bound {
            map.insert("resources".into(), old_spec["resources"].clone());
            if Quantity::of(asked) < Quantity::of(before)
                && Quantity::of(asked)
                    < Quantity::of(&old["status"]["capacity"]["storage"]).max(Quantity::from_nanos(1))
            {
                let detail = "field can not be less than status.capacity";
                errors.push(FieldError::forbidden("spec.resources.requests.storage", detail));
            }
            if let Some(class) = old_spec.get("volumeAttributesClassName") {
                map.insert("volumeAttributesClassName".into(), class.clone());
            } else {
                map.remove("volumeAttributesClassName");
            }
        }
        let mut comparable = old_spec.clone();
        if text(&old_spec["volumeName"]).is_empty() {
            if let Some(map) = comparable.as_object_mut() {
                map.remove("volumeName");
            }
        }
        if !same(&munged, &comparable) {
            let text = diff::unified(&comparable, &munged);
            let detail = format!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound \
                 claims\n{text}"
            );
            errors.push(FieldError::forbidden("spec", &detail));
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Status", "string", "phase represents the current phase of PersistentVolumeClaim."),
            column(
                "Volume",
                "string",
                "volumeName is the binding reference to the PersistentVolume backing this claim.",
            ),
            column("Capacity", "string", "capacity represents the actual resources of the underlying volume."),
            column(
                "Access Modes",
                "string",
                "accessModes contains the actual access modes the volume backing the PVC has. More info: \
                    https://kubernetes.io/docs/concepts/storage/persistent-volumes#access-modes-1",
            ),
            column("StorageClass", "string", "StorageClass of the pvc"),
            column("VolumeAttributesClass", "string", "VolumeAttributesClass of the pvc"),
            age_column(),
            wide_column(
                "VolumeMode",
                "string",
                "volumeMode defines what type of volume is required by the claim. Value of Filesystem is implied \
                    when not included in claim spec.",
            ),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let phase = if meta::is_terminating(object) { "Terminating" } else { text(&status["phase"]) };
        let (mut capacity, mut modes) = (String::new(), String::new());
        if !text(&spec["volumeName"]).is_empty() {
            capacity = Quantity::of(&status["capacity"]["storage"]).to_string();
            modes = access_modes(&status["accessModes"]);
        }
        vec![
            name(object),
            phase.into(),
            text(&spec["volumeName"]).into(),
            capacity.into(),
            modes.into(),
            class(object).into(),
            unset(&spec["volumeAttributesClassName"]).into(),
            age(object, now),
            unset(&spec["volumeMode"]).into(),
        ]
    }
}
