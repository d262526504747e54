//! The user and mount namespaces that a node lives in, and the holder that keeps them (and the node's network
//! namespace) alive while a daemon is replaced.
//!
//! The holder makes the namespaces, the daemon joins its user and mount namespaces and stays in the host's network
//! namespace. A later daemon joins the same holder.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getegid, geteuid, pipe2};
use serde::{Deserialize, Serialize};

use crate::config::Paths;

/// The hidden subcommand that the holder is started with.
pub const HOLDER: &str = "node-holder";

/// Which ids exist in the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdMap {
    /// A range: images run as they are.
    Range {
        /// How many user ids there are, counting from 0.
        ids: u32,
    },
    /// Our own only, called 0: identities are pretended.
    Single,
}

/// The namespaces that were entered.
#[derive(Clone, Debug, PartialEq)]
pub struct Entered {
    /// The holder's pid.
    pub holder: i32,
    /// The node's network namespace (`/proc/<holder>/ns/net`).
    pub node_netns: PathBuf,
    /// Which ids exist.
    pub ids: IdMap,
    /// What is degraded, in one line with the command that mends it.
    pub warnings: Vec<String>,
    /// Whether the holder was already there.
    pub joined: bool,
}

/// Why the namespaces cannot be entered: one line, with the command that mends it where there is one.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel forbids user namespaces.
    #[error("{0}")]
    Forbidden(String),
    /// The process has threads already.
    #[error("namespaces must be entered before threads are started")]
    Threads,
    /// Anything else.
    #[error("{step}: {source}")]
    Io {
        /// What was tried.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> NamespaceError {
    let step = step.into();
    move |source| NamespaceError::Io { step, source: source.into() }
}

/// What the holder's file says.
#[derive(Serialize, Deserialize)]
struct Record {
    pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: tells a reused pid apart.
    started: u64,
    ids: IdMap,
    warnings: Vec<String>,
}

/// Enters the node's namespaces, starting the holder when there is none. Must be called before any thread exists.
///
/// # Errors
/// When the kernel forbids user namespaces, or something on the way fails; nothing is left behind then.
pub fn enter(paths: &Paths) -> Result<Entered, NamespaceError> {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count).map_err(failed("/proc/self/task"))?;
    if threads != 1 {
        return Err(NamespaceError::Threads);
    }
    let run = paths.run();
    std::fs::create_dir_all(&run).map_err(failed(run.display().to_string()))?;
    let file = run.join("holder.json");
    let (record, joined) = match live_holder(&file) {
        Some(record) => (record, true),
        None => (start_holder(&file)?, false),
    };
    join(record.pid)?;
    Ok(Entered {
        holder: record.pid,
        node_netns: format!("/proc/{}/ns/net", record.pid).into(),
        ids: record.ids,
        warnings: record.warnings,
        joined,
    })
}

/// Enters a node with its network: for a shell, not for a daemon. `worker`: one beside the profile's first node.
///
/// # Errors
/// When the node does not run.
pub fn enter_node(profile: &Paths, worker: Option<&Paths>) -> Result<(), NamespaceError> {
    let record = live_holder(&profile.run().join("holder.json"));
    let record = record.ok_or_else(|| NamespaceError::Forbidden("the cluster does not run".to_owned()))?;
    let network = format!("/proc/{}/ns/net", record.pid).into();
    join(record.pid)?;
    // A worker's is mounted where only the profile's namespaces see it.
    let network: PathBuf = worker.map_or(network, |worker| worker.run().join("net"));
    if worker.is_some() && !is_network(&network) {
        return Err(NamespaceError::Forbidden("the node does not run".to_owned()));
    }
    let network = File::open(&network).map_err(failed("the node's network"))?;
    setns(&network, CloneFlags::CLONE_NEWNET).map_err(failed("join the node's network"))
}

/// The namespaces of a worker on the same machine: the profile's user and mount namespaces, in which this process was
/// started, and a network namespace of its own. The latter is kept by a mount on `<run>/net` and needs no process; a later
/// agent finds it there, and it goes with [`end_network`] or with the profile's namespaces.
///
/// # Errors
/// When this process is not inside the profile's namespaces, or the kernel refuses.
pub fn enter_worker(profile: &Paths, worker: &Paths) -> Result<Entered, NamespaceError> {
    let record = live_holder(&profile.run().join("holder.json"));
    let record = record.ok_or_else(|| NamespaceError::Forbidden("the profile's namespaces are gone".to_owned()))?;
    let user_namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    if user_namespace("self") != user_namespace(&record.pid.to_string()) {
        return Err(NamespaceError::Forbidden("a worker is started by the profile's daemon".to_owned()));
    }
    let node_netns = worker.run().join("net");
    let joined = is_network(&node_netns);
    if !joined {
        keep_new_network(&node_netns).map_err(failed("the network namespace"))?;
    }
    Ok(Entered { holder: record.pid, node_netns, ids: record.ids, warnings: Vec::new(), joined })
}

