//! Log files that stay small: a full one is put aside, and of those the oldest go.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// `containerLogMaxSize` of the kubelet.
pub const MAX_SIZE: u64 = 10 << 20;
/// `containerLogMaxFiles` of the kubelet.
pub const MAX_FILES: usize = 5;

/// The log file of a container, of a part of the process or of the process.
pub struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    is_stderr: bool,
}

impl LogFile {
    /// Opens the file for appending.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, is_stderr: false })
    }

    /// Opens the file to which standard error goes: it stays there, also when a new file begins.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn of_stderr(path: &Path) -> io::Result<Self> {
        Ok(Self { is_stderr: true, ..Self::open(path)? })
    }

    /// Appends entries, and begins a new file when this one is full. A full disk loses entries, never the writer.
    pub fn write(&mut self, entries: &[u8], now: Timestamp) {
        if self.file.write_all(entries).is_ok() {
            self.size += entries.len() as u64;
        }
        if self.size >= MAX_SIZE {
            let _ = self.rotate(now);
        }
    }

    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(now.strftime(".%Y%m%d-%H%M%S-%9f").to_string());
        std::fs::rename(&self.path, &old)?;
        self.file = append(&self.path)?;
        self.size = 0;
        if self.is_stderr {
            nix::unistd::dup2(self.file.as_raw_fd(), nix::libc::STDERR_FILENO)?;
        }
        let mut rotated = rotated(&self.path)?;
        let surplus = rotated.len().saturating_sub(MAX_FILES - 1);
        rotated.drain(..surplus).try_for_each(std::fs::remove_file)
    }
}

/// The rotated files of a log, oldest first.
///
/// # Errors
/// When the directory cannot be read.
pub fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    Ok(files)
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().expect("a valid time")
    }

    #[test]
    fn a_full_file_is_rotated_and_the_oldest_go() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("app/0.log");
        let mut log = LogFile::open(&path).expect("a new file");
        let chunk = vec![b'x'; MAX_SIZE as usize];
        for n in 0..7 {
            log.write(&chunk, at().saturating_add(jiff::SignedDuration::from_secs(n)).expect("a duration"));
        }
        assert_eq!(rotated(&path).expect("readable").len(), MAX_FILES - 1);
        assert_eq!(std::fs::metadata(&path).expect("there").len(), 0);
    }
}
