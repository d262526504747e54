//! Nodes that fall silent, are tainted, drained, removed and come back, under a ReplicationController and a budget.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use mini::api::meta;
use mini::client::fake::{FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::{self, Controller};
use mini::env::{rfc3339, rfc3339_micro};

use crate::budgets::{Budgets, create_budget, scale};
use crate::invariants::{is_finished, is_ready};
use crate::story::{KindRow, Story};
use crate::world::{NAMESPACE, World, now};

const LEASES: &str = "kube-node-lease";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const CORDONED: &str = "node.kubernetes.io/unschedulable";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// A taint of the user.
const MAINTENANCE: &str = "maintenance";
const HEARTBEAT: SignedDuration = SignedDuration::from_secs(20);

/// The story, and the truth as the API's history tells it.
#[derive(Default)]
pub struct Machines {
    time: Timestamp,
    /// Machines that neither send heartbeats nor do anything else.
    silent: BTreeSet<String>,
    /// When each living machine sent its last heartbeat.
    beats: BTreeMap<String, Timestamp>,
    nodes: BTreeMap<String, Arc<Value>>,
    pods: BTreeMap<String, Arc<Value>>,
    /// `NoExecute` taints of each node, and since when they were there; also those that are gone.
    taints: BTreeMap<String, Vec<(Value, Timestamp)>>,
    /// The most pods that were ever asked for.
    largest: i64,
    budgets: Budgets,
}

impl Story for Machines {
    fn kinds(&self) -> Vec<KindRow> {
        vec![
            (gvr::<Pod>(), "Pod", true),
            (gvr::<ReplicationController>(), "ReplicationController", true),
            (gvr::<PodDisruptionBudget>(), "PodDisruptionBudget", true),
            (gvr::<Node>(), "Node", false),
            (gvr::<Lease>(), "Lease", true),
        ]
    }

    fn controllers(&mut self, _world: &World) -> Vec<Arc<dyn Controller>> {
        let networking = crate::networking();
        vec![
            Arc::new(controllers::replication_controller::ReplicationControllerController),
            Arc::new(controllers::disruption::DisruptionController),
            Arc::new(controllers::disruption::StaleConditionController),
            Arc::new(controllers::node_lifecycle::NodeLifecycleController::new(String::new())),
            Arc::new(controllers::taint_eviction::TaintEvictionController::default()),
            Arc::new(controllers::node_ipam::NodeIpamController { networking }),
            Arc::new(controllers::pod_gc::PodGcController),
            Arc::new(controllers::garbage_collector::GarbageCollector),
        ]
    }

    fn stride(&self) -> SignedDuration {
        SignedDuration::from_secs(30)
    }

    fn patience(&self) -> SignedDuration {
        SignedDuration::from_mins(6)
    }

    fn begin(&mut self, world: &World) {
        self.time = world.env.now();
        for number in 0..1 + world.env.below(3) {
            add_node(world, &format!("machine-{number}"));
        }
        create_controller(world);
        create_budget(world);
        self.time_passed(world);
    }

    fn is_silent(&self, node: &str) -> bool {
        self.silent.contains(node)
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        let alive = self.nodes.keys().filter(|name| !self.silent.contains(*name));
        alive.map(|name| self.beats.get(name).map_or(self.time, |last| *last + HEARTBEAT)).min()
    }

    fn time_passed(&mut self, world: &World) {
        self.time = world.env.now();
        for node in world.api.all(&gvr::<Node>()) {
            let name = meta::name(&node).to_owned();
            let is_due = self.beats.get(&name).is_none_or(|last| *last + HEARTBEAT <= self.time);
            if is_due && !self.silent.contains(&name) {
                beat(world, &node);
                self.beats.insert(name, self.time);
            }
        }
    }

    fn user_acts(&mut self, world: &World) {
        let nodes = world.api.all(&gvr::<Node>());
        let node = nodes.get(world.pick(nodes.len())).cloned();
        match world.env.below(100) {
            0..30 => self.machine_changes(world, node.as_deref()),
            30..50 => node.iter().for_each(|node| user_changes_node(world, node, &self.silent)),
            50..75 => self.drain(world, node.as_deref()),
            75..85 => scale(world, world.env.below(6)),
            85..92 => drop(world.delete_some_pod()),
            _ => {
                let budgets = world.api.all(&gvr::<PodDisruptionBudget>());
                for budget in &budgets {
                    let options = DeleteOptions::default();
                    let name = meta::name(budget);
                    now(world.api.delete(&gvr::<PodDisruptionBudget>(), NAMESPACE, name, &options))
                        .expect("it is there");
                }
                create_budget(world);
            }
        }
    }

    fn settles(&mut self, world: &World) {
        for name in self.silent.clone() {
            match world.env.below(3) {
                0 => drop(self.silent.remove(&name)),
                1 if self.nodes.contains_key(&name) => self.remove_node(world, &name),
                _ => {}
            }
        }
        self.time_passed(world);
    }

    fn see(&mut self, change: &Logged) {
        let (object, name) = (&change.object, meta::name(&change.object).to_owned());
        match &*change.gvr.resource {
            "nodes" => self.see_node(change),
            "pods" => {
                self.check_disruption(change);
                match change.deleted {
                    true => drop(self.pods.remove(&name)),
                    false => drop(self.pods.insert(name, object.clone())),
                }
                let active = self.pods.values().filter(|pod| !meta::is_terminating(pod) && !is_finished(pod));
                let active = i64::try_from(active.count()).expect("few");
                assert!(active <= self.largest, "{active} pods, {} at most", self.largest);
            }
            "replicationcontrollers" => {
                self.largest = self.largest.max(object["spec"]["replicas"].as_i64().unwrap_or(1));
            }
            _ => {}
        }
        self.budgets.see(change);
    }

    fn at_rest(&mut self, api: &FakeApi) {
        self.budgets.at_rest();
        self.nodes.values().for_each(|node| self.check_node(node));
        for pod in self.pods.values() {
            let Some(node) = pod["spec"]["nodeName"].as_str() else { continue };
            assert!(self.nodes.contains_key(node), "{} is on a node that is gone", meta::name(pod));
            if self.silent.contains(node) {
                continue; // whether it is ready, or gone, nobody knows
            }
            assert!(!meta::is_terminating(pod), "{} does not go", meta::name(pod));
            let taints = taints(&self.nodes[node]);
            let at_once =
                |taint: &&Value| taint["effect"] == "NoExecute" && stay(pod, taint) == Some(SignedDuration::ZERO);
            let unfit: Vec<_> = taints.iter().filter(at_once).collect();
            assert!(unfit.is_empty(), "{} stays in spite of {unfit:?}", meta::name(pod));
            let target = condition(pod, "DisruptionTarget");
            assert!(target.is_none_or(|target| target["status"] == "False"), "nobody takes the condition back: {pod}");
        }
        for set in api.all(&gvr::<ReplicationController>()) {
            let active = self.pods.values().filter(|pod| !meta::is_terminating(pod) && !is_finished(pod));
            let (count, ready) = (active.clone().count(), active.filter(|pod| is_ready(pod)).count());
            assert_eq!(set["spec"]["replicas"], count, "{set}");
            assert_eq!(set["status"]["replicas"], count, "{set}");
            assert_eq!(set["status"]["readyReplicas"].as_u64().unwrap_or_default(), ready as u64, "{set}");
        }
    }
}

impl Machines {
    /// A machine falls silent, speaks again, leaves, or comes (back).
    fn machine_changes(&mut self, world: &World, node: Option<&Value>) {
        let Some(node) = node.filter(|_| world.chance(80)) else {
            let name = format!("machine-{}", world.env.below(5));
            if !self.nodes.contains_key(&name) {
                self.silent.remove(&name);
                add_node(world, &name);
            }
            return;
        };
        let name = meta::name(node).to_owned();
        if self.silent.remove(&name) {
            world.say(|| format!("{name} speaks again"));
        } else if world.chance(30) {
            self.remove_node(world, &name);
        } else {
            world.say(|| format!("{name} falls silent"));
            self.silent.insert(name);
        }
    }

    fn remove_node(&mut self, world: &World, name: &str) {
        world.say(|| format!("{name} is removed"));
        now(world.api.delete(&gvr::<Node>(), "", name, &DeleteOptions::default())).expect("it is there");
        self.beats.remove(name);
        self.silent.remove(name);
    }

    /// `kubectl drain`, or one pod of it.
    fn drain(&mut self, world: &World, node: Option<&Value>) {
        let Some(node) = node else { return };
        let here = |pod: &&Arc<Value>| pod["spec"]["nodeName"] == meta::name(node);
        let pods: Vec<_> = world.api.all(&gvr::<Pod>()).iter().filter(here).cloned().collect();
        if world.chance(50) {
            cordon(world, node, true);
            pods.iter().for_each(|pod| self.budgets.evict(world, pod));
        } else if let Some(pod) = pods.get(world.pick(pods.len())) {
            self.budgets.evict(world, pod);
        }
    }

    fn see_node(&mut self, change: &Logged) {
        let (node, name) = (&change.object, meta::name(&change.object).to_owned());
        let known = self.taints.entry(name.clone()).or_default();
        let before = change.old.as_deref().map(taints).unwrap_or_default();
        for taint in taints(node).into_iter().filter(|taint| taint["effect"] == "NoExecute" && !before.contains(taint))
        {
            known.push((taint, self.time));
        }
        match change.deleted {
            true => drop(self.nodes.remove(&name)),
            false => drop(self.nodes.insert(name, node.clone())),
        }
        let cidrs: Vec<_> = self.nodes.values().filter_map(|node| node["spec"]["podCIDR"].as_str()).collect();
        assert_eq!(cidrs.iter().collect::<BTreeSet<_>>().len(), cidrs.len(), "two nodes have the same addresses");
    }

    /// Whoever takes a pod away has a reason, and has waited for as long as the pod may stay.
    fn check_disruption(&self, change: &Logged) {
        let reason = |pod: &Value| {
            let target = condition(pod, "DisruptionTarget").filter(|target| target["status"] == "True")?;
            target["reason"].as_str().map(str::to_owned)
        };
        let (pod, now) = (&change.object, reason(&change.object));
        if now.is_none() || change.old.as_deref().and_then(reason) == now {
            return;
        }
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        match now.as_deref() {
            Some("DeletionByTaintManager") => {
                let is_over = |(taint, since): &(Value, Timestamp)| {
                    // The times of taints are whole seconds.
                    stay(pod, taint).is_some_and(|stay| *since + stay <= self.time + SignedDuration::from_secs(1))
                };
                let had = self.taints.get(node).map(Vec::as_slice).unwrap_or_default();
                assert!(had.iter().any(is_over), "{} is evicted too early, of {had:?}", meta::name(pod));
            }
            Some("DeletionByPodGC") => {
                assert!(!self.nodes.contains_key(node), "{} is taken from a node that is there", meta::name(pod));
            }
            _ => {}
        }
    }

    /// Conditions and taints say what the machine is like.
    fn check_node(&self, node: &Value) {
        let name = meta::name(node);
        let status = condition(node, "Ready").and_then(|ready| ready["status"].as_str()).unwrap_or_default();
        assert_eq!(status, if self.silent.contains(name) { "Unknown" } else { "True" }, "{node}");
        let taints = taints(node);
        let has = |key: &str, effect: &str| taints.iter().any(|taint| taint["key"] == key && taint["effect"] == effect);
        assert_eq!(has(UNREACHABLE, "NoSchedule"), status == "Unknown", "{node}");
        assert!(!has(UNREACHABLE, "NoExecute") || status == "Unknown", "{node}");
        assert!(!has(NOT_READY, "NoSchedule") && !has(NOT_READY, "NoExecute"), "{node}");
        assert_eq!(has(CORDONED, "NoSchedule"), node["spec"]["unschedulable"] == true, "{node}");
        assert!(node["spec"]["podCIDR"].is_string(), "{node}");
    }
}

/// For how long a pod may stay beside a taint; `None`: for ever.
fn stay(pod: &Value, taint: &Value) -> Option<SignedDuration> {
    let tolerations = pod["spec"]["tolerations"].as_array().into_iter().flatten();
    let fits = |toleration: &&Value| {
        let (key, effect) = (&toleration["key"], &toleration["effect"]);
        (key.is_null() || *key == taint["key"]) && (effect.is_null() || *effect == taint["effect"])
    };
    let mut fitting = tolerations.filter(fits).peekable();
    if fitting.peek().is_none() {
        return Some(SignedDuration::ZERO);
    }
    fitting.filter_map(|toleration| toleration["tolerationSeconds"].as_i64()).min().map(SignedDuration::from_secs)
}

fn taints(node: &Value) -> Vec<Value> {
    node["spec"]["taints"].as_array().cloned().unwrap_or_default()
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

fn add_node(world: &World, name: &str) {
    world.say(|| format!("{name} joins"));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"taints": [{"key": NOT_READY, "effect": "NoSchedule"}]},
        "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"}}});
    world.api.seed(&gvr::<Node>(), node);
}

