//! Echo requests of a pod to the outside: the kernel's unprivileged ICMP socket (`net.ipv4.ping_group_range` permitting).

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv, send, socket,
};

use super::packet;
use super::tun_io::TunWriter;

/// Milliseconds that it lasts after its last request.
const SILENCE: u64 = 30_000;

/// Who asks whom under which id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asker {
    /// The pod.
    pub pod: Ipv4Addr,
    /// The identifier of its requests.
    pub id: u16,
    /// Who is asked.
    pub peer: Ipv4Addr,
}

/// The requests of one asker.
pub struct PingFlow {
    asker: Asker,
    socket: OwnedFd,
    last: u64,
}

impl PingFlow {
    /// # Errors
    /// When the user may not ping, or there is no way to the address.
    pub fn open(asker: Asker, now: u64) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, SockProtocol::Icmp)?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((asker.peer, 0))))?;
        Ok(Self { asker, socket, last: now })
    }

    /// The descriptor to be watched (edge-triggered, readable).
    pub fn fd(&self) -> &OwnedFd {
        &self.socket
    }
    /// Who asks.
    pub fn asker(&self) -> &Asker {
        &self.asker
    }
    /// When it is over, unless something is asked (milliseconds).
    pub fn expires(&self) -> u64 {
        self.last + SILENCE
    }

    /// Passes a request on; the kernel puts its own id and checksum in.
    pub fn send(&mut self, icmp: &[u8], now: u64) {
        self.last = now;
        // A request that cannot be sent is one that is not answered.
        let _ = send(self.socket.as_raw_fd(), icmp, MsgFlags::MSG_NOSIGNAL);
    }

    /// Hands all replies that have come to the pod, under its own id.
    pub fn receive(&mut self, buffer: &mut [u8], tun: &TunWriter) {
        loop {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(length) if length >= 8 => {
                    buffer[4..6].copy_from_slice(&self.asker.id.to_be_bytes());
                    let reply = packet::icmp(self.asker.peer, self.asker.pod, &mut buffer[..length]);
                    reply.iter().for_each(|reply| tun.send(reply));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}
