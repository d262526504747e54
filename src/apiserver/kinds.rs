//! The kinds that are served, by group, version and resource: the built-in ones and those of CustomResourceDefinitions.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use tokio::sync::watch;

use crate::api::Kind;

type Key = (String, String, String);

/// All kinds in discovery's order.
pub type Served = Arc<Vec<Arc<Kind>>>;

/// A table that changes while requests read it.
pub(crate) struct Kinds {
    table: RwLock<Arc<Table>>,
    served: watch::Sender<Served>,
}

#[derive(Default)]
pub(crate) struct Table {
    /// In discovery's order.
    pub all: Served,
    by_resource: HashMap<Key, Arc<Kind>>,
}

impl Kinds {
    pub fn built_in() -> Self {
        let table = Table::new(crate::api::kinds::all());
        let served = watch::Sender::new(Arc::clone(&table.all));
        Self { table: RwLock::new(Arc::new(table)), served }
    }

    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<Arc<Kind>> {
        let table = self.snapshot();
        table.by_resource.get(&(group.to_owned(), version.to_owned(), resource.to_owned())).cloned()
    }

    pub fn snapshot(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().expect("no panic under this lock"))
    }

    /// Tells every change.
    pub fn subscribe(&self) -> watch::Receiver<Served> {
        self.served.subscribe()
    }

    /// Replaces the custom resources; nothing happens when they are the same. Built-in kinds cannot be replaced.
    pub fn set_custom(&self, custom: impl Iterator<Item = Arc<Kind>>) {
        let old = self.snapshot();
        let mut all: Vec<Arc<Kind>> =
            old.all.iter().filter(|kind| kind.strategy.custom().is_none()).map(Arc::clone).collect();
        let taken: Vec<Key> = all.iter().map(|kind| key(kind)).collect();
        all.extend(custom.filter(|kind| !taken.contains(&key(kind))));
        if all.len() == old.all.len() && all.iter().zip(old.all.iter()).all(|(a, b)| Arc::ptr_eq(a, b)) {
            return;
        }
        let table = Arc::new(Table::new(all));
        let served = Arc::clone(&table.all);
        *self.table.write().expect("no panic under this lock") = table;
        self.served.send_replace(served);
    }
}

impl Table {
    fn new(all: Vec<Arc<Kind>>) -> Self {
        let by_resource = all.iter().map(|kind| (key(kind), Arc::clone(kind))).collect();
        Self { all: Arc::new(all), by_resource }
    }

    pub fn has_group_version(&self, group: &str, version: &str) -> bool {
        self.all.iter().any(|kind| kind.gvr.group == group && kind.gvr.version == version)
    }
}

fn key(kind: &Kind) -> Key {
    (kind.gvr.group.to_string(), kind.gvr.version.to_string(), kind.gvr.resource.to_string())
}
