//! One TCP connection that ends in the engine: smoltcp towards the pod, a kernel socket towards the other side.
//!
//! Each has an interface and a socket set of its own: smoltcp looks at every socket of a set for every packet.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, connect, getsockopt, setsockopt, shutdown, socket,
    sockopt,
};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::packet::{self, Tuple, Unreachable, VNET_HEADER};
use super::tun_io::TunWriter;
use crate::net::tun::MTU;

/// Bytes of buffer in each direction: several of the largest segments. Only what is really used becomes memory: the
/// allocation is lazily zeroed, and smoltcp begins at the front whenever a buffer is empty.
const BUFFER: usize = 256 << 10;

/// Where the bytes go.
pub enum Peer {
    /// To a host socket that is connecting to this address.
    Host(SocketAddr),
    /// To somebody in this process, by this end of a socket pair.
    Local(OwnedFd),
}

/// A connection from a pod.
pub struct TcpFlow {
    /// As the pod sends it.
    tuple: Tuple,
    peer: OwnedFd,
    /// The SYN, until the other side has answered.
    syn: Option<Vec<u8>>,
    stack: Option<Stack>,
    readable: bool,
    writable: bool,
    peer_finished: bool,
    pod_finished: bool,
}

struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

/// Whether a flow goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has to be polled again at this time, if nothing happens before.
    Alive(Option<Instant>),
    /// It is over.
    Done,
}

/// What the engine lends to a flow while it polls it.
pub struct Lent<'a> {
    /// Where packets go.
    pub tun: &'a TunWriter,
    /// Where packets are built.
    pub scratch: &'a mut Vec<u8>,
    /// The time.
    pub now: Instant,
    /// Seeds sequence numbers.
    pub seed: u64,
}

impl TcpFlow {
    /// Begins to connect for the pod that sent `syn`. The pod gets its answer when the other side has answered.
    ///
    /// # Errors
    /// When there is no socket to be had, or the kernel knows at once that the address cannot be reached.
    pub fn open(tuple: Tuple, syn: &[u8], peer: Peer) -> io::Result<Self> {
        let (peer, connected) = match peer {
            Peer::Local(fd) => (fd, true),
            Peer::Host(address) => {
                let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                let fd = socket(family, SockType::Stream, flags, None)?;
                setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
                match connect(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
                    Ok(()) | Err(Errno::EINPROGRESS) => {}
                    Err(error) => return Err(error.into()),
                }
                (fd, false)
            }
        };
        Ok(Self {
            tuple,
            peer,
            syn: Some(syn.to_vec()),
            stack: None,
            readable: connected,
            writable: connected,
            peer_finished: false,
            pod_finished: false,
        })
    }

    /// The descriptor to be watched (edge-triggered, both directions).
    pub fn fd(&self) -> &OwnedFd {
        &self.peer
    }

    /// As the pod sends it.
    pub fn tuple(&self) -> &Tuple {
        &self.tuple
    }

    /// The other side is ready.
    pub fn ready(&mut self, readable: bool, writable: bool, lent: &mut Lent<'_>) -> Progress {
        self.readable |= readable;
        self.writable |= writable;
        if let Some(syn) = &self.syn {
            if !self.writable {
                return Progress::Alive(None);
            }
            let error = match getsockopt(&self.peer, sockopt::SocketError) {
                Ok(0) => None,
                Ok(code) => Some(Errno::from_raw(code)),
                Err(error) => Some(error),
            };
            if let Some(error) = error {
                refuse(syn, error, lent.tun);
                return Progress::Done;
            }
            let syn = self.syn.take().expect("it was there a moment ago");
            let Some(stack) = Stack::new(&self.tuple, lent) else { return Progress::Done };
            self.stack = Some(stack);
            return self.packet(&syn, lent);
        }
        self.pump(lent)
    }

    /// A packet from the pod.
    pub fn packet(&mut self, packet: &[u8], lent: &mut Lent<'_>) -> Progress {
        // While the other side has not answered, this is the SYN again.
        let Some(stack) = &mut self.stack else { return Progress::Alive(None) };
        stack.poll(Some(packet), lent);
        self.pump(lent)
    }

    /// The time that [`Progress::Alive`] asked for has come.
    pub fn timeout(&mut self, lent: &mut Lent<'_>) -> Progress {
        match &mut self.stack {
            None => Progress::Alive(None),
            Some(stack) => {
                stack.poll(None, lent);
                self.pump(lent)
            }
        }
    }

