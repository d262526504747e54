//! Starting processes through libcontainer, with what it needs around it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::OFlag;
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use nix::unistd::pipe2;
use serde_json::json;

use super::payload::{Filter, Payload, text};
use super::protocol::Failure;
use super::{ShimConfig, rootfs};
use crate::node::root_dir::RootDir;
use crate::node::runtime::capabilities::CapabilitySet;
use crate::node::runtime::cgroups::Group;
use crate::node::runtime::spec::{self, Surroundings};
use crate::node::runtime::{ContainerConfig, Seccomp};

/// A refusal: its kind and message.
pub type Refusal = (Failure, String);

/// The group that libcontainer is told of. It does not exist, and cannot be made: /sys/fs/cgroup is read-only here.
const ABSENT_GROUP: &str = "/absent";

/// Starts processes in one sandbox.
pub struct Launcher {
    /// The sandbox's directory.
    pub directory: PathBuf,
    /// What the daemon said.
    pub config: ShimConfig,
    /// The pod's group, by names that the mount over /sys/fs/cgroup does not hide.
    pub pod_group: Group,
    /// The shim's own group.
    pub own_group: Group,
    /// The first process of a shared pid namespace.
    pub pause: Option<i32>,
    /// Where libcontainer's errors are written, by this process and its children.
    errors: File,
    consoles: u64,
}

/// A started first process and our ends of its streams.
pub struct Launched {
    pub pid: i32,
    pub started_at: Timestamp,
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub terminal: Option<OwnedFd>,
    pub group: Group,
    pub payload: Payload,
}

