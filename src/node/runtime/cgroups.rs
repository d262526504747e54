//! A small cgroup driver that finds out by doing: v2 where it is delegated, v1 directories that we may write,
//! else limits are not enforced.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Enforcement, Resources, Usage};

/// One directory of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// What it controls.
    pub controller: Controller,
    /// Where it is.
    pub path: PathBuf,
}

/// What a directory controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Controller {
    /// v1 memory
    Memory,
    /// v1 cpu
    Cpu,
    /// v1 cpuacct
    CpuAccounting,
    /// v1 pids
    Pids,
    /// v2, all together
    Unified,
}

/// A group: one directory in each hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its directories; none: nothing is enforced.
    pub directories: Vec<Directory>,
}

const ROOT: &str = "/sys/fs/cgroup";
/// The controllers that are handed down on v2.
const SUBTREE: [&str; 3] = ["+memory", "+cpu", "+pids"];

/// Finds what can be enforced, making the group `name` below our own.
pub fn probe(name: &str) -> (Group, Enforcement) {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let root = Path::new(ROOT);
    let group = match std::fs::metadata(root.join("cgroup.controllers")) {
        Ok(_) => probe_unified(root, &own, name),
        Err(_) => probe_legacy(root, &own, name),
    };
    let has = |wanted: Controller| group.directories.iter().any(|d| d.controller == wanted);
    let unified = group.directories.iter().find(|d| d.controller == Controller::Unified);
    let handed = unified.map(|d| read(&d.path, "cgroup.subtree_control")).unwrap_or_default();
    let on = |name: &str| handed.split_whitespace().any(|c| c == name);
    let mut enforcement = Enforcement {
        memory: has(Controller::Memory) || on("memory"),
        cpu: has(Controller::Cpu) || on("cpu"),
        pids: has(Controller::Pids) || on("pids"),
        reason: None,
    };
    let missing: Vec<&str> = [("memory", enforcement.memory), ("cpu", enforcement.cpu), ("pids", enforcement.pids)]
        .iter()
        .filter(|(_, on)| !on)
        .map(|(name, _)| *name)
        .collect();
    if !missing.is_empty() {
        enforcement.reason = Some(format!(
            "limits are not enforced for {}: the cgroup is not delegated to this user; \
             run mini from a systemd user unit with Delegate=yes",
            missing.join(", ")
        ));
    }
    (group, enforcement)
}

/// Removes what [`probe`] made, unless a pod is left in it. The process stays where it is.
pub fn remove(name: &str) {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let root = Path::new(ROOT);
    match std::fs::metadata(root.join("cgroup.controllers")) {
        Ok(_) => remove_unified(root, &own, name),
        Err(_) => probe_legacy(root, &own, name).remove(),
    }
}

/// How the groups end that hold our own processes.
const LEAF: &str = "-daemon";

/// Where the groups of the profile's nodes lie.
fn unified(root: &Path, own: &str) -> Option<PathBuf> {
    let own = root.join(own.lines().find_map(|l| l.strip_prefix("0::"))?.trim_start_matches('/'));
    // A worker is started by a daemon that sits in its leaf already: its group lies beside the daemon's.
    let is_leaf = own.file_name().is_some_and(|n| n.to_string_lossy().ends_with(LEAF));
    Some(if is_leaf { own.parent().unwrap_or(root).to_owned() } else { own })
}

fn leaf(mine: &Path, name: &str) -> PathBuf {
    mine.join(format!("{name}{LEAF}"))
}

fn remove_unified(root: &Path, own: &str, name: &str) {
    let Some(mine) = unified(root, own) else { return };
    Group { directories: vec![Directory { controller: Controller::Unified, path: mine.join(name) }] }.remove();
    // Stays while a process is in it, such as this one.
    let _ = std::fs::remove_dir(leaf(&mine, name));
}

fn probe_unified(root: &Path, own: &str, name: &str) -> Group {
    let Some(mine) = unified(root, own) else { return Group::default() };
    let group = mine.join(name);
    let made = || -> io::Result<()> {
        make(&group)?;
        // A group that hands controllers down holds no process itself: ours moves into a leaf.
        let leaf = leaf(&mine, name);
        make(&leaf)?;
        std::fs::write(leaf.join("cgroup.procs"), "0")?;
        // The command that started us is in the way as well; what is not ours stays, and the next step says so.
        let image = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        for pid in
            read(&mine, "cgroup.procs").lines().filter(|pid| image(pid).is_some_and(|i| Some(i) == image("self")))
        {
            let _ = std::fs::write(leaf.join("cgroup.procs"), pid);
        }
        for directory in [&mine, &group] {
            let available = read(directory, "cgroup.controllers");
            for controller in SUBTREE {
                if available.split_whitespace().any(|c| Some(c) == controller.strip_prefix('+')) {
                    std::fs::write(directory.join("cgroup.subtree_control"), controller)?;
                }
            }
        }
        Ok(())
    };
    match made() {
        Ok(()) => Group { directories: vec![Directory { controller: Controller::Unified, path: group }] },
        Err(_) => Group::default(),
    }
}

