//! Listeners on the host: NodePorts and hostPorts on the profile's loopback address, LoadBalancer ports on the Service's own.
//!
//! The second leg of a connection is a kernel socket inside the node's namespace. Its source is the node's address, or, where
//! Kubernetes keeps the client's (`externalTrafficPolicy: Local`, hostPorts), the address that the host has in the cluster.
//! [`wanted`] is pure; [`run`] follows the table and the pods and keeps the listeners equal to it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::load_balancer::{ingress, is_ours};
use super::namespace_thread::NamespaceThread;
use super::service_table::{Backend, ObjectName, Protocol, Service, ServicePort, ServiceTable};
use crate::api::meta;
use crate::client::cache::{Cache, Change, Key};
use crate::client::recorder::{self, EventType, Recorder};
use crate::client::typed::{Meta, Object};

/// Bytes of buffer per direction and connection.
const BUFFER: usize = 64 << 10;
/// How many backends are tried for one connection.
const ATTEMPTS: usize = 3;
/// How long a backend may take to accept.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a UDP conversation lasts after its last answer.
const UDP_SILENCE: Duration = Duration::from_secs(120);
/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;
/// Clients with affinity that are remembered before those whose time is over are looked for.
const MANY_CLIENTS: usize = 1024;
/// What is added to a port that an ordinary user may not listen on: 80 answers on 8080, 443 on 8443.
const UNPRIVILEGED: u16 = 8000;

/// Where a listener is.
pub type Place = (SocketAddrV4, Protocol);

/// Where a listener's connections go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// To a backend of a port of a Service.
    Service(ObjectName, u16, Protocol),
    /// The same, by way of the load balancer.
    Balanced(ObjectName, u16, Protocol),
    /// To a pod (its name and address).
    Pod(ObjectName, Backend),
}

/// A node as the host sees it.
#[derive(Clone, Debug)]
pub struct Host {
    /// The name of the Node.
    pub node: String,
    /// Its address of the host.
    pub ip: Ipv4Addr,
    /// The address by which the cluster knows the host; `None`: the host is seen as the node.
    pub seen_as: Option<Ipv4Addr>,
    /// Whether it listens for every Service of `type: LoadBalancer`.
    pub balances: bool,
}

/// All listeners that a node shall have. A Service without endpoints has none: connections to it are refused.
///
/// One node listens for load balancers, on behalf of all. With `externalTrafficPolicy: Local` every node with an endpoint does (the
/// kernel spreads connections among listeners of one place): a load balancer leaves out nodes that fail their health check.
pub fn wanted<'a>(
    table: &ServiceTable,
    pods: impl IntoIterator<Item = &'a Arc<Pod>>,
    host: &Host,
) -> BTreeMap<Place, Target> {
    let mut places = BTreeMap::new();
    for pod in pods.into_iter().filter(|pod| is_here(pod, host)) {
        places.extend(host_ports(pod, host.ip));
    }
    for service in table.services.values() {
        for port in &service.ports {
            if let Some(node_port) = port.node_port.filter(|_| !port.external_backends.is_empty()) {
                let target = Target::Service(service.name.clone(), port.port, port.protocol);
                places.insert((SocketAddrV4::new(host.ip, node_port), port.protocol), target);
            }
            let answers = (host.balances || port.external_is_local) && !port.external_backends.is_empty();
            let balances = is_ours(service) && answers;
            for ip in ingress(&service.object).filter(|ip| ip.is_loopback() && balances) {
                let target = Target::Balanced(service.name.clone(), port.port, port.protocol);
                places.insert((SocketAddrV4::new(ip, port.port), port.protocol), target);
            }
        }
    }
    places
}

fn is_here(pod: &Pod, host: &Host) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(&*host.node))
}

