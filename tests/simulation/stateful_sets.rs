//! A StatefulSet with claims, rolled over, scaled, deleted, left behind and taken up again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use mini::api::meta;
use mini::client::fake::{FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::{self, Controller};

use crate::invariants::{is_ready, owner};
use crate::story::{KindRow, Story};
use crate::world::{NAMESPACE, World, now};

/// The story, and the truth as the API's history tells it.
#[derive(Default)]
pub struct Ordinals {
    set: Option<Arc<Value>>,
    pods: BTreeMap<i64, Arc<Value>>,
    /// Ordinals whose pod somebody else took away, or made unready, since it was last ready.
    disturbed: BTreeSet<i64>,
    /// Uids of pods that a user deleted.
    deleted_by_user: BTreeSet<String>,
    /// Whether any policy ever allowed to delete claims.
    may_delete_claims: bool,
    /// The generation of the set in which its first ordinal changed last.
    start_changed: i64,
    /// The least number of ready pods, while nothing but the controllers acts.
    floor: Option<i64>,
}

impl Story for Ordinals {
    fn kinds(&self) -> Vec<KindRow> {
        vec![
            (gvr::<Pod>(), "Pod", true),
            (gvr::<StatefulSet>(), "StatefulSet", true),
            (gvr::<ControllerRevision>(), "ControllerRevision", true),
            (gvr::<PersistentVolumeClaim>(), "PersistentVolumeClaim", true),
            (gvr::<PersistentVolume>(), "PersistentVolume", false),
            (gvr::<Node>(), "Node", false),
        ]
    }

    fn controllers(&mut self, _world: &World) -> Vec<Arc<dyn Controller>> {
        vec![
            Arc::new(controllers::stateful_set::StatefulSetController),
            Arc::new(controllers::volume_protection::VolumeProtectionController),
            Arc::new(controllers::garbage_collector::GarbageCollector),
        ]
    }

    fn begin(&mut self, world: &World) {
        create(world);
    }

    fn pods_fail(&self) -> bool {
        true
    }

    fn user_acts(&mut self, world: &World) {
        let sets = gvr::<StatefulSet>();
        let Some(set) = world.api.all(&sets).first().cloned() else {
            if world.chance(40) {
                world.say(|| "user creates".into());
                create(world);
            }
            return;
        };
        let spec = match world.env.below(100) {
            0..25 => json!({"replicas": world.env.below(6)}),
            25..50 => {
                let image = format!("i:{}", world.env.below(3));
                json!({"template": {"spec": {"containers": [{"name": "c", "image": image}]}}})
            }
            50..60 => json!({"updateStrategy": strategy(world)}),
            60..65 => json!({"persistentVolumeClaimRetentionPolicy": policy(world)}),
            65..70 => json!({"ordinals": {"start": world.env.below(3)}}),
            70..90 => {
                if let Some(pod) = world.delete_some_pod() {
                    self.deleted_by_user.insert(meta::uid(&pod).to_owned());
                    self.disturbed(&pod);
                }
                return;
            }
            90..93 => {
                let revisions = world.api.all(&gvr::<ControllerRevision>());
                if let Some(revision) = revisions.get(world.pick(revisions.len())) {
                    let name = meta::name(revision);
                    world.say(|| format!("user deletes {name}"));
                    let options = DeleteOptions::default();
                    now(world.api.delete(&gvr::<ControllerRevision>(), NAMESPACE, name, &options))
                        .expect("it is there");
                }
                return;
            }
            _ => {
                let policy = ["Background", "Foreground", "Orphan"][world.pick(3)];
                world.say(|| format!("user deletes the set: {policy}"));
                let options = DeleteOptions { propagation_policy: Some(policy), ..Default::default() };
                now(world.api.delete(&sets, NAMESPACE, meta::name(&set), &options)).expect("it is there");
                return;
            }
        };
        world.say(|| format!("user changes {spec}"));
        now(world.api.patch(&sets, NAMESPACE, meta::name(&set), "", Patch::Merge(json!({"spec": spec}))))
            .expect("it is there");
    }

    fn disturbed(&mut self, pod: &Value) {
        self.disturbed.extend(ordinal(pod));
        self.floor = None;
    }

    fn see(&mut self, change: &Logged) {
        match &*change.gvr.resource {
            "statefulsets" => self.see_set(change),
            "pods" => self.see_pod(change),
            "persistentvolumeclaims" => self.see_claim(change),
            _ => {}
        }
        self.check_floor();
    }

    fn at_rest(&mut self, api: &FakeApi) {
        let Some(set) = api.all(&gvr::<StatefulSet>()).first().cloned() else { return };
        let spec = &set["spec"];
        let pods = api.all(&gvr::<Pod>());
        let names: BTreeSet<String> = pods.iter().map(|pod| meta::name(pod).to_owned()).collect();
        let wanted: BTreeSet<String> = range(&set).map(|ordinal| format!("web-{ordinal}")).collect();
        assert_eq!(names, wanted);
        for pod in &pods {
            let ordinal = ordinal(pod).expect("it has its name");
            assert!(is_ready(pod) && owner(pod) == Some(meta::uid(&set)), "{pod}");
            let is_rolled = spec["updateStrategy"]["type"] == "RollingUpdate" && ordinal >= partition(&set);
            if is_rolled {
                let containers = |spec: &Value| spec["containers"].clone();
                assert_eq!(containers(&pod["spec"]), containers(&spec["template"]["spec"]), "{}", meta::name(pod));
            }
            for claim in spec["volumeClaimTemplates"].as_array().into_iter().flatten() {
                let name = format!("{}-web-{ordinal}", meta::name(claim));
                now(api.get(&gvr::<PersistentVolumeClaim>(), NAMESPACE, &name)).expect("every pod has its claims");
            }
        }
        self.check_status(&set);
        check_history(api, &set, &pods);
    }
}

impl Ordinals {
    fn see_set(&mut self, change: &Logged) {
        let set = &change.object;
        let policy = &set["spec"]["persistentVolumeClaimRetentionPolicy"];
        self.may_delete_claims |= policy["whenDeleted"] == "Delete" || policy["whenScaled"] == "Delete";
        let but_template = |set: &Value| {
            let mut spec = set["spec"].clone();
            spec["template"] = Value::Null;
            spec
        };
        if change.deleted || self.set.as_ref().is_none_or(|old| but_template(old) != but_template(set)) {
            self.floor = None;
        }
        if self.set.as_ref().is_some_and(|old| range(old).start != range(set).start) {
            self.start_changed = meta::generation(set);
        }
        if change.old.is_none() {
            self.start_changed = 0;
        }
        self.set = (!change.deleted).then(|| set.clone());
    }

    /// The set whose rules the controller has to keep: it exists and stays.
    fn live(&self) -> Option<&Value> {
        self.set.as_deref().filter(|set| !meta::is_terminating(set))
    }

    fn is_ordered(&self) -> bool {
        self.live().is_some_and(|set| set["spec"]["podManagementPolicy"] == "OrderedReady")
    }

    fn see_pod(&mut self, change: &Logged) {
        let pod = &change.object;
        let ordinal = ordinal(pod).expect("every pod here has its name from the set");
        if change.deleted {
            self.pods.remove(&ordinal);
            return;
        }
        if change.old.is_none() {
            self.check_order(ordinal, pod);
        }
        if is_ready(pod) && !meta::is_terminating(pod) {
            self.disturbed.remove(&ordinal);
        }
        self.pods.insert(ordinal, pod.clone());
        self.check_terminating();
    }

    /// In an ordered set a pod is made only when all before it are ready.
    fn check_order(&self, ordinal: i64, pod: &Value) {
        let Some(set) = self.live().filter(|set| self.is_ordered() && owner(pod) == Some(meta::uid(set))) else {
            return;
        };
        // The controller may not know yet where the set begins now.
        if set["status"]["observedGeneration"].as_i64().unwrap_or_default() < self.start_changed {
            return;
        }
        for before in range(set).start..ordinal {
            let well = match self.pods.get(&before) {
                Some(other) if owner(other) != owner(pod) => true,
                Some(other) => is_ready(other) && !meta::is_terminating(other),
                None => false,
            };
            assert!(well || self.disturbed.contains(&before), "web-{ordinal} is made while web-{before} is not ready");
        }
    }

    /// In an ordered set the controller takes one pod after the other away.
    fn check_terminating(&self) {
        let Some(set) = self.live().filter(|_| self.is_ordered()) else { return };
        if !set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"].is_null() {
            return;
        }
        let by_controller = |pod: &&Arc<Value>| {
            meta::is_terminating(pod)
                && owner(pod) == Some(meta::uid(set))
                && !self.deleted_by_user.contains(meta::uid(pod))
        };
        let going: Vec<_> = self.pods.values().filter(by_controller).map(|pod| meta::name(pod)).collect();
        assert!(going.len() < 2, "{going:?} go at the same time");
    }

    /// Claims go only as a policy says, and never before the pod that owns them has to go.
    fn see_claim(&self, change: &Logged) {
        if !change.deleted {
            return;
        }
        let claim = &change.object;
        let name = meta::name(claim);
        assert!(self.may_delete_claims, "{name} is deleted though no policy says so");
        let owners = claim["metadata"]["ownerReferences"].as_array().expect("only owners take claims with them");
        for owner in owners.iter().filter(|owner| owner["kind"] == "Pod") {
            let is_it = |pod: &&Arc<Value>| owner["uid"] == meta::uid(pod) && !meta::is_terminating(pod);
            assert!(!self.pods.values().any(|pod| is_it(&pod)), "{name} is deleted before its pod");
        }
    }

    /// A roll-out leaves enough pods ready.
    fn check_floor(&mut self) {
        let Some(set) = self.live().cloned() else {
            self.floor = None;
            return;
        };
        let uid = Some(meta::uid(&set).to_owned());
        let own = || self.pods.values().filter(|pod| owner(pod).map(str::to_owned) == uid);
        let ready = own().filter(|pod| is_ready(pod) && !meta::is_terminating(pod)).count();
        let (ready, replicas) = (i64::try_from(ready).expect("few"), set["spec"]["replicas"].as_i64().unwrap_or(1));
        match self.floor {
            Some(floor) => assert!(ready >= floor, "only {ready} pods are ready, {floor} at least"),
            // All are there, and the controller has seen it.
            None if ready == replicas && self.caught_up(&set) => {
                let most = &set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"];
                self.floor = Some(replicas - most.as_i64().unwrap_or(1));
            }
            None => {}
        }
    }

    fn caught_up(&self, set: &Value) -> bool {
        let status = &set["status"];
        let all = range(set).all(|ordinal| self.pods.contains_key(&ordinal));
        all && self.pods.len() == range(set).count()
            && status["observedGeneration"] == set["metadata"]["generation"]
            && status["availableReplicas"] == set["spec"]["replicas"]
            && status["replicas"] == set["spec"]["replicas"]
    }

    fn check_status(&self, set: &Value) {
        let status = |field: &str| set["status"][field].as_i64().unwrap_or_default();
        for field in ["replicas", "readyReplicas", "availableReplicas"] {
            assert_eq!(set["spec"]["replicas"], status(field), "{field} of {set}");
        }
        assert_eq!(set["status"]["observedGeneration"], set["metadata"]["generation"]);
        if set["spec"]["updateStrategy"]["type"] == "RollingUpdate" && partition(set) == 0 {
            assert_eq!(set["status"]["currentRevision"], set["status"]["updateRevision"]);
            assert_eq!(set["spec"]["replicas"], status("updatedReplicas"));
        }
    }
}

