//! `tcpSocket` probes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Outcome;
use crate::node::network::PodNetwork;

/// Connects once.
pub async fn probe(network: &dyn PodNetwork, ip: IpAddr, port: u16, timeout: Duration) -> Outcome {
    match tokio::time::timeout(timeout, network.dial(ip, port)).await {
        Ok(Ok(_)) => Outcome::Success,
        Ok(Err(error)) => Outcome::Failure(dial_error(ip, port, &error)),
        Err(_) => Outcome::Failure(format!("dial tcp {}: i/o timeout", SocketAddr::new(ip, port))),
    }
}

/// A failure to connect in Go's words.
pub fn dial_error(ip: IpAddr, port: u16, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::TimedOut => "connect: connection timed out".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {}: {why}", SocketAddr::new(ip, port))
}
