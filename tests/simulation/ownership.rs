//! Objects that own each other in namespaces that come and go: what nobody owns any more goes, what somebody owns stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::{Value, json};

use mini::api::{Gvr, Status, StatusResult, meta};
use mini::client::fake::{Admission, FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::{self, Controller};

use crate::story::{KindRow, Story};
use crate::world::{World, now};

const NAMESPACES: [&str; 2] = ["one", "two"];
const FINALIZER: &str = "example.com/held";
const CERTIFICATE: &str = "the root certificate";
const ROOT_CA: &str = "kube-root-ca.crt";
const FOREGROUND: &str = "foregroundDeletion";

/// The story, and the truth as the API's history tells it.
#[derive(Default)]
pub struct Owners {
    made: usize,
    /// Everything but namespaces, by uid.
    objects: BTreeMap<String, Arc<Value>>,
    namespaces: BTreeMap<String, Arc<Value>>,
    /// What a user deleted.
    deleted_by_user: BTreeSet<String>,
    /// What was ever seen to wait for its dependents: the collector may not know yet that it waits no more.
    waiting: BTreeSet<String>,
    /// Owner and dependents that must lose each other: the owner is to be deleted without them.
    orphaned: BTreeMap<String, BTreeSet<String>>,
    /// Owner and dependents that hold it: the owner is to go after them.
    waited_for: BTreeMap<String, BTreeSet<String>>,
}

impl Story for Owners {
    fn kinds(&self) -> Vec<KindRow> {
        vec![
            (gvr::<Namespace>(), "Namespace", false),
            (gvr::<ConfigMap>(), "ConfigMap", true),
            (gvr::<Secret>(), "Secret", true),
            (gvr::<ServiceAccount>(), "ServiceAccount", true),
            (gvr::<ClusterRole>(), "ClusterRole", false),
        ]
    }

    fn controllers(&mut self, _world: &World) -> Vec<Arc<dyn Controller>> {
        vec![
            Arc::new(controllers::garbage_collector::GarbageCollector),
            Arc::new(controllers::namespace::NamespaceController),
            Arc::new(controllers::service_account::ServiceAccountController),
            Arc::new(controllers::root_ca::RootCaController { certificate: CERTIFICATE.into() }),
        ]
    }

    fn admission(&self) -> Option<Admission> {
        Some(Arc::new(admit))
    }

    fn begin(&mut self, world: &World) {
        NAMESPACES.iter().for_each(|name| create_namespace(world, name));
        (0..6).for_each(|_| self.create(world));
    }

    fn user_acts(&mut self, world: &World) {
        let objects: Vec<_> = self.objects.values().cloned().collect();
        let object = objects.get(world.pick(objects.len()));
        match (world.env.below(100), object) {
            (0..35, _) | (_, None) if objects.len() < 14 => self.create(world),
            (35..50, Some(object)) => self.adopt(world, object),
            (50..85, Some(object)) => self.delete(world, object),
            (85..92, Some(object)) => release(world, object),
            (92..95, _) => spoil(world),
            _ => {
                let name = NAMESPACES[world.pick(NAMESPACES.len())];
                match self.namespaces.get(name) {
                    None => create_namespace(world, name),
                    Some(_) => {
                        world.say(|| format!("user deletes the namespace {name}"));
                        now(world.api.delete(&gvr::<Namespace>(), "", name, &DeleteOptions::default()))
                            .expect("it is there");
                    }
                }
            }
        }
    }

    fn settles(&mut self, world: &World) {
        for object in self.objects.values() {
            release(world, object);
        }
    }

    fn see(&mut self, change: &Logged) {
        let (object, uid) = (&change.object, meta::uid(&change.object).to_owned());
        if &*change.gvr.resource == "nodes" {
            return;
        }
        if &*change.gvr.resource == "namespaces" {
            let name = meta::name(object).to_owned();
            if change.deleted {
                let left: Vec<_> = self.objects.values().filter(|object| meta::namespace(object) == name).collect();
                assert!(left.is_empty(), "{name} goes, and leaves {left:?}");
                self.namespaces.remove(&name);
            } else {
                self.namespaces.insert(name, object.clone());
            }
            return;
        }
        let begins_to_go = change.deleted || meta::is_terminating(object);
        if begins_to_go && !change.old.as_deref().is_some_and(meta::is_terminating) {
            self.check_deletion(object);
        }
        if change.deleted {
            self.objects.remove(&uid);
            self.check_farewell(&uid);
        } else {
            if meta::is_terminating(object) && has(object, FOREGROUND) {
                self.waiting.insert(uid.clone());
            }
            self.objects.insert(uid, object.clone());
        }
    }

    fn at_rest(&mut self, _api: &FakeApi) {
        for (name, namespace) in &self.namespaces {
            assert!(!meta::is_terminating(namespace), "{name} does not go: {namespace}");
            let named =
                |wanted: &str| self.objects.values().find(|o| meta::namespace(o) == name && meta::name(o) == wanted);
            assert!(named("default").is_some(), "{name} has no ServiceAccount");
            let map = named(ROOT_CA).unwrap_or_else(|| panic!("{name} has no {ROOT_CA}"));
            assert_eq!(map["data"]["ca.crt"], CERTIFICATE);
        }
        for object in self.objects.values() {
            assert!(!meta::is_terminating(object), "{object} does not go");
            let lost: Vec<_> = owners(object)
                .iter()
                .filter(|owner| is_known(object, owner) && self.owner(object, owner).is_none())
                .collect();
            assert!(lost.is_empty(), "{object} names owners that are gone: {lost:?}");
        }
    }
}

impl Owners {
    /// The owner that a reference means: in the object's own namespace, or in none.
    fn owner(&self, object: &Value, reference: &Value) -> Option<&Arc<Value>> {
        let owner = self.objects.get(reference["uid"].as_str()?)?;
        let near = meta::namespace(owner).is_empty() || meta::namespace(owner) == meta::namespace(object);
        (near && owner["kind"] == reference["kind"] && reference["name"] == *meta::name(owner)).then_some(owner)
    }

    fn dependents<'a>(&'a self, uid: &'a str, blocking: bool) -> impl Iterator<Item = &'a Arc<Value>> {
        let names = move |owner: &Value| owner["uid"] == uid && (!blocking || owner["blockOwnerDeletion"] == true);
        self.objects.values().filter(move |object| owners(object).iter().any(names))
    }

    /// Nothing goes that a user has not deleted, while its namespace stays and somebody owns it.
    fn check_deletion(&self, object: &Value) {
        let namespace = self.namespaces.get(meta::namespace(object));
        if self.deleted_by_user.contains(meta::uid(object))
            || namespace.is_some_and(|found| meta::is_terminating(found))
        {
            return;
        }
        assert!(!owners(object).is_empty(), "{object} is deleted by nobody");
        let holds = |reference: &&Value| {
            let owner = self.owner(object, reference);
            !is_known(object, reference) || owner.is_some_and(|owner| !self.waiting.contains(meta::uid(owner)))
        };
        let living: Vec<_> = owners(object).iter().filter(holds).collect();
        assert!(living.is_empty(), "{object} is deleted, but owned by {living:?}");
    }

    /// An owner is gone: those that it leaves behind have forgotten it, those that it waits for are gone.
    fn check_farewell(&mut self, uid: &str) {
        for left in self.orphaned.remove(uid).unwrap_or_default() {
            let names = |object: &Arc<Value>| owners(object).iter().any(|owner| owner["uid"] == uid);
            assert!(!self.objects.get(&left).is_some_and(names), "{left} still names {uid}");
        }
        for blocking in self.waited_for.remove(uid).unwrap_or_default() {
            let blocks = |object: &Arc<Value>| {
                owners(object).iter().any(|owner| owner["uid"] == uid && owner["blockOwnerDeletion"] == true)
            };
            assert!(!self.objects.get(&blocking).is_some_and(blocks), "{uid} did not wait for {blocking}");
        }
    }

    /// Whether one of an object's owners, or of theirs, waits for its dependents.
    fn is_below_waiting(&self, object: &Value) -> bool {
        let (mut seen, mut next) = (BTreeSet::new(), vec![object]);
        while let Some(object) = next.pop() {
            for owner in owners(object).iter().filter_map(|reference| self.objects.get(reference["uid"].as_str()?)) {
                if meta::is_terminating(owner) && has(owner, FOREGROUND) {
                    return true;
                }
                if seen.insert(meta::uid(owner)) {
                    next.push(owner);
                }
            }
        }
        false
    }

    fn create(&mut self, world: &World) {
        self.made += 1;
        let name = format!("object-{}", self.made);
        let (gvr, kind, api_version) = match world.env.below(4) {
            0 => (gvr::<Secret>(), "Secret", "v1"),
            1 => (gvr::<ClusterRole>(), "ClusterRole", "rbac.authorization.k8s.io/v1"),
            _ => (gvr::<ConfigMap>(), "ConfigMap", "v1"),
        };
        let namespace = if kind == "ClusterRole" { "" } else { NAMESPACES[world.pick(NAMESPACES.len())] };
        let mut metadata =
            json!({"name": name, "namespace": namespace, "ownerReferences": self.some_owners(world, namespace, "")});
        if world.chance(10) {
            metadata["finalizers"] = json!([FINALIZER]);
        }
        world.say(|| format!("user creates {metadata}"));
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
        // Its namespace may be gone, or going.
        let _ = now(world.api.create(&gvr, namespace, "", "", object));
    }

    fn some_owners(&self, world: &World, namespace: &str, but: &str) -> Vec<Value> {
        let mut owners: Vec<Value> = Vec::new();
        for owner in self.objects.values().filter(|owner| meta::uid(owner) != but) {
            // Now and then a user names one of another namespace.
            let near = meta::namespace(owner).is_empty() || meta::namespace(owner) == namespace || world.chance(3);
            if near && world.chance(18) && owners.len() < 3 {
                owners.push(reference(world, owner));
            }
        }
        if world.chance(4) {
            owners.push(json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "never", "uid": world.env.uid()}));
        }
        if world.chance(4) {
            owners
                .push(json!({"apiVersion": "example.com/v1", "kind": "Unknown", "name": "x", "uid": world.env.uid()}));
        }
        owners
    }

    /// An object gets other owners; it may then own itself by a detour.
    fn adopt(&self, world: &World, object: &Value) {
        if meta::is_terminating(object) {
            return;
        }
        let owners = self.some_owners(world, meta::namespace(object), meta::uid(object));
        world.say(|| format!("user makes {} owned by {owners:?}", meta::name(object)));
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": owners}}));
        now(world.api.patch(&gvr_of(object), meta::namespace(object), meta::name(object), "", patch))
            .expect("it is there");
    }

    fn delete(&mut self, world: &World, object: &Value) {
        let mut policy = ["Background", "Foreground", "Orphan"][world.pick(3)];
        let uid = meta::uid(object).to_owned();
        if policy == "Foreground" && self.is_below_waiting(object) {
            // Two of a circle would wait for each other, in Kubernetes as well.
            policy = "Background";
        }
        world.say(|| format!("user deletes {}: {policy}", meta::name(object)));
        self.deleted_by_user.insert(uid.clone());
        // What the caches have not shown yet nobody can take care of, nor of what is added later.
        let shown = |dependent: &&Arc<Value>| {
            let revision = meta::resource_version(dependent).parse::<u64>().expect("a number");
            revision <= world.shown(&gvr_of(dependent))
        };
        // One of another namespace names it in vain.
        let near = |dependent: &&Arc<Value>| {
            meta::namespace(object).is_empty() || meta::namespace(object) == meta::namespace(dependent)
        };
        let list = |blocking| {
            let dependents = self.dependents(&uid, blocking).filter(shown).filter(near);
            dependents.map(|dependent| meta::uid(dependent).to_owned()).collect()
        };
        let (orphaned, waited_for): (BTreeSet<_>, BTreeSet<_>) = (list(false), list(true));
        if !meta::is_terminating(object) {
            match policy {
                "Orphan" => drop(self.orphaned.insert(uid, orphaned)),
                "Foreground" => drop(self.waited_for.insert(uid, waited_for)),
                _ => {}
            }
        }
        let options = DeleteOptions { propagation_policy: Some(policy), ..Default::default() };
        now(world.api.delete(&gvr_of(object), meta::namespace(object), meta::name(object), &options))
            .expect("it is there");
    }
}

