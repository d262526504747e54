//! An API server in memory for simulations and unit tests: revisions, generations, conflicts, selectors, watches,
//! graceful deletion, finalizers; and hooks that make calls fail. No defaults, no validation, no admission.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Api, DeleteOptions, Key, List, ListOptions, Patch, WatchEvent};
use crate::api::kinds::gvr::SUBJECT_ACCESS_REVIEWS;
use crate::api::{Gvr, Status, StatusResult, meta};
use crate::env::{Env, rfc3339};

/// A change, as [`FakeApi::log_since`] has it.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The revision of the change.
    pub revision: u64,
    /// The resource.
    pub gvr: Gvr,
    /// The state before; `None` for a create.
    pub old: Option<Arc<Value>>,
    /// The state after (for a delete the last one with the delete's revision).
    pub object: Arc<Value>,
    /// Whether it was deleted.
    pub deleted: bool,
}

/// A call that writes, as a fault hook sees it.
#[derive(Clone, Debug)]
pub struct Call {
    /// `create`, `update`, `patch` or `delete`.
    pub verb: &'static str,
    /// The resource.
    pub gvr: Gvr,
    /// The namespace.
    pub namespace: String,
    /// The name; empty for a create with a generated one.
    pub name: String,
    /// The subresource.
    pub subresource: String,
}

/// What a fault hook does to a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The call is not carried out and fails.
    Refuse(Status),
    /// The call is carried out, but its caller hears of a failure.
    LoseAnswer(Status),
}

/// What a server does to a new object before it is stored (defaults, admission), or why it refuses it. The object has its
/// uid already.
pub type Admission = Arc<dyn Fn(&FakeApi, &Gvr, &mut Value) -> StatusResult<()> + Send + Sync>;

type Hook = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;

#[derive(Default)]
struct World {
    objects: BTreeMap<(Gvr, Key), Arc<Value>>,
    revision: u64,
    log: Vec<Logged>,
    /// The log begins after this revision.
    compacted: u64,
    hook: Option<Hook>,
    admission: Option<Admission>,
    paused: bool,
}

/// The in-memory API server.
pub struct FakeApi {
    env: Env,
    world: Mutex<World>,
    wake: watch::Sender<u64>,
    /// Watch streams outlive the borrow of a call.
    me: Weak<Self>,
}

impl FakeApi {
    /// An empty one.
    pub fn new(env: Env) -> Arc<Self> {
        Arc::new_cyclic(|me| Self { env, world: Mutex::default(), wake: watch::Sender::new(0), me: me.clone() })
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().expect("no panic while the world is held")
    }

    /// Sets the hook that sees every write before it happens.
    pub fn on_write(&self, hook: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        self.world().hook = Some(Box::new(hook));
    }
    /// Sets what is done to every new object.
    pub fn on_create(&self, admission: Admission) {
        self.world().admission = Some(admission);
    }
    /// Stops (or resumes) the delivery of watch events: caches lag.
    pub fn pause_watches(&self, paused: bool) {
        self.world().paused = paused;
        self.wake.send_modify(|_| {});
    }
    /// Forgets the history: watches that are behind get 410 and must list again.
    pub fn compact(&self) {
        let mut world = self.world();
        world.compacted = world.revision;
        world.log.clear();
        drop(world);
        self.wake.send_modify(|_| {});
    }
    /// The current revision.
    pub fn revision(&self) -> u64 {
        self.world().revision
    }
    /// The changes after a revision, in order.
    pub fn log_since(&self, revision: u64) -> Vec<Logged> {
        let world = self.world();
        let from = world.log.partition_point(|entry| entry.revision <= revision);
        world.log[from..].to_vec()
    }
    /// All objects of a resource.
    pub fn all(&self, gvr: &Gvr) -> Vec<Arc<Value>> {
        let world = self.world();
        world.objects.iter().filter(|((kind, _), _)| kind == gvr).map(|(_, object)| object.clone()).collect()
    }
    /// Puts an object in as it is, status and all (uid, creationTimestamp and resourceVersion are given).
    pub fn seed(&self, gvr: &Gvr, object: Value) -> Arc<Value> {
        self.insert(gvr, object).expect("the name of a seeded object is free")
    }

