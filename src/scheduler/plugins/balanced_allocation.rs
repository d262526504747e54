//! NodeResourcesBalancedAllocation: CPU and memory should be used alike.

use super::{Nodes, Plugin, PodInfo, Registered};
use crate::scheduler::node_info::NodeInfo;

pub const PLUGIN: Registered =
    Registered { name: "NodeResourcesBalancedAllocation", make, helped_by: 0, helped: |_, _, _| false };

struct BalancedAllocation;

/// Pods that request nothing do not change the balance.
fn make<'a>(pod: &'a PodInfo, _nodes: &'a Nodes) -> Option<Box<dyn Plugin<'a> + 'a>> {
    (pod.requests.milli_cpu > 0 || pod.requests.memory > 0).then(|| Box::new(BalancedAllocation) as Box<dyn Plugin>)
}

impl Plugin<'_> for BalancedAllocation {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a score between 0 and 100")]
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let (has, used, wanted) = (&node.allocatable, &node.requested, &pod.requests);
        let fraction = |used: i64, total: i64| (total > 0).then(|| (used as f64 / total as f64).min(1.0));
        let cpu = fraction(used.milli_cpu + wanted.milli_cpu, has.milli_cpu);
        let memory = fraction(used.memory + wanted.memory, has.memory);
        // Of two numbers the standard deviation is half their distance; of one it is nothing.
        let deviation = cpu.zip(memory).map_or(0.0, |(cpu, memory)| (cpu - memory).abs() / 2.0);
        ((1.0 - deviation) * 100.0) as i64
    }
    fn weight(&self) -> i64 {
        1
    }
}
