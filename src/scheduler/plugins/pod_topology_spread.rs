//! PodTopologySpread: pods of an app spread over zones, hosts or whatever a label says. Pods that ask for nothing spread
//! a little over hosts and zones if a Service or controller selects them (the system's default constraints).

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Node, TopologySpreadConstraint};

use super::{MOST, Nodes, Plugin, PodInfo, Registered, Rejection, node_affinity, taint_toleration};
use crate::client::typed::Meta;
use crate::scheduler::happened::{self, Happened};
use crate::scheduler::node_info::NodeInfo;
use crate::scheduler::selector::Selector;

pub const PLUGIN: Registered = Registered {
    name: "PodTopologySpread",
    make,
    helped_by: happened::NODE
        | happened::NODE_GONE
        | happened::POD_PLACED
        | happened::POD_CHANGED
        | happened::POD_GONE
        | happened::ITSELF,
    helped,
};

const HOSTNAME: &str = "kubernetes.io/hostname";
/// Label and `maxSkew` of the constraints of pods that have none (`systemDefaultConstraints`).
const DEFAULTS: [(&str, i64); 2] = [(HOSTNAME, 3), ("topology.kubernetes.io/zone", 5)];
/// The score of a node that is not to be scored.
const IGNORED: i64 = -1;

/// Which nodes count.
#[derive(Clone, Copy)]
struct Policy {
    /// `nodeAffinityPolicy`, default Honor.
    affinity: bool,
    /// `nodeTaintsPolicy`, default Ignore.
    taints: bool,
}

impl Policy {
    fn counts(self, pod: &PodInfo, node: &NodeInfo) -> bool {
        (!self.affinity || node_affinity::allows(pod, node))
            && (!self.taints || taint_toleration::lets_in(pod, node.taints()))
    }
}

struct Constraint<'a> {
    key: &'a str,
    max_skew: i64,
    min_domains: usize,
    selector: Selector,
    policy: Policy,
    matches_itself: bool,
    /// Topology value -> matching pods.
    domains: HashMap<&'a str, i64>,
    /// The fewest pods of a domain.
    least: i64,
    /// So that few large domains do not count less than many small ones.
    weight: f64,
}

impl<'a> Constraint<'a> {
    fn new(key: &'a str, max_skew: i64, selector: Selector, pod: &PodInfo) -> Self {
        let matches_itself = selector.matches(pod.labels());
        let policy = Policy { affinity: true, taints: false };
        let (domains, least, weight) = (HashMap::new(), 0, 0.0);
        Self { key, max_skew, min_domains: 1, selector, policy, matches_itself, domains, least, weight }
    }
    /// `matchLabelKeys` are in the selector already: the API server has put them there.
    fn of(spec: &'a TopologySpreadConstraint, pod: &PodInfo) -> Self {
        let selector = Selector::of(spec.label_selector.as_ref());
        let mut constraint = Self::new(&spec.topology_key, spec.max_skew.into(), selector, pod);
        constraint.min_domains = usize::try_from(spec.min_domains.unwrap_or(1)).unwrap_or(1);
        constraint.policy = Policy {
            affinity: spec.node_affinity_policy.as_deref() != Some("Ignore"),
            taints: spec.node_taints_policy.as_deref() == Some("Honor"),
        };
        constraint
    }
    /// Placed pods that count, with their nodes; a selector of everything counts nothing, as in Kubernetes.
    fn matching<'s>(&'s self, pod: &'s PodInfo, nodes: &'a Nodes) -> impl Iterator<Item = &'a NodeInfo> + use<'s, 'a> {
        let selector = (!self.selector.is_everything()).then_some(&self.selector);
        let placed = selector.into_iter().flat_map(|selector| nodes.pods.select(&pod.key.namespace, selector));
        placed.filter(|placed| !placed.pod.pod.is_terminating()).filter_map(|placed| nodes.of(placed))
    }
    fn find_least(&mut self) {
        // No domain at all limits nothing.
        let least = self.domains.values().copied().min().unwrap_or(i64::from(i32::MAX));
        self.least = if self.domains.len() < self.min_domains { 0 } else { least };
    }
}