    fn insert(&self, gvr: &Gvr, mut object: Value) -> StatusResult<Arc<Value>> {
        if meta::name(&object).is_empty() {
            let base = object["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
            if base.is_empty() {
                return Err(Status::new(
                    422,
                    "Invalid",
                    "metadata.name: Required value: name or generateName is required",
                ));
            }
            meta::metadata_mut(&mut object).insert("name".into(), (base + &self.env.suffix(5)).into());
        }
        let (uid, now) = (self.env.uid(), rfc3339(self.env.now()));
        let key = Key::new(meta::namespace(&object), meta::name(&object));
        let metadata = meta::metadata_mut(&mut object);
        metadata.entry("uid").or_insert(uid.into());
        metadata.entry("creationTimestamp").or_insert(now.into());
        metadata.insert("generation".into(), 1.into());
        let admission = self.world().admission.clone();
        if let Some(admit) = admission {
            admit(self, gvr, &mut object)?;
        }
        let mut world = self.world();
        if world.objects.contains_key(&(gvr.clone(), key.clone())) {
            return Err(Status::already_exists(gvr, &key.name));
        }
        let stored = world.commit(gvr, key, object, false);
        self.tell(world);
        Ok(stored)
    }

    fn tell(&self, world: std::sync::MutexGuard<'_, World>) {
        let revision = world.revision;
        drop(world);
        self.wake.send_modify(|seen| *seen = revision);
    }

    /// Runs a write between the two moments at which a hook may make it fail.
    fn write<T>(&self, call: Call, write: impl FnOnce() -> StatusResult<T>) -> StatusResult<T> {
        let fault = self.world().hook.as_mut().and_then(|hook| hook(&call));
        match fault {
            Some(Fault::Refuse(status)) => Err(status),
            Some(Fault::LoseAnswer(status)) => write().and(Err(status)),
            None => write(),
        }
    }

    /// Replaces an object with what `change` makes of it.
    fn change(
        &self,
        gvr: &Gvr,
        key: Key,
        subresource: &str,
        change: impl FnOnce(&Value) -> StatusResult<Value>,
    ) -> StatusResult<Arc<Value>> {
        let mut world = self.world();
        let id = (gvr.clone(), key.clone());
        let old = world.objects.get(&id).cloned().ok_or_else(|| Status::not_found(gvr, &key.name))?;
        let mut object = change(&old)?;
        let sent = meta::resource_version(&object);
        if !sent.is_empty() && sent != meta::resource_version(&old) {
            return Err(Status::modified(gvr, &key.name));
        }
        match object["metadata"]["uid"].as_str() {
            Some(uid) if uid != meta::uid(&old) => {
                let why =
                    format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(&old));
                return Err(Status::conflict(gvr, &key.name, &why));
            }
            _ => {}
        }
        if subresource == "status" || subresource == "approval" {
            // As in Kubernetes' strategies, annotations come along with the status.
            let (status, annotations) = (object["status"].take(), object["metadata"]["annotations"].take());
            object = (*old).clone();
            object["status"] = status;
            object["metadata"]["annotations"] = annotations;
        } else if subresource == "scale" {
            let replicas = object["spec"]["replicas"].take();
            object = (*old).clone();
            object["spec"]["replicas"] = replicas;
        } else if !old["status"].is_null() {
            object["status"] = old["status"].clone();
        } else if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        let metadata = meta::metadata_mut(&mut object);
        for field in [
            "uid",
            "creationTimestamp",
            "resourceVersion",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
        ] {
            match &old["metadata"][field] {
                Value::Null => drop(metadata.remove(field)),
                value => drop(metadata.insert(field.into(), value.clone())),
            }
        }
        strip_nulls(&mut object);
        if gvr.resource == "certificatesigningrequests" {
            let now = rfc3339(self.env.now());
            // The server dates decisions.
            for condition in object["status"]["conditions"].as_array_mut().into_iter().flatten() {
                if condition["lastUpdateTime"].is_null() {
                    condition["lastUpdateTime"] = now.clone().into();
                }
            }
            strip_nulls(&mut object);
        }
        if object == *old {
            return Ok(old);
        }
        if object["spec"] != old["spec"] {
            object["metadata"]["generation"] = (meta::generation(&old) + 1).into();
        }
        let over = meta::is_terminating(&object)
            && meta::finalizers(&object).next().is_none()
            && !(gvr.resource == "namespaces"
                && object["spec"]["finalizers"].as_array().is_some_and(|l| !l.is_empty()))
            && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or_default() == 0;
        let stored = world.commit(gvr, key, object, over);
        self.tell(world);
        Ok(stored)
    }

