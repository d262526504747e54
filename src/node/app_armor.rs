//! AppArmor on this node: whether the kernel has it, which profiles are loaded, and which one a container is to run under.
//!
//! The kernel's interface is read below a root directory, so that tests can put another one in its place.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use k8s_openapi::api::core::v1 as core;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::pod_state::specs;
use crate::api::app_armor::{ANNOTATION_PREFIX, from_annotation};

/// The profile that `RuntimeDefault` means, when the machine has loaded it; without it such containers are as free as the machine lets them be.
pub const DEFAULT_PROFILE: &str = "mini-default";

const DIRECTORY: &str = "sys/kernel/security/apparmor";

/// What the node knows of AppArmor.
#[derive(Clone, Debug)]
pub struct AppArmor {
    root: PathBuf,
    /// Why profiles cannot be enforced here; asked once, as the kubelet does.
    unavailable: Option<&'static str>,
}

/// A profile that a container asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// None.
    Unconfined,
    /// The runtime's.
    RuntimeDefault,
    /// One that the machine has loaded.
    Localhost(String),
}

impl AppArmor {
    /// Asks the kernel below `root`; `enabled` is the feature gate.
    pub fn new(root: impl Into<PathBuf>, enabled: bool) -> Self {
        let root = root.into();
        let parameter = std::fs::read_to_string(root.join("sys/module/apparmor/parameters/enabled"));
        let unavailable = if !enabled {
            Some("AppArmor disabled by feature-gate")
        } else if root.join(DIRECTORY).is_dir() && parameter.is_ok_and(|text| text.starts_with('Y')) {
            None
        } else {
            Some("AppArmor is not enabled on the host")
        };
        Self { root, unavailable }
    }

    /// Whether profiles can be enforced.
    pub fn is_available(&self) -> bool {
        self.unavailable.is_none()
    }

    /// Refuses a pod whose profiles cannot be enforced.
    ///
    /// # Errors
    /// Why, in the kubelet's words.
    pub fn validate(&self, pod: &core::Pod) -> Result<(), String> {
        let profiles = profiles(pod);
        if profiles.iter().all(|profile| *profile == Profile::Unconfined) {
            return Ok(());
        }
        if let Some(why) = self.unavailable {
            return Err(why.to_owned());
        }
        let loaded = self.loaded();
        for profile in profiles {
            if let Profile::Localhost(name) = profile {
                if name.trim().is_empty() {
                    return Err(format!("invalid empty AppArmor profile name: {name:?}"));
                }
                // A list that may not be read refuses nothing: the kernel itself does when the container starts.
                if loaded.as_ref().is_some_and(|loaded| !loaded.contains(&name)) {
                    return Err(format!("profile {name:?} is not loaded"));
                }
            }
        }
        Ok(())
    }

    /// The profile that the kernel is asked to put a container under; `None`: none.
    pub fn to_apply(&self, pod: &core::Pod, container: &core::Container) -> Option<String> {
        if !self.is_available() {
            return None;
        }
        match profile(pod, container)? {
            Profile::Unconfined => None,
            Profile::Localhost(name) => Some(name),
            Profile::RuntimeDefault => {
                self.loaded().filter(|loaded| loaded.contains(DEFAULT_PROFILE)).map(|_| DEFAULT_PROFILE.to_owned())
            }
        }
    }

    /// The names of the profiles that are loaded; `None` when the list may not be read.
    fn loaded(&self) -> Option<BTreeSet<String>> {
        match std::fs::read_to_string(self.root.join(DIRECTORY).join("profiles")) {
            // `name (mode)`, and names may have blanks.
            Ok(text) => {
                Some(text.lines().filter_map(|l| l.rsplit_once(" (")).map(|(name, _)| name.to_owned()).collect())
            }
            Err(error) => {
                tracing::debug!(%error, "the list of AppArmor profiles cannot be read");
                None
            }
        }
    }

    /// Waits until profiles were loaded or removed. Never returns where the kernel does not tell.
    pub async fn changed(&self) {
        if let Err(error) = self.new_revision().await {
            tracing::debug!(%error, "the kernel does not tell of AppArmor profiles");
            std::future::pending().await
        }
    }

    async fn new_revision(&self) -> io::Result<()> {
        let path = self.root.join(DIRECTORY).join("revision");
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        // Reading tells the revision of now; the file is readable again when there is another one.
        match file.read(&mut [0; 64]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        // SAFETY: the file owns its descriptor, and nothing else can close it while it is registered.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?;
        file.readable().await.map(drop)
    }
}

/// The profiles that a pod's containers ask for.
fn profiles(pod: &core::Pod) -> Vec<Profile> {
    let spec = pod.spec.as_ref().map(specs).unwrap_or_default();
    spec.iter().filter_map(|(_, container)| profile(pod, container)).collect()
}

/// The container's field, else its annotation, else the pod's field.
fn profile(pod: &core::Pod, container: &core::Container) -> Option<Profile> {
    let own = container.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let annotation = || {
        let key = format!("{ANNOTATION_PREFIX}{}", container.name);
        let found = from_annotation(pod.metadata.annotations.as_ref()?.get(&key)?)?;
        serde_json::from_value::<core::AppArmorProfile>(found).ok()
    };
    let of_pod = || pod.spec.as_ref()?.security_context.as_ref()?.app_armor_profile.clone();
    let found = own.cloned().or_else(annotation).or_else(of_pod)?;
    Some(match found.type_.as_str() {
        "Localhost" => Profile::Localhost(found.localhost_profile.unwrap_or_default()),
        "RuntimeDefault" => Profile::RuntimeDefault,
        _ => Profile::Unconfined,
    })
}

#[cfg(test)]
pub mod testing {
    //! A kernel interface made of plain files.

