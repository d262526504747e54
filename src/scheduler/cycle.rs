//! One scheduling cycle: filter, score, choose, and make room if there is none. Pure.

use std::collections::BTreeSet;

use super::diagnosis::{Diagnosis, Verdict};
use super::node_info::NodeInfo;
use super::nodes::Nodes;
use super::plugins::{self, Plugin, Rejection, volume_binding};
use super::pod_info::PodInfo;
use super::preemption::{self, Preemption};
use super::queue::{NO_NODES, Rejectors};
use super::volumes::Choice;

/// What a cycle decided.
#[derive(Debug)]
pub enum Decision {
    /// The pod goes to this node.
    Node {
        /// The node's name.
        name: String,
        /// What becomes of its claims that wait for a consumer.
        volumes: Vec<Choice>,
    },
    /// It fits nowhere.
    Nowhere {
        /// The message of the event and the condition.
        message: String,
        /// What may help.
        rejected_by: Rejectors,
        /// What preemption can do.
        preemption: Preemption,
    },
}

/// A cycle looks for this many nodes at least that fit (`minFeasibleNodesToFind`).
const FEW: usize = 100;
/// And for this part of all nodes at least (`minFeasibleNodesPercentageToFind`).
const LEAST_PERCENT: usize = 5;

/// How many nodes that fit are enough (`numFeasibleNodesToFind`).
fn enough(nodes: usize) -> usize {
    let percent = 50usize.saturating_sub(nodes / 125).max(LEAST_PERCENT);
    if nodes < FEW { nodes } else { (nodes * percent / 100).max(FEW) }
}

/// A pod, the nodes, and what the plugins have prepared.
pub(super) struct Cycle<'a> {
    pub pod: &'a PodInfo,
    pub nodes: &'a Nodes,
    /// With their places in [`plugins::ALL`].
    plugins: Vec<(usize, Box<dyn Plugin<'a> + 'a>)>,
}