    fn delete_now(&self, gvr: &Gvr, key: Key, options: &DeleteOptions) -> StatusResult<Arc<Value>> {
        let mut world = self.world();
        let id = (gvr.clone(), key.clone());
        let old = world.objects.get(&id).cloned().ok_or_else(|| Status::not_found(gvr, &key.name))?;
        let refuse = |what: &str, asked: &str, have: &str| {
            let why = format!("Precondition failed: {what} in precondition: {asked}, {what} in object meta: {have}");
            Err(Status::conflict(gvr, &key.name, &why))
        };
        if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != meta::uid(&old)) {
            return refuse("UID", uid, meta::uid(&old));
        }
        if let Some(version) = options.resource_version.as_deref().filter(|v| *v != meta::resource_version(&old)) {
            return refuse("ResourceVersion", version, meta::resource_version(&old));
        }
        let mut object = (*old).clone();
        let finalizer = match options.propagation_policy {
            Some("Orphan") => Some("orphan"),
            Some("Foreground") => Some("foregroundDeletion"),
            _ => None,
        };
        if let Some(finalizer) = finalizer.filter(|wanted| !meta::finalizers(&old).any(|have| have == *wanted)) {
            match object["metadata"]["finalizers"].as_array_mut() {
                Some(list) => list.push(finalizer.into()),
                None => object["metadata"]["finalizers"] = json!([finalizer]),
            }
        }
        let grace = grace_period(gvr, &old, options.grace_period_seconds);
        let namespace_content = gvr.resource == "namespaces" && !old["spec"]["finalizers"].is_null();
        if grace == 0 && meta::finalizers(&object).next().is_none() && !namespace_content {
            let stored = world.commit(gvr, key, object, true);
            self.tell(world);
            return Ok(stored);
        }
        let before = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
        if !meta::is_terminating(&old) || before.is_some_and(|before| grace < before) {
            let at =
                self.env.now().saturating_add(jiff::SignedDuration::from_secs(grace)).expect("a duration saturates");
            object["metadata"]["deletionTimestamp"] = rfc3339(at).into();
            object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
            if meta::generation(&old) > 0 {
                object["metadata"]["generation"] = (meta::generation(&old) + 1).into();
            }
            if gvr.resource == "namespaces" {
                object["status"]["phase"] = "Terminating".into();
            }
        }
        if object == *old {
            return Ok(old);
        }
        let stored = world.commit(gvr, key, object, false);
        self.tell(world);
        Ok(stored)
    }

    fn bind(&self, gvr: &Gvr, key: Key, node: Value) -> StatusResult<Arc<Value>> {
        let now = rfc3339(self.env.now());
        let mut world = self.world();
        let id = (gvr.clone(), key.clone());
        let old = world.objects.get(&id).ok_or_else(|| Status::not_found(gvr, &key.name))?;
        if let Some(taken) = old["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
            let why = format!("pod {} is already assigned to node {taken:?}", key.name);
            return Err(Status::conflict(gvr, &key.name, &why));
        }
        let mut object = (**old).clone();
        object["spec"]["nodeName"] = node;
        let scheduled = json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": now});
        merge(&mut object, &json!({"status": {"conditions": [scheduled]}}), true);
        let stored = world.commit(gvr, key, object, false);
        self.tell(world);
        Ok(stored)
    }

    /// `namespaces/finalize`: replaces `spec.finalizers`; a terminating namespace without any goes.
    fn finalize(&self, gvr: &Gvr, key: Key, sent: &Value) -> StatusResult<Arc<Value>> {
        let mut world = self.world();
        let id = (gvr.clone(), key.clone());
        let old = world.objects.get(&id).ok_or_else(|| Status::not_found(gvr, &key.name))?;
        let mut object = (**old).clone();
        object["spec"]["finalizers"] = sent["spec"]["finalizers"].clone();
        let left = object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        let over = meta::is_terminating(&object) && !left && meta::finalizers(&object).next().is_none();
        let stored = world.commit(gvr, key, object, over);
        self.tell(world);
        Ok(stored)
    }

    fn events_after(
        &self,
        gvr: &Gvr,
        namespace: &str,
        options: &ListOptions,
        from: u64,
    ) -> StatusResult<(Vec<WatchEvent>, u64)> {
        let world = self.world();
        if world.paused {
            return Ok((Vec::new(), from));
        }
        if from < world.compacted {
            return Err(Status::expired(format!("too old resource version: {from} ({})", world.compacted)));
        }
        let start = world.log.partition_point(|entry| entry.revision <= from);
        let mut events = Vec::new();
        for entry in &world.log[start..] {
            if entry.gvr != *gvr || !(namespace.is_empty() || meta::namespace(&entry.object) == namespace) {
                continue;
            }
            let before = entry.old.as_ref().is_some_and(|old| selects(old, options));
            let after = !entry.deleted && selects(&entry.object, options);
            match (before, after) {
                (false, true) => events.push(WatchEvent::Added(entry.object.clone())),
                (true, true) => events.push(WatchEvent::Modified(entry.object.clone())),
                (true, false) => events.push(WatchEvent::Deleted(entry.object.clone())),
                (false, false) => {}
            }
        }
        Ok((events, world.revision))
    }
}

