//! `CertificateApproval`: who approves a CertificateSigningRequest must be allowed to for its signer.

use async_trait::async_trait;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::api::kind::Subresource;
use crate::api::kinds::gvr::CERTIFICATE_SIGNING_REQUESTS;
use crate::api::meta::text;
use crate::api::{Status, StatusResult};
use crate::apiserver::{ApiServer, User, authz};

pub(super) struct CertificateApproval;

#[async_trait]
impl Plugin for CertificateApproval {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Update
            && attributes.kind.gvr == CERTIFICATE_SIGNING_REQUESTS
            && attributes.subresource == Some(Subresource::Approval)
    }

    async fn validate(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        _: &Value,
        old: Option<&Value>,
    ) -> StatusResult<()> {
        let signer = old.map(|old| text(&old["spec"]["signerName"])).unwrap_or_default();
        if may(server, attributes.user, "approve", signer) {
            return Ok(());
        }
        let why = format!("user not permitted to approve requests with signerName {signer:?}");
        Err(Status::forbidden(&attributes.kind.gvr, &attributes.name, &why))
    }
}

/// Whether a user may `approve` or `sign` for a signer, by its name or its domain's (`IsAuthorizedForSignerName`).
pub(super) fn may(server: &ApiServer, user: &User, verb: &str, signer: &str) -> bool {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    [signer, &domain].into_iter().any(|name| {
        let wanted =
            authz::Attributes { verb, group: "certificates.k8s.io", resource: "signers", name, ..Default::default() };
        server.allowed(user, &wanted)
    })
}
