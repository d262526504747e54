//! Liveness, readiness and startup probes. One task per running container; it reports failures and changed verdicts only.

pub mod exec;
pub mod grpc;
pub mod http;
pub mod tcp;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::network::PodNetwork;
use super::runtime::Runtime;

/// What a probe decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whether the container has started; the others wait for it.
    Startup,
    /// Whether the container must be restarted.
    Liveness,
    /// Whether the container gets traffic.
    Readiness,
}

impl Kind {
    /// As it begins the kubelet's messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// The result of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded.
    Success,
    /// It failed; the output.
    Failure(String),
    /// It could not be carried out.
    Unknown(String),
}

/// What a prober tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The container's name.
    pub container: String,
    /// The instance that was probed.
    pub id: String,
    /// Which probe.
    pub kind: Kind,
    /// The result.
    pub outcome: Outcome,
    /// The verdict when a threshold was crossed.
    pub verdict: Option<bool>,
}

impl Report {
    /// The message of the event `Unhealthy`.
    pub fn event(&self) -> Option<String> {
        match &self.outcome {
            Outcome::Success => None,
            Outcome::Failure(output) => Some(format!("{} probe failed: {output}", self.kind.as_str())),
            Outcome::Unknown(error) => {
                Some(format!("{} probe errored and resulted in unknown state: {error}", self.kind.as_str()))
            }
        }
    }
}

/// Counts results against thresholds. Pure.
#[derive(Debug)]
pub struct Counter {
    success_threshold: i32,
    failure_threshold: i32,
    verdict: Option<bool>,
    last: Option<bool>,
    run: i32,
}

impl Counter {
    /// The thresholds of a probe.
    pub fn new(probe: &core::Probe) -> Self {
        Self {
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            verdict: None,
            last: None,
            run: 0,
        }
    }
    /// Counts a result; `Some` when the verdict changes by it.
    pub fn record(&mut self, success: bool) -> Option<bool> {
        self.run = if self.last == Some(success) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.run < threshold || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        self.verdict
    }
}

/// A container that is probed.
pub struct Target {
    /// Its spec.
    pub spec: core::Container,
    /// The instance.
    pub id: String,
    /// The pod's address.
    pub ip: Option<IpAddr>,
    /// To reach it.
    pub network: Arc<dyn PodNetwork>,
    /// To run commands in it.
    pub runtime: Arc<dyn Runtime>,
    /// Whether its startup probe has already succeeded (before the daemon was restarted).
    pub startup_done: bool,
}

/// Probes a container until the task is aborted. `report` is called for every failure and every changed verdict.
pub async fn run(target: Target, report: impl Fn(Report) + Send + Sync) {
    if let Some(probe) = target.spec.startup_probe.clone().filter(|_| !target.startup_done)
        && !run_one(&target, Kind::Startup, &probe, &report).await
    {
        return;
    }
    let liveness = async {
        if let Some(probe) = &target.spec.liveness_probe {
            run_one(&target, Kind::Liveness, probe, &report).await;
        }
    };
    let readiness = async {
        if let Some(probe) = &target.spec.readiness_probe {
            run_one(&target, Kind::Readiness, probe, &report).await;
        }
    };
    futures_util::join!(liveness, readiness);
}

/// Runs one probe until its end: a startup probe ends with its verdict, a liveness probe with its failure.
async fn run_one(target: &Target, kind: Kind, probe: &core::Probe, report: &(impl Fn(Report) + Sync)) -> bool {
    let seconds = |n: Option<i32>, default: u64| n.and_then(|n| u64::try_from(n).ok()).unwrap_or(default);
    let period = Duration::from_secs(seconds(probe.period_seconds, 10).max(1));
    let mut counter = Counter::new(probe);
    tokio::time::sleep(Duration::from_secs(seconds(probe.initial_delay_seconds, 0))).await;
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let outcome = once(target, probe).await;
        let success = outcome == Outcome::Success;
        // The kubelet ignores results that say nothing, but tells of them.
        let verdict = if matches!(outcome, Outcome::Unknown(_)) { None } else { counter.record(success) };
        if !success || verdict.is_some() {
            let (container, id) = (target.spec.name.clone(), target.id.clone());
            report(Report { container, id, kind, outcome, verdict });
        }
        match (kind, verdict) {
            (Kind::Startup, Some(verdict)) => return verdict,
            (Kind::Liveness, Some(false)) => return false,
            _ => {}
        }
    }
}

async fn once(target: &Target, probe: &core::Probe) -> Outcome {
    let timeout = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1));
    if let Some(action) = &probe.exec {
        return exec::probe(
            target.runtime.as_ref(),
            &target.id,
            action.command.as_deref().unwrap_or_default(),
            timeout,
        )
        .await;
    }
    let Some(ip) = target.ip else { return Outcome::Unknown("the pod has no address".to_owned()) };
    if let Some(action) = &probe.http_get {
        return http::probe(target.network.as_ref(), action, &target.spec, ip, timeout).await;
    }
    if let Some(action) = &probe.tcp_socket {
        return match port(&action.port, &target.spec) {
            Ok(port) => {
                let host = action.host.as_deref().and_then(|h| h.parse().ok()).unwrap_or(ip);
                tcp::probe(target.network.as_ref(), host, port, timeout).await
            }
            Err(error) => Outcome::Unknown(error),
        };
    }
    if let Some(action) = &probe.grpc {
        let Ok(port) = u16::try_from(action.port) else {
            return Outcome::Unknown(format!("invalid port number: {}", action.port));
        };
        let service = action.service.as_deref().unwrap_or_default();
        return grpc::probe(target.network.as_ref(), ip, port, service, timeout).await;
    }
    Outcome::Unknown("missing probe handler".to_owned())
}

/// The number of a port that may be named.
///
/// # Errors
/// The kubelet's message.
pub fn port(port: &IntOrString, container: &core::Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(port) => i64::from(port.container_port),
                None => {
                    name.parse().map_err(|_| format!("couldn't find port {name:?} in container {}", container.name))?
                }
            }
        }
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn thresholds_count_runs() {
        let probe: core::Probe =
            serde_json::from_value(json!({"successThreshold": 2, "failureThreshold": 3})).expect("a probe");
        let mut counter = Counter::new(&probe);
        let verdicts: Vec<_> =
            [true, true, true, false, false, true, false, false, false, false].map(|s| counter.record(s)).to_vec();
        let expected = [None, Some(true), None, None, None, None, None, None, Some(false), None];
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn named_ports() {
        let container: core::Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}))
                .expect("ok");
        assert_eq!(port(&IntOrString::String("web".into()), &container), Ok(8080));
        assert_eq!(port(&IntOrString::Int(80), &container), Ok(80));
        assert!(port(&IntOrString::String("x".into()), &container).is_err());
        assert!(port(&IntOrString::Int(70000), &container).is_err());
    }
}
