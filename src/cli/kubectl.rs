//! `mini kubectl -- …`: the kubectl on the PATH, with this profile's context.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow};
use clap::Args;

use super::Global;

/// Options of `kubectl`.
#[derive(Args)]
pub struct Kubectl {
    /// What kubectl gets
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Kubectl {
    /// Becomes kubectl.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let config = global.config()?;
        let error = Command::new("kubectl").arg(format!("--context={}", config.profile)).args(self.arguments).exec();
        if error.kind() == std::io::ErrorKind::NotFound {
            return Err(anyhow!("there is no kubectl on the PATH; Kubernetes' documentation says how to install it"));
        }
        Err(anyhow!(error).context("running kubectl"))
    }
}