/// Whether a network namespace is mounted here.
fn is_network(file: &Path) -> bool {
    nix::sys::statfs::statfs(file).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

fn keep_new_network(file: &Path) -> io::Result<()> {
    File::create(file)?;
    let file = file.to_owned();
    // A thread of its own is enough for a namespace of its own.
    let made = std::thread::spawn(move || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        loopback_up()?;
        let none = None::<&str>;
        Ok(mount(Some("/proc/thread-self/ns/net"), &file, none, MsFlags::MS_BIND, none)?)
    });
    made.join().map_err(|_| io::Error::other("the thread that makes it ended"))?
}

/// Lets a worker's network namespace go, once no process is left in it. Does nothing without one.
///
/// # Errors
/// Those of `umount2`.
pub fn end_network(worker: &Paths) -> io::Result<()> {
    let file = worker.run().join("net");
    if is_network(&file) {
        nix::mount::umount2(&file, nix::mount::MntFlags::MNT_DETACH)?;
    }
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Ends the holder, and with it (once no shim is left) the namespaces. Does nothing without one.
pub fn end_holder(paths: &Paths) {
    let file = paths.run().join("holder.json");
    if let Some(record) = live_holder(&file) {
        let _ = nix::sys::signal::kill(Pid::from_raw(record.pid), Signal::SIGKILL);
    }
    let _ = std::fs::remove_file(file);
}

fn live_holder(file: &Path) -> Option<Record> {
    let record: Record = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (start_time(record.pid)? == record.started).then_some(record)
}

/// When a process was started, in clock ticks since boot; `None` when it is gone (or a zombie).
pub fn start_time(pid: i32) -> Option<u64> {
    let (state, started) = state_and_start(pid)?;
    (state != 'Z' && state != 'X').then_some(started)
}

/// The same, also of a zombie: threads of it may still be ending, with all that it holds.
pub fn start_time_of_any(pid: i32) -> Option<u64> {
    state_and_start(pid).map(|(_, started)| started)
}

/// Whether a process is gone, ends, or has been killed and has yet to see it (proc_pid_status(5), `SigPnd` and `ShdPnd`; the
/// flags are those of proc_pid_stat(5)).
pub fn is_dying(pid: i32) -> bool {
    /// `PF_EXITING` and `PF_SIGNALED` of the kernel's `sched.h`.
    const ENDS: u64 = 0x4 | 0x400;
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    // In this order: what is pending is taken before the flag is set.
    let (Ok(status), Ok(stat)) = (read("status"), read("stat")) else { return true };
    let masks = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")));
    let mut pending = masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    if pending.any(|mask| mask & KILLED != 0) {
        return true;
    }
    let mut fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).into_iter().flatten();
    let gone = fields.next().is_some_and(|state| matches!(state, "Z" | "X"));
    gone || fields.nth(5).and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & ENDS != 0)
}

fn state_and_start(pid: i32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn start_holder(file: &Path) -> Result<Record, NamespaceError> {
    let (child, ids, warnings) = new_holder()?;
    let pid = child.id() as i32;
    let started = start_time(pid).ok_or(NamespaceError::Forbidden("the namespace holder ended at once".to_owned()))?;
    let record = Record { pid, started, ids, warnings };
    let text = serde_json::to_vec(&record).expect("numbers and text are JSON");
    let temporary = file.with_extension("new");
    std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, file)).map_err(failed("holder.json"))?;
    Ok(record)
}

/// Makes the namespaces and lets them go again: which ids there would be, and what would be degraded.
///
/// # Errors
/// As [`enter`].
pub fn try_out() -> Result<(IdMap, Vec<String>), NamespaceError> {
    let (mut child, ids, warnings) = new_holder()?;
    let _ = child.kill();
    let _ = child.wait();
    Ok((ids, warnings))
}