/// A machine renews its lease, and says that it is ready if that is not known.
fn beat(world: &World, node: &Value) {
    let (leases, name) = (gvr::<Lease>(), meta::name(node));
    let spec = json!({"holderIdentity": name, "renewTime": rfc3339_micro(world.env.now())});
    let patch = Patch::Merge(json!({"spec": spec}));
    if now(world.api.patch(&leases, LEASES, name, "", patch)).is_err() {
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": LEASES}, "spec": spec});
        now(world.api.create(&leases, LEASES, "", "", lease)).expect("it was not there");
    }
    if condition(node, "Ready").is_none_or(|ready| ready["status"] != "True") {
        let time = rfc3339(world.env.now());
        let fine = |type_: &str, status: &str| json!({"type": type_, "status": status, "lastHeartbeatTime": time, "lastTransitionTime": time});
        let pressure = ["MemoryPressure", "DiskPressure", "PIDPressure"].map(|type_| fine(type_, "False"));
        let conditions: Vec<_> = pressure.into_iter().chain([fine("Ready", "True")]).collect();
        let patch = Patch::Strategic(json!({"status": {"conditions": conditions}}));
        now(world.api.patch(&gvr::<Node>(), "", name, "status", patch)).expect("it is there");
    }
}

fn cordon(world: &World, node: &Value, unschedulable: bool) {
    world.say(|| format!("user makes {} unschedulable: {unschedulable}", meta::name(node)));
    let unschedulable = if unschedulable { json!(true) } else { Value::Null };
    let patch = Patch::Merge(json!({"spec": {"unschedulable": unschedulable}}));
    now(world.api.patch(&gvr::<Node>(), "", meta::name(node), "", patch)).expect("it is there");
}

