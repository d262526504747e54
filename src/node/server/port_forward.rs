//! `/portForward`: over SPDY (plain or tunnelled in a WebSocket) pairs of streams, over WebSocket channels fixed ports.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::query::Query;
use super::streams::{Protocol, protocol, spdy_accept};
use super::{plain, spdy, websocket};
use crate::node::context::Context;
use crate::node::pod_state::PodState;

const PORT_FORWARD: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: &str = "v4.channel.k8s.io";

/// Where connections go.
#[derive(Clone)]
struct Target {
    context: Arc<Context>,
    ip: IpAddr,
    pod: String,
    uid: String,
}

/// Answers the upgrade and forwards until the client goes.
pub fn port_forward(
    context: Arc<Context>,
    pod: &PodState,
    query: &Query,
    mut request: Request<Body>,
) -> Response<Body> {
    let Some(ip) = pod.ips.first().copied() else {
        return plain(StatusCode::NOT_FOUND, "unable to forward ports: the pod has no address");
    };
    let described = format!("{}_{}", pod.name(), pod.namespace());
    let target = Target { context, ip, pod: described, uid: pod.uid().to_owned() };
    match protocol(&request) {
        Err(response) => *response,
        Ok(Protocol::Spdy) => {
            let (response, _) = match spdy_accept(&request, &[PORT_FORWARD], PORT_FORWARD) {
                Ok(accepted) => accepted,
                Err(response) => return *response,
            };
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                match upgrade.await {
                    Ok(upgraded) => serve_spdy(target, Box::new(TokioIo::new(upgraded))).await,
                    Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
                }
            });
            response
        }
        Ok(Protocol::WebSocket) => {
            let (response, chosen) = match websocket::accept(&request, &[TUNNEL, CHANNELS]) {
                Ok(accepted) => accepted,
                Err(response) => return *response,
            };
            let ports = [query.all("port"), query.all("ports")].concat().join(",");
            let ports: Option<Vec<u16>> = ports.split(',').filter(|p| !p.is_empty()).map(|p| p.parse().ok()).collect();
            let ports = match ports {
                Some(ports) if chosen == TUNNEL || !ports.is_empty() => ports,
                _ => return plain(StatusCode::BAD_REQUEST, "query parameter \"ports\" is required"),
            };
            if ports.len() > 100 || ports.contains(&0) {
                return plain(StatusCode::BAD_REQUEST, "query parameter \"ports\" must hold 1 to 100 valid ports");
            }
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let upgraded = match upgrade.await {
                    Ok(upgraded) => upgraded,
                    Err(error) => return tracing::debug!(%error, "a connection was not upgraded"),
                };
                let socket = websocket::socket(TokioIo::new(upgraded)).await;
                if chosen == TUNNEL {
                    serve_spdy(target, Box::new(websocket::tunnel(socket))).await;
                } else {
                    serve_channels(target, websocket::Channels::new(socket), &ports).await;
                }
            });
            response
        }
    }
}

/// How long the second stream of a pair may take (`streamCreationTimeout`).
const PAIRING: Duration = Duration::from_secs(30);

async fn serve_spdy(target: Target, transport: Box<dyn spdy::Transport>) {
    let (writer, mut streams) = match spdy::serve(transport) {
        Ok(served) => served,
        Err(error) => return tracing::warn!(%error, "SPDY failed"),
    };
    let mut waiting: HashMap<String, (spdy::Stream, tokio::time::Instant)> = HashMap::new();
    while let Some(stream) = streams.recv().await {
        waiting.retain(|_, (_, since)| since.elapsed() < PAIRING);
        let kind = stream.header("streamtype").to_owned();
        if kind != "data" && kind != "error" {
            stream.sender.reset().await;
            continue;
        }
        // Old clients send no request id: the error stream comes first, and the port names the pair.
        let request = match stream.header("requestid") {
            "" => format!("port {}", stream.header("port")),
            id => id.to_owned(),
        };
        match waiting.remove(&request) {
            Some((other, _)) if other.header("streamtype") != kind => {
                let (data, error) = if kind == "data" { (stream, other) } else { (other, stream) };
                tokio::spawn(forward_pair(target.clone(), data, error));
            }
            _ => drop(waiting.insert(request, (stream, tokio::time::Instant::now()))),
        }
    }
    writer.close().await;
}

async fn forward_pair(target: Target, mut data: spdy::Stream, error: spdy::Stream) {
    let result = match data.header("port").parse::<u16>() {
        Ok(port) if port > 0 => connect_pair(&target, port, &mut data).await,
        _ => Err(format!("\"{}\" is not a valid port", data.header("port"))),
    };
    if let Err(text) = result {
        // The client may be gone.
        let _ = error.sender.send(text.as_bytes()).await;
    }
    let _ = error.sender.finish().await;
    let _ = data.sender.finish().await;
}

async fn connect_pair(target: &Target, port: u16, data: &mut spdy::Stream) -> Result<(), String> {
    let stream = target.dial(port).await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sender = data.sender.clone();
    let up = async {
        while let Some(bytes) = data.data.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The pod may have closed already.
        let _ = writer.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) if sender.send(&buffer[..n]).await.is_err() => return,
                Ok(_) => {}
            }
        }
    };
    // The pod's end ends the pair; the client's end leaves the pod the time to answer.
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut down => {}
        () = &mut up => down.await,
    }
    Ok(())
}

impl Target {
    async fn dial(&self, port: u16) -> Result<Box<dyn crate::node::network::Stream>, String> {
        self.context.network.dial(self.ip, port).await.map_err(|error| {
            let why = crate::node::probes::tcp::dial_error(self.ip, port, &error);
            format!("error forwarding port {port} to pod {}, uid {}: failed to connect to localhost:{port} inside namespace \"{}\", {why}", self.pod, self.uid, self.uid)
        })
    }
}

async fn serve_channels<S>(target: Target, mut channels: websocket::Channels<S>, ports: &[u16])
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut inputs: HashMap<u8, mpsc::Sender<Bytes>> = HashMap::new();
    let send = channels.send();
    for (index, port) in ports.iter().enumerate() {
        let Ok(data) = u8::try_from(index * 2) else { break };
        let error = data + 1;
        for channel in [data, error] {
            // The first message of each channel is its port.
            if send(channel, port.to_le_bytes().to_vec()).await.is_err() {
                return;
            }
        }
        let (sender, mut input) = mpsc::channel::<Bytes>(64);
        inputs.insert(data, sender);
        let (target, port, send) = (target.clone(), *port, send.clone());
        tokio::spawn(async move {
            let stream = match target.dial(port).await {
                Ok(stream) => stream,
                Err(text) => return drop(send(error, text.into_bytes()).await),
            };
            let (mut reader, mut writer) = tokio::io::split(stream);
            let up = async {
                while let Some(bytes) = input.recv().await {
                    if writer.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            };
            let down = async {
                let mut buffer = vec![0; 32 << 10];
                while let Ok(n) = reader.read(&mut buffer).await {
                    if n == 0 || send(data, buffer[..n].to_vec()).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! { () = up => {}, () = down => {} }
        });
    }
    while let Some((channel, data)) = channels.next().await {
        if let Some(input) = inputs.get(&channel)
            && input.send(data).await.is_err()
        {
            inputs.remove(&channel);
            if inputs.is_empty() {
                break;
            }
        }
    }
    channels.close().await;
}
