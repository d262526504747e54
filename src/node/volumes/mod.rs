//! Volumes of a pod: directories on the node that are bound into its containers.
//!
//! One file per type. What comes from objects is a pure payload, written by [`atomic_writer`]; an update writes again.

pub mod atomic_writer;
pub mod config_map;
pub mod downward_api;
pub mod empty_dir;
pub mod ephemeral;
pub mod host_path;
pub mod ownership;
pub mod persistent_volume_claim;
pub mod projected;
pub mod secret;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::Value;

use super::downward::Facts;
use super::environment::Lookup;
use atomic_writer::Payload;
use ownership::Ownership;
use projected::TokenKey;

/// Where values of a volume come from.
pub struct Sources<'a> {
    /// The pod.
    pub pod: &'a core::Pod,
    /// Addresses and sizes.
    pub facts: &'a Facts,
    /// ConfigMaps, Secrets, PersistentVolumeClaims of the namespace, and PersistentVolumes.
    pub lookup: Lookup<'a>,
    /// Tokens that were requested.
    pub token: &'a (dyn Fn(&TokenKey) -> Option<String> + Sync),
}

/// An object that a pod refers to: resource and name (in the pod's namespace, but for `persistentvolumes`).
pub type ObjectKey = (&'static str, String);

/// What is to be done for one volume; made by [`plan`], done by [`set_up`].
#[derive(Clone, Debug)]
pub enum Task {
    /// Files.
    Files(Payload),
    /// An emptyDir.
    Empty(core::EmptyDirVolumeSource),
    /// A path of the machine, with its hostPath type.
    Host(PathBuf, String),
    /// The directory of a claim's volume.
    Claim {
        /// Where it is, with its hostPath type.
        claimed: persistent_volume_claim::Claimed,
        /// Whether pods of this node only read it.
        read_only: bool,
    },
    /// Nothing: the runtime mounts an image where it is wanted.
    Image,
}

/// Why a volume is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountError {
    /// The volume.
    pub volume: String,
    /// The reason in the kubelet's words.
    pub message: String,
    /// Whether only a change of an object (which is watched) can mend it: then there is no point in trying by time.
    pub awaits_object: bool,
}

impl MountError {
    /// The message of the event `FailedMount`.
    pub fn event(&self) -> String {
        format!("MountVolume.SetUp failed for volume {:?} : {}", self.volume, self.message)
    }
}

/// The ConfigMaps, Secrets and claims that the pod's volumes name.
pub fn references(pod: &core::Pod) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    let Some(spec) = &pod.spec else { return keys };
    for volume in spec.volumes.iter().flatten() {
        keys.extend(volume.config_map.iter().map(|s| ("configmaps", s.name.clone())));
        keys.extend(volume.secret.iter().filter_map(|s| Some(("secrets", s.secret_name.clone()?))));
        for part in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            keys.extend(part.config_map.iter().map(|s| ("configmaps", s.name.clone())));
            keys.extend(part.secret.iter().map(|s| ("secrets", s.name.clone())));
        }
        keys.extend(volume.persistent_volume_claim.iter().map(|s| ("persistentvolumeclaims", s.claim_name.clone())));
        keys.extend(volume.ephemeral.iter().map(|_| ("persistentvolumeclaims", ephemeral::claim_name(pod, volume))));
    }
    keys
}

/// The ConfigMaps and Secrets that the environments name.
pub fn environment_references(spec: &core::PodSpec) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    for (_, container) in super::pod_state::specs(spec) {
        for source in container.env_from.iter().flatten() {
            keys.extend(source.config_map_ref.iter().map(|r| ("configmaps", r.name.clone())));
            keys.extend(source.secret_ref.iter().map(|r| ("secrets", r.name.clone())));
        }
        for from in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            keys.extend(from.config_map_key_ref.iter().map(|r| ("configmaps", r.name.clone())));
            keys.extend(from.secret_key_ref.iter().map(|r| ("secrets", r.name.clone())));
        }
    }
    keys
}

/// The tokens that the pod's volumes need.
pub fn tokens(pod: &core::Pod) -> Vec<TokenKey> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|v| v.projected.as_ref()).flat_map(|source| projected::tokens(pod, source)).collect()
}

