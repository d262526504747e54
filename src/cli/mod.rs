//! The command line: subcommands in minikube's words, one file each.

mod addons;
mod bench;
mod completion;
mod control;
mod daemon;
mod dashboard;
mod datastore;
mod delete;
mod doctor;
mod image;
mod ip;
mod join;
mod kubeconfig;
mod kubectl;
mod logs;
mod node;
mod node_agent;
mod profile;
mod progress;
mod service;
mod ssh;
mod start;
mod status;
mod stop;
mod table;
mod update_context;
mod version;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, DEFAULT_PROFILE, Paths};

/// A whole Kubernetes cluster in one binary: rootless, offline, ready in about a second.
#[derive(Parser)]
#[command(name = "mini", version, max_term_width = 110, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every subcommand.
#[derive(Args, Clone)]
pub struct Global {
    /// The cluster (profile) that is meant
    #[arg(short, long, global = true, default_value = DEFAULT_PROFILE, env = "MINI_PROFILE", value_parser = profile_name)]
    pub profile: String,
}

impl Global {
    /// The profile's files.
    ///
    /// # Errors
    /// When there is no home directory.
    pub fn paths(&self) -> Result<Paths> {
        Ok(Paths::new(&crate::config::home().map_err(anyhow::Error::msg)?, &self.profile))
    }

    /// The profile's settings.
    ///
    /// # Errors
    /// When the profile does not exist or its `config.json` is damaged.
    pub fn config(&self) -> Result<Config> {
        match profile::read(&self.paths()?)? {
            Some(config) => Ok(config),
            None => bail!("profile {:?} not found; 'mini start -p {0}' makes it", self.profile),
        }
    }
}

/// Profile names are node names and directory names: RFC 1123 labels.
fn profile_name(name: &str) -> Result<String, String> {
    let fits = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if name.is_empty() || name.len() > 63 || !fits || name.starts_with('-') || name.ends_with('-') {
        return Err("a profile name has lower case letters, digits and '-', and at most 63 of them".into());
    }
    Ok(name.to_owned())
}

#[derive(Subcommand)]
enum Command {
    /// Starts a cluster, or brings a stopped one back
    Start(start::Start),
    /// Stops a cluster and keeps everything that it stores
    Stop(stop::Stop),
    /// Deletes a cluster with everything that it stores
    Delete(delete::Delete),
    /// Shows whether a cluster runs (also by the exit code)
    Status(status::Status),
    /// Prints or opens the address of a Service
    Service(service::Service),
    /// Opens the dashboard
    Dashboard(dashboard::Dashboard),
    /// Lists, enables and disables addons
    #[command(subcommand)]
    Addons(addons::Addons),
    /// Lists, loads, pulls and removes images
    #[command(subcommand)]
    Image(image::Image),
    /// Moves a cluster's objects between the built-in database and an etcd
    #[command(subcommand)]
    Datastore(datastore::Datastore),
    /// Runs a shell, or a command, at a node
    Ssh(ssh::Ssh),
    /// Shows the cluster's own log
    Logs(logs::Logs),
    /// Prints the address at which NodePorts answer
    Ip(ip::Ip),
    /// Adds, starts, stops, deletes and lists nodes
    #[command(subcommand)]
    Node(node::Node),
    /// Lists profiles
    #[command(subcommand)]
    Profile(profile::Profile),
    /// Writes the kubeconfig entry of the cluster again
    UpdateContext(update_context::UpdateContext),
    /// Runs the kubectl on the PATH against this cluster
    Kubectl(kubectl::Kubectl),
    /// Checks what this machine offers to a cluster, and how to mend what is missing
    Doctor(doctor::Doctor),
    /// Prints the version
    Version(version::Version),
    /// Prints a completion script for a shell
    Completion(completion::Completion),
    /// Measures what is promised: start, idle cost, API and pod speed
    Bench(bench::Bench),
    /// The cluster's process
    #[command(hide = true)]
    Daemon(daemon::Daemon),
    /// The process of a node beside the first
    #[command(hide = true)]
    NodeAgent(node_agent::NodeAgent),
}

/// Parses the command line and runs one subcommand.
pub fn main() -> ExitCode {
    if let Some(code) = daemon::hidden_entry().or_else(crate::builtin_images::entry) {
        return code;
    }
    let cli = Cli::parse();
    let global = &cli.global;
    let result = match cli.command {
        Command::Start(command) => command.run(global),
        Command::Stop(command) => command.run(global),
        Command::Delete(command) => command.run(global),
        Command::Status(command) => command.run(global),
        Command::Service(command) => command.run(global),
        Command::Dashboard(command) => command.run(global),
        Command::Addons(command) => command.run(global),
        Command::Image(command) => command.run(global),
        Command::Datastore(command) => command.run(global),
        Command::Ssh(command) => command.run(global),
        Command::Logs(command) => command.run(global),
        Command::Ip(command) => command.run(global),
        Command::Node(command) => command.run(global),
        Command::Profile(command) => command.run(global),
        Command::UpdateContext(command) => command.run(global),
        Command::Kubectl(command) => command.run(global),
        Command::Doctor(command) => command.run(global),
        Command::Version(command) => command.run(global),
        Command::Completion(command) => command.run(global),
        Command::Bench(command) => command.run(global),
        Command::Daemon(command) => command.run(global),
        Command::NodeAgent(command) => command.run(global),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mini: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A runtime for subcommands that only ask the cluster something.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
