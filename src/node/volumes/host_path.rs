//! `hostPath` volumes: the types and their checks. Rootless, paths are those that the user may reach.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

/// Checks (and for the `…OrCreate` types creates) the path.
///
/// # Errors
/// The kubelet's message (`hostPath type check failed: …`).
pub fn set_up(path: &Path, kind: &str) -> Result<(), String> {
    let shown = path.display();
    if path.components().any(|c| matches!(c, std::path::Component::ParentDir)) || !path.is_absolute() {
        return Err(format!("hostPath {shown} must be absolute and must not contain '..'"));
    }
    let failed = |why: &str| Err(format!("hostPath type check failed: {shown} {why}"));
    let metadata = fs::metadata(path).ok();
    match (kind, metadata) {
        ("" | "DirectoryOrCreate", None) => {
            fs::create_dir_all(path).map_err(|e| format!("{shown}: {e}"))?;
            // Only ours may change; an inherited umask must not make it narrower than documented.
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o755));
            Ok(())
        }
        ("FileOrCreate", None) => {
            fs::OpenOptions::new().create(true).append(true).open(path).map_err(|e| format!("{shown}: {e}"))?;
            Ok(())
        }
        ("", Some(_)) => Ok(()),
        ("Directory" | "DirectoryOrCreate", Some(m)) if m.is_dir() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => failed("is not a directory"),
        ("File" | "FileOrCreate", Some(m)) if m.is_file() => Ok(()),
        ("File" | "FileOrCreate", _) => failed("is not a file"),
        ("Socket", Some(m)) if m.file_type().is_socket() => Ok(()),
        ("Socket", _) => failed("is not a socket file"),
        ("CharDevice", Some(m)) if m.file_type().is_char_device() => Ok(()),
        ("CharDevice", _) => failed("is not a character device"),
        ("BlockDevice", Some(m)) if m.file_type().is_block_device() => Ok(()),
        ("BlockDevice", _) => failed("is not a block device"),
        (other, _) => Err(format!("{other} is an invalid volume type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("f");
        assert!(set_up(&file, "File").expect_err("missing").ends_with("is not a file"));
        assert_eq!(set_up(&file, "FileOrCreate"), Ok(()));
        assert_eq!(set_up(&file, "File"), Ok(()));
        assert!(set_up(&file, "Directory").expect_err("a file").ends_with("is not a directory"));
        assert_eq!(set_up(&dir.path().join("a/b"), "DirectoryOrCreate"), Ok(()));
        assert!(set_up(Path::new("/a/../b"), "").is_err());
        assert!(set_up(Path::new("/dev/null"), "CharDevice").is_ok());
    }
}
