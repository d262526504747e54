//! NodePorts: a host port is taken once per node.

use super::{Nodes, Plugin, PodInfo, Registered, Rejection};
use crate::scheduler::happened::{self, Happened};
use crate::scheduler::node_info::NodeInfo;

pub const PLUGIN: Registered = Registered {
    name: "NodePorts",
    make,
    helped_by: happened::NODE_ADDED | happened::POD_GONE,
    helped: |pod, happened, _| match happened {
        Happened::PodGone { pod: gone, .. } => {
            pod.ports.iter().any(|port| gone.ports.iter().any(|taken| taken.conflicts(port)))
        }
        _ => true,
    },
};

struct NodePorts;

fn make<'a>(pod: &'a PodInfo, _nodes: &'a Nodes) -> Option<Box<dyn Plugin<'a> + 'a>> {
    (!pod.ports.is_empty()).then(|| Box::new(NodePorts) as Box<dyn Plugin>)
}

impl Plugin<'_> for NodePorts {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.ports.iter().all(|port| node.is_free(port)) {
            return Ok(());
        }
        Rejection::resolvable("node(s) didn't have free ports for the requested pod ports")
    }
}
