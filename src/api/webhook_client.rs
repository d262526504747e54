//! `clientConfig` of webhooks and conversions: its validation (`k8s.io/apiserver/pkg/util/webhook/validation.go`).

use serde_json::Value;

use super::meta::text;
use super::status::FieldError;
use super::validation::Errors;

/// Exactly one of URL and Service, each well-formed, and a CA bundle that can be read.
pub fn validate(errors: &mut Errors, config: &Value, path: &str) {
    match (config["url"].as_str(), config["service"].is_object()) {
        (Some(_), false) => url(errors, &config["url"], &format!("{path}.url")),
        (None, true) => service(errors, &config["service"], &format!("{path}.service")),
        _ => errors.push(FieldError::required(path, "exactly one of url or service is required")),
    }
    ca_bundle(errors, config, path);
}

/// The CA bundle is PEM with certificates.
pub fn ca_bundle(errors: &mut Errors, config: &Value, path: &str) {
    use base64::Engine as _;
    let bundle = text(&config["caBundle"]);
    if bundle.is_empty() {
        return;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(bundle).unwrap_or_default();
    if certificates(&decoded).is_empty() {
        let why = "unable to load root certificates: unable to parse bytes as PEM block";
        errors.push(FieldError::invalid(format!("{path}.caBundle"), &config["caBundle"], why));
    }
}

/// The certificates of a PEM bundle, in DER; those that cannot be read are left out.
pub fn certificates(pem: &[u8]) -> Vec<Vec<u8>> {
    x509_parser::pem::Pem::iter_from_buffer(pem)
        .filter_map(Result::ok)
        .filter(|block| block.label == "CERTIFICATE" && block.parse_x509().is_ok())
        .map(|block| block.contents.clone())
        .collect()
}

fn url(errors: &mut Errors, value: &Value, path: &str) {
    const FORM: &str = "; desired format: https://host[/path]";
    let given = text(value);
    let mut invalid = |shown: &str, why: &str| errors.push(FieldError::invalid(path, &shown.into(), why));
    let parsed: Result<http::Uri, _> = given.split('#').next().unwrap_or_default().parse();
    let Ok(parsed) = parsed else {
        return errors.push(FieldError::required(path, &format!("url must be a valid URL: {given:?}{FORM}")));
    };
    let scheme = parsed.scheme_str().unwrap_or_default();
    if scheme != "https" {
        invalid(scheme, &format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let authority = parsed.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    if authority.rsplit('@').next().unwrap_or_default().is_empty() {
        invalid("", &format!("host must be specified{FORM}"));
    }
    if let Some((user, _)) = authority.rsplit_once('@') {
        invalid(user, "user information is not permitted in the URL");
    }
    if let Some((_, fragment)) = given.split_once('#') {
        invalid(fragment, "fragments are not permitted in the URL");
    }
    if let Some(query) = parsed.query() {
        invalid(query, "query parameters are not permitted in the URL");
    }
}

fn service(errors: &mut Errors, service: &Value, path: &str) {
    for field in ["name", "namespace"] {
        if text(&service[field]).is_empty() {
            errors.push(FieldError::required(format!("{path}.{field}"), &format!("service {field} is required")));
        }
    }
    if let Some(port) = service["port"].as_i64().filter(|port| !(1..=65535).contains(port)) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(FieldError::invalid(format!("{path}.port"), &port.into(), why));
    }
    let Some(given) = service["path"].as_str() else { return };
    if given.is_empty() || given == "/" {
        return;
    }
    let path = format!("{path}.path");
    let mut invalid = |why: &str| errors.push(FieldError::invalid(path.clone(), &service["path"], why));
    if given == "//" {
        return invalid("segment[0] may not be empty");
    }
    let Some(rest) = given.strip_prefix('/') else { return invalid("must start with a '/'") };
    let steps: Vec<&str> = rest.strip_suffix('/').unwrap_or(rest).split('/').collect();
    for (index, step) in steps.iter().enumerate() {
        if step.is_empty() {
            invalid(&format!("segment[{index}] may not be empty"));
            continue;
        }
        for message in crate::api::meta::validate_subdomain(step) {
            invalid(&format!("segment[{index}]: {message}"));
        }
    }
}
