//! `mini start`: makes or brings back a cluster and returns when its node is Ready and DNS answers.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use axum::body::Body;
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::progress::Progress;
use super::{Global, control, daemon, datastore, join, kubeconfig, profile, update_context};
use crate::api::quantity::Quantity;
use crate::apiserver::admission::read_configuration;
use crate::apiserver::audit::read_policy;
use crate::cluster::workers;
use crate::config::{Config, KUBERNETES_VERSION, Paths, Worker};

/// Options of `start`. Those that describe the cluster are remembered: a later start without them keeps them.
#[derive(Args)]
pub struct Start {
    /// Addons to enable beside those that are on by default
    #[arg(long, value_delimiter = ',')]
    addons: Vec<String>,
    /// Wait until the node is Ready and DNS answers
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: bool,
    /// Stay in the foreground; Ctrl-C stops the cluster
    #[arg(long)]
    foreground: bool,
    /// How many nodes the cluster has ('mini node add' adds more)
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=250))]
    nodes: u32,
    /// CPUs that each node offers (all of the machine's when absent)
    #[arg(long)]
    cpus: Option<u32>,
    /// Memory that each node offers, such as 2g or 2048Mi (all of the machine's when absent)
    #[arg(long, value_parser = memory)]
    memory: Option<u64>,
    /// A registry asked instead of the one that images name: URL for all, or registry=URL (may be repeated)
    #[arg(long)]
    image_mirror: Vec<String>,
    /// An address of this machine on which the API server listens beside 127.0.0.1, for nodes on other machines (0.0.0.0: all)
    #[arg(long)]
    listen_address: Option<IpAddr>,
    /// The port of the API server on 127.0.0.1 (the first free one from 8443 when absent)
    #[arg(long)]
    apiserver_port: Option<u16>,
    /// An AdmissionConfiguration for the API server; an empty text: none
    #[arg(long, value_name = "FILE")]
    admission_control_config_file: Option<PathBuf>,
    /// Features to switch on or off, such as AppArmor=false
    #[arg(long, value_delimiter = ',', value_name = "NAME=BOOL")]
    feature_gates: Vec<String>,
    #[command(flatten)]
    datastore: datastore::Flags,
    /// An audit policy (audit.k8s.io/v1 Policy) for the API server; an empty text: none
    #[arg(long, value_name = "FILE")]
    audit_policy_file: Option<PathBuf>,
    /// The file that the audit log is added to (audit.log beside the daemon's log when absent)
    #[arg(long, value_name = "FILE")]
    audit_log_path: Option<PathBuf>,
    /// The size in MiB at which the audit log is put aside (100)
    #[arg(long, value_name = "MIB")]
    audit_log_maxsize: Option<u64>,
    /// How many audit logs that were put aside are kept; 0: all (10)
    #[arg(long, value_name = "NUMBER")]
    audit_log_maxbackup: Option<usize>,
    /// How many days audit logs that were put aside are kept; 0: for ever (0)
    #[arg(long, value_name = "DAYS")]
    audit_log_maxage: Option<u32>,
    /// Keep the kubeconfig's current context
    #[arg(long)]
    keep_context: bool,
    /// `text` or `json`
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// minikube's words.
const OTHER_NUMBER: &str = "You cannot change the number of nodes for an existing cluster. Please use 'mini node add' to \
                            add nodes to an existing cluster.";

/// `2g`, `512m` and `1024k` as minikube takes them (binary), plain numbers are megabytes; or a Kubernetes quantity.
///
/// # Errors
/// When it is no such amount, or too little for a node.
pub fn memory(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches('b');
    let (number, factor) = match digits.as_bytes().last() {
        Some(b'g') => (&digits[..digits.len() - 1], 1 << 30),
        Some(b'm') => (&digits[..digits.len() - 1], 1 << 20),
        Some(b'k') => (&digits[..digits.len() - 1], 1 << 10),
        _ => (digits, 1 << 20),
    };
    let bytes = match number.parse::<u64>() {
        Ok(number) => number.checked_mul(factor),
        Err(_) => text.parse::<Quantity>().ok().and_then(|q| u64::try_from(q.value()).ok()),
    };
    match bytes {
        Some(bytes) if bytes >= 64 << 20 => Ok(bytes),
        Some(_) => Err("a node needs at least 64 MiB".into()),
        None => Err("not an amount of memory such as 2g, 2048m or 2Gi".into()),
    }
}