struct PodTopologySpread<'a> {
    pod: &'a PodInfo,
    nodes: &'a Nodes,
    hard: Vec<Constraint<'a>>,
    soft: Vec<Constraint<'a>>,
    /// Whether the pod has constraints of its own: then nodes without the labels are not scored.
    own: bool,
    /// Node -> its own matching pods, for each soft constraint that is about hosts.
    hosts: Vec<HashMap<&'a str, i64>>,
}

fn constraints(pod: &PodInfo) -> &[TopologySpreadConstraint] {
    pod.spec().and_then(|spec| spec.topology_spread_constraints.as_deref()).unwrap_or_default()
}

fn is_hard(constraint: &TopologySpreadConstraint) -> bool {
    constraint.when_unsatisfiable == "DoNotSchedule"
}

fn has_all(node: &NodeInfo, constraints: &[Constraint<'_>]) -> bool {
    constraints.iter().all(|constraint| node.label(constraint.key).is_some())
}

fn make<'a>(pod: &'a PodInfo, nodes: &'a Nodes) -> Option<Box<dyn Plugin<'a> + 'a>> {
    let all = constraints(pod);
    let hard: Vec<_> = all.iter().filter(|spec| is_hard(spec)).map(|spec| Constraint::of(spec, pod)).collect();
    let soft: Vec<_> = all.iter().filter(|spec| !is_hard(spec)).map(|spec| Constraint::of(spec, pod)).collect();
    let mut plugin = PodTopologySpread { pod, nodes, hard, soft, own: !all.is_empty(), hosts: Vec::new() };
    plugin.count();
    Some(Box::new(plugin))
}

impl<'a> PodTopologySpread<'a> {
    /// Counts the matching pods of each domain of the hard constraints.
    fn count(&mut self) {
        if self.hard.is_empty() {
            return;
        }
        let nodes: Vec<&'a NodeInfo> = self.nodes.iter().filter(|node| has_all(node, &self.hard)).collect();
        for node in nodes {
            for constraint in self.hard.iter_mut().filter(|constraint| constraint.policy.counts(self.pod, node)) {
                let value = node.label(constraint.key).expect("the node has all labels");
                constraint.domains.entry(value).or_default();
            }
        }
        for index in 0..self.hard.len() {
            let constraint = &self.hard[index];
            let counts = |node: &&'a NodeInfo| has_all(node, &self.hard) && constraint.policy.counts(self.pod, node);
            let found: Vec<&'a NodeInfo> = constraint.matching(self.pod, self.nodes).filter(counts).collect();
            let constraint = &mut self.hard[index];
            for value in found.into_iter().filter_map(|node| node.label(constraint.key)) {
                *constraint.domains.entry(value).or_default() += 1;
            }
            constraint.find_least();
        }
    }
}

