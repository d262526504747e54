//! Pods of different sizes, importance and wishes, and nodes with little room: what the scheduler makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use mini::api::meta;
use mini::client::fake::{FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::{self, Controller};

use crate::invariants::is_finished;
use crate::story::{KindRow, Story};
use crate::world::{NAMESPACE, World, now};

const HOST: &str = "kubernetes.io/hostname";
const IMPORTANT: i64 = 100;
/// Cores of each node.
const CORES: i64 = 8;

/// The story, and the truth as the API's history tells it.
#[derive(Default)]
pub struct Places {
    made: usize,
    pods: BTreeMap<String, Arc<Value>>,
    nodes: BTreeMap<String, Arc<Value>>,
    /// Pods that a user deleted.
    deleted_by_user: BTreeSet<String>,
}

impl Story for Places {
    fn kinds(&self) -> Vec<KindRow> {
        vec![(gvr::<Pod>(), "Pod", true), (gvr::<Node>(), "Node", false)]
    }

    fn controllers(&mut self, _world: &World) -> Vec<Arc<dyn Controller>> {
        vec![Arc::new(controllers::pod_gc::PodGcController)]
    }

    fn begin(&mut self, world: &World) {
        (0..5).for_each(|_| self.create_pod(world));
    }

    fn ends(&mut self, world: &World, _pod: &Value) -> Option<Value> {
        let ends = !world.is_settling() && world.chance(1);
        ends.then(|| crate::node::ended("Succeeded", 0, &mini::env::rfc3339(world.env.now())))
    }

    fn user_acts(&mut self, world: &World) {
        let nodes = world.api.all(&gvr::<Node>());
        match world.env.below(100) {
            0..60 => self.create_pod(world),
            60..80 => {
                let deleted = world.delete_some_pod();
                self.deleted_by_user.extend(deleted.map(|pod| meta::uid(&pod).to_owned()));
            }
            80..90 => {
                let Some(node) = nodes.get(world.pick(nodes.len())) else { return };
                let cordoned = if node["spec"]["unschedulable"] == true { Value::Null } else { json!(true) };
                world.say(|| format!("user cordons {}: {cordoned}", meta::name(node)));
                let patch = Patch::Merge(json!({"spec": {"unschedulable": cordoned}}));
                now(world.api.patch(&gvr::<Node>(), "", meta::name(node), "", patch)).expect("it is there");
            }
            90..94 if nodes.len() > 1 => {
                let name = meta::name(&nodes[world.pick(nodes.len())]);
                world.say(|| format!("{name} is removed"));
                now(world.api.delete(&gvr::<Node>(), "", name, &DeleteOptions::default())).expect("it is there");
            }
            _ if nodes.len() < 4 => {
                self.made += 1;
                let name = format!("node-{}", self.made);
                world.say(|| format!("{name} joins"));
                let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {HOST: name}},
                    "spec": {}, "status": {"allocatable": {"cpu": CORES.to_string(), "memory": "8Gi", "pods": "110"}}});
                world.api.seed(&gvr::<Node>(), node);
            }
            _ => {}
        }
    }

    fn see(&mut self, change: &Logged) {
        let (object, name) = (&change.object, meta::name(&change.object).to_owned());
        let map = match &*change.gvr.resource {
            "pods" => &mut self.pods,
            "nodes" => &mut self.nodes,
            _ => return,
        };
        match change.deleted {
            true => drop(map.remove(&name)),
            false => drop(map.insert(name, object.clone())),
        }
        if &*change.gvr.resource != "pods" {
            return;
        }
        let was_bound = change.old.as_deref().is_some_and(|old| !node_of(old).is_empty());
        if !change.deleted && !was_bound && !node_of(object).is_empty() {
            self.check_binding(object);
        }
        let is_preempted =
            meta::items(&object["status"]["conditions"]).iter().any(|c| c["reason"] == "PreemptionByScheduler");
        assert!(!is_preempted || priority(object) < IMPORTANT, "{object} makes room, and is important");
        let begins_to_go = meta::is_terminating(object) && !change.old.as_deref().is_some_and(meta::is_terminating);
        let has_node = self.nodes.contains_key(node_of(object));
        let by_user = self.deleted_by_user.contains(meta::uid(object));
        assert!(!(begins_to_go && has_node) || by_user || is_preempted || is_finished(object), "{object} goes");
    }

    fn at_rest(&mut self, _api: &FakeApi) {
        for pod in self.pods.values().filter(|pod| node_of(pod).is_empty()) {
            assert!(!meta::is_terminating(pod), "{} does not go", meta::name(pod));
            for node in self.nodes.values().filter(|node| node["spec"]["unschedulable"] != true) {
                let name = meta::name(node);
                let may_be_there = |other: &&Arc<Value>| priority(other) >= priority(pod);
                let stay: Vec<_> = self.on(name).filter(may_be_there).collect();
                let room = CORES - stay.iter().map(|pod| cores(pod)).sum::<i64>();
                let alone = stay.iter().all(|other| !avoid(pod, other));
                let fits = wants(pod, node) && room >= cores(pod) && alone;
                assert!(!fits, "{pod} waits, in spite of room on {name}");
            }
        }
    }
}

