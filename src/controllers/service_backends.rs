//! The pods behind a Service and the ports under which they answer; shared by Endpoints and EndpointSlices.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::caches::Caches;
use super::pod_status::{is_finished, is_ready, node_name};
use super::{Enqueue, Key};
use crate::client::selector;
use crate::client::typed::Meta;

/// A port of a backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The service port's name; empty when it has none.
    pub name: String,
    /// The port in the pod.
    pub port: i32,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// A pod that a Service selects.
pub struct Backend {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its addresses, the primary first.
    pub addresses: Vec<String>,
    /// Its ports, sorted.
    pub ports: Vec<Port>,
    /// Whether it passes its readiness checks.
    pub serving: bool,
    /// Whether it is terminating.
    pub terminating: bool,
    /// The zone of its node.
    pub zone: Option<String>,
}

impl Backend {
    /// The name under which DNS knows it, when it belongs to the Service as its subdomain.
    pub fn hostname(&self, service: &Service) -> Option<String> {
        let spec = self.pod.spec.as_ref()?;
        let hostname = spec.hostname.clone().filter(|hostname| !hostname.is_empty())?;
        (spec.subdomain.as_deref() == Some(service.name())).then_some(hostname)
    }
    /// The node, if it is bound.
    pub fn node(&self) -> Option<String> {
        Some(node_name(&self.pod).to_owned()).filter(|node| !node.is_empty())
    }
    /// `targetRef`.
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            kind: Some("Pod".into()),
            namespace: self.pod.metadata.namespace.clone(),
            name: self.pod.metadata.name.clone(),
            uid: self.pod.metadata.uid.clone(),
            ..Default::default()
        }
    }
}

/// Whether the Service has a selector that controllers follow.
pub fn is_selecting(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() != Some("ExternalName") && spec.selector.as_ref().is_some_and(|wanted| !wanted.is_empty())
}

/// Whether the Service is headless.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Whether unready addresses count as ready.
pub fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or_default()
}

/// The pods that the Service selects and that have an address, in the order of their names.
pub fn backends(service: &Service, pods: &[Arc<Pod>], zone: impl Fn(&str) -> Option<String>) -> Vec<Backend> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let (Some(wanted), service_ports) = (&spec.selector, spec.ports.as_deref().unwrap_or_default()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for pod in pods.iter().filter(|pod| selector::contains(pod.labels(), wanted) && !is_finished(pod)) {
        let addresses = addresses(pod);
        if addresses.is_empty() {
            continue;
        }
        let mut ports: Vec<Port> = service_ports.iter().filter_map(|port| resolve(pod, port)).collect();
        ports.sort();
        ports.dedup();
        found.push(Backend {
            pod: pod.clone(),
            addresses,
            ports,
            serving: is_ready(pod),
            terminating: pod.is_terminating(),
            zone: zone(node_name(pod)),
        });
    }
    found
}

fn addresses(pod: &Pod) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone());
    let mut all: Vec<String> = all.filter(|ip| !ip.is_empty()).collect();
    if all.is_empty() {
        all.extend(status.pod_ip.clone().filter(|ip| !ip.is_empty()));
    }
    all
}

/// The port of a pod that a service port means (`FindPort`); `None` when the pod has no port of that name.
fn resolve(pod: &Pod, port: &ServicePort) -> Option<Port> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) if name.is_empty() => port.port,
        Some(IntOrString::String(name)) => named(pod, name, &protocol)?,
    };
    let name = port.name.clone().unwrap_or_default();
    Some(Port { name, port: number, protocol, app_protocol: port.app_protocol.clone() })
}

fn named(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecar));
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let found = ports
        .find(|port| port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol)?;
    Some(found.container_port)
}

/// The zone label of a node.
pub fn zone(node: Option<&Node>) -> Option<String> {
    node?.labels().get("topology.kubernetes.io/zone").cloned()
}

/// Enqueues the Services that a pod's change may concern.
pub fn follow_pods(caches: &Caches, enqueue: &Enqueue) {
    let (services, add) = (caches.services.clone(), enqueue.clone());
    caches.pods.subscribe(move |change| {
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && !matters(old, new)
        {
            return;
        }
        for pod in change.old.iter().chain(&change.new) {
            let selects = |service: &Service| {
                let wanted = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                wanted.is_some_and(|wanted| !wanted.is_empty() && selector::contains(pod.labels(), wanted))
            };
            services.select(pod.namespace(), selects).iter().for_each(|service| add.add(Key::of(&**service)));
        }
    });
}

/// Whether endpoints can differ between two states of a pod.
fn matters(old: &Pod, new: &Pod) -> bool {
    let view = |pod: &Pod| {
        (
            pod.metadata.labels.clone(),
            addresses(pod),
            is_ready(pod),
            is_finished(pod),
            pod.is_terminating(),
            pod.uid().to_owned(),
        )
    };
    view(old) != view(new) || old.spec != new.spec
}
