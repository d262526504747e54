//! Validation of `spec.volumes` (`ValidateVolumes`).

use std::collections::BTreeSet;

use serde_json::Value;

use super::container::{descending_path, no_backsteps};
use super::sources::{field_selector, resource_field_selector};
use crate::api::meta::{items, number, text};
use crate::api::quantity::Quantity;
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, dns_subdomain_messages};
use crate::api::validation::{Errors, invalid_all, one_of, one_of_or_unset, required};

/// Field paths that a downward API volume may take from the pod.
const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// All volumes; returns the names of those that can be mounted.
pub fn volumes(errors: &mut Errors, volumes: &Value, path: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (index, volume) in items(volumes).iter().enumerate() {
        let path = format!("{path}[{index}]");
        let mut found = Errors::new();
        source(&mut found, volume, &path);
        let name = text(&volume["name"]);
        match name {
            "" => found.push(FieldError::required(format!("{path}.name"), "")),
            _ => invalid_all(&mut found, &format!("{path}.name"), &volume["name"], dns_label_messages(name)),
        }
        if names.contains(name) {
            found.push(FieldError::duplicate(format!("{path}.name"), &volume["name"]));
        }
        if found.is_empty() {
            names.insert(name.to_owned());
        }
        errors.append(&mut found);
    }
    names
}

fn source(errors: &mut Errors, volume: &Value, path: &str) {
    let mut found = 0;
    for (kind, source) in volume.as_object().into_iter().flatten().filter(|(k, v)| *k != "name" && !v.is_null()) {
        let path = format!("{path}.{kind}");
        found += 1;
        if found > 1 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
            continue;
        }
        match kind.as_str() {
            "emptyDir" => {
                if Quantity::of(&source["sizeLimit"]).is_negative() {
                    let detail = "SizeLimit field must be a valid resource quantity";
                    errors.push(FieldError::forbidden(format!("{path}.sizeLimit"), detail));
                }
                let medium = text(&source["medium"]);
                if !matches!(medium, "" | "Memory" | "HugePages") && !medium.starts_with("HugePages-") {
                    let supported = ["", "HugePages", "Memory"];
                    errors.push(FieldError::not_supported(format!("{path}.medium"), &source["medium"], &supported));
                }
            }
            "configMap" => key_source(errors, source, &path, "name", true),
            "secret" => key_source(errors, source, &path, "secretName", true),
            "downwardAPI" => {
                mode(errors, &format!("{path}.defaultMode"), &source["defaultMode"]);
                downward_items(errors, source, &path);
            }
            "projected" => projected(errors, source, &path),
            "persistentVolumeClaim" => required(errors, &format!("{path}.claimName"), &source["claimName"]),
            "ephemeral" => ephemeral(errors, source, &path),
            "image" => {
                required(errors, &format!("{path}.reference"), &source["reference"]);
                let policies = ["Always", "IfNotPresent", "Never"];
                one_of(errors, &format!("{path}.pullPolicy"), &source["pullPolicy"], &policies);
            }
            _ => persistent_source(errors, kind, source, &path),
        }
    }
    if found == 0 {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
}

/// Sources that pods and PersistentVolumes share.
pub fn persistent_source(errors: &mut Errors, kind: &str, source: &Value, path: &str) {
    match kind {
        "hostPath" => {
            required(errors, &format!("{path}.path"), &source["path"]);
            if !text(&source["path"]).is_empty() {
                no_backsteps(errors, &format!("{path}.path"), &source["path"]);
                one_of_or_unset(errors, &format!("{path}.type"), &source["type"], &HOST_PATH_TYPES);
            }
        }
        "nfs" => {
            required(errors, &format!("{path}.server"), &source["server"]);
            required(errors, &format!("{path}.path"), &source["path"]);
            if !text(&source["path"]).is_empty() && !text(&source["path"]).starts_with('/') {
                let detail = "must be an absolute path";
                errors.push(FieldError::invalid(format!("{path}.path"), &source["path"], detail));
            }
        }
        "csi" => {
            let driver = &source["driver"];
            required(errors, &format!("{path}.driver"), driver);
            if !text(driver).is_empty() {
                let messages = dns_subdomain_messages(&text(driver).to_lowercase());
                invalid_all(errors, &format!("{path}.driver"), driver, messages);
            }
        }
        _ => {}
    }
}

