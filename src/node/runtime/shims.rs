//! The runtime of a real node: one shim for each pod, found again when the daemon is started anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::sync::{mpsc, watch};

use super::cgroups::{self, Group};
use super::channel::Channel;
use super::shim::protocol::{EXITS, ExitRecord, LAUNCH, Reply, Request, listen_in};
use super::shim::{CONFIG, SHIM, ShimConfig};
use super::{
    Attachment, ContainerConfig, ContainerState, ContainerStatus, Enforcement, ExecConfig, Execution, Exit, PodUsage,
    Resources, Runtime, RuntimeError, RuntimeEvent, Sandbox, SandboxConfig, SandboxStatus, Started, streams, usage,
};
use crate::node::namespaces::{IdMap, place_descriptors, start_time};

/// Who runs in a sandbox's directory, written when it was started.
const SANDBOX: &str = "sandbox.json";
/// The prefix of directories that are being deleted.
const TRASH: &str = ".trash-";
/// Which process a container is, in its directory; written by the shim.
pub const STARTED: &str = "started.json";

/// What a [`ShimRuntime`] is told.
#[derive(Clone, Debug)]
pub struct ShimSettings {
    /// One directory per pod uid ([`crate::config::Paths::pods`]); ours is `sandbox` in each.
    pub pods: PathBuf,
    /// The node's network namespace, for pods with `hostNetwork`.
    pub node_netns: Option<PathBuf>,
    /// Which ids exist ([`crate::node::namespaces::Entered::ids`]).
    pub ids: IdMap,
    /// The name of the node's cgroup; another one for each profile.
    pub group: String,
    /// The program that is a shim when called with [`SHIM`]: `/proc/self/exe` but in tests.
    pub program: OsString,
}

/// Sandboxes and containers in shims.
pub struct ShimRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    settings: ShimSettings,
    group: Group,
    enforcement: Enforcement,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pods: HashMap<String, Pod>,
    subscribers: Vec<mpsc::UnboundedSender<RuntimeEvent>>,
}

struct Pod {
    config: SandboxConfig,
    sandbox: Option<Sandbox>,
    group: Group,
    containers: BTreeMap<String, ContainerStatus>,
    /// Set before the shim is told to stop: its end is no loss then.
    stopping: bool,
    /// Turns true when the shim's connection has closed.
    ended: watch::Receiver<bool>,
}

#[derive(Serialize, Deserialize)]
struct SandboxRecord {
    pid: i32,
    ticks: u64,
    created_at: Timestamp,
}

/// What the shim writes when a container's process runs.
#[derive(Serialize, Deserialize)]
pub struct StartedRecord {
    /// Its pid.
    pub pid: i32,
    /// When it started since the machine did (proc_pid_stat(5), field 22): no other process with its pid has that.
    #[serde(default)]
    pub ticks: u64,
    /// When.
    pub started_at: Timestamp,
}

