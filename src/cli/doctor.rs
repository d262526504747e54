//! `mini doctor`: what this machine offers to a cluster, and how to mend what is missing.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::Global;
use crate::node::doctor::{self, Check};

/// Options of `doctor`.
#[derive(Args)]
pub struct Doctor {
    /// `text` or `json`
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

impl Doctor {
    /// Prints a line per check; the exit code is 1 when something is missing without which no cluster starts.
    pub fn run(self, _global: &Global) -> Result<ExitCode> {
        let checks = doctor::checks(&doctor::look());
        if self.output == "json" {
            println!("{}", serde_json::to_string_pretty(&checks)?);
        } else {
            print!("{}", text(&checks));
        }
        let fatal = checks.iter().any(|c| c.required && !c.ok);
        Ok(if fatal { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = match (check.ok, check.required) {
            (true, _) => "ok",
            (false, true) => "MISSING",
            (false, false) => "degraded",
        };
        text += &format!("{mark:<10}{}: {}\n", check.name, check.found);
        if !check.ok {
            text += &format!("{:10}{}\n", "", check.degrades);
        }
        if !check.mend.is_empty() {
            text += &format!("{:10}{}\n", "", check.mend);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_its_command() {
        let check = Check {
            name: "TUN device",
            ok: false,
            required: false,
            found: "there is no /dev/net/tun".to_owned(),
            degrades: "pods reach nothing",
            mend: "sudo modprobe tun".to_owned(),
        };
        let expected = "degraded  TUN device: there is no /dev/net/tun\n          pods reach nothing\n          sudo modprobe tun\n";
        assert_eq!(text(&[check]), expected);
    }
}
