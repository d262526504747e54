//! Claims, volumes, classes and the pods that use them: bound once, kept while they are used, reclaimed as was agreed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use mini::api::{Gvr, StatusResult, meta};
use mini::client::fake::{Admission, FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::persistent_volume::{BIND_COMPLETED, PROVISIONED_BY};
use mini::controllers::provisioner::PROVISIONER;
use mini::controllers::{self, Controller};

use crate::disk::{Disk, ProvisionerActs, holds};
use crate::invariants::{is_finished, owner};
use crate::story::{KindRow, Story};
use crate::world::{NAMESPACE, World, now};

/// Name, provisioner, binding mode, reclaim policy. The empty name stands for claims without a class.
const CLASSES: [(&str, &str, &str, &str); 4] = [
    ("fast", PROVISIONER, "Immediate", "Delete"),
    ("late", PROVISIONER, "WaitForFirstConsumer", "Delete"),
    ("kept", PROVISIONER, "Immediate", "Retain"),
    ("manual", "kubernetes.io/no-provisioner", "WaitForFirstConsumer", "Retain"),
];

/// The story, and the truth as the API's history tells it.
#[derive(Default)]
pub struct Volumes {
    made: usize,
    disk: Option<Arc<Disk>>,
    pods: BTreeMap<String, Arc<Value>>,
    claims: BTreeMap<String, Arc<Value>>,
    volumes: BTreeMap<String, Arc<Value>>,
}

impl Story for Volumes {
    fn kinds(&self) -> Vec<KindRow> {
        vec![
            (gvr::<Pod>(), "Pod", true),
            (gvr::<PersistentVolumeClaim>(), "PersistentVolumeClaim", true),
            (gvr::<PersistentVolume>(), "PersistentVolume", false),
            (gvr::<StorageClass>(), "StorageClass", false),
            (gvr::<Node>(), "Node", false),
        ]
    }

    fn controllers(&mut self, world: &World) -> Vec<Arc<dyn Controller>> {
        let disk = self.disk.get_or_insert_with(|| Disk::new(world)).clone();
        vec![
            Arc::new(controllers::persistent_volume::PersistentVolumeController),
            Arc::new(controllers::volume_protection::VolumeProtectionController),
            Arc::new(controllers::ephemeral_volume::EphemeralVolumeController),
            Arc::new(controllers::garbage_collector::GarbageCollector),
            Arc::new(ProvisionerActs::new(world, disk)),
        ]
    }

    fn admission(&self) -> Option<Admission> {
        Some(Arc::new(prepare))
    }

    fn claims_get_volumes(&self) -> bool {
        false
    }

    fn patience(&self) -> SignedDuration {
        SignedDuration::from_mins(30)
    }

    fn begin(&mut self, world: &World) {
        for (name, provisioner, mode, policy) in CLASSES {
            let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
                "provisioner": provisioner, "volumeBindingMode": mode, "reclaimPolicy": policy, "allowVolumeExpansion": true});
            world.api.seed(&gvr::<StorageClass>(), class);
        }
    }

    fn user_acts(&mut self, world: &World) {
        let (claims, volumes) =
            (world.api.all(&gvr::<PersistentVolumeClaim>()), world.api.all(&gvr::<PersistentVolume>()));
        match world.env.below(100) {
            0..25 if claims.len() < 6 => self.create_claim(world),
            25..40 if volumes.len() < 6 => self.create_volume(world),
            40..60 => self.create_pod(world),
            60..72 => drop(world.delete_some_pod()),
            72..82 => delete_one(world, &gvr::<PersistentVolumeClaim>(), NAMESPACE, &claims),
            82..86 => {
                // One that was made for a claim that does not have it yet would hold that claim up for ever.
                let is_settled = |volume: &&Arc<Value>| {
                    let claim = volume["spec"]["claimRef"]["uid"].as_str().and_then(|uid| self.claims.get(uid));
                    claim.is_none_or(|claim| claim["spec"]["volumeName"] == meta::name(volume))
                };
                let settled: Vec<_> = volumes.iter().filter(is_settled).cloned().collect();
                delete_one(world, &gvr::<PersistentVolume>(), "", &settled);
            }
            86..94 => expand(world, &claims),
            _ => keep_or_not(world, &volumes),
        }
    }

    fn ends(&mut self, world: &World, _pod: &Value) -> Option<Value> {
        let ends = !world.is_settling() && world.chance(2);
        ends.then(|| crate::node::ended("Succeeded", 0, &mini::env::rfc3339(world.env.now())))
    }

    fn settles(&mut self, _world: &World) {
        self.disk.iter().for_each(|disk| disk.is_well.store(true, Ordering::Relaxed));
    }

    fn see(&mut self, change: &Logged) {
        let (object, uid) = (&change.object, meta::uid(&change.object).to_owned());
        let map = match &*change.gvr.resource {
            "pods" => &mut self.pods,
            "persistentvolumeclaims" => &mut self.claims,
            "persistentvolumes" => &mut self.volumes,
            _ => return,
        };
        match change.deleted {
            true => drop(map.remove(&uid)),
            false => drop(map.insert(uid, object.clone())),
        }
        match &*change.gvr.resource {
            "persistentvolumeclaims" => self.see_claim(change),
            "persistentvolumes" => self.see_volume(change),
            _ => {}
        }
    }

    fn at_rest(&mut self, _api: &FakeApi) {
        self.claims.values().for_each(|claim| self.check_claim(claim));
        self.volumes.values().for_each(|volume| self.check_volume(volume));
        for pod in self.pods.values().filter(|pod| !is_finished(pod)) {
            assert!(!meta::is_terminating(pod), "{} does not go", meta::name(pod));
            let claims: Vec<_> = claims_of(pod).iter().map(|name| self.claim_named(name)).collect();
            let is_bound = |claim: &Arc<Value>| phase(claim) == "Bound";
            let stays = |claim: &Arc<Value>| is_bound(claim) && !meta::is_terminating(claim);
            // The scheduler may not know yet that a claim is gone; the node agent would wait for it.
            let bound = claims.iter().flatten().all(|claim| is_bound(claim));
            let well = claims.iter().all(|claim| claim.is_some_and(stays));
            let runs = pod["spec"]["nodeName"].is_string();
            assert!(bound || !runs, "{pod} runs without its claims: {claims:?}");
            assert!(runs || !well, "{pod} waits: {claims:?}");
        }
    }
}