/// `kubectl uncordon`, or a taint of the user comes or goes.
fn user_changes_node(world: &World, node: &Value, silent: &BTreeSet<String>) {
    if world.chance(50) {
        return cordon(world, node, false);
    }
    let is_silent = silent.contains(meta::name(node));
    let key = if is_silent && world.chance(50) { OUT_OF_SERVICE } else { MAINTENANCE };
    let mut taints = taints(node);
    if taints.iter().any(|taint| taint["key"] == key) {
        taints.retain(|taint| taint["key"] != key);
    } else {
        taints.push(json!({"key": key, "effect": "NoExecute"}));
    }
    world.say(|| format!("user taints {}: {taints:?}", meta::name(node)));
    let patch = Patch::Merge(json!({"spec": {"taints": taints}}));
    now(world.api.patch(&gvr::<Node>(), "", meta::name(node), "", patch)).expect("it is there");
}

fn create_controller(world: &World) {
    let seconds = |key: &str, seconds: u64| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
    let tolerations = match world.env.below(4) {
        0 => json!([]),
        1 => json!([{"key": MAINTENANCE, "operator": "Exists"}, seconds(UNREACHABLE, 30), seconds(NOT_READY, 30)]),
        2 => json!([{"operator": "Exists", "effect": "NoExecute"}]),
        _ => json!([seconds(MAINTENANCE, 20), seconds(UNREACHABLE, 60), seconds(NOT_READY, 60)]),
    };
    let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}});
    let set = json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"replicas": 1 + world.env.below(5), "selector": {"app": "web"},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container], "tolerations": tolerations}}}});
    now(world.api.create(&gvr::<ReplicationController>(), NAMESPACE, "", "", set)).expect("created");
}
