//! What all parts of the node share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};

use k8s_openapi::api::core::v1 as core;
use tokio::sync::{Notify, watch};

use super::admission::{self, Refusal, Room};
use super::app_armor::AppArmor;
use super::downward::Facts;
use super::image::Images;
use super::network::PodNetwork;
use super::node_status::Machine;
use super::objects::Objects;
use super::parts::Part;
use super::pod_state::Role;
use super::resize;
use super::runtime::{DnsConfig, Runtime};
use crate::api::pod::Resources;
use crate::api::quantity::Quantity;
use crate::client::Api;
use crate::client::recorder::Recorder;
use crate::env::Env;

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// `metadata.name` of the Node.
    pub name: String,
    /// `InternalIP`s; the first is the pods' `hostIP`.
    pub internal_ips: Vec<IpAddr>,
    /// `ExternalIP`.
    pub external_ip: Option<IpAddr>,
    /// `spec.podCIDR`; empty: none.
    pub pod_cidr: String,
    /// The domain of the cluster.
    pub cluster_domain: String,
    /// The DNS Service.
    pub cluster_dns: IpAddr,
    /// The machine's own resolver configuration, for `dnsPolicy: Default`.
    pub host_dns: DnsConfig,
    /// One directory per pod uid.
    pub pods: PathBuf,
    /// Container logs.
    pub pod_logs: PathBuf,
    /// What the node offers; `cpus` and `memory` may be less than the machine has.
    pub machine: Machine,
    /// Seccomp profiles of the user's own (`localhostProfile` is a path below it).
    pub seccomp: PathBuf,
    /// AppArmor of the machine.
    pub app_armor: AppArmor,
    /// Parts of the cluster in this process, to be shown as pods from the start.
    pub parts: Vec<Part>,
    /// How long a Lease in `kube-node-lease` is good for; `None`: no Lease, no heartbeat (one daemon is the whole cluster).
    pub lease_duration: Option<std::time::Duration>,
}

impl Options {
    /// The options of a node: the machine is probed, its `/etc/resolv.conf` read.
    pub fn new(config: &crate::config::NodeConfig, paths: &crate::config::Paths) -> Self {
        let mut machine = Machine::probe(&paths.pods());
        machine.cpus = config.cpus.unwrap_or(machine.cpus);
        machine.memory = config.memory.unwrap_or(machine.memory);
        let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        Self {
            name: config.name.clone(),
            internal_ips: vec![config.node_ip.into()],
            external_ip: Some(config.host_ip.into()),
            pod_cidr: config.pod_cidr.to_string(),
            cluster_domain: config.networking.cluster_domain.clone(),
            cluster_dns: config.networking.dns_service_ip().into(),
            host_dns: super::host_files::parse_resolv_conf(&resolv),
            pods: paths.pods(),
            pod_logs: paths.pod_logs(),
            seccomp: paths.seccomp(),
            machine,
            app_armor: AppArmor::new("/", config.feature_gates.enabled("AppArmor")),
            parts: Vec::new(),
            // A node of the control plane's own process cannot fall silent while the control plane speaks.
            lease_duration: (!config.is_first).then_some(LEASE_DURATION),
        }
    }
}

/// `nodeLeaseDurationSeconds` of the kubelet.
const LEASE_DURATION: std::time::Duration = std::time::Duration::from_secs(40);

/// Shared by the node's tasks.
pub struct Context {
    /// How the node is set up.
    pub options: Options,
    /// The API.
    pub api: Arc<dyn Api>,
    /// Clock and ids.
    pub env: Env,
    /// Sandboxes and containers.
    pub runtime: Arc<dyn Runtime>,
    /// Images.
    pub images: Arc<dyn Images>,
    /// The pod network.
    pub network: Arc<dyn PodNetwork>,
    /// ConfigMaps, Secrets, claims and volumes in use.
    pub objects: Objects,
    /// Events as `kubelet`.
    pub recorder: Recorder,
    /// Since when this process is the node.
    pub started: jiff::Timestamp,
    /// Wakes the writer of the node's status.
    pub node_changed: Notify,
    /// Whether the node is stopping.
    pub stopping: RwLock<bool>,
    /// What the pods that run here ask for, by uid.
    pub admitted: Mutex<BTreeMap<String, Resources>>,
    /// Counts up whenever pods ask for less than before.
    pub room: watch::Sender<u64>,
}