impl Launcher {
    /// Prepares for a sandbox.
    pub fn new(directory: PathBuf, config: ShimConfig, pod_group: Group, own_group: Group) -> std::io::Result<Self> {
        let memory = memfd_create(c"libcontainer-errors", MemFdCreateFlag::MFD_CLOEXEC)?;
        let errors = File::from(memory);
        // SAFETY: fcntl with integers on our own descriptor.
        unsafe { libc::fcntl(errors.as_raw_fd(), libc::F_SETFL, libc::O_APPEND) };
        let writer = errors.try_clone()?;
        let _ = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::ERROR)
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .with_level(false)
            .with_writer(std::sync::Mutex::new(writer))
            .try_init();
        Ok(Self { directory, config, pod_group, own_group, pause: None, errors, consoles: 0 })
    }

    fn container_directory(&self, id: &str) -> PathBuf {
        self.directory.join("containers").join(id)
    }

    /// Creates and starts a container; `target`: a process whose pid namespace it joins.
    pub fn start(&mut self, config: &ContainerConfig, target: Option<i32>) -> Result<Launched, Refusal> {
        let directory = self.container_directory(&config.id);
        let create = |message: String| (Failure::Create, message);
        rootfs::mount_overlay(&directory, &config.image.layers).map_err(create)?;
        let mut config = config.clone();
        let started = rootfs::mount_images(&directory, &mut config.mounts)
            .map_err(create)
            .and_then(|()| self.start_mounted(&config, &directory, target));
        if started.is_err() {
            self.forget(&config.id);
        }
        started
    }

    fn start_mounted(
        &mut self,
        config: &ContainerConfig,
        directory: &Path,
        target: Option<i32>,
    ) -> Result<Launched, Refusal> {
        let create = |message: String| (Failure::Create, message);
        let root = RootDir::open(&directory.join("rootfs")).map_err(|e| create(e.to_string()))?;
        let payload = self.payload(config, &root)?;
        let working_dir = config.working_dir.clone().filter(|d| !d.is_empty());
        let working_dir = working_dir.unwrap_or_else(|| config.image.config.working_dir.clone());
        let working_dir = if working_dir.starts_with('/') { working_dir } else { format!("/{working_dir}") };
        rootfs::make_working_directory(&root, Path::new(&working_dir))
            .map_err(|e| create(format!("mkdir {working_dir}: {}", text(&e))))?;
        self.mount_points(config, &root).map_err(create)?;
        if config.termination_message_path.is_some() {
            let path = directory.join("termination-log");
            let made = File::create(&path).and_then(|f| {
                use std::os::unix::fs::PermissionsExt;
                f.set_permissions(std::fs::Permissions::from_mode(0o666))
            });
            made.map_err(|e| create(e.to_string()))?;
        }
        let around = Surroundings {
            sandbox: &self.directory,
            directory,
            pause: target.or(self.pause),
            single_uid: self.config.single_uid,
            working_dir: &working_dir,
            host_queues: Path::new("/dev/mqueue").is_dir(),
            cgroup_parent_absent: ABSENT_GROUP,
        };
        let document = spec::document(&self.config.sandbox, config, &around);
        std::fs::write(directory.join("config.json"), document.to_string()).map_err(|e| create(e.to_string()))?;
        let group = self
            .pod_group
            .child(&config.id, &config.resources, false)
            .map_err(|e| create(format!("cgroup: {}", text(&e))))?;
        let mut launched = self.launch(config, directory, payload, group)?;
        launched.started_at = Timestamp::now();
        Ok(launched)
    }

    fn launch(
        &mut self,
        config: &ContainerConfig,
        directory: &Path,
        payload: Payload,
        group: Group,
    ) -> Result<Launched, Refusal> {
        let create = |message: String| (Failure::Create, message);
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|e| create(format!("pipe: {e}")));
        let (report, fault) = pipe()?;
        let mut streams = (None, None, None);
        let run = Run { payload: payload.clone(), fault: fault.as_raw_fd() };
        let mut builder = self.builder(&config.id, run).map_err(create)?;
        let console = config.tty.then(|| self.console()).transpose().map_err(create)?;
        if let Some(console) = &console {
            builder = builder.with_console_socket(Some(console.path.clone()));
        } else {
            let ((out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?);
            let input = if config.stdin {
                let (read, write) = pipe()?;
                streams.0 = Some(write);
                read
            } else {
                OwnedFd::from(File::open("/dev/null").map_err(|e| create(e.to_string()))?)
            };
            (streams.1, streams.2) = (Some(out_read), Some(err_read));
            builder = builder.with_stdin(input).with_stdout(out_write).with_stderr(err_write);
        }
        group.enter().map_err(|e| create(format!("cgroup: {}", text(&e))))?;
        let built = builder.as_init(directory).with_systemd(false).with_detach(true).build();
        let started = built.map_err(|e| chain(&e)).and_then(|mut container| {
            let pid = container.pid().map(|p| p.as_raw());
            container.start().map_err(|e| chain(&e))?;
            pid.ok_or_else(|| "no process".to_owned())
        });
        self.back();
        drop(fault);
        let mut complaint = String::new();
        let _ = File::from(report).take(16 << 10).read_to_string(&mut complaint);
        let errors = self.take_errors();
        let pid = match (complaint.is_empty(), started) {
            (false, _) => {
                return Err((
                    Failure::Start,
                    format!("unable to start container process: error during container init: {complaint}: unknown"),
                ));
            }
            (true, Err(error)) => return Err(create(with_causes(&error, &errors))),
            (true, Ok(pid)) => pid,
        };
        let terminal = console.map(Console::accept).transpose().map_err(create)?;
        let (stdin, stdout, stderr) = streams;
        Ok(Launched { pid, started_at: Timestamp::now(), stdin, stdout, stderr, terminal, group, payload })
    }

    /// Runs a command in a container. `streams`: stdin, stdout, stderr; none: a terminal, whose end comes back.
    pub fn exec(
        &mut self,
        id: &str,
        base: &Payload,
        group: &Group,
        argv: Vec<String>,
        streams: Option<[OwnedFd; 3]>,
    ) -> Result<(i32, Option<OwnedFd>), Refusal> {
        let refuse = |message: String| (Failure::Exec, message);
        let (report, fault) = pipe2(OFlag::O_CLOEXEC).map_err(|e| refuse(format!("pipe: {e}")))?;
        let mut payload = Payload { argv, oom_score_adj: None, ..base.clone() };
        if streams.is_none() && !payload.env.iter().any(|e| e.starts_with("TERM=")) {
            payload.env.push("TERM=xterm".to_owned());
        }
        let directory = self.container_directory(id);
        let config: serde_json::Value = std::fs::read(directory.join("config.json"))
            .ok()
            .and_then(|b| serde_json::from_slice(&b).ok())
            .ok_or_else(|| (Failure::NotFound, id.to_owned()))?;
        let mut process = config["process"].clone();
        process["terminal"] = json!(streams.is_none());
        let process_file = directory.join("process.json");
        std::fs::write(&process_file, process.to_string()).map_err(|e| refuse(e.to_string()))?;
        let run = Run { payload, fault: fault.as_raw_fd() };
        let mut builder = self.builder(id, run).map_err(refuse)?;
        let mut console = None;
        match streams {
            Some([stdin, stdout, stderr]) => {
                builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
            }
            None => {
                let socket = self.console().map_err(refuse)?;
                builder = builder.with_console_socket(Some(socket.path.clone()));
                console = Some(socket);
            }
        }
        group.enter().map_err(|e| refuse(format!("cgroup: {}", text(&e))))?;
        let started = builder.as_tenant().with_process(Some(&process_file)).with_detach(true).build();
        self.back();
        drop(fault);
        self.sweep_sockets(id);
        let mut complaint = String::new();
        let _ = File::from(report).take(16 << 10).read_to_string(&mut complaint);
        let errors = self.take_errors();
        match (complaint.is_empty(), started) {
            (false, _) => Err(refuse(format!(
                "OCI runtime exec failed: exec failed: unable to start container process: {complaint}: unknown"
            ))),
            (true, Err(error)) => Err(refuse(with_causes(&chain(&error), &errors))),
            (true, Ok(pid)) => Ok((pid.as_raw(), console.map(Console::accept).transpose().map_err(refuse)?)),
        }
    }

    /// Unmounts and deletes what a container left. Its log and its directory's small files stay until `remove`.
    pub fn forget(&self, id: &str) {
        rootfs::unmount(&self.container_directory(id));
        let _ = std::fs::remove_dir_all(self.directory.join("state").join(id));
        if let Ok(group) = self.pod_group.child(id, &Default::default(), false) {
            group.kill();
            group.remove();
        }
    }

    /// Deletes a container's directory.
    pub fn remove(&self, id: &str) {
        self.forget(id);
        let _ = std::fs::remove_dir_all(self.container_directory(id));
    }

    fn builder(&self, id: &str, run: Run) -> Result<ContainerBuilder, String> {
        let state = self.directory.join("state");
        std::fs::create_dir_all(&state).map_err(|e| e.to_string())?;
        ContainerBuilder::new(id.to_owned(), SyscallType::default())
            .with_executor(run)
            .with_root_path(&state)
            .map_err(|e| chain(&e))
    }

    /// After libcontainer: dumpable again, in our own group, in our own directory.
    fn back(&self) {
        let _ = nix::sys::prctl::set_dumpable(true);
        let _ = self.own_group.enter();
        let _ = std::env::set_current_dir("/");
    }

    /// libcontainer leaves the sockets of each exec behind.
    fn sweep_sockets(&self, id: &str) {
        for entry in std::fs::read_dir(self.directory.join("state").join(id)).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("tenant-") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn take_errors(&mut self) -> String {
        let mut all = String::new();
        let _ = self.errors.seek(SeekFrom::Start(0));
        let _ = Read::by_ref(&mut self.errors).take(16 << 10).read_to_string(&mut all);
        let _ = self.errors.set_len(0);
        all
    }

    fn payload(&self, config: &ContainerConfig, root: &RootDir) -> Result<Payload, Refusal> {
        let security = &config.security;
        let invalid = |message: String| (Failure::Create, message);
        let user = rootfs::find_user(root, &config.image.config.user, security.run_as_user, security.run_as_group)
            .map_err(invalid)?;
        let mut groups = if security.strict_groups { Vec::new() } else { user.groups.clone() };
        groups.extend(security.supplemental_groups.iter().filter_map(|g| u32::try_from(*g).ok()));
        groups.push(user.gid);
        groups.sort_unstable();
        groups.dedup();
        let capabilities =
            CapabilitySet::merged(security.privileged, &security.add_capabilities, &security.drop_capabilities)
                .map_err(invalid)?;
        let seccomp = match &security.seccomp {
            _ if security.privileged => Filter::Unconfined,
            Seccomp::Unconfined => Filter::Unconfined,
            Seccomp::RuntimeDefault => Filter::Default,
            Seccomp::Localhost(path) => {
                let bytes = std::fs::read(path)
                    .map_err(|e| invalid(format!("cannot load seccomp profile {:?}: {}", path.display(), text(&e))))?;
                let profile = serde_json::from_slice(&bytes)
                    .map_err(|e| invalid(format!("decoding seccomp profile failed: {e}")))?;
                Filter::Custom(Box::new(profile))
            }
        };
        Ok(Payload {
            argv: spec::command_line(config).map_err(invalid)?,
            env: spec::environment(config, &self.config.sandbox.hostname, &user.home),
            uid: user.uid,
            gid: user.gid,
            groups,
            capabilities,
            no_new_privileges: security.no_new_privileges && !security.privileged,
            seccomp,
            app_armor: security.app_armor.clone(),
            single_uid: self.config.single_uid,
            oom_score_adj: Some(config.oom_score_adj),
        })
    }

    /// Makes the places that mounts go to, inside the root file system whatever links it holds.
    fn mount_points(&self, config: &ContainerConfig, root: &RootDir) -> Result<(), String> {
        let files = ["/etc/resolv.conf", "/etc/hostname"].map(PathBuf::from);
        let mut wanted: Vec<(PathBuf, bool)> = files.into_iter().map(|p| (p, false)).collect();
        wanted.extend(config.termination_message_path.clone().map(|p| (p, false)));
        let below_dev = |p: &Path| p.starts_with("/dev") || p.starts_with("/proc") || p.starts_with("/sys");
        for mount in &config.mounts {
            if !mount.destination.is_absolute() {
                return Err(format!("mount destination {} is not absolute", mount.destination.display()));
            }
            let directory = std::fs::metadata(&mount.source)
                .map_err(|e| format!("failed to mount {:?}: {}", mount.source.display(), text(&e)))?
                .is_dir();
            wanted.push((mount.destination.clone(), directory));
        }
        wanted.sort_by_key(|(path, _)| path.components().count());
        let nested =
            |path: &Path| config.mounts.iter().any(|m| m.destination != path && path.starts_with(&m.destination));
        for (path, directory) in wanted.iter().filter(|(p, _)| !below_dev(p) && !nested(p)) {
            let made = if *directory { root.make_directories(path).map(|_| ()) } else { root.make_file(path) };
            made.map_err(|e| format!("mount point {}: {}", path.display(), text(&e)))?;
        }
        Ok(())
    }

    fn console(&mut self) -> Result<Console, String> {
        self.consoles += 1;
        let path = self.directory.join(format!("console-{}", self.consoles));
        Console::listen(path).map_err(|e| format!("console: {e}"))
    }
}

