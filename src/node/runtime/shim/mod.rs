//! The shim: one small single-threaded process for each pod. It is the pause container (its namespaces are the
//! pod's), starts the containers, owns their output, reaps them and answers the daemon, which it outlives.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::SandboxConfig;
use super::cgroups::{Directory, Group};

pub mod launch;
pub mod log;
mod payload;
pub mod protocol;
mod rootfs;
mod sandbox;
mod seccomp;
mod serve;

pub use serve::set_window;

/// The hidden subcommand that a shim is started with; its argument is the sandbox's directory.
pub const SHIM: &str = "node-shim";
/// [`ShimConfig`] in the sandbox's directory.
pub const CONFIG: &str = "shim.json";
/// The descriptor that a shim listens on.
pub const LISTENER: i32 = 3;
/// The descriptor on which a shim says that it is ready (an empty line) or why it cannot be.
pub const READY: i32 = 4;

/// What the daemon tells a shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShimConfig {
    /// The sandbox.
    pub sandbox: SandboxConfig,
    /// Only one uid and gid are mapped.
    pub single_uid: bool,
    /// The network namespace of the node, for `host_network`.
    pub node_netns: Option<PathBuf>,
    /// The pod's group.
    pub group: Group,
}

/// The shim's main function.
pub fn shim_main(args: &[OsString]) -> ExitCode {
    let Some(directory) = args.first().map(PathBuf::from) else { return ExitCode::FAILURE };
    // SAFETY: whoever starts a shim passes these two; nobody else owns them here.
    let (listener, mut ready) = unsafe { (OwnedFd::from_raw_fd(LISTENER), File::from(OwnedFd::from_raw_fd(READY))) };
    for fd in [listener.as_fd(), ready.as_fd()] {
        // SAFETY: fcntl with integers on our own descriptor.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    let launcher = match sandbox::set_up(&directory) {
        Ok(launcher) => launcher,
        Err(message) => {
            let _ = write!(ready, "{message}");
            return ExitCode::FAILURE;
        }
    };
    let served = serve::Server::new(launcher, listener).and_then(|server| {
        let _ = writeln!(ready);
        drop(ready);
        server.run()
    });
    if let Err(error) = served {
        eprintln!("shim: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Names a group through open descriptors, so that mounts over /sys/fs/cgroup do not hide it.
fn pinned(group: &Group, keep: &mut Vec<File>) -> io::Result<Group> {
    let mut directories = Vec::new();
    for directory in &group.directories {
        let file = File::open(&directory.path)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        directories.push(Directory { controller: directory.controller, path });
        keep.push(file);
    }
    Ok(Group { directories })
}

fn read_config(directory: &Path) -> Result<ShimConfig, String> {
    let bytes = std::fs::read(directory.join(CONFIG)).map_err(|e| format!("{CONFIG}: {e}"))?;
    serde_json::from_slice(&bytes).map_err(|e| format!("{CONFIG}: {e}"))
}

/// Containers by id.
type ById<T> = BTreeMap<String, T>;
