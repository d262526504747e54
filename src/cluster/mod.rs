//! The composition root: starts every component in order and drains them in reverse.

mod adapters;
pub mod agent;
mod control;
pub mod datastore;
pub mod discovery;
pub mod identity;
mod joining;
mod links;
mod local_api;
pub mod lock;
mod nodes;
mod parts;
pub mod pki;
mod rotation;
mod system;
mod tunnel;
pub mod workers;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::addons::Addons;
use crate::apiserver::{ApiServer, User};
use crate::client::Api;
use crate::client::factory::Factory;
use crate::config::{Config, Paths, THREAD_STACK};
use crate::env::Env;
use crate::net::Network;
use crate::node::Node;
use crate::node::image::ImageStore;
use crate::node::namespaces::{self, Entered};
use crate::node::runtime::{self, Runtime, ShimRuntime, ShimSettings, cgroups};
use crate::{apiserver, controllers, net, node, scheduler};
use local_api::LocalApi;
use workers::Workers;

/// How long pods together may take to end when the cluster stops; what is left then is killed.
const STOP_PODS: Duration = Duration::from_secs(45);

/// Receives the JSON lines that `start` shows: steps, warnings, readiness, errors.
pub type Report = Box<dyn Fn(Value) + Send + Sync>;

/// What a daemon does.
pub enum Job {
    /// Runs the cluster; `wait`: ready means that the node is Ready and DNS answers.
    Run {
        /// See above.
        wait: bool,
    },
    /// Stops what a killed daemon left running.
    Cleanup,
    /// Removes the files that belong to subordinate uids.
    Purge,
}

/// A cluster that runs.
pub struct Cluster {
    config: Mutex<Config>,
    paths: Paths,
    addons: Addons,
    images: Arc<ImageStore>,
    network: Arc<Network>,
    node: Arc<Node>,
    runtime: Arc<dyn Runtime>,
    api: Arc<dyn Api>,
    workers: Workers,
    /// The cluster's authority, PEM.
    ca: String,
    env: Env,
    warnings: Vec<String>,
}

/// Does one job. Must be called while the process has a single thread.
///
/// # Errors
/// When a component cannot start; what was started is stopped.
pub fn run(paths: &Paths, config: &Config, job: &Job, report: &Report) -> Result<()> {
    let began = Instant::now();
    let entered = namespaces::enter(paths)?;
    let joined = entered.joined;
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(4);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_stack_size(THREAD_STACK)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        match job {
            Job::Run { wait } => serve(paths, config, entered, *wait, report, began).await,
            Job::Cleanup => cleanup(paths, config, &entered).await,
            Job::Purge => {
                let root = paths.root().to_owned();
                // The directory itself is removed by the caller; what cannot go now is reported there.
                let removed = tokio::task::spawn_blocking(move || purge(&root)).await?;
                removed.context("removing files of the profile")
            }
        }
    });
    runtime.shutdown_background();
    // Only what this daemon made, or has stopped, goes: pods that a killed daemon left go on when its successor cannot start.
    if result.is_ok() || !joined {
        namespaces::end_holder(paths);
    }
    cgroups::remove(&group_name(config));
    result
}

/// The name of the node's cgroup.
fn group_name(config: &Config) -> String {
    format!("mini-{}", config.profile)
}

/// Empties the profile's directory but for the lock that this process holds.
fn purge(root: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        if path.ends_with("run") || path.ends_with("config.json") {
            continue;
        }
        if path.is_dir() { std::fs::remove_dir_all(&path)? } else { std::fs::remove_file(&path)? }
    }
    Ok(())
}

fn shim_settings(paths: &Paths, config: &Config, entered: &Entered) -> ShimSettings {
    ShimSettings {
        pods: paths.pods(),
        node_netns: Some(entered.node_netns.clone()),
        ids: entered.ids,
        group: group_name(config),
        program: "/proc/self/exe".into(),
    }
}

/// Which unpacked layers are in use by pods of this machine's nodes.
fn layers_in_use(profile: &Paths) -> impl Fn() -> BTreeSet<PathBuf> + Send + Sync + 'static {
    let profile = profile.clone();
    move || {
        let workers = workers::found(&profile).into_iter().map(|name| profile.worker(&name).pods());
        workers.chain([profile.pods()]).flat_map(|pods| runtime::layers_in_use(&pods)).collect()
    }
}

