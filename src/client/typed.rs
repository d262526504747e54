//! Typed access: [`Client`] over [`Api`], and [`Object`], what caches need to know of a type.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::{Metadata, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Api, DeleteOptions, ListOptions, Patch};
use crate::api::{Gvr, Status, StatusResult};

/// A Kubernetes type of `k8s-openapi` with `ObjectMeta`.
pub trait Typed: Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Send + Sync + 'static {}
impl<T: Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Send + Sync + 'static> Typed for T {}

/// Something that a cache can hold: a typed object, or the metadata of any object ([`PartialObject`]).
pub trait Object: Sized + Send + Sync + 'static {
    /// Reads it out of the object's JSON.
    ///
    /// # Errors
    /// The JSON does not have the type's shape.
    fn parse(value: &Value) -> Result<Self, serde_json::Error>;
    /// Its metadata.
    fn meta(&self) -> &ObjectMeta;
}

impl<T: Typed> Object for T {
    fn parse(value: &Value) -> Result<Self, serde_json::Error> {
        T::deserialize(value)
    }
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }
}

/// The metadata of an object of any kind, as `metav1.PartialObjectMetadata`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartialObject {
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `metadata`, without `managedFields` and annotations.
    pub metadata: ObjectMeta,
}

impl Object for PartialObject {
    fn parse(value: &Value) -> Result<Self, serde_json::Error> {
        let mut metadata = ObjectMeta::default();
        let from = &value["metadata"];
        let text = |name: &str| from[name].as_str().map(str::to_owned);
        metadata.name = text("name");
        metadata.namespace = text("namespace");
        metadata.uid = text("uid");
        metadata.resource_version = text("resourceVersion");
        metadata.deletion_timestamp = serde::Deserialize::deserialize(&from["deletionTimestamp"])?;
        metadata.finalizers = serde::Deserialize::deserialize(&from["finalizers"])?;
        metadata.owner_references = serde::Deserialize::deserialize(&from["ownerReferences"])?;
        let word = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Ok(Self { api_version: word("apiVersion"), kind: word("kind"), metadata })
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// Short ways to the metadata that everybody asks for.
pub trait Meta: Object {
    /// `metadata.name`; empty when absent.
    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }
    /// `metadata.namespace`; empty for cluster-scoped objects.
    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }
    /// `metadata.uid`; empty when absent.
    fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }
    /// `metadata.resourceVersion` as a number; 0 when absent.
    fn revision(&self) -> u64 {
        self.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default()
    }
    /// `metadata.labels`.
    fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.meta().labels.as_ref().unwrap_or(&NONE)
    }
    /// The value of an annotation.
    fn annotation(&self, key: &str) -> Option<&str> {
        self.meta().annotations.as_ref()?.get(key).map(String::as_str)
    }
    /// Whether `metadata.deletionTimestamp` is set.
    fn is_terminating(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }
    /// `metadata.ownerReferences`.
    fn owners(&self) -> &[OwnerReference] {
        self.meta().owner_references.as_deref().unwrap_or_default()
    }
    /// The owner with `controller: true`.
    fn controller(&self) -> Option<&OwnerReference> {
        self.owners().iter().find(|owner| owner.controller == Some(true))
    }
}
impl<T: Object> Meta for T {}

/// The resource of a typed kind.
pub fn gvr<T: Resource>() -> Gvr {
    Gvr::new(T::GROUP, T::VERSION, T::URL_PATH_SEGMENT)
}

/// An object as JSON, with `apiVersion` and `kind`.
pub fn to_value<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).expect("Kubernetes types are representable in JSON")
}

/// Typed calls as one user.
#[derive(Clone)]
pub struct Client {
    api: Arc<dyn Api>,
}

fn read<T: Object>(value: &Value) -> StatusResult<T> {
    T::parse(value).map_err(Status::internal)
}

impl Client {
    /// Typed calls through `api`.
    pub fn new(api: Arc<dyn Api>) -> Self {
        Self { api }
    }
    /// The untyped door.
    pub fn api(&self) -> &Arc<dyn Api> {
        &self.api
    }
    /// One object; `namespace` is empty for cluster-scoped kinds, here and below.
    pub async fn get<T: Typed>(&self, namespace: &str, name: &str) -> StatusResult<T> {
        read(&*self.api.get(&gvr::<T>(), namespace, name).await?)
    }
    /// One object, or `None` when there is none.
    pub async fn find<T: Typed>(&self, namespace: &str, name: &str) -> StatusResult<Option<T>> {
        match self.get(namespace, name).await {
            Err(status) if status.is_not_found() => Ok(None),
            other => other.map(Some),
        }
    }
    /// All objects of a kind that `options` select; an empty namespace means all.
    pub async fn list<T: Typed>(&self, namespace: &str, options: &ListOptions) -> StatusResult<Vec<T>> {
        self.api.list(&gvr::<T>(), namespace, options).await?.items.iter().map(|item| read(item)).collect()
    }
    /// Creates an object in the namespace that its metadata names.
    pub async fn create<T: Typed>(&self, object: &T) -> StatusResult<T> {
        read(&*self.api.create(&gvr::<T>(), object.namespace(), "", "", to_value(object)).await?)
    }
    /// Replaces an object (if it carries a resourceVersion: only that version).
    pub async fn update<T: Typed>(&self, object: &T) -> StatusResult<T> {
        read(&*self.api.update(&gvr::<T>(), object.namespace(), object.name(), "", to_value(object)).await?)
    }
    /// Replaces an object's status.
    pub async fn update_status<T: Typed>(&self, object: &T) -> StatusResult<T> {
        read(&*self.api.update(&gvr::<T>(), object.namespace(), object.name(), "status", to_value(object)).await?)
    }
    /// Patches an object.
    pub async fn patch<T: Typed>(&self, namespace: &str, name: &str, patch: Patch) -> StatusResult<T> {
        read(&*self.api.patch(&gvr::<T>(), namespace, name, "", patch).await?)
    }
    /// Patches an object's status.
    pub async fn patch_status<T: Typed>(&self, namespace: &str, name: &str, patch: Patch) -> StatusResult<T> {
        read(&*self.api.patch(&gvr::<T>(), namespace, name, "status", patch).await?)
    }
    /// Deletes an object.
    pub async fn delete<T: Typed>(&self, namespace: &str, name: &str, options: &DeleteOptions) -> StatusResult<()> {
        self.api.delete(&gvr::<T>(), namespace, name, options).await.map(drop)
    }
}
