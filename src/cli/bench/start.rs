//! Starting a cluster, in a profile that is deleted again.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::samples::{Samples, duration};
use super::{Context, Global, Row};

const ROUNDS: usize = 3;

pub(super) async fn run(context: &Context) -> Result<Vec<Row>> {
    let mut profile = Profile::new(&context.global)?;
    let (mut cold, mut again) = (Samples::default(), Samples::default());
    let result = (|| -> Result<()> {
        for _ in 0..ROUNDS {
            cold.push(profile.mini("start", &["--keep-context"])?);
            profile.mini("stop", &[])?;
            again.push(profile.mini("start", &["--keep-context"])?);
            profile.mini("delete", &[])?;
        }
        Ok(())
    })();
    if result.is_err() {
        // What is left of it; the first error counts.
        let _ = profile.mini("delete", &[]);
    }
    result?;
    let peer = "minikube 51 s, kind 33 s, k3d 20 s; etcd + apiserver alone 3.6 s";
    Ok(vec![
        Row::new("start of a new cluster, to a Ready node", duration(cold.percentile(50)), "under 1 s", peer),
        Row::new("start of a stopped cluster", duration(again.percentile(50)), "under 1 s", ""),
    ])
}

/// A profile of our own. Its kubeconfig entry goes elsewhere, too.
pub(super) struct Profile {
    name: String,
    kubeconfig: std::path::PathBuf,
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

impl Profile {
    pub fn new(global: &Global) -> Result<Self> {
        let paths = global.paths()?;
        let home = paths.root().ancestors().nth(2).context("a profile lies in the home")?;
        let name = format!("bench-{}", std::process::id());
        Ok(Self { kubeconfig: home.join(format!("{name}.kubeconfig")), name })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs one of our own subcommands; returns how long it took.
    pub fn mini(&mut self, subcommand: &str, options: &[&str]) -> Result<Duration> {
        let began = Instant::now();
        let mut command = Command::new("/proc/self/exe");
        command.arg(subcommand).args(options).args(["--profile", &self.name]).env("KUBECONFIG", &self.kubeconfig);
        let output = command.stdin(Stdio::null()).output().context("running mini")?;
        if !output.status.success() {
            bail!("mini {subcommand}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(began.elapsed())
    }
}
