//! The objects of one kind as a component has seen them: lookups, indexes and notifications. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::watch;

use super::typed::{Meta, Object};

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// A key.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
    /// The key of an object.
    pub fn of<T: Object>(object: &T) -> Self {
        Self::new(object.namespace(), object.name())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// What happened to an object: `new` without `old` is an add, `old` without `new` a delete.
#[derive(Debug)]
pub struct Change<T> {
    /// The object before; `None` when it is new here.
    pub old: Option<Arc<T>>,
    /// The object now; `None` when it was deleted.
    pub new: Option<Arc<T>>,
}

impl<T> Clone for Change<T> {
    fn clone(&self) -> Self {
        Self { old: self.old.clone(), new: self.new.clone() }
    }
}

impl<T> Change<T> {
    /// The object, the newer state where there are two.
    pub fn object(&self) -> &Arc<T> {
        self.new.as_ref().or(self.old.as_ref()).expect("a change has a state before or after it")
    }
}

type Handler<T> = Box<dyn Fn(&Change<T>) + Send + Sync>;

struct State<T> {
    objects: BTreeMap<Key, Arc<T>>,
    /// Owner uid -> keys of the objects that name it as an owner.
    owners: HashMap<String, BTreeSet<Key>>,
    /// Keys of the objects that no controller owns, once somebody has asked for them.
    free: Option<BTreeSet<Key>>,
    synced: bool,
}

struct Shared<T> {
    state: RwLock<State<T>>,
    /// Held while a change is applied and told, so that a new subscriber misses nothing and sees nothing twice.
    handlers: Mutex<Vec<Handler<T>>>,
    /// Who wants to know when the first list has arrived.
    first_list: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
    seen: watch::Sender<u64>,
}

/// The cached objects of one kind. Cloning shares the cache.
pub struct Cache<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Cache<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T: Object> Default for Cache<T> {
    fn default() -> Self {
        let state = State { objects: BTreeMap::new(), owners: HashMap::new(), free: None, synced: false };
        let (state, seen) = (RwLock::new(state), watch::Sender::new(0));
        Self { shared: Arc::new(Shared { state, handlers: Mutex::default(), first_list: Mutex::default(), seen }) }
    }
}

impl<T: Object> State<T> {
    fn set(&mut self, key: Key, new: Option<Arc<T>>) -> Option<Arc<T>> {
        let old = match new.clone() {
            Some(object) => self.objects.insert(key.clone(), object),
            None => self.objects.remove(&key),
        };
        for owner in old.iter().flat_map(|object| object.owners()) {
            if let Some(keys) = self.owners.get_mut(&owner.uid) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.owners.remove(&owner.uid);
                }
            }
        }
        for owner in new.iter().flat_map(|object| object.owners()) {
            self.owners.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
        if let Some(free) = &mut self.free {
            match new.filter(|object| object.controller().is_none()) {
                Some(_) => free.insert(key),
                None => free.remove(&key),
            };
        }
        old
    }

    fn index_free(&mut self) {
        if self.free.is_none() {
            let free = self.objects.iter().filter(|(_, object)| object.controller().is_none());
            self.free = Some(free.map(|(key, _)| key.clone()).collect());
        }
    }
}

const UNPOISONED: &str = "no panic while the cache is held";