fn check_history(api: &FakeApi, set: &Value, pods: &[Arc<Value>]) {
    let revisions = api.all(&gvr::<ControllerRevision>());
    let mut live: BTreeSet<&str> = pods.iter().filter_map(|pod| meta::label(pod, "controller-revision-hash")).collect();
    live.extend(["currentRevision", "updateRevision"].iter().filter_map(|field| set["status"][*field].as_str()));
    let own = revisions.iter().filter(|revision| owner(revision) == Some(meta::uid(set)));
    let old = own.filter(|revision| !live.contains(meta::name(revision))).count();
    let limit = set["spec"]["revisionHistoryLimit"].as_u64().expect("it is set");
    assert!(old as u64 <= limit, "the history is cleaned up");
    let update = set["status"]["updateRevision"].as_str();
    assert!(revisions.iter().any(|revision| Some(meta::name(revision)) == update), "the update revision is kept");
}

fn ordinal(pod: &Value) -> Option<i64> {
    meta::name(pod).strip_prefix("web-")?.parse().ok()
}

fn range(set: &Value) -> std::ops::Range<i64> {
    let start = set["spec"]["ordinals"]["start"].as_i64().unwrap_or_default();
    start..start + set["spec"]["replicas"].as_i64().unwrap_or(1)
}

