//! `mini ssh`: a shell, or a command, at a node, in minikube's words. Nothing is logged in to: the process enters the node's user,
//! mount and network namespaces, where addresses of pods, Services and nodes are reached as at a node of any cluster. Its files are
//! those of the machine.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::Global;
use crate::node::namespaces;

/// Options of `ssh`.
#[derive(Args)]
pub struct Ssh {
    /// The node to be at (its name, such as m02); the first one by default
    #[arg(short, long)]
    node: Option<String>,
    /// A command for the shell; none: an interactive shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Ssh {
    /// Becomes the shell. Returns only when that fails.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let (config, paths) = (global.config()?, global.paths()?);
        let worker = match self.node.as_deref() {
            None => None,
            Some(name) if name == config.profile => None,
            Some(name) => match config.worker(name) {
                Some(worker) => Some(paths.worker(&worker.name)),
                None => bail!("node {name} does not exist in cluster {}", config.profile),
            },
        };
        namespaces::enter_node(&paths, worker.as_ref())
            .with_context(|| format!("'mini start -p {}' starts the cluster", config.profile))?;
        let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
        let mut command = Command::new(&shell);
        if !self.command.is_empty() {
            command.arg("-c").arg(self.command.join(" "));
        }
        // The user of the namespace is root; tools that look at HOME keep the caller's files.
        Err(command.exec()).with_context(|| format!("running {}", shell.display()))
    }
}
