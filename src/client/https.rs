//! [`Api`] over HTTPS: the door of the command line, of benchmarks and of nodes in other processes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{Api, DeleteOptions, List, ListOptions, Patch, WatchEvent};
use crate::api::{Gvr, Status, StatusResult};

/// A connection that lies idle for that long is tried by the kernel.
pub const KEEPALIVE: Duration = Duration::from_secs(30);

/// Refuses names: a static binary has no resolver of libc's, and API servers are given by address.
#[derive(Clone)]
struct AddressesOnly;

impl tower_service::Service<Name> for AddressesOnly {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, name: Name) -> Self::Future {
        let error = std::io::Error::other(format!("the API server must be given by address, not as {name}"));
        Box::pin(async move { Err(error) })
    }
}

/// How to reach an API server and who to be there.
#[derive(Clone)]
pub struct Access {
    /// `https://127.0.0.1:8443`.
    pub server: String,
    /// The certificate authority of the server, PEM.
    pub ca_pem: Vec<u8>,
    /// The client's certificate, PEM; empty without one.
    pub cert_pem: Vec<u8>,
    /// The key of the certificate, PEM.
    pub key_pem: Vec<u8>,
    /// A bearer token; empty without one.
    pub token: String,
}

impl Access {
    /// How TLS is done with this server.
    ///
    /// # Errors
    /// When a certificate or key cannot be read.
    pub fn tls(&self) -> anyhow::Result<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(&self.ca_pem) {
            roots.add(cert?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        if self.cert_pem.is_empty() {
            return Ok(tls.with_no_client_auth());
        }
        let chain = CertificateDer::pem_slice_iter(&self.cert_pem).collect::<Result<Vec<_>, _>>()?;
        Ok(tls.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&self.key_pem)?)?)
    }
}

/// A client of one API server. Cloning shares the connections.
#[derive(Clone)]
pub struct HttpsApi {
    http: HttpClient<HttpsConnector<HttpConnector<AddressesOnly>>, Full<Bytes>>,
    server: Arc<str>,
    token: Arc<str>,
    user_agent: Arc<str>,
    link: Arc<Link>,
}

/// Whether the API server answers, as far as the last request tells.
#[derive(Default)]
struct Link {
    lost: AtomicBool,
    again: Notify,
}

impl HttpsApi {
    /// Prepares a client; nothing is sent yet. `http2`: whether to offer h2.
    ///
    /// # Errors
    /// When a certificate or key cannot be read.
    pub fn new(access: &Access, user_agent: &str, http2: bool) -> anyhow::Result<Self> {
        Ok(Self::with_tls(access.tls()?, &access.server, &access.token, user_agent, http2))
    }

    /// As [`HttpsApi::new`], where TLS is done as `tls` says.
    pub fn with_tls(tls: rustls::ClientConfig, server: &str, token: &str, user_agent: &str, http2: bool) -> Self {
        let mut connector = HttpConnector::new_with_resolver(AddressesOnly);
        connector.enforce_http(false);
        connector.set_nodelay(true);
        // The kernel notices that the other machine is gone.
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE / 3));
        connector.set_keepalive_retries(Some(3));
        let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1();
        let connector =
            if http2 { builder.enable_http2().wrap_connector(connector) } else { builder.wrap_connector(connector) };
        let http = HttpClient::builder(TokioExecutor::new()).build(connector);
        Self {
            http,
            server: server.trim_end_matches('/').into(),
            token: token.into(),
            user_agent: user_agent.into(),
            link: Arc::default(),
        }
    }

    /// Sends one request. `path` begins with a slash and may have a query.
    ///
    /// # Errors
    /// A 503 status when the server cannot be reached.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> StatusResult<Response<Incoming>> {
        let uri: Uri = format!("{}{path}", self.server).parse().map_err(Status::internal)?;
        let mut request = Request::builder().method(method).uri(uri).header("User-Agent", &*self.user_agent);
        request = request.header("Accept", "application/json");
        if !content_type.is_empty() {
            request = request.header("Content-Type", content_type);
        }
        if !self.token.is_empty() {
            request = request.header("Authorization", format!("Bearer {}", self.token));
        }
        let request = request.body(Full::new(body)).map_err(Status::internal)?;
        match self.http.request(request).await {
            Ok(response) => {
                self.answers();
                Ok(response)
            }
            Err(error) => {
                self.link.lost.store(true, Ordering::Relaxed);
                Err(unreachable(&self.server, &error))
            }
        }
    }

    /// Says that the server answers: those who wait for it go on at once.
    pub fn answers(&self) {
        if self.link.lost.swap(false, Ordering::Relaxed) {
            self.link.again.notify_waiters();
        }
    }

    /// Sends one request and reads the whole answer; an answer of 400 or more becomes its Status.
    ///
    /// # Errors
    /// The server's Status, or 503.
    pub async fn fetch(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> StatusResult<Bytes> {
        let response = self.send(method, path, content_type, body).await?;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.map_err(|error| unreachable(&self.server, &error))?.to_bytes();
        if code >= 400 { Err(read_status(code, &bytes)) } else { Ok(bytes) }
    }

    async fn object(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> StatusResult<Arc<Value>> {
        let body = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let bytes = self.fetch(method, path, content_type, body).await?;
        serde_json::from_slice(&bytes).map(Arc::new).map_err(Status::internal)
    }
}

fn unreachable(server: &str, error: &dyn std::error::Error) -> Status {
    let mut causes = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        causes = format!("{causes}: {cause}");
        source = cause.source();
    }
    Status::new(503, "ServiceUnavailable", format!("{server} does not answer: {causes}"))
}

