//! The way from the API server to the kubelet API of a node in another process. The node has opened a connection to the API
//! server, and serves HTTP/2 on it; each `CONNECT` to it is a connection of its own to the kubelet API, which speaks HTTP/1.1
//! so that upgrades (exec, attach, port-forward) pass as they are.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::api::Status;
use crate::apiserver::forward;
use crate::node::Node;

/// Whom a `CONNECT` asks for.
const KUBELET: &str = "kubelet:10250";
/// Flow-control windows of HTTP/2.
const WINDOW: u32 = 1 << 20;
/// Connections to one kubelet at a time.
const MAX_STREAMS: u32 = 1000;

type Sender = SendRequest<Empty<Bytes>>;

/// The nodes that are connected.
#[derive(Clone, Default)]
pub struct Tunnels {
    /// With a number that tells a node's connection from its next.
    nodes: Arc<Mutex<HashMap<String, (u64, Sender)>>>,
}

impl Tunnels {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (u64, Sender)>> {
        self.nodes.lock().expect("no panic while the nodes are held")
    }

    /// Uses a node's connection until it ends. A newer one of the same node takes its place.
    pub async fn accept(&self, node: &str, connection: Upgraded) {
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (sender, connection) = match builder.handshake(connection).await {
            Ok(pair) => pair,
            Err(error) => return tracing::warn!(%error, node, "a node's connection cannot be used"),
        };
        let number = {
            let mut nodes = self.lock();
            let number = nodes.get(node).map_or(0, |(number, _)| number + 1);
            nodes.insert(node.to_owned(), (number, sender));
            number
        };
        tracing::info!(node, "a node is connected");
        let ended = connection.await;
        let mut nodes = self.lock();
        if nodes.get(node).is_some_and(|(current, _)| *current == number) {
            nodes.remove(node);
        }
        let error = ended.err().map(|error| error.to_string());
        tracing::info!(node, error, "a node is no longer connected");
    }

    /// Passes a request in the kubelet's API to a node.
    pub async fn call(&self, node: &str, request: Request<Body>) -> Response<Body> {
        let sender = self.lock().get(node).map(|(_, sender)| sender.clone());
        let Some(sender) = sender else {
            return unavailable(&format!("node {node:?} is not connected to the API server"));
        };
        match dial(sender).await {
            Ok(connection) => match forward(connection, request, KUBELET).await {
                Ok(response) => response,
                Err(error) => unavailable(&format!("node {node:?} did not answer: {error}")),
            },
            Err(error) => unavailable(&format!("node {node:?} does not take connections: {error}")),
        }
    }
}

/// A connection to the kubelet API of a node.
async fn dial(mut sender: Sender) -> anyhow::Result<TokioIo<Upgraded>> {
    sender.ready().await?;
    let request = Request::builder().method(Method::CONNECT).uri(KUBELET).body(Empty::new())?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(response.status() == StatusCode::OK, "it answers {}", response.status());
    Ok(TokioIo::new(hyper::upgrade::on(response).await?))
}

/// As Kubernetes answers when it cannot reach a kubelet.
fn unavailable(why: &str) -> Response<Body> {
    let status = Status::internal(format!("error dialing backend: {why}"));
    let mut response = super::adapters::json_answer(StatusCode::INTERNAL_SERVER_ERROR, &status.to_object());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

/// The node's side: serves its kubelet API on the connection until that ends.
///
/// # Errors
/// When the connection breaks off.
pub async fn serve(connection: TokioIo<Upgraded>, node: Arc<Node>) -> hyper::Result<()> {
    let connect = service_fn(move |mut request: Request<Incoming>| {
        let node = node.clone();
        async move {
            if request.method() != Method::CONNECT {
                return Ok::<_, Infallible>(StatusCode::METHOD_NOT_ALLOWED.into_response());
            }
            tokio::spawn(async move {
                match hyper::upgrade::on(&mut request).await {
                    Ok(stream) => kubelet(stream, node).await,
                    Err(error) => tracing::debug!(%error, "a connection to the kubelet API failed"),
                }
            });
            Ok(StatusCode::OK.into_response())
        }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .serve_connection(connection.into_inner(), connect)
        .await
}

/// One connection to the kubelet API.
async fn kubelet(stream: Upgraded, node: Arc<Node>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let node = node.clone();
        async move { Ok::<_, Infallible>(node.handle(request.map(Body::new)).await) }
    });
    let served = hyper::server::conn::http1::Builder::new().serve_connection(stream, answer).with_upgrades().await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the kubelet API ended with an error");
    }
}
