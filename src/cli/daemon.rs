//! `mini daemon` (hidden): the cluster's process.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::Global;
use crate::cluster::{self, Job, Report, lock};
use crate::config::{Config, Paths};

/// Options of `daemon`.
#[derive(Args)]
pub struct Daemon {
    /// Report readiness only when the node is Ready and DNS answers
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    wait: bool,
    /// Only stop what a killed daemon left running
    #[arg(long)]
    cleanup: bool,
    /// Only remove the profile's files that belong to subordinate uids
    #[arg(long)]
    purge: bool,
}

/// The processes beside the daemon (shims, the holder) are this binary too, told apart by their first argument.
pub fn hidden_entry() -> Option<ExitCode> {
    crate::node::entry().or_else(crate::builtin_images::entry)
}

impl Daemon {
    /// Runs the cluster until it is stopped.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let paths = global.paths()?;
        let config = global.config()?;
        let report: Report = Box::new(|line| {
            // The reader goes away when it has seen `ready`; later lines are for nobody.
            let mut out = std::io::stdout();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        });
        let result = self.work(&paths, &config, &report);
        if let Err(error) = &result {
            report(json!({"error": format!("{error:#}")}));
        }
        result.map(|()| ExitCode::SUCCESS)
    }

    fn work(self, paths: &Paths, config: &Config, report: &Report) -> Result<()> {
        let _lock = lock::take(paths)?;
        if !self.cleanup && !self.purge {
            // An own session: the terminal's signals are not for the cluster.
            nix::unistd::setsid().ok();
        }
        let job = match (self.cleanup, self.purge) {
            (true, _) => Job::Cleanup,
            (_, true) => Job::Purge,
            _ => Job::Run { wait: self.wait },
        };
        crate::telemetry::init("info", Some(&paths.daemon_log()))?;
        cluster::run(paths, config, &job, report)
    }
}

/// Runs the cluster in this process until Ctrl-C or SIGTERM. `ready` is called when it is.
///
/// # Errors
/// When it cannot start.
pub fn foreground(
    paths: &Paths,
    config: &Config,
    show: impl Fn(&Value) + Send + Sync + 'static,
    ready: impl Fn(&Value) -> Result<()> + Send + Sync + 'static,
) -> Result<ExitCode> {
    let _lock = lock::take(paths)?;
    let report: Report = Box::new(move |line| {
        if line["ready"] == true {
            if let Err(error) = ready(&line["facts"]) {
                eprintln!("mini: {error:#}");
            }
        } else {
            show(&line);
        }
    });
    crate::telemetry::init("warn", None)?;
    cluster::run(paths, config, &Job::Run { wait: true }, &report)?;
    Ok(ExitCode::SUCCESS)
}
