//! Exec and attach as sessions, whatever protocol carries them: input comes as messages, output goes to channels, and a
//! `Status` always ends it.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::mpsc;

use super::query::Query;
use super::{spdy, websocket};
use crate::node::runtime::{ProcessControl, Reader, Writer};

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for the process.
    Stdin(Bytes),
    /// No more of them.
    StdinEnd,
    /// The terminal's width and height.
    Resize(u16, u16),
}

/// Where output goes.
#[async_trait]
pub trait Output: Send + Sync {
    /// Bytes of standard output.
    async fn stdout(&self, data: &[u8]) -> io::Result<()>;
    /// Bytes of standard error.
    async fn stderr(&self, data: &[u8]) -> io::Result<()>;
    /// The end, with a `metav1.Status`; then the connection is closed.
    async fn finish(&self, status: &Value);
}

/// A client that is connected. Its input channel ends when it goes.
pub struct Session {
    /// What it sends.
    pub input: mpsc::Receiver<Input>,
    /// Where to answer.
    pub output: Arc<dyn Output>,
}

/// Which streams a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; never on a terminal.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

impl Wanted {
    /// From the query, in the kubelet's or the API server's words.
    pub fn from(query: &Query) -> Self {
        let tty = query.flag("tty");
        Self {
            stdin: query.flag("input") || query.flag("stdin"),
            stdout: query.flag("output") || query.flag("stdout"),
            stderr: (query.flag("error") || query.flag("stderr")) && !tty,
            tty,
        }
    }
}

/// Whether a comma-separated header holds a token.
pub fn has_token(headers: &HeaderMap, name: impl header::AsHeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// What a client can be upgraded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// WebSocket.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
}

/// The protocol that the request wants to change to.
///
/// # Errors
/// The answer to a request that is no upgrade.
pub fn protocol(request: &Request<Body>) -> Result<Protocol, Box<Response<Body>>> {
    let headers = request.headers();
    if has_token(headers, header::CONNECTION, "upgrade") {
        if has_token(headers, header::UPGRADE, "websocket") {
            return Ok(Protocol::WebSocket);
        }
        if has_token(headers, header::UPGRADE, "SPDY/3.1") {
            return Ok(Protocol::Spdy);
        }
    }
    let text = "Upgrade request required";
    Err(Box::new(super::plain(StatusCode::BAD_REQUEST, text)))
}

/// Answers the upgrade and calls `serve` with the session once it is there.
pub fn upgrade<F>(
    mut request: Request<Body>,
    wanted: Wanted,
    serve: impl FnOnce(Session) -> F + Send + 'static,
) -> Response<Body>
where
    F: Future<Output = ()> + Send,
{
    let protocol = match protocol(&request) {
        Ok(protocol) => protocol,
        Err(response) => return *response,
    };
    match protocol {
        Protocol::WebSocket => {
            const KNOWN: [&str; 3] = ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"];
            let (response, chosen) = match websocket::accept(&request, &KNOWN) {
                Ok(accepted) => accepted,
                Err(response) => return *response,
            };
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                match upgrade.await {
                    Ok(upgraded) => {
                        let socket = websocket::socket(TokioIo::new(upgraded)).await;
                        serve(websocket::session(socket, &chosen)).await;
                    }
                    Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
                }
            });
            response
        }
        Protocol::Spdy => {
            let (response, version) =
                match spdy_accept(&request, &["v5.channel.k8s.io", "v4.channel.k8s.io"], "v4.channel.k8s.io") {
                    Ok(accepted) => accepted,
                    Err(response) => return *response,
                };
            tracing::trace!(version, "SPDY");
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                match upgrade.await {
                    Ok(upgraded) => match spdy_session(Box::new(TokioIo::new(upgraded)), wanted).await {
                        Ok(session) => serve(session).await,
                        Err(error) => tracing::debug!(%error, "a SPDY session did not begin"),
                    },
                    Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
                }
            });
            response
        }
    }
}

/// The answer to a SPDY upgrade with the first stream protocol of the client's that is known.
pub fn spdy_accept(
    request: &Request<Body>,
    known: &[&'static str],
    default: &'static str,
) -> Result<(Response<Body>, &'static str), Box<Response<Body>>> {
    let offered: Vec<&str> = request
        .headers()
        .get_all("x-stream-protocol-version")
        .into_iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .collect();
    let chosen = offered.iter().find_map(|o| known.iter().find(|k| *k == o)).copied();
    let Some(chosen) = chosen.or(offered.is_empty().then_some(default)) else {
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
        );
        return Err(Box::new(super::plain(StatusCode::FORBIDDEN, &text)));
    };
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("X-Stream-Protocol-Version", chosen)
        .body(Body::empty())
        .expect("these headers are valid");
    Ok((response, chosen))
}

/// How long a client may take to open its streams (`DefaultStreamCreationTimeout` of the kubelet).
const OPENING: std::time::Duration = std::time::Duration::from_secs(30);

