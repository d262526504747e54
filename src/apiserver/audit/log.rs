//! The file that audit lines are added to. Requests hand their lines over and do not wait for the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::SignedDuration;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::oneshot;

use super::rotation;
use crate::config::AuditRotation;
use crate::env::Env;

/// How many lines wait for the disk (`--audit-log-batch-buffer-size`); more are lost, which is told.
const WAITING: usize = 10_000;

enum Message {
    Line(String),
    Flush(oneshot::Sender<()>),
}

/// The way to the file.
pub(super) struct Log {
    sender: Sender<Message>,
    lost: Arc<AtomicU64>,
}

impl Log {
    /// Opens the file, which only its owner may read, and makes it when it is not there.
    pub fn open(path: &Path, rotation: AuditRotation, env: Env) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        let mut writer = Writer { path: path.to_owned(), file, size, rotation, env };
        let (sender, mut receiver) = channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let losses = Arc::clone(&lost);
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || {
            let mut failing = false;
            while let Some(first) = receiver.blocking_recv() {
                let (mut lines, mut flushed) = (Vec::new(), Vec::new());
                let mut next = Some(first);
                while let Some(message) = next {
                    match message {
                        Message::Line(line) => lines.push(line),
                        Message::Flush(done) => flushed.push(done),
                    }
                    next = receiver.try_recv().ok();
                }
                let result = writer.add(&lines);
                if let Err(error) = &result
                    && !failing
                {
                    tracing::warn!(%error, "cannot write the audit log");
                }
                failing = result.is_err();
                let lost = losses.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::warn!(lost, "lines of the audit log are lost: the disk did not keep up");
                }
                for done in flushed {
                    // Whoever waited may be gone.
                    let _ = done.send(());
                }
            }
        })?;
        Ok(Self { sender, lost })
    }

    /// Adds a line.
    pub fn write(&self, line: String) {
        if self.sender.try_send(Message::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all lines so far are written.
    pub async fn flush(&self) {
        let (sender, receiver) = oneshot::channel();
        if self.sender.send(Message::Flush(sender)).await.is_ok() {
            let _ = receiver.await;
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

struct Writer {
    path: PathBuf,
    file: File,
    /// Bytes in the file.
    size: u64,
    rotation: AuditRotation,
    env: Env,
}

impl Writer {
    /// Adds lines with as few writes as the rotation allows.
    fn add(&mut self, lines: &[String]) -> io::Result<()> {
        let mut text = String::new();
        for line in lines {
            let waiting = text.len() as u64;
            if rotation::is_due(&self.rotation, self.size + waiting, line.len() as u64 + 1) {
                self.write(&std::mem::take(&mut text))?;
                self.rotate()?;
            }
            text.push_str(line);
            text.push('\n');
        }
        self.write(&text)
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.size += text.len() as u64;
        Ok(())
    }

    /// Puts the file aside and begins a new one; removes what is not to be kept.
    fn rotate(&mut self) -> io::Result<()> {
        let now = self.env.now();
        let mut time = now;
        // Two in a millisecond must not be one.
        while rotation::aside(&self.path, time).exists() {
            time = time.saturating_add(SignedDuration::from_millis(1)).map_err(io::Error::other)?;
        }
        std::fs::rename(&self.path, rotation::aside(&self.path, time))?;
        self.file = open(&self.path)?;
        self.size = 0;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let beside: Vec<String> =
            std::fs::read_dir(folder)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        for old in rotation::surplus(&self.path, &beside, &self.rotation, now) {
            std::fs::remove_file(old)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_line_is_torn_or_lost_by_a_rotation() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("audit.log");
        let rotation = AuditRotation { max_size: 1, max_backup: 2, max_age: 0 };
        let log = Log::open(&path, rotation, Env::real()).expect("a log");
        let line = |number: usize| format!("{number:04}{}", "x".repeat(400_000));
        for number in 0..10 {
            log.write(line(number));
        }
        log.flush().await;
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(folder.path()).expect("it is there").map(|entry| entry.expect("a file").path()).collect();
        files.sort();
        // Two lines fit into a MiB: five files, of which two are kept beside the newest.
        assert_eq!(files.len(), 3, "{files:?}");
        let text: String = files.iter().map(|file| std::fs::read_to_string(file).expect("text")).collect();
        let numbers: Vec<&str> = text.lines().map(|line| &line[..4]).collect();
        assert_eq!(numbers, ["0004", "0005", "0006", "0007", "0008", "0009"]);
        drop(log);
        let again = Log::open(&path, AuditRotation { max_size: 1, max_backup: 2, max_age: 0 }, Env::real());
        let again = again.expect("the same log");
        again.write(line(10));
        again.flush().await;
        let newest = std::fs::read_to_string(&path).expect("text");
        assert!(newest.starts_with("0010"), "what was there counts");
    }
}