    use std::fs;
    use std::path::Path;

    /// Lays out what a kernel with AppArmor shows, with these profiles loaded.
    pub fn fake_kernel(root: &Path, profiles: &str) {
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            fs::write(path, text).expect("a file");
        };
        write("sys/module/apparmor/parameters/enabled", "Y\n");
        write("sys/kernel/security/apparmor/profiles", profiles);
        let revision = root.join("sys/kernel/security/apparmor/revision");
        if !revision.exists() {
            nix::unistd::mkfifo(&revision, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        }
    }

    /// Where the kernel tells of changes: each write is one.
    pub fn revisions(root: &Path) -> fs::File {
        let revision = root.join("sys/kernel/security/apparmor/revision");
        // A fifo is opened for both directions so that nobody has to wait for the other end.
        fs::OpenOptions::new().read(true).write(true).open(revision).expect("the fifo")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(annotations: serde_json::Value, own: serde_json::Value, of_pod: serde_json::Value) -> core::Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": annotations},
            "spec": {"securityContext": {"appArmorProfile": of_pod},
                "containers": [{"name": "hello", "securityContext": {"appArmorProfile": own}}]},
        }))
        .expect("a pod")
    }

    fn annotated(profile: &str) -> core::Pod {
        let key = "container.apparmor.security.beta.kubernetes.io/hello";
        pod(json!({key: profile}), json!(null), json!(null))
    }

    #[test]
    fn without_the_kernels_help_only_unconfined_pods_run() {
        let root = tempfile::tempdir().expect("a directory");
        let none = AppArmor::new(root.path(), true);
        let why = Err("AppArmor is not enabled on the host".to_owned());
        assert_eq!(none.validate(&annotated("localhost/x")), why);
        assert_eq!(none.validate(&pod(json!(null), json!({"type": "RuntimeDefault"}), json!(null))), why);
        assert_eq!(none.validate(&annotated("unconfined")), Ok(()));
        assert_eq!(none.validate(&pod(json!(null), json!(null), json!(null))), Ok(()));
        testing::fake_kernel(root.path(), "");
        let gated = AppArmor::new(root.path(), false);
        assert_eq!(gated.validate(&annotated("localhost/x")), Err("AppArmor disabled by feature-gate".to_owned()));
    }

    /// The messages of the tutorial "Restrict a Container's Access to Resources with AppArmor".
    #[test]
    fn profiles_must_be_loaded() {
        let root = tempfile::tempdir().expect("a directory");
        testing::fake_kernel(
            root.path(),
            "k8s-apparmor-example-deny-write (enforce)\nmini-default (enforce)\na b (complain)\n",
        );
        let armor = AppArmor::new(root.path(), true);
        let loaded = annotated("localhost/k8s-apparmor-example-deny-write");
        assert_eq!(armor.validate(&loaded), Ok(()));
        let container = &loaded.spec.as_ref().expect("a spec").containers[0];
        assert_eq!(armor.to_apply(&loaded, container).as_deref(), Some("k8s-apparmor-example-deny-write"));
        assert_eq!(
            armor.validate(&annotated("localhost/k8s-apparmor-example-allow-write")),
            Err("profile \"k8s-apparmor-example-allow-write\" is not loaded".to_owned())
        );
        assert_eq!(armor.validate(&annotated("localhost/a b")), Ok(()));
        assert_eq!(armor.to_apply(&annotated("runtime/default"), container).as_deref(), Some(DEFAULT_PROFILE));
    }

    #[test]
    fn the_container_wins_over_its_annotation_and_the_pod() {
        let localhost = |name: &str| json!({"type": "Localhost", "localhostProfile": name});
        let of = |pod: &core::Pod| profile(pod, &pod.spec.as_ref().expect("a spec").containers[0]);
        let key = "container.apparmor.security.beta.kubernetes.io/hello";
        let all = pod(json!({key: "localhost/b"}), localhost("a"), localhost("c"));
        assert_eq!(of(&all), Some(Profile::Localhost("a".into())));
        let two = pod(json!({key: "localhost/b"}), json!(null), localhost("c"));
        assert_eq!(of(&two), Some(Profile::Localhost("b".into())));
        let one = pod(json!({key: "nonsense"}), json!(null), localhost("c"));
        assert_eq!(of(&one), Some(Profile::Localhost("c".into())));
    }

    #[tokio::test]
    async fn a_change_of_profiles_wakes() {
        let root = tempfile::tempdir().expect("a directory");
        testing::fake_kernel(root.path(), "");
        let armor = AppArmor::new(root.path(), true);
        let mut news = testing::revisions(root.path());
        let told = armor.changed();
        tokio::pin!(told);
        assert!(futures_util::poll!(&mut told).is_pending());
        std::io::Write::write_all(&mut news, b"2\n").expect("told");
        told.await;
    }
}
