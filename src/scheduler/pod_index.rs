//! Pods that have a node, by uid and by label, so that affinity and topology spread need not look at all of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::pod_info::PodInfo;
use super::selector::Selector;

/// A pod and where it is.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// The slot of its node in `Nodes`.
    pub(super) slot: usize,
}

type Uids = HashSet<Arc<str>>;

/// The pods of a namespace: all, and by label key and value.
#[derive(Debug, Default)]
struct Labelled {
    all: Uids,
    by_label: HashMap<String, HashMap<String, Uids>>,
}

/// Pods by uid and by label.
#[derive(Debug, Default)]
pub struct PodIndex {
    pods: HashMap<Arc<str>, Placed>,
    namespaces: HashMap<String, Labelled>,
    /// Those with affinity to other pods.
    with_affinity: Uids,
}

impl PodIndex {
    /// A pod.
    pub fn get(&self, uid: &str) -> Option<&Placed> {
        self.pods.get(uid)
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.pods.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Placed> {
        self.pods.values()
    }
    /// Those with affinity or anti-affinity to other pods.
    pub fn with_affinity(&self) -> impl Iterator<Item = &Placed> {
        self.with_affinity.iter().map(|uid| &self.pods[uid])
    }
    /// The pods in a namespace that a selector selects.
    pub fn select<'a>(&'a self, namespace: &str, selector: &'a Selector) -> impl Iterator<Item = &'a Placed> {
        let uids = self.namespaces.get(namespace).and_then(|inside| {
            // The shortest list of pods that all have what the selector asks for.
            let lists = selector.pairs().map(|(key, value)| inside.by_label.get(key).and_then(|by| by.get(value)));
            lists.min_by_key(|list| list.map_or(0, HashSet::len)).unwrap_or(Some(&inside.all))
        });
        let pods = uids.into_iter().flatten().map(|uid| &self.pods[uid]);
        pods.filter(|placed| selector.matches(placed.pod.labels()))
    }
    /// The namespaces that have pods.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(String::as_str)
    }

    pub(super) fn insert(&mut self, pod: Arc<PodInfo>, slot: usize) -> Option<Placed> {
        let before = self.remove(&pod.uid);
        let inside = self.namespaces.entry(pod.key.namespace.clone()).or_default();
        inside.all.insert(pod.uid.clone());
        for (key, value) in pod.labels() {
            let values = inside.by_label.entry(key.clone()).or_default();
            values.entry(value.clone()).or_default().insert(pod.uid.clone());
        }
        if pod.has_pod_affinity() {
            self.with_affinity.insert(pod.uid.clone());
        }
        self.pods.insert(pod.uid.clone(), Placed { pod, slot });
        before
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<Placed> {
        let placed = self.pods.remove(uid)?;
        self.with_affinity.remove(uid);
        let namespace = &placed.pod.key.namespace;
        if let Some(inside) = self.namespaces.get_mut(namespace) {
            inside.all.remove(uid);
            for (key, value) in placed.pod.labels() {
                let Some(values) = inside.by_label.get_mut(key) else { continue };
                if let Some(uids) = values.get_mut(value) {
                    uids.remove(uid);
                    if uids.is_empty() {
                        values.remove(value);
                    }
                }
                if values.is_empty() {
                    inside.by_label.remove(key);
                }
            }
            if inside.all.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
        Some(placed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use k8s_openapi::api::core::v1::Pod;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn pod(uid: usize, namespace: usize, labels: &BTreeMap<String, String>) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": format!("p{uid}"), "uid": format!("u{uid}"),
            "namespace": format!("n{namespace}"), "labels": labels}, "spec": {"containers": []}});
        Arc::new(PodInfo::new(Arc::new(Pod::parse(&pod).expect("a pod"))))
    }

    proptest! {
        /// Whatever came and went, a selector finds what looking at every pod would find.
        #[test]
        fn selecting_finds_what_a_scan_finds(
            steps in proptest::collection::vec((0..8usize, 0..2usize, proptest::collection::btree_map("[ab]", "[xy]", 0..3), any::<bool>()), 0..40),
            wanted in proptest::collection::btree_map("[ab]", "[xy]", 0..3),
        ) {
            let mut index = PodIndex::default();
            let mut model: BTreeMap<usize, Arc<PodInfo>> = BTreeMap::new();
            for (uid, namespace, labels, add) in steps {
                if add {
                    let pod = pod(uid, namespace, &labels);
                    index.insert(pod.clone(), 0);
                    model.insert(uid, pod);
                } else {
                    index.remove(&format!("u{uid}"));
                    model.remove(&uid);
                }
            }
            let selector = Selector::of_labels(&wanted);
            let mut found: Vec<_> = index.select("n0", &selector).map(|placed| placed.pod.uid.clone()).collect();
            found.sort();
            let scanned = model.values().filter(|pod| pod.key.namespace == "n0" && selector.matches(pod.labels()));
            let mut scanned: Vec<_> = scanned.map(|pod| pod.uid.clone()).collect();
            scanned.sort();
            prop_assert_eq!(found, scanned);
            prop_assert_eq!(index.is_empty(), model.is_empty());
            prop_assert_eq!(index.namespaces().count() == 0, model.is_empty());
        }
    }
}
