//! A pod as the scheduler needs it: what it requests and whom it wants to be near, computed once.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, PodSpec, WeightedPodAffinityTerm};

use super::resources::{self, Resources};
use super::selector::{Labels, Selector};
use crate::client::cache::Key;
use crate::client::typed::Meta;

/// A port that a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The address; `0.0.0.0` takes all.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

/// A term of pod affinity or anti-affinity.
#[derive(Clone, Debug)]
pub struct Term {
    /// The label of nodes whose value makes a domain.
    pub topology_key: String,
    /// Namespaces by name.
    pub namespaces: Vec<String>,
    /// Namespaces by label.
    pub namespace_selector: Selector,
    /// Pods by label.
    pub selector: Selector,
}

impl Term {
    fn of(term: &PodAffinityTerm, own_namespace: &str) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(own_namespace.to_owned());
        }
        Self {
            topology_key: term.topology_key.clone(),
            namespaces,
            namespace_selector: Selector::of(term.namespace_selector.as_ref()),
            selector: Selector::of(term.label_selector.as_ref()),
        }
    }
    /// Whether it means the pod, whose namespace has these labels.
    pub fn means(&self, pod: &PodInfo, namespace_labels: &Labels) -> bool {
        (self.namespaces.contains(&pod.key.namespace) || self.namespace_selector.matches(namespace_labels))
            && self.selector.matches(pod.pod.labels())
    }
}

/// A pod with what was computed from it.
#[derive(Debug)]
pub struct PodInfo {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its namespace and name.
    pub key: Key,
    /// Its uid, shared by the indexes.
    pub uid: Arc<str>,
    /// What must be free on a node.
    pub requests: Resources,
    /// CPU and memory for scoring, where missing requests are assumed.
    pub assumed: (i64, i64),
    /// Ports on the node.
    pub ports: Vec<HostPort>,
    /// Claims that its volumes use.
    pub claims: Vec<Key>,
    /// Pods that must be near.
    pub required: Vec<Term>,
    /// Pods that must not be near.
    pub forbidden: Vec<Term>,
    /// Pods that should be near, or (with a negative weight) should not.
    pub preferred: Vec<(Term, i64)>,
}

impl PodInfo {
    /// Computes what the scheduler needs.
    pub fn new(pod: Arc<Pod>) -> Self {
        let nothing = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&nothing);
        let key = Key::of(&*pod);
        let requests = resources::of_pod(&pod);
        let mut info = Self {
            uid: pod.uid().into(),
            assumed: resources::assumed(&pod, &requests),
            requests,
            ports: ports(spec),
            claims: super::volumes::claims_of(&pod).collect(),
            required: Vec::new(),
            forbidden: Vec::new(),
            preferred: Vec::new(),
            key,
            pod: pod.clone(),
        };
        if let Some(affinity) = &spec.affinity {
            let namespace = info.key.namespace.as_str();
            let read = |terms: &Option<Vec<PodAffinityTerm>>| -> Vec<Term> {
                terms.iter().flatten().map(|term| Term::of(term, namespace)).collect()
            };
            let weigh = |terms: &Option<Vec<WeightedPodAffinityTerm>>, sign: i64| -> Vec<(Term, i64)> {
                let one = |term: &WeightedPodAffinityTerm| {
                    (Term::of(&term.pod_affinity_term, namespace), sign * i64::from(term.weight))
                };
                terms.iter().flatten().map(one).collect()
            };
            let (mut required, mut forbidden, mut preferred) = (Vec::new(), Vec::new(), Vec::new());
            if let Some(near) = &affinity.pod_affinity {
                required = read(&near.required_during_scheduling_ignored_during_execution);
                preferred = weigh(&near.preferred_during_scheduling_ignored_during_execution, 1);
            }
            if let Some(far) = &affinity.pod_anti_affinity {
                forbidden = read(&far.required_during_scheduling_ignored_during_execution);
                preferred.extend(weigh(&far.preferred_during_scheduling_ignored_during_execution, -1));
            }
            (info.required, info.forbidden, info.preferred) = (required, forbidden, preferred);
        }
        info
    }
    /// `spec.priority`.
    pub fn priority(&self) -> i32 {
        self.spec().and_then(|spec| spec.priority).unwrap_or_default()
    }
    /// `spec`.
    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }
    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        &self.uid
    }
    /// `metadata.labels`.
    pub fn labels(&self) -> &Labels {
        self.pod.labels()
    }
    /// Whether it has affinity or anti-affinity to other pods.
    pub fn has_pod_affinity(&self) -> bool {
        self.terms().next().is_some()
    }
    /// Everything it asks for about other pods.
    pub fn terms(&self) -> impl Iterator<Item = &Term> {
        self.required.iter().chain(&self.forbidden).chain(self.preferred.iter().map(|(term, _)| term))
    }
    /// `status.nominatedNodeName`; empty when absent.
    pub fn nominated_node(&self) -> &str {
        self.pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref()).unwrap_or_default()
    }
    /// When its node began with it; a pod that has not begun counts as the youngest.
    pub fn started(&self) -> Timestamp {
        let time = self.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        time.map_or(Timestamp::MAX, |time| time.0)
    }
}

