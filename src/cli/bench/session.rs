//! A client's side of a benchmark: connections to the running cluster, and a namespace that goes when it ends.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::StreamExt;
use http::Method;
use serde_json::{Value, json};

use crate::api::{Gvr, StatusResult, meta};
use crate::cli::{Global, control, update_context};
use crate::client::https::{Access, HttpsApi, path};
use crate::client::{Api, DeleteOptions, ListOptions, WatchEvent};

pub(super) const CONFIG_MAPS: Gvr = Gvr::new("", "v1", "configmaps");
pub(super) const PODS: Gvr = Gvr::new("", "v1", "pods");
const NAMESPACES: Gvr = Gvr::new("", "v1", "namespaces");
const SERVICE_ACCOUNTS: Gvr = Gvr::new("", "v1", "serviceaccounts");

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// A namespace of our own in the running cluster.
pub(super) struct Session {
    access: Access,
    pub api: HttpsApi,
    pub namespace: String,
}

impl Session {
    /// Makes the namespace and waits until pods can be created in it.
    pub async fn open(global: &Global) -> Result<Self> {
        running(global).await?;
        let access = update_context::access(&global.paths()?, &global.config()?)?;
        let api = HttpsApi::new(&access, "mini-bench", true)?;
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "mini-bench-"}});
        let created = api.create(&NAMESPACES, "", "", "", object).await?;
        let namespace = meta::name(&created).to_owned();
        let session = Self { access, api, namespace };
        session.wait(&SERVICE_ACCOUNTS, "default", |object| object.is_some()).await?;
        Ok(session)
    }

    /// A client with a TLS connection of its own, which is established when this returns.
    pub async fn connect(&self, protocol: Protocol) -> Result<HttpsApi> {
        let api = HttpsApi::new(&self.access, "mini-bench", protocol == Protocol::Http2)?;
        api.fetch(Method::GET, "/version", "", Bytes::new()).await?;
        Ok(api)
    }

    /// The path of our objects of a kind.
    pub fn path(&self, gvr: &Gvr, name: &str) -> String {
        path(gvr, &self.namespace, name, "")
    }

    /// Watches one object, from how it is now, until it `fits` (`None`: it does not exist).
    pub async fn wait(&self, gvr: &Gvr, name: &str, fits: impl Fn(Option<&Value>) -> bool) -> Result<()> {
        let options = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
        loop {
            let list = self.api.list(gvr, &self.namespace, &options).await?;
            if fits(list.items.first().map(Arc::as_ref)) {
                return Ok(());
            }
            let from = ListOptions { resource_version: list.resource_version, ..options.clone() };
            let mut events = self.api.watch(gvr, &self.namespace, &from).await?;
            while let Some(Ok(event)) = events.next().await {
                let fit = match &event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => fits(Some(object)),
                    WatchEvent::Deleted(_) => fits(None),
                    WatchEvent::Bookmark(_) => false,
                };
                if fit {
                    return Ok(());
                }
            }
        }
    }

    /// Deletes the namespace; the rest goes on in the cluster.
    pub async fn close(self) -> StatusResult<()> {
        self.api.delete(&NAMESPACES, "", &self.namespace, &DeleteOptions::default()).await.map(|_| ())
    }
}

/// What the daemon says of itself; an error when there is none.
pub(super) async fn running(global: &Global) -> Result<Value> {
    control::json(&global.paths()?, &global.profile, Method::GET, "/status").await.context("asking the cluster")
}
