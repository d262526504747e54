//! `mini version`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::Global;

/// Options of `version`.
#[derive(Args)]
pub struct Version {
    /// Only the number
    #[arg(long)]
    short: bool,
    /// `text` or `json`
    #[arg(short, long, default_value = "text")]
    output: String,
}

impl Version {
    /// Prints the version.
    pub fn run(self, _global: &Global) -> Result<ExitCode> {
        let version = format!("v{}", env!("CARGO_PKG_VERSION"));
        let kubernetes = crate::config::KUBERNETES_VERSION;
        if self.output == "json" {
            println!("{}", serde_json::json!({"miniVersion": version, "kubernetesVersion": kubernetes}));
        } else if self.short {
            println!("{version}");
        } else {
            println!("mini version: {version}\nkubernetes: {kubernetes}");
        }
        Ok(ExitCode::SUCCESS)
    }
}
