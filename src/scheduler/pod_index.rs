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

/// Pods by label key and value.
#[derive(Debug, Default)]
struct ByLabel(HashMap<String, HashMap<String, Uids>>);

impl ByLabel {
    fn get(&self, key: &str, value: &str) -> Option<&Uids> {
        self.0.get(key)?.get(value)
    }

    fn insert(&mut self, key: &str, value: &str, uid: &Arc<str>) {
        let values = self.0.entry(key.to_owned()).or_default();
        values.entry(value.to_owned()).or_default().insert(uid.clone());
    }

    fn remove(&mut self, key: &str, value: &str, uid: &str) {
        let Some(values) = self.0.get_mut(key) else { return };
        if let Some(uids) = values.get_mut(value) {
            uids.remove(uid);
            if uids.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            self.0.remove(key);
        }
    }
}

/// The pods of a namespace: all, and by their labels.
#[derive(Debug, Default)]
struct Inside {
    all: Uids,
    by_label: ByLabel,
}

/// Pods with affinity to other pods, by what their terms ask for: a label that every pod meant by a term has.
#[derive(Debug, Default)]
struct Terms {
    /// Those with a term.
    all: Uids,
    /// By such a label.
    by_label: ByLabel,
    /// Those with a term that no single label is necessary for.
    broad: Uids,
}

impl Terms {
    fn insert(&mut self, pod: &PodInfo) {
        for term in pod.terms() {
            self.all.insert(pod.uid.clone());
            match term.selector.pairs().next() {
                Some((key, value)) => self.by_label.insert(key, value, &pod.uid),
                None => drop(self.broad.insert(pod.uid.clone())),
            }
        }
    }

    fn remove(&mut self, pod: &PodInfo) {
        self.all.remove(&pod.uid);
        self.broad.remove(&pod.uid);
        for (key, value) in pod.terms().filter_map(|term| term.selector.pairs().next()) {
            self.by_label.remove(key, value, &pod.uid);
        }
    }
}

/// Pods by uid and by label.
#[derive(Debug, Default)]
pub struct PodIndex {
    pods: HashMap<Arc<str>, Placed>,
    namespaces: HashMap<String, Inside>,
    terms: Terms,
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
    /// Whether a pod has affinity or anti-affinity to other pods.
    pub fn have_affinity(&self) -> bool {
        !self.terms.all.is_empty()
    }
    /// Those whose affinity or anti-affinity may mean `pod`: all that do, and not many more.
    pub fn may_mean(&self, pod: &PodInfo) -> impl Iterator<Item = &Placed> {
        let labelled = pod.labels().iter().filter_map(|(key, value)| self.terms.by_label.get(key, value));
        let uids: HashSet<_> = labelled.chain([&self.terms.broad]).flatten().collect();
        uids.into_iter().map(|uid| &self.pods[uid])
    }
    /// The pods in a namespace that a selector selects.
    pub fn select<'a>(&'a self, namespace: &str, selector: &'a Selector) -> impl Iterator<Item = &'a Placed> {
        let uids = self.namespaces.get(namespace).and_then(|inside| {
            // The shortest list of pods that all have what the selector asks for.
            let lists = selector.pairs().map(|(key, value)| inside.by_label.get(key, value));
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
        pod.labels().iter().for_each(|(key, value)| inside.by_label.insert(key, value, &pod.uid));
        self.terms.insert(&pod);
        self.pods.insert(pod.uid.clone(), Placed { pod, slot });
        before
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<Placed> {
        let placed = self.pods.remove(uid)?;
        self.terms.remove(&placed.pod);
        let namespace = &placed.pod.key.namespace;
        if let Some(inside) = self.namespaces.get_mut(namespace) {
            inside.all.remove(uid);
            placed.pod.labels().iter().for_each(|(key, value)| inside.by_label.remove(key, value, uid));
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

    /// With a term about pods that have a label, or (without a value) about pods that have its key.
    fn asking(uid: usize, key: &str, value: &str) -> Arc<PodInfo> {
        let selector = match value {
            "" => json!({"matchExpressions": [{"key": key, "operator": "Exists"}]}),
            value => json!({"matchLabels": {key: value}}),
        };
        let term = json!({"labelSelector": selector, "topologyKey": "zone"});
        let pod = json!({"metadata": {"name": format!("p{uid}"), "uid": format!("u{uid}"), "namespace": "n0"},
            "spec": {"containers": [], "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}});
        Arc::new(PodInfo::new(Arc::new(Pod::parse(&pod).expect("a pod"))))
    }

    fn pod(uid: usize, namespace: usize, labels: &BTreeMap<String, String>) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": format!("p{uid}"), "uid": format!("u{uid}"),
            "namespace": format!("n{namespace}"), "labels": labels}, "spec": {"containers": []}});
        Arc::new(PodInfo::new(Arc::new(Pod::parse(&pod).expect("a pod"))))
    }

    proptest! {
        /// Whatever came and went, every pod whose terms mean another one is found.
        #[test]
        fn nobody_with_a_term_is_overlooked(
            steps in proptest::collection::vec((0..8usize, "[ab]", "[xy]?", any::<bool>()), 0..40),
            labels in proptest::collection::btree_map("[ab]", "[xy]", 0..3),
        ) {
            let mut index = PodIndex::default();
            let mut model: BTreeMap<usize, Arc<PodInfo>> = BTreeMap::new();
            for (uid, key, value, add) in steps {
                if add {
                    let pod = asking(uid, &key, &value);
                    index.insert(pod.clone(), 0);
                    model.insert(uid, pod);
                } else {
                    index.remove(&format!("u{uid}"));
                    model.remove(&uid);
                }
            }
            let candidate = pod(100, 0, &labels);
            let means = |pod: &PodInfo| pod.forbidden.iter().any(|term| term.means(&candidate, &BTreeMap::new()));
            let mut found: Vec<_> = index.may_mean(&candidate).filter(|p| means(&p.pod)).map(|p| p.pod.uid.clone()).collect();
            found.sort();
            let mut scanned: Vec<_> = model.values().filter(|pod| means(pod)).map(|pod| pod.uid.clone()).collect();
            scanned.sort();
            prop_assert_eq!(found, scanned);
            prop_assert_eq!(index.have_affinity(), !model.is_empty());
        }

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