fn has(object: &Value, finalizer: &str) -> bool {
    meta::finalizers(object).any(|known| known == finalizer)
}

fn owners(object: &Value) -> &[Value] {
    meta::items(&object["metadata"]["ownerReferences"])
}

/// Whether it can be told that the owner is gone: its kind is served, and an object without a namespace names none in one.
fn is_known(object: &Value, reference: &Value) -> bool {
    let everywhere = !meta::namespace(object).is_empty() || reference["kind"] == "ClusterRole";
    everywhere && reference["kind"] != "Unknown"
}

fn gvr_of(object: &Value) -> Gvr {
    match object["kind"].as_str() {
        Some("Secret") => gvr::<Secret>(),
        Some("ClusterRole") => gvr::<ClusterRole>(),
        Some("ServiceAccount") => gvr::<ServiceAccount>(),
        _ => gvr::<ConfigMap>(),
    }
}

fn reference(world: &World, owner: &Value) -> Value {
    json!({"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta::name(owner), "uid": meta::uid(owner),
        "blockOwnerDeletion": world.chance(60)})
}

/// Whoever holds an object lets it go.
fn release(world: &World, object: &Value) {
    if !has(object, FINALIZER) {
        return;
    }
    world.say(|| format!("{} is held no more", meta::name(object)));
    let patch = Patch::Strategic(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}}));
    now(world.api.patch(&gvr_of(object), meta::namespace(object), meta::name(object), "", patch)).expect("it is there");
}

