//! Which connections exist and how each is translated: a pure state machine over tuples, with time as a parameter.
//!
//! Direct connections between pods are recorded too: one of them and a translated one may come to the same tuple in the
//! direction from the backend, and then the later one gets another client port on the backend's side.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::packet::{TcpFlags, Tuple};
use crate::net::service_table::{Backend, ObjectName, Protocol, ServicePort, choose};
use crate::net::tun::MASQUERADE_PORTS;

/// Connections that fit; beyond it the longest unused of a sample goes.
const CAPACITY: usize = 131_072;
/// How many entries are looked at per packet to find some that ran out.
const SWEEP: usize = 4;

/// What happens with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on with these addresses and ports (perhaps its own).
    Forward(Tuple),
    /// The service has no endpoint.
    Reject,
    /// No state can be made.
    Drop,
}

/// Where a new connection goes.
pub enum Target<'a> {
    /// To a backend of this port of a Service, reached in this way.
    Service(&'a Arc<ServicePort>, Way),
    /// Where it says.
    Direct,
}

/// How a client reaches a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By its cluster address.
    Inside,
    /// By an address that is open to the world (NodePort, `externalIPs`, load balancer), from another machine or node.
    Outside,
    /// By such an address, but from a pod of this node or the node itself: `externalTrafficPolicy: Local` does not apply.
    OutsideFromHere,
}

#[derive(Debug)]
struct Entry {
    /// As the client sends it.
    original: Tuple,
    /// As the backend sees it.
    translated: Tuple,
    phase: Phase,
    /// Milliseconds; when it may be forgotten.
    expires: u64,
    /// The Service, when it is translated for one.
    service: Option<ServiceId>,
    /// Taken over from an earlier daemon by its backend's packet; the client has not confirmed it yet.
    guessed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Only the client has sent.
    New,
    /// Both have sent.
    Established,
    /// One FIN; the flag tells whether the client sent it.
    HalfClosed { by_client: bool },
    /// Both FINs or a reset.
    Closed,
}

