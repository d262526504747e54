//! The HTTP door: parses a request, asks who and whether, and answers with what the registry returns.

mod compress;
pub mod negotiate;
pub mod node_tunnel;
pub mod request;
pub(crate) mod resources;
pub mod responses;
mod routes;
pub mod server;
mod stream;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use http::{Request, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

pub(crate) use self::resources::{no_method, no_resource};

use self::request::{Query, RequestInfo, with_plain_slashes};
use self::responses::Format;
use super::authz::{self, Attributes};
use super::{ApiServer, User, aggregation, audit, authn, metrics};
use crate::api::{Status, StatusResult};

/// The largest body of a request (`--max-request-bytes` of etcd times two).
const MAX_BODY: usize = 3 * 1024 * 1024;

/// How long the body of a request may take (`--request-timeout`).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A request with what is known about it.
pub(crate) struct Asked {
    pub info: RequestInfo,
    pub query: Query,
    pub user: User,
    pub format: Format,
    pub request: Request<Body>,
    /// What the audit log is to tell.
    pub notes: audit::Annotations,
}

/// Answers a request. `certificate`: the user of the connection's client certificate.
pub(crate) async fn handle(
    server: &Arc<ApiServer>,
    certificate: Option<&User>,
    mut request: Request<Body>,
) -> Response<Body> {
    let started = Instant::now();
    part_path(&mut request);
    let query = Query::new(request.uri().query().unwrap_or_default());
    let info = RequestInfo::new(request.method(), request.uri().path(), &query);
    // Only what is served becomes a label, so that nobody can grow the counters.
    let counted = info.is_resource
        && (server.kind(&info.group, &info.version, &info.resource).is_some()
            || server.options.aggregated.get(&info.group, &info.version).is_some()
            || server.aggregation.backend(server, &info.group, &info.version).is_some());
    let in_flight = server.metrics.begin(&info);
    let is_head = request.method() == http::Method::HEAD;
    let takes_gzip = compress::is_accepted(request.method(), request.headers());
    let (code_known, mut response) = answer(server, certificate, info.clone(), query, request).await;
    drop(in_flight);
    if code_known && counted {
        server.metrics.observe(&info, response.status().as_u16(), started.elapsed());
    }
    if is_head {
        *response.body_mut() = Body::empty();
    }
    let compress = takes_gzip && !metrics::is_long_running(&info);
    if compress { compress::large(response).await } else { response }
}

/// Gives a request the path by which it is authorised: backends are not to part it in another way.
fn part_path(request: &mut Request<Body>) {
    let uri = request.uri();
    let Cow::Owned(path) = with_plain_slashes(uri.path()) else { return };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = format!("{path}{query}").parse().ok();
    if let Ok(uri) = http::Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

async fn answer(
    server: &Arc<ApiServer>,
    certificate: Option<&User>,
    info: RequestInfo,
    query: Query,
    request: Request<Body>,
) -> (bool, Response<Body>) {
    let headers = request.headers();
    let pretty = match query.get("pretty") {
        Some(_) => query.flag("pretty"),
        // People with a browser or curl get indented JSON.
        None => headers
            .get(http::header::USER_AGENT)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|agent| ["curl", "Wget", "Mozilla/5.0"].iter().any(|p| agent.starts_with(p))),
    };
    let accepted = negotiate::accept(headers, true);
    let encoding = accepted.as_ref().map_or(negotiate::Encoding::Json, |a| a.encoding);
    let format = Format { encoding, pretty };
    let identity = match identify(server, certificate, headers).await {
        Ok(identity) => identity,
        Err(status) => return (false, responses::status(format, &status)),
    };
    let asker = audit::Asker { user: &identity.user, impersonated: identity.impersonated.as_ref() };
    let (request, audited) = match audit::begin(server, asker, &info, request).await {
        Ok(begun) => begun,
        Err(status) => return (true, responses::status(format, &status)),
    };
    let long = metrics::is_long_running(&info);
    let notes = audit::Annotations::default();
    let asked = Asked { info, query, user: identity.acting(), format, request, notes: notes.clone() };
    let (code_known, response) = limited(server, asked).await;
    match audited {
        Some(audited) => (code_known, audited.finish(response, long, &notes).await),
        None => (code_known, response),
    }
}

/// Waits for the turn of a request.
async fn limited(server: &Arc<ApiServer>, asked: Asked) -> (bool, Response<Body>) {
    // What lasts as long as its client likes would keep a seat for ever; a watch has one until it has begun.
    if asked.info.verb != "watch" && metrics::is_long_running(&asked.info) {
        return authorized(server, asked).await;
    }
    let Ok(admitted) = server.flow_control.admit(&asked.user, &asked.info).await else {
        return (true, responses::too_many());
    };
    let (code_known, mut response) = authorized(server, asked).await;
    admitted.tell(response.headers_mut());
    (code_known, response)
}

async fn authorized(server: &Arc<ApiServer>, asked: Asked) -> (bool, Response<Body>) {
    let format = asked.format;
    let attributes = Attributes::of(&asked.info);
    let refused = match server.decide(&asked.user, &attributes).await {
        Ok(decision) => {
            asked.notes.authorized(&decision);
            decision.err().map(|why| authz::forbidden(&asked.user, &attributes, &why))
        }
        Err(status) => Some(status),
    };
    if let Some(status) = refused {
        return (false, responses::status(format, &status));
    }
    if let Some(backend) = backend(server, &asked.info.path) {
        return (true, aggregation::pass_on(server, &backend, &asked.user, asked.request).await);
    }
    if !asked.info.is_resource {
        return (false, routes::answer(server, asked).await);
    }
    if let Some(api) = server.options.aggregated.get(&asked.info.group, &asked.info.version) {
        return (true, api.handle(&asked.user, asked.request).await);
    }
    if !server.kinds.snapshot().has_group_version(&asked.info.group, &asked.info.version) {
        return (false, responses::page_not_found());
    }
    (true, resource(server, asked).await.unwrap_or_else(|status| responses::status(format, &status)))
}

/// Answers a request for a resource. A write that has begun is finished, even if its client goes away meanwhile.
async fn resource(server: &Arc<ApiServer>, asked: Asked) -> StatusResult<Response<Body>> {
    let reads = ["get", "list", "watch"].contains(&asked.info.verb.as_str());
    if reads || metrics::is_long_running(&asked.info) {
        return resources::answer(server, asked).await;
    }
    let server = Arc::clone(server);
    let finished = tokio::spawn(async move { resources::answer(&server, asked).await }).await;
    finished.unwrap_or_else(|error| {
        tracing::error!(%error, "a request panicked");
        Err(Status::new(500, "InternalError", "This request caused apiserver to panic. Look in the logs for details."))
    })
}

/// The user of a request.
struct Identity {
    user: User,
    impersonated: Option<User>,
}

impl Identity {
    /// The user as whom the request is answered.
    fn acting(self) -> User {
        self.impersonated.unwrap_or(self.user)
    }
}

/// Who serves a path, when it is a Service: all below `/apis/GROUP/VERSION`, and that version's OpenAPI document.
fn backend(server: &ApiServer, path: &str) -> Option<aggregation::Backend> {
    let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
    let mut parts = path.strip_prefix("/apis/")?.split('/');
    let (group, version) = (parts.next()?, parts.next()?);
    if server.options.aggregated.get(group, version).is_some() {
        return None;
    }
    server.aggregation.backend(server, group, version)
}

/// Who asks, and as whom.
async fn identify(server: &ApiServer, certificate: Option<&User>, headers: &http::HeaderMap) -> StatusResult<Identity> {
    let user = authn::authenticate(server, headers, certificate).await?;
    let Some(wanted) = authn::impersonated(headers)? else { return Ok(Identity { user, impersonated: None }) };
    let asker = &user;
    let may = async |resource: &str, subresource: &str, group: &str, namespace: &str, name: &str| {
        let verb = "impersonate";
        let attributes = Attributes { verb, group, resource, subresource, namespace, name, ..Attributes::default() };
        server.authorize(asker, &attributes).await
    };
    match wanted.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, name)) => may("serviceaccounts", "", "", namespace, name).await?,
        None => may("users", "", "", "", &wanted.name).await?,
    }
    let asked_groups = headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok());
    for group in asked_groups {
        may("groups", "", "", "", group).await?;
    }
    if !wanted.uid.is_empty() {
        may("uids", "", "authentication.k8s.io", "", &wanted.uid).await?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            may("userextras", key, "authentication.k8s.io", "", value).await?;
        }
    }
    Ok(Identity { user, impersonated: Some(wanted) })
}

/// The whole body of a request.
///
/// # Errors
/// 413 when it is too large, 504 when it does not come.
pub(crate) async fn read_body(body: Body) -> StatusResult<Bytes> {
    let collected = tokio::time::timeout(REQUEST_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let Ok(collected) = collected else {
        let why = "request did not complete within the allotted timeout";
        return Err(Status::new(504, "Timeout", format!("Timeout: {why}")));
    };
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Status::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {MAX_BODY}")))
        }
        Err(error) => Err(Status::bad_request(error.to_string())),
    }
}
