//! A client of one registry (OCI distribution specification), with bearer and basic authentication.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::{Credential, Reference};
use crate::client::https::escape;

/// How often a registry may send us elsewhere.
const REDIRECTS: usize = 5;
/// How long a registry may say nothing (containerd's `image_pull_progress_timeout`).
const PATIENCE: Duration = Duration::from_secs(300);

/// Names by hickory: a static binary has no resolver of libc's.
#[derive(Clone, Default)]
struct Resolver(Arc<OnceLock<hickory_resolver::TokioResolver>>);

impl tower_service::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, name: Name) -> Self::Future {
        let this = self.0.clone();
        Box::pin(async move {
            if name.as_str() == "localhost" {
                return Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)].into_iter());
            }
            if this.get().is_none() {
                let made = hickory_resolver::TokioResolver::builder_tokio()
                    .and_then(|builder| builder.build())
                    .map_err(std::io::Error::other)?;
                let _ = this.set(made);
            }
            let resolver = this.get().ok_or_else(|| std::io::Error::other("no resolver"))?;
            let found = resolver
                .lookup_ip(name.as_str())
                .await
                .map_err(|error| std::io::Error::other(format!("lookup {name}: {error}")))?;
            let addresses: Vec<_> = found.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok(addresses.into_iter())
        })
    }
}

type Http = Client<HttpsConnector<HttpConnector<Resolver>>, Empty<Bytes>>;

/// Why a registry did not give what was asked.
#[derive(Debug)]
pub enum Refusal {
    /// It is not there.
    NotFound,
    /// The credentials (or their absence) do not do.
    Denied(String),
    /// Anything else, in words.
    Other(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound => f.write_str("not found"),
            Self::Denied(why) => {
                write!(f, "pull access denied, repository does not exist or may require authorization: {why}")
            }
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// Where an image's registry answers: `https://host[:port]`. A registry's own mirror goes before one for all, as in containerd.
pub fn endpoint(reference: &Reference, mirrors: &[String]) -> String {
    let own = mirrors.iter().filter_map(|mirror| mirror.split_once('=')).find(|(host, _)| *host == reference.registry);
    let mirror = own.map(|(_, url)| url).or_else(|| mirrors.iter().map(String::as_str).find(|m| !m.contains('=')));
    match (mirror, reference.registry.as_str()) {
        (Some(url), _) => with_scheme(url),
        (None, "docker.io") => "https://registry-1.docker.io".to_owned(),
        (None, other) => with_scheme(other),
    }
}

/// `http` for registries on this machine, as containerd has it, unless the scheme is given.
fn with_scheme(address: &str) -> String {
    let address = address.trim_end_matches('/');
    if address.starts_with("http://") || address.starts_with("https://") {
        return address.to_owned();
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    format!("{}://{address}", if local { "http" } else { "https" })
}

/// A registry and one repository of it, with what it takes to get in.
pub struct Registry {
    http: Http,
    endpoint: String,
    repository: String,
    credential: Option<Credential>,
    authorization: Mutex<Option<String>>,
    /// How long it may say nothing.
    patience: Duration,
}

impl Registry {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// When the machine's certificate authorities cannot be read.
    pub fn new(endpoint: &str, repository: &str, credential: Option<Credential>) -> Result<Self, String> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in rustls_native_certs::load_native_certs().certs {
            // A certificate that rustls cannot use is one authority less.
            let _ = roots.add(certificate);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new_with_resolver(Resolver::default());
        connector.enforce_http(false);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(connector);
        Ok(Self {
            http: Client::builder(TokioExecutor::new()).build(connector),
            endpoint: endpoint.to_owned(),
            repository: repository.to_owned(),
            credential,
            authorization: Mutex::default(),
            patience: PATIENCE,
        })
    }

    /// An answer, or a part of one, in time.
    ///
    /// # Errors
    /// A [`Refusal`] when the registry has fallen silent.
    pub async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, Refusal> {
        let silent = || Refusal::Other(format!("no progress for {} s", self.patience.as_secs()));
        tokio::time::timeout(self.patience, answer).await.map_err(|_| silent())
    }

    /// A manifest by tag or digest, at most `limit` bytes.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub async fn manifest(&self, target: &str, limit: u64) -> Result<Bytes, Refusal> {
        let response = self.get(&format!("manifests/{target}"), 0).await?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let body = self.in_time(Limited::new(response.into_body(), limit).collect()).await?;
        body.map(|body| body.to_bytes()).map_err(|error| Refusal::Other(error.to_string()))
    }

    /// A blob's bytes as they come, from byte `from` on; and from where they really come, which may be the beginning.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub async fn blob(&self, digest: &str, from: u64) -> Result<(u64, Incoming), Refusal> {
        let response = self.get(&format!("blobs/{digest}"), from).await?;
        let from = if response.status() == StatusCode::PARTIAL_CONTENT { from } else { 0 };
        Ok((from, response.into_body()))
    }

    async fn get(&self, what: &str, from: u64) -> Result<Response<Incoming>, Refusal> {
        let url = format!("{}/v2/{}/{what}", self.endpoint, self.repository);
        let response = self.follow(&url, from).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return accepted(&url, response).await;
        }
        let challenge =
            response.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let authorization = self.answer(challenge).await?;
        *self.authorization.lock().expect("no panic while held") = Some(authorization);
        accepted(&url, self.follow(&url, from).await?).await
    }

