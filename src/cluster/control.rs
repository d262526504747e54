//! The control socket: what the command line asks of a running cluster beside the API (HTTP on a unix socket, 0600).

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use futures_util::TryStreamExt;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio_util::io::{ReaderStream, StreamReader};

use super::Cluster;
use crate::config::Paths;
use crate::node::image::{ImageStore, Images as _};

/// The socket's name in the run directory (the command line knows it too).
pub const SOCKET: &str = "control.sock";

#[derive(Deserialize)]
struct Names {
    name: String,
    #[serde(default)]
    target: String,
}

/// Why a request failed, as one line of text.
struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, format!("{:#}", self.0)).into_response()
    }
}

fn answer(object: &serde_json::Value) -> Response {
    super::adapters::json_answer(StatusCode::OK, object)
}

/// Opens the socket. A socket that a killed daemon left is replaced (the profile's lock says that it is dead).
///
/// # Errors
/// When it cannot be bound.
pub fn listen(paths: &Paths) -> Result<UnixListener> {
    let run = std::fs::File::open(paths.run()).context("opening the run directory")?;
    // Paths of sockets may have 107 bytes at most: go through the open directory.
    let path = format!("/proc/self/fd/{}/{SOCKET}", run.as_raw_fd());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("removing an old socket");
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).context("binding the control socket")?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// What can be asked of the daemon.
pub fn daemon(cluster: Arc<Cluster>, stop: Arc<Notify>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/dashboard", post(dashboard))
        .route("/addons/{name}", put(enable).delete(disable))
        .route("/nodes", post(add_node))
        .route("/nodes/{name}", delete(delete_node))
        .route("/nodes/{name}/start", post(start_node))
        .route("/nodes/{name}/stop", post(stop_node))
        .route("/tokens", post(make_token))
        .with_state(cluster.clone())
        .merge(images(cluster.images.clone()))
        .merge(stopping(stop))
}

/// What can be asked of a machine that has joined another's cluster.
pub fn machine(
    store: Arc<ImageStore>,
    stop: Arc<Notify>,
    status: impl Fn() -> serde_json::Value + Send + Sync + 'static,
) -> Router {
    let status = Arc::new(status);
    let status = get(async move || answer(&status()));
    Router::new().route("/status", status).merge(images(store)).merge(stopping(stop))
}

fn stopping(stop: Arc<Notify>) -> Router {
    let stop = async move || {
        stop.notify_one();
        answer(&json!({"stopping": true}))
    };
    Router::new().route("/stop", post(stop))
}

fn images(store: Arc<ImageStore>) -> Router {
    Router::new()
        .route("/images", get(list).delete(remove))
        .route("/images/load", post(load))
        .route("/images/pull", post(pull))
        .route("/images/tag", post(tag))
        .route("/images/save", get(save))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(store)
}

/// Serves until it is dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: UnixListener, router: Router) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let io = hyper_util::rt::TokioIo::new(stream);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        });
    }
}

async fn status(State(cluster): State<Arc<Cluster>>) -> Response {
    answer(&cluster.status().await)
}

async fn dashboard(State(cluster): State<Arc<Cluster>>) -> Result<Response, Failure> {
    let url = cluster.addons.link("dashboard").await.context("the dashboard is not enabled")?;
    Ok(answer(&json!({"url": url})))
}

async fn enable(State(cluster): State<Arc<Cluster>>, Path(name): Path<String>) -> Result<Response, Failure> {
    cluster.set_addon(&name, true).await?;
    Ok(answer(&json!({})))
}

async fn disable(State(cluster): State<Arc<Cluster>>, Path(name): Path<String>) -> Result<Response, Failure> {
    cluster.set_addon(&name, false).await?;
    Ok(answer(&json!({})))
}

async fn add_node(State(cluster): State<Arc<Cluster>>) -> Result<Response, Failure> {
    Ok(answer(&json!({"name": cluster.add_node().await?})))
}

async fn start_node(State(cluster): State<Arc<Cluster>>, Path(name): Path<String>) -> Result<Response, Failure> {
    Ok(answer(&cluster.start_node(&name).await?))
}

async fn stop_node(State(cluster): State<Arc<Cluster>>, Path(name): Path<String>) -> Result<Response, Failure> {
    Ok(answer(&cluster.stop_node(&name).await?))
}

async fn delete_node(State(cluster): State<Arc<Cluster>>, Path(name): Path<String>) -> Result<Response, Failure> {
    Ok(answer(&cluster.delete_node(&name).await?))
}

#[derive(Deserialize)]
struct Lifetime {
    /// Seconds; 0: for ever.
    ttl: u64,
}

async fn make_token(
    State(cluster): State<Arc<Cluster>>,
    Query(Lifetime { ttl }): Query<Lifetime>,
) -> Result<Response, Failure> {
    Ok(answer(&cluster.make_token((ttl > 0).then(|| std::time::Duration::from_secs(ttl))).await?))
}

async fn list(State(store): State<Arc<ImageStore>>) -> Result<Response, Failure> {
    let images = store.list().await?;
    let objects: Vec<_> = images
        .iter()
        .map(|i| json!({"id": i.id, "repoTags": i.repo_tags, "repoDigests": i.repo_digests, "size": i.size}))
        .collect();
    Ok(answer(&objects.into()))
}

async fn remove(State(store): State<Arc<ImageStore>>, Query(names): Query<Names>) -> Result<Response, Failure> {
    store.remove(&names.name).await?;
    Ok(answer(&json!({})))
}

async fn load(State(store): State<Arc<ImageStore>>, body: Body) -> Result<Response, Failure> {
    let reader = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let mut text = String::new();
    for image in store.load(reader).await? {
        text += &format!("Loaded image: {}\n", image.repo_tags.first().unwrap_or(&image.id));
    }
    Ok(text.into_response())
}

async fn pull(State(store): State<Arc<ImageStore>>, Query(names): Query<Names>) -> Result<Response, Failure> {
    let image = store.pull(&names.name, &[]).await?;
    Ok(format!("{}\n", image.image_id()).into_response())
}

async fn tag(State(store): State<Arc<ImageStore>>, Query(names): Query<Names>) -> Result<Response, Failure> {
    store.tag(&names.name, &names.target).await?;
    Ok(answer(&json!({})))
}

async fn save(State(store): State<Arc<ImageStore>>, Query(names): Query<Names>) -> Result<Response, Failure> {
    let reader = store.save(&names.name).await?;
    Ok(Body::from_stream(ReaderStream::new(reader)).into_response())
}
