//! `mini datastore`: where a cluster keeps its objects, and moving them between the built-in database and an etcd.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use super::{Global, profile};
use crate::cluster::{datastore, lock};
use crate::config::{Config, Datastore as Settings, Paths};
use crate::storage;

/// Which etcd, in k3s' words.
#[derive(Args, Clone)]
pub struct Flags {
    /// Keep the objects in this etcd instead of the built-in database: addresses of its members, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    pub datastore_endpoint: Vec<String>,
    /// What all keys in the etcd begin with
    #[arg(long, default_value = "/registry", requires = "datastore_endpoint")]
    datastore_prefix: String,
    /// The authority that signed the etcd's certificates (PEM)
    #[arg(long, requires = "datastore_endpoint", value_name = "FILE")]
    datastore_cafile: Option<PathBuf>,
    /// The client certificate for the etcd (PEM)
    #[arg(long, requires = "datastore_keyfile", value_name = "FILE")]
    datastore_certfile: Option<PathBuf>,
    /// The client certificate's private key (PEM)
    #[arg(long, requires = "datastore_certfile", value_name = "FILE")]
    datastore_keyfile: Option<PathBuf>,
}

impl Flags {
    /// The settings that the flags describe; `None` without an endpoint.
    ///
    /// # Errors
    /// When an endpoint is no URL, or a file's path cannot be made absolute.
    pub fn settings(&self) -> Result<Option<Settings>> {
        if self.datastore_endpoint.is_empty() {
            return Ok(None);
        }
        for endpoint in &self.datastore_endpoint {
            if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                bail!("--datastore-endpoint {endpoint:?}: an etcd's address begins with http:// or https://");
            }
        }
        // The daemon runs in another directory.
        let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
        Ok(Some(Settings {
            endpoints: self.datastore_endpoint.clone(),
            prefix: self.datastore_prefix.clone(),
            ca_file: absolute(&self.datastore_cafile)?,
            cert_file: absolute(&self.datastore_certfile)?,
            key_file: absolute(&self.datastore_keyfile)?,
        }))
    }
}

/// What can be done with the datastore.
#[derive(Subcommand)]
pub enum Datastore {
    /// Moves the objects of a stopped cluster
    Migrate(Migrate),
}

/// Options of `datastore migrate`.
#[derive(Args)]
pub struct Migrate {
    /// Where to
    #[arg(long, value_enum)]
    to: Kind,
    #[command(flatten)]
    flags: Flags,
    /// Remove what a migration that was interrupted has left in the etcd
    #[arg(long)]
    overwrite: bool,
}

/// Stores.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// An etcd (--datastore-endpoint)
    Etcd,
    /// The built-in database
    Sled,
}

impl Datastore {
    /// Runs it.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let Self::Migrate(migrate) = self;
        let (paths, config) = (global.paths()?, global.config()?);
        let _lock =
            lock::take(&paths).context("only the objects of a stopped cluster can be moved; 'mini stop' first")?;
        let message = match migrate.to {
            Kind::Etcd => migrate.into_etcd(&paths, config)?,
            Kind::Sled => into_sled(&paths, config)?,
        };
        println!("{message}");
        Ok(ExitCode::SUCCESS)
    }
}

impl Migrate {
    fn into_etcd(&self, paths: &Paths, mut config: Config) -> Result<String> {
        let settings = self.flags.settings()?.context("--datastore-endpoint says which etcd")?;
        if config.datastore.is_some() {
            bail!("the cluster {:?} keeps its objects in an etcd already", config.profile);
        }
        let options = datastore::options(&settings);
        let owner = datastore::owner(paths, &config);
        let objects = super::block_on(async {
            storage::claim_etcd(&options, &owner).await?;
            if self.overwrite {
                storage::clear_etcd(&options).await?;
                storage::claim_etcd(&options, &owner).await?;
            }
            let from = storage::open_sled(&paths.db(), storage::Limits::default())?;
            let copied = storage::into_etcd(&*from, &options).await;
            from.close().await;
            copied.context("nothing has changed for the cluster; once the cause is mended, --overwrite begins anew")
        })?;
        config.datastore = Some(settings);
        // From here on the etcd is the truth; a migration that ends before has changed nothing.
        profile::write(paths, &config)?;
        fs::remove_dir_all(paths.db()).context("removing the old database, which is not used any more")?;
        Ok(format!("The {objects} objects of the cluster \"{}\" are in the etcd", config.profile))
    }
}

fn into_sled(paths: &Paths, mut config: Config) -> Result<String> {
    let Some(settings) = config.datastore.take() else {
        bail!("the cluster {:?} keeps its objects in the built-in database already", config.profile);
    };
    let options = datastore::options(&settings);
    let fresh = paths.db().with_extension("new");
    for leftover in [&fresh, &paths.db()] {
        // Of a migration that was interrupted: the etcd has been the truth all the time.
        if leftover.exists() {
            fs::remove_dir_all(leftover).with_context(|| format!("removing {}", leftover.display()))?;
        }
    }
    let objects = super::block_on(async {
        storage::claim_etcd(&options, &datastore::owner(paths, &config)).await?;
        let from = storage::open_etcd(&options, storage::Limits::default()).await?;
        let copied = storage::into_sled(&*from, &fresh).await;
        from.close().await;
        Ok(copied?)
    })?;
    fs::rename(&fresh, paths.db()).context("putting the new database in its place")?;
    profile::write(paths, &config)?;
    super::block_on(async { Ok(storage::clear_etcd(&options).await?) })
        .context("removing the objects from the etcd")?;
    Ok(format!("The {objects} objects of the cluster \"{}\" are in the built-in database", config.profile))
}
