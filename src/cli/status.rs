//! `mini status`: whether a cluster runs; the exit code says it too, as minikube's does.

use std::process::ExitCode;

use anyhow::Result;
use axum::body::Body;
use clap::Args;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{Global, control, kubeconfig, profile};

/// The exit code for a stopped cluster: the bits for host, cluster and Kubernetes.
const STOPPED: u8 = 7;
/// The exit code for a profile that does not exist.
const MISSING: u8 = 85;
/// The exit code when Kubernetes runs but the node is not Ready.
const NOT_READY: u8 = 2;

/// Options of `status`.
#[derive(Args)]
pub struct Status {
    /// `text` or `json`
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

impl Status {
    /// Prints the status.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let paths = global.paths()?;
        let Some(config) = profile::read(&paths)? else {
            eprintln!("Profile \"{0}\" not found. Run \"mini start -p {0}\" to make it.", global.profile);
            return Ok(ExitCode::from(MISSING));
        };
        let answer = super::block_on(async {
            let Some(answer) = control::send(&paths, Method::GET, "/status", Body::empty()).await? else {
                return Ok(None);
            };
            Ok(Some(serde_json::from_slice::<Value>(&answer.into_body().collect().await?.to_bytes())?))
        })?;
        let kubeconfig = if kubeconfig::has_context(&kubeconfig::default_path()?, &config.profile) {
            "Configured"
        } else {
            "Misconfigured"
        };
        if let Some(joined) = &config.joined {
            return Ok(machine(&joined.node, answer.as_ref(), self.output == "json"));
        }
        let word = |running: bool| if running { "Running" } else { "Stopped" };
        let running = answer.is_some();
        let ready = answer.as_ref().is_some_and(|a| a["nodeReady"] == true);
        let workers: Vec<(String, bool, bool)> = config
            .workers
            .iter()
            .map(|worker| {
                let all = answer.iter().flat_map(|a| a["workers"].as_array().into_iter().flatten());
                let facts = all.filter(|facts| facts["name"] == worker.name.as_str()).collect::<Vec<_>>();
                let is = |field: &str| facts.iter().any(|facts| facts[field] == true);
                (config.node_name(&worker.name), is("running"), is("running") && is("ready"))
            })
            .collect();
        if self.output == "json" {
            let mut object = json!({
                "Name": config.profile, "Host": word(running), "Kubelet": word(ready), "APIServer": word(running),
                "Kubeconfig": kubeconfig, "Worker": false,
            });
            object["Details"] = answer.unwrap_or_default();
            // As minikube: a list where there are several.
            let others = workers.iter().map(|(name, running, ready)| {
                json!({"Name": name, "Host": word(*running), "Kubelet": word(*ready), "APIServer": "Irrelevant",
                    "Kubeconfig": "Irrelevant", "Worker": true})
            });
            match others.collect::<Vec<_>>() {
                others if others.is_empty() => println!("{object}"),
                others => println!("{}", Value::from([vec![object], others].concat())),
            }
        } else {
            println!(
                "{}\ntype: Control Plane\nhost: {}\nkubelet: {}\napiserver: {}\nkubeconfig: {kubeconfig}",
                config.profile,
                word(running),
                word(ready),
                word(running)
            );
            for (name, value) in answer.as_ref().and_then(|a| a["details"].as_object()).into_iter().flatten() {
                println!("{name}: {}", value.as_str().unwrap_or_default());
            }
            println!();
            for (name, running, ready) in &workers {
                println!("{name}\ntype: Worker\nhost: {}\nkubelet: {}\n", word(*running), word(*ready));
            }
        }
        let ready = ready && workers.iter().all(|(_, _, ready)| *ready);
        Ok(match (running, ready) {
            (true, true) => ExitCode::SUCCESS,
            (true, false) => ExitCode::from(NOT_READY),
            (false, _) => ExitCode::from(STOPPED),
        })
    }
}

/// The status of a machine that has joined another's cluster.
fn machine(node: &str, answer: Option<&Value>, as_json: bool) -> ExitCode {
    let word = if answer.is_some() { "Running" } else { "Stopped" };
    if as_json {
        let mut object = json!({"Name": node, "Host": word, "Kubelet": word, "APIServer": "Irrelevant",
            "Kubeconfig": "Irrelevant", "Worker": true});
        object["Details"] = answer.cloned().unwrap_or_default();
        println!("{object}");
    } else {
        println!("{node}\ntype: Worker\nhost: {word}\nkubelet: {word}\n");
    }
    if answer.is_some() { ExitCode::SUCCESS } else { ExitCode::from(STOPPED) }
}
