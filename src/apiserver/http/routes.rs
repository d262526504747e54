//! Paths that are not API resources: health, version, metrics, discovery, OpenAPI, the token issuer's documents.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::routing::get;
use http::{HeaderValue, Request, Response, Uri};
use serde_json::{Value, json};
use tower_service::Service as _;

use super::responses::{self, Format};
use super::{Asked, node_tunnel, request::Query};
use crate::apiserver::{ApiServer, openapi};
use crate::config::KUBERNETES_VERSION;

/// Answers a path that is not an API resource.
pub(super) async fn answer(server: &Arc<ApiServer>, asked: Asked) -> Response<Body> {
    let path = asked.info.path.as_str();
    if let Some(purpose) = node_tunnel::Purpose::of(path) {
        return node_tunnel::answer(server, purpose, asked);
    }
    if path.starts_with("/openapi/v") {
        return openapi::answer(server, path, &asked.query, asked.request.headers()).await;
    }
    if path == "/api" || path.starts_with("/api/") || path == "/apis" || path.starts_with("/apis/") {
        let found = server.discover(path, asked.request.headers(), asked.format);
        return found.unwrap_or_else(responses::page_not_found);
    }
    let mut request: Request<Body> = asked.request;
    request.extensions_mut().insert(asked.format);
    let Ok(response) = router(server).call(request).await;
    response
}

fn router(
    server: &Arc<ApiServer>,
) -> impl tower_service::Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> {
    Router::new()
        .route("/", get(root))
        .route("/version", get(version))
        .route("/version/", get(version))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/healthz/{check}", get(health))
        .route("/livez", get(health))
        .route("/livez/{check}", get(health))
        .route("/readyz", get(health))
        .route("/readyz/{check}", get(health))
        .route("/.well-known/openid-configuration", get(issuer))
        .route("/openid/v1/jwks", get(keys))
        .fallback(|| async { responses::page_not_found() })
        .method_not_allowed_fallback(|| async { responses::text(405, "405 method not allowed\n") })
        .with_state(Arc::clone(server))
}

async fn root(State(server): State<Arc<ApiServer>>) -> Response<Body> {
    let mut paths: Vec<String> =
        ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/apis/"].map(str::to_owned).into();
    for kind in server.kinds.snapshot().all.iter() {
        let gvr = &kind.gvr;
        for path in [format!("/apis/{}", gvr.group), format!("/apis/{}/{}", gvr.group, gvr.version)] {
            if !gvr.group.is_empty() && !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    let more = [
        "/healthz",
        "/healthz/etcd",
        "/healthz/ping",
        "/livez",
        "/livez/ping",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/readyz/etcd",
        "/readyz/ping",
        "/version",
    ];
    paths.extend(more.map(str::to_owned));
    paths.sort();
    responses::object(200, Format { pretty: true, ..Format::JSON }, &json!({"paths": paths}))
}

async fn version() -> Response<Body> {
    let (major, minor) = KUBERNETES_VERSION.trim_start_matches('v').split_once('.').unwrap_or(("1", "0"));
    let minor = minor.split('.').next().unwrap_or_default();
    let platform = format!(
        "linux/{}",
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    );
    let object = json!({
        "major": major, "minor": minor, "emulationMajor": major, "emulationMinor": minor,
        "minCompatibilityMajor": major, "minCompatibilityMinor": minor,
        "gitVersion": format!("{KUBERNETES_VERSION}+mini.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "rustc", "platform": platform,
    });
    responses::object(200, Format { pretty: true, ..Format::JSON }, &object)
}

async fn metrics(State(server): State<Arc<ApiServer>>) -> Response<Body> {
    let mut objects = Vec::new();
    for kind in
        server.kinds.snapshot().all.iter().filter(|k| k.verbs.contains(&"list") && k.strategy.stored_as().is_none())
    {
        let prefix = crate::apiserver::registry::kind_prefix(kind, "");
        if let Ok(count) = server.storage.count(&prefix).await {
            objects.push((kind.gvr.qualified(), count));
        }
    }
    let mut text = server.metrics.render(&objects);
    server.flow_control.render(&mut text);
    responses::answer(200, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"), text)
}

/// `/healthz`, `/livez`, `/readyz` and single checks below them. `etcd` is the storage, whatever it is.
async fn health(State(server): State<Arc<ApiServer>>, RawQuery(query): RawQuery, uri: Uri) -> Response<Body> {
    let query = Query::new(query.as_deref().unwrap_or_default());
    let mut parts = uri.path().trim_matches('/').split('/');
    let endpoint = parts.next().unwrap_or_default().to_owned();
    let single = parts.next().map(str::to_owned);
    let closing = *server.closing.borrow();
    let mut checks = vec![("ping", Ok(())), ("log", Ok(()))];
    let storage = server.storage.health().await.map_err(|e| e.to_string());
    checks.push(("etcd", storage.clone()));
    if endpoint == "readyz" {
        checks.push(("etcd-readiness", storage));
        checks.push(("shutdown", if closing { Err("process is shutting down".to_owned()) } else { Ok(()) }));
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    if let Some(name) = single {
        return match checks.iter().find(|(n, _)| *n == name) {
            Some((_, Ok(()))) => responses::text(200, "ok"),
            Some((_, Err(why))) => responses::text(500, format!("internal server error: {why}\n")),
            None => responses::page_not_found(),
        };
    }
    let mut report = String::new();
    let mut failed = false;
    for (name, result) in &checks {
        if excluded.contains(name) {
            report.push_str(&format!("[+]{name} excluded: ok\n"));
            continue;
        }
        match result {
            Ok(()) => report.push_str(&format!("[+]{name} ok\n")),
            Err(_) => {
                failed = true;
                report.push_str(&format!("[-]{name} failed: reason withheld\n"));
            }
        }
    }
    if failed {
        return responses::text(500, format!("{report}{endpoint} check failed\n"));
    }
    if query.get("verbose").is_some() {
        return responses::text(200, format!("{report}{endpoint} check passed\n"));
    }
    responses::text(200, "ok")
}

async fn issuer(State(server): State<Arc<ApiServer>>) -> Response<Body> {
    let issuer = &server.options.issuer;
    let object: Value = json!({
        "issuer": issuer, "jwks_uri": format!("{}/openid/v1/jwks", issuer.trim_end_matches('/')),
        "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [server.tokens.algorithm()],
    });
    let mut response = responses::object(200, Format::JSON, &object);
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

async fn keys(State(server): State<Arc<ApiServer>>) -> Response<Body> {
    let mut response = responses::object(200, Format::JSON, &server.tokens.key_set());
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}
