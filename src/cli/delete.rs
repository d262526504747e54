//! `mini delete`: stops a cluster and removes every file of it.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use super::{Global, kubeconfig, profile, stop};
use crate::cluster::datastore;
use crate::config::Paths;
use crate::storage;

/// Options of `delete`.
#[derive(Args)]
pub struct Delete {
    /// All profiles
    #[arg(long)]
    all: bool,
    /// With `--all`: the whole state directory as well
    #[arg(long, requires = "all")]
    purge: bool,
}

impl Delete {
    /// Runs it.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let profiles: Vec<String> = if self.all {
            profile::all()?.into_iter().map(|c| c.profile).collect()
        } else {
            vec![global.profile.clone()]
        };
        for profile in profiles {
            let global = Global { profile: profile.clone() };
            let paths = global.paths()?;
            if !paths.root().exists() {
                println!("The cluster \"{profile}\" does not exist");
                continue;
            }
            stop::stop(&paths, &profile)?;
            forget_objects(&paths)?;
            // Files in volumes and image layers belong to subordinate uids: only inside the namespace may they go.
            stop::inside(&paths, &profile, "--purge").context("removing files")?;
            fs::remove_dir_all(paths.root()).with_context(|| format!("removing {}", paths.root().display()))?;
            kubeconfig::remove(&kubeconfig::default_path()?, &profile)?;
            println!("The cluster \"{profile}\" is deleted");
        }
        if self.purge {
            let home = crate::config::home().map_err(anyhow::Error::msg)?;
            if home.exists() {
                fs::remove_dir_all(&home).with_context(|| format!("removing {}", home.display()))?;
            }
            println!("{} is removed", home.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes the objects that lie in an etcd. One that is out of reach is no reason to keep the rest.
fn forget_objects(paths: &Paths) -> Result<()> {
    let Some(config) = profile::read(paths)? else { return Ok(()) };
    let Some(settings) = &config.datastore else { return Ok(()) };
    let (options, owner) = (datastore::options(settings), datastore::owner(paths, &config));
    let cleared = super::block_on(async {
        // A profile that was refused there must not take its owner's objects away.
        storage::claim_etcd(&options, &owner).await?;
        Ok(storage::clear_etcd(&options).await?)
    });
    if let Err(error) = cleared {
        eprintln!("mini: the cluster's objects stay in the etcd, below {}: {error:#}", options.prefix());
    }
    Ok(())
}
