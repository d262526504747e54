//! InterPodAffinity: pods that want to be near others, or far from them.

use std::collections::HashMap;

use super::{MOST, Nodes, Plugin, PodInfo, Registered, Rejection};
use crate::client::typed::Meta;
use crate::scheduler::happened::{self, Happened};
use crate::scheduler::node_info::NodeInfo;
use crate::scheduler::pod_info::Term;

pub const PLUGIN: Registered = Registered {
    name: "InterPodAffinity",
    make,
    helped_by: happened::NODE
        | happened::POD_PLACED
        | happened::POD_CHANGED
        | happened::POD_GONE
        | happened::ITSELF
        | happened::NAMESPACE,
    helped,
};

/// (topology key, value) -> a number.
type Domains<'a> = HashMap<(&'a str, &'a str), i64>;

struct InterPodAffinity<'a> {
    pod: &'a PodInfo,
    nodes: &'a Nodes,
    /// Where pods are that all required terms mean.
    near: Domains<'a>,
    /// Where a pod is that the new one must avoid.
    avoided: Domains<'a>,
    /// Where a pod is that wants to avoid the new one.
    avoiding: Domains<'a>,
    /// Preferences, the pod's own and those of others.
    scores: Domains<'a>,
}

fn make<'a>(pod: &'a PodInfo, nodes: &'a Nodes) -> Option<Box<dyn Plugin<'a> + 'a>> {
    if !pod.has_pod_affinity() && !nodes.pods.have_affinity() {
        return None;
    }
    let domains = Domains::new;
    let mut plugin =
        InterPodAffinity { pod, nodes, near: domains(), avoided: domains(), avoiding: domains(), scores: domains() };
    if let Some(first) = pod.required.first() {
        for (node, other) in nodes.meant(first) {
            plugin.count_near(other, node, 1);
        }
    }
    for term in &pod.forbidden {
        for (node, _) in nodes.meant(term) {
            add(&mut plugin.avoided, term, node, 1);
        }
    }
    for placed in nodes.pods.may_mean(pod) {
        let Some(node) = nodes.of(placed) else { continue };
        for term in placed.pod.forbidden.iter().filter(|term| nodes.means(term, pod)) {
            add(&mut plugin.avoiding, term, node, 1);
        }
    }
    Some(Box::new(plugin))
}

fn add<'a>(domains: &mut Domains<'a>, term: &'a Term, node: &'a NodeInfo, amount: i64) {
    if let Some(value) = node.label(&term.topology_key) {
        *domains.entry((&term.topology_key, value)).or_default() += amount;
    }
}

/// How many pods count in the node's domain of a term.
fn count(domains: &Domains<'_>, term: &Term, node: &NodeInfo) -> i64 {
    let value = node.label(&term.topology_key).map(String::as_str);
    value.and_then(|value| domains.get(&(term.topology_key.as_str(), value))).copied().unwrap_or_default()
}

/// Whether a pod counts in one of the node's domains.
fn any(domains: &Domains<'_>, node: &NodeInfo) -> bool {
    domains.iter().any(|((key, value), count)| *count > 0 && node.label(key).is_some_and(|label| label == value))
}

impl<'a> InterPodAffinity<'a> {
    /// A pod is near only when every required term means it.
    fn count_near(&mut self, other: &PodInfo, node: &'a NodeInfo, sign: i64) {
        if self.pod.required.iter().all(|term| self.nodes.means(term, other)) {
            self.pod.required.iter().for_each(|term| add(&mut self.near, term, node, sign));
        }
    }
    fn is_near(&self, node: &NodeInfo) -> bool {
        let required = &self.pod.required;
        if !required.iter().all(|term| node.label(&term.topology_key).is_some()) {
            return false;
        }
        // The first of a group that wants to be together may go anywhere.
        required.iter().all(|term| count(&self.near, term, node) > 0)
            || (self.near.values().all(|count| *count <= 0)
                && required.iter().all(|term| self.nodes.means(term, self.pod)))
    }
}

impl<'a> Plugin<'a> for InterPodAffinity<'a> {
    fn filter(&self, _pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if !self.is_near(node) {
            return Rejection::hopeless("node(s) didn't match pod affinity rules");
        }
        if self.pod.forbidden.iter().any(|term| count(&self.avoided, term, node) > 0) {
            return Rejection::resolvable("node(s) didn't match pod anti-affinity rules");
        }
        if any(&self.avoiding, node) {
            return Rejection::resolvable("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        Ok(())
    }

    fn moved(&mut self, pod: &PodInfo, other: &'a PodInfo, node: &'a NodeInfo, sign: i64) {
        if !self.pod.required.is_empty() {
            self.count_near(other, node, sign);
        }
        for term in self.pod.forbidden.iter().filter(|term| self.nodes.means(term, other)) {
            add(&mut self.avoided, term, node, sign);
        }
        for term in other.forbidden.iter().filter(|term| self.nodes.means(term, pod)) {
            add(&mut self.avoiding, term, node, sign);
        }
    }

    fn prepare_scores(&mut self, _fitting: &[&'a NodeInfo]) {
        for (term, weight) in &self.pod.preferred {
            for (node, _) in self.nodes.meant(term) {
                add(&mut self.scores, term, node, *weight);
            }
        }
        for placed in self.nodes.pods.may_mean(self.pod) {
            let Some(node) = self.nodes.of(placed) else { continue };
            // What others require counts like a preference with `hardPodAffinityWeight`, which is 1.
            let required = placed.pod.required.iter().map(|term| (term, 1));
            let preferred = placed.pod.preferred.iter().map(|(term, weight)| (term, *weight));
            for (term, weight) in required.chain(preferred).filter(|(term, _)| self.nodes.means(term, self.pod)) {
                add(&mut self.scores, term, node, weight);
            }
        }
    }

    fn score(&self, _pod: &PodInfo, node: &NodeInfo) -> i64 {
        let here = self.scores.iter().filter(|((key, value), _)| node.label(key).is_some_and(|label| label == value));
        here.map(|(_, weight)| weight).sum()
    }
    fn normalize(&self, scores: &mut [i64]) {
        let (least, most) = (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
        for score in scores {
            *score = if most == least { 0 } else { MOST * (*score - least) / (most - least) };
        }
    }
    fn weight(&self) -> i64 {
        if self.scores.is_empty() { 0 } else { 2 }
    }
}

fn helped(pod: &PodInfo, happened: &Happened<'_>, nodes: &Nodes) -> bool {
    let wanted = |other: &PodInfo| pod.required.iter().any(|term| nodes.means(term, other));
    let avoided = |other: &PodInfo| pod.forbidden.iter().any(|term| nodes.means(term, other));
    let avoids = |other: &PodInfo| other.forbidden.iter().any(|term| nodes.means(term, pod));
    match happened {
        Happened::PodPlaced(other) => wanted(other),
        // With the last one that was wanted, the pod may be the first of its group.
        Happened::PodGone { pod: other, .. } => avoided(other) || avoids(other) || (wanted(other) && wanted(pod)),
        Happened::PodChanged { old, new, .. } => wanted(old) != wanted(new) || avoided(old) != avoided(new),
        Happened::Itself(before) => before.labels() != pod.labels(),
        Happened::NodeChanged { old, new } => new.node.as_deref().is_some_and(|new| old.labels() != new.labels()),
        _ => true,
    }
}
