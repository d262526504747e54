//! A PodDisruptionBudget: what it promises of the pods of one ReplicationController, and the evictions that it pays for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use mini::api::meta;
use mini::client::fake::{FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::env::rfc3339;

use crate::invariants::{is_finished, is_ready};
use crate::world::{NAMESPACE, World, now};

/// The truth as the API's history tells it.
#[derive(Default)]
pub struct Budgets {
    pods: BTreeMap<String, Arc<Value>>,
    controller: Option<Arc<Value>>,
    budget: Option<Arc<Value>>,
    /// Pods that went through the eviction API.
    evicted: BTreeSet<String>,
    /// The least number of healthy pods, while pods go by eviction only.
    floor: Option<i64>,
}

fn is_healthy(pod: &Value) -> bool {
    is_ready(pod) && !meta::is_terminating(pod) && !is_finished(pod)
}

impl Budgets {
    pub fn see(&mut self, change: &Logged) {
        let kept = (!change.deleted).then(|| change.object.clone());
        match &*change.gvr.resource {
            "pods" => self.see_pod(change),
            "replicationcontrollers" => {
                let size =
                    |object: &Option<Arc<Value>>| object.as_ref().map(|object| object["spec"]["replicas"].clone());
                if size(&self.controller) != size(&kept) {
                    self.floor = None;
                }
                self.controller = kept;
            }
            "poddisruptionbudgets" => {
                let spec = |object: &Option<Arc<Value>>| object.as_ref().map(|object| object["spec"].clone());
                if spec(&self.budget) != spec(&kept) {
                    self.floor = None;
                }
                self.budget = kept;
            }
            _ => return,
        }
        self.check();
    }

    fn see_pod(&mut self, change: &Logged) {
        let uid = meta::uid(&change.object).to_owned();
        let was = self.pods.get(&uid).is_some_and(|pod| is_healthy(pod));
        let is = !change.deleted && is_healthy(&change.object);
        if was && !is && !self.evicted.contains(&uid) {
            // Somebody else took it away: that was not for the budget to decide.
            self.floor = None;
        }
        match change.deleted {
            true => drop(self.pods.remove(&uid)),
            false => drop(self.pods.insert(uid, change.object.clone())),
        }
    }

    fn healthy(&self) -> i64 {
        i64::try_from(self.pods.values().filter(|pod| is_healthy(pod)).count()).expect("few")
    }

    /// `minAvailable`, or what `maxUnavailable` leaves; percentages are of the controller's size, rounded up.
    fn desired(&self) -> Option<(i64, i64)> {
        let (spec, size) = (&self.budget.as_ref()?["spec"], self.controller.as_ref()?["spec"]["replicas"].as_i64()?);
        let amount = |value: &Value| match value.as_str() {
            Some(text) => {
                let percent: i64 = text.trim_end_matches('%').parse().expect("a percentage");
                (size * percent + 99) / 100
            }
            None => value.as_i64().expect("a number"),
        };
        let pods = i64::try_from(self.pods.len()).expect("few");
        Some(match (&spec["minAvailable"], &spec["maxUnavailable"]) {
            (Value::Null, most) => (size, (size - amount(most)).max(0)),
            (least, _) => (if least.is_string() { size } else { pods }, amount(least)),
        })
    }

    fn check(&mut self) {
        let (Some(budget), Some((expected, desired))) = (&self.budget, self.desired()) else { return };
        let (status, healthy) = (&budget["status"], self.healthy());
        match self.floor {
            Some(floor) => assert!(healthy >= floor, "evictions leave {healthy} healthy pods, {floor} at least"),
            None if status["observedGeneration"] == budget["metadata"]["generation"]
                && status["currentHealthy"].as_i64() == Some(healthy)
                && status["expectedPods"].as_i64() == Some(expected)
                && status["desiredHealthy"].as_i64() == Some(desired)
                && status["disruptedPods"].is_null()
                && healthy >= desired =>
            {
                self.floor = Some(desired);
            }
            None => {}
        }
    }

    pub fn at_rest(&self) {
        let (Some(budget), Some((expected, desired))) = (&self.budget, self.desired()) else { return };
        if self.pods.is_empty() {
            return;
        }
        let (status, healthy) = (&budget["status"], self.healthy());
        let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
        let shown =
            ["expectedPods", "desiredHealthy", "currentHealthy", "disruptionsAllowed"].map(|f| status[f].as_i64());
        assert_eq!(shown, [expected, desired, healthy, allowed].map(Some), "{budget}");
        assert!(status["disruptedPods"].is_null(), "{budget}");
    }

    /// `POST pods/<name>/eviction`, as the API server does it. Now and then it is gone before the pod is deleted.
    pub fn evict(&mut self, world: &World, pod: &Value) {
        let name = meta::name(pod);
        let free = is_finished(pod) || pod["status"]["phase"] == "Pending" || meta::is_terminating(pod);
        if !free && !pay(&world.api, pod, &rfc3339(world.env.now())) {
            return world.say(|| format!("{name} may not be evicted"));
        }
        world.say(|| format!("{name} is evicted"));
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "lastTransitionTime": rfc3339(world.env.now())});
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        now(world.api.patch(&gvr::<Pod>(), NAMESPACE, name, "status", patch)).expect("it is there");
        if world.chance(10) {
            return world.say(|| "but it stays".into());
        }
        self.evicted.insert(meta::uid(pod).to_owned());
        now(world.api.delete(&gvr::<Pod>(), NAMESPACE, name, &DeleteOptions::default())).expect("it is there");
    }
}

/// Whether the budget lets a pod go; then it has one disruption less.
fn pay(api: &FakeApi, pod: &Value, time: &str) -> bool {
    let budgets = api.all(&gvr::<PodDisruptionBudget>());
    let Some(budget) = budgets.first() else { return true };
    let status = &budget["status"];
    let number = |field: &str| status[field].as_i64().unwrap_or_default();
    let enough = number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
    if !is_ready(pod) && (enough || budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow") {
        return true;
    }
    if number("observedGeneration") < meta::generation(budget) || number("disruptionsAllowed") == 0 {
        return false;
    }
    let mut paid = (**budget).clone();
    paid["status"]["disruptionsAllowed"] = (number("disruptionsAllowed") - 1).into();
    paid["status"]["disruptedPods"][meta::name(pod)] = time.into();
    let name = meta::name(budget);
    now(api.update(&gvr::<PodDisruptionBudget>(), NAMESPACE, name, "status", paid)).expect("it is there");
    true
}

pub fn create_budget(world: &World) {
    let amount = if world.chance(50) { json!("50%") } else { world.env.below(4).into() };
    let field = if world.chance(50) { "minAvailable" } else { "maxUnavailable" };
    let always = if world.chance(30) { json!("AlwaysAllow") } else { Value::Null };
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {field: amount, "unhealthyPodEvictionPolicy": always, "selector": {"matchLabels": {"app": "web"}}}});
    world.say(|| format!("user creates {budget}"));
    now(world.api.create(&gvr::<PodDisruptionBudget>(), NAMESPACE, "", "", budget)).expect("created");
}

/// `kubectl scale`.
pub fn scale(world: &World, replicas: u64) {
    world.say(|| format!("user wants {replicas} pods"));
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    now(world.api.patch(&gvr::<ReplicationController>(), NAMESPACE, "web", "", patch)).expect("it is there");
}
