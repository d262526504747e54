//! Requests that the API server makes itself: to webhooks (`clientConfig`) and to aggregated API servers, over TLS, to a Service or a
//! URL. Messages are those of Go's HTTP client, which people know from Kubernetes.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Limited};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::Value;
use tokio_rustls::TlsConnector;

use super::subresources::proxy;
use super::{ApiServer, Stream};
use crate::api::meta::text;

/// The largest answer of a webhook.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// Who is called.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// A Service's port, through one of its endpoints.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The port.
        port: u16,
    },
    /// A host outside of the cluster.
    Host(String, u16),
}

/// How the other side proves itself, and what it is shown.
#[derive(Clone, Default)]
pub(crate) struct Trust {
    /// Authorities in PEM; empty: those of the machine.
    pub ca_pem: Vec<u8>,
    /// Whether any certificate will do.
    pub insecure: bool,
    /// A certificate chain and key in PEM for the other side.
    pub identity: Option<(Arc<Vec<u8>>, Arc<Vec<u8>>)>,
}

/// Where a webhook is.
#[derive(Clone)]
pub(crate) struct Target {
    place: Place,
    path: String,
    trust: Trust,
}

impl Target {
    /// Of a `clientConfig`.
    ///
    /// # Errors
    /// When it names neither a Service nor a URL that can be called.
    pub fn of(config: &Value) -> Result<Self, String> {
        let ca_pem = base64::engine::general_purpose::STANDARD
            .decode(text(&config["caBundle"]))
            .map_err(|error| format!("invalid caBundle: {error}"))?;
        let trust = Trust { ca_pem, ..Trust::default() };
        let service = &config["service"];
        if service.is_object() {
            let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
            let (namespace, name) = (text(&service["namespace"]).to_owned(), text(&service["name"]).to_owned());
            let path = match text(&service["path"]) {
                "" => "/".to_owned(),
                path if path.starts_with('/') => path.to_owned(),
                path => format!("/{path}"),
            };
            return Ok(Self { place: Place::Service { namespace, name, port }, path, trust });
        }
        let url: http::Uri =
            text(&config["url"]).parse().map_err(|error| format!("Unparsable webhook URL: {error}"))?;
        let host = url.host().ok_or("webhook configuration must have either service or URL")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let place = Place::Host(host, url.port_u16().unwrap_or(443));
        Ok(Self { place, path: url.path().to_owned(), trust })
    }

    /// The URL that is posted to.
    fn url(&self, timeout: Duration) -> String {
        let authority = match &self.place {
            Place::Service { namespace, name, port } => format!("{name}.{namespace}.svc:{port}"),
            Place::Host(host, 443) => host.clone(),
            Place::Host(host, port) => format!("{host}:{port}"),
        };
        format!("https://{authority}{}?timeout={}s", self.path, timeout.as_secs())
    }
}

