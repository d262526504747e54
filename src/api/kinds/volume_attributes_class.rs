//! VolumeAttributesClasses.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{cluster_scoped, gvr, names};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{self, text};
use crate::api::printers::{age, age_column, column, name_column};
use crate::api::status::FieldError;
use crate::api::validation::meta::qualified_name_messages;
use crate::api::validation::{Errors, invalid_all, required};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["vac"]),
        ..cluster_scoped(gvr::VOLUME_ATTRIBUTES_CLASSES, "VolumeAttributesClass", Arc::new(VolumeAttributesClasses))
    }
}

const MAX_PARAMETERS: usize = 512;
const MAX_SIZE: usize = 256 * 1024;

struct VolumeAttributesClasses;

impl Strategy for VolumeAttributesClasses {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (driver, mut errors) = (&object["driverName"], Errors::new());
        required(&mut errors, "driverName", driver);
        if !text(driver).is_empty() {
            invalid_all(&mut errors, "driverName", driver, qualified_name_messages(&text(driver).to_lowercase()));
        }
        let parameters = object["parameters"].as_object();
        let count = parameters.map_or(0, serde_json::Map::len);
        if count == 0 {
            errors.push(FieldError::required("parameters", "must contain at least one key/value pair"));
        }
        if count > MAX_PARAMETERS {
            errors.push(FieldError::too_long("parameters", MAX_PARAMETERS));
            return errors;
        }
        let mut size = 0;
        for (key, value) in parameters.into_iter().flatten() {
            if key.is_empty() {
                errors.push(FieldError::invalid("parameters", &"".into(), "field can not be empty."));
            }
            size += key.len() + text(value).len();
        }
        if size > MAX_SIZE {
            errors.push(FieldError::too_long("parameters", MAX_SIZE));
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let changed = ["driverName", "parameters"].into_iter().filter(|field| object[*field] != old[*field]);
        changed.map(|field| FieldError::forbidden(field, &format!("updates to {field} are forbidden."))).collect()
    }

    fn columns(&self) -> Vec<Column> {
        const DRIVER: &str = "Name of the CSI driver This field is immutable.";
        vec![name_column(), column("DriverName", "string", DRIVER), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let annotation = "volumeattributesclass.alpha.kubernetes.io/is-default-class";
        let suffix = if meta::annotation(object, annotation) == Some("true") { " (default)" } else { "" };
        vec![format!("{}{suffix}", meta::name(object)).into(), text(&object["driverName"]).into(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_needed_and_stay() {
        let class = |parameters: Value| json!({"driverName": "a.b", "parameters": parameters});
        assert!(VolumeAttributesClasses.validate(&class(json!({"iops": "1"}))).is_empty());
        assert_eq!(VolumeAttributesClasses.validate(&class(json!({})))[0].reason, "FieldValueRequired");
        let errors =
            VolumeAttributesClasses.validate_update(&class(json!({"iops": "2"})), &class(json!({"iops": "1"})));
        assert_eq!(errors[0].message, "Forbidden: updates to parameters are forbidden.");
    }
}
