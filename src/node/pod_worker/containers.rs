//! From the start of a container to its end, and what waits in between: pulls and crash loops that back off.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Msg, Worker, hex};
use crate::client::recorder::EventType::{Normal, Warning};
use crate::node::container_start::{Down, Job, Up};
use crate::node::pod_state::{Ended, Run};
use crate::node::runtime::Exit;
use crate::node::{adopt, container_start, pod_tasks, security};

/// How long `ErrImagePull` is shown before it becomes `ImagePullBackOff`.
const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_secs(3);

impl Worker {
    pub(super) fn start(&mut self, name: &str, now: Timestamp) {
        let Some((role, spec)) = self.spec(name) else { return };
        let id = format!("{}{}", hex(&self.context.env.bytes::<16>()), hex(&self.context.env.bytes::<16>()));
        let container = self.container(name);
        if container.ended().is_some() {
            container.crash_loop.next(now);
            container.make_room();
            let old = (container.id.trim_start_matches(adopt::SCHEME).to_owned(), container.restarts);
            if !old.0.is_empty() {
                self.dead.entry(name.to_owned()).or_default().push(old);
            }
        }
        let container = self.container(name);
        container.run = Run::Starting;
        container.retry_at = None;
        container.pull_shown_until = None;
        container.backoff_told = false;
        container.kill = None;
        container.again = false;
        container.given = Some(spec.resources.clone().unwrap_or_default());
        container.asked_image = spec.image.clone();
        let attempt = u32::try_from(container.next_attempt()).unwrap_or(0);
        self.collect_garbage(name);
        let job = Job {
            pod: self.state.pod.clone(),
            spec,
            role,
            attempt,
            id: id.clone(),
            mounted: self.mounted.clone(),
            facts: self.context.facts(&self.state.ips),
            changed: self.changed(),
            target: self.target(name),
            pod_limits: self.state.resize.progress.as_ref().map(|_| security::pod_resources(self.state.spec())),
        };
        let context = self.context.clone();
        let name = name.to_owned();
        let task = {
            let name = name.clone();
            let task = async move { container_start::start(&context, &job).await };
            self.spawn(task, move |result| Msg::Started(name, id, result))
        };
        self.starts.insert(name, task);
    }

    pub(super) fn started(&mut self, name: &str, id: &str, result: Result<Up, Down>, now: Timestamp) {
        self.starts.remove(name);
        if self.state.container(name).run != Run::Starting {
            return;
        }
        let Some((_, spec)) = self.spec(name) else { return };
        let container = self.container(name);
        match result {
            Ok(up) => {
                container.created();
                container.id = format!("{}{id}", adopt::SCHEME);
                container.image = shown_image(&up.image, spec.image.as_deref().unwrap_or_default());
                container.image_id = up.image.image_id();
                container.waiting = None;
                container.pull = Default::default();
                container.startup = false;
                container.readiness = false;
                let handler = spec.lifecycle.as_ref().and_then(|l| l.post_start.clone());
                container.run = Run::Running { started_at: up.started_at, hooked: handler.is_none() };
                if let Some(signal) = up.image.config.stop_signal {
                    self.stop_signals.insert(name.to_owned(), signal);
                }
                if let Some(exit) = self.early.remove(id) {
                    self.exited(id, exit);
                } else if let Some(handler) = handler {
                    self.hook(name, &spec, handler, false);
                } else {
                    self.probe(name);
                }
            }
            Err(Down::Image(reason, message)) => {
                container.run = Run::Absent;
                container.pull.next(now);
                container.retry_at = Some(container.pull.ready_at(now));
                let pulled = reason == "ErrImagePull";
                container.pull_shown_until = pulled.then(|| now.saturating_add(PULL_ERROR_SHOWN).unwrap_or(now));
                container.waiting = Some((reason, message));
            }
            Err(Down::Config(reason, message)) => {
                container.run = Run::Absent;
                container.pull.next(now);
                container.retry_at = Some(container.pull.ready_at(now));
                container.waiting = Some((reason, message));
            }
            Err(Down::Run(message, image)) => {
                container.image = shown_image(&image, spec.image.as_deref().unwrap_or_default());
                container.image_id = image.image_id();
                container.created();
                container.waiting = Some(("RunContainerError".into(), message.clone()));
                container.run = Run::Ended(Ended {
                    exit_code: 128,
                    reason: "StartError".into(),
                    message,
                    started_at: Timestamp::UNIX_EPOCH,
                    finished_at: now,
                    container_id: format!("{}{id}", adopt::SCHEME),
                });
            }
        }
    }

