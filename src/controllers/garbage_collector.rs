//! Deletes what has lost its owners; foreground and orphan deletion (`pkg/controller/garbagecollector`).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use super::caches::{Caches, Graph, GraphKind};
use super::plan::{Action, Plan, Step, Write};
use super::{Controller, Enqueue};
use crate::client::cache::{Change, Key};
use crate::client::recorder::EventType;
use crate::client::typed::{Meta, PartialObject};
use crate::client::{DeleteOptions, Object, Patch};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// The controller. Its keys are `<group>/<version>/<resource>/<namespace>` and a name.
pub struct GarbageCollector;

fn key_of(kind: &GraphKind, object: &Key) -> Key {
    let gvr = &kind.gvr;
    Key::new(format!("{}/{}/{}/{}", gvr.group, gvr.version, gvr.resource, object.namespace), &*object.name)
}

fn find(graph: &Graph, key: &Key) -> Option<(Arc<GraphKind>, Key)> {
    let mut parts = key.namespace.splitn(4, '/');
    let (group, version, resource) = (parts.next()?, parts.next()?, parts.next()?);
    let same = |kind: &&Arc<GraphKind>| {
        kind.gvr.group == group && kind.gvr.version == version && kind.gvr.resource == resource
    };
    Some((graph.kinds().iter().find(same)?.clone(), Key::new(parts.next()?, &*key.name)))
}

impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "garbagecollector"
    }
    fn account(&self) -> &'static str {
        "generic-garbage-collector"
    }
    fn component(&self) -> &'static str {
        "garbage-collector-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let (graph, add) = (caches.graph.clone(), enqueue.clone());
        caches.graph.on_kind(move |kind| {
            let (of, graph, add) = (Arc::downgrade(kind), graph.clone(), add.clone());
            // Dependents of a kind that was unknown until now.
            for (owned, dependent) in naming(&graph, kind) {
                add.add(key_of(&owned, &Key::of(&*dependent)));
            }
            let (all, again) = (graph.clone(), add.clone());
            kind.cache.subscribe(move |change| {
                if let Some(kind) = of.upgrade() {
                    told(&graph, &kind, change, &add);
                }
            });
            kind.cache.on_synced(move || look_again(&all, &again));
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _now: Timestamp) -> Plan {
        let found = find(&caches.graph, key).and_then(|(kind, key)| kind.cache.get(&key).map(|object| (kind, object)));
        match found {
            Some((kind, object)) => reconcile(&caches.graph, &kind, &object),
            None => Plan::default(),
        }
    }
}

/// Which keys a change concerns.
fn told(graph: &Graph, kind: &GraphKind, change: &Change<PartialObject>, add: &Enqueue) {
    let object = change.object();
    let view = |object: &Arc<PartialObject>| {
        let meta = &object.metadata;
        (meta.owner_references.clone(), meta.finalizers.clone(), object.is_terminating(), meta.uid.clone())
    };
    if change.old.as_ref().map(view) == change.new.as_ref().map(view) {
        return;
    }
    if change.new.is_some() && concerns(object) {
        add.add(key_of(kind, &Key::of(&**object)));
    }
    // Owners that wait for their dependents, and dependents that depend on this one's life.
    for owner in change.old.iter().chain(&change.new).flat_map(|object| object.owners()) {
        if let Some((kind, key)) = locate(graph, owner, object.namespace()) {
            add.add(key_of(&kind, &key));
        }
    }
    // Between two lists another object may have come under the same name.
    let is_new = |old: &Arc<PartialObject>| change.new.as_ref().is_some_and(|new| new.uid() == old.uid());
    let gone = change.old.as_ref().filter(|old| !is_new(old));
    let going = change.new.as_ref().filter(|new| new.is_terminating());
    for owner in gone.into_iter().chain(going) {
        for (kind, dependent) in dependents(graph, owner.uid()) {
            add.add(key_of(&kind, &Key::of(&*dependent)));
        }
    }
}

/// Those whose dependents may have been of a kind that nobody had listed, once all are.
fn look_again(graph: &Graph, add: &Enqueue) {
    if !all_known(graph) {
        return;
    }
    for kind in graph.kinds().iter() {
        for object in kind.cache.list().iter().filter(|object| waits_for_dependents(object)) {
            add.add(key_of(kind, &Key::of(&**object)));
        }
    }
}

/// The objects that name an owner of a kind.
fn naming(graph: &Graph, owner: &GraphKind) -> Vec<(Arc<GraphKind>, Arc<PartialObject>)> {
    let names = |reference: &OwnerReference| {
        let group = reference.api_version.split_once('/').map_or("", |(group, _)| group);
        reference.kind == owner.kind && owner.gvr.group == group
    };
    let mut found = Vec::new();
    for kind in graph.kinds().iter() {
        let dependents = kind.cache.list().into_iter().filter(|object| object.owners().iter().any(names));
        found.extend(dependents.map(|object| (kind.clone(), object)));
    }
    found
}

