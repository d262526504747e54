//! Issues the certificates of approved requests for Kubernetes' own signers (`pkg/controller/certificates/signer`).

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use sha2::{Digest, Sha256};

use super::caches::Caches;
use super::csr_approving::{has, is_issued};
use super::plan::{Action, Plan};
use super::{Controller, Enqueue};
use crate::api::certificates::{
    CLIENT_SIGNER, Grant, KUBELET_CLIENT_SIGNER, KUBELET_SERVING_SIGNER, Request, check_client_usages, issue,
};
use crate::client::cache::Key;
use crate::client::typed::Meta;

/// `--cluster-signing-duration`.
const LONGEST: SignedDuration = SignedDuration::from_hours(365 * 24);
const SHORTEST: SignedDuration = SignedDuration::from_mins(10);
/// Certificates begin to hold that long before they are issued, for clocks that are behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
/// Certificates that hold for less are not shortened by [`BACKDATE`].
const SHORT: SignedDuration = SignedDuration::from_hours(8);

/// The cluster's authority.
#[derive(Clone, Default)]
pub struct Authority {
    /// Its certificate, PEM.
    pub cert: String,
    /// Its key, PEM.
    pub key: String,
}

/// The controller.
pub struct CsrSigningController {
    /// Who signs.
    pub authority: Arc<Authority>,
}

impl Controller for CsrSigningController {
    fn name(&self) -> &'static str {
        "csrsigning"
    }
    fn account(&self) -> &'static str {
        "certificate-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.certificate_signing_requests);
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let csr = caches.certificate_signing_requests.get(key);
        csr.map(|csr| reconcile(&csr, &self.authority, now)).unwrap_or_default()
    }
}

/// The decision.
pub fn reconcile(csr: &CertificateSigningRequest, authority: &Authority, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if !has(csr, "Approved") || has(csr, "Denied") || has(csr, "Failed") || is_issued(csr) {
        return plan;
    }
    let usages: Vec<&str> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
    let Ok(request) = Request::parse(&csr.spec.request.0) else { return plan };
    let checked = match csr.spec.signer_name.as_str() {
        KUBELET_CLIENT_SIGNER => request.check_kubelet_client(&usages),
        KUBELET_SERVING_SIGNER => request.check_kubelet_serving(&usages),
        CLIENT_SIGNER => check_client_usages(&usages),
        _ => return plan,
    };
    let issued = checked.and_then(|()| issue(&request, &authority.cert, &authority.key, &grant(csr, &usages, now)));
    let mut updated = csr.clone();
    let status = updated.status.get_or_insert_default();
    match issued {
        Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
        Err(why) => status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
            type_: "Failed".into(),
            status: "True".into(),
            reason: Some("SignerValidationFailure".into()),
            message: Some(why),
            ..Default::default()
        }),
    }
    plan.push(Action::update_status(&updated));
    plan
}

fn grant<'a>(csr: &CertificateSigningRequest, usages: &'a [&'a str], now: Timestamp) -> Grant<'a> {
    let asked = csr.spec.expiration_seconds.map(|seconds| SignedDuration::from_secs(seconds.into()));
    let duration = asked.map_or(LONGEST, |asked| asked.clamp(SHORTEST, LONGEST));
    let end = if duration < SHORT { duration } else { duration - BACKDATE };
    // The same request gets the same number: whoever signs twice by mistake makes no second certificate.
    let digest = Sha256::new().chain_update(csr.uid()).chain_update(&csr.spec.request.0).finalize();
    let mut serial = [0; 16];
    serial.copy_from_slice(&digest[..16]);
    Grant { usages, not_before: now - BACKDATE, not_after: now + end, serial }
}

#[cfg(test)]
mod tests {
    use super::super::csr_approving::tests::csr;
    use super::super::plan::Write;
    use super::*;
    use crate::api::certificates::not_after;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    fn status(csr: &CertificateSigningRequest) -> Option<Value> {
        let key = rcgen::KeyPair::generate().expect("a key");
        let cert = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate").pem();
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let plan = reconcile(csr, &Authority { cert, key: key.serialize_pem() }, now);
        let action = plan.actions().next()?;
        let Write::Update { subresource: "status", object, .. } = &action.write else { panic!("{action:?}") };
        Some(object["status"].clone())
    }

    fn approved(object: &mut Value) {
        object["status"]["conditions"] = json!([{"type": "Approved", "status": "True"}]);
    }

    #[test]
    fn approved_requests_get_their_certificate_for_as_long_as_they_asked() {
        assert_eq!(status(&csr("n", "x", |_| {})), None, "not approved");
        let end = |seconds: Option<i64>| {
            let csr = csr("n", "x", |csr| {
                approved(csr);
                csr["spec"]["expirationSeconds"] = json!(seconds);
            });
            let status = status(&csr).expect("issued");
            let pem = STANDARD.decode(status["certificate"].as_str().expect("text")).expect("base64");
            not_after(&pem).expect("a certificate").to_string()
        };
        assert_eq!(end(None), "2026-12-31T23:55:00Z");
        assert_eq!(end(Some(3600)), "2026-01-01T01:00:00Z");
        assert_eq!(end(Some(i64::from(i32::MAX))), "2026-12-31T23:55:00Z");
    }

    #[test]
    fn what_a_signer_does_not_sign_fails_for_good() {
        let csr = csr("n", "x", |csr| {
            approved(csr);
            csr["spec"]["signerName"] = CLIENT_SIGNER.into();
            csr["spec"]["usages"] = json!(["server auth"]);
        });
        let failed = status(&csr).expect("said");
        assert_eq!(failed["conditions"][1]["reason"], "SignerValidationFailure");
        assert_eq!(failed["conditions"][1]["message"], "invalid usage for client certificate: server auth");
        let foreign = |object: &mut Value| {
            approved(object);
            object["spec"]["signerName"] = "example.com/mine".into();
        };
        assert_eq!(status(&super::super::csr_approving::tests::csr("n", "x", foreign)), None);
    }
}
