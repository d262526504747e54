//! `metadata` around writes: what the server sets, what clients may not change, and its validation.

use serde_json::{Map, Value, json};

use crate::api::status::FieldError;
use crate::api::validation::meta as rules;
use crate::api::{Kind, meta};
use crate::env::{Env, rfc3339};

/// The longest generated name without its suffix.
const GENERATE_BASE: usize = 63 - 5;

/// `metadata` for writing.
pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    meta::metadata_mut(object)
}

/// Gives a new object its identity. Returns whether the name was generated.
pub(crate) fn fill_for_create(kind: &Kind, object: &mut Value, env: &Env) -> bool {
    let (generation, generate) = (kind.has_generation, meta::name(object).is_empty());
    let base = object["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
    let m = metadata(object);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        m.remove(field);
    }
    m.insert("uid".into(), env.uid().into());
    m.insert("creationTimestamp".into(), rfc3339(env.now()).into());
    if generation {
        m.insert("generation".into(), 1.into());
    } else {
        m.remove("generation");
    }
    let generated = generate && !base.is_empty();
    if generated {
        let mut end = base.len().min(GENERATE_BASE);
        while !base.is_char_boundary(end) {
            end -= 1;
        }
        m.insert("name".into(), format!("{}{}", &base[..end], env.suffix(5)).into());
    }
    generated
}

/// Validates the metadata of an object (`ValidateObjectMeta`).
pub(crate) fn validate(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = meta::name(object);
    let generate = object["metadata"]["generateName"].as_str().unwrap_or_default();
    if !generate.is_empty() && name.is_empty() {
        for message in kind.strategy.validate_name(generate.trim_end_matches('-')) {
            errors.push(FieldError::invalid("metadata.generateName", &json!(generate), &message));
        }
    }
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        for message in kind.strategy.validate_name(name) {
            errors.push(FieldError::invalid("metadata.name", &json!(name), &message));
        }
    }
    if kind.namespaced && meta::namespace(object).is_empty() {
        errors.push(FieldError::required("metadata.namespace", ""));
    } else if kind.namespaced {
        for message in rules::dns_label_messages(meta::namespace(object)) {
            errors.push(FieldError::invalid("metadata.namespace", &json!(meta::namespace(object)), &message));
        }
    }
    let m = &object["metadata"];
    errors.extend(rules::labels(&m["labels"], "metadata.labels"));
    errors.extend(rules::annotations(&m["annotations"], "metadata.annotations"));
    errors.extend(owner_references(&m["ownerReferences"]));
    for (i, finalizer) in m["finalizers"].as_array().into_iter().flatten().enumerate() {
        let text = finalizer.as_str().unwrap_or_default();
        let path = format!("metadata.finalizers[{i}]");
        for message in rules::qualified_name_messages(text) {
            errors.push(FieldError::invalid(path.clone(), finalizer, &message));
        }
        let known = ["orphan", "foregroundDeletion", "kubernetes"].contains(&text);
        if !text.contains('/') && !known && !text.is_empty() && rules::qualified_name_messages(text).is_empty() {
            errors.push(FieldError::invalid(
                path,
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errors
}

fn owner_references(references: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut controller: Option<String> = None;
    for reference in references.as_array().into_iter().flatten() {
        let path = "metadata.ownerReferences".to_owned();
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        if text("apiVersion").split_once('/').map_or(text("apiVersion"), |(_, version)| version).is_empty() {
            errors.push(FieldError::invalid(
                format!("{path}.apiVersion"),
                &json!(text("apiVersion")),
                "version must not be empty",
            ));
        }
        for (field, what) in
            [("kind", "kind must not be empty"), ("name", "name must not be empty"), ("uid", "uid must not be empty")]
        {
            if text(field).is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{field}"), &json!(""), what));
            }
        }
        if text("apiVersion") == "v1" && text("kind") == "Event" {
            errors.push(FieldError::invalid(
                path.clone(),
                &json!("v1, Kind=Event"),
                "is disallowed from being an owner",
            ));
        }
        if reference["controller"] == true {
            let this = format!("{}", text("name"));
            if let Some(first) = &controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                );
                errors.push(FieldError::invalid("metadata.ownerReferences", references, &detail));
            } else {
                controller = Some(this);
            }
        }
    }
    errors
}

/// Carries over what an update leaves out and the server keeps (`rest.BeforeUpdate`).
pub(crate) fn fill_for_update(object: &mut Value, old: &Value) {
    let old = &old["metadata"];
    let m = metadata(object);
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let absent = m.get(field).is_none_or(|v| v.is_null() || v == "");
        if absent && !old[field].is_null() {
            m.insert(field.into(), old[field].clone());
        }
    }
    for field in ["generation", "selfLink"] {
        m.remove(field);
        if !old[field].is_null() {
            m.insert(field.into(), old[field].clone());
        }
    }
}

/// Validates the metadata of an update (`ValidateObjectMetaUpdate`).
pub(crate) fn validate_update(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (m, o) = (&object["metadata"], &old["metadata"]);
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if m[field] != o[field] {
            errors.push(FieldError::invalid(format!("metadata.{field}"), &m[field], "field is immutable"));
        }
    }
    if !o["deletionTimestamp"].is_null() {
        let had: Vec<&str> = meta::finalizers(old).collect();
        let added: Vec<&str> = meta::finalizers(object).filter(|f| !had.contains(f)).collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                &format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")),
            ));
        }
    }
    errors.extend(rules::labels(&m["labels"], "metadata.labels"));
    errors.extend(rules::annotations(&m["annotations"], "metadata.annotations"));
    errors.extend(owner_references(&m["ownerReferences"]));
    errors
}
