//! The hostpath provisioner: gives claims of its classes a directory of this machine, and takes it back
//! (minikube's `k8s.io/minikube-hostpath`). A component of its own, because an addon switches it on and off.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::persistent_volume::{
    PROVISIONED_BY, SELECTED_NODE, STORAGE_PROVISIONER, class_name, is_bound, volume_name, waits_for_consumer,
};
use crate::client::cache::Key;
use crate::client::recorder::EventType;
use crate::client::typed::{Meta, gvr};
use crate::client::{Api, Cache, Client, DeleteOptions, Factory, Patch, Recorder, WorkQueue};
use crate::env::{Env, rfc3339};

/// The provisioner's name in StorageClasses.
pub const PROVISIONER: &str = "k8s.io/minikube-hostpath";

/// Keeps a volume that is deleted before its claim until its directory is gone, or kept, as its policy says (KEP-2644).
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";

/// Makes and removes the directories of volumes.
#[async_trait]
pub trait Directories: Send + Sync + 'static {
    /// Makes an empty directory for a volume of a claim in `namespace`, writable for everybody, and returns its path as
    /// `hostPath` names it. One that is there already is kept; a volume's name carries its claim's uid, so it is never
    /// another claim's.
    async fn create(&self, namespace: &str, volume: &str) -> io::Result<String>;
    /// Removes a directory that [`Directories::create`] returned, with all that is in it. One that is gone is fine;
    /// paths that are not of its making must be refused.
    async fn remove(&self, path: &str) -> io::Result<()>;
    /// How many bytes the file system of the directories has.
    async fn size(&self) -> io::Result<u64>;
}

/// A running provisioner.
pub struct Handle {
    stop: CancellationToken,
    tasks: TaskTracker,
    factory: Factory,
}

impl Handle {
    /// Lets the volume in work be finished, then stops.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.factory.stop();
    }
}

/// Starts the provisioner; it works while `enabled` is true. Inside a tokio runtime.
pub fn start(api: Arc<dyn Api>, env: Env, enabled: watch::Receiver<bool>, directories: Arc<dyn Directories>) -> Handle {
    let factory = Factory::new(api.clone());
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let caches = Known { claims: factory.cache(), volumes: factory.cache(), classes: factory.cache() };
    let provisioner = Provisioner::new(api, env, directories, caches);
    let stopped = stop.clone();
    tasks.spawn(async move { provisioner.run(enabled, stopped).await });
    Handle { stop, tasks, factory }
}

/// What the provisioner knows of the API.
pub struct Known {
    /// Claims.
    pub claims: Cache<PersistentVolumeClaim>,
    /// Volumes.
    pub volumes: Cache<PersistentVolume>,
    /// Classes.
    pub classes: Cache<StorageClass>,
}

/// What is done for one key: a claim, or a volume (whose key has no namespace).
pub struct Provisioner {
    known: Known,
    client: Client,
    env: Env,
    recorder: Recorder,
    directories: Arc<dyn Directories>,
}

impl Provisioner {
    /// One that acts through `api`. Inside a tokio runtime.
    pub fn new(api: Arc<dyn Api>, env: Env, directories: Arc<dyn Directories>, known: Known) -> Self {
        let recorder = Recorder::new(api.clone(), env.clone(), PROVISIONER, "");
        Self { known, client: Client::new(api), env, recorder, directories }
    }

    /// Calls `add` with the keys for which there may be something to do.
    pub fn watch(&self, add: impl Fn(Key) + Clone + Send + Sync + 'static) {
        let (adder, again, claims) = (add.clone(), add.clone(), self.known.claims.clone());
        self.known.claims.subscribe(move |change| adder(Key::of(&**change.object())));
        self.known.volumes.subscribe(move |change| add(Key::of(&**change.object())));
        self.known.classes.subscribe(move |_| claims.list().iter().for_each(|claim| again(Key::of(&**claim))));
    }

    /// Does what a key needs now.
    ///
    /// # Errors
    /// It did not succeed, and is to be tried again.
    pub async fn process(&self, key: &Key) -> anyhow::Result<()> {
        if key.namespace.is_empty() {
            return self.take_back(key).await;
        }
        self.provision(key).await?;
        self.expand(key).await
    }

    async fn run(self, mut enabled: watch::Receiver<bool>, stop: CancellationToken) {
        let ready = async {
            self.known.claims.synced().await;
            self.known.volumes.synced().await;
            self.known.classes.synced().await;
        };
        tokio::select! {
            () = ready => {}
            () = stop.cancelled() => return,
        }
        let queue = WorkQueue::default();
        let add = queue.clone();
        self.watch(move |key| add.add(key));
        loop {
            let on = async {
                // The sender goes with the process.
                let _ = enabled.wait_for(|enabled| *enabled).await;
            };
            tokio::select! {
                () = on => {}
                () = stop.cancelled() => return,
            }
            let key = tokio::select! {
                key = queue.next() => match key { Some(key) => key, None => return },
                () = stop.cancelled() => return,
                // Switched off: wait above.
                _ = enabled.changed() => continue,
            };
            match self.process(&key).await {
                Ok(()) => queue.forget(&key),
                Err(error) => {
                    let delay = queue.add_failed(key.clone());
                    tracing::info!(%key, %error, "provisioning failed, trying again in {delay:?}");
                }
            }
            queue.done(&key);
        }
    }