impl Start {
    /// Runs it.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let began = Instant::now();
        let paths = global.paths()?;
        let progress = Progress::new(self.output == "json");
        for name in &self.addons {
            if !crate::addons::ALL.iter().any(|a| a.name == name) {
                bail!(
                    "addon '{name}' is not a valid addon packaged with mini; 'mini addons list' shows those that are"
                );
            }
        }
        if let Some(answer) = super::block_on(control::send(&paths, Method::GET, "/status", Body::empty()))? {
            drop(answer);
            return self.already_running(global, &paths, &progress);
        }
        if let Some(config) = profile::read(&paths)?.filter(|config| config.joined.is_some()) {
            return join::start(&paths, &config, "", &progress).map(|()| ExitCode::SUCCESS);
        }
        workers::make_directories(&paths)?;
        let config = self.settings(global, &paths, &progress)?;
        profile::write(&paths, &config)?;
        let finish = {
            let (paths, config, keep) = (paths.clone(), config.clone(), self.keep_context);
            let json = self.output == "json";
            move |facts: &Value| -> Result<()> {
                let path = kubeconfig::default_path()?;
                kubeconfig::merge(&path, &config.profile, &update_context::access(&paths, &config)?, !keep).context(
                    "the cluster runs, but its kubeconfig entry could not be written; 'mini update-context' tries again",
                )?;
                let seconds = began.elapsed().as_secs_f64();
                let server = format!("https://{}", config.api_address);
                let message = format!(
                    "Kubernetes {KUBERNETES_VERSION} is ready after {seconds:.2} s: kubectl uses the \"{}\" cluster at {server}",
                    config.profile
                );
                let facts = json!({"seconds": seconds, "profile": config.profile, "server": server, "node": facts});
                Progress::last(json, &message, facts);
                Ok(())
            }
        };
        if self.foreground {
            return daemon::foreground(&paths, &config, move |line| show(&progress, line), finish);
        }
        let facts = launch(&paths, &config, self.wait, &progress)?;
        progress.clear();
        finish(&facts)?;
        Ok(ExitCode::SUCCESS)
    }

    fn already_running(&self, global: &Global, paths: &Paths, progress: &Progress) -> Result<ExitCode> {
        let config = global.config()?;
        for name in &self.addons {
            super::block_on(control::call(
                paths,
                &global.profile,
                Method::PUT,
                &format!("/addons/{name}"),
                Body::empty(),
            ))?;
        }
        let access = update_context::access(paths, &config)?;
        kubeconfig::merge(&kubeconfig::default_path()?, &config.profile, &access, !self.keep_context)?;
        if self.nodes > 1 && self.nodes as usize != config.workers.len() + 1 {
            progress.warn(OTHER_NUMBER);
        }
        for (given, option) in [
            (self.listen_address.is_some(), "--listen-address"),
            (self.cpus.is_some(), "--cpus"),
            (self.memory.is_some(), "--memory"),
            (!self.image_mirror.is_empty(), "--image-mirror"),
            (self.admission_control_config_file.is_some(), "--admission-control-config-file"),
            (!self.feature_gates.is_empty(), "--feature-gates"),
            (!self.datastore.datastore_endpoint.is_empty(), "--datastore-endpoint"),
            (self.audit_policy_file.is_some(), "--audit-policy-file"),
            (self.audit_log_path.is_some(), "--audit-log-path"),
            (self.audit_log_maxsize.is_some(), "--audit-log-maxsize"),
            (self.audit_log_maxbackup.is_some(), "--audit-log-maxbackup"),
            (self.audit_log_maxage.is_some(), "--audit-log-maxage"),
        ] {
            if given {
                progress.warn(&format!("{option} takes effect at the next start: 'mini stop' first"));
            }
        }
        progress.clear();
        let message = format!("The cluster \"{}\" is already running", config.profile);
        Progress::last(self.output == "json", &message, json!({"alreadyRunning": true}));
        Ok(ExitCode::SUCCESS)
    }

    /// The audit log: with a policy there is one.
    fn audit(&self, config: &mut Config, paths: &Paths) -> Result<()> {
        match &self.audit_policy_file {
            None => {}
            Some(file) if file.as_os_str().is_empty() => (config.audit_policy, config.audit_log) = (Value::Null, None),
            Some(file) => {
                config.audit_policy = read_policy(file).map_err(|why| anyhow!("--audit-policy-file: {why}"))?;
                config.audit_log.get_or_insert_with(|| paths.daemon_log().with_file_name("audit.log"));
            }
        }
        if let Some(path) = &self.audit_log_path {
            if config.audit_policy.is_null() {
                bail!("--audit-log-path needs --audit-policy-file: without a policy nothing is told");
            }
            config.audit_log = Some(std::path::absolute(path)?);
        }
        let rotation = &mut config.audit_rotation;
        rotation.max_size = self.audit_log_maxsize.unwrap_or(rotation.max_size);
        rotation.max_backup = self.audit_log_maxbackup.unwrap_or(rotation.max_backup);
        rotation.max_age = self.audit_log_maxage.unwrap_or(rotation.max_age);
        Ok(())
    }

    fn settings(&self, global: &Global, paths: &Paths, progress: &Progress) -> Result<Config> {
        let datastore = self.datastore.settings()?;
        let mut config = match profile::read(paths)? {
            Some(config) if datastore.is_some() && datastore != config.datastore => bail!(
                "the cluster {:?} keeps its objects elsewhere: 'mini stop' and 'mini datastore migrate --to etcd' move them",
                config.profile
            ),
            Some(mut config) => {
                if self.nodes > 1 && self.nodes as usize != config.workers.len() + 1 {
                    progress.warn(OTHER_NUMBER);
                }
                // A start of the cluster starts all of its nodes.
                config.workers.iter_mut().for_each(|worker| worker.running = true);
                config
            }
            None => {
                let mut config = Config { datastore, ..profile::allocate(&global.profile, self.apiserver_port)? };
                for _ in 1..self.nodes {
                    config.workers.push(Worker { name: config.next_worker(), running: true });
                }
                config
            }
        };
        if let Some(port) = self.apiserver_port {
            config.api_address.set_port(port);
        }
        config.listen_address = self.listen_address.or(config.listen_address);
        config.cpus = self.cpus.or(config.cpus);
        config.memory = self.memory.or(config.memory);
        if !self.image_mirror.is_empty() {
            config.image_mirrors = self.image_mirror.clone();
        }
        for pair in &self.feature_gates {
            config.feature_gates.set(pair).map_err(|why| anyhow!("--feature-gates: {why}"))?;
        }
        match &self.admission_control_config_file {
            None => {}
            Some(file) if file.as_os_str().is_empty() => config.admission_configuration = Value::Null,
            Some(file) => {
                config.admission_configuration =
                    read_configuration(file).map_err(|why| anyhow!("--admission-control-config-file: {why}"))?;
            }
        }
        self.audit(&mut config, paths)?;
        for name in &self.addons {
            if !config.addons.contains(name) {
                config.addons.push(name.clone());
            }
        }
        Ok(config)
    }
}