/// The `hostPort`s of a running pod. A `hostIP` other than a loopback address means the profile's.
fn host_ports(pod: &Pod, host_ip: Ipv4Addr) -> Vec<(Place, Target)> {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return Vec::new() };
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let Some(ip) = status.pod_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok()) else { return Vec::new() };
    if over || spec.host_network == Some(true) {
        return Vec::new();
    }
    let name = (pod.namespace().to_owned(), pod.name().to_owned());
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let listener = |port: &k8s_openapi::api::core::v1::ContainerPort| {
        let on_host = u16::try_from(port.host_port?).ok().filter(|p| *p != 0)?;
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(_) => return None,
        };
        let wish = port.host_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
        let address = wish.filter(Ipv4Addr::is_loopback).unwrap_or(host_ip);
        let backend = Backend { ip, port: u16::try_from(port.container_port).ok()? };
        Some(((SocketAddrV4::new(address, on_host), protocol), Target::Pod(name.clone(), backend)))
    };
    ports.filter_map(listener).collect()
}

/// A reference to a Service for events.
pub(super) fn reference(service: &Service) -> ObjectReference {
    let text = |text: &str| Some(text.to_owned());
    ObjectReference {
        api_version: text("v1"),
        kind: text("Service"),
        namespace: text(&service.name.0),
        name: text(&service.name.1),
        uid: text(&service.uid),
        resource_version: text(meta::resource_version(&service.object)),
        field_path: None,
    }
}

/// What listeners share.
#[derive(Clone)]
struct Shared {
    table: watch::Receiver<Arc<ServiceTable>>,
    node: NamespaceThread,
    seen_as: Option<Ipv4Addr>,
    turn: Arc<AtomicUsize>,
    affinity: Arc<Mutex<Affinity>>,
}

/// Where a new conversation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    backend: Backend,
    /// The source; `None`: the node.
    source: Option<Ipv4Addr>,
}

/// Which backend each client of a port with `sessionAffinity: ClientIP` has, and until when.
#[derive(Debug, Default)]
struct Affinity(HashMap<(ObjectName, u16, Protocol, Ipv4Addr), (Backend, Instant)>);

impl Affinity {
    /// The backend of a client: its last one for a while, unless that is gone or has just failed (`again`).
    fn pick(
        &mut self,
        port: &ServicePort,
        client: Ipv4Addr,
        timeout: Duration,
        (again, now): (bool, Instant),
        other: impl FnOnce() -> Option<Backend>,
    ) -> Option<Backend> {
        let key = (port.service.clone(), port.port, port.protocol, client);
        let kept = self.0.get(&key).filter(|(kept, until)| *until > now && port.external_backends.contains(kept));
        let backend = match kept {
            Some((kept, _)) if !again => *kept,
            _ => other()?,
        };
        if self.0.len() >= MANY_CLIENTS {
            self.0.retain(|_, (_, until)| *until > now);
        }
        self.0.insert(key, (backend, now + timeout));
        Some(backend)
    }
}

/// A place whose listener runs, or could not be opened.
enum State {
    Open {
        target: Target,
        task: AbortOnDropHandle<()>,
    },
    /// Retried when its owner changes.
    Failed {
        target: Target,
        version: String,
    },
}

/// What [`run`] works with.
pub struct HostPorts {
    /// The Services.
    pub table: watch::Receiver<Arc<ServiceTable>>,
    /// The pods.
    pub pods: Cache<Pod>,
    /// Sockets inside the node's namespace.
    pub node: NamespaceThread,
    /// Tells what cannot be opened.
    pub recorder: Recorder,
    /// The node as the host sees it.
    pub host: Host,
}

/// The pods of this node that have ports on the host.
struct Wanting {
    changes: UnboundedReceiver<Change<Pod>>,
    pods: BTreeMap<Key, Arc<Pod>>,
}

impl Wanting {
    /// Takes a change. Returns whether it concerns such a pod.
    fn apply(&mut self, change: &Change<Pod>, host: &Host) -> bool {
        let key = Key::of(&**change.object());
        let wants = |pod: &&Arc<Pod>| is_here(pod, host) && !host_ports(pod, host.ip).is_empty();
        match change.new.as_ref().filter(wants) {
            Some(pod) => {
                self.pods.insert(key, pod.clone());
                true
            }
            None => self.pods.remove(&key).is_some(),
        }
    }

