//! `client::Api` in process: the API server's own verbs as one user, without HTTP or encoding.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::Value;

use crate::api::{Gvr, Status, StatusResult};
use crate::apiserver::local::{Delete, Event, Patch as LocalPatch, Query};
use crate::apiserver::{ApiServer, User};
use crate::client::https::{list_path, read_list, read_status};
use crate::client::{Api, DeleteOptions, List, ListOptions, Patch, WatchEvent};

/// The API server as one user sees it.
pub struct LocalApi {
    server: Arc<ApiServer>,
    user: User,
}

impl LocalApi {
    /// Acts as `user`.
    pub fn new(server: Arc<ApiServer>, user: User) -> Arc<Self> {
        Arc::new(Self { server, user })
    }
}

fn query<'a>(gvr: &'a Gvr, namespace: &'a str, options: &'a ListOptions) -> Query<'a> {
    Query { gvr, namespace, labels: &options.label_selector, fields: &options.field_selector }
}

#[async_trait]
impl Api for LocalApi {
    async fn get(&self, gvr: &Gvr, namespace: &str, name: &str) -> StatusResult<Arc<Value>> {
        self.server.local_get(&self.user, gvr, namespace, name).await
    }

    async fn get_scale(&self, gvr: &Gvr, namespace: &str, name: &str) -> StatusResult<Arc<Value>> {
        self.server.local_get_scale(&self.user, gvr, namespace, name).await
    }

    async fn list(&self, gvr: &Gvr, namespace: &str, options: &ListOptions) -> StatusResult<List> {
        let path = list_path(gvr, namespace, options);
        if let Some(answer) = self.server.local_list_elsewhere(&self.user, gvr, namespace, &path).await {
            let (code, bytes) = answer?;
            return if code < 400 { read_list(&bytes) } else { Err(read_status(code, &bytes)) };
        }
        let (items, resource_version) = self.server.local_list(&self.user, query(gvr, namespace, options)).await?;
        Ok(List { items, resource_version })
    }

    async fn watch(
        &self,
        gvr: &Gvr,
        namespace: &str,
        options: &ListOptions,
    ) -> StatusResult<BoxStream<'static, StatusResult<WatchEvent>>> {
        let query = query(gvr, namespace, options);
        let events = self.server.local_watch(&self.user, query, &options.resource_version, options.bookmarks).await?;
        let events = events.map(|event| {
            event.map(|event| match event {
                Event::Added(object) => WatchEvent::Added(object),
                Event::Modified(object) => WatchEvent::Modified(object),
                Event::Deleted(object) => WatchEvent::Deleted(object),
                Event::Bookmark(version) => WatchEvent::Bookmark(version),
            })
        });
        Ok(events.boxed())
    }

    async fn create(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Value,
    ) -> StatusResult<Arc<Value>> {
        self.server.local_create(&self.user, gvr, namespace, name, subresource, object).await
    }

    async fn update(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Value,
    ) -> StatusResult<Arc<Value>> {
        self.server.local_update(&self.user, gvr, namespace, name, subresource, object).await
    }

    async fn patch(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: Patch,
    ) -> StatusResult<Arc<Value>> {
        let patch = match patch {
            Patch::Json(value) => LocalPatch::Json(value),
            Patch::Merge(value) => LocalPatch::Merge(value),
            Patch::Strategic(value) => LocalPatch::Strategic(value),
            Patch::Apply(..) => {
                let message = "server-side apply is not served yet; use a merge patch";
                return Err(Status::new(415, "UnsupportedMediaType", message));
            }
        };
        self.server.local_patch(&self.user, gvr, namespace, name, subresource, patch).await
    }

    async fn delete(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> StatusResult<Arc<Value>> {
        let delete = Delete {
            grace_period_seconds: options.grace_period_seconds,
            uid: options.uid.clone(),
            resource_version: options.resource_version.clone(),
            propagation_policy: options.propagation_policy.map(str::to_owned),
        };
        self.server.local_delete(&self.user, gvr, namespace, name, &delete).await
    }
}