/// A payload that says on a pipe why it could not be executed; closed by `execve` otherwise.
#[derive(Clone)]
struct Run {
    payload: Payload,
    fault: RawFd,
}

impl Run {
    fn complain(&self, message: &str) {
        // SAFETY: the descriptor is open in every process that libcontainer forks from us.
        let mut pipe = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(self.fault) });
        let _ = pipe.write_all(message.as_bytes());
    }
}

impl libcontainer::workload::Executor for Run {
    fn exec(&self, spec: &libcontainer::oci_spec::runtime::Spec) -> Result<(), libcontainer::workload::ExecutorError> {
        let result = self.payload.exec(spec);
        if let Err(error) = &result {
            self.complain(&error.to_string());
        }
        result
    }

    fn validate(
        &self,
        spec: &libcontainer::oci_spec::runtime::Spec,
    ) -> Result<(), libcontainer::workload::ExecutorValidationError> {
        let result = self.payload.validate(spec);
        if let Err(error) = &result {
            self.complain(&error.to_string());
        }
        result
    }

    fn setup_envs(
        &self,
        envs: std::collections::HashMap<String, String>,
    ) -> Result<(), libcontainer::workload::ExecutorSetEnvsError> {
        self.payload.setup_envs(envs)
    }
}

/// The socket on which libcontainer hands a terminal over.
struct Console {
    path: PathBuf,
    listener: OwnedFd,
}

