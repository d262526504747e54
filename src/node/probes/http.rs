//! `httpGet` probes and hooks: one request over the pod network.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderName, HeaderValue, Request};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1 as core;

use super::{Outcome, port, tcp};
use crate::node::network::{PodNetwork, Stream};

/// More of the answer than this is not read.
const MOST_BODY: usize = 10 << 10;

/// Asks once; 200 to 399 is success.
pub async fn probe(
    network: &dyn PodNetwork,
    action: &core::HTTPGetAction,
    container: &core::Container,
    ip: IpAddr,
    timeout: Duration,
) -> Outcome {
    let port = match port(&action.port, container) {
        Ok(port) => port,
        Err(error) => return Outcome::Unknown(error),
    };
    let ip = action.host.as_deref().and_then(|h| h.parse().ok()).unwrap_or(ip);
    let url = url(action, ip, port);
    match tokio::time::timeout(timeout, get(network, action, ip, port)).await {
        Ok(Ok(status)) if (200..400).contains(&status) => Outcome::Success,
        Ok(Ok(status)) => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
        Ok(Err(error)) => Outcome::Failure(format!("Get {url:?}: {error}")),
        Err(_) => Outcome::Failure(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

fn url(action: &core::HTTPGetAction, ip: IpAddr, port: u16) -> String {
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    format!("{scheme}://{}{}", std::net::SocketAddr::new(ip, port), path(action))
}

fn path(action: &core::HTTPGetAction) -> String {
    let path = action.path.as_deref().unwrap_or("/");
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

async fn get(network: &dyn PodNetwork, action: &core::HTTPGetAction, ip: IpAddr, port: u16) -> Result<u16, String> {
    let stream = network.dial(ip, port).await.map_err(|e| tcp::dial_error(ip, port, &e))?;
    let stream: Box<dyn Stream> =
        if action.scheme.as_deref() == Some("HTTPS") { tls(stream, ip).await? } else { stream };
    let mut request = Request::get(path(action))
        .header("host", std::net::SocketAddr::new(ip, port).to_string())
        .header("user-agent", "kube-probe/1.35")
        .header("accept", "*/*")
        .header("connection", "close")
        .body(Body::empty())
        .map_err(|e| e.to_string())?;
    for header in action.http_headers.iter().flatten() {
        let name: HeaderName = header.name.parse().map_err(|_| format!("invalid header name {:?}", header.name))?;
        let value = HeaderValue::from_str(&header.value).map_err(|_| format!("invalid header {:?}", header.name))?;
        request.headers_mut().insert(name, value);
    }
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut read = 0;
        while read < MOST_BODY {
            match body.frame().await {
                Some(Ok(frame)) => read += frame.data_ref().map_or(0, bytes::Bytes::len),
                _ => break,
            }
        }
        Ok(status)
    };
    tokio::pin!(exchange);
    tokio::select! {
        result = &mut exchange => result,
        ended = connection => match ended {
            Err(error) => Err(error.to_string()),
            // The connection may end before the answer was taken out of its channel.
            Ok(()) => exchange.await,
        },
    }
}

async fn tls(stream: Box<dyn Stream>, ip: IpAddr) -> Result<Box<dyn Stream>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::IpAddress(ip.into());
    let stream =
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())?;
    Ok(Box::new(stream))
}

/// Probes do not verify certificates (the API reference says so of `scheme: HTTPS`).
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::network::FakeNetwork;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn statuses_and_refusals_have_the_kubelets_words() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let network = FakeNetwork::default();
        network.map_port(80, listener.local_addr().expect("bound").port());
        tokio::spawn(async move {
            for status in ["200 OK", "302 Found", "500 No"] {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = [0; 1024];
                let n = stream.read(&mut request).await.expect("a request");
                assert!(String::from_utf8_lossy(&request[..n]).contains("user-agent: kube-probe/1.35"));
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
        });
        let container = core::Container::default();
        let ip = "10.244.0.1".parse().expect("ip");
        let ask = |port: u16| {
            let action: core::HTTPGetAction =
                serde_json::from_value(json!({"path": "healthz", "port": port})).expect("an action");
            let (network, container) = (&network, &container);
            async move { probe(network, &action, container, ip, Duration::from_secs(5)).await }
        };
        assert_eq!(ask(80).await, Outcome::Success);
        assert_eq!(ask(80).await, Outcome::Success);
        assert_eq!(ask(80).await, Outcome::Failure("HTTP probe failed with statuscode: 500".into()));
        let refused = "Get \"http://10.244.0.1:81/healthz\": dial tcp 10.244.0.1:81: connect: connection refused";
        assert_eq!(ask(81).await, Outcome::Failure(refused.into()));
    }
}