impl ShimRuntime {
    /// Finds what runs from before, and is ready.
    ///
    /// # Errors
    /// When the pods' directory cannot be read.
    pub async fn open(settings: ShimSettings) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(&settings.pods)?;
        let (group, enforcement) = cgroups::probe(&settings.group);
        let inner = Arc::new(Inner { settings, group, enforcement, state: Mutex::default() });
        for entry in std::fs::read_dir(&inner.settings.pods)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(TRASH) {
                tokio::task::spawn_blocking(move || std::fs::remove_dir_all(entry.path()));
                continue;
            }
            let directory = entry.path().join("sandbox");
            if directory.join(CONFIG).exists()
                && let Err(error) = inner.adopt(&directory).await
            {
                tracing::warn!(directory = %directory.display(), %error, "a pod's sandbox could not be adopted");
            }
        }
        Ok(Arc::new(Self { inner }))
    }

    /// Removes the node's cgroup when no pod is left in it.
    pub fn close(&self) {
        if self.inner.lock().pods.values().all(|p| p.sandbox.is_none()) {
            self.inner.group.remove();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the runtime's state is held")
    }

    fn directory(&self, uid: &str) -> Result<PathBuf, RuntimeError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if uid.is_empty() || uid.len() > 128 || !uid.bytes().all(plain) {
            return Err(RuntimeError::Invalid(format!("invalid pod uid {uid:?}")));
        }
        Ok(self.settings.pods.join(uid).join("sandbox"))
    }

    /// Takes over a sandbox that a former daemon started.
    async fn adopt(self: &Arc<Self>, directory: &Path) -> io::Result<()> {
        let shim: ShimConfig = read_json(&directory.join(CONFIG))?;
        let uid = shim.sandbox.uid.clone();
        let record: Option<SandboxRecord> = read_json(&directory.join(SANDBOX)).ok();
        let alive = record.filter(|r| start_time(r.pid) == Some(r.ticks));
        // One whose namespaces a former holder kept cannot be reached by us, nor its network.
        let user_namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        let reachable = alive.as_ref().is_some_and(|r| user_namespace(&r.pid.to_string()) == user_namespace("self"));
        let exits = read_exits(directory);
        let mut containers = BTreeMap::new();
        for entry in std::fs::read_dir(directory.join("containers")).into_iter().flatten().flatten() {
            let path = entry.path();
            let (launch, started) = (read_json::<ContainerConfig>(&path.join(LAUNCH)), read_json(&path.join(STARTED)));
            let (Ok(config), Ok(started)) = (launch, started) else {
                let _ = std::fs::remove_dir_all(&path); // never ran
                continue;
            };
            let mut status = status(&shim.sandbox, &path, &config, &started);
            if let Some(exit) = exits.get(&status.id) {
                end(&mut status, exit.clone());
            }
            containers.insert(status.id.clone(), status);
        }
        let sandbox = alive.as_ref().map(|r| sandbox(&uid, r));
        let (ended_sender, ended) = watch::channel(false);
        let pod = Pod {
            config: shim.sandbox,
            sandbox: sandbox.clone(),
            group: shim.group,
            containers,
            stopping: false,
            ended,
        };
        self.lock().pods.insert(uid.clone(), pod);
        let followed = match (&sandbox, Channel::connect(directory)) {
            (Some(sandbox), Ok(channel)) if reachable => {
                self.watch(uid.clone(), sandbox.pid, channel, ended_sender).await.is_ok()
            }
            _ => false,
        };
        if !followed {
            // It lives and does not answer, or it is gone: either way its containers cannot be reached.
            self.give_up(&uid, directory, sandbox.map(|sandbox| sandbox.pid)).await;
        }
        Ok(())
    }

    /// Ends a sandbox that nobody can follow, and what runs in it.
    async fn give_up(&self, uid: &str, directory: &Path, shim: Option<i32>) {
        if let Some(pid) = shim {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        end_orphans(directory).await;
        self.lost(uid);
    }

    /// Follows a shim until its end. Returns when what ended before is known.
    async fn watch(
        self: &Arc<Self>,
        uid: String,
        pid: i32,
        channel: Channel,
        ended: watch::Sender<bool>,
    ) -> io::Result<()> {
        let process = process_end(pid)?;
        channel.send(&Request::Subscribe, &[]).await?;
        loop {
            match channel.receive::<Reply>().await? {
                Some((Reply::Exited(record), _)) => self.exited(&uid, record),
                Some(_) => break,
                None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            }
        }
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok(Some((reply, _))) = channel.receive::<Reply>().await {
                if let Reply::Exited(record) = reply {
                    inner.exited(&uid, record);
                }
            }
            let _ = process.readable().await; // its descriptors close a little before it is gone
            if let Ok(directory) = inner.directory(&uid) {
                end_orphans(&directory).await;
            }
            inner.lost(&uid);
            ended.send_replace(true);
        });
        Ok(())
    }

    /// Writes down that a sandbox's shim runs, and follows it.
    async fn begin(
        self: &Arc<Self>,
        directory: &Path,
        config: SandboxConfig,
        group: Group,
        pid: i32,
    ) -> Result<Sandbox, RuntimeError> {
        let failed = |step: &'static str| move |e: io::Error| RuntimeError::Sandbox(format!("{step}: {e}"));
        let record = SandboxRecord { pid, ticks: start_time(pid).unwrap_or(0), created_at: Timestamp::now() };
        write_json(&directory.join(SANDBOX), &record).map_err(failed("sandbox.json"))?;
        let sandbox = sandbox(&config.uid, &record);
        let channel = Channel::connect(directory).map_err(failed("shim.sock"))?;
        let (ended_sender, ended) = watch::channel(false);
        let uid = config.uid.clone();
        {
            let mut state = self.lock();
            let containers = state.pods.remove(&uid).map(|p| p.containers).unwrap_or_default();
            let sandbox = Some(sandbox.clone());
            state.pods.insert(uid.clone(), Pod { config, sandbox, group, containers, stopping: false, ended });
        }
        self.watch(uid, pid, channel, ended_sender).await.map_err(failed("shim"))?;
        Ok(sandbox)
    }

    fn exited(&self, uid: &str, record: ExitRecord) {
        let mut state = self.lock();
        let Some(container) = state.pods.get_mut(uid).and_then(|p| p.containers.get_mut(&record.id)) else { return };
        if container.exit.is_some() {
            return;
        }
        end(container, record.exit.clone());
        state.send(RuntimeEvent::Exited { pod_uid: uid.to_owned(), id: record.id, exit: record.exit });
    }

    /// The shim is gone, and every container with it.
    fn lost(&self, uid: &str) {
        let directory = self.directory(uid);
        let mut state = self.lock();
        let Some(pod) = state.pods.get_mut(uid) else { return };
        pod.sandbox = None;
        let stopping = pod.stopping;
        let now = Timestamp::now();
        let mut events = Vec::new();
        for container in pod.containers.values_mut().filter(|c| c.exit.is_none()) {
            let exit = Exit { code: 137, signal: Some(libc::SIGKILL), oom_killed: false, finished_at: now };
            end(container, exit.clone());
            if let Ok(directory) = &directory {
                let _ = append_exit(directory, &ExitRecord { id: container.id.clone(), exit: exit.clone() });
            }
            events.push(RuntimeEvent::Exited { pod_uid: uid.to_owned(), id: container.id.clone(), exit });
        }
        if !stopping {
            events.push(RuntimeEvent::SandboxLost { pod_uid: uid.to_owned() });
        }
        events.into_iter().for_each(|event| state.send(event));
    }

    /// The directory of a container's sandbox, when both exist.
    fn find(&self, id: &str) -> Result<(PathBuf, ContainerStatus, bool), RuntimeError> {
        let state = self.lock();
        let found = state.pods.iter().find_map(|(uid, p)| Some((uid, p, p.containers.get(id)?)));
        let (uid, pod, status) = found.ok_or_else(|| RuntimeError::NotFound(format!("container \"{id}\"")))?;
        Ok((self.directory(uid)?, status.clone(), pod.sandbox.is_some()))
    }

    /// The directory of a running container's sandbox.
    fn find_running(&self, id: &str) -> Result<PathBuf, RuntimeError> {
        let (directory, status, alive) = self.find(id)?;
        if !alive || status.exit.is_some() {
            return Err(RuntimeError::NotRunning(id.to_owned()));
        }
        Ok(directory)
    }

    async fn spawn(&self, directory: &Path, listener: OwnedFd) -> Result<i32, RuntimeError> {
        let failed = |step: &str| {
            let step = step.to_owned();
            move |error: io::Error| RuntimeError::Sandbox(format!("{step}: {error}"))
        };
        let (ready_read, ready_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|e| RuntimeError::Sandbox(format!("pipe: {e}")))?;
        let log = std::fs::File::create(directory.join("shim.log")).map_err(failed("shim.log"))?;
        let (listener_fd, ready_fd) = (listener.as_raw_fd(), ready_write.as_raw_fd());
        let mut command = tokio::process::Command::new(&self.settings.program);
        command
            .arg0("mini")
            .arg(SHIM)
            .arg(directory)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe { command.pre_exec(move || place_descriptors(listener_fd, ready_fd)) };
        let mut child = command.spawn().map_err(failed("start the shim"))?;
        drop((listener, ready_write));
        let pid = child.id().ok_or_else(|| RuntimeError::Sandbox("the shim ended at once".to_owned()))? as i32;
        let mut said = String::new();
        let reader = streams::AsyncFile::new(ready_read).map_err(failed("pipe"))?;
        let _ = reader.take(4096).read_to_string(&mut said).await;
        tokio::spawn(async move { child.wait().await }); // reaps it, whenever it ends
        if said == "\n" {
            return Ok(pid);
        }
        Err(RuntimeError::Sandbox(if said.is_empty() { "the shim ended at once".to_owned() } else { said }))
    }
}

