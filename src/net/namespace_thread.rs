//! A thread that lives in another network namespace: kernel sockets and files of that namespace for the whole daemon.
//!
//! A socket belongs to the namespace of the thread that created it, for ever; everything else (connect, read, write)
//! may then happen anywhere, so the thread only creates.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A handle to the thread; the thread ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct NamespaceThread {
    jobs: mpsc::Sender<Job>,
}

impl NamespaceThread {
    /// Starts a thread in the network namespace that `namespace` is open on.
    ///
    /// # Errors
    /// When the thread cannot be started or may not enter the namespace.
    pub fn start(name: &str, namespace: OwnedFd) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (entered, result) = mpsc::channel();
        std::thread::Builder::new().name(name.to_owned()).stack_size(512 << 10).spawn(move || {
            let enter = setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
            let stop = enter.is_err();
            let _ = entered.send(enter);
            if stop {
                return;
            }
            drop(namespace);
            while let Ok(job) = inbox.recv() {
                job();
            }
        })?;
        result.recv().map_err(|_| io::Error::other("the namespace thread ended early"))??;
        Ok(Self { jobs })
    }

    /// Runs `work` on the thread and waits for its result.
    ///
    /// # Errors
    /// When the thread has died (a job panicked).
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (sender, result) = oneshot::channel();
        self.send(Box::new(move || drop(sender.send(work()))))?;
        result.await.map_err(|_| dead())
    }

    /// As [`NamespaceThread::run`], for threads that may block.
    ///
    /// # Errors
    /// When the thread has died.
    pub fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (sender, result) = mpsc::channel();
        self.send(Box::new(move || drop(sender.send(work()))))?;
        result.recv().map_err(|_| dead())
    }

    fn send(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).map_err(|_| dead())
    }

    /// A TCP connection made inside the namespace.
    ///
    /// # Errors
    /// Those of `socket` and `connect`.
    pub async fn connect(&self, ip: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
        self.connect_as(None, ip, port).await
    }

    /// As [`NamespaceThread::connect`], from an address of the namespace (`None`: the one that the route has).
    ///
    /// # Errors
    /// Those of `socket`, `bind` and `connect`.
    pub async fn connect_as(&self, source: Option<Ipv4Addr>, ip: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
        let socket = TcpSocket::from_std_stream(self.run(TcpSocket::new_v4_detached).await??);
        if let Some(source) = source {
            bind_for_connect(&socket, source)?;
        }
        let stream = socket.connect(SocketAddr::V4(SocketAddrV4::new(ip, port))).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A TCP listener inside the namespace.
    ///
    /// # Errors
    /// Those of `bind`.
    pub async fn listen(&self, address: SocketAddrV4) -> io::Result<TcpListener> {
        let listener = self.run(move || std::net::TcpListener::bind(address)).await??;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    }

    /// A UDP socket made inside the namespace, connected to a peer; from an address of the namespace, or that of the route.
    ///
    /// # Errors
    /// Those of `socket` and `connect`.
    pub async fn connect_udp(&self, source: Option<Ipv4Addr>, ip: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
        let socket = self
            .run(move || -> io::Result<std::net::UdpSocket> {
                let socket = std::net::UdpSocket::bind((source.unwrap_or(Ipv4Addr::UNSPECIFIED), 0))?;
                socket.connect((ip, port))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
            .await??;
        UdpSocket::from_std(socket)
    }
}

/// Gives a socket its source address, and leaves the port to `connect`: one port may then serve connections to many peers.
fn bind_for_connect(socket: &TcpSocket, source: Ipv4Addr) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::V4(SocketAddrV4::new(source, 0)))
}

fn dead() -> io::Error {
    io::Error::other("the namespace thread has ended")
}

trait Detached {
    /// A non-blocking socket that is not yet registered with a runtime.
    fn new_v4_detached() -> io::Result<std::net::TcpStream>;
}

impl Detached for TcpSocket {
    fn new_v4_detached() -> io::Result<std::net::TcpStream> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        Ok(socket(AddressFamily::Inet, SockType::Stream, flags, None)?.into())
    }
}

/// Opens a network namespace by path, such as `/proc/123/ns/net`.
///
/// # Errors
/// Those of `open`.
pub fn open_namespace(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

/// Runs `work` in another network namespace, on the calling thread, which must be a [`NamespaceThread`] of `home`
/// (or one that nothing else runs on): afterwards it is back in `home`.
///
/// # Errors
/// When a namespace may not be entered.
///
/// # Panics
/// When the way back fails: the thread would go on in the wrong namespace.
pub fn visit<T>(home: &impl AsFd, namespace: &impl AsFd, work: impl FnOnce() -> T) -> io::Result<T> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let result = work();
    setns(home, CloneFlags::CLONE_NEWNET).expect("the namespace that the thread just left can be entered again");
    Ok(result)
}