/// The Status in an answer of 400 or more.
pub fn read_status(code: u16, bytes: &[u8]) -> Status {
    serde_json::from_slice(bytes).unwrap_or_else(|_| Status::new(code, "", String::from_utf8_lossy(bytes)))
}

/// The path of a collection (empty `name`), an object or a subresource.
pub fn path(gvr: &Gvr, namespace: &str, name: &str, subresource: &str) -> String {
    let mut path = if gvr.group.is_empty() { "/api/".to_owned() } else { format!("/apis/{}/", gvr.group) };
    path += &gvr.version;
    if !namespace.is_empty() {
        path += "/namespaces/";
        path += namespace;
    }
    path += "/";
    path += &gvr.resource;
    for part in [name, subresource] {
        if !part.is_empty() {
            path += "/";
            path += part;
        }
    }
    path
}

fn query(options: &ListOptions, watch: bool) -> String {
    let mut parts = Vec::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            parts.push(format!("{key}={}", escape(value)));
        }
    };
    add("labelSelector", &options.label_selector);
    add("fieldSelector", &options.field_selector);
    add("resourceVersion", &options.resource_version);
    if watch {
        add("watch", "true");
        add("allowWatchBookmarks", if options.bookmarks { "true" } else { "" });
    }
    if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
}

/// Percent-encodes everything but unreserved characters (RFC 3986).
pub fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (b as char).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// The path and query of a list.
pub fn list_path(gvr: &Gvr, namespace: &str, options: &ListOptions) -> String {
    path(gvr, namespace, "", "") + &query(options, false)
}

/// The answer to a list.
///
/// # Errors
/// When it is no JSON.
pub fn read_list(bytes: &[u8]) -> StatusResult<List> {
    let mut list: Value = serde_json::from_slice(bytes).map_err(Status::internal)?;
    let (kind, api_version) = (list["kind"].take(), list["apiVersion"].take());
    let item_kind = kind.as_str().unwrap_or_default().trim_end_matches("List").to_owned();
    let Value::Array(items) = list["items"].take() else { return Ok(List::default()) };
    let items = items
        .into_iter()
        .map(|mut item| {
            // Items of a list do not carry their own kind on the wire.
            if item["kind"].is_null() {
                item["kind"] = item_kind.as_str().into();
                item["apiVersion"] = api_version.clone();
            }
            Arc::new(item)
        })
        .collect();
    Ok(List { items, resource_version: crate::api::meta::resource_version(&list).to_owned() })
}

/// One line of a watch.
fn read_event(line: &[u8]) -> StatusResult<WatchEvent> {
    let mut event: Value = serde_json::from_slice(line).map_err(Status::internal)?;
    let object = event["object"].take();
    match event["type"].as_str() {
        Some("ADDED") => Ok(WatchEvent::Added(Arc::new(object))),
        Some("MODIFIED") => Ok(WatchEvent::Modified(Arc::new(object))),
        Some("DELETED") => Ok(WatchEvent::Deleted(Arc::new(object))),
        Some("BOOKMARK") => Ok(WatchEvent::Bookmark(crate::api::meta::resource_version(&object).to_owned())),
        _ => Err(serde_json::from_value(object).unwrap_or_else(|_| Status::internal("an unknown watch event"))),
    }
}

