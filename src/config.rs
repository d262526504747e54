//! Where a profile keeps its state and what it was started with.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The profile that is used when none is named.
pub const DEFAULT_PROFILE: &str = "mini";
/// Stack of the threads that serve, in bytes: what clients nest is bounded (CEL: 100 levels), and has to fit in debug builds too.
pub const THREAD_STACK: usize = 8 << 20;

/// The level of the Kubernetes API that is served.
pub const KUBERNETES_VERSION: &str = "v1.35.0";

/// The settings of one profile (one cluster), kept in `config.json` of its directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The profile's name: also the cluster's, the context's and the node's name.
    pub profile: String,
    /// Where the API server listens on the host (loopback).
    pub api_address: SocketAddr,
    /// Where it listens beside that, for nodes on other machines; the port is the same. 0.0.0.0: everywhere.
    #[serde(default)]
    pub listen_address: Option<IpAddr>,
    /// The loopback address under which NodePorts answer on the host; another one for each profile.
    pub host_ip: Ipv4Addr,
    /// The range that `type: LoadBalancer` addresses are taken from (inside 127.0.0.0/8).
    pub load_balancer_cidr: Ipv4Net,
    /// Service addresses; the first is `kubernetes.default`, the tenth is DNS.
    pub service_cidr: Ipv4Net,
    /// Pod addresses of the whole cluster; every node has a part of them (`spec.podCIDR`, a /24).
    #[serde(default = "default_cluster_cidr")]
    pub cluster_cidr: Ipv4Net,
    /// Pod addresses of the first node.
    pub pod_cidr: Ipv4Net,
    /// The `InternalIP`s of the cluster's nodes.
    #[serde(default = "default_node_cidr")]
    pub node_cidr: Ipv4Net,
    /// The first node's `InternalIP`: an address inside the node's network namespace.
    pub node_ip: Ipv4Addr,
    /// The DNS domain of the cluster.
    pub cluster_domain: String,
    /// `status.capacity.cpu` of the node in whole CPUs; `None`: those of the machine.
    pub cpus: Option<u32>,
    /// `status.capacity.memory` of the node in bytes; `None`: that of the machine.
    pub memory: Option<u64>,
    /// Registries asked instead of the ones that images name: `registry=url`, or a bare `url` for all.
    pub image_mirrors: Vec<String>,
    /// Addons that are enabled.
    pub addons: Vec<String>,
    /// The audit policy of the API server; null: none.
    #[serde(default)]
    pub audit_policy: Value,
    /// Where audit lines are added; `None`: there is no audit log.
    #[serde(default)]
    pub audit_log: Option<PathBuf>,
    /// When the audit log is put aside, and what is kept of those before it.
    #[serde(default)]
    pub audit_rotation: AuditRotation,
    /// The `AdmissionConfiguration` that the API server is started with; null: none.
    #[serde(default)]
    pub admission_configuration: Value,
    /// The nodes of this machine beside the first, which is the daemon's own.
    #[serde(default)]
    pub workers: Vec<Worker>,
    /// Features that are switched on or off.
    #[serde(default)]
    pub feature_gates: FeatureGates,
    /// The etcd that keeps the objects; `None`: the database in the profile's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<Datastore>,
    /// The cluster of another machine that this one is a node of; then there is no cluster of its own here.
    #[serde(default)]
    pub joined: Option<Joined>,
}

/// How the audit log is rotated: the flags `--audit-log-maxsize`, `--audit-log-maxbackup` and `--audit-log-maxage` of
/// kube-apiserver. Unlike there old logs are not kept for ever unless that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRotation {
    /// The size in MiB at which a log is put aside; 0: 100.
    pub max_size: u64,
    /// How many that were put aside are kept; 0: all.
    pub max_backup: usize,
    /// How many days they are kept; 0: for ever.
    pub max_age: u32,
}

impl Default for AuditRotation {
    fn default() -> Self {
        Self { max_size: 100, max_backup: 10, max_age: 0 }
    }
}

/// An etcd that keeps a cluster's objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Datastore {
    /// `http://` or `https://` addresses of its members.
    pub endpoints: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// The authority that signed the members' certificates, PEM.
    pub ca_file: Option<PathBuf>,
    /// Our certificate for the members, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    pub key_file: Option<PathBuf>,
}

