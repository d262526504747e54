//! CertificateSigningRequests (`pkg/apis/certificates`, `pkg/registry/certificates`).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{cluster_scoped, gvr, names};
use crate::api::certificates::Request;
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{items, text};
use crate::api::printers::{age, age_column, column, human_duration, name, name_column, or_none};
use crate::api::status::FieldError;
use crate::api::validation::Errors;
use crate::api::validation::meta::{dns_label_messages, dns_subdomain_messages};

const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
/// Conditions that are only ever true, and never go.
const LASTING: [&str; 3] = ["Approved", "Denied", "Failed"];
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["csr"]),
        subresources: vec![Subresource::Approval, Subresource::Status],
        ..cluster_scoped(
            gvr::CERTIFICATE_SIGNING_REQUESTS,
            "CertificateSigningRequest",
            Arc::new(CertificateSigningRequests),
        )
    }
}

struct CertificateSigningRequests;

/// What an update may touch beside the metadata.
#[derive(Clone, Copy, PartialEq, Eq)]
enum May {
    Neither,
    Approve,
    Issue,
}

impl Strategy for CertificateSigningRequests {
    fn prepare_for_create(&self, object: &mut Value) {
        if let Some(object) = object.as_object_mut() {
            object.insert("status".into(), serde_json::json!({}));
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        validate(object, None)
    }

    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        if let Some(object) = object.as_object_mut() {
            object.insert("spec".into(), old["spec"].clone());
        }
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        validate_update(object, old, May::Neither)
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        validate_update(object, old, May::Issue)
    }

    fn validate_special_update(&self, _: Subresource, object: &Value, old: &Value) -> Vec<FieldError> {
        validate_update(object, old, May::Approve)
    }

    /// Anything.
    fn validate_name(&self, _: &str) -> Vec<String> {
        Vec::new()
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            age_column(),
            column("SignerName", "string", SIGNER_NAME),
            column("Requestor", "string", REQUEST),
            column("RequestedDuration", "string", EXPIRATION),
            column("Condition", "string", CONDITIONS),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let duration = spec["expirationSeconds"].as_i64().map(|s| human_duration(SignedDuration::from_secs(s)));
        vec![
            name(object),
            age(object, now),
            or_none(text(&spec["signerName"])).into(),
            text(&spec["username"]).into(),
            duration.unwrap_or_else(|| "<none>".to_owned()).into(),
            condition(object).into(),
        ]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("spec.signerName", text(&object["spec"]["signerName"]).to_owned())]
    }

    fn knows_field(&self, field: &str) -> bool {
        field == "spec.signerName"
    }
}

const SIGNER_NAME: &str = "signerName indicates the requested signer, and is a qualified name.\n\nList/watch requests for \
    CertificateSigningRequests can filter on this field using a \"spec.signerName=NAME\" fieldSelector.\n\nWell-known \
    Kubernetes signers are:\n 1. \"kubernetes.io/kube-apiserver-client\": issues client certificates that can be used to \
    authenticate to kube-apiserver.\n  Requests for this signer are never auto-approved by kube-controller-manager, can be \
    issued by the \"csrsigning\" controller in kube-controller-manager.\n 2. \"kubernetes.io/kube-apiserver-client-kubelet\": \
    issues client certificates that kubelets use to authenticate to kube-apiserver.\n  Requests for this signer can be \
    auto-approved by the \"csrapproving\" controller in kube-controller-manager, and can be issued by the \"csrsigning\" \
    controller in kube-controller-manager.\n 3. \"kubernetes.io/kubelet-serving\" issues serving certificates that kubelets \
    use to serve TLS endpoints, which kube-apiserver can connect to securely.\n  Requests for this signer are never \
    auto-approved by kube-controller-manager, and can be issued by the \"csrsigning\" controller in \
    kube-controller-manager.\n\nMore details are available at \
    https://k8s.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers\n\nCustom signerNames \
    can also be specified. The signer defines:\n 1. Trust distribution: how trust (CA bundles) are distributed.\n 2. \
    Permitted subjects: and behavior when a disallowed subject is requested.\n 3. Required, permitted, or forbidden x509 \
    extensions in the request (including whether subjectAltNames are allowed, which types, restrictions on allowed values) \
    and behavior when a disallowed extension is requested.\n 4. Required, permitted, or forbidden key usages / extended key \
    usages.\n 5. Expiration/certificate lifetime: whether it is fixed by the signer, configurable by the admin.\n 6. Whether \
    or not requests for CA certificates are allowed.";
const REQUEST: &str = "request contains an x509 certificate signing request encoded in a \"CERTIFICATE REQUEST\" PEM block. \
    When serialized as JSON or YAML, the data is additionally base64-encoded.";
