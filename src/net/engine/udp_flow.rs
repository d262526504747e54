//! One UDP conversation of a pod with the outside: a connected host socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, recv, send, socket};

use super::packet::{self, Tuple, Unreachable};
use super::tun_io::TunWriter;

/// Milliseconds that a conversation lasts after its last datagram: unanswered, and answered (RFC 4787 REQ-5 asks for two
/// minutes).
const UNANSWERED: u64 = 30_000;
const ANSWERED: u64 = 120_000;

/// A conversation.
pub struct UdpFlow {
    tuple: Tuple,
    socket: OwnedFd,
    answered: bool,
    last: u64,
}

impl UdpFlow {
    /// A conversation with `peer`, who appears to the pod as the tuple's destination.
    ///
    /// # Errors
    /// When there is no socket to be had, or no way to the address.
    pub fn open(tuple: Tuple, peer: SocketAddr, now: u64) -> io::Result<Self> {
        let family = if peer.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Datagram, flags, None)?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(peer))?;
        Ok(Self { tuple, socket, answered: false, last: now })
    }

    /// The descriptor to be watched (edge-triggered, readable).
    pub fn fd(&self) -> &OwnedFd {
        &self.socket
    }

    /// As the pod sends it.
    pub fn tuple(&self) -> &Tuple {
        &self.tuple
    }

    /// When it is over, unless something happens (milliseconds).
    pub fn expires(&self) -> u64 {
        self.last + if self.answered { ANSWERED } else { UNANSWERED }
    }

    /// Passes a datagram of the pod on, or a train of datagrams of `segment` bytes each.
    pub fn send(&mut self, payload: &[u8], segment: Option<u16>, now: u64, tun: &TunWriter) {
        self.last = now;
        let size = segment.map_or(payload.len(), usize::from).max(1);
        if payload.is_empty() {
            self.send_one(payload, tun);
        }
        payload.chunks(size).for_each(|datagram| self.send_one(datagram, tun));
    }

    fn send_one(&self, datagram: &[u8], tun: &TunWriter) {
        match send(self.socket.as_raw_fd(), datagram, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) | Err(Errno::EAGAIN) => {}
            // The error is of an earlier datagram; this one has not been sent yet.
            Err(Errno::ECONNREFUSED) => {
                self.tell(Unreachable::Port, tun);
                let _ = send(self.socket.as_raw_fd(), datagram, MsgFlags::MSG_NOSIGNAL);
            }
            Err(_) => self.tell(Unreachable::Host, tun),
        }
    }

    /// Hands all datagrams that have come to the pod.
    pub fn receive(&mut self, buffer: &mut [u8], now: u64, tun: &TunWriter) {
        loop {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(length) => {
                    (self.answered, self.last) = (true, now);
                    let (source, destination) = (self.tuple.destination, self.tuple.source);
                    if let Some(datagram) = packet::datagram(source, destination, &buffer[..length]) {
                        tun.send(&datagram);
                    }
                }
                Err(Errno::ECONNREFUSED) => self.tell(Unreachable::Port, tun),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn tell(&self, code: Unreachable, tun: &TunWriter) {
        let sent = packet::datagram(self.tuple.source, self.tuple.destination, &[]);
        if let Some(error) = sent.and_then(|sent| packet::unreachable(&sent, code)) {
            tun.send(&error);
        }
    }
}
