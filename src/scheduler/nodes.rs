//! All that a scheduling cycle looks at: nodes with their pods, nominations, storage, namespaces, budgets. It is kept up
//! to date event by event: there is no snapshot to copy.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use k8s_openapi::api::core::v1::Node;

use super::budgets::Budgets;
use super::node_info::NodeInfo;
use super::pod_index::{Placed, PodIndex};
use super::pod_info::{PodInfo, Term};
use super::selector::Labels;
use super::volumes::Volumes;
use super::workloads::Workloads;
use crate::client::typed::Meta;

/// The nodes and what is known beside them.
#[derive(Debug, Default)]
pub struct Nodes {
    slots: Vec<NodeInfo>,
    free: Vec<usize>,
    by_name: HashMap<String, usize>,
    /// The slots of the nodes that exist, one zone after the other; made when it is asked for.
    order: OnceLock<Vec<usize>>,
    /// Pods that have a node, or are assumed to get it soon.
    pub pods: PodIndex,
    /// Pods that wait for room that was made for them, and where.
    nominated: BTreeMap<Arc<str>, (String, Arc<PodInfo>)>,
    /// Image name -> on how many nodes.
    spread: HashMap<String, usize>,
    /// Name -> labels.
    pub namespaces: HashMap<String, Labels>,
    /// Storage.
    pub volumes: Volumes,
    /// What selects pods: Services and controllers.
    pub workloads: Workloads,
    /// PodDisruptionBudgets.
    pub budgets: Budgets,
}

