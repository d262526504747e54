//! The status: when it is written, and what of a newer object stays as we wrote it.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

use super::{Msg, Worker};
use crate::node::pod_state::{Run, Stage};
use crate::node::{pod_tasks, resize, status};

/// How long news of the sandbox may wait for those of its containers.
const SANDBOX_TOLD_WITHIN: SignedDuration = SignedDuration::from_millis(300);

/// Conditions that the kubelet owns.
const OWN_CONDITIONS: [&str; 7] = [
    resize::PENDING,
    resize::IN_PROGRESS,
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

impl Worker {
    /// A newer object. Its status may be older than what we wrote: our own conditions stay.
    pub(super) fn take_pod(&mut self, mut pod: core::Pod) {
        if let (Some(written), Some(status)) = (&self.written, pod.status.as_mut()) {
            let own = |c: &core::PodCondition| OWN_CONDITIONS.contains(&c.type_.as_str());
            let mut conditions: Vec<_> = written.conditions.iter().flatten().filter(|c| own(c)).cloned().collect();
            conditions.extend(status.conditions.iter().flatten().filter(|c| !own(c)).cloned());
            status.conditions = Some(conditions);
        }
        let labels = |p: &core::Pod| (p.metadata.labels.clone(), p.metadata.annotations.clone());
        let relabelled = labels(&pod) != labels(&self.state.pod);
        self.state.resize.desired = resize::hold_back(&mut pod, |name| resize::given_by(&self.state.pod, name));
        self.state.update(pod);
        self.judge_resize();
        if relabelled && self.state.volumes == Stage::Ready {
            self.refresh();
        }
    }

    /// Whether a status that tells of nothing but the sandbox may wait for the one that follows at once: each write is
    /// a durable one, and the next cannot begin before it is done.
    fn may_wait(&mut self, new: &core::PodStatus, now: Timestamp) -> bool {
        let strip = |status: &core::PodStatus| {
            let mut status = status.clone();
            status.conditions.iter_mut().flatten().for_each(|c| {
                if c.type_ == "PodReadyToStartContainers" {
                    c.status = String::new();
                    c.last_transition_time = None;
                }
            });
            (status.pod_ip, status.pod_ips) = (None, None);
            status
        };
        if !self.written.as_ref().is_some_and(|old| strip(old) == strip(new)) {
            return false;
        }
        if self.state.pod.metadata.deletion_timestamp.is_some() {
            return true;
        }
        let starting = self.state.sandbox == Stage::Ready
            && self.state.containers.values().any(|c| matches!(c.run, Run::Starting));
        let until = *self.defer_until.get_or_insert(now.saturating_add(SANDBOX_TOLD_WITHIN).unwrap_or(now));
        // A clock that was set back makes it no longer.
        starting && now < until && until.duration_since(now) <= SANDBOX_TOLD_WITHIN
    }

    /// Writes the status when it says something new.
    pub(super) fn publish(&mut self, now: Timestamp) {
        self.end_resize();
        self.view.send_replace(Arc::new(self.state.clone()));
        if self.state.status_busy || self.state.removed_at.is_some() {
            return;
        }
        let new = status::generate(&self.state, &self.context.options.internal_ips, now);
        if self.written.as_ref() == Some(&new) || self.may_wait(&new, now) {
            return;
        }
        self.defer_until = None;
        if matches!(new.phase.as_deref(), Some("Succeeded" | "Failed")) {
            self.context.release(self.state.uid());
        }
        let patch = pod_tasks::status_patch(self.written.as_ref(), &new, self.state.uid());
        self.written = Some(new.clone());
        self.state.pod.status = Some(new);
        self.state.status_busy = true;
        let task = pod_tasks::write_status(self.context.clone(), self.state.pod.clone(), patch);
        self.spawn(task, Msg::StatusWritten);
    }
}