fn mode(errors: &mut Errors, path: &str, value: &Value) {
    if value.as_i64().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(path, value, detail));
    }
}

/// A path of a file inside a volume.
fn local_path(errors: &mut Errors, path: &str, value: &Value) {
    descending_path(errors, path, value);
    if text(value).starts_with("..") && !text(value).starts_with("../") {
        errors.push(FieldError::invalid(path, value, "must not start with '..'"));
    }
}

/// A ConfigMap or Secret with its items.
fn key_source(errors: &mut Errors, source: &Value, path: &str, name: &str, has_mode: bool) {
    required(errors, &format!("{path}.{name}"), &source[name]);
    if has_mode {
        mode(errors, &format!("{path}.defaultMode"), &source["defaultMode"]);
    }
    for (index, item) in items(&source["items"]).iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        required(errors, &format!("{path}.key"), &item["key"]);
        required(errors, &format!("{path}.path"), &item["path"]);
        local_path(errors, &format!("{path}.path"), &item["path"]);
        mode(errors, &format!("{path}.mode"), &item["mode"]);
    }
}

fn downward_items(errors: &mut Errors, source: &Value, path: &str) {
    for (index, item) in items(&source["items"]).iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        required(errors, &format!("{path}.path"), &item["path"]);
        local_path(errors, &format!("{path}.path"), &item["path"]);
        let (field, resource) = (&item["fieldRef"], &item["resourceFieldRef"]);
        if field.is_object() {
            field_selector(errors, field, &format!("{path}.fieldRef"), &VOLUME_FIELDS);
            if resource.is_object() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(&path, &"resource".into(), detail));
            }
        } else if resource.is_object() {
            resource_field_selector(errors, resource, &format!("{path}.resourceFieldRef"), true);
        } else {
            errors.push(FieldError::required(&path, "one of fieldRef and resourceFieldRef is required"));
        }
        mode(errors, &format!("{path}.mode"), &item["mode"]);
    }
}

fn projected(errors: &mut Errors, source: &Value, path: &str) {
    mode(errors, &format!("{path}.defaultMode"), &source["defaultMode"]);
    let mut paths = BTreeSet::new();
    for (index, projection) in items(&source["sources"]).iter().enumerate() {
        let path = format!("{path}.sources[{index}]");
        let mut found = 0;
        for (kind, value) in projection.as_object().into_iter().flatten().filter(|(_, v)| v.is_object()) {
            let path = format!("{path}.{kind}");
            found += 1;
            if found > 1 {
                errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
                continue;
            }
            match kind.as_str() {
                "configMap" | "secret" => key_source(errors, value, &path, "name", false),
                "downwardAPI" => downward_items(errors, value, &path),
                "serviceAccountToken" => service_account_token(errors, value, &path),
                _ => {}
            }
            let own = std::iter::once(&value["path"]).chain(items(&value["items"]).iter().map(|item| &item["path"]));
            for file in own.filter(|file| !text(file).is_empty()) {
                if !paths.insert(text(file)) {
                    errors.push(FieldError::invalid(&path, file, "conflicting duplicate paths"));
                }
            }
        }
        if found == 0 {
            errors.push(FieldError::required(path, "must specify a volume type"));
        }
    }
}

fn service_account_token(errors: &mut Errors, token: &Value, path: &str) {
    let seconds = &token["expirationSeconds"];
    let mut refuse = |detail| errors.push(FieldError::invalid(format!("{path}.expirationSeconds"), seconds, detail));
    if number(seconds) < 600 {
        refuse("may not specify a duration less than 10 minutes");
    } else if number(seconds) > 1 << 32 {
        refuse("may not specify a duration larger than 2^32 seconds");
    }
    required(errors, &format!("{path}.path"), &token["path"]);
    local_path(errors, &format!("{path}.path"), &token["path"]);
}

fn ephemeral(errors: &mut Errors, source: &Value, path: &str) {
    let (template, path) = (&source["volumeClaimTemplate"], format!("{path}.volumeClaimTemplate"));
    if !template.is_object() {
        return errors.push(FieldError::required(path, ""));
    }
    let spec = &template["spec"];
    crate::api::kinds::persistent_volume_claim::validate_spec(errors, spec, &format!("{path}.spec"));
}
