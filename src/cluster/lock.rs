//! The lock that says that a daemon, or a worker's agent, lives: held from its beginning to its end, however it ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::config::Paths;
use crate::node::namespaces::{self, start_time, start_time_of_any};

/// How long a process that holds the lock may take to end after SIGKILL, when there is much to free.
const KILLED: u16 = 10_000;

/// The lock, held.
pub type Held = Flock<File>;

fn file(paths: &Paths) -> Result<File> {
    let path = paths.run().join("lock");
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Takes the lock. A holder that is being killed is waited for.
///
/// # Errors
/// When another process holds it.
pub fn take(paths: &Paths) -> Result<Held> {
    let busy = || anyhow!("another process of this profile is running");
    let lock = match Flock::lock(file(paths)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((file, Errno::EWOULDBLOCK)) => {
            if !holder(paths).is_none_or(|process| process.ends_within(KILLED)) {
                bail!(busy());
            }
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| busy())?
        }
        Err((_, error)) => return Err(error).context("locking the profile"),
    };
    let pid = i32::try_from(std::process::id()).context("a pid")?;
    let started = start_time(pid).unwrap_or_default();
    std::fs::write(paths.run().join("pid"), format!("{pid} {started}")).context("writing the pid")?;
    Ok(lock)
}

/// Waits until nobody holds the lock.
///
/// # Errors
/// When it cannot be taken.
pub fn wait_for_end(paths: &Paths) -> Result<()> {
    Flock::lock(file(paths)?, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("waiting for the cluster's end")?;
    Ok(())
}

/// Whether somebody holds the lock.
pub fn is_held(paths: &Paths) -> bool {
    file(paths).is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
}

/// The process that holds the lock; `None` when nobody does (or it has only just begun).
pub fn holder(paths: &Paths) -> Option<Process> {
    if !is_held(paths) {
        return None;
    }
    let text = std::fs::read_to_string(paths.run().join("pid")).ok()?;
    let (pid, started) = text.split_once(' ')?;
    let process = Process::open(pid.parse().ok()?)?;
    // The same process still, now that it cannot change any more.
    (start_time_of_any(process.pid) == started.trim().parse().ok()).then_some(process)
}

/// A process that can be waited for without being its parent.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    fd: OwnedFd,
}

impl Process {
    fn open(pid: i32) -> Option<Self> {
        // SAFETY: the call takes two numbers and returns a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Some(Self { pid, fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal; one that has ended gets none.
    pub fn signal(&self, signal: Signal) {
        let none = std::ptr::null::<libc::siginfo_t>();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.fd);
        // SAFETY: numbers and a null pointer; the descriptor is open.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, none, 0) };
    }

    /// Whether it has been killed, or ends already: it does nothing any more but free what it holds.
    pub fn is_dying(&self) -> bool {
        namespaces::is_dying(self.pid)
    }

    /// Whether it ends within this time (milliseconds).
    fn ends_within(&self, patience: u16) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, PollTimeout::from(patience)).is_ok_and(|ready| ready > 0)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub async fn ended(&self) -> io::Result<()> {
        // SAFETY: the descriptor is borrowed for as long as it is watched, and stays the same one until then.
        let watched =
            unsafe { AsyncFd::<BorrowedFd<'_>>::register_with_interest(self.fd.as_fd(), Interest::READABLE) }?;
        watched.readable().await.map(drop)
    }

    /// Asks it to end (SIGTERM), and kills it when it has not after `patience`.
    pub async fn end(&self, patience: Duration) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(patience, self.ended()).await.is_err() {
            tracing::warn!(pid = self.pid, "a process did not end in time: it is killed");
            self.kill().await;
        }
    }

    /// Kills it and waits for its end.
    pub async fn kill(&self) {
        self.signal(Signal::SIGKILL);
        if let Err(error) = self.ended().await {
            tracing::warn!(pid = self.pid, %error, "the end of a process cannot be awaited");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_been_killed_is_told_from_who_lives() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep runs");
        let process = Process::open(child.id() as i32).expect("it lives");
        assert!(!process.is_dying());
        // One that is stopped takes no signal but this one.
        process.signal(Signal::SIGSTOP);
        assert!(!process.is_dying());
        process.signal(Signal::SIGKILL);
        assert!(process.is_dying(), "from that instant on");
        process.ended().await.expect("watched");
        assert!(process.is_dying(), "until it is gone");
        child.wait().expect("it was started");
        assert!(process.is_dying());
    }

    #[tokio::test]
    async fn the_holder_is_known_and_can_be_ended() {
        let home = tempfile::tempdir().expect("a directory");
        let paths = Paths::new(home.path(), "mini");
        std::fs::create_dir_all(paths.run()).expect("made");
        assert!(holder(&paths).is_none() && !is_held(&paths));
        let held = take(&paths).expect("free");
        assert_eq!(holder(&paths).map(|p| p.pid()), i32::try_from(std::process::id()).ok());
        drop(held);
        assert!(holder(&paths).is_none(), "the pid is of nobody who holds it");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep runs");
        let process = Process::open(child.id() as i32).expect("it lives");
        process.end(Duration::from_secs(10)).await;
        let pid = child.id() as i32;
        assert!(start_time(pid).is_none() && start_time_of_any(pid).is_some(), "a zombie, until it is waited for");
        assert!(!child.wait().expect("it was started").success());
    }
}