impl Places {
    /// The pods that take room on a node.
    fn on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Value>> {
        self.pods.values().filter(move |pod| node_of(pod) == node && !is_finished(pod))
    }

    /// A pod that has just got its node: there is room, and nobody is there that it avoids, or that avoids it.
    fn check_binding(&self, pod: &Value) {
        let name = node_of(pod);
        let Some(node) = self.nodes.get(name) else { return };
        let used: i64 = self.on(name).map(|pod| cores(pod)).sum();
        assert!(used <= CORES, "{used} cores are taken on {name}");
        assert!(wants(pod, node), "{pod} is not for {name}");
        let others = self.on(name).filter(|other| meta::uid(other) != meta::uid(pod));
        let avoided: Vec<_> = others.filter(|other| avoid(pod, other)).map(|other| meta::name(other)).collect();
        assert!(avoided.is_empty(), "{} is together with {avoided:?}", meta::name(pod));
    }

    fn create_pod(&mut self, world: &World) {
        if self.pods.len() > 14 {
            return;
        }
        self.made += 1;
        let (name, group) = (format!("pod-{}", self.made), format!("group-{}", world.env.below(3)));
        let requests = json!({"cpu": (1 + world.env.below(4)).to_string()});
        let container = json!({"name": "c", "image": "i", "resources": {"requests": requests}});
        let mut spec = json!({"containers": [container], "priority": 0, "terminationGracePeriodSeconds": 1});
        if world.chance(30) {
            spec["priority"] = IMPORTANT.into();
        }
        if world.chance(15) {
            spec["nodeSelector"] = json!({HOST: if world.chance(50) { "node-a" } else { "node-b" }});
        }
        if world.chance(25) {
            let term = json!({"topologyKey": HOST, "labelSelector": {"matchLabels": {"group": group}}});
            spec["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
        }
        world.say(|| format!("user creates {name} of {group}: {spec}"));
        let metadata = json!({"name": name, "namespace": NAMESPACE, "labels": {"group": group}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        now(world.api.create(&gvr::<Pod>(), NAMESPACE, "", "", pod)).expect("created");
    }
}

fn node_of(pod: &Value) -> &str {
    meta::text(&pod["spec"]["nodeName"])
}

fn priority(pod: &Value) -> i64 {
    meta::number(&pod["spec"]["priority"])
}

fn cores(pod: &Value) -> i64 {
    let text = meta::text(&pod["spec"]["containers"][0]["resources"]["requests"]["cpu"]);
    text.parse().expect("this story counts in cores")
}

fn wants(pod: &Value, node: &Value) -> bool {
    let wanted = &pod["spec"]["nodeSelector"][HOST];
    wanted.is_null() || *wanted == node["metadata"]["labels"][HOST]
}

/// Whether one of two pods of a group wants to be alone.
fn avoid(a: &Value, b: &Value) -> bool {
    let wants_to_be_alone = |pod: &Value| !pod["spec"]["affinity"].is_null();
    meta::label(a, "group") == meta::label(b, "group") && (wants_to_be_alone(a) || wants_to_be_alone(b))
}
