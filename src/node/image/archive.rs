//! Docker and OCI archives: `docker save`, `skopeo copy oci-archive:`, `podman save` and our own.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path};

use serde::Deserialize;
use serde_json::{Value, json};

use super::manifest::{self, Descriptor, Document, OCI_MANIFEST};
use super::store::{DOCUMENT_LIMIT, Disk, Hashing, parse};
use super::unpack::{Allowance, decompressed};
use super::{Image, ImageError, Reference};

/// What the archive has under a name.
enum Member {
    /// A file, now a blob of the store.
    Blob { digest: String, size: u64 },
    /// A symbolic link (docker archives link repeated layers).
    Link(String),
}

/// `index.json` of an OCI archive.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn corrupt(text: impl Into<String>) -> ImageError {
    ImageError::Corrupt(text.into())
}

/// Loads every image of an archive. Blobs of a failed load are removed at the next start.
///
/// # Errors
/// When it is not an archive of images, or a part is not what its digest says.
pub fn load(disk: &Disk, file: File) -> Result<Vec<Image>, ImageError> {
    let members = members(disk, file)?;
    if members.contains_key("index.json") && members.contains_key("oci-layout") {
        return load_oci(disk, &members);
    }
    if members.contains_key("manifest.json") {
        return load_docker(disk, &members);
    }
    Err(corrupt("not an image archive: it has neither index.json (OCI) nor manifest.json (docker)"))
}

/// Stores every file of the archive as a blob; tells under which name each stands.
fn members(disk: &Disk, file: File) -> Result<HashMap<String, Member>, ImageError> {
    let broken = |error: io::Error| corrupt(format!("the archive cannot be read: {error}"));
    let allowance = Allowance::default();
    let mut archive = tar::Archive::new(allowance.metered(decompressed(file).map_err(broken)?));
    let mut members = HashMap::new();
    let mut entries = archive.entries().map_err(broken)?;
    while let Some(entry) = allowance.next(&mut entries) {
        let mut entry = entry.map_err(broken)?;
        let name = clean(&entry.path().map_err(broken)?);
        match entry.header().entry_type() {
            tar::EntryType::Regular => {
                let path = disk.temporary();
                let mut hashing = Hashing::new(&mut entry);
                let copied = File::create(&path).and_then(|mut file| io::copy(&mut hashing, &mut file));
                copied.map_err(|error| ImageError::Io(path.display().to_string(), error))?;
                let (digest, size) = hashing.finish();
                if let Some(named) = name.strip_prefix("blobs/sha256/")
                    && digest != format!("sha256:{named}")
                {
                    let _ = fs::remove_file(&path);
                    return Err(corrupt(format!("unexpected commit digest {digest}, expected sha256:{named}")));
                }
                disk.keep_blob(&path, &digest)?;
                members.insert(name, Member::Blob { digest, size });
            }
            tar::EntryType::Symlink | tar::EntryType::Link => {
                if let Some(target) = entry.link_name().map_err(broken)? {
                    let beside = Path::new(&name).parent().unwrap_or(Path::new(""));
                    let hard = entry.header().entry_type() == tar::EntryType::Link;
                    let target = if hard { clean(&target) } else { clean(&beside.join(target)) };
                    members.insert(name, Member::Link(target));
                }
            }
            _ => {}
        }
        io::copy(&mut entry, &mut io::sink()).map_err(broken)?;
    }
    Ok(members)
}

/// A name without `.`, `..` and a leading slash.
fn clean(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

fn blob<'a>(members: &'a HashMap<String, Member>, name: &str) -> Result<(&'a str, u64), ImageError> {
    let mut name = clean(Path::new(name));
    // Links may be chained, but not for ever.
    for _ in 0..8 {
        match members.get(&name) {
            Some(Member::Blob { digest, size }) => return Ok((digest, *size)),
            Some(Member::Link(target)) => name.clone_from(target),
            None => return Err(corrupt(format!("the archive has no file {name:?}"))),
        }
    }
    Err(corrupt("links of the archive lead nowhere"))
}

fn full_name(name: &str) -> Option<String> {
    Reference::parse(name).ok().filter(|r| r.digest.is_none()).map(|r| r.to_string())
}