    /// Takes what has happened up to now.
    fn catch_up(&mut self, host: &Host) {
        while let Ok(change) = self.changes.try_recv() {
            self.apply(&change, host);
        }
    }

    /// Waits for a change that matters. Returns whether there can be more.
    async fn changed(&mut self, host: &Host) -> bool {
        while let Some(change) = self.changes.recv().await {
            if self.apply(&change, host) {
                return true;
            }
        }
        false
    }
}

/// Runs until it is dropped; the listeners close with it.
pub async fn run(from: HostPorts) {
    let HostPorts { mut table, pods, node, recorder, host } = from;
    let seen_as = host.seen_as;
    let shared = Shared { table: table.clone(), node, seen_as, turn: Arc::default(), affinity: Arc::default() };
    let mut pods = Wanting { changes: pods.changes(), pods: BTreeMap::new() };
    let mut states: BTreeMap<Place, State> = BTreeMap::new();
    loop {
        let snapshot = table.borrow_and_update().clone();
        pods.catch_up(&host);
        let wanted = wanted(&snapshot, pods.pods.values(), &host);
        let old = states.extract_if(.., |place, state| match state {
            State::Open { target, .. } => wanted.get(place) != Some(target),
            State::Failed { target, version } => {
                wanted.get(place) != Some(target) || *version != owner_version(target, &snapshot, &pods.pods)
            }
        });
        for (_, state) in old.collect::<Vec<_>>() {
            if let State::Open { task, .. } = state {
                // The port may be wanted again at once: wait until it is closed.
                task.abort();
                let _ = task.await;
            }
        }
        for (place, target) in wanted {
            if states.contains_key(&place) {
                continue;
            }
            let version = owner_version(&target, &snapshot, &pods.pods);
            let state = match listen(place, matches!(target, Target::Balanced(..))) {
                Ok(listener) => {
                    if listener.place != place {
                        tell(
                            &recorder,
                            &target,
                            &snapshot,
                            &pods.pods,
                            EventType::Normal,
                            "HostPortMoved",
                            &moved(place, listener.place),
                        );
                    }
                    let task = tokio::spawn(listener.serve(target.clone(), shared.clone()));
                    let task = AbortOnDropHandle::new(task);
                    State::Open { target, task }
                }
                Err(error) => {
                    let message =
                        format!("Port {}/{} cannot be opened on the host: {error}", place.0, place.1.as_str());
                    tell(
                        &recorder,
                        &target,
                        &snapshot,
                        &pods.pods,
                        EventType::Warning,
                        "HostPortUnavailable",
                        &message,
                    );
                    State::Failed { target, version }
                }
            };
            states.insert(place, state);
        }
        tokio::select! {
            changed = table.changed() => if changed.is_err() { return },
            open = pods.changed(&host) => if !open { return },
        }
    }
}

fn moved(from: Place, to: Place) -> String {
    format!(
        "Port {} of the host needs net.ipv4.ip_unprivileged_port_start={} or lower; {} answers instead",
        from.0.port(),
        from.0.port(),
        to.0
    )
}

/// Changes whenever the owner of a listener does.
fn owner_version(target: &Target, table: &ServiceTable, pods: &BTreeMap<Key, Arc<Pod>>) -> String {
    match target {
        Target::Service(name, ..) | Target::Balanced(name, ..) => {
            table.services.get(name).map(|s| meta::resource_version(&s.object).to_owned()).unwrap_or_default()
        }
        Target::Pod(name, _) => {
            let pod = pods.get(&Key::new(&name.0, &name.1));
            pod.and_then(|p| p.meta().resource_version.clone()).unwrap_or_default()
        }
    }
}

