//! The OCI runtime specification of a container: pure, from what the pod asks and the image says.

use std::path::Path;

use serde_json::{Value, json};

use super::capabilities::CapabilitySet;
use super::{ContainerConfig, Propagation, SandboxConfig};

/// What the search path is when nobody says.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Paths of `/proc` and `/sys` that unprivileged containers do not see (containerd's list).
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Paths that unprivileged containers only read.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the node gives a container beside its configuration.
#[derive(Clone, Debug)]
pub struct Surroundings<'a> {
    /// The sandbox's directory, with `resolv.conf`, `hostname` and `shm`.
    pub sandbox: &'a Path,
    /// The container's directory, with `termination-log`.
    pub directory: &'a Path,
    /// The pause process of a shared pid namespace.
    pub pause: Option<i32>,
    /// Only one uid and gid are mapped.
    pub single_uid: bool,
    /// The working directory.
    pub working_dir: &'a str,
    /// Whether the machine has POSIX message queues mounted.
    pub host_queues: bool,
    /// Where what `destination` names really is in the root file system.
    pub cgroup_parent_absent: &'a str,
}

/// The command line: `command` replaces entrypoint and cmd, `args` replaces cmd
/// (Kubernetes' "Define a Command and Arguments for a Container").
///
/// # Errors
/// When nothing says what to run, in the words of containerd.
pub fn command_line(config: &ContainerConfig) -> Result<Vec<String>, String> {
    let image = &config.image.config;
    let (entrypoint, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image.entrypoint, &config.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let line: Vec<String> = entrypoint.iter().chain(args).cloned().collect();
    if line.is_empty() { Err("no command specified".to_owned()) } else { Ok(line) }
}

/// The environment: the image's, then the pod's; later values of a name win. `PATH` and `HOME` are always there.
pub fn environment(config: &ContainerConfig, hostname: &str, home: &str) -> Vec<String> {
    let mut entries: Vec<(String, String)> =
        vec![split(DEFAULT_PATH), ("HOSTNAME".to_owned(), hostname.to_owned()), ("HOME".to_owned(), home.to_owned())];
    if config.tty {
        entries.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    let image = config.image.config.env.iter().map(|e| split(e));
    for (name, value) in image.chain(config.env.iter().cloned()) {
        match entries.iter_mut().find(|(n, _)| *n == name) {
            Some(entry) => entry.1 = value,
            None => entries.push((name, value)),
        }
    }
    entries.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn split(entry: &str) -> (String, String) {
    let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
    (name.to_owned(), value.to_owned())
}

/// The document that libcontainer is given. Its process is root with all capabilities: what the pod asks for is
/// applied by `shim::payload` as the last step before `execve`.
pub fn document(sandbox: &SandboxConfig, config: &ContainerConfig, around: &Surroundings<'_>) -> Value {
    let privileged = config.security.privileged;
    let mut namespaces = vec![json!({"type": "mount"})];
    match (around.pause, sandbox.host_pid) {
        (Some(pid), _) => namespaces.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})),
        (None, true) => {}
        (None, false) => namespaces.push(json!({"type": "pid"})),
    }
    let caps = CapabilitySet::all().names();
    let empty: &[&str] = &[];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": config.tty,
            "user": {"uid": 0, "gid": 0},
            "args": ["container"],
            // HOME is set so that libcontainer does not look for it in the host's user database
            "env": [DEFAULT_PATH, "HOME=/"],
            "cwd": around.working_dir,
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "root": {"path": "rootfs", "readonly": config.security.read_only_rootfs},
        "mounts": mounts(sandbox, config, around),
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": around.cgroup_parent_absent,
            "maskedPaths": if privileged { empty } else { &MASKED },
            "readonlyPaths": if privileged { empty } else { &READ_ONLY },
        },
    })
}