impl Phase {
    /// How long an entry lasts without packets: the defaults of Linux' conntrack, except that an established connection
    /// may be silent for a day.
    fn timeout(self, protocol: Protocol) -> u64 {
        let seconds = match (protocol, self) {
            (Protocol::Tcp, Self::New) => 120,
            (Protocol::Tcp, Self::Established) => 86_400,
            (Protocol::Tcp, Self::HalfClosed { .. }) => 3_600,
            (Protocol::Tcp, Self::Closed) => 10,
            (Protocol::Udp, Self::New) => 30,
            (Protocol::Udp, _) => 120,
        };
        seconds * 1000
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ServiceId {
    name: ObjectName,
    port: u16,
    protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    FromClient,
    FromBackend,
}

/// The connections through the engine.
pub struct Conntrack {
    node_ip: Ipv4Addr,
    tuples: HashMap<Tuple, (usize, Direction)>,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    sweep: usize,
    affinity: HashMap<(ServiceId, Ipv4Addr), (Backend, u64)>,
}

impl Conntrack {
    /// No connections. Connections that a backend must not see under their own source are seen from `node_ip`.
    pub fn new(node_ip: Ipv4Addr) -> Self {
        Self {
            node_ip,
            tuples: HashMap::new(),
            entries: Vec::new(),
            free: Vec::new(),
            sweep: 0,
            affinity: HashMap::new(),
        }
    }

    /// How many connections are known.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether no connection is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The verdict for a packet of a known connection.
    pub fn known(&mut self, tuple: &Tuple, flags: TcpFlags, now: u64) -> Option<Verdict> {
        self.sweep_some(now);
        let (slot, direction) = *self.tuples.get(tuple)?;
        let entry = self.entries[slot].as_mut().expect("a tuple in the map names a live entry");
        let again = flags.opens && direction == Direction::FromClient && entry.phase != Phase::New;
        if entry.expires <= now || (again && entry.phase == Phase::Closed) {
            self.remove(slot);
            return None;
        }
        if entry.guessed && direction == Direction::FromClient {
            if flags.rst {
                return Some(self.correct(slot, now));
            }
            entry.guessed = false;
        }
        entry.phase = entry.phase.after(flags, direction);
        entry.expires = now + entry.phase.timeout(tuple.protocol);
        Some(Verdict::Forward(match direction {
            Direction::FromClient => entry.translated,
            Direction::FromBackend => entry.original.reversed(),
        }))
    }

    /// The verdict for the first packet of a connection that [`Conntrack::known`] does not know.
    pub fn open(&mut self, tuple: &Tuple, flags: TcpFlags, target: Target<'_>, now: u64) -> Verdict {
        let mut translated = *tuple;
        let (mut service, mut masquerade) = (None, false);
        if let Target::Service(port, way) = target {
            let id = ServiceId { name: port.service.clone(), port: port.port, protocol: port.protocol };
            let Some(backend) = self.pick(&id, port, tuple, way, now) else {
                // kube-proxy answers for a Service without endpoints; what its policy keeps from those of other nodes is lost.
                let elsewhere = way == Way::Outside && !port.cluster_backends.is_empty();
                return if elsewhere { Verdict::Drop } else { Verdict::Reject };
            };
            translated.destination = (backend.ip, backend.port);
            service = Some(id);
            // The backend may be at another node, and its answer must come back by this one.
            masquerade = way != Way::Inside && !port.external_is_local;
        }
        // The client's own packets must not come back to it from itself, and the kernel must not answer the node's.
        masquerade |= tuple.source.0 == translated.destination.0 && service.is_some() || tuple.source.0 == self.node_ip;
        if masquerade {
            translated.source.0 = self.node_ip;
        }
        if masquerade || self.tuples.contains_key(&translated.reversed()) {
            let Some(port) = self.free_port(translated) else { return Verdict::Drop };
            translated.source.1 = port;
        }
        if flags.rst {
            return Verdict::Forward(translated);
        }
        let expires = now + Phase::New.timeout(tuple.protocol);
        self.insert(Entry { original: *tuple, translated, phase: Phase::New, expires, service, guessed: false }, now);
        Verdict::Forward(translated)
    }

    /// Takes over a connection of which only the backend's side is seen (`from_backend`): after a restart of the daemon a
    /// server may speak first. It may be one to the Service at `address`, or a direct one; the former is tried, if the
    /// backend is the one that this client would get, and a client that does not know of it says so with a reset.
    pub fn adopt(
        &mut self,
        from_backend: &Tuple,
        address: (Ipv4Addr, u16),
        port: &Arc<ServicePort>,
        now: u64,
    ) -> Option<Verdict> {
        let client = Tuple { protocol: from_backend.protocol, source: from_backend.destination, destination: address };
        if self.tuples.contains_key(&client) || self.tuples.contains_key(from_backend) {
            return None;
        }
        let backend = choose(&port.backends, client.source.0, client.source.1, port.port)?;
        if (backend.ip, backend.port) != from_backend.source || client.source.0 == backend.ip {
            return None;
        }
        let service = ServiceId { name: port.service.clone(), port: port.port, protocol: port.protocol };
        let expires = now + Phase::Established.timeout(client.protocol);
        let translated = from_backend.reversed();
        let entry = Entry {
            original: client,
            translated,
            phase: Phase::Established,
            expires,
            service: Some(service),
            guessed: true,
        };
        self.insert(entry, now);
        Some(Verdict::Forward(client.reversed()))
    }

    /// The client does not know a connection that was guessed: it was a direct one. The backend will repeat itself.
    fn correct(&mut self, slot: usize, now: u64) -> Verdict {
        if let Some(entry) = self.remove(slot) {
            let translated = entry.translated;
            self.insert(Entry { original: translated, translated, service: None, guessed: false, ..entry }, now);
        }
        Verdict::Drop
    }

    /// The tuple that the receiver of an ICMP error knows, from the one that the error quotes: of a packet to a backend,
    /// or of an answer to a client.
    pub fn quoted(&self, quoted: &Tuple) -> Option<Tuple> {
        let (slot, direction) = self.tuples.get(&quoted.reversed())?;
        let entry = self.entries[*slot].as_ref()?;
        Some(match direction {
            Direction::FromBackend => entry.original,
            Direction::FromClient => entry.translated.reversed(),
        })
    }

    /// Forgets UDP connections to backends that are gone (`keep` says no), so that the next packet goes elsewhere; TCP
    /// connections go on as long as the pod answers. Affinity to backends that are gone ends as well.
    pub fn retain(&mut self, keep: impl Fn(&ObjectName, u16, Protocol, Backend) -> bool) {
        for slot in 0..self.entries.len() {
            let Some(Entry { service: Some(id), translated, .. }) = &self.entries[slot] else { continue };
            let backend = Backend { ip: translated.destination.0, port: translated.destination.1 };
            if id.protocol == Protocol::Udp && !keep(&id.name, id.port, id.protocol, backend) {
                self.remove(slot);
            }
        }
        self.affinity.retain(|(id, _), (backend, _)| keep(&id.name, id.port, id.protocol, *backend));
    }

    /// Forgets everything about a pod that was detached.
    pub fn forget(&mut self, ip: Ipv4Addr) {
        for slot in 0..self.entries.len() {
            let Some(entry) = &self.entries[slot] else { continue };
            if [entry.original.source.0, entry.translated.destination.0].contains(&ip) {
                self.remove(slot);
            }
        }
        self.affinity.retain(|(_, client), (backend, _)| *client != ip && backend.ip != ip);
    }

    /// The client addresses that are known, for tests and status.
    pub fn clients(&self) -> HashSet<Ipv4Addr> {
        self.entries.iter().flatten().map(|e| e.original.source.0).collect()
    }

    fn pick(&mut self, id: &ServiceId, port: &ServicePort, tuple: &Tuple, way: Way, now: u64) -> Option<Backend> {
        let backends = match way {
            Way::Inside => &port.backends,
            Way::Outside => &port.external_backends,
            Way::OutsideFromHere => &port.cluster_backends,
        };
        let (client, client_port) = tuple.source;
        let Some(timeout) = port.affinity else { return choose(backends, client, client_port, port.port) };
        let key = (id.clone(), client);
        let kept = self.affinity.get(&key).filter(|(b, until)| *until > now && backends.binary_search(b).is_ok());
        let backend = match kept {
            Some((backend, _)) => *backend,
            None => choose(backends, client, client_port, port.port)?,
        };
        self.affinity.insert(key, (backend, now + millis(timeout)));
        Some(backend)
    }

    /// A port that makes the reversed tuple free.
    fn free_port(&self, translated: Tuple) -> Option<u16> {
        let (first, last) = (*MASQUERADE_PORTS.start(), *MASQUERADE_PORTS.end());
        let count = u32::from(last - first) + 1;
        let start = u32::from(translated.source.1) % count;
        (0..count).map(|n| first + ((start + n) % count) as u16).find(|port| {
            let candidate = Tuple { source: (translated.source.0, *port), ..translated };
            !self.tuples.contains_key(&candidate.reversed())
        })
    }

    fn insert(&mut self, entry: Entry, now: u64) {
        if self.len() >= CAPACITY {
            self.evict(now);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.tuples.insert(entry.original, (slot, Direction::FromClient));
        self.tuples.insert(entry.translated.reversed(), (slot, Direction::FromBackend));
        self.entries[slot] = Some(entry);
    }

    /// Removes the entry that would run out first among the next few hundred.
    fn evict(&mut self, now: u64) {
        let sample = (0..256).map(|n| (self.sweep + n) % self.entries.len());
        let victim = sample.filter_map(|slot| Some((self.entries[slot].as_ref()?.expires, slot))).min();
        self.sweep = (self.sweep + 256) % self.entries.len();
        if let Some((_, slot)) = victim {
            self.remove(slot);
        }
        let _ = now;
    }

    /// Entries run out when packets come by: nothing ticks while nothing flows.
    fn sweep_some(&mut self, now: u64) {
        for _ in 0..SWEEP.min(self.entries.len()) {
            self.sweep = (self.sweep + 1) % self.entries.len();
            if self.entries[self.sweep].as_ref().is_some_and(|e| e.expires <= now) {
                self.remove(self.sweep);
            }
        }
    }

    fn remove(&mut self, slot: usize) -> Option<Entry> {
        let entry = self.entries[slot].take()?;
        self.tuples.remove(&entry.original);
        self.tuples.remove(&entry.translated.reversed());
        self.free.push(slot);
        Some(entry)
    }
}

impl Phase {
    fn after(self, flags: TcpFlags, direction: Direction) -> Self {
        let by_client = direction == Direction::FromClient;
        match self {
            _ if flags.rst => Self::Closed,
            Self::HalfClosed { by_client: first } if flags.fin && first != by_client => Self::Closed,
            Self::New | Self::Established if flags.fin => Self::HalfClosed { by_client },
            Self::New if !by_client => Self::Established,
            phase => phase,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 49, 2);
    const VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 3, 4), 80);
    const SYN: TcpFlags = TcpFlags { opens: true, in_midst: false, fin: false, rst: false };
    const NONE: TcpFlags = TcpFlags { opens: false, in_midst: true, fin: false, rst: false };
    const FIN: TcpFlags = TcpFlags { fin: true, ..NONE };

    fn pod(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, 0, n)
    }

    fn port(protocol: Protocol, affinity: Option<u64>, pods: &[u8]) -> Arc<ServicePort> {
        let backends: Vec<Backend> = pods.iter().map(|n| Backend { ip: pod(*n), port: 8080 }).collect();
        Arc::new(ServicePort {
            service: ("default".into(), "web".into()),
            name: String::new(),
            protocol,
            port: 80,
            node_port: None,
            affinity: affinity.map(Duration::from_secs),
            known: BTreeSet::from_iter(backends.clone()),
            external_backends: backends.clone(),
            cluster_backends: backends.clone(),
            external_is_local: false,
            source_ranges: Vec::new(),
            backends,
        })
    }

    fn tcp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Tuple {
        Tuple { protocol: Protocol::Tcp, source, destination }
    }

    fn forward(verdict: Verdict) -> Tuple {
        match verdict {
            Verdict::Forward(tuple) => tuple,
            other => panic!("expected a packet to go on, got {other:?}"),
        }
    }

    #[test]
    fn both_directions_are_translated_and_the_client_is_kept() {
        let mut conntrack = Conntrack::new(NODE);
        let web = port(Protocol::Tcp, None, &[2]);
        let client = tcp((pod(9), 40_000), VIP);
        let there = forward(conntrack.open(&client, SYN, Target::Service(&web, Way::Inside), 0));
        assert_eq!(there, tcp((pod(9), 40_000), (pod(2), 8080)));
        assert_eq!(conntrack.known(&there.reversed(), NONE, 1), Some(Verdict::Forward(client.reversed())));
        assert_eq!(conntrack.known(&client, NONE, 2), Some(Verdict::Forward(there)));
        assert_eq!(conntrack.quoted(&there), Some(client));
    }

    #[test]
    fn no_endpoint_is_a_rejection() {
        let mut conntrack = Conntrack::new(NODE);
        let web = port(Protocol::Tcp, None, &[]);
        let verdict = conntrack.open(&tcp((pod(9), 1), VIP), SYN, Target::Service(&web, Way::Inside), 0);
        assert_eq!((verdict, conntrack.len()), (Verdict::Reject, 0));
    }

    #[test]
    fn a_pod_reaches_itself_through_its_service_as_the_node() {
        let mut conntrack = Conntrack::new(NODE);
        let web = port(Protocol::Tcp, None, &[2]);
        let client = tcp((pod(2), 40_000), VIP);
        let there = forward(conntrack.open(&client, SYN, Target::Service(&web, Way::Inside), 0));
        assert_eq!((there.source.0, there.destination.0), (NODE, pod(2)));
        assert!(MASQUERADE_PORTS.contains(&there.source.1));
        assert_eq!(conntrack.known(&there.reversed(), NONE, 1), Some(Verdict::Forward(client.reversed())));
    }

    #[test]
    fn a_node_port_is_served_as_the_node_unless_its_traffic_policy_is_local() {
        let mut conntrack = Conntrack::new(NODE);
        let mut web = port(Protocol::Tcp, None, &[2]);
        let client = tcp((pod(9), 40_000), (NODE, 30_080));
        let there = forward(conntrack.open(&client, SYN, Target::Service(&web, Way::Outside), 0));
        assert_eq!((there.source.0, there.destination.0), (NODE, pod(2)));
        assert_eq!(conntrack.known(&there.reversed(), NONE, 1), Some(Verdict::Forward(client.reversed())));
        Arc::get_mut(&mut web).expect("the only owner").external_is_local = true;
        let client = tcp((pod(8), 40_000), (NODE, 30_080));
        assert_eq!(forward(conntrack.open(&client, SYN, Target::Service(&web, Way::Outside), 0)).source, client.source);
        Arc::get_mut(&mut web).expect("the only owner").external_backends = Vec::new();
        let client = tcp((pod(7), 40_000), (NODE, 30_080));
        let verdict = conntrack.open(&client, SYN, Target::Service(&web, Way::Outside), 0);
        assert_eq!(verdict, Verdict::Drop, "the endpoint is at another node");
        let there = forward(conntrack.open(&client, SYN, Target::Service(&web, Way::OutsideFromHere), 0));
        assert_eq!((there.source, there.destination.0), (client.source, pod(2)), "a pod of this node reaches it");
    }

    #[test]
    fn a_direct_and_a_translated_connection_with_one_reply_tuple_are_told_apart() {
        let mut conntrack = Conntrack::new(NODE);
        let web = port(Protocol::Tcp, None, &[2]);
        let direct = tcp((pod(9), 40_000), (pod(2), 8080));
        assert_eq!(forward(conntrack.open(&direct, SYN, Target::Direct, 0)), direct);
        let client = tcp((pod(9), 40_000), VIP);
        let there = forward(conntrack.open(&client, SYN, Target::Service(&web, Way::Inside), 0));
        assert_ne!(there.source.1, 40_000);
        assert_eq!(conntrack.known(&there.reversed(), NONE, 1), Some(Verdict::Forward(client.reversed())));
        assert_eq!(conntrack.known(&direct.reversed(), NONE, 1), Some(Verdict::Forward(direct.reversed())));
    }

    #[test]
    fn affinity_lasts_for_its_timeout_and_while_the_backend_is_there() {
        let mut conntrack = Conntrack::new(NODE);
        let web = port(Protocol::Tcp, Some(60), &[2, 3, 4, 5]);
        let mut to = |source_port: u16, web: &Arc<ServicePort>, now| {
            let tuple = tcp((pod(9), source_port), VIP);
            forward(conntrack.open(&tuple, SYN, Target::Service(web, Way::Inside), now)).destination.0
        };
        let first = to(40_000, &web, 0);
        assert!((1..50).all(|n| to(40_000 + n, &web, u64::from(n) * 1000) == first));
        let others: Vec<u8> = [2, 3, 4, 5].into_iter().filter(|n| pod(*n) != first).collect();
        assert_ne!(to(50_000, &port(Protocol::Tcp, Some(60), &others), 50_000), first);
    }

    #[test]
    fn udp_moves_when_its_endpoint_goes_and_tcp_stays() {
        let mut conntrack = Conntrack::new(NODE);
        let client = tcp((pod(9), 40_000), VIP);
        conntrack.open(&client, SYN, Target::Service(&port(Protocol::Tcp, None, &[2]), Way::Inside), 0);
        let datagram = Tuple { protocol: Protocol::Udp, ..client };
        conntrack.open(&datagram, NONE, Target::Service(&port(Protocol::Udp, None, &[2]), Way::Inside), 0);
        conntrack.retain(|_, _, _, _| false);
        assert!(conntrack.known(&client, NONE, 1).is_some());
        assert_eq!(conntrack.known(&datagram, NONE, 1), None);
        conntrack.forget(pod(2));
        assert!(conntrack.is_empty());
    }

    #[test]
    fn closed_connections_are_reopened_and_old_ones_forgotten() {
        let mut conntrack = Conntrack::new(NODE);
        let client = tcp((pod(9), 40_000), VIP);
        let web = port(Protocol::Tcp, None, &[2]);
        let there = forward(conntrack.open(&client, SYN, Target::Service(&web, Way::Inside), 0));
        conntrack.known(&there.reversed(), NONE, 1);
        conntrack.known(&client, FIN, 2);
        conntrack.known(&there.reversed(), FIN, 3);
        assert!(conntrack.known(&client, NONE, 4).is_some(), "the last ACK still passes");
        assert_eq!(conntrack.known(&client, SYN, 5), None, "a new SYN chooses anew");
        conntrack.open(&client, SYN, Target::Service(&web, Way::Inside), 6);
        assert_eq!(conntrack.known(&client, NONE, 200_000), None);
        assert!(conntrack.is_empty());
    }

    #[test]
    fn a_connection_whose_server_speaks_first_after_a_restart_is_found() {
        let mut conntrack = Conntrack::new(NODE);
        let web = port(Protocol::Tcp, None, &[2]);
        let client = tcp((pod(9), 40_000), VIP);
        let from_backend = tcp((pod(2), 8080), (pod(9), 40_000));
        let adopt = |c: &mut Conntrack| c.adopt(&from_backend, VIP, &web, 0);
        assert_eq!(adopt(&mut conntrack), Some(Verdict::Forward(client.reversed())));
        assert_eq!(conntrack.known(&client, NONE, 1), Some(Verdict::Forward(from_backend.reversed())));
        // Confirmed: a reset is now the client's own.
        let reset = TcpFlags { rst: true, ..NONE };
        assert_eq!(conntrack.known(&client, reset, 1), Some(Verdict::Forward(from_backend.reversed())));
        // Not confirmed: it was a direct connection.
        let mut conntrack = Conntrack::new(NODE);
        adopt(&mut conntrack);
        assert_eq!(conntrack.known(&client, reset, 1), Some(Verdict::Drop));
        assert_eq!(conntrack.known(&from_backend, NONE, 2), Some(Verdict::Forward(from_backend)));
        assert_eq!(conntrack.known(&client, NONE, 3), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut conntrack = Conntrack::new(NODE);
        for n in 0..CAPACITY as u32 + 1000 {
            let tuple = tcp((Ipv4Addr::from(n), 1), (pod(2), 80));
            conntrack.open(&tuple, SYN, Target::Direct, 0);
        }
        assert_eq!(conntrack.len(), CAPACITY);
        assert_eq!(conntrack.tuples.len(), 2 * CAPACITY);
    }
}
