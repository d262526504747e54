//! A directory that stands for `/`: names below it are resolved by the kernel so that nothing climbs out.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

/// An open directory; absolute names and symbolic links are relative to it, `..` stops at it.
#[derive(Debug)]
pub struct RootDir {
    fd: OwnedFd,
}

impl RootDir {
    /// Opens a directory of ours.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
        Ok(Self { fd: std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?.into() })
    }

    /// Opens a name below the root as a process whose root this is would.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn at(&self, path: &Path, flags: OFlag, mode: u32) -> io::Result<OwnedFd> {
        let mode = if flags.intersects(OFlag::O_CREAT | OFlag::O_TMPFILE) { mode } else { 0 };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(Mode::from_bits_truncate(mode))
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        loop {
            match openat2(self.fd.as_raw_fd(), path, how) {
                Err(nix::errno::Errno::EAGAIN) => {} // a rename was going on
                // SAFETY: the kernel has just made this descriptor for us.
                Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The contents of a file, at most `limit` bytes.
    ///
    /// # Errors
    /// When it is not there, or not a regular file.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let file = File::from(self.at(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Opens a directory, making what is missing of it (mode 0755).
    ///
    /// # Errors
    /// When a part of the name is a file.
    pub fn make_directories(&self, path: &Path) -> io::Result<OwnedFd> {
        let directory = OFlag::O_DIRECTORY | OFlag::O_PATH;
        match self.at(path, directory, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
        let mut sofar = PathBuf::new();
        let mut parent = self.at(Path::new("."), directory, 0)?;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            sofar.push(name);
            parent = match self.at(&sofar, directory, 0) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match nix::sys::stat::mkdirat(Some(parent.as_raw_fd()), name, Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(nix::errno::Errno::EEXIST) => self.at(&sofar, directory, 0)?,
                        Err(error) => return Err(error.into()),
                    }
                }
                found => found?,
            };
        }
        Ok(parent)
    }

    /// Makes an empty file with its directories when nothing is there.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn make_file(&self, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            self.make_directories(parent)?;
        }
        match self.at(path, OFlag::O_PATH, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.at(path, OFlag::O_CREAT | OFlag::O_WRONLY, 0o644).map(|_| ())
            }
            found => found.map(|_| ()),
        }
    }
}

impl AsFd for RootDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_climbs_out() {
        let outer = tempfile::tempdir().expect("a temporary directory");
        let inner = outer.path().join("root");
        std::fs::create_dir(&inner).expect("a new directory");
        std::fs::write(outer.path().join("secret"), "s").expect("written");
        std::os::unix::fs::symlink("../secret", inner.join("relative")).expect("linked");
        std::os::unix::fs::symlink(outer.path().join("secret"), inner.join("absolute")).expect("linked");
        let root = RootDir::open(&inner).expect("there");
        for name in ["../secret", "relative", "absolute", "/../../secret"] {
            let error = root.read(Path::new(name), 10).expect_err("outside");
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name}");
        }
        root.make_directories(Path::new("/a/b/../c")).expect("made");
        root.make_file(Path::new("/x/y")).expect("made");
        assert!(inner.join("x/y").is_file());
    }
}
