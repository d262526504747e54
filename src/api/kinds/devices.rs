//! Requests for devices, constraints and configurations, as claims, their templates and device classes have them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::csi_driver::driver_name;
use super::defaulting::{each, set_number, set_text};
use crate::api::meta::{items, number, text};
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, dns_subdomain_messages};
use crate::api::validation::{Errors, invalid_all};

/// Most requests, constraints, selectors and configurations.
const MAX: usize = 32;
/// Most alternatives of a request.
const MAX_ALTERNATIVES: usize = 8;

/// Defaults of a claim's spec.
pub fn default_spec(spec: &mut Value) {
    let Some(devices) = spec.get_mut("devices") else { return };
    for request in each(devices, "requests") {
        if let Some(exactly) = request.get_mut("exactly").filter(|exactly| exactly.is_object()) {
            default_request(exactly);
        }
        for alternative in each(request, "firstAvailable") {
            default_request(alternative);
        }
    }
}

fn default_request(request: &mut Value) {
    set_text(request, "allocationMode", "ExactCount");
    if text(&request["allocationMode"]) == "ExactCount" {
        set_number(request, "count", 1);
    }
    for toleration in each(request, "tolerations") {
        set_text(toleration, "operator", "Equal");
    }
}

/// A claim's spec (`validateResourceClaimSpec`).
pub fn validate_spec(errors: &mut Errors, spec: &Value, path: &str) {
    let (devices, path) = (&spec["devices"], format!("{path}.devices"));
    let mut names = BTreeSet::new();
    let requests = items(&devices["requests"]);
    at_most(errors, requests, MAX, &format!("{path}.requests"));
    for (index, request) in requests.iter().enumerate() {
        let path = format!("{path}.requests[{index}]");
        request_name(errors, &request["name"], &format!("{path}.name"));
        self::request(errors, request, &path);
        if !names.insert(text(&request["name"]).to_owned()) {
            errors.push(FieldError::duplicate(&path, &request["name"]));
        }
        for alternative in items(&request["firstAvailable"]) {
            names.insert(format!("{}/{}", text(&request["name"]), text(&alternative["name"])));
        }
    }
    at_most(errors, items(&devices["constraints"]), MAX, &format!("{path}.constraints"));
    for (index, constraint) in items(&devices["constraints"]).iter().enumerate() {
        let path = format!("{path}.constraints[{index}]");
        known_requests(errors, &constraint["requests"], &names, &format!("{path}.requests"));
        let (matching, distinct) = (&constraint["matchAttribute"], &constraint["distinctAttribute"]);
        match (matching.is_null(), distinct.is_null()) {
            (true, true) => errors.push(FieldError::required(
                &path,
                "exactly one of `matchAttribute` or `distinctAttribute` is required",
            )),
            (false, true) => qualified(errors, matching, &format!("{path}.matchAttribute")),
            (true, false) => qualified(errors, distinct, &format!("{path}.distinctAttribute")),
            (false, false) => errors.push(FieldError::forbidden(
                &path,
                "exactly one of `matchAttribute` or `distinctAttribute` is required",
            )),
        }
    }
    at_most(errors, items(&devices["config"]), MAX, &format!("{path}.config"));
    for (index, config) in items(&devices["config"]).iter().enumerate() {
        let path = format!("{path}.config[{index}]");
        known_requests(errors, &config["requests"], &names, &format!("{path}.requests"));
        configuration(errors, config, &path);
    }
}

/// `Too many`.
pub fn at_most(errors: &mut Errors, list: &[Value], max: usize, path: &str) {
    if list.len() > max {
        errors.push(FieldError::too_many(path, list.len(), max));
    }
}

fn request_name(errors: &mut Errors, name: &Value, path: &str) {
    if text(name).is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        invalid_all(errors, path, name, dns_label_messages(text(name)));
    }
}

