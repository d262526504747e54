//! VolumeBinding: a pod's claims must exist and be bound, or can be bound on the node; and their volumes be reachable
//! from there.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};

use super::{Nodes, Plugin, PodInfo, Registered, Rejection};
use crate::client::cache::Key;
use crate::client::typed::Meta;
use crate::scheduler::happened::{self, Happened};
use crate::scheduler::node_info::NodeInfo;
use crate::scheduler::volumes::{Choice, Waiting, choose, is_bound, is_reachable, volume_name};

pub const PLUGIN: Registered = Registered {
    name: "VolumeBinding",
    make,
    helped_by: happened::NODE | happened::CLAIM | happened::VOLUME | happened::CLASS,
    helped: |pod, happened, _| match happened {
        Happened::Claim(claim) => pod.claims.contains(claim),
        Happened::NodeChanged { old, new } => new.node.as_deref().is_some_and(|new| old.labels() != new.labels()),
        _ => true,
    },
};

struct VolumeBinding<'a> {
    refusal: Option<String>,
    /// Volumes of bound claims; `None` for one that does not exist.
    bound: Vec<Option<&'a Arc<PersistentVolume>>>,
    waiting: Vec<Waiting<'a>>,
    only: Option<BTreeSet<String>>,
}

fn make<'a>(pod: &'a PodInfo, nodes: &'a Nodes) -> Option<Box<dyn Plugin<'a> + 'a>> {
    if pod.claims.is_empty() {
        return None;
    }
    let mut plugin = VolumeBinding { refusal: None, bound: Vec::new(), waiting: Vec::new(), only: None };
    for key in &pod.claims {
        if let Err(why) = plugin.look_at(key, &pod.pod, nodes) {
            plugin.refusal.get_or_insert(why);
        }
    }
    let local = plugin.bound.iter().flatten().filter_map(|volume| local_nodes(volume));
    plugin.only = local.reduce(|one, other| &one & &other);
    Some(Box::new(plugin))
}

/// The claim's volumes on a node, or `None` when they cannot be bound there.
pub fn choices(pod: &PodInfo, nodes: &Nodes, node: &NodeInfo) -> Vec<Choice> {
    let claims = pod.claims.iter().filter_map(|key| Some((key, nodes.volumes.find(key)?)));
    let waiting: Vec<Waiting<'_>> = claims
        .filter(|(_, claim)| !is_bound(claim) && nodes.volumes.waits_for_consumer(claim))
        .map(|(key, claim)| nodes.volumes.waiting(key, claim))
        .collect();
    node.node.as_deref().and_then(|node| choose(&waiting, node)).unwrap_or_default()
}

/// The nodes that a local volume names (`GetLocalPersistentVolumeNodeNames`).
fn local_nodes(volume: &PersistentVolume) -> Option<BTreeSet<String>> {
    let spec = volume.spec.as_ref().filter(|spec| spec.local.is_some())?;
    let required = spec.node_affinity.as_ref()?.required.as_ref()?;
    let mut names = BTreeSet::new();
    for term in &required.node_selector_terms {
        let wanted = term.match_expressions.iter().flatten();
        let hosts = wanted.filter(|wanted| wanted.key == "kubernetes.io/hostname" && wanted.operator == "In");
        names.extend(hosts.flat_map(|wanted| wanted.values.iter().flatten().cloned()));
    }
    (!names.is_empty()).then_some(names)
}

/// Whether the claim of a generic ephemeral volume was made for another pod.
fn is_foreign(key: &Key, claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    is_ephemeral(key, pod) && claim.controller().is_none_or(|owner| owner.uid != pod.uid())
}

fn is_ephemeral(key: &Key, pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut ephemeral = volumes.filter(|volume| volume.ephemeral.is_some());
    ephemeral.any(|volume| key.name == format!("{}-{}", pod.name(), volume.name))
}

impl<'a> VolumeBinding<'a> {
    /// Sorts a claim in.
    ///
    /// # Errors
    /// Why no node can take the pod.
    fn look_at(&mut self, key: &Key, pod: &Pod, nodes: &'a Nodes) -> Result<(), String> {
        let Some(claim) = nodes.volumes.find(key) else {
            return Err(match is_ephemeral(key, pod) {
                true => format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {:?}",
                    key.name
                ),
                false => format!("persistentvolumeclaim {:?} not found", key.name),
            });
        };
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
            let volume = volume_name(claim);
            return Err(format!(
                "persistentvolumeclaim {:?} bound to non-existent persistentvolume {volume:?}",
                key.name
            ));
        }
        if claim.is_terminating() {
            return Err(format!("persistentvolumeclaim {:?} is being deleted", key.name));
        }
        if is_foreign(key, claim, pod) {
            return Err(format!("PVC {key} was not created for pod {} (pod is not owner)", Key::of(pod)));
        }
        if is_bound(claim) {
            self.bound.push(nodes.volumes.volume_of(claim));
        } else if nodes.volumes.waits_for_consumer(claim) {
            self.waiting.push(nodes.volumes.waiting(key, claim));
        } else {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        Ok(())
    }
}

impl Plugin<'_> for VolumeBinding<'_> {
    fn refuses(&self) -> Option<&str> {
        self.refusal.as_deref()
    }
    fn only(&self) -> Option<&BTreeSet<String>> {
        self.only.as_ref()
    }
    fn filter(&self, _pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(node) = node.node.as_deref() else { return Ok(()) };
        let mut reasons = Vec::new();
        if self.bound.iter().any(Option::is_none) {
            reasons.push("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)".into());
        } else if !self.bound.iter().flatten().all(|volume| is_reachable(volume, node)) {
            reasons.push("node(s) didn't match PersistentVolume's node affinity".into());
        }
        if choose(&self.waiting, node).is_none() {
            reasons.push("node(s) didn't find available persistent volumes to bind".into());
        }
        if reasons.is_empty() { Ok(()) } else { Err(Rejection { reasons, resolvable: false }) }
    }
}
