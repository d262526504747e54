//! Validation of CustomResourceDefinitions (`pkg/apis/apiextensions/validation` of apiextensions-apiserver), with the paths of
//! Kubernetes' internal type: what all versions have alike counts as the definition's own.

use serde_json::{Value, json};

use super::{APPROVAL, is_protected, schema};
use crate::api::jsonpath::JsonPath;
use crate::api::meta::{self, items, text};
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_subdomain_messages, dns1035_label_messages};
use crate::api::validation::{Errors, immutable, one_of, required};
use crate::api::webhook_client;

const MAX_SELECTABLE_FIELDS: usize = 8;

/// Validates a new or (with `old`) a changed definition.
pub(super) fn validate(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Errors::new();
    let spec = &object["spec"];
    if old.is_none() && meta::name(object) != format!("{}.{}", text(&spec["names"]["plural"]), text(&spec["group"])) {
        let name = meta::name(object).into();
        errors.push(FieldError::invalid("metadata.name", &name, "must be spec.names.plural+\".\"+spec.group"));
    }
    validate_spec(&mut errors, spec, old.map(|old| &old["spec"]));
    if let Some(old) = old {
        let (names, had) = (&spec["names"], &old["spec"]["names"]);
        let established = items(&old["status"]["conditions"]).iter();
        if established.filter(|c| c["type"] == "Established").any(|c| c["status"] == "True") {
            immutable(&mut errors, "spec.scope", &spec["scope"], &old["spec"]["scope"]);
            immutable(&mut errors, "spec.names.kind", &names["kind"], &had["kind"]);
        }
        immutable(&mut errors, "spec.group", &spec["group"], &old["spec"]["group"]);
        immutable(&mut errors, "spec.names.plural", &names["plural"], &had["plural"]);
    }
    errors.extend(validate_status(object));
    stored_versions(&mut errors, object);
    approval(&mut errors, object, old);
    if spec["preserveUnknownFields"] == true && old.is_none_or(|old| old["spec"]["preserveUnknownFields"] != true) {
        let why =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", &true.into(), why));
    }
    errors
}

/// Validates a changed status.
pub(super) fn validate_status(object: &Value) -> Errors {
    let mut errors = Errors::new();
    names(&mut errors, &object["status"]["acceptedNames"], "status.acceptedNames");
    for (index, condition) in items(&object["status"]["conditions"]).iter().enumerate() {
        let path = format!("status.conditions[{index}]");
        required(&mut errors, &format!("{path}.type"), &condition["type"]);
        one_of(&mut errors, &format!("{path}.status"), &condition["status"], &["True", "False", "Unknown"]);
    }
    errors
}

fn stored_versions(errors: &mut Errors, object: &Value) {
    const PATH: &str = "status.storedVersions";
    let stored = &object["status"]["storedVersions"];
    if items(stored).is_empty() {
        errors.push(FieldError::invalid(PATH, &json!([]), "must have at least one stored version"));
        return;
    }
    let versions = items(&object["spec"]["versions"]);
    for version in versions.iter().filter(|version| version["storage"] == true) {
        if !items(stored).contains(&version["name"]) {
            let why = format!("must have the storage version {}", text(&version["name"]));
            errors.push(FieldError::invalid(PATH, version, &why));
        }
    }
    for (index, name) in items(stored).iter().enumerate() {
        if !versions.iter().any(|version| version["name"] == *name) {
            let v = text(name);
            let why = format!(
                "missing from spec.versions; {v} was previously a storage version, and must remain in spec.versions until a \
                 storage migration ensures no data remains persisted in {v} and removes {v} from status.storedVersions"
            );
            errors.push(FieldError::invalid(format!("{PATH}[{index}]"), name, &why));
        }
    }
}

/// Whether an annotation's value is a URL.
fn is_url(text: &str) -> bool {
    text.split_once("://")
        .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty() && !rest.starts_with('/'))
}

