//! What this machine offers to a node: each thing that is missing degrades one feature, and has a command that mends it.

use std::fs::OpenOptions;
use std::path::Path;

use serde::Serialize;

use super::namespaces::{self, IdMap};
use super::runtime::{Enforcement, cgroups};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it is there.
    pub ok: bool,
    /// Whether no cluster starts without it.
    pub required: bool,
    /// What is found, in one line.
    pub found: String,
    /// What is worse without it.
    pub degrades: &'static str,
    /// The command that mends it; empty when it is there, or nothing helps.
    pub mend: String,
}

/// What was seen on the machine.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The result of making the namespaces: which ids exist, or why it failed; and what is degraded.
    pub namespaces: Result<(bool, Vec<String>), String>,
    /// Overlay is in `/proc/filesystems`, or its module can be loaded.
    pub overlay: bool,
    /// `/dev/net/tun` can be opened for reading and writing: `None` when there is none.
    pub tun: Option<bool>,
    /// Limits that are enforced; `None`: not looked at.
    pub enforcement: Option<Enforcement>,
    /// `net.ipv4.ip_unprivileged_port_start`
    pub first_port: u32,
    /// `fs.inotify.max_user_instances`
    pub inotify_instances: u32,
    /// Whether we are root.
    pub root: bool,
    /// nf_tables is in the kernel.
    pub nftables: bool,
}

/// Looks at the machine. Starts (and ends) a process that tries namespaces out; needs to be single-threaded no more
/// than [`std::process::Command`] does.
pub fn look() -> Facts {
    let number =
        |path: &str, default| std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(default);
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let module = |name: &str| {
        let modules = Path::new("/lib/modules").join(release.trim());
        ["modules.dep", "modules.builtin"].iter().any(|list| {
            std::fs::read_to_string(modules.join(list)).unwrap_or_default().contains(&format!("/{name}.ko"))
        })
    };
    let tun = Path::new("/dev/net/tun");
    Facts {
        namespaces: namespaces::try_out()
            .map(|(ids, warnings)| (ids != IdMap::Single, warnings))
            .map_err(|e| e.to_string()),
        overlay: filesystems.lines().any(|l| l.trim_start_matches("nodev").trim() == "overlay") || module("overlay"),
        tun: tun.exists().then(|| OpenOptions::new().read(true).write(true).open(tun).is_ok()),
        enforcement: Some(enforcement()),
        first_port: number("/proc/sys/net/ipv4/ip_unprivileged_port_start", 1024),
        inotify_instances: number("/proc/sys/fs/inotify/max_user_instances", 128),
        root: nix::unistd::geteuid().is_root(),
        nftables: Path::new("/proc/sys/net/netfilter/nf_log").exists() || module("nf_tables"),
    }
}

fn enforcement() -> Enforcement {
    let (group, mut enforcement) = cgroups::probe("mini-doctor");
    group.remove();
    // The command is shown on a line of its own.
    enforcement.reason = enforcement.reason.and_then(|r| r.split(';').next().map(str::to_owned));
    enforcement
}

/// What the facts mean: pure.
pub fn checks(facts: &Facts) -> Vec<Check> {
    let check = |name, ok, required, found: &str, degrades, mend: &str| Check {
        name,
        ok,
        required,
        found: found.to_owned(),
        degrades,
        mend: if ok { String::new() } else { mend.to_owned() },
    };
    let mut list = Vec::new();
    let none = "without them no cluster starts";
    match &facts.namespaces {
        Ok((range, warnings)) => {
            list.push(check("user namespaces", true, true, "they can be made", none, ""));
            let warning = warnings.first().map(String::as_str).unwrap_or_default();
            let (what, mend) = warning.split_once("; ").unwrap_or((warning, ""));
            let found = if *range { "a range of user ids" } else { what };
            let degrades = "all files of images belong to one user, and changes of owner are pretended";
            list.push(check("subordinate ids", *range, false, found, degrades, mend));
        }
        Err(error) => {
            let (what, mend) = error.rsplit_once(": ").unwrap_or((error, ""));
            let mend = if mend.starts_with("sudo ") { mend } else { "" };
            list.push(check("user namespaces", false, true, what, none, mend));
        }
    }
    let found = if facts.overlay { "in the kernel" } else { "not in the kernel" };
    list.push(check(
        "overlay file system",
        facts.overlay,
        true,
        found,
        "without it no container starts",
        "sudo modprobe overlay",
    ));
    let (ok, found, mend) = match facts.tun {
        Some(true) => (true, "can be opened", ""),
        Some(false) => (false, "/dev/net/tun cannot be opened", "sudo chmod 666 /dev/net/tun"),
        None => (false, "there is no /dev/net/tun", "sudo modprobe tun && sudo chmod 666 /dev/net/tun"),
    };
    list.push(check("TUN device", ok, false, found, "pods reach neither Services nor the world", mend));
    if let Some(enforcement) = &facts.enforcement {
        let ok = enforcement.memory && enforcement.cpu && enforcement.pids;
        let found = enforcement.reason.as_deref().unwrap_or("memory, cpu and pids");
        let mend = "systemd-run --user --scope -p Delegate=yes mini start";
        list.push(check("cgroup limits", ok, false, found, "resource limits of containers are not enforced", mend));
    }
    let ok = facts.root || facts.first_port <= 80;
    let found = format!("ports from {} on", facts.first_port);
    let mend = "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=80";
    list.push(check("low ports", ok, false, &found, "LoadBalancer ports below that get a high port instead", mend));
    let ok = facts.inotify_instances >= 128;
    let found = format!("{} instances for each user", facts.inotify_instances);
    let mend = "sudo sysctl -w fs.inotify.max_user_instances=512";
    list.push(check("inotify", ok, false, &found, "programs in pods that watch files may fail", mend));
    let found = if facts.nftables { "in the kernel" } else { "not in the kernel" };
    let mend = "sudo modprobe nf_tables";
    list.push(check("nf_tables", facts.nftables, false, found, "Services use the userspace path only", mend));
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(facts: &Facts) -> Vec<(&'static str, bool, String)> {
        checks(facts).into_iter().filter(|c| !c.ok).map(|c| (c.name, c.required, c.mend)).collect()
    }

    fn good() -> Facts {
        Facts {
            namespaces: Ok((true, Vec::new())),
            overlay: true,
            tun: Some(true),
            enforcement: None,
            first_port: 80,
            inotify_instances: 128,
            root: false,
            nftables: true,
        }
    }

    #[test]
    fn a_good_machine_has_nothing_to_mend() {
        assert_eq!(failing(&good()), []);
    }

    #[test]
    fn each_missing_thing_names_its_command() {
        let facts = Facts { tun: Some(false), first_port: 1024, ..good() };
        let expected = [
            ("TUN device", false, "sudo chmod 666 /dev/net/tun".to_owned()),
            ("low ports", false, "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=80".to_owned()),
        ];
        assert_eq!(failing(&facts), expected);
        let facts = Facts { namespaces: Ok((false, vec![namespaces::missing_range("me")])), ..good() };
        assert!(failing(&facts)[0].2.starts_with("sudo usermod --add-subuids"));
        let error = "cannot make the node's namespaces (x); user namespaces are switched off: sudo sysctl -w a=1";
        let facts = Facts { namespaces: Err(error.to_owned()), ..good() };
        assert_eq!(failing(&facts), [("user namespaces", true, "sudo sysctl -w a=1".to_owned())]);
    }
}
