//! `mini update-context`: writes the kubeconfig entry again.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use super::{Global, kubeconfig};
use crate::client::https::Access;
use crate::config::{Config, Paths};

/// Options of `update-context`.
#[derive(Args)]
pub struct UpdateContext {}

impl UpdateContext {
    /// Writes the entry and makes it the current one.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let config = global.config()?;
        let path = kubeconfig::default_path()?;
        kubeconfig::merge(&path, &config.profile, &access(&global.paths()?, &config)?, true)?;
        println!("\"{}\" context has been updated to point to {}", config.profile, config.api_address);
        Ok(ExitCode::SUCCESS)
    }
}

/// The administrator's access to a profile's API server.
///
/// # Errors
/// When the profile has no certificates yet.
pub fn access(paths: &Paths, config: &Config) -> Result<Access> {
    let read = |name: &str| {
        let path = paths.pki().join(name);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    Ok(Access {
        server: format!("https://{}", config.api_address),
        ca_pem: read("ca.crt")?,
        cert_pem: read("admin.crt")?,
        key_pem: read("admin.key")?,
        token: String::new(),
    })
}
