//! Connections that end in the engine: to the outside, to the API server, to DNS over TCP.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use smoltcp::time::Instant;

use super::packet::{self, TcpFlags, Tuple, Unreachable, VnetHeader, udp_payload};
use super::ping_flow::{Asker, PingFlow};
use super::tcp_flow::{self, Lent, Peer, Progress, TcpFlow};
use super::tun_io::TunWriter;
use super::udp_flow::UdpFlow;

/// Conversations that may end here at once.
const CAPACITY: usize = 32_768;

/// All such connections of one engine.
pub struct Egress {
    flows: Vec<Option<Flow>>,
    free: Vec<usize>,
    by_tuple: HashMap<Tuple, usize>,
    by_asker: HashMap<Asker, usize>,
    /// When which flow has to be polled (microseconds); an entry that is not the flow's own deadline is stale.
    deadlines: BinaryHeap<Reverse<(i64, usize)>>,
    /// Event numbers below this one are the engine's own.
    first_token: u64,
    scratch: Vec<u8>,
    seed: u64,
}

struct Flow {
    kind: Kind,
    deadline: Option<i64>,
}

enum Kind {
    Tcp(Box<TcpFlow>),
    Udp(UdpFlow),
    Ping(PingFlow),
}

impl Egress {
    /// No connections. Their events carry numbers from `first_token` on; `seed` makes sequence numbers unpredictable.
    pub fn new(first_token: u64, seed: u64) -> Self {
        Self {
            flows: Vec::new(),
            free: Vec::new(),
            by_tuple: HashMap::new(),
            by_asker: HashMap::new(),
            deadlines: BinaryHeap::new(),
            first_token,
            scratch: Vec::with_capacity(1 << 16),
            seed,
        }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.by_tuple.len() + self.by_asker.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next time that something is due.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        while let Some(Reverse((at, slot))) = self.deadlines.peek() {
            if self.flows[*slot].as_ref().is_some_and(|f| f.deadline == Some(*at)) {
                return Some(Instant::from_micros(*at));
            }
            self.deadlines.pop();
        }
        None
    }

    /// A packet of a connection that is known here. False when it is not.
    pub fn packet(&mut self, tuple: &Tuple, packet: &[u8], start: usize, vnet: &VnetHeader, io: &Io<'_>) -> bool {
        let Some(slot) = self.by_tuple.get(tuple).copied() else { return false };
        let seed = self.next_seed();
        let Some(flow) = &mut self.flows[slot] else { return false };
        match &mut flow.kind {
            Kind::Tcp(tcp) => {
                let progress = tcp.packet(packet, &mut io.lend(&mut self.scratch, seed));
                self.after(slot, progress);
            }
            Kind::Udp(udp) => {
                let segment = vnet.is_udp_segments().then_some(vnet.gso_size);
                udp.send(udp_payload(packet, start), segment, io.millis(), io.tun);
            }
            Kind::Ping(_) => return false,
        }
        true
    }

    /// The first packet of a TCP connection.
    pub fn open_tcp(&mut self, tuple: Tuple, flags: TcpFlags, packet: &[u8], peer: Peer, io: &Io<'_>) {
        if !flags.opens {
            // A connection of an earlier daemon: it cannot be continued.
            packet::reset(packet).iter().for_each(|reply| io.tun.send(reply));
            return;
        }
        if self.len() >= CAPACITY {
            return;
        }
        match TcpFlow::open(tuple, packet, peer) {
            Ok(flow) => {
                // Its first event comes when the other side has answered; of a local peer at once.
                self.insert(tuple, Kind::Tcp(Box::new(flow)), io);
            }
            Err(error) => tcp_flow::refuse(packet, errno(&error), io.tun),
        }
    }

    /// The first datagram of a UDP conversation.
    pub fn open_udp(
        &mut self,
        tuple: Tuple,
        packet: &[u8],
        start: usize,
        vnet: &VnetHeader,
        peer: SocketAddr,
        io: &Io<'_>,
    ) {
        if self.len() >= CAPACITY {
            return;
        }
        match UdpFlow::open(tuple, peer, io.millis()) {
            Ok(flow) => {
                let expires = flow.expires();
                if let Some(slot) = self.insert(tuple, Kind::Udp(flow), io) {
                    self.arm(slot, Some(millis_to_micros(expires)));
                    self.packet(&tuple, packet, start, vnet, io);
                }
            }
            Err(_) => {
                let reply = packet::unreachable(packet, Unreachable::Host);
                reply.iter().for_each(|reply| io.tun.send(reply));
            }
        }
    }

    /// An echo request to the outside. False: this user may not ask.
    pub fn ping(&mut self, asker: Asker, icmp: &[u8], io: &Io<'_>) -> bool {
        let slot = match self.by_asker.get(&asker) {
            Some(slot) => *slot,
            None => {
                let Ok(flow) = PingFlow::open(asker, io.millis()) else { return false };
                let expires = flow.expires();
                let Some(slot) = self.watch(Kind::Ping(flow), io).filter(|_| self.len() < CAPACITY) else {
                    return false;
                };
                self.by_asker.insert(asker, slot);
                self.arm(slot, Some(millis_to_micros(expires)));
                slot
            }
        };
        if let Some(Flow { kind: Kind::Ping(flow), .. }) = &mut self.flows[slot] {
            flow.send(icmp, io.millis());
        }
        true
    }

