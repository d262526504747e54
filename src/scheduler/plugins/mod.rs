//! Filter and score plugins, one file each; [`ALL`] is the list in kube-scheduler's order.

mod balanced_allocation;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_fit;
mod node_unschedulable;
mod pod_topology_spread;
mod taint_toleration;
pub mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::happened::Happened;
use super::node_info::NodeInfo;
use super::nodes::Nodes;
use super::pod_info::PodInfo;

/// Why a node does not take a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// The reasons in kube-scheduler's words.
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether removing pods from the node may help (`Unschedulable`), or does not (`UnschedulableAndUnresolvable`).
    pub resolvable: bool,
}

impl Rejection {
    /// Removing pods may help.
    fn resolvable(reason: &'static str) -> Result<(), Self> {
        Err(Self { reasons: vec![reason.into()], resolvable: true })
    }
    /// No pod's removal helps.
    pub(super) fn hopeless(reason: &'static str) -> Result<(), Self> {
        Err(Self { reasons: vec![reason.into()], resolvable: false })
    }
}

/// The highest score of a plugin.
const MOST: i64 = 100;

/// What a plugin says of one pod and the nodes, in one cycle.
pub trait Plugin<'a> {
    /// Why no node at all can take the pod (`PreFilter`).
    fn refuses(&self) -> Option<&str> {
        None
    }
    /// The only nodes that come into question (`PreFilterResult`); `None`: all.
    fn only(&self) -> Option<&BTreeSet<String>> {
        None
    }
    /// Whether the node can take the pod.
    fn filter(&self, _pod: &PodInfo, _node: &NodeInfo) -> Result<(), Rejection> {
        Ok(())
    }
    /// What if `other` came to (1) or went from (-1) the node (`PreFilterExtensions`)?
    fn moved(&mut self, _pod: &PodInfo, _other: &'a PodInfo, _node: &'a NodeInfo, _sign: i64) {}
    /// Before scoring these nodes (`PreScore`).
    fn prepare_scores(&mut self, _fitting: &[&'a NodeInfo]) {}
    /// How well the node suits the pod.
    fn score(&self, _pod: &PodInfo, _node: &NodeInfo) -> i64 {
        0
    }
    /// Brings the scores of all nodes between 0 and 100.
    fn normalize(&self, _scores: &mut [i64]) {}
    /// The weight of the score; 0: it does not score.
    fn weight(&self) -> i64 {
        0
    }
}

/// Scales scores so that the highest becomes 100, or with `reverse` 0.
fn normalize(scores: &mut [i64], reverse: bool) {
    let most = scores.iter().copied().max().unwrap_or_default();
    for score in scores {
        *score = match (most, reverse) {
            (0, true) => MOST,
            (0, false) => 0,
            (most, true) => MOST - *score * MOST / most,
            (most, false) => *score * MOST / most,
        };
    }
}

/// Prepares a plugin for a cycle; `None` when it has nothing to say about the pod.
pub type Make = for<'a> fn(&'a PodInfo, &'a Nodes) -> Option<Box<dyn Plugin<'a> + 'a>>;

/// A plugin in the list.
pub struct Registered {
    /// Its name in kube-scheduler's configuration.
    pub name: &'static str,
    /// Prepares it for a cycle.
    pub make: Make,
    /// The events that may end a rejection, as bits of [`Happened::bit`].
    pub helped_by: u16,
    /// Whether such an event may make the pod, which the plugin has rejected, fit (`QueueingHintFn`). It is asked after
    /// `nodes` knows of the event.
    pub helped: fn(&PodInfo, &Happened<'_>, &Nodes) -> bool,
}

/// All plugins. Filters run in this order and the first rejection of a node counts.
pub const ALL: &[Registered] = &[
    node_unschedulable::PLUGIN,
    node_name::PLUGIN,
    taint_toleration::PLUGIN,
    node_affinity::PLUGIN,
    node_ports::PLUGIN,
    node_resources_fit::PLUGIN,
    volume_restrictions::PLUGIN,
    volume_binding::PLUGIN,
    volume_zone::PLUGIN,
    pod_topology_spread::PLUGIN,
    inter_pod_affinity::PLUGIN,
    balanced_allocation::PLUGIN,
    image_locality::PLUGIN,
];