impl State {
    fn send(&mut self, event: RuntimeEvent) {
        self.subscribers.retain(|s| s.send(event.clone()).is_ok());
    }
}

#[async_trait]
impl Runtime for ShimRuntime {
    async fn create_sandbox(&self, config: SandboxConfig) -> Result<Sandbox, RuntimeError> {
        let inner = &self.inner;
        let directory = inner.directory(&config.uid)?;
        let failed = |step: &'static str| move |e: io::Error| RuntimeError::Sandbox(format!("{step}: {e}"));
        if inner.lock().pods.get(&config.uid).is_some_and(|p| p.sandbox.is_some()) {
            return Err(RuntimeError::Sandbox(format!("pod {} already has a sandbox", config.uid)));
        }
        std::fs::create_dir_all(&directory).map_err(failed("sandbox directory"))?;
        std::fs::create_dir_all(&config.log_dir).map_err(failed("log directory"))?;
        let group = inner
            .group
            .child(&format!("pod{}", config.uid), &config.resources, true)
            .map_err(|e| RuntimeError::Sandbox(format!("cgroup: {e}")))?;
        let shim = ShimConfig {
            sandbox: config.clone(),
            single_uid: inner.settings.ids == IdMap::Single,
            node_netns: inner.settings.node_netns.clone(),
            group: group.clone(),
        };
        write_json(&directory.join(CONFIG), &shim).map_err(failed("shim.json"))?;
        let listener = listen_in(&directory).map_err(failed("shim.sock"))?;
        let pid = match inner.spawn(&directory, listener).await {
            Ok(pid) => pid,
            Err(error) => {
                group.remove();
                if !inner.lock().pods.contains_key(&config.uid) {
                    let _ = std::fs::remove_dir_all(&directory);
                }
                return Err(error);
            }
        };
        let uid = config.uid.clone();
        let begun = inner.begin(&directory, config, group.clone(), pid).await;
        if begun.is_err() {
            inner.give_up(&uid, &directory, Some(pid)).await;
            group.remove();
        }
        begun
    }