fn concerns(object: &PartialObject) -> bool {
    !object.owners().is_empty() || waits_for_dependents(object)
}

fn waits_for_dependents(object: &PartialObject) -> bool {
    object.is_terminating() && (has(object, FOREGROUND) || has(object, ORPHAN))
}

fn has(object: &PartialObject, finalizer: &str) -> bool {
    object.metadata.finalizers.iter().flatten().any(|known| known == finalizer)
}

fn dependents(graph: &Graph, uid: &str) -> Vec<(Arc<GraphKind>, Arc<PartialObject>)> {
    let owned = |kind: &Arc<GraphKind>| {
        let kind = kind.clone();
        kind.cache.owned_by(uid).into_iter().map(move |object| (kind.clone(), object))
    };
    graph.kinds().iter().flat_map(owned).collect()
}

/// The dependents that an owner can have: in its own namespace, or anywhere when it has none. Others name it in vain, and
/// must not hold it up.
fn own_dependents(graph: &Graph, kind: &GraphKind, owner: &PartialObject) -> Vec<(Arc<GraphKind>, Arc<PartialObject>)> {
    let mut found = dependents(graph, owner.uid());
    found.retain(|(_, dependent)| !kind.namespaced || dependent.namespace() == owner.namespace());
    found
}

/// Where an owner must be, seen from a dependent in `namespace`. `None`: the kind is unknown, or lives in namespaces
/// while the dependent does not.
fn locate(graph: &Graph, owner: &OwnerReference, namespace: &str) -> Option<(Arc<GraphKind>, Key)> {
    let kind = graph.named(&owner.api_version, &owner.kind)?;
    if kind.namespaced && namespace.is_empty() {
        return None;
    }
    let key = Key::new(if kind.namespaced { namespace } else { "" }, &*owner.name);
    Some((kind, key))
}

/// The decision for one object.
fn reconcile(graph: &Graph, kind: &GraphKind, object: &PartialObject) -> Plan {
    if !object.is_terminating() {
        return judge_by_owners(graph, kind, object);
    }
    if has(object, ORPHAN) {
        return orphan_dependents(graph, kind, object);
    }
    let mut plan = Plan::default();
    let uid = object.uid();
    if has(object, FOREGROUND) && !all_known(graph) {
        return plan;
    }
    let blocks = |owner: &OwnerReference| owner.uid == uid && owner.block_owner_deletion == Some(true);
    if has(object, FOREGROUND)
        && !own_dependents(graph, kind, object).iter().any(|(_, dependent)| dependent.owners().iter().any(blocks))
    {
        plan.push(without_finalizer(kind, object, FOREGROUND));
    }
    plan
}

fn judge_by_owners(graph: &Graph, kind: &GraphKind, object: &PartialObject) -> Plan {
    let mut plan = Plan::default();
    let (mut solid, mut waiting, mut absent, mut checks) = (false, Vec::new(), Vec::new(), Vec::new());
    for owner in object.owners() {
        let Some((owner_kind, owner_key)) = locate(graph, owner, object.namespace()) else {
            if graph.named(&owner.api_version, &owner.kind).is_some() {
                plan.push(misplaced(object, owner));
            }
            // It cannot be resolved, so nothing may be deleted because of it.
            solid = true;
            continue;
        };
        match owner_kind.cache.get(&owner_key).filter(|found| found.uid() == owner.uid) {
            Some(found) if found.is_terminating() && has(&found, FOREGROUND) => waiting.push(owner.uid.clone()),
            Some(_) => solid = true,
            None => {
                if owner_kind.namespaced && owner_kind.cache.list().iter().any(|other| other.uid() == owner.uid) {
                    plan.push(misplaced(object, owner));
                }
                absent.push(owner.uid.clone());
                let (gvr, uid) = (owner_kind.gvr.clone(), owner.uid.clone());
                checks.push(Action::write(Write::ExpectAbsent { gvr, key: owner_key, uid }));
            }
        }
    }
    if absent.is_empty() && waiting.is_empty() {
        return plan;
    }
    if !checks.is_empty() {
        plan.steps.push(Step::All(checks));
    }
    if solid {
        let gone = |owner: &OwnerReference| absent.contains(&owner.uid) || waiting.contains(&owner.uid);
        plan.push(without_owners(kind, object, gone));
        return plan;
    }
    let own = own_dependents(graph, kind, object);
    let policy = if !waiting.is_empty() && !own.is_empty() {
        // A circle would wait for itself: dependents that are being deleted already must not block.
        let circle = own.iter().filter(|(_, dependent)| dependent.is_terminating() && has(dependent, FOREGROUND));
        for (dependent_kind, dependent) in circle {
            plan.push(unblocked(dependent_kind, dependent, object.uid()));
        }
        "Foreground"
    } else if has(object, ORPHAN) {
        "Orphan"
    } else if has(object, FOREGROUND) {
        "Foreground"
    } else {
        "Background"
    };
    let options = DeleteOptions {
        uid: object.metadata.uid.clone(),
        resource_version: object.metadata.resource_version.clone(),
        propagation_policy: Some(policy),
        ..Default::default()
    };
    let write = Write::Delete { gvr: kind.gvr.clone(), key: Key::of(object), options };
    plan.push(Action::write(write).tolerate(&["NotFound"]));
    plan
}

