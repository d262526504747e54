//! A HorizontalPodAutoscaler over a Deployment whose pods share a load.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use mini::api::{Gvr, meta};
use mini::client::fake::{FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::{self, Controller};
use mini::env::rfc3339;

use crate::invariants::is_ready;
use crate::story::{KindRow, Story};
use crate::world::{NAMESPACE, World, now};

const POD_METRICS: Gvr = Gvr::new("metrics.k8s.io", "v1beta1", "pods");
/// What each pod should carry, in MiB.
const TARGET: u64 = 100;
/// `stabilizationWindowSeconds` of scaling down, by default.
const STABILIZATION: SignedDuration = SignedDuration::from_mins(5);
const MIB: u64 = 1 << 20;

/// The story, and the truth as the API's history tells it.
#[derive(Default)]
pub struct Loads {
    time: Timestamp,
    /// What all pods carry together, in MiB.
    load: u64,
    autoscaler: Option<Arc<Value>>,
    deployment: Option<Arc<Value>>,
    /// The bounds that any autoscaler ever had.
    bounds: Option<(i64, i64)>,
    /// The user's own change of the size, which the history will show.
    by_user: bool,
    /// When the autoscaler last asked for more, and for how many.
    grown: Option<(Timestamp, i64)>,
    /// Whether bounds were ever narrowed: then a size may fall at once.
    narrowed: bool,
}

impl Story for Loads {
    fn kinds(&self) -> Vec<KindRow> {
        vec![
            (gvr::<Pod>(), "Pod", true),
            (gvr::<ReplicaSet>(), "ReplicaSet", true),
            (gvr::<Deployment>(), "Deployment", true),
            (gvr::<HorizontalPodAutoscaler>(), "HorizontalPodAutoscaler", true),
            (gvr::<Node>(), "Node", false),
        ]
    }

    fn controllers(&mut self, _world: &World) -> Vec<Arc<dyn Controller>> {
        vec![
            Arc::new(controllers::horizontal_pod_autoscaler::HorizontalPodAutoscalerController::default()),
            Arc::new(controllers::deployment::DeploymentController),
            Arc::new(controllers::replica_set::ReplicaSetController),
            Arc::new(controllers::garbage_collector::GarbageCollector),
        ]
    }

    fn stride(&self) -> SignedDuration {
        SignedDuration::from_secs(30)
    }

    fn patience(&self) -> SignedDuration {
        SignedDuration::from_mins(15)
    }

    fn begin(&mut self, world: &World) {
        self.time = world.env.now();
        self.load = world.env.below(700);
        let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}});
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": NAMESPACE},
            "spec": {"replicas": 1 + world.env.below(3), "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "revisionHistoryLimit": 2, "progressDeadlineSeconds": 600,
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}}});
        now(world.api.create(&gvr::<Deployment>(), NAMESPACE, "", "", deployment)).expect("created");
        create_autoscaler(world);
    }

    fn time_passed(&mut self, world: &World) {
        self.time = world.env.now();
        measure(&world.api, self.load, &rfc3339(self.time));
    }

    fn user_acts(&mut self, world: &World) {
        match world.env.below(100) {
            0..45 => {
                self.load = world.env.below(900);
                world.say(|| format!("the load is {}", self.load));
            }
            45..60 => drop(world.delete_some_pod()),
            60..75 => {
                let size = world.env.below(8);
                world.say(|| format!("user wants {size} pods"));
                self.by_user = true;
                let patch = Patch::Merge(json!({"spec": {"replicas": size}}));
                now(world.api.patch(&gvr::<Deployment>(), NAMESPACE, "web", "", patch)).expect("it is there");
            }
            _ => match &self.autoscaler {
                None => {
                    self.narrowed = true;
                    create_autoscaler(world);
                }
                Some(autoscaler) if world.chance(30) => {
                    world.say(|| "user deletes the autoscaler".into());
                    let (gvr, options) = (gvr::<HorizontalPodAutoscaler>(), DeleteOptions::default());
                    now(world.api.delete(&gvr, NAMESPACE, meta::name(autoscaler), &options)).expect("it is there");
                }
                Some(autoscaler) => {
                    self.narrowed = true;
                    let patch = Patch::Merge(json!({"spec": bounds(world)}));
                    let (gvr, name) = (gvr::<HorizontalPodAutoscaler>(), meta::name(autoscaler));
                    now(world.api.patch(&gvr, NAMESPACE, name, "", patch)).expect("it is there");
                }
            },
        }
    }

    fn see(&mut self, change: &Logged) {
        let kept = (!change.deleted).then(|| change.object.clone());
        match &*change.gvr.resource {
            "horizontalpodautoscalers" => {
                let spec = &change.object["spec"];
                let (least, most) = (meta::number(&spec["minReplicas"]), meta::number(&spec["maxReplicas"]));
                let known = self.bounds.unwrap_or((least, most));
                self.bounds = Some((known.0.min(least), known.1.max(most)));
                if change.deleted {
                    // The next one begins with what it finds.
                    self.grown = None;
                }
                self.autoscaler = kept;
            }
            "deployments" => {
                let before = change.old.as_deref().map(|old| meta::number(&old["spec"]["replicas"]));
                let size = meta::number(&change.object["spec"]["replicas"]);
                if let Some(before) = before.filter(|before| *before != size) {
                    match std::mem::take(&mut self.by_user) {
                        true => self.grown = None,
                        false => self.check_scaling(before, size),
                    }
                }
                self.by_user = false;
                self.deployment = kept;
            }
            _ => {}
        }
    }

    fn at_rest(&mut self, api: &FakeApi) {
        let deployment = self.deployment.as_ref().expect("it stays");
        let size = meta::number(&deployment["spec"]["replicas"]);
        let pods = api.all(&gvr::<Pod>());
        assert_eq!(i64::try_from(pods.iter().filter(|pod| is_ready(pod)).count()).expect("few"), size);
        let Some(autoscaler) = &self.autoscaler else { return };
        if size == 0 {
            return; // scaling is switched off
        }
        let spec = &autoscaler["spec"];
        let (least, most) = (meta::number(&spec["minReplicas"]), meta::number(&spec["maxReplicas"]));
        let wanted = i64::try_from(self.load.div_ceil(TARGET)).expect("few").clamp(least, most);
        let carried = i64::try_from(self.load).expect("little");
        let full = size * i64::try_from(TARGET).expect("little");
        // A tenth more or less is close enough.
        let is_close = (least..=most).contains(&size) && (carried - full).abs() * 10 <= full;
        assert!(size == wanted || is_close, "{size} pods for {}, {wanted} are wanted: {autoscaler}", self.load);
        let status = &autoscaler["status"];
        assert_eq!((meta::number(&status["currentReplicas"]), meta::number(&status["desiredReplicas"])), (size, size));
    }
}

