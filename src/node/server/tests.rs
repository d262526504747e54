//! The kubelet API over real connections in memory: hyper on one end, a hand-made client on the other.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::spdy::frame::{self, Frame};
use super::spdy::headers::{Packer, Unpacker};
use crate::node::Node;
use crate::node::tests::{World, world};

/// Sends a request on a fresh connection; returns the answer's head and the connection.
async fn request(node: &Arc<Node>, path: &str, headers: &str) -> (String, DuplexStream) {
    let (mut client, server) = tokio::io::duplex(1 << 18);
    let node = node.clone();
    tokio::spawn(async move {
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let node = node.clone();
            async move { Ok::<_, std::convert::Infallible>(node.handle(request.map(Body::new)).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
        connection.with_upgrades().await.ok();
    });
    let text = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    client.write_all(text.as_bytes()).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.expect("an answer"));
    }
    (String::from_utf8(head).expect("text"), client)
}

async fn running() -> World {
    let w = world().await;
    w.create("p", json!({"containers": [{"name": "c", "image": "busybox:1"}]}));
    w.until_phase("p", "Running").await;
    w.runtime.answer_exec(Box::new(|_, command| (command.len() as i32 - 1, b"out".to_vec())));
    w
}

const WEBSOCKET: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: v5.channel.k8s.io, v4.channel.k8s.io\r\n";

async fn websocket_messages(w: &World, path: &str) -> Vec<(u8, String)> {
    let (head, client) = request(&w.node, path, WEBSOCKET).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    // The example of RFC 6455, section 1.3.
    assert!(head.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    assert!(head.to_lowercase().contains("sec-websocket-protocol: v5.channel.k8s.io"), "{head}");
    let mut socket = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    let mut messages = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(data) => messages.push((data[0], String::from_utf8(data[1..].to_vec()).expect("text"))),
            // client-go takes any other code for a failure.
            Message::Close(frame) => assert_eq!(frame.map(|f| u16::from(f.code)), Some(1000)),
            _ => {}
        }
    }
    messages
}

#[tokio::test]
async fn exec_over_websocket_ends_with_a_status() {
    let w = running().await;
    let messages = websocket_messages(&w, "/exec/d/p/c?command=x&output=1&error=1").await;
    assert_eq!(messages[0], (1, "out".to_owned()));
    let status: Value = serde_json::from_str(&messages.last().expect("a status").1).expect("JSON");
    assert_eq!(status, json!({"metadata": {}, "status": "Success"}));
    let messages = websocket_messages(&w, "/exec/d/p/c?command=x&command=y&command=z&stdout=true").await;
    let (channel, status) = messages.last().expect("a status");
    let status: Value = serde_json::from_str(status).expect("JSON");
    assert_eq!((*channel, &status["reason"]), (3, &json!("NonZeroExitCode")));
    assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "2"}]));
}

#[tokio::test]
async fn exec_over_spdy_ends_with_a_status() {
    let w = running().await;
    let headers = "connection: Upgrade\r\nupgrade: SPDY/3.1\r\nx-stream-protocol-version: v4.channel.k8s.io\r\n";
    let (head, mut client) = request(&w.node, "/exec/d/p/c?command=x&command=y&output=1", headers).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.to_lowercase().contains("x-stream-protocol-version: v4.channel.k8s.io"), "{head}");
    let (mut packer, mut unpacker) = (Packer::new().expect("zlib"), Unpacker::new());
    for (id, kind) in [(1, "error"), (3, "stdout")] {
        let block = packer.pack(&vec![("streamtype".into(), kind.into())]).expect("packed");
        client.write_all(&frame::syn_stream(id, &block)).await.expect("sent");
    }
    let (mut out, mut error) = (Vec::new(), Vec::new());
    while let Some(frame) = frame::read(&mut client).await.expect("a frame") {
        match frame {
            Frame::SynReply { block, .. } => assert_eq!(unpacker.unpack(&block).expect("headers"), vec![]),
            Frame::Data { id: 1, data, .. } => error.extend_from_slice(&data),
            Frame::Data { id: 3, data, .. } => out.extend_from_slice(&data),
            _ => {}
        }
    }
    assert_eq!(out, b"out");
    let status: Value = serde_json::from_slice(&error).expect("JSON");
    assert_eq!(status["details"]["causes"][0]["message"], "1");
}