fn request(errors: &mut Errors, request: &Value, path: &str) {
    let alternatives = items(&request["firstAvailable"]);
    match (request["exactly"].is_object(), alternatives.is_empty()) {
        (false, true) => {
            let detail = "exactly one of `exactly` or `firstAvailable` is required";
            errors.push(FieldError::required(path, detail));
        }
        (true, false) => {
            let detail = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.push(FieldError::invalid(path, &Value::Null, detail));
        }
        (true, true) => exact(errors, &request["exactly"], &format!("{path}.exactly")),
        (false, false) => {
            let path = format!("{path}.firstAvailable");
            at_most(errors, alternatives, MAX_ALTERNATIVES, &path);
            let mut names = BTreeSet::new();
            for (index, alternative) in alternatives.iter().enumerate() {
                let path = format!("{path}[{index}]");
                request_name(errors, &alternative["name"], &format!("{path}.name"));
                if !names.insert(text(&alternative["name"])) {
                    errors.push(FieldError::duplicate(&path, &alternative["name"]));
                }
                exact(errors, alternative, &path);
            }
        }
    }
}

fn exact(errors: &mut Errors, request: &Value, path: &str) {
    let (class, class_path) = (&request["deviceClassName"], format!("{path}.deviceClassName"));
    if text(class).is_empty() {
        errors.push(FieldError::required(class_path, ""));
    } else {
        invalid_all(errors, &class_path, class, dns_subdomain_messages(text(class)));
    }
    selectors(errors, &request["selectors"], &format!("{path}.selectors"));
    let (mode, count) = (&request["allocationMode"], &request["count"]);
    match text(mode) {
        "ExactCount" if number(count) <= 0 => {
            errors.push(FieldError::invalid(format!("{path}.count"), count, "must be greater than zero"));
        }
        "All" if number(count) != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.push(FieldError::invalid(format!("{path}.count"), count, detail));
        }
        "ExactCount" | "All" => {}
        _ => errors.push(FieldError::not_supported(format!("{path}.allocationMode"), mode, &["All", "ExactCount"])),
    }
}

/// Selectors of devices: each is a CEL expression.
pub fn selectors(errors: &mut Errors, selectors: &Value, path: &str) {
    at_most(errors, items(selectors), MAX, path);
    for (index, selector) in items(selectors).iter().enumerate() {
        let path = format!("{path}[{index}].cel");
        if !selector["cel"].is_object() {
            errors.push(FieldError::required(path, ""));
        } else if text(&selector["cel"]["expression"]).is_empty() {
            errors.push(FieldError::required(format!("{path}.expression"), ""));
        }
    }
}

/// A configuration that only a driver understands.
pub fn configuration(errors: &mut Errors, config: &Value, path: &str) {
    let (opaque, path) = (&config["opaque"], format!("{path}.opaque"));
    if !opaque.is_object() {
        return errors.push(FieldError::required(path, ""));
    }
    driver_name(errors, &opaque["driver"], &format!("{path}.driver"));
    let (parameters, path) = (&opaque["parameters"], format!("{path}.parameters"));
    match parameters {
        Value::Null => errors.push(FieldError::required(path, "")),
        Value::Object(_) => {}
        _ => errors.push(FieldError::invalid(path, &"<value omitted>".into(), "must be a valid JSON object")),
    }
}

fn known_requests(errors: &mut Errors, requests: &Value, names: &BTreeSet<String>, path: &str) {
    let all = items(requests);
    at_most(errors, all, MAX, path);
    for (index, name) in all.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if all[..index].contains(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
        if !names.contains(text(name)) {
            let detail = "must be the name of a request in the claim or the name of a request and a subrequest separated \
                by '/'";
            errors.push(FieldError::invalid(&path, name, detail));
        }
    }
}

/// The name of an attribute with its domain.
fn qualified(errors: &mut Errors, name: &Value, path: &str) {
    let given = text(name);
    if given.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    let Some((domain, identifier)) = given.split_once('/') else {
        return errors.push(FieldError::invalid(path, name, "must include a domain"));
    };
    invalid_all(errors, path, &domain.into(), dns_subdomain_messages(domain));
    c_identifier(errors, &identifier.into(), path);
}

/// The name of an attribute or capacity without a domain.
pub fn c_identifier(errors: &mut Errors, name: &Value, path: &str) {
    let given = text(name);
    if given.len() > 32 {
        errors.push(FieldError::too_long(path, 32));
    }
    let first = given.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !first || !given.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        let detail = "a valid C identifier must start with alphabetic character or '_', followed by a string of \
            alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is \
            '[A-Za-z_][A-Za-z0-9_]*')";
        errors.push(FieldError::invalid(path, name, detail));
    }
}
