//! Removes CertificateSigningRequests that have been dealt with, or that nobody deals with
//! (`pkg/controller/certificates/cleaner`).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use super::caches::Caches;
use super::csr_approving::is_issued;
use super::plan::{Action, Plan};
use super::{Controller, Enqueue};
use crate::api::certificates::not_after;
use crate::client::cache::Key;

/// After that a request goes on which somebody has decided.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
/// After that one on which nobody has.
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// The controller.
pub struct CsrCleanerController;

impl Controller for CsrCleanerController {
    fn name(&self) -> &'static str {
        "csrcleaner"
    }
    fn account(&self) -> &'static str {
        "certificate-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.certificate_signing_requests);
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        caches.certificate_signing_requests.get(key).map(|csr| reconcile(&csr, now)).unwrap_or_default()
    }
}

/// The decision.
pub fn reconcile(csr: &CertificateSigningRequest, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    match deadline(csr) {
        Some(at) if at <= now => plan.push(Action::delete(csr)),
        Some(at) => plan.requeue(Duration::try_from(at.duration_since(now)).unwrap_or_default()),
        None => {}
    }
    plan
}

/// When a request goes; `None`: it is approved, and its signer has not come to it yet.
fn deadline(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let status = csr.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    if conditions.is_empty() {
        return Some(csr.metadata.creation_timestamp.as_ref()?.0 + PENDING);
    }
    let ends = conditions.iter().filter_map(|condition| {
        let counts = match condition.type_.as_str() {
            "Denied" | "Failed" => true,
            "Approved" => is_issued(csr),
            _ => false,
        };
        counts.then(|| condition.last_update_time.as_ref().map(|time| time.0 + DECIDED))?
    });
    let expired = status.certificate.and_then(|pem| not_after(&pem.0));
    ends.chain(expired).min()
}

#[cfg(test)]
mod tests {
    use super::super::csr_approving::tests::csr;
    use super::*;
    use serde_json::{Value, json};

    fn when(change: impl FnOnce(&mut Value)) -> Option<String> {
        deadline(&csr("n", "x", change)).map(|at| at.to_string())
    }

    #[test]
    fn decided_requests_go_after_an_hour_and_others_after_a_day() {
        assert_eq!(when(|_| {}).as_deref(), Some("2026-01-02T00:00:00Z"));
        let condition =
            |kind: &str| json!([{"type": kind, "status": "True", "lastUpdateTime": "2026-01-01T05:00:00Z"}]);
        let decided = |kind: &'static str| when(move |csr| csr["status"]["conditions"] = condition(kind));
        assert_eq!(decided("Denied").as_deref(), Some("2026-01-01T06:00:00Z"));
        assert_eq!(decided("Failed").as_deref(), Some("2026-01-01T06:00:00Z"));
        assert_eq!(decided("Approved"), None, "not issued");
        let issued = when(|csr| {
            csr["status"]["conditions"] = condition("Approved");
            csr["status"]["certificate"] = "eA==".into();
        });
        assert_eq!(issued.as_deref(), Some("2026-01-01T06:00:00Z"));
        let csr = csr("n", "x", |_| {});
        let at = |time: &str| reconcile(&csr, time.parse().expect("a time"));
        assert!(at("2026-01-01T23:59:00Z").is_empty() && !at("2026-01-02T00:00:00Z").is_empty());
        assert_eq!(at("2026-01-01T23:59:00Z").requeue_after, Some(Duration::from_secs(60)));
    }
}
