//! `fsGroup`: the files of a volume belong to the pod's group (`pkg/volume/volume_linux.go`).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::Path;

use k8s_openapi::api::core::v1 as core;

/// What the group may do with files, and beside it with directories.
const FILE_MASK: u32 = 0o660;
const DIRECTORY_MASK: u32 = 0o2110;

/// Whose the files of volumes are to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    /// `fsGroup`.
    pub group: Option<u32>,
    /// `fsGroupChangePolicy: OnRootMismatch`: what has the right root is taken to be right throughout.
    pub on_root_mismatch: bool,
}

impl Ownership {
    /// What a pod asks for.
    pub fn of(spec: &core::PodSpec) -> Self {
        let security = spec.security_context.as_ref();
        Self {
            group: security.and_then(|s| s.fs_group).and_then(|group| u32::try_from(group).ok()),
            on_root_mismatch: security.and_then(|s| s.fs_group_change_policy.as_deref()) == Some("OnRootMismatch"),
        }
    }

    /// Gives a directory with everything in it to the group, as far as the user namespace allows.
    ///
    /// # Errors
    /// When something cannot be changed that others may change.
    pub fn apply(&self, root: &Path) -> io::Result<()> {
        let Some(group) = self.group else { return Ok(()) };
        if self.on_root_mismatch && is_right(root, group)? {
            return Ok(());
        }
        match give(root, group) {
            // A group that is not mapped here can own nothing; the pod's processes run with it all the same.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::debug!(root = %root.display(), group, "fsGroup is not mapped");
                Ok(())
            }
            done => done,
        }
    }
}

fn is_right(root: &Path, group: u32) -> io::Result<bool> {
    let metadata = fs::metadata(root)?;
    let wanted = if metadata.is_dir() { FILE_MASK | DIRECTORY_MASK } else { FILE_MASK };
    Ok(metadata.gid() == group && metadata.mode() & wanted == wanted)
}

/// Symbolic links are given away themselves, never followed.
fn give(path: &Path, group: u32) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        // Another process may clean up while we walk.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    lchown(path, None, Some(group))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mask = if metadata.is_dir() { FILE_MASK | DIRECTORY_MASK } else { FILE_MASK };
    let mode = metadata.mode() & 0o7777;
    if mode & mask != mask || metadata.gid() != group {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | mask))?;
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), group)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_the_groups_and_links_are_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = nix::unistd::getgid().as_raw();
        let (root, outside) = (folder.path().join("v"), folder.path().join("outside"));
        fs::create_dir_all(root.join("sub")).expect("made");
        fs::write(root.join("sub/file"), "x").expect("written");
        fs::write(&outside, "x").expect("written");
        std::os::unix::fs::symlink(&outside, root.join("link")).expect("linked");
        for path in [root.join("sub/file"), outside.clone()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("set");
        }
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
        Ownership { group: Some(own), on_root_mismatch: false }.apply(&root).expect("applied");
        assert_eq!(mode(&root) & 0o2770, 0o2770);
        assert_eq!(mode(&root.join("sub/file")), 0o660);
        assert_eq!(mode(&outside), 0o600);

        fs::set_permissions(root.join("sub/file"), fs::Permissions::from_mode(0o600)).expect("set");
        Ownership { group: Some(own), on_root_mismatch: true }.apply(&root).expect("applied");
        assert_eq!(mode(&root.join("sub/file")), 0o600, "the root is right");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("set");
        Ownership { group: Some(own), on_root_mismatch: true }.apply(&root).expect("applied");
        assert_eq!(mode(&root.join("sub/file")), 0o660);
        Ownership::default().apply(Path::new("/nowhere")).expect("nothing is asked");
    }
}
