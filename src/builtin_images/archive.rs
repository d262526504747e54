//! OCI archives as streams: a layer is a tar that is never in memory, an image is a tar around it.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Two blocks of zeroes end a tar.
const END: [u8; 1024] = [0; 1024];

/// A piece of a stream.
#[derive(Clone)]
enum Part {
    Bytes(Vec<u8>),
    File(PathBuf, u64),
}

/// An uncompressed layer whose files belong to root and have no times, so that equal content has an equal digest.
#[derive(Clone, Default)]
pub(super) struct Layer(Vec<Part>);

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory (a path that ends in a slash).
    pub fn directory(mut self, path: &str) -> io::Result<Self> {
        self.0.push(Part::Bytes(header(path, 0, 0o755, tar::EntryType::Directory)?));
        Ok(self)
    }

    /// Adds an executable file.
    pub fn file(mut self, path: &str, source: &Path) -> io::Result<Self> {
        let size = std::fs::metadata(source)?.len();
        self.0.push(Part::Bytes(header(path, size, 0o755, tar::EntryType::Regular)?));
        self.0.push(Part::File(source.to_owned(), size));
        self.0.push(Part::Bytes(padding(size)));
        Ok(self)
    }
}

/// The image `name` with the `config` part of its configuration and one layer, as an OCI archive.
pub(super) fn image(name: &str, config: &Value, layer: Layer) -> io::Result<impl Read + Send + use<>> {
    let mut layer = layer.0;
    layer.push(Part::Bytes(END.to_vec()));
    let (layer_digest, layer_size) = digest(&layer)?;
    let config = serde_json::to_vec(&json!({
        "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    }))?;
    let (config_digest, config_size) = digest(&[Part::Bytes(config.clone())])?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config_digest, "size": config_size},
        "layers": [{"mediaType": LAYER, "digest": layer_digest, "size": layer_size}],
    }))?;
    let (manifest_digest, manifest_size) = digest(&[Part::Bytes(manifest.clone())])?;
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": manifest_digest,
            "size": manifest_size,
            "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag},
        }],
    }))?;
    let layout = serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?;

    let blob = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let mut parts = vec![];
    for (path, content) in [
        ("oci-layout".to_owned(), layout),
        ("index.json".to_owned(), index),
        (blob(&manifest_digest), manifest),
        (blob(&config_digest), config),
    ] {
        let size = content.len() as u64;
        parts.push(Part::Bytes(header(&path, size, 0o644, tar::EntryType::Regular)?));
        parts.extend([Part::Bytes(content), Part::Bytes(padding(size))]);
    }
    parts.push(Part::Bytes(header(&blob(&layer_digest), layer_size, 0o644, tar::EntryType::Regular)?));
    parts.extend(layer);
    parts.push(Part::Bytes(padding(layer_size)));
    parts.push(Part::Bytes(END.to_vec()));
    stream(&parts)
}

fn header(path: &str, size: u64, mode: u32, kind: tar::EntryType) -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header.as_bytes().to_vec())
}

fn padding(size: u64) -> Vec<u8> {
    vec![0; (size.next_multiple_of(512) - size) as usize]
}

fn stream(parts: &[Part]) -> io::Result<impl Read + Send + use<>> {
    let mut stream: Box<dyn Read + Send> = Box::new(io::empty());
    for part in parts {
        stream = match part {
            Part::Bytes(bytes) => Box::new(stream.chain(Cursor::new(bytes.clone()))),
            Part::File(path, size) => Box::new(stream.chain(File::open(path)?.take(*size))),
        };
    }
    Ok(stream)
}

fn digest(parts: &[Part]) -> io::Result<(String, u64)> {
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut stream = stream(parts)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        size += read as u64;
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((format!("sha256:{hex}"), size))
}
