//! Admission: what happens to every write between authorisation and storage. One file per plugin, one list.

mod app_armor;
mod certificate_approval;
mod certificate_signing;
mod certificate_subject_restriction;
mod configuration;
mod connection;
mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod persistent_volume_claim_resize;
mod pod_security;
mod pod_template;
mod priority;
pub(crate) mod registrations;
mod request;
pub(crate) mod resource_quota;
mod runtime_class;
mod service_account;
mod storage_object_in_use_protection;
mod taint_nodes_by_condition;
mod validating_admission_policy;
mod webhooks;

pub use configuration::{Configuration, read as read_configuration};
pub(crate) use connection::connect;

use async_trait::async_trait;
use serde_json::Value;

use self::request::Request;
use self::webhooks::Calls;
use super::registry::Context;
use super::{ApiServer, User};
use crate::api::kind::Subresource;
use crate::api::{Kind, StatusResult};

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed object.
    Update,
    /// The end of an object.
    Delete,
    /// A connection (exec, attach, port-forward, proxy).
    Connect,
}

/// What plugins know of a request beside the objects.
pub(crate) struct Attributes<'a> {
    /// Who asks.
    pub user: &'a User,
    /// Takes warnings and audit annotations.
    pub context: &'a Context<'a>,
    /// What for.
    pub operation: Operation,
    /// Of which kind.
    pub kind: &'a Kind,
    /// Where; empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// Which; empty while a name is not yet generated.
    pub name: String,
    /// Which part.
    pub subresource: Option<Subresource>,
}

impl Attributes<'_> {
    /// Whether it is a request for the objects of `group/resource` themselves.
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.kind.gvr.group == group && self.kind.gvr.resource == resource && self.subresource.is_none()
    }
}

/// A plugin. Both halves must be idempotent: a write that loses a race runs them again.
#[async_trait]
pub(crate) trait Plugin: Sync {
    /// Whether requests like this concern it.
    fn handles(&self, attributes: &Attributes<'_>) -> bool;
    /// Changes or refuses the object.
    async fn admit(
        &self,
        _: &ApiServer,
        _: &Attributes<'_>,
        _object: &mut Value,
        _old: Option<&Value>,
    ) -> StatusResult<()> {
        Ok(())
    }
    /// Refuses the object as it will be stored (null for a delete).
    async fn validate(
        &self,
        _: &ApiServer,
        _: &Attributes<'_>,
        _object: &Value,
        _old: Option<&Value>,
    ) -> StatusResult<()> {
        Ok(())
    }
}

/// All plugins in their order.
const ALL: &[&dyn Plugin] = &[
    &namespace_lifecycle::NamespaceLifecycle,
    &limit_ranger::LimitRanger,
    &service_account::ServiceAccount,
    &app_armor::AppArmor,
    &node_restriction::NodeRestriction,
    &pod_security::PodSecurity,
    &taint_nodes_by_condition::TaintNodesByCondition,
    &priority::Priority,
    &default_toleration_seconds::DefaultTolerationSeconds,
    &runtime_class::RuntimeClass,
    &default_storage_class::DefaultStorageClass,
    &persistent_volume_claim_resize::PersistentVolumeClaimResize,
    &storage_object_in_use_protection::StorageObjectInUseProtection,
    &default_ingress_class::DefaultIngressClass,
    &certificate_approval::CertificateApproval,
    &certificate_signing::CertificateSigning,
    &certificate_subject_restriction::CertificateSubjectRestriction,
    &super::authz::escalation::Escalation,
];

/// Lets every plugin and webhook change the object. What webhooks changed is shown to the plugins again, and to webhooks that want
/// to see what others made of it.
pub(crate) async fn mutate(
    server: &ApiServer,
    attributes: &Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
) -> StatusResult<()> {
    plugins_mutate(server, attributes, object, old).await?;
    let request = Request::new(attributes);
    let mut calls = Calls::default();
    webhooks::mutate(server, &request, object, old, &mut calls).await?;
    if calls.changed {
        plugins_mutate(server, attributes, object, old).await?;
        webhooks::mutate(server, &request, object, old, &mut calls).await?;
    }
    Ok(())
}

async fn plugins_mutate(
    server: &ApiServer,
    attributes: &Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
) -> StatusResult<()> {
    for plugin in ALL.iter().filter(|plugin| plugin.handles(attributes)) {
        plugin.admit(server, attributes, object, old).await?;
    }
    Ok(())
}

/// Lets mutating webhooks know of a delete, which they may refuse.
pub(crate) async fn announce_delete(server: &ApiServer, attributes: &Attributes<'_>, old: &Value) -> StatusResult<()> {
    let request = Request::new(attributes);
    webhooks::mutate(server, &request, &mut Value::Null, Some(old), &mut Calls::default()).await
}

/// Asks every plugin, policy and webhook about the final object.
pub(crate) async fn validate(
    server: &ApiServer,
    attributes: &Attributes<'_>,
    object: &Value,
    old: Option<&Value>,
) -> StatusResult<()> {
    for plugin in ALL.iter().filter(|plugin| plugin.handles(attributes)) {
        plugin.validate(server, attributes, object, old).await?;
    }
    let request = Request::new(attributes);
    validating_admission_policy::validate(server, &request, object, old).await?;
    webhooks::validate(server, &request, object, old).await
}
