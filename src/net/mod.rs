//! The cluster's network: pods on routed veths, a packet engine on one TUN device for Services and egress, DNS.
//!
//! ```text
//! pod eth0 ── veth ── node namespace ── mini0 (TUN) ── engine thread ── host sockets
//!                     kernel routing                   conntrack, egress, dns
//! ```
//!
//! Beside Services the network answers what kube-proxy would (`/proxyMode`, health checks): [`proxy_server`].
//!
//! A worker on the same machine has an engine and a namespace of its own, and one veth to the first node's ([`links`]).
//!
//! The daemon stays in the host's network namespace and owns the node's through the user namespace that it is root of;
//! threads that have entered the node's namespace ([`namespace_thread`]) do what has to be done inside.
//!
//! Decisions are pure: [`service_table`], [`engine::conntrack`], [`engine::packet`], [`dns::answer`]. I/O is in
//! [`netlink`], [`tun`], [`pods`], the engine's loop and its flows.

mod carrier;
pub mod dns;
pub mod engine;
pub mod host_ports;
pub mod links;
pub mod load_balancer;
pub mod namespace_thread;
pub mod netlink;
pub mod pods;
mod proxy_server;
pub mod service_table;
mod tables;
pub mod tun;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::dns::server::DnsServer;
use self::dns::zone::Zone;
use self::engine::EngineHandle;
use self::host_ports::HostPorts;
use self::namespace_thread::NamespaceThread;
use self::netlink::Netlink;
use self::pods::{PodRoutes, Pods};
use self::proxy_server::ProxyServer;
use self::service_table::ServiceTable;
use crate::client::factory::Factory;
use crate::client::recorder::Recorder;
use crate::config::{Config, NodeConfig};
use crate::env::Env;

/// How Services are implemented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// By the engine in this process.
    Smoltcp,
}

impl ProxyMode {
    /// What `/proxyMode` says. The kernel's packet filter has no part in it, so it is neither `iptables` nor `nftables`; unlike the
    /// mode of that name that kube-proxy once had, the engine keeps the source of connections.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Smoltcp => "userspace",
        }
    }
}

/// What a network is made from.
#[derive(Debug)]
pub struct NetOptions {
    /// The name of the node.
    pub node: String,
    /// The node's `InternalIP`.
    pub node_ip: Ipv4Addr,
    /// Pod addresses of this node.
    pub pod_cidr: Ipv4Net,
    /// Pod addresses of all nodes.
    pub cluster_cidr: Ipv4Net,
    /// Addresses of all nodes.
    pub node_cidr: Ipv4Net,
    /// Service addresses.
    pub service_cidr: Ipv4Net,
    /// `kubernetes.default`.
    pub api_service_ip: Ipv4Addr,
    /// `kube-dns.kube-system`.
    pub dns_ip: Ipv4Addr,
    /// The DNS domain.
    pub cluster_domain: String,
    /// Where the API server listens on the host.
    pub api_address: SocketAddr,
    /// Whether the API server is also reached at this node's address.
    pub serves_api: bool,
    /// Where NodePorts answer on the host.
    pub host_ip: Ipv4Addr,
    /// Addresses for `type: LoadBalancer` on the host.
    pub load_balancer_cidr: Ipv4Net,
    /// Whether this node gives those addresses out and listens on them for all.
    pub balances: bool,
    /// Lets pods reach the host's loopback as `host.minikube.internal`. Off by default: it exposes every local service.
    pub host_gateway: bool,
    /// How Services are implemented.
    pub proxy: ProxyMode,
    /// The node's network namespace.
    pub namespace: OwnedFd,
    /// The first node's network namespace, which a worker of the same machine is linked to.
    pub hub: Option<OwnedFd>,
}

impl NetOptions {
    /// The options of a profile's first node, with its network namespace.
    pub fn new(config: &Config, namespace: OwnedFd) -> Self {
        Self::of_node(&config.first_node(), namespace, None)
    }

