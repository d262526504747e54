//! The kubelet API: logs, exec, attach, port-forward, figures. The API server passes requests on; nobody else gets here.

mod exec;
mod logs;
mod port_forward;
mod query;
pub mod spdy;
mod stats;
mod streams;
#[cfg(test)]
mod tests;
mod websocket;

use std::sync::Arc;

use axum::body::Body;
use http::{Request, Response, StatusCode, header};
use k8s_openapi::api::core::v1 as core;
use serde_json::json;
use tokio::sync::watch;

use super::Node;
use super::parts::is_mirror;
use super::pod_state::PodState;
use crate::api::Status;
use query::{Query, decode};

/// A container that a request is about.
pub(super) struct Target {
    /// Its pod as it is now.
    pub pod: Arc<PodState>,
    /// Its spec.
    pub spec: core::Container,
    /// The pod as it changes.
    pub view: watch::Receiver<Arc<PodState>>,
}

/// Answers a request.
pub async fn handle(node: &Arc<Node>, request: Request<Body>) -> Response<Body> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let parts: Vec<String> =
        request.uri().path().split('/').filter(|p| !p.is_empty()).map(|part| decode(part, false)).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let context = node.context().clone();
    match parts[..] {
        ["healthz"] => plain(StatusCode::OK, "ok"),
        ["pods"] | ["runningpods"] => {
            let pods: Vec<core::Pod> = node.pods().into_iter().map(|state| state.pod).collect();
            json_answer(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}))
        }
        ["stats", "summary"] => json_answer(&stats::summary(node).await),
        ["metrics", "resource"] => {
            let mut response = plain(StatusCode::OK, &stats::resource_metrics(node).await);
            let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        ["containerLogs", namespace, pod, container] => match find(node, namespace, pod, container) {
            Ok(target) => match logs::LogOptions::parse(&query, context.env.now()) {
                Ok(options) => logs::answer(&context.log_dir(&target.pod.pod), target, options),
                Err(text) => refusal(&Status::bad_request(text)),
            },
            Err(response) => *response,
        },
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            match find(node, namespace, pod, container).and_then(process) {
                Ok(target) => exec::exec(context, &target, &query, request),
                Err(response) => *response,
            }
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            match find(node, namespace, pod, container).and_then(process) {
                Ok(target) => exec::attach(context, &target, &query, request),
                Err(response) => *response,
            }
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => match node.view(namespace, pod) {
            Some(view) => {
                let state = view.borrow().clone();
                port_forward::port_forward(context, &state, &query, request)
            }
            None => plain(StatusCode::NOT_FOUND, "pod does not exist"),
        },
        _ => plain(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

fn find(node: &Node, namespace: &str, pod: &str, container: &str) -> Result<Target, Box<Response<Body>>> {
    let missing = |text: String| Box::new(plain(StatusCode::NOT_FOUND, &text));
    let view = node.view(namespace, pod).ok_or_else(|| missing(format!("pod {pod:?} does not exist")))?;
    let state = view.borrow().clone();
    let spec = state.specs().into_iter().map(|(_, spec)| spec).find(|spec| spec.name == container);
    let spec = spec.ok_or_else(|| missing(format!("container {container:?} not found in pod {pod:?}")))?;
    Ok(Target { pod: state, spec, view })
}

/// Refuses what needs a process where there is none.
fn process(target: Target) -> Result<Target, Box<Response<Body>>> {
    if !is_mirror(&target.pod.pod) {
        return Ok(target);
    }
    let name = &target.spec.name;
    let text = format!("{name} is a part of the cluster's own process: there is no container to run a command in");
    Err(Box::new(refusal(&Status::bad_request(text))))
}

/// A text answer.
fn plain(status: StatusCode, text: &str) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .body(Body::from(text.to_owned()))
        .expect("these headers are valid")
}

/// A failure as `metav1.Status`, for requests whose answer kubectl shows.
fn refusal(status: &Status) -> Response<Body> {
    let mut response = json_answer(&status.to_object());
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn json_answer(value: &serde_json::Value) -> Response<Body> {
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(value.to_string()))
        .expect("these headers are valid")
}
