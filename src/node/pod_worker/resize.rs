//! Resources that change while the pod runs (`pods/resize`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::{Msg, Worker, retry};
use crate::client::recorder::EventType::{Normal, Warning};
use crate::node::pod_state::{Run, Stage};
use crate::node::{adopt, resize, security};

impl Worker {
    /// Grants what the pod asks for beside what it has, or says why not.
    pub(super) fn judge_resize(&mut self) {
        if let Some(waiting) = self.awaits_room.take() {
            waiting.abort();
        }
        if self.state.resize.desired.is_empty() || self.state.failed.is_some() {
            self.state.resize.pending = None;
            return;
        }
        let generation = self.state.pod.metadata.generation;
        let wanted = resize::granted(&self.state.pod, &self.state.resize.desired);
        // Subscribed before it is judged: what becomes free meanwhile is not missed.
        let mut room = self.context.room.subscribe();
        match self.context.resize(&wanted) {
            Ok(()) => {
                let message = resize::message("started", &wanted, generation, None);
                self.context.recorder.event(&wanted, Normal, "ResizeStarted", message);
                let progress = Some(resize::Progress { generation, error: None });
                self.state.resize = resize::Resize { progress, busy: self.state.resize.busy, ..Default::default() };
                self.resize_failures = 0;
                self.state.update(wanted);
                if self.state.volumes == Stage::Ready {
                    self.refresh();
                }
            }
            Err(refusal) => {
                let pending = Some((refusal.clone(), generation));
                if self.state.resize.pending != pending {
                    let reason = format!("Resize{}", refusal.reason);
                    let message = resize::message(refusal.reason, &wanted, generation, Some(&refusal.message));
                    self.context.recorder.event(&self.state.pod, Warning, &reason, message);
                }
                self.state.resize.pending = pending;
                if refusal.reason == "Deferred" {
                    let changed = async move { drop(room.changed().await) };
                    self.awaits_room = Some(self.spawn(changed, |()| Msg::Room));
                }
            }
        }
    }

    /// Has the kernel hold what runs to what it was given.
    pub(super) fn resize(&mut self) {
        self.state.resize.busy = true;
        let mut given = BTreeMap::new();
        let mut containers = Vec::new();
        for (role, spec) in self.state.specs() {
            let container = self.state.container(&spec.name);
            let changes = resize::change(role, &spec, container.given.as_ref()) == resize::Change::Kernel;
            if changes && matches!(container.run, Run::Running { .. }) {
                let id = container.id.trim_start_matches(adopt::SCHEME).to_owned();
                containers.push((id, spec.name.clone(), security::resources(&spec)));
                given.insert(spec.name.clone(), spec.resources.clone().unwrap_or_default());
            }
        }
        let pod = security::pod_resources(self.state.spec());
        let (context, uid) = (self.context.clone(), self.state.uid().to_owned());
        let task = async move { context.runtime.resize(&uid, &pod, &containers).await.map_err(|e| e.to_string()) };
        self.spawn(task, |result| Msg::Resized(given, result));
    }

    pub(super) fn resized(
        &mut self,
        given: BTreeMap<String, core::ResourceRequirements>,
        result: Result<(), String>,
        now: Timestamp,
    ) {
        self.state.resize.busy = false;
        match result {
            Ok(()) => {
                self.resize_failures = 0;
                self.state.resize.retry_at = None;
                for (name, resources) in given {
                    self.container(&name).given = Some(resources);
                }
            }
            Err(error) => {
                self.state.resize.retry_at = Some(retry(&mut self.resize_failures, 10_000, 600_000, now));
                let progress = self.state.resize.progress.get_or_insert_default();
                if progress.error.as_ref() != Some(&error) {
                    let message = resize::message("error", &self.state.pod, progress.generation, Some(&error));
                    progress.error = Some(error);
                    self.context.recorder.event(&self.state.pod, Warning, "ResizeError", message);
                }
            }
        }
    }

    /// Tells of a resize that is complete.
    pub(super) fn end_resize(&mut self) {
        if resize::is_done(&self.state)
            && let Some(progress) = self.state.resize.progress.take()
        {
            let message = resize::message("completed", &self.state.pod, progress.generation, None);
            self.context.recorder.event(&self.state.pod, Normal, "ResizeCompleted", message);
        }
    }
}