    /// Moves bytes both ways until neither side can.
    fn pump(&mut self, lent: &mut Lent<'_>) -> Progress {
        let Some(stack) = &mut self.stack else { return Progress::Alive(None) };
        let mut broken = false;
        loop {
            let socket = stack.sockets.get_mut::<Socket>(stack.handle);
            let mut moved = false;
            while self.writable && socket.can_recv() && !broken {
                let (peer, writable) = (&self.peer, &mut self.writable);
                let result = socket.recv(|bytes| match send(peer, bytes) {
                    Ok(length) => (length, Ok(length)),
                    Err(error) => (0, Err(error)),
                });
                match result {
                    Ok(Ok(_)) => moved = true,
                    Ok(Err(Errno::EAGAIN)) => *writable = false,
                    Ok(Err(Errno::EINTR)) => {}
                    Ok(Err(_)) => broken = true,
                    Err(_) => break,
                }
            }
            while self.readable && socket.can_send() && !self.peer_finished && !broken {
                let (peer, readable) = (&self.peer, &mut self.readable);
                let result = socket.send(|room| match nix::unistd::read(peer.as_raw_fd(), room) {
                    Ok(length) => (length, Ok(length)),
                    Err(error) => (0, Err(error)),
                });
                match result {
                    Ok(Ok(0)) => {
                        self.peer_finished = true;
                        socket.close();
                        moved = true;
                    }
                    Ok(Ok(_)) => moved = true,
                    Ok(Err(Errno::EAGAIN)) => *readable = false,
                    Ok(Err(Errno::EINTR)) => {}
                    Ok(Err(_)) => broken = true,
                    Err(_) => break,
                }
            }
            let finished =
                matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
            if finished && !socket.can_recv() && !self.pod_finished {
                self.pod_finished = true;
                let _ = shutdown(self.peer.as_raw_fd(), Shutdown::Write);
            }
            if broken {
                socket.abort();
            }
            if !moved && !broken {
                break;
            }
            stack.poll(None, lent);
            if broken {
                break;
            }
        }
        stack.poll(None, lent);
        match stack.sockets.get::<Socket>(stack.handle).state() {
            State::Closed | State::TimeWait => {
                if !(self.peer_finished && self.pod_finished) {
                    // The pod reset the connection: the other side shall see a reset, too.
                    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                    let _ = setsockopt(&self.peer, sockopt::Linger, &linger);
                }
                Progress::Done
            }
            _ => Progress::Alive(stack.interface.poll_at(lent.now, &stack.sockets)),
        }
    }
}

/// `send` without a SIGPIPE.
fn send(fd: &OwnedFd, bytes: &[u8]) -> nix::Result<usize> {
    nix::sys::socket::send(fd.as_raw_fd(), bytes, nix::sys::socket::MsgFlags::MSG_NOSIGNAL)
}

/// Answers a SYN as the other side's network did.
pub fn refuse(syn: &[u8], error: Errno, tun: &TunWriter) {
    let reply = match error {
        Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ETIMEDOUT | Errno::EADDRNOTAVAIL => {
            packet::unreachable(syn, Unreachable::Host)
        }
        Errno::EACCES | Errno::EPERM => packet::unreachable(syn, Unreachable::Prohibited),
        _ => packet::reset(syn),
    };
    if let Some(reply) = reply {
        tun.send(&reply);
    }
}

impl Stack {
    fn new(tuple: &Tuple, lent: &mut Lent<'_>) -> Option<Self> {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = lent.seed;
        let mut device = FlowDevice { packet: None, tun: lent.tun, scratch: lent.scratch };
        let mut interface = Interface::new(config, &mut device, lent.now);
        let (address, port) = tuple.destination;
        interface.update_ip_addrs(|addresses| {
            // There is room for one; a second never comes.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(address), 32));
        });
        interface.routes_mut().add_default_ipv4_route(address).ok()?;
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.listen((IpAddress::Ipv4(address), port)).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Self { interface, sockets, handle })
    }

    fn poll(&mut self, packet: Option<&[u8]>, lent: &mut Lent<'_>) {
        let mut device = FlowDevice { packet, tun: lent.tun, scratch: lent.scratch };
        self.interface.poll(lent.now, &mut device, &mut self.sockets);
    }
}

/// smoltcp's view of the TUN: at most one packet in, packets out at once.
struct FlowDevice<'a> {
    packet: Option<&'a [u8]>,
    tun: &'a TunWriter,
    scratch: &'a mut Vec<u8>,
}

struct Received<'a>(&'a [u8]);
struct Sending<'a> {
    tun: &'a TunWriter,
    scratch: &'a mut Vec<u8>,
}

impl Device for FlowDevice<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Sending { tun: self.tun, scratch: self.scratch }))
    }
    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending { tun: self.tun, scratch: self.scratch })
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU as usize;
        // The kernel on the other end of the TUN computes them, and does not damage packets.
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.scratch.clear();
        self.scratch.resize(VNET_HEADER + length, 0);
        let packet = &mut self.scratch[VNET_HEADER..];
        let result = f(packet);
        if let Some(header) = packet::offload_tcp(packet) {
            self.scratch[..VNET_HEADER].copy_from_slice(&header.emit());
            self.tun.write(self.scratch);
        }
        result
    }
}

/// The far end of a connection to somebody in this process.
///
/// # Errors
/// Those of `socketpair`.
pub fn local_pair() -> io::Result<(OwnedFd, std::os::unix::net::UnixStream)> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    Ok((near.into(), far))
}