const EXPIRATION: &str = "expirationSeconds is the requested duration of validity of the issued certificate. The \
    certificate signer may issue a certificate with a different validity duration so a client must check the delta between \
    the notBefore and and notAfter fields in the issued certificate to determine the actual duration.\n\nThe v1.22+ in-tree \
    implementations of the well-known Kubernetes signers will honor this field as long as the requested duration is not \
    greater than the maximum duration they will honor per the --cluster-signing-duration CLI flag to the Kubernetes \
    controller manager.\n\nCertificate signers may not honor this field for various reasons:\n\n  1. Old signer that is \
    unaware of the field (such as the in-tree\n     implementations prior to v1.22)\n  2. Signer whose configured maximum is \
    shorter than the requested duration\n  3. Signer whose configured minimum is longer than the requested duration\n\nThe \
    minimum valid value for expirationSeconds is 600, i.e. 10 minutes.";
const CONDITIONS: &str =
    "conditions applied to the request. Known conditions are \"Approved\", \"Denied\", and \"Failed\".";

/// `Approved,Issued` and the like.
fn condition(object: &Value) -> String {
    let status = &object["status"];
    let has = |kind: &str| items(&status["conditions"]).iter().any(|c| c["type"] == kind);
    let mut words = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    }
    .to_owned();
    if has("Failed") {
        words += ",Failed";
    }
    if !text(&status["certificate"]).is_empty() {
        words += ",Issued";
    }
    words
}

/// The request of an object.
///
/// # Errors
/// Why it is none.
pub fn request(object: &Value) -> Result<Request, String> {
    let pem = STANDARD.decode(text(&object["spec"]["request"])).map_err(|error| error.to_string())?;
    Request::parse(&pem)
}

/// With `old`, what is wrong there already is tolerated.
fn validate(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Errors::new();
    let spec = &object["spec"];
    if let Err(why) = request(object) {
        errors.push(FieldError::invalid("spec.request", &spec["request"], &why));
    }
    let usages = items(&spec["usages"]);
    if usages.is_empty() {
        errors.push(FieldError::required("spec.usages", ""));
    }
    // The spec of an object that exists does not change.
    if old.is_none() {
        for (index, usage) in usages.iter().enumerate().filter(|(_, usage)| !USAGES.contains(&text(usage))) {
            errors.push(FieldError::not_supported(format!("spec.usages[{index}]"), usage, &USAGES));
        }
        for (index, usage) in usages.iter().enumerate().filter(|(index, usage)| usages[..*index].contains(usage)) {
            errors.push(FieldError::duplicate(format!("spec.usages[{index}]"), usage));
        }
        match text(&spec["signerName"]) == LEGACY_SIGNER {
            true => errors.push(FieldError::invalid(
                "spec.signerName",
                &spec["signerName"],
                "the legacy signerName is not allowed via this API version",
            )),
            false => signer_name(&mut errors, "spec.signerName", &spec["signerName"]),
        }
    }
    if spec["expirationSeconds"].as_i64().is_some_and(|seconds| seconds < 600) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid("spec.expirationSeconds", &spec["expirationSeconds"], detail));
    }
    conditions(&mut errors, &object["status"]["conditions"]);
    let certificate = &object["status"]["certificate"];
    if old.is_none_or(|old| old["status"]["certificate"] != *certificate)
        && let Err(why) = check_certificate(text(certificate))
    {
        errors.push(FieldError::invalid("status.certificate", &"<certificate data>".into(), &why));
    }
    errors
}

/// `example.com/name` (`ValidateSignerName`).
fn signer_name(errors: &mut Errors, path: &str, value: &Value) {
    let signer = text(value);
    if signer.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    let Some((domain, name)) = signer.split_once('/').filter(|(_, name)| !name.contains('/')) else {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return errors.push(FieldError::invalid(path, value, detail));
    };
    if domain.len() > 253 {
        errors.push(FieldError::too_long(path, 253));
    }
    let mut check = |part: &str, messages: fn(&str) -> Vec<String>| {
        for label in part.split('.') {
            for message in messages(label) {
                errors.push(FieldError::invalid(path, &part.into(), &format!("validating label {label:?}: {message}")));
            }
        }
    };
    check(domain, dns_label_messages);
    check(name, dns_subdomain_messages);
    if !domain.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(path, &domain.into(), detail));
    }
    if name.len() > 253 + 63 + 1 {
        errors.push(FieldError::too_long(path, 253 + 63 + 1));
    }
}

fn conditions(errors: &mut Errors, conditions: &Value) {
    let all = items(conditions);
    for (index, condition) in all.iter().enumerate() {
        let path = format!("status.conditions[{index}]");
        let kind = text(&condition["type"]);
        if kind.is_empty() {
            errors.push(FieldError::required(format!("{path}.type"), ""));
        }
        let allowed: &[&str] = if LASTING.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        match text(&condition["status"]) {
            "" => errors.push(FieldError::required(format!("{path}.status"), "")),
            status if !allowed.contains(&status) => {
                errors.push(FieldError::not_supported(format!("{path}.status"), &condition["status"], allowed));
            }
            _ => {}
        }
        let before = |other: &str| all[..index].iter().any(|c| c["type"] == other);
        if kind == "Approved" && before("Denied") || kind == "Denied" && before("Approved") {
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.push(FieldError::invalid(format!("{path}.type"), &condition["type"], detail));
        }
        if before(kind) {
            errors.push(FieldError::duplicate(format!("{path}.type"), &condition["type"]));
        }
    }
}