/// Whether every kind has been listed: else there may be dependents that nobody has seen, and [`look_again`] comes back.
fn all_known(graph: &Graph) -> bool {
    graph.kinds().iter().all(|kind| kind.cache.is_synced())
}

fn orphan_dependents(graph: &Graph, kind: &GraphKind, object: &PartialObject) -> Plan {
    let mut plan = Plan::default();
    if !all_known(graph) {
        return plan;
    }
    let uid = object.uid();
    let released = own_dependents(graph, kind, object);
    let released = released.iter().map(|(kind, dependent)| without_owners(kind, dependent, |owner| owner.uid == uid));
    let released: Vec<Action> = released.collect();
    if !released.is_empty() {
        plan.steps.push(Step::All(released));
    }
    plan.push(without_finalizer(kind, object, ORPHAN));
    plan
}

fn patch(kind: &GraphKind, object: &PartialObject, mut metadata: serde_json::Value) -> Action {
    metadata["resourceVersion"] = object.metadata.resource_version.clone().into();
    metadata["uid"] = object.metadata.uid.clone().into();
    let patch = Patch::Merge(json!({"metadata": metadata}));
    Action::patch(kind.gvr.clone(), Key::of(object), "", patch).tolerate(&["NotFound"])
}

fn without_owners(kind: &GraphKind, object: &PartialObject, gone: impl Fn(&OwnerReference) -> bool) -> Action {
    let rest: Vec<_> = object.owners().iter().filter(|owner| !gone(owner)).collect();
    patch(kind, object, json!({"ownerReferences": rest}))
}

fn unblocked(kind: &GraphKind, object: &PartialObject, uid: &str) -> Action {
    let mut owners = object.owners().to_vec();
    for owner in owners.iter_mut().filter(|owner| owner.uid == uid) {
        owner.block_owner_deletion = Some(false);
    }
    patch(kind, object, json!({"ownerReferences": owners}))
}

fn without_finalizer(kind: &GraphKind, object: &PartialObject, finalizer: &str) -> Action {
    let rest: Vec<_> = object.meta().finalizers.iter().flatten().filter(|known| *known != finalizer).collect();
    patch(kind, object, json!({"finalizers": rest}))
}

fn misplaced(object: &PartialObject, owner: &OwnerReference) -> Action {
    let regarding = ObjectReference {
        api_version: Some(object.api_version.clone()),
        kind: Some(object.kind.clone()),
        namespace: object.metadata.namespace.clone(),
        name: object.metadata.name.clone(),
        uid: object.metadata.uid.clone(),
        ..Default::default()
    };
    let message = format!(
        "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace {:?}",
        owner.api_version,
        owner.kind,
        object.namespace(),
        owner.name,
        owner.uid,
        object.namespace()
    );
    Action::event(regarding, EventType::Warning, "OwnerRefInvalidNamespace", message)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::api::Gvr;

    fn kind(resource: &'static str, kind: &str) -> GraphKind {
        let gvr = Gvr::new("", "v1", resource);
        GraphKind { gvr, kind: kind.to_owned(), namespaced: true, custom: false, cache: Default::default() }
    }

    fn object(value: serde_json::Value) -> Arc<PartialObject> {
        Arc::new(PartialObject::parse(&value).expect("an object"))
    }

    #[test]
    fn who_may_have_unseen_dependents_waits_until_every_kind_is_listed() {
        let graph = Graph::new(vec![kind("configmaps", "ConfigMap"), kind("secrets", "Secret")]);
        let (maps, secrets) = (graph.kinds()[0].clone(), graph.kinds()[1].clone());
        let owner = object(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner", "namespace": "a",
            "uid": "1", "resourceVersion": "1", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]}}),
        );
        let (caches, added) = (Caches { graph: graph.clone(), ..Caches::default() }, Arc::new(Mutex::new(Vec::new())));
        let adder = added.clone();
        let enqueue = Enqueue::new(move |key| adder.lock().expect("no panic").push(key), |_, _| {});
        GarbageCollector.watch(&caches, &enqueue);
        maps.cache.replace(vec![owner], 1);
        let keys: Vec<Key> = std::mem::take(&mut *added.lock().expect("no panic"));
        let [key] = &keys[..] else { panic!("{keys:?}") };
        let plan = GarbageCollector.reconcile(&caches, key, Timestamp::UNIX_EPOCH);
        assert!(plan.steps.is_empty() && plan.requeue_after.is_none(), "there may be Secrets of it");
        secrets.cache.replace(Vec::new(), 2);
        assert_eq!(added.lock().expect("no panic")[..], keys[..]);
        assert!(
            !GarbageCollector.reconcile(&caches, key, Timestamp::UNIX_EPOCH).steps.is_empty(),
            "the finalizer goes"
        );
    }
}