fn load_oci(disk: &Disk, members: &HashMap<String, Member>) -> Result<Vec<Image>, ImageError> {
    let (digest, _) = blob(members, "index.json")?;
    let index: Index = parse(&disk.document(digest)?, "index.json")?;
    let mut images = Vec::new();
    for descriptor in &index.manifests {
        let annotation = |key: &str| descriptor.annotations.get(key).and_then(|name| full_name(name));
        // containerd's annotation has the full name; OCI's may be a bare tag, which names nothing.
        let plain = descriptor.annotations.get("org.opencontainers.image.ref.name");
        let name = annotation("io.containerd.image.name")
            .or_else(|| plain.filter(|name| name.contains([':', '/'])).and_then(|name| full_name(name)));
        let tags: Vec<String> = name.into_iter().collect();
        images.push(disk.install(&image_manifest(disk, descriptor)?, &tags, &[])?);
    }
    if images.is_empty() { Err(corrupt("the archive has no image")) } else { Ok(images) }
}

/// The image manifest for this machine that a descriptor leads to.
fn image_manifest(disk: &Disk, descriptor: &Descriptor) -> Result<String, ImageError> {
    match manifest::parse(&disk.document(&descriptor.digest)?).map_err(corrupt)? {
        Document::Manifest(_) => Ok(descriptor.digest.clone()),
        Document::Index(chosen) => Ok(chosen.digest),
    }
}

fn load_docker(disk: &Disk, members: &HashMap<String, Member>) -> Result<Vec<Image>, ImageError> {
    let (digest, _) = blob(members, "manifest.json")?;
    let listed: Vec<DockerImage> = parse(&disk.document(digest)?, "manifest.json")?;
    let mut images = Vec::new();
    for image in listed {
        let (config, config_size) = blob(members, &image.config)?;
        if config_size > DOCUMENT_LIMIT {
            return Err(corrupt("the image configuration is too large"));
        }
        let mut layers = Vec::new();
        for layer in &image.layers {
            let (digest, size) = blob(members, layer)?;
            let media_type = "application/vnd.oci.image.layer.v1.tar";
            layers.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
        }
        // A docker archive has no manifest of its own: this one says the same.
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
            "layers": layers,
        });
        let manifest = disk.put_document(manifest.to_string().as_bytes())?;
        let tags: Vec<String> = image.repo_tags.unwrap_or_default().iter().filter_map(|t| full_name(t)).collect();
        images.push(disk.install(&manifest, &tags, &[])?);
    }
    Ok(images)
}

/// Writes an OCI archive of one image and rewinds the file.
///
/// # Errors
/// Those of the file system.
pub fn save(disk: &Disk, manifest: &str, blobs: &[String], tag: Option<&String>, file: &mut File) -> io::Result<()> {
    let other = |error: ImageError| io::Error::other(error.to_string());
    let bytes = disk.document(manifest).map_err(other)?;
    let media_type =
        serde_json::from_slice::<Value>(&bytes).ok().and_then(|m| m["mediaType"].as_str().map(str::to_owned));
    let media_type = media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
    let mut descriptor = json!({"mediaType": media_type, "digest": manifest, "size": bytes.len()});
    if let Some(tag) = tag {
        descriptor["annotations"] = json!({
            "io.containerd.image.name": tag,
            "org.opencontainers.image.ref.name": tag.rsplit_once(':').map_or(tag.as_str(), |(_, tag)| tag),
        });
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor]});
    let mut archive = tar::Builder::new(io::BufWriter::new(&mut *file));
    let mut add = |name: &str, size: u64, content: &mut dyn Read| -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content)
    };
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    add("oci-layout", layout.len() as u64, &mut &layout[..])?;
    let index = index.to_string();
    add("index.json", index.len() as u64, &mut index.as_bytes())?;
    let mut written = std::collections::BTreeSet::new();
    for digest in blobs.iter().map(String::as_str).chain([manifest]) {
        if written.insert(digest) {
            let mut blob = File::open(disk.blob(digest).map_err(other)?)?;
            let size = blob.metadata()?.len();
            add(&format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")), size, &mut blob)?;
        }
    }
    archive.into_inner()?.flush()?;
    io::Seek::rewind(file)
}
