//! `mini dashboard`: enables the addon, and opens or prints a link that works once.

use std::process::ExitCode;

use anyhow::{Context, Result};
use axum::body::Body;
use clap::Args;
use http::Method;

use super::{Global, control, service};

/// Options of `dashboard`.
#[derive(Args)]
pub struct Dashboard {
    /// Only print the address
    #[arg(long)]
    url: bool,
}

impl Dashboard {
    /// Runs it.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let paths = global.paths()?;
        global.config()?;
        let answer = super::block_on(async {
            control::call(&paths, &global.profile, Method::PUT, "/addons/dashboard", Body::empty()).await?;
            control::json(&paths, &global.profile, Method::POST, "/dashboard").await
        })?;
        let url = answer["url"].as_str().context("the cluster gave no address")?;
        if self.url {
            println!("{url}");
        } else {
            service::open(url);
        }
        Ok(ExitCode::SUCCESS)
    }
}