/// PEM blocks of certificates and nothing else; empty is fine.
fn check_certificate(base64: &str) -> Result<(), String> {
    let pem = STANDARD.decode(base64).map_err(|error| error.to_string())?;
    if pem.is_empty() {
        return Ok(());
    }
    let mut blocks = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(&pem) {
        let block = block.map_err(|error| error.to_string())?;
        if block.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        block.parse_x509().map_err(|error| format!("x509: malformed certificate: {error}"))?;
        blocks += 1;
    }
    if blocks > 0 { Ok(()) } else { Err("must contain at least one CERTIFICATE PEM block".to_owned()) }
}

fn validate_update(object: &Value, old: &Value, may: May) -> Errors {
    let mut errors = validate(object, Some(old));
    let of = |object: &Value, kind: &str| -> Vec<Value> {
        items(&object["status"]["conditions"]).iter().filter(|c| c["type"] == kind).cloned().collect()
    };
    let mut forbid = |detail: String| errors.push(FieldError::forbidden("status.conditions", &detail));
    for kind in LASTING {
        if of(object, kind).len() < of(old, kind).len() {
            forbid(format!("updates may not remove a condition of type {kind:?}"));
        }
    }
    for kind in ["Approved", "Denied"].into_iter().filter(|_| may != May::Approve) {
        let (new, old) = (of(object, kind), of(old, kind));
        if new.len() > old.len() {
            forbid(format!("updates may not add a condition of type {kind:?}"));
        } else if new.len() == old.len() && new != old {
            forbid(format!("updates may not modify a condition of type {kind:?}"));
        }
    }
    let (new, old) = (&object["status"]["certificate"], &old["status"]["certificate"]);
    if text(new) != text(old) {
        if may != May::Issue {
            errors.push(FieldError::forbidden("status.certificate", "updates may not set certificate content"));
        } else if !text(old).is_empty() {
            let detail = "updates may not modify existing certificate content";
            errors.push(FieldError::forbidden("status.certificate", detail));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn csr() -> Value {
        let key = rcgen::KeyPair::generate().expect("a key");
        let request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
        let pem = request.pem().expect("PEM");
        json!({"metadata": {"name": "a"}, "spec": {"request": STANDARD.encode(pem), "usages": ["client auth"],
            "signerName": "example.com/s"}, "status": {}})
    }

    fn said(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn requests_are_checked_in_kubernetes_words() {
        assert_eq!(said(&validate(&csr(), None)), [""; 0]);
        let mut bad = csr();
        bad["spec"] = json!({"request": "bm90YWNzcg==", "signerName": "nodomain", "usages": ["signing", "signing"],
            "expirationSeconds": 599});
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        assert_eq!(
            said(&validate(&bad, None)),
            [
                "spec.request: Invalid value: \"bm90YWNzcg==\": PEM block type must be CERTIFICATE REQUEST".to_owned(),
                "spec.usages[1]: Duplicate value: \"signing\"".to_owned(),
                format!("spec.signerName: Invalid value: \"nodomain\": {detail}"),
                "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)"
                    .to_owned(),
            ]
        );
        let mut legacy = csr();
        legacy["spec"]["signerName"] = LEGACY_SIGNER.into();
        assert!(said(&validate(&legacy, None))[0].contains("the legacy signerName is not allowed"));
    }

    #[test]
    fn approval_and_certificate_have_their_own_doors() {
        let strategy = CertificateSigningRequests;
        let old = csr();
        let mut approved = old.clone();
        approved["status"]["conditions"] = json!([{"type": "Approved", "status": "True"}]);
        assert_eq!(said(&strategy.validate_special_update(Subresource::Approval, &approved, &old)), [""; 0]);
        let words = ["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""];
        assert_eq!(said(&strategy.validate_status_update(&approved, &old)), words);
        let words = ["status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""];
        assert_eq!(said(&strategy.validate_special_update(Subresource::Approval, &old, &approved)), words);
        let mut both = approved.clone();
        both["status"]["conditions"].as_array_mut().expect("a list").push(json!({"type": "Denied", "status": "True"}));
        assert!(said(&validate(&both, None))[0].contains("mutually exclusive"));
        let key = rcgen::KeyPair::generate().expect("a key");
        let pem = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate").pem();
        let mut issued = approved.clone();
        issued["status"]["certificate"] = STANDARD.encode(&pem).into();
        assert_eq!(said(&strategy.validate_status_update(&issued, &approved)), [""; 0]);
        assert_eq!(said(&strategy.validate_update(&issued, &approved)).len(), 1);
        let mut other = issued.clone();
        other["status"]["certificate"] = STANDARD.encode(format!("{pem}{pem}")).into();
        let words = ["status.certificate: Forbidden: updates may not modify existing certificate content"];
        assert_eq!(said(&strategy.validate_status_update(&other, &issued)), words);
        assert_eq!((condition(&old), condition(&issued)), ("Pending".to_owned(), "Approved,Issued".to_owned()));
        assert!(check_certificate(&STANDARD.encode("nonsense")).is_err());
    }
}
