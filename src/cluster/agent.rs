//! A node in a process of its own (`mini node-agent`): the same node agent and network as the daemon's, with the API over
//! HTTPS as `system:node:<name>`. It is a worker beside the daemon, or the node that another machine is.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::identity::Identity;
use super::{Report, STOP_PODS, adapters, control, joining, parts, tunnel};
use crate::api::kinds::gvr;
use crate::apiserver::Purpose;
use crate::client::Api;
use crate::client::factory::Factory;
use crate::client::https::HttpsApi;
use crate::client::upgrade::upgrade;
use crate::config::{Networking, NodeConfig, Paths, SharedSettings};
use crate::env::Env;
use crate::net::{NetOptions, Network};
use crate::node::image::ImageStore;
use crate::node::namespaces::{self, Entered};
use crate::node::runtime::{Runtime, ShimRuntime, ShimSettings, cgroups};
use crate::node::{self, Node};

/// The first and the longest wait before the API server is asked again for a tunnel.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_LINK_WAIT: Duration = Duration::from_secs(10);

/// Where a node is.
pub enum Place {
    /// On the first node's machine.
    Worker {
        /// The profile's files, whose namespaces and images it shares.
        profile: Paths,
        /// The first node's address of the host.
        first_host_ip: Ipv4Addr,
    },
    /// On a machine of its own.
    Machine,
}

/// What an agent is told.
pub struct Settings {
    /// The name of the Node.
    pub node: String,
    /// The profile.
    pub profile: String,
    /// Where the API server is reached.
    pub server: SocketAddr,
    /// Where the node is.
    pub place: Place,
    /// The node's own files.
    pub paths: Paths,
    /// `status.capacity.cpu`; `None`: the machine's.
    pub cpus: Option<u32>,
    /// `status.capacity.memory`; `None`: the machine's.
    pub memory: Option<u64>,
    /// Registries asked instead of the ones that images name.
    pub image_mirrors: Vec<String>,
    /// The bootstrap token, for a node that has no certificate.
    pub token: Option<String>,
}

/// The name of a worker's cgroup.
pub fn group_name(node: &str) -> String {
    format!("mini-{node}")
}

/// Runs a node until it is terminated. Must be called while the process has a single thread.
///
/// # Errors
/// When something cannot start; what was started is stopped.
pub fn run(settings: &Settings, report: &Report) -> Result<()> {
    let entered = match &settings.place {
        Place::Worker { profile, .. } => namespaces::enter_worker(profile, &settings.paths)?,
        Place::Machine => namespaces::enter(&settings.paths)?,
    };
    let joined = entered.joined;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve(settings, entered, report));
    runtime.shutdown_background();
    if matches!(settings.place, Place::Machine) && (result.is_ok() || !joined) {
        namespaces::end_holder(&settings.paths);
    }
    cgroups::remove(&settings.group_name());
    result
}

impl Settings {
    fn group_name(&self) -> String {
        match self.place {
            Place::Worker { .. } => group_name(&self.node),
            Place::Machine => group_name(&self.profile),
        }
    }
}

/// What a node's process is made of.
struct Agent {
    node: Arc<Node>,
    network: Arc<Network>,
    images: Arc<ImageStore>,
    /// Ends with the agent.
    _tasks: Vec<AbortOnDropHandle<()>>,
}

