//! Manifests, indexes and configurations: OCI and Docker schema 2, in the fields that are used.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ImageConfig, ImageError, reference::is_digest};

/// What a registry is asked for.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, */*";
/// An OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A blob that is named in a document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:…`
    pub digest: String,
    /// In bytes.
    #[serde(default)]
    pub size: u64,
    /// For which machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Names, among others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A kind of machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, …
    #[serde(default)]
    pub architecture: String,
    /// `linux`, …
    #[serde(default)]
    pub os: String,
}

/// The manifest of one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2
    pub schema_version: u32,
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// The configuration: its digest is the image's id.
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
}

/// One manifest, or an index of them.
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// The manifest for this machine.
    Index(Descriptor),
}

/// This machine in the names of the OCI image specification.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads a manifest or index.
///
/// # Errors
/// When it is neither, or holds nothing for this machine.
pub fn parse(bytes: &[u8]) -> Result<Document, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("invalid manifest: {e}"))?;
    if value["schemaVersion"] == 1 {
        return Err("schema 1 manifests are not supported".to_owned());
    }
    if let Some(manifests) = value.get("manifests") {
        let list: Vec<Descriptor> =
            serde_json::from_value(manifests.clone()).map_err(|e| format!("invalid index: {e}"))?;
        let fits = |d: &&Descriptor| match &d.platform {
            Some(p) => p.os == "linux" && p.architecture == architecture(),
            None => true,
        };
        let found = list.iter().find(fits).ok_or("no match for platform in manifest: not found")?;
        check(found)?;
        return Ok(Document::Index(found.clone()));
    }
    let manifest: Manifest = serde_json::from_value(value).map_err(|e| format!("invalid manifest: {e}"))?;
    std::iter::once(&manifest.config).chain(&manifest.layers).try_for_each(check)?;
    Ok(Document::Manifest(manifest))
}

fn check(descriptor: &Descriptor) -> Result<(), String> {
    if is_digest(&descriptor.digest) { Ok(()) } else { Err(format!("unsupported digest {:?}", descriptor.digest)) }
}

/// What an image's configuration document says.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// How to run it.
    pub config: ImageConfig,
    /// The digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<String>,
}

/// Reads a configuration document.
///
/// # Errors
/// When it is not one.
pub fn parse_config(bytes: &[u8]) -> Result<Parsed, ImageError> {
    let corrupt = |what: String| ImageError::Corrupt(format!("invalid image configuration: {what}"));
    let value: Value = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    let config = &value["config"];
    let list = |name: &str| -> Vec<String> {
        let items = config[name].as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let keys = |name: &str| -> Vec<String> {
        config[name].as_object().map(|o| o.keys().cloned().collect()).unwrap_or_default()
    };
    let text = |name: &str| config[name].as_str().unwrap_or_default().to_owned();
    let labels = config["Labels"].as_object().map(|labels| {
        labels.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect::<BTreeMap<_, _>>()
    });
    let ids = value["rootfs"]["diff_ids"].as_array().map(Vec::as_slice).unwrap_or_default();
    let diff_ids: Vec<String> = ids.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect();
    if let Some(bad) = diff_ids.iter().find(|id| !is_digest(id)) {
        return Err(corrupt(format!("diff id {bad:?}")));
    }
    Ok(Parsed {
        config: ImageConfig {
            entrypoint: list("Entrypoint"),
            cmd: list("Cmd"),
            env: list("Env"),
            user: text("User"),
            working_dir: text("WorkingDir"),
            volumes: keys("Volumes"),
            stop_signal: Some(text("StopSignal")).filter(|s| !s.is_empty()),
            exposed_ports: keys("ExposedPorts"),
            labels: labels.unwrap_or_default(),
        },
        diff_ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_gives_the_manifest_for_this_machine() {
        let digest = |c: char| format!("sha256:{}", c.to_string().repeat(64));
        let entry = |c, os: &str, arch: &str| serde_json::json!({"digest": digest(c), "size": 1, "platform": {"os": os, "architecture": arch}});
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [
            entry('a', "unknown", "unknown"), entry('b', "windows", architecture()), entry('c', "linux", architecture()),
        ]});
        let found = match parse(index.to_string().as_bytes()) {
            Ok(Document::Index(found)) => found.digest,
            _ => String::new(),
        };
        assert_eq!(found, digest('c'));
        let other = serde_json::json!({"schemaVersion": 2, "manifests": [entry('a', "linux", "s390x")]});
        assert!(parse(other.to_string().as_bytes()).is_err());
        assert!(parse(br#"{"schemaVersion":2,"config":{"digest":"sha256:../../x"},"layers":[]}"#).is_err());
    }

    #[test]
    fn a_configuration_with_nulls_is_read() {
        let text = br#"{"config":{"Cmd":["sh"],"Entrypoint":null,"Env":null,"User":"web","Volumes":{"/data":{}}},"rootfs":{"diff_ids":[]}}"#;
        let parsed = parse_config(text).expect("valid");
        assert_eq!((parsed.config.cmd, parsed.config.user), (vec!["sh".to_owned()], "web".to_owned()));
        assert_eq!(parsed.config.volumes, ["/data"]);
    }
}