fn mounts(sandbox: &SandboxConfig, config: &ContainerConfig, around: &Surroundings<'_>) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let bind = |destination: &str, source: &Path, options: &[&str]| json!({"destination": destination, "type": "bind", "source": source, "options": options});
    let privileged = config.security.privileged;
    let mut list = Vec::new();
    if sandbox.host_pid {
        // a new proc can be mounted in a pid namespace of our own only
        list.push(bind("/proc", Path::new("/proc"), &["rbind", "rprivate", "nosuid", "noexec", "nodev"]));
    } else {
        list.push(mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]));
    }
    list.push(mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]));
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if !around.single_uid {
        pts.push("gid=5");
    }
    list.push(mount("/dev/pts", "devpts", "devpts", &pts));
    match around.host_queues {
        // A new one can be mounted in an IPC namespace of our own only.
        _ if !sandbox.host_ipc => list.push(mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])),
        true => list.push(bind(
            "/dev/mqueue",
            Path::new("/dev/mqueue"),
            &["rbind", "rprivate", "nosuid", "noexec", "nodev"],
        )),
        false => {}
    }
    let sys = if privileged { "rw" } else { "ro" };
    list.push(mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]));
    let own_memory = around.sandbox.join("shm");
    let memory = if sandbox.host_ipc { Path::new("/dev/shm") } else { &own_memory };
    list.push(bind("/dev/shm", memory, &["rbind", "rprivate", "nosuid", "nodev", "noexec"]));
    let own = |destination: &str| config.mounts.iter().any(|m| m.destination == Path::new(destination));
    for name in ["resolv.conf", "hostname"] {
        let destination = format!("/etc/{name}");
        if !own(&destination) {
            let mut options = vec!["rbind", "rprivate"];
            if config.security.read_only_rootfs {
                options.push("ro");
            }
            list.push(bind(&destination, &around.sandbox.join(name), &options));
        }
    }
    if let Some(path) = &config.termination_message_path {
        let destination = path.to_string_lossy();
        list.push(bind(&destination, &around.directory.join("termination-log"), &["rbind", "rprivate"]));
    }
    // Parents before children, whatever order the pod names them in.
    let mut volumes: Vec<_> = config.mounts.iter().collect();
    volumes.sort_by_key(|m| m.destination.components().count());
    for volume in volumes {
        let propagation = match volume.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        let access = if volume.read_only { "ro" } else { "rw" };
        let mut options = vec!["rbind", propagation, access];
        if volume.image.is_some() {
            options.extend(["noexec", "nosuid", "nodev"]);
        }
        list.push(bind(&volume.destination.to_string_lossy(), &volume.source, &options));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::image::{Image, ImageConfig};

    fn config(entrypoint: &[&str], cmd: &[&str], command: &[&str], args: &[&str]) -> ContainerConfig {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let image = ImageConfig { entrypoint: owned(entrypoint), cmd: owned(cmd), ..ImageConfig::default() };
        ContainerConfig {
            image: Image { config: image, ..Image::default() },
            command: owned(command),
            args: owned(args),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn command_and_args_override_as_documented() {
        // The table of "Define a Command and Arguments for a Container".
        for (command, args, expected) in [
            (&[][..], &[][..], Ok("/ep-1 foo bar")),
            (&["/ep-2"], &[], Ok("/ep-2")),
            (&[], &["zoo", "boo"], Ok("/ep-1 zoo boo")),
            (&["/ep-2"], &["zoo", "boo"], Ok("/ep-2 zoo boo")),
        ] {
            let line = command_line(&config(&["/ep-1"], &["foo", "bar"], command, args)).map(|l| l.join(" "));
            assert_eq!(line.as_deref(), expected.map_err(|e: &String| e));
        }
        assert!(command_line(&config(&[], &[], &[], &[])).is_err());
    }

    #[test]
    fn the_pods_environment_wins() {
        let mut config = config(&["x"], &[], &[], &[]);
        config.image.config.env = vec!["PATH=/bin".into(), "A=1".into(), "B=2".into()];
        config.env = vec![("A".into(), "9".into())];
        assert_eq!(environment(&config, "web", "/root"), ["PATH=/bin", "HOSTNAME=web", "HOME=/root", "A=9", "B=2"]);
    }

    #[test]
    fn mounts_are_ordered_and_the_document_is_valid() {
        let mut config = config(&["x"], &[], &[], &[]);
        let mount = |d: &str| super::super::Mount {
            source: "/v".into(),
            destination: d.into(),
            read_only: true,
            ..Default::default()
        };
        config.mounts = vec![mount("/data/sub"), mount("/data"), mount("/etc/hosts")];
        let sandbox = SandboxConfig::default();
        let around = Surroundings {
            sandbox: Path::new("/s"),
            directory: Path::new("/c"),
            pause: None,
            single_uid: false,
            working_dir: "/",
            cgroup_parent_absent: "/absent",
            host_queues: false,
        };
        let document = document(&sandbox, &config, &around);
        let destinations: Vec<&str> =
            document["mounts"].as_array().expect("a list").iter().filter_map(|m| m["destination"].as_str()).collect();
        assert!(destinations.ends_with(&["/data", "/data/sub", "/etc/hosts"]), "{destinations:?}");
        serde_json::from_value::<libcontainer::oci_spec::runtime::Spec>(document).expect("an OCI document");
    }
}
