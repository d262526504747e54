//! `default-storageclass`: the class `standard`, which claims without a class get.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;

use super::{Addon, Context, Running};
use crate::api::kinds::gvr;

/// The entry of the list.
pub const ADDON: Addon = Addon {
    name: "default-storageclass",
    about: "the StorageClass \"standard\", which claims without a class get",
    default: true,
    start: |context| Box::pin(async move { Ok(Box::new(start(context).await?) as Box<dyn Running>) }),
};

struct DefaultStorageClass(Arc<Context>);

async fn start(context: Arc<Context>) -> anyhow::Result<DefaultStorageClass> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {
            "name": "standard",
            "labels": {"addonmanager.kubernetes.io/mode": "EnsureExists"},
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": super::storage_provisioner::PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
    });
    match context.api.create(&gvr::STORAGE_CLASSES, "", "", "", class).await {
        // EnsureExists: what the user changed stays changed.
        Err(status) if !status.is_already_exists() => Err(status.into()),
        _ => Ok(DefaultStorageClass(context)),
    }
}

#[async_trait]
impl Running for DefaultStorageClass {
    async fn stop(&self, forever: bool) -> anyhow::Result<()> {
        if forever {
            self.0.remove(&gvr::STORAGE_CLASSES, "", "standard").await?;
        }
        Ok(())
    }
}