/// What a machine knows of the cluster that it is a node of (`mini node join`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    /// Where its API server is reached.
    pub server: SocketAddr,
    /// The name of this machine's Node.
    pub node: String,
}

/// What all nodes of a cluster have to agree on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SharedSettings {
    /// The addresses.
    pub networking: Networking,
    /// Where LoadBalancers answer.
    pub load_balancer_cidr: Ipv4Net,
    /// The features.
    pub feature_gates: FeatureGates,
}

/// A node of this machine beside the first (`mini node add`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// What `mini node` calls it: `m02`. The Node is called `<profile>-m02`.
    pub name: String,
    /// Whether it shall run while the cluster does (`mini node stop` says no).
    pub running: bool,
}

fn default_cluster_cidr() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16)
}

fn default_node_cidr() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 49, 0), 24)
}

/// Features that are switched on or off by name (`--feature-gates`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FeatureGates(BTreeMap<String, bool>);

/// The gates that exist, with their defaults.
const FEATURES: [(&str, bool); 1] = [("AppArmor", true)];

impl FeatureGates {
    /// Whether a feature is on.
    pub fn enabled(&self, name: &str) -> bool {
        let default = || FEATURES.iter().any(|(known, default)| *known == name && *default);
        self.0.get(name).copied().unwrap_or_else(default)
    }

    /// Takes `Name=true` or `Name=false`.
    ///
    /// # Errors
    /// In the words of `k8s.io/component-base/featuregate`.
    pub fn set(&mut self, pair: &str) -> Result<(), String> {
        let (name, value) = pair.split_once('=').ok_or_else(|| format!("missing bool value for {pair}"))?;
        let (name, value) = (name.trim(), value.trim());
        let on = match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            _ => {
                return Err(format!(
                    "invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax"
                ));
            }
        };
        if !FEATURES.iter().any(|(known, _)| *known == name) {
            return Err(format!("unrecognized feature gate: {name}"));
        }
        self.0.insert(name.to_owned(), on);
        Ok(())
    }
}

impl Config {
    /// The defaults for a profile; the addresses are those of the first profile on a machine.
    pub fn new(profile: &str) -> Self {
        Self {
            profile: profile.to_owned(),
            api_address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443),
            listen_address: None,
            host_ip: Ipv4Addr::new(127, 77, 0, 1),
            load_balancer_cidr: Ipv4Net::new_assert(Ipv4Addr::new(127, 78, 0, 0), 24),
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
            cluster_cidr: default_cluster_cidr(),
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 24),
            node_cidr: default_node_cidr(),
            node_ip: Ipv4Addr::new(192, 168, 49, 2),
            cluster_domain: "cluster.local".to_owned(),
            cpus: None,
            memory: None,
            image_mirrors: Vec::new(),
            addons: vec!["default-storageclass".to_owned(), "storage-provisioner".to_owned()],
            audit_policy: Value::Null,
            audit_log: None,
            audit_rotation: AuditRotation::default(),
            admission_configuration: Value::Null,
            workers: Vec::new(),
            feature_gates: FeatureGates::default(),
            datastore: None,
            joined: None,
        }
    }

    /// The address of the Service `kubernetes.default`.
    pub fn api_service_ip(&self) -> Ipv4Addr {
        nth(self.service_cidr, 1)
    }

    /// The address of the Service `kube-dns.kube-system`.
    pub fn dns_service_ip(&self) -> Ipv4Addr {
        nth(self.service_cidr, 10)
    }

    /// The addresses at which other machines reach the API server.
    pub fn reachable_at(&self) -> Vec<IpAddr> {
        match self.listen_address {
            None => Vec::new(),
            Some(ip) if !ip.is_unspecified() => vec![ip],
            Some(_) => {
                let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
                let addresses = interfaces.filter_map(|i| Some(i.address?.as_sockaddr_in()?.ip()));
                addresses.filter(|ip| !ip.is_loopback()).map(IpAddr::V4).collect()
            }
        }
    }

    /// What every node has to know.
    pub fn networking(&self) -> Networking {
        Networking {
            cluster_domain: self.cluster_domain.clone(),
            service_cidr: self.service_cidr,
            cluster_cidr: self.cluster_cidr,
            node_cidr: self.node_cidr,
        }
    }

    /// What all nodes have to agree on.
    pub fn shared(&self) -> SharedSettings {
        SharedSettings {
            networking: self.networking(),
            load_balancer_cidr: self.load_balancer_cidr,
            feature_gates: self.feature_gates.clone(),
        }
    }

    /// The node of the daemon's own process.
    pub fn first_node(&self) -> NodeConfig {
        NodeConfig {
            name: self.profile.clone(),
            profile: self.profile.clone(),
            is_first: true,
            api_address: self.api_address,
            networking: self.networking(),
            pod_cidr: self.pod_cidr,
            node_ip: self.node_ip,
            host_ip: self.host_ip,
            load_balancer_cidr: self.load_balancer_cidr,
            cpus: self.cpus,
            memory: self.memory,
            feature_gates: self.feature_gates.clone(),
        }
    }

    /// The name of a worker's Node.
    pub fn node_name(&self, worker: &str) -> String {
        format!("{}-{worker}", self.profile)
    }

    /// The worker that a person means: by its own name or its Node's.
    pub fn worker(&self, name: &str) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.name == name || self.node_name(&worker.name) == name)
    }

    /// The name of the next worker, as minikube counts: one more than the last.
    pub fn next_worker(&self) -> String {
        let numbers = self.workers.iter().filter_map(|worker| worker.name.strip_prefix('m')?.parse::<u32>().ok());
        format!("m{:02}", numbers.max().unwrap_or(1) + 1)
    }
}

