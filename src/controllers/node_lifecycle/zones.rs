//! How fast pods may be evicted from lost nodes: the more nodes of a zone are lost, the likelier it is that we are the one
//! who is cut off (`handleDisruption`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;

use super::ready;
use crate::client::typed::Meta;

/// Between two nodes of a healthy zone: `--node-eviction-rate` 0.1 a second.
const PACE: SignedDuration = SignedDuration::from_secs(10);
/// In a large zone that is mostly lost: `--secondary-node-eviction-rate` 0.01 a second.
const SLOW_PACE: SignedDuration = SignedDuration::from_secs(100);
/// Zones up to this size are small (`--large-cluster-size-threshold`): mostly lost, they evict nothing.
const LARGE: usize = 50;
/// A zone with so many percent of its nodes lost, and more than two of them, is mostly lost (`--unhealthy-zone-threshold`).
const UNHEALTHY_PERCENT: usize = 55;

/// Whether a node may get the taint that evicts its pods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Eviction {
    /// Now.
    Now,
    /// Not before then: others of its zone come first.
    At(Timestamp),
    /// Not as long as so many nodes are lost.
    Halted,
    /// Every node is lost: those that have it lose it.
    Revoked,
}

/// When each zone may lose another node.
#[derive(Default)]
pub struct Zones {
    next: HashMap<String, Timestamp>,
}

/// `GetZoneKey`; nodes without labels are one zone.
fn zone(node: &Node) -> String {
    let label = |name: &str, beta: &str| node.labels().get(name).or_else(|| node.labels().get(beta)).cloned();
    let region = label("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region");
    let zone = label("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone");
    format!("{}:\0:{}", region.unwrap_or_default(), zone.unwrap_or_default())
}

fn is_ready(node: &Node) -> bool {
    ready(node).is_some_and(|condition| condition.status == "True")
}

/// How long to wait between two nodes of a zone with so many of them lost and well; `None`: for ever.
fn pace(lost: usize, well: usize) -> Option<SignedDuration> {
    let mostly_lost = well > 0 && lost > 2 && lost * 100 >= UNHEALTHY_PERCENT * (lost + well);
    match (mostly_lost, lost + well > LARGE) {
        (false, _) => Some(PACE),
        (true, true) => Some(SLOW_PACE),
        (true, false) => None,
    }
}

impl Zones {
    /// Asks for a lost node. `nodes` are all of the cluster. An answer of [`Eviction::Now`] is counted.
    pub fn ask(&mut self, node: &Node, nodes: &[Arc<Node>], now: Timestamp) -> Eviction {
        let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for node in nodes {
            let (lost, well) = counts.entry(zone(node)).or_default();
            *(if is_ready(node) { well } else { lost }) += 1;
        }
        if counts.values().all(|(_, well)| *well == 0) {
            return Eviction::Revoked;
        }
        let zone = zone(node);
        let (lost, well) = counts.get(&zone).copied().unwrap_or_default();
        let Some(pace) = pace(lost, well) else { return Eviction::Halted };
        match self.next.get(&zone) {
            Some(next) if *next > now => Eviction::At(*next),
            _ => {
                self.next.insert(zone, now.saturating_add(pace).expect("a duration saturates"));
                Eviction::Now
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use serde_json::json;

    fn nodes(zone: &str, lost: usize, well: usize) -> Vec<Arc<Node>> {
        let node = |at: usize| {
            let status = if at < lost { "Unknown" } else { "True" };
            let node = json!({"metadata": {"name": format!("{zone}{at}"), "labels": {"topology.kubernetes.io/zone": zone}},
                "status": {"conditions": [{"type": "Ready", "status": status}]}});
            Arc::new(Node::parse(&node).expect("a node"))
        };
        (0..lost + well).map(node).collect()
    }

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().expect("a time")
    }

    fn check(nodes: &[Arc<Node>], expected: Eviction) {
        assert_eq!(Zones::default().ask(&nodes[0], nodes, now()), expected);
    }

    #[test]
    fn a_zone_that_is_mostly_lost_evicts_nothing() {
        check(&nodes("a", 1, 1), Eviction::Now);
        check(&nodes("a", 2, 1), Eviction::Now); // not more than two
        check(&nodes("a", 3, 3), Eviction::Now); // half is less than 55 percent
        check(&nodes("a", 3, 2), Eviction::Halted);
        check(&nodes("a", 40, 30), Eviction::Now); // slowly
        check(&nodes("a", 2, 0), Eviction::Revoked);
        // A zone that is lost as a whole evicts at the normal pace, as long as there is another.
        check(&[nodes("a", 9, 0), nodes("b", 0, 1)].concat(), Eviction::Now);
    }

    #[test]
    fn nodes_of_a_zone_go_one_after_the_other() {
        let mut zones = Zones::default();
        let all = [nodes("a", 2, 2), nodes("b", 1, 1)].concat();
        assert_eq!(zones.ask(&all[0], &all, now()), Eviction::Now);
        assert_eq!(zones.ask(&all[1], &all, now()), Eviction::At(now() + PACE));
        assert_eq!(zones.ask(&all[4], &all, now()), Eviction::Now);
        assert_eq!(zones.ask(&all[1], &all, now() + PACE), Eviction::Now);
    }
}
