//! Approves requests of nodes for their client certificates (`pkg/controller/certificates/approver`), when whoever asks may.

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition;
use serde_json::{Value, json};

use super::caches::Caches;
use super::plan::{Action, Plan, Write};
use super::{Controller, Enqueue};
use crate::api::certificates::{KUBELET_CLIENT_SIGNER, Request};
use crate::client::cache::Key;
use crate::client::typed::{gvr, to_value};

/// The controller.
pub struct CsrApprovingController;

impl Controller for CsrApprovingController {
    fn name(&self) -> &'static str {
        "csrapproving"
    }
    fn account(&self) -> &'static str {
        "certificate-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.certificate_signing_requests);
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _: Timestamp) -> Plan {
        caches.certificate_signing_requests.get(key).map(|csr| reconcile(&csr)).unwrap_or_default()
    }
}

/// Whether a request has a condition.
pub fn has(csr: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = csr.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == kind)
}

/// Whether a certificate was issued.
pub fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|status| status.certificate.as_ref()).is_some_and(|pem| !pem.0.is_empty())
}

/// The decision.
pub fn reconcile(csr: &CertificateSigningRequest) -> Plan {
    let mut plan = Plan::default();
    if is_issued(csr) || has(csr, "Approved") || has(csr, "Denied") || csr.spec.signer_name != KUBELET_CLIENT_SIGNER {
        return plan;
    }
    let usages: Vec<&str> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
    // Admission has parsed it; one that is no node's is for people to approve.
    let Ok(request) = Request::parse(&csr.spec.request.0) else { return plan };
    if request.check_kubelet_client(&usages).is_err() {
        return plan;
    }
    let is_own = csr.spec.username.as_deref() == Some(&*request.common_name);
    let (subresource, message) = match is_own {
        true => ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."),
        false => ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."),
    };
    plan.push(Action::write(Write::ExpectAllowed { review: review(csr, subresource) }));
    let mut approved = csr.clone();
    let conditions = approved.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.push(CertificateSigningRequestCondition {
        type_: "Approved".into(),
        status: "True".into(),
        reason: Some("AutoApproved".into()),
        message: Some(message.into()),
        ..Default::default()
    });
    plan.push(Action::write(Write::Update {
        gvr: gvr::<CertificateSigningRequest>(),
        key: Key::of(csr),
        subresource: "approval",
        object: to_value(&approved),
    }));
    plan
}

/// Whether the one who asked may have such certificates.
fn review(csr: &CertificateSigningRequest, subresource: &str) -> Value {
    let spec = &csr.spec;
    json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
        "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
        "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests",
            "verb": "create", "subresource": subresource},
    }})
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::client::Object;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    /// A request of `user` for a node's certificate.
    pub fn csr(node: &str, user: &str, change: impl FnOnce(&mut Value)) -> CertificateSigningRequest {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
        let key = KeyPair::generate().expect("a key");
        let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
        let mut object = json!({"metadata": {"name": "csr", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"request": STANDARD.encode(pem), "signerName": KUBELET_CLIENT_SIGNER, "username": user,
                "groups": ["system:bootstrappers"], "usages": ["digital signature", "client auth"]}, "status": {}});
        change(&mut object);
        CertificateSigningRequest::parse(&object).expect("a request")
    }

    fn asked(csr: &CertificateSigningRequest) -> Option<String> {
        let plan = reconcile(csr);
        let actions: Vec<_> = plan.actions().collect();
        let [Action { write: Write::ExpectAllowed { review }, .. }, update] = actions[..] else {
            assert!(actions.is_empty());
            return None;
        };
        let Write::Update { subresource: "approval", object, .. } = &update.write else { panic!("{update:?}") };
        assert_eq!(object["status"]["conditions"][0]["reason"], "AutoApproved");
        assert_eq!(review["spec"]["user"], csr.spec.username.as_deref().unwrap_or_default());
        review["spec"]["resourceAttributes"]["subresource"].as_str().map(str::to_owned)
    }

    #[test]
    fn nodes_requests_are_approved_once_for_those_who_may() {
        assert_eq!(asked(&csr("n", "system:bootstrap:abcdef", |_| {})).as_deref(), Some("nodeclient"));
        assert_eq!(asked(&csr("n", "system:node:n", |_| {})).as_deref(), Some("selfnodeclient"));
        let condition = |kind: &'static str| {
            csr("n", "x", move |csr| csr["status"]["conditions"] = json!([{"type": kind, "status": "True"}]))
        };
        assert_eq!(asked(&condition("Approved")), None);
        assert_eq!(asked(&condition("Denied")), None);
        assert_eq!(asked(&csr("n", "x", |csr| csr["spec"]["usages"] = json!(["server auth"]))), None);
        let other = |csr: &mut Value| csr["spec"]["signerName"] = "kubernetes.io/kube-apiserver-client".into();
        assert_eq!(asked(&csr("n", "x", other)), None);
    }
}
