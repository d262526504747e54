//! Sessions and routes of the dashboard.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::super::Context;
use super::pages;
use crate::api::kinds::{self, gvr};
use crate::api::{Kind, Status};
use crate::client::{ListOptions, WatchEvent};

/// How many links and sessions are remembered; older ones end.
const REMEMBERED: usize = 32;
const COOKIE: &str = "mini_dashboard";

/// The dashboard's server.
pub struct Server {
    pub(super) context: Arc<Context>,
    pub(super) kinds: Vec<Arc<Kind>>,
    address: SocketAddr,
    links: Mutex<VecDeque<String>>,
    sessions: Mutex<VecDeque<String>>,
}

#[derive(Deserialize, Default)]
struct Parameters {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    token: String,
    #[serde(default)]
    container: String,
    #[serde(default)]
    previous: bool,
}

impl Server {
    /// A server that listens at `address`.
    pub fn new(context: Arc<Context>, address: SocketAddr) -> Self {
        let kinds = kinds::all().into_iter().filter(|kind| kind.verbs.contains(&"list")).collect();
        Self { context, kinds, address, links: Mutex::default(), sessions: Mutex::default() }
    }

    /// A new link that works once.
    pub fn link(&self) -> String {
        let token = self.secret();
        remember(&self.links, token.clone());
        format!("http://{}/login?token={token}", self.address)
    }

    /// Serves until `stopped` turns true.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut stopped: watch::Receiver<bool>) {
        let pages = Router::new()
            .route("/", get(home))
            .route("/{resource}", get(list))
            .route("/{resource}/{namespace}/{name}", get(detail))
            .route("/pods/{namespace}/{name}/log", get(log))
            .route("/stream/{resource}", get(stream))
            .layer(middleware::from_fn_with_state(self.clone(), authenticate));
        let router = Router::new()
            .route("/login", get(login))
            .route("/style.css", get(|| async { ([(header::CONTENT_TYPE, "text/css")], pages::STYLE) }))
            .route("/live.js", get(|| async { ([(header::CONTENT_TYPE, "text/javascript")], pages::SCRIPT) }))
            .merge(pages)
            .layer(middleware::from_fn_with_state(self.clone(), protect))
            .with_state(self);
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopped.wait_for(|stop| *stop) => break,
            };
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = accepted else { continue };
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            connections.spawn(async move {
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            });
        }
        connections.shutdown().await;
    }

    fn secret(&self) -> String {
        self.context.env.bytes::<24>().iter().map(|b| format!("{b:02x}")).collect()
    }

    fn kind(&self, resource: &str) -> Option<&Arc<Kind>> {
        self.kinds.iter().find(|kind| kind.gvr.resource == resource)
    }
}

fn remember(list: &Mutex<VecDeque<String>>, secret: String) {
    let mut list = list.lock().expect("no panic while a list is held");
    list.push_back(secret);
    if list.len() > REMEMBERED {
        list.pop_front();
    }
}

/// Compares without an early end, so that time tells nothing.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (x, y)| all | (x ^ y)) == 0
}

/// Only requests to our own address (no rebound names), and headers that keep other sites out.
async fn protect(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let localhost = format!("localhost:{}", server.address.port());
    if host != server.address.to_string() && host != localhost {
        return (StatusCode::FORBIDDEN, "unknown host").into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'self'; frame-ancestors 'none'"),
    );
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn authenticate(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    if has_session(&server, request.headers()) {
        return next.run(request).await;
    }
    (StatusCode::UNAUTHORIZED, pages::refused()).into_response()
}

fn has_session(server: &Server, headers: &HeaderMap) -> bool {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let session = cookies.flat_map(|c| c.split(';')).find_map(|c| c.trim().strip_prefix(COOKIE)?.strip_prefix('='));
    let sessions = server.sessions.lock().expect("no panic while a list is held");
    session.is_some_and(|session| sessions.iter().any(|known| same(known, session)))
}

async fn login(State(server): State<Arc<Server>>, Query(parameters): Query<Parameters>) -> Response {
    let used = {
        let mut links = server.links.lock().expect("no panic while a list is held");
        let position = links.iter().position(|link| same(link, &parameters.token));
        position.and_then(|position| links.remove(position))
    };
    if used.is_none() {
        return (StatusCode::UNAUTHORIZED, pages::refused()).into_response();
    }
    let session = server.secret();
    remember(&server.sessions, session.clone());
    let cookie = format!("{COOKIE}={session}; HttpOnly; SameSite=Strict; Path=/");
    (StatusCode::SEE_OTHER, [(header::SET_COOKIE, cookie), (header::LOCATION, "/".to_owned())]).into_response()
}

fn failed(status: &Status) -> Response {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, pages::message(&status.message)).into_response()
}

