//! Directories of volumes that exist in memory only, and the hostpath provisioner as one more that takes keys.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::Value;

use mini::api::meta;
use mini::client::Api;
use mini::client::cache::Key;
use mini::client::fake::FakeApi;
use mini::client::typed::gvr;
use mini::controllers::caches::Caches;
use mini::controllers::plan::Plan;
use mini::controllers::provisioner::{Directories, Known, Provisioner};
use mini::controllers::{Controller, Enqueue};
use mini::env::Env;

use crate::world::World;

/// The directories, which outlive processes.
pub struct Disk {
    pub directories: Mutex<BTreeSet<String>>,
    /// Nothing fails any more.
    pub is_well: AtomicBool,
    env: Env,
    api: Arc<FakeApi>,
}

impl Disk {
    pub fn new(world: &World) -> Arc<Self> {
        let (env, api) = (world.env.clone(), world.api.clone());
        Arc::new(Self { directories: Mutex::default(), is_well: AtomicBool::new(false), env, api })
    }

    fn fails(&self) -> io::Result<()> {
        let fails = !self.is_well.load(Ordering::Relaxed) && self.env.below(10) == 0;
        if fails { Err(io::Error::other("the disk is on fire")) } else { Ok(()) }
    }
}

#[async_trait]
impl Directories for Disk {
    async fn create(&self, namespace: &str, volume: &str) -> io::Result<String> {
        self.fails()?;
        let path = format!("/volumes/{namespace}/{volume}");
        self.directories.lock().expect("one thread").insert(path.clone());
        Ok(path)
    }

    /// Data goes only when the volume's policy says so and its claim is gone.
    async fn remove(&self, path: &str) -> io::Result<()> {
        self.fails()?;
        let volumes = self.api.all(&gvr::<PersistentVolume>());
        let volume = volumes.iter().find(|volume| volume["spec"]["hostPath"]["path"] == path);
        if let Some(volume) = volume {
            let spec = &volume["spec"];
            assert_eq!(spec["persistentVolumeReclaimPolicy"], "Delete", "{volume}");
            let claims = self.api.all(&gvr::<PersistentVolumeClaim>());
            let owner = claims.iter().find(|claim| *meta::uid(claim) == spec["claimRef"]["uid"]);
            assert!(owner.is_none(), "the data of {owner:?} is deleted");
        }
        self.directories.lock().expect("one thread").remove(path);
        Ok(())
    }

    async fn size(&self) -> io::Result<u64> {
        Ok(10 << 30)
    }
}

/// The provisioner acts when it is asked; it leaves nothing to a plan.
pub struct ProvisionerActs {
    provisioner: Provisioner,
    has_failed: AtomicBool,
}

impl ProvisionerActs {
    pub fn new(world: &World, disk: Arc<Disk>) -> Self {
        let caches = &world.caches;
        let known = Known {
            claims: caches.claims.clone(),
            volumes: caches.volumes.clone(),
            classes: caches.storage_classes.clone(),
        };
        let _entered = world.runtime.enter();
        let provisioner = Provisioner::new(world.api.clone(), world.env.clone(), disk, known);
        Self { provisioner, has_failed: AtomicBool::new(false) }
    }
}

impl Controller for ProvisionerActs {
    fn name(&self) -> &'static str {
        "hostpath-provisioner"
    }

    fn account(&self) -> &'static str {
        "storage-provisioner"
    }

    fn watch(&self, _caches: &Caches, enqueue: &Enqueue) {
        let add = enqueue.clone();
        self.provisioner.watch(move |key| add.add(key));
    }

    fn ask<'a>(&'a self, _api: &'a dyn Api, _caches: &'a Caches, key: &'a Key) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.has_failed.store(self.provisioner.process(key).await.is_err(), Ordering::Relaxed);
        })
    }

    fn reconcile(&self, _caches: &Caches, _key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        if self.has_failed.swap(false, Ordering::Relaxed) {
            plan.requeue(Duration::from_secs(1));
        }
        plan
    }
}

/// Whether a directory is there.
pub fn holds(disk: &Disk, volume: &Value) -> bool {
    let path = volume["spec"]["hostPath"]["path"].as_str().unwrap_or_default();
    disk.directories.lock().expect("one thread").contains(path)
}