fn approval(errors: &mut Errors, object: &Value, old: Option<&Value>) {
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    if !is_protected(text(&object["spec"]["group"])) {
        return;
    }
    let value = meta::annotation(object, APPROVAL);
    if old.is_some_and(|old| meta::annotation(old, APPROVAL) == value) {
        return;
    }
    let path = format!("metadata.annotations[{APPROVAL}]");
    match value {
        None | Some("") => {
            let why = format!("protected groups must have approval annotation {APPROVAL:?}, {SEE}");
            errors.push(FieldError::required(path, &why));
        }
        Some(value) if value.starts_with("unapproved") || is_url(value) => {}
        Some(value) => {
            let why = format!(
                "protected groups must have approval annotation {APPROVAL:?} with either a URL or a reason starting with \
                 \"unapproved\", {SEE}"
            );
            errors.push(FieldError::invalid(path, &value.into(), &why));
        }
    }
}

/// What all versions have alike.
fn alike<'a>(versions: &'a [Value], pointer: &str) -> Option<&'a Value> {
    let value = versions.first()?.pointer(pointer).filter(|value| !value.is_null())?;
    versions.iter().all(|version| version.pointer(pointer) == Some(value)).then_some(value)
}

fn validate_spec(errors: &mut Errors, spec: &Value, old: Option<&Value>) {
    let group = &spec["group"];
    let messages = dns_subdomain_messages(text(group));
    if text(group).is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if !messages.is_empty() {
        errors.push(FieldError::invalid("spec.group", group, &messages.join(",")));
    } else if !text(group).contains('.') {
        errors.push(FieldError::invalid("spec.group", group, "should be a domain with at least one dot"));
    }
    one_of(errors, "spec.scope", &spec["scope"], &["Cluster", "Namespaced"]);
    let versions = items(&spec["versions"]);
    for (index, version) in versions.iter().enumerate() {
        if !version["schema"]["openAPIV3Schema"].is_object() {
            let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
            errors.push(FieldError::required(path, "schemas are required"));
        }
    }
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}]");
        let messages = dns1035_label_messages(text(&version["name"]));
        if !messages.is_empty() {
            errors.push(FieldError::invalid(format!("{path}.name"), &version["name"], &messages.join(",")));
        }
        validate_version(errors, versions, version, &path, old);
    }
    let unique = |(index, version): (usize, &Value)| versions[..index].iter().all(|v| v["name"] != version["name"]);
    if !versions.iter().enumerate().all(unique) {
        errors.push(FieldError::invalid("spec.versions", &spec["versions"], "must contain unique version names"));
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", &spec["versions"], why));
    }
    for field in ["plural", "singular", "kind", "listKind"] {
        required(errors, &format!("spec.names.{field}"), &spec["names"][field]);
    }
    names(errors, &spec["names"], "spec.names");
    if let Some(first) = versions.first() {
        let has_status = versions.iter().any(|version| version["subresources"]["status"].is_object());
        if let Some(schema) = alike(versions, "/schema/openAPIV3Schema") {
            let unchanged = is_unchanged(schema, first, old);
            schema::validate(errors, schema, has_status, "spec.validation", unchanged);
            if alike(versions, "/selectableFields").is_some() {
                selectable_fields(errors, first, schema, "spec.selectableFields");
            }
        }
        if alike(versions, "/subresources").is_some() {
            subresources(errors, &first["subresources"], "spec.subresources");
        }
        if alike(versions, "/additionalPrinterColumns").is_some() {
            columns(errors, first, "spec.additionalPrinterColumns");
        }
    }
    conversion(errors, &spec["conversion"]);
}

/// Whether a version's schema is the one that it had: what has been stored is not refused by stricter rules.
fn is_unchanged(schema: &Value, version: &Value, old: Option<&Value>) -> bool {
    let mut had = items(old.map_or(&Value::Null, |old| &old["versions"])).iter();
    had.any(|known| known["name"] == version["name"] && known["schema"]["openAPIV3Schema"] == *schema)
}

fn validate_version(errors: &mut Errors, versions: &[Value], version: &Value, path: &str, old: Option<&Value>) {
    for message in deprecation_messages(version) {
        errors.push(FieldError::invalid(
            format!("{path}.deprecationWarning"),
            &version["deprecationWarning"],
            &message,
        ));
    }
    let schema = &version["schema"]["openAPIV3Schema"];
    if schema.is_object() && alike(versions, "/schema/openAPIV3Schema").is_none() {
        let has_status = version["subresources"]["status"].is_object();
        let unchanged = is_unchanged(schema, version, old);
        schema::validate(errors, schema, has_status, &format!("{path}.schema"), unchanged);
    }
    if alike(versions, "/subresources").is_none() {
        subresources(errors, &version["subresources"], &format!("{path}.subresources"));
    }
    if alike(versions, "/additionalPrinterColumns").is_none() {
        columns(errors, version, &format!("{path}.additionalPrinterColumns"));
    }
    let apart = alike(versions, "/selectableFields").is_none() || alike(versions, "/schema/openAPIV3Schema").is_none();
    if apart && !items(&version["selectableFields"]).is_empty() {
        selectable_fields(errors, version, schema, &format!("{path}.selectableFields"));
    }
}