async fn spdy_session(transport: Box<dyn spdy::Transport>, wanted: Wanted) -> io::Result<Session> {
    let (writer, mut streams) = spdy::serve(transport)?;
    let mut output = SpdyOutput { writer, error: None, stdout: None, stderr: None };
    let (sender, input) = mpsc::channel(64);
    let expected = 1 + [wanted.stdin, wanted.stdout, wanted.stderr, wanted.tty].iter().filter(|w| **w).count();
    for _ in 0..expected {
        let stream = tokio::time::timeout(OPENING, streams.recv())
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "timed out waiting for client to create streams"))?
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        match stream.header("streamtype") {
            "error" => output.error = Some(stream.sender),
            "stdout" => output.stdout = Some(stream.sender),
            "stderr" => output.stderr = Some(stream.sender),
            kind @ ("stdin" | "resize") => {
                let resize = kind == "resize";
                let (sender, mut data) = (sender.clone(), stream.data);
                tokio::spawn(async move {
                    while let Some(bytes) = data.recv().await {
                        let input = if resize { parse_resize(&bytes) } else { Some(Input::Stdin(bytes)) };
                        if let Some(input) = input
                            && sender.send(input).await.is_err()
                        {
                            return;
                        }
                    }
                    if !resize {
                        // The session may have ended.
                        let _ = sender.send(Input::StdinEnd).await;
                    }
                });
            }
            other => tracing::debug!(other, "an unknown stream"),
        }
    }
    // The input channel ends with the connection: this task holds a sender until then.
    tokio::spawn(async move {
        while streams.recv().await.is_some() {}
        drop(sender);
    });
    Ok(Session { input, output: Arc::new(output) })
}

struct SpdyOutput {
    writer: spdy::Writer,
    error: Option<spdy::Sender>,
    stdout: Option<spdy::Sender>,
    stderr: Option<spdy::Sender>,
}

#[async_trait]
impl Output for SpdyOutput {
    async fn stdout(&self, data: &[u8]) -> io::Result<()> {
        match &self.stdout {
            Some(stream) => stream.send(data).await,
            None => Ok(()),
        }
    }
    async fn stderr(&self, data: &[u8]) -> io::Result<()> {
        match &self.stderr {
            Some(stream) => stream.send(data).await,
            None => Ok(()),
        }
    }
    async fn finish(&self, status: &Value) {
        // The client may be gone: then nobody reads the end.
        for stream in [&self.stdout, &self.stderr].into_iter().flatten() {
            let _ = stream.finish().await;
        }
        if let Some(stream) = &self.error {
            let _ = stream.send(status.to_string().as_bytes()).await;
            let _ = stream.finish().await;
        }
        self.writer.close().await;
    }
}

/// `{"Width":80,"Height":24}`.
pub fn parse_resize(bytes: &[u8]) -> Option<Input> {
    // Several may have been written at once: the last one counts.
    let last = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>().filter_map(Result::ok).last()?;
    let number = |key: &str| last[key].as_u64().and_then(|n| u16::try_from(n).ok());
    Some(Input::Resize(number("Width")?, number("Height")?))
}

/// A process' side of a session.
pub struct Process {
    /// Its input.
    pub stdin: Option<Writer>,
    /// Its output.
    pub stdout: Option<Reader>,
    /// Its error output.
    pub stderr: Option<Reader>,
    /// To resize and to wait.
    pub control: Box<dyn ProcessControl>,
}

/// Carries bytes both ways until the process ends; returns its exit code. When the client goes, so does the process' handle.
///
/// # Errors
/// Why the end is not known; `None`: the client went.
pub async fn pump(session: &mut Session, process: Process) -> Result<i32, Option<String>> {
    use tokio::io::AsyncWriteExt as _;
    let Process { stdin, stdout, stderr, mut control } = process;
    let output = session.output.clone();
    let (resize, mut sizes) = mpsc::unbounded_channel();
    let input = &mut session.input;
    let feed = async move {
        let mut stdin = stdin;
        while let Some(message) = input.recv().await {
            match message {
                Input::Stdin(bytes) => {
                    if let Some(writer) = &mut stdin
                        && (writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err())
                    {
                        // The process reads no more.
                        stdin = None;
                    }
                }
                Input::StdinEnd => stdin = None,
                Input::Resize(width, height) => drop(resize.send((width, height))),
            }
        }
    };
    let copies = async {
        let copy = |reader: Option<Reader>, error: bool| {
            let output = output.clone();
            async move { copy_out(reader, output.as_ref(), error).await }
        };
        futures_util::join!(copy(stdout, false), copy(stderr, true));
    };
    tokio::pin!(feed, copies);
    loop {
        tokio::select! {
            biased;
            () = &mut copies => break,
            Some((width, height)) = sizes.recv() => control.resize(width, height),
            // The client is gone: what it started goes with the handle.
            () = &mut feed => return Err(None),
        }
    }
    let ended = async { control.wait().await.map(|exit| exit.code).map_err(|e| Some(e.to_string())) };
    tokio::select! {
        result = ended => result,
        () = &mut feed => Err(None),
    }
}

async fn copy_out(reader: Option<Reader>, output: &dyn Output, error: bool) {
    use tokio::io::AsyncReadExt as _;
    let Some(mut reader) = reader else { return };
    let mut buffer = vec![0; 32 << 10];
    loop {
        let n = match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        let sent = if error { output.stderr(&buffer[..n]).await } else { output.stdout(&buffer[..n]).await };
        if sent.is_err() {
            return;
        }
    }
}
