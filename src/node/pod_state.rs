//! What the node knows of one pod at one instant. The worker keeps it up to date; `sync_pod` and `status` only read it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

use super::backoff::Backoff;
use super::resize::Resize;
use super::sync_pod;

/// What a container is within its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to completion before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    /// One of `spec.containers`.
    Regular,
    /// One of `spec.ephemeralContainers`.
    Ephemeral,
}

/// A step that is done once for the pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Not begun.
    Missing,
    /// Under way.
    Busy,
    /// Done.
    Ready,
    /// Failed; tried again at this instant (or earlier, when an object that was missing appears).
    Failed(Timestamp),
    /// Being undone.
    Removing,
    /// Undone for good.
    Removed,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The exit code; 128 + the signal when a signal ended it.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub reason: String,
    /// The termination message, or why it could not start.
    pub message: String,
    /// When it began; the epoch when it never did.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// The whole container ID with its scheme; empty when there is none.
    pub container_id: String,
}

/// How far the stop of a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopStage {
    /// The preStop hook runs.
    Hook,
    /// The stop signal was sent.
    Term,
    /// SIGKILL was sent.
    Kill,
}

/// A container that was asked to end.
#[derive(Clone, Debug, PartialEq)]
pub struct Stopping {
    /// When it had started.
    pub started_at: Timestamp,
    /// When the grace period ends.
    pub deadline: Timestamp,
    /// What has been done so far.
    pub stage: StopStage,
    /// Whether the preStop hook is over.
    pub hook_done: bool,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq)]
pub enum Run {
    /// It has not run yet (or its next instance has not).
    Absent,
    /// Image pull, creation and start are under way.
    Starting,
    /// It runs; `hooked` once its postStart hook is over.
    Running {
        /// When it started.
        started_at: Timestamp,
        /// Whether the postStart hook (if any) succeeded.
        hooked: bool,
    },
    /// It was asked to end.
    Stopping(Stopping),
    /// It ended.
    Ended(Ended),
}

/// One container of the pod.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerState {
    /// What it does.
    pub run: Run,
    /// The runtime's ID of the current or last instance; empty before the first.
    pub id: String,
    /// The image as the runtime names it (`status.containerStatuses.image`).
    pub image: String,
    /// The image's ID.
    pub image_id: String,
    /// How often it was restarted.
    pub restarts: i32,
    /// How the instance before the current one ended.
    pub last: Option<Ended>,
    /// How the instance ended that the next one replaces; it stays the current one until that one is there.
    pub replaced: Option<Ended>,
    /// Reason and message while it waits.
    pub waiting: Option<(String, String)>,
    /// Restarts.
    pub crash_loop: Backoff,
    /// Image pulls.
    pub pull: Backoff,
    /// When the next attempt may follow a failed one.
    pub retry_at: Option<Timestamp>,
    /// When `ErrImagePull` becomes `ImagePullBackOff`.
    pub pull_shown_until: Option<Timestamp>,
    /// Whether the event `BackOff` was sent for this wait.
    pub backoff_told: bool,
    /// Whether the startup probe (if any) succeeded.
    pub startup: bool,
    /// Whether the readiness probe (if any) succeeds.
    pub readiness: bool,
    /// Set when a liveness or startup probe or a hook failed: the event's message, and the grace period asked for.
    pub kill: Option<(String, Option<i64>)>,
    /// The resources that the kernel holds the instance to; `None` before the first.
    pub given: Option<core::ResourceRequirements>,
    /// The image that the spec named when the instance was started; `None`: an earlier daemon started it.
    pub asked_image: Option<String>,
    /// Whether it is started again whatever its restart policy says.
    pub again: bool,
}

impl Default for ContainerState {
    fn default() -> Self {
        Self {
            run: Run::Absent,
            id: String::new(),
            image: String::new(),
            image_id: String::new(),
            restarts: 0,
            last: None,
            replaced: None,
            waiting: None,
            crash_loop: Backoff::default(),
            pull: Backoff::default(),
            retry_at: None,
            pull_shown_until: None,
            backoff_told: false,
            startup: false,
            readiness: false,
            kill: None,
            given: None,
            asked_image: None,
            again: false,
        }
    }
}

