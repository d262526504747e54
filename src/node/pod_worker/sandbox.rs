//! The sandbox of the pod: made, made again, removed.

use std::net::IpAddr;

use jiff::Timestamp;

use super::{Msg, Worker, retry};
use crate::client::recorder::EventType::{Normal, Warning};
use crate::node::pod_state::Stage;
use crate::node::pod_tasks;

impl Worker {
    pub(super) fn create_sandbox(&mut self, changed: bool) {
        self.state.sandbox = Stage::Busy;
        self.lost_early = false;
        if changed {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.context.recorder.event(&self.state.pod, Normal, "SandboxChanged", message);
            self.state.initialize_again(|_| true);
        }
        self.state.had_sandbox = true;
        self.spawn(pod_tasks::create_sandbox(self.context.clone(), self.state.pod.clone()), Msg::Sandbox);
    }

    pub(super) fn sandbox_created(&mut self, result: Result<Vec<IpAddr>, String>, now: Timestamp) {
        if self.state.sandbox != Stage::Busy {
            return;
        }
        match result {
            Ok(ips) => {
                self.sandbox_failures = 0;
                self.state.ips = ips;
                self.state.sandbox = Stage::Ready;
                for name in self.probers.keys().cloned().collect::<Vec<_>>() {
                    self.probe(&name);
                }
                if std::mem::take(&mut self.lost_early) {
                    self.sandbox_lost(now);
                }
            }
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                self.context.recorder.event(&self.state.pod, Warning, "FailedCreatePodSandBox", message);
                self.state.sandbox = Stage::Failed(retry(&mut self.sandbox_failures, 1000, 60_000, now));
            }
        }
    }

    pub(super) fn sandbox_lost(&mut self, now: Timestamp) {
        match self.state.sandbox {
            Stage::Ready => {
                self.state.sandbox = Stage::Removed;
                self.lose_containers(now);
            }
            Stage::Busy => self.lost_early = true,
            _ => {}
        }
    }

    pub(super) fn remove_sandbox_task(&self) -> impl Future<Output = ()> + Send + 'static {
        let context = self.context.clone();
        let pod = self.state.pod.clone();
        let keep = pod.metadata.deletion_timestamp.is_none() && self.state.removed_at.is_none();
        async move {
            // A pod that only completed (or a node that only stops) keeps its records: logs and exit codes.
            if keep {
                pod_tasks::stop_sandbox(context, pod).await;
            } else {
                pod_tasks::remove_sandbox(context, pod).await;
            }
        }
    }
}
