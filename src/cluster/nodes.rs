//! Adding, starting, stopping and deleting nodes of a running cluster (`mini node …`).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::workers::Started;
use super::{Cluster, joining, system};
use crate::api::certificates::public_key_hash;
use crate::api::kinds::gvr;
use crate::api::meta;
use crate::client::{DeleteOptions, ListOptions, Patch, WatchEvent};
use crate::config::Worker;

/// The seconds that pods of a node that is deleted get to end (minikube drains with this grace period).
const DELETE_GRACE: i64 = 1;
/// How long the pods of a node that is deleted may take.
const DRAIN: Duration = Duration::from_secs(20);

impl Cluster {
    /// Makes a token by which another machine joins (`None`: one that never expires), and publishes what it needs.
    pub(super) async fn make_token(&self, ttl: Option<Duration>) -> Result<Value> {
        let config = self.config.lock().expect("no panic while the settings are held").clone();
        let port = config.api_address.port();
        let servers: Vec<SocketAddr> = config.reachable_at().into_iter().map(|ip| (ip, port).into()).collect();
        joining::prepare(&*self.api, &config.shared()).await?;
        joining::publish(&*self.api, servers.first().copied().unwrap_or(config.api_address), &self.ca).await?;
        let description = "A token of 'mini node token', by which another machine joins.";
        let token = joining::make_token(&*self.api, &self.env, ttl, description).await?;
        Ok(json!({
            "token": token.to_string(),
            "caCertHash": public_key_hash(&self.ca).map_err(anyhow::Error::msg)?,
            "servers": servers.iter().map(SocketAddr::to_string).collect::<Vec<_>>(),
        }))
    }

    fn find_worker(&self, name: &str) -> Result<String> {
        let config = self.config.lock().expect("no panic while the settings are held");
        let found = config.worker(name).map(|worker| worker.name.clone());
        found.with_context(|| format!("the node {name:?} is not one of the workers of {:?}", config.profile))
    }

    fn profile(&self) -> String {
        self.config.lock().expect("no panic while the settings are held").profile.clone()
    }

    fn node_name(&self, worker: &str) -> String {
        self.config.lock().expect("no panic while the settings are held").node_name(worker)
    }

    /// Starts a worker of the settings; `wait`: until its Node is Ready.
    pub(super) async fn start_worker(&self, worker: &str, wait: bool) -> Result<Started> {
        let started = self.workers.start(worker).await?;
        let (node, profile) = (self.node_name(worker), self.profile());
        system::label_node(&*self.api, &node, &profile, false).await?;
        if wait {
            system::node_ready(&*self.api, &node).await?;
        }
        Ok(started)
    }

    /// Adds a worker and starts it. Returns its name (`m02`).
    pub(super) async fn add_node(&self) -> Result<String> {
        let mut name = String::new();
        self.change_config(|config| {
            name = config.next_worker();
            config.workers.push(Worker { name: name.clone(), running: true });
        })
        .await?;
        self.start_worker(&name, true).await?;
        Ok(name)
    }

    /// Starts a worker that was stopped, or whose process was killed.
    pub(super) async fn start_node(&self, name: &str) -> Result<Value> {
        let worker = self.find_worker(name)?;
        self.set_running(&worker, true).await?;
        let started = self.start_worker(&worker, true).await?;
        Ok(json!({"name": worker, "alreadyRunning": started == Started::Before}))
    }

    /// Stops a worker with its pods; its Node stays.
    pub(super) async fn stop_node(&self, name: &str) -> Result<Value> {
        let worker = self.find_worker(name)?;
        self.set_running(&worker, false).await?;
        let ran = self.workers.stop(&worker).await?;
        Ok(json!({"name": worker, "ran": ran}))
    }

    async fn set_running(&self, worker: &str, running: bool) -> Result<()> {
        self.change_config(|config| {
            for known in config.workers.iter_mut().filter(|known| known.name == worker) {
                known.running = running;
            }
        })
        .await
    }

