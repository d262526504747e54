//! The network with real namespaces, veths and a TUN device. Runs with `MINI_TEST_NODE=1`, as root and as an ordinary
//! user: the test starts itself again inside namespaces of its own, whose "host" has the address 203.0.113.1.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use mini::api::Gvr;
use mini::client::Api;
use mini::client::factory::Factory;
use mini::client::fake::FakeApi;
use mini::config::Config;
use mini::env::Env;
use mini::net::namespace_thread::NamespaceThread;
use mini::net::netlink::{Netlink, Request};
use mini::net::{NetOptions, Network};
use netlink_packet_route::address::AddressScope;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const PATIENCE: Duration = Duration::from_secs(20);

fn wanted() -> bool {
    std::env::var_os("MINI_TEST_NODE").is_some()
}

/// Runs the test `name` of this binary in new user and network namespaces.
fn run_inside(name: &str, uid: Option<u32>) {
    if !wanted() {
        return eprintln!("skipped: set MINI_TEST_NODE=1");
    }
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--net", "--mount"])
        .arg(std::env::current_exe().expect("this binary has a path"));
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]).env("MINI_TEST_INSIDE", "1");
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    let status = command.status().expect("unshare is installed");
    assert!(status.success(), "{name} failed inside the namespaces");
}

#[test]
fn the_network_works() {
    run_inside("inside::everything", None);
}

#[test]
fn the_network_works_for_an_ordinary_user() {
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc_geteuid() } == 0;
    if root {
        run_inside("inside::everything", Some(65534));
    }
}

#[test]
fn without_a_tun_device_pods_reach_each_other() {
    run_inside("inside::degraded", None);
}

#[test]
#[ignore = "a measurement: MINI_TEST_NODE=1 cargo test --test net -- --ignored throughput --nocapture"]
fn throughput() {
    if std::env::var_os("MINI_TEST_INSIDE").is_none() {
        run_inside("inside::measure", None);
    }
}

unsafe extern "C" {
    #[link_name = "geteuid"]
    fn libc_geteuid() -> u32;
}

/// A new network namespace that lives as long as its descriptor.
fn new_namespace() -> OwnedFd {
    let made = std::thread::spawn(|| -> io::Result<OwnedFd> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
    });
    made.join().expect("no panic").expect("namespaces may be made inside the user namespace")
}

struct Pod {
    uid: String,
    ip: Ipv4Addr,
    thread: NamespaceThread,
    namespace: OwnedFd,
}

impl Pod {
    async fn new(network: &Network, uid: &str) -> Self {
        let namespace = new_namespace();
        let path = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
        let ip = network.attach(uid, &path).await.expect("a pod can be attached");
        let again = network.attach(uid, &path).await.expect("a pod can be attached twice");
        assert_eq!(ip, again);
        let thread = NamespaceThread::start(uid, namespace.try_clone().expect("a descriptor")).expect("a thread");
        Self { uid: uid.to_owned(), ip, thread, namespace }
    }

    async fn listen(&self, port: u16) -> TcpListener {
        let listener = self.thread.run(move || StdListener::bind((Ipv4Addr::UNSPECIFIED, port))).await;
        let listener = listener.expect("the thread lives").expect("the port is free");
        listener.set_nonblocking(true).expect("a socket");
        TcpListener::from_std(listener).expect("a socket")
    }

    async fn udp(&self, port: u16) -> UdpSocket {
        let socket = self.thread.run(move || std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).await;
        let socket = socket.expect("the thread lives").expect("the port is free");
        socket.set_nonblocking(true).expect("a socket");
        UdpSocket::from_std(socket).expect("a socket")
    }

    async fn connect(&self, ip: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
        tokio::time::timeout(PATIENCE, self.thread.connect(ip, port)).await.expect("an answer within the patience")
    }
}

