//! Where the objects are kept: the built-in database, or an etcd.

use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::config::{Config, Datastore, Paths};
use crate::storage::{self, EtcdOptions, Limits, Storage};

/// The storage's options for an etcd.
pub fn options(settings: &Datastore) -> EtcdOptions {
    let Datastore { endpoints, prefix, ca_file, cert_file, key_file } = settings.clone();
    EtcdOptions { endpoints, prefix, ca_file, cert_file, key_file }
}

/// Who keeps a cluster in an etcd, in words for the one who wants to as well.
pub fn owner(paths: &Paths, config: &Config) -> String {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    format!("the profile {:?} of {host} ({})", config.profile, paths.root().display())
}

/// Opens the store of a cluster.
///
/// # Errors
/// When the database is damaged, or the etcd does not answer or is another cluster's.
pub async fn open(paths: &Paths, config: &Config) -> Result<Arc<dyn Storage>> {
    let Some(settings) = &config.datastore else {
        let db = paths.db();
        let opened = tokio::task::spawn_blocking(move || storage::open_sled(&db, Limits::default())).await?;
        return opened.context("opening the database");
    };
    let options = options(settings);
    storage::claim_etcd(&options, &owner(paths, config)).await?;
    storage::open_etcd(&options, Limits::default()).await.context("opening the datastore")
}
//
