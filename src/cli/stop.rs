//! `mini stop`: stops pods in order and leaves no process, mount or namespace behind.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use axum::body::Body;
use clap::Args;
use http::Method;

use super::{Global, control};
use crate::cluster::{lock, workers};
use crate::config::Paths;

/// Options of `stop`.
#[derive(Args)]
pub struct Stop {
    /// All profiles
    #[arg(long)]
    all: bool,
}

impl Stop {
    /// Runs it.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let profiles = if self.all {
            super::profile::all()?.into_iter().map(|c| c.profile).collect()
        } else {
            vec![global.config()?.profile]
        };
        for profile in profiles {
            let paths = Global { profile: profile.clone() }.paths()?;
            if stop(&paths, &profile)? {
                println!("The cluster \"{profile}\" is stopped");
            } else {
                println!("The cluster \"{profile}\" was not running");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Stops a cluster; what a killed daemon left running is stopped too. Returns whether a daemon ran.
///
/// # Errors
/// When something could not be stopped.
pub fn stop(paths: &Paths, profile: &str) -> Result<bool> {
    let ran = super::block_on(async {
        let Some(answer) = control::send(paths, Method::POST, "/stop", Body::empty()).await? else { return Ok(false) };
        let ok = answer.status().is_success();
        // The daemon answers and then closes its listeners; a broken answer means that it is gone already.
        let text = http_body_util::BodyExt::collect(answer.into_body()).await.map(|b| b.to_bytes()).unwrap_or_default();
        if !ok {
            bail!("{}", String::from_utf8_lossy(&text));
        }
        Ok(true)
    })?;
    if paths.run().exists() {
        // The daemon holds this lock for as long as it lives.
        lock::wait_for_end(paths)?;
    }
    // A worker whose own process was killed has left its containers, which the daemon does not see.
    if !ran || !workers::found(paths).is_empty() {
        inside(paths, profile, "--cleanup").context("stopping what a killed cluster left running")?;
    }
    Ok(ran)
}

/// Runs the daemon's binary inside the profile's user namespace for one job.
///
/// # Errors
/// With the job's own message.
pub fn inside(paths: &Paths, profile: &str, job: &str) -> Result<()> {
    if !paths.root().exists() {
        return Ok(());
    }
    let mut command = Command::new("/proc/self/exe");
    let output = command
        .args(["daemon", "--profile", profile, job])
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .context("running mini")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}
