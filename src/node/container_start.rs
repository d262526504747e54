//! Brings one container up: image, configuration, start. The steps and words are those of the kubelet's `startContainer`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::Value;

use super::context::{Context, container_reference};
use super::downward::Facts;
use super::environment;
use super::image::{Credential, Image, ImageError, reference};
use super::objects::Changed;
use super::pod_state::Role;
use super::runtime::{ContainerConfig, ImageMount, Mount, Propagation, Resources, RuntimeError, Seccomp};
use super::volumes::{self, Mounted};
use super::{host_files, security};
use crate::api::Gvr;
use crate::client::ListOptions;
use crate::client::recorder::EventType::{Normal, Warning};

/// What is started.
pub struct Job {
    /// The pod.
    pub pod: core::Pod,
    /// The container.
    pub spec: core::Container,
    /// Its role, for the events' field path.
    pub role: Role,
    /// Counting restarts.
    pub attempt: u32,
    /// A new id.
    pub id: String,
    /// Where the volumes are.
    pub mounted: Mounted,
    /// Addresses and sizes.
    pub facts: Facts,
    /// Called when a ConfigMap or Secret that is used changes.
    pub changed: Changed,
    /// The container (its id) whose processes this one shares.
    pub target: Option<String>,
    /// Limits of the pod as a whole that the kernel has to know first: the pod is being resized.
    pub pod_limits: Option<Resources>,
}

/// A container that was started.
#[derive(Debug)]
pub struct Up {
    /// When.
    pub started_at: Timestamp,
    /// The image.
    pub image: Image,
}

/// Why it was not started.
#[derive(Debug)]
pub enum Down {
    /// The image cannot be had: waiting reason and message; pulls back off.
    Image(String, String),
    /// The configuration is wrong or an object is missing: waiting reason and message.
    Config(String, String),
    /// It was created, but its process could not be run.
    Run(String, Box<Image>),
}

/// Starts a container.
///
/// # Errors
/// With the waiting reason to show. Events have been sent.
pub async fn start(context: &Context, job: &Job) -> Result<Up, Down> {
    let regarding = container_reference(&job.pod, job.role, &job.spec.name);
    let fail = |reason: &str, message: String| {
        context.recorder.about(regarding.clone(), Warning, "Failed", format!("Error: {message}"));
        Down::Config(reason.to_owned(), message)
    };
    let image = ensure_image(context, job, &regarding).await?;
    let images = ensure_volumes(context, job, &regarding).await?;
    let config =
        configure(context, job, image.clone(), &images).await.map_err(|m| fail("CreateContainerConfigError", m))?;
    if let Some(limits) = &job.pod_limits
        && let Err(error) = context.runtime.resize(&config.pod_uid, limits, &[]).await
    {
        tracing::warn!(%error, pod = config.pod_uid, "the limits of a pod stay as they are");
    }
    match context.runtime.start_container(config).await {
        Ok(started) => {
            context.recorder.about(regarding.clone(), Normal, "Created", "Container created");
            context.recorder.about(regarding, Normal, "Started", "Container started");
            Ok(Up { started_at: started.started_at, image })
        }
        Err(error @ (RuntimeError::Start(_) | RuntimeError::Exec(_))) => {
            context.recorder.about(regarding.clone(), Normal, "Created", "Container created");
            context.recorder.about(regarding, Warning, "Failed", format!("Error: {error}"));
            Err(Down::Run(error.to_string(), Box::new(image)))
        }
        Err(error) => Err(fail("CreateContainerError", error.to_string())),
    }
}

/// `EnsureImageExists` of the kubelet.
async fn ensure_image(context: &Context, job: &Job, regarding: &core::ObjectReference) -> Result<Image, Down> {
    let wanted = (job.spec.image.as_deref().unwrap_or_default(), job.spec.image_pull_policy.as_deref());
    have_image(context, job, regarding, wanted).await
}

/// The images that the container mounts as volumes, by the volumes' names.
async fn ensure_volumes(
    context: &Context,
    job: &Job,
    regarding: &core::ObjectReference,
) -> Result<BTreeMap<String, Image>, Down> {
    let mut images = BTreeMap::new();
    for volume in job.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let Some(source) = &volume.image else { continue };
        if job.spec.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name) {
            let wanted = (source.reference.as_deref().unwrap_or_default(), source.pull_policy.as_deref());
            images.insert(volume.name.clone(), have_image(context, job, regarding, wanted).await?);
        }
    }
    Ok(images)
}

