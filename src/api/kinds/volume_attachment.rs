//! VolumeAttachments.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::csi_driver::driver_name;
use super::defaulting::{ensure_object, set};
use super::{cluster_scoped, gvr};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::text;
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::meta::dns_subdomain_messages;
use crate::api::validation::{Errors, IMMUTABLE, invalid_all, required};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        subresources: vec![Subresource::Status],
        unconditional_update: false,
        ..cluster_scoped(gvr::VOLUME_ATTACHMENTS, "VolumeAttachment", Arc::new(VolumeAttachments))
    }
}

struct VolumeAttachments;

impl Strategy for VolumeAttachments {
    fn default(&self, object: &mut Value) {
        ensure_object(object, "spec");
        if let Some(status) = ensure_object(object, "status") {
            set(status, "attached", false);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"attached": false}));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        driver_name(&mut errors, &spec["attacher"], "spec.attacher");
        source(&mut errors, &spec["source"], "spec.source");
        required(&mut errors, "spec.nodeName", &spec["nodeName"]);
        if !text(&spec["nodeName"]).is_empty() {
            let messages = dns_subdomain_messages(text(&spec["nodeName"]));
            invalid_all(&mut errors, "spec.nodeName", &spec["nodeName"], messages);
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        if object["spec"] != old["spec"] {
            errors.push(FieldError::invalid("spec", &object["spec"], IMMUTABLE));
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        const ATTACHER: &str = "attacher indicates the name of the volume driver that MUST handle this request. This is \
            the name returned by GetPluginName().";
        vec![
            name_column(),
            Column { format: "name".into(), ..column("Attacher", "string", ATTACHER) },
            column("PV", "string", "persistentVolumeName represents the name of the persistent volume to attach."),
            column("Node", "string", "nodeName represents the node that the volume should be attached to."),
            column(
                "Attached",
                "boolean",
                "attached indicates the volume is successfully attached. This field must only be set by the entity \
                 completing the attach operation, i.e. the external-attacher.",
            ),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        vec![
            name(object),
            text(&spec["attacher"]).into(),
            text(&spec["source"]["persistentVolumeName"]).into(),
            text(&spec["nodeName"]).into(),
            (object["status"]["attached"] == true).into(),
            age(object, now),
        ]
    }
}

fn source(errors: &mut Errors, source: &Value, path: &str) {
    let (volume, inline) = (&source["persistentVolumeName"], &source["inlineVolumeSpec"]);
    let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (volume.is_string(), inline.is_object()) {
        (false, false) => errors.push(FieldError::required(path, detail)),
        (true, true) => errors.push(FieldError::forbidden(path, detail)),
        (false, true) => {}
        (true, false) => {
            let path = format!("{path}.persistentVolumeName");
            if text(volume).is_empty() {
                errors.push(FieldError::required(path, "must specify non empty persistentVolumeName"));
            } else {
                invalid_all(errors, &path, volume, dns_subdomain_messages(text(volume)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_and_it_stays() {
        let of = |source: Value| json!({"spec": {"attacher": "a.b", "nodeName": "n", "source": source}});
        let good = of(json!({"persistentVolumeName": "pv"}));
        assert!(VolumeAttachments.validate(&good).is_empty());
        assert_eq!(VolumeAttachments.validate(&of(json!({})))[0].reason, "FieldValueRequired");
        let other = of(json!({"persistentVolumeName": "other"}));
        assert_eq!(VolumeAttachments.validate_update(&other, &good)[0].field, "spec");
    }
}
