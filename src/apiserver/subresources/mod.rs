//! Requests that are neither plain objects nor their status or scale: binding, eviction, tokens, reviews, connections.

mod binding;
mod connect;
mod eviction;
pub(super) mod proxy;
mod reviews;
mod token;

use std::sync::Arc;

use axum::body::Body;
use http::Response;
use serde_json::{Value, json};

use super::authz::Attributes;
use super::http::resources::{body, context};
use super::http::{Asked, no_method, no_resource, responses};
use super::registry::Context;
use super::{ApiServer, admission};
use crate::api::kind::Subresource;
use crate::api::{Kind, Status, StatusResult};

/// Answers a request for a subresource.
pub(crate) async fn answer(
    server: &Arc<ApiServer>,
    kind: &Arc<Kind>,
    sub: Subresource,
    asked: Asked,
) -> StatusResult<Response<Body>> {
    match sub {
        Subresource::Binding | Subresource::Eviction | Subresource::Token => {
            if asked.info.verb != "create" {
                return Err(no_method());
            }
            let Asked { info, query, user, format, request, notes } = asked;
            let context = context(&user, &query, &notes, request.headers(), "POST")?;
            let sent = match sub {
                Subresource::Binding => "Binding",
                Subresource::Eviction => "Eviction",
                _ => "TokenRequest",
            };
            let object = body(request, sent).await?.value;
            let made = create(server, &context, kind, sub, &info.namespace, &info.name, object).await?;
            Ok(responses::object(201, format, &made))
        }
        Subresource::Log => connect::log(server, kind, asked).await,
        Subresource::Exec | Subresource::Attach | Subresource::PortForward => {
            // A WebSocket begins with a GET, but it is no reading (KEP-4006 graduation in v1.35).
            if asked.info.verb == "get" {
                let attributes = Attributes { verb: "create", ..Attributes::of(&asked.info) };
                server.authorize(&asked.user, &attributes).await?;
            } else if asked.info.verb != "create" {
                return Err(no_method());
            }
            admission::connect(server, kind, sub, &asked.user, &asked.info, &asked.query, &asked.notes).await?;
            connect::stream(server, kind, sub, asked).await
        }
        Subresource::Proxy => {
            admission::connect(server, kind, sub, &asked.user, &asked.info, &asked.query, &asked.notes).await?;
            proxy::answer(server, kind, asked).await
        }
        _ => Err(no_resource()),
    }
}

/// Creates what a subresource makes: a binding, an eviction, a token. Returns the answer's object.
pub(crate) async fn create(
    server: &ApiServer,
    context: &Context<'_>,
    kind: &Arc<Kind>,
    sub: Subresource,
    namespace: &str,
    name: &str,
    object: Value,
) -> StatusResult<Value> {
    match sub {
        Subresource::Binding => binding::create(server, context, kind, namespace, name, &object).await,
        Subresource::Eviction => eviction::create(server, context, kind, namespace, name, &object).await,
        Subresource::Token => token::create(server, context, kind, namespace, name, object).await,
        _ => Err(no_method()),
    }
}

/// Creates an object of a kind that is never stored: reviews, and `bindings`.
pub(crate) async fn create_virtual(
    server: &ApiServer,
    context: &Context<'_>,
    kind: &Arc<Kind>,
    namespace: &str,
    mut object: Value,
) -> StatusResult<Value> {
    if kind.gvr.group.is_empty() && kind.gvr.resource == "bindings" {
        let pods = server.known_kind("", "v1", "pods")?;
        let name = crate::api::meta::name(&object).to_owned();
        return binding::create(server, context, &pods, namespace, &name, &object).await;
    }
    super::registry::check_type(kind, &object)?;
    object["kind"] = kind.kind.as_ref().into();
    object["apiVersion"] = kind.gvr.api_version().into();
    reviews::create(server, context, kind, namespace, object).await
}

/// `Status: Success` of a create that answers with no object.
fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// A pod that must have a node.
async fn scheduled_pod(
    server: &ApiServer,
    kind: &Kind,
    namespace: &str,
    name: &str,
) -> StatusResult<(Arc<Value>, String)> {
    let pod = server.get_entry(kind, namespace, name).await?.value();
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    Ok((pod, node))
}
