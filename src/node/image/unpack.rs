//! Unpacking a layer into a directory that overlayfs understands: hostile input, resolved by the kernel below the
//! directory only.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::node::root_dir::RootDir;

/// The prefix of the names that delete something of a lower layer (OCI image specification, layers).
const WHITEOUT: &[u8] = b".wh.";
/// The name that hides all that lower layers have in a directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: &str = "user.overlay.opaque";

/// What came out of a layer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// The digest of the uncompressed archive: its diff id.
    pub diff_id: String,
    /// What was left out or changed, at most a few.
    pub warnings: Vec<String>,
}

/// Unpacks a layer (plain, gzip or zstd: its first bytes tell) into the existing directory `into`.
/// `single_uid`: everything belongs to the one user that exists.
///
/// # Errors
/// When the archive is damaged or names something outside, or the disk is full. The directory is half filled then.
pub fn unpack(layer: impl Read, into: &Path, single_uid: bool) -> io::Result<Unpacked> {
    let allowance = Allowance::default();
    let hashing = Hashing { inner: allowance.metered(decompressed(layer)?), hash: Sha256::new() };
    let mut archive = tar::Archive::new(hashing);
    archive.set_ignore_zeros(false);
    let mut target = Target { root: RootDir::open(into)?, single_uid, warnings: Vec::new(), directories: Vec::new() };
    let mut entries = archive.entries()?;
    while let Some(entry) = allowance.next(&mut entries) {
        let mut entry = entry?;
        target.entry(&mut entry)?;
        io::copy(&mut entry, &mut io::sink())?;
    }
    target.finish();
    let mut hashing = archive.into_inner();
    io::copy(&mut hashing, &mut io::sink())?; // what follows the end of the archive is part of the digest
    let digest = hashing.hash.finalize();
    Ok(Unpacked { diff_id: format!("sha256:{}", hex(&digest)), warnings: target.warnings })
}

/// A digest in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The plain bytes of a stream that may be compressed by gzip or zstd.
///
/// # Errors
/// When it cannot be read.
pub fn decompressed<'a>(stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut stream = BufReader::with_capacity(256 << 10, stream);
    let head = stream.fill_buf()?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(256 << 10, flate2::bufread::MultiGzDecoder::new(stream))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(stream)?),
        _ => Box::new(stream),
    })
}

/// The most that may stand in front of an entry's content: its header, a long name, extended attributes. All that is read
/// into memory.
const HEADERS: usize = 1 << 20;

/// How much may be read from an archive at the moment.
#[derive(Clone)]
pub struct Allowance(Rc<Cell<usize>>);

impl Default for Allowance {
    fn default() -> Self {
        Self(Rc::new(Cell::new(usize::MAX)))
    }
}

impl Allowance {
    /// The stream, as far as it is allowed.
    pub fn metered<R>(&self, inner: R) -> Metered<R> {
        Metered { inner, allowance: self.clone() }
    }

    /// The next entry of an archive on a metered stream. The one before must have been read to its end.
    pub fn next<T>(&self, entries: &mut impl Iterator<Item = T>) -> Option<T> {
        self.0.set(HEADERS);
        let entry = entries.next();
        self.0.set(usize::MAX);
        entry
    }
}

/// A stream of which only so much may be read.
pub struct Metered<R> {
    inner: R,
    allowance: Allowance,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowance.0.get();
        if allowed == 0 {
            return Err(invalid("the header of an entry is too long"));
        }
        let most = buffer.len().min(allowed);
        let length = self.inner.read(&mut buffer[..most])?;
        if allowed != usize::MAX {
            self.allowance.0.set(allowed - length);
        }
        Ok(length)
    }
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

struct Target {
    root: RootDir,
    single_uid: bool,
    warnings: Vec<String>,
    /// Times of directories are set last, when nothing is put into them any more.
    directories: Vec<(PathBuf, i64)>,
}

