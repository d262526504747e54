//! `storage-provisioner`: gives claims of hostpath classes a directory of this machine.
//!
//! The provisioner is a controller (`controllers/`); this addon switches it on and off.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Addon, Context, Running};

/// The provisioner's name in StorageClasses: minikube's, so that its users' classes work.
pub const PROVISIONER: &str = "k8s.io/minikube-hostpath";

/// The entry of the list.
pub const ADDON: Addon = Addon {
    name: "storage-provisioner",
    about: "directories of this machine for claims of hostpath classes",
    default: true,
    start: |context| {
        Box::pin(async move {
            context.provisioning.send_replace(true);
            Ok(Box::new(StorageProvisioner(context)) as Box<dyn Running>)
        })
    },
};

struct StorageProvisioner(Arc<Context>);

#[async_trait]
impl Running for StorageProvisioner {
    async fn stop(&self, _forever: bool) -> anyhow::Result<()> {
        self.0.provisioning.send_replace(false);
        Ok(())
    }
}