    async fn start_container(&self, config: ContainerConfig) -> Result<Started, RuntimeError> {
        let inner = &self.inner;
        let directory = inner.directory(&config.pod_uid)?;
        if config.id.is_empty() || !config.id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(RuntimeError::Invalid(format!("invalid container id {:?}", config.id)));
        }
        let sandbox = {
            let state = inner.lock();
            let pod = state.pods.get(&config.pod_uid).filter(|p| p.sandbox.is_some());
            pod.ok_or_else(|| RuntimeError::NotFound(format!("sandbox of pod \"{}\"", config.pod_uid)))?.config.clone()
        };
        let container = directory.join("containers").join(&config.id);
        let failed = |step: &'static str| move |e: io::Error| RuntimeError::Io(step.to_owned(), e);
        std::fs::create_dir_all(&container).map_err(failed("container directory"))?;
        write_json(&container.join(LAUNCH), &config).map_err(failed("launch.json"))?;
        let channel = Channel::connect(&directory).map_err(failed("shim.sock"))?;
        let reply = channel.ask(&Request::Start { id: config.id.clone() }, &[]).await;
        let (pid, started_at) = match reply {
            Ok((Reply::Started { pid, started_at }, _)) => (pid, started_at),
            Ok(_) => return Err(RuntimeError::Create("the shim answered something else".to_owned())),
            Err(error) => {
                let _ = std::fs::remove_dir_all(&container);
                return Err(error);
            }
        };
        let status = status(&sandbox, &container, &config, &StartedRecord { pid, ticks: 0, started_at });
        // It may have ended already, before it was known here: the record tells.
        let exit = read_exits(&directory).remove(&config.id);
        if let Some(pod) = inner.lock().pods.get_mut(&config.pod_uid) {
            pod.containers.insert(config.id.clone(), status);
        }
        if let Some(exit) = exit {
            inner.exited(&config.pod_uid, ExitRecord { id: config.id.clone(), exit });
        }
        Ok(Started { pid, started_at })
    }

    async fn signal(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        let directory = match self.inner.find_running(id) {
            Err(RuntimeError::NotRunning(_)) => return Ok(()),
            found => found?,
        };
        let channel = connect(&directory)?;
        channel.ask(&Request::Signal { id: id.to_owned(), signal }, &[]).await.map(|_| ())
    }

    async fn exec(&self, id: &str, config: ExecConfig) -> Result<Execution, RuntimeError> {
        streams::exec(connect(&self.inner.find_running(id)?)?, id, config).await
    }

    async fn attach(&self, id: &str, stdin: bool) -> Result<Attachment, RuntimeError> {
        streams::attach(connect(&self.inner.find_running(id)?)?, id, stdin).await
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let (directory, status, alive) = match self.inner.find(id) {
            Err(RuntimeError::NotFound(_)) => return Ok(()),
            found => found?,
        };
        if alive && let Ok(channel) = connect(&directory) {
            match channel.ask(&Request::Remove { id: id.to_owned() }, &[]).await {
                Err(RuntimeError::Io(..)) | Ok(_) => {} // the shim ended meanwhile, or it is done
                Err(error) => return Err(error),
            }
        }
        let _ = std::fs::remove_dir_all(directory.join("containers").join(id));
        if let Some(exit) = read_exits(&directory).remove(id) {
            self.inner.exited(&status.pod_uid, ExitRecord { id: id.to_owned(), exit });
        }
        if let Some(pod) = self.inner.lock().pods.get_mut(&status.pod_uid) {
            pod.containers.remove(id);
        }
        Ok(())
    }

    async fn stop_sandbox(&self, uid: &str) -> Result<(), RuntimeError> {
        let directory = self.inner.directory(uid)?;
        let (mut ended, group) = {
            let mut state = self.inner.lock();
            let Some(pod) = state.pods.get_mut(uid).filter(|p| p.sandbox.is_some()) else { return Ok(()) };
            pod.stopping = true;
            (pod.ended.clone(), pod.group.clone())
        };
        if let Ok(channel) = connect(&directory) {
            let _ = channel.ask(&Request::Stop, &[]).await; // also when it ended by itself meanwhile
        }
        let _ = ended.wait_for(|ended| *ended).await;
        group.remove();
        Ok(())
    }

    async fn remove_sandbox(&self, uid: &str) -> Result<(), RuntimeError> {
        self.stop_sandbox(uid).await?;
        let directory = self.inner.directory(uid)?;
        let group = self.inner.lock().pods.get(uid).map(|p| p.group.clone());
        if let Some(group) = group {
            group.remove();
        }
        // Out of the way at once; a root file system may take its time to delete.
        let trash = self.inner.settings.pods.join(format!("{TRASH}{uid}-{}", Timestamp::now().as_nanosecond()));
        match std::fs::rename(&directory, &trash) {
            Ok(()) => drop(tokio::task::spawn_blocking(move || std::fs::remove_dir_all(trash))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(RuntimeError::Io(directory.display().to_string(), error)),
        }
        if let Some(parent) = directory.parent() {
            let _ = std::fs::remove_dir(parent); // when nobody else keeps something there
        }
        self.inner.lock().pods.remove(uid);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        let state = self.inner.lock();
        let status = |pod: &Pod| {
            let mut containers: Vec<_> = pod.containers.values().cloned().collect();
            containers.sort_by_key(|c| c.started_at);
            SandboxStatus { config: pod.config.clone(), sandbox: pod.sandbox.clone(), containers }
        };
        Ok(state.pods.values().map(status).collect())
    }

    fn subscribe(&self) -> mpsc::UnboundedReceiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.inner.lock().subscribers.push(sender);
        receiver
    }

    async fn resize(
        &self,
        uid: &str,
        pod: &Resources,
        containers: &[(String, String, Resources)],
    ) -> Result<(), RuntimeError> {
        let group = self.inner.lock().pods.get(uid).map(|pod| pod.group.clone());
        let group = group.ok_or_else(|| RuntimeError::NotFound(uid.to_owned()))?;
        // Runs where the kernel does not enforce limits, too: there is no directory to write then.
        group.resize(pod, containers).map_err(RuntimeError::Invalid)
    }

    async fn usage(&self, uid: &str) -> Result<PodUsage, RuntimeError> {
        let (shim, group, running) = {
            let state = self.inner.lock();
            let pod = state.pods.get(uid).ok_or_else(|| RuntimeError::NotFound(uid.to_owned()))?;
            let running = pod.containers.values().filter_map(|c| Some((c.id.clone(), c.name.clone(), c.pid?)));
            (pod.sandbox.as_ref().map(|s| s.pid), pod.group.clone(), running.collect::<Vec<_>>())
        };
        Ok(usage::pod(shim, &group, &running))
    }

    fn enforcement(&self) -> Enforcement {
        self.inner.enforcement.clone()
    }
}