async fn cleanup(paths: &Paths, config: &Config, entered: &Entered) -> Result<()> {
    for worker in workers::found(paths) {
        let worker_paths = paths.worker(&worker);
        if let Some(agent) = lock::holder(&worker_paths) {
            agent.kill().await;
        }
        workers::end_pods(&worker_paths, &shim_settings(paths, config, entered)).await?;
        cgroups::remove(&agent::group_name(&config.node_name(&worker)));
        namespaces::end_network(&worker_paths)?;
    }
    stop_sandboxes(shim_settings(paths, config, entered)).await
}

async fn stop_sandboxes(settings: ShimSettings) -> Result<()> {
    let runtime = ShimRuntime::open(settings).await?;
    for sandbox in runtime.list().await? {
        runtime.stop_sandbox(&sandbox.config.uid).await?;
    }
    Ok(())
}

struct Steps<'a> {
    report: &'a Report,
    began: Instant,
}

impl Steps<'_> {
    fn done(&self, step: &str) {
        let milliseconds = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(milliseconds, "{step}");
        (self.report)(json!({"step": step, "milliseconds": milliseconds}));
    }
}

async fn serve(
    paths: &Paths,
    config: &Config,
    entered: Entered,
    wait: bool,
    report: &Report,
    began: Instant,
) -> Result<()> {
    let steps = Steps { report, began };
    let env = Env::real();
    for warning in &entered.warnings {
        report(json!({"warning": warning}));
    }
    steps.done(if entered.joined { "Namespaces joined" } else { "Namespaces made" });

    // The built-in images are unpacked while everything else starts: they are the longest single piece of a first start.
    let images = Arc::new(ImageStore::open(&paths.images(), &config.image_mirrors, entered.ids)?);
    images.guard(layers_in_use(paths))?;
    let loading = tokio::spawn({
        let (images, paths) = (images.clone(), paths.clone());
        async move { system::load_built_in_images(&images, &paths).await }
    });

    let pki = Arc::new(pki::Pki::ensure(&paths.pki(), config, &env)?);
    let storage = datastore::open(paths, config).await?;
    steps.done(if config.datastore.is_none() { "Database opened" } else { "Datastore connected" });

    let listeners = listen(config).await?;
    let ways = adapters::Ways::default();
    let aggregated = apiserver::Aggregated::default();
    let options = apiserver::Options {
        tls_cert_pem: pki.server.clone().into_bytes(),
        tls_key_pem: pki.server_key.clone().into_bytes(),
        client_ca_pem: pki.ca.clone().into_bytes(),
        service_account_key_pem: pki.service_account_key.clone().into_bytes(),
        issuer: format!("https://kubernetes.default.svc.{}", config.cluster_domain),
        service_cidr: config.service_cidr,
        node_ports: 30_000..=32_767,
        endpoint: (config.node_ip, config.api_address.port()),
        peers: false,
        static_tokens: Vec::new(),
        nodes: Arc::new(ways.clone()),
        dialer: Arc::new(ways.clone()),
        aggregated: aggregated.clone(),
        front_proxy: Some(apiserver::FrontProxy {
            ca_pem: pki.front_proxy_ca.clone(),
            certificate_pem: Arc::new(pki.front_proxy.clone().into_bytes()),
            key_pem: Arc::new(pki.front_proxy_key.clone().into_bytes()),
        }),
        feature_gates: config.feature_gates.clone(),
        audit: config.audit_log.as_ref().map(|path| apiserver::audit::Options {
            policy: config.audit_policy.clone(),
            log_path: path.clone(),
            rotation: config.audit_rotation.clone(),
        }),
        admission: apiserver::admission::Configuration::new(&config.admission_configuration)
            .map_err(anyhow::Error::msg)?,
    };
    let server = ApiServer::new(storage.clone(), env.clone(), options).await?;
    let (close, closed) = tokio::sync::watch::channel(false);
    let serving: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let mut closed = closed.clone();
            let closing = async move { drop(closed.wait_for(|closed| *closed).await) };
            tokio::spawn(server.clone().serve(listener, closing))
        })
        .collect();
    steps.done("API server serves");

    let rotation = tokio::spawn(rotation::run(paths.clone(), config.clone(), env.clone(), server.clone(), pki.clone()));
    let as_user =
        |name: &str, groups: &[&str]| -> Arc<dyn Api> { LocalApi::new(server.clone(), User::new(name, groups)) };
    let admin = as_user("system:admin", &["system:masters", "system:authenticated"]);
    system::ensure(&*admin, config).await?;

    let network_api = as_user("system:kube-proxy", &["system:masters", "system:authenticated"]);
    let network_informers = Factory::new(network_api);
    let netns = std::fs::File::open(&entered.node_netns).context("opening the node's network namespace")?.into();
    let network = Network::start(net::NetOptions::new(config, netns), &network_informers, &env)
        .await
        .context("starting the network")?;
    ways.set_network(network.clone());
    ways.set_links(links::Links::new(admin.clone(), network.clone(), config.networking()));
    steps.done("Network is up");

    let controllers = controllers::start(
        |name| as_user(name, &["system:masters", "system:authenticated"]),
        env.clone(),
        controllers::Options {
            root_ca: pki.ca.clone(),
            kinds: server.served_kinds(),
            local_node: config.profile.clone(),
            networking: config.networking(),
            authority: Arc::new(controllers::csr_signing::Authority { cert: pki.ca.clone(), key: pki.ca_key.clone() }),
        },
    );
    let scheduler =
        scheduler::start(as_user("system:kube-scheduler", &["system:masters", "system:authenticated"]), env.clone());

    server.report_component("controller-manager", controllers.running());
    server.report_component("scheduler", scheduler.running());

    let runtime: Arc<dyn Runtime> =
        ShimRuntime::open(shim_settings(paths, config, &entered)).await.context("finding what runs already")?;
    let node_user = format!("system:node:{}", config.profile);
    let node_api = as_user(&node_user, &["system:nodes", "system:authenticated"]);
    let pods: Arc<dyn node::network::PodNetwork> = Arc::new(adapters::Pods(network.clone()));
    let mut options = node::Options::new(&config.first_node(), paths);
    options.parts = [parts::OF_CONTROL_PLANE, parts::OF_EVERY_NODE].concat();
    options.parts.extend(config.addons.iter().filter_map(|addon| parts::of_addon(addon)));
    let agent = Node::start(options, node_api, env.clone(), runtime.clone(), images.clone(), pods).await?;
    ways.set_node(agent.clone());
    system::label_node(&*admin, &config.profile, &config.profile, true).await?;
    steps.done("Node is up");

    let (provisioning, is_provisioning) = tokio::sync::watch::channel(false);
    let provisioner = controllers::provisioner::start(
        as_user(
            "system:serviceaccount:kube-system:storage-provisioner",
            &["system:masters", "system:serviceaccounts", "system:authenticated"],
        ),
        env.clone(),
        is_provisioning,
        Arc::new(controllers::host_directories::HostDirectories::new(paths.volumes())),
    );
    let context = crate::addons::Context {
        api: admin.clone(),
        config: config.clone(),
        paths: paths.clone(),
        env: env.clone(),
        nodes: Arc::new(ways.clone()),
        aggregation: Arc::new(aggregated),
        provisioning,
        host: std::net::Ipv4Addr::LOCALHOST.into(),
    };
    let addons = Addons::new(context);
    for name in &config.addons {
        // An addon that fails is one feature less, not a cluster less.
        if let Err(error) = addons.enable(name).await {
            report(json!({"warning": format!("the addon {name} did not start: {error:#}")}));
            if let Some(part) = parts::of_addon(name) {
                agent.hide_part(part).await;
            }
        }
    }
    let cluster = Arc::new(Cluster {
        config: Mutex::new(config.clone()),
        paths: paths.clone(),
        addons,
        images,
        network: network.clone(),
        node: agent.clone(),
        runtime,
        workers: Workers::new(
            config,
            paths,
            shim_settings(paths, config, &entered),
            &pki.ca,
            admin.clone(),
            env.clone(),
        ),
        ca: pki.ca.clone(),
        env: env.clone(),
        api: admin,
        warnings: entered.warnings,
    });
    let stop = Arc::new(Notify::new());
    let router = control::daemon(cluster.clone(), stop.clone());
    let control = tokio::spawn(control::serve(control::listen(paths)?, router));

    loading.await??;
    steps.done("Built-in images are present");
    let running: Vec<String> = config.workers.iter().filter(|w| w.running).map(|w| w.name.clone()).collect();
    let started = running.iter().map(|name| async {
        let started = cluster.start_worker(name, wait).await;
        if started.is_ok() {
            steps.done(&format!("Node {} is up", config.node_name(name)));
        }
        started.with_context(|| format!("the node {} did not start", config.node_name(name)))
    });
    let started = futures_util::future::join_all(started).await;
    for error in started.into_iter().filter_map(Result::err) {
        // A node that fails is one node less, not a cluster less.
        report(json!({"warning": format!("{error:#}")}));
    }
    if wait {
        system::node_ready(&*cluster.api, &config.profile).await?;
        system::dns_answers(&network, config).await?;
        steps.done("Node is Ready and DNS answers");
    }
    report(json!({"ready": true, "facts": cluster.status().await}));

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = stop.notified() => tracing::info!("asked to stop"),
        _ = terminate.recv() => tracing::info!("terminated"),
        _ = tokio::signal::ctrl_c() => tracing::info!("interrupted"),
    }

    cluster.addons.stop().await;
    tokio::join!(agent.stop(STOP_PODS), cluster.stop_workers());
    provisioner.stop().await;
    controllers.stop().await;
    scheduler.stop().await;
    network.stop().await;
    close.send_replace(true);
    for serving in serving {
        serving.await??;
    }
    storage.close().await;
    control.abort();
    rotation.abort();
    let _ = std::fs::remove_file(paths.run().join(control::SOCKET));
    tracing::info!("stopped");
    Ok(())
}