impl World {
    fn commit(&mut self, gvr: &Gvr, key: Key, mut object: Value, deleted: bool) -> Arc<Value> {
        self.revision += 1;
        strip_nulls(&mut object);
        meta::metadata_mut(&mut object).insert("resourceVersion".into(), self.revision.to_string().into());
        let object = Arc::new(object);
        let id = (gvr.clone(), key);
        let old = if deleted { self.objects.remove(&id) } else { self.objects.insert(id, object.clone()) };
        self.log.push(Logged { revision: self.revision, gvr: gvr.clone(), old, object: object.clone(), deleted });
        object
    }
}

/// Pods that run somewhere get their grace period; everything else goes at once.
fn grace_period(gvr: &Gvr, object: &Value, asked: Option<i64>) -> i64 {
    let phase = object["status"]["phase"].as_str().unwrap_or_default();
    let running = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    if gvr.resource != "pods" || !running || matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    asked.or(object["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30).max(0)
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

/// Selectors of tests: `a=b`, `a==b`, `a!=b`, `a`, `!a`, comma-separated; fields by their path.
fn selects(object: &Value, options: &ListOptions) -> bool {
    let label = |key: &str| object["metadata"]["labels"][key].as_str();
    let field = |path: &str| path.split('.').fold(object, |value, part| &value[part]).as_str().or(Some(""));
    every(&options.label_selector, label) && every(&options.field_selector, field)
}

fn every<'a>(selector: &str, value: impl Fn(&str) -> Option<&'a str>) -> bool {
    selector.split(',').filter(|part| !part.is_empty()).all(|part| {
        if let Some((key, unwanted)) = part.split_once("!=") {
            value(key) != Some(unwanted)
        } else if let Some((key, wanted)) = part.split_once('=') {
            value(key) == Some(wanted.trim_start_matches('='))
        } else if let Some(key) = part.strip_prefix('!') {
            value(key).is_none()
        } else {
            value(part).is_some()
        }
    })
}

/// A merge patch that merges lists of objects by `type`, `name`, `uid` or `ip`, enough of a strategic one for tests.
fn merge(target: &mut Value, patch: &Value, strategic: bool) {
    match (target, patch) {
        (Value::Object(fields), Value::Object(changes)) => {
            for (name, change) in changes {
                if change.is_null() {
                    fields.remove(name);
                } else if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
                    if let (Some(Value::Array(items)), Value::Array(unwanted)) = (fields.get_mut(list), change) {
                        items.retain(|item| !unwanted.contains(item));
                    }
                } else if name != "$setElementOrder" && !name.starts_with("$setElementOrder/") {
                    merge(fields.entry(name).or_insert(Value::Null), change, strategic);
                }
            }
        }
        (Value::Array(items), Value::Array(changes)) if strategic && changes.iter().all(Value::is_object) => {
            for change in changes {
                let same = |item: &&mut Value| {
                    ["uid", "type", "name", "ip"].iter().any(|key| !change[key].is_null() && item[*key] == change[key])
                };
                if change["$patch"] == "delete" {
                    let keys = ["uid", "type", "name", "ip"];
                    items.retain(|item| !keys.iter().any(|key| !change[key].is_null() && item[*key] == change[key]));
                } else if let Some(item) = items.iter_mut().find(same) {
                    merge(item, change, strategic);
                } else {
                    items.push(change.clone());
                }
            }
        }
        // The lists of words that components patch are finalizers, which are merged.
        (Value::Array(items), Value::Array(changes)) if strategic && changes.iter().all(Value::is_string) => {
            changes
                .iter()
                .filter(|change| !items.contains(change))
                .cloned()
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|change| items.push(change));
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn patched(old: &Value, patch: Patch) -> StatusResult<Value> {
    let mut object = old.clone();
    match patch {
        Patch::Json(patch) => {
            let patch: json_patch::Patch =
                serde_json::from_value(patch).map_err(|e| Status::bad_request(e.to_string()))?;
            json_patch::patch(&mut object, &patch).map_err(|e| Status::new(422, "Invalid", e.to_string()))?;
        }
        Patch::Merge(patch) => merge(&mut object, &patch, false),
        Patch::Strategic(patch) | Patch::Apply(patch, ..) => merge(&mut object, &patch, true),
    }
    Ok(object)
}

#[async_trait]
impl Api for FakeApi {
    async fn get(&self, gvr: &Gvr, namespace: &str, name: &str) -> StatusResult<Arc<Value>> {
        let id = (gvr.clone(), Key::new(namespace, name));
        self.world().objects.get(&id).cloned().ok_or_else(|| Status::not_found(gvr, name))
    }

    async fn get_scale(&self, gvr: &Gvr, namespace: &str, name: &str) -> StatusResult<Arc<Value>> {
        let object = self.get(gvr, namespace, name).await?;
        let labels = object["spec"]["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
        let selector: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}={}", value.as_str().unwrap_or_default())).collect();
        Ok(Arc::new(json!({
            "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": object["metadata"],
            "spec": {"replicas": object["spec"]["replicas"]},
            "status": {"replicas": object["status"]["replicas"], "selector": selector.join(",")},
        })))
    }

    async fn list(&self, gvr: &Gvr, namespace: &str, options: &ListOptions) -> StatusResult<List> {
        let world = self.world();
        let inside = |key: &Key| namespace.is_empty() || key.namespace == namespace;
        let found =
            world.objects.iter().filter(|((kind, key), object)| kind == gvr && inside(key) && selects(object, options));
        let items = found.map(|(_, object)| object.clone()).collect();
        Ok(List { items, resource_version: world.revision.to_string() })
    }

    async fn watch(
        &self,
        gvr: &Gvr,
        namespace: &str,
        options: &ListOptions,
    ) -> StatusResult<BoxStream<'static, StatusResult<WatchEvent>>> {
        let mut wake = self.wake.subscribe();
        wake.mark_changed();
        let mut first = Vec::new();
        let from = match options.resource_version.as_str() {
            "" | "0" => {
                let list = self.list(gvr, namespace, options).await?;
                first.extend(list.items.into_iter().map(|item| Ok(WatchEvent::Added(item))));
                list.resource_version
            }
            version => version.to_owned(),
        };
        let from: u64 = from.parse().map_err(|_| Status::bad_request("invalid resource version"))?;
        let compacted = self.world().compacted;
        if from < compacted {
            return Err(Status::expired(format!("too old resource version: {from} ({compacted})")));
        }
        let (gvr, namespace, options) = (gvr.clone(), namespace.to_owned(), options.clone());
        let later = futures_util::stream::unfold(Some((self.me.clone(), wake, from)), move |state| {
            let (gvr, namespace, options) = (gvr.clone(), namespace.clone(), options.clone());
            async move {
                let (me, mut wake, from) = state?;
                loop {
                    wake.changed().await.ok()?;
                    match me.upgrade()?.events_after(&gvr, &namespace, &options, from) {
                        Err(status) => return Some((vec![Err(status)], None)),
                        Ok((events, seen)) if !events.is_empty() => {
                            return Some((events.into_iter().map(Ok).collect(), Some((me, wake, seen))));
                        }
                        Ok(_) => {}
                    }
                }
            }
        });
        let later = later.flat_map(futures_util::stream::iter);
        Ok(futures_util::stream::iter(first).chain(later).boxed())
    }

    async fn create(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        mut object: Value,
    ) -> StatusResult<Arc<Value>> {
        let called = if name.is_empty() { meta::name(&object) } else { name }.to_owned();
        let call = Call {
            verb: "create",
            gvr: gvr.clone(),
            namespace: namespace.into(),
            name: called,
            subresource: subresource.into(),
        };
        let key = Key::new(namespace, name);
        self.write(call, || match subresource {
            "" => {
                if !namespace.is_empty() {
                    meta::metadata_mut(&mut object).insert("namespace".into(), namespace.into());
                }
                if let Some(fields) = object.as_object_mut() {
                    fields.remove("status");
                }
                let metadata = meta::metadata_mut(&mut object);
                for field in ["uid", "creationTimestamp", "resourceVersion", "deletionTimestamp"] {
                    metadata.remove(field);
                }
                if gvr.resource == "pods" {
                    object["status"] = json!({"phase": "Pending"});
                }
                if *gvr == SUBJECT_ACCESS_REVIEWS {
                    // It is answered, not stored.
                    let admission = self.world().admission.clone();
                    admission.map_or(Ok(()), |admit| admit(self, gvr, &mut object))?;
                    return Ok(Arc::new(object));
                }
                self.insert(gvr, object)
            }
            "binding" => {
                let node = object["target"]["name"].clone();
                self.bind(gvr, key, node)
            }
            "eviction" => self.delete_now(gvr, key, &DeleteOptions::default()),
            "token" => {
                let seconds = object["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
                let expires = rfc3339(self.env.now() + SignedDuration::from_secs(seconds));
                object["status"] = json!({"token": self.env.uid(), "expirationTimestamp": expires});
                Ok(Arc::new(object))
            }
            other => Err(Status::new(404, "NotFound", format!("the fake has no subresource {other}"))),
        })
    }

    async fn update(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Value,
    ) -> StatusResult<Arc<Value>> {
        let call = Call {
            verb: "update",
            gvr: gvr.clone(),
            namespace: namespace.into(),
            name: name.into(),
            subresource: subresource.into(),
        };
        let key = Key::new(namespace, name);
        self.write(call, || {
            if subresource == "finalize" {
                return self.finalize(gvr, key, &object);
            }
            self.change(gvr, key, subresource, |_| Ok(object))
        })
    }

    async fn patch(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: Patch,
    ) -> StatusResult<Arc<Value>> {
        let call = Call {
            verb: "patch",
            gvr: gvr.clone(),
            namespace: namespace.into(),
            name: name.into(),
            subresource: subresource.into(),
        };
        let key = Key::new(namespace, name);
        self.write(call, || self.change(gvr, key, subresource, |old| patched(old, patch)))
    }

    async fn delete(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> StatusResult<Arc<Value>> {
        let call = Call {
            verb: "delete",
            gvr: gvr.clone(),
            namespace: namespace.into(),
            name: name.into(),
            subresource: String::new(),
        };
        self.write(call, || self.delete_now(gvr, Key::new(namespace, name), options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::typed::gvr;
    use crate::client::{Client, Factory};
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};

    fn env() -> Env {
        Env::simulated(1, "2026-01-02T03:04:05Z".parse().expect("a time"))
    }

    #[tokio::test]
    async fn an_informer_follows_through_lag_and_compaction() {
        let api = FakeApi::new(env());
        let maps = gvr::<ConfigMap>();
        let map = |name: &str| json!({"metadata": {"name": name, "namespace": "a"}});
        api.create(&maps, "a", "", "", map("one")).await.expect("created");
        let factory = Factory::new(api.clone());
        let cache = factory.cache::<ConfigMap>();
        cache.synced().await;
        assert_eq!(cache.len(), 1);
        api.pause_watches(true);
        api.create(&maps, "a", "", "", map("two")).await.expect("created");
        api.delete(&maps, "a", "one", &DeleteOptions::default()).await.expect("deleted");
        tokio::task::yield_now().await;
        assert_eq!(cache.len(), 1, "the cache lags");
        api.compact();
        api.pause_watches(false);
        let mut progress = cache.progress();
        while cache.seen() < api.revision() {
            progress.changed().await.expect("the cache lives");
        }
        assert_eq!(cache.list().iter().filter_map(|map| map.metadata.name.as_deref()).collect::<Vec<_>>(), ["two"]);
    }

    #[tokio::test]
    async fn pods_leave_gracefully_and_finalizers_hold_them() {
        let api = FakeApi::new(env());
        let client = Client::new(api.clone());
        let pods = gvr::<Pod>();
        api.seed(
            &pods,
            json!({"metadata": {"name": "p", "namespace": "a", "finalizers": ["x/y"]},
            "spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Running"}}),
        );
        client.delete::<Pod>("a", "p", &DeleteOptions::default()).await.expect("deleted");
        let mut pod: Pod = client.get("a", "p").await.expect("it is still there");
        assert_eq!(pod.metadata.deletion_grace_period_seconds, Some(30));
        let now = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
        client.delete::<Pod>("a", "p", &now).await.expect("deleted");
        pod.metadata.finalizers = None;
        let stale = client.update(&pod).await.expect_err("it was changed since");
        assert!(stale.is_conflict());
        pod = client.get("a", "p").await.expect("its finalizer holds it");
        pod.metadata.finalizers = None;
        client.update(&pod).await.expect("updated");
        assert!(client.find::<Pod>("a", "p").await.expect("an answer").is_none());
    }
}
