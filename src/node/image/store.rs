//! The image store: content-addressed blobs, layers unpacked once each, and names.
//!
//! ```text
//! blobs/<hex>     manifests, configurations and compressed layers, as they came
//! layers/<hex>/   unpacked layers, by the digest of their uncompressed archive
//! images.json     the images and their names, replaced as a whole
//! tmp/            what is under way; emptied when nothing is
//! locks/          see `sharing`
//! ```
//! An image is listed only when everything of it is on disk, so a crash leaves at most unused files, which the next start removes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Mutex as AsyncMutex;

use super::manifest::{self, Document, parse_config};
use super::sharing::{Held, Locks, stamp};
use super::unpack::{hex as hex_digits, unpack};
use super::{Credential, Image, ImageConfig, ImageError, Images, Reference, archive, pull, reference};
use crate::node::namespaces::IdMap;

/// Manifests and configurations are small; anything larger is not one.
pub const DOCUMENT_LIMIT: u64 = 4 << 20;

/// What `images.json` keeps of an image.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    repo_tags: BTreeSet<String>,
    repo_digests: BTreeSet<String>,
    manifest: String,
    size: u64,
    diff_ids: Vec<String>,
    blobs: Vec<String>,
    config: ImageConfig,
}

type Index = BTreeMap<String, Record>;
type InUse = Box<dyn Fn() -> BTreeSet<PathBuf> + Send + Sync>;

/// Feeds what is read into a digest.
pub struct Hashing<R> {
    inner: R,
    hash: Sha256,
    length: u64,
}

impl<R> Hashing<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), length: 0 }
    }
    /// `sha256:…` of everything that was read, and how many bytes that was.
    pub fn finish(self) -> (String, u64) {
        (digest_text(&self.hash.finalize()), self.length)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.length += n as u64;
        Ok(n)
    }
}

/// `sha256:` and the hexadecimal digits.
pub fn digest_text(hash: &[u8]) -> String {
    format!("sha256:{}", hex_digits(hash))
}

/// The digest of bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    digest_text(&Sha256::digest(bytes))
}

/// The images of a node.
pub struct ImageStore {
    pub(super) disk: Arc<Disk>,
    pub(super) mirrors: Vec<String>,
    pulls: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
}

/// The store's files.
pub struct Disk {
    root: PathBuf,
    ids: IdMap,
    locks: Locks,
    index: Mutex<Cached>,
    /// Tells which unpacked layers containers run on; until it is known, none is removed.
    in_use: Mutex<Option<InUse>>,
    /// One unpacking at a time: two images may share a layer.
    unpacking: Mutex<()>,
}

/// `images.json` as it was read.
struct Cached {
    index: Index,
    /// Tells whether another process has replaced it since.
    stamp: Option<(u64, i64, i64, u64)>,
}

/// A load or pull that is under way: its blobs belong to no image yet.
pub struct UnderWay(#[expect(dead_code, reason = "held")] Held);

fn at(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.display().to_string();
    move |error| ImageError::Io(path, error)
}

fn corrupt(text: impl Into<String>) -> ImageError {
    ImageError::Corrupt(text.into())
}

fn hex(digest: &str) -> Result<&str, ImageError> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if reference::is_digest(digest) => Ok(hex),
        _ => Err(corrupt(format!("unsupported digest {digest:?}"))),
    }
}

impl ImageStore {
    /// Opens the store below `root`, making it when it is not there; leftovers of a crash are removed.
    ///
    /// # Errors
    /// When a directory cannot be made, or `images.json` is damaged.
    pub fn open(root: &Path, mirrors: &[String], ids: IdMap) -> Result<Self, ImageError> {
        for directory in ["blobs", "layers", "tmp"].map(|name| root.join(name)) {
            fs::create_dir_all(&directory).map_err(at(&directory))?;
        }
        let disk = Disk {
            root: root.to_owned(),
            ids,
            locks: Locks::open(root).map_err(at(root))?,
            index: Mutex::new(read_index(&root.join("images.json"))?),
            in_use: Mutex::default(),
            unpacking: Mutex::default(),
        };
        disk.remove_unused()?;
        Ok(Self { disk: Arc::new(disk), mirrors: mirrors.to_vec(), pulls: Mutex::default() })
    }

