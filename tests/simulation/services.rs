//! Services with a selector, whose backends are found, and without one, whose backends somebody writes down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use mini::api::meta;
use mini::client::fake::{FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::{self, Controller};

use crate::invariants::is_ready;
use crate::story::{KindRow, Story};
use crate::world::{NAMESPACE, World, now};

const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// With a selector, without one.
const FOUND: &str = "found";
const WRITTEN: &str = "written";

/// The story, and the truth as the API's history tells it.
#[derive(Default)]
pub struct Backends {
    made: usize,
    services: BTreeMap<String, Arc<Value>>,
    endpoints: BTreeMap<String, Arc<Value>>,
    slices: BTreeMap<String, Arc<Value>>,
    pods: BTreeMap<String, Arc<Value>>,
    /// Addresses that pods, or Endpoints that somebody wrote, ever had.
    addresses: BTreeSet<String>,
}

impl Story for Backends {
    fn kinds(&self) -> Vec<KindRow> {
        vec![
            (gvr::<Pod>(), "Pod", true),
            (gvr::<Service>(), "Service", true),
            (gvr::<Endpoints>(), "Endpoints", true),
            (gvr::<EndpointSlice>(), "EndpointSlice", true),
            (gvr::<Node>(), "Node", false),
        ]
    }

    fn controllers(&mut self, _world: &World) -> Vec<Arc<dyn Controller>> {
        vec![
            Arc::new(controllers::endpoints::EndpointsController),
            Arc::new(controllers::endpoint_slice::EndpointSliceController),
            Arc::new(controllers::endpoint_slice_mirroring::EndpointSliceMirroringController),
            Arc::new(controllers::garbage_collector::GarbageCollector),
        ]
    }

    fn begin(&mut self, world: &World) {
        create_service(world, FOUND);
        create_service(world, WRITTEN);
        write_endpoints(world);
        (0..3).for_each(|_| self.create_pod(world));
    }

    fn user_acts(&mut self, world: &World) {
        match world.env.below(100) {
            0..20 if self.pods.len() < 6 => self.create_pod(world),
            20..35 => drop(world.delete_some_pod()),
            35..45 => self.relabel(world),
            45..70 => write_endpoints(world),
            70..80 => {
                if self.endpoints.contains_key(WRITTEN) {
                    world.say(|| "user deletes the Endpoints".into());
                    let options = DeleteOptions::default();
                    now(world.api.delete(&gvr::<Endpoints>(), NAMESPACE, WRITTEN, &options)).expect("it is there");
                }
            }
            80..90 => {
                let name = if world.chance(50) { FOUND } else { WRITTEN };
                if self.services.contains_key(name) {
                    world.say(|| format!("user deletes the Service {name}"));
                    now(world.api.delete(&gvr::<Service>(), NAMESPACE, name, &DeleteOptions::default()))
                        .expect("it is there");
                } else {
                    create_service(world, name);
                }
            }
            _ => {
                let slices: Vec<_> = self.slices.values().collect();
                let Some(slice) = slices.get(world.pick(slices.len())) else { return };
                world.say(|| format!("user deletes {}", meta::name(slice)));
                let options = DeleteOptions::default();
                now(world.api.delete(&gvr::<EndpointSlice>(), NAMESPACE, meta::name(slice), &options))
                    .expect("it is there");
            }
        }
    }

    fn see(&mut self, change: &Logged) {
        let (object, name) = (&change.object, meta::name(&change.object).to_owned());
        let map = match &*change.gvr.resource {
            "pods" => {
                self.addresses.extend(object["status"]["podIP"].as_str().map(str::to_owned));
                &mut self.pods
            }
            "services" => &mut self.services,
            "endpoints" => {
                if name == WRITTEN {
                    self.addresses.extend(listed(object).into_keys());
                }
                &mut self.endpoints
            }
            "endpointslices" => {
                let known = |address: &String| self.addresses.contains(address);
                assert!(sliced(object).keys().all(known), "{object} names addresses that nobody ever had");
                assert!(["found", "written"].map(Some).contains(&meta::label(object, SERVICE)), "{object}");
                &mut self.slices
            }
            _ => return,
        };
        match change.deleted {
            true => drop(map.remove(&name)),
            false => drop(map.insert(name, object.clone())),
        }
    }

    fn at_rest(&mut self, _api: &FakeApi) {
        let matches = |pod: &&Arc<Value>| meta::label(pod, "app") == Some("web") && pod["status"]["podIP"].is_string();
        let address =
            |pod: &Arc<Value>| (pod["status"]["podIP"].as_str().expect("it has one").to_owned(), is_ready(pod));
        let backends: BTreeMap<String, bool> = self.pods.values().filter(matches).map(address).collect();
        let expected = if self.services.contains_key(FOUND) { backends } else { BTreeMap::new() };
        assert_eq!(self.endpoints.get(FOUND).map(|found| listed(found)).unwrap_or_default(), expected, "Endpoints");
        assert_eq!(self.of(FOUND, "endpointslice-controller.k8s.io"), expected, "EndpointSlices");
        let written = self.endpoints.get(WRITTEN).filter(|_| self.services.contains_key(WRITTEN));
        let expected = written.map(|written| listed(written)).unwrap_or_default();
        assert_eq!(self.of(WRITTEN, "endpointslicemirroring-controller.k8s.io"), expected, "mirrored");
        for slice in self.slices.values() {
            let mirrored = meta::label(slice, MANAGED_BY) == Some("endpointslicemirroring-controller.k8s.io");
            assert_eq!(meta::label(slice, SERVICE), Some(if mirrored { WRITTEN } else { FOUND }), "{slice}");
        }
    }
}

impl Backends {
    /// What the slices of a Service say, each address once.
    fn of(&self, service: &str, manager: &str) -> BTreeMap<String, bool> {
        let mut all = BTreeMap::new();
        let mine = |slice: &&Arc<Value>| {
            meta::label(slice, SERVICE) == Some(service) && meta::label(slice, MANAGED_BY) == Some(manager)
        };
        for slice in self.slices.values().filter(mine) {
            for (address, ready) in sliced(slice) {
                assert!(all.insert(address.clone(), ready).is_none(), "{address} is there twice");
            }
        }
        all
    }

    fn create_pod(&mut self, world: &World) {
        self.made += 1;
        let app = if world.chance(80) { "web" } else { "other" };
        let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}});
        let metadata = json!({"name": format!("pod-{}", self.made), "namespace": NAMESPACE, "labels": {"app": app}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}});
        now(world.api.create(&gvr::<Pod>(), NAMESPACE, "", "", pod)).expect("created");
    }

    fn relabel(&self, world: &World) {
        let pods: Vec<_> = self.pods.values().collect();
        let Some(pod) = pods.get(world.pick(pods.len())) else { return };
        let app = if meta::label(pod, "app") == Some("web") { "other" } else { "web" };
        world.say(|| format!("user makes {} {app}", meta::name(pod)));
        let patch = Patch::Merge(json!({"metadata": {"labels": {"app": app}}}));
        now(world.api.patch(&gvr::<Pod>(), NAMESPACE, meta::name(pod), "", patch)).expect("it is there");
    }
}

