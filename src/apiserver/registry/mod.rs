//! The verbs on objects, the same for every kind.

pub(crate) mod apply;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod delete_options;
pub(crate) mod expiry;
pub(crate) mod list;
pub(crate) mod metadata;
pub(crate) mod patch;
pub(crate) mod quota;
#[cfg(test)]
mod quota_test;
pub(crate) mod scale;
pub(crate) mod update;
mod versions;
pub(crate) mod watch;

use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::audit::Annotations;
use super::codec;
use super::{ApiServer, User};
use crate::api::kind::Gvr;
use crate::api::schema::{Parsed, Strictness};
use crate::api::{Kind, Status, StatusResult, meta};
use crate::storage::{Durability, Entry, Error, Expect};

/// Who does a write and how.
pub(crate) struct Context<'a> {
    /// Who.
    pub user: &'a User,
    /// `dryRun=All`: everything but the write.
    pub dry_run: bool,
    /// What happens to unknown fields.
    pub strictness: Strictness,
    /// The field manager.
    pub manager: String,
    /// Whether it is an apply, which has set the managers itself.
    pub applying: bool,
    /// What the audit event of this request is to tell.
    pub notes: Annotations,
    warnings: Mutex<Vec<String>>,
}

impl<'a> Context<'a> {
    /// An ordinary write.
    pub fn new(user: &'a User) -> Self {
        Self {
            user,
            dry_run: false,
            strictness: Strictness::Ignore,
            manager: String::new(),
            applying: false,
            notes: Annotations::default(),
            warnings: Mutex::default(),
        }
    }
    /// A text for a `Warning` header.
    pub fn warn(&self, warnings: impl IntoIterator<Item = String>) {
        let mut all = self.warnings.lock().expect("no panic under this lock");
        for warning in warnings {
            if !all.contains(&warning) {
                all.push(warning);
            }
        }
    }
    /// Something that is to be known later about this request: an annotation of its audit event.
    pub fn annotate(&self, key: &str, value: &str) {
        self.notes.add(key, value);
    }
    /// The texts so far.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().expect("no panic under this lock"))
    }
}

/// The key of an object.
pub(crate) fn key(group: &str, resource: &str, namespace: &str, name: &str) -> String {
    format!("{}{name}", prefix(group, resource, namespace))
}

/// What the keys of a resource (in a namespace) begin with.
pub(crate) fn prefix(group: &str, resource: &str, namespace: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    if namespace.is_empty() { format!("/{group}/{resource}/") } else { format!("/{group}/{resource}/{namespace}/") }
}

/// Where objects of a kind are stored.
pub(crate) fn home(kind: &Kind) -> Gvr {
    kind.strategy.stored_as().unwrap_or_else(|| kind.gvr.clone())
}

/// The prefix of a kind's objects (in a namespace, which cluster-scoped kinds do not have).
pub(crate) fn kind_prefix(kind: &Kind, namespace: &str) -> String {
    let home = home(kind);
    prefix(&home.group, &home.resource, if kind.namespaced { namespace } else { "" })
}

/// The key of an object of a kind.
pub(crate) fn kind_key(kind: &Kind, namespace: &str, name: &str) -> String {
    format!("{}{name}", kind_prefix(kind, namespace))
}

/// 422 for an object of a kind.
pub(crate) fn invalid(kind: &Kind, name: &str, errors: &[crate::api::status::FieldError]) -> Status {
    // Two kinds are told by the group that they began in, which knows their types still.
    let group = match (kind.gvr.group.as_ref(), kind.kind.as_ref()) {
        ("networking.k8s.io", "Ingress" | "NetworkPolicy") => "extensions",
        (group, _) => group,
    };
    Status::invalid(group, &kind.kind, name, errors)
}

/// A storage failure as the API tells it.
pub(crate) fn storage_failed(error: Error) -> Status {
    match error {
        Error::Compacted { asked, oldest } => Status::expired(format!("too old resource version: {asked} ({oldest})")),
        other => Status::internal(other),
    }
}

impl ApiServer {
    /// The entry of an object as it is stored.
    pub(crate) async fn stored(&self, kind: &Kind, namespace: &str, name: &str) -> StatusResult<Option<Arc<Entry>>> {
        self.storage.get(&kind_key(kind, namespace, name)).await.map_err(storage_failed)
    }

    /// An object of a kind, in the kind's version.
    pub(crate) async fn get_entry(&self, kind: &Kind, namespace: &str, name: &str) -> StatusResult<Arc<Entry>> {
        let entry = self.stored(kind, namespace, name).await?.ok_or_else(|| Status::not_found(&kind.gvr, name))?;
        self.in_version(kind, entry).await
    }