    /// Ends the pods of a worker, stops it, and removes its Node and its files.
    pub(super) async fn delete_node(&self, name: &str) -> Result<Value> {
        let worker = self.find_worker(name)?;
        let node = self.node_name(&worker);
        self.drain(&node).await.with_context(|| format!("ending the pods of {node}"))?;
        let object = self.api.get(&gvr::NODES, "", &node).await.ok();
        self.workers.stop(&worker).await?;
        let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        // What its agent could not end any more (it may have been dead before).
        for pod in self.pods_of(&node).await? {
            self.api.delete(&gvr::PODS, meta::namespace(&pod), meta::name(&pod), &now).await.ok();
        }
        for (resource, namespace) in [(&gvr::NODES, ""), (&gvr::LEASES, "kube-node-lease")] {
            match self.api.delete(resource, namespace, &node, &DeleteOptions::default()).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        let address = object.and_then(|object| system::address(&object, "InternalIP")?.parse().ok());
        if let Some(address) = address {
            self.network.unlink(address).await.context("unlinking the node")?;
        }
        self.workers.forget(&worker, &node).await?;
        self.change_config(|config| config.workers.retain(|known| known.name != worker)).await?;
        Ok(json!({"name": worker}))
    }

    async fn pods_of(&self, node: &str) -> Result<Vec<std::sync::Arc<Value>>> {
        let options = ListOptions { field_selector: format!("spec.nodeName={node}"), ..ListOptions::default() };
        Ok(self.api.list(&gvr::PODS, "", &options).await?.items)
    }

    /// Takes no more pods onto a node and ends those that are there, for a limited time.
    async fn drain(&self, node: &str) -> Result<()> {
        use futures_util::StreamExt as _;
        let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
        match self.api.patch(&gvr::NODES, "", node, "", cordon).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => drop(other?),
        }
        let options = ListOptions { field_selector: format!("spec.nodeName={node}"), ..ListOptions::default() };
        let list = self.api.list(&gvr::PODS, "", &options).await?;
        let mut left: std::collections::HashSet<String> =
            list.items.iter().map(|pod| meta::uid(pod).to_owned()).collect();
        let soon = DeleteOptions { grace_period_seconds: Some(DELETE_GRACE), ..DeleteOptions::default() };
        for pod in &list.items {
            match self.api.delete(&gvr::PODS, meta::namespace(pod), meta::name(pod), &soon).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        let from = ListOptions { resource_version: list.resource_version, ..options };
        let mut events = self.api.watch(&gvr::PODS, "", &from).await?;
        let gone = async {
            while !left.is_empty() {
                match events.next().await {
                    Some(Ok(WatchEvent::Deleted(pod))) => drop(left.remove(meta::uid(&pod))),
                    Some(Ok(_)) => {}
                    _ => bail!("the watch of its pods ended"),
                }
            }
            Ok(())
        };
        // A node whose agent is dead ends nothing.
        tokio::time::timeout(DRAIN, gone).await.unwrap_or(Ok(()))
    }

    /// Stops all workers that run, at once.
    pub(super) async fn stop_workers(&self) {
        let stopped = super::workers::found(&self.paths).into_iter().map(|name| async move {
            if let Err(error) = self.workers.stop(&name).await {
                tracing::warn!(name, "a node did not stop: {error:#}");
            }
        });
        futures_util::future::join_all(stopped).await;
    }

    /// What `mini status` and `mini node list` show of the workers.
    pub(super) async fn describe_workers(&self) -> Vec<Value> {
        let workers = self.config.lock().expect("no panic while the settings are held").workers.clone();
        let mut described = Vec::new();
        for worker in workers {
            let node = self.node_name(&worker.name);
            let mut facts = self.workers.describe(&worker.name);
            let object = self.api.get(&gvr::NODES, "", &node).await.ok();
            facts["node"] = node.as_str().into();
            facts["ready"] = object.as_ref().is_some_and(|object| system::ready(object)).into();
            for (kind, field) in [("InternalIP", "internalIP"), ("ExternalIP", "externalIP")] {
                facts[field] = object.as_ref().and_then(|object| system::address(object, kind)).into();
            }
            described.push(facts);
        }
        described
    }
}