fn new_holder() -> Result<(std::process::Child, IdMap, Vec<String>), NamespaceError> {
    let (status_read, status_write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed("pipe"))?;
    let (go_read, go_write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed("pipe"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("mini").arg(HOLDER).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    hand_over(&mut command, &status_write, &go_read);
    let mut child = command.spawn().map_err(failed("start the namespace holder"))?;
    drop((status_write, go_read));
    match make_with(child.id() as i32, File::from(status_read), File::from(go_write)) {
        Ok((ids, warnings)) => Ok((child, ids, warnings)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Gives a command two descriptors as its 3 and 4, and a session of its own.
fn hand_over(command: &mut Command, third: &OwnedFd, fourth: &OwnedFd) {
    let (third, fourth) = (third.as_raw_fd(), fourth.as_raw_fd());
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe { command.pre_exec(move || place_descriptors(third, fourth)) };
}

/// Between fork and exec: makes two descriptors 3 and 4, with a session and no blocked signal.
///
/// # Errors
/// When descriptors run out.
pub fn place_descriptors(third: RawFd, fourth: RawFd) -> io::Result<()> {
    nix::unistd::setsid()?;
    SigSet::empty().thread_set_mask()?;
    // SAFETY: plain system calls; out of the way of 3 and 4 first, as either may be one of them already.
    unsafe {
        let (a, b) = (libc::fcntl(third, libc::F_DUPFD, 10), libc::fcntl(fourth, libc::F_DUPFD, 10));
        if a < 0 || b < 0 || libc::dup2(a, 3) < 0 || libc::dup2(b, 4) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::close(a);
        libc::close(b);
    }
    Ok(())
}

/// Talks with the new holder: waits until it has its user namespace, maps ids, waits until it is ready.
fn make_with(pid: i32, mut status: File, mut go: File) -> Result<(IdMap, Vec<String>), NamespaceError> {
    let mut line = |expected: &str| -> Result<(), NamespaceError> {
        let mut text = String::new();
        let mut byte = [0];
        while status.read(&mut byte).map_err(failed("the namespace holder"))? == 1 && byte[0] != b'\n' {
            text.push(char::from(byte[0]));
        }
        if text == expected { Ok(()) } else { Err(NamespaceError::Forbidden(explain(&text))) }
    };
    line("unshared")?;
    let (ids, warnings) = map_ids(pid)?;
    go.write_all(b"\n").map_err(failed("the namespace holder"))?;
    line("ready")?;
    Ok((ids, warnings))
}

/// Puts what the holder could not do into words that help.
fn explain(text: &str) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mend = if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" && !geteuid().is_root() {
        "AppArmor restricts user namespaces here: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    } else if read("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        "user namespaces are switched off: sudo sysctl -w kernel.unprivileged_userns_clone=1"
    } else if read("/proc/sys/user/max_user_namespaces") == "0" {
        "user namespaces are switched off: sudo sysctl -w user.max_user_namespaces=15000"
    } else {
        "the kernel or a sandbox around mini forbids user namespaces"
    };
    let what = if text.is_empty() { "the namespace holder ended" } else { text };
    format!("cannot make the node's namespaces ({what}); {mend}")
}

/// Gives ids to the new user namespace of `pid`: all of ours as root, our subordinate range, or our own only.
fn map_ids(pid: i32) -> Result<(IdMap, Vec<String>), NamespaceError> {
    let write = |name: &str, text: &str| std::fs::write(format!("/proc/{pid}/{name}"), text);
    if geteuid().is_root() {
        let identity = |map: &str| {
            let text = std::fs::read_to_string(format!("/proc/self/{map}")).unwrap_or_default();
            let rows = text.lines().map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
            // One id less than all of them: libcontainer takes the full range for "no user namespace", and would
            // make device nodes and cgroups that only the real root may make.
            let count = |r: &[String]| r[2].parse::<u32>().map_or(0, |n| n.min(u32::MAX - 1));
            let lines = rows.filter(|r| r.len() == 3).map(|r| format!("{} {} {}\n", r[0], r[0], count(&r)));
            lines.collect::<String>()
        };
        let (uids, gids) = (identity("uid_map"), identity("gid_map"));
        if write("uid_map", &uids).and_then(|()| write("gid_map", &gids)).is_ok() {
            let first = uids.lines().next().and_then(|l| l.split(' ').nth(2)?.parse::<u64>().ok()).unwrap_or(1);
            if first > 65_535 {
                return Ok((IdMap::Range { ids: u32::try_from(first).unwrap_or(u32::MAX) }, Vec::new()));
            }
            return Ok((IdMap::Single, vec!["only few user ids exist here: images run as one user".to_owned()]));
        }
    }
    let warning = match map_subordinate(pid) {
        Ok(ids) => return Ok((IdMap::Range { ids }, Vec::new())),
        Err(warning) => warning,
    };
    // newuidmap may have written one of the two; then this fails and says so.
    let (uid, gid) = (geteuid(), getegid());
    write("setgroups", "deny").map_err(failed("deny setgroups"))?;
    write("uid_map", &format!("0 {uid} 1")).map_err(failed("map our user id"))?;
    write("gid_map", &format!("0 {gid} 1")).map_err(failed("map our group id"))?;
    Ok((IdMap::Single, vec![warning]))
}

fn map_subordinate(pid: i32) -> Result<u32, String> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = user_name(&passwd, uid).unwrap_or_else(|| uid.to_string());
    let range = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        subordinate(&text, &name, uid).ok_or_else(|| missing_range(&name))
    };
    let (uids, gids) = (range("/etc/subuid")?, range("/etc/subgid")?);
    for (tool, own, (start, count)) in [("newuidmap", uid, uids), ("newgidmap", gid, gids)] {
        let output = Command::new(tool)
            .args([pid.to_string(), "0".into(), own.to_string(), "1".into()])
            .args(["1".to_owned(), start.to_string(), count.to_string()])
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(format!("{tool} refused ({why}): images run as one user; sudo apt-get install uidmap"));
            }
            Err(_) => return Err(format!("{tool} is missing: images run as one user; sudo apt-get install uidmap")),
        }
    }
    Ok(uids.1.min(gids.1) + 1)
}

