//! The documents of an image (OCI image specification): configuration, manifest, and the index of a layout.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::blob::Blob;
use super::recipe::hex;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image's documents.
pub struct Documents {
    /// The configuration, and its digest.
    pub config: (String, Vec<u8>),
    /// The manifest, and its digest.
    pub manifest: (String, Vec<u8>),
    /// `index.json` of a layout with this image only.
    pub index: Vec<u8>,
}

/// Writes an image's documents. `name` is for those who load the layout.
pub fn documents(name: &str, config: &Value, layers: &[Blob]) -> Documents {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.diff_id)).collect();
    let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
    let config = with_digest(&json!({"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs}));
    let descriptors: Vec<Value> = layers.iter().map(|l| descriptor(&l.media_type, &l.digest, l.size)).collect();
    let manifest = with_digest(&json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": descriptors,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config.0, config.1.len() as u64),
    }));
    let mut entry = descriptor(MANIFEST, &manifest.0, manifest.1.len() as u64);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();
    Documents { config, manifest, index }
}

fn with_digest(document: &Value) -> (String, Vec<u8>) {
    let bytes = document.to_string().into_bytes();
    (hex(&Sha256::digest(&bytes)), bytes)
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
}