/// The image layers that the containers below `pods` stand on, running or not.
pub fn layers_in_use(pods: &Path) -> BTreeSet<PathBuf> {
    let below = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    let containers = below(pods.to_owned()).flat_map(|pod| below(pod.join("sandbox/containers")));
    let launched = containers.filter_map(|c| read_json::<ContainerConfig>(&c.join(LAUNCH)).ok());
    launched.flat_map(|config| config.image.layers).collect()
}

/// Readable when the process has ended.
fn process_end(pid: i32) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: plain system call with integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and an `OwnedFd` stays the same one for its whole life.
    Ok(unsafe { AsyncFd::register_with_interest(OwnedFd::from_raw_fd(fd as i32), Interest::READABLE) }?)
}

/// Ends the containers that outlived their shim. They are killed when their parent dies, but the kernel forgets that when a
/// process changes its identity (prctl(2), PR_SET_PDEATHSIG), as the entry points of many images do.
async fn end_orphans(directory: &Path) {
    for entry in std::fs::read_dir(directory.join("containers")).into_iter().flatten().flatten() {
        let Ok(started) = read_json::<StartedRecord>(&entry.path().join(STARTED)) else { continue };
        // Opened before it is looked at: if it is the one, it stays the one.
        let Ok(process) = process_end(started.pid) else { continue };
        if start_time(started.pid) != Some(started.ticks) {
            continue;
        }
        let fd = process.get_ref().as_raw_fd();
        // SAFETY: plain system call with integers and no siginfo.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, std::ptr::null::<u8>(), 0) };
        let _ = process.readable().await;
    }
}

