//! The last steps of a container's process between libcontainer's set-up and `execve`.
//!
//! libcontainer runs it as root with all capabilities up to here; identity, capabilities, seccomp and limits are
//! applied here, in the same way for a container's first process and for exec'd ones (to which libcontainer 0.7
//! gives neither a seccomp filter nor limits).

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{LinuxSeccomp, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};

use super::seccomp;
use crate::node::runtime::capabilities::CapabilitySet;

/// What is executed, and as whom.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The command.
    pub argv: Vec<String>,
    /// The whole environment, `NAME=value`.
    pub env: Vec<String>,
    /// Who.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Other groups.
    pub groups: Vec<u32>,
    /// What root keeps, and what nobody else can gain.
    pub capabilities: CapabilitySet,
    /// `no_new_privs`
    pub no_new_privileges: bool,
    /// The filter.
    pub seccomp: Filter,
    /// The AppArmor profile under which the next program runs.
    pub app_armor: Option<String>,
    /// Only one uid is mapped: identities are pretended.
    pub single_uid: bool,
    /// `oom_score_adj`; `None`: inherited.
    pub oom_score_adj: Option<i32>,
}

/// The seccomp filter of a process.
#[derive(Clone, Debug)]
pub enum Filter {
    /// None.
    Unconfined,
    /// [`seccomp::default_filter`]
    Default,
    /// From a file of the user's.
    Custom(Box<LinuxSeccomp>),
}

impl Executor for Payload {
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.find().map(|_| ()).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(()) // execve is given the environment
    }

    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let error = self.run();
        Err(ExecutorError::Other(error))
    }
}

impl Payload {
    fn run(&self) -> String {
        let path = match self.find() {
            Ok(path) => path,
            Err(message) => return message,
        };
        if let Err((step, error)) = self.become_user() {
            return format!("{step}: {}", text(&error));
        }
        let strings = |list: &[String]| list.iter().filter_map(|s| CString::new(s.as_bytes()).ok()).collect::<Vec<_>>();
        let (argv, env) = (strings(&self.argv), strings(&self.env));
        let Ok(file) = CString::new(path.as_os_str().as_bytes()) else { return "invalid path".to_owned() };
        let error = nix::unistd::execve(&file, &argv, &env).err().map_or_else(io::Error::last_os_error, Into::into);
        format!("exec {}: {}", path.display(), text(&error))
    }

    /// The file to execute: what execvp would find, in the words of Go's os/exec as runc prints them.
    fn find(&self) -> Result<PathBuf, String> {
        let name = self.argv.first().map(String::as_str).unwrap_or_default();
        if name.contains('/') {
            return executable(Path::new(name))
                .map(|()| PathBuf::from(name))
                .map_err(|error| format!("exec: \"{name}\": stat {name}: {}", text(&error)))
                .map_err(|message| message.replace(&format!("stat {name}: permission"), "permission"));
        }
        let path = self.env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
        let found = path.split(':').map(|d| Path::new(if d.is_empty() { "." } else { d }).join(name));
        let mut denied = false;
        for candidate in found {
            match executable(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(error) => denied |= error.kind() == io::ErrorKind::PermissionDenied,
            }
        }
        let why = if denied { "permission denied" } else { "executable file not found in $PATH" };
        Err(format!("exec: \"{name}\": {why}"))
    }

    fn become_user(&self) -> Result<(), (&'static str, io::Error)> {
        let step = |name: &'static str| move |error: io::Error| (name, error);
        if let Some(score) = self.oom_score_adj {
            let _ = nix::sys::prctl::set_dumpable(true);
            let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
            let score = score.clamp(own.trim().parse().unwrap_or(0).max(-1000), 1000);
            let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
        }
        if let Some(profile) = &self.app_armor {
            change_profile_on_exec(Path::new("/proc/self"), profile).map_err(step("apply apparmor profile"))?;
        }
        // First, as the filter refuses new namespaces, and a new user namespace gives all capabilities back.
        if self.single_uid {
            pretend(self.uid, self.gid).map_err(step("user namespace"))?;
        }
        // Loading a filter needs CAP_SYS_ADMIN unless no_new_privs is set; a filter that was set early must let
        // the calls below pass, which the default one does.
        if !self.no_new_privileges {
            self.filter().map_err(step("seccomp"))?;
        }
        self.capabilities.bound().map_err(step("capabilities"))?;
        if !self.single_uid {
            change_identity(self.uid, self.gid, &self.groups).map_err(step("set user"))?;
        }
        if self.uid == 0 {
            self.capabilities.keep().map_err(step("capabilities"))?;
        } else {
            CapabilitySet::default().keep().map_err(step("capabilities"))?;
        }
        // SAFETY: plain prctl; the parent is the shim, with which the container has to end.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if self.no_new_privileges {
            nix::sys::prctl::set_no_new_privs().map_err(|e| ("no_new_privs", e.into()))?;
            self.filter().map_err(step("seccomp"))?;
        }
        reset_signals();
        Ok(())
    }

    fn filter(&self) -> io::Result<()> {
        if self.single_uid {
            seccomp::load(&seccomp::pretending_filter())?;
        }
        match &self.seccomp {
            Filter::Unconfined => Ok(()),
            Filter::Default => seccomp::load(&seccomp::default_filter(self.capabilities)),
            Filter::Custom(profile) => {
                libcontainer::seccomp::initialize_seccomp(profile).map(|_| ()).map_err(io::Error::other)
            }
        }
    }
}

/// Asks the kernel to put the next program that this process executes under an AppArmor profile (`aa_change_onexec`).
/// `process`: the process's directory in /proc. Kernels with several security modules have a folder for each.
fn change_profile_on_exec(process: &Path, profile: &str) -> io::Result<()> {
    let own = process.join("attr/apparmor/exec");
    let path = if own.exists() { own } else { process.join("attr/exec") };
    // One write: the kernel takes each for a whole command.
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, format!("exec {profile}").as_bytes())
}

fn change_identity(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

/// With one mapped uid only: a user namespace in which that uid is called `uid`.
fn pretend(uid: u32, gid: u32) -> io::Result<()> {
    if uid == 0 && gid == 0 {
        return Ok(());
    }
    let _ = nix::sys::prctl::set_dumpable(true);
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?;
    let _ = std::fs::write("/proc/self/setgroups", "deny");
    std::fs::write("/proc/self/uid_map", format!("{uid} 0 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} 0 1"))
}

/// Signals as a program expects them: nothing ignored, nothing blocked.
fn reset_signals() {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
    for ignored in [Signal::SIGPIPE, Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the default action needs no handler.
        let _ = unsafe { signal(ignored, SigHandler::SigDfl) };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

fn executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(())
}

/// An errno in Go's words.
pub fn text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_given_to_the_kernel_in_one_command() {
        let process = tempfile::tempdir().expect("a directory");
        let write = |path: &str| {
            let path = process.path().join(path);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            std::fs::write(&path, "").expect("a file");
            path
        };
        let plain = write("attr/exec");
        change_profile_on_exec(process.path(), "k8s-nginx").expect("written");
        assert_eq!(std::fs::read_to_string(&plain).expect("readable"), "exec k8s-nginx");
        let own = write("attr/apparmor/exec");
        change_profile_on_exec(process.path(), "other").expect("written");
        assert_eq!(std::fs::read_to_string(own).expect("readable"), "exec other");
        assert!(change_profile_on_exec(Path::new("/nowhere"), "x").is_err());
    }
}