/// The first ordinal that a roll-out concerns.
fn partition(set: &Value) -> i64 {
    let partition = &set["spec"]["updateStrategy"]["rollingUpdate"]["partition"];
    range(set).start + partition.as_i64().unwrap_or_default()
}

fn strategy(world: &World) -> Value {
    let rolling = match world.env.below(5) {
        0 => return json!({"type": "OnDelete", "rollingUpdate": null}),
        1 => json!({"partition": world.env.below(4), "maxUnavailable": null}),
        2 => json!({"partition": 0, "maxUnavailable": 2}),
        _ => json!({"partition": 0, "maxUnavailable": null}),
    };
    json!({"type": "RollingUpdate", "rollingUpdate": rolling})
}

fn policy(world: &World) -> Value {
    let word = || if world.chance(50) { "Delete" } else { "Retain" };
    json!({"whenDeleted": word(), "whenScaled": word()})
}

fn create(world: &World) {
    let container =
        json!({"name": "c", "image": format!("i:{}", world.env.below(3)), "resources": {"requests": {"cpu": "100m"}}});
    let policy =
        if world.chance(50) { policy(world) } else { json!({"whenDeleted": "Retain", "whenScaled": "Retain"}) };
    let claims = if world.chance(60) {
        json!([{"metadata": {"name": "www"}, "spec": {"accessModes": ["ReadWriteOnce"]}}])
    } else {
        json!([])
    };
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"replicas": world.env.below(6), "serviceName": "web", "selector": {"matchLabels": {"app": "web"}},
            "podManagementPolicy": if world.chance(35) { "Parallel" } else { "OrderedReady" },
            "updateStrategy": strategy(world), "persistentVolumeClaimRetentionPolicy": policy,
            "volumeClaimTemplates": claims, "revisionHistoryLimit": world.env.below(3),
            "minReadySeconds": if world.chance(20) { 5 } else { 0 },
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}}});
    now(world.api.create(&gvr::<StatefulSet>(), NAMESPACE, "", "", set)).expect("created");
}