fn probe_legacy(root: &Path, own: &str, name: &str) -> Group {
    let mut directories = Vec::new();
    let controllers = [
        ("memory", Controller::Memory),
        ("cpu", Controller::Cpu),
        ("cpuacct", Controller::CpuAccounting),
        ("pids", Controller::Pids),
    ];
    for (mounted, controller) in controllers {
        let line = own.lines().find_map(|l| {
            let (names, path) = l.split_once(':')?.1.split_once(':')?;
            names.split(',').any(|n| n == mounted).then(|| (names.to_owned(), path.to_owned()))
        });
        let Some((names, path)) = line else { continue };
        let base = [mounted.to_owned(), names].into_iter().map(|n| root.join(n)).find(|p| p.is_dir());
        let Some(base) = base else { continue };
        // In a cgroup namespace or container the path may not exist below the mount: the mount's root is ours then.
        let inside = base.join(path.trim_start_matches('/'));
        let mine = if inside.is_dir() { inside } else { base };
        let path = mine.join(name);
        if make(&path).is_ok()
            && nix::unistd::access(&path.join("cgroup.procs"), nix::unistd::AccessFlags::W_OK).is_ok()
        {
            if controller == Controller::Memory {
                let _ = std::fs::write(path.join("memory.use_hierarchy"), "1");
            }
            directories.push(Directory { controller, path });
        }
    }
    Group { directories }
}

