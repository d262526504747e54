//! Endpoints of Services with a selector (`pkg/controller/endpoint`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::caches::Caches;
use super::plan::{Action, Plan};
use super::service_backends::{self, Backend, Port, backends, is_headless, is_selecting, publishes_unready};
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::typed::Meta;

const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
/// More addresses than this are cut off, and an annotation tells it.
const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// The controller.
pub struct EndpointsController;

impl Controller for EndpointsController {
    fn name(&self) -> &'static str {
        "endpoints"
    }
    fn account(&self) -> &'static str {
        "endpoint-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.services);
        enqueue.on_change(&caches.endpoints);
        service_backends::follow_pods(caches, enqueue);
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _now: Timestamp) -> Plan {
        let current = caches.endpoints.get(key);
        let Some(service) = caches.services.get(key) else { return orphaned(current.as_deref()) };
        if !is_selecting(&service) {
            return Plan::default();
        }
        let found = backends(&service, &caches.pods.in_namespace(&key.namespace), |_| None);
        reconcile(&service, current.as_ref(), &found)
    }
}

/// The Endpoints of a Service that is gone: those that this controller wrote go as well.
fn orphaned(current: Option<&Endpoints>) -> Plan {
    let mut plan = Plan::default();
    if let Some(current) = current.filter(|current| is_ours(current)) {
        plan.push(Action::delete(current));
    }
    plan
}

fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(MANAGED_BY.0).map(String::as_str) == Some(MANAGED_BY.1) && !endpoints.is_terminating()
}

/// The decision for a Service with a selector.
pub fn reconcile(service: &Service, current: Option<&Arc<Endpoints>>, found: &[Backend]) -> Plan {
    let mut plan = Plan::default();
    let (subsets, cut) = subsets(service, found);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    let mut wanted = match current {
        Some(current) => (**current).clone(),
        None => Endpoints {
            metadata: ObjectMeta {
                name: service.metadata.name.clone(),
                namespace: service.metadata.namespace.clone(),
                ..Default::default()
            },
            subsets: None,
        },
    };
    wanted.metadata.labels = Some(labels);
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    if cut {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    wanted.metadata.annotations = wanted.metadata.annotations.take().filter(|map| !map.is_empty());
    wanted.subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
    match current {
        None => plan.push(Action::create(&wanted)),
        Some(current) if **current != wanted => plan.push(Action::update(&wanted)),
        Some(_) => {}
    }
    plan
}

/// Addresses with the same ports make a subset (`RepackSubsets`); whether some were cut off.
fn subsets(service: &Service, found: &[Backend]) -> (Vec<EndpointSubset>, bool) {
    type Entry = (String, bool, usize);
    let unready_counts = publishes_unready(service);
    let mut by_port: BTreeMap<Option<Port>, BTreeSet<Entry>> = BTreeMap::new();
    let eligible = |backend: &&Backend| unready_counts || !backend.terminating;
    let cut = found.iter().filter(eligible).count() > CAPACITY;
    for (index, backend) in found.iter().enumerate().filter(|(_, backend)| eligible(backend)).take(CAPACITY) {
        let ready = unready_counts || backend.serving;
        let entry = (backend.addresses[0].clone(), ready, index);
        let headless_without_ports = is_headless(service)
            && service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).is_none_or(Vec::is_empty);
        if headless_without_ports {
            by_port.entry(None).or_default().insert(entry);
        } else {
            for port in &backend.ports {
                by_port.entry(Some(port.clone())).or_default().insert(entry.clone());
            }
        }
    }
    let mut by_addresses: BTreeMap<BTreeSet<Entry>, Vec<Port>> = BTreeMap::new();
    for (port, entries) in by_port {
        by_addresses.entry(entries).or_default().extend(port);
    }
    let pack = |(entries, ports): (BTreeSet<Entry>, Vec<Port>)| {
        let side = |ready: bool| {
            let some = entries.iter().filter(|entry| entry.1 == ready);
            let addresses: Vec<_> = some.map(|entry| address(service, &found[entry.2])).collect();
            Some(addresses).filter(|addresses| !addresses.is_empty())
        };
        let ports = ports.into_iter().map(|port| EndpointPort {
            name: Some(port.name).filter(|name| !name.is_empty()),
            port: port.port,
            protocol: Some(port.protocol),
            app_protocol: port.app_protocol,
        });
        let ports: Vec<_> = ports.collect();
        EndpointSubset {
            addresses: side(true),
            not_ready_addresses: side(false),
            ports: Some(ports).filter(|ports| !ports.is_empty()),
        }
    };
    (by_addresses.into_iter().map(pack).collect(), cut)
}

fn address(service: &Service, backend: &Backend) -> EndpointAddress {
    EndpointAddress {
        ip: backend.addresses[0].clone(),
        hostname: backend.hostname(service),
        node_name: backend.node(),
        target_ref: Some(backend.reference()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use crate::controllers::plan::Write;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    fn pod(name: &str, ip: &str, ready: bool, port: i32) -> Arc<Pod> {
        let value = json!({
            "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(Pod::parse(&value).expect("a pod"))
    }

    fn check(spec: Value, pods: &[Arc<Pod>], expected: Value) {
        let service = json!({"metadata": {"name": "web", "namespace": "a", "labels": {"l": "1"}}, "spec": spec});
        let service = Service::parse(&service).expect("a service");
        let plan = reconcile(&service, None, &backends(&service, pods, |_| None));
        let Write::Create { object, .. } = &plan.actions().next().expect("a create").write else { panic!("no create") };
        assert_eq!(object["subsets"], expected);
    }

    fn address(name: &str, ip: &str) -> Value {
        json!({"ip": ip, "nodeName": "n", "targetRef": {"kind": "Pod", "namespace": "a", "name": name, "uid": name}})
    }

    #[test]
    fn addresses_with_the_same_ports_share_a_subset() {
        let spec = json!({"selector": {"app": "web"}, "clusterIP": "10.0.0.1",
            "ports": [{"port": 80, "targetPort": "http", "protocol": "TCP"}]});
        let pods = [
            pod("one", "10.1.0.1", true, 8080),
            pod("two", "10.1.0.2", false, 8080),
            pod("three", "10.1.0.3", true, 9090),
        ];
        check(
            spec,
            &pods,
            json!([
                {"addresses": [address("one", "10.1.0.1")], "notReadyAddresses": [address("two", "10.1.0.2")],
                    "ports": [{"port": 8080, "protocol": "TCP"}]},
                {"addresses": [address("three", "10.1.0.3")], "ports": [{"port": 9090, "protocol": "TCP"}]},
            ]),
        );
    }

    #[test]
    fn headless_services_may_have_no_ports_and_publish_unready_ones() {
        let spec = json!({"selector": {"app": "web"}, "clusterIP": "None", "publishNotReadyAddresses": true});
        check(spec, &[pod("one", "10.1.0.1", false, 1)], json!([{"addresses": [address("one", "10.1.0.1")]}]));
    }
}
