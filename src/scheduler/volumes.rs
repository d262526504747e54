//! Claims, volumes and storage classes as the scheduler has seen them, and what it has promised but not yet written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, TopologySelectorTerm};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::client::cache::{Change, Key};
use crate::client::typed::Meta;
use crate::client::{placement, selector};

const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// Who chose a volume's claim, or a claim's volume: not the one who made it.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// The node that the first consumer of a claim goes to.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// What becomes of a claim that waited for its first consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It gets a volume that exists.
    Take {
        /// The claim.
        claim: Key,
        /// The volume.
        volume: String,
    },
    /// A volume is made for it.
    Provision {
        /// The claim.
        claim: Key,
    },
}

/// What is known of storage.
#[derive(Debug, Default)]
pub struct Volumes {
    claims: HashMap<Key, Arc<PersistentVolumeClaim>>,
    volumes: BTreeMap<String, Arc<PersistentVolume>>,
    classes: HashMap<String, Arc<StorageClass>>,
    /// Volumes that were promised to claims.
    promised: HashMap<String, Key>,
    /// Claims whose volume will be made on a node.
    placed: HashMap<Key, String>,
}

/// The claims that a pod uses, generic ephemeral ones included.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = Key> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let name = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => claim.claim_name.clone(),
            (None, Some(_)) => format!("{}-{}", pod.name(), volume.name),
            (None, None) => return None,
        };
        Some(Key::new(pod.namespace(), name))
    })
}

/// `spec.volumeName`; empty when absent.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// Whether the claim has its volume.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.annotation(BIND_COMPLETED).is_some() && !volume_name(claim).is_empty()
}

fn bytes(list: Option<&BTreeMap<String, Quantity>>) -> i64 {
    let amount = list.and_then(|list| list.get("storage")).and_then(|quantity| quantity.0.parse().ok());
    amount.map_or(0, |amount: crate::api::quantity::Quantity| amount.value())
}

/// The size of a volume in bytes.
fn capacity(volume: &PersistentVolume) -> i64 {
    bytes(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

/// Whether the volume can be used on the node.
pub fn is_reachable(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    let matches = |term| placement::term_matches(term, node.labels(), node.name());
    required.is_none_or(|wanted| wanted.node_selector_terms.iter().any(matches))
}

/// Whether the volume is free and what the claim asks for (`FindMatchingVolume`).
fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(own), Some(wanted)) = (&volume.spec, &claim.spec) else { return false };
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
    let class = |class: &Option<String>| class.clone().unwrap_or_default();
    let modes = own.access_modes.as_deref().unwrap_or_default();
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    !volume.is_terminating()
        && own.claim_ref.is_none()
        && phase == Some("Available")
        && mode(&own.volume_mode) == mode(&wanted.volume_mode)
        && class(&own.storage_class_name) == class(&wanted.storage_class_name)
        && class(&own.volume_attributes_class_name) == class(&wanted.volume_attributes_class_name)
        && wanted.access_modes.iter().flatten().all(|mode| modes.contains(mode))
        && wanted.selector.as_ref().is_none_or(|wanted| selector::matches(Some(wanted), volume.labels()))
        && capacity(volume) >= bytes(wanted.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
}

/// Whether the volume was made for this claim.
fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        reference.namespace.as_deref() == Some(claim.namespace())
            && reference.name.as_deref() == Some(claim.name())
            && reference.uid.as_deref().is_none_or(|uid| uid.is_empty() || uid == claim.uid())
    })
}

/// `allowedTopologies` of a class (`MatchTopologySelectorTerms`).
fn allows(terms: Option<&Vec<TopologySelectorTerm>>, node: &Node) -> bool {
    let Some(terms) = terms.filter(|terms| !terms.is_empty()) else { return true };
    terms.iter().any(|term| {
        let mut wanted = term.match_label_expressions.iter().flatten();
        wanted.all(|wanted| node.labels().get(&wanted.key).is_some_and(|value| wanted.values.contains(value)))
    })
}

/// A claim that waits for its first consumer, and what could become of it.
pub struct Waiting<'a> {
    key: Key,
    claim: &'a PersistentVolumeClaim,
    /// Volumes that suit, the smallest first; those that were made for the claim before all others.
    candidates: Vec<&'a Arc<PersistentVolume>>,
    class: Option<&'a StorageClass>,
    /// Where a volume is being made for it.
    placed: Option<&'a str>,
}