    /// Sends a GET and follows redirects; our authorization goes to the registry's own address only.
    async fn follow(&self, url: &str, from: u64) -> Result<Response<Incoming>, Refusal> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS {
            let own = url.starts_with(&format!("{}/", self.endpoint));
            let authorization = self.authorization.lock().expect("no panic while held").clone().filter(|_| own);
            let response = self.send(&url, authorization.as_deref(), from).await?;
            let Some(location) = response.headers().get(LOCATION).filter(|_| response.status().is_redirection()) else {
                return Ok(response);
            };
            let location = location.to_str().map_err(|error| Refusal::Other(error.to_string()))?;
            url = if location.starts_with('/') {
                let base: Uri = url.parse().map_err(|_| Refusal::Other(format!("invalid URL {url:?}")))?;
                format!(
                    "{}://{}{location}",
                    base.scheme_str().unwrap_or("https"),
                    base.authority().map_or("", |a| a.as_str())
                )
            } else {
                location.to_owned()
            };
        }
        Err(Refusal::Other("too many redirects".into()))
    }

    async fn send(&self, url: &str, authorization: Option<&str>, from: u64) -> Result<Response<Incoming>, Refusal> {
        let mut request = Request::builder().method(Method::GET).uri(url).header(ACCEPT, super::manifest::ACCEPT);
        request = request.header("User-Agent", concat!("mini/", env!("CARGO_PKG_VERSION")));
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::new()).map_err(|error| Refusal::Other(error.to_string()))?;
        self.in_time(self.http.request(request))
            .await?
            .map_err(|error| Refusal::Other(format!("failed to do request: Get {url:?}: {}", causes(&error))))
    }

    /// The Authorization header that a challenge asks for.
    async fn answer(&self, challenge: &str) -> Result<String, Refusal> {
        if let Some(ready) = self.credential.as_ref().filter(|c| !c.registry_token.is_empty()) {
            return Ok(format!("Bearer {}", ready.registry_token));
        }
        let basic = self
            .credential
            .as_ref()
            .filter(|c| !c.username.is_empty())
            .map(|c| format!("Basic {}", STANDARD.encode(format!("{}:{}", c.username, c.password))));
        let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return basic.ok_or_else(|| Refusal::Denied("no basic auth credentials".into()));
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Refusal::Denied(format!("unknown authentication scheme {scheme:?}")));
        }
        let parameters = challenge_parameters(parameters);
        let find = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let realm = find("realm").ok_or_else(|| Refusal::Denied("the challenge has no realm".into()))?;
        let default = format!("repository:{}:pull", self.repository);
        let mut url = format!("{realm}?scope={}", escape(find("scope").unwrap_or(&default)));
        if let Some(service) = find("service") {
            url += &format!("&service={}", escape(service));
        }
        // A password must not cross the network in the clear for a registry that is asked over TLS.
        let basic = basic.filter(|_| realm.starts_with("https://") || self.endpoint.starts_with("http://"));
        let response = self.send(&url, basic.as_deref(), 0).await?;
        if !response.status().is_success() {
            return Err(Refusal::Denied(format!("failed to fetch a token: {}", response.status())));
        }
        let body = self.in_time(Limited::new(response.into_body(), 1 << 20).collect()).await?;
        let body = body.map_err(|error| Refusal::Other(error.to_string()))?.to_bytes();
        let answer: Value = serde_json::from_slice(&body).map_err(|error| Refusal::Other(error.to_string()))?;
        let token = answer["token"].as_str().or(answer["access_token"].as_str());
        token.map(|token| format!("Bearer {token}")).ok_or_else(|| Refusal::Denied("no token in the answer".into()))
    }
}

async fn accepted(url: &str, response: Response<Incoming>) -> Result<Response<Incoming>, Refusal> {
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => Err(Refusal::NotFound),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(Refusal::Denied("server message: insufficient_scope: authorization failed".into()))
        }
        status => Err(Refusal::Other(format!("unexpected status from GET request to {url}: {status}"))),
    }
}

/// `key="value",…` of a challenge (RFC 9110, section 11.2).
fn challenge_parameters(text: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        parameters.push((key, value.to_owned()));
        rest = after;
    }
    parameters
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_stand_for_one_registry_or_for_all() {
        let nginx = Reference::parse("nginx").expect("a name");
        let own = Reference::parse("127.0.0.1:5000/a").expect("a name");
        assert_eq!(endpoint(&nginx, &["docker.io=http://127.0.0.1:1".into()]), "http://127.0.0.1:1");
        assert_eq!(endpoint(&own, &["docker.io=http://127.0.0.1:1".into()]), "http://127.0.0.1:5000");
        assert_eq!(endpoint(&own, &["mirror.example/".into()]), "https://mirror.example");
        let both = ["mirror.example".into(), "docker.io=own.example".into()];
        assert_eq!(
            (&*endpoint(&nginx, &both), &*endpoint(&own, &both)),
            ("https://own.example", "https://mirror.example")
        );
    }

    #[tokio::test]
    async fn a_registry_that_says_nothing_is_given_up() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = silent.local_addr().expect("an address");
        let mut registry = Registry::new(&format!("http://{address}"), "a", None).expect("a registry");
        registry.patience = Duration::from_millis(1);
        let refusal = registry.manifest("latest", 1).await.expect_err("nobody answers");
        assert_eq!(refusal.to_string(), "no progress for 0 s");
    }

    #[test]
    fn a_challenge_has_quoted_values_with_commas() {
        let parameters = challenge_parameters(r#"realm="https://a/token",service="b",scope="repository:c:pull,push""#);
        assert_eq!(parameters[2], ("scope".into(), "repository:c:pull,push".into()));
        assert_eq!(challenge_parameters("no equals"), []);
    }
}
