//! Turning a fresh process into a pod's sandbox: namespaces, host name, loopback, sysctls, `/dev/shm`.

use std::fs::File;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::launch::Launcher;
use super::{ShimConfig, pinned, read_config};
use crate::node::namespaces::loopback_up;
use crate::node::runtime::cgroups::{Controller, Group};
use crate::node::runtime::{DnsConfig, Resources};

/// Makes this process the sandbox of `directory`.
pub fn set_up(directory: &Path) -> Result<Launcher, String> {
    let config = read_config(directory)?;
    let step = |name: &'static str| move |e: nix::Error| format!("{name}: {}", e.desc().to_lowercase());
    let _ = nix::sys::prctl::set_name(c"mini-shim");
    nix::sys::prctl::set_child_subreaper(true).map_err(step("subreaper"))?;
    let mut keep = Vec::new();
    let pod_group = pinned(&config.group, &mut keep).map_err(|e| format!("cgroup: {e}"))?;
    let own_group = own_group(&pod_group)?;
    own_group.enter().map_err(|e| format!("cgroup: {e}"))?;
    std::mem::forget(keep); // for the life of the process: the group's names go through them

    let sandbox = &config.sandbox;
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWCGROUP;
    if !sandbox.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    if sandbox.host_network {
        if let Some(path) = &config.node_netns {
            let netns = File::open(path).map_err(|e| format!("node network namespace: {e}"))?;
            setns(netns, CloneFlags::CLONE_NEWNET).map_err(step("node network namespace"))?;
        }
    } else {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).map_err(step("namespaces"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(step("mount propagation"))?;
    hide_cgroups()?;
    if !sandbox.host_network {
        nix::unistd::sethostname(&sandbox.hostname).map_err(step("hostname"))?;
        loopback_up().map_err(|e| format!("loopback: {e}"))?;
    }
    for (name, value) in &sandbox.sysctls {
        set_sysctl(name, value)?;
    }
    write_files(directory, &config)?;
    let pause = sandbox.share_pid.then(pause).transpose()?;
    let mut launcher = Launcher::new(directory.to_owned(), config, pod_group, own_group).map_err(|e| e.to_string())?;
    launcher.pause = pause;
    Ok(launcher)
}

/// Where the shim itself lives: on v2 a leaf beside the containers, as the pod's group holds no process itself.
fn own_group(pod: &Group) -> Result<Group, String> {
    if pod.directories.iter().any(|d| d.controller == Controller::Unified) {
        return pod.child("shim", &Resources::default(), false).map_err(|e| format!("cgroup: {e}"));
    }
    Ok(pod.clone())
}

/// libcontainer 0.7 manages cgroups itself and fails where it may not. It is shown a hierarchy in which nothing can
/// be made, which it takes for "rootless, best effort"; ours are entered before it is called.
fn hide_cgroups() -> Result<(), String> {
    let (target, none) = ("/sys/fs/cgroup", None::<&str>);
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let Err(error) = mount(Some("cgroup2"), target, Some("cgroup2"), flags, none) {
        // A kernel without cgroup v2, or one that is visible in part only: a read-only view of what is there.
        mount(Some(target), target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .map_err(|_| format!("mount cgroup2: {}", error.desc().to_lowercase()))?;
    }
    mount(none, target, none, read_only | flags, none)
        .map_err(|e| format!("read-only cgroups: {}", e.desc().to_lowercase()))
}

fn set_sysctl(name: &str, value: &str) -> Result<(), String> {
    // Both separators are allowed (sysctl(8)); a name never leaves /proc/sys.
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    if path.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(format!("invalid sysctl {name:?}"));
    }
    std::fs::write(format!("/proc/sys/{path}"), value).map_err(|e| format!("open /proc/sys/{path}: {e}"))
}

fn write_files(directory: &Path, config: &ShimConfig) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", directory.display());
    let hostname = if config.sandbox.host_network {
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
    } else {
        format!("{}\n", config.sandbox.hostname)
    };
    std::fs::write(directory.join("hostname"), hostname).map_err(failed)?;
    std::fs::write(directory.join("resolv.conf"), resolv_conf(&config.sandbox.dns)).map_err(failed)?;
    let shm = directory.join("shm");
    std::fs::create_dir_all(&shm).map_err(failed)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), &shm, Some("tmpfs"), flags, Some("mode=1777,size=65536k"))
        .map_err(|e| format!("mount /dev/shm: {}", e.desc().to_lowercase()))
}

/// As containerd writes it.
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

/// Starts the first process of a shared pid namespace: it reaps what is left to it, and nothing else.
fn pause() -> Result<i32, String> {
    let flags = (libc::CLONE_NEWPID | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: a fork of a single-threaded process, into a new pid namespace.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        0 => {
            let _ = nix::sys::prctl::set_name(c"pause");
            // SAFETY: plain system calls; the process does nothing else for the rest of its life.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
                let mut child = std::mem::zeroed();
                libc::sigemptyset(&mut child);
                libc::sigaddset(&mut child, libc::SIGCHLD);
                libc::sigprocmask(libc::SIG_BLOCK, &child, std::ptr::null_mut());
                loop {
                    while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
                    libc::sigwaitinfo(&child, std::ptr::null_mut());
                }
            }
        }
        pid if pid > 0 => Ok(pid as i32),
        _ => Err(format!("pid namespace: {}", std::io::Error::last_os_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_containerds() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        let expected = "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), expected);
    }

    #[test]
    fn a_sysctl_stays_in_its_tree() {
        assert!(set_sysctl("kernel/../../etc/x", "1").is_err());
        assert!(set_sysctl("..", "1").is_err());
    }
}
