//! A container's root file system (an overlay over the image's layers), and who its user is.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::node::root_dir::RootDir;
use crate::node::runtime::Mount;

/// Where images that are volumes are mounted in a container's directory.
const IMAGES: &str = "images";

/// Mounts the layers (lowest first) with a fresh writable one on `directory/rootfs`.
///
/// # Errors
/// In one line what the kernel refused.
pub fn mount_overlay(directory: &Path, layers: &[std::path::PathBuf]) -> Result<(), String> {
    let make = |name: &str| {
        let path = directory.join(name);
        std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        File::open(&path).map_err(|e| format!("{}: {e}", path.display()))
    };
    let (upper, work, _root, empty) = (make("upper")?, make("work")?, make("rootfs")?, make("empty")?);
    let mut lower = Vec::new();
    for layer in layers.iter().rev() {
        lower.push(File::open(layer).map_err(|e| format!("image layer {}: {e}", layer.display()))?);
    }
    if lower.is_empty() {
        lower.push(empty);
    }
    // Mount data is one page: names through our descriptors are short, and free of `:` and `,`.
    let name = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let lowers: Vec<String> = lower.iter().map(name).collect();
    let data = format!("userxattr,lowerdir={},upperdir={},workdir={}", lowers.join(":"), name(&upper), name(&work));
    if data.len() >= 4096 {
        return Err(format!("too many image layers: {}", layers.len()));
    }
    let target = directory.join("rootfs");
    mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        .map_err(|e| format!("mount overlay: {}", e.desc().to_lowercase()))
}

/// Mounts the images that are volumes, and lets the mounts begin there.
///
/// # Errors
/// In one line what the kernel refused, or a `subPath` that the image does not have.
pub fn mount_images(directory: &Path, mounts: &mut [Mount]) -> Result<(), String> {
    for (number, mount) in mounts.iter_mut().enumerate() {
        let Some(image) = &mount.image else { continue };
        let target = directory.join(IMAGES).join(number.to_string());
        mount_layers(directory, &target, &image.layers)?;
        mount.source = target.clone();
        if !image.sub_path.is_empty() {
            let missing = |e: io::Error| format!("subPath {:?} of the image volume: {e}", image.sub_path);
            let root = RootDir::open(&target).map_err(missing)?;
            let inside = root.at(Path::new(&image.sub_path), OFlag::O_PATH, 0).map_err(missing)?;
            mount.source = std::fs::read_link(format!("/proc/self/fd/{}", inside.as_raw_fd())).map_err(missing)?;
        }
    }
    Ok(())
}

