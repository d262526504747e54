//! The packet engine: one thread on the TUN device.
//!
//! It translates packets for Services ([`conntrack`]), ends connections that leave the cluster ([`egress`]), and answers
//! for the addresses that are its own (DNS, the API server's). It sleeps in `epoll_wait` until a packet, a command or the
//! deadline of a connection wakes it.

pub mod conntrack;
pub mod egress;
pub mod packet;
mod ping_flow;
mod tcp_flow;
mod tun_io;
mod udp_flow;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use ipnet::Ipv4Net;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use smoltcp::time::Instant;

use self::conntrack::{Conntrack, Target, Verdict, Way};
use self::egress::{Egress, Io};
use self::packet::{Parsed, TcpFlags, Tuple, Unreachable, VNET_HEADER, VnetHeader};
use self::tcp_flow::Peer;
use self::tun_io::TunWriter;
use super::service_table::{Protocol, ServicePort, ServiceTable};
use super::tun::NODE_PORTS;

/// Event numbers.
const TUN: u64 = 0;
const WAKE: u64 = 1;
const FIRST_FLOW: u64 = 2;
/// Packets read before other events get their turn.
const BURST: usize = 256;

/// What the engine has to know about its surroundings.
#[derive(Clone)]
pub struct Settings {
    /// The node's address in its namespace.
    pub node_ip: Ipv4Addr,
    /// Pods of this node.
    pub pod_cidr: Ipv4Net,
    /// Pods of all nodes.
    pub cluster_cidr: Ipv4Net,
    /// All nodes.
    pub node_cidr: Ipv4Net,
    /// Services.
    pub service_cidr: Ipv4Net,
    /// The address of `kubernetes.default`, answered on port 443.
    pub api_service_ip: Ipv4Addr,
    /// Where the API server listens on the host.
    pub api_address: SocketAddr,
    /// Whether the API server is also reached at the node's address.
    pub serves_api: bool,
    /// The address of DNS.
    pub dns_ip: Ipv4Addr,
    /// Who answers DNS.
    pub dns: Arc<dyn Dns>,
    /// The address by which pods reach the host's loopback; `None`: they do not.
    pub host_gateway: Option<Ipv4Addr>,
    /// Makes sequence numbers unpredictable.
    pub seed: u64,
}

/// Who answers DNS. Called on the engine's thread: must not wait.
pub trait Dns: Send + Sync {
    /// The answer to a UDP query, or `None` when it comes later by [`EngineHandle::datagram`].
    fn query(&self, query: &[u8], client: (Ipv4Addr, u16)) -> Option<Vec<u8>>;
    /// Takes a TCP connection over.
    fn stream(&self, stream: UnixStream);
}

enum Command {
    Table(Arc<ServiceTable>),
    Forget(Ipv4Addr),
    Datagram { source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), payload: Vec<u8> },
    Stop,
}

/// Talks to the engine from elsewhere.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    counts: Arc<Counts>,
}

/// What the engine is busy with.
#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    egress: AtomicUsize,
}

