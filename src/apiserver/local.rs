//! The in-process door: the verbs as a user, with authorisation and admission, without HTTP or encoding. `cluster::local_api` makes a
//! `client::Api` of it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::Request;
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::authz::Attributes;
use super::http::request::only_name;
use super::registry::Context;
use super::registry::delete_options::DeleteOptions;
use super::registry::list::Page;
use super::registry::patch::PatchBody;
use super::registry::update::Part;
use super::registry::watch::{Change, WatchOptions};
use super::selector::Selection;
use super::{ApiServer, User, codec, subresources};
use crate::api::kind::Subresource;
use crate::api::{Gvr, Kind, Status, StatusResult};

/// One event of a watch.
#[derive(Clone, Debug)]
pub enum Event {
    /// The object appeared (or began to match the selector).
    Added(Arc<Value>),
    /// The object changed.
    Modified(Arc<Value>),
    /// The object went (or stopped to match).
    Deleted(Arc<Value>),
    /// Nothing happened up to this resourceVersion.
    Bookmark(String),
}

/// A patch.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' strategic merge patch.
    Strategic(Value),
}

/// What a delete may say.
#[derive(Clone, Debug, Default)]
pub struct Delete {
    /// Seconds; `None`: the kind's default.
    pub grace_period_seconds: Option<i64>,
    /// Only when the object has this uid.
    pub uid: Option<String>,
    /// Only when the object has this resourceVersion.
    pub resource_version: Option<String>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation_policy: Option<String>,
}

/// Which objects.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The resource.
    pub gvr: &'a Gvr,
    /// The namespace; empty: all, or cluster-scoped.
    pub namespace: &'a str,
    /// `labelSelector`.
    pub labels: &'a str,
    /// `fieldSelector`.
    pub fields: &'a str,
}

impl ApiServer {
    async fn local(
        &self,
        user: &User,
        verb: &str,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        sub: &str,
    ) -> StatusResult<Arc<Kind>> {
        let (group, resource) = (gvr.group.as_ref(), gvr.resource.as_ref());
        let attributes =
            Attributes { verb, group, resource, subresource: sub, namespace, name, ..Attributes::default() };
        self.authorize(user, &attributes).await?;
        self.known_kind(group, &gvr.version, resource)
    }

    /// The code and the body of a list by an aggregated API; `path` with its query. `None`: the kind is not aggregated.
    pub async fn local_list_elsewhere(
        &self,
        user: &User,
        gvr: &Gvr,
        namespace: &str,
        path: &str,
    ) -> Option<StatusResult<(u16, Bytes)>> {
        let api = self.options.aggregated.get(&gvr.group, &gvr.version)?;
        let (group, resource) = (gvr.group.as_ref(), gvr.resource.as_ref());
        let asked = Attributes { verb: "list", group, resource, namespace, ..Attributes::default() };
        if let Err(status) = self.authorize(user, &asked).await {
            return Some(Err(status));
        }
        let request = match Request::get(path).body(Body::empty()) {
            Ok(request) => request,
            Err(error) => return Some(Err(Status::internal(error))),
        };
        let answer = api.handle(user, request).await;
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(Status::internal);
        Some(body.map(|body| (code, body.to_bytes())))
    }

    /// The Scale of an object.
    pub async fn local_get_scale(
        &self,
        user: &User,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
    ) -> StatusResult<Arc<Value>> {
        let kind = self.local(user, "get", gvr, namespace, name, Subresource::Scale.as_str()).await?;
        find(&kind, Subresource::Scale.as_str())?;
        self.get_scale(&kind, namespace, name).await.map(Arc::new)
    }

    async fn local_query(&self, user: &User, verb: &str, query: &Query<'_>) -> StatusResult<Arc<Kind>> {
        let (group, resource) = (query.gvr.group.as_ref(), query.gvr.resource.as_ref());
        let name = only_name(query.fields).unwrap_or_default();
        let (namespace, fields) = (query.namespace, query.fields);
        let attributes = Attributes { verb, group, resource, namespace, name: &name, fields, ..Attributes::default() };
        self.authorize(user, &attributes).await?;
        self.known_kind(group, &query.gvr.version, resource)
    }

    /// One object.
    ///
    /// # Errors
    /// As the API answers; here and below.
    pub async fn local_get(&self, user: &User, gvr: &Gvr, namespace: &str, name: &str) -> StatusResult<Arc<Value>> {
        let kind = self.local(user, "get", gvr, namespace, name, "").await?;
        Ok(self.get_entry(&kind, namespace, name).await?.value())
    }

    /// The objects that match, and the list's resourceVersion.
    pub async fn local_list(&self, user: &User, query: Query<'_>) -> StatusResult<(Vec<Arc<Value>>, String)> {
        let kind = self.local_query(user, "list", &query).await?;
        let selection = Selection::parse(&kind, query.labels, query.fields)?;
        let listed = self.list(&kind, query.namespace, &selection, &Page::default()).await?;
        Ok((listed.entries.iter().map(|e| e.value()).collect(), listed.revision.to_string()))
    }