/// Posts an object and returns the answer's.
///
/// # Errors
/// What Go's client would say: `Post "https://…": <why>`.
pub(crate) async fn post(
    server: &ApiServer,
    target: &Target,
    object: &Value,
    timeout: Duration,
) -> Result<Value, String> {
    let url = target.url(timeout);
    let about = |why: String| format!("Post {url:?}: {why}");
    let call = async {
        let stream = connect(server, &target.place, &target.trust).await.map_err(about)?;
        let request = Request::builder()
            .method("POST")
            .uri(format!("{}?timeout={}s", target.path, timeout.as_secs()))
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(header::ACCEPT, HeaderValue::from_static("application/json"))
            .header(header::USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"))
            .body(Body::from(object.to_string()))
            .map_err(|error| about(error.to_string()))?;
        let host = host_header(&target.place);
        let response = proxy::forward(stream, request, &host).await.map_err(|error| about(error.to_string()))?;
        let code = response.status();
        let bytes = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let bytes = bytes.map_err(|error| about(error.to_string()))?.to_bytes();
        if !code.is_success() {
            return Err(refusal(code, &bytes));
        }
        serde_json::from_slice(&bytes).map_err(|error| format!("invalid character in the answer: {error}"))
    };
    match tokio::time::timeout(timeout, call).await {
        Ok(result) => result,
        Err(_) => Err(about("context deadline exceeded".to_owned())),
    }
}

/// What an answer that is no success says.
fn refusal(code: http::StatusCode, body: &[u8]) -> String {
    let said = serde_json::from_slice::<Value>(body).ok().filter(|value| value["kind"] == "Status");
    let said = said.map(|status| text(&status["message"]).to_owned()).filter(|message| !message.is_empty());
    said.unwrap_or_else(|| match code.as_u16() {
        404 => "the server could not find the requested resource".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        400 => "the server rejected our request for an unknown reason".to_owned(),
        500.. => format!(
            "an error on the server ({:?}) has prevented the request from succeeding",
            String::from_utf8_lossy(body)
        ),
        code => format!("unknown (status code {code})"),
    })
}

fn host_header(place: &Place) -> String {
    match place {
        Place::Service { namespace, name, port } => format!("{name}.{namespace}.svc:{port}"),
        Place::Host(host, port) => format!("{host}:{port}"),
    }
}

/// A TLS connection to the place.
///
/// # Errors
/// Why there is none.
pub(crate) async fn connect(server: &ApiServer, place: &Place, trust: &Trust) -> Result<Box<dyn Stream>, String> {
    let (stream, name) = match place {
        Place::Service { namespace, name, port } => {
            let (ip, port) = proxy::endpoint(server, namespace, name, *port).await.map_err(|status| status.message)?;
            let stream = server.options.dialer.dial(ip, port).await;
            (stream.map_err(|error| dial_error(ip, port, &error))?, format!("{name}.{namespace}.svc"))
        }
        Place::Host(host, port) => {
            let ip = resolve(host).await?;
            let stream = tokio::net::TcpStream::connect((ip, *port)).await;
            let stream: Box<dyn Stream> = Box::new(stream.map_err(|error| dial_error(ip, *port, &error))?);
            (stream, host.clone())
        }
    };
    secure(stream, name, trust).await
}

/// TLS over a connection to somebody with this name.
///
/// # Errors
/// Why there is none.
pub(crate) async fn secure(stream: Box<dyn Stream>, name: String, trust: &Trust) -> Result<Box<dyn Stream>, String> {
    let config = config(trust)?;
    let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| tls_error(&error))?;
    Ok(Box::new(stream))
}

fn dial_error(ip: IpAddr, port: u16, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {ip}:{port}: {why}")
}

fn tls_error(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned()
        }
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Expired)) => {
            "tls: failed to verify certificate: x509: certificate has expired or is not yet valid".to_owned()
        }
        Some(rustls::Error::InvalidCertificate(why)) => format!("tls: failed to verify certificate: x509: {why}"),
        Some(other) => format!("tls: {other}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        None => error.to_string(),
    }
}

/// The address of a host's name. A static binary has no resolver of libc's.
async fn resolve(host: &str) -> Result<IpAddr, String> {
    if host == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    if let Ok(ip) = host.parse() {
        return Ok(ip);
    }
    let failed = |why: String| format!("dial tcp: lookup {host}: {why}");
    let resolver = hickory_resolver::TokioResolver::builder_tokio().and_then(|builder| builder.build());
    let found = resolver.map_err(|error| failed(error.to_string()))?.lookup_ip(host).await;
    let found = found.map_err(|_| failed("no such host".to_owned()))?;
    found.iter().next().ok_or_else(|| failed("no such host".to_owned()))
}

fn config(trust: &Trust) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let builder = if trust.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        builder.with_root_certificates(roots(&trust.ca_pem)?)
    };
    let Some((chain, key)) = &trust.identity else { return Ok(builder.with_no_client_auth()) };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| error.to_string())?;
    builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())
}

fn roots(ca_pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if ca_pem.is_empty() {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        return Ok(roots);
    }
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        roots.add(certificate.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("unable to load root certificates: unable to parse bytes as PEM block".to_owned());
    }
    Ok(roots)
}

/// Believes whoever answers: where an APIService says `insecureSkipTLSVerify`, and where what is said proves itself.
#[derive(Debug)]
pub struct Anybody(pub Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Passes a request on over a connection of its own; upgrades stay intact.
///
/// # Errors
/// Why nobody answered.
pub(crate) async fn pass_on(
    server: &ApiServer,
    place: &Place,
    trust: &Trust,
    request: Request<Body>,
) -> Result<Response<Body>, String> {
    let stream = connect(server, place, trust).await?;
    proxy::forward(stream, request, &host_header(place)).await.map_err(|error| error.to_string())
}
