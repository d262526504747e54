//! Admission webhooks: `MutatingWebhook` and `ValidatingWebhook`.

mod mutating;
mod review;
mod validating;

pub(super) use mutating::{Calls, mutate};
pub(super) use validating::validate;

use std::sync::Arc;

use serde_json::Value;

use super::registrations::{Hook, Selectors};
use super::request::Request;
use crate::api::kinds::admission_registration::rules;
use crate::api::{Kind, Status, StatusResult};
use crate::apiserver::ApiServer;

/// How a request is meant by a registration's rules.
pub(super) enum Meant {
    /// Not at all.
    No,
    /// As it is.
    AsIs,
    /// In another version of the same resource.
    As(Arc<Kind>),
}

/// Whether rules and selectors mean a request (`matching.Matcher`).
pub(super) async fn meant(
    server: &ApiServer,
    request: &Request<'_>,
    rules: &[Value],
    equivalent: bool,
    selectors: &Selectors,
    object: &Value,
    old: Option<&Value>,
) -> StatusResult<Meant> {
    if request.is_exempt() {
        return Ok(Meant::No);
    }
    let kind = request.attributes.kind;
    let by = |kind: &Kind| rules.iter().any(|rule| rules::matches(rule, &request.asked(kind)));
    let meant = if by(kind) {
        Meant::AsIs
    } else if equivalent {
        // Other versions of a custom resource are the same objects.
        let served = server.kinds.snapshot();
        let other = served.all.iter().find(|other| {
            kind.strategy.custom().is_some()
                && other.gvr.group == kind.gvr.group
                && other.gvr.resource == kind.gvr.resource
                && other.gvr.version != kind.gvr.version
                && by(other)
        });
        other.map_or(Meant::No, |other| Meant::As(Arc::clone(other)))
    } else {
        Meant::No
    };
    if matches!(meant, Meant::No) || !selectors.object(object, old) {
        return Ok(Meant::No);
    }
    if selectors.asks_namespace() {
        let namespace = request.namespace(server, object, old).await?;
        if namespace.is_some_and(|namespace| !selectors.namespace(&namespace)) {
            return Ok(Meant::No);
        }
    }
    Ok(meant)
}

/// Whether a webhook is to be called. Conditions that fail count as its failure policy says.
pub(super) async fn is_called(
    server: &ApiServer,
    request: &Request<'_>,
    hook: &Hook,
    object: &Value,
    old: Option<&Value>,
) -> StatusResult<Meant> {
    let meant = meant(server, request, &hook.rules, hook.equivalent, &hook.selectors, object, old).await?;
    if matches!(meant, Meant::No) || hook.conditions.is_empty() {
        return Ok(meant);
    }
    match request.conditions_hold(server, &hook.conditions, object, old, None, None) {
        Ok(true) => Ok(meant),
        Ok(false) => Ok(Meant::No),
        Err(why) if hook.fail => {
            let gvr = &request.attributes.kind.gvr;
            Err(Status::forbidden(gvr, &request.attributes.name, &why))
        }
        Err(_) => Ok(Meant::No),
    }
}
