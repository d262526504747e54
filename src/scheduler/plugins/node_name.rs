//! NodeName: a pod that names its node gets no other.

use super::{Nodes, Plugin, PodInfo, Registered, Rejection};
use crate::scheduler::happened;
use crate::scheduler::node_info::NodeInfo;

pub const PLUGIN: Registered = Registered {
    name: "NodeName",
    make,
    helped_by: happened::NODE_ADDED,
    helped: |pod, happened, _| happened.node().is_some_and(|node| wanted(pod) == Some(&*node.name)),
};

struct NodeName<'a>(&'a str);

fn wanted(pod: &PodInfo) -> Option<&str> {
    pod.spec()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn make<'a>(pod: &'a PodInfo, _nodes: &'a Nodes) -> Option<Box<dyn Plugin<'a> + 'a>> {
    Some(Box::new(NodeName(wanted(pod)?)))
}

impl Plugin<'_> for NodeName<'_> {
    fn filter(&self, _pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if node.name == self.0 {
            return Ok(());
        }
        Rejection::hopeless("node(s) didn't match the requested node name")
    }
}