fn ports(spec: &PodSpec) -> Vec<HostPort> {
    // Init containers have ended when the others run, except sidecars.
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let taken = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        Some(HostPort { ip, protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()), port: number })
    });
    taken.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use serde_json::{Value, json};

    fn pod(namespace: &str, spec: Value) -> PodInfo {
        let pod = json!({"metadata": {"name": "p", "namespace": namespace, "labels": {"app": "web"}}, "spec": spec});
        PodInfo::new(Arc::new(Pod::parse(&pod).expect("a pod")))
    }

    #[test]
    fn host_ports_conflict_by_port_protocol_and_address() {
        let port = |ip: &str, protocol: &str, port: i32| HostPort { ip: ip.into(), protocol: protocol.into(), port };
        let first = port("127.0.0.1", "TCP", 80);
        for (other, expected) in [
            (port("127.0.0.1", "TCP", 80), true),
            (port("0.0.0.0", "TCP", 80), true),
            (port("127.0.0.2", "TCP", 80), false),
            (port("127.0.0.1", "UDP", 80), false),
            (port("127.0.0.1", "TCP", 81), false),
        ] {
            assert_eq!(first.conflicts(&other), expected, "{other:?}");
        }
        let ports = json!([{"containerPort": 1, "hostPort": 1}]);
        let spec = json!({"containers": [{"name": "c", "ports": ports}], "initContainers": [{"name": "i", "ports": ports},
            {"name": "s", "ports": ports, "restartPolicy": "Always"}]});
        assert_eq!(pod("a", spec).ports.len(), 2, "of init containers only sidecars take ports");
    }

    #[test]
    fn terms_mean_namespaces_by_name_label_or_their_own() {
        let selects = json!({"matchLabels": {"app": "web"}});
        let check = |mut term: Value, expected: [bool; 2]| {
            term["topologyKey"] = "zone".into();
            term["labelSelector"] = selects.clone();
            let spec = json!({"containers": [], "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
            let owner = pod("a", spec);
            let labels = Labels::from([("team".into(), "red".into())]);
            let means = |namespace: &str| {
                owner.required[0].means(
                    &pod(namespace, json!({"containers": []})),
                    if namespace == "b" { &labels } else { owner.labels() },
                )
            };
            assert_eq!([means("a"), means("b")], expected, "{term}");
        };
        check(json!({}), [true, false]);
        check(json!({"namespaces": ["b"]}), [false, true]);
        check(json!({"namespaceSelector": {}}), [true, true]);
        check(json!({"namespaceSelector": {"matchLabels": {"team": "red"}}}), [false, true]);
        check(json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}, "namespaces": ["a"]}), [true, false]);
    }
}