fn deprecation_messages(version: &Value) -> Vec<String> {
    let Some(warning) = version["deprecationWarning"].as_str() else { return Vec::new() };
    if version["deprecated"] != true {
        return vec!["can only be set for deprecated versions".to_owned()];
    }
    let mut messages = Vec::new();
    if warning.len() > 256 {
        messages.push("must be <= 256 characters long".to_owned());
    }
    if warning.is_empty() {
        messages.push("must not be an empty string".to_owned());
    }
    if let Some((index, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        let why = "must only contain printable UTF-8 characters; non-printable character found at index";
        messages.push(format!("{why} {index}"));
    }
    messages
}

fn names(errors: &mut Errors, names: &Value, path: &str) {
    let mut label = |path: String, value: &Value, name: &str, prefix: &str| {
        let messages = dns1035_label_messages(name);
        if !name.is_empty() && !messages.is_empty() {
            errors.push(FieldError::invalid(path, value, &format!("{prefix}{}", messages.join(","))));
        }
    };
    for field in ["plural", "singular"] {
        label(format!("{path}.{field}"), &names[field], text(&names[field]), "");
    }
    for field in ["kind", "listKind"] {
        let lower = text(&names[field]).to_lowercase();
        label(format!("{path}.{field}"), &names[field], &lower, "may have mixed case, but should otherwise match: ");
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in items(&names[field]).iter().enumerate() {
            let path = format!("{path}.{field}[{index}]");
            let messages = dns1035_label_messages(text(name));
            if !messages.is_empty() {
                errors.push(FieldError::invalid(path, name, &messages.join(",")));
            }
        }
    }
    if !text(&names["kind"]).is_empty() && names["kind"] == names["listKind"] {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(format!("{path}.listKind"), &names["listKind"], why));
    }
}

/// A path that begins with a dot; whether it is below one of `roots`.
fn simple_path(errors: &mut Errors, path: &str, value: &Value, roots: &[&str], otherwise: &str) {
    let given = text(value);
    if !given.starts_with('.') {
        errors.push(FieldError::invalid(path, value, "must be a simple json path starting with ."));
    } else if !roots.is_empty() && !roots.iter().any(|root| given.starts_with(root)) {
        errors.push(FieldError::invalid(path, value, otherwise));
    } else if JsonPath::parse(given).is_none() {
        errors.push(FieldError::invalid(path, value, "must be a json path in the dot notation"));
    }
}

fn subresources(errors: &mut Errors, subresources: &Value, path: &str) {
    let scale = &subresources["scale"];
    if !scale.is_object() {
        return;
    }
    let checks = [
        ("specReplicasPath", &[".spec."][..], "should be a json path under .spec", true),
        ("statusReplicasPath", &[".status."][..], "should be a json path under .status", true),
        (
            "labelSelectorPath",
            &[".spec.", ".status."][..],
            "should be a json path under either .spec or .status",
            false,
        ),
    ];
    for (field, roots, otherwise, is_required) in checks {
        let path = format!("{path}.scale.{field}");
        match text(&scale[field]) {
            "" if is_required => errors.push(FieldError::required(path, "")),
            "" => {}
            _ => simple_path(errors, &path, &scale[field], roots, otherwise),
        }
    }
}

