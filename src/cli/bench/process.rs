//! What the cluster's processes cost while they do nothing.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

use super::samples::{bytes, duration};
use super::session::running;
use super::{Context, Global, Row};

const SELF: &str = "/proc/self/exe";

pub(super) async fn binary() -> Result<Vec<Row>> {
    let size = std::fs::metadata(SELF).context("reading the binary")?.len();
    Ok(vec![Row::new("binary", bytes(size), "under 25 MB", "k3s 70 MB, k0s 256 MB, kind's node image 1 GB")])
}

pub(super) async fn idle(context: &Context) -> Result<Vec<Row>> {
    let daemon = daemon(&context.global).await?;
    let start: Vec<_> = family(daemon)?.into_iter().filter_map(|pid| Some((pid, Usage::of(pid)?))).collect();
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(context.seconds)).await;
    let elapsed = began.elapsed();
    Usage::of(daemon).context("the daemon has ended")?;
    // Shims of pods that went in the meantime are no part of an idle cluster.
    let lasting = start.into_iter().filter_map(|(pid, before)| Some((before, Usage::of(pid)?)));
    let (before, after): (Vec<_>, Vec<_>) = lasting.unzip();
    let count = after.len();
    let [before, after] = [before, after].map(|usages| usages.into_iter().fold(Usage::default(), Usage::plus));
    let cpu = after.cpu.saturating_sub(before.cpu);
    let share = cpu.as_secs_f64() / elapsed.as_secs_f64() * 100.0;
    let mut rows = vec![
        Row::new(
            format!("idle memory, RSS of {count} processes"),
            bytes(after.resident),
            "under 60 MB",
            "real control plane 525 MB, k3s 1.4-1.6 GB",
        ),
        Row::new(
            format!("idle CPU over {}", duration(elapsed)),
            format!("{share:.3} % ({})", duration(cpu)),
            "under 0.1 %",
            "real control plane 5.6 %, k3s 6-30 %",
        ),
    ];
    let written = match (before.written, after.written) {
        (Some(before), Some(after)) => {
            let written = after.saturating_sub(before);
            let day = (written as f64 * 86_400.0 / elapsed.as_secs_f64()) as u64;
            format!("{written} bytes, {} a day", bytes(day))
        }
        _ => "the kernel does not tell (run as the owner of the processes)".to_owned(),
    };
    rows.push(Row::new("idle disk writes", written, "under 1 MB a day", "k3s with SQLite 42 GB a day"));
    Ok(rows)
}

/// The process of the running cluster's daemon.
pub(super) async fn daemon(global: &Global) -> Result<i32> {
    let status = running(global).await?;
    status["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("the daemon hides its pid")
}

/// Bytes of memory that the daemon and the processes of the same binary beside it have together: what they share (the binary)
/// counts once.
pub(super) fn proportional(daemon: i32) -> Result<u64> {
    let of = |pid: i32| {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        Some(field(&rollup, "Pss:")? * 1024)
    };
    Ok(family(daemon)?.into_iter().filter_map(of).sum())
}

/// The daemon, and the processes of the same binary beside it: holder and shims. (Not ourselves; those of other profiles
/// are counted when they run.)
fn family(daemon: i32) -> Result<Vec<i32>> {
    let identity = |pid: &str| std::fs::metadata(format!("/proc/{pid}/exe")).map(|data| (data.dev(), data.ino())).ok();
    let binary = identity(&daemon.to_string());
    let ours = std::process::id() as i32;
    let mut family = vec![daemon];
    for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid != daemon && pid != ours && binary.is_some() && identity(&pid.to_string()) == binary {
            family.push(pid);
        }
    }
    Ok(family)
}

/// What processes have used up to now.
pub(super) struct Usage {
    pub cpu: Duration,
    pub resident: u64,
    /// Bytes that went to the disk; `None` when the kernel hides it.
    written: Option<u64>,
}

impl Default for Usage {
    fn default() -> Self {
        Self { cpu: Duration::ZERO, resident: 0, written: Some(0) }
    }
}

impl Usage {
    /// Of one process; `None` when it has ended.
    pub fn of(pid: i32) -> Option<Self> {
        // To the nanosecond, with the threads that have ended.
        let clock = nix::time::clock_getcpuclockid(Pid::from_raw(pid)).ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).ok();
        Some(Self {
            cpu: nix::time::clock_gettime(clock).ok()?.into(),
            resident: field(&status, "VmRSS:")? * 1024,
            written: io.and_then(|io| field(&io, "write_bytes:")),
        })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            resident: self.resident + other.resident,
            written: self.written.zip(other.written).map(|(a, b)| a + b),
        }
    }
}

/// The first number of a line `name  number …`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let text = "Name:\tmini\nVmRSS:\t   23456 kB\nwrite_bytes: 4096\ncancelled_write_bytes: 1\n";
        assert_eq!((field(text, "VmRSS:"), field(text, "write_bytes:")), (Some(23456), Some(4096)));
        assert_eq!(field(text, "VmHWM:"), None);
        let usage = Usage::of(std::process::id() as i32).expect("we are alive");
        assert!(usage.resident > 0 && usage.cpu > Duration::ZERO);
    }
}
