//! PersistentVolumes.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set, set_text};
use super::pod::{container_quantity, defaults, update::same, volumes};
use super::{cluster_scoped, gvr, names};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, items, text};
use crate::api::printers::{age, age_column, column, name, name_column, wide_column};
use crate::api::quantity::{Quantity, canonicalize_resource_list};
use crate::api::status::FieldError;
use crate::api::validation::meta::dns_subdomain_messages;
use crate::api::validation::selector::node_selector;
use crate::api::validation::{Errors, diff, invalid_all, one_of_or_unset, required};

/// Access modes of volumes and claims.
pub const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// The fields of a spec that are no volume source.
const NOT_SOURCES: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["pv"]),
        subresources: vec![Subresource::Status],
        ..cluster_scoped(gvr::PERSISTENT_VOLUMES, "PersistentVolume", Arc::new(PersistentVolumes))
    }
}

struct PersistentVolumes;

impl Strategy for PersistentVolumes {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        set_text(spec, "persistentVolumeReclaimPolicy", "Retain");
        set(spec, "volumeMode", "Filesystem");
        defaults::persistent_source(spec);
        if let Some(capacity) = spec.get_mut("capacity") {
            canonicalize_resource_list(capacity);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), json!({"phase": "Pending"}));
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        spec(&mut errors, &object["spec"]);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        let (source, old_source) = (sources(&object["spec"]), sources(&old["spec"]));
        if !same(&source, &old_source) {
            let text = diff::unified(&old_source, &source);
            let detail = format!("spec.persistentvolumesource is immutable after creation\n{text}");
            errors.push(FieldError::forbidden("spec.persistentvolumesource", &detail));
        }
        let (mode, old_mode) = (&object["spec"]["volumeMode"], &old["spec"]["volumeMode"]);
        crate::api::validation::immutable(&mut errors, "spec.volumeMode", mode, old_mode);
        let (affinity, before) = (&object["spec"]["nodeAffinity"], &old["spec"]["nodeAffinity"]);
        if !before.is_null() && affinity != before {
            let detail = "field is immutable, except for updating from beta label to GA";
            errors.push(FieldError::invalid("spec.nodeAffinity", affinity, detail));
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Capacity",
                "string",
                "capacity is the description of the persistent volume's resources and capacity. More info: \
                    https://kubernetes.io/docs/concepts/storage/persistent-volumes#capacity",
            ),
            column(
                "Access Modes",
                "string",
                "accessModes contains all ways the volume can be mounted. More info: \
                    https://kubernetes.io/docs/concepts/storage/persistent-volumes#access-modes",
            ),
            column(
                "Reclaim Policy",
                "string",
                "persistentVolumeReclaimPolicy defines what happens to a persistent volume when released from its \
                    claim. Valid options are Retain (default for manually created PersistentVolumes), Delete \
                    (default for dynamically provisioned PersistentVolumes), and Recycle (deprecated). Recycle must \
                    be supported by the volume plugin underlying this PersistentVolume. More info: \
                    https://kubernetes.io/docs/concepts/storage/persistent-volumes#reclaiming",
            ),
            column(
                "Status",
                "string",
                "phase indicates if a volume is available, bound to a claim, or released by a claim. More info: \
                    https://kubernetes.io/docs/concepts/storage/persistent-volumes#phase",
            ),
            column(
                "Claim",
                "string",
                "claimRef is part of a bi-directional binding between PersistentVolume and PersistentVolumeClaim. \
                    Expected to be non-nil when bound. claim.VolumeName is the authoritative bind between PV and \
                    PVC. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#binding",
            ),
            column("StorageClass", "string", "StorageClass of the pv"),
            column("VolumeAttributesClass", "string", "VolumeAttributesClass of the pv"),
            column(
                "Reason",
                "string",
                "reason is a brief CamelCase string that describes any failure and is meant for machine parsing and \
                    tidy display in the CLI.",
            ),
            age_column(),
            wide_column(
                "VolumeMode",
                "string",
                "volumeMode defines if a volume is intended to be used with a formatted filesystem or to remain in \
                    raw block state. Value of Filesystem is implied when not included in spec.",
            ),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let claim = match &spec["claimRef"] {
            claim @ Value::Object(_) => format!("{}/{}", text(&claim["namespace"]), text(&claim["name"])),
            _ => String::new(),
        };
        let phase = if meta::is_terminating(object) { "Terminating" } else { text(&status["phase"]) };
        vec![
            name(object),
            Quantity::of(&spec["capacity"]["storage"]).to_string().into(),
            access_modes(&spec["accessModes"]).into(),
            text(&spec["persistentVolumeReclaimPolicy"]).into(),
            phase.into(),
            claim.into(),
            class(object).into(),
            unset(&spec["volumeAttributesClassName"]).into(),
            text(&status["reason"]).into(),
            age(object, now),
            unset(&spec["volumeMode"]).into(),
        ]
    }
}