    async fn provision(&self, key: &Key) -> anyhow::Result<()> {
        let Some(claim) = self.known.claims.get(key) else { return Ok(()) };
        let class = class_name(&claim).and_then(|name| self.known.classes.get(&Key::new("", name)));
        let Some(class) = class.filter(|class| wants_volume(&claim, class)) else { return Ok(()) };
        if self.known.volumes.get(&Key::new("", volume_for(&claim))).is_some() {
            return Ok(());
        }
        let say = |type_, reason, message: String| self.recorder.event(&*claim, type_, reason, message);
        let failed = |why: &str| format!("failed to provision volume with StorageClass {:?}: {why}", class.name());
        if let Some(why) = refusal(&claim, &class) {
            // Only a change of the claim or the class can help, and that is watched.
            say(EventType::Warning, "ProvisioningFailed", failed(why));
            return Ok(());
        }
        if let Some(why) = self.too_large(requested(&claim)).await? {
            // Nor does a file system grow by waiting.
            say(EventType::Warning, "ProvisioningFailed", failed(&why));
            return Ok(());
        }
        say(
            EventType::Normal,
            "Provisioning",
            format!("External provisioner is provisioning volume for claim \"{key}\""),
        );
        let path = match self.directories.create(&key.namespace, &volume_for(&claim)).await {
            Ok(path) => path,
            Err(error) => {
                say(EventType::Warning, "ProvisioningFailed", failed(&error.to_string()));
                return Err(error.into());
            }
        };
        match self.client.create(&build(&claim, &class, path)).await {
            Err(status) if !status.is_already_exists() => return Err(status.into()),
            _ => {}
        }
        say(
            EventType::Normal,
            "ProvisioningSucceeded",
            format!("Successfully provisioned volume {}", volume_for(&claim)),
        );
        Ok(())
    }

    /// Why that many bytes cannot be promised.
    async fn too_large(&self, bytes: i64) -> io::Result<Option<String>> {
        let size = self.directories.size().await?;
        let fits = u64::try_from(bytes).is_ok_and(|bytes| bytes <= size);
        Ok((!fits).then(|| format!("{bytes} bytes are asked for, the file system has {size}")))
    }

    /// Makes the volume of a bound claim as large as the claim says (what external-resizer does).
    async fn expand(&self, key: &Key) -> anyhow::Result<()> {
        let Some(claim) = self.known.claims.get(key).filter(|claim| !claim.is_terminating()) else { return Ok(()) };
        let Some(volume) = self.known.volumes.get(&Key::new("", volume_name(&claim))) else { return Ok(()) };
        let wanted = requested(&claim);
        // Without a capacity the claim's status does not know of the volume yet.
        let has = capacity(&claim);
        if !is_ours(&volume) || !is_bound(&claim) || has == 0 || wanted <= has {
            return Ok(());
        }
        let say = |type_, reason, message: String| self.recorder.event(&*claim, type_, reason, message);
        let amount = json!({"storage": claim_request(&claim)});
        if let Some(why) = self.too_large(wanted).await? {
            let message = format!("resize volume {:?} by resizer {PROVISIONER:?} failed: {why}", volume.name());
            let told = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
            if told.into_iter().any(|known| known.message.as_deref() == Some(message.as_str())) {
                return Ok(());
            }
            let condition = json!({"type": "ControllerResizeError", "status": "True", "message": message,
                "lastTransitionTime": rfc3339(self.env.now())});
            let status = json!({"conditions": [condition], "allocatedResources": amount,
                "allocatedResourceStatuses": {"storage": "ControllerResizeInfeasible"}});
            self.patch_status(&claim, status).await?;
            say(EventType::Warning, "VolumeResizeFailed", message);
            return Ok(());
        }
        say(EventType::Normal, "Resizing", format!("External resizer is resizing volume {}", volume.name()));
        let patch = json!({"metadata": {"uid": volume.uid()}, "spec": {"capacity": amount}});
        self.client.api().patch(&gvr::<PersistentVolume>(), "", volume.name(), "", Patch::Merge(patch)).await?;
        let status = json!({"capacity": amount, "allocatedResources": amount, "allocatedResourceStatuses": null,
            "conditions": null});
        self.patch_status(&claim, status).await?;
        say(EventType::Normal, "VolumeResizeSuccessful", "Resize volume succeeded".to_owned());
        Ok(())
    }

