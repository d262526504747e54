//! `CertificateSubjectRestriction`: nobody asks for a client certificate of the group that may do everything.

use async_trait::async_trait;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::api::certificates::CLIENT_SIGNER;
use crate::api::kinds::certificate_signing_request::request;
use crate::api::{Status, StatusResult};
use crate::apiserver::{ApiServer, authn};

pub(super) struct CertificateSubjectRestriction;

#[async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Create && attributes.is("certificates.k8s.io", "certificatesigningrequests")
    }

    async fn validate(
        &self,
        _: &ApiServer,
        attributes: &Attributes<'_>,
        object: &Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        if object["spec"]["signerName"] != CLIENT_SIGNER {
            return Ok(());
        }
        let forbidden = |why: String| Status::forbidden(&attributes.kind.gvr, &attributes.name, &why);
        let request = request(object).map_err(|error| forbidden(format!("failed to parse CSR: {error}")))?;
        if request.organizations.iter().any(|group| group == authn::MASTERS) {
            let why = format!("use of {CLIENT_SIGNER} signer with {} group is not allowed", authn::MASTERS);
            return Err(forbidden(why));
        }
        Ok(())
    }
}