fn make(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Lets the groups below a v2 group have the controllers that it has.
fn hand_down(path: &Path) -> io::Result<()> {
    let available = read(path, "cgroup.controllers");
    for controller in available.split_whitespace().filter(|c| SUBTREE.contains(&format!("+{c}").as_str())) {
        std::fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    Ok(())
}

fn read(directory: &Path, file: &str) -> String {
    std::fs::read_to_string(directory.join(file)).unwrap_or_default()
}

/// What to write for limits: pure.
fn settings(controller: Controller, resources: &Resources) -> Vec<(&'static str, String)> {
    const PERIOD: u64 = 100_000;
    let quota = resources.cpu_limit_milli.map(|milli| (milli.saturating_mul(PERIOD) / 1000).max(1000));
    // The kubelet's MilliCPUToShares
    let shares = resources.cpu_request_milli.map(|milli| (milli.saturating_mul(1024) / 1000).clamp(2, 262_144));
    let mut list = Vec::new();
    match controller {
        Controller::Memory => {
            list.extend(resources.memory_limit.map(|limit| ("memory.limit_in_bytes", limit.to_string())));
        }
        Controller::Cpu => {
            list.extend(shares.map(|shares| ("cpu.shares", shares.to_string())));
            list.extend(quota.map(|quota| ("cpu.cfs_quota_us", quota.to_string())));
        }
        Controller::CpuAccounting => {}
        Controller::Pids => list.extend(resources.pids_limit.map(|limit| ("pids.max", limit.to_string()))),
        Controller::Unified => {
            list.extend(resources.memory_limit.map(|limit| ("memory.max", limit.to_string())));
            // KEP-2254: cpu.weight = 1 + ((shares - 2) * 9999) / 262142
            list.extend(shares.map(|shares| ("cpu.weight", (1 + (shares - 2) * 9999 / 262_142).to_string())));
            list.extend(quota.map(|quota| ("cpu.max", format!("{quota} {PERIOD}"))));
            list.extend(resources.pids_limit.map(|limit| ("pids.max", limit.to_string())));
        }
    }
    list
}

impl Group {
    /// The group `name` below this one, made with limits. `parent`: it will have groups below it.
    ///
    /// # Errors
    /// When the kernel refuses a limit.
    pub fn child(&self, name: &str, resources: &Resources, parent: bool) -> io::Result<Self> {
        let mut directories = Vec::new();
        for directory in &self.directories {
            let path = directory.path.join(name);
            let is_unified = directory.controller == Controller::Unified;
            // While it was empty, a cluster of the same name in another home may have ended, and removed it.
            if !directory.path.is_dir() {
                make(&directory.path)?;
                if is_unified {
                    hand_down(&directory.path)?;
                }
            }
            make(&path)?;
            if parent && is_unified {
                hand_down(&path)?;
            }
            directories.push(Directory { controller: directory.controller, path });
        }
        let child = Self { directories };
        child.write(resources)?;
        Ok(child)
    }

    /// Holds the group of a pod to other limits, and the groups of its containers (id, name) below it.
    ///
    /// # Errors
    /// When a container (or the pod) uses more memory than it shall have, in the kubelet's words, or the kernel refuses.
    pub fn resize(&self, pod: &Resources, containers: &[(String, String, Resources)]) -> Result<(), String> {
        let mut groups = vec![("pod".to_owned(), self.clone(), pod)];
        groups.extend(containers.iter().map(|(id, name, r)| (format!("container {name:?}"), self.below(id), r)));
        let too_small: Vec<String> = groups
            .iter()
            .filter_map(|(what, group, resources)| {
                let (limit, (current, before)) = (resources.memory_limit?, group.memory()?);
                (limit < before && limit < current)
                    .then(|| format!("attempting to set {what} memory limit ({limit}) below current usage ({current})"))
            })
            .collect();
        match too_small.as_slice() {
            [] => {}
            [one] => return Err(format!("cannot decrease memory limits: {one}")),
            many => return Err(format!("cannot decrease memory limits: [{}]", many.join(", "))),
        }
        // A pod that grows must be larger before its containers are, one that shrinks smaller after them: the first attempt may
        // fail, the last may not.
        let _ = self.write(pod);
        for (what, group, resources) in &groups[1..] {
            group.write(resources).map_err(|error| format!("{what}: {error}"))?;
        }
        self.write(pod).map_err(|error| format!("pod: {error}"))
    }

    /// The group `name` below this one, which need not exist.
    pub(super) fn below(&self, name: &str) -> Self {
        let join = |d: &Directory| Directory { controller: d.controller, path: d.path.join(name) };
        Self { directories: self.directories.iter().map(join).collect() }
    }

    /// Writes limits; where a controller is not handed down there is no file.
    fn write(&self, resources: &Resources) -> io::Result<()> {
        for directory in &self.directories {
            for (file, value) in settings(directory.controller, resources) {
                match std::fs::write(directory.path.join(file), value) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    done => done?,
                }
            }
        }
        Ok(())
    }

    /// The memory that the group uses, and its limit.
    fn memory(&self) -> Option<(u64, u64)> {
        let number = |path: &Path, file: &str| match read(path, file).trim() {
            "max" => Some(u64::MAX),
            text => text.parse().ok(),
        };
        self.directories.iter().find_map(|d| match d.controller {
            Controller::Memory => {
                Some((number(&d.path, "memory.usage_in_bytes")?, number(&d.path, "memory.limit_in_bytes")?))
            }
            Controller::Unified => Some((number(&d.path, "memory.current")?, number(&d.path, "memory.max")?)),
            _ => None,
        })
    }

    /// Moves the calling process into the group. On v2 the group must have none below it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> io::Result<()> {
        self.directories.iter().try_for_each(|d| std::fs::write(d.path.join("cgroup.procs"), "0"))
    }

    /// Kills every process in the group.
    pub fn kill(&self) {
        for directory in &self.directories {
            if std::fs::write(directory.path.join("cgroup.kill"), "1").is_ok() {
                continue;
            }
            for pid in read(&directory.path, "cgroup.procs").lines().filter_map(|l| l.parse().ok()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
    }

    /// Removes the group with the (empty) groups below it.
    pub fn remove(&self) {
        fn remove(path: &Path) {
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    remove(&entry.path());
                }
            }
            let _ = std::fs::remove_dir(path);
        }
        self.directories.iter().for_each(|d| remove(&d.path));
    }

    /// How many processes the memory limit has killed here.
    pub fn oom_kills(&self) -> u64 {
        let count = |text: String| {
            let line = text.lines().find_map(|l| l.strip_prefix("oom_kill ").map(str::to_owned));
            line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
        };
        let counts = self.directories.iter().map(|d| match d.controller {
            Controller::Memory => count(read(&d.path, "memory.oom_control")),
            Controller::Unified => count(read(&d.path, "memory.events")),
            _ => 0,
        });
        counts.sum()
    }

    /// What the group uses; `None` where the kernel does not count for us.
    pub fn usage(&self) -> Option<Usage> {
        let number = |path: &Path, file: &str| read(path, file).trim().parse::<u64>().ok();
        let field = |path: &Path, file: &str, name: &str| {
            let text = read(path, file);
            let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
            line.and_then(|n| n.trim().parse::<u64>().ok())
        };
        let (mut usage, mut memory, mut cpu) = (Usage::default(), false, false);
        for Directory { controller, path } in &self.directories {
            match controller {
                Controller::Memory => {
                    let used = number(path, "memory.usage_in_bytes")?;
                    let inactive = field(path, "memory.stat", "total_inactive_file").unwrap_or(0);
                    usage.memory_working_set = used.saturating_sub(inactive);
                    usage.memory_rss = field(path, "memory.stat", "total_rss").unwrap_or(0);
                    memory = true;
                }
                Controller::CpuAccounting => {
                    usage.cpu_nanoseconds = number(path, "cpuacct.usage")?;
                    cpu = true;
                }
                Controller::Pids => usage.processes = number(path, "pids.current").unwrap_or(0),
                Controller::Cpu => {}
                Controller::Unified => {
                    let used = number(path, "memory.current")?;
                    let inactive = field(path, "memory.stat", "inactive_file").unwrap_or(0);
                    usage.memory_working_set = used.saturating_sub(inactive);
                    usage.memory_rss = field(path, "memory.stat", "anon").unwrap_or(0);
                    usage.cpu_nanoseconds = field(path, "cpu.stat", "usage_usec")? * 1000;
                    usage.processes = number(path, "pids.current").unwrap_or(0);
                    (memory, cpu) = (true, true);
                }
            }
        }
        (memory && cpu).then_some(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_as_the_kubelet_and_runc_write_them() {
        let resources = Resources {
            cpu_request_milli: Some(250),
            cpu_limit_milli: Some(500),
            memory_limit: Some(64 << 20),
            pids_limit: None,
        };
        let v2 = settings(Controller::Unified, &resources);
        assert_eq!(
            v2,
            [
                ("memory.max", "67108864".to_owned()),
                ("cpu.weight", "10".to_owned()),
                ("cpu.max", "50000 100000".to_owned())
            ]
        );
        let v1 = settings(Controller::Cpu, &resources);
        assert_eq!(v1, [("cpu.shares", "256".to_owned()), ("cpu.cfs_quota_us", "50000".to_owned())]);
        assert!(settings(Controller::Memory, &Resources::default()).is_empty());
        let absurd =
            Resources { cpu_request_milli: Some(u64::MAX), cpu_limit_milli: Some(u64::MAX), ..Resources::default() };
        let [weight, (_, quota)] = &settings(Controller::Unified, &absurd)[..] else { panic!("weight and quota") };
        assert_eq!(weight, &("cpu.weight", "10000".to_owned()));
        assert_eq!(quota, &format!("{} 100000", u64::MAX / 1000), "more than any kernel takes, not a wrapped little");
    }

    #[test]
    fn a_worker_s_groups_are_removed_without_moving_the_daemon() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |name: &str| root.path().join("user").join(name);
        for name in ["mini-mini/pod1", "mini-mini-daemon", "mini-mini-m02/pod2", "mini-mini-m02-daemon"] {
            std::fs::create_dir_all(at(name)).expect("made");
        }
        remove_unified(root.path(), "0::/user/mini-mini-daemon\n", "mini-mini-m02");
        assert!(!at("mini-mini-m02").exists() && !at("mini-mini-m02-daemon").exists());
        assert!(at("mini-mini/pod1").exists() && at("mini-mini-daemon").exists());
    }

    #[test]
    fn a_group_that_was_removed_while_it_was_empty_is_made_again() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("mini");
        let group = Group { directories: vec![Directory { controller: Controller::Memory, path: path.clone() }] };
        group.child("pod1", &Resources::default(), true).expect("made").remove();
        std::fs::remove_dir(&path).expect("it is empty");
        group.child("pod2", &Resources::default(), true).expect("made again");
        assert!(path.join("pod2").is_dir());
    }

    #[test]
    fn a_pod_is_resized_from_the_outside_in_and_back() {
        let root = tempfile::tempdir().expect("a directory");
        let group =
            Group { directories: vec![Directory { controller: Controller::Unified, path: root.path().into() }] };
        let write = |file: &str, text: &str| std::fs::write(root.path().join(file), text).expect("a file");
        let text = |file: &str| std::fs::read_to_string(root.path().join(file)).unwrap_or_default();
        std::fs::create_dir(root.path().join("id")).expect("a directory");
        for file in ["memory.max", "id/memory.max"] {
            write(file, "200\n");
        }
        write("memory.current", "150\n");
        write("id/memory.current", "120\n");
        let memory = |limit| Resources { memory_limit: Some(limit), ..Resources::default() };
        let resize = |pod, container| group.resize(&memory(pod), &[("id".into(), "app".into(), memory(container))]);
        assert_eq!(resize(300, 250), Ok(()));
        assert_eq!((text("memory.max"), text("id/memory.max")), ("300".into(), "250".into()));
        assert_eq!(
            resize(140, 100),
            Err("cannot decrease memory limits: [attempting to set pod memory limit (140) below current usage (150), \
                 attempting to set container \"app\" memory limit (100) below current usage (120)]"
                .into())
        );
        let one = "cannot decrease memory limits: attempting to set container \"app\" memory limit (100) below current usage (120)";
        assert_eq!(resize(180, 100), Err(one.into()));
        assert_eq!(text("id/memory.max"), "250", "nothing was changed");
    }
}
