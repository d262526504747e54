//! Questions that the cluster cannot answer, passed on to the host's resolvers as they are.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Transport;

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take when it was silent lately: a machine that is offline answers `SERVFAIL` quickly.
const LITTLE_PATIENCE: Duration = Duration::from_millis(200);
/// How long a silence is remembered.
const MEMORY: Duration = Duration::from_secs(10);

/// The resolvers of the host. Read anew for each question: the host may have moved to another network.
fn resolvers() -> Vec<SocketAddr> {
    parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

/// The `nameserver` lines of a resolv.conf (at most three are used, resolv.conf(5)).
fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        // A zone index (`fe80::1%eth0`) is not supported.
        Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, 53))
    });
    servers.take(3).collect()
}

/// The first answer of a resolver, with the question's id; `None` when there is no resolver that answers.
pub async fn ask(query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    ask_of(&resolvers(), query, transport).await
}

async fn ask_of(resolvers: &[SocketAddr], query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    for server in resolvers {
        let patience = if was_silent(server) { LITTLE_PATIENCE } else { PATIENCE };
        let reply = match transport {
            Transport::Udp => timeout(patience, by_udp(*server, query)).await,
            Transport::Tcp => timeout(patience, by_tcp(*server, query)).await,
        };
        remember(server, reply.is_err());
        match reply {
            Ok(Ok(reply)) => return Some(reply),
            Ok(Err(error)) => tracing::debug!(%server, %error, "a resolver of the host cannot be asked"),
            Err(_) => tracing::debug!(%server, "a resolver of the host does not answer"),
        }
    }
    None
}

/// When which resolver was last silent.
static SILENT: Mutex<BTreeMap<SocketAddr, Instant>> = Mutex::new(BTreeMap::new());

fn was_silent(server: &SocketAddr) -> bool {
    let silent = SILENT.lock().expect("no panic while this is held");
    silent.get(server).is_some_and(|since| since.elapsed() < MEMORY)
}

fn remember(server: &SocketAddr, silent: bool) {
    let mut all = SILENT.lock().expect("no panic while this is held");
    if silent {
        all.retain(|_, since| since.elapsed() < MEMORY);
        all.insert(*server, Instant::now());
    } else {
        all.remove(server);
    }
}

/// From a port of its own, under an id of its own.
async fn by_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let local: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(server).await?;
    let question = renumber(query, rand::random());
    socket.send(&question).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&question, &buffer[..length]) {
            return Ok(renumber(&buffer[..length], id(query)));
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    if answers(query, &reply) { Ok(reply) } else { Err(io::Error::other("an answer to another question")) }
}

fn id(message: &[u8]) -> u16 {
    message.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

fn renumber(message: &[u8], id: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(bytes) = message.first_chunk_mut() {
        *bytes = id.to_be_bytes();
    }
    message
}

/// Whether `reply` has the id and the question of `query`.
fn answers(query: &[u8], reply: &[u8]) -> bool {
    let (Ok(query), Ok(reply)) = (Message::from_vec(query), Message::from_vec(reply)) else { return false };
    query.metadata.id == reply.metadata.id
        && reply.metadata.message_type == hickory_proto::op::MessageType::Response
        && (reply.queries.is_empty() || reply.queries == query.queries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_the_manual_says() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 127.0.0.53\n nameserver\t::1\nnameserver x\nnameserver 9.9.9.9\nnameserver 8.8.8.8";
        let all: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["127.0.0.53:53", "[::1]:53", "9.9.9.9:53"]);
    }
}