#[tokio::test]
async fn requests_that_are_no_upgrade_and_things_that_are_not_there() {
    let w = running().await;
    for (path, status) in [
        ("/exec/d/p/c?command=x&output=1", "400"),
        ("/exec/d/p/nope?command=x&output=1", "404"),
        ("/exec/d/nope/c?command=x&output=1", "404"),
        ("/nothing", "404"),
        ("/healthz", "200"),
        ("/containerLogs/d/p/c?tailLines=x", "400"),
    ] {
        let (head, _) = request(&w.node, path, "").await;
        assert_eq!(head.split(' ').nth(1), Some(status), "{path}");
    }
}

/// A server that says what it hears in capitals, on a port of any pod.
async fn shouter(w: &World, port: u16) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    w.network.map_port(port, listener.local_addr().expect("bound").port());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut text = String::new();
                stream.read_to_string(&mut text).await.expect("text");
                stream.write_all(text.to_uppercase().as_bytes()).await.expect("answered");
            });
        }
    });
}

#[tokio::test]
async fn port_forward_over_a_tunnelled_spdy() {
    let w = running().await;
    shouter(&w, 80).await;
    let headers = WEBSOCKET.replace("v5.channel.k8s.io, v4.channel.k8s.io", "SPDY/3.1+portforward.k8s.io");
    let (head, client) = request(&w.node, "/portForward/d/p", &headers).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let socket = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    let mut packer = Packer::new().expect("zlib");
    let mut bytes = Vec::new();
    for (first, port) in [(1, "80"), (5, "81")] {
        for (id, kind) in [(first, "error"), (first + 2, "data")] {
            let headers = [("streamtype", kind), ("port", port), ("requestid", port)];
            let headers = headers.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
            bytes.extend(frame::syn_stream(id, &packer.pack(&headers).expect("packed")));
        }
        bytes.extend(frame::data_head(first + 2, false, 5));
        bytes.extend(b"hello");
        bytes.extend(frame::data_head(first + 2, true, 0));
    }
    let (mut sink, messages) = socket.split();
    sink.send(Message::Binary(bytes.into())).await.expect("sent");
    let (mut data, mut error, mut ends) = (Vec::new(), Vec::new(), 0);
    let reader = messages.filter_map(|m| async {
        match m {
            Ok(Message::Binary(data)) => Some(Ok::<_, std::io::Error>(data)),
            _ => None,
        }
    });
    let mut reader = tokio_util::io::StreamReader::new(Box::pin(reader));
    while ends < 4 {
        match frame::read(&mut reader).await.expect("a frame").expect("more") {
            Frame::Data { id, fin, data: bytes } => {
                ends += usize::from(fin);
                match id {
                    3 => data.extend_from_slice(&bytes),
                    5 => error.extend_from_slice(&bytes),
                    _ => assert!(bytes.is_empty()),
                }
            }
            _ => {}
        }
    }
    assert_eq!(data, b"HELLO");
    let error = String::from_utf8(error).expect("text");
    assert!(error.starts_with("error forwarding port 81 to pod p_d, uid "), "{error}");
    assert!(error.ends_with("connect: connection refused"), "{error}");
}

#[tokio::test]
async fn logs_are_followed_until_the_container_ends() {
    let w = running().await;
    let uid = crate::api::meta::uid(&w.pod("p").expect("the pod")).to_owned();
    let dir = w.dir().join("logs").join(format!("d_p_{uid}")).join("c");
    std::fs::create_dir_all(&dir).expect("made");
    let path = dir.join("0.log");
    let line = |text: &str| format!("2026-01-01T00:00:01.000000000Z stdout F {text}\n");
    std::fs::write(&path, line("one")).expect("written");
    let (head, mut client) = request(&w.node, "/containerLogs/d/p/c?follow=true", "connection: close\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    let mut until = async |seen: &mut String, what: &str| {
        while !seen.contains(what) {
            let n = tokio::time::timeout(Duration::from_secs(20), client.read(&mut buffer)).await;
            let n = n.unwrap_or_else(|_| panic!("never {what}: {seen}")).expect("read");
            assert!(n > 0, "ended before {what}: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    };
    until(&mut seen, "one\n").await;
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("opened");
    std::io::Write::write_all(&mut file, line("two").as_bytes()).expect("written");
    until(&mut seen, "two\n").await;
    w.runtime.finish(&w.container_id("p", 0), 0);
    until(&mut seen, "\r\n0\r\n").await;
}
