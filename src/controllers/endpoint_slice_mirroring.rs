//! EndpointSlices of Endpoints that somebody wrote by hand, for Services without a selector
//! (`pkg/controller/endpointslicemirroring`).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::caches::Caches;
use super::endpoint_slice::SERVICE_LABEL;
use super::ownership::controller_reference;
use super::plan::{Action, Plan};
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::typed::Meta;

const MANAGED_BY: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "endpointslicemirroring-controller.k8s.io");
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Marks the Endpoints that the endpoints controller writes.
const CONTROLLED: &str = "endpoints.kubernetes.io/managed-by";
/// Marks Endpoints that are the lock of an election.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that speak of the Endpoints object itself.
const NOT_COPIED: [&str; 2] =
    ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];
/// `--mirroring-max-endpoints-per-subset`.
const MOST: usize = 1000;

/// The controller.
pub struct EndpointSliceMirroringController;

impl Controller for EndpointSliceMirroringController {
    fn name(&self) -> &'static str {
        "endpointslicemirroring"
    }
    fn account(&self) -> &'static str {
        "endpointslicemirroring-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.services);
        enqueue.on_change(&caches.endpoints);
        let add = enqueue.clone();
        caches.endpoint_slices.subscribe(move |change| {
            let slice = change.object();
            if let Some(service) = slice.labels().get(SERVICE_LABEL).filter(|_| is_ours(slice)) {
                add.add(Key::new(slice.namespace(), service));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _now: Timestamp) -> Plan {
        let ours = |slice: &EndpointSlice| is_ours(slice) && slice.labels().get(SERVICE_LABEL) == Some(&key.name);
        let slices = caches.endpoint_slices.select(&key.namespace, ours);
        let (service, endpoints) = (caches.services.get(key), caches.endpoints.get(key));
        reconcile(service.as_deref(), endpoints.as_deref(), &slices)
    }
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY.0).map(String::as_str) == Some(MANAGED_BY.1)
}

/// Whether Endpoints are to be mirrored.
fn is_mirrored(endpoints: &Endpoints) -> bool {
    let annotations = endpoints.metadata.annotations.as_ref();
    let labels = endpoints.labels();
    labels.get(SKIP).map(String::as_str) != Some("true")
        && !labels.contains_key(CONTROLLED)
        && !annotations.is_some_and(|annotations| annotations.contains_key(LEADER))
        && !endpoints.is_terminating()
}

/// The decision.
pub fn reconcile(service: Option<&Service>, endpoints: Option<&Endpoints>, slices: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    let selects = |service: &Service| service.spec.as_ref().is_some_and(|spec| spec.selector.is_some());
    let source = endpoints.filter(|endpoints| is_mirrored(endpoints) && service.is_some_and(|s| !selects(s)));
    let Some(endpoints) = source else {
        // The slices of Endpoints that are gone are the garbage collector's as well, but nobody shall use them until then.
        slices.iter().filter(|slice| !slice.is_terminating()).for_each(|slice| plan.push(Action::delete(&**slice)));
        return plan;
    };
    let mut wanted = mirror(endpoints);
    let mut spare = Vec::new();
    // Slices stay with what they hold already.
    for slice in slices.iter().filter(|slice| !slice.is_terminating()) {
        let alike = |other: &EndpointSlice| other.address_type == slice.address_type && other.ports == slice.ports;
        match wanted.iter().position(alike) {
            Some(index) => update(&mut plan, slice, wanted.remove(index)),
            None => spare.push(slice.clone()),
        }
    }
    for new in wanted {
        match spare.iter().position(|slice| slice.address_type == new.address_type) {
            Some(index) => update(&mut plan, &spare.remove(index), new),
            None => plan.push(Action::create(&new)),
        }
    }
    spare.iter().for_each(|slice| plan.push(Action::delete(&**slice)));
    plan
}

fn update(plan: &mut Plan, slice: &EndpointSlice, wanted: EndpointSlice) {
    let mut changed = slice.clone();
    changed.metadata.labels = wanted.metadata.labels;
    changed.metadata.annotations = wanted.metadata.annotations;
    changed.ports = wanted.ports;
    changed.endpoints = wanted.endpoints;
    if changed != *slice {
        plan.push(Action::update(&changed));
    }
}

/// The slices that say the same as the Endpoints: one for each subset and family.
fn mirror(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut slices: Vec<EndpointSlice> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        for family in ["IPv4", "IPv6"] {
            let list = members(subset, family);
            if list.is_empty() {
                continue;
            }
            let (address_type, ports) = (family.to_owned(), ports(subset));
            // Subsets with the same ports share a slice.
            match slices.iter_mut().find(|slice| slice.address_type == family && slice.ports == ports) {
                Some(slice) => slice.endpoints.extend(list),
                None => {
                    let metadata = metadata(endpoints);
                    slices.push(EndpointSlice { address_type, endpoints: list, metadata, ports });
                }
            }
        }
    }
    slices
}

