//! The end of a definition: all its objects are deleted, their finalizers are waited for, then the definition goes.

use std::sync::Arc;

use serde_json::Value;

use super::super::registry::delete_options::DeleteOptions;
use super::super::registry::update::Part;
use super::super::registry::{Context, kind_prefix, storage_failed};
use super::super::{ApiServer, User};
use super::{USER, status};
use crate::api::kinds::custom_resource;
use crate::api::kinds::custom_resource_definition::CLEANUP;
use crate::api::{Kind, StatusResult, meta};

/// Deletes the objects of `definition`, then removes its finalizer. `kind`: CustomResourceDefinitions.
pub(super) async fn run(server: &Arc<ApiServer>, kind: &Arc<Kind>, definition: &Value) {
    let name = meta::name(definition);
    if let Err(error) = delete_objects(server, definition).await {
        // The definition stays, says why, and is tried again when it changes or the server starts.
        tracing::warn!(%error, name, "cannot delete the objects of a CustomResourceDefinition");
        let failed = ("True", "InstanceDeletionFailed", format!("could not list or delete instances: {error}"));
        let _ = tell(server, kind, name, failed, false).await;
        return;
    }
    let done = ("False", "InstanceDeletionCompleted", "removed all instances".to_owned());
    if let Err(error) = tell(server, kind, name, done, true).await
        && !error.is_not_found()
    {
        tracing::warn!(%error, name, "cannot let a CustomResourceDefinition go");
    }
}

async fn delete_objects(server: &Arc<ApiServer>, definition: &Value) -> StatusResult<()> {
    let Some(kind) = custom_resource::stored_kind(definition) else { return Ok(()) };
    let kind = Arc::new(kind);
    let prefix = kind_prefix(&kind, "");
    let user = User::master(USER);
    let context = Context::new(&user);
    loop {
        let listing = server.storage.list(&prefix, None, 0, 0).await.map_err(storage_failed)?;
        if listing.entries.is_empty() {
            return Ok(());
        }
        let mut watch = server.storage.watch(&prefix, listing.revision).await.map_err(storage_failed)?;
        for entry in &listing.entries {
            let object = entry.value();
            if meta::is_terminating(&object) {
                continue;
            }
            let (namespace, name) = (meta::namespace(&object), meta::name(&object));
            match server.delete(&context, &kind, namespace, name, &DeleteOptions::default()).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => {}
            }
        }
        if server.storage.count(&prefix).await.map_err(storage_failed)? == 0 {
            return Ok(());
        }
        // Whoever holds them by finalizers lets them go.
        watch.next().await.map_err(storage_failed)?;
    }
}

/// Writes the condition `Terminating`, and removes the finalizer when everything is gone.
async fn tell(
    server: &ApiServer,
    kind: &Arc<Kind>,
    name: &str,
    condition: (&'static str, &'static str, String),
    let_go: bool,
) -> StatusResult<()> {
    let user = User::master(USER);
    let mut context = Context::new(&user);
    context.manager = super::MANAGER.to_owned();
    let now = server.env.now();
    let make = |current: &Value| {
        let mut object = current.clone();
        status::set(&mut object["status"], now, "Terminating", condition.clone());
        Ok(object)
    };
    server.change(&context, kind, "", name, Part::Status, make).await?;
    if let_go {
        let make = |current: &Value| {
            let mut object = current.clone();
            let rest: Vec<Value> =
                meta::finalizers(current).filter(|known| *known != CLEANUP).map(Value::from).collect();
            meta::metadata_mut(&mut object).insert("finalizers".to_owned(), rest.into());
            Ok(object)
        };
        server.change(&context, kind, "", name, Part::Status, make).await?;
    }
    Ok(())
}
