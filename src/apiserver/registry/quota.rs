//! What ResourceQuotas say is used: counted from the objects themselves, again whenever one goes or changes what it uses.
//!
//! This is the resource quota controller of Kubernetes. It lives here because it must not count while a write that has
//! been charged is not stored yet, which no informer can tell.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, Weak};

use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::{home, kind_prefix, prefix, storage_failed};
use crate::api::pod::Resources;
use crate::api::{Gvr, StatusResult, meta, quota};
use crate::apiserver::ApiServer;
use crate::apiserver::admission::resource_quota::{quotas, write_status};
use crate::apiserver::following::Following;
use crate::storage::{Event, Listing, News, Watch};

/// Who may write and who may count, by namespace.
pub(crate) struct Quotas {
    gates: Mutex<HashMap<String, Weak<Gate>>>,
    /// Namespaces to be counted.
    pub recount: UnboundedSender<String>,
    wanted: Mutex<Option<UnboundedReceiver<String>>>,
}

/// The gate of one namespace.
#[derive(Default)]
pub(crate) struct Gate {
    /// Held by writes that have been charged; counting waits for them.
    pub writing: Arc<tokio::sync::RwLock<()>>,
    /// Held while the quotas are charged.
    pub charging: tokio::sync::Mutex<()>,
}

impl Default for Quotas {
    fn default() -> Self {
        let (recount, wanted) = tokio::sync::mpsc::unbounded_channel();
        Self { gates: Mutex::default(), recount, wanted: Mutex::new(Some(wanted)) }
    }
}

impl Quotas {
    /// The gate of a namespace, which is the same as long as somebody has it.
    pub fn gate(&self, namespace: &str) -> Arc<Gate> {
        let mut gates = self.gates.lock().expect("no panic under this lock");
        if let Some(gate) = gates.get(namespace).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Gate::default());
        gates.insert(namespace.to_owned(), Arc::downgrade(&gate));
        gate
    }
}

impl ApiServer {
    /// Counts what the quotas of a namespace limit and writes their status, where it differs.
    pub(crate) async fn count_quotas(&self, namespace: &str) -> StatusResult<()> {
        let gate = self.quotas.gate(namespace);
        let _alone = Arc::clone(&gate.writing).write_owned().await;
        for stored in quotas(self, namespace).await? {
            let used = self.count(namespace, &stored["spec"]).await?;
            let make = |current: &Value| Ok(counted(current, &used));
            write_status(self, namespace, meta::name(&stored), make).await?;
        }
        Ok(())
    }