impl Volumes {
    fn name(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}-{}", self.made)
    }

    fn create_claim(&mut self, world: &World) {
        let name = self.name("claim");
        let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": claim_spec(world)});
        let volumes = world.api.all(&gvr::<PersistentVolume>());
        if let Some(volume) = volumes.get(world.pick(volumes.len())).filter(|_| world.chance(10)) {
            // The user names a volume, taken or not.
            claim["spec"]["volumeName"] = meta::name(volume).into();
            claim["spec"]["storageClassName"] = volume["spec"]["storageClassName"].clone();
        }
        world.say(|| format!("user creates {claim}"));
        now(world.api.create(&gvr::<PersistentVolumeClaim>(), NAMESPACE, "", "", claim)).expect("created");
    }

    fn create_volume(&mut self, world: &World) {
        let name = self.name("volume");
        let class = if world.chance(60) { "manual" } else { "" };
        let mut spec = json!({"capacity": {"storage": size(world)}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": format!("/data/{name}")}});
        if world.chance(20) {
            // Reserved for a claim that may come, or be there.
            let claim = format!("claim-{}", 1 + world.pick(self.made));
            spec["claimRef"] = json!({"namespace": NAMESPACE, "name": claim});
        }
        world.say(|| format!("user creates {name} {spec}"));
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec});
        now(world.api.create(&gvr::<PersistentVolume>(), "", "", "", volume)).expect("created");
    }

    fn create_pod(&mut self, world: &World) {
        let name = self.name("pod");
        let claims = world.api.all(&gvr::<PersistentVolumeClaim>());
        let mut volumes = Vec::new();
        for claim in claims.iter().filter(|_| world.chance(30)) {
            let source = json!({"claimName": meta::name(claim)});
            volumes.push(json!({"name": meta::name(claim), "persistentVolumeClaim": source}));
        }
        if world.chance(30) {
            let mut spec = claim_spec(world);
            spec["storageClassName"] = if world.chance(50) { "fast" } else { "late" }.into();
            volumes.push(json!({"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}}));
        }
        world.say(|| format!("user creates {name} with {volumes:?}"));
        let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"containers": [container], "volumes": volumes}});
        now(world.api.create(&gvr::<Pod>(), NAMESPACE, "", "", pod)).expect("created");
    }

    fn claim_named(&self, name: &str) -> Option<&Arc<Value>> {
        self.claims.values().find(|claim| meta::name(claim) == name)
    }

    fn volume_named(&self, name: &str) -> Option<&Arc<Value>> {
        self.volumes.values().find(|volume| meta::name(volume) == name)
    }

    fn see_claim(&self, change: &Logged) {
        let claim = &change.object;
        if change.deleted {
            // What a pod may still write to stays.
            let uses = |pod: &&Arc<Value>| {
                let runs = pod["spec"]["nodeName"].is_string() && !is_finished(pod) && !meta::is_terminating(pod);
                runs && claims_of(pod).iter().any(|name| *name == meta::name(claim))
            };
            let users: Vec<_> = self.pods.values().filter(uses).map(|pod| meta::name(pod)).collect();
            assert!(users.is_empty(), "{} goes while {users:?} use it", meta::name(claim));
            return;
        }
        let was_bound = change.old.as_deref().is_some_and(|old| phase(old) == "Bound");
        if phase(claim) == "Bound" && !was_bound {
            self.check_binding(claim);
        }
        if let Some(old) = change.old.as_deref().filter(|_| was_bound) {
            assert_eq!(old["spec"]["volumeName"], claim["spec"]["volumeName"], "{claim}");
            assert!(gibibytes(&claim["status"]["capacity"]) >= gibibytes(&old["status"]["capacity"]), "{claim}");
        }
    }

    /// A claim that has just been bound: to one volume, which is large enough, and to which no other claim is bound.
    fn check_binding(&self, claim: &Value) {
        let volume = claim["spec"]["volumeName"].as_str().expect("it is bound");
        let rivals =
            self.claims.values().filter(|other| other["spec"]["volumeName"] == volume && phase(other) == "Bound");
        assert_eq!(rivals.count(), 1, "claims are bound to {volume}");
        let Some(volume) = self.volume_named(volume) else { return };
        let spec = &volume["spec"];
        assert_eq!(spec["claimRef"]["uid"], *meta::uid(claim), "{volume} is somebody else's, not of {claim}");
        let is_named = claim["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"].is_null();
        let fits = gibibytes(&spec["capacity"]) >= gibibytes(&claim["spec"]["resources"]["requests"]);
        // It may have been made larger since it was looked at.
        let grew = claim["metadata"]["generation"].as_i64() > Some(2);
        assert!(fits || is_named || grew, "{volume} is too small for {claim}");
        let class = |object: &Value| object["storageClassName"].as_str().unwrap_or_default().to_owned();
        let is_reserved = volume["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"].is_null();
        assert!(
            is_reserved || is_named || class(spec) == class(&claim["spec"]),
            "{volume} is of another class than {claim}"
        );
    }

    fn see_volume(&self, change: &Logged) {
        let volume = &change.object;
        let reference = |volume: &Value| volume["spec"]["claimRef"]["uid"].as_str().map(str::to_owned);
        let before = change.old.as_deref().and_then(reference);
        if !change.deleted {
            assert!(before.is_none() || before == reference(volume), "{volume} changes hands");
            return;
        }
        let claim = reference(volume).and_then(|uid| self.claims.get(&uid));
        let is_used =
            claim.is_some_and(|claim| phase(claim) == "Bound" && claim["spec"]["volumeName"] == meta::name(volume));
        assert!(!is_used, "{} goes while {claim:?} is bound to it", meta::name(volume));
        let is_ours = volume["metadata"]["annotations"][PROVISIONED_BY] == PROVISIONER;
        if is_ours && volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete" {
            let disk = self.disk.as_ref().expect("it has begun");
            assert!(!holds(disk, volume), "{} leaves its data behind", meta::name(volume));
        }
    }

    fn check_claim(&self, claim: &Value) {
        let name = meta::name(claim);
        let consumer = |pod: &&Arc<Value>| claims_of(pod).iter().any(|claim| claim == name) && !is_finished(pod);
        if meta::is_terminating(claim) {
            let held = self.pods.values().filter(consumer).any(|pod| pod["spec"]["nodeName"].is_string());
            return assert!(held, "{name} does not go");
        }
        if let Some(owner) = owner(claim) {
            assert!(self.pods.contains_key(owner), "{name} outlives its pod");
        }
        let volume = claim["spec"]["volumeName"].as_str().and_then(|name| self.volume_named(name));
        let is_bound = !claim["metadata"]["annotations"][BIND_COMPLETED].is_null();
        if is_bound {
            let has = volume.is_some_and(|volume| volume["spec"]["claimRef"]["uid"] == *meta::uid(claim));
            assert_eq!(phase(claim), if has { "Bound" } else { "Lost" }, "{claim}");
            let wanted = gibibytes(&claim["spec"]["resources"]["requests"]);
            let is_ours = |volume: &&Arc<Value>| volume["metadata"]["annotations"][PROVISIONED_BY] == PROVISIONER;
            if let Some(volume) = volume.filter(is_ours).filter(|_| has) {
                assert_eq!(gibibytes(&volume["spec"]["capacity"]), wanted, "{claim}");
                assert_eq!(gibibytes(&claim["status"]["capacity"]), wanted, "{claim}");
            }
            return;
        }
        assert_eq!(phase(claim), "Pending", "{claim}");
        if claim["spec"]["volumeName"].is_string() {
            // The user named a volume that is another's, or is not there.
            let free = volume.is_some_and(|volume| volume["spec"]["claimRef"].is_null());
            return assert!(!free, "{claim} does not get what it names");
        }
        let class = claim["spec"]["storageClassName"].as_str().unwrap_or_default();
        let row = CLASSES.iter().find(|row| row.0 == class);
        assert!(row.is_none_or(|row| row.1 != PROVISIONER || row.2 != "Immediate"), "{claim} gets no volume");
        let fits = |volume: &&Arc<Value>| {
            let spec = &volume["spec"];
            spec["claimRef"].is_null()
                && !meta::is_terminating(volume)
                && spec["storageClassName"].as_str().unwrap_or_default() == class
                && gibibytes(&spec["capacity"]) >= gibibytes(&claim["spec"]["resources"]["requests"])
        };
        let waits = row.is_some_and(|row| row.2 == "WaitForFirstConsumer");
        let free: Vec<_> = self.volumes.values().filter(fits).collect();
        assert!(waits || free.is_empty(), "{claim} does not take {free:?}");
    }

    fn check_volume(&self, volume: &Value) {
        let name = meta::name(volume);
        let claim = volume["spec"]["claimRef"]["uid"].as_str().map(|uid| self.claims.get(uid));
        let disk = self.disk.as_ref().expect("it has begun");
        let is_ours = volume["metadata"]["annotations"][PROVISIONED_BY] == PROVISIONER;
        assert!(!is_ours || holds(disk, volume), "the data of {name} is gone");
        match claim {
            None => assert_eq!(phase(volume), "Available", "{volume}"),
            Some(Some(claim)) if claim["spec"]["volumeName"] == name => assert_eq!(phase(volume), "Bound", "{volume}"),
            Some(Some(_)) => {}
            Some(None) => {
                let deletes = volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete";
                assert!(!(is_ours && deletes), "{name} is not reclaimed: {volume}");
                assert!(["Released", "Failed"].contains(&phase(volume)), "{volume}");
                assert!(!meta::is_terminating(volume), "{name} does not go: {volume}");
            }
        }
    }
}