/// What to do for a volume. Pure.
///
/// # Errors
/// What is missing, in the kubelet's words.
pub fn plan(volume: &core::Volume, sources: &Sources<'_>) -> Result<Task, MountError> {
    let failed = |message: String| {
        let awaits_object = !message.contains("failed to fetch token");
        MountError { volume: volume.name.clone(), message, awaits_object }
    };
    let mode = |mode: Option<i32>| mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(0o644);
    if let Some(s) = &volume.empty_dir {
        return Ok(Task::Empty(s.clone()));
    }
    if let Some(s) = &volume.config_map {
        let object = (sources.lookup)("configmaps", &s.name);
        let optional = s.optional == Some(true);
        return config_map::payload(object.as_deref(), &s.name, s.items.as_deref(), mode(s.default_mode), optional)
            .map(Task::Files)
            .map_err(failed);
    }
    if let Some(s) = &volume.secret {
        let name = s.secret_name.as_deref().unwrap_or_default();
        let object = (sources.lookup)("secrets", name);
        let optional = s.optional == Some(true);
        return secret::payload(object.as_deref(), name, s.items.as_deref(), mode(s.default_mode), optional)
            .map(Task::Files)
            .map_err(failed);
    }
    if let Some(s) = &volume.projected {
        return projected::payload(s, sources).map(Task::Files).map_err(failed);
    }
    if let Some(s) = &volume.downward_api {
        return downward_api::payload(sources.pod, sources.facts, s.items.as_deref(), mode(s.default_mode))
            .map(Task::Files)
            .map_err(failed);
    }
    if let Some(s) = &volume.host_path {
        return Ok(Task::Host(PathBuf::from(&s.path), s.type_.clone().unwrap_or_default()));
    }
    let of_claim = |claim: Option<Arc<Value>>, name: &str, read_only: bool| {
        let volume = persistent_volume_claim::volume_name(claim.as_deref(), name)?;
        let object: Option<Arc<Value>> = (sources.lookup)("persistentvolumes", &volume);
        let claimed = persistent_volume_claim::resolve(object.as_deref(), &volume)?;
        Ok(Task::Claim { claimed, read_only })
    };
    if let Some(s) = &volume.persistent_volume_claim {
        let claim = (sources.lookup)("persistentvolumeclaims", &s.claim_name);
        return of_claim(claim, &s.claim_name, s.read_only == Some(true)).map_err(failed);
    }
    if volume.ephemeral.is_some() {
        let name = ephemeral::claim_name(sources.pod, volume);
        let claim = (sources.lookup)("persistentvolumeclaims", &name);
        ephemeral::check_owner(sources.pod, claim.as_deref(), &name).map_err(failed)?;
        return of_claim(claim, &name, false).map_err(failed);
    }
    if volume.image.is_some() {
        return Ok(Task::Image);
    }
    Err(failed("no volume plugin matched".to_owned()))
}

/// The directory of a volume below the pod's directory, as the kubelet lays it out.
pub fn directory(pod_dir: &Path, volume: &core::Volume) -> PathBuf {
    let plugin = if volume.config_map.is_some() {
        "kubernetes.io~configmap"
    } else if volume.secret.is_some() {
        "kubernetes.io~secret"
    } else if volume.projected.is_some() {
        "kubernetes.io~projected"
    } else if volume.downward_api.is_some() {
        "kubernetes.io~downward-api"
    } else {
        "kubernetes.io~empty-dir"
    };
    pod_dir.join("volumes").join(plugin).join(&volume.name)
}

/// Makes a volume; returns where it is. `again`: it was made before, and only what comes from objects is brought up to date. Blocking.
///
/// # Errors
/// The message for the event.
pub fn set_up(dir: &Path, task: &Task, ownership: &Ownership, again: bool, now: Timestamp) -> Result<PathBuf, String> {
    let text = |e: io::Error| format!("{}: {e}", dir.display());
    let own = |path: &Path| ownership.apply(path).map_err(|e| format!("applyFSGroup failed for vol: {e}"));
    match task {
        Task::Files(payload) => {
            fs::create_dir_all(dir).map_err(text)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).map_err(text)?;
            atomic_writer::write(dir, payload, ownership.group, now).map_err(|e| e.to_string())?;
            Ok(dir.to_owned())
        }
        Task::Empty(source) => {
            if !again {
                empty_dir::set_up(dir, source).map_err(text)?;
                own(dir)?;
            }
            Ok(dir.to_owned())
        }
        Task::Host(path, kind) => {
            if !again {
                host_path::set_up(path, kind)?;
            }
            Ok(path.clone())
        }
        Task::Claim { claimed, read_only } => {
            if !again {
                host_path::set_up(&claimed.path, &claimed.kind)?;
                if claimed.managed && !read_only {
                    own(&claimed.path)?;
                }
            }
            Ok(claimed.path.clone())
        }
        Task::Image => Ok(PathBuf::new()),
    }
}

