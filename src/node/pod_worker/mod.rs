//! One task per pod: keeps what is known of it, asks `sync_pod` what to do, does it, writes the status.
//!
//! Everything slow runs in tasks of its own that report back by message, so that a pull never delays a signal.

mod admission;
mod containers;
mod probes;
mod resize;
mod sandbox;
mod status;
mod stop;
mod volumes;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::adopt;
use super::container_start::{Down, Up};
use super::context::{Context, container_reference};
use super::pod_state::{ContainerState, Ended, PodState, Role, Run, Stage, StopStage};
use super::pod_tasks::{self, TokenCache};
use super::probes::Report;
use super::runtime::{Exit, SandboxStatus};
use super::sync_pod::{self, Action};
use super::volumes::{MountError, Mounted};
use crate::client::recorder::EventType::{self, Normal};

/// What a worker is told.
pub enum Msg {
    /// The object changed.
    Pod(Box<core::Pod>),
    /// The object is gone.
    Removed,
    /// The node stops.
    Shutdown,
    /// A container ended.
    Exited(String, Exit),
    /// The sandbox is gone.
    SandboxLost,
    /// An object that the pod uses changed.
    Objects,
    /// AppArmor profiles were loaded or removed.
    Profiles,
    /// Another pod asks for less than before.
    Room,
    /// The kernel holds containers to other resources, or not: what it was told by container.
    Resized(BTreeMap<String, core::ResourceRequirements>, Result<(), String>),
    /// The volumes are there, or not.
    Mounted(Result<(Mounted, TokenCache), Vec<MountError>>),
    /// Volumes were written again after a change.
    Refreshed(Result<(Mounted, TokenCache), Vec<MountError>>),
    /// The sandbox is there, or not.
    Sandbox(Result<Vec<IpAddr>, String>),
    /// A container was started, or not: name, id, result.
    Started(String, String, Result<Up, Down>),
    /// A hook ended: name, id, whether it is `preStop`, result.
    Hook(String, String, bool, Result<(), String>),
    /// A probe told something.
    Probe(Report),
    /// How a container ended, with its termination message: name, id.
    Message(String, String, Ended),
    /// The status was written, or not.
    StatusWritten(bool),
    /// The sandbox is removed (`true`: for good).
    SandboxRemoved(bool),
    /// The volumes are removed (`true`: and all records).
    VolumesRemoved(bool),
    /// The delete failed and is to be tried again.
    DeleteFailed,
}

/// A worker that runs.
pub struct Handle {
    /// Where it takes messages.
    pub sender: mpsc::UnboundedSender<Msg>,
    /// The pod, for the kubelet API.
    pub view: watch::Receiver<Arc<PodState>>,
}

struct Worker {
    context: Arc<Context>,
    state: PodState,
    view: watch::Sender<Arc<PodState>>,
    sender: mpsc::UnboundedSender<Msg>,
    mounted: Mounted,
    tokens: TokenCache,
    refreshing: bool,
    refresh_again: bool,
    /// The status that the API has, as far as we know.
    written: Option<core::PodStatus>,
    /// Exits that came before the start was reported.
    early: HashMap<String, Exit>,
    starts: BTreeMap<String, AbortHandle>,
    probers: BTreeMap<String, AbortHandle>,
    /// Waits for what keeps the pod from running to be over.
    unblock: Option<AbortHandle>,
    /// Waits until there may be room for a resize.
    awaits_room: Option<AbortHandle>,
    resize_failures: u32,
    /// Ended instances that still exist, oldest first, by container.
    dead: BTreeMap<String, Vec<(String, i32)>>,
    /// The image's stop signals by container.
    stop_signals: BTreeMap<String, String>,
    mount_failures: u32,
    sandbox_failures: u32,
    /// It ended before its making was reported.
    lost_early: bool,
    /// Until when a status that tells of the sandbox only may wait.
    defer_until: Option<Timestamp>,
}

/// Starts the worker of a pod. `found` is what the runtime has of it already.
pub fn spawn(
    context: Arc<Context>,
    pod: core::Pod,
    found: Option<SandboxStatus>,
) -> (Handle, impl Future<Output = ()>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let now = context.env.now();
    let written = pod.status.clone().filter(|s| s.start_time.is_some());
    let adopted = adopt::adopt(pod, found.as_ref(), now);
    let (view, shown) = watch::channel(Arc::new(adopted.state.clone()));
    let mut worker = Worker {
        context,
        state: adopted.state,
        view,
        sender: sender.clone(),
        mounted: Mounted::new(),
        tokens: TokenCache::default(),
        refreshing: false,
        refresh_again: false,
        written,
        early: HashMap::new(),
        starts: BTreeMap::new(),
        probers: BTreeMap::new(),
        unblock: None,
        awaits_room: None,
        resize_failures: 0,
        dead: adopted.dead,
        stop_signals: BTreeMap::new(),
        mount_failures: 0,
        sandbox_failures: 0,
        lost_early: false,
        defer_until: None,
    };
    let run = async move {
        if adopted.sandbox_runs {
            worker.state.sandbox = Stage::Busy;
            worker.spawn(pod_tasks::attach(worker.context.clone(), worker.state.pod.clone()), Msg::Sandbox);
        }
        let running: Vec<String> = worker.state.containers.keys().cloned().collect();
        for name in running {
            worker.probe(&name);
        }
        worker.admit();
        worker.judge_resize();
        worker.run(receiver).await;
    };
    (Handle { sender, view: shown }, run)
}

