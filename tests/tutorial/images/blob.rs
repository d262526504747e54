//! Layers as blobs: the files of packages and our own, packed by zstd, with both of their digests.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::recipe::{Layer, What, hex};

/// A layer that has been packed.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The digest of the packed bytes, without `sha256:`.
    pub digest: String,
    /// The digest of the archive.
    pub diff_id: String,
    /// How many bytes it has.
    pub size: u64,
    /// How it is packed.
    pub media_type: String,
}

impl Blob {
    /// For a file beside it.
    pub fn to_json(&self) -> Value {
        json!({"digest": self.digest, "diffId": self.diff_id, "size": self.size, "mediaType": self.media_type})
    }

    /// What [`Self::to_json`] wrote.
    pub fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let size = value["size"].as_u64()?;
        Some(Self { digest: text("digest")?, diff_id: text("diffId")?, size, media_type: text("mediaType")? })
    }
}

/// Writes through to `inner`, and knows what went by.
pub struct Counting<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W: Write> Counting<W> {
    /// Nothing went by yet.
    pub fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), length: 0 }
    }

    /// The writer, the digest and the length.
    pub fn finish(self) -> (W, String, u64) {
        (self.inner, hex(&self.hash.finalize()), self.length)
    }
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Packs a layer into a file.
///
/// # Errors
/// When a package cannot be read or the disk is full.
pub fn pack(layer: &Layer, packages: &[PathBuf], into: &Path) -> io::Result<Blob> {
    let packed = Counting::new(io::BufWriter::new(File::create(into)?));
    let plain = Counting::new(zstd::stream::write::Encoder::new(packed, 1)?);
    let mut archive = tar::Builder::new(plain);
    let mut directories = HashSet::new();
    for package in packages {
        add_package(layer, package, &mut directories, &mut archive)?;
    }
    add_entries(layer, &mut archive)?;
    let (encoder, diff_id, _) = archive.into_inner()?.finish();
    let (mut file, digest, size) = encoder.finish()?.finish();
    file.flush()?;
    Ok(Blob { digest, diff_id, size, media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned() })
}

fn add_package(
    layer: &Layer,
    package: &Path,
    directories: &mut HashSet<String>,
    into: &mut tar::Builder<impl Write>,
) -> io::Result<()> {
    let mut unpacking = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn()?;
    let mut archive = tar::Archive::new(unpacking.stdout.take().expect("it is piped"));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().trim_start_matches("./").trim_end_matches('/').to_owned();
        let kind = entry.header().entry_type();
        let known = kind.is_dir() && !directories.insert(path.clone());
        if path.is_empty() || known || layer.leaves_out(&path) {
            continue;
        }
        let old = entry.header();
        let mut header = header(kind, old.mode()?, old.uid()?, entry.size());
        header.set_gid(old.gid()?);
        header.set_mtime(old.mtime()?);
        match entry.link_name()?.map(|link| link.to_string_lossy().into_owned()) {
            Some(target) if kind.is_hard_link() => {
                into.append_link(&mut header, &path, target.trim_start_matches("./"))?
            }
            Some(target) => into.append_link(&mut header, &path, target)?,
            None => into.append_data(&mut header, &path, &mut entry)?,
        }
    }
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    let status = unpacking.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{}: {status}", package.display()))) }
}

fn add_entries(layer: &Layer, into: &mut tar::Builder<impl Write>) -> io::Result<()> {
    for entry in layer.entries {
        match entry.what {
            What::File(text) => {
                let mut header = header(tar::EntryType::Regular, entry.mode, entry.owner, text.len() as u64);
                into.append_data(&mut header, entry.path, text.as_bytes())?;
            }
            What::Directory => {
                let mut header = header(tar::EntryType::Directory, entry.mode, entry.owner, 0);
                into.append_data(&mut header, entry.path, io::empty())?;
            }
            What::Link(target) => {
                let mut header = header(tar::EntryType::Symlink, entry.mode, entry.owner, 0);
                into.append_link(&mut header, entry.path, target)?;
            }
        }
    }
    Ok(())
}

fn header(kind: tar::EntryType, mode: u32, owner: u64, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// The digest and the bytes of what `reader` has, for tests.
#[cfg(test)]
fn digest(mut reader: impl Read) -> String {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).expect("memory");
    hex(&Sha256::digest(bytes))
}

#[test]
fn both_digests_are_those_of_the_bytes() {
    static ENTRIES: [super::recipe::Entry; 3] = [
        super::recipe::file("etc/motd", "hello"),
        super::recipe::directory("data", 999),
        super::recipe::link("bin/x", "/bin/y"),
    ];
    static LAYER: Layer = Layer { name: "x", on: None, packages: &[], without: &[], omit: &[], entries: &ENTRIES };
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("blob");
    let blob = pack(&LAYER, &[], &path).expect("packed");
    assert_eq!(blob.digest, digest(File::open(&path).expect("written")));
    let plain = zstd::stream::read::Decoder::new(File::open(&path).expect("written")).expect("zstd");
    assert_eq!(blob.diff_id, digest(plain));
    assert_eq!(blob.size, path.metadata().expect("written").len());
}
