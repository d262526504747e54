//! What the node agent asks of a container runtime: the shape of CRI, without its wire.
//!
//! A sandbox is a pod's namespaces, kept alive by its shim (the pause container); a container runs in a
//! sandbox. There is at most one sandbox per pod uid. Everything survives the daemon: [`Runtime::list`]
//! tells what really runs, and [`Runtime::subscribe`] tells what ends from then on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::node::image::Image;

pub mod capabilities;
pub mod cgroups;
mod channel;
pub mod fake;
pub mod shim;
pub mod shims;
pub mod spec;
mod streams;
mod usage;

pub use fake::FakeRuntime;
pub use shims::{ShimRuntime, ShimSettings, layers_in_use};

/// A pod's `dnsConfig` as it is written to `/etc/resolv.conf` of its containers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// What a pod's sandbox needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// The pod's uid: the key of the sandbox.
    pub uid: String,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The host name inside (at most 63 bytes); ignored with `host_network`.
    pub hostname: String,
    /// `/etc/resolv.conf` of the containers; the runtime writes and mounts it (and `/etc/hostname`).
    /// `/etc/hosts` is the caller's: pass it as an ordinary [`Mount`].
    pub dns: DnsConfig,
    /// `spec.hostNetwork`: the network namespace of the node instead of an own one.
    pub host_network: bool,
    /// `spec.hostPID`.
    pub host_pid: bool,
    /// `spec.hostIPC`.
    pub host_ipc: bool,
    /// `spec.shareProcessNamespace`.
    pub share_pid: bool,
    /// `spec.securityContext.sysctls`.
    pub sysctls: BTreeMap<String, String>,
    /// Where the logs go: `<pod_logs>/<namespace>_<name>_<uid>`; a container's file is
    /// `<log_dir>/<container>/<attempt>.log`.
    pub log_dir: PathBuf,
    /// Limits of the pod as a whole (sum of its containers), for its cgroup.
    pub resources: Resources,
}

/// A sandbox that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// The pod's uid.
    pub uid: String,
    /// The shim: the pause container. Its network namespace is the pod's.
    pub pid: i32,
    /// `/proc/<pid>/ns/net`: to be opened at once by whoever attaches the network.
    pub netns: PathBuf,
    /// When it was created.
    pub created_at: Timestamp,
}

/// How mounts made on one side appear on the other (`mountPropagation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// `None`
    #[default]
    Private,
    /// `HostToContainer`
    HostToContainer,
    /// `Bidirectional`
    Bidirectional,
}

/// One bind mount of a directory or file into a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// The directory or file on the node, with its `subPath` already resolved safely.
    pub source: PathBuf,
    /// Where it appears in the container.
    pub destination: PathBuf,
    /// `readOnly`
    pub read_only: bool,
    /// `mountPropagation`
    pub propagation: Propagation,
    /// An image in place of `source`, which is never written: its layers, lowest first, and what of it is wanted.
    #[serde(default)]
    pub image: Option<ImageMount>,
}

/// An image that is mounted as a volume (`volumes[].image`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageMount {
    /// Its layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// `subPath`; empty: all of it.
    pub sub_path: String,
}

/// `resources` in the kernel's units. `None`: no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// `requests.cpu` in thousandths.
    pub cpu_request_milli: Option<u64>,
    /// `limits.cpu` in thousandths.
    pub cpu_limit_milli: Option<u64>,
    /// `limits.memory` in bytes.
    pub memory_limit: Option<u64>,
    /// Number of processes.
    pub pids_limit: Option<u64>,
}

/// The seccomp profile of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Seccomp {
    /// No filter.
    Unconfined,
    /// The runtime's default profile.
    #[default]
    RuntimeDefault,
    /// An OCI `linux.seccomp` document in this file.
    Localhost(PathBuf),
}

/// What a container's processes may do (`securityContext`, pod's and container's already merged).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Security {
    /// `runAsUser`; `None`: the image's user.
    pub run_as_user: Option<i64>,
    /// `runAsGroup`; `None`: the image's group.
    pub run_as_group: Option<i64>,
    /// `supplementalGroups` and `fsGroup`.
    pub supplemental_groups: Vec<i64>,
    /// `supplementalGroupsPolicy: Strict`: the groups of the image's `/etc/group` do not count.
    #[serde(default)]
    pub strict_groups: bool,
    /// `privileged` (within the user namespace).
    pub privileged: bool,
    /// `capabilities.add`, without `CAP_`; `ALL` is understood.
    pub add_capabilities: Vec<String>,
    /// `capabilities.drop`, without `CAP_`; `ALL` is understood.
    pub drop_capabilities: Vec<String>,
    /// `allowPrivilegeEscalation: false`
    pub no_new_privileges: bool,
    /// `readOnlyRootFilesystem`
    pub read_only_rootfs: bool,
    /// `seccompProfile`
    pub seccomp: Seccomp,
    /// The AppArmor profile, which must be loaded; `None`: none.
    #[serde(default)]
    pub app_armor: Option<String>,
}

