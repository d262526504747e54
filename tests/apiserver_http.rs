//! The API server over TLS, in both protocols, as clients meet it.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mini::apiserver::testing::{self, ADMIN_TOKEN, TestServer};
use mini::env::Env;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

type Https = Client<hyper_rustls::HttpsConnector<HttpConnector>, Full<Bytes>>;

fn client(server: &TestServer, certificate: bool, h2: bool) -> Https {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.ca_pem.as_bytes()).expect("PEM")).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots);
    let config = if certificate {
        let chain = vec![CertificateDer::from_pem_slice(server.client_cert_pem.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(server.client_key_pem.as_bytes()).expect("PEM");
        builder.with_client_auth_cert(chain, key).expect("a certificate and its key")
    } else {
        builder.with_no_client_auth()
    };
    let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config).https_only();
    let connector = if h2 { connector.enable_http2().build() } else { connector.enable_http1().build() };
    Client::builder(TokioExecutor::new()).http2_only(h2).build(connector)
}

async fn send(
    client: &Https,
    server: &TestServer,
    method: Method,
    path: &str,
    token: &str,
    body: Option<Value>,
) -> (StatusCode, Value) {
    let (code, body) = open(client, server, method, path, token, body).await;
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into()))
}

async fn open(
    client: &Https,
    server: &TestServer,
    method: Method,
    path: &str,
    token: &str,
    body: Option<Value>,
) -> (StatusCode, Incoming) {
    let mut request = Request::builder().method(method).uri(format!("https://{}{path}", server.address));
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
    let response = client.request(request.body(Full::new(body)).expect("a request")).await.expect("an answer");
    (response.status(), response.into_body())
}

async fn start() -> TestServer {
    testing::start(testing::store(&Env::real()).await, Env::real()).await
}

#[tokio::test]
async fn both_protocols_serve_objects_and_watches() {
    let server = start().await;
    for (h2, name) in [(false, "a"), (true, "b")] {
        let client = client(&server, true, h2);
        let path = "/api/v1/namespaces/default/configmaps";
        let (code, list) = send(&client, &server, Method::GET, path, "", None).await;
        assert_eq!(code, 200, "{list}");
        let version = list["metadata"]["resourceVersion"].as_str().expect("a version");
        let watch = format!("{path}?watch=1&resourceVersion={version}");
        let (code, mut watch) = open(&client, &server, Method::GET, &watch, "", None).await;
        assert_eq!(code, 200);
        let object = json!({"metadata": {"name": name}, "data": {"k": "v"}});
        let (code, made) = send(&client, &server, Method::POST, path, "", Some(object)).await;
        assert_eq!(code, 201, "{made}");
        let frame = watch.frame().await.expect("an event").expect("intact").into_data().expect("data");
        let event: Value = serde_json::from_slice(&frame).expect("JSON");
        assert_eq!((event["type"].as_str(), &event["object"]), (Some("ADDED"), &made));
    }
}

#[tokio::test]
async fn strangers_see_health_and_version_and_nothing_else() {
    let server = start().await;
    let client = client(&server, false, false);
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(send(&client, &server, Method::GET, path, "", None).await.0, 200, "{path}");
    }
    for path in ["/api", "/apis", "/metrics", "/openapi/v2", "/api/v1/namespaces", "/healthz/etcd"] {
        assert_eq!(send(&client, &server, Method::GET, path, "", None).await.0, 403, "{path}");
    }
    let (code, status) = send(&client, &server, Method::GET, "/api/v1/pods", "wrong", None).await;
    assert_eq!((code.as_u16(), status["reason"].as_str()), (401, Some("Unauthorized")));
}

#[tokio::test]
async fn a_token_is_good_for_as_long_as_its_pod() {
    let server = start().await;
    let client = client(&server, false, false);
    let post = |path: &str, object: Value| {
        let (client, server, path) = (&client, &server, path.to_owned());
        async move {
            let (code, object) = send(client, server, Method::POST, &path, ADMIN_TOKEN, Some(object)).await;
            assert!(code.is_success(), "{object}");
            object
        }
    };
    let namespace = "/api/v1/namespaces/default";
    post(&format!("{namespace}/serviceaccounts"), json!({"metadata": {"name": "default"}})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pod = post(&format!("{namespace}/pods"), pod).await;
    let request = json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"]}}});
    let answer = post(&format!("{namespace}/serviceaccounts/default/token"), request).await;
    let token = answer["status"]["token"].as_str().expect("a token");
    let binding = json!({
        "metadata": {"name": "readers"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
    });
    let pods = format!("{namespace}/pods");
    assert_eq!(send(&client, &server, Method::GET, &pods, token, None).await.0, 403);
    post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", binding).await;
    // The writer of a role binding is judged by it at once.
    assert_eq!(send(&client, &server, Method::GET, &pods, token, None).await.0, 200);
    assert_eq!(send(&client, &server, Method::GET, "/api/v1/namespaces/kube-system/pods", token, None).await.0, 403);
    assert_eq!(send(&client, &server, Method::GET, &format!("{namespace}/secrets"), token, None).await.0, 403);
    let (code, _) = send(&client, &server, Method::DELETE, &format!("{pods}/p"), ADMIN_TOKEN, None).await;
    assert_eq!(code, 200);
    assert_eq!(send(&client, &server, Method::GET, &pods, token, None).await.0, 401);
}

#[tokio::test]
async fn hostile_requests_get_a_clear_error() {
    let server = start().await;
    let client = client(&server, false, false);
    let path = "/api/v1/namespaces/default/configmaps";
    let deep = "[".repeat(100_000);
    for (body, code) in [("{", 400), ("[1]", 400), ("\"x\"", 400), (deep.as_str(), 400), ("{\"metadata\":3}", 400)] {
        let request = Request::post(format!("https://{}{path}", server.address))
            .header("authorization", format!("Bearer {ADMIN_TOKEN}"))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_owned())))
            .expect("a request");
        let response = client.request(request).await.expect("an answer");
        assert_eq!(response.status().as_u16(), code, "{:.40}", body);
    }
    let large = json!({"metadata": {"name": "x"}, "data": {"k": "x".repeat(4 << 20)}});
    let (code, status) = send(&client, &server, Method::POST, path, ADMIN_TOKEN, Some(large)).await;
    assert_eq!((code.as_u16(), status["reason"].as_str()), (413, Some("RequestEntityTooLarge")));
    for path in [
        "/api/v1/namespaces/%2e%2e/pods/%00",
        "/api/v1/pods?limit=x",
        "/api/v1/pods?continue=AAAA",
        "/apis//v1/x",
        "/api/v1/namespaces/a/pods/b/proxy/../../x",
    ] {
        let (code, _) = send(&client, &server, Method::GET, path, ADMIN_TOKEN, None).await;
        assert!(code.is_client_error(), "{path}: {code}");
    }
}
