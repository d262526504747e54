//! `grpc` probes: one call of `grpc.health.v1.Health/Check` over HTTP/2 without TLS.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Outcome, tcp};
use crate::node::network::PodNetwork;

/// Asks once; `SERVING` is success.
pub async fn probe(network: &dyn PodNetwork, ip: IpAddr, port: u16, service: &str, timeout: Duration) -> Outcome {
    match tokio::time::timeout(timeout, check(network, ip, port, service)).await {
        Ok(Ok(1)) => Outcome::Success,
        Ok(Ok(status)) => {
            let word = match status {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNRECOGNIZED",
            };
            Outcome::Failure(format!("service unhealthy (responded with \"{word}\")"))
        }
        Ok(Err(why)) => Outcome::Failure(why),
        Err(_) => {
            let address = SocketAddr::new(ip, port);
            Outcome::Failure(format!("timeout: failed to connect service \"{address}\" within {}s", timeout.as_secs()))
        }
    }
}

/// The status that the service answers.
async fn check(network: &dyn PodNetwork, ip: IpAddr, port: u16, service: &str) -> Result<u64, String> {
    let stream = network.dial(ip, port).await.map_err(|e| tcp::dial_error(ip, port, &e))?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|e| format!("failed to connect: {e}"))?;
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://{}/grpc.health.v1.Health/Check", SocketAddr::new(ip, port)))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.35")
        .body(Full::new(message(service)))
        .map_err(|e| e.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| format!("rpc failed: {e}"))?;
        let early = response.headers().get("grpc-status").cloned();
        let body = response.into_body().collect().await.map_err(|e| format!("rpc failed: {e}"))?;
        let late = body.trailers().and_then(|t| t.get("grpc-status")).cloned();
        let code = late.or(early).and_then(|v| v.to_str().ok()?.parse::<u32>().ok());
        match code {
            Some(0) => Ok(status(&body.to_bytes())),
            Some(12) => {
                Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned())
            }
            Some(code) => Err(format!("error: health rpc failed with status code {code}")),
            None => Err("error: health rpc was answered without a status".to_owned()),
        }
    };
    let result = answer.await;
    connection.abort();
    result
}

/// `HealthCheckRequest { service }` with the prefix of gRPC.
fn message(service: &str) -> Bytes {
    let service = &service.as_bytes()[..service.len().min(127)];
    let mut bytes = BytesMut::new();
    let length = if service.is_empty() { 0 } else { service.len() + 2 };
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(0));
    if !service.is_empty() {
        bytes.put_u8(0x0a);
        bytes.put_u8(u8::try_from(service.len()).unwrap_or(0));
        bytes.put_slice(service);
    }
    bytes.freeze()
}

/// `HealthCheckResponse.status`: field 1, a varint; 0 when it is absent.
fn status(body: &[u8]) -> u64 {
    match body.get(5..) {
        Some([0x08, value, ..]) => u64::from(*value),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(status(&[0, 0, 0, 0, 2, 8, 1]), 1);
        assert_eq!(status(&[0, 0, 0, 0, 0]), 0);
        assert_eq!(status(&[]), 0);
    }
}
