//! `mini node-agent` (hidden): the process of a node beside the first, or of a machine that has joined a cluster.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use super::Global;
use crate::cluster::agent::{self, Place, Settings};
use crate::cluster::{Report, lock};

/// Options of `node-agent`. A bootstrap token may come on standard input.
#[derive(Args)]
pub struct NodeAgent {
    /// The worker of the profile; without it the profile is a machine that has joined
    #[arg(long)]
    node: Option<String>,
}

impl NodeAgent {
    /// Runs the node until it is terminated.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let report: Report = Box::new(|line| {
            // The reader goes away when it has seen `ready`.
            let mut out = std::io::stdout();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        });
        let result = self.work(global, &report);
        if let Err(error) = &result {
            report(json!({"error": format!("{error:#}")}));
        }
        result.map(|()| ExitCode::SUCCESS)
    }

    fn work(self, global: &Global, report: &Report) -> Result<()> {
        let mut settings = self.settings(global)?;
        let _lock = lock::take(&settings.paths)?;
        let mut token = String::new();
        std::io::stdin().take(1024).read_to_string(&mut token).context("reading the token")?;
        settings.token = Some(token.trim().to_owned()).filter(|token| !token.is_empty());
        // A session of its own: it outlives whoever started it.
        nix::unistd::setsid().ok();
        crate::telemetry::init("info", Some(&settings.paths.daemon_log()))?;
        agent::run(&settings, report)
    }

    fn settings(&self, global: &Global) -> Result<Settings> {
        let (config, profile) = (global.config()?, global.paths()?);
        let (node, server, place, paths) = match &self.node {
            Some(name) => {
                let worker = config.worker(name).with_context(|| format!("there is no node {name:?}"))?;
                let paths = profile.worker(&worker.name);
                let place = Place::Worker { profile, first_host_ip: config.host_ip };
                (config.node_name(&worker.name), config.api_address, place, paths)
            }
            None => {
                let joined = config.joined.as_ref().context("this machine has not joined a cluster")?;
                (joined.node.clone(), joined.server, Place::Machine, profile)
            }
        };
        Ok(Settings {
            node,
            profile: config.profile,
            server,
            place,
            paths,
            cpus: config.cpus,
            memory: config.memory,
            image_mirrors: config.image_mirrors,
            token: None,
        })
    }
}