/// What to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// A new id: 64 hexadecimal digits.
    pub id: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// The container's name in the pod.
    pub name: String,
    /// 0 for the first, counting restarts: names the log file.
    pub attempt: u32,
    /// The image, from [`crate::node::image::Images`].
    pub image: Image,
    /// `command` with `$(VAR)` expanded; empty: the image's `Entrypoint`.
    pub command: Vec<String>,
    /// `args` with `$(VAR)` expanded; empty: the image's `Cmd`, when `command` is empty too.
    pub args: Vec<String>,
    /// The pod's environment, laid over the image's.
    pub env: Vec<(String, String)>,
    /// `workingDir`; `None`: the image's, else `/`.
    pub working_dir: Option<String>,
    /// Volumes, `/etc/hosts`, service account token.
    pub mounts: Vec<Mount>,
    /// Who it runs as and what it may do.
    pub security: Security,
    /// Limits.
    pub resources: Resources,
    /// `-1000..=1000`; clamped to what the daemon may set.
    pub oom_score_adj: i32,
    /// `tty`
    pub tty: bool,
    /// `stdin`
    pub stdin: bool,
    /// `stdinOnce`
    pub stdin_once: bool,
    /// The container of this pod (its id) whose processes this one shares; `None`: its own.
    #[serde(default)]
    pub pid_namespace_of: Option<String>,
    /// `terminationMessagePath`: the runtime mounts a file of its own there; see [`ContainerStatus::message_path`].
    pub termination_message_path: Option<PathBuf>,
}

/// A container that was started.
#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    /// The pid of its first process, in the daemon's pid namespace.
    pub pid: i32,
    /// When.
    pub started_at: Timestamp,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Its process runs.
    Running,
    /// Its process ended (or was lost: exit code 137, reason `ContainerStatusUnknown` is the caller's to give).
    Exited,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The memory limit ended it: reason `OOMKilled`.
    pub oom_killed: bool,
    /// When.
    pub finished_at: Timestamp,
}

/// A container that exists.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerStatus {
    /// Its id.
    pub id: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// The container's name in the pod.
    pub name: String,
    /// Counting restarts from 0.
    pub attempt: u32,
    /// The image as the pod names it.
    pub image: String,
    /// The image's id (`sha256:…`).
    pub image_id: String,
    /// Running or exited.
    pub state: ContainerState,
    /// The first process while it runs.
    pub pid: Option<i32>,
    /// When its process was started.
    pub started_at: Timestamp,
    /// Present when it exited.
    pub exit: Option<Exit>,
    /// The log in CRI format.
    pub log_path: PathBuf,
    /// The file that the container wrote its termination message to.
    pub message_path: Option<PathBuf>,
}

/// A sandbox that exists, with its containers.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxStatus {
    /// What it was created with.
    pub config: SandboxConfig,
    /// The sandbox; `None` when its shim is gone (the pod needs a new one).
    pub sandbox: Option<Sandbox>,
    /// All containers that were not removed, oldest first.
    pub containers: Vec<ContainerStatus>,
}

/// What happened without being asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum RuntimeEvent {
    /// A container's process ended and was reaped; its log is complete.
    Exited {
        /// The pod's uid.
        pod_uid: String,
        /// The container's id.
        id: String,
        /// How it ended.
        exit: Exit,
    },
    /// The shim ended; its containers are gone with it (each had its own `Exited` before).
    SandboxLost {
        /// The pod's uid.
        pod_uid: String,
    },
}

/// What a reader of a process' output reads from.
pub type Reader = Box<dyn AsyncRead + Send + Sync + Unpin>;
/// What a writer of a process' input writes to.
pub type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// What to run in a running container.
#[derive(Clone, Debug, Default)]
pub struct ExecConfig {
    /// The command; it is not interpreted by a shell.
    pub command: Vec<String>,
    /// Allocate a terminal (then there is no stderr stream).
    pub tty: bool,
    /// Connect its input; otherwise it reads end-of-file.
    pub stdin: bool,
}

/// How an exec'd process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecExit {
    /// The exit code; 128 + signal when a signal ended it.
    pub code: i32,
}

/// A process that runs in a container, and its streams. Dropping the handle kills the process.
pub struct Execution {
    /// Its input when it was asked for. Dropping it is end-of-file (not on a terminal).
    pub stdin: Option<Writer>,
    /// Its output.
    pub stdout: Option<Reader>,
    /// Its error output; `None` on a terminal.
    pub stderr: Option<Reader>,
    /// What else can be done to it.
    pub control: Box<dyn ProcessControl>,
}

/// The streams of a container's first process. Dropping it detaches.
pub struct Attachment {
    /// Its input when the container has `stdin: true` and it was asked for.
    pub stdin: Option<Writer>,
    /// Its output from now on.
    pub stdout: Option<Reader>,
    /// Its error output from now on; `None` on a terminal.
    pub stderr: Option<Reader>,
    /// Resizes the terminal; `wait` returns when the container ended.
    pub control: Box<dyn ProcessControl>,
}