impl<'a> Plugin<'a> for PodTopologySpread<'a> {
    fn filter(&self, _pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        for constraint in &self.hard {
            let Some(value) = node.label(constraint.key) else {
                return Rejection::hopeless(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                );
            };
            let count = constraint.domains.get(value.as_str()).copied().unwrap_or_default();
            if count + i64::from(constraint.matches_itself) - constraint.least > constraint.max_skew {
                return Rejection::resolvable("node(s) didn't match pod topology spread constraints");
            }
        }
        Ok(())
    }

    fn moved(&mut self, pod: &PodInfo, other: &'a PodInfo, node: &'a NodeInfo, sign: i64) {
        let concerned = other.key.namespace == pod.key.namespace && !other.pod.is_terminating();
        if !concerned || !has_all(node, &self.hard) {
            return;
        }
        for constraint in &mut self.hard {
            if constraint.selector.matches(other.labels()) && constraint.policy.counts(pod, node) {
                let value = node.label(constraint.key).expect("the node has all labels");
                *constraint.domains.entry(value).or_default() += sign;
                constraint.find_least();
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "numbers of nodes are small")]
    fn prepare_scores(&mut self, fitting: &[&'a NodeInfo]) {
        if !self.own {
            let selector = self.nodes.workloads.selector(&self.pod.pod);
            if selector.is_everything() {
                return;
            }
            let each = |(key, skew)| Constraint::new(key, skew, selector.clone(), self.pod);
            self.soft = DEFAULTS.into_iter().map(each).collect();
        }
        let own = self.own;
        let scored: Vec<&'a NodeInfo> =
            fitting.iter().copied().filter(|node| !own || has_all(node, &self.soft)).collect();
        for index in 0..self.soft.len() {
            let is_host = self.soft[index].key == HOSTNAME;
            let mut hosts: HashMap<&'a str, i64> = HashMap::new();
            let mut domains: HashMap<&'a str, i64> = HashMap::new();
            if !is_host {
                let key = self.soft[index].key;
                domains.extend(scored.iter().map(|node| (node.label(key).map_or("", String::as_str), 0)));
            }
            let constraint = &self.soft[index];
            for node in constraint.matching(self.pod, self.nodes) {
                if is_host {
                    *hosts.entry(&node.name).or_default() += 1;
                } else if (!own || has_all(node, &self.soft)) && constraint.policy.counts(self.pod, node) {
                    let value = node.label(constraint.key).map_or("", String::as_str);
                    domains.entry(value).and_modify(|count| *count += 1);
                }
            }
            let size = if is_host { scored.len() } else { domains.len() };
            let constraint = &mut self.soft[index];
            constraint.weight = ((size + 2) as f64).ln();
            constraint.domains = domains;
            self.hosts.push(hosts);
        }
    }

    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "numbers of pods are small")]
    fn score(&self, _pod: &PodInfo, node: &NodeInfo) -> i64 {
        if self.own && !has_all(node, &self.soft) {
            return IGNORED;
        }
        let of = |(constraint, hosts): (&Constraint<'_>, &HashMap<&str, i64>)| {
            let value = node.label(constraint.key)?;
            let count = match constraint.key {
                HOSTNAME => hosts.get(node.name.as_str()),
                _ => constraint.domains.get(value.as_str()),
            };
            let count = count.copied().unwrap_or_default();
            Some(count as f64 * constraint.weight + (constraint.max_skew - 1) as f64)
        };
        self.soft.iter().zip(&self.hosts).filter_map(of).sum::<f64>().round() as i64
    }

    fn normalize(&self, scores: &mut [i64]) {
        let scored = || scores.iter().copied().filter(|score| *score != IGNORED);
        let (least, most) = (scored().min().unwrap_or(0), scored().max().unwrap_or(0));
        for score in scores {
            *score = match *score {
                IGNORED => 0,
                _ if most == 0 => MOST,
                score => MOST * (most + least - score) / most,
            };
        }
    }
    fn weight(&self) -> i64 {
        if self.soft.is_empty() { 0 } else { 2 }
    }
}

/// Only pods that a hard constraint counts, and nodes that it sees, change anything.
fn helped(pod: &PodInfo, happened: &Happened<'_>, _nodes: &Nodes) -> bool {
    let hard: Vec<_> = constraints(pod).iter().filter(|spec| is_hard(spec)).collect();
    let counts = |other: &PodInfo| {
        let selected =
            |spec: &&TopologySpreadConstraint| Selector::of(spec.label_selector.as_ref()).matches(other.labels());
        other.key.namespace == pod.key.namespace && hard.iter().any(selected)
    };
    let sees = |node: &Node| hard.iter().all(|spec| node.labels().contains_key(&spec.topology_key));
    match happened {
        Happened::PodPlaced(other) | Happened::PodGone { pod: other, .. } => counts(other),
        Happened::PodChanged { old, new, .. } => counts(old) != counts(new),
        Happened::NodeAdded(node) => node.node.as_deref().is_some_and(sees),
        Happened::NodeChanged { old, new } => sees(old) || new.node.as_deref().is_some_and(sees),
        Happened::NodeGone(node) => sees(node),
        Happened::Itself(before) => before.labels() != pod.labels(),
        _ => false,
    }
}
