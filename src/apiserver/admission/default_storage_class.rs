//! `DefaultStorageClass`: a claim that names no class gets the default one.

use async_trait::async_trait;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::api::{StatusResult, meta};
use crate::apiserver::{ApiServer, registry};

const ANNOTATION: &str = "storageclass.kubernetes.io/is-default-class";
const BETA_ANNOTATION: &str = "storageclass.beta.kubernetes.io/is-default-class";

pub(super) struct DefaultStorageClass;

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Create && attributes.is("", "persistentvolumeclaims")
    }

    async fn admit(
        &self,
        server: &ApiServer,
        _: &Attributes<'_>,
        claim: &mut Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        let named = !claim["spec"]["storageClassName"].is_null()
            || meta::annotation(claim, "volume.beta.kubernetes.io/storage-class").is_some();
        if named || !claim["spec"].is_object() {
            return Ok(());
        }
        let prefix = registry::prefix("storage.k8s.io", "storageclasses", "");
        let classes = server.storage.list(&prefix, None, 0, 0).await.map_err(registry::storage_failed)?;
        // The newest default wins; among equals the first by name.
        let mut defaults: Vec<_> = classes
            .entries
            .iter()
            .map(|e| e.value())
            .filter(|c| [ANNOTATION, BETA_ANNOTATION].iter().any(|a| meta::annotation(c, a) == Some("true")))
            .collect();
        defaults.sort_by_key(|c| {
            std::cmp::Reverse(c["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned())
        });
        if let Some(class) = defaults.first() {
            claim["spec"]["storageClassName"] = meta::name(class).into();
        }
        Ok(())
    }
}