    /// The options of a node, with its network namespace and (for a worker) the first node's.
    pub fn of_node(config: &NodeConfig, namespace: OwnedFd, hub: Option<OwnedFd>) -> Self {
        let networking = &config.networking;
        Self {
            node: config.name.clone(),
            node_ip: config.node_ip,
            pod_cidr: config.pod_cidr,
            cluster_cidr: networking.cluster_cidr,
            node_cidr: networking.node_cidr,
            service_cidr: networking.service_cidr,
            api_service_ip: networking.api_service_ip(),
            dns_ip: networking.dns_service_ip(),
            cluster_domain: networking.cluster_domain.clone(),
            api_address: config.api_address,
            serves_api: config.is_first,
            host_ip: config.host_ip,
            load_balancer_cidr: config.load_balancer_cidr,
            balances: config.is_first,
            host_gateway: false,
            proxy: ProxyMode::Smoltcp,
            namespace,
            hub,
        }
    }

    fn addresses(&self) -> tun::Addresses {
        tun::Addresses {
            node_ip: self.node_ip,
            pod_cidr: self.pod_cidr,
            cluster_cidr: self.cluster_cidr,
            node_cidr: self.node_cidr,
            load_balancer_cidr: self.load_balancer_cidr,
            host_seen_as: self.host_seen_as(),
            api_port: self.serves_api.then(|| self.api_address.port()),
        }
    }

    /// The host as the cluster knows it: the first address of the nodes' range, as in minikube.
    fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.node_cidr.network()).saturating_add(1))
    }

    /// The address by which pods reach the host.
    fn host_gateway(&self) -> Option<Ipv4Addr> {
        self.host_gateway.then(|| self.host_address())
    }

    /// The source of connections from the host. While pods may connect to that address, it cannot be the kernel's.
    fn host_seen_as(&self) -> Option<Ipv4Addr> {
        (!self.host_gateway).then(|| self.host_address())
    }
}

/// What works and what does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkStatus {
    /// How Services are implemented.
    pub proxy: ProxyMode,
    /// Why there are no Services, DNS and egress (`NetworkUnavailable`'s message); `None`: all works.
    pub degraded: Option<String>,
    /// Attached pods.
    pub pods: usize,
    /// Connections that the engine translates or watches.
    pub connections: usize,
    /// Connections that end in the engine.
    pub egress: usize,
}

/// The running network of one node.
pub struct Network {
    node: NamespaceThread,
    addresses: tun::Addresses,
    pods: Pods,
    engine: Option<EngineHandle>,
    thread: Mutex<Option<JoinHandle<()>>>,
    tasks: Vec<AbortHandle>,
    table: watch::Receiver<Arc<ServiceTable>>,
    dns_ip: Ipv4Addr,
    proxy: ProxyMode,
    degraded: Option<String>,
}

