//! The volumes of the pod, and their contents when objects change or tokens are due.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Msg, Worker, retry};
use crate::client::recorder::EventType::Warning;
use crate::node::objects::Changed;
use crate::node::pod_state::{Run, Stage};
use crate::node::pod_tasks;
use crate::node::pod_tasks::TokenCache;
use crate::node::volumes::{MountError, Mounted};

impl Worker {
    pub(super) fn mount_task(
        &self,
        again: bool,
    ) -> impl Future<Output = Result<(Mounted, TokenCache), Vec<MountError>>> + Send + 'static {
        let facts = self.context.facts(&self.state.ips);
        let tokens = self.tokens.clone();
        pod_tasks::mount(self.context.clone(), self.state.pod.clone(), facts, tokens, self.changed(), again)
    }

    pub(super) fn volumes_mounted(&mut self, result: Result<(Mounted, TokenCache), Vec<MountError>>, now: Timestamp) {
        if self.state.volumes != Stage::Busy {
            return;
        }
        match result {
            Ok((mounted, tokens)) => {
                self.mount_failures = 0;
                (self.mounted, self.tokens) = (mounted, tokens);
                self.state.volumes = Stage::Ready;
                if std::mem::take(&mut self.refresh_again) {
                    self.refresh();
                }
            }
            Err(errors) => {
                for error in &errors {
                    self.context.recorder.event(&self.state.pod, Warning, "FailedMount", error.event());
                }
                let only_objects = errors.iter().all(|e| e.awaits_object);
                self.state.volumes = if std::mem::take(&mut self.refresh_again) {
                    Stage::Missing
                } else if only_objects {
                    Stage::Failed(Timestamp::MAX)
                } else {
                    Stage::Failed(retry(&mut self.mount_failures, 500, 122_000, now))
                };
            }
        }
    }

    pub(super) fn refresh(&mut self) {
        if self.refreshing {
            self.refresh_again = true;
            return;
        }
        self.refreshing = true;
        self.spawn(self.mount_task(true), Msg::Refreshed);
    }

    pub(super) fn refreshed(&mut self, result: Result<(Mounted, TokenCache), Vec<MountError>>) {
        self.refreshing = false;
        match result {
            Ok((_, tokens)) => self.tokens = tokens,
            Err(errors) => {
                // What was there stays; a token that could not be renewed is asked for again a little later.
                self.tokens.postpone(self.context.env.now());
                for error in errors {
                    self.context.recorder.event(&self.state.pod, Warning, "FailedMount", error.event());
                }
            }
        }
        if std::mem::take(&mut self.refresh_again) {
            self.refresh();
        }
    }

    pub(super) fn objects_changed(&mut self) {
        match self.state.volumes {
            Stage::Ready => self.refresh(),
            Stage::Failed(_) => self.state.volumes = Stage::Missing,
            _ => self.refresh_again = true,
        }
        for container in self.state.containers.values_mut() {
            let config = container.waiting.as_ref().is_some_and(|(reason, _)| reason == "CreateContainerConfigError");
            if config && container.run == Run::Absent {
                container.retry_at = None;
            }
        }
    }

    pub(super) fn changed(&self) -> Changed {
        let sender = self.sender.clone();
        Arc::new(move || drop(sender.send(Msg::Objects)))
    }
}
