//! `mini node join`: makes this machine a node of another machine's cluster.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::progress::Progress;
use super::start::{memory, spawn};
use super::{Global, profile};
use crate::api::meta::validate_subdomain;
use crate::cluster::{discovery, identity, workers};
use crate::config::{Config, Joined, Paths};

/// The API server's usual port.
const PORT: u16 = 8443;

/// Options of `node join`.
#[derive(Args)]
pub struct Join {
    /// Where the cluster's API server is reached, such as 192.0.2.1:8443
    #[arg(value_parser = address)]
    address: SocketAddr,
    /// The token of 'mini node token'
    #[arg(long)]
    token: String,
    /// The hash of the public key of the cluster's authority, as 'mini node token' prints it (may be repeated)
    #[arg(long, alias = "discovery-token-ca-cert-hash", required = true)]
    ca_cert_hash: Vec<String>,
    /// The name of the node (the machine's name when absent)
    #[arg(long, alias = "node-name")]
    name: Option<String>,
    /// CPUs that the node offers (all of the machine's when absent)
    #[arg(long)]
    cpus: Option<u32>,
    /// Memory that the node offers, such as 2g or 2048Mi (all of the machine's when absent)
    #[arg(long, value_parser = memory)]
    memory: Option<u64>,
    /// A registry asked instead of the one that images name: URL for all, or registry=URL (may be repeated)
    #[arg(long)]
    image_mirror: Vec<String>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let bare = || text.parse().map(|ip| SocketAddr::new(ip, PORT));
    text.parse().or_else(|_| bare()).map_err(|_| "an IP address, with a port where it is not 8443".to_owned())
}

impl Join {
    /// Runs it.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let paths = global.paths()?;
        if paths.config().exists() {
            bail!("the profile {0:?} exists: 'mini delete -p {0}' removes it, and '-p' takes another", global.profile);
        }
        let node = match self.name {
            Some(name) => name,
            None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
        };
        if let Some(message) = validate_subdomain(&node).first() {
            bail!("{node:?} is no name for a node: {message}; '--name' gives another");
        }
        let ca = super::block_on(discovery::authority(self.address, &self.token, &self.ca_cert_hash))
            .with_context(|| format!("discovering the cluster at {}", self.address))?;
        let config = Config {
            cpus: self.cpus,
            memory: self.memory,
            image_mirrors: self.image_mirror,
            addons: Vec::new(),
            joined: Some(Joined { server: self.address, node }),
            ..Config::new(&global.profile)
        };
        workers::make_directories(&paths)?;
        let joined = profile::write(&paths, &config)
            .and_then(|()| identity::trust(&paths.pki(), &ca))
            .and_then(|()| start(&paths, &config, &self.token, &Progress::new(false)));
        if joined.is_err() && !identity::is_there(&paths.pki(), jiff::Timestamp::now()) {
            // The cluster did not take this machine: nothing happened.
            let _ = std::fs::remove_file(paths.config());
            let _ = std::fs::remove_dir_all(paths.pki());
        }
        joined.map(|()| ExitCode::SUCCESS)
    }
}

/// Starts the node that this machine is. `token` is for one that has no certificate yet.
///
/// # Errors
/// With the process' own words.
pub fn start(paths: &Paths, config: &Config, token: &str, progress: &Progress) -> Result<()> {
    let joined = config.joined.as_ref().context("this machine has not joined a cluster")?;
    let facts = spawn(paths, &config.profile, &["node-agent", "--profile", &config.profile], token, progress)?;
    progress.clear();
    let message = format!("The node {:?} is part of the cluster at {}", joined.node, joined.server);
    let facts = json!({"node": joined.node, "server": joined.server, "facts": facts});
    Progress::last(matches!(progress, Progress::Json), &message, facts);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn the_port_may_be_left_out() {
        assert_eq!(address("192.0.2.1").map(|a| a.to_string()).as_deref(), Ok("192.0.2.1:8443"));
        assert_eq!(address("192.0.2.1:443").map(|a| a.to_string()).as_deref(), Ok("192.0.2.1:443"));
        assert!(address("example.com").is_err());
    }
}