impl Context {
    /// The node's list of images is to be written anew.
    pub fn images_changed(&self) {
        self.node_changed.notify_one();
    }

    /// Takes a pod, or refuses it when it is `fresh`: what runs already goes on.
    ///
    /// # Errors
    /// Why it cannot run here.
    pub fn admit(&self, pod: &core::Pod, fresh: bool) -> Result<(), Refusal> {
        let ended = pod.status.as_ref().is_some_and(|s| matches!(s.phase.as_deref(), Some("Succeeded" | "Failed")));
        if ended {
            return Ok(());
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let object = serde_json::to_value(pod).expect("a pod is plain data");
        let requests = crate::api::pod::requests(&object);
        let mut admitted = self.admitted.lock().expect("no panic while held");
        admitted.remove(&uid);
        if fresh {
            let (allocatable, used) = (self.allocatable(), sum(&admitted));
            let room = Room { allocatable: &allocatable, used: &used, pods: admitted.len() };
            admission::admit(pod, &requests, &room)?;
        }
        admitted.insert(uid, requests);
        Ok(())
    }

    /// Lets a pod that runs here have other resources, if there is room.
    ///
    /// # Errors
    /// Why not, in the words of the condition.
    pub fn resize(&self, pod: &core::Pod) -> Result<(), resize::Refusal> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let object = serde_json::to_value(pod).expect("a pod is plain data");
        let requests = crate::api::pod::requests(&object);
        let mut admitted = self.admitted.lock().expect("no panic while held");
        let before = admitted.remove(&uid);
        let (allocatable, used) = (self.allocatable(), sum(&admitted));
        let room = Room { allocatable: &allocatable, used: &used, pods: admitted.len() };
        let judged = admission::resize(&requests, &room);
        match (&judged, before) {
            (Ok(()), _) => admitted.insert(uid, requests),
            (Err(_), Some(before)) => admitted.insert(uid, before),
            (Err(_), None) => None,
        };
        drop(admitted);
        if judged.is_ok() {
            self.room.send_modify(|count| *count += 1);
        }
        judged
    }

    /// A pod has ended or gone: others may have its place.
    pub fn release(&self, uid: &str) {
        if self.admitted.lock().expect("no panic while held").remove(uid).is_some() {
            self.room.send_modify(|count| *count += 1);
        }
    }

    /// `status.allocatable`, as far as pods are judged by it.
    fn allocatable(&self) -> Resources {
        let facts = self.facts(&[]);
        let amount = |n: i128| Quantity::from_nanos(n * 1_000_000_000);
        Resources::from([
            ("cpu".to_owned(), Quantity::from_nanos(facts.allocatable_cpu_milli * 1_000_000)),
            ("memory".to_owned(), amount(facts.allocatable_memory)),
            ("ephemeral-storage".to_owned(), amount(facts.allocatable_storage)),
        ])
    }

    /// Addresses and sizes for the downward API.
    pub fn facts(&self, pod_ips: &[IpAddr]) -> Facts {
        Facts {
            host_ips: self.options.internal_ips.clone(),
            pod_ips: pod_ips.to_vec(),
            allocatable_cpu_milli: i128::from(self.options.machine.cpus) * 1000,
            allocatable_memory: i128::from(self.options.machine.memory),
            allocatable_storage: i128::from(self.options.machine.storage / 10 * 9),
        }
    }

    /// `<pod_logs>/<namespace>_<name>_<uid>`.
    pub fn log_dir(&self, pod: &core::Pod) -> PathBuf {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let m = &pod.metadata;
        self.options.pod_logs.join(format!("{}_{}_{}", text(&m.namespace), text(&m.name), text(&m.uid)))
    }
}

fn sum(admitted: &BTreeMap<String, Resources>) -> Resources {
    let mut sum = Resources::new();
    for (name, amount) in admitted.values().flatten() {
        *sum.entry(name.clone()).or_default() += *amount;
    }
    sum
}

/// A reference to a container of a pod, as events have it.
pub fn container_reference(pod: &core::Pod, role: Role, container: &str) -> core::ObjectReference {
    let list = match role {
        Role::Init | Role::Sidecar => "initContainers",
        Role::Regular => "containers",
        Role::Ephemeral => "ephemeralContainers",
    };
    let field_path = Some(format!("spec.{list}{{{container}}}"));
    core::ObjectReference { field_path, ..crate::client::recorder::reference(pod) }
}