    /// What the objects of a namespace use of the limits of a quota.
    async fn count(&self, namespace: &str, spec: &Value) -> StatusResult<Resources> {
        let names: Vec<&String> = spec["hard"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
        let (mut used, now) = (Resources::new(), self.env.now());
        for kind in self.kinds.snapshot().all.iter().filter(|kind| kind.namespaced && kind.verbs.contains(&"list")) {
            let gvr = &kind.gvr;
            let concerned: Vec<&&String> = names.iter().filter(|name| quota::concerns(gvr, name)).collect();
            if concerned.is_empty() || home(kind) != *gvr {
                continue;
            }
            let listing = self.storage.list(&kind_prefix(kind, namespace), None, 0, 0).await.map_err(storage_failed)?;
            let mut sum = Resources::new();
            for entry in &listing.entries {
                let object = entry.value();
                if quota::is_in_scope(spec, gvr, &object) {
                    for (name, quantity) in quota::usage(gvr, &object, now) {
                        *sum.entry(name).or_default() += quantity;
                    }
                }
            }
            for name in concerned {
                // Versions of a kind share their objects: none counts twice.
                used.insert((*name).clone(), sum.get(*name).copied().unwrap_or_default());
            }
        }
        Ok(used)
    }
}

/// The quota with a status that says what is used.
fn counted(quota: &Value, used: &Resources) -> Value {
    let mut quota = quota.clone();
    let hard = quota["spec"]["hard"].clone();
    let mut of_hard = used.clone();
    of_hard.retain(|name, _| !hard[name].is_null());
    // The same amount written otherwise is no change.
    let before = crate::api::pod::resource_list(&quota["status"]["used"]);
    if quota["status"]["hard"] == hard && before == of_hard && quota["status"]["used"].is_object() {
        return quota;
    }
    if hard.is_object() {
        quota["status"]["hard"] = hard;
        quota["status"]["used"] = quota::to_value(&of_hard);
    }
    quota
}

/// Begins to follow quotas and what they count.
pub(crate) async fn follow(server: &Arc<ApiServer>) -> StatusResult<()> {
    let mut own = Following::new(server, "what quotas say is used");
    let known = Known::of(&own.add((), &prefix("", "resourcequotas", "")).await?);
    let wanted = server.quotas.wanted.lock().expect("no panic under this lock").take();
    let Some(wanted) = wanted else { return Ok(()) };
    let dirty = known.0.keys().cloned().collect();
    let follower = Follower { known, dirty, own, all: None, wanted };
    tokio::spawn(follower.run());
    Ok(())
}

/// How many quotas each namespace has.
#[derive(Default)]
struct Known(BTreeMap<String, BTreeSet<String>>);

impl Known {
    fn of(listing: &Listing) -> Self {
        let mut known = Self::default();
        listing.entries.iter().for_each(|entry| known.note(&entry.key, true));
        known
    }
    fn namespace(&self, key: &str) -> String {
        key.split('/').nth(3).unwrap_or_default().to_owned()
    }
    fn note(&mut self, key: &str, exists: bool) {
        let namespace = self.namespace(key);
        let quotas = self.0.entry(namespace.clone()).or_default();
        if exists {
            quotas.insert(key.to_owned());
        } else {
            quotas.remove(key);
        }
        if quotas.is_empty() {
            self.0.remove(&namespace);
        }
    }
}

struct Follower {
    known: Known,
    /// Namespaces to be counted.
    dirty: BTreeSet<String>,
    own: Following,
    /// Everything that happens, while there are quotas.
    all: Option<Box<dyn Watch>>,
    wanted: UnboundedReceiver<String>,
}

impl Follower {
    async fn run(mut self) {
        loop {
            while let Ok(namespace) = self.wanted.try_recv() {
                self.dirty.insert(namespace);
            }
            let Some(server) = self.own.server() else { return };
            if self.known.0.is_empty() {
                self.all = None;
            } else if self.all.is_none() {
                self.all = server.storage.watch("/", 0).await.ok();
                self.dirty.extend(self.known.0.keys().cloned());
            }
            for namespace in std::mem::take(&mut self.dirty) {
                if let Err(status) = server.count_quotas(&namespace).await {
                    tracing::warn!(%status, namespace, "cannot count what the quotas limit");
                }
            }
            drop(server);
            tokio::select! {
                told = self.own.next() => match told.map(|told| told.news) {
                    Some(News::Changes(events)) => self.of_quotas(&events),
                    Some(News::Everything(listing)) => {
                        self.known = Known::of(&listing);
                        self.dirty.extend(self.known.0.keys().cloned());
                    }
                    None => return,
                },
                events = next(&mut self.all) => match events {
                    Ok(events) => self.of_objects(&events),
                    // Too slow, or closed: what was missed is counted.
                    Err(_) => self.all = None,
                },
                namespace = self.wanted.recv() => self.dirty.extend(namespace),
            }
        }
    }

    fn of_quotas(&mut self, events: &[Event]) {
        for event in events {
            self.known.note(&event.entry.key, !event.deleted);
            if !event.deleted && crate::apiserver::admission::resource_quota::is_uncounted(&event.entry.value()) {
                self.dirty.insert(self.known.namespace(&event.entry.key));
            }
        }
    }

    fn of_objects(&mut self, events: &[Event]) {
        let Some(server) = self.own.server() else { return };
        for event in events {
            let namespace = self.known.namespace(&event.entry.key);
            if self.known.0.contains_key(&namespace) && changes_usage(event, server.env.now()) {
                self.dirty.insert(namespace);
            }
        }
    }
}

async fn next(watch: &mut Option<Box<dyn Watch>>) -> Result<Vec<Event>, crate::storage::Error> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Whether an event may lower what is used: creates have been charged before.
fn changes_usage(event: &Event, now: jiff::Timestamp) -> bool {
    let Some(previous) = &event.previous else { return false };
    let mut parts = event.entry.key.split('/').skip(1);
    let group = parts.next().unwrap_or_default().to_owned();
    let resource = parts.next().unwrap_or_default().to_owned();
    if event.deleted {
        return resource != "events" && resource != "leases";
    }
    if !["pods", "services", "persistentvolumeclaims", "resourceclaims"].contains(&resource.as_str()) {
        return false;
    }
    let group = if group == "core" { String::new() } else { group };
    let gvr = Gvr { group: group.into(), version: "v1".into(), resource: resource.into() };
    let (object, old) = (event.entry.value(), previous.value());
    let scope = |object: &Value| {
        let (spec, status) = (&object["spec"], &object["status"]);
        (
            spec["activeDeadlineSeconds"].clone(),
            spec["volumeAttributesClassName"].clone(),
            status["currentVolumeAttributesClassName"].clone(),
            status["modifyVolumeStatus"].clone(),
        )
    };
    quota::usage(&gvr, &object, now) != quota::usage(&gvr, &old, now) || scope(&object) != scope(&old)
}