/// Control of a process whose streams somebody holds.
#[async_trait]
pub trait ProcessControl: Send + Sync {
    /// Sets the size of its terminal; nothing happens without one.
    fn resize(&self, width: u16, height: u16);
    /// Sends it a signal; for an attachment it does nothing.
    async fn signal(&self, signal: i32) -> Result<(), RuntimeError>;
    /// Waits for its end. May be called once.
    async fn wait(&mut self) -> Result<ExecExit, RuntimeError>;
}

/// CPU and memory of a container or sandbox at one instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// CPU time used so far in nanoseconds.
    pub cpu_nanoseconds: u64,
    /// Memory that cannot be taken away (working set) in bytes.
    pub memory_working_set: u64,
    /// Resident memory in bytes.
    pub memory_rss: u64,
    /// Number of processes.
    pub processes: u64,
}

/// CPU and memory of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUsage {
    /// When it was measured.
    pub at: Timestamp,
    /// The pod as a whole.
    pub pod: Usage,
    /// Of each running container: its name and usage.
    pub containers: Vec<(String, Usage)>,
}

/// Why the runtime refused. The words are those of containerd and the kubelet where they exist.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No such sandbox or container.
    #[error("{0}: not found")]
    NotFound(String),
    /// It is there, but ended.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The sandbox could not be made (event reason `FailedCreatePodSandBox`).
    #[error("failed to create pod sandbox: {0}")]
    Sandbox(String),
    /// The container could not be created (waiting reason `CreateContainerError`).
    #[error("failed to create containerd task: failed to create shim task: OCI runtime create failed: {0}")]
    Create(String),
    /// The container was created, its process could not be run (`RunContainerError`, or terminated with
    /// reason `StartError` and exit code 128).
    #[error("failed to create containerd task: failed to create shim task: OCI runtime create failed: {0}")]
    Start(String),
    /// The command could not be run in the container.
    #[error("failed to exec in container: {0}")]
    Exec(String),
    /// The request makes no sense: bad capability, bad user, …
    #[error("{0}")]
    Invalid(String),
    /// The shim's socket or a file failed.
    #[error("{0}: {1}")]
    Io(String, #[source] std::io::Error),
}

/// Whether the kernel enforces limits here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Enforcement {
    /// `limits.memory`
    pub memory: bool,
    /// `limits.cpu`
    pub cpu: bool,
    /// Number of processes.
    pub pids: bool,
    /// In one line why something is not enforced.
    pub reason: Option<String>,
}

/// Sandboxes and containers.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Starts a pod's shim with its namespaces. The network is attached by the caller, through
    /// [`Sandbox::netns`]. Fails when the pod already has a sandbox that runs; replaces one that was lost.
    async fn create_sandbox(&self, config: SandboxConfig) -> Result<Sandbox, RuntimeError>;
    /// Creates and starts a container. Its mounts must exist; the rootfs, `/proc`, `/dev`, `/sys`,
    /// `/etc/resolv.conf` and `/etc/hostname` are the runtime's.
    async fn start_container(&self, config: ContainerConfig) -> Result<Started, RuntimeError>;
    /// Sends a signal to a container's first process; succeeds when it already ended.
    async fn signal(&self, id: &str, signal: i32) -> Result<(), RuntimeError>;
    /// Runs a command in a running container.
    async fn exec(&self, id: &str, config: ExecConfig) -> Result<Execution, RuntimeError>;
    /// Joins the streams of a running container.
    async fn attach(&self, id: &str, stdin: bool) -> Result<Attachment, RuntimeError>;
    /// Removes a container: kills it when it runs, removes its root file system; its log stays. Idempotent.
    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError>;
    /// Ends all containers by SIGKILL and the shim; statuses stay listed. Idempotent.
    async fn stop_sandbox(&self, uid: &str) -> Result<(), RuntimeError>;
    /// Stops it and removes every trace but the logs and volumes. Idempotent.
    async fn remove_sandbox(&self, uid: &str) -> Result<(), RuntimeError>;
    /// Everything that exists, in no order.
    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError>;
    /// What ends from now on. Subscribe before [`Runtime::list`], so that nothing falls between.
    fn subscribe(&self) -> mpsc::UnboundedReceiver<RuntimeEvent>;
    /// Holds a pod to other limits, and containers that run in it (id, name).
    async fn resize(
        &self,
        uid: &str,
        pod: &Resources,
        containers: &[(String, String, Resources)],
    ) -> Result<(), RuntimeError>;
    /// CPU and memory of a pod, read now.
    async fn usage(&self, uid: &str) -> Result<PodUsage, RuntimeError>;
    /// Which limits are enforced.
    fn enforcement(&self) -> Enforcement;
}