fn connect(directory: &Path) -> Result<Channel, RuntimeError> {
    Channel::connect(directory).map_err(|e| RuntimeError::Io("shim.sock".to_owned(), e))
}

fn sandbox(uid: &str, record: &SandboxRecord) -> Sandbox {
    Sandbox {
        uid: uid.to_owned(),
        pid: record.pid,
        netns: format!("/proc/{}/ns/net", record.pid).into(),
        created_at: record.created_at,
    }
}

fn status(
    sandbox: &SandboxConfig,
    directory: &Path,
    config: &ContainerConfig,
    started: &StartedRecord,
) -> ContainerStatus {
    ContainerStatus {
        id: config.id.clone(),
        pod_uid: config.pod_uid.clone(),
        name: config.name.clone(),
        attempt: config.attempt,
        image: config.image.repo_tags.first().cloned().unwrap_or_else(|| config.image.id.clone()),
        image_id: config.image.image_id(),
        state: ContainerState::Running,
        pid: Some(started.pid),
        started_at: started.started_at,
        exit: None,
        log_path: sandbox.log_dir.join(&config.name).join(format!("{}.log", config.attempt)),
        message_path: config.termination_message_path.as_ref().map(|_| directory.join("termination-log")),
    }
}

fn end(status: &mut ContainerStatus, exit: Exit) {
    status.state = ContainerState::Exited;
    status.pid = None;
    status.exit = Some(exit);
}