    /// Loads a docker or OCI archive (plain, gzip or zstd). Returns its images.
    ///
    /// # Errors
    /// When it is not one, or damaged; then nothing is loaded.
    pub async fn load(&self, mut reader: impl AsyncRead + Unpin) -> Result<Vec<Image>, ImageError> {
        let under_way = self.begin().await?;
        let path = self.disk.temporary();
        let mut file = tokio::fs::File::create(&path).await.map_err(at(&path))?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = reader.read(&mut buffer).await.map_err(at(Path::new("archive")))?;
            if n == 0 {
                break;
            }
            tokio::io::AsyncWriteExt::write_all(&mut file, &buffer[..n]).await.map_err(at(&path))?;
        }
        tokio::io::AsyncWriteExt::flush(&mut file).await.map_err(at(&path))?;
        let disk = self.disk.clone();
        blocking(move || {
            let _under_way = under_way;
            let loaded = File::open(&path).map_err(at(&path)).and_then(|file| archive::load(&disk, file));
            let _ = fs::remove_file(&path);
            loaded
        })
        .await
    }

    /// As [`ImageStore::load`], from a reader that blocks.
    ///
    /// # Errors
    /// As [`ImageStore::load`].
    pub async fn load_from(&self, mut reader: impl Read + Send + 'static) -> Result<Vec<Image>, ImageError> {
        let disk = self.disk.clone();
        blocking(move || {
            let _under_way = disk.begin()?;
            let path = disk.temporary();
            let mut file = File::options().create_new(true).read(true).write(true).open(&path).map_err(at(&path))?;
            let copied = io::copy(&mut reader, &mut file).and_then(|_| io::Seek::rewind(&mut file)).map_err(at(&path));
            let loaded = copied.and_then(|()| archive::load(&disk, file));
            let _ = fs::remove_file(&path);
            loaded
        })
        .await
    }

    /// From now on (until the answer is dropped) no process removes files that belong to no image.
    ///
    /// # Errors
    /// When the lock cannot be had.
    pub(super) async fn begin(&self) -> Result<UnderWay, ImageError> {
        let disk = self.disk.clone();
        blocking(move || disk.begin()).await
    }

    /// Layers that `in_use` names are kept when their image is removed, for as long as it names them. Removes the
    /// others that belong to no image.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn guard(&self, in_use: impl Fn() -> BTreeSet<PathBuf> + Send + Sync + 'static) -> Result<(), ImageError> {
        *self.disk.in_use.lock().expect("no panic while the guard is held") = Some(Box::new(in_use));
        self.disk.remove_unused()
    }

    /// Gives an image another name.
    ///
    /// # Errors
    /// When there is no such image, or the name is invalid.
    pub async fn tag(&self, name: &str, target: &str) -> Result<(), ImageError> {
        let target = Reference::parse(target)?;
        if target.digest.is_some() {
            return Err(ImageError::InvalidName {
                name: target.to_string(),
                reason: "a tag is needed, not a digest".into(),
            });
        }
        let disk = self.disk.clone();
        let name = name.to_owned();
        blocking(move || {
            let id = disk.find(&name)?.ok_or_else(|| ImageError::NotFound(name.clone()))?;
            disk.change(|index| {
                let target = target.to_string();
                for record in index.values_mut() {
                    record.repo_tags.remove(&target);
                }
                index.entry(id).or_default().repo_tags.insert(target);
            })
        })
        .await
    }

    /// An image as an OCI archive.
    ///
    /// # Errors
    /// When there is no such image.
    pub async fn save(&self, name: &str) -> Result<tokio::fs::File, ImageError> {
        let disk = self.disk.clone();
        let name = name.to_owned();
        let file = blocking(move || {
            let _under_way = disk.begin()?;
            let id = disk.find(&name)?.ok_or_else(|| ImageError::NotFound(name.clone()))?;
            let record = disk.index().get(&id).cloned().ok_or_else(|| ImageError::NotFound(name.clone()))?;
            let path = disk.temporary();
            let mut file = File::options().create_new(true).read(true).write(true).open(&path).map_err(at(&path))?;
            // The open file is enough; its name is not needed.
            fs::remove_file(&path).map_err(at(&path))?;
            archive::save(&disk, &record.manifest, &record.blobs, record.repo_tags.iter().next(), &mut file)
                .map_err(at(&path))?;
            Ok(file)
        })
        .await?;
        Ok(tokio::fs::File::from_std(file))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| corrupt(format!("the image store failed: {error}")))?
}

fn read_index(path: &Path) -> Result<Cached, ImageError> {
    let stamp = stamp(path);
    let index = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| corrupt(format!("{}: {e}", path.display())))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Index::new(),
        Err(error) => return Err(at(path)(error)),
    };
    Ok(Cached { index, stamp })
}

