//! Directories of volumes on this machine: `<root>/<namespace>/<volume>`.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::provisioner::Directories;
use crate::api::meta::validate_subdomain;

/// Directories below one root.
pub struct HostDirectories {
    root: PathBuf,
}

impl HostDirectories {
    /// Below `root`, which is made when it is needed.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory of a volume; names that could climb out are refused.
    fn directory(&self, namespace: &str, volume: &str) -> io::Result<PathBuf> {
        let bad = [namespace, volume].iter().any(|name| !validate_subdomain(name).is_empty());
        if bad { Err(not_ours()) } else { Ok(self.root.join(namespace).join(volume)) }
    }
}

fn not_ours() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a directory of this provisioner")
}

#[async_trait]
impl Directories for HostDirectories {
    async fn create(&self, namespace: &str, volume: &str) -> io::Result<String> {
        let directory = self.directory(namespace, volume)?;
        tokio::fs::create_dir_all(&directory).await?;
        // Pods run as any user.
        tokio::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).await?;
        directory.into_os_string().into_string().map_err(|_| not_ours())
    }

    async fn remove(&self, path: &str) -> io::Result<()> {
        let inside = Path::new(path).strip_prefix(&self.root).map_err(|_| not_ours())?;
        let parts: Vec<&str> = inside.iter().filter_map(|part| part.to_str()).collect();
        let [namespace, volume] = parts.as_slice() else { return Err(not_ours()) };
        // A pod may have put a link in the place of nothing here: only its own directory is its to change, not this one.
        match tokio::fs::remove_dir_all(self.directory(namespace, volume)?).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                // The namespace's directory goes with its last volume.
                let _ = tokio::fs::remove_dir(self.root.join(namespace)).await;
                Ok(())
            }
        }
    }

    async fn size(&self) -> io::Result<u64> {
        let existing = self.root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let facts = nix::sys::statvfs::statvfs(existing)?;
        Ok(facts.blocks() * facts.fragment_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn directories_stay_below_the_root() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("volumes");
        let directories = HostDirectories::new(&root);
        let path = directories.create("shop", "data").await.expect("created");
        assert_eq!(Path::new(&path), root.join("shop/data"));
        assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o777);
        std::fs::write(root.join("shop/data/file"), "x").expect("written");
        std::fs::create_dir(folder.path().join("other")).expect("created");
        let climbing = root.join("shop/../../other");
        for bad in [folder.path().join("other"), climbing, root.clone(), root.join("shop"), PathBuf::from("/")] {
            directories.remove(bad.to_str().expect("a path of letters")).await.expect_err("it is not ours");
        }
        assert!(directories.create("..", "data").await.is_err() && folder.path().join("other").exists());
        directories.remove(&path).await.expect("removed");
        directories.remove(&path).await.expect("it is gone already");
        assert!(!root.join("shop").exists());
    }
}
