//! `emptyDir` volumes: a directory, or a tmpfs for `medium: Memory` where the kernel allows it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use k8s_openapi::api::core::v1 as core;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::node::quantity;

/// Creates the directory (once: what is in it stays until the pod goes).
///
/// # Errors
/// When it cannot be created.
pub fn set_up(dir: &Path, source: &core::EmptyDirVolumeSource) -> io::Result<()> {
    let fresh = !dir.exists();
    fs::create_dir_all(dir)?;
    if fresh && source.medium.as_deref() == Some("Memory") {
        let size = source.size_limit.as_ref().and_then(|q| quantity::value(&q.0)).filter(|n| *n > 0);
        let options = size.map_or_else(|| "mode=0777".to_owned(), |n| format!("mode=0777,size={n}"));
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        if let Err(error) = mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options.as_str())) {
            tracing::warn!(%error, "no tmpfs for an emptyDir in memory: it is on disk");
        }
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777))
}

/// Unmounts a tmpfs if there is one.
pub fn tear_down(dir: &Path) {
    // EINVAL: it is no mount point, the usual case.
    let _ = umount2(dir, MntFlags::MNT_DETACH);
}