    /// Refuses a resourceVersion that has not happened yet.
    pub(crate) async fn not_from_the_future(&self, version: &str) -> StatusResult<()> {
        let version = list::parse_version(version)?;
        if version > 0 {
            let current = self.storage.revision().await.map_err(storage_failed)?;
            if version > current {
                return Err(list::too_large(version, current));
            }
        }
        Ok(())
    }

    /// Writes an object; afterwards caches that decide about later requests have seen it.
    ///
    /// # Errors
    /// The outer one when the object could not be brought into the version in which it is stored.
    async fn put(
        &self,
        kind: &Kind,
        key: &str,
        expect: Expect,
        object: &Value,
    ) -> StatusResult<Result<Arc<Entry>, Error>> {
        let body = self.to_stored(kind, object).await?;
        let durability = if kind.lazy { Durability::Lazy } else { Durability::Now };
        let written = self.storage.put(key, expect, body, durability).await;
        if let Ok(entry) = &written {
            self.written(kind, entry.revision).await;
        }
        Ok(written)
    }

    /// Removes an object; afterwards caches that decide about later requests have seen it.
    async fn remove(&self, kind: &Kind, entry: &Entry, last: &Value) -> StatusResult<Result<Arc<Entry>, Error>> {
        let body = self.to_stored(kind, last).await?;
        let removed = self.storage.delete(&entry.key, entry.revision, body).await;
        if let Ok(gone) = &removed {
            self.released(kind, last).await;
            self.written(kind, gone.revision).await;
        }
        Ok(removed)
    }

    async fn written(&self, kind: &Kind, revision: u64) {
        match kind.gvr.group.as_ref() {
            "rbac.authorization.k8s.io" => self.rbac.seen.wait_for(revision).await,
            "apiextensions.k8s.io" => self.extensions.seen.wait_for(revision).await,
            "apiregistration.k8s.io" => self.aggregation.seen.wait_for(revision).await,
            "admissionregistration.k8s.io" => self.registrations.seen.wait_for(revision).await,
            _ => {}
        }
    }
}

/// Decodes an object that a client sent for `kind`: its kind must fit, unknown fields are treated as `context` says, defaults are set.
pub(crate) fn decode(context: &Context<'_>, kind: &Kind, mut object: Parsed) -> StatusResult<Value> {
    check_type(kind, &object.value)?;
    object.value["kind"] = kind.kind.as_ref().into();
    object.value["apiVersion"] = kind.gvr.api_version().into();
    let (mut object, warnings) = codec::canonical(kind, object, context.strictness)?;
    context.warn(warnings);
    default(kind, &mut object);
    Ok(object)
}

/// All defaults of a kind: the schema's and the strategy's.
pub(crate) fn default(kind: &Kind, object: &mut Value) {
    codec::schema_defaults(kind, object);
    kind.strategy.default(object);
}

pub(crate) fn check_type(kind: &Kind, object: &Value) -> StatusResult<()> {
    let (sent_version, sent_kind) = (object["apiVersion"].as_str(), object["kind"].as_str());
    if !object.is_object() {
        let why = super::http::resources::not_a_struct(object);
        return Err(Status::bad_request(format!("couldn't get version/kind; json parse error: {why}")));
    }
    let expected = kind.gvr.api_version();
    if let Some(sent) = sent_version.filter(|v| !v.is_empty() && *v != expected) {
        return Err(Status::bad_request(format!(
            "the API version in the data ({sent}) does not match the expected API version ({expected})"
        )));
    }
    if let Some(sent) = sent_kind.filter(|k| !k.is_empty() && *k != kind.kind) {
        let gvr = &kind.gvr;
        return Err(Status::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: no kind \"{sent}\" is registered for version \"{expected}\" in scheme",
            sent, gvr.version, kind.kind
        )));
    }
    Ok(())
}

/// Checks the namespace of an object against the URL's and sets it.
pub(crate) fn set_namespace(kind: &Kind, namespace: &str, object: &mut Value) -> StatusResult<()> {
    if !object.get("metadata").is_none_or(Value::is_object) {
        return Err(Status::bad_request("metadata must be an object"));
    }
    let sent = meta::namespace(object).to_owned();
    if kind.namespaced {
        if !sent.is_empty() && sent != namespace {
            return Err(Status::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request"
            )));
        }
        metadata::metadata(object).insert("namespace".into(), namespace.into());
    } else if !sent.is_empty() {
        return Err(Status::bad_request("namespace is not allowed for this type"));
    }
    Ok(())
}