/// Where the API server listens: on loopback, and where the settings say beside that.
async fn listen(config: &Config) -> Result<Vec<tokio::net::TcpListener>> {
    let port = config.api_address.port();
    let addresses = match config.listen_address {
        Some(ip) if ip.is_unspecified() => vec![(ip, port).into()],
        Some(ip) if ip != config.api_address.ip() => vec![config.api_address, (ip, port).into()],
        _ => vec![config.api_address],
    };
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.push(tokio::net::TcpListener::bind(address).await.with_context(|| {
            format!("the API server cannot listen on {address}; 'mini start --apiserver-port' takes another port")
        })?);
    }
    Ok(listeners)
}

impl Cluster {
    /// What `mini status` shows.
    async fn status(&self) -> Value {
        let config = self.config.lock().expect("no panic while the settings are held").clone();
        let ready = system::is_node_ready(&*self.api, &config.profile).await;
        let enforcement = self.runtime.enforcement();
        let limits = if enforcement.memory && enforcement.cpu {
            "enforced".to_owned()
        } else {
            format!("not enforced: {}", enforcement.reason.unwrap_or_default())
        };
        let datastore = match &config.datastore {
            None => "built-in (sled)".to_owned(),
            Some(etcd) => format!("etcd at {}", etcd.endpoints.join(", ")),
        };
        let network = self.network.status().degraded.unwrap_or_else(|| "userspace (smoltcp)".to_owned());
        json!({
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "nodeReady": ready,
            "server": format!("https://{}", config.api_address),
            "addons": config.addons,
            "workers": self.describe_workers().await,
            "warnings": self.warnings,
            "details": {"network": network, "limits": limits, "datastore": datastore},
        })
    }

    /// Switches an addon and remembers it.
    async fn set_addon(&self, name: &str, on: bool) -> Result<()> {
        if on {
            self.addons.enable(name).await?
        } else {
            self.addons.disable(name).await?
        }
        match parts::of_addon(name) {
            Some(part) if on => self.node.show_part(part),
            Some(part) => self.node.hide_part(part).await,
            None => {}
        }
        self.change_config(|config| {
            config.addons.retain(|a| a != name);
            if on {
                config.addons.push(name.to_owned());
            }
        })
        .await
    }

    /// Changes the settings and writes them.
    async fn change_config(&self, change: impl FnOnce(&mut Config)) -> Result<()> {
        let config = {
            let mut config = self.config.lock().expect("no panic while the settings are held");
            change(&mut config);
            config.clone()
        };
        let path = self.paths.config();
        let temporary = path.with_extension("new");
        tokio::fs::write(&temporary, serde_json::to_vec_pretty(&config)?).await?;
        tokio::fs::rename(&temporary, &path).await?;
        Ok(())
    }
}