/// The addresses of Endpoints, and whether they are ready.
fn listed(endpoints: &Value) -> BTreeMap<String, bool> {
    let mut found = BTreeMap::new();
    for subset in meta::items(&endpoints["subsets"]) {
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            let ips = meta::items(&subset[field]).iter().map(|address| meta::text(&address["ip"]).to_owned());
            found.extend(ips.map(|ip| (ip, ready)));
        }
    }
    found
}

/// The addresses of a slice, and whether they are ready.
fn sliced(slice: &Value) -> BTreeMap<String, bool> {
    let one =
        |endpoint: &Value| (meta::text(&endpoint["addresses"][0]).to_owned(), endpoint["conditions"]["ready"] == true);
    meta::items(&slice["endpoints"]).iter().map(one).collect()
}

fn create_service(world: &World, name: &str) {
    let selector = if name == FOUND { json!({"app": "web"}) } else { Value::Null };
    world.say(|| format!("user creates the Service {name}"));
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": selector, "clusterIP": format!("10.96.0.{}", name.len()),
            "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}});
    now(world.api.create(&gvr::<Service>(), NAMESPACE, "", "", service)).expect("created");
}

/// Somebody writes down where the backends of a Service are.
fn write_endpoints(world: &World) {
    let number = |ready: bool| (0..world.env.below(3)).map(move |n| format!("192.0.{}.{n}", if ready { 2 } else { 3 }));
    let list = |ready: bool| number(ready).map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
    let port = 8000 + world.env.below(3);
    let subset = json!({"addresses": list(true), "notReadyAddresses": list(false), "ports": [{"port": port, "protocol": "TCP"}]});
    world.say(|| format!("user writes {subset}"));
    let patch = Patch::Merge(json!({"subsets": [subset.clone()]}));
    if now(world.api.patch(&gvr::<Endpoints>(), NAMESPACE, WRITTEN, "", patch)).is_err() {
        let metadata = json!({"name": WRITTEN, "namespace": NAMESPACE});
        let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": [subset]});
        now(world.api.create(&gvr::<Endpoints>(), NAMESPACE, "", "", endpoints)).expect("it was not there");
    }
}
