//! Why a pod fits nowhere, in the words of kube-scheduler (`framework.FitError`).

use std::collections::BTreeMap;

use super::node_info::NodeInfo;
use super::plugins::Rejection;
use super::preemption::Preemption;
use super::queue::Rejectors;

/// What the plugins said of a node.
pub struct Verdict<'a> {
    /// The node.
    pub node: &'a NodeInfo,
    /// The plugin that refused it.
    pub plugin: usize,
    /// Why.
    pub rejection: Rejection,
}

/// What the plugins said of all nodes.
pub struct Diagnosis<'a> {
    nodes: usize,
    /// Why no node was looked at.
    refusal: Option<String>,
    /// Of the nodes that were not looked at.
    others: Option<String>,
    verdicts: Vec<Verdict<'a>>,
    rejected_by: Rejectors,
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).`
pub fn histogram<'r>(nodes: usize, reasons: impl Iterator<Item = (&'r str, usize)>) -> String {
    let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
    for (reason, count) in reasons.filter(|(_, count)| *count > 0) {
        *counted.entry(reason).or_default() += count;
    }
    let mut lines: Vec<String> = counted.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    lines.sort();
    let lines = if lines.is_empty() { String::new() } else { format!(" {}.", lines.join(", ")) };
    format!("0/{nodes} nodes are available:{lines}")
}

impl<'a> Diagnosis<'a> {
    /// Nothing was said yet of so many nodes.
    pub fn new(nodes: usize) -> Self {
        Self { nodes, refusal: None, others: None, verdicts: Vec::new(), rejected_by: 0 }
    }
    /// No node comes into question.
    pub fn refused(&mut self, by: Rejectors, why: String) {
        self.rejected_by |= by;
        self.refusal = Some(why);
    }
    /// Nodes that are not looked at, and why.
    pub fn others(&mut self, by: Rejectors, why: String) {
        self.rejected_by |= by;
        self.others = Some(why);
    }
    /// A node was refused.
    pub fn rejected(&mut self, verdict: Verdict<'a>) {
        self.rejected_by |= 1 << verdict.plugin;
        self.verdicts.push(verdict);
    }
    /// What was said of the nodes that were looked at.
    pub fn verdicts(&self) -> &[Verdict<'a>] {
        &self.verdicts
    }
    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes
    }
    /// Who refused nodes.
    pub fn rejected_by(&self) -> Rejectors {
        self.rejected_by
    }
    /// The message of the event and the condition. What preemption said comes last, unless it found victims.
    pub fn message(&self, preemption: &Preemption) -> String {
        let mut message = match &self.refusal {
            Some(why) => format!("0/{} nodes are available: {why}.", self.nodes),
            None => {
                let looked_at = self.verdicts.iter().flat_map(|verdict| &verdict.rejection.reasons);
                let others = self.others.iter().map(|why| (why.as_str(), self.nodes - self.verdicts.len()));
                histogram(self.nodes, looked_at.map(|reason| (&**reason, 1)).chain(others))
            }
        };
        if let Preemption::Keep(why) | Preemption::Hopeless(why) = preemption {
            // What the plugin DynamicResources says first: no pod here has claims to devices.
            message.push_str(" no new claims to deallocate, preemption: ");
            message.push_str(why);
        }
        message
    }
}