/// The index while it is held.
struct Indexed<'a>(std::sync::MutexGuard<'a, Cached>);

impl std::ops::Deref for Indexed<'_> {
    type Target = Index;
    fn deref(&self) -> &Index {
        &self.0.index
    }
}

impl Disk {
    /// The index as it is now, also when another process has changed it.
    fn index(&self) -> Indexed<'_> {
        let mut cached = self.index.lock().expect("no panic while the index is held");
        let path = self.root.join("images.json");
        if cached.stamp != stamp(&path) {
            match read_index(&path) {
                Ok(read) => *cached = read,
                Err(error) => tracing::error!(%error, "the images cannot be listed anew"),
            }
        }
        Indexed(cached)
    }

    /// Keeps blobs that belong to no image yet from being removed. May wait for a removal that goes on.
    ///
    /// # Errors
    /// When the lock cannot be had.
    pub fn begin(&self) -> Result<UnderWay, ImageError> {
        self.locks.work().map(UnderWay).map_err(at(&self.root))
    }

    /// A new name in `tmp`.
    pub fn temporary(&self) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.root.join("tmp").join(name)
    }

    /// The file of a blob.
    ///
    /// # Errors
    /// When the digest is not one.
    pub fn blob(&self, digest: &str) -> Result<PathBuf, ImageError> {
        Ok(self.root.join("blobs").join(hex(digest)?))
    }

    /// Whether a blob is there.
    pub fn has_blob(&self, digest: &str) -> bool {
        self.blob(digest).is_ok_and(|path| path.exists())
    }

    /// Takes a finished file of `tmp` into the blobs.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn keep_blob(&self, temporary: &Path, digest: &str) -> Result<(), ImageError> {
        let path = self.blob(digest)?;
        fs::rename(temporary, &path).map_err(at(&path))
    }

    /// Stores a small document that is in memory; returns its digest.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn put_document(&self, bytes: &[u8]) -> Result<String, ImageError> {
        let digest = digest_of(bytes);
        let temporary = self.temporary();
        fs::write(&temporary, bytes).map_err(at(&temporary))?;
        self.keep_blob(&temporary, &digest)?;
        Ok(digest)
    }

    /// Reads a small document and checks that it is what its digest says.
    ///
    /// # Errors
    /// When it is missing, too large or damaged.
    pub fn document(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let path = self.blob(digest)?;
        let mut bytes = Vec::new();
        File::open(&path).and_then(|file| file.take(DOCUMENT_LIMIT).read_to_end(&mut bytes)).map_err(at(&path))?;
        let found = digest_of(&bytes);
        if found != digest {
            return Err(corrupt(format!("unexpected commit digest {found}, expected {digest}")));
        }
        Ok(bytes)
    }

    /// Makes an image of blobs that are there: unpacks its layers and lists it under the names.
    ///
    /// # Errors
    /// When a document or layer is damaged.
    pub fn install(&self, manifest: &str, tags: &[String], digests: &[String]) -> Result<Image, ImageError> {
        let Document::Manifest(parsed) = manifest::parse(&self.document(manifest)?).map_err(corrupt)? else {
            return Err(corrupt("an index where a manifest is expected"));
        };
        let config = parsed.config;
        let document = parse_config(&self.document(&config.digest)?)?;
        let diff_ids = document.diff_ids;
        if diff_ids.len() != parsed.layers.len() {
            return Err(corrupt("mismatched image rootfs and manifest layers"));
        }
        for (layer, diff_id) in parsed.layers.iter().zip(&diff_ids) {
            self.ensure_layer(&layer.digest, diff_id)?;
        }
        let mut blobs: Vec<String> = parsed.layers.iter().map(|layer| layer.digest.clone()).collect();
        blobs.push(config.digest.clone());
        let size = parsed.layers.iter().map(|layer| layer.size).sum::<u64>() + config.size;
        sync(&self.root)?;
        self.change(|index| {
            for record in index.values_mut() {
                record.repo_tags.retain(|tag| !tags.contains(tag));
            }
            let record = index.entry(config.digest.clone()).or_default();
            record.repo_tags.extend(tags.iter().cloned());
            record.repo_digests.extend(digests.iter().cloned());
            record.manifest = manifest.to_owned();
            record.size = size;
            record.diff_ids = diff_ids;
            record.blobs = blobs;
            record.config = document.config;
        })?;
        let index = self.index();
        let record = index.get(&config.digest).ok_or_else(|| corrupt("the image vanished"))?;
        Ok(self.image(&config.digest, record))
    }

    fn ensure_layer(&self, blob: &str, diff_id: &str) -> Result<(), ImageError> {
        let target = self.root.join("layers").join(hex(diff_id)?);
        let _one = self.unpacking.lock().expect("no panic while unpacking");
        if target.exists() {
            return Ok(());
        }
        let path = self.blob(blob)?;
        let file = File::open(&path).map_err(at(&path))?;
        let temporary = self.temporary();
        fs::create_dir(&temporary).map_err(at(&temporary))?;
        fs::set_permissions(&temporary, std::os::unix::fs::PermissionsExt::from_mode(0o755)).map_err(at(&temporary))?;
        let unpacked = unpack(file, &temporary, self.ids == IdMap::Single)
            .map_err(|error| corrupt(format!("failed to extract layer {blob}: {error}")))
            .and_then(|unpacked| {
                for warning in unpacked.warnings {
                    tracing::warn!(blob, warning, "a layer was not unpacked as it is");
                }
                if unpacked.diff_id == diff_id {
                    return Ok(());
                }
                let found = unpacked.diff_id;
                Err(corrupt(format!(
                    "failed to extract layer {blob}: wrong diff id digest {found}, expected {diff_id}"
                )))
            });
        let done = unpacked
            // Everything of a layer is on disk before its name is.
            .and_then(|()| sync(&temporary))
            .and_then(|()| fs::rename(&temporary, &target).map_err(at(&target)));
        if done.is_err() {
            let _ = fs::remove_dir_all(&temporary);
        }
        // Another process may have been faster.
        if target.exists() { Ok(()) } else { done }
    }

    /// Unpacks the layers of an image that are missing.
    fn repair(&self, id: &str) -> Result<(), ImageError> {
        let _under_way = self.begin()?;
        let record = self.index().get(id).cloned().ok_or_else(|| ImageError::NotFound(id.to_owned()))?;
        record.blobs.iter().zip(&record.diff_ids).try_for_each(|(blob, diff_id)| self.ensure_layer(blob, diff_id))
    }

    fn image(&self, id: &str, record: &Record) -> Image {
        let layers =
            record.diff_ids.iter().filter_map(|id| Some(self.root.join("layers").join(hex(id).ok()?))).collect();
        Image {
            id: id.to_owned(),
            repo_tags: record.repo_tags.iter().cloned().collect(),
            repo_digests: record.repo_digests.iter().cloned().collect(),
            size: record.size,
            config: record.config.clone(),
            layers,
        }
    }

    /// The id of the image that a name, a name with digest, an id or the beginning of one means.
    ///
    /// # Errors
    /// When it is none of those.
    fn find(&self, name: &str) -> Result<Option<String>, ImageError> {
        let index = self.index();
        if index.contains_key(name) {
            return Ok(Some(name.to_owned()));
        }
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        if digits.len() >= 7 && digits.len() <= 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            let prefix = format!("sha256:{digits}");
            let mut matching = index.keys().filter(|id| id.starts_with(&prefix));
            if let (Some(id), None) = (matching.next(), matching.next()) {
                return Ok(Some(id.clone()));
            }
        }
        let reference = Reference::parse(name)?;
        let (full, plain) = (reference.to_string(), reference.name());
        let found = index.iter().find(|(_, record)| match &reference.digest {
            Some(digest) => record.repo_digests.contains(&format!("{plain}@{digest}")),
            None => record.repo_tags.contains(&full),
        });
        Ok(found.map(|(id, _)| id.clone()))
    }

    /// Changes the index and writes it whole.
    fn change(&self, change: impl FnOnce(&mut Index)) -> Result<(), ImageError> {
        let _one = self.locks.index().map_err(at(&self.root))?;
        let mut index = self.index();
        let mut next = index.clone();
        change(&mut next);
        let (path, temporary) = (self.root.join("images.json"), self.root.join("images.json.new"));
        let bytes = serde_json::to_vec(&next).map_err(|error| corrupt(error.to_string()))?;
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(at(&path))?;
        *index.0 = Cached { index: next, stamp: stamp(&path) };
        Ok(())
    }

    /// Removes blobs and layers that no image has; while a load or pull is under way, here or in another process, it is left
    /// to the next removal.
    fn remove_unused(&self) -> Result<(), ImageError> {
        let Some(_idle) = self.locks.idle().map_err(at(&self.root))? else { return Ok(()) };
        let tmp = self.root.join("tmp");
        for entry in fs::read_dir(&tmp).map_err(at(&tmp))?.flatten() {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(at(&path))?;
        }
        let index = self.index();
        let layers: BTreeSet<&str> = index.values().flat_map(|r| &r.diff_ids).filter_map(|id| hex(id).ok()).collect();
        let blobs: BTreeSet<&str> =
            index.values().flat_map(|r| r.blobs.iter().chain([&r.manifest])).filter_map(|id| hex(id).ok()).collect();
        let guard = self.in_use.lock().expect("no panic while the guard is held");
        let running = guard.as_ref().map(|in_use| in_use());
        for (directory, used) in [("layers", layers), ("blobs", blobs)] {
            if directory == "layers" && running.is_none() {
                continue;
            }
            let directory = self.root.join(directory);
            for entry in fs::read_dir(&directory).map_err(at(&directory))? {
                let path = entry.map_err(at(&directory))?.path();
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                if !used.contains(name.as_str()) && !running.as_ref().is_some_and(|r| r.contains(&path)) {
                    let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                    removed.map_err(at(&path))?;
                }
            }
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), ImageError> {
        let id = self.find(name)?.ok_or_else(|| ImageError::NotFound(name.to_owned()))?;
        let by_name = Reference::parse(name).ok().map(|r| (r.to_string(), r.digest.clone()));
        self.change(|index| {
            let Some(record) = index.get_mut(&id) else { return };
            let last = match &by_name {
                Some((full, None)) if record.repo_tags.remove(full) => record.repo_tags.is_empty(),
                Some((full, Some(_))) if record.repo_digests.remove(full) => {
                    record.repo_tags.is_empty() && record.repo_digests.is_empty()
                }
                _ => true,
            };
            if last {
                index.remove(&id);
            }
        })?;
        self.remove_unused()
    }
}

