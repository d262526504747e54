//! EndpointSlices of Services with a selector (`pkg/controller/endpointslice`, KEP-752).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::caches::Caches;
use super::ownership::controller_reference;
use super::plan::{Action, Plan};
use super::service_backends::{self, Backend, Port, backends, is_headless, is_selecting, publishes_unready, zone};
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::typed::Meta;

/// The Service that a slice belongs to.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const MANAGED_BY: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io");
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// `--max-endpoints-per-slice`.
const MOST: usize = 100;

/// The controller.
pub struct EndpointSliceController;

impl Controller for EndpointSliceController {
    fn name(&self) -> &'static str {
        "endpointslice"
    }
    fn account(&self) -> &'static str {
        "endpointslice-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.services);
        let add = enqueue.clone();
        caches.endpoint_slices.subscribe(move |change| {
            let slice = change.object();
            if let Some(service) = slice.labels().get(SERVICE_LABEL) {
                add.add(Key::new(slice.namespace(), service));
            }
        });
        service_backends::follow_pods(caches, enqueue);
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _now: Timestamp) -> Plan {
        // The slices of a Service that is gone are the garbage collector's.
        let service = caches.services.get(key).filter(|service| is_selecting(service) && !service.is_terminating());
        let Some(service) = service else { return Plan::default() };
        let ours = |slice: &EndpointSlice| {
            let label = |name: &str| slice.labels().get(name).map(String::as_str);
            label(SERVICE_LABEL) == Some(&*key.name) && label(MANAGED_BY.0) == Some(MANAGED_BY.1)
        };
        let slices = caches.endpoint_slices.select(&key.namespace, ours);
        let zone = |node: &str| zone(caches.nodes.get(&Key::new("", node)).as_deref());
        reconcile(&service, &slices, &backends(&service, &caches.pods.in_namespace(&key.namespace), zone))
    }
}

/// The decision.
pub fn reconcile(service: &Service, slices: &[Arc<EndpointSlice>], found: &[Backend]) -> Plan {
    let mut plan = Plan::default();
    for family in families(service) {
        let (mine, _): (Vec<_>, Vec<_>) = slices.iter().partition(|slice| slice.address_type == family);
        one_family(&mut plan, service, &mine, found, family);
    }
    let wanted = families(service);
    for slice in slices.iter().filter(|slice| !wanted.contains(&slice.address_type.as_str())) {
        plan.push(Action::delete(&**slice));
    }
    plan
}

fn families(service: &Service) -> Vec<&'static str> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    let known = |family: &String| match family.as_str() {
        "IPv4" => Some("IPv4"),
        "IPv6" => Some("IPv6"),
        _ => None,
    };
    let families: Vec<_> = families.iter().filter_map(known).collect();
    if families.is_empty() { vec!["IPv4"] } else { families }
}

/// Slices change as little as possible: endpoints stay where they are, new ones fill up, what is empty goes.
fn one_family(
    plan: &mut Plan,
    service: &Service,
    slices: &[&Arc<EndpointSlice>],
    found: &[Backend],
    family: &'static str,
) {
    // Port set -> pod uid (or address) -> endpoint.
    let mut wanted: BTreeMap<Vec<Port>, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for backend in found {
        if let Some(endpoint) = endpoint(service, backend, family) {
            let group = wanted.entry(backend.ports.clone()).or_default();
            group.insert(backend.pod.uid().to_owned(), endpoint);
        }
    }
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Port>, Vec<Endpoint>)> = Vec::new();
    let mut spare = Vec::new();
    for slice in slices.iter().filter(|slice| !slice.is_terminating()) {
        let ports = ports_of(slice);
        let Some(group) = wanted.get_mut(&ports) else {
            spare.push((*slice).clone());
            continue;
        };
        let uid = |endpoint: &Endpoint| endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
        let stay = slice.endpoints.iter().filter_map(|endpoint| group.remove(&uid(endpoint)?));
        kept.push(((*slice).clone(), ports, stay.collect()));
    }
    // What is new goes into slices with room, then into new slices.
    let mut created = Vec::new();
    for (ports, group) in wanted {
        let mut rest: Vec<Endpoint> = group.into_values().collect();
        for (_, _, endpoints) in kept.iter_mut().filter(|(_, known, _)| *known == ports) {
            let room = MOST.saturating_sub(endpoints.len()).min(rest.len());
            endpoints.extend(rest.drain(..room));
        }
        for chunk in rest.chunks(MOST) {
            created.push((ports.clone(), chunk.to_vec()));
        }
    }
    for (slice, _, endpoints) in kept.iter().filter(|(_, _, endpoints)| endpoints.is_empty()) {
        debug_assert!(endpoints.is_empty());
        spare.push(slice.clone());
    }
    kept.retain(|(_, _, endpoints)| !endpoints.is_empty());
    if kept.is_empty() && created.is_empty() {
        // A Service always has a slice, were it empty.
        created.push((Vec::new(), Vec::new()));
    }
    let mut spare = spare.into_iter();
    for (ports, endpoints) in created {
        match spare.next() {
            Some(slice) => update(plan, service, &slice, &ports, endpoints),
            None => plan.push(Action::create(&new_slice(service, family, &ports, endpoints))),
        }
    }
    for (slice, ports, endpoints) in kept {
        update(plan, service, &slice, &ports, endpoints);
    }
    spare.for_each(|slice| plan.push(Action::delete(&*slice)));
}

