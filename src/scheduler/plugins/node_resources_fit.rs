//! NodeResourcesFit: what a pod requests must be free; of several nodes the least allocated is liked best.

use super::{MOST, Nodes, Plugin, PodInfo, Registered, Rejection};
use crate::scheduler::happened::{self, Happened};
use crate::scheduler::node_info::NodeInfo;

pub const PLUGIN: Registered = Registered {
    name: "NodeResourcesFit",
    make: |_, _| Some(Box::new(NodeResourcesFit)),
    helped_by: happened::NODE | happened::POD_GONE | happened::POD_CHANGED | happened::ITSELF,
    helped,
};

struct NodeResourcesFit;

/// Only the node where something happened can have more room than before. A pod that is as important as the waiting
/// one was in the way of preemption, too: its going is worth a try whatever is free now.
fn helped(pod: &PodInfo, happened: &Happened<'_>, nodes: &Nodes) -> bool {
    let fits = |node: &NodeInfo| lacking(pod, node).is_empty();
    match happened {
        Happened::PodGone { pod: gone, node } => gone.priority() >= pod.priority() || nodes.get(node).is_some_and(fits),
        Happened::PodChanged { old, new, node } => {
            new.requests.is_less_than(&old.requests)
                && (new.priority() >= pod.priority() || nodes.get(node).is_some_and(fits))
        }
        Happened::Itself(before) => pod.requests.is_less_than(&before.requests),
        // Those in the way may be evicted: what the node has in all decides.
        happened => happened.node().is_some_and(|node| {
            node.allowed_pods > 0 && node.allocatable.lacking(&Default::default(), &pod.requests).is_empty()
        }),
    }
}

/// The resources of which too little is free, and whether they would do if the node was empty.
fn lacking<'a>(pod: &'a PodInfo, node: &NodeInfo) -> Vec<(&'a str, bool)> {
    let mut lacking = node.allocatable.lacking(&node.requested, &pod.requests);
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) + 1 > node.allowed_pods {
        lacking.insert(0, ("pods", true));
    }
    lacking
}

impl Plugin<'_> for NodeResourcesFit {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let lacking = lacking(pod, node);
        if lacking.is_empty() {
            return Ok(());
        }
        let reason = |(name, _): &(&str, bool)| match *name {
            "pods" => "Too many pods".into(),
            "cpu" => "Insufficient cpu".into(),
            "memory" => "Insufficient memory".into(),
            name => format!("Insufficient {name}").into(),
        };
        let resolvable = lacking.iter().all(|(_, resolvable)| *resolvable);
        Err(Rejection { reasons: lacking.iter().map(reason).collect(), resolvable })
    }
    /// LeastAllocated with equal weights for CPU and memory.
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let free = |used: i64, wanted: i64, total: i64| (total - used - wanted).max(0) * MOST / total;
        let (cpu, memory) = (node.allocatable.milli_cpu, node.allocatable.memory);
        let cpu = (cpu > 0).then(|| free(node.assumed.0, pod.assumed.0, cpu));
        let memory = (memory > 0).then(|| free(node.assumed.1, pod.assumed.1, memory));
        match (cpu, memory) {
            (Some(cpu), Some(memory)) => (cpu + memory) / 2,
            (one, other) => one.or(other).unwrap_or_default(),
        }
    }
    fn weight(&self) -> i64 {
        1
    }
}
