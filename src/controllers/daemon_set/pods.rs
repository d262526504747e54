//! The pods of a DaemonSet: made for one node, with the tolerations that every daemon needs (`daemonset_util.go`).

use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration};

use crate::client::typed::Meta;
use crate::controllers::history::REVISION_LABEL;
use crate::controllers::pod_control;
use crate::controllers::pod_status::node_name;

/// The annotation of a set that counts the changes of its template.
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
/// The label of pods with that count.
const GENERATION_LABEL: &str = "pod-template-generation";

/// Taints that a daemon tolerates on any node: key and effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// And in the node's own network.
const NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// Adds the tolerations of daemons (`AddOrUpdateDaemonPodTolerations`).
pub fn add_tolerations(spec: &mut PodSpec) {
    let network = spec.host_network.unwrap_or_default().then_some(NETWORK);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let wanted = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Default::default()
        };
        // One that differs only in its seconds is made to last.
        let same = |known: &&mut Toleration| Toleration { toleration_seconds: None, ..(**known).clone() } == wanted;
        match tolerations.iter_mut().find(same) {
            Some(known) => *known = wanted,
            None => tolerations.push(wanted),
        }
    }
}

/// A new pod for a node; the scheduler binds it there and nowhere else.
pub fn new_pod(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = pod_control::from_template(set, &template);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_LABEL.into(), hash.to_owned());
    if let Some(generation) = template_generation(set) {
        labels.insert(GENERATION_LABEL.into(), generation.to_string());
    }
    let spec = pod.spec.get_or_insert_default();
    add_tolerations(spec);
    let term = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.to_owned()]),
        }]),
        match_expressions: None,
    };
    // The node was chosen by what stood here.
    spec.affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution = Some(NodeSelector { node_selector_terms: vec![term] });
    pod
}

fn template_generation(set: &DaemonSet) -> Option<i64> {
    set.annotation(GENERATION_ANNOTATION)?.parse().ok()
}

/// Whether the pod was made of the revision with this hash.
pub fn has_hash(pod: &Pod, hash: &str) -> bool {
    !hash.is_empty() && pod.labels().get(REVISION_LABEL).map(String::as_str) == Some(hash)
}

/// Whether the pod is up to date (`IsPodUpdated`).
pub fn is_updated(set: &DaemonSet, pod: &Pod, hash: &str) -> bool {
    let generation = template_generation(set).map(|generation| generation.to_string());
    has_hash(pod, hash) || (generation.is_some() && pod.labels().get(GENERATION_LABEL) == generation.as_ref())
}

/// The node that runs the pod or for which it was made (`GetTargetNodeName`).
pub fn target_node(pod: &Pod) -> Option<&str> {
    if !node_name(pod).is_empty() {
        return Some(node_name(pod));
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let name = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    name.values.as_deref().filter(|values| values.len() == 1)?.first().map(String::as_str)
}

/// Bound ones first, then the oldest (`podByCreationTimestampAndPhase`).
pub fn sort(pods: &mut [Arc<Pod>]) {
    pods.sort_by_cached_key(|pod| {
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (node_name(pod).is_empty(), created, pod.name().to_owned())
    });
}