    async fn patch_status(&self, claim: &PersistentVolumeClaim, status: Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"uid": claim.uid()}, "status": status}));
        let gvr = gvr::<PersistentVolumeClaim>();
        self.client.api().patch(&gvr, claim.namespace(), claim.name(), "status", patch).await?;
        Ok(())
    }

    /// Removes the directory of a volume that nobody has any more when its policy says so, and the volume with it.
    async fn take_back(&self, key: &Key) -> anyhow::Result<()> {
        let Some(volume) = self.known.volumes.get(key).filter(|volume| is_ours(volume) && is_free(volume)) else {
            return Ok(());
        };
        if has_policy(&volume, "Delete") {
            let path = volume.spec.as_ref().and_then(|spec| spec.host_path.as_ref());
            if let Some(source) = path
                && let Err(error) = self.directories.remove(&source.path).await
            {
                self.recorder.event(&*volume, EventType::Warning, "VolumeFailedDelete", error.to_string());
                return Err(error.into());
            }
            let options = DeleteOptions { uid: volume.metadata.uid.clone(), ..Default::default() };
            match self.client.delete::<PersistentVolume>("", &key.name, &options).await {
                Err(status) if !status.is_not_found() => return Err(status.into()),
                _ => {}
            }
        } else if !volume.is_terminating() {
            return Ok(());
        }
        let finalizers = volume.metadata.finalizers.iter().flatten();
        let others: Vec<&String> = finalizers.filter(|known| *known != FINALIZER).collect();
        if others.len() == volume.metadata.finalizers.as_ref().map_or(0, Vec::len) {
            return Ok(());
        }
        // A strategic merge would only add: the whole list is replaced, and a change in between is tried again.
        let patch = Patch::Merge(json!({"metadata": {"uid": volume.uid(), "finalizers": others}}));
        match self.client.api().patch(&gvr::<PersistentVolume>(), "", &key.name, "", patch).await {
            Err(status) if !status.is_not_found() => Err(status.into()),
            _ => Ok(()),
        }
    }
}

/// `pvc-<uid of the claim>`.
fn volume_for(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid())
}

/// Whether this provisioner is asked for a volume now.
fn wants_volume(claim: &PersistentVolumeClaim, class: &StorageClass) -> bool {
    class.provisioner == PROVISIONER
        && claim.annotation(STORAGE_PROVISIONER) == Some(PROVISIONER)
        && volume_name(claim).is_empty()
        && !claim.is_terminating()
        && (!waits_for_consumer(Some(class)) || claim.annotation(SELECTED_NODE).is_some())
}

/// What a claim asks for that a directory cannot be, or that this provisioner cannot make.
fn refusal(claim: &PersistentVolumeClaim, class: &StorageClass) -> Option<&'static str> {
    let spec = claim.spec.as_ref()?;
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        Some("a claim's data source is not supported")
    } else if spec.volume_mode.as_deref() == Some("Block") {
        Some("raw block volumes are not supported")
    } else if spec.selector.is_some() {
        Some("claim Selector is not supported")
    } else if class.mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
        Some("mount options are not supported")
    } else {
        None
    }
}

fn claim_request(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")
}

fn requested(claim: &PersistentVolumeClaim) -> i64 {
    claim_request(claim).map_or(0, bytes)
}

fn capacity(claim: &PersistentVolumeClaim) -> i64 {
    claim.status.as_ref().and_then(|status| status.capacity.as_ref()?.get("storage")).map_or(0, bytes)
}

fn bytes(quantity: &Quantity) -> i64 {
    quantity.0.parse().map_or(0, |amount: crate::api::quantity::Quantity| amount.value())
}

/// Whether the volume is of our making.
fn is_ours(volume: &PersistentVolume) -> bool {
    volume.annotation(PROVISIONED_BY) == Some(PROVISIONER)
}

/// Whether no claim has the volume any more.
fn is_free(volume: &PersistentVolume) -> bool {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Released")
}

fn has_policy(volume: &PersistentVolume, policy: &str) -> bool {
    volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) == Some(policy)
}

fn build(claim: &PersistentVolumeClaim, class: &StorageClass, path: String) -> PersistentVolume {
    let spec = claim.spec.clone().unwrap_or_default();
    let requested = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
    let capacity: BTreeMap<_, _> = requested.into_iter().filter(|(name, _)| name == "storage").collect();
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume_for(claim)),
            annotations: Some(BTreeMap::from([(PROVISIONED_BY.into(), PROVISIONER.into())])),
            finalizers: Some(vec![FINALIZER.into()]),
            ..Default::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(capacity),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                namespace: claim.metadata.namespace.clone(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                ..Default::default()
            }),
            host_path: Some(HostPathVolumeSource { path, type_: Some(String::new()) }),
            persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into())),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: spec.volume_mode,
            ..Default::default()
        }),
        status: None,
    }
}
