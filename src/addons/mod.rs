//! Addons: parts of the cluster that are switched on and off while it runs, as in minikube. One file each, and [`ALL`].

pub mod dashboard;
pub mod default_storageclass;
pub mod metrics_server;
pub mod storage_provisioner;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::api::{Gvr, Status, meta};
use crate::client::{Api, DeleteOptions, Patch};
use crate::config::{Config, Paths};
use crate::env::Env;

/// An entry of `mini addons list`.
pub struct Addon {
    /// The name, as minikube has it.
    pub name: &'static str,
    /// What it gives.
    pub about: &'static str,
    /// Whether a new cluster has it.
    pub default: bool,
    /// Switches it on; the answer switches it off.
    start: fn(Arc<Context>) -> BoxFuture<'static, anyhow::Result<Box<dyn Running>>>,
}

/// Every addon, in the order of their names.
pub const ALL: &[Addon] =
    &[dashboard::ADDON, default_storageclass::ADDON, metrics_server::ADDON, storage_provisioner::ADDON];

/// An addon that is on.
#[async_trait]
pub trait Running: Send + Sync {
    /// Switches it off and removes its objects. `forever`: it was disabled; otherwise the cluster stops and its objects stay.
    async fn stop(&self, forever: bool) -> anyhow::Result<()>;
    /// A link to its page that works once.
    async fn link(&self) -> Option<String> {
        None
    }
}

/// The way to the nodes.
#[async_trait]
pub trait Nodes: Send + Sync {
    /// What a node's kubelet API answers to a GET of `uri` (`/stats/summary`, `/containerLogs/…`).
    async fn get(&self, node: &str, uri: &str) -> http::Response<Body>;
}

/// Serves a group and version inside the API server (what an APIService does through a Service).
#[async_trait]
pub trait Aggregation: Send + Sync {
    /// Begins to serve `metrics.k8s.io/v1beta1` from `source`.
    async fn serve_metrics(&self, source: Arc<metrics_server::Metrics>) -> anyhow::Result<()>;
    /// Ends it.
    async fn end_metrics(&self);
}

/// What addons work with.
pub struct Context {
    /// The API, as a cluster administrator.
    pub api: Arc<dyn Api>,
    /// The profile's settings.
    pub config: Config,
    /// The profile's files.
    pub paths: Paths,
    /// Clock and ids.
    pub env: Env,
    /// The nodes.
    pub nodes: Arc<dyn Nodes>,
    /// The API server's aggregation layer.
    pub aggregation: Arc<dyn Aggregation>,
    /// Whether the hostpath provisioner works (a controller listens).
    pub provisioning: tokio::sync::watch::Sender<bool>,
    /// The host address at which addons listen.
    pub host: IpAddr,
}

impl Context {
    /// Creates an object, or merges it into the one that is there.
    ///
    /// # Errors
    /// The API server's.
    pub async fn apply(&self, gvr: &Gvr, object: Value) -> Result<(), Status> {
        let (namespace, name) = (meta::namespace(&object).to_owned(), meta::name(&object).to_owned());
        match self.api.create(gvr, &namespace, "", "", object.clone()).await {
            Err(status) if status.is_already_exists() => {
                self.api.patch(gvr, &namespace, &name, "", Patch::Merge(object)).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    /// Deletes an object if it is there.
    ///
    /// # Errors
    /// The API server's.
    pub async fn remove(&self, gvr: &Gvr, namespace: &str, name: &str) -> Result<(), Status> {
        match self.api.delete(gvr, namespace, name, &DeleteOptions::default()).await {
            Err(status) if !status.is_not_found() => Err(status),
            _ => Ok(()),
        }
    }
}

/// The addons of a running cluster.
pub struct Addons {
    context: Arc<Context>,
    running: Mutex<BTreeMap<&'static str, Box<dyn Running>>>,
}

impl Addons {
    /// No addon is on yet.
    pub fn new(context: Context) -> Self {
        Self { context: Arc::new(context), running: Mutex::default() }
    }

    /// Switches one on; nothing happens when it is.
    ///
    /// # Errors
    /// When there is no such addon, or it could not start.
    pub async fn enable(&self, name: &str) -> anyhow::Result<()> {
        let addon = ALL.iter().find(|a| a.name == name).ok_or_else(|| anyhow::anyhow!("there is no addon {name:?}"))?;
        let mut running = self.running.lock().await;
        if !running.contains_key(addon.name) {
            running.insert(addon.name, (addon.start)(self.context.clone()).await?);
        }
        Ok(())
    }

    /// Switches one off; nothing happens when it is.
    ///
    /// # Errors
    /// When its objects could not be removed.
    pub async fn disable(&self, name: &str) -> anyhow::Result<()> {
        match self.running.lock().await.remove(name) {
            Some(addon) => addon.stop(true).await,
            None => Ok(()),
        }
    }

    /// A link to an addon's page that works once.
    pub async fn link(&self, name: &str) -> Option<String> {
        let running = self.running.lock().await;
        running.get(name)?.link().await
    }

    /// Stops all because the cluster stops; what they made stays for the next start.
    pub async fn stop(&self) {
        for (name, addon) in std::mem::take(&mut *self.running.lock().await) {
            if let Err(error) = addon.stop(false).await {
                tracing::warn!(name, %error, "an addon did not stop cleanly");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn addons_are_in_order_and_the_storage_ones_are_on_by_default() {
        let names: Vec<_> = super::ALL.iter().map(|a| a.name).collect();
        assert!(names.is_sorted());
        let defaults: Vec<_> = super::ALL.iter().filter(|a| a.default).map(|a| a.name).collect();
        assert_eq!(defaults, crate::config::Config::new("mini").addons);
    }
}