/// Nodes take turns by zone (`GetZoneKey`).
fn zone(node: &Node) -> (&str, &str) {
    let label = |name: &str, beta: &str| {
        let labels = node.labels();
        labels.get(name).or_else(|| labels.get(beta)).map(String::as_str).unwrap_or_default()
    };
    (
        label("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
        label("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
    )
}

impl Nodes {
    fn order(&self) -> &[usize] {
        self.order.get_or_init(|| {
            let mut zones: BTreeMap<(&str, &str), BTreeMap<&str, usize>> = BTreeMap::new();
            for (name, slot) in &self.by_name {
                if let Some(node) = &self.slots[*slot].node {
                    zones.entry(zone(node)).or_default().insert(name, *slot);
                }
            }
            let mut zones: Vec<_> = zones.into_values().map(BTreeMap::into_values).collect();
            let mut order = Vec::new();
            while !zones.is_empty() {
                zones.retain_mut(|zone| zone.next().map(|slot| order.push(slot)).is_some());
            }
            order
        })
    }
    /// The nodes that exist.
    pub fn iter(&self) -> impl Iterator<Item = &NodeInfo> {
        self.from(0)
    }
    /// The nodes that exist, beginning with number `start` (modulo their number).
    pub fn from(&self, start: usize) -> impl Iterator<Item = &NodeInfo> {
        let order = self.order();
        let (before, after) = order.split_at(if order.is_empty() { 0 } else { start % order.len() });
        after.iter().chain(before).map(|slot| &self.slots[*slot])
    }
    /// How many nodes exist.
    pub fn len(&self) -> usize {
        self.order().len()
    }
    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.order().is_empty()
    }
    /// A node.
    pub fn get(&self, name: &str) -> Option<&NodeInfo> {
        self.known(name).filter(|info| info.node.is_some())
    }
    /// A node, or the pods of one that does not exist.
    fn known(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|slot| &self.slots[*slot])
    }
    /// The node of a pod, unless it does not exist.
    pub fn of(&self, placed: &Placed) -> Option<&NodeInfo> {
        Some(&self.slots[placed.slot]).filter(|info| info.node.is_some())
    }
    /// On how many nodes an image is.
    pub fn nodes_with(&self, image: &str) -> usize {
        self.spread.get(image).copied().unwrap_or_default()
    }
    /// The labels of a namespace.
    pub fn namespace_labels(&self, name: &str) -> &Labels {
        static NONE: Labels = Labels::new();
        self.namespaces.get(name).unwrap_or(&NONE)
    }
    /// Whether `owner`'s term means the pod.
    pub fn means(&self, term: &Term, pod: &PodInfo) -> bool {
        term.means(pod, self.namespace_labels(&pod.key.namespace))
    }
    /// The placed pods that a term means, with their nodes.
    pub fn meant<'a>(&'a self, term: &'a Term) -> impl Iterator<Item = (&'a NodeInfo, &'a Arc<PodInfo>)> {
        let wanted = |namespace: &&str| {
            term.namespaces.iter().any(|name| name == namespace)
                || term.namespace_selector.matches(self.namespace_labels(namespace))
        };
        let inside = self.pods.namespaces().filter(wanted);
        let placed = inside.flat_map(|namespace| self.pods.select(namespace, &term.selector));
        placed.filter_map(|placed| Some((self.of(placed)?, &placed.pod)))
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let info = NodeInfo { name: name.to_owned(), ..NodeInfo::default() };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = info;
                slot
            }
            None => {
                self.slots.push(info);
                self.slots.len() - 1
            }
        };
        self.by_name.insert(name.to_owned(), slot);
        slot
    }

    fn forget_if_unused(&mut self, slot: usize) {
        let info = &self.slots[slot];
        if info.node.is_none() && info.pods.is_empty() {
            self.by_name.remove(&info.name);
            self.slots[slot] = NodeInfo::default();
            self.free.push(slot);
        }
    }

    fn count_images(spread: &mut HashMap<String, usize>, info: &NodeInfo, comes: bool) {
        for image in info.images.keys() {
            let count = spread.entry(image.clone()).or_default();
            *count = if comes { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                spread.remove(image);
            }
        }
    }

    /// A node is new or has changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let slot = self.slot(node.name());
        let info = &mut self.slots[slot];
        if info.node.as_ref().is_none_or(|known| zone(known) != zone(&node)) {
            self.order.take();
        }
        Self::count_images(&mut self.spread, info, false);
        info.set_node(node);
        Self::count_images(&mut self.spread, info, true);
    }
    /// A node is gone; its pods stay known until they are gone.
    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.by_name.get(name).copied() else { return };
        self.order.take();
        let info = &mut self.slots[slot];
        Self::count_images(&mut self.spread, info, false);
        info.node = None;
        info.images = Arc::default();
        self.forget_if_unused(slot);
    }
    /// A pod is on a node, or assumed to be soon.
    pub fn add_pod(&mut self, node: &str, pod: Arc<PodInfo>) {
        self.nominated.remove(&pod.uid);
        let slot = self.slot(node);
        let before = self.pods.insert(pod.clone(), slot);
        if let Some(before) = before.filter(|before| before.slot != slot) {
            self.slots[before.slot].remove(&pod.uid);
            self.forget_if_unused(before.slot);
        }
        self.slots[slot].add(pod);
    }
    /// A pod is gone, or was not bound after all. Returns it, and where it was.
    pub fn remove_pod(&mut self, uid: &str) -> Option<(Arc<PodInfo>, String)> {
        self.nominated.remove(uid);
        let placed = self.pods.remove(uid)?;
        let info = &mut self.slots[placed.slot];
        let name = info.name.clone();
        info.remove(uid);
        self.forget_if_unused(placed.slot);
        Some((placed.pod, name))
    }
    /// Whether the pod has a place.
    pub fn has_pod(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some()
    }

    /// Room on a node was made for the pod; an empty name takes the nomination back.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str) {
        if node.is_empty() {
            self.nominated.remove(&pod.uid);
        } else {
            self.nominated.insert(pod.uid.clone(), (node.to_owned(), pod.clone()));
        }
    }
    /// Where room was made for the pod; empty: nowhere.
    pub fn nomination(&self, uid: &str) -> &str {
        self.nominated.get(uid).map(|(node, _)| node.as_str()).unwrap_or_default()
    }
    /// The pods for which room was made on a node.
    pub fn nominated_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        self.nominated.values().filter(move |(name, _)| name == node).map(|(_, pod)| pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn node(name: &str, zone: &str) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"images": [{"names": ["i:1"], "sizeBytes": 1}]}});
        Arc::new(Node::parse(&node).expect("a node"))
    }

    fn pod(name: &str) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": name, "uid": name, "namespace": "a"}, "spec": {"containers": []}});
        Arc::new(PodInfo::new(Arc::new(Pod::parse(&pod).expect("a pod"))))
    }

    #[test]
    fn zones_take_turns_and_the_start_moves_round() {
        let mut nodes = Nodes::default();
        for (name, zone) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")] {
            nodes.set_node(node(name, zone));
        }
        let names = |nodes: &Nodes, start| nodes.from(start).map(|node| node.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&nodes, 0), ["a1", "b1", "a2", "a3"]);
        assert_eq!(names(&nodes, 6), ["a2", "a3", "a1", "b1"]);
        nodes.remove_node("a1");
        assert_eq!(names(&nodes, 0), ["a2", "b1", "a3"]);
        assert_eq!(nodes.nodes_with("i:1"), 3);
    }

    #[test]
    fn a_node_is_forgotten_with_its_last_pod() {
        let mut nodes = Nodes::default();
        nodes.add_pod("x", pod("p"));
        assert!(nodes.get("x").is_none() && nodes.has_pod("p"));
        nodes.set_node(node("x", ""));
        nodes.remove_node("x");
        assert!(nodes.get("x").is_none() && nodes.has_pod("p"), "its pods stay known");
        assert_eq!(nodes.remove_pod("p").map(|(_, node)| node).as_deref(), Some("x"));
        assert!(nodes.by_name.is_empty());
        nodes.set_node(node("y", ""));
        assert_eq!(nodes.slots.len(), 1, "slots are used again");
    }

    #[test]
    fn a_nomination_ends_with_a_place() {
        let mut nodes = Nodes::default();
        nodes.nominate(&pod("p"), "x");
        assert_eq!((nodes.nomination("p"), nodes.nominated_on("x").count()), ("x", 1));
        nodes.add_pod("y", pod("p"));
        assert_eq!(nodes.nominated_on("x").count(), 0);
    }
}