/// Parses a document of an archive.
///
/// # Errors
/// When it is not JSON of that shape.
pub fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| corrupt(format!("invalid {what}: {error}")))
}

/// Makes a directory's file system durable.
fn sync(path: &Path) -> Result<(), ImageError> {
    let directory = File::open(path).map_err(at(path))?;
    // SAFETY: the descriptor is open for the duration of the call.
    match unsafe { libc::syncfs(std::os::fd::AsRawFd::as_raw_fd(&directory)) } {
        0 => Ok(()),
        _ => Err(at(path)(io::Error::last_os_error())),
    }
}

#[async_trait]
impl Images for ImageStore {
    async fn resolve(&self, name: &str) -> Result<Option<Image>, ImageError> {
        let Some(id) = self.disk.find(name)? else { return Ok(None) };
        let image = self.disk.index().get(&id).map(|record| self.disk.image(&id, record));
        let Some(image) = image else { return Ok(None) };
        if image.layers.iter().all(|layer| layer.is_dir()) {
            return Ok(Some(image));
        }
        // Somebody deleted an unpacked layer: it comes out of its blob again, or the image is not there.
        let disk = self.disk.clone();
        match blocking(move || disk.repair(&id)).await {
            Ok(()) => Ok(Some(image)),
            Err(error) => {
                tracing::warn!(image = image.id, %error, "an image is damaged and counts as absent");
                Ok(None)
            }
        }
    }

    async fn pull(&self, name: &str, credentials: &[Credential]) -> Result<Image, ImageError> {
        let reference = Reference::parse(name)?;
        let gate = {
            let mut pulls = self.pulls.lock().expect("no panic while pulls are held");
            pulls.entry(reference.to_string()).or_default().clone()
        };
        let result = {
            let _one = gate.lock().await;
            // Another node of this machine may transfer it too; what it has brought is then here already.
            let (disk, name) = (self.disk.clone(), reference.to_string());
            let _one = blocking(move || disk.locks.pull(&name).map_err(at(&disk.root))).await?;
            pull::pull(self, &reference, credentials).await
        };
        let mut pulls = self.pulls.lock().expect("no panic while pulls are held");
        // Two holders: the map and this call.
        if Arc::strong_count(&gate) <= 2 {
            pulls.remove(&reference.to_string());
        }
        result
    }

    async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let index = self.disk.index();
        Ok(index.iter().map(|(id, record)| self.disk.image(id, record)).collect())
    }

    async fn remove(&self, name: &str) -> Result<(), ImageError> {
        let (disk, name) = (self.disk.clone(), name.to_owned());
        blocking(move || disk.remove(&name)).await
    }
}