    /// The instance of the container whose processes an ephemeral container shall see (`targetContainerName`).
    fn target(&self, name: &str) -> Option<String> {
        let ephemeral = self.state.spec().ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
        let target = ephemeral.target_container_name.as_deref().filter(|target| !target.is_empty())?;
        Some(self.state.container(target).id.trim_start_matches(adopt::SCHEME).to_owned())
    }

    pub(super) fn cancel_start(&mut self, name: &str) {
        if let Some(task) = self.starts.remove(name) {
            task.abort();
        }
        // The runtime may have started it in this instant; removing the sandbox takes care of that.
        let container = self.container(name);
        container.run = Run::Absent;
    }

    pub(super) fn show_pull_back_off(&mut self, name: &str) {
        let image = self.spec(name).and_then(|(_, c)| c.image).unwrap_or_default();
        let container = self.container(name);
        container.pull_shown_until = None;
        let Some((reason, message)) = container.waiting.clone() else { return };
        let text = format!("Back-off pulling image {image:?}");
        container.waiting = Some(("ImagePullBackOff".into(), format!("{text}: {reason}: {message}")));
        self.event(name, Normal, "BackOff", text);
        self.event(name, Warning, "Failed", "Error: ImagePullBackOff");
    }

    pub(super) fn tell_back_off(&mut self, name: &str) {
        let described = self.state.described();
        let container = self.container(name);
        container.backoff_told = true;
        let delay = container_start::go_duration(Duration::try_from(container.crash_loop.delay()).unwrap_or_default());
        let message = format!("back-off {delay} restarting failed container={name} pod={described}");
        container.waiting = Some(("CrashLoopBackOff".into(), message));
        self.event(name, Warning, "BackOff", format!("Back-off restarting failed container {name} in pod {described}"));
    }

    pub(super) fn exited(&mut self, id: &str, exit: Exit) {
        let found = self.state.containers.iter().find(|(_, c)| c.id.ends_with(id) && c.alive());
        let Some((name, container)) = found.map(|(name, c)| (name.clone(), c.clone())) else {
            if self.state.containers.values().any(|c| c.run == Run::Starting) {
                self.early.insert(id.to_owned(), exit);
            }
            return;
        };
        if let Some(prober) = self.probers.remove(&name) {
            prober.abort();
        }
        let Some((_, spec)) = self.spec(&name) else { return };
        let ended = adopt::ended(&container.id, container.started_at().unwrap_or(exit.finished_at), &exit);
        let log = self.context.log_dir(&self.state.pod).join(&name).join(format!("{}.log", container.restarts));
        let task = pod_tasks::termination_message(self.context.clone(), spec, id.to_owned(), log, ended);
        let id = id.to_owned();
        self.spawn(task, move |ended| Msg::Message(name, id, ended));
    }

    pub(super) fn ended(&mut self, name: &str, id: &str, ended: Ended) {
        let container = self.container(name);
        if container.id.ends_with(id) && container.alive() {
            container.run = Run::Ended(ended);
            container.startup = false;
            container.readiness = false;
            container.kill = None;
            container.waiting = None;
        }
    }

    /// Whatever still counted as alive went with its sandbox.
    pub(super) fn lose_containers(&mut self, now: Timestamp) {
        let names: Vec<String> =
            self.state.containers.iter().filter(|(_, c)| c.alive()).map(|(n, _)| n.clone()).collect();
        for name in names {
            if let Some(prober) = self.probers.remove(&name) {
                prober.abort();
            }
            let container = self.container(&name);
            let exit = Exit { code: 137, signal: Some(9), oom_killed: false, finished_at: now };
            let started = container.started_at().unwrap_or(now);
            container.run = Run::Ended(adopt::ended(&container.id, started, &exit));
        }
    }

    /// Keeps one ended instance of a container, for `kubectl logs --previous`.
    fn collect_garbage(&mut self, name: &str) {
        let log_dir = self.context.log_dir(&self.state.pod).join(name);
        let dead = self.dead.entry(name.to_owned()).or_default();
        while dead.len() > 1 {
            let (id, attempt) = dead.remove(0);
            let context = self.context.clone();
            let log = log_dir.join(format!("{attempt}.log"));
            tokio::spawn(async move {
                if let Err(error) = context.runtime.remove_container(&id).await {
                    tracing::warn!(%error, id, "an old container could not be removed");
                }
                // It may never have written a log.
                let _ = tokio::fs::remove_file(log).await;
            });
        }
    }
}

fn shown_image(image: &crate::node::image::Image, asked: &str) -> String {
    let parsed = crate::node::image::Reference::parse(asked).map(|r| r.to_string()).unwrap_or_default();
    let known = image.repo_tags.iter().find(|tag| **tag == parsed).or(image.repo_tags.first());
    known.cloned().unwrap_or_else(|| asked.to_owned())
}