/// A user takes away, or changes, what every namespace has.
fn spoil(world: &World) {
    let namespace = NAMESPACES[world.pick(NAMESPACES.len())];
    let patch = Patch::Merge(json!({"data": {"ca.crt": "another"}}));
    let _ = now(world.api.patch(&gvr::<ConfigMap>(), namespace, ROOT_CA, "", patch));
}

fn create_namespace(world: &World, name: &str) {
    world.say(|| format!("user creates the namespace {name}"));
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {}});
    now(world.api.create(&gvr::<Namespace>(), "", "", "", namespace)).expect("created");
}

/// A new namespace is active; in one that goes, or is not there, nothing is made (`NamespaceLifecycle`).
fn admit(api: &FakeApi, gvr: &Gvr, object: &mut Value) -> StatusResult<()> {
    if &*gvr.resource == "namespaces" {
        object["spec"]["finalizers"] = json!(["kubernetes"]);
        object["status"]["phase"] = "Active".into();
        return Ok(());
    }
    let name = meta::namespace(object);
    if name.is_empty() {
        return Ok(());
    }
    let namespaces = api.all(&mini::client::typed::gvr::<Namespace>());
    match namespaces.iter().find(|namespace| meta::name(namespace) == name) {
        None => Err(Status::not_found(&mini::client::typed::gvr::<Namespace>(), name)),
        Some(namespace) if meta::is_terminating(namespace) => {
            let why = format!("unable to create new content in namespace {name} because it is being terminated");
            Err(Status::forbidden(gvr, meta::name(object), &why))
        }
        Some(_) => Ok(()),
    }
}
