//! The objects that pods of this node use: ConfigMaps and Secrets by one watch each, shared by pods, opened with the first use
//! and closed with the last; claims and volumes by asking.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::sync::watch;

use crate::api::{Gvr, meta};
use crate::client::{Api, ListOptions, WatchEvent, pause};

/// Resource, namespace (empty for cluster-scoped ones) and name.
type Key = (&'static str, String, String);
/// Called when an object that a pod uses changed.
pub type Changed = Arc<dyn Fn() + Send + Sync>;
/// `None`: not known yet. `Some(None)`: there is no such object.
type Seen = Option<Option<Arc<Value>>>;

/// The waits after consecutive failures begin here and double.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

struct Entry {
    seen: watch::Receiver<Seen>,
    users: Arc<Mutex<HashMap<String, Changed>>>,
    task: tokio::task::AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The cache.
pub struct Objects {
    api: Arc<dyn Api>,
    entries: Mutex<HashMap<Key, Entry>>,
}

impl Objects {
    /// An empty cache.
    pub fn new(api: Arc<dyn Api>) -> Self {
        Self { api, entries: Mutex::default() }
    }

    /// The object as it is now; from then on `changed` is called for every change until [`Objects::release`].
    pub async fn get(
        &self,
        resource: &'static str,
        namespace: &str,
        name: &str,
        user: &str,
        changed: &Changed,
    ) -> Option<Arc<Value>> {
        let namespace = if resource == "persistentvolumes" { "" } else { namespace };
        let key = (resource, namespace.to_owned(), name.to_owned());
        let mut seen = {
            let mut entries = self.entries.lock().expect("no panic while held");
            let entry = entries.entry(key.clone()).or_insert_with(|| follow(self.api.clone(), key));
            entry.users.lock().expect("no panic while held").insert(user.to_owned(), changed.clone());
            entry.seen.clone()
        };
        let known = seen.wait_for(Option::is_some).await.ok()?;
        known.clone().flatten()
    }

    /// Forgets a user; objects without users are watched no longer.
    pub fn release(&self, user: &str) {
        let mut entries = self.entries.lock().expect("no panic while held");
        entries.retain(|_, entry| {
            let mut users = entry.users.lock().expect("no panic while held");
            users.remove(user);
            !users.is_empty()
        });
    }
}

fn follow(api: Arc<dyn Api>, key: Key) -> Entry {
    let (sender, seen) = watch::channel(None);
    let users: Arc<Mutex<HashMap<String, Changed>>> = Arc::default();
    let tell = Tell { sender, users: users.clone() };
    let task = match key.0 {
        "persistentvolumeclaims" | "persistentvolumes" => tokio::spawn(ask(api, key, tell)),
        _ => tokio::spawn(run(api, key, tell)),
    };
    Entry { seen, users, task: task.abort_handle() }
}

/// Tells those who use an object of its state.
struct Tell {
    sender: watch::Sender<Seen>,
    users: Arc<Mutex<HashMap<String, Changed>>>,
}

impl Tell {
    fn of(&self, object: Option<Arc<Value>>) {
        let first = self.sender.borrow().is_none();
        let version = |o: &Option<Arc<Value>>| o.as_ref().map(|o| meta::resource_version(o).to_owned());
        let same = self.sender.borrow().as_ref().is_some_and(|old| version(old) == version(&object));
        if same {
            return;
        }
        self.sender.send_replace(Some(object));
        if !first {
            let users: Vec<Changed> = self.users.lock().expect("no panic while held").values().cloned().collect();
            users.iter().for_each(|changed| changed());
        }
    }
}

/// Claims and volumes: a node may get them, but not watch them (see the node authorizer). They are asked for until they say
/// where the volume is; a pod comes to a node when its claims are bound, so that is usually at once.
async fn ask(api: Arc<dyn Api>, key: Key, tell: Tell) {
    let (resource, namespace, name) = key;
    let gvr = Gvr::new("", "v1", resource);
    let mut wait = FIRST_WAIT;
    loop {
        match api.get(&gvr, &namespace, &name).await {
            Ok(object) => {
                let is_settled = resource == "persistentvolumes" || object["status"]["phase"] == "Bound";
                tell.of(Some(object));
                if is_settled {
                    return;
                }
            }
            Err(error) if error.is_not_found() => tell.of(None),
            Err(error) => {
                tracing::warn!(%error, resource, namespace, name, "an object could not be read");
                // Whoever waits has to say so: it may never be this node's to read.
                if error.code == 403 {
                    tell.of(None);
                }
            }
        }
        pause(&*api, wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

async fn run(api: Arc<dyn Api>, key: Key, tell: Tell) {
    let (resource, namespace, name) = key;
    let gvr = Gvr::new("", "v1", resource);
    let tell = |object| tell.of(object);
    let mut options = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
    let mut wait = FIRST_WAIT;
    loop {
        match api.list(&gvr, &namespace, &ListOptions { resource_version: String::new(), ..options.clone() }).await {
            Ok(list) => {
                tell(list.items.into_iter().find(|o| meta::name(o) == name));
                options.resource_version = list.resource_version;
            }
            Err(error) => {
                tracing::warn!(%error, resource, namespace, name, "an object could not be read");
                pause(&*api, wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
                continue;
            }
        }
        let Ok(mut events) = api.watch(&gvr, &namespace, &options).await else {
            pause(&*api, wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
            continue;
        };
        let mut heard = false;
        while let Some(Ok(event)) = events.next().await {
            heard = true;
            wait = FIRST_WAIT;
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) if meta::name(&object) == name => {
                    tell(Some(object));
                }
                WatchEvent::Deleted(object) if meta::name(&object) == name => tell(None),
                _ => {}
            }
        }
        if !heard {
            // A server that closes ends each watch at once.
            pause(&*api, wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}