fn metadata(endpoints: &Endpoints) -> ObjectMeta {
    let name = endpoints.name();
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_LABEL.into(), name.into());
    labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    let mut annotations: BTreeMap<_, _> = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: endpoints.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
        owner_references: Some(vec![controller_reference(endpoints)]),
        ..Default::default()
    }
}

fn ports(subset: &EndpointSubset) -> Option<Vec<EndpointPort>> {
    let write = |port: &k8s_openapi::api::core::v1::EndpointPort| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
        app_protocol: port.app_protocol.clone(),
    };
    Some(subset.ports.iter().flatten().map(write).collect()).filter(|ports: &Vec<_>| !ports.is_empty())
}

fn members(subset: &EndpointSubset, family: &str) -> Vec<Endpoint> {
    let side = |addresses: &Option<Vec<EndpointAddress>>, ready: bool| -> Vec<Endpoint> {
        let of_family = addresses.iter().flatten().filter(|a| a.ip.contains(':') == (family == "IPv6"));
        of_family.map(|address| endpoint(address, ready)).collect()
    };
    let mut all = side(&subset.addresses, true);
    all.extend(side(&subset.not_ready_addresses, false));
    all.truncate(MOST);
    all
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use crate::client::typed::to_value;
    use crate::controllers::plan::Write;
    use serde_json::{Value, json};

    fn service(selector: Value) -> Service {
        let value = json!({"metadata": {"name": "db", "namespace": "a", "uid": "s"}, "spec": {"selector": selector}});
        Service::parse(&value).expect("a service")
    }

    fn endpoints(labels: Value) -> Endpoints {
        let value = json!({"metadata": {"name": "db", "namespace": "a", "uid": "e", "labels": labels,
                "annotations": {"note": "1", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "subsets": [{"addresses": [{"ip": "192.0.2.1", "hostname": "one"}, {"ip": "2001:db8::1"}],
                "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"name": "sql", "port": 5432}]}]});
        Endpoints::parse(&value).expect("endpoints")
    }

    fn created(plan: &Plan) -> Vec<Arc<EndpointSlice>> {
        let slices = plan.actions().enumerate().filter_map(|(n, action)| match &action.write {
            Write::Create { object, .. } => {
                let mut slice = EndpointSlice::parse(object).expect("a slice");
                slice.metadata.name = Some(format!("db-{n}"));
                Some(Arc::new(slice))
            }
            _ => None,
        });
        slices.collect()
    }

    #[test]
    fn slices_say_what_the_endpoints_say() {
        let plan = reconcile(Some(&service(json!(null))), Some(&endpoints(json!({"app": "db"}))), &[]);
        let slices = created(&plan);
        let first = to_value(&*slices[0]);
        assert_eq!(
            first["metadata"]["labels"],
            json!({"app": "db", "kubernetes.io/service-name": "db",
                "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io"})
        );
        assert_eq!(first["metadata"]["annotations"], json!({"note": "1"}));
        assert_eq!(first["metadata"]["ownerReferences"][0]["kind"], "Endpoints");
        assert_eq!(first["ports"], json!([{"name": "sql", "port": 5432, "protocol": "TCP"}]));
        assert_eq!(
            first["endpoints"],
            json!([{"addresses": ["192.0.2.1"], "conditions": {"ready": true}, "hostname": "one"},
                {"addresses": ["192.0.2.2"], "conditions": {"ready": false}}])
        );
        assert_eq!((slices.len(), slices[1].address_type.as_str()), (2, "IPv6"));
        let again = reconcile(Some(&service(json!(null))), Some(&endpoints(json!({"app": "db"}))), &slices);
        assert!(again.is_empty(), "nothing changed");
        let mut fewer = endpoints(json!({"app": "db"}));
        fewer.subsets.as_mut().expect("one")[0].addresses.as_mut().expect("two").truncate(1);
        let less = reconcile(Some(&service(json!(null))), Some(&fewer), &slices);
        assert!(matches!(less.actions().next().expect("one").write, Write::Delete { .. }), "no IPv6 any more");
    }

    #[test]
    fn what_others_care_for_is_not_mirrored() {
        let none =
            |service: Option<&Service>, labels: Value| reconcile(service, Some(&endpoints(labels)), &[]).is_empty();
        let plain = service(json!(null));
        assert!(none(Some(&service(json!({"app": "db"}))), json!({})), "it has a selector");
        assert!(none(None, json!({})), "there is no Service");
        assert!(none(Some(&plain), json!({SKIP: "true"})));
        assert!(none(Some(&plain), json!({CONTROLLED: "endpoint-controller"})));
        let slices = created(&reconcile(Some(&plain), Some(&endpoints(json!({}))), &[]));
        let gone = reconcile(Some(&plain), None, &slices);
        assert_eq!(gone.actions().count(), 2, "both slices go");
    }
}