impl<T: Object> Cache<T> {
    /// The object of a key.
    pub fn get(&self, key: &Key) -> Option<Arc<T>> {
        self.shared.state.read().expect(UNPOISONED).objects.get(key).cloned()
    }
    /// All objects in the order of their keys.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.shared.state.read().expect(UNPOISONED).objects.values().cloned().collect()
    }
    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.shared.state.read().expect(UNPOISONED).objects.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The objects of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        self.select(namespace, |_| true)
    }
    /// The objects of a namespace that `want` accepts (a label selector, for example).
    pub fn select(&self, namespace: &str, want: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let state = self.shared.state.read().expect(UNPOISONED);
        let from = Key::new(namespace, "");
        let inside = state.objects.range(from..).take_while(|(key, _)| key.namespace == namespace);
        inside.filter(|(_, object)| want(object)).map(|(_, object)| object.clone()).collect()
    }
    /// The objects that name `uid` as an owner.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<T>> {
        let state = self.shared.state.read().expect(UNPOISONED);
        let keys = state.owners.get(uid).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key).cloned()).collect()
    }
    /// What a controller with this uid may claim: the objects that name it as an owner, and those of its namespace that no
    /// controller owns.
    pub fn claimable(&self, namespace: &str, uid: &str) -> Vec<Arc<T>> {
        let mut state = self.shared.state.read().expect(UNPOISONED);
        if state.free.is_none() {
            drop(state);
            self.shared.state.write().expect(UNPOISONED).index_free();
            state = self.shared.state.read().expect(UNPOISONED);
        }
        let own = state.owners.get(uid);
        let from = Key::new(namespace, "");
        let free = state.free.iter().flat_map(|free| free.range(from.clone()..));
        let free =
            free.take_while(|key| key.namespace == namespace).filter(|key| own.is_none_or(|own| !own.contains(key)));
        own.into_iter().flatten().chain(free).filter_map(|key| state.objects.get(key).cloned()).collect()
    }
    /// Whether the first list has arrived.
    pub fn is_synced(&self) -> bool {
        self.shared.state.read().expect(UNPOISONED).synced
    }
    /// Waits until the first list has arrived.
    pub async fn synced(&self) {
        let mut seen = self.shared.seen.subscribe();
        while !self.is_synced() && seen.changed().await.is_ok() {}
    }
    /// Calls `handler` when the first list has arrived and been told; at once if it has arrived.
    pub fn on_synced(&self, handler: impl FnOnce() + Send + 'static) {
        let mut first_list = self.shared.first_list.lock().expect(UNPOISONED);
        if !self.is_synced() {
            return first_list.push(Box::new(handler));
        }
        drop(first_list);
        handler();
    }
    /// The newest resourceVersion that this cache has seen.
    pub fn seen(&self) -> u64 {
        *self.shared.seen.borrow()
    }
    /// Wakes at everything that the cache sees.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.shared.seen.subscribe()
    }

    /// Calls `handler` for every object that is here (as an add) and for every change from now on, in order.
    /// It runs where the change is applied: it must be quick and must not change or subscribe to this cache.
    pub fn subscribe(&self, handler: impl Fn(&Change<T>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock().expect(UNPOISONED);
        for object in self.list() {
            handler(&Change { old: None, new: Some(object) });
        }
        handlers.push(Box::new(handler));
    }
    /// The same as a channel, for components with a loop of their own.
    pub fn changes(&self) -> tokio::sync::mpsc::UnboundedReceiver<Change<T>> {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        // The receiver may be gone: then nobody wants the change.
        self.subscribe(move |change| drop(sender.send(change.clone())));
        receiver
    }

    /// An object as it is now. Older states than the one that is here are dropped.
    pub fn put(&self, object: Arc<T>) {
        let handlers = self.shared.handlers.lock().expect(UNPOISONED);
        let key = Key::of(&*object);
        let revision = object.revision();
        let old = {
            let mut state = self.shared.state.write().expect(UNPOISONED);
            if state.objects.get(&key).is_some_and(|old| old.revision() > revision && old.uid() == object.uid()) {
                return;
            }
            state.set(key, Some(object.clone()))
        };
        let change = Change { old, new: Some(object) };
        handlers.iter().for_each(|handler| handler(&change));
        self.saw(revision);
    }
    /// An object is gone; `last` is its last state.
    pub fn remove(&self, last: &T) {
        let handlers = self.shared.handlers.lock().expect(UNPOISONED);
        let old = self.shared.state.write().expect(UNPOISONED).set(Key::of(last), None);
        if old.is_some() {
            let change = Change { old, new: None };
            handlers.iter().for_each(|handler| handler(&change));
        }
        self.saw(last.revision());
    }
    /// A whole list as of `revision`: tells the differences.
    pub fn replace(&self, objects: Vec<Arc<T>>, revision: u64) {
        let handlers = self.shared.handlers.lock().expect(UNPOISONED);
        let mut changes = Vec::new();
        {
            let mut state = self.shared.state.write().expect(UNPOISONED);
            let keys: BTreeSet<Key> = objects.iter().map(|object| Key::of(&**object)).collect();
            let gone: Vec<Key> = state.objects.keys().filter(|key| !keys.contains(key)).cloned().collect();
            for key in gone {
                let old = state.set(key, None);
                changes.push(Change { old, new: None });
            }
            for object in objects {
                let key = Key::of(&*object);
                if state.objects.get(&key).is_some_and(|old| old.revision() == object.revision()) {
                    continue;
                }
                let old = state.set(key, Some(object.clone()));
                changes.push(Change { old, new: Some(object) });
            }
            state.synced = true;
        }
        for change in &changes {
            handlers.iter().for_each(|handler| handler(change));
        }
        let first_list = std::mem::take(&mut *self.shared.first_list.lock().expect(UNPOISONED));
        first_list.into_iter().for_each(|handler| handler());
        // Even an empty list is news: `synced` waits for it.
        self.shared.seen.send_modify(|seen| *seen = revision.max(*seen));
    }
    /// Nothing happened up to `revision` (a bookmark).
    pub fn saw(&self, revision: u64) {
        self.shared.seen.send_if_modified(|seen| {
            let news = revision > *seen;
            *seen = revision.max(*seen);
            news
        });
    }
}