fn update(plan: &mut Plan, service: &Service, slice: &EndpointSlice, ports: &[Port], endpoints: Vec<Endpoint>) {
    let mut wanted = slice.clone();
    wanted.metadata.labels = Some(labels(service));
    wanted.ports = write_ports(ports);
    wanted.endpoints = endpoints;
    if canonical(&wanted) != canonical(slice) {
        plan.push(Action::update(&wanted));
    }
}

/// Absent and empty lists of ports are the same.
fn canonical(slice: &EndpointSlice) -> EndpointSlice {
    let mut slice = slice.clone();
    slice.ports = slice.ports.take().filter(|ports| !ports.is_empty());
    slice
}

fn new_slice(service: &Service, family: &str, ports: &[Port], endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        address_type: family.into(),
        endpoints,
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            owner_references: Some(vec![controller_reference(service)]),
            ..Default::default()
        },
        ports: write_ports(ports),
    }
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    labels.insert(SERVICE_LABEL.into(), service.name().into());
    labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    labels
}

fn write_ports(ports: &[Port]) -> Option<Vec<EndpointPort>> {
    let write = |port: &Port| EndpointPort {
        name: Some(port.name.clone()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    };
    Some(ports.iter().map(write).collect())
}

fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let read = |port: &EndpointPort| Port {
        name: port.name.clone().unwrap_or_default(),
        port: port.port.unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(read).collect();
    ports.sort();
    ports
}

fn endpoint(service: &Service, backend: &Backend, family: &str) -> Option<Endpoint> {
    let is_v6 = |address: &&String| address.contains(':');
    let address = backend.addresses.iter().find(|address| is_v6(address) == (family == "IPv6"))?;
    let ready = publishes_unready(service) || (backend.serving && !backend.terminating);
    Some(Endpoint {
        addresses: vec![address.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname(service),
        node_name: backend.node(),
        target_ref: Some(backend.reference()),
        hints: hints(service, backend),
        zone: backend.zone.clone(),
        ..Default::default()
    })
}

/// Whom an endpoint is meant for, by the Service's `trafficDistribution` (KEP-3015).
fn hints(service: &Service, backend: &Backend) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let zones = backend.zone.iter().map(|zone| ForZone { name: zone.clone() }).collect::<Vec<_>>();
    let nodes = match distribution {
        "PreferClose" | "PreferSameZone" => Vec::new(),
        "PreferSameNode" => backend.node().into_iter().map(|name| ForNode { name }).collect(),
        _ => return None,
    };
    let some = |empty: bool| if empty { None } else { Some(()) };
    some(zones.is_empty() && nodes.is_empty())?;
    Some(EndpointHints {
        for_nodes: some(nodes.is_empty()).map(|()| nodes),
        for_zones: some(zones.is_empty()).map(|()| zones),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use crate::client::typed::to_value;
    use crate::controllers::plan::Write;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn service() -> Service {
        let value = json!({"metadata": {"name": "web", "namespace": "a", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
        Service::parse(&value).expect("a service")
    }

    fn pods(count: usize, change: impl Fn(usize, &mut serde_json::Value)) -> Vec<Arc<Pod>> {
        let pod = |n: usize| {
            let mut value = json!({"metadata": {"name": format!("p{n:03}"), "namespace": "a", "uid": format!("u{n}"), "labels": {"app": "web"}},
                "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": "Running", "podIP": format!("10.1.{}.{}", n / 250, n % 250 + 1), "conditions": [{"type": "Ready", "status": "True"}]}});
            change(n, &mut value);
            Arc::new(Pod::parse(&value).expect("a pod"))
        };
        (0..count).map(pod).collect()
    }

    fn plan(slices: &[Arc<EndpointSlice>], pods: &[Arc<Pod>]) -> Plan {
        reconcile(&service(), slices, &backends(&service(), pods, |_| None))
    }

    fn written(plan: &Plan) -> Vec<EndpointSlice> {
        let slices = plan.actions().filter_map(|action| match &action.write {
            Write::Create { object, .. } | Write::Update { object, .. } => {
                Some(EndpointSlice::parse(object).expect("a slice"))
            }
            _ => None,
        });
        slices.collect()
    }

    #[test]
    fn a_slice_says_where_and_in_which_state_the_pods_are() {
        let slices = written(&plan(
            &[],
            &pods(1, |_, pod| pod["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into()),
        ));
        let slice = to_value(&slices[0]);
        assert_eq!(slice["metadata"]["generateName"], "web-");
        assert_eq!(
            slice["metadata"]["labels"],
            json!({"kubernetes.io/service-name": "web",
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"})
        );
        assert_eq!(slice["ports"], json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
        assert_eq!(slice["endpoints"][0]["conditions"], json!({"ready": false, "serving": true, "terminating": true}));
        assert_eq!(slice["endpoints"][0]["targetRef"]["name"], "p000");
    }

    #[test]
    fn slices_hold_a_hundred_and_change_little() {
        let first = written(&plan(&[], &pods(250, |_, _| {})));
        assert_eq!(first.iter().map(|slice| slice.endpoints.len()).collect::<Vec<_>>(), [100, 100, 50]);
        let known: Vec<_> = first
            .into_iter()
            .enumerate()
            .map(|(n, mut slice)| {
                slice.metadata.name = Some(format!("web-{n}"));
                Arc::new(slice)
            })
            .collect();
        assert!(plan(&known, &pods(250, |_, _| {})).is_empty(), "nothing changed");
        let grown = plan(&known, &pods(251, |_, _| {}));
        assert_eq!(written(&grown).iter().map(|slice| slice.endpoints.len()).collect::<Vec<_>>(), [51]);
        let gone = plan(&known, &[]);
        assert_eq!((written(&gone).len(), gone.actions().count()), (1, 3), "one stays, empty");
    }

    #[test]
    fn hints_say_whom_an_endpoint_is_meant_for() {
        let hints = |distribution: Option<&str>, zone: Option<&str>| {
            let mut service = service();
            service.spec.as_mut().expect("a spec").traffic_distribution = distribution.map(str::to_owned);
            let found = backends(&service, &pods(1, |_, _| {}), |_| zone.map(str::to_owned));
            let slices = written(&reconcile(&service, &[], &found));
            to_value(&slices[0])["endpoints"][0]["hints"].clone()
        };
        assert_eq!(hints(None, Some("a")), json!(null));
        assert_eq!(hints(Some("PreferClose"), Some("a")), json!({"forZones": [{"name": "a"}]}));
        assert_eq!(hints(Some("PreferSameZone"), None), json!(null));
        let both = json!({"forNodes": [{"name": "n"}], "forZones": [{"name": "a"}]});
        assert_eq!(hints(Some("PreferSameNode"), Some("a")), both);
        assert_eq!(hints(Some("PreferSameNode"), None), json!({"forNodes": [{"name": "n"}]}));
    }
}
