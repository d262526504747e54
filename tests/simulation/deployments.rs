//! A Deployment with a Service, rolled over, scaled, deleted and left behind.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use mini::client::fake::{FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::{self, Controller};

use crate::invariants::Invariants;
use crate::story::{KindRow, Story};
use crate::world::{NAMESPACE, World, now};

/// The story.
#[derive(Default)]
pub struct Rollouts {
    invariants: Invariants,
}

impl Story for Rollouts {
    fn kinds(&self) -> Vec<KindRow> {
        vec![
            (gvr::<Pod>(), "Pod", true),
            (gvr::<ReplicaSet>(), "ReplicaSet", true),
            (gvr::<Deployment>(), "Deployment", true),
            (gvr::<Service>(), "Service", true),
            (gvr::<Endpoints>(), "Endpoints", true),
            (gvr::<EndpointSlice>(), "EndpointSlice", true),
            (gvr::<Node>(), "Node", false),
        ]
    }

    fn controllers(&mut self, _world: &World) -> Vec<Arc<dyn Controller>> {
        vec![
            Arc::new(controllers::deployment::DeploymentController),
            Arc::new(controllers::replica_set::ReplicaSetController),
            Arc::new(controllers::endpoints::EndpointsController),
            Arc::new(controllers::endpoint_slice::EndpointSliceController),
            Arc::new(controllers::garbage_collector::GarbageCollector),
        ]
    }

    fn begin(&mut self, world: &World) {
        create_service(world);
        create_deployment(world);
    }

    fn user_acts(&mut self, world: &World) {
        let deployments = gvr::<Deployment>();
        let Some(deployment) = world.api.all(&deployments).first().cloned() else {
            if world.chance(30) {
                world.say(|| "user creates".into());
                create_deployment(world);
            }
            return;
        };
        let spec = match world.env.below(100) {
            0..30 => json!({"replicas": world.env.below(6)}),
            30..70 => {
                let image = format!("i:{}", world.env.below(3));
                json!({"template": {"spec": {"containers": [{"name": "c", "image": image}]}}})
            }
            70..80 => json!({"paused": deployment["spec"]["paused"] != true}),
            80..95 => {
                if let Some(pod) = world.delete_some_pod() {
                    self.disturbed(&pod);
                }
                return;
            }
            _ => {
                let policy = ["Background", "Foreground", "Orphan"][world.pick(3)];
                world.say(|| format!("user deletes the deployment: {policy}"));
                self.invariants.disturbed();
                let options = DeleteOptions { propagation_policy: Some(policy), ..Default::default() };
                now(world.api.delete(&deployments, NAMESPACE, "web", &options)).expect("it is there");
                return;
            }
        };
        world.say(|| format!("user changes {spec}"));
        let patch = Patch::Strategic(json!({"spec": spec}));
        now(world.api.patch(&deployments, NAMESPACE, "web", "", patch)).expect("it is there");
    }

    fn disturbed(&mut self, _pod: &Value) {
        self.invariants.disturbed();
    }

    fn see(&mut self, change: &Logged) {
        self.invariants.see(change);
    }

    fn at_rest(&mut self, api: &FakeApi) {
        self.invariants.at_rest(api);
    }
}

fn create_service(world: &World) {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}});
    now(world.api.create(&gvr::<Service>(), NAMESPACE, "", "", service)).expect("created");
}

fn create_deployment(world: &World) {
    let container =
        json!({"name": "c", "image": format!("i:{}", world.env.below(3)), "resources": {"requests": {"cpu": "100m"}}});
    let strategy = match world.env.below(4) {
        0 => json!({"type": "Recreate"}),
        1 => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
        2 => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}}),
        _ => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}),
    };
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"replicas": world.env.below(6), "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
            "revisionHistoryLimit": world.env.below(3), "progressDeadlineSeconds": 600,
            "minReadySeconds": if world.chance(20) { 5 } else { 0 },
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}}});
    now(world.api.create(&gvr::<Deployment>(), NAMESPACE, "", "", deployment)).expect("created");
}
