//! Validating webhooks: all that are meant are asked at once.

use futures_util::future::{BoxFuture, join_all};
use serde_json::Value;

use super::super::request::Request;
use super::review::{self, Refusal};
use super::{Meant, is_called};
use crate::api::{Status, StatusResult};
use crate::apiserver::ApiServer;

/// Asks every validating webhook about the object as it will be stored.
pub(in crate::apiserver::admission) async fn validate(
    server: &ApiServer,
    request: &Request<'_>,
    object: &Value,
    old: Option<&Value>,
) -> StatusResult<()> {
    let snapshot = server.registrations.snapshot();
    let mut called = Vec::new();
    for hook in &snapshot.validating {
        match is_called(server, request, hook, object, old).await? {
            Meant::No => {}
            meant => called.push((hook, meant)),
        }
    }
    let mut asked: Vec<BoxFuture<'_, _>> = Vec::with_capacity(called.len());
    for (hook, meant) in &called {
        asked.push(Box::pin(review::ask(server, request, hook, meant, object, old)));
    }
    let answers = join_all(asked).await;
    let context = request.attributes.context;
    let mut refusals = Vec::new();
    for ((hook, _), answer) in called.iter().zip(answers) {
        match answer {
            Ok(answer) => {
                context.warn(answer.warnings);
                for (key, value) in answer.annotations {
                    context.annotate(&format!("{}/{key}", hook.name), &value);
                }
            }
            Err(Refusal::Denied(status)) => refusals.push(status),
            Err(Refusal::Failed(why)) if hook.fail => {
                refusals.push(Status::internal(format!("failed calling webhook {:?}: {why}", hook.name)));
            }
            Err(Refusal::Failed(why)) => {
                tracing::warn!(
                    webhook = hook.name,
                    configuration = hook.configuration,
                    "failed calling a webhook, failing open: {why}"
                );
            }
        }
    }
    refusals.into_iter().next().map_or(Ok(()), Err)
}