/// Says who called, then echoes.
fn serve(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            tokio::spawn(async move {
                let SocketAddr::V4(peer) = peer else { return };
                if stream.write_all(&peer.ip().octets()).await.is_err() {
                    return;
                }
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
}

/// Sends `length` bytes, gets them back, and returns whom the server saw.
async fn echo(mut stream: TcpStream, length: usize) -> Ipv4Addr {
    let mut peer = [0; 4];
    stream.read_exact(&mut peer).await.expect("the server speaks first");
    let sent: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
    let (mut from, mut to) = stream.into_split();
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        to.write_all(&copy).await.expect("the server takes it");
        to.shutdown().await.expect("the connection is open");
    });
    let mut got = Vec::new();
    tokio::time::timeout(PATIENCE, from.read_to_end(&mut got)).await.expect("in time").expect("the server echoes");
    writer.await.expect("no panic");
    assert!(got == sent, "the echo differs: {} bytes of {length}", got.len());
    Ipv4Addr::from(peer)
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name}, "spec": spec})
}

fn slice(service: &str, protocol: &str, port: u16, pods: &[Ipv4Addr]) -> Value {
    let endpoints: Vec<Value> =
        pods.iter().map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "", "port": port, "protocol": protocol}], "endpoints": endpoints})
}

const SERVICES: Gvr = Gvr::new("", "v1", "services");
const SLICES: Gvr = Gvr::new("discovery.k8s.io", "v1", "endpointslices");
const NAMESPACES: Gvr = Gvr::new("", "v1", "namespaces");

struct Cluster {
    api: Arc<FakeApi>,
    informers: Factory,
    node: OwnedFd,
    config: Config,
}

