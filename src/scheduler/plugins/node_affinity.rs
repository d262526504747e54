//! NodeAffinity: `nodeSelector` and node affinity, required and preferred.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, NodeAffinity as Spec, NodeSelectorTerm, PreferredSchedulingTerm};

use super::{Nodes, Plugin, PodInfo, Registered, Rejection, normalize};
use crate::client::placement;
use crate::client::typed::Meta;
use crate::scheduler::happened::{self, Happened};
use crate::scheduler::node_info::NodeInfo;

pub const PLUGIN: Registered = Registered {
    name: "NodeAffinity",
    make,
    helped_by: happened::NODE,
    helped: |pod, happened, _| match happened {
        Happened::NodeChanged { old, new } => new.node.as_deref().is_some_and(|new| !fits(pod, old) && fits(pod, new)),
        happened => happened.node().is_some_and(|node| allows(pod, node)),
    },
};

struct NodeAffinity<'a> {
    pod: &'a PodInfo,
    preferred: &'a [PreferredSchedulingTerm],
    /// The nodes that all required terms name.
    only: Option<BTreeSet<String>>,
}

fn affinity(pod: &PodInfo) -> Option<&Spec> {
    pod.spec()?.affinity.as_ref()?.node_affinity.as_ref()
}

fn required(pod: &PodInfo) -> Option<&[NodeSelectorTerm]> {
    let required = affinity(pod)?.required_during_scheduling_ignored_during_execution.as_ref()?;
    Some(&required.node_selector_terms)
}

fn make<'a>(pod: &'a PodInfo, _nodes: &'a Nodes) -> Option<Box<dyn Plugin<'a> + 'a>> {
    if pod.spec()?.node_selector.is_none() && affinity(pod).is_none() {
        return None;
    }
    let preferred = affinity(pod).and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let only = required(pod).and_then(named);
    Some(Box::new(NodeAffinity { pod, preferred: preferred.unwrap_or_default(), only }))
}

/// The nodes that the terms name (as those of DaemonSets do); `None` when a term allows others.
fn named(terms: &[NodeSelectorTerm]) -> Option<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for term in terms {
        let fields = term.match_fields.iter().flatten();
        let names = fields.filter(|field| field.key == "metadata.name" && field.operator == "In");
        let names = names.map(|field| field.values.iter().flatten().cloned().collect::<BTreeSet<String>>());
        all.extend(names.reduce(|one, other| &one & &other)?);
    }
    Some(all)
}

/// Whether the pod's `nodeSelector` and required affinity allow the node.
pub fn allows(pod: &PodInfo, node: &NodeInfo) -> bool {
    node.node.as_deref().is_some_and(|node| fits(pod, node))
}

fn fits(pod: &PodInfo, node: &Node) -> bool {
    pod.spec().is_none_or(|spec| placement::allows(spec, node))
}

impl Plugin<'_> for NodeAffinity<'_> {
    fn refuses(&self) -> Option<&str> {
        self.only.as_ref().filter(|names| names.is_empty()).map(|_| "pod affinity terms conflict")
    }
    fn only(&self) -> Option<&BTreeSet<String>> {
        self.only.as_ref()
    }
    fn filter(&self, _pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if allows(self.pod, node) {
            return Ok(());
        }
        Rejection::hopeless("node(s) didn't match Pod's node affinity/selector")
    }
    fn score(&self, _pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(node) = node.node.as_deref() else { return 0 };
        let liked =
            self.preferred.iter().filter(|term| placement::term_matches(&term.preference, node.labels(), node.name()));
        liked.map(|term| i64::from(term.weight)).sum()
    }
    fn normalize(&self, scores: &mut [i64]) {
        normalize(scores, false);
    }
    fn weight(&self) -> i64 {
        if self.preferred.is_empty() { 0 } else { 2 }
    }
}