impl Network {
    /// Takes the node's namespace over and starts everything. Pods that are attached keep their addresses. Without
    /// /dev/net/tun the network runs degraded: pods reach each other and the host's ports reach pods, no more.
    ///
    /// # Errors
    /// When the namespace cannot be set up at all.
    pub async fn start(options: NetOptions, informers: &Factory, env: &Env) -> io::Result<Arc<Self>> {
        raise_descriptor_limit();
        let namespace = options.namespace.try_clone()?;
        let node = NamespaceThread::start("net-node", options.namespace.try_clone()?)?;
        let addresses = options.addresses();
        let link = match &options.hub {
            Some(hub) => Some((links::Link::new(&addresses)?, namespace.try_clone()?, hub.try_clone()?)),
            None => None,
        };
        let tun = node
            .run(move || -> io::Result<io::Result<OwnedFd>> {
                let mut netlink = Netlink::open()?;
                tun::prepare_node(&mut netlink, &addresses)?;
                if let Some((link, home, hub)) = link {
                    link.connect(&home, &hub)?;
                }
                let tun = tun::open().and_then(|tun| tun::attach_tun(&mut netlink, &addresses).map(|()| tun));
                if tun.is_err() {
                    tun::route_pods_directly(&mut netlink)?;
                }
                Ok(tun)
            })
            .await??;
        let pods = {
            let routes = PodRoutes { node_ip: options.node_ip, load_balancer_cidr: options.load_balancer_cidr };
            let (node, cidr) = (node.clone(), options.pod_cidr);
            let recovered = tokio::task::spawn_blocking(move || Pods::recover(namespace, node, routes, cidr));
            recovered.await.map_err(io::Error::other)??
        };
        let (publish, table) = watch::channel(Arc::default());
        let (mut engine, mut thread, mut degraded) = (None, None, None);
        match tun {
            Ok(tun) => {
                let (handle, started) = start_engine(tun, &options, &table, env)?;
                (engine, thread) = (Some(handle), Some(started));
            }
            Err(error) => {
                let text = format!("Services, DNS and egress are off: {error}");
                tracing::error!("{text}");
                degraded = Some(text);
            }
        }
        let follow = tables::follow(informers.clone(), options.node.clone(), publish, engine.clone());
        let api = informers.client().api().clone();
        let recorder = Recorder::new(api.clone(), env.clone(), "service-controller", "");
        let load_balancer = options.balances.then(|| {
            let range = options.load_balancer_cidr;
            tokio::spawn(load_balancer::run(table.clone(), api, recorder.clone(), range))
        });
        let proxy_server = proxy_server::run(ProxyServer {
            table: table.clone(),
            node: node.clone(),
            node_name: options.node.clone(),
            host_ip: options.host_ip,
            mode: options.proxy,
            healthy: degraded.is_none(),
            env: env.clone(),
            recorder: recorder.clone(),
        });
        let host_ports = host_ports::run(HostPorts {
            table: table.clone(),
            pods: informers.cache::<Pod>(),
            node: node.clone(),
            recorder,
            host: host_ports::Host {
                node: options.node.clone(),
                ip: options.host_ip,
                seen_as: options.host_seen_as(),
                balances: options.balances,
            },
        });
        let tasks = [tokio::spawn(host_ports), tokio::spawn(proxy_server), tokio::spawn(follow)];
        let tasks = tasks.into_iter().chain(load_balancer);
        let tasks = tasks.map(|task| task.abort_handle()).collect();
        let (dns_ip, proxy) = (options.dns_ip, options.proxy);
        let thread = Mutex::new(thread);
        Ok(Arc::new(Self {
            node,
            addresses: options.addresses(),
            pods,
            engine,
            thread,
            tasks,
            table,
            dns_ip,
            proxy,
            degraded,
        }))
    }

    /// What would be missing, in words for `mini doctor`; `None`: nothing. Needs no namespace.
    pub fn probe() -> Option<String> {
        use std::fs::File;
        let error = File::options().read(true).write(true).open("/dev/net/tun").err()?;
        Some(format!(
            "/dev/net/tun cannot be opened ({error}): Services, cluster DNS and connections from pods to the outside will \
             not work; mend it with: sudo modprobe tun && sudo chmod 0666 /dev/net/tun"
        ))
    }

    /// Gives a pod's network namespace its interface and address. Idempotent; the network works when this returns.
    ///
    /// # Errors
    /// When addresses are used up, or the kernel's.
    pub async fn attach(&self, uid: &str, namespace: &Path) -> io::Result<Ipv4Addr> {
        self.pods.attach(uid, namespace).await
    }