impl Volumes {
    /// A claim has changed.
    pub fn claim(&mut self, change: &Change<PersistentVolumeClaim>) {
        let key = Key::of(&**change.object());
        if change.new.as_ref().is_none_or(|claim| is_bound(claim)) {
            self.placed.remove(&key);
            self.promised.retain(|_, claim| *claim != key);
        }
        set(&mut self.claims, key, change);
    }
    /// A volume has changed.
    pub fn volume(&mut self, change: &Change<PersistentVolume>) {
        let name = change.object().name().to_owned();
        match &change.new {
            Some(volume) => drop(self.volumes.insert(name, volume.clone())),
            None => {
                self.promised.remove(&name);
                self.volumes.remove(&name);
            }
        }
    }
    /// A storage class has changed.
    pub fn class(&mut self, change: &Change<StorageClass>) {
        set(&mut self.classes, change.object().name().to_owned(), change);
    }
    /// A claim.
    pub fn find(&self, key: &Key) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(key)
    }
    /// The volume of a bound claim.
    pub fn volume_of(&self, claim: &PersistentVolumeClaim) -> Option<&Arc<PersistentVolume>> {
        self.volumes.get(volume_name(claim))
    }
    /// A volume.
    pub fn volume_named(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.volumes.get(name)
    }
    fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<&StorageClass> {
        let name = claim.spec.as_ref()?.storage_class_name.as_deref()?;
        self.classes.get(name).map(|class| &**class)
    }
    /// Whether the claim is bound only when its first consumer has a node, and has no volume chosen for it.
    pub fn waits_for_consumer(&self, claim: &PersistentVolumeClaim) -> bool {
        let mode = self.class_of(claim).and_then(|class| class.volume_binding_mode.as_deref());
        mode == Some("WaitForFirstConsumer") && volume_name(claim).is_empty()
    }
    /// What could become of a claim that waits.
    pub fn waiting<'a>(&'a self, key: &Key, claim: &'a PersistentVolumeClaim) -> Waiting<'a> {
        let free = |volume: &&Arc<PersistentVolume>| {
            let own = is_for(volume, claim);
            let promised = self.promised.get(volume.name()).is_some_and(|other| other != key);
            !promised && (own || suits(volume, claim))
        };
        let mut candidates: Vec<_> = self.volumes.values().filter(free).collect();
        candidates.sort_by_key(|volume| (!is_for(volume, claim), capacity(volume)));
        let placed = claim.annotation(SELECTED_NODE).or(self.placed.get(key).map(String::as_str));
        Waiting { key: key.clone(), claim, candidates, class: self.class_of(claim), placed }
    }
    /// Remembers choices until they are written, so that nobody else makes the same.
    pub fn promise(&mut self, choices: &[Choice], node: &str) {
        for choice in choices {
            match choice {
                Choice::Take { claim, volume } => drop(self.promised.insert(volume.clone(), claim.clone())),
                Choice::Provision { claim } => drop(self.placed.insert(claim.clone(), node.to_owned())),
            }
        }
    }
    /// Takes promises back.
    pub fn forget(&mut self, choices: &[Choice]) {
        for choice in choices {
            match choice {
                Choice::Take { volume, .. } => drop(self.promised.remove(volume)),
                Choice::Provision { claim } => drop(self.placed.remove(claim)),
            }
        }
    }
}

/// What becomes of all the claims of a pod on a node; `None`: they cannot be bound there (`FindPodVolumes`).
pub fn choose(waiting: &[Waiting<'_>], node: &Node) -> Option<Vec<Choice>> {
    let mut taken: Vec<&str> = Vec::new();
    let mut choices = Vec::new();
    for claim in waiting {
        if claim.placed.is_some_and(|placed| placed != node.name()) {
            return None;
        }
        let mut candidates = claim.candidates.iter().filter(|_| claim.placed.is_none());
        let own = candidates.clone().find(|volume| is_for(volume, claim.claim));
        // A volume that was made for the claim is the only one that comes into question.
        let found = match own {
            Some(own) if !is_reachable(own, node) => None,
            Some(own) => Some(own),
            None => candidates.find(|volume| !taken.contains(&volume.name()) && is_reachable(volume, node)),
        };
        if let Some(volume) = found {
            taken.push(volume.name());
            choices.push(Choice::Take { claim: claim.key.clone(), volume: volume.name().to_owned() });
            continue;
        }
        let class = claim.class.filter(|class| !["", NO_PROVISIONER].contains(&class.provisioner.as_str()))?;
        if own.is_some() || !allows(class.allowed_topologies.as_ref(), node) {
            return None;
        }
        choices.push(Choice::Provision { claim: claim.key.clone() });
    }
    Some(choices)
}

fn set<K: std::hash::Hash + Eq, T>(map: &mut HashMap<K, Arc<T>>, key: K, change: &Change<T>) {
    match &change.new {
        Some(object) => drop(map.insert(key, object.clone())),
        None => drop(map.remove(&key)),
    }
}