/// A name split into its directory (open) and last part.
struct Place<'a> {
    parent: OwnedFd,
    name: &'a OsStr,
}

impl Target {
    fn warn(&mut self, warning: String) {
        if self.warnings.len() < 8 {
            self.warnings.push(warning);
        }
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let name = entry.path_bytes().into_owned();
        let path = inside(Path::new(OsStr::from_bytes(&name)))?;
        let Some(name) = path.file_name() else {
            return self.attributes_of_root(entry);
        };
        let parent_path = path.parent().unwrap_or(Path::new(""));
        let parent = self.root.make_directories(parent_path)?;
        let place = Place { parent, name };
        if name.as_bytes() == OPAQUE {
            return self.opaque(parent_path);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return whiteout(&place, OsStr::from_bytes(hidden));
        }
        let kind = entry.header().entry_type();
        let mode = entry.header().mode().unwrap_or(0o644) & 0o7777;
        match kind {
            EntryType::Directory => {
                if self.directory(&place)? {
                    self.opaque(&path)?;
                }
                self.directories.push((path.clone(), mtime(entry)));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                clear(&place)?;
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let fd =
                    nix::fcntl::openat(Some(place.parent.as_raw_fd()), name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
                // SAFETY: the kernel has just made this descriptor for us.
                let mut file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
                io::copy(entry, &mut file)?;
            }
            EntryType::Symlink => {
                clear(&place)?;
                let link = entry.link_name_bytes().ok_or_else(|| invalid("a symbolic link without a target"))?;
                symlinkat(OsStr::from_bytes(&link), Some(place.parent.as_raw_fd()), name)?;
            }
            EntryType::Link => {
                let link = entry.link_name_bytes().ok_or_else(|| invalid("a hard link without a target"))?;
                return self.hard_link(&place, Path::new(OsStr::from_bytes(&link)));
            }
            EntryType::Fifo => {
                clear(&place)?;
                mknodat(Some(place.parent.as_raw_fd()), name, SFlag::S_IFIFO, Mode::S_IRUSR, 0)?;
            }
            EntryType::Char | EntryType::Block => {
                self.warn(format!("device {} left out", path.display()));
                return Ok(());
            }
            EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink => {
                return Ok(());
            }
            other => {
                self.warn(format!("{} of unknown type {:?} left out", path.display(), other));
                return Ok(());
            }
        }
        self.attributes(entry, &place, kind, mode)
    }

    fn attributes_of_root<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let parent = self.root.at(Path::new("."), OFlag::O_PATH | OFlag::O_DIRECTORY, 0)?;
        let mode = entry.header().mode().unwrap_or(0o755) & 0o7777;
        self.attributes(entry, &Place { parent, name: OsStr::new(".") }, EntryType::Directory, mode)
    }