/// Removes all volumes of a pod below its directory. Blocking; idempotent.
///
/// # Errors
/// When something cannot be removed.
pub fn tear_down(pod_dir: &Path) -> io::Result<()> {
    if let Ok(entries) = fs::read_dir(pod_dir.join("volumes/kubernetes.io~empty-dir")) {
        for entry in entries.flatten() {
            empty_dir::tear_down(&entry.path());
        }
    }
    match fs::remove_dir_all(pod_dir.join("volumes")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives a file of a volume that is only read to `fsGroup`, as far as the user namespace allows.
pub fn give_to_group(file: &Path, group: Option<u32>) {
    let Some(group) = group else { return };
    if let Err(error) = std::os::unix::fs::chown(file, None, Some(group)) {
        tracing::debug!(path = %file.display(), group, %error, "fsGroup is not mapped");
        return;
    }
    let Ok(metadata) = fs::metadata(file) else { return };
    let mode = metadata.mode() & 0o7777;
    let _ = fs::set_permissions(file, fs::Permissions::from_mode(mode | ((mode & 0o600) >> 3)));
}

/// The paths of the volumes by name.
pub type Mounted = BTreeMap<String, PathBuf>;

/// The place that a `subPath` names inside a volume; it is created as a directory when it is not there.
///
/// # Errors
/// A path that leaves the volume, also through symbolic links.
pub fn sub_path(volume: &Path, sub: &str) -> Result<PathBuf, String> {
    let refuse = || format!("failed to prepare subPath for volumeMount: subPath {sub:?} must stay within the volume");
    let relative = Path::new(sub);
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(refuse());
    }
    let text = |e: io::Error| format!("failed to prepare subPath for volumeMount: {sub:?}: {e}");
    let root = fs::canonicalize(volume).map_err(text)?;
    let mut at = root.clone();
    for part in relative.components() {
        let next = at.join(part);
        if fs::symlink_metadata(&next).is_err() {
            fs::create_dir(&next).map_err(text)?;
            let mode = fs::metadata(&root).map_or(0o750, |m| m.mode() & 0o7777);
            let _ = fs::set_permissions(&next, fs::Permissions::from_mode(mode));
        }
        at = fs::canonicalize(&next).map_err(text)?;
        if !at.starts_with(&root) {
            return Err(refuse());
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sub_paths_stay_inside() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path().join("v");
        fs::create_dir(&volume).expect("made");
        fs::create_dir(dir.path().join("outside")).expect("made");
        std::os::unix::fs::symlink("../outside", volume.join("link")).expect("linked");
        assert!(sub_path(&volume, "a/b").expect("made").is_dir());
        for bad in ["../outside", "/etc", "link", "link/x", "a/../../outside"] {
            assert!(sub_path(&volume, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn references_and_messages() {
        let pod: core::Pod = serde_json::from_value(json!({"metadata": {"namespace": "d"}, "spec": {
        "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "e"}}]}],
        "volumes": [
            {"name": "x", "configMap": {"name": "y"}},
            {"name": "t", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"configMap": {"name": "kube-root-ca.crt"}}]}},
            {"name": "p", "persistentVolumeClaim": {"claimName": "data"}},
        ]}}))
        .expect("a pod");
        let spec = pod.spec.as_ref().expect("a spec");
        let keys = references(&pod);
        let names: Vec<_> = keys.iter().map(|(r, n)| format!("{r}/{n}")).collect();
        assert_eq!(names, ["configmaps/y", "configmaps/kube-root-ca.crt", "persistentvolumeclaims/data"]);
        assert_eq!(environment_references(spec), [("secrets", "e".to_owned())]);
        assert_eq!(tokens(&pod), [TokenKey { account: "default".into(), audience: String::new(), seconds: 3607 }]);
        let sources = Sources { pod: &pod, facts: &Facts::default(), lookup: &|_, _| None, token: &|_| None };
        let error = plan(&spec.volumes.as_ref().expect("volumes")[0], &sources).expect_err("missing");
        assert_eq!(error.event(), "MountVolume.SetUp failed for volume \"x\" : configmap \"y\" not found");
    }
}