fn columns(errors: &mut Errors, version: &Value, path: &str) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 9] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "name", "password"];
    for (index, column) in items(&version["additionalPrinterColumns"]).iter().enumerate() {
        let path = format!("{path}[{index}]");
        required(errors, &format!("{path}.name"), &column["name"]);
        let why = format!("must be one of {}", TYPES.join(","));
        match text(&column["type"]) {
            "" => errors.push(FieldError::required(format!("{path}.type"), &why)),
            kind if !TYPES.contains(&kind) => {
                errors.push(FieldError::invalid(format!("{path}.type"), &column["type"], &why));
            }
            _ => {}
        }
        if !text(&column["format"]).is_empty() && !FORMATS.contains(&text(&column["format"])) {
            let why = format!("must be one of {}", FORMATS.join(","));
            errors.push(FieldError::invalid(format!("{path}.format"), &column["format"], &why));
        }
        let path = format!("{path}.JSONPath");
        match text(&column["jsonPath"]) {
            "" => errors.push(FieldError::required(path, "")),
            _ => simple_path(errors, &path, &column["jsonPath"], &[], ""),
        }
    }
}

fn selectable_fields(errors: &mut Errors, version: &Value, schema: &Value, path: &str) {
    let fields = items(&version["selectableFields"]);
    let mut seen: Vec<&str> = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        let value = &field["jsonPath"];
        let at = format!("{path}[{index}].jsonPath");
        let given = text(value);
        if given.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let found = match schema::field_at(schema, given) {
            Ok(found) => found,
            Err(why) => {
                errors.push(FieldError::invalid(at, value, &format!("is an invalid path: {why}")));
                continue;
            }
        };
        if given.starts_with(".metadata") {
            errors.push(FieldError::invalid(at.clone(), value, "must not point to fields in metadata"));
        }
        if !["string", "boolean", "integer"].contains(&text(&found["type"])) {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats \
                are allowed.";
            errors.push(FieldError::invalid(at.clone(), value, why));
        }
        if seen.contains(&given) {
            errors.push(FieldError::duplicate(at, value));
        } else {
            seen.push(given);
        }
    }
    if seen.len() > MAX_SELECTABLE_FIELDS {
        errors.push(FieldError::too_many(path, seen.len(), MAX_SELECTABLE_FIELDS));
    }
}

fn conversion(errors: &mut Errors, conversion: &Value) {
    if conversion.is_null() {
        return;
    }
    one_of(errors, "spec.conversion.strategy", &conversion["strategy"], &["None", "Webhook"]);
    let (config, versions) =
        (&conversion["webhook"]["clientConfig"], &conversion["webhook"]["conversionReviewVersions"]);
    let (config_path, versions_path) =
        ("spec.conversion.webhookClientConfig", "spec.conversion.conversionReviewVersions");
    if conversion["strategy"] != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        if !config.is_null() {
            errors.push(FieldError::forbidden(config_path, why));
        }
        if !items(versions).is_empty() {
            errors.push(FieldError::forbidden(versions_path, why));
        }
        return;
    }
    if config.is_null() {
        errors.push(FieldError::required(config_path, "required when strategy is set to Webhook"));
    } else {
        webhook_client::validate(errors, config, config_path);
    }
    if items(versions).is_empty() {
        errors.push(FieldError::required(versions_path, ""));
        return;
    }
    let known = ["v1", "v1beta1"];
    for (index, version) in items(versions).iter().enumerate() {
        let path = format!("{versions_path}[{index}]");
        if items(versions)[..index].contains(version) {
            errors.push(FieldError::invalid(path, version, "duplicate version"));
            continue;
        }
        for message in dns1035_label_messages(text(version)) {
            errors.push(FieldError::invalid(path.clone(), version, &message));
        }
    }
    if !items(versions).iter().any(|version| known.contains(&text(version))) {
        let why = format!("must include at least one of {}", known.join(", "));
        errors.push(FieldError::invalid(versions_path, versions, &why));
    }
}

/// Warnings about formats that mean nothing (`unrecognized format`).
pub(super) fn unrecognized_formats(schema: &Value, path: &str, warnings: &mut Vec<String>) {
    let format = text(&schema["format"]);
    let known = match text(&schema["type"]) {
        "string" => format.is_empty() || schema::KNOWN_FORMATS.contains(&format),
        "integer" => ["", "int32", "int64"].contains(&format),
        "number" => ["", "float", "double", "int32", "int64"].contains(&format),
        _ => true,
    };
    if !known {
        warnings.push(format!("{path}.format: unrecognized format {format:?}"));
    }
    for (place, inner) in schema::children(schema) {
        unrecognized_formats(inner, &format!("{path}.{place}"), warnings);
    }
}
