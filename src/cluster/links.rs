//! The links of the first node to nodes of other machines, each over a connection that the other machine has opened.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use ipnet::Ipv4Net;
use tokio_util::sync::CancellationToken;

use crate::api::kinds::gvr;
use crate::client::Api;
use crate::config::Networking;
use crate::net::Network;

/// All of them.
pub struct Links {
    api: Arc<dyn Api>,
    network: Arc<Network>,
    networking: Networking,
    turns: Turns,
}

/// By the node's name.
#[derive(Default)]
struct Turns(Mutex<HashMap<String, Turn>>);

/// One link of a node at a time: the newest.
#[derive(Clone, Default)]
struct Turn {
    gate: Arc<tokio::sync::Mutex<()>>,
    over: CancellationToken,
}

impl Turns {
    fn next(&self, node: &str) -> Turn {
        let mut turns = self.0.lock().expect("no panic while the turns are held");
        let turn = turns.entry(node.to_owned()).or_default();
        turn.over.cancel();
        turn.over = CancellationToken::new();
        turn.clone()
    }
}

impl Links {
    /// None yet. `api` may read Nodes.
    pub fn new(api: Arc<dyn Api>, network: Arc<Network>, networking: Networking) -> Self {
        Self { api, network, networking, turns: Turns::default() }
    }

    /// Uses a node's connection until it ends, or until the same node opens another one: the one before is then dead, even if
    /// nobody has told this end.
    pub async fn accept(&self, node: &str, connection: Upgraded) {
        let turn = self.turns.next(node);
        let _one = turn.gate.lock().await;
        tokio::select! {
            () = turn.over.cancelled() => {}
            ended = self.carry(node, connection) => match ended {
                Ok(()) => tracing::info!(node, "the link to a node's machine has ended"),
                Err(error) => tracing::warn!(node, "no link to a node's machine: {error:#}"),
            },
        }
    }

    async fn carry(&self, node: &str, connection: Upgraded) -> Result<()> {
        let object = self.api.get(&gvr::NODES, "", node).await.context("reading the Node")?;
        let pods = object["spec"]["podCIDR"].as_str().and_then(|range| range.parse::<Ipv4Net>().ok());
        let pods = pods.context("the Node has no pod addresses yet")?;
        let address = self.networking.node_ip(pods).with_context(|| format!("no node has the pod addresses {pods}"))?;
        tracing::info!(node, %address, %pods, "a node's machine is linked");
        Ok(self.network.link_to_worker(address, pods, TokioIo::new(connection)).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_connection_ends_the_one_before() {
        let turns = Turns::default();
        let (first, other) = (turns.next("a"), turns.next("b"));
        let second = turns.next("a");
        assert!(first.over.is_cancelled() && !second.over.is_cancelled() && !other.over.is_cancelled());
        assert!(Arc::ptr_eq(&first.gate, &second.gate) && !Arc::ptr_eq(&first.gate, &other.gate));
    }
}
