//! How many pods a budget expects and how many of them must be healthy.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::api::int_or_string::scaled;
use crate::client::cache::Key;
use crate::client::typed::{Meta, to_value};
use crate::controllers::caches::Caches;

/// What a budget expects.
pub(super) struct Expected {
    /// The pods that should be there.
    pub pods: i32,
    /// The pods that must be healthy.
    pub healthy: i32,
    /// Whether pods without a controller were found where their controllers' sizes were wanted.
    pub unmanaged: bool,
}

/// The sizes that controllers of pods want.
pub(super) struct Scales<'a>(pub &'a Caches);

impl Scales<'_> {
    /// The uid and `spec.replicas` of what finally controls a pod with this owner.
    ///
    /// # Errors
    /// A text when such an owner has no size.
    fn of(&self, owner: &OwnerReference, namespace: &str) -> Result<Option<(String, i32)>, String> {
        let (caches, key) = (self.0, Key::new(namespace, &*owner.name));
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        Ok(match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => self.replica_set(owner, namespace),
            ("apps", "StatefulSet") => {
                let found = caches.stateful_sets.get(&key).filter(|found| found.uid() == owner.uid);
                found.map(|found| (owner.uid.clone(), found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)))
            }
            ("", "ReplicationController") => {
                let found = caches.replication_controllers.get(&key).filter(|found| found.uid() == owner.uid);
                found.map(|found| (owner.uid.clone(), found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)))
            }
            _ => match caches.graph.named(&owner.api_version, &owner.kind) {
                Some(kind) => return Err(format!("{} does not implement the scale subresource", kind.gvr.qualified())),
                None => None,
            },
        })
    }

    fn replica_set(&self, owner: &OwnerReference, namespace: &str) -> Option<(String, i32)> {
        let set = self.0.replica_sets.get(&Key::new(namespace, &*owner.name)).filter(|set| set.uid() == owner.uid)?;
        let size = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        match set.controller() {
            Some(above) if above.kind == "Deployment" => {
                let deployment = self.0.deployments.get(&Key::new(namespace, &*above.name))?;
                (deployment.uid() == above.uid)
                    .then(|| (above.uid.clone(), crate::controllers::deployment::math::replicas(&deployment)))
            }
            _ => Some((owner.uid.clone(), size)),
        }
    }

    /// The sum of the sizes of all controllers of the pods, and whether some pods have none.
    fn sum(&self, pods: &[Arc<Pod>]) -> Result<(i32, bool), String> {
        let (mut sizes, mut unmanaged) = (BTreeMap::new(), false);
        for pod in pods {
            let Some(owner) = pod.controller() else {
                unmanaged = true;
                continue;
            };
            if sizes.contains_key(&owner.uid) {
                continue;
            }
            let found = self.of(owner, pod.namespace())?;
            let (uid, size) = found.ok_or_else(|| format!("found no controllers for pod {:?}", pod.name()))?;
            sizes.insert(uid, size);
        }
        Ok((sizes.values().fold(0, |sum, size| i32::saturating_add(sum, *size)), unmanaged))
    }
}

/// `getExpectedPodCount`.
///
/// # Errors
/// A text for the budget's condition.
pub(super) fn count(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], scales: &Scales<'_>) -> Result<Expected, String> {
    let spec = budget.spec.clone().unwrap_or_default();
    let of = |amount: &IntOrString, total: i32| {
        let number = scaled(&amount_value(amount), total.into(), true)?;
        Ok::<_, String>(i32::try_from(number).unwrap_or(i32::MAX))
    };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(amount), _) => {
            let (pods, unmanaged) = scales.sum(pods)?;
            Ok(Expected { pods, healthy: pods.saturating_sub(of(amount, pods)?).max(0), unmanaged })
        }
        (None, Some(IntOrString::Int(number))) => {
            let pods = i32::try_from(pods.len()).unwrap_or(i32::MAX);
            Ok(Expected { pods, healthy: *number, unmanaged: false })
        }
        (None, Some(amount)) => {
            let (pods, unmanaged) = scales.sum(pods)?;
            Ok(Expected { pods, healthy: of(amount, pods)?, unmanaged })
        }
        (None, None) => Ok(Expected { pods: 0, healthy: 0, unmanaged: false }),
    }
}

fn amount_value(amount: &IntOrString) -> Value {
    to_value(amount)
}
