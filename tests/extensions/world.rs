//! A server, requests to it, and HTTPS servers that play webhooks.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mini::apiserver::User;
use mini::apiserver::testing::{self, TestServer};
use mini::env::Env;
use mini::storage::{Limits, memory};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub const WIDGETS: &str = "/apis/x.example.com/v1/namespaces/default/widgets";

/// An answer.
pub struct Answer {
    pub code: u16,
    pub body: Value,
    pub warnings: Vec<String>,
}

impl Answer {
    /// The body of a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.code), "{} {}", self.code, self.body);
        self.body
    }
    /// Code and message of a refusal.
    pub fn refused(&self) -> (u16, &str) {
        (self.code, self.body["message"].as_str().unwrap_or_default())
    }
}

pub struct World {
    pub server: TestServer,
}

impl World {
    pub async fn new() -> Self {
        Self { server: testing::start(memory(Limits::default()), Env::real()).await }
    }

    pub async fn send(&self, method: &str, path: &str, media: &str, body: &Value) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media)
            .header("user-agent", "test/1")
            .body(if body.is_null() { Body::empty() } else { Body::from(body.to_string()) })
            .expect("a request");
        self.ask(request).await
    }

    pub async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.server.call(Some(&User::master("admin")), request).await;
        let code = response.status().as_u16();
        let warnings = response.headers().get_all("warning").iter();
        let warnings = warnings.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
        let bytes = response.into_body().collect().await.expect("a whole body").to_bytes();
        let body =
            serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
        Answer { code, body, warnings }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "application/json", &Value::Null).await
    }
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "application/json", body).await
    }
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, "application/json", body).await
    }
    pub async fn merge(&self, path: &str, body: &Value) -> Answer {
        self.send("PATCH", path, "application/merge-patch+json", body).await
    }
    pub async fn apply(&self, path: &str, manager: &str, body: &Value) -> Answer {
        let path = format!("{path}?fieldManager={manager}");
        self.send("PATCH", &path, "application/apply-patch+yaml", body).await
    }
    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, "application/json", &Value::Null).await
    }

    /// Creates a definition and waits until its kind is served.
    pub async fn define(&self, definition: &Value) {
        let mut kinds = self.server.server.served_kinds();
        self.post(DEFINITIONS, definition).await.ok();
        let plural = definition["spec"]["names"]["plural"].as_str().expect("a name");
        let served = kinds.wait_for(|kinds| kinds.iter().any(|kind| kind.gvr.resource == plural));
        tokio::time::timeout(Duration::from_secs(10), served).await.expect("it is served").expect("the server runs");
    }

    /// Waits until a path answers with a code.
    pub async fn until(&self, path: &str, code: u16) {
        let mut kinds = self.server.server.served_kinds();
        let arrived = async {
            while self.get(path).await.code != code {
                let _ = tokio::time::timeout(Duration::from_millis(20), kinds.changed()).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), arrived).await.expect("it answers in time");
    }
}

/// A definition of `widgets.x.example.com` with these versions.
pub fn widgets(versions: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.x.example.com"}, "spec": {"group": "x.example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wd"]}, "versions": versions}})
}

/// A version with a schema for `spec`.
pub fn version(name: &str, storage: bool, spec: Value) -> Value {
    json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object",
        "properties": {"spec": spec, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}})
}

type Handler = Box<dyn Fn(&str, &Value) -> Value + Send + Sync>;

/// An HTTPS server on loopback.
pub struct Backend {
    pub address: SocketAddr,
    pub ca_pem: String,
    /// Paths, bodies and headers of the requests so far.
    pub seen: Arc<Mutex<Vec<(String, Value, http::HeaderMap)>>>,
}

impl Backend {
    /// Answers each request with what `handler` makes of its path and body.
    pub async fn start(handler: impl Fn(&str, &Value) -> Value + Send + Sync + 'static) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "backend authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate");
        let mut params =
            CertificateParams::new(vec!["hooks.default.svc".to_owned(), "localhost".to_owned()]).expect("names");
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &ca).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.pem().as_bytes()).expect("PEM")],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("PEM"),
            )
            .expect("a certificate and its key");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let (acceptor, handler, log) =
            (TlsAcceptor::from(Arc::new(config)), Arc::new(Box::new(handler) as Handler), seen.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, handler, log) = (acceptor.clone(), handler.clone(), log.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(handler.clone(), log.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, ca_pem: ca.pem(), seen }
    }

    /// A `clientConfig` that leads here.
    pub fn client_config(&self, path: &str) -> Value {
        json!({"url": format!("https://localhost:{}{path}", self.address.port()), "caBundle": self.ca_bundle()})
    }
    pub fn ca_bundle(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(&self.ca_pem)
    }
    pub fn calls(&self) -> usize {
        self.seen.lock().expect("no panic").len()
    }
}

async fn answer(
    handler: Arc<Handler>,
    log: Arc<Mutex<Vec<(String, Value, http::HeaderMap)>>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let headers = request.headers().clone();
    let bytes = request.into_body().collect().await.expect("a whole body").to_bytes();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    log.lock().expect("no panic").push((path.clone(), body.clone(), headers));
    let made = handler(&path, &body);
    let response = Response::builder().header("content-type", "application/json").body(Full::from(made.to_string()));
    Ok(response.expect("a response"))
}