impl ContainerState {
    /// Whether a process may be there.
    pub fn alive(&self) -> bool {
        matches!(self.run, Run::Running { .. } | Run::Stopping(_))
    }
    /// How it ended, when it has.
    pub fn ended(&self) -> Option<&Ended> {
        match &self.run {
            Run::Ended(ended) => Some(ended),
            _ => None,
        }
    }
    /// How the current instance ended, also while the next one is on its way.
    pub fn latest_end(&self) -> Option<&Ended> {
        self.ended().or(self.replaced.as_ref())
    }
    /// The instance that ended (if any) is going to be replaced.
    pub fn make_room(&mut self) {
        if let Run::Ended(ended) = std::mem::replace(&mut self.run, Run::Absent) {
            self.replaced = Some(ended);
        }
    }
    /// The number of the next instance.
    pub fn next_attempt(&self) -> i32 {
        self.restarts + i32::from(self.replaced.is_some())
    }
    /// The next instance is there: from now on it is the current one.
    pub fn created(&mut self) {
        self.restarts = self.next_attempt();
        self.last = self.replaced.take().or(self.last.take());
    }
    /// When the instance that runs was started.
    pub fn started_at(&self) -> Option<Timestamp> {
        match &self.run {
            Run::Running { started_at, .. } | Run::Stopping(Stopping { started_at, .. }) => Some(*started_at),
            _ => None,
        }
    }
    /// Whether it runs, its postStart hook is over and its startup probe (if any) has succeeded.
    pub fn started(&self, spec: &core::Container) -> bool {
        match self.run {
            Run::Running { hooked, .. } => hooked && (spec.startup_probe.is_none() || self.startup),
            Run::Stopping(_) => spec.startup_probe.is_none() || self.startup,
            _ => false,
        }
    }
    /// Whether it counts as ready.
    pub fn ready(&self, spec: &core::Container) -> bool {
        self.started(spec) && (spec.readiness_probe.is_none() || self.readiness)
    }
}

/// Everything known of one pod.
#[derive(Clone, Debug)]
pub struct PodState {
    /// The latest object, with the resources that the node gave.
    pub pod: core::Pod,
    /// Resources that it asks for beside those.
    pub resize: Resize,
    /// When the node accepted the pod.
    pub start_time: Timestamp,
    /// When the pod's object vanished from the API.
    pub removed_at: Option<Timestamp>,
    /// When the node began to stop.
    pub shutdown_at: Option<Timestamp>,
    /// Reason and message of a failure of the pod as a whole (`DeadlineExceeded`, `UnexpectedAdmissionError`).
    pub failed: Option<(String, String)>,
    /// Reason and message of what keeps the pod from running; it waits until that is over.
    pub blocked: Option<(String, String)>,
    /// The volumes.
    pub volumes: Stage,
    /// The sandbox with the network.
    pub sandbox: Stage,
    /// Whether a sandbox was there before (then a new one is a change that restarts the pod).
    pub had_sandbox: bool,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// The containers by name, of all roles.
    pub containers: BTreeMap<String, ContainerState>,
    /// Whether the last status is being written.
    pub status_busy: bool,
    /// Whether records, directory and logs are gone as well (a pod that only completed keeps them).
    pub cleaned: bool,
    /// Whether the delete was sent.
    pub delete_sent: bool,
}

impl PodState {
    /// A pod that was just bound to this node.
    pub fn new(pod: core::Pod, now: Timestamp) -> Self {
        let start_time = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(now, |t| t.0);
        let mut state = Self {
            pod,
            resize: Resize::default(),
            start_time,
            removed_at: None,
            shutdown_at: None,
            failed: None,
            blocked: None,
            volumes: Stage::Missing,
            sandbox: Stage::Missing,
            had_sandbox: false,
            ips: Vec::new(),
            containers: BTreeMap::new(),
            status_busy: false,
            cleaned: false,
            delete_sent: false,
        };
        state.add_containers();
        state
    }