#[async_trait]
impl Api for HttpsApi {
    async fn reachable_again(&self) {
        self.link.again.notified().await;
    }

    async fn get(&self, gvr: &Gvr, namespace: &str, name: &str) -> StatusResult<Arc<Value>> {
        self.object(Method::GET, &path(gvr, namespace, name, ""), "", None).await
    }

    async fn get_scale(&self, gvr: &Gvr, namespace: &str, name: &str) -> StatusResult<Arc<Value>> {
        self.object(Method::GET, &path(gvr, namespace, name, "scale"), "", None).await
    }

    async fn list(&self, gvr: &Gvr, namespace: &str, options: &ListOptions) -> StatusResult<List> {
        read_list(&self.fetch(Method::GET, &list_path(gvr, namespace, options), "", Bytes::new()).await?)
    }

    async fn watch(
        &self,
        gvr: &Gvr,
        namespace: &str,
        options: &ListOptions,
    ) -> StatusResult<BoxStream<'static, StatusResult<WatchEvent>>> {
        let path = path(gvr, namespace, "", "") + &query(options, true);
        let response = self.send(Method::GET, &path, "", Bytes::new()).await?;
        let code = response.status().as_u16();
        if code >= 400 {
            let bytes = response.into_body().collect().await.map_err(Status::internal)?.to_bytes();
            return Err(read_status(code, &bytes));
        }
        let state = (response.into_body(), BytesMut::new());
        let events = stream::unfold(state, |(mut body, mut buffer)| async move {
            loop {
                if let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                    let line = buffer.split_to(end + 1);
                    return Some((read_event(&line), (body, buffer)));
                }
                match body.frame().await? {
                    Ok(frame) => {
                        if let Ok(data) = frame.into_data() {
                            buffer.extend_from_slice(&data);
                        }
                    }
                    Err(error) => return Some((Err(Status::internal(error)), (body, buffer))),
                }
            }
        });
        Ok(events.boxed())
    }

    async fn create(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Value,
    ) -> StatusResult<Arc<Value>> {
        self.object(Method::POST, &path(gvr, namespace, name, subresource), "application/json", Some(&object)).await
    }

    async fn update(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Value,
    ) -> StatusResult<Arc<Value>> {
        self.object(Method::PUT, &path(gvr, namespace, name, subresource), "application/json", Some(&object)).await
    }

    async fn patch(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: Patch,
    ) -> StatusResult<Arc<Value>> {
        let mut path = path(gvr, namespace, name, subresource);
        let (content_type, body) = match patch {
            Patch::Json(body) => ("application/json-patch+json", body),
            Patch::Merge(body) => ("application/merge-patch+json", body),
            Patch::Strategic(body) => ("application/strategic-merge-patch+json", body),
            Patch::Apply(body, manager, force) => {
                path += &format!("?fieldManager={}&force={force}", escape(&manager));
                ("application/apply-patch+yaml", body)
            }
        };
        self.object(Method::PATCH, &path, content_type, Some(&body)).await
    }

    async fn delete(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> StatusResult<Arc<Value>> {
        let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(seconds) = options.grace_period_seconds {
            body["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(policy) = options.propagation_policy {
            body["propagationPolicy"] = policy.into();
        }
        if let Some(uid) = &options.uid {
            body["preconditions"]["uid"] = uid.as_str().into();
        }
        if let Some(version) = &options.resource_version {
            body["preconditions"]["resourceVersion"] = version.as_str().into();
        }
        self.object(Method::DELETE, &path(gvr, namespace, name, ""), "application/json", Some(&body)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_group_namespace_and_subresource() {
        let pods = Gvr::new("", "v1", "pods");
        assert_eq!(path(&pods, "default", "a", "log"), "/api/v1/namespaces/default/pods/a/log");
        assert_eq!(path(&Gvr::new("apps", "v1", "deployments"), "", "", ""), "/apis/apps/v1/deployments");
    }

    #[test]
    fn selectors_are_escaped() {
        let options = ListOptions { label_selector: "a in (b,c)".into(), ..Default::default() };
        assert_eq!(query(&options, false), "?labelSelector=a%20in%20%28b%2Cc%29");
    }

    #[test]
    fn a_watch_error_becomes_its_status() {
        let line = br#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410,"reason":"Expired","message":"too old"}}"#;
        assert_eq!(read_event(line).expect_err("an error event").code, 410);
    }
}
