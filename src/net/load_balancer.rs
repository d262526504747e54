//! Gives each Service of `type: LoadBalancer` an address of the profile's loopback range, in `status.loadBalancer.ingress`.
//!
//! [`plan`] is pure; [`run`] follows the table of Services and writes. Without a `loadBalancerClass` only: others have their
//! own controllers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::host_ports::reference;
use super::service_table::{ObjectName, Service, ServiceTable, ServiceType};
use crate::api::{Gvr, Status};
use crate::client::recorder::{EventType, Recorder};
use crate::client::{Api, Patch};

const SERVICES: Gvr = Gvr::new("", "v1", "services");

/// What is to be written into a Service's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// This address.
    Assign(Ipv4Addr),
    /// No address: the Service is no LoadBalancer any more.
    Release,
    /// No address is left.
    Exhausted,
}

/// The addresses in a Service's status.
pub fn ingress(object: &Value) -> impl Iterator<Item = Ipv4Addr> {
    let ingress = object["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    ingress.filter_map(|entry| entry["ip"].as_str()?.parse().ok())
}

/// Whether the Service gets an address here.
pub fn is_ours(service: &Service) -> bool {
    service.kind == ServiceType::LoadBalancer && service.object["spec"]["loadBalancerClass"].as_str().is_none()
}

/// Who has to be changed. An address that a Service has stays its own; `loadBalancerIP` is obeyed when it is free and inside
/// the range. `pending` are addresses by uid that were written and have perhaps not come back yet.
pub fn plan(table: &ServiceTable, range: Ipv4Net, pending: &HashMap<String, Ipv4Addr>) -> BTreeMap<ObjectName, Step> {
    let mut steps = BTreeMap::new();
    let mut used = HashSet::new();
    let mut waiting = Vec::new();
    for (name, service) in &table.services {
        let current = ingress(&service.object).find(|ip| range.contains(ip));
        if !is_ours(service) {
            let left_over = service.kind != ServiceType::LoadBalancer && current.is_some();
            steps.extend(left_over.then(|| (name.clone(), Step::Release)));
            continue;
        }
        match current.or_else(|| pending.get(&service.uid).copied()) {
            Some(ip) if used.insert(ip) => {}
            _ => waiting.push((name, service)),
        }
    }
    // Those that ask for an address come before those that take any.
    waiting.sort_by_key(|(_, service)| wish(service, range).is_none());
    for (name, service) in waiting {
        let free = || range.hosts().find(|ip| !used.contains(ip));
        let ip = wish(service, range).filter(|ip| !used.contains(ip)).or_else(free);
        used.extend(ip);
        steps.insert(name.clone(), ip.map_or(Step::Exhausted, Step::Assign));
    }
    steps
}

fn wish(service: &Service, range: Ipv4Net) -> Option<Ipv4Addr> {
    service.object["spec"]["loadBalancerIP"].as_str()?.parse().ok().filter(|ip| range.contains(ip))
}

/// Runs until it is dropped.
pub async fn run(mut table: watch::Receiver<Arc<ServiceTable>>, api: Arc<dyn Api>, recorder: Recorder, range: Ipv4Net) {
    let mut pending: HashMap<String, Ipv4Addr> = HashMap::new();
    let mut told: HashSet<String> = HashSet::new();
    loop {
        let snapshot = table.borrow_and_update().clone();
        let services = || snapshot.services.values().filter(|s| is_ours(s));
        let waits: HashSet<&str> =
            services().filter(|s| ingress(&s.object).next().is_none()).map(|s| s.uid.as_str()).collect();
        pending.retain(|uid, _| waits.contains(uid.as_str()));
        told.retain(|uid| waits.contains(uid.as_str()));
        for (name, step) in plan(&snapshot, range, &pending) {
            let Some(service) = snapshot.services.get(&name) else { continue };
            let written = match &step {
                Step::Assign(ip) => {
                    recorder.about(
                        reference(service),
                        EventType::Normal,
                        "EnsuringLoadBalancer",
                        "Ensuring load balancer",
                    );
                    write(&*api, service, json!({"ingress": [{"ip": ip.to_string(), "ipMode": "VIP"}]})).await
                }
                // null leaves an empty object.
                Step::Release => write(&*api, service, json!({"ingress": null})).await,
                Step::Exhausted => {
                    if told.insert(service.uid.clone()) {
                        let message = format!("Error syncing load balancer: no free address is left in {range}");
                        recorder.about(reference(service), EventType::Warning, "SyncLoadBalancerFailed", message);
                    }
                    continue;
                }
            };
            match (written, step) {
                (Ok(()), Step::Assign(ip)) => {
                    pending.insert(service.uid.clone(), ip);
                    recorder.about(
                        reference(service),
                        EventType::Normal,
                        "EnsuredLoadBalancer",
                        "Ensured load balancer",
                    );
                }
                (Ok(()), _) => {}
                // Its next change (or its deletion) is on the way.
                (Err(error), _) => {
                    tracing::warn!(service = ?name, %error, "the address of a Service cannot be written")
                }
            }
        }
        if table.changed().await.is_err() {
            return;
        }
    }
}

async fn write(api: &dyn Api, service: &Service, load_balancer: Value) -> Result<(), Status> {
    let (namespace, name) = &service.name;
    let patch = Patch::Merge(json!({"status": {"loadBalancer": load_balancer}}));
    api.patch(&SERVICES, namespace, name, "status", patch).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::service_table::{Objects, tests::service};

    fn plan_of(objects: &mut Objects) -> Vec<(String, Step)> {
        let range = "127.78.0.0/30".parse().expect("a network");
        plan(&objects.snapshot(), range, &HashMap::new()).into_iter().map(|((_, name), step)| (name, step)).collect()
    }

    #[test]
    fn addresses_are_kept_wished_for_taken_and_released() {
        let ip = |n| Ipv4Addr::new(127, 78, 0, n);
        let mut objects = Objects::new("mini");
        let with_status = |name: &str, kind: &str, ip: &str| {
            let mut object = (*service(name, json!({"type": kind, "clusterIP": "10.96.0.9"}))).clone();
            object["status"] = json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
            Arc::new(object)
        };
        objects.apply_service(with_status("kept", "LoadBalancer", "127.78.0.1"));
        objects.apply_service(with_status("left", "ClusterIP", "127.78.0.2"));
        objects.apply_service(service("any", json!({"type": "LoadBalancer"})));
        objects.apply_service(service("wish", json!({"type": "LoadBalancer", "loadBalancerIP": "127.78.0.2"})));
        objects.apply_service(service("other", json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/x"})));
        let expected = [("any", Step::Exhausted), ("left", Step::Release), ("wish", Step::Assign(ip(2)))];
        assert_eq!(plan_of(&mut objects), expected.map(|(name, step)| (name.to_owned(), step)));
        objects.delete_service(&("default".into(), "kept".into()));
        assert_eq!(plan_of(&mut objects)[0], ("any".to_owned(), Step::Assign(ip(1))));
    }
}