impl Loads {
    /// The autoscaler changes the size: within its bounds, not too far at once, and not down right after up.
    fn check_scaling(&mut self, before: i64, size: i64) {
        let (least, most) = self.bounds.expect("nobody else scales");
        assert!((least..=most).contains(&size), "{size} pods, {least} to {most} are allowed");
        assert!(size <= (before * 2).max(before + 4).max(least), "from {before} to {size} at once");
        if size > before {
            self.grown = Some((self.time, size));
            return;
        }
        let too_soon =
            self.grown.is_some_and(|(at, grown)| size < grown && self.time.duration_since(at) < STABILIZATION);
        assert!(!too_soon || self.narrowed, "from {before} to {size} soon after it grew: {:?}", self.grown);
    }
}

fn bounds(world: &World) -> Value {
    let least = 1 + world.env.below(2);
    json!({"minReplicas": least, "maxReplicas": least + 1 + world.env.below(6)})
}

fn create_autoscaler(world: &World) {
    let target = json!({"type": "AverageValue", "averageValue": format!("{TARGET}Mi")});
    let mut spec = bounds(world);
    spec["scaleTargetRef"] = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    spec["metrics"] = json!([{"type": "Resource", "resource": {"name": "memory", "target": target}}]);
    world.say(|| format!("user creates the autoscaler {spec}"));
    let autoscaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "web", "namespace": NAMESPACE}, "spec": spec});
    now(world.api.create(&gvr::<HorizontalPodAutoscaler>(), NAMESPACE, "", "", autoscaler)).expect("created");
}

/// What the metrics API tells: pods that are ready share the load.
fn measure(api: &FakeApi, load: u64, time: &str) {
    let pods = api.all(&gvr::<Pod>());
    let ready: BTreeMap<&str, &Arc<Value>> =
        pods.iter().filter(|pod| is_ready(pod)).map(|pod| (meta::name(pod), pod)).collect();
    let share = (load * MIB).checked_div(ready.len() as u64).unwrap_or_default();
    for known in api.all(&POD_METRICS) {
        let name = meta::name(&known);
        if !ready.contains_key(name) {
            now(api.delete(&POD_METRICS, NAMESPACE, name, &DeleteOptions::default())).expect("it is there");
        }
    }
    for (name, pod) in ready {
        let measured = json!({"timestamp": time, "window": "15s",
            "containers": [{"name": "c", "usage": {"memory": share.to_string()}}]});
        if now(api.patch(&POD_METRICS, NAMESPACE, name, "", Patch::Merge(measured.clone()))).is_err() {
            let mut metrics = measured;
            metrics["metadata"] = json!({"name": name, "labels": pod["metadata"]["labels"]});
            now(api.create(&POD_METRICS, NAMESPACE, "", "", metrics)).expect("it was not there");
        }
    }
}
