//! `DefaultIngressClass`: an Ingress that names no class gets the default one.

use async_trait::async_trait;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::api::kinds::ingress_class::is_default;
use crate::api::{StatusResult, meta};
use crate::apiserver::{ApiServer, registry};

pub(super) struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Create && attributes.is("networking.k8s.io", "ingresses")
    }

    async fn admit(
        &self,
        server: &ApiServer,
        _: &Attributes<'_>,
        ingress: &mut Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        let named = !ingress["spec"]["ingressClassName"].is_null()
            || meta::annotation(ingress, "kubernetes.io/ingress.class").is_some();
        if named || !ingress["spec"].is_object() {
            return Ok(());
        }
        let prefix = registry::prefix("networking.k8s.io", "ingressclasses", "");
        let classes = server.storage.list(&prefix, None, 0, 0).await.map_err(registry::storage_failed)?;
        // The newest default wins; among equals the first by name.
        let mut defaults: Vec<_> = classes.entries.iter().map(|e| e.value()).filter(|c| is_default(c)).collect();
        defaults.sort_by_key(|c| {
            std::cmp::Reverse(c["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned())
        });
        if let Some(class) = defaults.first() {
            ingress["spec"]["ingressClassName"] = meta::name(class).into();
        }
        Ok(())
    }
}
