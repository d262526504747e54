//! Makes the claims of generic ephemeral volumes (`pkg/controller/volume/ephemeral`): they belong to their pod and go with it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::caches::Caches;
use super::plan::{Action, Plan};
use super::pod_status::is_finished;
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::recorder::{EventType, reference};
use crate::client::typed::Meta;

/// The controller; its keys are pods.
pub struct EphemeralVolumeController;

impl Controller for EphemeralVolumeController {
    fn name(&self) -> &'static str {
        "ephemeral-volume-controller"
    }
    fn account(&self) -> &'static str {
        "ephemeral-volume-controller"
    }
    fn component(&self) -> &'static str {
        "ephemeral_volume"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let add = enqueue.clone();
        caches.pods.subscribe(move |change| {
            let pod = change.object();
            if ephemeral(pod).next().is_some() {
                add.add(Key::of(&**pod));
            }
        });
        let add = enqueue.clone();
        caches.claims.subscribe(move |change| {
            let claim = change.object();
            let owner = owner(claim).filter(|owner| owner.kind == "Pod");
            owner.into_iter().for_each(|owner| add.add(Key::new(claim.namespace(), &*owner.name)));
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(pod) = caches.pods.get(key).filter(|pod| !is_finished(pod) && !pod.is_terminating()) else {
            return plan;
        };
        for volume in ephemeral(&pod) {
            let claim = build(&pod, volume);
            match caches.claims.get(&Key::of(&claim)) {
                Some(found) if owner(&found).is_some_and(|owner| owner.uid == pod.uid()) => {}
                // Somebody else's: the pod waits until it goes.
                Some(_) => {
                    let (namespace, name) = (pod.namespace(), pod.name());
                    let message = format!(
                        "ephemeral volume {}: PVC {} was not created for pod {namespace}/{name} (pod is not owner)",
                        volume.name,
                        Key::of(&claim)
                    );
                    plan.push(Action::event(reference(&*pod), EventType::Warning, "FailedBinding", message));
                }
                None => {
                    let failed = format!("ephemeral volume {}: create PVC {}: {{error}}", volume.name, Key::of(&claim));
                    let told = (EventType::Warning, "FailedBinding", failed);
                    plan.push(Action::create(&claim).tell(reference(&*pod), None, Some(told)));
                }
            }
        }
        plan
    }
}

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|volume| volume.ephemeral.as_ref().is_some_and(|source| source.volume_claim_template.is_some()))
}

fn owner(claim: &PersistentVolumeClaim) -> Option<&OwnerReference> {
    claim.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The claim that a volume's template describes.
fn build(pod: &Pod, volume: &Volume) -> PersistentVolumeClaim {
    let template =
        volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.clone()).unwrap_or_default();
    let described = template.metadata.unwrap_or_default();
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: pod.name().into(),
        uid: pod.uid().into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", pod.name(), volume.name)),
            namespace: Some(pod.namespace().into()),
            labels: described.labels,
            annotations: described.annotations,
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: Some(template.spec),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::client::Object;
    use crate::controllers::plan::Write;

    fn pod() -> Pod {
        Pod::parse(
            &json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "spec": {"containers": [], "volumes": [
                {"name": "plain", "emptyDir": {}},
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"type": "scratch"}},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}},
            ]}}),
        )
        .expect("a pod")
    }

    fn plan(claims: &[PersistentVolumeClaim]) -> Plan {
        let caches = Caches::default();
        caches.pods.put(Arc::new(pod()));
        claims.iter().for_each(|claim| caches.claims.put(Arc::new(claim.clone())));
        EphemeralVolumeController.reconcile(&caches, &Key::new("a", "p"), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_claim_is_made_once_and_owned_by_the_pod() {
        let first = plan(&[]);
        let writes: Vec<&Write> = first.actions().map(|action| &action.write).collect();
        let [Write::Create { object, namespace, .. }] = writes.as_slice() else { panic!("{writes:?}") };
        assert_eq!((namespace.as_str(), &object["metadata"]["name"]), ("a", &json!("p-scratch")));
        assert_eq!(object["metadata"]["labels"]["type"], "scratch");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u");
        let made = PersistentVolumeClaim::parse(object).expect("a claim");
        assert!(plan(std::slice::from_ref(&made)).is_empty());
        let mut other = made;
        other.metadata.owner_references = None;
        let refused = plan(&[other]);
        let told = refused.actions().next().and_then(|action| action.told.clone()).expect("an event");
        assert_eq!(
            told.success.expect("it is told").2,
            "ephemeral volume scratch: PVC a/p-scratch was not created for pod a/p (pod is not owner)"
        );
    }
}