fn tell(
    recorder: &Recorder,
    target: &Target,
    table: &ServiceTable,
    pods: &BTreeMap<Key, Arc<Pod>>,
    kind: EventType,
    reason: &str,
    message: &str,
) {
    tracing::warn!("{message}");
    let about = match target {
        Target::Service(name, ..) | Target::Balanced(name, ..) => {
            table.services.get(name).map(|service| reference(service))
        }
        Target::Pod(name, _) => {
            let pod = pods.get(&Key::new(&name.0, &name.1));
            pod.map(|pod| recorder::reference(&**pod))
        }
    };
    if let Some(about) = about {
        recorder.about(about, kind, reason, message);
    }
}

/// An open socket at its place.
struct Listener {
    place: Place,
    socket: Socket,
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Opens the place, or, when that takes a privilege, its unprivileged counterpart. `shared`: other nodes may listen there too.
fn listen(place: Place, shared: bool) -> io::Result<Listener> {
    let (address, protocol) = place;
    match open(place, shared) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && address.port() < 1024 => {
            let port = address.port().saturating_add(UNPRIVILEGED);
            open((SocketAddrV4::new(*address.ip(), port), protocol), shared)
        }
        result => result,
    }
}

fn open(place: Place, shared: bool) -> io::Result<Listener> {
    let address = SocketAddr::V4(place.0);
    let socket = match place.1 {
        Protocol::Tcp => {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.set_reuseport(shared)?;
            socket.bind(address)?;
            Socket::Tcp(socket.listen(BACKLOG)?)
        }
        Protocol::Udp => Socket::Udp(udp(address, shared)?),
    };
    Ok(Listener { place, socket })
}

fn udp(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::ReusePort, &shared)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    UdpSocket::from_std(socket.into())
}

impl Listener {
    async fn serve(self, target: Target, shared: Shared) {
        match self.socket {
            Socket::Tcp(listener) => serve_tcp(listener, target, shared).await,
            Socket::Udp(socket) => serve_udp(socket, target, shared).await,
        }
    }
}

