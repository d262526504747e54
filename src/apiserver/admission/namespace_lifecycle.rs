//! `NamespaceLifecycle`: nothing is created where there is no namespace or where it ends; three namespaces stay.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::api::{Status, StatusResult, meta};
use crate::apiserver::{ApiServer, registry};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        match attributes.operation {
            Operation::Delete => attributes.is("", "namespaces"),
            Operation::Create => attributes.kind.namespaced && attributes.kind.gvr.group != "authorization.k8s.io",
            _ => false,
        }
    }

    async fn admit(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        object: &mut Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        let namespaces = crate::api::Gvr::new("", "v1", "namespaces");
        let key = registry::key("", "namespaces", "", attributes.namespace);
        let entry = server.storage.get(&key).await.map_err(registry::storage_failed)?;
        let Some(entry) = entry else { return Err(Status::not_found(&namespaces, attributes.namespace)) };
        if !meta::is_terminating(&entry.value()) {
            return Ok(());
        }
        let namespace = attributes.namespace;
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Status::forbidden(&attributes.kind.gvr, meta::name(object), &why);
        status.details["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]);
        Err(status)
    }

    async fn validate(
        &self,
        _: &ApiServer,
        attributes: &Attributes<'_>,
        _: &Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        if attributes.operation == Operation::Delete && IMMORTAL.contains(&attributes.name.as_str()) {
            return Err(Status::forbidden(&attributes.kind.gvr, &attributes.name, "this namespace may not be deleted"));
        }
        Ok(())
    }
}