async fn home(State(server): State<Arc<Server>>, Query(parameters): Query<Parameters>) -> Response {
    match pages::overview(&server, &parameters.namespace).await {
        Ok(page) => page.into_response(),
        Err(status) => failed(&status),
    }
}

async fn list(
    State(server): State<Arc<Server>>,
    Path(resource): Path<String>,
    Query(parameters): Query<Parameters>,
) -> Response {
    let Some(kind) = server.kind(&resource) else {
        return (StatusCode::NOT_FOUND, pages::message("no such page")).into_response();
    };
    match pages::list(&server, kind, &parameters.namespace).await {
        Ok(page) => page.into_response(),
        Err(status) => failed(&status),
    }
}

async fn detail(
    State(server): State<Arc<Server>>,
    Path((resource, namespace, name)): Path<(String, String, String)>,
) -> Response {
    let Some(kind) = server.kind(&resource) else {
        return (StatusCode::NOT_FOUND, pages::message("no such page")).into_response();
    };
    let namespace = if namespace == "-" { String::new() } else { namespace };
    match pages::detail(&server, kind, &namespace, &name).await {
        Ok(page) => page.into_response(),
        Err(status) => failed(&status),
    }
}

async fn log(
    State(server): State<Arc<Server>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(parameters): Query<Parameters>,
) -> Response {
    let pod = match server.context.api.get(&gvr::PODS, &namespace, &name).await {
        Ok(pod) => pod,
        Err(status) => return failed(&status),
    };
    let names: Vec<&str> = pages::containers(&pod).collect();
    let container = if parameters.container.is_empty() {
        names.first().copied().unwrap_or_default()
    } else {
        &parameters.container
    };
    if !names.contains(&container) {
        return (StatusCode::NOT_FOUND, pages::message("no such container")).into_response();
    }
    let previous = parameters.previous;
    let uri = format!("/containerLogs/{namespace}/{name}/{container}?tailLines=1000&previous={previous}");
    let answer = server.context.nodes.get(pod["spec"]["nodeName"].as_str().unwrap_or_default(), &uri).await;
    // Logs are short here (1,000 lines); a limit guards against endless lines.
    let text = axum::body::to_bytes(answer.into_body(), 8 << 20)
        .await
        .unwrap_or_else(|_| Bytes::from_static(b"(the log is too large to show)"));
    pages::log(&server, &pod, container, &String::from_utf8_lossy(&text)).into_response()
}

/// Server-sent events: one for each change of the resource, so that the page fetches itself anew.
async fn stream(
    State(server): State<Arc<Server>>,
    Path(resource): Path<String>,
    Query(parameters): Query<Parameters>,
) -> Response {
    let Some(kind) = server.kind(&resource) else { return StatusCode::NOT_FOUND.into_response() };
    let namespace = if kind.namespaced { parameters.namespace.as_str() } else { "" };
    let from = match server.context.api.list(&kind.gvr, namespace, &ListOptions::default()).await {
        Ok(list) => list.resource_version,
        Err(status) => return failed(&status),
    };
    let options = ListOptions { resource_version: from, ..ListOptions::default() };
    let events = match server.context.api.watch(&kind.gvr, namespace, &options).await {
        Ok(events) => events,
        Err(status) => return failed(&status),
    };
    let lines = events
        .take_while(|event| std::future::ready(event.is_ok()))
        .filter(|event| std::future::ready(!matches!(event, Ok(WatchEvent::Bookmark(_)))))
        .ready_chunks(256)
        .map(|_| Ok::<_, Infallible>(Bytes::from_static(b"data: changed\n\n")));
    let opened = futures_util::stream::iter([Ok(Bytes::from_static(b": open\n\n"))]);
    let headers = [(header::CONTENT_TYPE, "text/event-stream")];
    (headers, Body::from_stream(opened.chain(lines))).into_response()
}
