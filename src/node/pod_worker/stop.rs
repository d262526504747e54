//! How a container is stopped: hooks and signals.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::{Msg, Worker};
use crate::client::recorder::EventType::{Normal, Warning};
use crate::node::pod_state::{Run, StopStage, Stopping};
use crate::node::{adopt, lifecycle, pod_tasks};

impl Worker {
    pub(super) fn stop(&mut self, name: &str, deadline: Timestamp, message: &str) {
        let Some((_, spec)) = self.spec(name) else { return };
        self.event(name, Normal, "Killing", message);
        if let Some(prober) = self.probers.remove(name) {
            prober.abort();
        }
        let hook = spec.lifecycle.as_ref().and_then(|l| l.pre_stop.clone());
        let container = self.container(name);
        let Run::Running { started_at, .. } = container.run else { return };
        let stage = if hook.is_some() { StopStage::Hook } else { StopStage::Term };
        container.run = Run::Stopping(Stopping { started_at, deadline, stage, hook_done: hook.is_none() });
        match hook {
            Some(handler) => self.hook(name, &spec, handler, true),
            None => self.signal(name, self.stop_signal(name)),
        }
    }

    pub(super) fn signal(&self, name: &str, signal: i32) {
        let id = self.state.container(name).id.trim_start_matches(adopt::SCHEME).to_owned();
        tokio::spawn(pod_tasks::signal(self.context.clone(), id, signal));
    }

    pub(super) fn stop_signal(&self, name: &str) -> i32 {
        let of_spec = self.spec(name).and_then(|(_, c)| c.lifecycle.and_then(|l| l.stop_signal));
        let text = of_spec.or_else(|| self.stop_signals.get(name).cloned()).unwrap_or_default();
        parse_signal(&text).unwrap_or(libc::SIGTERM)
    }

    pub(super) fn hook(&self, name: &str, spec: &core::Container, handler: core::LifecycleHandler, pre_stop: bool) {
        let id = self.state.container(name).id.trim_start_matches(adopt::SCHEME).to_owned();
        let (context, spec, ip) = (self.context.clone(), spec.clone(), self.state.ips.first().copied());
        let name = name.to_owned();
        let task = {
            let id = id.clone();
            async move { lifecycle::run(&handler, &spec, &id, ip, context.runtime.as_ref(), context.network.as_ref()).await }
        };
        self.spawn(task, move |result| Msg::Hook(name, id, pre_stop, result));
    }

    pub(super) fn hook_ended(&mut self, name: &str, id: &str, pre_stop: bool, result: Result<(), String>) {
        if !self.state.container(name).id.ends_with(id) {
            return;
        }
        if let Err(error) = &result {
            tracing::info!(pod = self.state.described(), name, pre_stop, error, "a hook failed");
            let (reason, text) = if pre_stop {
                ("FailedPreStopHook", "PreStopHook failed")
            } else {
                ("FailedPostStartHook", "PostStartHook failed")
            };
            self.event(name, Warning, reason, text);
        }
        let container = self.container(name);
        match &mut container.run {
            Run::Stopping(stopping) if pre_stop => stopping.hook_done = true,
            Run::Running { hooked, .. } if !pre_stop => {
                if result.is_ok() {
                    *hooked = true;
                    self.probe(name);
                } else {
                    container.kill = Some(("FailedPostStartHook".into(), None));
                }
            }
            _ => {}
        }
    }
}

/// `SIGTERM`, `TERM` or `15`.
fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    if let Some(rest) = name.strip_prefix("SIGRTMIN") {
        let offset = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    name.parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, signal) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("x", None),
            ("0", None),
        ] {
            assert_eq!(parse_signal(text), signal, "{text}");
        }
    }
}
