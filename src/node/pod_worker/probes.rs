//! The probers of the containers that run, and what their verdicts mean.

use k8s_openapi::api::core::v1 as core;

use super::{Msg, Worker};
use crate::client::recorder::EventType::Warning;
use crate::node::pod_state::{Role, Run};
use crate::node::probes::{Kind, Outcome, Report};
use crate::node::{adopt, probes};

impl Worker {
    /// Starts (again) the prober of a running container.
    pub(super) fn probe(&mut self, name: &str) {
        if let Some(old) = self.probers.remove(name) {
            old.abort();
        }
        let Some((role, spec)) = self.spec(name) else { return };
        let container = self.state.container(name);
        let Run::Running { hooked: true, .. } = container.run else { return };
        let wanted = spec.liveness_probe.is_some() || spec.readiness_probe.is_some() || spec.startup_probe.is_some();
        if !wanted || matches!(role, Role::Init | Role::Ephemeral) {
            return;
        }
        let target = probes::Target {
            id: container.id.trim_start_matches(adopt::SCHEME).to_owned(),
            ip: self.state.ips.first().copied(),
            network: self.context.network.clone(),
            runtime: self.context.runtime.clone(),
            startup_done: container.startup,
            spec,
        };
        let sender = self.sender.clone();
        let task = tokio::spawn(probes::run(target, move |report| drop(sender.send(Msg::Probe(report)))));
        self.probers.insert(name.to_owned(), task.abort_handle());
    }

    pub(super) fn probed(&mut self, report: &Report) {
        let name = report.container.clone();
        let container = self.state.container(&name);
        if !container.id.ends_with(&report.id) || !matches!(container.run, Run::Running { .. }) {
            return;
        }
        if let Some(message) = report.event() {
            let reason = if matches!(report.outcome, Outcome::Unknown(_)) { "ProbeWarning" } else { "Unhealthy" };
            self.event(&name, Warning, reason, message);
        }
        let Some((_, spec)) = self.spec(&name) else { return };
        let grace = |probe: &Option<core::Probe>| probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
        let container = self.container(&name);
        match (report.kind, report.verdict) {
            (Kind::Readiness, Some(ready)) => container.readiness = ready,
            (Kind::Startup, Some(true)) => container.startup = true,
            (Kind::Startup, Some(false)) => {
                let message = format!("Container {name} failed startup probe, will be restarted");
                container.kill = Some((message, grace(&spec.startup_probe)));
            }
            (Kind::Liveness, Some(false)) => {
                let message = format!("Container {name} failed liveness probe, will be restarted");
                container.kill = Some((message, grace(&spec.liveness_probe)));
            }
            _ => {}
        }
    }
}
