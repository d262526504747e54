//! The API as components see it: one trait, in process or over HTTPS; informers and work queues on top.

pub mod cache;
pub mod factory;
pub mod fake;
pub mod https;
pub mod informer;
pub mod placement;
pub mod recorder;
pub mod selector;
pub mod typed;
pub mod upgrade;
pub mod work_queue;

pub use cache::{Cache, Change, Key};
pub use factory::Factory;
pub use recorder::Recorder;
pub use typed::{Client, Object};
pub use work_queue::WorkQueue;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde_json::Value;

use crate::api::{Gvr, StatusResult};

/// Options of a list or watch.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// `labelSelector`; empty for everything.
    pub label_selector: String,
    /// `fieldSelector`; empty for everything.
    pub field_selector: String,
    /// Where a watch starts; empty: now, with synthetic ADDED events for what exists.
    pub resource_version: String,
    /// `allowWatchBookmarks`.
    pub bookmarks: bool,
}

/// The answer to a list.
#[derive(Clone, Debug, Default)]
pub struct List {
    /// The objects, ordered by namespace and name.
    pub items: Vec<Arc<Value>>,
    /// Where a watch goes on from here.
    pub resource_version: String,
}

/// One event of a watch.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// The object appeared (or began to match the selector).
    Added(Arc<Value>),
    /// The object changed.
    Modified(Arc<Value>),
    /// The object went (or stopped to match); its last state.
    Deleted(Arc<Value>),
    /// Nothing happened up to this resourceVersion.
    Bookmark(String),
}

/// The four patch types.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' strategic merge patch.
    Strategic(Value),
    /// Server-side apply with a field manager and force.
    Apply(Value, String, bool),
}

/// Options of a delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds; `None`: the kind's default.
    pub grace_period_seconds: Option<i64>,
    /// Only when the object has this uid.
    pub uid: Option<String>,
    /// Only when the object has this resourceVersion.
    pub resource_version: Option<String>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation_policy: Option<&'static str>,
}

/// What components may ask of the API server. Each implementation acts as one user, with full admission.
#[async_trait]
pub trait Api: Send + Sync + 'static {
    /// One object. `namespace` is empty for cluster-scoped kinds, here and below.
    async fn get(&self, gvr: &Gvr, namespace: &str, name: &str) -> StatusResult<Arc<Value>>;
    /// The Scale of an object.
    async fn get_scale(&self, gvr: &Gvr, namespace: &str, name: &str) -> StatusResult<Arc<Value>>;
    /// All objects of a kind; an empty namespace means all namespaces.
    async fn list(&self, gvr: &Gvr, namespace: &str, options: &ListOptions) -> StatusResult<List>;
    /// Changes of a kind. The stream ends, with or without an error (410 when the version is too old), and is then opened anew.
    async fn watch(
        &self,
        gvr: &Gvr,
        namespace: &str,
        options: &ListOptions,
    ) -> StatusResult<BoxStream<'static, StatusResult<WatchEvent>>>;
    /// Creates an object. With a subresource (`binding`, `eviction`, `token`) `name` is its parent's name, else it is empty.
    async fn create(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Value,
    ) -> StatusResult<Arc<Value>>;
    /// Replaces an object or (with a subresource such as `status`) a part of it.
    async fn update(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Value,
    ) -> StatusResult<Arc<Value>>;
    /// Patches an object or a part of it.
    async fn patch(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: Patch,
    ) -> StatusResult<Arc<Value>>;
    /// Deletes an object; returns its last state or the state with a deletionTimestamp.
    async fn delete(&self, gvr: &Gvr, namespace: &str, name: &str, options: &DeleteOptions)
    -> StatusResult<Arc<Value>>;
    /// Returns when the API server answers again after a time in which it did not; never where it is in the same process.
    async fn reachable_again(&self) {
        std::future::pending().await
    }
}

/// Waits before something that failed is tried again: for `wait`, or until the API server is known to be back.
pub async fn pause(api: &dyn Api, wait: Duration) {
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = api.reachable_again() => {}
    }
}
