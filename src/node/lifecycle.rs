//! `postStart` and `preStop` hooks.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;

use super::network::PodNetwork;
use super::probes::{self, Outcome};
use super::runtime::Runtime;

/// Runs a hook to its end.
///
/// # Errors
/// Why it failed, for the event.
pub async fn run(
    handler: &core::LifecycleHandler,
    container: &core::Container,
    id: &str,
    ip: Option<IpAddr>,
    runtime: &dyn Runtime,
    network: &dyn PodNetwork,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        return match probes::exec::capture(runtime, id, command).await? {
            (0, _) => Ok(()),
            (code, output) => {
                let command = command.join(" ");
                Err(format!("command '{command}' exited with {code}: {output}"))
            }
        };
    }
    if let Some(http) = &handler.http_get {
        let ip = ip.ok_or("failed to find networking container")?;
        // The kubelet gives hooks no timeout of their own: the grace period bounds preStop.
        return match probes::http::probe(network, http, container, ip, Duration::from_secs(3600)).await {
            // Any answer is a success for a hook.
            Outcome::Success => Ok(()),
            Outcome::Failure(text) if text.starts_with("HTTP probe failed") => Ok(()),
            Outcome::Failure(text) | Outcome::Unknown(text) => Err(text),
        };
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("invalid handler".to_owned())
}
