//! `mini addons list|enable|disable`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use axum::body::Body;
use clap::Subcommand;
use http::Method;
use serde_json::json;

use super::{Global, control, profile};

/// What can be done with addons.
#[derive(Subcommand)]
pub enum Addons {
    /// Lists all addons and whether they are enabled
    List {
        /// `text` or `json`
        #[arg(short, long, default_value = "text")]
        output: String,
    },
    /// Enables an addon, at once when the cluster runs
    Enable {
        /// Its name
        name: String,
    },
    /// Disables an addon
    Disable {
        /// Its name
        name: String,
    },
}

impl Addons {
    /// Runs it.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        match self {
            Self::List { output } => list(global, &output)?,
            Self::Enable { name } => {
                set(global, &name, true)?;
                println!("The '{name}' addon is enabled");
            }
            Self::Disable { name } => {
                set(global, &name, false)?;
                println!("{name} was successfully disabled");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn list(global: &Global, output: &str) -> Result<()> {
    let config = global.config()?;
    let mut object = serde_json::Map::new();
    for addon in crate::addons::ALL {
        let status = if config.addons.iter().any(|a| a == addon.name) { "enabled" } else { "disabled" };
        object.insert(addon.name.to_owned(), json!({"Profile": config.profile, "Status": status}));
        if output != "json" {
            println!("{}: {status}", addon.name);
        }
    }
    if output == "json" {
        println!("{}", serde_json::Value::Object(object));
    }
    Ok(())
}

fn set(global: &Global, name: &str, on: bool) -> Result<()> {
    if !crate::addons::ALL.iter().any(|a| a.name == name) {
        bail!("addon '{name}' is not a valid addon packaged with mini; 'mini addons list' shows those that are");
    }
    let paths = global.paths()?;
    let mut config = global.config()?;
    let method = if on { Method::PUT } else { Method::DELETE };
    super::block_on(async {
        // A running cluster changes its settings itself; those of a stopped one are changed here.
        if let Some(answer) = control::send(&paths, method, &format!("/addons/{name}"), Body::empty()).await? {
            if !answer.status().is_success() {
                let text = http_body_util::BodyExt::collect(answer.into_body()).await?.to_bytes();
                bail!("{}", String::from_utf8_lossy(&text));
            }
            return Ok(());
        }
        config.addons.retain(|a| a != name);
        if on {
            config.addons.push(name.to_owned());
        }
        profile::write(&paths, &config)
    })
}
