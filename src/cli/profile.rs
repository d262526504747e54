//! `mini profile list`, and reading and making the settings of profiles.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use http::Method;
use ipnet::Ipv4Net;
use serde_json::json;

use super::{Global, control, table};
use crate::config::{Config, Paths};

/// What can be done with profiles.
#[derive(Subcommand)]
pub enum Profile {
    /// Lists all profiles
    List {
        /// `table` or `json`
        #[arg(short, long, default_value = "table")]
        output: String,
    },
}

impl Profile {
    /// Runs it.
    pub fn run(self, _global: &Global) -> Result<ExitCode> {
        let Self::List { output } = self;
        let mut rows = Vec::new();
        let mut objects = Vec::new();
        for config in all()? {
            let paths = Paths::new(&crate::config::home().map_err(anyhow::Error::msg)?, &config.profile);
            let answer = super::block_on(control::send(&paths, Method::GET, "/status", axum::body::Body::empty()))?;
            let status = if answer.is_some() { "OK" } else { "Stopped" };
            let version = crate::config::KUBERNETES_VERSION;
            let address = config.api_address;
            rows.push(vec![
                config.profile.clone(),
                config.host_ip.to_string(),
                address.port().to_string(),
                version.to_owned(),
                status.to_owned(),
            ]);
            objects.push(json!({"Name": config.profile, "Status": status, "Config": config}));
        }
        if output == "json" {
            println!("{}", json!({"valid": objects, "invalid": []}));
        } else {
            print!("{}", table::format(&["PROFILE", "IP", "PORT", "VERSION", "STATUS"], &rows));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The settings of a profile; `None` when it does not exist.
///
/// # Errors
/// When the file is damaged.
pub fn read(paths: &Paths) -> Result<Option<Config>> {
    let path = paths.config();
    match fs::read(&path) {
        Ok(bytes) => {
            let config = serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
            Ok(Some(config))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Writes the settings of a profile.
///
/// # Errors
/// When the file cannot be written.
pub fn write(paths: &Paths, config: &Config) -> Result<()> {
    let path = paths.config();
    let temporary = path.with_extension("new");
    fs::write(&temporary, serde_json::to_vec_pretty(config)?)
        .and_then(|()| fs::rename(&temporary, &path))
        .with_context(|| format!("writing {}", path.display()))
}

/// All profiles of this home.
///
/// # Errors
/// When a profile is damaged.
pub fn all() -> Result<Vec<Config>> {
    let home = crate::config::home().map_err(anyhow::Error::msg)?;
    let mut configs = Vec::new();
    let entries = match fs::read_dir(home.join("profiles")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(configs),
        Err(error) => return Err(error).context("listing profiles"),
    };
    for entry in entries {
        let name = entry?.file_name();
        if let Some(config) = read(&Paths::new(&home, &name.to_string_lossy()))? {
            configs.push(config);
        }
    }
    configs.sort_by(|a, b| a.profile.cmp(&b.profile));
    Ok(configs)
}

/// Settings for a new profile, whose addresses no other profile of this home has. Profiles of other homes and users
/// are found by their ports: an API port that is taken moves this profile to the next number.
///
/// # Errors
/// When no number is free.
pub fn allocate(name: &str, api_port: Option<u16>) -> Result<Config> {
    let taken: Vec<Config> = all()?;
    for number in 1..=250u8 {
        let mut config = Config::new(name);
        config.host_ip = Ipv4Addr::new(127, 77, 0, number);
        config.load_balancer_cidr = Ipv4Net::new_assert(Ipv4Addr::new(127, 78, number, 0), 24);
        let port = api_port.unwrap_or(8442 + u16::from(number));
        config.api_address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let ours = taken.iter().any(|c| c.host_ip == config.host_ip || c.api_address == config.api_address);
        if ours && api_port.is_none() || taken.iter().any(|c| c.host_ip == config.host_ip) {
            continue;
        }
        match TcpListener::bind(config.api_address) {
            Ok(_) => return Ok(config),
            Err(error) if api_port.is_some() => {
                return Err(error).with_context(|| format!("port {port} of 127.0.0.1 cannot be used"));
            }
            Err(_) => {}
        }
    }
    anyhow::bail!("no free port for the API server between 8443 and 8692")
}