/// What the hold rule asks of a cache of any kind.
pub trait Seen: Send + Sync {
    /// The newest resourceVersion that the cache has seen.
    fn seen(&self) -> u64;
    /// Whether the object with this uid is gone or marked as terminating.
    fn is_leaving(&self, key: &Key, uid: &str) -> bool;
    /// Wakes at everything that the cache sees.
    fn progress(&self) -> watch::Receiver<u64>;
}

impl<T: Object> Seen for Cache<T> {
    fn seen(&self) -> u64 {
        Cache::seen(self)
    }
    fn is_leaving(&self, key: &Key, uid: &str) -> bool {
        self.get(key).is_none_or(|object| object.uid() != uid || object.is_terminating())
    }
    fn progress(&self) -> watch::Receiver<u64> {
        Cache::progress(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(name: &str, revision: u64, owner: &str) -> Arc<Pod> {
        let mut value =
            json!({"metadata": {"name": name, "namespace": "a", "uid": name, "resourceVersion": revision.to_string()}});
        if !owner.is_empty() {
            value["metadata"]["ownerReferences"] =
                json!([{"uid": owner, "name": "o", "kind": "ReplicaSet", "apiVersion": "apps/v1", "controller": true}]);
        }
        Arc::new(Pod::parse(&value).expect("a pod"))
    }

    #[test]
    fn a_subscriber_sees_adds_changes_and_deletes_once_and_in_order() {
        let cache = Cache::<Pod>::default();
        cache.put(pod("one", 1, ""));
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = told.clone();
        cache.subscribe(move |change| {
            let entry = (change.object().name().to_owned(), change.old.is_some(), change.new.is_some());
            log.lock().expect(UNPOISONED).push(entry);
        });
        cache.put(pod("one", 3, "x"));
        cache.put(pod("one", 2, "")); // late news about an older state
        cache.replace(vec![pod("two", 4, "x")], 5);
        let told = told.lock().expect(UNPOISONED).clone();
        let expected = [("one", false, true), ("one", true, true), ("one", true, false), ("two", false, true)];
        assert_eq!(told, expected.map(|(name, old, new)| (name.to_owned(), old, new)));
        assert_eq!(cache.seen(), 5);
        assert_eq!(cache.owned_by("x").len(), 1);
        assert!(cache.owned_by("y").is_empty() && cache.in_namespace("b").is_empty());
    }

    #[test]
    fn a_controller_may_claim_its_own_and_what_nobody_controls() {
        let cache = Cache::<Pod>::default();
        cache.put(pod("mine", 1, "x"));
        cache.put(pod("others", 2, "y"));
        cache.put(pod("free", 3, ""));
        let claimable = |namespace: &str| {
            let found = cache.claimable(namespace, "x");
            found.iter().map(|pod| pod.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(claimable("a"), ["mine", "free"]);
        // Only its own come from elsewhere; an owner is in one namespace.
        assert_eq!(claimable("b"), ["mine"]);
        cache.put(pod("others", 4, ""));
        cache.put(pod("free", 5, "y"));
        assert_eq!(claimable("a"), ["mine", "others"]);
        cache.remove(&pod("others", 6, ""));
        cache.put(pod("mine", 7, ""));
        assert_eq!(claimable("a"), ["mine"]);
    }
}