/// An image by name under a pull policy.
async fn have_image(
    context: &Context,
    job: &Job,
    regarding: &core::ObjectReference,
    (name, policy): (&str, Option<&str>),
) -> Result<Image, Down> {
    let parsed = reference::Reference::parse(name).map_err(|error| {
        let message = format!("Failed to apply default image tag {name:?}: {error}");
        context.recorder.about(regarding.clone(), Warning, "InspectFailed", message.clone());
        context.recorder.about(regarding.clone(), Warning, "Failed", "Error: InvalidImageName");
        Down::Image("InvalidImageName".into(), message)
    })?;
    let always = parsed.tag.as_deref() == Some("latest") && parsed.digest.is_none();
    let policy = policy.unwrap_or(if always { "Always" } else { "IfNotPresent" });
    if policy != "Always" {
        let present = context.images.resolve(name).await.map_err(|error| {
            let message = format!("Failed to inspect image {name:?}: {error}");
            context.recorder.about(regarding.clone(), Warning, "InspectFailed", message.clone());
            Down::Image("ImageInspectError".into(), message)
        })?;
        if let Some(image) = present {
            let message = format!("Container image {name:?} already present on machine and can be accessed by the pod");
            context.recorder.about(regarding.clone(), Normal, "Pulled", message);
            return Ok(image);
        }
        if policy == "Never" {
            let message = format!("Container image {name:?} is not present with pull policy of Never");
            context.recorder.about(regarding.clone(), Warning, "ErrImageNeverPull", message.clone());
            context.recorder.about(regarding.clone(), Warning, "Failed", "Error: ErrImageNeverPull");
            return Err(Down::Image("ErrImageNeverPull".into(), message));
        }
    }
    pull(context, job, regarding, name, &parsed).await
}

async fn pull(
    context: &Context,
    job: &Job,
    regarding: &core::ObjectReference,
    name: &str,
    parsed: &reference::Reference,
) -> Result<Image, Down> {
    let credentials = credentials(context, &job.pod, parsed).await;
    context.recorder.about(regarding.clone(), Normal, "Pulling", format!("Pulling image {name:?}"));
    let began = Instant::now();
    match context.images.pull(name, &credentials).await {
        Ok(image) => {
            let took = go_duration(began.elapsed());
            let message = format!(
                "Successfully pulled image {name:?} in {took} ({took} including waiting). Image size: {} bytes.",
                image.size
            );
            context.recorder.about(regarding.clone(), Normal, "Pulled", message);
            context.images_changed();
            Ok(image)
        }
        Err(error) => {
            let message = match &error {
                ImageError::Pull { reason, .. } => {
                    format!("failed to pull and unpack image \"{parsed}\": {reason}")
                }
                other => other.to_string(),
            };
            context.recorder.about(
                regarding.clone(),
                Warning,
                "Failed",
                format!("Failed to pull image {name:?}: {message}"),
            );
            context.recorder.about(regarding.clone(), Warning, "Failed", "Error: ErrImagePull");
            Err(Down::Image("ErrImagePull".into(), message))
        }
    }
}

/// The credentials of the pod's `imagePullSecrets`. Secrets that are missing are skipped, as the kubelet does.
async fn credentials(context: &Context, pod: &core::Pod, image: &reference::Reference) -> Vec<Credential> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for secret in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()) {
        match context.api.get(&Gvr::new("", "v1", "secrets"), namespace, &secret.name).await {
            Ok(object) => {
                let data = environment::data(&object, "secrets");
                for key in [".dockerconfigjson", ".dockercfg"] {
                    if let Some(document) = data.get(key) {
                        found.extend(reference::credentials(document, image));
                    }
                }
            }
            Err(error) => {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    secret.name
                );
                tracing::debug!(%error, namespace, secret = secret.name, "no pull secret");
                context.recorder.event(pod, Warning, "FailedToRetrieveImagePullSecret", message);
            }
        }
    }
    found
}

/// Everything the runtime needs; the error is the message of `CreateContainerConfigError`.
async fn configure(
    context: &Context,
    job: &Job,
    image: Image,
    images: &BTreeMap<String, Image>,
) -> Result<ContainerConfig, String> {
    let pod = &job.pod;
    let spec = pod.spec.as_ref().ok_or("the pod has no spec")?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let env = variables(context, job).await?;
    let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| environment::expand(text, lookup)).collect()
    };
    let mut security = security::merge(pod, &job.spec, &image.config.user)?;
    security.app_armor = context.options.app_armor.to_apply(pod, &job.spec);
    if let Seccomp::Localhost(name) = &security.seccomp {
        security.seccomp = Seccomp::Localhost(context.options.seccomp.join(name));
    }
    let (host, domain) = host_files::hostname(pod, &context.options.cluster_domain);
    let mut mounts = mounts(job, &lookup, images)?;
    let wants_hosts = !mounts.iter().any(|m| m.destination == std::path::Path::new("/etc/hosts"));
    if wants_hosts {
        let aliases = spec.host_aliases.as_deref().unwrap_or_default();
        let text = host_files::hosts(&job.facts.pod_ips, &host, &domain, aliases);
        let path = context.options.pods.join(uid).join("etc-hosts");
        write_if_changed(&path, &text).map_err(|e| format!("{}: {e}", path.display()))?;
        mounts.push(Mount { source: path, destination: "/etc/hosts".into(), ..Mount::default() });
    }
    let mut all = vec![("HOSTNAME".to_owned(), host)];
    all.extend(env.iter().filter(|(name, _)| name != "HOSTNAME").cloned());
    all.extend(env.iter().filter(|(name, _)| name == "HOSTNAME").cloned());
    Ok(ContainerConfig {
        id: job.id.clone(),
        pod_uid: uid.to_owned(),
        name: job.spec.name.clone(),
        attempt: job.attempt,
        image,
        command: expand(&job.spec.command),
        args: expand(&job.spec.args),
        env: all,
        working_dir: job.spec.working_dir.clone().filter(|d| !d.is_empty()),
        mounts,
        security,
        resources: security::resources(&job.spec),
        oom_score_adj: security::oom_score_adj(spec, &job.spec, job.facts.allocatable_memory),
        tty: job.spec.tty == Some(true),
        stdin: job.spec.stdin == Some(true),
        stdin_once: job.spec.stdin_once == Some(true),
        pid_namespace_of: job.target.clone(),
        termination_message_path: Some(
            job.spec.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".to_owned()).into(),
        )
        .filter(|p: &PathBuf| !p.as_os_str().is_empty()),
    })
}

