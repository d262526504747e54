//! A DaemonSet on nodes that come, change and go.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use mini::api::meta;
use mini::client::Object;
use mini::client::fake::{FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::daemon_set::nodes::{Verdict, verdict};
use mini::controllers::daemon_set::pods::target_node;
use mini::controllers::{self, Controller};

use crate::invariants::{is_ready, owner};
use crate::story::{KindRow, Story};
use crate::world::{NAMESPACE, World, now};

/// The story, and the truth as the API's history tells it.
#[derive(Default)]
pub struct Daemons {
    set: Option<Arc<Value>>,
    pods: BTreeMap<String, Arc<Value>>,
    nodes: BTreeMap<String, Arc<Value>>,
    /// Whether the set ever allowed two pods on a node.
    surged: bool,
    /// How many nodes may be without a ready pod, while nothing but the controllers acts.
    most_unavailable: Option<usize>,
}

impl Story for Daemons {
    fn kinds(&self) -> Vec<KindRow> {
        vec![
            (gvr::<Pod>(), "Pod", true),
            (gvr::<DaemonSet>(), "DaemonSet", true),
            (gvr::<ControllerRevision>(), "ControllerRevision", true),
            (gvr::<Node>(), "Node", false),
        ]
    }

    fn controllers(&mut self, _world: &World) -> Vec<Arc<dyn Controller>> {
        vec![
            Arc::new(controllers::daemon_set::DaemonSetController::default()),
            Arc::new(controllers::pod_gc::PodGcController),
            Arc::new(controllers::garbage_collector::GarbageCollector),
        ]
    }

    fn begin(&mut self, world: &World) {
        (0..2).for_each(|_| add_node(world));
        create(world);
    }

    fn pods_fail(&self) -> bool {
        true
    }

    fn user_acts(&mut self, world: &World) {
        let sets = gvr::<DaemonSet>();
        let set = world.api.all(&sets).first().cloned();
        match world.env.below(100) {
            0..35 => self.node_changes(world),
            35..50 => {
                if let Some(pod) = world.delete_some_pod() {
                    self.disturbed(&pod);
                }
            }
            50..95 => {
                let Some(set) = set else {
                    world.say(|| "user creates".into());
                    return create(world);
                };
                let spec = match world.env.below(3) {
                    0 => json!({"updateStrategy": strategy(world)}),
                    _ => {
                        let image = format!("i:{}", world.env.below(3));
                        json!({"template": {"spec": {"containers": [{"name": "c", "image": image}]}}})
                    }
                };
                world.say(|| format!("user changes {spec}"));
                let patch = Patch::Merge(json!({"spec": spec}));
                now(world.api.patch(&sets, NAMESPACE, meta::name(&set), "", patch)).expect("it is there");
            }
            _ => {
                let Some(set) = set else { return };
                let policy = ["Background", "Foreground", "Orphan"][world.pick(3)];
                world.say(|| format!("user deletes the set: {policy}"));
                let options = DeleteOptions { propagation_policy: Some(policy), ..Default::default() };
                now(world.api.delete(&sets, NAMESPACE, meta::name(&set), &options)).expect("it is there");
            }
        }
    }

    fn disturbed(&mut self, _pod: &Value) {
        self.most_unavailable = None;
    }

    fn see(&mut self, change: &Logged) {
        let object = &change.object;
        let kept = (!change.deleted).then(|| object.clone());
        match &*change.gvr.resource {
            "daemonsets" => self.see_set(change),
            "pods" => match kept {
                Some(pod) => drop(self.pods.insert(meta::name(&pod).to_owned(), pod)),
                None => drop(self.pods.remove(meta::name(object))),
            },
            "nodes" => {
                self.most_unavailable = None;
                match kept {
                    Some(node) => drop(self.nodes.insert(meta::name(&node).to_owned(), node)),
                    None => drop(self.nodes.remove(meta::name(object))),
                }
            }
            _ => {}
        }
        self.check_nodes();
        self.check_availability();
    }

    fn at_rest(&mut self, api: &FakeApi) {
        let Some(set) = self.live().cloned() else { return };
        let (mut desired, mut updated) = (0, 0);
        // A pod that waits for a node which takes no new ones any more is unavailable, and may hold up the others' update.
        let waits = |name: &str| self.pods.values().any(|pod| on(pod).as_deref() == Some(name) && !is_ready(pod));
        let is_held_up = self.nodes.iter().any(|(name, node)| verdict_of(&set, node) != Verdict::Run && waits(name));
        for (name, node) in &self.nodes {
            let pods: Vec<_> = self.pods.values().filter(|pod| on(pod).as_deref() == Some(name)).collect();
            let runs = verdict_of(&set, node);
            if runs == Verdict::NoPod {
                assert!(pods.is_empty(), "{name} should have no pod: {pods:?}");
            }
            if runs != Verdict::Run {
                continue;
            }
            desired += 1;
            let [pod] = pods.as_slice() else { panic!("{name} has {} pods", pods.len()) };
            assert!(is_ready(pod) && owner(pod) == Some(meta::uid(&set)), "{pod}");
            let template = &set["spec"]["template"]["spec"];
            let is_updated = ["containers", "nodeSelector"].iter().all(|field| pod["spec"][field] == template[field]);
            updated += i64::from(is_updated);
            let may_be_old = is_held_up || set["spec"]["updateStrategy"]["type"] == "OnDelete";
            assert!(is_updated || may_be_old, "{name} has an old pod");
        }
        let status = |field: &str| set["status"][field].as_i64().unwrap_or_default();
        for field in ["desiredNumberScheduled", "currentNumberScheduled", "numberReady", "numberAvailable"] {
            assert_eq!(status(field), desired, "{field} of {set}");
        }
        assert_eq!(status("updatedNumberScheduled"), updated);
        assert_eq!(set["status"]["observedGeneration"], set["metadata"]["generation"]);
        let revisions = api.all(&gvr::<ControllerRevision>());
        let own = revisions.iter().filter(|revision| owner(revision) == Some(meta::uid(&set)));
        let in_use = |revision: &&&Arc<Value>| {
            let hash = meta::label(revision, "controller-revision-hash");
            self.pods.values().any(|pod| meta::label(pod, "controller-revision-hash") == hash)
        };
        let old = own.filter(|revision| !in_use(&revision)).count();
        let limit = set["spec"]["revisionHistoryLimit"].as_u64().expect("it is set");
        // The newest may have no pods.
        assert!(old as u64 <= limit + 1, "the history is cleaned up");
    }
}

impl Daemons {
    fn see_set(&mut self, change: &Logged) {
        let set = &change.object;
        self.surged |= set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"].as_i64().unwrap_or_default() > 0;
        let strategy = |set: &Value| set["spec"]["updateStrategy"].clone();
        if change.deleted || self.set.as_ref().is_none_or(|old| strategy(old) != strategy(set)) {
            self.most_unavailable = None;
        }
        self.set = (!change.deleted).then(|| set.clone());
    }

    fn live(&self) -> Option<&Arc<Value>> {
        self.set.as_ref().filter(|set| !meta::is_terminating(set))
    }

    fn node_changes(&mut self, world: &World) {
        let nodes = world.api.all(&gvr::<Node>());
        if nodes.len() < 2 || (nodes.len() < 6 && world.chance(25)) {
            return add_node(world);
        }
        let node = &nodes[world.pick(nodes.len())];
        let name = meta::name(node);
        let patch = match world.env.below(10) {
            0 => {
                world.say(|| format!("node {name} is gone"));
                now(world.api.delete(&gvr::<Node>(), "", name, &DeleteOptions::default())).expect("it is there");
                return;
            }
            1..4 => json!({"metadata": {"labels": {"role": if world.chance(70) { "agent" } else { "other" }}}}),
            4..6 => json!({"spec": {"taints": [{"key": "busy", "effect": "NoSchedule"}]}}),
            6 => json!({"spec": {"taints": [{"key": "broken", "effect": "NoExecute"}]}}),
            _ => json!({"spec": {"taints": null}}),
        };
        world.say(|| format!("node {name} changes {patch}"));
        now(world.api.patch(&gvr::<Node>(), "", name, "", Patch::Merge(patch))).expect("it is there");
    }

    /// No node has two pods that this set made (or more than an old and a new one).
    fn check_nodes(&self) {
        let Some(set) = self.live() else { return };
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for pod in self.pods.values() {
            let ended = pod["status"]["phase"] == "Failed" || meta::is_terminating(pod);
            if !ended && owner(pod) == Some(meta::uid(set)) {
                *counts.entry(on(pod).expect("daemons are made for a node")).or_default() += 1;
            }
        }
        // Pods that an earlier set left behind may be adopted beside those that were just made.
        let adopted = self.pods.values().any(|pod| created(pod) < created(set));
        let most = if self.surged || adopted { 2 } else { 1 };
        assert!(counts.values().all(|count| *count <= most), "{counts:?} pods, {most} at most");
    }

    /// A rolling update leaves enough nodes with a ready pod.
    fn check_availability(&mut self) {
        let Some(set) = self.live() else {
            self.most_unavailable = None;
            return;
        };
        let wanted: Vec<_> = self.nodes.iter().filter(|(_, node)| verdict_of(set, node) == Verdict::Run).collect();
        let served = |name: &String| {
            let here = |pod: &&Arc<Value>| on(pod).as_deref() == Some(name);
            self.pods.values().filter(here).any(|pod| is_ready(pod) && !meta::is_terminating(pod))
        };
        let unserved = wanted.iter().filter(|(name, _)| !served(name)).count();
        match self.most_unavailable {
            Some(most) => assert!(unserved <= most, "{unserved} nodes have no ready pod, {most} at most"),
            None if unserved == 0 && is_caught_up(set, wanted.len()) => {
                let rolling = &set["spec"]["updateStrategy"]["rollingUpdate"];
                let most = rolling["maxUnavailable"].as_u64().unwrap_or_default();
                self.most_unavailable = Some(usize::try_from(most).expect("few"));
            }
            None => {}
        }
    }
}

fn is_caught_up(set: &Value, wanted: usize) -> bool {
    let status = &set["status"];
    status["observedGeneration"] == set["metadata"]["generation"]
        && status["numberAvailable"].as_u64().unwrap_or_default() == wanted as u64
        && status["desiredNumberScheduled"] == wanted
}

fn created(object: &Value) -> Option<&str> {
    object["metadata"]["creationTimestamp"].as_str()
}

fn on(pod: &Value) -> Option<String> {
    target_node(&Pod::parse(pod).expect("a pod")).map(str::to_owned)
}

fn verdict_of(set: &Value, node: &Value) -> Verdict {
    verdict(&DaemonSet::parse(set).expect("a set"), &Node::parse(node).expect("a node"))
}

fn add_node(world: &World) {
    let name = format!("node-{}", world.env.suffix(3));
    world.say(|| format!("node {name} joins"));
    let role = if world.chance(70) { "agent" } else { "other" };
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"role": role}},
        "spec": {}, "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"}}});
    world.api.seed(&gvr::<Node>(), node);
}

fn strategy(world: &World) -> Value {
    let rolling = match world.env.below(4) {
        0 => return json!({"type": "OnDelete", "rollingUpdate": null}),
        1 => json!({"maxUnavailable": 0, "maxSurge": 1}),
        2 => json!({"maxUnavailable": 2, "maxSurge": 0}),
        _ => json!({"maxUnavailable": 1, "maxSurge": 0}),
    };
    json!({"type": "RollingUpdate", "rollingUpdate": rolling})
}

fn create(world: &World) {
    let container =
        json!({"name": "c", "image": format!("i:{}", world.env.below(3)), "resources": {"requests": {"cpu": "100m"}}});
    let nodes = if world.chance(50) { json!({"role": "agent"}) } else { Value::Null };
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent", "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "updateStrategy": strategy(world),
            "revisionHistoryLimit": world.env.below(3), "minReadySeconds": if world.chance(20) { 5 } else { 0 },
            "template": {"metadata": {"labels": {"app": "agent"}},
                "spec": {"containers": [container], "nodeSelector": nodes}}}});
    now(world.api.create(&gvr::<DaemonSet>(), NAMESPACE, "", "", set)).expect("created");
}