    /// Something happened at a descriptor.
    pub fn event(&mut self, token: u64, events: EpollFlags, io: &Io<'_>) {
        let Ok(slot) = usize::try_from(token - self.first_token) else { return };
        let over = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let readable = events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | over);
        let writable = events.intersects(EpollFlags::EPOLLOUT | over);
        self.ready(slot, readable, writable, io);
    }

    /// Polls what is due.
    pub fn run_deadlines(&mut self, io: &Io<'_>) {
        while let Some(at) = self.next_deadline().filter(|at| *at <= io.now) {
            let Some(Reverse((_, slot))) = self.deadlines.pop() else { return };
            let seed = self.next_seed();
            let Some(flow) = &mut self.flows[slot] else { continue };
            flow.deadline = None;
            match &mut flow.kind {
                Kind::Tcp(tcp) => {
                    let progress = tcp.timeout(&mut io.lend(&mut self.scratch, seed));
                    self.after(slot, progress);
                }
                Kind::Udp(udp) => {
                    let expires = udp.expires();
                    self.expire(slot, millis_to_micros(expires), at);
                }
                Kind::Ping(ping) => {
                    let expires = ping.expires();
                    self.expire(slot, millis_to_micros(expires), at);
                }
            }
        }
    }

    fn expire(&mut self, slot: usize, expires: i64, now: Instant) {
        if expires <= now.total_micros() {
            self.remove(slot);
        } else {
            self.arm(slot, Some(expires));
        }
    }

    /// Ends the connections of a pod that is gone.
    pub fn forget(&mut self, ip: std::net::Ipv4Addr) {
        let flows = self.by_tuple.iter().filter(|(tuple, _)| tuple.source.0 == ip).map(|(_, slot)| *slot);
        let pings = self.by_asker.iter().filter(|(asker, _)| asker.pod == ip).map(|(_, slot)| *slot);
        let gone: Vec<usize> = flows.chain(pings).collect();
        gone.into_iter().for_each(|slot| self.remove(slot));
    }

    fn ready(&mut self, slot: usize, readable: bool, writable: bool, io: &Io<'_>) {
        let seed = self.next_seed();
        let Some(Some(flow)) = self.flows.get_mut(slot) else { return };
        match &mut flow.kind {
            Kind::Tcp(tcp) => {
                let progress = tcp.ready(readable, writable, &mut io.lend(&mut self.scratch, seed));
                self.after(slot, progress);
            }
            Kind::Udp(udp) => {
                self.scratch.resize(1 << 16, 0);
                udp.receive(&mut self.scratch, io.millis(), io.tun);
            }
            Kind::Ping(ping) => {
                self.scratch.resize(1 << 16, 0);
                ping.receive(&mut self.scratch, io.tun);
            }
        }
    }

    fn after(&mut self, slot: usize, progress: Progress) {
        match progress {
            Progress::Done => self.remove(slot),
            Progress::Alive(at) => self.arm(slot, at.map(|at| at.total_micros())),
        }
    }

    fn arm(&mut self, slot: usize, at: Option<i64>) {
        let Some(flow) = &mut self.flows[slot] else { return };
        if flow.deadline != at {
            flow.deadline = at;
            self.deadlines.extend(at.map(|at| Reverse((at, slot))));
        }
    }

    fn insert(&mut self, tuple: Tuple, kind: Kind, io: &Io<'_>) -> Option<usize> {
        let slot = self.watch(kind, io)?;
        self.by_tuple.insert(tuple, slot);
        Some(slot)
    }

    fn watch(&mut self, kind: Kind, io: &Io<'_>) -> Option<usize> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() - 1
        });
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let fd = match &kind {
            Kind::Tcp(flow) => flow.fd(),
            Kind::Udp(flow) => flow.fd(),
            Kind::Ping(flow) => flow.fd(),
        };
        if let Err(error) = io.epoll.add(fd.as_fd(), EpollEvent::new(events, self.first_token + slot as u64)) {
            tracing::warn!(%error, "a connection to the outside cannot be watched");
            self.free.push(slot);
            return None;
        }
        self.flows[slot] = Some(Flow { kind, deadline: None });
        Some(slot)
    }

    /// Closing the descriptor also ends its watch.
    fn remove(&mut self, slot: usize) {
        let Some(flow) = self.flows[slot].take() else { return };
        match &flow.kind {
            Kind::Tcp(flow) => self.by_tuple.remove(flow.tuple()),
            Kind::Udp(flow) => self.by_tuple.remove(flow.tuple()),
            Kind::Ping(flow) => self.by_asker.remove(flow.asker()),
        };
        self.free.push(slot);
    }

    fn next_seed(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed ^ (self.seed >> 29)
    }
}

/// What the engine lends for one call.
pub struct Io<'a> {
    /// Where packets go.
    pub tun: &'a TunWriter,
    /// Where descriptors are watched.
    pub epoll: &'a Epoll,
    /// The time.
    pub now: Instant,
}

impl Io<'_> {
    /// The time in milliseconds.
    pub fn millis(&self) -> u64 {
        u64::try_from(self.now.total_millis()).unwrap_or(0)
    }
    fn lend<'b>(&'b self, scratch: &'b mut Vec<u8>, seed: u64) -> Lent<'b> {
        Lent { tun: self.tun, scratch, now: self.now, seed }
    }
}

fn millis_to_micros(millis: u64) -> i64 {
    i64::try_from(millis.saturating_mul(1000)).unwrap_or(i64::MAX)
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
