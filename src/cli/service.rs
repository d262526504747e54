//! `mini service`: the addresses at which Services answer on this machine.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Global, table, update_context};
use crate::api::{Gvr, meta};
use crate::client::https::HttpsApi;
use crate::client::{Api, ListOptions};

const SERVICES: Gvr = Gvr::new("", "v1", "services");

/// Options of `service`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Service {
    #[command(subcommand)]
    command: Option<List>,
    /// The Service
    name: Option<String>,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Only print the addresses
    #[arg(long)]
    url: bool,
}

/// `service list`.
#[derive(Subcommand)]
enum List {
    /// Lists the addresses of all Services
    List {
        /// Only this namespace
        #[arg(short, long, default_value = "")]
        namespace: String,
    },
}

impl Service {
    /// Runs it.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let config = global.config()?;
        let host_ip = config.host_ip.to_string();
        let api = HttpsApi::new(&update_context::access(&global.paths()?, &config)?, "mini", false)?;
        super::block_on(async {
            if let Some(List::List { namespace }) = self.command {
                let list = api.list(&SERVICES, &namespace, &ListOptions::default()).await?;
                let rows: Vec<_> = list.items.iter().map(|s| row(s, &host_ip)).collect();
                print!("{}", table::format(&["NAMESPACE", "NAME", "TARGET PORT", "URL"], &rows));
                return Ok(ExitCode::SUCCESS);
            }
            let Some(name) = self.name else { bail!("which Service? 'mini service list' lists them") };
            let service = api.get(&SERVICES, &self.namespace, &name).await.map_err(|status| match status.is_not_found() {
                true => anyhow::anyhow!("Service '{name}' was not found in '{}' namespace. You may select another namespace by using 'mini service {name} -n <namespace>'", self.namespace),
                false => status.into(),
            })?;
            let urls = urls(&service, &host_ip);
            if urls.is_empty() {
                bail!("service {}/{name} has no node port", self.namespace);
            }
            if self.url {
                urls.iter().for_each(|url| println!("{url}"));
                return Ok(ExitCode::SUCCESS);
            }
            print!("{}", table::format(&["NAMESPACE", "NAME", "TARGET PORT", "URL"], &[row(&service, &host_ip)]));
            for url in &urls {
                open(url);
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Opens an address in the user's browser where there is one.
pub fn open(url: &str) {
    let opened =
        Command::new("xdg-open").arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    match opened {
        Ok(_) => println!("Opening {url} in the browser"),
        Err(_) => println!("{url}"),
    }
}

fn ports(service: &Value) -> impl Iterator<Item = &Value> {
    service["spec"]["ports"].as_array().into_iter().flatten()
}

fn row(service: &Value, host_ip: &str) -> Vec<String> {
    let target = |port: &Value| match port["name"].as_str() {
        Some(name) => format!("{name}/{}", port["port"]),
        None => port["port"].to_string(),
    };
    let urls = urls(service, host_ip);
    let targets =
        if urls.is_empty() { "No node port".into() } else { ports(service).map(target).collect::<Vec<_>>().join(",") };
    vec![meta::namespace(service).into(), meta::name(service).into(), targets, urls.join(",")]
}

/// The addresses of the node ports, in the order of the ports.
fn urls(service: &Value, host_ip: &str) -> Vec<String> {
    ports(service)
        .filter_map(|port| {
            let node_port = port["nodePort"].as_u64()?;
            let https = port["port"] == 443 || port["name"] == "https" || port["appProtocol"] == "https";
            Some(format!("{}://{host_ip}:{node_port}", if https { "https" } else { "http" }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_node_ports_has_no_address() {
        let service =
            serde_json::json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"ports": [{"port": 80}]}});
        assert_eq!(row(&service, "127.77.0.1"), ["b", "a", "No node port", ""]);
        let service = serde_json::json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"ports": [{"port": 443, "nodePort": 30001, "name": "web"}]}});
        assert_eq!(row(&service, "127.77.0.1"), ["b", "a", "web/443", "https://127.77.0.1:30001"]);
    }
}