    /// Changes of the objects that match, after `resource_version` (empty: what exists comes first). No timeout: the watch ends with
    /// the server, or with an error.
    pub async fn local_watch(
        self: &Arc<Self>,
        user: &User,
        query: Query<'_>,
        resource_version: &str,
        bookmarks: bool,
    ) -> StatusResult<BoxStream<'static, StatusResult<Event>>> {
        let kind = self.local_query(user, "watch", &query).await?;
        let options = WatchOptions {
            selection: Selection::parse(&kind, query.labels, query.fields)?,
            resource_version: resource_version.to_owned(),
            version_match: String::new(),
            bookmarks,
            initial_events: None,
            timeout: Duration::from_secs(10 * 365 * 86_400),
        };
        let changes = self.watch(&kind, query.namespace, options).await?;
        let events = changes.flat_map(|batch| {
            futures_util::stream::iter(batch.into_iter().map(|change| match change {
                Change::Added(entry) => Ok(Event::Added(entry.value())),
                Change::Modified(entry) => Ok(Event::Modified(entry.value())),
                Change::Deleted(entry) => Ok(Event::Deleted(entry.value())),
                Change::Bookmark { revision, .. } => Ok(Event::Bookmark(revision.to_string())),
                Change::Failed(status) => Err(status),
            }))
        });
        Ok(events.boxed())
    }

    /// Creates an object; with a subresource (`binding`, `eviction`, `token`) `name` is its parent's name.
    pub async fn local_create(
        self: &Arc<Self>,
        user: &User,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Value,
    ) -> StatusResult<Arc<Value>> {
        let kind = self.local(user, "create", gvr, namespace, name, subresource).await?;
        let context = Context::new(user);
        if subresource.is_empty() {
            if kind.verbs == ["create"] {
                return subresources::create_virtual(self, &context, &kind, namespace, object).await.map(Arc::new);
            }
            return Ok(self.create(&context, &kind, namespace, codec::made(object)).await?.value());
        }
        let sub = find(&kind, subresource)?;
        subresources::create(self, &context, &kind, sub, namespace, name, object).await.map(Arc::new)
    }

    /// Replaces an object or a part of it.
    pub async fn local_update(
        &self,
        user: &User,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Value,
    ) -> StatusResult<Arc<Value>> {
        let kind = self.local(user, "update", gvr, namespace, name, subresource).await?;
        let context = Context::new(user);
        match part(&kind, subresource)? {
            Some(part) => {
                Ok(self.replace(&context, &kind, namespace, name, part, codec::made(object)).await?.entry.value())
            }
            None => self.replace_scale(&context, &kind, namespace, name, object).await.map(Arc::new),
        }
    }

    /// Patches an object or a part of it.
    pub async fn local_patch(
        &self,
        user: &User,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: Patch,
    ) -> StatusResult<Arc<Value>> {
        let kind = self.local(user, "patch", gvr, namespace, name, subresource).await?;
        let context = Context::new(user);
        let patch = match patch {
            Patch::Json(value) => PatchBody::Json(value),
            Patch::Merge(value) => PatchBody::Merge(value),
            Patch::Strategic(value) => PatchBody::Strategic(value),
        };
        match part(&kind, subresource)? {
            Some(part) => Ok(self.patch(&context, &kind, namespace, name, part, &patch).await?.value()),
            None => self.patch_scale(&context, &kind, namespace, name, &patch).await.map(Arc::new),
        }
    }

    /// Deletes an object; returns its last state or the state with a deletionTimestamp.
    pub async fn local_delete(
        &self,
        user: &User,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        delete: &Delete,
    ) -> StatusResult<Arc<Value>> {
        let kind = self.local(user, "delete", gvr, namespace, name, "").await?;
        let options = DeleteOptions {
            grace: delete.grace_period_seconds,
            uid: delete.uid.clone(),
            resource_version: delete.resource_version.clone(),
            propagation: delete.propagation_policy.clone(),
            ..DeleteOptions::default()
        };
        options.validate()?;
        Ok(self.delete(&Context::new(user), &kind, namespace, name, &options).await?.entry.value())
    }
}

fn find(kind: &Kind, subresource: &str) -> StatusResult<Subresource> {
    let found = kind.subresources.iter().copied().find(|s| s.as_str() == subresource);
    found.ok_or_else(super::http::no_resource)
}

/// The part that a subresource means; `None` for `scale`.
fn part(kind: &Kind, subresource: &str) -> StatusResult<Option<Part>> {
    if subresource.is_empty() {
        return Ok(Some(Part::Main));
    }
    match find(kind, subresource)? {
        Subresource::Status => Ok(Some(Part::Status)),
        Subresource::Scale => Ok(None),
        sub @ (Subresource::EphemeralContainers
        | Subresource::Finalize
        | Subresource::Resize
        | Subresource::Approval) => Ok(Some(Part::Special(sub))),
        _ => Err(super::http::no_method()),
    }
}