impl<'a> Cycle<'a> {
    pub fn new(pod: &'a PodInfo, nodes: &'a Nodes) -> Self {
        let make = |(at, plugin): (usize, &plugins::Registered)| Some((at, (plugin.make)(pod, nodes)?));
        Self { pod, nodes, plugins: plugins::ALL.iter().enumerate().filter_map(make).collect() }
    }
    /// What if `other` came to (1) or went from (-1) the node?
    pub fn moved(&mut self, other: &'a PodInfo, node: &'a NodeInfo, sign: i64) {
        self.plugins.iter_mut().for_each(|(_, plugin)| plugin.moved(self.pod, other, node, sign));
    }
    fn filter(&self, node: &NodeInfo) -> Result<(), (usize, Rejection)> {
        let reject =
            |(at, plugin): &(usize, Box<dyn Plugin<'a> + 'a>)| Some((*at, plugin.filter(self.pod, node).err()?));
        self.plugins.iter().find_map(reject).map_or(Ok(()), Err)
    }
    /// Whether the pod fits on `node` (or on `trial`, which is that node without some of its pods), also when those come
    /// for whom room was made there. Errors: which plugin refuses, and why.
    pub fn fits(&mut self, node: &'a NodeInfo, trial: Option<&NodeInfo>) -> Result<(), (usize, Rejection)> {
        let now = trial.unwrap_or(node);
        let before_us =
            |other: &&'a std::sync::Arc<PodInfo>| other.uid != self.pod.uid && other.priority() >= self.pod.priority();
        let nominated: Vec<_> = self.nodes.nominated_on(&node.name).filter(before_us).collect();
        if !nominated.is_empty() {
            let mut then = now.clone();
            for other in &nominated {
                then.add((*other).clone());
                self.moved(other, node, 1);
            }
            let fits = self.filter(&then);
            nominated.iter().for_each(|other| self.moved(other, node, -1));
            fits?;
        }
        self.filter(now)
    }
    /// The nodes that come into question, and who says that others do not.
    ///
    /// # Errors
    /// No node at all does: who says so, and why.
    fn eligible(&self) -> Result<Option<(BTreeSet<String>, Rejectors)>, (Rejectors, String)> {
        let mut only: Option<(BTreeSet<String>, Rejectors)> = None;
        for (at, plugin) in &self.plugins {
            if let Some(why) = plugin.refuses() {
                return Err((1 << at, why.to_owned()));
            }
            let Some(names) = plugin.only() else { continue };
            let (names, by) = match only {
                None => (names.clone(), 1 << at),
                Some((known, by)) => (&known & names, by | 1 << at),
            };
            if names.is_empty() {
                let who = plugin_names(by);
                return Err((
                    by,
                    match by.count_ones() {
                        1 => format!("node(s) didn't satisfy plugin {}", who.join(" ")),
                        _ => format!("node(s) didn't satisfy plugin(s) [{}] simultaneously", who.join(" ")),
                    },
                ));
            }
            only = Some((names, by));
        }
        Ok(only)
    }
    fn best(&mut self, fitting: &[&'a NodeInfo], choose: impl FnOnce(usize) -> usize) -> &'a NodeInfo {
        if let [only] = fitting {
            return only;
        }
        let mut totals = vec![0i64; fitting.len()];
        for (_, plugin) in &mut self.plugins {
            plugin.prepare_scores(fitting);
            let weight = plugin.weight();
            if weight == 0 {
                continue;
            }
            let mut scores: Vec<i64> = fitting.iter().map(|node| plugin.score(self.pod, node)).collect();
            plugin.normalize(&mut scores);
            totals.iter_mut().zip(scores).for_each(|(total, score)| *total += weight * score);
        }
        let most = totals.iter().copied().max().unwrap_or_default();
        let equals: Vec<_> =
            fitting.iter().zip(&totals).filter(|(_, total)| **total == most).map(|(n, _)| *n).collect();
        equals[choose(equals.len()) % equals.len()]
    }
}

fn plugin_names(rejectors: Rejectors) -> Vec<&'static str> {
    let mut names: Vec<_> =
        plugins::ALL.iter().enumerate().filter(|(at, _)| rejectors & (1 << at) != 0).map(|(_, p)| p.name).collect();
    names.sort_unstable();
    names
}

/// Decides where a pod goes. The nodes are looked at from number `start` on, and `start` moves on so that all get their
/// turn. `choose` picks one of so many equals.
pub fn schedule(pod: &PodInfo, nodes: &Nodes, start: &mut usize, choose: impl FnOnce(usize) -> usize) -> Decision {
    if nodes.is_empty() {
        let message = "no nodes available to schedule pods".to_owned();
        return Decision::Nowhere { message, rejected_by: NO_NODES, preemption: Preemption::Keep(String::new()) };
    }
    let mut cycle = Cycle::new(pod, nodes);
    let mut diagnosis = Diagnosis::new(nodes.len());
    let eligible = match cycle.eligible() {
        Ok(eligible) => eligible,
        Err((by, why)) => {
            diagnosis.refused(by, why);
            return nowhere(&mut cycle, diagnosis);
        }
    };
    // Room was made for it there: nobody else comes into question as long as it fits.
    if let Some(node) = nodes.get(nodes.nomination(&pod.uid)) {
        let allowed = eligible.as_ref().is_none_or(|(names, _)| names.contains(&node.name));
        if allowed && cycle.fits(node, None).is_ok() {
            return placed(&cycle, node);
        }
    }
    let looked_at: Box<dyn Iterator<Item = &NodeInfo>> = match &eligible {
        None => Box::new(nodes.from(*start)),
        Some((names, by)) => {
            diagnosis.others(*by, format!("node(s) didn't satisfy plugin(s) [{}]", plugin_names(*by).join(" ")));
            Box::new(names.iter().filter_map(|name| nodes.get(name)))
        }
    };
    let enough = enough(eligible.as_ref().map_or(nodes.len(), |(names, _)| names.len()));
    let mut fitting = Vec::new();
    for node in looked_at {
        if fitting.len() >= enough {
            break;
        }
        match cycle.fits(node, None) {
            Ok(()) => fitting.push(node),
            Err((at, rejection)) => diagnosis.rejected(Verdict { node, plugin: at, rejection }),
        }
    }
    *start = (*start + fitting.len() + diagnosis.verdicts().len()) % nodes.len();
    if fitting.is_empty() {
        return nowhere(&mut cycle, diagnosis);
    }
    let best = cycle.best(&fitting, choose);
    placed(&cycle, best)
}

fn placed(cycle: &Cycle<'_>, node: &NodeInfo) -> Decision {
    let volumes = volume_binding::choices(cycle.pod, cycle.nodes, node);
    Decision::Node { name: node.name.clone(), volumes }
}

fn nowhere<'a>(cycle: &mut Cycle<'a>, diagnosis: Diagnosis<'a>) -> Decision {
    let preemption = preemption::find(cycle, &diagnosis);
    Decision::Nowhere { message: diagnosis.message(&preemption), rejected_by: diagnosis.rejected_by(), preemption }
}