impl EngineHandle {
    /// From now on this is what Services are.
    pub fn set_table(&self, table: Arc<ServiceTable>) {
        self.send(Command::Table(table));
    }
    /// A pod was detached.
    pub fn forget(&self, ip: Ipv4Addr) {
        self.send(Command::Forget(ip));
    }
    /// Sends a UDP datagram to a pod.
    pub fn datagram(&self, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), payload: Vec<u8>) {
        self.send(Command::Datagram { source, destination, payload });
    }
    /// Ends the engine's thread.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }
    /// Connections that are translated or watched, and those that end in the engine.
    pub fn counts(&self) -> (usize, usize) {
        (self.counts.connections.load(Ordering::Relaxed), self.counts.egress.load(Ordering::Relaxed))
    }

    fn send(&self, command: Command) {
        // An engine that has ended needs no commands.
        if self.commands.send(command).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

/// The engine before its thread runs: DNS needs the handle, and the engine needs DNS.
pub struct Prepared {
    handle: EngineHandle,
    commands: mpsc::Receiver<Command>,
}

/// Makes a handle to an engine to be.
///
/// # Errors
/// Those of `eventfd`.
pub fn prepare() -> io::Result<(EngineHandle, Prepared)> {
    let (commands, inbox) = mpsc::channel();
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    let handle = EngineHandle { commands, wake, counts: Arc::default() };
    Ok((handle.clone(), Prepared { handle, commands: inbox }))
}

impl Prepared {
    /// Starts the engine's thread on an open TUN device.
    ///
    /// # Errors
    /// Those of `epoll` and of starting a thread.
    pub fn start(self, tun: OwnedFd, settings: Settings) -> io::Result<JoinHandle<()>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(self.handle.wake.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let engine = Engine {
            conntrack: Conntrack::new(settings.node_ip),
            egress: Egress::new(FIRST_FLOW, settings.seed),
            table: Arc::default(),
            reading: false,
            tun: TunWriter::new(Arc::new(tun)),
            epoll,
            clock: Clock(std::time::Instant::now()),
            now: Instant::ZERO,
            wake: self.handle.wake,
            counts: self.handle.counts,
            commands: self.commands,
            settings,
        };
        std::thread::Builder::new().name("net-engine".into()).spawn(move || engine.run())
    }
}

/// smoltcp's own `Instant::now` jumps with the wall clock.
struct Clock(std::time::Instant);

impl Clock {
    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.0.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}

struct Engine {
    settings: Settings,
    table: Arc<ServiceTable>,
    conntrack: Conntrack,
    egress: Egress,
    /// Packets wait in the device until the first table has come: connections of an earlier daemon must not be refused.
    reading: bool,
    tun: TunWriter,
    epoll: Epoll,
    clock: Clock,
    now: Instant,
    wake: Arc<EventFd>,
    counts: Arc<Counts>,
    commands: mpsc::Receiver<Command>,
}

/// What is to be done with a packet that no connection is known for.
#[derive(Debug, PartialEq, Eq)]
enum Class<'a> {
    /// A query, or a connection, to DNS.
    Dns,
    /// A connection to the API server.
    Api,
    /// A port of a Service, reached in this way.
    Service(&'a Arc<ServicePort>, Way),
    /// An address of a Service, but not a port of it.
    NoSuchPort,
    /// The kernel of the node's namespace decides.
    Node,
    /// A pod, or another node: the kernel knows the way.
    Pod,
    /// Outside, by a host socket to this address.
    Outside(IpAddr),
    /// Nowhere.
    Forbidden,
    /// To nobody in particular.
    Ignored,
}

/// Where a packet belongs.
fn classify<'a>(settings: &Settings, table: &'a ServiceTable, tuple: &Tuple) -> Class<'a> {
    let (ip, port) = tuple.destination;
    if ip == settings.dns_ip && port == 53 {
        return Class::Dns;
    }
    if ip == settings.api_service_ip && port == 443 && tuple.protocol == Protocol::Tcp {
        return Class::Api;
    }
    if ip == settings.node_ip {
        if settings.serves_api && port == settings.api_address.port() && tuple.protocol == Protocol::Tcp {
            return Class::Api;
        }
        let service = table.by_node_port.get(&(port, tuple.protocol)).filter(|_| NODE_PORTS.contains(&port));
        return service.map_or(Class::Node, |service| Class::Service(service, outside(settings, tuple.source.0)));
    }
    if let Some(service) = table.by_address.get(&(ip, port, tuple.protocol)) {
        return Class::Service(service, Way::Inside);
    }
    if let Some(external) = table.by_external_address.get(&(ip, port, tuple.protocol)) {
        if external.balanced && !external.port.admits(tuple.source.0) {
            return Class::Ignored;
        }
        return Class::Service(&external.port, outside(settings, tuple.source.0));
    }
    if Some(ip) == settings.host_gateway {
        return Class::Outside(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    by_address(settings, table, ip)
}

/// How a client comes that uses an address which is open to the world.
fn outside(settings: &Settings, client: Ipv4Addr) -> Way {
    let from_here = client == settings.node_ip || settings.pod_cidr.contains(&client);
    if from_here { Way::OutsideFromHere } else { Way::Outside }
}

/// Where an address belongs when no port decides.
fn by_address<'a>(settings: &Settings, table: &ServiceTable, ip: Ipv4Addr) -> Class<'a> {
    if ip == settings.node_ip {
        Class::Node
    } else if settings.cluster_cidr.contains(&ip) || settings.node_cidr.contains(&ip) {
        Class::Pod
    } else if settings.service_cidr.contains(&ip) || table.addresses.contains(&ip) {
        Class::NoSuchPort
    } else if ip.is_multicast() || ip.is_broadcast() {
        Class::Ignored
    } else if ip.is_loopback() || ip.octets()[0] == 0 || ip.octets()[0] >= 240 {
        Class::Forbidden
    } else {
        Class::Outside(IpAddr::V4(ip))
    }
}

impl Engine {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        let mut buffer = vec![0; VNET_HEADER + (1 << 16)];
        loop {
            let timeout = match self.egress.next_deadline() {
                None => EpollTimeout::NONE,
                Some(at) => {
                    let micros = at.total_micros().saturating_sub(self.clock.now().total_micros()).max(0) as u64;
                    EpollTimeout::try_from(micros.div_ceil(1000).min(i32::MAX as u64) as i32)
                        .unwrap_or(EpollTimeout::MAX)
                }
            };
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "the packet engine stops");
                    return;
                }
            };
            self.now = self.clock.now();
            for event in &events[..count] {
                match event.data() {
                    TUN => {
                        if let Err(error) = self.read_packets(&mut buffer) {
                            tracing::error!(%error, "the TUN device is gone, the packet engine stops");
                            return;
                        }
                    }
                    WAKE => {
                        let _ = self.wake.read();
                        if !self.run_commands() {
                            return;
                        }
                    }
                    token => {
                        let io = Io { tun: &self.tun, epoll: &self.epoll, now: self.now };
                        self.egress.event(token, event.events(), &io);
                    }
                }
            }
            self.egress.run_deadlines(&Io { tun: &self.tun, epoll: &self.epoll, now: self.now });
            self.counts.connections.store(self.conntrack.len(), Ordering::Relaxed);
            self.counts.egress.store(self.egress.len(), Ordering::Relaxed);
        }
    }

    /// False: the engine ends.
    fn run_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Table(table) => {
                    self.conntrack.retain(|name, port, protocol, backend| {
                        let ports = table.services.get(name).map(|service| &service.ports);
                        let port = ports.into_iter().flatten().find(|p| p.port == port && p.protocol == protocol);
                        port.is_some_and(|port| {
                            [&port.backends, &port.external_backends, &port.cluster_backends]
                                .iter()
                                .any(|backends| backends.contains(&backend))
                        })
                    });
                    self.table = table;
                    if !self.reading {
                        if let Err(error) = self.tun.watch(&self.epoll, TUN) {
                            tracing::error!(%error, "the TUN device cannot be watched");
                            return false;
                        }
                        self.reading = true;
                    }
                }
                Command::Forget(ip) => {
                    self.conntrack.forget(ip);
                    self.egress.forget(ip);
                }
                Command::Datagram { source, destination, payload } => {
                    packet::datagram(source, destination, &payload).iter().for_each(|packet| self.tun.send(packet));
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn read_packets(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..BURST {
            match self.tun.read(buffer)? {
                Some(length) => self.packet(&mut buffer[..length]),
                None => break,
            }
        }
        Ok(())
    }

    fn packet(&mut self, framed: &mut [u8]) {
        let Some(vnet) = VnetHeader::parse(framed) else { return };
        let now = u64::try_from(self.now.total_millis()).unwrap_or(0);
        match packet::parse(&framed[VNET_HEADER..]) {
            None => {}
            Some(Parsed::Transport(tuple, flags, start)) => match self.conntrack.known(&tuple, flags, now) {
                Some(verdict) => self.carry_out(verdict, framed, &vnet, &tuple, start),
                None => self.first_packet(framed, &vnet, &tuple, flags, start, now),
            },
            Some(Parsed::Icmp { source, destination, start }) => self.icmp(framed, source, destination, start),
            Some(Parsed::Other { destination, .. }) => match by_address(&self.settings, &self.table, destination) {
                Class::Pod | Class::Node => self.tun.write(framed),
                Class::Ignored => {}
                _ => self.answer(packet::unreachable(&framed[VNET_HEADER..], Unreachable::Host)),
            },
        }
    }

    fn first_packet(
        &mut self,
        framed: &mut [u8],
        vnet: &VnetHeader,
        tuple: &Tuple,
        flags: TcpFlags,
        start: usize,
        now: u64,
    ) {
        let io = Io { tun: &self.tun, epoll: &self.epoll, now: self.now };
        if self.egress.packet(tuple, &framed[VNET_HEADER..], start, vnet, &io) {
            return;
        }
        let packet = &framed[VNET_HEADER..];
        let verdict = match classify(&self.settings, &self.table, tuple) {
            Class::Service(port, way) => self.conntrack.open(tuple, flags, Target::Service(port, way), now),
            Class::Pod => {
                let adopted = if flags.in_midst { self.adopt(tuple, now) } else { None };
                adopted.unwrap_or_else(|| self.conntrack.open(tuple, flags, Target::Direct, now))
            }
            Class::Node => Verdict::Forward(*tuple),
            Class::NoSuchPort => Verdict::Reject,
            Class::Ignored => Verdict::Drop,
            Class::Forbidden => return self.answer(packet::unreachable(packet, Unreachable::Prohibited)),
            Class::Dns if tuple.protocol == Protocol::Udp => {
                let answer = self.settings.dns.query(packet::udp_payload(packet, start), tuple.source);
                let answer = answer.and_then(|a| packet::datagram(tuple.destination, tuple.source, &a));
                return self.answer(answer);
            }
            Class::Dns => {
                if !flags.opens {
                    return self.answer(packet::reset(packet));
                }
                match tcp_flow::local_pair() {
                    Ok((near, far)) => {
                        self.settings.dns.stream(far);
                        self.egress.open_tcp(*tuple, flags, packet, Peer::Local(near), &io);
                    }
                    Err(_) => self.answer(packet::reset(packet)),
                }
                return;
            }
            Class::Api => {
                return self.egress.open_tcp(*tuple, flags, packet, Peer::Host(self.settings.api_address), &io);
            }
            Class::Outside(ip) => {
                let peer = SocketAddr::new(ip, tuple.destination.1);
                return match tuple.protocol {
                    Protocol::Tcp => self.egress.open_tcp(*tuple, flags, packet, Peer::Host(peer), &io),
                    Protocol::Udp => self.egress.open_udp(*tuple, packet, start, vnet, peer, &io),
                };
            }
        };
        self.carry_out(verdict, framed, vnet, tuple, start);
    }

    /// A packet from the midst of an unknown connection may come from the backend of a Service, if its client is of this node:
    /// others' are translated there.
    fn adopt(&mut self, tuple: &Tuple, now: u64) -> Option<Verdict> {
        let client = tuple.destination.0;
        if !self.settings.pod_cidr.contains(&client) && client != self.settings.node_ip {
            return None;
        }
        let (ip, port) = tuple.source;
        let services = self.table.by_endpoint.get(&ip)?.iter().filter_map(|name| self.table.services.get(name));
        let candidates =
            services.flat_map(|s| s.ports.iter().flat_map(|p| s.cluster_ips.iter().map(move |vip| (*vip, p))));
        let conntrack = &mut self.conntrack;
        candidates
            .filter(|(_, p)| p.protocol == tuple.protocol && p.backends.iter().any(|b| (b.ip, b.port) == (ip, port)))
            .find_map(|(vip, p)| conntrack.adopt(tuple, (vip, p.port), p, now))
    }

    fn carry_out(&self, verdict: Verdict, framed: &mut [u8], vnet: &VnetHeader, tuple: &Tuple, start: usize) {
        match verdict {
            Verdict::Forward(to) => {
                if to != *tuple {
                    packet::translate(&mut framed[VNET_HEADER..], vnet, tuple, &to, start);
                }
                self.tun.write(framed);
            }
            Verdict::Reject => {
                let packet = &framed[VNET_HEADER..];
                self.answer(match tuple.protocol {
                    Protocol::Tcp => packet::reset(packet),
                    Protocol::Udp => packet::unreachable(packet, Unreachable::Port),
                });
            }
            Verdict::Drop => {}
        }
    }

    fn icmp(&mut self, framed: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr, start: usize) {
        let packet = &mut framed[VNET_HEADER..];
        if let Some((quoted, ..)) = packet::quoted_tuple(packet, start) {
            if let Some(original) = self.conntrack.quoted(&quoted) {
                // The one who sent the quoted packet knows another peer; an error of that peer itself comes from there.
                let from = if source == quoted.destination.0 { original.destination.0 } else { source };
                if original != quoted && packet::translate_icmp_error(packet, start, from, &original) {
                    return self.tun.send(packet);
                }
            }
        }
        let owned = [self.settings.dns_ip, self.settings.api_service_ip].contains(&destination);
        match by_address(&self.settings, &self.table, destination) {
            Class::Pod | Class::Node => self.tun.write(framed),
            Class::Ignored => {}
            _ if owned => self.answer(packet::echo_reply(packet, start)),
            Class::Outside(_) if packet[start] == 8 => {
                let id = u16::from_be_bytes([packet[start + 4], packet[start + 5]]);
                let asker = ping_flow::Asker { pod: source, id, peer: destination };
                let io = Io { tun: &self.tun, epoll: &self.epoll, now: self.now };
                if !self.egress.ping(asker, &packet[start..], &io) {
                    self.answer(packet::unreachable(packet, Unreachable::Prohibited));
                }
            }
            _ => self.answer(packet::unreachable(packet, Unreachable::Host)),
        }
    }

    fn answer(&self, packet: Option<Vec<u8>>) {
        packet.iter().for_each(|packet| self.tun.send(packet));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::service_table::Objects;
    use serde_json::json;

    struct NoDns;
    impl Dns for NoDns {
        fn query(&self, _: &[u8], _: (Ipv4Addr, u16)) -> Option<Vec<u8>> {
            None
        }
        fn stream(&self, _: UnixStream) {}
    }

    #[test]
    fn every_destination_has_its_class() {
        let settings = Settings {
            node_ip: Ipv4Addr::new(192, 168, 49, 2),
            pod_cidr: "10.244.0.0/24".parse().expect("a network"),
            cluster_cidr: "10.244.0.0/16".parse().expect("a network"),
            node_cidr: "192.168.49.0/24".parse().expect("a network"),
            service_cidr: "10.96.0.0/16".parse().expect("a network"),
            api_service_ip: Ipv4Addr::new(10, 96, 0, 1),
            api_address: SocketAddr::from(([127, 0, 0, 1], 8443)),
            serves_api: true,
            dns_ip: Ipv4Addr::new(10, 96, 0, 10),
            dns: Arc::new(NoDns),
            host_gateway: Some(Ipv4Addr::new(192, 168, 49, 1)),
            seed: 0,
        };
        let mut objects = Objects::new("mini");
        objects.apply_service(Arc::new(
            json!({"metadata": {"namespace": "a", "name": "web"}, "spec": {"type": "NodePort",
            "clusterIP": "10.96.7.7", "externalIPs": ["198.51.100.7"], "ports": [{"port": 80, "nodePort": 30001}]}}),
        ));
        objects.apply_service(Arc::new(
            json!({"metadata": {"namespace": "a", "name": "balanced"}, "spec": {"type": "LoadBalancer",
            "clusterIP": "10.96.7.8", "loadBalancerSourceRanges": ["10.244.0.4/30"], "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "127.78.0.1"}]}}}),
        ));
        let table = objects.snapshot();
        let class = |to: &str, protocol| {
            let destination: std::net::SocketAddrV4 = to.parse().expect("an address");
            let source = (Ipv4Addr::new(10, 244, 0, 5), 1234);
            let destination = (*destination.ip(), destination.port());
            format!("{:?}", classify(&settings, &table, &Tuple { protocol, source, destination }))
                .split('(')
                .next()
                .expect("a first part")
                .to_owned()
        };
        for (to, expected) in [
            ("10.96.0.10:53", "Dns"),
            ("10.96.0.1:443", "Api"),
            ("10.96.0.1:80", "NoSuchPort"),
            ("10.96.7.7:80", "Service"),
            ("10.96.7.7:81", "NoSuchPort"),
            ("192.168.49.2:30001", "Service"),
            ("192.168.49.2:30002", "Node"),
            ("192.168.49.2:8443", "Api"),
            ("10.244.0.9:80", "Pod"),
            ("10.244.3.9:80", "Pod"),
            ("192.168.49.3:30001", "Pod"),
            ("192.168.49.3:8443", "Pod"),
            ("127.0.0.1:22", "Forbidden"),
            ("0.0.0.0:22", "Forbidden"),
            ("255.255.255.255:67", "Ignored"),
            ("224.0.0.251:5353", "Ignored"),
            ("192.0.2.1:443", "Outside"),
            ("198.51.100.7:80", "Service"),
            ("198.51.100.7:81", "NoSuchPort"),
            ("127.78.0.1:80", "Service"),
            ("127.78.0.1:81", "NoSuchPort"),
            ("127.78.0.2:80", "Forbidden"),
        ] {
            assert_eq!(class(to, Protocol::Tcp), expected, "{to}");
        }
        let tuple = Tuple {
            protocol: Protocol::Tcp,
            source: (Ipv4Addr::new(10, 244, 0, 5), 1),
            destination: (Ipv4Addr::new(192, 168, 49, 1), 8080),
        };
        assert_eq!(classify(&settings, &table, &tuple), Class::Outside(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let balanced = |source| Tuple { source, destination: (Ipv4Addr::new(127, 78, 0, 1), 80), ..tuple };
        let class = classify(&settings, &table, &balanced((Ipv4Addr::new(10, 244, 0, 5), 1)));
        assert!(matches!(class, Class::Service(_, Way::OutsideFromHere)), "{class:?}");
        let class = classify(&settings, &table, &balanced((Ipv4Addr::new(10, 244, 0, 9), 1)));
        assert_eq!(class, Class::Ignored, "not of the source ranges");
    }
}