/// The domain and the ranges of addresses that all nodes of a cluster have to agree on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Networking {
    /// The DNS domain of the cluster.
    pub cluster_domain: String,
    /// Service addresses; the first is `kubernetes.default`, the tenth is DNS.
    pub service_cidr: Ipv4Net,
    /// Pod addresses of all nodes.
    pub cluster_cidr: Ipv4Net,
    /// `InternalIP`s of all nodes.
    pub node_cidr: Ipv4Net,
}

impl Networking {
    /// The address of the Service `kubernetes.default`.
    pub fn api_service_ip(&self) -> Ipv4Addr {
        nth(self.service_cidr, 1)
    }

    /// The address of the Service `kube-dns.kube-system`.
    pub fn dns_service_ip(&self) -> Ipv4Addr {
        nth(self.service_cidr, 10)
    }

    /// Which part of the cluster's pod addresses this is, counting from 0; `None` when it is none.
    pub fn index(&self, pod_cidr: Ipv4Net) -> Option<u8> {
        let inside = pod_cidr.prefix_len() == NODE_PREFIX && self.cluster_cidr.contains(&pod_cidr);
        let distance = u32::from(pod_cidr.network()).checked_sub(u32::from(self.cluster_cidr.network()))?;
        u8::try_from(distance >> (32 - NODE_PREFIX)).ok().filter(|_| inside)
    }

    /// The `InternalIP` that belongs to a node's pod addresses: both have one number, so one allocator is enough. The first
    /// node has the third address, as in minikube. `None` when the range has no such address.
    pub fn node_ip(&self, pod_cidr: Ipv4Net) -> Option<Ipv4Addr> {
        let ip = nth(self.node_cidr, u32::from(self.index(pod_cidr)?) + 2);
        (self.node_cidr.contains(&ip) && ip != self.node_cidr.broadcast()).then_some(ip)
    }
}

/// The length of the prefix of a node's pod addresses (`--node-cidr-mask-size`).
pub const NODE_PREFIX: u8 = 24;

/// What one node is started with.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// The name of the Node.
    pub name: String,
    /// The profile (cluster) that it belongs to.
    pub profile: String,
    /// Whether it is the daemon's own, beside the control plane.
    pub is_first: bool,
    /// Where the API server is reached from the host.
    pub api_address: SocketAddr,
    /// What all nodes share.
    pub networking: Networking,
    /// Its pods' addresses.
    pub pod_cidr: Ipv4Net,
    /// Its `InternalIP`.
    pub node_ip: Ipv4Addr,
    /// The address of the host under which its NodePorts answer (`ExternalIP` where there are several nodes).
    pub host_ip: Ipv4Addr,
    /// The range that `type: LoadBalancer` addresses are taken from.
    pub load_balancer_cidr: Ipv4Net,
    /// `status.capacity.cpu` in whole CPUs; `None`: those of the machine.
    pub cpus: Option<u32>,
    /// `status.capacity.memory` in bytes; `None`: that of the machine.
    pub memory: Option<u64>,
    /// Features that are switched on or off.
    pub feature_gates: FeatureGates,
}