impl Console {
    fn listen(path: PathBuf) -> std::io::Result<Self> {
        use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
        let _ = std::fs::remove_file(&path);
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let directory = File::open(path.parent().unwrap_or(Path::new("/")))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let short = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
        bind(listener.as_raw_fd(), &UnixAddr::new(short.as_str())?)?;
        listen(&listener, Backlog::new(1).expect("1 is a valid backlog"))?;
        Ok(Self { path, listener })
    }

    fn accept(self) -> Result<OwnedFd, String> {
        use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockFlag, UnixAddr, accept4, recvmsg};
        let stream = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).map_err(|e| format!("console: {e}"))?;
        // SAFETY: the kernel has just made it for us.
        let stream = unsafe { OwnedFd::from_raw_fd(stream) };
        let (mut bytes, mut space) = ([0; 64], nix::cmsg_space!([RawFd; 1]));
        let mut iov = [std::io::IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut iov, Some(&mut space), flags)
            .map_err(|e| format!("console: {e}"))?;
        let fds = message.cmsgs().map_err(|e| format!("console: {e}"))?.find_map(|m| match m {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        // SAFETY: as above.
        fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).ok_or_else(|| "console: no terminal came".to_owned())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An error with its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    text
}

/// libcontainer's errors lose their causes; what it logged has them.
fn with_causes(error: &str, logged: &str) -> String {
    match logged.lines().find(|l| !l.trim().is_empty()) {
        Some(first) => format!("{error}: {}", first.trim()),
        None => error.to_owned(),
    }
}