    /// Takes a pod's interface and address away. Idempotent.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn detach(&self, uid: &str) -> io::Result<()> {
        if let (Some(ip), Some(engine)) = (self.pods.detach(uid).await?, &self.engine) {
            engine.forget(ip);
        }
        Ok(())
    }

    /// Forgets a worker of the same machine; on the first node.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn unlink(&self, worker_ip: Ipv4Addr) -> io::Result<()> {
        self.node.run(move || links::disconnect(worker_ip)).await?
    }

    /// Carries packets between the first node (this one) and a node of another machine until the connection ends. No two at
    /// a time for one node.
    ///
    /// # Errors
    /// The kernel's, and those of the connection.
    pub async fn link_to_worker(
        &self,
        worker_ip: Ipv4Addr,
        pods: Ipv4Net,
        connection: impl AsyncRead + AsyncWrite + Send,
    ) -> io::Result<()> {
        let link = links::Link::of_peer(&self.addresses, worker_ip, pods)?;
        self.carry(link, links::End::Hub, connection).await
    }

    /// As [`Network::link_to_worker`], at the other end.
    ///
    /// # Errors
    /// As there.
    pub async fn link_to_hub(&self, connection: impl AsyncRead + AsyncWrite + Send) -> io::Result<()> {
        let link = links::Link::new(&self.addresses)?;
        self.carry(link, links::End::Worker, connection).await
    }

    async fn carry(
        &self,
        link: links::Link,
        end: links::End,
        connection: impl AsyncRead + AsyncWrite + Send,
    ) -> io::Result<()> {
        let opening = link.clone();
        let device = self.node.run(move || opening.open(end)).await??;
        carrier::carry(device, &link, end, connection).await
    }

    /// Attached pods: uid and address. After a restart these are the ones that the last daemon left.
    pub fn attached(&self) -> Vec<(String, Ipv4Addr)> {
        self.pods.list()
    }

    /// A TCP connection to a pod (or to a Service), made by the kernel inside the node's namespace.
    ///
    /// # Errors
    /// Those of `connect`.
    pub async fn connect(&self, ip: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
        self.node.connect(ip, port).await
    }

    /// A UDP socket inside the node's namespace, connected to a pod.
    ///
    /// # Errors
    /// Those of `connect`.
    pub async fn connect_udp(&self, ip: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
        self.node.connect_udp(None, ip, port).await
    }

    /// The address of DNS, for `resolv.conf` of pods.
    pub fn dns_ip(&self) -> Ipv4Addr {
        self.dns_ip
    }

    /// The Services as the network knows them; changes can be awaited.
    pub fn services(&self) -> watch::Receiver<Arc<ServiceTable>> {
        self.table.clone()
    }

    /// What works.
    pub fn status(&self) -> NetworkStatus {
        let (connections, egress) = self.engine.as_ref().map_or((0, 0), EngineHandle::counts);
        let thread = self.thread.lock().expect("no panic while the thread's handle is held");
        let died = thread.as_ref().is_some_and(JoinHandle::is_finished);
        let died = died.then(|| "the packet engine has stopped, see the daemon's log".to_owned());
        NetworkStatus {
            proxy: self.proxy,
            degraded: self.degraded.clone().or(died),
            pods: self.pods.list().len(),
            connections,
            egress,
        }
    }

    /// Closes everything in order: listeners first, the engine last. The namespace and the pods in it stay.
    pub async fn stop(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        if let Some(engine) = &self.engine {
            engine.stop();
        }
        let thread = self.thread.lock().expect("no panic while the thread's handle is taken").take();
        if let Some(thread) = thread {
            // The thread obeys at its next wake-up, which the command was.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        if let Some(engine) = &self.engine {
            engine.stop();
        }
    }
}

/// Every connection to the outside takes a descriptor; the usual soft limit of 1024 is for programs that use select(2).
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "the limit of open files stays at {soft}");
    }
}

fn start_engine(
    tun: OwnedFd,
    options: &NetOptions,
    table: &watch::Receiver<Arc<ServiceTable>>,
    env: &Env,
) -> io::Result<(EngineHandle, JoinHandle<()>)> {
    let (handle, prepared) = engine::prepare()?;
    let gateway = options.host_gateway();
    let zone = Zone {
        domain: options.cluster_domain.to_ascii_lowercase(),
        dns_ip: options.dns_ip,
        local: vec![options.service_cidr, options.cluster_cidr],
        hosts: gateway.map(|ip| ("host.minikube.internal".to_owned(), ip)).into_iter().collect(),
    };
    let settings = engine::Settings {
        node_ip: options.node_ip,
        pod_cidr: options.pod_cidr,
        cluster_cidr: options.cluster_cidr,
        node_cidr: options.node_cidr,
        service_cidr: options.service_cidr,
        api_service_ip: options.api_service_ip,
        api_address: options.api_address,
        serves_api: options.serves_api,
        dns_ip: options.dns_ip,
        dns: Arc::new(DnsServer::new(zone, table.clone(), handle.clone())),
        host_gateway: gateway,
        seed: u64::from_ne_bytes(env.bytes()),
    };
    let thread = prepared.start(tun, settings)?;
    Ok((handle, thread))
}
