//! `ResourceQuota`: what a write adds is charged to the quotas of its namespace before it is written.
//!
//! Unlike the other plugins it has to know whether the write succeeded, so `registry` calls it last and holds the
//! [`Charge`] over the write.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::OwnedRwLockReadGuard;

use super::{Attributes, Operation};
use crate::api::kind::Subresource;
use crate::api::meta;
use crate::api::pod::Resources;
use crate::api::{Gvr, Status, StatusResult, quota};
use crate::apiserver::registry::update::Part;
use crate::apiserver::registry::{self, Context};
use crate::apiserver::{ApiServer, User};

/// Resources that are never counted (`DefaultIgnoredResources`).
const IGNORED: [&str; 2] = ["events", "bindings"];
/// Who writes what is used.
const CONTROLLER: &str = "system:serviceaccount:kube-system:resourcequota-controller";

/// What a write has been charged with. Unless it is kept, the namespace is counted anew.
#[derive(Default)]
pub(crate) struct Charge {
    /// Keeps the namespace from being counted while the write is under way.
    _writing: Option<OwnedRwLockReadGuard<()>>,
    recount: Option<(tokio::sync::mpsc::UnboundedSender<String>, String)>,
}

impl Charge {
    /// The write succeeded.
    pub fn keep(mut self) {
        self.recount = None;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some((sender, namespace)) = self.recount.take() {
            // Nobody listens when the server is about to close; the next start counts everything.
            let _ = sender.send(namespace);
        }
    }
}

fn handles(attributes: &Attributes<'_>) -> bool {
    let gvr = &attributes.kind.gvr;
    if attributes.namespace.is_empty() || IGNORED.contains(&gvr.resource.as_ref()) {
        return false;
    }
    match (attributes.operation, attributes.subresource) {
        (Operation::Create, None) => true,
        (Operation::Update, None) => {
            gvr.group.is_empty() && ["services", "persistentvolumeclaims"].contains(&gvr.resource.as_ref())
                || gvr.resource == "resourceclaims"
        }
        (Operation::Update, Some(Subresource::Resize)) => gvr.resource == "pods",
        _ => false,
    }
}

/// Charges the quotas of the namespace with what `object` uses more than `old`.
///
/// # Errors
/// 403 when a quota would be exceeded.
pub(crate) async fn charge(
    server: &ApiServer,
    context: &Context<'_>,
    attributes: &Attributes<'_>,
    object: &Value,
    old: Option<&Value>,
) -> StatusResult<Charge> {
    let namespace = attributes.namespace;
    if !handles(attributes) {
        return Ok(Charge::default());
    }
    let known = quotas(server, namespace).await?;
    if known.is_empty() {
        return Ok(Charge::default());
    }
    if known.iter().any(|quota| is_uncounted(quota)) {
        server.count_quotas(namespace).await?;
    }
    let gate = server.quotas.gate(namespace);
    let writing = Arc::clone(&gate.writing).read_owned().await;
    let _alone = gate.charging.lock().await;
    let gvr = &attributes.kind.gvr;
    let delta = delta(gvr, object, old, server.env.now());
    let mut charges = Vec::new();
    for stored in quotas(server, namespace).await?.iter().filter(|quota| concerns(quota, gvr, object)) {
        let refuse = |why: String| Status::forbidden(gvr, meta::name(object), &why);
        if fits(stored, gvr, object, &delta).map_err(refuse)? {
            charges.push(meta::name(stored).to_owned());
        }
    }
    if context.dry_run || charges.is_empty() {
        return Ok(Charge { _writing: Some(writing), recount: None });
    }
    let charge =
        Charge { _writing: Some(writing), recount: Some((server.quotas.recount.clone(), namespace.to_owned())) };
    for name in charges {
        let make = |current: &Value| {
            let used = quota::charged(current, &delta);
            let used = used.map_err(|why| Status::forbidden(gvr, meta::name(object), &why))?;
            Ok(with_used(current, used.as_ref()))
        };
        write_status(server, namespace, &name, make).await?;
    }
    Ok(charge)
}

/// What the write adds to the usage.
fn delta(gvr: &Gvr, object: &Value, old: Option<&Value>, now: jiff::Timestamp) -> Resources {
    let mut delta = quota::usage(gvr, object, now);
    if let Some(old) = old {
        delta = quota::difference(&delta, &quota::usage(gvr, old, now));
    }
    delta.retain(|_, quantity| !quantity.is_zero());
    delta
}

/// Whether the quota limits something that objects of the kind use, and this object is in its scope.
fn concerns(stored: &Value, gvr: &Gvr, object: &Value) -> bool {
    let mut hard = stored["status"]["hard"].as_object().into_iter().flatten();
    hard.any(|(name, _)| quota::concerns(gvr, name)) && quota::is_in_scope(&stored["spec"], gvr, object)
}

/// Whether the quota is touched by the write.
fn fits(stored: &Value, gvr: &Gvr, object: &Value, delta: &Resources) -> Result<bool, String> {
    let empty = Map::new();
    let hard = stored["status"]["hard"].as_object().unwrap_or(&empty);
    if *gvr == crate::api::kinds::gvr::PODS
        && let Some(why) = quota::unspecified(hard, object)
    {
        return Err(format!("failed quota: {}: {why}", meta::name(stored)));
    }
    Ok(quota::charged(stored, delta)?.is_some())
}

/// The quotas of a namespace.
pub(crate) async fn quotas(server: &ApiServer, namespace: &str) -> StatusResult<Vec<Arc<Value>>> {
    let prefix = registry::prefix("", "resourcequotas", namespace);
    let listing = server.storage.list(&prefix, None, 0, 0).await.map_err(registry::storage_failed)?;
    Ok(listing.entries.iter().map(|entry| entry.value()).collect())
}

/// Whether nobody has counted yet what the quota limits.
pub(crate) fn is_uncounted(quota: &Value) -> bool {
    let (spec, status) = (&quota["spec"]["hard"], &quota["status"]);
    let nothing = spec.as_object().is_none_or(Map::is_empty);
    if nothing { false } else { status["hard"] != *spec || !status["used"].is_object() }
}

/// The quota with another `status.used`.
pub(crate) fn with_used(quota: &Value, used: Option<&Resources>) -> Value {
    let mut quota = quota.clone();
    if let Some(used) = used {
        quota["status"]["used"] = quota::to_value(used);
    }
    quota
}

/// Changes the status of a quota as the quota controller.
pub(crate) async fn write_status(
    server: &ApiServer,
    namespace: &str,
    name: &str,
    make: impl Fn(&Value) -> StatusResult<Value> + Send + Sync,
) -> StatusResult<()> {
    let kind = server.known_kind("", "v1", "resourcequotas")?;
    let user = User::master(CONTROLLER);
    let context = Context::new(&user);
    // Boxed: a change of a status is a write like others, which may be charged.
    let change = Box::pin(server.change(&context, &kind, namespace, name, Part::Status, make));
    match change.await {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_quota_is_counted_when_its_status_repeats_its_limits() {
        assert!(!is_uncounted(&json!({"spec": {}, "status": {}})));
        assert!(is_uncounted(&json!({"spec": {"hard": {"pods": "1"}}, "status": {}})));
        let counted =
            json!({"spec": {"hard": {"pods": "1"}}, "status": {"hard": {"pods": "1"}, "used": {"pods": "0"}}});
        assert!(!is_uncounted(&counted));
    }
}
