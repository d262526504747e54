//! `CertificateSigning`: who issues a certificate (or says that it failed) must be allowed to for its signer.

use async_trait::async_trait;
use serde_json::Value;

use super::certificate_approval::may;
use super::{Attributes, Operation, Plugin};
use crate::api::kind::Subresource;
use crate::api::kinds::gvr::CERTIFICATE_SIGNING_REQUESTS;
use crate::api::meta::{items, text};
use crate::api::{Status, StatusResult};
use crate::apiserver::ApiServer;

pub(super) struct CertificateSigning;

#[async_trait]
impl Plugin for CertificateSigning {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Update
            && attributes.kind.gvr == CERTIFICATE_SIGNING_REQUESTS
            && attributes.subresource == Some(Subresource::Status)
    }

    async fn validate(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        object: &Value,
        old: Option<&Value>,
    ) -> StatusResult<()> {
        let old = old.unwrap_or(&Value::Null);
        let (status, before) = (&object["status"], &old["status"]);
        let signer = text(&old["spec"]["signerName"]);
        let changed = text(&status["certificate"]) != text(&before["certificate"])
            || items(&status["conditions"]) != items(&before["conditions"]);
        if !changed || may(server, attributes.user, "sign", signer) {
            return Ok(());
        }
        let why = format!("user not permitted to sign requests with signerName {signer:?}");
        Err(Status::forbidden(&attributes.kind.gvr, &attributes.name, &why))
    }
}
