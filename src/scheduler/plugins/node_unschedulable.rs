//! NodeUnschedulable: cordoned nodes take only pods that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use super::taint_toleration::tolerates;
use super::{Plugin, PodInfo, Registered, Rejection};
use crate::scheduler::happened::{self, Happened};
use crate::scheduler::node_info::NodeInfo;

pub const PLUGIN: Registered = Registered {
    name: "NodeUnschedulable",
    make: |_, _| Some(Box::new(NodeUnschedulable)),
    helped_by: happened::NODE | happened::ITSELF,
    helped: |pod, happened, _| match happened {
        Happened::Itself(before) => !tolerates_cordon(before) && tolerates_cordon(pod),
        happened => happened.node().is_some_and(|node| !node.is_unschedulable() || tolerates_cordon(pod)),
    },
};

struct NodeUnschedulable;

fn tolerates_cordon(pod: &PodInfo) -> bool {
    let (key, effect) = ("node.kubernetes.io/unschedulable".to_owned(), "NoSchedule".to_owned());
    tolerates(pod, &Taint { key, effect, ..Taint::default() })
}

impl Plugin<'_> for NodeUnschedulable {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if !node.is_unschedulable() || tolerates_cordon(pod) {
            return Ok(());
        }
        Rejection::hopeless("node(s) were unschedulable")
    }
}