fn read_exits(directory: &Path) -> HashMap<String, Exit> {
    let text = std::fs::read_to_string(directory.join(EXITS)).unwrap_or_default();
    let records = text.lines().filter_map(|line| serde_json::from_str::<ExitRecord>(line).ok());
    records.map(|record| (record.id, record.exit)).collect()
}

fn append_exit(directory: &Path, record: &ExitRecord) -> io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(directory.join(EXITS))?;
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    file.write_all(&line)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Writes a file as a whole or not at all.
pub fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, serde_json::to_vec(value)?)?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A runtime whose shims are this script, called with the sandbox's directory; its pid goes to the file `pid`.
    async fn runtime(directory: &Path, script: &str) -> Arc<ShimRuntime> {
        let program = directory.join("program");
        let pid = directory.join("pid");
        std::fs::write(&program, format!("#!/bin/sh\necho $$ > {}\n{script}\n", pid.display())).expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("executable");
        let pods = directory.join("pods");
        let settings = ShimSettings {
            pods,
            node_netns: None,
            ids: IdMap::Single,
            group: "not/there".into(),
            program: program.into(),
        };
        ShimRuntime::open(settings).await.expect("a runtime")
    }

    fn config(directory: &Path) -> SandboxConfig {
        SandboxConfig { uid: "one".into(), log_dir: directory.join("logs"), ..SandboxConfig::default() }
    }

    #[tokio::test]
    async fn a_shim_that_cannot_be_followed_does_not_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        // It says that it is ready, and then nothing.
        let mute = "echo >&4; exec 3>&- 4>&-; exec /bin/sleep 1000";
        let runtime = runtime(directory.path(), mute).await;
        for _ in 0..2 {
            let error = runtime.create_sandbox(config(directory.path())).await.expect_err("nobody listens");
            assert!(matches!(&error, RuntimeError::Sandbox(why) if why.starts_with("shim")), "{error}");
            let pid = std::fs::read_to_string(directory.path().join("pid")).expect("it ran");
            let pid: i32 = pid.trim().parse().expect("a pid");
            if let Ok(process) = process_end(pid) {
                let _ended = process.readable().await.expect("it ends");
            }
            let known = runtime.list().await.expect("a list");
            assert!(known.iter().all(|pod| pod.sandbox.is_none()));
        }
    }

    #[tokio::test]
    async fn a_shim_that_ends_while_it_is_adopted_is_lost() {
        let directory = tempfile::tempdir().expect("a directory");
        let sandbox = directory.path().join("pods/one/sandbox");
        std::fs::create_dir_all(&sandbox).expect("made");
        let mut shim = std::process::Command::new("/bin/sleep").arg("1000").spawn().expect("sleep runs");
        let pid = shim.id() as i32;
        let ticks = start_time(pid).expect("it lives");
        let record = SandboxRecord { pid, ticks, created_at: Timestamp::now() };
        write_json(&sandbox.join(SANDBOX), &record).expect("written");
        let shim_config = ShimConfig {
            sandbox: config(directory.path()),
            single_uid: true,
            node_netns: None,
            group: Group::default(),
        };
        write_json(&sandbox.join(CONFIG), &shim_config).expect("written");
        let listener = listen_in(&sandbox).expect("a socket");
        // Nobody answers: the connection is made, and closed with the listener.
        let closes = tokio::task::spawn_blocking(move || {
            use nix::poll::{PollFd, PollFlags, PollTimeout};
            use std::os::fd::AsFd as _;
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, PollTimeout::NONE).expect("somebody connects");
            drop(listener);
        });
        let runtime = runtime(directory.path(), "exit 1").await;
        closes.await.expect("it was closed");
        let found = runtime.list().await.expect("a list");
        assert!(found.len() == 1 && found[0].sandbox.is_none());
        assert!(!shim.wait().expect("it was started").success(), "nobody could end it later");
    }
}
