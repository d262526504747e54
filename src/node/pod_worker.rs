//! One task per pod: keeps what is known of it, asks `sync_pod` what to do, does it, writes the status.
//!
//! Everything slow runs in tasks of its own that report back by message, so that a pull never delays a signal.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::container_start::{self, Down, Job, Up};
use super::context::{Context, container_reference};
use super::objects::Changed;
use super::pod_state::{ContainerState, Ended, PodState, Role, Run, Stage, StopStage, Stopping};
use super::pod_tasks::{self, TokenCache};
use super::probes::{self, Kind, Outcome, Report};
use super::runtime::{Exit, SandboxStatus};
use super::sync_pod::{self, Action};
use super::volumes::{MountError, Mounted};
use super::{adopt, lifecycle, resize, security, status};
use crate::client::recorder::EventType::{Normal, Warning};

/// How long `ErrImagePull` is shown before it becomes `ImagePullBackOff`.
const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_secs(3);

/// How long news of the sandbox may wait for those of its containers.
const SANDBOX_TOLD_WITHIN: SignedDuration = SignedDuration::from_millis(300);

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
                Some(at) => {
                    let wait = at.duration_since(self.context.env.now());
                    // A deadline centuries away is none.
                    let wait = Duration::try_from(wait).unwrap_or(Duration::ZERO).min(Duration::from_secs(1 << 30));
                    tokio::select! {
                        message = receiver.recv() => message,
                        () = tokio::time::sleep(wait) => continue,
                    }
                }
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
        let Some(renew) = self.tokens.renew_at() else { return plan };
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

    fn event(&self, name: &str, type_: crate::client::recorder::EventType, reason: &str, message: impl Into<String>) {
        let role = self.spec(name).map_or(Role::Regular, |(role, _)| role);
        let regarding = container_reference(&self.state.pod, role, name);
        self.context.recorder.about(regarding, type_, reason, message);
    }

    fn changed(&self) -> Changed {
        let sender = self.sender.clone();
        Arc::new(move || drop(sender.send(Msg::Objects)))
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

    fn mount_task(
        &self,
        again: bool,
    ) -> impl Future<Output = Result<(Mounted, TokenCache), Vec<MountError>>> + Send + 'static {
        let facts = self.context.facts(&self.state.ips);
        let tokens = self.tokens.clone();
        pod_tasks::mount(self.context.clone(), self.state.pod.clone(), facts, tokens, self.changed(), again)
    }

    fn refresh(&mut self) {
        if self.refreshing {
            self.refresh_again = true;
            return;
        }
        self.refreshing = true;
        self.spawn(self.mount_task(true), Msg::Refreshed);
    }

    /// Refuses a pod that the node cannot run, and keeps one from running while the node cannot give it what it asks for
    /// (the kubelet's admission handlers; `appArmorAdmitHandler`).
    fn admit(&mut self) {
        let fresh = self.state.containers.values().all(|c| c.run == Run::Absent && c.replaced.is_none());
        if let Err(refusal) = self.context.admit(&self.state.pod, fresh) {
            self.context.recorder.event(&self.state.pod, Warning, &refusal.reason, refusal.message.clone());
            self.state.failed = Some((refusal.reason, format!("Pod was rejected: {}", refusal.message)));
            return;
        }
        if !fresh || self.state.termination().is_some() {
            return;
        }
        let armor = &self.context.options.app_armor;
        let why = armor.validate(&self.state.pod).err().map(|why| format!("Cannot enforce AppArmor: {why}"));
        if let Some(message) = &why {
            if self.state.blocked.as_ref().is_none_or(|(_, before)| before != message) {
                self.context.recorder.event(&self.state.pod, Warning, "AppArmor", message.clone());
            }
            let armor = armor.clone();
            let waiting = self.spawn(async move { armor.changed().await }, |()| Msg::Profiles);
            if let Some(old) = self.unblock.replace(waiting) {
                old.abort();
            }
        }
        self.state.blocked = why.map(|message| ("AppArmor".to_owned(), message));
    }

    fn create_sandbox(&mut self, changed: bool) {
        self.state.sandbox = Stage::Busy;
        if changed {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.context.recorder.event(&self.state.pod, Normal, "SandboxChanged", message);
            self.state.initialize_again(|_| true);
        }
        self.state.had_sandbox = true;
        self.spawn(pod_tasks::create_sandbox(self.context.clone(), self.state.pod.clone()), Msg::Sandbox);
    }

    fn remove_sandbox_task(&self) -> impl Future<Output = ()> + Send + 'static {
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

    fn start(&mut self, name: &str, now: Timestamp) {
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

    /// The instance of the container whose processes an ephemeral container shall see (`targetContainerName`).
    fn target(&self, name: &str) -> Option<String> {
        let ephemeral = self.state.spec().ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
        let target = ephemeral.target_container_name.as_deref().filter(|target| !target.is_empty())?;
        Some(self.state.container(target).id.trim_start_matches(adopt::SCHEME).to_owned())
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

    fn cancel_start(&mut self, name: &str) {
        if let Some(task) = self.starts.remove(name) {
            task.abort();
        }
        // The runtime may have started it in this instant; removing the sandbox takes care of that.
        let container = self.container(name);
        container.run = Run::Absent;
    }

    fn show_pull_back_off(&mut self, name: &str) {
        let image = self.spec(name).and_then(|(_, c)| c.image).unwrap_or_default();
        let container = self.container(name);
        container.pull_shown_until = None;
        let Some((reason, message)) = container.waiting.clone() else { return };
        let text = format!("Back-off pulling image {image:?}");
        container.waiting = Some(("ImagePullBackOff".into(), format!("{text}: {reason}: {message}")));
        self.event(name, Normal, "BackOff", text);
        self.event(name, Warning, "Failed", "Error: ImagePullBackOff");
    }

    fn tell_back_off(&mut self, name: &str) {
        let described = self.state.described();
        let container = self.container(name);
        container.backoff_told = true;
        let delay = container_start::go_duration(Duration::try_from(container.crash_loop.delay()).unwrap_or_default());
        let message = format!("back-off {delay} restarting failed container={name} pod={described}");
        container.waiting = Some(("CrashLoopBackOff".into(), message));
        self.event(name, Warning, "BackOff", format!("Back-off restarting failed container {name} in pod {described}"));
    }

    fn stop(&mut self, name: &str, deadline: Timestamp, message: &str) {
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

    fn hook(&self, name: &str, spec: &core::Container, handler: core::LifecycleHandler, pre_stop: bool) {
        let id = self.state.container(name).id.trim_start_matches(adopt::SCHEME).to_owned();
        let (context, spec, ip) = (self.context.clone(), spec.clone(), self.state.ips.first().copied());
        let name = name.to_owned();
        let task = {
            let id = id.clone();
            async move { lifecycle::run(&handler, &spec, &id, ip, context.runtime.as_ref(), context.network.as_ref()).await }
        };
        self.spawn(task, move |result| Msg::Hook(name, id, pre_stop, result));
    }

    fn stop_signal(&self, name: &str) -> i32 {
        let of_spec = self.spec(name).and_then(|(_, c)| c.lifecycle.and_then(|l| l.stop_signal));
        let text = of_spec.or_else(|| self.stop_signals.get(name).cloned()).unwrap_or_default();
        parse_signal(&text).unwrap_or(libc::SIGTERM)
    }

    fn signal(&self, name: &str, signal: i32) {
        let id = self.state.container(name).id.trim_start_matches(adopt::SCHEME).to_owned();
        tokio::spawn(pod_tasks::signal(self.context.clone(), id, signal));
    }

    fn apply(&mut self, message: Msg) {
        let now = self.context.env.now();
        match message {
            Msg::Pod(pod) => self.take_pod(*pod),
            Msg::Removed => self.state.removed_at = self.state.removed_at.or(Some(now)),
            Msg::Shutdown => self.state.shutdown_at = self.state.shutdown_at.or(Some(now)),
            Msg::Exited(id, exit) => self.exited(&id, exit),
            Msg::SandboxLost => {
                if self.state.sandbox == Stage::Ready {
                    self.state.sandbox = Stage::Removed;
                    self.lose_containers(now);
                }
            }
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

    /// A newer object. Its status may be older than what we wrote: our own conditions stay.
    fn take_pod(&mut self, mut pod: core::Pod) {
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

    /// Grants what the pod asks for beside what it has, or says why not.
    fn judge_resize(&mut self) {
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
    fn resize(&mut self) {
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

    fn resized(
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
    fn end_resize(&mut self) {
        if resize::is_done(&self.state)
            && let Some(progress) = self.state.resize.progress.take()
        {
            let message = resize::message("completed", &self.state.pod, progress.generation, None);
            self.context.recorder.event(&self.state.pod, Normal, "ResizeCompleted", message);
        }
    }

    fn objects_changed(&mut self) {
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

    fn volumes_mounted(&mut self, result: Result<(Mounted, TokenCache), Vec<MountError>>, now: Timestamp) {
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

    fn refreshed(&mut self, result: Result<(Mounted, TokenCache), Vec<MountError>>) {
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

    fn sandbox_created(&mut self, result: Result<Vec<IpAddr>, String>, now: Timestamp) {
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
            }
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                self.context.recorder.event(&self.state.pod, Warning, "FailedCreatePodSandBox", message);
                self.state.sandbox = Stage::Failed(retry(&mut self.sandbox_failures, 1000, 60_000, now));
            }
        }
    }

    fn started(&mut self, name: &str, id: &str, result: Result<Up, Down>, now: Timestamp) {
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

    fn hook_ended(&mut self, name: &str, id: &str, pre_stop: bool, result: Result<(), String>) {
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

    /// Starts (again) the prober of a running container.
    fn probe(&mut self, name: &str) {
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

    fn probed(&mut self, report: &Report) {
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

    fn exited(&mut self, id: &str, exit: Exit) {
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

    fn ended(&mut self, name: &str, id: &str, ended: Ended) {
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
    fn lose_containers(&mut self, now: Timestamp) {
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
        starting && now < until
    }

    /// Writes the status when it says something new.
    fn publish(&mut self, now: Timestamp) {
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

/// The next attempt after the `failures`-th failure, doubling from `first` to `most` milliseconds.
fn retry(failures: &mut u32, first: i64, most: i64, now: Timestamp) -> Timestamp {
    let wait = first.saturating_mul(1 << (*failures).min(20)).min(most);
    *failures = failures.saturating_add(1);
    now.saturating_add(SignedDuration::from_millis(wait)).unwrap_or(Timestamp::MAX)
}

fn shown_image(image: &super::image::Image, asked: &str) -> String {
    let parsed = super::image::Reference::parse(asked).map(|r| r.to_string()).unwrap_or_default();
    let known = image.repo_tags.iter().find(|tag| **tag == parsed).or(image.repo_tags.first());
    known.cloned().unwrap_or_else(|| asked.to_owned())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
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
