//! Between the version in which objects are stored and the one that is asked for.

use std::sync::Arc;

use serde_json::Value;

use super::metadata;
use crate::api::kind::{Conversion, CustomResource};
use crate::api::{Kind, StatusResult, meta, structural};
use crate::apiserver::{ApiServer, codec};
use crate::storage::{Body, Entry};

impl ApiServer {
    /// A stored entry in the version of `kind`.
    pub(crate) async fn in_version(&self, kind: &Kind, entry: Arc<Entry>) -> StatusResult<Arc<Entry>> {
        if let Some(custom) = kind.strategy.custom() {
            if is_current(kind, custom, &entry) {
                return Ok(entry);
            }
            return Ok(self.custom_in_version(kind, custom, vec![entry]).await?.remove(0));
        }
        if kind.strategy.stored_as().is_none() {
            return Ok(entry);
        }
        let mut object = (*entry.value()).clone();
        kind.strategy.from_stored(&mut object);
        object["kind"] = kind.kind.as_ref().into();
        object["apiVersion"] = kind.gvr.api_version().into();
        Ok(encoded(kind, &entry, &object))
    }

    /// The same for many.
    pub(crate) async fn all_in_version(&self, kind: &Kind, entries: Vec<Arc<Entry>>) -> StatusResult<Vec<Arc<Entry>>> {
        if let Some(custom) = kind.strategy.custom() {
            return self.custom_in_version(kind, custom, entries).await;
        }
        if kind.strategy.stored_as().is_none() {
            return Ok(entries);
        }
        let mut shown = Vec::with_capacity(entries.len());
        for entry in entries {
            shown.push(self.in_version(kind, entry).await?);
        }
        Ok(shown)
    }

    /// The bytes to store for an object of a kind.
    pub(super) async fn to_stored(&self, kind: &Kind, object: &Value) -> StatusResult<Body> {
        if let Some(custom) = kind.strategy.custom() {
            let version = format!("{}/{}", kind.gvr.group, custom.storage_version);
            if object["apiVersion"] == version.as_str() || kind.gvr.version == custom.storage_version {
                return Ok(codec::encode_as(&kind.kind, &version, object));
            }
            let stored = self.convert(custom, vec![object.clone()], &version).await?.remove(0);
            return Ok(codec::encode_as(&kind.kind, &version, &stored));
        }
        let Some(gvr) = kind.strategy.stored_as() else { return Ok(codec::encode(kind, object)) };
        let mut object = object.clone();
        kind.strategy.to_stored(&mut object);
        match self.kind(&gvr.group, &gvr.version, &gvr.resource) {
            Some(stored) => Ok(codec::encode(&stored, &object)),
            None => Ok(codec::encode(kind, &object)),
        }
    }

    /// Whether an entry would be stored in another version today, so that even a write that changes nothing is worth it.
    pub(super) fn is_outdated(&self, kind: &Kind, entry: &Entry) -> bool {
        kind.strategy.custom().is_some_and(|custom| {
            let version = format!("{}/{}", kind.gvr.group, custom.storage_version);
            entry.value()["apiVersion"] != version.as_str()
        })
    }

    /// Custom resources as their version shows them: converted, pruned and defaulted as the schema says today.
    async fn custom_in_version(
        &self,
        kind: &Kind,
        custom: &CustomResource,
        entries: Vec<Arc<Entry>>,
    ) -> StatusResult<Vec<Arc<Entry>>> {
        let version = kind.gvr.api_version();
        let foreign: Vec<usize> =
            (0..entries.len()).filter(|at| entries[*at].value()["apiVersion"] != version.as_str()).collect();
        let objects: Vec<Value> = foreign.iter().map(|at| (*entries[*at].value()).clone()).collect();
        let mut converted = match objects.is_empty() {
            true => Vec::new(),
            false => self.convert(custom, objects, &version).await?,
        }
        .into_iter();
        let mut converted_at = foreign.into_iter().peekable();
        let mut shown = Vec::with_capacity(entries.len());
        for (at, entry) in entries.into_iter().enumerate() {
            let is_converted = converted_at.next_if_eq(&at).is_some();
            if !is_converted && is_current(kind, custom, &entry) {
                shown.push(entry);
                continue;
            }
            let stored = entry.value();
            let mut object = if is_converted { converted.next().unwrap_or_default() } else { (*stored).clone() };
            structural::prune(&custom.schema, &mut object);
            structural::drop_nulls(&custom.schema, &mut object);
            structural::apply_defaults(&custom.schema, &mut object);
            shown.push(if *stored == object { entry } else { encoded(kind, &entry, &object) });
        }
        Ok(shown)
    }

    /// Objects of one definition in another version (`apiVersion`).
    async fn convert(
        &self,
        custom: &CustomResource,
        mut objects: Vec<Value>,
        version: &str,
    ) -> StatusResult<Vec<Value>> {
        match &custom.conversion {
            Conversion::None => {
                for object in &mut objects {
                    object["apiVersion"] = version.into();
                }
                Ok(objects)
            }
            // A webhook is sent objects of one version at a time.
            Conversion::Webhook(webhook) => {
                let mut converted = objects.clone();
                let mut versions: Vec<String> =
                    objects.iter().map(|object| meta::text(&object["apiVersion"]).to_owned()).collect();
                versions.sort();
                versions.dedup();
                for from in versions.iter().filter(|from| *from != version) {
                    let places: Vec<usize> =
                        (0..objects.len()).filter(|at| objects[*at]["apiVersion"] == from.as_str()).collect();
                    let sent = places.iter().map(|at| objects[*at].clone()).collect();
                    let answer = self.convert_by_webhook(webhook, sent, version).await?;
                    for (place, object) in places.into_iter().zip(answer) {
                        converted[place] = object;
                    }
                }
                Ok(converted)
            }
        }
    }
}

/// Whether an entry is shown as it is stored.
fn is_current(kind: &Kind, custom: &CustomResource, entry: &Entry) -> bool {
    entry.revision > custom.since
        && (kind.gvr.version == custom.storage_version)
        && entry.json.starts_with(codec::item_prefix(kind).as_bytes())
}

fn encoded(kind: &Kind, entry: &Entry, object: &Value) -> Arc<Entry> {
    let json = codec::encode(kind, object).at(entry.revision);
    Arc::new(Entry::new(Arc::clone(&entry.key), entry.revision, json))
}

impl ApiServer {
    /// An entry that is not stored (the answer to a dry run).
    pub(super) fn dry(&self, kind: &Kind, object: &Value, revision: Option<u64>) -> Arc<Entry> {
        let body = codec::encode(kind, object);
        let json = match revision {
            Some(revision) => body.at(revision),
            None => {
                let mut object = object.clone();
                metadata::metadata(&mut object).remove("resourceVersion");
                object["kind"] = kind.kind.as_ref().into();
                object["apiVersion"] = kind.gvr.api_version().into();
                object.to_string().into()
            }
        };
        Arc::new(Entry::new(Arc::from(""), revision.unwrap_or_default(), json))
    }
}