async fn serve(settings: &Settings, entered: Entered, report: &Report) -> Result<()> {
    // Asked for early: a signal that comes while the node starts must not end it in the midst of something.
    let mut terminate = signal(SignalKind::terminate())?;
    for warning in &entered.warnings {
        report(json!({"warning": warning}));
    }
    let agent = tokio::select! {
        agent = start(settings, &entered) => agent?,
        _ = terminate.recv() => return Err(anyhow!("terminated while it started")),
    };
    let stop = Arc::new(Notify::new());
    // A machine of its own has a command line of its own.
    let _control = match settings.place {
        Place::Worker { .. } => None,
        Place::Machine => {
            let status = status(settings, &agent);
            let router = control::machine(agent.images.clone(), stop.clone(), status);
            let serving = control::serve(control::listen(&settings.paths)?, router);
            Some(AbortOnDropHandle::new(tokio::spawn(async move { drop(serving.await) })))
        }
    };
    report(json!({"ready": true, "facts": {}}));
    tokio::select! {
        _ = terminate.recv() => tracing::info!("terminated"),
        () = stop.notified() => tracing::info!("asked to stop"),
    }
    agent.node.stop(STOP_PODS).await;
    agent.network.stop().await;
    let _ = std::fs::remove_file(settings.paths.run().join(control::SOCKET));
    tracing::info!("stopped");
    Ok(())
}

/// What `mini status` shows of a machine that has joined.
fn status(settings: &Settings, agent: &Agent) -> impl Fn() -> Value + Send + Sync + 'static {
    let (node, server, network) = (settings.node.clone(), settings.server, agent.network.clone());
    move || {
        let network = network.status().degraded.unwrap_or_else(|| "userspace (smoltcp)".to_owned());
        json!({
            "pid": std::process::id(), "node": node, "nodeReady": true, "server": format!("https://{server}"),
            "details": {"network": network},
        })
    }
}

async fn start(settings: &Settings, entered: &Entered) -> Result<Agent> {
    let env = Env::real();
    let Settings { node: name, paths, server, .. } = settings;
    let identity = Identity::ensure(&paths.pki(), name, *server, settings.token.as_deref(), env.now()).await?;
    let https = identity.api()?;
    let api: Arc<dyn Api> = Arc::new(https.clone());
    let shared = joining::shared_settings(&*api).await?;
    let pod_cidr = node::register(&*api, name).await.context("registering the node")?;
    let config = settings.node_config(shared, pod_cidr).await?;

    let images = Arc::new(ImageStore::open(&paths.images(), &settings.image_mirrors, entered.ids)?);
    let (machine, hub) = match &settings.place {
        Place::Worker { profile, .. } => (profile, Some(open(format!("/proc/{}/ns/net", entered.holder))?)),
        Place::Machine => (paths, None),
    };
    images.guard(super::layers_in_use(machine))?;
    // Workers share the first node's.
    if matches!(settings.place, Place::Machine) {
        super::system::load_built_in_images(&images, paths).await?;
    }
    let narrowed = [(gvr::PODS, format!("spec.nodeName={name}")), (gvr::NODES, format!("metadata.name={name}"))];
    let informers = Factory::narrowed(api.clone(), narrowed.into());
    let namespace = open(&entered.node_netns)?;
    let options = NetOptions::of_node(&config, namespace, hub);
    let network = Network::start(options, &informers, &env).await.context("starting the network")?;

    let shims = ShimSettings {
        pods: paths.pods(),
        node_netns: Some(entered.node_netns.clone()),
        ids: entered.ids,
        group: settings.group_name(),
        program: "/proc/self/exe".into(),
    };
    let runtime: Arc<dyn Runtime> = ShimRuntime::open(shims).await.context("finding what runs already")?;
    let pods = Arc::new(adapters::Pods(network.clone()));
    let mut options = node::Options::new(&config, paths);
    options.parts = parts::OF_EVERY_NODE.to_vec();
    let node = Node::start(options, api, env.clone(), runtime, images.clone(), pods).await?;
    let mut tasks = vec![
        tokio::spawn(identity.clone().keep(env)),
        tokio::spawn(keep_tunnel(identity.clone(), https, node.clone())),
    ];
    if matches!(settings.place, Place::Machine) {
        tasks.push(tokio::spawn(keep_link(identity, network.clone())));
    }
    let _tasks = tasks.into_iter().map(AbortOnDropHandle::new).collect();
    Ok(Agent { node, network, images, _tasks })
}

