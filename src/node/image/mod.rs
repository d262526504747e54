//! Images: names, a content-addressed store, pulls from registries, archives.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

mod archive;
mod manifest;
mod pull;
pub mod reference;
mod registry;
mod sharing;
mod store;
#[cfg(test)]
mod tests;
mod unpack;

pub use reference::Reference;
pub use store::ImageStore;

/// What an image says about the processes that run from it (OCI image specification, `config`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `Entrypoint`
    pub entrypoint: Vec<String>,
    /// `Cmd`
    pub cmd: Vec<String>,
    /// `Env`, as `NAME=value`.
    pub env: Vec<String>,
    /// `User`: empty, `user`, `uid`, `user:group`, …
    pub user: String,
    /// `WorkingDir`
    pub working_dir: String,
    /// `Volumes`
    pub volumes: Vec<String>,
    /// `StopSignal`, as `SIGTERM` or a number.
    pub stop_signal: Option<String>,
    /// `ExposedPorts`, as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `Labels`
    pub labels: BTreeMap<String, String>,
}

/// An image in the store, unpacked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// The digest of its configuration: `sha256:…`.
    pub id: String,
    /// Full names with a tag: `docker.io/library/busybox:1.36`.
    pub repo_tags: Vec<String>,
    /// Full names with a digest: `docker.io/library/busybox@sha256:…`.
    pub repo_digests: Vec<String>,
    /// The compressed size in bytes, as `kubectl describe node` and `image ls` show.
    pub size: u64,
    /// How to run it.
    pub config: ImageConfig,
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
}

impl Image {
    /// What `status.containerStatuses[].imageID` shows: a name with a digest, else the id.
    pub fn image_id(&self) -> String {
        self.repo_digests.first().cloned().unwrap_or_else(|| self.id.clone())
    }
}

/// A user name and password, or a token, for one registry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Credential {
    /// A user.
    pub username: String,
    /// Its password.
    pub password: String,
    /// An OAuth2 refresh token (`identitytoken`) instead of both.
    pub identity_token: String,
    /// A ready bearer token (`registrytoken`) instead of all.
    pub registry_token: String,
}

/// Why an image is not there. The words are containerd's and the kubelet's.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name does not parse (waiting reason `InvalidImageName`).
    #[error("couldn't parse image name \"{name}\": {reason}")]
    InvalidName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image could not be pulled (`ErrImagePull`).
    #[error("failed to pull and unpack image \"{name}\": {reason}")]
    Pull {
        /// The full name.
        name: String,
        /// Why.
        reason: String,
    },
    /// The image is not in the store.
    #[error("image \"{0}\": not found")]
    NotFound(String),
    /// An archive or a layer is not what it says it is.
    #[error("{0}")]
    Corrupt(String),
    /// A file of the store failed.
    #[error("{0}: {1}")]
    Io(String, #[source] std::io::Error),
}

/// What the node agent asks of the image store.
#[async_trait]
pub trait Images: Send + Sync {
    /// The image of that name (normalised), name with digest, or id (also shortened) when it is present.
    async fn resolve(&self, name: &str) -> Result<Option<Image>, ImageError>;
    /// Pulls and unpacks. `credentials` are tried in order (see [`reference::credentials`]); none: anonymous.
    /// Pulls of the same name at the same time share one transfer.
    async fn pull(&self, name: &str, credentials: &[Credential]) -> Result<Image, ImageError>;
    /// All images.
    async fn list(&self) -> Result<Vec<Image>, ImageError>;
    /// Removes a name, and the image with its unshared layers when it was the last. By id: all its names.
    async fn remove(&self, name: &str) -> Result<(), ImageError>;
}

/// Images for tests: those that were put in are "in the registry"; pulled ones are present.
#[derive(Default)]
pub struct FakeImages {
    state: Mutex<FakeState>,
}

#[derive(Default)]
struct FakeState {
    registry: BTreeMap<String, Image>,
    present: BTreeMap<String, Image>,
    pulls: Vec<String>,
}

impl FakeImages {
    /// Puts an image into the registry (not into the store).
    pub fn publish(&self, name: &str, config: ImageConfig) {
        let name = full(name);
        let id = format!("sha256:{:064x}", name.len());
        let image = Image { id, repo_tags: vec![name.clone()], config, size: 1 << 20, ..Image::default() };
        self.lock().registry.insert(name, image);
    }

    /// The names that were pulled, in order.
    pub fn pulls(&self) -> Vec<String> {
        self.lock().pulls.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, FakeState> {
        self.state.lock().expect("no panic while the fake store is held")
    }
}

fn full(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |r| r.to_string())
}

#[async_trait]
impl Images for FakeImages {
    async fn resolve(&self, name: &str) -> Result<Option<Image>, ImageError> {
        Ok(self.lock().present.get(&full(name)).cloned())
    }

    async fn pull(&self, name: &str, _credentials: &[Credential]) -> Result<Image, ImageError> {
        let name = Reference::parse(name)?.to_string();
        let mut state = self.lock();
        state.pulls.push(name.clone());
        let Some(image) = state.registry.get(&name).cloned() else {
            let reason = format!("failed to resolve reference \"{name}\": {name}: not found");
            return Err(ImageError::Pull { name, reason });
        };
        state.present.insert(name, image.clone());
        Ok(image)
    }

    async fn list(&self) -> Result<Vec<Image>, ImageError> {
        Ok(self.lock().present.values().cloned().collect())
    }

    async fn remove(&self, name: &str) -> Result<(), ImageError> {
        self.lock().present.remove(&full(name)).map(|_| ()).ok_or_else(|| ImageError::NotFound(name.to_owned()))
    }
}