async fn variables(context: &Context, job: &Job) -> Result<Vec<(String, String)>, String> {
    let pod = &job.pod;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut objects: Vec<(&'static str, String, Option<Arc<Value>>)> = Vec::new();
    let keys = pod.spec.as_ref().map(volumes::environment_references).unwrap_or_default();
    for (resource, name) in keys {
        let object = context.objects.get(resource, namespace, &name, uid, &job.changed).await;
        objects.push((resource, name, object));
    }
    let lookup = |resource: &str, name: &str| {
        objects.iter().find(|(r, n, _)| *r == resource && n == name).and_then(|(_, _, object)| object.clone())
    };
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links) != Some(false);
    let services = services(context, namespace, links).await;
    let services = environment::service_variables(&services, namespace, links);
    environment::build(pod, &job.spec, &job.facts, &services, &lookup)
}

/// The Services that become variables. Without an answer there are none: the pod starts nevertheless.
async fn services(context: &Context, namespace: &str, links: bool) -> Vec<Arc<Value>> {
    let gvr = Gvr::new("", "v1", "services");
    let mut all = Vec::new();
    match context.api.get(&gvr, "default", "kubernetes").await {
        Ok(service) => all.push(service),
        Err(error) => tracing::debug!(%error, "there is no Service kubernetes yet"),
    }
    if links {
        match context.api.list(&gvr, namespace, &ListOptions::default()).await {
            Ok(list) => all.extend(list.items),
            Err(error) => tracing::warn!(%error, namespace, "services could not be listed"),
        }
    }
    all
}

fn mounts(
    job: &Job,
    lookup: &impl Fn(&str) -> Option<String>,
    images: &BTreeMap<String, Image>,
) -> Result<Vec<Mount>, String> {
    if let Some(device) = job.spec.volume_devices.iter().flatten().next() {
        return Err(format!(
            "volume {:?} cannot be a block device: volumeDevices are not supported on this node",
            device.name
        ));
    }
    let mut mounts = Vec::new();
    for mount in job.spec.volume_mounts.iter().flatten() {
        let root = job.mounted.get(&mount.name).ok_or_else(|| {
            format!("cannot find volume {:?} to mount into container {:?}", mount.name, job.spec.name)
        })?;
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => Some(path.clone()),
            (_, Some(expression)) if !expression.is_empty() => Some(environment::expand(expression, lookup)),
            _ => None,
        };
        let (source, image) = match (images.get(&mount.name), sub) {
            (Some(image), sub) => {
                let image = ImageMount { layers: image.layers.clone(), sub_path: sub.unwrap_or_default() };
                (PathBuf::new(), Some(image))
            }
            (None, Some(sub)) => (volumes::sub_path(root, &sub)?, None),
            (None, None) => (root.clone(), None),
        };
        mounts.push(Mount {
            source,
            image,
            destination: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only == Some(true) || always_read_only(job, &mount.name),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    Ok(mounts)
}

/// Volumes made of objects are always read-only, and claims that ask for it.
fn always_read_only(job: &Job, volume: &str) -> bool {
    let volumes = job.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.into_iter().filter(|v| v.name == volume).any(|v| {
        v.config_map.is_some()
            || v.secret.is_some()
            || v.projected.is_some()
            || v.downward_api.is_some()
            || v.image.is_some()
            || v.persistent_volume_claim.as_ref().is_some_and(|c| c.read_only == Some(true))
    })
}

fn write_if_changed(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, text)
}

/// A duration as Go prints it, to the millisecond (the kubelet truncates to it).
pub fn go_duration(duration: std::time::Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.').to_owned();
    match minutes {
        0 => format!("{seconds}s"),
        1..60 => format!("{minutes}m{seconds}s"),
        _ => format!("{}h{}m{seconds}s", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_prints_them() {
        for (millis, text) in
            [(0, "0ms"), (523, "523ms"), (1200, "1.2s"), (61_005, "1m1.005s"), (3_600_000, "1h0m0s"), (2000, "2s")]
        {
            assert_eq!(go_duration(std::time::Duration::from_millis(millis)), text);
        }
    }
}