fn phase(object: &Value) -> &str {
    object["status"]["phase"].as_str().unwrap_or_default()
}

fn gibibytes(amounts: &Value) -> u64 {
    let text = amounts["storage"].as_str().unwrap_or("0Gi");
    text.strip_suffix("Gi").and_then(|text| text.parse().ok()).expect("this story counts in gibibytes")
}

fn size(world: &World) -> String {
    format!("{}Gi", 1 + world.env.below(3))
}

fn claim_spec(world: &World) -> Value {
    let class = ["fast", "late", "kept", "manual", ""][world.pick(5)];
    json!({"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size(world)}}})
}

fn claims_of(pod: &Value) -> BTreeSet<String> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let claim = |volume: &Value| match volume["persistentVolumeClaim"]["claimName"].as_str() {
        Some(name) => name.to_owned(),
        None => format!("{}-{}", meta::name(pod), volume["name"].as_str().unwrap_or_default()),
    };
    volumes.map(claim).collect()
}

/// What admission and defaults do: protection, and the first phase.
fn prepare(_: &FakeApi, gvr: &Gvr, object: &mut Value) -> StatusResult<()> {
    let finalizer = match &*gvr.resource {
        "persistentvolumeclaims" => "kubernetes.io/pvc-protection",
        "persistentvolumes" => "kubernetes.io/pv-protection",
        _ => return Ok(()),
    };
    let mut finalizers: Vec<String> = meta::finalizers(object).map(str::to_owned).collect();
    finalizers.push(finalizer.into());
    object["metadata"]["finalizers"] = json!(finalizers);
    object["status"]["phase"] = "Pending".into();
    Ok(())
}

fn delete_one(world: &World, gvr: &Gvr, namespace: &str, objects: &[Arc<Value>]) {
    let Some(object) = objects.get(world.pick(objects.len())) else { return };
    world.say(|| format!("user deletes {}", meta::name(object)));
    now(world.api.delete(gvr, namespace, meta::name(object), &DeleteOptions::default())).expect("it is there");
}

fn expand(world: &World, claims: &[Arc<Value>]) {
    let bound: Vec<_> = claims.iter().filter(|claim| phase(claim) == "Bound").collect();
    let Some(claim) = bound.get(world.pick(bound.len())) else { return };
    let larger = gibibytes(&claim["spec"]["resources"]["requests"]) + 1;
    if larger > 6 {
        return;
    }
    world.say(|| format!("user wants {larger}Gi for {}", meta::name(claim)));
    let patch = Patch::Merge(json!({"spec": {"resources": {"requests": {"storage": format!("{larger}Gi")}}}}));
    now(world.api.patch(&gvr::<PersistentVolumeClaim>(), NAMESPACE, meta::name(claim), "", patch))
        .expect("it is there");
}

/// The reclaim policy of a volume in use changes from `Retain` to `Delete`: the other way is a race in Kubernetes as well.
fn keep_or_not(world: &World, volumes: &[Arc<Value>]) {
    let bound: Vec<_> = volumes.iter().filter(|volume| phase(volume) == "Bound").collect();
    let Some(volume) = bound.get(world.pick(bound.len())) else { return };
    world.say(|| format!("user gives up {}", meta::name(volume)));
    let patch = Patch::Merge(json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}));
    now(world.api.patch(&gvr::<PersistentVolume>(), "", meta::name(volume), "", patch)).expect("it is there");
}