async fn serve_tcp(listener: TcpListener, target: Target, shared: Shared) {
    loop {
        match listener.accept().await {
            Ok((client, peer)) => {
                // Connections outlive their listener, as they outlive a rule of kube-proxy.
                tokio::spawn(relay(client, peer, target.clone(), shared.clone()));
            }
            // Out of descriptors: the next connection has to wait until some are free.
            Err(error) => {
                tracing::warn!(%error, "a connection to the host cannot be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn relay(mut client: TcpStream, peer: SocketAddr, target: Target, shared: Shared) {
    let _ = client.set_nodelay(true);
    for attempt in 0..ATTEMPTS {
        let Some(Choice { backend, source }) = shared.pick(&target, peer, attempt) else { break };
        match tokio::time::timeout(PATIENCE, shared.node.connect_as(source, backend.ip, backend.port)).await {
            Ok(Ok(mut upstream)) => {
                // Either side's failure ends the other.
                let _ = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await;
                return;
            }
            Ok(Err(error)) => tracing::debug!(?backend, %error, "a backend refuses a connection"),
            Err(_) => tracing::debug!(?backend, "a backend does not accept a connection"),
        }
    }
    // Nobody serves: a reset, not an orderly end.
    let _ = setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}

impl Shared {
    /// A backend for a new conversation: by turns, or the client's own with `sessionAffinity: ClientIP`.
    fn pick(&self, target: &Target, peer: SocketAddr, attempt: usize) -> Option<Choice> {
        let SocketAddr::V4(peer) = peer else { return None };
        let port = match target {
            Target::Pod(_, backend) => return Some(Choice { backend: *backend, source: self.seen_as }),
            Target::Service(name, port, protocol) | Target::Balanced(name, port, protocol) => {
                find_port(&self.table.borrow(), name, *port, *protocol)?
            }
        };
        let admits = |client: Option<Ipv4Addr>| client.is_some_and(|client| port.admits(client));
        if matches!(target, Target::Balanced(..)) && !admits(Some(*peer.ip())) && !admits(self.seen_as) {
            return None;
        }
        let by_turns = || {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            port.external_backends.get(turn % port.external_backends.len().max(1)).copied()
        };
        let backend = match port.affinity {
            None => by_turns()?,
            Some(timeout) => {
                let mut affinity = self.affinity.lock().expect("no panic while it is held");
                affinity.pick(&port, *peer.ip(), timeout, (attempt > 0, Instant::now()), by_turns)?
            }
        };
        Some(Choice { backend, source: self.seen_as.filter(|_| port.external_is_local) })
    }

    /// Whether a conversation with the backend may go on.
    fn is_current(&self, target: &Target, backend: Backend) -> bool {
        match target {
            Target::Pod(_, pod) => *pod == backend,
            Target::Service(name, port, protocol) | Target::Balanced(name, port, protocol) => {
                let port = find_port(&self.table.borrow(), name, *port, *protocol);
                port.is_some_and(|port| port.external_backends.contains(&backend))
            }
        }
    }
}

fn find_port(table: &ServiceTable, name: &ObjectName, port: u16, protocol: Protocol) -> Option<Arc<ServicePort>> {
    let service = table.services.get(name)?;
    service.ports.iter().find(|p| p.port == port && p.protocol == protocol).cloned()
}

/// A UDP conversation of one client.
struct Conversation {
    backend: Backend,
    upstream: Arc<UdpSocket>,
    answers: AbortHandle,
}

async fn serve_udp(socket: UdpSocket, target: Target, shared: Shared) {
    let socket = Arc::new(socket);
    let mut conversations: HashMap<SocketAddr, Conversation> = HashMap::new();
    let mut tasks: JoinSet<SocketAddr> = JoinSet::new();
    let mut buffer = vec![0; 65_535];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(ended) = tasks.join_next() => {
                // An aborted one was replaced already.
                if let Ok(client) = ended {
                    conversations.remove(&client);
                }
                continue;
            }
        };
        // An error is an ICMP message about an earlier answer.
        let Ok((length, client)) = received else { continue };
        let known = conversations.get(&client).filter(|c| shared.is_current(&target, c.backend));
        let upstream = match known {
            Some(conversation) => conversation.upstream.clone(),
            None => {
                let Some(Choice { backend, source }) = shared.pick(&target, client, 0) else { continue };
                let upstream = shared.node.connect_udp(source, backend.ip, backend.port).await;
                let Ok(upstream) = upstream else { continue };
                let upstream = Arc::new(upstream);
                let answers = tasks.spawn(answer(socket.clone(), upstream.clone(), client));
                let conversation = Conversation { backend, upstream: upstream.clone(), answers };
                if let Some(old) = conversations.insert(client, conversation) {
                    old.answers.abort();
                }
                upstream
            }
        };
        let _ = upstream.send(&buffer[..length]).await;
    }
}

/// Carries answers to the client until they cease; returns the client.
async fn answer(socket: Arc<UdpSocket>, upstream: Arc<UdpSocket>, client: SocketAddr) -> SocketAddr {
    let mut buffer = vec![0; 65_535];
    while let Ok(Ok(length)) = tokio::time::timeout(UDP_SILENCE, upstream.recv(&mut buffer)).await {
        if socket.send_to(&buffer[..length], client).await.is_err() {
            break;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::service_table::{
        Objects,
        tests::{service, slice},
    };
    use serde_json::json;

    const HOST: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);

    fn host(node: &str, balances: bool) -> Host {
        Host { node: node.to_owned(), ip: HOST, seen_as: None, balances }
    }

    #[test]
    fn listeners_follow_services_with_endpoints_and_pods() {
        let mut objects = Objects::new("mini");
        let spec =
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": [{"port": 8080, "nodePort": 30080}]});
        let mut web = (*service("web", spec)).clone();
        web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "127.78.0.1"}, {"ip": "192.0.2.1"}]}});
        objects.apply_service(Arc::new(web));
        assert!(wanted(&objects.snapshot(), &[], &host("mini", true)).is_empty(), "no endpoint, no listener");
        let ports = json!([{"name": "", "port": 80, "protocol": "TCP"}]);
        let endpoints = json!([{"addresses": ["10.244.0.2"], "nodeName": "mini"}]);
        objects.apply_slice(&slice("a", "web", ports, endpoints));
        let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "default", "name": "p"},
            "spec": {"nodeName": "mini", "containers": [{"name": "c", "ports": [{"containerPort": 53, "hostPort": 5353, "protocol": "UDP"},
                {"containerPort": 80}, {"containerPort": 81, "hostPort": 81, "hostIP": "127.0.0.1"}]}]},
            "status": {"phase": "Running", "podIP": "10.244.0.3"}}))
        .expect("a pod");
        let places = |objects: &mut Objects, host: &Host| -> Vec<String> {
            let wanted = wanted(&objects.snapshot(), &[Arc::new(pod.clone())], host);
            wanted.keys().map(|(a, p)| format!("{a}/{}", p.as_str())).collect()
        };
        assert_eq!(places(&mut objects, &host("mini-m02", false)), ["127.77.0.1:30080/TCP"], "another node");
        assert_eq!(
            places(&mut objects, &host("mini", true)),
            ["127.0.0.1:81/TCP", "127.77.0.1:5353/UDP", "127.77.0.1:30080/TCP", "127.78.0.1:8080/TCP"]
        );
        let mut local = (*objects.snapshot().services.values().next().expect("the Service").object).clone();
        local["spec"]["externalTrafficPolicy"] = "Local".into();
        objects.apply_service(Arc::new(local.clone()));
        assert_eq!(places(&mut objects, &host("mini", false)).last().expect("some"), "127.78.0.1:8080/TCP", "its own");
        let mut elsewhere = Objects::new("mini-m02");
        elsewhere.apply_service(Arc::new(local));
        assert!(places(&mut elsewhere, &host("mini-m02", true)).is_empty(), "no endpoint of that node");
        let mut over = pod.clone();
        over.status.as_mut().expect("a status").phase = Some("Succeeded".into());
        assert!(host_ports(&over, HOST).is_empty());
    }

    #[test]
    fn affinity_keeps_a_client_at_its_backend_for_a_while() {
        let mut objects = Objects::new("mini");
        let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.9", "sessionAffinity": "ClientIP",
            "ports": [{"port": 80, "nodePort": 30080}]});
        objects.apply_service(service("web", spec));
        let ports = json!([{"name": "", "port": 80, "protocol": "TCP"}]);
        objects.apply_slice(&slice(
            "a",
            "web",
            ports,
            json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["10.244.0.3"]}]),
        ));
        let port = objects.snapshot().by_node_port[&(30080, Protocol::Tcp)].clone();
        let (mut affinity, start) = (Affinity::default(), Instant::now());
        let mut pick = |client: u8, again: bool, after: u64, other: usize| {
            let client = Ipv4Addr::new(127, 0, 0, client);
            let at = (again, start + Duration::from_secs(after));
            affinity.pick(&port, client, Duration::from_secs(60), at, || port.external_backends.get(other).copied())
        };
        let backend = |n: usize| port.external_backends.get(n).copied();
        assert_eq!(pick(1, false, 0, 0), backend(0));
        assert_eq!(pick(1, false, 59, 1), backend(0));
        assert_eq!(pick(2, false, 59, 1), backend(1), "another client");
        assert_eq!(pick(1, false, 118, 1), backend(0), "the time begins anew with each connection");
        assert_eq!(pick(1, true, 119, 1), backend(1), "the backend did not answer");
        assert_eq!(pick(1, false, 120, 0), backend(1));
        assert_eq!(pick(1, false, 181, 0), backend(0), "too late");
    }
}
