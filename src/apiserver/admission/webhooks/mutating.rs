//! Mutating webhooks: asked one after the other, each about what those before it made of the object.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::request::Request;
use super::review::{self, Answer, Refusal};
use super::{Meant, is_called};
use crate::api::schema::Strictness;
use crate::api::{Status, StatusResult, meta};
use crate::apiserver::registry::default;
use crate::apiserver::registry::scale::SCALE_VERSION;
use crate::apiserver::{ApiServer, codec};

/// What happened in a first round, for a second one.
#[derive(Default)]
pub(in crate::apiserver::admission) struct Calls {
    /// The object as each webhook left it, by place.
    left: BTreeMap<usize, Value>,
    /// Whether any webhook changed the object.
    pub changed: bool,
}

/// Asks the mutating webhooks. In a second round (`calls` has been filled) only those are asked again that want to be and whose
/// object has changed since.
pub(in crate::apiserver::admission) async fn mutate(
    server: &ApiServer,
    request: &Request<'_>,
    object: &mut Value,
    old: Option<&Value>,
    calls: &mut Calls,
) -> StatusResult<()> {
    let snapshot = server.registrations.snapshot();
    let again = calls.changed;
    for (place, hook) in snapshot.mutating.iter().enumerate() {
        if again && (!hook.reinvoke || calls.left.get(&place).is_none_or(|left| left == object)) {
            continue;
        }
        let meant = is_called(server, request, hook, object, old).await?;
        if matches!(meant, Meant::No) {
            continue;
        }
        match review::ask(server, request, hook, &meant, object, old).await {
            Ok(answer) => {
                let changed = take(server, request, &hook.name, &meant, object, answer).await?;
                calls.changed |= changed;
            }
            Err(Refusal::Denied(status)) => return Err(status),
            Err(Refusal::Failed(why)) if hook.fail => {
                return Err(Status::internal(format!("failed calling webhook {:?}: {why}", hook.name)));
            }
            Err(Refusal::Failed(why)) => {
                tracing::warn!(
                    webhook = hook.name,
                    configuration = hook.configuration,
                    "failed calling a webhook, failing open: {why}"
                );
            }
        }
        calls.left.insert(place, object.clone());
    }
    Ok(())
}

/// Takes the object that a webhook made: decoded and defaulted as if a client had sent it. Returns whether it changed.
async fn take(
    server: &ApiServer,
    request: &Request<'_>,
    hook: &str,
    meant: &Meant,
    object: &mut Value,
    answer: Answer,
) -> StatusResult<bool> {
    let context = request.attributes.context;
    context.warn(answer.warnings);
    for (key, value) in answer.annotations {
        context.annotate(&format!("{hook}/{key}"), &value);
    }
    let Some(made) = answer.object else { return Ok(false) };
    let kind = request.attributes.kind;
    let made = match meant {
        Meant::As(_) if !request.is_scale() => {
            let own = server.known_kind(&kind.gvr.group, &kind.gvr.version, &kind.gvr.resource)?;
            let entry = crate::storage::Entry::new("".into(), 0, made.to_string().into());
            (*server.in_version(&own, std::sync::Arc::new(entry)).await?.value()).clone()
        }
        _ => made,
    };
    let (kind_name, api_version) = match request.is_scale() {
        true => ("Scale", SCALE_VERSION.to_owned()),
        false => (&*kind.kind, kind.gvr.api_version()),
    };
    if meta::text(&made["kind"]) != kind_name || meta::text(&made["apiVersion"]) != api_version {
        return Err(Status::internal(format!("failed calling webhook {hook:?}: it changed the kind of the object")));
    }
    let made = if request.is_scale() {
        made
    } else {
        let (mut made, _) = codec::canonical(kind, codec::made(made), Strictness::Ignore)?;
        default(kind, &mut made);
        made
    };
    let changed = made != *object;
    *object = made;
    Ok(changed)
}