    /// Makes a directory unless it is there; whether it replaced something of another kind (or a whiteout).
    fn directory(&mut self, place: &Place<'_>) -> io::Result<bool> {
        match mkdirat(Some(place.parent.as_raw_fd()), place.name, Mode::S_IRWXU) {
            Ok(()) => Ok(false),
            Err(Errno::EEXIST) if is_directory(place)? => Ok(false),
            Err(Errno::EEXIST) => {
                clear(place)?;
                mkdirat(Some(place.parent.as_raw_fd()), place.name, Mode::S_IRWXU)?;
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn opaque(&mut self, path: &Path) -> io::Result<()> {
        let directory = self.root.at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?;
        xattr::FileExt::set_xattr(&File::from(directory), OPAQUE_XATTR, b"y")
    }

    fn hard_link(&mut self, place: &Place<'_>, link: &Path) -> io::Result<()> {
        let link = inside(link)?;
        let Some(name) = link.file_name() else { return Err(invalid("a hard link to the root")) };
        let parent = self.root.at(link.parent().unwrap_or(Path::new("")), OFlag::O_PATH | OFlag::O_DIRECTORY, 0)?;
        let same = self
            .root
            .at(&link, OFlag::O_PATH | OFlag::O_NOFOLLOW, 0)
            .and_then(|a| Ok(nix::sys::stat::fstat(a.as_raw_fd())?));
        let there = nix::sys::stat::fstatat(Some(place.parent.as_raw_fd()), place.name, AtFlags::AT_SYMLINK_NOFOLLOW);
        if let (Ok(a), Ok(b)) = (same, there)
            && (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
        {
            return Ok(()); // to itself
        }
        clear(place)?;
        linkat(Some(parent.as_raw_fd()), name, Some(place.parent.as_raw_fd()), place.name, AtFlags::empty())?;
        Ok(())
    }

    fn attributes<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        place: &Place<'_>,
        kind: EntryType,
        mode: u32,
    ) -> io::Result<()> {
        let parent = Some(place.parent.as_raw_fd());
        if !self.single_uid {
            let id = |n: io::Result<u64>| u32::try_from(n.unwrap_or(0)).unwrap_or(0);
            let (uid, gid) = (id(entry.header().uid()), id(entry.header().gid()));
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            match fchownat(parent, place.name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::EINVAL | Errno::EPERM) => {
                    let name = place.name.to_string_lossy();
                    self.warn(format!("owner {uid}:{gid} of {name} does not exist here: it belongs to root"));
                }
                done => done?,
            }
        }
        if kind != EntryType::Symlink {
            fchmodat(parent, place.name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?;
        }
        if matches!(kind, EntryType::Directory | EntryType::Regular | EntryType::Continuous) {
            self.xattrs(entry, place, kind)?;
        }
        let time = TimeSpec::new(mtime(entry), 0);
        let _ = utimensat(parent, place.name, &time, &time, UtimensatFlags::NoFollowSymlink);
        Ok(())
    }

    /// Extended attributes (file capabilities among them), but none that overlayfs gives a meaning to.
    fn xattrs<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, place: &Place<'_>, kind: EntryType) -> io::Result<()> {
        let mut wanted = Vec::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.".as_slice()) else { continue };
                wanted.push((name.to_vec(), extension.value_bytes().to_vec()));
            }
        }
        wanted.retain(|(name, _)| !name.starts_with(b"user.overlay.") && !name.starts_with(b"trusted."));
        if wanted.is_empty() {
            return Ok(());
        }
        let extra = if kind == EntryType::Directory { OFlag::O_DIRECTORY } else { OFlag::empty() };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | extra;
        let fd = nix::fcntl::openat(Some(place.parent.as_raw_fd()), place.name, flags, Mode::empty())?;
        // SAFETY: the kernel has just made this descriptor for us.
        let file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        for (name, value) in wanted {
            let name = OsStr::from_bytes(&name);
            if let Err(error) = xattr::FileExt::set_xattr(&file, name, &value) {
                if error.raw_os_error() == Some(libc::ENOSPC) {
                    return Err(error);
                }
                self.warn(format!("attribute {} of {}: {error}", name.to_string_lossy(), place.name.to_string_lossy()));
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        for (path, time) in self.directories.drain(..).rev() {
            if let Ok(directory) = self.root.at(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0) {
                let time = TimeSpec::new(time, 0);
                let _ = nix::sys::stat::futimens(directory.as_raw_fd(), &time, &time);
            }
        }
    }
}

fn mtime<R: Read>(entry: &tar::Entry<'_, R>) -> i64 {
    entry.header().mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0)
}

/// A name without `/` in front; one with `..` in it is refused.
fn inside(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            _ => return Err(invalid(&format!("{:?} is outside of the layer", path.display().to_string()))),
        }
    }
    Ok(clean)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn is_directory(place: &Place<'_>) -> io::Result<bool> {
    let stat = nix::sys::stat::fstatat(Some(place.parent.as_raw_fd()), place.name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}

/// Removes what has that name already: a later entry wins.
fn clear(place: &Place<'_>) -> io::Result<()> {
    match unlinkat(Some(place.parent.as_raw_fd()), place.name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => remove_directory(place),
        Err(error) => Err(error.into()),
    }
}

fn remove_directory(place: &Place<'_>) -> io::Result<()> {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", place.parent.as_raw_fd()));
    path.push(place.name);
    std::fs::remove_dir_all(path)
}

/// Hides a name of lower layers, unless this layer brings it itself.
fn whiteout(place: &Place<'_>, hidden: &OsStr) -> io::Result<()> {
    if hidden.is_empty() || hidden == "." || hidden == ".." {
        return Err(invalid("a whiteout of nothing"));
    }
    if hidden.as_bytes().starts_with(WHITEOUT) {
        return Ok(()); // other marks of AUFS, with no meaning here
    }
    match mknodat(Some(place.parent.as_raw_fd()), hidden, SFlag::S_IFCHR, Mode::empty(), 0) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    struct Layer(tar::Builder<Vec<u8>>);

    impl Layer {
        fn new() -> Self {
            Self(tar::Builder::new(Vec::new()))
        }

        /// Names are written as they are: the builder would refuse hostile ones.
        fn add(mut self, kind: EntryType, name: &str, mode: u32, link: &str, data: &[u8]) -> Self {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().expect("gnu").name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_gnu_mut().expect("gnu").linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(data.len() as u64);
            header.set_mtime(1_700_000_000);
            header.set_cksum();
            self.0.append(&header, data).expect("in memory");
            self
        }

        fn file(self, name: &str, data: &[u8]) -> Self {
            self.add(EntryType::Regular, name, 0o644, "", data)
        }

        fn bytes(self) -> Vec<u8> {
            self.0.into_inner().expect("in memory")
        }
    }

    fn unpacked(layer: &[u8]) -> (tempfile::TempDir, io::Result<Unpacked>) {
        let outer = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(outer.path().join("in")).expect("made");
        let result = unpack(layer, &outer.path().join("in"), true);
        (outer, result)
    }

    #[test]
    fn files_links_and_modes_come_out() {
        let layer = Layer::new()
            .add(EntryType::Directory, "bin/", 0o755, "", b"")
            .add(EntryType::Regular, "./bin/sh", 0o4755, "", b"#!")
            .add(EntryType::Symlink, "bin/ash", 0o777, "sh", b"")
            .add(EntryType::Link, "bin/dash", 0o755, "bin/sh", b"")
            .file("/etc/absolute", b"x")
            .add(EntryType::Char, "dev/null", 0o666, "", b"")
            .bytes();
        let (outer, result) = unpacked(&layer);
        let result = result.expect("a good layer");
        assert_eq!(result.diff_id, format!("sha256:{}", hex(&Sha256::digest(&layer))));
        assert_eq!(result.warnings, ["device dev/null left out"]);
        let root = outer.path().join("in");
        let sh = std::fs::metadata(root.join("bin/sh")).expect("there");
        assert_eq!((sh.permissions().mode() & 0o7777, sh.nlink(), sh.mtime()), (0o4755, 2, 1_700_000_000));
        assert_eq!(std::fs::read_link(root.join("bin/ash")).expect("a link"), Path::new("sh"));
        assert!(root.join("etc/absolute").exists());
    }

    #[test]
    fn compressed_layers_have_the_same_diff_id() {
        let layer = Layer::new().file("a", &[7; 100_000]).bytes();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gz, &layer).expect("in memory");
        let gz = gz.finish().expect("in memory");
        let zst = zstd::encode_all(layer.as_slice(), 1).expect("in memory");
        let ids: Vec<_> = [&layer, &gz, &zst].map(|l| unpacked(l).1.expect("good").diff_id).to_vec();
        assert!(ids[0] == ids[1] && ids[1] == ids[2]);
        let (_keep, cut) = unpacked(&gz[..gz.len() / 2]);
        assert!(cut.is_err(), "a truncated layer is refused");
    }

    #[test]
    fn nothing_is_written_outside() {
        for layer in [
            Layer::new().file("../evil", b"x"),
            Layer::new().file("a/../../evil", b"x"),
            Layer::new().add(EntryType::Symlink, "up", 0o777, "..", b"").file("up/evil", b"x"),
            Layer::new().add(EntryType::Symlink, "up", 0o777, "/tmp", b"").file("up/mini-evil", b"x"),
            Layer::new().add(EntryType::Link, "passwd", 0o644, "../outside", b""),
            Layer::new().add(EntryType::Symlink, "l", 0o777, "../outside", b"").file("l", b"x"),
            Layer::new().add(EntryType::Symlink, "l", 0o777, "..", b"").add(
                EntryType::Link,
                "h",
                0o644,
                "l/outside",
                b"",
            ),
        ] {
            let outer = tempfile::tempdir().expect("a temporary directory");
            let outside = outer.path().join("outside");
            std::fs::write(&outside, "safe").expect("written");
            std::fs::create_dir(outer.path().join("in")).expect("made");
            let _ = unpack(layer.bytes().as_slice(), &outer.path().join("in"), true);
            let names: Vec<_> =
                std::fs::read_dir(outer.path()).expect("there").flatten().map(|e| e.file_name()).collect();
            assert_eq!(names.len(), 2, "{names:?}");
            assert_eq!(std::fs::read_to_string(&outside).expect("there"), "safe");
            assert_eq!(std::fs::metadata(&outside).expect("there").nlink(), 1);
        }
        assert!(!Path::new("/tmp/mini-evil").exists());
    }

    #[test]
    fn damaged_archives_are_errors() {
        let mut layer = Layer::new().file("a", &[1; 5000]).bytes();
        layer.truncate(1500);
        assert!(unpacked(&layer).1.is_err());
        assert!(unpacked(&[0x1f, 0x8b, 0xff, 0xff, 0, 0]).1.is_err());
        assert!(unpacked(&[0x55; 600]).1.is_err());
    }

    #[test]
    fn a_name_without_end_is_refused_before_it_fills_the_memory() {
        /// Zeros, as many as wanted; how many were is counted.
        struct Zeros(Rc<Cell<u64>>);
        impl Read for Zeros {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                buffer.fill(0);
                self.0.set(self.0.get() + buffer.len() as u64);
                Ok(buffer.len())
            }
        }
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_path("long").expect("a short name");
            header.set_size(1 << 32);
            header.set_cksum();
            let read = Rc::new(Cell::new(0));
            let directory = tempfile::tempdir().expect("a directory");
            let endless = header.as_bytes().chain(Zeros(read.clone()));
            let error = unpack(endless, directory.path(), true).expect_err("refused");
            assert_eq!(error.to_string(), "the header of an entry is too long", "{kind:?}");
            assert!(read.get() < 4 << 20, "{kind:?}: {} bytes were read", read.get());
        }
        // What is long and allowed.
        let name = "n".repeat(250) + "/" + &"m".repeat(250);
        let mut layer = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        layer.append_data(&mut header, &name, b"x".as_slice()).expect("in memory");
        let (outer, result) = unpacked(&layer.into_inner().expect("in memory"));
        result.expect("a good layer");
        assert!(outer.path().join("in").join(&name).exists());
    }

    #[test]
    fn an_opaque_directory_is_marked() {
        let layer = Layer::new().file("d/.wh..wh..opq", b"").file("d/new", b"x").bytes();
        let (outer, result) = unpacked(&layer);
        result.expect("a good layer");
        let value = xattr::get(outer.path().join("in/d"), OPAQUE_XATTR).expect("attributes");
        assert_eq!(value.as_deref(), Some(b"y".as_slice()));
    }
}