fn open(path: impl Into<PathBuf>) -> Result<std::os::fd::OwnedFd> {
    let path = path.into();
    Ok(std::fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?.into())
}

impl Settings {
    async fn node_config(&self, shared: SharedSettings, pod_cidr: ipnet::Ipv4Net) -> Result<NodeConfig> {
        let SharedSettings { networking, load_balancer_cidr, feature_gates } = shared;
        let node_ip = networking.node_ip(pod_cidr);
        let node_ip = node_ip.with_context(|| format!("no node has the pod addresses {pod_cidr}"))?;
        let host_ip = match &self.place {
            Place::Worker { first_host_ip, .. } => worker_host_ip(*first_host_ip, &networking, pod_cidr),
            Place::Machine => own_address(self.server).await?,
        };
        Ok(NodeConfig {
            name: self.node.clone(),
            profile: self.profile.clone(),
            is_first: false,
            api_address: self.server,
            networking,
            pod_cidr,
            node_ip,
            host_ip,
            load_balancer_cidr,
            cpus: self.cpus,
            memory: self.memory,
            feature_gates,
        })
    }
}

/// The address of the host under which a worker's NodePorts answer: beside the first node's, with the worker's number.
fn worker_host_ip(first: Ipv4Addr, networking: &Networking, pod_cidr: ipnet::Ipv4Net) -> Ipv4Addr {
    let [a, b, _, d] = first.octets();
    Ipv4Addr::new(a, b, networking.index(pod_cidr).unwrap_or_default(), d)
}

/// This machine's address as the API server sees it (but for address translation on the way).
async fn own_address(server: SocketAddr) -> Result<Ipv4Addr> {
    let stream = tokio::net::TcpStream::connect(server).await.with_context(|| format!("connecting to {server}"))?;
    match stream.local_addr()?.ip() {
        std::net::IpAddr::V4(ip) => Ok(ip),
        std::net::IpAddr::V6(ip) => Err(anyhow!("{ip}: the cluster is IPv4")),
    }
}

/// Keeps a connection to the API server by which it reaches this node. Runs until it is dropped.
async fn keep_tunnel(identity: Arc<Identity>, api: HttpsApi, node: Arc<Node>) {
    keep(Purpose::Kubelet, LONGEST_WAIT, || async {
        let connection = open_way(&identity, Purpose::Kubelet).await?;
        api.answers();
        Ok(tunnel::serve(connection, node.clone()).await?)
    })
    .await;
}

/// Keeps the link to the first node's machine. Runs until it is dropped.
async fn keep_link(identity: Arc<Identity>, network: Arc<Network>) {
    keep(Purpose::Packets, LONGEST_LINK_WAIT, || async {
        let connection = open_way(&identity, Purpose::Packets).await?;
        Ok(network.link_to_hub(connection).await?)
    })
    .await;
}

async fn open_way(identity: &Identity, purpose: Purpose) -> Result<TokioIo<Upgraded>> {
    let connection = upgrade(identity.server(), identity.tls()?, purpose.path(), purpose.protocol()).await?;
    tracing::info!(?purpose, "connected to the API server");
    Ok(connection)
}

/// Makes a connection, and again when it has ended; what fails at once is tried more and more seldom.
async fn keep<F: Future<Output = Result<()>>>(purpose: Purpose, longest: Duration, mut connect: impl FnMut() -> F) {
    let mut wait = FIRST_WAIT;
    loop {
        let began = Instant::now();
        let ended = connect().await;
        let lasted = began.elapsed() > longest;
        match ended {
            Err(error) if lasted => tracing::warn!(?purpose, "the connection to the API server broke off: {error:#}"),
            Err(error) => tracing::debug!(?purpose, "no connection to the API server: {error:#}"),
            Ok(()) => tracing::info!(?purpose, "the API server has closed a connection"),
        }
        if lasted {
            wait = FIRST_WAIT;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(longest);
    }
}
