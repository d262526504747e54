//! One informer per kind for all components, started when somebody first asks for it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;

use super::cache::Seen;
use super::typed::{Typed, gvr};
use super::{Api, Cache, Client, ListOptions, informer};
use crate::api::Gvr;

struct Entry {
    cache: Box<dyn Any + Send + Sync>,
    seen: Arc<dyn Seen>,
    gvr: Gvr,
    task: JoinHandle<()>,
}

struct Inner {
    api: Arc<dyn Api>,
    /// Field selectors of resources of which not everything is wanted.
    narrowed: Vec<(Gvr, String)>,
    entries: Mutex<HashMap<TypeId, Entry>>,
}

/// Shared informers of one user. Cloning shares them; they stop when the last clone is dropped.
#[derive(Clone)]
pub struct Factory {
    inner: Arc<Inner>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for entry in self.entries.get_mut().expect(UNPOISONED).values() {
            entry.task.abort();
        }
    }
}

const UNPOISONED: &str = "no panic while the informers are held";

impl Factory {
    /// Informers that list and watch through `api`.
    pub fn new(api: Arc<dyn Api>) -> Self {
        Self::narrowed(api, Vec::new())
    }
    /// As [`Factory::new`], but of these resources only what a field selector selects.
    pub fn narrowed(api: Arc<dyn Api>, narrowed: Vec<(Gvr, String)>) -> Self {
        Self { inner: Arc::new(Inner { api, narrowed, entries: Mutex::default() }) }
    }
    /// Typed calls as the same user.
    pub fn client(&self) -> Client {
        Client::new(self.inner.api.clone())
    }
    /// The shared cache of a kind over all namespaces; the first call starts its informer (inside a tokio runtime).
    pub fn cache<T: Typed>(&self) -> Cache<T> {
        let mut entries = self.inner.entries.lock().expect(UNPOISONED);
        let entry = entries.entry(TypeId::of::<T>()).or_insert_with(|| {
            let cache = Cache::<T>::default();
            let gvr = gvr::<T>();
            let selector = self.inner.narrowed.iter().find(|(narrowed, _)| *narrowed == gvr);
            let options = ListOptions {
                field_selector: selector.map(|(_, selector)| selector.clone()).unwrap_or_default(),
                ..ListOptions::default()
            };
            let run = informer::run(self.inner.api.clone(), gvr.clone(), String::new(), options, cache.clone());
            let task = tokio::spawn(run);
            Entry { cache: Box::new(cache.clone()), seen: Arc::new(cache), gvr, task }
        });
        entry.cache.downcast_ref::<Cache<T>>().expect("entries are keyed by their type").clone()
    }
    /// The cache of a resource, if some component has asked for it.
    pub fn seen(&self, gvr: &Gvr) -> Option<Arc<dyn Seen>> {
        let entries = self.inner.entries.lock().expect(UNPOISONED);
        entries.values().find(|entry| entry.gvr == *gvr).map(|entry| entry.seen.clone())
    }
    /// Stops all informers; caches keep what they have.
    pub fn stop(&self) {
        for entry in self.inner.entries.lock().expect(UNPOISONED).values() {
            entry.task.abort();
        }
    }
}
