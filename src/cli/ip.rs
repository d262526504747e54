//! `mini ip`: the address at which NodePorts answer.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use super::{Global, node};

/// Options of `ip`.
#[derive(Args)]
pub struct Ip {
    /// The node, such as m02 (the first when absent)
    #[arg(short, long)]
    node: Option<String>,
}

impl Ip {
    /// Prints the address.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let config = global.config()?;
        let Some(name) = self.node.filter(|name| *name != config.profile) else {
            println!("{}", config.host_ip);
            return Ok(ExitCode::SUCCESS);
        };
        let worker = config.worker(&name).with_context(|| format!("there is no node {name:?}"))?;
        let status = super::block_on(node::status(&global.paths()?))?.context("the cluster is not running")?;
        let mut all = status["workers"].as_array().into_iter().flatten();
        let facts = all.find(|facts| facts["name"] == worker.name.as_str());
        let address = facts.and_then(|facts| facts["externalIP"].as_str());
        println!("{}", address.with_context(|| format!("the node {name} has no address yet"))?);
        Ok(ExitCode::SUCCESS)
    }
}
