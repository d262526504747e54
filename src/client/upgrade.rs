//! A connection to the API server that stops to be HTTP: an upgrade to another protocol, as the client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::https::KEEPALIVE;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// How much of a refusal is read.
const REFUSAL: usize = 64 << 10;

/// Asks the API server at `server` for `path` and changes to `protocol`.
///
/// # Errors
/// When the server cannot be reached, or refuses: then with its words.
pub async fn upgrade(
    server: SocketAddr,
    tls: rustls::ClientConfig,
    path: &str,
    protocol: &str,
) -> Result<TokioIo<Upgraded>> {
    tokio::time::timeout(PATIENCE, attempt(server, tls, path, protocol))
        .await
        .with_context(|| format!("{server} did not answer in time"))?
}

async fn attempt(
    server: SocketAddr,
    mut tls: rustls::ClientConfig,
    path: &str,
    protocol: &str,
) -> Result<TokioIo<Upgraded>> {
    let stream = TcpStream::connect(server).await.with_context(|| format!("connecting to {server}"))?;
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::IpAddress(server.ip().into());
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.context("TLS")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(path)
        .header(header::HOST, server.to_string())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, protocol)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = Limited::new(response.into_body(), REFUSAL).collect().await;
        let body = body.map(|b| b.to_bytes()).unwrap_or_default();
        bail!("the API server refuses {path} ({status}): {}", String::from_utf8_lossy(&body));
    }
    Ok(TokioIo::new(hyper::upgrade::on(response).await?))
}

/// Lets the kernel notice that the other machine is gone; nothing of ours ticks.
fn keep_alive(stream: &TcpStream) -> Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    let seconds = u32::try_from(KEEPALIVE.as_secs())?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &seconds)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &(seconds / 3))?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    Ok(())
}
