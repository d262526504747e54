//! Connections: TLS with client certificates, HTTP/1.1 and HTTP/2 by ALPN, graceful shutdown.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::{ApiServer, User, authn};

/// Streams of one HTTP/2 connection (a client with many informers has hundreds of watches).
const MAX_STREAMS: u32 = 1000;
/// Flow-control windows of HTTP/2.
const WINDOW: u32 = 1 << 20;
/// How long a client may take for the TLS handshake.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

/// The TLS side of the server; the certificate can be replaced while it serves.
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    certificate: Arc<Certificate>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Certificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().expect("no panic under this lock")))
    }
}

impl Tls {
    pub fn new(cert_pem: &[u8], key_pem: &[u8], client_ca_pem: &[u8]) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificate = Arc::new(Certificate(RwLock::new(certified_key(&provider, cert_pem, key_pem)?)));
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(client_ca_pem) {
            roots.add(authority.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|e| e.to_string())?;
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&certificate) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate, provider })
    }

    /// Serves new connections with another certificate.
    pub fn replace(&self, cert_pem: &[u8], key_pem: &[u8]) -> Result<(), String> {
        let key = certified_key(&self.provider, cert_pem, key_pem)?;
        *self.certificate.0.write().expect("no panic under this lock") = key;
        Ok(())
    }
}

fn certified_key(provider: &CryptoProvider, cert_pem: &[u8], key_pem: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(cert_pem).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|e| e.to_string())?;
    CertifiedKey::from_der(chain, key, provider).map(Arc::new).map_err(|e| e.to_string())
}

impl ApiServer {
    /// Serves connections of `listener` until `shutdown` completes; then waits for the requests under way (watches end at once).
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> std::io::Result<()> {
        let graceful = GracefulShutdown::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut shutdown => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    let (server, watcher) = (Arc::clone(&self), graceful.watcher());
                    tokio::spawn(async move { server.connection(stream, Some(peer), Some(watcher)).await });
                }
                // Out of file descriptors: waiting for a connection to end would be right, but there is no event for it.
                Err(error) if error.raw_os_error().is_some_and(|code| [libc::EMFILE, libc::ENFILE].contains(&code)) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                Err(error) => tracing::debug!(%error, "a connection failed before it was accepted"),
            }
        }
        drop(listener);
        self.end_watches();
        graceful.shutdown().await;
        self.flush_audit().await;
        Ok(())
    }

    /// Serves one connection that somebody else accepted (the API's address inside the cluster). Returns when it ends.
    pub async fn accept_stream<S>(self: Arc<Self>, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.connection(stream, None, None).await;
    }

    /// Serves new connections with another certificate (rotation).
    ///
    /// # Errors
    /// When certificate and key cannot be used; the old ones stay.
    pub fn replace_certificate(&self, cert_pem: &[u8], key_pem: &[u8]) -> Result<(), String> {
        self.tls.replace(cert_pem, key_pem)
    }

    async fn connection<S>(
        self: Arc<Self>,
        stream: S,
        peer: Option<SocketAddr>,
        graceful: Option<hyper_util::server::graceful::Watcher>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = match tokio::time::timeout(HANDSHAKE, self.tls.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake took too long"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let user: Option<Arc<User>> = certificate.and_then(|der| authn::certificates::user(der)).map(Arc::new);
        let server = Arc::clone(&self);
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            let (server, user) = (Arc::clone(&server), user.clone());
            async move { Ok::<_, Infallible>(super::handle(&server, user.as_deref(), request.map(Body::new)).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(std::time::Duration::from_secs(30));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .enable_connect_protocol();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let result = match graceful {
            Some(watcher) => watcher.watch(connection).await,
            None => connection.await,
        };
        if let Err(error) = result {
            tracing::debug!(error = %error, "a connection ended with an error");
        }
    }
}
