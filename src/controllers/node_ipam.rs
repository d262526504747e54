//! Pod addresses of nodes (`pkg/controller/nodeipam`): every Node without a `spec.podCIDR` gets a free part of the cluster's.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::caches::Caches;
use super::plan::{Action, Plan};
use super::{Controller, Enqueue};
use crate::client::Patch;
use crate::client::cache::Key;
use crate::client::recorder::{EventType, reference};
use crate::client::typed::{Meta, gvr};
use crate::config::{NODE_PREFIX, Networking};

/// The controller. It has one key: two nodes at once would get the same addresses.
pub struct NodeIpamController {
    /// The cluster's addresses.
    pub networking: Networking,
}

/// The key.
const ALL_NODES: Key = Key { namespace: String::new(), name: String::new() };

impl Controller for NodeIpamController {
    fn name(&self) -> &'static str {
        "nodeipam"
    }
    fn account(&self) -> &'static str {
        "node-controller"
    }
    fn component(&self) -> &'static str {
        "cidrAllocator"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let add = enqueue.clone();
        caches.nodes.subscribe(move |change| {
            // A node that went gives addresses back, for which another may wait.
            if change.new.as_ref().is_none_or(|node| pod_cidr(node).is_none()) {
                add.add(ALL_NODES);
            }
        });
    }
    fn reconcile(&self, caches: &Caches, _: &Key, _: Timestamp) -> Plan {
        reconcile(&self.networking, caches.nodes.list())
    }
}

fn pod_cidr(node: &Node) -> Option<Ipv4Net> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

/// The part that has the number of a worker of the first node's machine (`mini-m02` has the second), so that its address does
/// not depend on who came first.
fn numbered(networking: &Networking, name: &str) -> Option<Ipv4Net> {
    let number: usize = name.rsplit_once("-m")?.1.parse().ok()?;
    networking.cluster_cidr.subnets(NODE_PREFIX).ok()?.nth(number.checked_sub(1)?)
}

/// The decision. Who has a number comes first, then the oldest node.
pub fn reconcile(networking: &Networking, mut nodes: Vec<Arc<Node>>) -> Plan {
    let mut plan = Plan::default();
    let mut used: BTreeSet<Ipv4Net> = nodes.iter().filter_map(|node| pod_cidr(node)).collect();
    nodes.retain(|node| pod_cidr(node).is_none() && !node.is_terminating());
    nodes.sort_by_key(|node| {
        let created = node.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (numbered(networking, node.name()).is_none(), created, node.name().to_owned())
    });
    for node in nodes {
        let all = networking.cluster_cidr.subnets(NODE_PREFIX).into_iter().flatten();
        let mut parts = numbered(networking, node.name()).into_iter().chain(all);
        // Each part has its node's address with it.
        let free = parts.find(|part| !used.contains(part) && networking.node_ip(*part).is_some());
        let Some(part) = free else {
            let message = format!("Node {} status is now: CIDRNotAvailable", node.name());
            plan.push(Action::event(reference(&*node), EventType::Normal, "CIDRNotAvailable", message));
            continue;
        };
        used.insert(part);
        let spec = json!({"podCIDR": part.to_string(), "podCIDRs": [part.to_string()]});
        // Only a node that has none still: its version is what was looked at.
        let version = node.metadata.resource_version.clone();
        let patch = Patch::Strategic(json!({"metadata": {"resourceVersion": version}, "spec": spec}));
        plan.push(Action::patch(gvr::<Node>(), Key::of(&*node), "", patch).tolerate(&["NotFound"]));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use crate::config::Config;

    fn node(name: &str, second: u8, cidr: Option<&str>) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {"podCIDR": cidr}});
        Arc::new(Node::parse(&node).expect("a node"))
    }

    fn given(nodes: Vec<Arc<Node>>) -> Vec<String> {
        let plan = reconcile(&Config::new("mini").networking(), nodes);
        plan.actions().map(|action| format!("{:?}", action.write)).collect()
    }

    #[test]
    fn the_oldest_node_gets_the_first_free_part() {
        let nodes = vec![
            node("late", 9, None),
            node("first", 0, Some("10.244.0.0/24")),
            node("third", 1, Some("10.244.2.0/24")),
            node("early", 5, None),
        ];
        let given = given(nodes);
        assert_eq!(given.len(), 2);
        for (given, name, cidr) in [(&given[0], "early", "10.244.1.0/24"), (&given[1], "late", "10.244.3.0/24")] {
            assert!(given.contains(name) && given.contains(cidr), "{given}");
        }
    }

    #[test]
    fn a_worker_has_the_part_of_its_number_if_that_is_free() {
        let taken = node("mini", 0, Some("10.244.0.0/24"));
        for (names, parts) in [
            // Whoever registered first.
            (["mini-m03", "mini-m02"], ["10.244.1.0/24", "10.244.2.0/24"]),
            (["machine", "mini-m02"], ["10.244.1.0/24", "10.244.2.0/24"]),
            (["mini-m01", "mini-m300"], ["10.244.1.0/24", "10.244.2.0/24"]),
        ] {
            let waiting = names.iter().zip(1..).map(|(name, second)| node(name, second, None));
            let given = given(waiting.chain([taken.clone()]).collect());
            let of =
                |name: &str| given.iter().find(|given| given.contains(&format!("{name:?}"))).expect("a part").clone();
            let mut names = names;
            names.sort_by_key(|name| if *name == "mini-m02" { "a" } else { *name });
            for (name, part) in names.iter().zip(parts) {
                assert!(of(name).contains(part), "{name}: {given:?}");
            }
        }
    }

    #[test]
    fn a_node_too_many_hears_of_it() {
        let mut nodes: Vec<_> =
            (0..=252).map(|n| node(&format!("n{n}"), 0, Some(&format!("10.244.{n}.0/24")))).collect();
        assert!(given(nodes.clone()).is_empty());
        nodes.push(node("more", 1, None));
        assert_eq!(given(nodes), ["Nothing"]);
    }
}
