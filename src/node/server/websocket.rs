//! WebSocket (RFC 6455) with Kubernetes' subprotocols: numbered channels for exec and attach, or a tunnel for SPDY.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use base64::Engine as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response, StatusCode, header};
use serde_json::Value;
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Mutex, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::streams::{Input, Output, Session, parse_resize};

/// The channels of `v4.channel.k8s.io`.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Of `v5`: the next byte is the channel that the sender closes.
const CLOSE: u8 = 255;

/// A message larger than this is refused.
const MOST: usize = 16 << 20;

/// The answer to the upgrade, with the client's first subprotocol that is known.
pub fn accept(request: &Request<Body>, known: &[&str]) -> Result<(Response<Body>, String), Box<Response<Body>>> {
    let headers = request.headers();
    let refuse = |text: &str| Err(Box::new(super::plain(StatusCode::BAD_REQUEST, text)));
    let Some(key) = headers.get("sec-websocket-key") else { return refuse("challenge response: no key") };
    let offered = headers.get_all("sec-websocket-protocol").into_iter().filter_map(|v| v.to_str().ok());
    let offered: Vec<&str> = offered.flat_map(|v| v.split(',')).map(str::trim).filter(|p| !p.is_empty()).collect();
    let chosen = offered.iter().find(|o| known.contains(o)).copied();
    if chosen.is_none() && !offered.is_empty() {
        return refuse(&format!("unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"));
    }
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = base64::engine::general_purpose::STANDARD.encode(hash.finalize());
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header("Sec-WebSocket-Accept", accept);
    if let Some(chosen) = chosen {
        response = response.header("Sec-WebSocket-Protocol", chosen);
    }
    let response = response.body(Body::empty()).expect("these headers are valid");
    Ok((response, chosen.unwrap_or_default().to_owned()))
}

/// The server's side of a WebSocket.
pub async fn socket<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default().max_message_size(Some(MOST)).max_frame_size(Some(MOST));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// Clients take any other code than 1000 for a failure.
fn normal_close() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// A connection that messages can be sent to from several tasks.
struct Sender<S>(Mutex<SplitSink<WebSocketStream<S>, Message>>);

impl<S: AsyncRead + AsyncWrite + Unpin> Sender<S> {
    async fn send(&self, channel: u8, data: &[u8]) -> io::Result<()> {
        let mut bytes = BytesMut::with_capacity(data.len() + 1);
        bytes.put_u8(channel);
        bytes.put_slice(data);
        self.0.lock().await.send(Message::Binary(bytes.freeze())).await.map_err(io::Error::other)
    }
    async fn close(&self) {
        let mut sink = self.0.lock().await;
        // The client may be gone already.
        let _ = sink.send(normal_close()).await;
        let _ = sink.close().await;
    }
}

/// Exec or attach over numbered channels.
pub fn session<S>(socket: WebSocketStream<S>, subprotocol: &str) -> Session
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, mut messages) = socket.split();
    let (sender, input) = mpsc::channel(64);
    let output = Arc::new(ChannelOutput {
        sender: Sender(Mutex::new(sink)),
        // Version 1 has plain text on the error channel.
        status_objects: subprotocol.starts_with('v'),
    });
    tokio::spawn(async move {
        while let Some(Some((channel, data))) = next(&mut messages).await {
            let input = match channel {
                STDIN => Some(Input::Stdin(data)),
                RESIZE => parse_resize(&data),
                CLOSE if data.first() == Some(&STDIN) => Some(Input::StdinEnd),
                _ => None,
            };
            if let Some(input) = input
                && sender.send(input).await.is_err()
            {
                break;
            }
        }
        // After the session's end the close handshake is still the client's to finish.
        while let Some(Ok(_)) = messages.next().await {}
    });
    Session { input, output }
}

/// The next message with a channel; `Some(None)` when the client closed.
async fn next<S>(messages: &mut SplitStream<WebSocketStream<S>>) -> Option<Option<(u8, Bytes)>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let mut data = match messages.next().await? {
            Ok(Message::Binary(data)) => data,
            Ok(Message::Text(text)) => Bytes::copy_from_slice(text.as_bytes()),
            Ok(Message::Close(_)) => return Some(None),
            // Pings are answered by the library.
            Ok(_) => continue,
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => return None,
            Err(error) => {
                tracing::debug!(%error, "a WebSocket ended");
                return None;
            }
        };
        if !data.is_empty() {
            let channel = data.split_to(1)[0];
            return Some(Some((channel, data)));
        }
    }
}

struct ChannelOutput<S> {
    sender: Sender<S>,
    status_objects: bool,
}

#[async_trait]
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Output for ChannelOutput<S> {
    async fn stdout(&self, data: &[u8]) -> io::Result<()> {
        self.sender.send(STDOUT, data).await
    }
    async fn stderr(&self, data: &[u8]) -> io::Result<()> {
        self.sender.send(STDERR, data).await
    }
    async fn finish(&self, status: &Value) {
        let text = match (self.status_objects, status["status"] == "Success") {
            (true, _) => status.to_string(),
            (false, true) => String::new(),
            (false, false) => status["message"].as_str().unwrap_or_default().to_owned(),
        };
        if !text.is_empty() {
            // The client may be gone: then nobody reads the end.
            let _ = self.sender.send(ERROR, text.as_bytes()).await;
        }
        self.sender.close().await;
    }
}

/// A byte stream inside a WebSocket's binary messages (`SPDY/3.1+portforward.k8s.io`).
pub fn tunnel<S>(socket: WebSocketStream<S>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (inner, outer) = tokio::io::duplex(256 << 10);
    let (mut reader, mut writer) = tokio::io::split(inner);
    let (mut sink, mut messages) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            match message {
                Message::Binary(data) if writer.write_all(&data).await.is_err() => break,
                Message::Close(_) => break,
                _ => {}
            }
        }
        // The other half may be gone already.
        let _ = writer.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    let message = Message::Binary(Bytes::copy_from_slice(&buffer[..n]));
                    if sink.send(message).await.is_err() {
                        return;
                    }
                }
            }
        }
        // The client may be gone already.
        let _ = sink.send(normal_close()).await;
        let _ = sink.close().await;
    });
    outer
}

/// Messages of port-forward over numbered channels (`v4.channel.k8s.io`): data of the n-th port on 2n, errors on 2n+1.
pub struct Channels<S> {
    sender: Arc<Sender<S>>,
    messages: SplitStream<WebSocketStream<S>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Channels<S> {
    /// Takes the connection.
    pub fn new(socket: WebSocketStream<S>) -> Self {
        let (sink, messages) = socket.split();
        Self { sender: Arc::new(Sender(Mutex::new(sink))), messages }
    }
    /// The next message; `None` when the client went.
    pub async fn next(&mut self) -> Option<(u8, Bytes)> {
        next(&mut self.messages).await.flatten()
    }
    /// Something to send with from another task.
    pub fn send(
        &self,
    ) -> impl Fn(u8, Vec<u8>) -> futures_util::future::BoxFuture<'static, io::Result<()>> + Send + Sync + Clone + 'static
    {
        let sender = self.sender.clone();
        move |channel, data| {
            let sender = sender.clone();
            Box::pin(async move { sender.send(channel, &data).await })
        }
    }
    /// Closes the connection.
    pub async fn close(&self) {
        self.sender.close().await;
    }
}
