//! The nodes of this machine beside the first, as the daemon sees them: an agent process each, which it starts, and which
//! outlives it. An agent that ended by itself is not started again: a node that is lost shall be seen to be lost.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::Mutex;

use super::{STOP_PODS, agent, identity, joining, lock};
use crate::client::Api;
use crate::config::{Config, Paths, SharedSettings};
use crate::env::Env;
use crate::node::namespaces;
use crate::node::runtime::{ShimSettings, cgroups};
use crate::node::tear_down_volumes;

/// How long the token lives by which a new worker gets its certificate.
const TOKEN: Duration = Duration::from_secs(15 * 60);
/// How long an agent may take beyond its pods.
const STOP: Duration = STOP_PODS.saturating_add(Duration::from_secs(10));

/// All of them.
pub struct Workers {
    profile: String,
    paths: Paths,
    shared: SharedSettings,
    /// The cluster's authority, PEM.
    ca: String,
    api: Arc<dyn Api>,
    env: Env,
    /// What the first node's runtime is told.
    shims: ShimSettings,
    /// One start or stop at a time.
    gate: Mutex<()>,
}

/// Whether an agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It was started.
    Now,
    /// It ran already.
    Before,
}

impl Workers {
    /// The workers of a profile; nothing is started yet. `api` is an administrator's.
    pub fn new(config: &Config, paths: &Paths, shims: ShimSettings, ca: &str, api: Arc<dyn Api>, env: Env) -> Self {
        Self {
            profile: config.profile.clone(),
            paths: paths.clone(),
            shared: config.shared(),
            ca: ca.to_owned(),
            api,
            env,
            shims,
            gate: Mutex::default(),
        }
    }

    /// Starts a worker's agent, unless it runs, and returns when its node is up.
    ///
    /// # Errors
    /// With the agent's own words.
    pub async fn start(&self, worker: &str) -> Result<Started> {
        let paths = self.paths.worker(worker);
        if runs(&paths).await? {
            return Ok(Started::Before);
        }
        make_directories(&paths)?;
        let token = self.token(worker, &paths).await?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(paths.daemon_log())?;
        let mut child = Command::new("/proc/self/exe")
            .args(["node-agent", "--profile", &self.profile, "--node", worker])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting the node {worker}"))?;
        // Not as an argument: those are for everybody to see.
        let mut input = child.stdin.take().context("the node's process has no input")?;
        input.write_all(token.as_bytes()).await.context("handing over the token")?;
        drop(input);
        let output = child.stdout.take().context("the node's process has no output")?;
        // Reaps it, whenever it ends.
        let ended = tokio::spawn(async move { child.wait().await });
        let mut lines = BufReader::new(output).lines();
        while let Some(line) = lines.next_line().await? {
            let line: Value = serde_json::from_str(&line).context("an unreadable line from the node's process")?;
            if let Some(error) = line["error"].as_str() {
                bail!("{error}");
            } else if line["ready"] == true {
                return Ok(Started::Now);
            }
        }
        bail!("the process of the node {worker} ended while it started ({})", ended.await??)
    }

    /// What a worker that has no certificate needs to get one: the same token that another machine would need. Empty for one
    /// that has.
    async fn token(&self, worker: &str, paths: &Paths) -> Result<String> {
        let _one = self.gate.lock().await;
        joining::prepare(&*self.api, &self.shared).await.context("preparing for other nodes")?;
        identity::trust(&paths.pki(), &self.ca)?;
        if identity::is_there(&paths.pki(), self.env.now()) {
            return Ok(String::new());
        }
        let description = format!("The certificate of the node {worker} of this machine.");
        let token = joining::make_token(&*self.api, &self.env, Some(TOKEN), &description).await;
        Ok(token.context("making a token for the node")?.to_string())
    }

    /// Stops a worker's agent with its pods, also those that a dead agent has left. Returns whether it ran.
    ///
    /// # Errors
    /// When what a dead agent left cannot be stopped.
    pub async fn stop(&self, worker: &str) -> Result<bool> {
        let _one = self.gate.lock().await;
        let paths = self.paths.worker(worker);
        let agent = lock::holder(&paths);
        if let Some(agent) = &agent {
            agent.end(STOP).await;
        }
        end_pods(&paths, &self.shims).await.context("stopping what the node's process left")?;
        Ok(agent.is_some())
    }

    /// Removes a worker that is stopped, with its files.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn forget(&self, worker: &str, node: &str) -> Result<()> {
        let paths = self.paths.worker(worker);
        namespaces::end_network(&paths).context("letting the node's network go")?;
        cgroups::remove(&agent::group_name(node));
        let removed = tokio::task::spawn_blocking(move || {
            let pods = std::fs::read_dir(paths.pods()).into_iter().flatten().flatten();
            pods.map(|pod| tear_down_volumes(&pod.path())).collect::<io::Result<()>>()?;
            std::fs::remove_dir_all(paths.root())
        });
        match removed.await? {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("removing its files"),
            _ => Ok(()),
        }
    }

    /// What `mini status` says of a worker's process.
    pub fn describe(&self, worker: &str) -> Value {
        let agent = lock::holder(&self.paths.worker(worker));
        json!({"name": worker, "running": agent.is_some(), "pid": agent.map(|process| process.pid())})
    }
}

/// Whether a node's process runs. One that was killed is waited for until its last thread has ended.
async fn runs(paths: &Paths) -> Result<bool> {
    while let Some(process) = lock::holder(paths) {
        if !process.is_dying() {
            return Ok(true);
        }
        process.ended().await.context("waiting for the end of the node's process")?;
    }
    // Held by one that has not said yet who it is: it has only just begun.
    Ok(lock::is_held(paths))
}

/// Ends what runs for the pods of a worker without an agent. `first` is what the first node's runtime is told: this process
/// stays in its own cgroup.
///
/// # Errors
/// Those of the runtime.
pub async fn end_pods(worker: &Paths, first: &ShimSettings) -> Result<()> {
    super::stop_sandboxes(ShimSettings { pods: worker.pods(), ..first.clone() }).await
}

/// Makes a node's directories.
///
/// # Errors
/// Those of the file system.
pub fn make_directories(paths: &Paths) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let log = paths.daemon_log();
    for directory in [paths.root(), &paths.run(), log.parent().unwrap_or(paths.root())] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("making {}", directory.display()))?;
    }
    Ok(())
}

/// The workers that have files in a profile, whatever its settings say.
pub fn found(paths: &Paths) -> Vec<String> {
    let entries = std::fs::read_dir(paths.workers()).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
