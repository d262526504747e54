//! One store and several processes: the nodes of one machine share their images. Locks on files, which end with their
//! process, keep them out of each other's way.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// A lock that is held until it is dropped.
pub type Held = Flock<File>;
/// Pulls are kept apart by as many locks.
const PULLS: u64 = 64;

/// The locks of one store.
#[derive(Debug)]
pub struct Locks {
    directory: PathBuf,
}

impl Locks {
    /// The locks below a store's root.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(root: &Path) -> io::Result<Self> {
        let directory = root.join("locks");
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    fn lock(&self, name: &str, how: FlockArg) -> io::Result<Held> {
        let file = File::options().create(true).truncate(false).write(true).open(self.directory.join(name))?;
        Flock::lock(file, how).map_err(|(_, error)| error.into())
    }

    /// Held while `images.json` is changed. May wait, here and below.
    ///
    /// # Errors
    /// When the file cannot be opened, here and below.
    pub fn index(&self) -> io::Result<Held> {
        self.lock("index", FlockArg::LockExclusive)
    }

    /// Held (by any number of processes and tasks) while there are files that belong to no image yet.
    ///
    /// # Errors
    /// See above.
    pub fn work(&self) -> io::Result<Held> {
        self.lock("work", FlockArg::LockShared)
    }

    /// Held while what belongs to no image is removed; `None` while somebody works. Does not wait.
    ///
    /// # Errors
    /// See above.
    pub fn idle(&self) -> io::Result<Option<Held>> {
        match self.lock("work", FlockArg::LockExclusiveNonblock) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            held => held.map(Some),
        }
    }

    /// Held by the one who transfers an image.
    ///
    /// # Errors
    /// See above.
    pub fn pull(&self, name: &str) -> io::Result<Held> {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        self.lock(&format!("pull-{:02}", hasher.finish() % PULLS), FlockArg::LockExclusive)
    }
}

/// Tells whether a file was replaced; `None` when it is not there.
pub fn stamp(path: &Path) -> Option<(u64, i64, i64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_removes_while_somebody_works() {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, other) = (Locks::open(directory.path()), Locks::open(directory.path()));
        let (one, other) = (one.expect("opened"), other.expect("opened"));
        let work = (one.work().expect("locked"), other.work().expect("locked"));
        assert!(one.idle().expect("no error").is_none());
        drop(work);
        let idle = one.idle().expect("no error");
        assert!(idle.is_some() && other.idle().expect("no error").is_none());
    }
}