/// Mounts layers (lowest first) that nobody writes.
fn mount_layers(directory: &Path, target: &Path, layers: &[std::path::PathBuf]) -> Result<(), String> {
    let empty = directory.join("empty");
    for path in [&empty, &target.to_owned()] {
        std::fs::create_dir_all(path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let open =
        |layer: &std::path::PathBuf| File::open(layer).map_err(|e| format!("image layer {}: {e}", layer.display()));
    // An overlay without a writable layer needs two others.
    let files = layers.iter().rev().chain([&empty]).map(open).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = files.iter().map(|file| format!("/proc/self/fd/{}", file.as_raw_fd())).collect();
    let data = format!("userxattr,lowerdir={}", names.join(":"));
    if data.len() >= 4096 {
        return Err(format!("too many image layers: {}", layers.len()));
    }
    mount(Some("overlay"), target, Some("overlay"), MsFlags::MS_RDONLY, Some(data.as_str()))
        .map_err(|e| format!("mount image volume: {}", e.desc().to_lowercase()))
}

/// Unmounts what [`mount_overlay`] and [`mount_images`] mounted.
pub fn unmount(directory: &Path) {
    let _ = umount2(&directory.join("rootfs"), MntFlags::MNT_DETACH);
    for entry in std::fs::read_dir(directory.join(IMAGES)).into_iter().flatten().flatten() {
        let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
    }
}

/// Who a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Its user.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Other groups.
    pub groups: Vec<u32>,
    /// `$HOME`
    pub home: String,
}

/// Finds the user of a container: `runAsUser`/`runAsGroup`, else what the image says (`user`, `uid`, `user:group`).
///
/// # Errors
/// When the image names a user or group that it does not have, in the words of containerd.
pub fn find_user(root: &RootDir, image: &str, uid: Option<i64>, gid: Option<i64>) -> Result<User, String> {
    let file = |name: &str| {
        root.read(Path::new(name), 1 << 20).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    };
    pick_user(&file("/etc/passwd"), &file("/etc/group"), image, uid, gid)
}

fn pick_user(passwd: &str, group: &str, image: &str, uid: Option<i64>, gid: Option<i64>) -> Result<User, String> {
    let number = |n: i64| u32::try_from(n).map_err(|_| format!("id {n} is out of range"));
    let (name, group_name) = image.split_once(':').map_or((image, None), |(user, group)| (user, Some(group)));
    let rows = |text: &str| {
        text.lines().map(|l| l.split(':').map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<Vec<String>>>()
    };
    let (users, groups) = (rows(passwd), rows(group));
    let field = |row: &[String], at: usize| row.get(at).cloned().unwrap_or_default();
    let by_uid = |uid: u32| users.iter().find(|r| field(r, 2).parse() == Ok(uid));
    let row = match uid {
        Some(uid) => by_uid(number(uid)?),
        None if name.is_empty() => by_uid(0),
        None => match name.parse::<u32>() {
            Ok(uid) => by_uid(uid),
            Err(_) => {
                let found = users.iter().find(|r| field(r, 0) == name);
                Some(found.ok_or_else(|| format!("unable to find user {name}: no matching entries in passwd file"))?)
            }
        },
    };
    let id = match (uid, row) {
        (Some(uid), _) => number(uid)?,
        (None, Some(row)) => field(row, 2).parse().map_err(|_| format!("invalid user entry for {name}"))?,
        (None, None) => name.parse().unwrap_or(0),
    };
    let primary = match (gid, group_name.filter(|_| uid.is_none()), row) {
        (Some(gid), _, _) => number(gid)?,
        (None, Some(group_name), _) => match group_name.parse() {
            Ok(gid) => gid,
            Err(_) => {
                let found = groups.iter().find(|r| field(r, 0) == group_name).and_then(|r| field(r, 2).parse().ok());
                found.ok_or_else(|| format!("unable to find group {group_name}: no matching entries in group file"))?
            }
        },
        (None, None, Some(row)) => field(row, 3).parse().unwrap_or(0),
        (None, None, None) => 0,
    };
    // Membership in the image's own groups (`supplementalGroupsPolicy: Merge`).
    let user_name = row.map(|r| field(r, 0)).unwrap_or_default();
    let member = |r: &&Vec<String>| !user_name.is_empty() && field(r, 3).split(',').any(|m| m == user_name);
    let others = groups.iter().filter(member).filter_map(|r| field(r, 2).parse().ok()).collect();
    let home = row.map(|r| field(r, 5)).filter(|h| h.starts_with('/')).unwrap_or_else(|| "/".to_owned());
    Ok(User { uid: id, gid: primary, groups: others, home })
}

/// Makes the working directory when the image has none of that name.
///
/// # Errors
/// When a part of it is a file.
pub fn make_working_directory(root: &RootDir, path: &Path) -> io::Result<()> {
    root.make_directories(path).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_as_containerd_does() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv:/bin/false\n";
        let group = "root:x:0:\nweb:x:102:\nmail:x:8:web\n";
        let pick =
            |image: &str, uid, gid| pick_user(passwd, group, image, uid, gid).map(|u| (u.uid, u.gid, u.groups, u.home));
        let home = |h: &str| h.to_owned();
        assert_eq!(pick("", None, None), Ok((0, 0, vec![], home("/root"))));
        assert_eq!(pick("web", None, None), Ok((101, 102, vec![8], home("/srv"))));
        assert_eq!(pick("101:mail", None, None), Ok((101, 8, vec![8], home("/srv"))));
        assert_eq!(pick("5000", None, None), Ok((5000, 0, vec![], home("/"))));
        assert_eq!(pick("web", Some(1000), Some(2000)), Ok((1000, 2000, vec![], home("/"))));
        assert!(pick("nobody", None, None).is_err());
        assert!(pick("", Some(-1), None).is_err());
    }
}