/// Starts the daemon and shows its steps until it is ready.
fn launch(paths: &Paths, config: &Config, wait: bool, progress: &Progress) -> Result<Value> {
    let arguments = ["daemon", "--profile", &config.profile, &format!("--wait={wait}")];
    spawn(paths, &config.profile, &arguments, "", progress)
}

/// Starts this program as a process that stays, and shows its steps until its last line says that it is ready, or what went
/// wrong. `input` is for nobody else to see.
///
/// # Errors
/// With the process' own words.
pub fn spawn(paths: &Paths, profile: &str, arguments: &[&str], input: &str, progress: &Progress) -> Result<Value> {
    let log = fs::OpenOptions::new().create(true).append(true).open(paths.daemon_log())?;
    let mut command = Command::new("/proc/self/exe");
    // It outlives the directory and the terminal from which it was started.
    command.args(arguments).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().context("starting the cluster's process")?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has ended already says why in its output.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.stdout.take().context("the cluster's process has no output")?;
    for line in BufReader::new(output).lines() {
        let line: Value = serde_json::from_str(&line?).context("an unreadable line from the cluster's process")?;
        if let Some(error) = line["error"].as_str() {
            child.wait()?;
            bail!("{error}");
        } else if line["ready"].as_bool() == Some(true) {
            return Ok(line["facts"].clone());
        } else {
            show(progress, &line);
        }
    }
    let status = child.wait()?;
    bail!("the cluster's process ended while it started ({status}); 'mini logs -p {profile}' shows its log")
}

/// Shows a step or a warning.
fn show(progress: &Progress, line: &Value) {
    if let Some(step) = line["step"].as_str() {
        progress.step(step, line["milliseconds"].as_u64().unwrap_or_default());
    } else if let Some(warning) = line["warning"].as_str() {
        progress.warn(warning);
    }
}

#[cfg(test)]
mod tests {
    use super::memory;

    #[test]
    fn memory_takes_minikubes_and_kubernetes_words() {
        assert_eq!(memory("2g"), Ok(2 << 30));
        assert_eq!(memory("2048"), Ok(2 << 30));
        assert_eq!(memory("512mb"), Ok(512 << 20));
        assert_eq!(memory("1Gi"), Ok(1 << 30));
        assert!(
            memory("1k").is_err()
                && memory("x").is_err()
                && memory("").is_err()
                && memory("99999999999999999g").is_err()
        );
    }
}
