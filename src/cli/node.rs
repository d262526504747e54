//! `mini node`: adds, starts, stops, deletes and lists nodes, in minikube's words.

use std::process::ExitCode;

use anyhow::Result;
use axum::body::Body;
use clap::Subcommand;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::join::Join;
use super::{Global, control};
use crate::config::Paths;

/// What can be done with nodes.
#[derive(Subcommand)]
pub enum Node {
    /// Adds a node to the cluster
    Add {},
    /// Deletes a node with its pods and files
    Delete {
        /// Its name, such as m02
        name: String,
    },
    /// Makes this machine a node of another machine's cluster
    Join(Join),
    /// Lists the nodes and their addresses
    List {},
    /// Starts a node that was stopped, or whose process has ended
    Start {
        /// Its name, such as m02
        name: String,
    },
    /// Stops a node with its pods; it stays part of the cluster
    Stop {
        /// Its name, such as m02
        name: String,
    },
    /// Prints the command by which another machine joins this cluster
    Token {
        /// How long the token is valid, such as 30m or 24h; 0: for ever
        #[arg(long, default_value = "24h", value_parser = lifetime)]
        ttl: u64,
    },
}

impl Node {
    /// Runs it.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        if let Self::Join(command) = self {
            return command.run(global);
        }
        let profile = global.config()?.profile;
        let paths = global.paths()?;
        let ask = |method: Method, path: &str| -> Result<Value> {
            let bytes = super::block_on(control::call(&paths, &profile, method, path, Body::empty()))?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        let worker = |answer: &Value| answer["name"].as_str().unwrap_or_default().to_owned();
        match self {
            Self::Add {} => {
                println!("Adding a node to cluster {profile} as [worker]");
                let name = worker(&ask(Method::POST, "/nodes")?);
                println!("Successfully added {name} to {profile}!");
            }
            Self::Delete { name } => {
                println!("Deleting node {name} from cluster {profile}");
                let name = worker(&ask(Method::DELETE, &format!("/nodes/{name}"))?);
                println!("Node {name} was successfully deleted.");
            }
            Self::Join(_) => unreachable!("it was dealt with above"),
            Self::Token { ttl } => print!("{}", token(&ask(Method::POST, &format!("/tokens?ttl={ttl}"))?)),
            Self::List {} => print!("{}", list(global, &paths)?),
            Self::Start { name } => {
                let answer = ask(Method::POST, &format!("/nodes/{name}/start"))?;
                match answer["alreadyRunning"] == true {
                    true => println!("{} is already running", worker(&answer)),
                    false => println!("Successfully started node {}!", worker(&answer)),
                }
            }
            Self::Stop { name } => {
                let answer = ask(Method::POST, &format!("/nodes/{name}/stop"))?;
                println!("Successfully stopped node {}", worker(&answer));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `24h`, `30m`, `90s` and combinations, in seconds.
fn lifetime(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    let duration: jiff::SignedDuration = text.parse().map_err(|_| "a duration such as 30m or 24h".to_owned())?;
    match u64::try_from(duration.as_secs()) {
        Ok(seconds) if seconds > 0 => Ok(seconds),
        _ => Err("a duration such as 30m or 24h, or 0 for a token that is valid for ever".to_owned()),
    }
}

/// The command that joins, as kubeadm prints it.
fn token(answer: &Value) -> String {
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    let (token, hash) = (text("token"), text("caCertHash"));
    let Some(server) = answer["servers"][0].as_str() else {
        return format!(
            "The API server listens on this machine only: 'mini stop', then 'mini start --listen-address ADDRESS', \
             before other machines can join\ntoken: {token}\nhash: {hash}\n"
        );
    };
    format!("mini node join {server} --token {token} --ca-cert-hash {hash}\n")
}

/// A line for each node: name and `InternalIP`.
fn list(global: &Global, paths: &Paths) -> Result<String> {
    let config = global.config()?;
    let status = super::block_on(status(paths))?.unwrap_or_default();
    let mut lines = format!("{}\t{}\n", config.profile, config.node_ip);
    for worker in &config.workers {
        let facts = status["workers"].as_array().into_iter().flatten().find(|w| w["name"] == worker.name.as_str());
        let ip = facts.and_then(|facts| facts["internalIP"].as_str()).unwrap_or_default();
        lines.push_str(&format!("{}\t{ip}\n", config.node_name(&worker.name)));
    }
    Ok(lines)
}

/// What the daemon says of the cluster; `None` when it does not run.
///
/// # Errors
/// When its answer cannot be read.
pub async fn status(paths: &Paths) -> Result<Option<Value>> {
    let Some(answer) = control::send(paths, Method::GET, "/status", Body::empty()).await? else { return Ok(None) };
    Ok(Some(serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_durations() {
        assert_eq!((lifetime("24h"), lifetime("1h30m"), lifetime("0")), (Ok(86_400), Ok(5_400), Ok(0)));
        assert!(lifetime("soon").is_err() && lifetime("-1h").is_err() && lifetime("0s").is_err());
    }

    #[test]
    fn the_command_is_complete_where_others_can_reach_the_cluster() {
        let mut answer = serde_json::json!({"token": "a.b", "caCertHash": "sha256:00", "servers": ["192.0.2.1:8443"]});
        assert_eq!(token(&answer), "mini node join 192.0.2.1:8443 --token a.b --ca-cert-hash sha256:00\n");
        answer["servers"] = serde_json::json!([]);
        assert!(token(&answer).contains("--listen-address"));
    }
}