    /// Takes a newer object (ephemeral containers may have been added).
    pub fn update(&mut self, pod: core::Pod) {
        self.pod = pod;
        self.add_containers();
    }

    /// The sandbox is a new one: init containers run again, and regular ones wait for them. Concerns the instances that are
    /// `of_earlier` sandboxes, by their ID.
    pub fn initialize_again(&mut self, of_earlier: impl Fn(&str) -> bool) {
        let specs = self.specs();
        let pod_spec = self.spec().clone();
        // Without init containers there is nothing to wait for.
        let init = specs.iter().any(|(role, _)| matches!(role, Role::Init | Role::Sidecar));
        for (role, spec) in &specs {
            let Some(container) = self.containers.get_mut(&spec.name) else { continue };
            let Some(ended) = container.ended() else { continue };
            let again = match role {
                Role::Init => true,
                Role::Regular => init && sync_pod::restarts(&pod_spec, *role, spec, ended),
                Role::Sidecar | Role::Ephemeral => false,
            };
            if again && of_earlier(&container.id) {
                container.make_room();
            }
        }
    }

    fn add_containers(&mut self) {
        for (_, spec) in self.specs() {
            self.containers.entry(spec.name).or_default();
        }
    }

    /// The pod's spec; an empty one when there is none (which the API server does not allow).
    pub fn spec(&self) -> &core::PodSpec {
        static EMPTY: std::sync::LazyLock<core::PodSpec> = std::sync::LazyLock::new(core::PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// All containers with their roles: init containers first, then regular, then ephemeral ones.
    pub fn specs(&self) -> Vec<(Role, core::Container)> {
        specs(self.spec())
    }

    /// The state of a container.
    pub fn container(&self, name: &str) -> &ContainerState {
        static ABSENT: std::sync::LazyLock<ContainerState> = std::sync::LazyLock::new(ContainerState::default);
        self.containers.get(name).unwrap_or(&ABSENT)
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }
    /// `metadata.namespace`.
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }
    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }
    /// `name_namespace(uid)`, as the kubelet's messages have it.
    pub fn described(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    /// Since when and with which grace period the pod has to end, when it has to.
    pub fn termination(&self) -> Option<(Timestamp, SignedDuration)> {
        let spec_grace = self.spec().termination_grace_period_seconds.unwrap_or(30);
        // The kubelet never gives less than a second (`calculateEffectiveGracePeriod`).
        let grace = |seconds: i64| SignedDuration::from_secs(seconds.clamp(1, 1 << 31));
        if let Some(at) = &self.pod.metadata.deletion_timestamp {
            let seconds = self.pod.metadata.deletion_grace_period_seconds.unwrap_or(spec_grace);
            // The API server writes the end of the grace period.
            let began = at.0.saturating_sub(SignedDuration::from_secs(seconds.max(0))).unwrap_or(at.0);
            return Some((began, grace(seconds)));
        }
        if let Some(at) = self.removed_at {
            return Some((at, grace(spec_grace)));
        }
        self.shutdown_at.map(|at| (at, grace(spec_grace)))
    }
}

/// All containers of a spec with their roles.
pub fn specs(spec: &core::PodSpec) -> Vec<(Role, core::Container)> {
    let init = spec.init_containers.iter().flatten().map(|c| {
        let role = if c.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init };
        (role, c.clone())
    });
    let regular = spec.containers.iter().map(|c| (Role::Regular, c.clone()));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (Role::Ephemeral, ephemeral_as_container(c)));
    init.chain(regular).chain(ephemeral).collect()
}

fn ephemeral_as_container(c: &core::EphemeralContainer) -> core::Container {
    core::Container {
        name: c.name.clone(),
        image: c.image.clone(),
        command: c.command.clone(),
        args: c.args.clone(),
        env: c.env.clone(),
        env_from: c.env_from.clone(),
        image_pull_policy: c.image_pull_policy.clone(),
        security_context: c.security_context.clone(),
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path.clone(),
        termination_message_policy: c.termination_message_policy.clone(),
        tty: c.tty,
        volume_mounts: c.volume_mounts.clone(),
        working_dir: c.working_dir.clone(),
        ..core::Container::default()
    }
}
