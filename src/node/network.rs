//! What the node needs of the pod network; the composition root adapts the net component to it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to a pod.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A port that a pod wants on the host (`hostPort`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The port on the host.
    pub host_port: u16,
    /// The port in the pod.
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The host address to bind, when one is asked for.
    pub host_ip: Option<IpAddr>,
}

/// A pod that gets a network.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The pod's uid.
    pub uid: String,
    /// The pod's namespace and name, for messages.
    pub pod: String,
    /// The network namespace, such as `/proc/123/ns/net`.
    pub netns: PathBuf,
    /// Ports on the host.
    pub host_ports: Vec<HostPort>,
}

/// The pod network.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Gives the pod's network namespace its interfaces and addresses; idempotent: a pod that is attached already
    /// (also by an earlier daemon) keeps its addresses.
    async fn attach(&self, attachment: &Attachment) -> io::Result<Vec<IpAddr>>;
    /// Frees the pod's addresses. A pod that is not attached is no error.
    async fn detach(&self, uid: &str) -> io::Result<()>;
    /// A TCP connection to a pod (or to the node's own address, for pods on the host network).
    async fn dial(&self, ip: IpAddr, port: u16) -> io::Result<Box<dyn Stream>>;
}

/// A network for tests: hands out addresses; `dial` connects to ports of the machine's loopback that were mapped.
#[derive(Default)]
pub struct FakeNetwork {
    inner: Mutex<FakeInner>,
}

#[derive(Default)]
struct FakeInner {
    attached: HashMap<String, IpAddr>,
    handed_out: u8,
    listeners: HashMap<u16, u16>,
}

impl FakeNetwork {
    /// Lets connections to `port` of any pod reach `target` on 127.0.0.1.
    pub fn map_port(&self, port: u16, target: u16) {
        self.inner.lock().expect("no panic while held").listeners.insert(port, target);
    }
    /// How many pods are attached.
    pub fn attached(&self) -> usize {
        self.inner.lock().expect("no panic while held").attached.len()
    }
    /// The namespace path that tests pass.
    pub fn netns() -> &'static Path {
        Path::new("/proc/self/ns/net")
    }
}

#[async_trait]
impl PodNetwork for FakeNetwork {
    async fn attach(&self, attachment: &Attachment) -> io::Result<Vec<IpAddr>> {
        let mut inner = self.inner.lock().expect("no panic while held");
        if let Some(ip) = inner.attached.get(&attachment.uid) {
            return Ok(vec![*ip]);
        }
        inner.handed_out = inner.handed_out.wrapping_add(1);
        let ip = IpAddr::V4(Ipv4Addr::new(10, 244, 0, inner.handed_out));
        inner.attached.insert(attachment.uid.clone(), ip);
        Ok(vec![ip])
    }
    async fn detach(&self, uid: &str) -> io::Result<()> {
        self.inner.lock().expect("no panic while held").attached.remove(uid);
        Ok(())
    }
    async fn dial(&self, _ip: IpAddr, port: u16) -> io::Result<Box<dyn Stream>> {
        let target = self.inner.lock().expect("no panic while held").listeners.get(&port).copied();
        let target = target.ok_or(io::ErrorKind::ConnectionRefused)?;
        Ok(Box::new(tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?))
    }
}
