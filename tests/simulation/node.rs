//! The fake node agent of the simulated cluster, and whoever else makes pods come and go.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use mini::api::meta;
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::env::rfc3339;

use crate::invariants::{is_finished, is_ready};
use crate::world::{NAMESPACE, World, now};

/// The status of a pod whose one container has ended.
pub fn ended(phase: &str, exit_code: i64, time: &str) -> Value {
    let state = json!({"terminated": {"exitCode": exit_code, "finishedAt": time}});
    let container =
        json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state});
    let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": time});
    json!({"phase": phase, "containerStatuses": [container], "conditions": [condition]})
}

impl World {
    /// Whoever provides volumes makes one for a claim and binds it.
    fn bind_a_claim(&self) -> bool {
        let gvr = gvr::<PersistentVolumeClaim>();
        let claims = self.api.all(&gvr);
        let Some(claim) = claims.iter().find(|claim| claim["spec"]["volumeName"].is_null()) else { return false };
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": meta::uid(claim),
            "finalizers": ["kubernetes.io/pv-protection"]}, "spec": {"hostPath": {"path": "/data"}}});
        now(self.api.create(&mini::client::typed::gvr::<PersistentVolume>(), "", "", "", volume))
            .expect("its name is new");
        let metadata = json!({"annotations": {"pv.kubernetes.io/bind-completed": "yes"},
            "finalizers": ["kubernetes.io/pvc-protection"]});
        let patch = json!({"metadata": metadata, "spec": {"volumeName": meta::uid(claim)}});
        let patch = self.api.patch(&gvr, NAMESPACE, meta::name(claim), "", Patch::Merge(patch));
        now(patch).expect("it is there");
        true
    }

    /// The fake node does the next thing for one of its pods.
    pub fn node_acts(&mut self) -> bool {
        if self.story().claims_get_volumes() && self.bind_a_claim() {
            return true;
        }
        let pods = self.api.all(&gvr::<Pod>());
        let nodes = self.api.all(&gvr::<Node>());
        let lives = |node: &Value| !self.story().is_silent(meta::name(node));
        let nodes: Vec<_> = nodes.iter().filter(|node| lives(node)).map(|node| meta::name(node)).collect();
        let runs = |pod: &Value| !is_finished(pod) && nodes.iter().any(|node| pod["spec"]["nodeName"] == *node);
        let bound: Vec<_> = pods.into_iter().filter(|pod| runs(pod)).collect();
        let todo: Vec<_> = bound.iter().filter(|pod| meta::is_terminating(pod) || !is_ready(pod)).collect();
        if let Some(pod) = todo.get(self.pick(todo.len())) {
            if meta::is_terminating(pod) {
                self.stop(pod);
            } else {
                self.set_ready(pod, true);
            }
            return true;
        }
        for pod in &bound {
            let mut status = None;
            self.tell(|story, world| status = story.ends(world, pod));
            if let Some(status) = status {
                self.say(|| format!("{} ends: {}", meta::name(pod), status["phase"]));
                self.patch_status(pod, status);
                return true;
            }
        }
        // Sometimes a container fails and is started again.
        if !self.is_settling() && !bound.is_empty() && self.chance(10) {
            let pod = bound[self.pick(bound.len())].clone();
            self.tell(|story, _| story.disturbed(&pod));
            if self.story().pods_fail() && self.chance(30) {
                self.fail(&pod);
            } else {
                self.set_ready(&pod, false);
            }
        }
        false
    }

    /// The containers of a pod that was deleted have stopped. A pod that a finalizer holds says so first.
    fn stop(&self, pod: &Value) {
        if meta::finalizers(pod).next().is_some() {
            self.patch_status(pod, ended("Failed", 137, &rfc3339(self.env.now())));
        }
        let options = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
        now(self.api.delete(&gvr::<Pod>(), NAMESPACE, meta::name(pod), &options)).expect("it is there");
    }

    fn patch_status(&self, pod: &Value, status: Value) {
        let patch = Patch::Strategic(json!({"status": status}));
        now(self.api.patch(&gvr::<Pod>(), NAMESPACE, meta::name(pod), "status", patch)).expect("it is there");
    }

    fn set_ready(&self, pod: &Value, ready: bool) {
        let draw = || format!("10.0.{}.{}", self.env.below(250), self.env.below(250));
        let pods = self.api.all(&gvr::<Pod>());
        let mut address = draw();
        while pods.iter().any(|pod| pod["status"]["podIP"] == address) {
            address = draw();
        }
        let address = pod["status"]["podIP"].as_str().map_or(address, str::to_owned);
        let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" },
            "lastTransitionTime": rfc3339(self.env.now())});
        let ips = json!([{"ip": address}]);
        self.patch_status(pod, json!({"phase": "Running", "podIP": address, "podIPs": ips, "conditions": [condition]}));
    }

    /// A pod ends, and its containers are not started again.
    fn fail(&self, pod: &Value) {
        let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": rfc3339(self.env.now())});
        self.patch_status(pod, json!({"phase": "Failed", "conditions": [condition]}));
    }

    /// A user deletes some pod, which is returned as it was.
    pub fn delete_some_pod(&self) -> Option<Arc<Value>> {
        let pods = self.api.all(&gvr::<Pod>());
        let pod = pods.get(self.pick(pods.len()))?;
        self.say(|| format!("user deletes {}", meta::name(pod)));
        now(self.api.delete(&gvr::<Pod>(), NAMESPACE, meta::name(pod), &DeleteOptions::default()))
            .expect("it is there");
        Some(pod.clone())
    }
}