impl Worker {
    async fn run(mut self, mut receiver: mpsc::UnboundedReceiver<Msg>) {
        loop {
            let Some(wake_at) = self.settle() else { break };
            let message = match wake_at {
                None => receiver.recv().await,
                Some(at) => tokio::select! {
                    message = receiver.recv() => message,
                    () = self.context.env.sleep_until(at) => continue,
                },
            };
            let Some(message) = message else { break };
            self.apply(message);
            while let Ok(message) = receiver.try_recv() {
                self.apply(message);
            }
        }
        let waiting = self.unblock.iter().chain(&self.awaits_room);
        self.starts.values().chain(self.probers.values()).chain(waiting).for_each(AbortHandle::abort);
        self.context.objects.release(self.state.uid());
        self.context.release(self.state.uid());
    }

    /// Decides and acts until there is nothing to do now. Returns the next deadline; `None`: the work is over.
    #[expect(clippy::option_option, reason = "over, or wait with or without a deadline")]
    fn settle(&mut self) -> Option<Option<Timestamp>> {
        // Each round carries out what it decided, so the next decides less; the bound guards against a mistake only.
        for _ in 0..1000 {
            let now = self.context.env.now();
            let plan = sync_pod::decide(&self.state, now);
            if plan.actions.is_empty() {
                self.publish(now);
                // Writing may have to come before the next step (the delete).
                if !self.state.status_busy && !sync_pod::decide(&self.state, now).actions.is_empty() {
                    continue;
                }
                return Some(self.next_wake(plan.wake_at));
            }
            for action in plan.actions {
                if action == Action::Finish || action == Action::Delete {
                    self.publish(now);
                    if self.state.status_busy {
                        return Some(plan.wake_at);
                    }
                }
                if action == Action::Finish {
                    return None;
                }
                if matches!(action, Action::TellBackOff(_)) {
                    self.publish(now);
                    if self.state.status_busy {
                        continue;
                    }
                }
                self.execute(action, now);
            }
        }
        tracing::error!(pod = self.state.described(), "a pod does not settle");
        Some(Some(self.context.env.now().saturating_add(SignedDuration::from_secs(10)).unwrap_or(Timestamp::MAX)))
    }

    /// The plan's deadline, or that of the first token to renew.
    fn next_wake(&mut self, plan: Option<Timestamp>) -> Option<Timestamp> {
        // A deadline that has passed has been seen to (`publish` comes first).
        let now = self.context.env.now();
        self.defer_until = self.defer_until.filter(|at| *at > now);
        let plan = [plan, self.defer_until].into_iter().flatten().min();
        if self.state.volumes != Stage::Ready || self.refreshing {
            return plan;
        }
        let Some(renew) = self.tokens.renew_at(now) else { return plan };
        if renew <= self.context.env.now() {
            self.refresh();
            return plan;
        }
        Some(plan.map_or(renew, |at| at.min(renew)))
    }

    fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
        message: impl FnOnce(T) -> Msg + Send + 'static,
    ) -> AbortHandle {
        let sender = self.sender.clone();
        // The worker may be gone when the task ends: then nobody waits for it.
        tokio::spawn(async move { drop(sender.send(message(task.await))) }).abort_handle()
    }

    fn container(&mut self, name: &str) -> &mut ContainerState {
        self.state.containers.entry(name.to_owned()).or_default()
    }

    fn spec(&self, name: &str) -> Option<(Role, core::Container)> {
        self.state.specs().into_iter().find(|(_, c)| c.name == name)
    }

    fn event(&self, name: &str, type_: EventType, reason: &str, message: impl Into<String>) {
        let role = self.spec(name).map_or(Role::Regular, |(role, _)| role);
        let regarding = container_reference(&self.state.pod, role, name);
        self.context.recorder.about(regarding, type_, reason, message);
    }

    fn execute(&mut self, action: Action, now: Timestamp) {
        tracing::debug!(pod = self.state.described(), ?action, "pod");
        match action {
            Action::MountVolumes => {
                self.state.volumes = Stage::Busy;
                self.spawn(self.mount_task(false), Msg::Mounted);
            }
            Action::CreateSandbox { changed } => self.create_sandbox(changed),
            Action::ReplaceSandbox => {
                self.state.sandbox = Stage::Removing;
                let task = pod_tasks::remove_sandbox(self.context.clone(), self.state.pod.clone());
                self.spawn(task, |()| Msg::SandboxRemoved(false));
            }
            Action::Start(name) => self.start(&name, now),
            Action::ShowPullBackOff(name) => self.show_pull_back_off(&name),
            Action::TellBackOff(name) => self.tell_back_off(&name),
            Action::Stop { name, deadline, message } => self.stop(&name, deadline, &message),
            Action::Replace { name, deadline, message } => {
                self.container(&name).again = true;
                self.stop(&name, deadline, &message);
            }
            Action::Resize => self.resize(),
            Action::Hasten(name, deadline) => {
                if let Run::Stopping(stopping) = &mut self.container(&name).run {
                    stopping.deadline = deadline;
                }
            }
            Action::Term(name, deadline) => {
                if let Run::Stopping(stopping) = &mut self.container(&name).run {
                    stopping.stage = StopStage::Term;
                    stopping.deadline = deadline;
                }
                self.signal(&name, self.stop_signal(&name));
            }
            Action::Kill(name) => {
                if let Run::Stopping(stopping) = &mut self.container(&name).run {
                    stopping.stage = StopStage::Kill;
                }
                self.signal(&name, libc::SIGKILL);
            }
            Action::CancelStart(name) => self.cancel_start(&name),
            Action::RemoveSandbox => {
                self.state.sandbox = Stage::Removing;
                let task = self.remove_sandbox_task();
                self.spawn(task, |()| Msg::SandboxRemoved(true));
            }
            Action::RemoveVolumes => {
                self.state.volumes = Stage::Removing;
                self.context.objects.release(self.state.uid());
                let gone = self.state.pod.metadata.deletion_timestamp.is_some() || self.state.removed_at.is_some();
                let task = pod_tasks::remove_volumes(self.context.clone(), self.state.pod.clone(), gone);
                self.spawn(task, move |()| Msg::VolumesRemoved(gone));
            }
            Action::Fail(reason, message) => {
                self.context.recorder.event(&self.state.pod, Normal, &reason, message.clone());
                self.state.failed = Some((reason, message));
            }
            Action::Delete => {
                self.state.delete_sent = true;
                let task = pod_tasks::delete(self.context.clone(), self.state.pod.clone());
                self.spawn(task, |gone| if gone { Msg::Removed } else { Msg::DeleteFailed });
            }
            Action::Finish => {}
        }
    }

    fn apply(&mut self, message: Msg) {
        let now = self.context.env.now();
        match message {
            Msg::Pod(pod) => self.take_pod(*pod),
            Msg::Removed => self.state.removed_at = self.state.removed_at.or(Some(now)),
            Msg::Shutdown => self.state.shutdown_at = self.state.shutdown_at.or(Some(now)),
            Msg::Exited(id, exit) => self.exited(&id, exit),
            Msg::SandboxLost => self.sandbox_lost(now),
            Msg::Objects => self.objects_changed(),
            Msg::Profiles => self.admit(),
            Msg::Room => self.judge_resize(),
            Msg::Resized(given, result) => self.resized(given, result, now),
            Msg::Mounted(result) => self.volumes_mounted(result, now),
            Msg::Refreshed(result) => self.refreshed(result),
            Msg::Sandbox(result) => self.sandbox_created(result, now),
            Msg::Started(name, id, result) => self.started(&name, &id, result, now),
            Msg::Hook(name, id, pre_stop, result) => self.hook_ended(&name, &id, pre_stop, result),
            Msg::Probe(report) => self.probed(&report),
            Msg::Message(name, id, ended) => self.ended(&name, &id, ended),
            Msg::StatusWritten(written) => {
                self.state.status_busy = false;
                if !written {
                    self.written = None;
                }
            }
            Msg::SandboxRemoved(for_good) => {
                self.state.sandbox = if for_good { Stage::Removed } else { Stage::Missing };
                if for_good {
                    self.lose_containers(now);
                }
            }
            Msg::VolumesRemoved(cleaned) => {
                self.state.volumes = Stage::Removed;
                self.state.cleaned |= cleaned;
            }
            Msg::DeleteFailed => self.state.delete_sent = false,
        }
    }
}

/// The next attempt after the `failures`-th failure, doubling from `first` to `most` milliseconds.
fn retry(failures: &mut u32, first: i64, most: i64, now: Timestamp) -> Timestamp {
    let wait = first.saturating_mul(1 << (*failures).min(20)).min(most);
    *failures = failures.saturating_add(1);
    now.saturating_add(SignedDuration::from_millis(wait)).unwrap_or(Timestamp::MAX)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