impl Cluster {
    fn new() -> Self {
        let mut netlink = Netlink::open().expect("netlink");
        let setup = vec![Request::link_up(1), Request::add_address(1, HOST, AddressScope::Universe)];
        netlink.apply(setup).expect("the host of the test");
        let api = FakeApi::new(Env::real());
        let metadata = json!({"name": "default"});
        api.seed(&NAMESPACES, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
        let informers = Factory::new(api.clone());
        Self { api, informers, node: new_namespace(), config: Config::new("mini") }
    }

    async fn start(&self) -> Arc<Network> {
        let options = NetOptions::new(&self.config, self.node.try_clone().expect("a descriptor"));
        let network = Network::start(options, &self.informers, &Env::real()).await.expect("the network starts");
        assert_eq!(network.status().degraded, None);
        network
    }

    async fn add(&self, network: &Network, name: &str, spec: Value, endpoints: Option<Value>) {
        self.api.seed(&SERVICES, service(name, spec));
        if let Some(endpoints) = endpoints {
            self.api.seed(&SLICES, endpoints);
        }
        let key = ("default".to_owned(), name.to_owned());
        let mut table = network.services();
        let there =
            table.wait_for(|t| t.services.get(&key).is_some_and(|s| s.ports.is_empty() || endpoints_match(s, name)));
        tokio::time::timeout(PATIENCE, there).await.expect("the table follows").expect("the table lives");
    }
}

fn endpoints_match(service: &mini::net::service_table::Service, name: &str) -> bool {
    name.starts_with("empty") || service.ports.iter().all(|p| !p.backends.is_empty())
}

async fn resolve(pod: &Pod, name: &str, tcp: bool) -> Message {
    let mut query = Message::new(77, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    let query = query.to_vec().expect("a message");
    let dns = Ipv4Addr::new(10, 96, 0, 10);
    let mut reply = vec![0; 4096];
    if tcp {
        let mut stream = pod.connect(dns, 53).await.expect("DNS listens on TCP");
        stream.write_u16(query.len() as u16).await.expect("open");
        stream.write_all(&query).await.expect("open");
        let length = stream.read_u16().await.expect("an answer");
        reply.truncate(usize::from(length));
        stream.read_exact(&mut reply).await.expect("a whole answer");
    } else {
        let socket = pod.udp(0).await;
        socket.connect((dns, 53)).await.expect("a socket");
        socket.send(&query).await.expect("a socket");
        let length =
            tokio::time::timeout(PATIENCE, socket.recv(&mut reply)).await.expect("in time").expect("an answer");
        reply.truncate(length);
    }
    Message::from_vec(&reply).expect("a well-formed answer")
}

mod inside {
    use super::*;

    #[test]
    #[ignore = "started by the_network_works in namespaces"]
    fn everything() {
        if std::env::var_os("MINI_TEST_INSIDE").is_none() {
            return;
        }
        mini::telemetry::init("mini=info", None).expect("no file");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(scenario());
    }

    async fn scenario() {
        let mut cluster = Cluster::new();
        let api = TcpListener::bind("127.0.0.1:0").await.expect("loopback is up");
        cluster.config.api_address = api.local_addr().expect("a socket");
        serve(api);
        let network = cluster.start().await;
        let began = Instant::now();
        let (client, server) = (Pod::new(&network, "client").await, Pod::new(&network, "server").await);
        println!("two pods attached twice in {:?}", began.elapsed());
        serve(server.listen(8080).await);

        // Direct, from a pod and from the node.
        assert_eq!(echo(client.connect(server.ip, 8080).await.expect("direct"), 100_000).await, client.ip);
        assert_eq!(
            echo(network.connect(server.ip, 8080).await.expect("from the node"), 100_000).await,
            cluster.config.node_ip
        );

        // ClusterIP: TCP and UDP, the client's address kept; hairpin; from the node.
        let vip = Ipv4Addr::new(10, 96, 1, 1);
        let spec = json!({"type": "NodePort", "clusterIP": vip.to_string(), "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]});
        cluster.add(&network, "web", spec, Some(slice("web", "TCP", 8080, &[server.ip]))).await;
        assert_eq!(echo(client.connect(vip, 80).await.expect("by ClusterIP"), 3_000_000).await, client.ip);
        assert_eq!(echo(server.connect(vip, 80).await.expect("hairpin"), 100_000).await, cluster.config.node_ip);
        assert_eq!(echo(network.connect(vip, 80).await.expect("from the node"), 100_000).await, cluster.config.node_ip);
        // By its NodePort a Service is reached from outside, also by a pod: the node's address stands for the client.
        let node_port = client.connect(cluster.config.node_ip, 30080).await.expect("by NodePort inside");
        assert_eq!(echo(node_port, 100_000).await, cluster.config.node_ip);
        println!("ClusterIP over TCP works");

        let udp_vip = Ipv4Addr::new(10, 96, 1, 2);
        let ports = json!([{"port": 53, "nodePort": 30053, "protocol": "UDP"}]);
        let spec = json!({"type": "NodePort", "clusterIP": udp_vip.to_string(), "ports": ports});
        cluster.add(&network, "udp", spec, Some(slice("udp", "UDP", 5353, &[server.ip]))).await;
        let answering = server.udp(5353).await;
        tokio::spawn(async move {
            let mut buffer = vec![0; 65_535];
            while let Ok((length, SocketAddr::V4(from))) = answering.recv_from(&mut buffer).await {
                let reply = [&from.ip().octets()[..], &buffer[..length]].concat();
                let _ = answering.send_to(&reply, SocketAddr::V4(from)).await;
            }
        });
        let asking = client.udp(0).await;
        asking.connect((udp_vip, 53)).await.expect("a socket");
        for length in [0, 1, 1400, 9000, 60_000] {
            let sent: Vec<u8> = (0..length).map(|n| n as u8).collect();
            asking.send(&sent).await.expect("a datagram");
            let mut reply = vec![0; 65_535];
            let got = tokio::time::timeout(PATIENCE, asking.recv(&mut reply)).await.expect("in time").expect("a reply");
            assert!(reply[..got] == [&client.ip.octets()[..], &sent].concat(), "{length} bytes");
        }
        println!("ClusterIP over UDP works");

        // No endpoints, no such port, no such service, no such pod.
        let empty = Ipv4Addr::new(10, 96, 1, 3);
        let spec = json!({"clusterIP": empty.to_string(), "ports": [{"port": 80, "protocol": "TCP"}]});
        cluster.add(&network, "empty", spec, None).await;
        for (ip, port) in [(empty, 80), (vip, 81), (Ipv4Addr::new(10, 96, 200, 200), 80)] {
            let error = client.connect(ip, port).await.expect_err("nobody serves");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{ip}:{port}");
        }
        let error = client.connect(Ipv4Addr::new(10, 244, 0, 200), 80).await.expect_err("no such pod");
        assert_eq!(error.kind(), io::ErrorKind::HostUnreachable);
        let asking = client.udp(0).await;
        asking.connect((empty, 80)).await.expect("a socket");
        asking.send(b"x").await.expect("a datagram");
        let error = tokio::time::timeout(PATIENCE, asking.recv(&mut [0; 10])).await.expect("in time");
        assert_eq!(error.expect_err("no such UDP port").kind(), io::ErrorKind::ConnectionRefused);
        println!("what nobody serves is refused");

        // DNS over UDP and TCP; a name elsewhere fails quickly with no resolver that answers.
        for tcp in [false, true] {
            let answer = resolve(&client, "web.default.svc.cluster.local.", tcp).await;
            assert_eq!(answer.answers[0].data.to_string(), vip.to_string());
            let answer = resolve(&client, "no.default.svc.cluster.local.", tcp).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        }
        println!("DNS works");

        // The API server by its Service.
        let stream = client.connect(Ipv4Addr::new(10, 96, 0, 1), 443).await.expect("the API by its Service");
        assert_eq!(echo(stream, 300_000).await, Ipv4Addr::LOCALHOST);
        let (node_ip, api_port) = (cluster.config.node_ip, cluster.config.api_address.port());
        let stream = client.connect(node_ip, api_port).await.expect("the API at the node's address");
        assert_eq!(echo(stream, 1000).await, Ipv4Addr::LOCALHOST);
        let stream = network.connect(node_ip, api_port).await.expect("the API from the node");
        assert_eq!(echo(stream, 1000).await, Ipv4Addr::LOCALHOST);

        // Egress: to the host's address, refused where nobody listens, never to loopback.
        let outside = TcpListener::bind((HOST, 7000)).await.expect("the host's address");
        serve(outside);
        assert_eq!(echo(client.connect(HOST, 7000).await.expect("egress"), 3_000_000).await, HOST);
        let error = client.connect(HOST, 7001).await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = client.connect(Ipv4Addr::new(198, 51, 100, 1), 7001).await.expect_err("no route");
        assert!(matches!(error.kind(), io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable), "{error}");
        let answering = UdpSocket::bind((HOST, 7000)).await.expect("the host's address");
        let asking = client.udp(0).await;
        asking.connect((HOST, 7000)).await.expect("a socket");
        asking.send(b"out").await.expect("a datagram");
        let mut buffer = [0; 64];
        let (length, from) = answering.recv_from(&mut buffer).await.expect("egress by UDP");
        answering.send_to(&buffer[..length], from).await.expect("a reply");
        let length = tokio::time::timeout(PATIENCE, asking.recv(&mut buffer)).await.expect("in time").expect("a reply");
        assert_eq!(&buffer[..length], b"out");
        // Echo requests, where the user may send them.
        let allow = || std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0");
        allow().expect("the host of the test is ours");
        let ping = client.thread.run(move || -> io::Result<(usize, [u8; 16])> {
            use nix::sys::socket::{
                AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, connect, recv, send, socket,
            };
            allow()?;
            let ping = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), SockProtocol::Icmp)?;
            connect(ping.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(HOST, 0)))?;
            let flags = nix::sys::socket::MsgFlags::empty();
            send(ping.as_raw_fd(), b"\x08\0\0\0\0\0\0\x07hi", flags)?;
            let mut reply = [0; 16];
            Ok((recv(ping.as_raw_fd(), &mut reply, flags)?, reply))
        });
        let ping = tokio::time::timeout(PATIENCE, ping).await.expect("in time").expect("alive");
        let (length, reply) = ping.expect("a reply");
        assert_eq!((length, reply[0], &reply[6..10]), (10, 0, &b"\0\x07hi"[..]));
        println!("egress works");

        // From the host: NodePort and LoadBalancer on loopback addresses.
        assert_eq!(echo(reached(cluster.config.host_ip, 30080).await, 1_000_000).await, cluster.config.node_ip);
        let asking = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        asking.connect((cluster.config.host_ip, 30053)).await.expect("a socket");
        let mut reply = [0; 64];
        for text in [&b"one"[..], b"two"] {
            asking.send(text).await.expect("the listener is open");
            let got = tokio::time::timeout(PATIENCE, asking.recv(&mut reply)).await.expect("in time").expect("a reply");
            assert_eq!(reply[..got], [&cluster.config.node_ip.octets()[..], text].concat());
        }
        let balanced = Ipv4Addr::new(10, 96, 1, 4);
        let ports = json!([{"name": "a", "port": 8080, "nodePort": 30081, "protocol": "TCP"}, {"name": "b", "port": 80, "nodePort": 30082, "protocol": "TCP"}]);
        let spec = json!({"type": "LoadBalancer", "clusterIP": balanced.to_string(), "ports": ports});
        let mut endpoints = slice("balanced", "TCP", 8080, &[server.ip]);
        endpoints["ports"] =
            json!([{"name": "a", "port": 8080, "protocol": "TCP"}, {"name": "b", "port": 8080, "protocol": "TCP"}]);
        // Somebody else has one of the ports.
        let taken = TcpListener::bind((cluster.config.host_ip, 30082)).await.expect("a free port");
        cluster.add(&network, "balanced", spec, Some(endpoints)).await;
        let address = Ipv4Addr::new(127, 78, 0, 1);
        assert_eq!(echo(reached(address, 8080).await, 1_000_000).await, cluster.config.node_ip);
        let object = cluster.api.get(&SERVICES, "default", "balanced").await.expect("the Service");
        assert_eq!(object["status"]["loadBalancer"]["ingress"], json!([{"ip": "127.78.0.1", "ipMode": "VIP"}]));
        let events = Gvr::new("", "v1", "events");
        let began = Instant::now();
        while !cluster.api.all(&events).iter().any(|e| e["reason"] == "HostPortUnavailable") {
            assert!(
                began.elapsed() < PATIENCE,
                "an event tells of the port that is taken: {:?}",
                cluster.api.all(&events)
            );
            tokio::task::yield_now().await;
        }
        drop(taken);
        println!("NodePort and LoadBalancer work");

        sources(&cluster, &network, &client, &server).await;

        // Many connections at once, by Service and to the outside.
        let began = Instant::now();
        let mut tasks = Vec::new();
        for n in 0..900 {
            let stream = if n % 2 == 0 { client.connect(vip, 80).await } else { client.connect(HOST, 7000).await };
            tasks.push(tokio::spawn(echo(stream.expect("one of many"), 2000)));
        }
        for task in tasks {
            task.await.expect("every connection echoes");
        }
        println!("900 connections in {:?}; {:?}", began.elapsed(), network.status());

        // A new daemon: pods keep their addresses, connections through Services go on.
        let mut kept = client.connect(vip, 80).await.expect("by ClusterIP");
        kept.read_exact(&mut [0; 4]).await.expect("the server speaks first");
        // Somebody who only listens: the server speaks first after the restart.
        let talker = server.listen(9090).await;
        let spec = json!({"clusterIP": "10.96.1.5", "ports": [{"port": 90, "protocol": "TCP"}]});
        cluster.add(&network, "talker", spec, Some(slice("talker", "TCP", 9090, &[server.ip]))).await;
        let mut by_service = client.connect(Ipv4Addr::new(10, 96, 1, 5), 90).await.expect("by ClusterIP");
        let (mut speaker, _) = talker.accept().await.expect("a connection");
        let mut direct = client.connect(server.ip, 9090).await.expect("direct");
        let (mut direct_speaker, _) = talker.accept().await.expect("a connection");
        network.stop().await;
        drop(network);
        let network = cluster.start().await;
        assert_eq!(network.attached(), [("client".to_owned(), client.ip), ("server".to_owned(), server.ip)]);
        let mut table = network.services();
        table
            .wait_for(|t| t.services.len() == 6 && t.services.values().all(|s| endpoints_match(s, &s.name.1)))
            .await
            .expect("the table lives");
        kept.write_all(b"still").await.expect("the connection goes on");
        let mut back = [0; 5];
        tokio::time::timeout(PATIENCE, kept.read_exact(&mut back)).await.expect("in time").expect("goes on");
        assert_eq!(&back, b"still");
        assert_eq!(echo(client.connect(vip, 80).await.expect("by ClusterIP"), 1000).await, client.ip);
        for (speaker, listener) in [(&mut speaker, &mut by_service), (&mut direct_speaker, &mut direct)] {
            speaker.write_all(b"news!").await.expect("the connection goes on");
            tokio::time::timeout(PATIENCE, listener.read_exact(&mut back)).await.expect("in time").expect("goes on");
            assert_eq!(&back, b"news!");
        }
        println!("a restart keeps everything");

        // A pod that goes resets its connections and leaves nothing.
        network.detach(&server.uid).await.expect("a pod can be detached");
        network.detach(&server.uid).await.expect("a pod can be detached twice");
        let node = NamespaceThread::start("look", cluster.node.try_clone().expect("a descriptor")).expect("a thread");
        let links = node.run(|| Netlink::open()?.links()).await.expect("alive").expect("a dump");
        assert_eq!(links.iter().filter(|l| l.name.starts_with("veth")).count(), 1);
        let _ = server.namespace;
        network.stop().await;
    }

    /// Source addresses as the tutorial's chapter "Using Source IP" has them, and what kube-proxy answers beside them.
    async fn sources(cluster: &Cluster, network: &Network, client: &Pod, server: &Pod) {
        let (host_ip, node_ip) = (cluster.config.host_ip, cluster.config.node_ip);
        let (balanced, local) = (Ipv4Addr::new(127, 78, 0, 1), Ipv4Addr::new(127, 78, 0, 2));
        // Addresses of load balancers are loopback addresses of the host, but not of a pod.
        let stream = client.connect(balanced, 8080).await.expect("a pod reaches the load balancer");
        assert_eq!(echo(stream, 1_000_000).await, node_ip);
        let stream = network.connect(balanced, 8080).await.expect("the node reaches it");
        assert_eq!(echo(stream, 1000).await, node_ip);
        let error = client.connect(balanced, 8081).await.expect_err("no such port");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let own = client.thread.run(|| StdListener::bind("127.0.0.1:5555")).await.expect("alive").expect("free");
        client.connect(Ipv4Addr::LOCALHOST, 5555).await.expect("a pod's loopback is its own");
        drop(own);
        let error = server.connect(Ipv4Addr::LOCALHOST, 5555).await.expect_err("and no other's");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);

        // externalTrafficPolicy: Local keeps the client's address: a pod's, or the host's as the cluster knows it.
        let ports = json!([{"port": 8081, "nodePort": 30084, "protocol": "TCP"}]);
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30085,
            "clusterIP": "10.96.1.6", "ports": ports});
        let mut endpoints = slice("local", "TCP", 8080, &[server.ip]);
        endpoints["endpoints"][0]["nodeName"] = cluster.config.first_node().name.into();
        cluster.add(network, "local", spec, Some(endpoints.clone())).await;
        let seen_as = Ipv4Addr::new(192, 168, 49, 1);
        assert_eq!(echo(reached(host_ip, 30084).await, 1_000_000).await, seen_as);
        assert_eq!(echo(reached(local, 8081).await, 1000).await, seen_as);
        assert_eq!(echo(client.connect(node_ip, 30084).await.expect("a NodePort"), 1000).await, client.ip);
        assert_eq!(echo(client.connect(local, 8081).await.expect("a load balancer"), 1000).await, client.ip);

        // On the node, and under its address of the host.
        assert!(ask(reached(host_ip, 30085).await, "/healthz").await.contains("\"localEndpoints\": 1,"));
        let on_node = network.connect(Ipv4Addr::LOCALHOST, 30085).await.expect("a health check");
        assert!(ask(on_node, "/healthz").await.starts_with("HTTP/1.0 200"));
        let on_node = network.connect(Ipv4Addr::LOCALHOST, 10249).await.expect("the proxy's own port");
        assert!(ask(on_node, "/proxyMode").await.ends_with("\r\n\r\nuserspace"));
        let healthy = ask(client.connect(node_ip, 10256).await.expect("for everybody"), "/healthz").await;
        assert!(healthy.starts_with("HTTP/1.0 200") && healthy.contains("\"nodeEligible\": true"), "{healthy}");
        let error = client.connect(node_ip, 10249).await.expect_err("for who is on the node only");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);

        // The endpoint is another node's now.
        endpoints["endpoints"][0]["nodeName"] = "other".into();
        endpoints["metadata"]["name"] = "local-2".into();
        cluster.api.delete(&SLICES, "default", "local-1", &Default::default()).await.expect("deleted");
        cluster.api.seed(&SLICES, endpoints);
        let name = ("default".to_owned(), "local".to_owned());
        let mut table = network.services();
        let moved = table.wait_for(|t| {
            let ports = t.services.get(&name).map(|s| s.ports.clone()).unwrap_or_default();
            ports.iter().any(|p| p.external_backends.is_empty() && !p.backends.is_empty())
        });
        tokio::time::timeout(PATIENCE, moved).await.expect("in time").expect("the table lives");
        assert!(ask(reached(host_ip, 30085).await, "/healthz").await.starts_with("HTTP/1.0 503"));
        let began = Instant::now();
        while TcpStream::connect((host_ip, 30084)).await.is_ok() {
            assert!(began.elapsed() < PATIENCE, "a node without an endpoint does not answer");
            tokio::task::yield_now().await;
        }
        assert_eq!(echo(client.connect(node_ip, 30084).await.expect("for a pod"), 1000).await, client.ip);
        println!("source addresses are as they should be");
    }

    /// A connection to a listener of the host that is about to open.
    async fn reached(ip: Ipv4Addr, port: u16) -> TcpStream {
        let began = Instant::now();
        loop {
            match TcpStream::connect((ip, port)).await {
                Ok(stream) => return stream,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{ip}:{port}: {error}"),
            }
            tokio::task::yield_now().await;
        }
    }

    /// The whole answer to a GET.
    async fn ask(mut stream: TcpStream, path: &str) -> String {
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.expect("open");
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        tokio::time::timeout(PATIENCE, read).await.expect("in time").expect("text");
        text
    }

    #[test]
    #[ignore = "started by without_a_tun_device_pods_reach_each_other in namespaces"]
    fn degraded() {
        if std::env::var_os("MINI_TEST_INSIDE").is_none() {
            return;
        }
        let none: Option<&str> = None;
        nix::mount::mount(Some("/dev/null"), "/dev/net/tun", none, nix::mount::MsFlags::MS_BIND, none)
            .expect("the mount namespace is the test's own");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let cluster = Cluster::new();
            let options = NetOptions::new(&cluster.config, cluster.node.try_clone().expect("a descriptor"));
            let network = Network::start(options, &cluster.informers, &Env::real()).await.expect("it starts all the same");
            let why = network.status().degraded.expect("it says what is missing");
            assert!(why.contains("TUN") && why.contains("DNS"), "{why}");
            let (client, server) = (Pod::new(&network, "client").await, Pod::new(&network, "server").await);
            serve(server.listen(8080).await);
            assert_eq!(echo(client.connect(server.ip, 8080).await.expect("pod to pod"), 100_000).await, client.ip);
            let spec = json!({"type": "NodePort", "clusterIP": "10.96.1.1", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]});
            cluster.add(&network, "web", spec, Some(slice("web", "TCP", 8080, &[server.ip]))).await;
            let began = Instant::now();
            let stream = loop {
                match TcpStream::connect((cluster.config.host_ip, 30080)).await {
                    Ok(stream) => break stream,
                    Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
                }
                tokio::task::yield_now().await;
            };
            echo(stream, 100_000).await;
            network.stop().await;
        });
    }

    #[test]
    #[ignore = "started by throughput in namespaces"]
    fn measure() {
        if std::env::var_os("MINI_TEST_INSIDE").is_none() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.expect("a runtime").block_on(measurement());
    }

    async fn measurement() {
        let mut cluster = Cluster::new();
        cluster.config.api_address = SocketAddr::from(([127, 0, 0, 1], 1));
        let network = cluster.start().await;
        let mut costs = Vec::new();
        for n in 0..50 {
            let namespace = new_namespace();
            let path = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
            let began = Instant::now();
            network.attach(&format!("pod-{n}"), &path).await.expect("attach");
            let attached = began.elapsed();
            let began = Instant::now();
            network.detach(&format!("pod-{n}")).await.expect("detach");
            costs.push((attached, began.elapsed()));
        }
        costs.sort();
        let mut detach: Vec<Duration> = costs.iter().map(|c| c.1).collect();
        detach.sort();
        println!(
            "attach p50 {:?} max {:?}; detach p50 {:?} max {:?}",
            costs[25].0, costs[49].0, detach[25], detach[49]
        );
        let (client, server) = (Pod::new(&network, "client").await, Pod::new(&network, "server").await);
        let vip = Ipv4Addr::new(10, 96, 1, 1);
        let spec = json!({"clusterIP": vip.to_string(), "ports": [{"port": 80, "protocol": "TCP"}]});
        cluster.add(&network, "web", spec, Some(slice("web", "TCP", 8080, &[server.ip]))).await;
        let listener = server.listen(8080).await.into_std().expect("a socket");
        let outside = StdListener::bind((HOST, 7000)).expect("the host's address");
        for listener in [listener, outside] {
            std::thread::spawn(move || sink(&listener));
        }
        let bench = async |what: &str, ip: Ipv4Addr, port: u16, thread: &NamespaceThread| {
            let gbps = stream(thread.connect(ip, port).await.expect("connect"));
            let latency = ping(thread.connect(ip, port).await.expect("connect"));
            println!("{what:12} {gbps:6.2} Gbps  {latency:?} round trip");
            gbps
        };
        let node = network.clone();
        let native = stream(node.connect(server.ip, 8080).await.expect("connect"));
        let latency = ping(node.connect(server.ip, 8080).await.expect("connect"));
        println!("{:12} {native:6.2} Gbps  {latency:?} round trip", "veth");
        let direct = bench("pod to pod", server.ip, 8080, &client.thread).await;
        let service = bench("ClusterIP", vip, 80, &client.thread).await;
        let egress = bench("egress", HOST, 7000, &client.thread).await;
        println!(
            "ratio to veth: pod {:.2}, ClusterIP {:.2}, egress {:.2}",
            direct / native,
            service / native,
            egress / native
        );
        network.stop().await;
    }

    /// Answers a byte `p` with a byte, anything else with nothing.
    fn sink(listener: &StdListener) {
        listener.set_nonblocking(false).expect("a socket");
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                stream.set_nodelay(true).expect("a socket");
                let mut buffer = vec![0; 1 << 18];
                while let Ok(length) = stream.read(&mut buffer) {
                    if length == 0 || (length == 1 && stream.write_all(b"p").is_err()) {
                        return;
                    }
                }
            });
        }
    }

    fn blocking(stream: TcpStream) -> StdStream {
        let stream = stream.into_std().expect("a socket");
        stream.set_nonblocking(false).expect("a socket");
        stream
    }

    fn stream(stream: TcpStream) -> f64 {
        let (mut stream, data) = (blocking(stream), vec![1; 1 << 18]);
        let (began, mut sent) = (Instant::now(), 0_u64);
        while began.elapsed() < Duration::from_secs(3) {
            stream.write_all(&data).expect("the sink drinks");
            sent += data.len() as u64;
        }
        sent as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9
    }

    fn ping(stream: TcpStream) -> Duration {
        let mut stream = blocking(stream);
        let began = Instant::now();
        for _ in 0..5000 {
            stream.write_all(b"p").expect("the sink answers");
            stream.read_exact(&mut [0]).expect("the sink answers");
        }
        began.elapsed() / 5000
    }
}
