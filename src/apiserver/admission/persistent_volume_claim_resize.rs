//! `PersistentVolumeClaimResize`: only bound claims of classes that allow it may grow.

use async_trait::async_trait;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::api::meta::{self, text};
use crate::api::quantity::Quantity;
use crate::api::{Status, StatusResult};
use crate::apiserver::{ApiServer, registry};

pub(super) struct PersistentVolumeClaimResize;

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Update && attributes.is("", "persistentvolumeclaims")
    }

    async fn validate(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        claim: &Value,
        old: Option<&Value>,
    ) -> StatusResult<()> {
        let request = |claim: &Value| Quantity::of(&claim["spec"]["resources"]["requests"]["storage"]);
        let Some(old) = old.filter(|old| request(claim) > request(old)) else { return Ok(()) };
        let forbidden = |why: &str| Err(Status::forbidden(&attributes.kind.gvr, meta::name(claim), why));
        if text(&old["status"]["phase"]) != "Bound" {
            return forbidden("Only bound persistent volume claims can be expanded");
        }
        let class = text(&claim["spec"]["storageClassName"]);
        let key = registry::key("storage.k8s.io", "storageclasses", "", class);
        let found = server.storage.get(&key).await.map_err(registry::storage_failed)?;
        let allowed = found.is_some_and(|entry| entry.value()["allowVolumeExpansion"] == true);
        if class.is_empty() || claim["spec"]["storageClassName"] != old["spec"]["storageClassName"] || !allowed {
            return forbidden(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                 support resize",
            );
        }
        Ok(())
    }
}