/// The hint when a user has no subordinate ids.
pub fn missing_range(name: &str) -> String {
    format!(
        "{name} has no subordinate ids: images run as one user; \
         sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
    )
}

/// The name of a uid in the text of `/etc/passwd`.
pub fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let mut rows = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>());
    rows.find(|r| r.get(2).is_some_and(|u| u.parse() == Ok(uid))).and_then(|r| r.first().map(|n| (*n).to_owned()))
}

/// The longest range of a user in the text of `/etc/subuid` or `/etc/subgid`: first id and count.
pub fn subordinate(text: &str, name: &str, uid: u32) -> Option<(u32, u32)> {
    let uid = uid.to_string();
    let rows = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (owner == name || owner == uid).then_some((start, count))
    });
    rows.filter(|(_, count)| *count > 0).max_by_key(|(_, count)| *count)
}

fn join(holder: i32) -> Result<(), NamespaceError> {
    let cwd = std::env::current_dir().ok();
    let open =
        |kind: &str| File::open(format!("/proc/{holder}/ns/{kind}")).map_err(failed(format!("{kind} namespace")));
    let (user, mounts) = (open("user")?, open("mnt")?);
    setns(&user, CloneFlags::CLONE_NEWUSER).map_err(failed("join the user namespace"))?;
    setns(&mounts, CloneFlags::CLONE_NEWNS).map_err(failed("join the mount namespace"))?;
    // Changing credentials made us undumpable, and our files in /proc somebody else's.
    let _ = nix::sys::prctl::set_dumpable(true);
    let _ = nix::unistd::setgroups(&[]);
    if let Some(cwd) = cwd {
        let _ = std::env::set_current_dir(cwd);
    }
    Ok(())
}

/// The holder's main function: makes the namespaces, says so, and sleeps until it is killed.
pub fn holder_main(_args: &[OsString]) -> ExitCode {
    // SAFETY: whoever starts a holder passes these two; nobody else owns them here.
    let (mut status, mut go) = unsafe { (File::from(OwnedFd::from_raw_fd(3)), File::from(OwnedFd::from_raw_fd(4))) };
    if let Err(message) = hold(&mut status, &mut go) {
        let _ = writeln!(status, "{message}");
        return ExitCode::FAILURE;
    }
    drop((status, go));
    let _ = std::env::set_current_dir("/");
    let mut signals = SigSet::all();
    signals.remove(Signal::SIGKILL);
    let _ = signals.thread_block();
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    let _ = end.wait();
    ExitCode::SUCCESS
}

fn hold(status: &mut File, go: &mut File) -> Result<(), String> {
    let step = |name: &'static str| move |e: nix::Error| format!("{name}: {}", e.desc().to_lowercase());
    let _ = nix::sys::prctl::set_name(c"mini-holder");
    unshare(CloneFlags::CLONE_NEWUSER).map_err(step("user namespace"))?;
    let _ = nix::sys::prctl::set_dumpable(true);
    writeln!(status, "unshared").map_err(|e| e.to_string())?;
    if go.read(&mut [0]).map_err(|e| e.to_string())? == 0 {
        return Err("the daemon is gone".to_owned());
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(step("mount and network namespace"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(step("private mounts"))?;
    // What the daemon mounts later (volumes) reaches the pods' own mount namespaces, which are slaves of this one.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).map_err(step("shared mounts"))?;
    loopback_up().map_err(|e| format!("loopback: {e}"))?;
    writeln!(status, "ready").map_err(|e| e.to_string())
}

/// Brings `lo` up in the network namespace of this process.
///
/// # Errors
/// When the namespace is not ours.
pub fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads one ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_number() {
        let text = "other:100000:65536\nme:200000:10\nme:300000:65536\n1000:1:5\nbad\n";
        assert_eq!(subordinate(text, "me", 1000), Some((300_000, 65_536)));
        assert_eq!(subordinate(text, "you", 1000), Some((1, 5)));
        assert_eq!(subordinate(text, "you", 7), None);
        assert_eq!(user_name("root:x:0:0::/:\nme:x:1000:1000::/:\n", 1000).as_deref(), Some("me"));
    }

    #[test]
    fn a_reused_pid_is_told_apart() {
        let own = std::process::id() as i32;
        assert!(start_time(own).is_some());
        assert_eq!(start_time(i32::MAX), None);
    }
}