fn nth(net: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()) + n)
}

/// The files of one profile, or of one of its workers. Everything that it keeps lies below `root`.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    images: PathBuf,
}

impl Paths {
    /// The files of the profile `profile` below `home` (see [`home`]).
    pub fn new(home: &Path, profile: &str) -> Self {
        let root = home.join("profiles").join(profile);
        Self { images: root.join("images"), root }
    }

    /// The files of a worker of this profile. Its images are the profile's: a layer lies on a machine once.
    pub fn worker(&self, name: &str) -> Self {
        Self { root: self.workers().join(name), images: self.images.clone() }
    }
    /// One directory per worker.
    pub fn workers(&self) -> PathBuf {
        self.root.join("nodes")
    }

    /// The profile's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// [`Config`] as JSON.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.json")
    }
    /// Certificates and keys (0600).
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }
    /// The database directory.
    pub fn db(&self) -> PathBuf {
        self.root.join("db")
    }
    /// Image layers, configurations and tags.
    pub fn images(&self) -> PathBuf {
        self.images.clone()
    }
    /// One directory per pod uid: volumes, container roots, shim socket, exit records.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }
    /// Container logs, laid out as `/var/log/pods` is.
    pub fn pod_logs(&self) -> PathBuf {
        self.root.join("logs/pods")
    }
    /// Directories of dynamically provisioned volumes.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }
    /// Seccomp profiles of the user's own, as in `/var/lib/kubelet/seccomp`.
    pub fn seccomp(&self) -> PathBuf {
        self.root.join("seccomp")
    }
    /// The daemon's log.
    pub fn daemon_log(&self) -> PathBuf {
        self.root.join("logs/daemon.log")
    }
    /// Pid files, lock and sockets: meaningless after a reboot.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
}

/// The directory of all state: `$MINI_HOME`, else `.mini` in the home directory of `$HOME`.
///
/// # Errors
/// When neither variable is set.
pub fn home() -> Result<PathBuf, &'static str> {
    if let Some(home) = std::env::var_os("MINI_HOME").filter(|v| !v.is_empty()) {
        return Ok(PathBuf::from(home));
    }
    let home = std::env::var_os("HOME").filter(|v| !v.is_empty()).ok_or("neither MINI_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".mini"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_address_has_the_number_of_its_pods() {
        let networking = Config::new("mini").networking();
        let ip = |cidr: &str| networking.node_ip(cidr.parse().expect("a network"));
        assert_eq!(ip("10.244.0.0/24"), Some(Ipv4Addr::new(192, 168, 49, 2)));
        assert_eq!(ip("10.244.3.0/24"), Some(Ipv4Addr::new(192, 168, 49, 5)));
        assert_eq!(ip("10.244.252.0/24"), Some(Ipv4Addr::new(192, 168, 49, 254)));
        for none in ["10.244.253.0/24", "10.244.255.0/24", "10.245.0.0/24", "10.244.0.0/25", "10.0.0.0/8"] {
            assert_eq!(ip(none), None, "{none}");
        }
    }

    #[test]
    fn workers_are_named_as_in_minikube() {
        let mut config = Config::new("mini");
        assert_eq!(config.next_worker(), "m02");
        config.workers = ["m02", "m04"].map(|name| Worker { name: name.to_owned(), running: true }).to_vec();
        assert_eq!(config.next_worker(), "m05");
        assert_eq!(config.worker("mini-m04"), config.worker("m04"));
        assert_eq!(config.worker("m03"), None);
    }

    #[test]
    fn feature_gates_are_known_by_name() {
        let mut gates = FeatureGates::default();
        assert!(gates.enabled("AppArmor") && !gates.enabled("Nothing"));
        assert_eq!(gates.set("AppArmor=false"), Ok(()));
        assert!(!gates.enabled("AppArmor"));
        assert_eq!(gates.set("Nothing=true"), Err("unrecognized feature gate: Nothing".to_owned()));
        assert_eq!(gates.set("AppArmor"), Err("missing bool value for AppArmor".to_owned()));
        let wrong = "invalid value of AppArmor=no, err: strconv.ParseBool: parsing \"no\": invalid syntax";
        assert_eq!(gates.set("AppArmor=no"), Err(wrong.to_owned()));
    }
}
