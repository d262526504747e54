//! Writes a set of files so that a reader sees all old or all new ones (`pkg/volume/util/atomic_writer.go`).
//!
//! Layout: `<dir>/..2026_01_02_03_04_05.123/key`, `<dir>/..data -> ..2026…`, `<dir>/key -> ..data/key`. An update writes a new
//! directory and renames the link `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// Files by relative path.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";

/// Makes `dir` show exactly `payload`; nothing is written when it does already. Returns whether it changed.
///
/// # Errors
/// A path that is absolute or climbs out, or a failing file system.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>, now: Timestamp) -> io::Result<bool> {
    for path in payload.keys() {
        validate(path)?;
    }
    let link = dir.join(DATA);
    let old = fs::read_link(&link).ok().map(|target| dir.join(target));
    if let Some(old) = &old
        && same(old, payload)
    {
        return Ok(false);
    }
    let name = timestamped(dir, now);
    let fresh = dir.join(&name);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.data)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode & 0o7777))?;
        super::give_to_group(&target, group);
    }
    let temporary = dir.join("..data_tmp");
    let _ = fs::remove_file(&temporary);
    symlink(&name, &temporary)?;
    fs::rename(&temporary, &link)?;
    update_visible(dir, payload)?;
    if let Some(old) = old {
        let _ = fs::remove_dir_all(old);
    }
    Ok(true)
}

fn timestamped(dir: &Path, now: Timestamp) -> String {
    let base = now.strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let mut nanos = u64::from(now.subsec_nanosecond().unsigned_abs());
    loop {
        let name = format!("{base}.{nanos}");
        if !dir.join(&name).exists() {
            return name;
        }
        nanos += 1;
    }
}

/// The links `key -> ..data/key` for the first part of each path.
fn update_visible(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn same(dir: &Path, payload: &Payload) -> bool {
    let mut files = Vec::new();
    if collect(dir, dir, &mut files).is_err() || files.len() != payload.len() {
        return false;
    }
    files.iter().all(|path| {
        let Some(file) = path.to_str().and_then(|p| payload.get(p)) else { return false };
        let full = dir.join(path);
        fs::metadata(&full).is_ok_and(|m| m.permissions().mode() & 0o7777 == file.mode & 0o7777)
            && fs::read(&full).is_ok_and(|data| data == file.data)
    })
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(root, &entry.path(), files)?;
        } else if let Ok(relative) = entry.path().strip_prefix(root) {
            files.push(relative.to_owned());
        }
    }
    Ok(())
}

fn validate(path: &str) -> io::Result<()> {
    let bad = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?}: {why}")));
    if path.is_empty() || path.len() > 4096 {
        return bad("must be 1 to 4096 bytes long");
    }
    if path.starts_with("..") {
        return bad("must not start with '..'");
    }
    if !Path::new(path).components().all(|c| matches!(c, Component::Normal(part) if part.len() <= 255)) {
        return bad("must be relative, without '..'");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o640 };
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    #[test]
    fn updates_are_one_rename_and_what_is_gone_vanishes() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let now = Timestamp::UNIX_EPOCH;
        assert!(write(dir, &payload(&[("a", "1"), ("d/x", "2")]), None, now).expect("written"));
        assert!(!write(dir, &payload(&[("a", "1"), ("d/x", "2")]), None, now).expect("unchanged"));
        assert_eq!(fs::read_link(dir.join("a")).expect("a link"), Path::new("..data/a"));
        assert_eq!(fs::read_to_string(dir.join("d/x")).expect("there"), "2");
        assert_eq!(fs::metadata(dir.join("a")).expect("there").permissions().mode() & 0o777, 0o640);
        assert!(write(dir, &payload(&[("a", "3")]), None, now).expect("written"));
        assert_eq!(fs::read_to_string(dir.join("a")).expect("there"), "3");
        assert!(!dir.join("d").exists());
        let left: Vec<_> = fs::read_dir(dir).expect("listed").map(|e| e.expect("an entry").file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
    }

    #[test]
    fn paths_cannot_climb() {
        let dir = tempfile::tempdir().expect("a directory");
        for path in ["../x", "/x", "a/../../x", "..data", "", "./a/../b"] {
            assert!(write(dir.path(), &payload(&[(path, "")]), None, Timestamp::UNIX_EPOCH).is_err(), "{path}");
        }
    }
}
