//! What the scheduler writes for a pod: its binding, the bindings of its claims, the end of its victims.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::json;

use super::DEFAULT_SCHEDULER;
use super::pod_info::PodInfo;
use super::volumes::{BOUND_BY_CONTROLLER, Choice, SELECTED_NODE, is_bound};
use crate::api::{Status, StatusResult};
use crate::client::cache::Key;
use crate::client::typed::{Meta, gvr};
use crate::client::{Api, Cache, DeleteOptions, Factory, Patch};
use crate::env::rfc3339;

/// How long claims may take to be bound (`bindTimeoutSeconds`).
const BIND_TIMEOUT: Duration = Duration::from_secs(600);

/// Writes to the API, and sees what came of it.
pub struct Binder {
    api: Arc<dyn Api>,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
}

fn failed(plugin: &str, why: impl std::fmt::Display) -> Status {
    Status::internal(format!("running PreBind plugin {plugin:?}: {why}"))
}

impl Binder {
    /// With the shared caches of `factory`.
    pub fn new(api: Arc<dyn Api>, factory: &Factory) -> Self {
        Self::of(api, factory.cache(), factory.cache(), factory.cache())
    }

    /// With these caches.
    pub fn of(
        api: Arc<dyn Api>,
        pods: Cache<Pod>,
        claims: Cache<PersistentVolumeClaim>,
        volumes: Cache<PersistentVolume>,
    ) -> Self {
        Self { api, pods, claims, volumes }
    }

    /// `POST pods/<name>/binding`.
    ///
    /// # Errors
    /// The API refused; the message is that of kube-scheduler.
    pub async fn pod(&self, pod: &PodInfo, node: &str) -> StatusResult<()> {
        let Key { namespace, name } = &pod.key;
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"namespace": namespace, "name": name, "uid": pod.uid()},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let answer = self.api.create(&gvr::<Pod>(), namespace, name, "binding", binding).await;
        answer.map(drop).map_err(|mut status| {
            status.message = format!("binding rejected: running Bind plugin \"DefaultBinder\": {}", status.message);
            status
        })
    }

    /// Has the pod's claims bound as was decided, and waits until they are.
    ///
    /// # Errors
    /// It did not succeed, in time or at all.
    pub async fn claims(&self, pod: &PodInfo, node: &str, choices: &[Choice]) -> StatusResult<()> {
        if choices.is_empty() {
            return Ok(());
        }
        let why = |status: Status| failed("VolumeBinding", status.message);
        let mut written = Vec::new();
        for choice in choices {
            written.push(match choice {
                Choice::Take { claim, volume } => (claim, self.take(claim, volume).await.map_err(why)?),
                Choice::Provision { claim } => (claim, self.provision(claim, node).await.map_err(why)?),
            });
        }
        let bound = async {
            let (mut claims, mut pods) = (self.claims.progress(), self.pods.progress());
            while !self.are_bound(pod, &written)? {
                let changed = tokio::select! {
                    changed = claims.changed() => changed,
                    changed = pods.changed() => changed,
                };
                if changed.is_err() {
                    break; // the informers have stopped
                }
            }
            Ok(())
        };
        let late = |_| failed("VolumeBinding", "binding volumes: context deadline exceeded");
        tokio::time::timeout(BIND_TIMEOUT, bound).await.map_err(late)?
    }

    /// Gives a volume that exists to a claim.
    async fn take(&self, claim: &Key, volume: &str) -> StatusResult<u64> {
        let named = |what: &str, name: &dyn std::fmt::Display| Status::internal(format!("{what} \"{name}\" not found"));
        let known = self.claims.get(claim).ok_or_else(|| named("persistentvolumeclaim", claim))?;
        let key = Key::new("", volume);
        let there = self.volumes.get(&key).ok_or_else(|| named("persistentvolume", &volume))?;
        let reference = there.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        if reference.is_some_and(|reference| reference.uid.as_deref() == Some(known.uid())) {
            return Ok(0);
        }
        let mut patch = json!({
            "metadata": {"resourceVersion": there.metadata.resource_version},
            "spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace,
                "name": claim.name, "uid": known.uid(), "resourceVersion": known.metadata.resource_version}},
        });
        if reference.is_none() {
            patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        self.api.patch(&gvr::<PersistentVolume>(), "", volume, "", Patch::Merge(patch)).await.map(|_| 0)
    }

    /// Says for which node a volume is to be made. Returns the version of the claim that says it.
    async fn provision(&self, claim: &Key, node: &str) -> StatusResult<u64> {
        let known = self.claims.get(claim);
        if let Some(known) = known.filter(|known| known.annotation(SELECTED_NODE) == Some(node)) {
            return Ok(known.revision());
        }
        let patch = Patch::Merge(json!({"metadata": {"annotations": {SELECTED_NODE: node}}}));
        let Key { namespace, name } = claim;
        let answer = self.api.patch(&gvr::<PersistentVolumeClaim>(), namespace, name, "", patch).await?;
        Ok(crate::api::meta::resource_version(&answer).parse().unwrap_or_default())
    }

    /// Whether all claims are bound, as far as the cache knows.
    fn are_bound(&self, pod: &PodInfo, written: &[(&Key, u64)]) -> StatusResult<bool> {
        let why = |why: String| Err(failed("VolumeBinding", format!("binding volumes: {why}")));
        let here = self.pods.get(&pod.key).filter(|now| now.uid() == pod.uid() && !now.is_terminating());
        if here.is_none() {
            return why(format!("pod does not exist any more: pod {:?} not found", pod.key.name));
        }
        let mut all = true;
        for (key, revision) in written {
            let Some(claim) = self.claims.get(key) else {
                return why(format!("failed to check pvc binding: persistentvolumeclaim {:?} not found", key.name));
            };
            if is_bound(&claim) {
                continue;
            }
            all = false;
            // A provisioner that cannot serve the node takes the choice back.
            if *revision > 0 && claim.revision() >= *revision && claim.annotation(SELECTED_NODE).is_none() {
                return why(format!("selectedNode annotation reset for PVC {:?}", key.name));
            }
        }
        Ok(all)
    }

    /// Ends a victim of preemption. Returns whether it was still there.
    ///
    /// # Errors
    /// The API refused.
    pub async fn evict(&self, victim: &PodInfo, now: Timestamp) -> StatusResult<bool> {
        let Key { namespace, name } = &victim.key;
        let message = format!("{DEFAULT_SCHEDULER}: preempting to accommodate a higher priority pod");
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": message, "lastProbeTime": null, "lastTransitionTime": rfc3339(now),
            "observedGeneration": victim.pod.metadata.generation});
        let patch = json!({"metadata": {"uid": victim.uid()}, "status": {"conditions": [condition]}});
        let answer = self.api.patch(&gvr::<Pod>(), namespace, name, "status", Patch::Strategic(patch)).await;
        let answer = match answer {
            Ok(_) => {
                let options = DeleteOptions { uid: Some(victim.uid().to_owned()), ..Default::default() };
                self.api.delete(&gvr::<Pod>(), namespace, name, &options).await
            }
            Err(status) => Err(status),
        };
        match answer {
            Ok(_) => Ok(true),
            // Another pod of that name is none of our business.
            Err(status) if status.is_not_found() || status.is_conflict() => Ok(false),
            Err(status) => Err(status),
        }
    }
}
