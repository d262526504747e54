//! Pulls an image: manifest, configuration, layers, each checked against its digest.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::manifest::{self, Descriptor, Document};
use super::registry::{Refusal, Registry, endpoint};
use super::store::{DOCUMENT_LIMIT, Disk, ImageStore, digest_of, digest_text};
use super::{Credential, Image, ImageError, Reference};

/// How many layers are transferred at a time.
const AT_ONCE: usize = 3;
/// How often a transfer is begun.
const ATTEMPTS: u32 = 4;

/// Pulls and installs an image; credentials are tried in order.
///
/// # Errors
/// In containerd's words.
pub async fn pull(store: &ImageStore, reference: &Reference, credentials: &[Credential]) -> Result<Image, ImageError> {
    let failed = |reason: String| ImageError::Pull { name: reference.to_string(), reason };
    let endpoint = endpoint(reference, &store.mirrors);
    let _under_way = store.begin().await?;
    let mut attempts: Vec<Option<Credential>> = credentials.iter().cloned().map(Some).collect();
    if attempts.is_empty() {
        attempts.push(None);
    }
    let mut refusal = Refusal::NotFound;
    for credential in attempts {
        let registry = Registry::new(&endpoint, &reference.repository, credential).map_err(failed)?;
        match registry.manifest(reference.target(), DOCUMENT_LIMIT).await {
            Ok(manifest) => return transfer(store, reference, &registry, &manifest).await,
            Err(denied @ Refusal::Denied(_)) => refusal = denied,
            Err(other) => {
                refusal = other;
                break;
            }
        }
    }
    let name = reference.to_string();
    Err(failed(match refusal {
        Refusal::NotFound => format!("failed to resolve reference {name:?}: {name}: not found"),
        other => format!("failed to resolve reference {name:?}: {other}"),
    }))
}

async fn transfer(
    store: &ImageStore,
    reference: &Reference,
    registry: &Registry,
    top: &[u8],
) -> Result<Image, ImageError> {
    let failed = |reason: String| ImageError::Pull { name: reference.to_string(), reason };
    let disk = &store.disk;
    let digest = digest_of(top);
    if let Some(wanted) = reference.digest.as_ref().filter(|wanted| **wanted != digest) {
        return Err(failed(format!("failed to resolve reference: unexpected digest {digest}, expected {wanted}")));
    }
    let (manifest, document) = match manifest::parse(top).map_err(failed)? {
        Document::Manifest(manifest) => (manifest, disk.put_document(top)?),
        Document::Index(chosen) => {
            let bytes = registry.manifest(&chosen.digest, DOCUMENT_LIMIT).await.map_err(|e| failed(e.to_string()))?;
            let found = digest_of(&bytes);
            if found != chosen.digest {
                return Err(failed(format!("unexpected digest {found}, expected {}", chosen.digest)));
            }
            match manifest::parse(&bytes).map_err(failed)? {
                Document::Manifest(manifest) => (manifest, disk.put_document(&bytes)?),
                Document::Index(_) => return Err(failed("an index within an index".into())),
            }
        }
    };
    let parts: Vec<_> =
        manifest.layers.iter().chain([&manifest.config]).map(|part| fetch(disk, registry, part).boxed()).collect();
    futures_util::stream::iter(parts).buffer_unordered(AT_ONCE).try_collect::<()>().await.map_err(failed)?;
    let (disk, name) = (disk.clone(), reference.to_string());
    let tags: Vec<String> = reference.digest.is_none().then(|| name.clone()).into_iter().collect();
    let digests = vec![format!("{}@{digest}", reference.name())];
    let installed = tokio::task::spawn_blocking(move || disk.install(&document, &tags, &digests)).await;
    match installed {
        Ok(Ok(image)) => Ok(image),
        Ok(Err(error)) => Err(ImageError::Pull { name, reason: error.to_string() }),
        Err(error) => Err(ImageError::Pull { name, reason: error.to_string() }),
    }
}

/// Fetches a blob that is not there yet. A transfer that breaks off goes on where it was.
async fn fetch(disk: &Disk, registry: &Registry, part: &Descriptor) -> Result<(), String> {
    if disk.has_blob(&part.digest) {
        return Ok(());
    }
    let temporary = Temporary(disk.temporary());
    let file = tokio::fs::File::create(&temporary.0).await.map_err(words)?;
    let mut transfer = Transfer { file, hash: Sha256::new(), length: 0 };
    let mut outcome = transfer.go_on(registry, part).await;
    for attempt in 1..ATTEMPTS {
        if !matches!(outcome, Err(Broken::Transfer(_))) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
        outcome = transfer.go_on(registry, part).await;
    }
    match outcome {
        Ok(()) => transfer.finish(part).await?,
        Err(Broken::Transfer(why) | Broken::Final(why)) => return Err(why),
    }
    disk.keep_blob(&temporary.0, &part.digest).map_err(|error| error.to_string())
}

/// A file that goes away with the transfer, also when that is abandoned.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // not there any more when it was kept
    }
}

fn words(error: std::io::Error) -> String {
    format!("failed to copy: {error}")
}

/// Why a transfer ended before its time.
enum Broken {
    /// The connection: trying again may help.
    Transfer(String),
    /// It would end in the same way again.
    Final(String),
}

struct Transfer {
    file: tokio::fs::File,
    hash: Sha256,
    length: u64,
}

impl Transfer {
    async fn go_on(&mut self, registry: &Registry, part: &Descriptor) -> Result<(), Broken> {
        let failed = |error: std::io::Error| Broken::Final(words(error));
        let (from, mut body) = registry.blob(&part.digest, self.length).await.map_err(|error| {
            let why = format!("failed to copy {}: {error}", part.digest);
            if matches!(error, Refusal::Other(_)) { Broken::Transfer(why) } else { Broken::Final(why) }
        })?;
        if from != self.length {
            self.file.set_len(0).await.map_err(failed)?;
            self.file.rewind().await.map_err(failed)?;
            (self.hash, self.length) = (Sha256::new(), 0);
        }
        let silent = |refusal: Refusal| Broken::Transfer(format!("failed to copy: {refusal}"));
        while let Some(frame) = registry.in_time(body.frame()).await.map_err(silent)? {
            let frame = frame.map_err(|error| Broken::Transfer(format!("failed to copy: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            self.length += data.len() as u64;
            if self.length > part.size {
                return Err(Broken::Final(format!("{} is longer than its {} bytes", part.digest, part.size)));
            }
            self.hash.update(&data);
            self.file.write_all(&data).await.map_err(failed)?;
        }
        if self.length < part.size {
            return Err(Broken::Transfer("failed to copy: unexpected EOF".to_owned()));
        }
        Ok(())
    }

    async fn finish(mut self, part: &Descriptor) -> Result<(), String> {
        self.file.flush().await.map_err(words)?;
        let found = digest_text(&self.hash.finalize());
        if found == part.digest {
            return Ok(());
        }
        let expected = &part.digest;
        Err(format!("failed commit on ref: unexpected commit digest {found}, expected {expected}: failed precondition"))
    }
}