/// The text, or `<unset>`.
pub fn unset(value: &Value) -> &str {
    if text(value).is_empty() { "<unset>" } else { text(value) }
}

/// The storage class of a volume or claim: the old annotation, else the field.
pub fn class(object: &Value) -> &str {
    let annotation = meta::annotation(object, "volume.beta.kubernetes.io/storage-class");
    annotation.unwrap_or_else(|| text(&object["spec"]["storageClassName"]))
}

/// `RWO,RWX`.
pub fn access_modes(modes: &Value) -> String {
    const SHORT: [(&str, &str); 4] =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| items(modes).iter().any(|m| text(m) == mode);
    SHORT.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

fn sources(spec: &Value) -> Value {
    let fields = spec.as_object().into_iter().flatten();
    fields.filter(|(key, _)| !NOT_SOURCES.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn spec(errors: &mut Errors, spec: &Value) {
    access_mode_errors(errors, &spec["accessModes"], "spec.accessModes");
    let empty = serde_json::Map::new();
    let capacity = spec["capacity"].as_object().unwrap_or(&empty);
    if capacity.is_empty() {
        errors.push(FieldError::required("spec.capacity", ""));
    }
    if !capacity.contains_key("storage") || capacity.len() > 1 {
        errors.push(FieldError::not_supported("spec.capacity", &capacity.clone().into(), &["storage"]));
    }
    for (resource, value) in capacity {
        let path = format!("spec.capacity[{resource}]");
        container_quantity(errors, resource, value, &path);
        if Quantity::of(value).is_zero() {
            errors.push(FieldError::invalid(path, &"0".into(), "must be greater than zero"));
        }
    }
    let policies = ["Delete", "Recycle", "Retain"];
    let policy = &spec["persistentVolumeReclaimPolicy"];
    one_of_or_unset(errors, "spec.persistentVolumeReclaimPolicy", policy, &policies);
    let affinity = &spec["nodeAffinity"];
    if affinity.is_object() {
        if affinity["required"].is_object() {
            node_selector(errors, &affinity["required"], "spec.nodeAffinity.required");
        } else {
            errors.push(FieldError::required("spec.nodeAffinity.required", "must specify required node constraints"));
        }
    }
    let mut found = 0;
    for (kind, source) in sources(spec).as_object().into_iter().flatten().filter(|(_, v)| !v.is_null()) {
        let path = format!("spec.{kind}");
        found += 1;
        if found > 1 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
        } else if kind == "local" {
            required(errors, "spec.local.path", &source["path"]);
            if !affinity["required"].is_object() {
                errors.push(FieldError::required("spec.nodeAffinity", "Local volume requires node affinity"));
            }
        } else {
            volumes::persistent_source(errors, kind, source, &path);
        }
    }
    if found == 0 {
        errors.push(FieldError::required("spec", "must specify a volume type"));
    }
    if text(&spec["hostPath"]["path"]).trim_end_matches('/').is_empty()
        && spec["hostPath"].is_object()
        && text(policy) == "Recycle"
    {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errors.push(FieldError::forbidden("spec.persistentVolumeReclaimPolicy", detail));
    }
    let class = &spec["storageClassName"];
    if !text(class).is_empty() {
        invalid_all(errors, "spec.storageClassName", class, dns_subdomain_messages(text(class)));
    }
    one_of_or_unset(errors, "spec.volumeMode", &spec["volumeMode"], &["Block", "Filesystem"]);
}

/// Access modes of a volume or claim.
pub fn access_mode_errors(errors: &mut Errors, modes: &Value, path: &str) {
    if items(modes).is_empty() {
        errors.push(FieldError::required(path, "at least 1 access mode is required"));
    }
    for mode in items(modes).iter().filter(|mode| !ACCESS_MODES.contains(&text(mode))) {
        errors.push(FieldError::not_supported(path, mode, &ACCESS_MODES));
    }
    if items(modes).len() > 1 && items(modes).iter().any(|mode| mode == "ReadWriteOncePod") {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(path, detail));
    }
}
