//! The decision about one pod: what is there, what the spec wants, the time -> what to do next. Pure.
//!
//! The rules are those of the kubelet's `computePodActions`, `SyncPod` and `SyncTerminatingPod`.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

use super::backoff::is_over;
use super::pod_state::{ContainerState, Ended, PodState, Role, Run, Stage, StopStage};
use super::resize::{self, Change};

/// A container always gets this long between the stop signal and SIGKILL (`minimumGracePeriodInSeconds`).
const MINIMUM_GRACE: SignedDuration = SignedDuration::from_secs(2);

/// One thing to do. The worker does it without another decision.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Set up the volumes.
    MountVolumes,
    /// Create the sandbox and attach the network; `changed` when the pod had one before.
    CreateSandbox {
        /// Init containers run again, and the event `SandboxChanged` is due.
        changed: bool,
    },
    /// Remove a sandbox that died, so that a new one can be made.
    ReplaceSandbox,
    /// Pull the image, create and start a container.
    Start(String),
    /// Show `ImagePullBackOff` from now on.
    ShowPullBackOff(String),
    /// Send the event `BackOff` of a crash loop.
    TellBackOff(String),
    /// Begin to stop a container: preStop hook if any, else the stop signal at once.
    Stop {
        /// The container.
        name: String,
        /// The end of its grace period.
        deadline: Timestamp,
        /// The message of the event `Killing`.
        message: String,
    },
    /// Stop a container as [`Action::Stop`] does, and start it again whatever its restart policy says.
    Replace {
        /// The container.
        name: String,
        /// The end of its grace period.
        deadline: Timestamp,
        /// The message of the event `Killing`.
        message: String,
    },
    /// Have the kernel hold the containers to the resources that they were given.
    Resize,
    /// The grace period became shorter.
    Hasten(String, Timestamp),
    /// Send the stop signal; SIGKILL may follow at the instant given.
    Term(String, Timestamp),
    /// Send SIGKILL.
    Kill(String),
    /// Give up a start that is under way.
    CancelStart(String),
    /// Remove the sandbox, detach the network.
    RemoveSandbox,
    /// Remove the volumes and the pod's directory.
    RemoveVolumes,
    /// The pod as a whole failed: reason and message.
    Fail(String, String),
    /// Delete the object (grace period 0, this uid).
    Delete,
    /// The worker's work is over.
    Finish,
}

/// What to do now and when to look again if nothing happens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// The next deadline.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }
}

/// Decides what to do about a pod.
pub fn decide(state: &PodState, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if let Some((began, grace)) = state.termination() {
        terminate(state, began, grace, now, &mut plan);
        return plan;
    }
    if state.failed.is_some() {
        let grace = SignedDuration::from_secs(state.spec().termination_grace_period_seconds.unwrap_or(30).max(1));
        terminate(state, now, grace, now, &mut plan);
        return plan;
    }
    if is_complete(state) {
        terminate(state, now, SignedDuration::from_secs(30), now, &mut plan);
        return plan;
    }
    if let Some(seconds) = state.spec().active_deadline_seconds {
        let deadline = state.start_time.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
        if now >= deadline {
            let message = "Pod was active on the node longer than the specified deadline";
            plan.push(Action::Fail("DeadlineExceeded".into(), message.into()));
            return plan;
        }
        plan.wake(deadline);
    }
    if state.blocked.is_none() {
        run(state, now, &mut plan);
    }
    plan
}

/// Whether a container that ended is started again by its restart policy.
pub fn restarts(spec: &core::PodSpec, role: Role, container: &core::Container, ended: &Ended) -> bool {
    let pod_policy = spec.restart_policy.as_deref().unwrap_or("Always");
    match role {
        Role::Ephemeral => return false,
        Role::Sidecar => return true,
        Role::Init | Role::Regular => {}
    }
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|code| *code == ended.exit_code);
        if (codes.operator == "In" && listed) || (codes.operator == "NotIn" && !listed) {
            return true;
        }
    }
    match container.restart_policy.as_deref().unwrap_or(pod_policy) {
        "Never" => false,
        "OnFailure" => ended.exit_code != 0,
        // An init container that succeeded is done under every policy.
        _ => role == Role::Regular || ended.exit_code != 0,
    }
}

/// Whether all regular containers ended for good, or an init container failed for good.
pub fn is_complete(state: &PodState) -> bool {
    let spec = state.spec();
    let over = |role: Role, c: &core::Container| {
        let container = state.container(&c.name);
        !container.again && container.ended().is_some_and(|ended| !restarts(spec, role, c, ended))
    };
    let specs = state.specs();
    let init_failed = specs.iter().any(|(role, c)| {
        *role == Role::Init && over(Role::Init, c) && state.container(&c.name).ended().is_some_and(|e| e.exit_code != 0)
    });
    let mut regular = specs.iter().filter(|(role, _)| *role == Role::Regular).peekable();
    init_failed || (regular.peek().is_some() && regular.all(|(role, c)| over(*role, c)))
}

/// Whether every init container is done and every sidecar has started (`hasInitialized` of the kubelet: once a regular
/// container was started, the pod counts as initialised).
pub fn initialized(state: &PodState) -> bool {
    let specs = state.specs();
    let any_regular = specs.iter().any(|(role, c)| {
        *role == Role::Regular && !matches!(state.container(&c.name).run, Run::Absent | Run::Starting)
    });
    any_regular || specs.iter().all(|(role, c)| init_done(*role, c, state.container(&c.name)))
}

fn init_done(role: Role, spec: &core::Container, container: &ContainerState) -> bool {
    match role {
        Role::Init => container.ended().is_some_and(|e| e.exit_code == 0),
        Role::Sidecar => container.started(spec),
        Role::Regular | Role::Ephemeral => true,
    }
}

fn run(state: &PodState, now: Timestamp, plan: &mut Plan) {
    stop_what_failed_its_probes(state, now, plan);
    change_what_runs(state, now, plan);
    match state.volumes {
        Stage::Missing => plan.push(Action::MountVolumes),
        // Only an object's change can help.
        Stage::Failed(at) if at == Timestamp::MAX => {}
        Stage::Failed(at) if is_over(at, now) => plan.push(Action::MountVolumes),
        Stage::Failed(at) => plan.wake(at),
        _ => {}
    }
    if state.volumes != Stage::Ready {
        return;
    }
    match state.sandbox {
        // Containers of a sandbox that died are dead too; wait until all of them are known to be.
        Stage::Missing if state.containers.values().any(ContainerState::alive) => {}
        Stage::Missing => plan.push(Action::CreateSandbox { changed: state.had_sandbox }),
        Stage::Failed(at) if is_over(at, now) => plan.push(Action::CreateSandbox { changed: state.had_sandbox }),
        Stage::Failed(at) => plan.wake(at),
        Stage::Removed => plan.push(Action::ReplaceSandbox),
        _ => {}
    }
    if state.sandbox != Stage::Ready {
        return;
    }
    let done = initialized(state);
    for (role, spec) in state.specs() {
        let container = state.container(&spec.name);
        match role {
            Role::Init if done => continue,
            // Sidecars are restarted as long as the pod runs.
            Role::Sidecar if done => start(state, role, &spec, now, plan),
            Role::Init | Role::Sidecar => {
                start(state, role, &spec, now, plan);
                if !init_done(role, &spec, container) {
                    return;
                }
            }
            Role::Regular | Role::Ephemeral => start(state, role, &spec, now, plan),
        }
    }
}

fn start(state: &PodState, role: Role, spec: &core::Container, now: Timestamp, plan: &mut Plan) {
    let container = state.container(&spec.name);
    match &container.run {
        Run::Absent => match container.retry_at {
            Some(at) if !is_over(at, now) => {
                plan.wake(at);
                match container.pull_shown_until {
                    Some(until) if now >= until => plan.push(Action::ShowPullBackOff(spec.name.clone())),
                    Some(until) => plan.wake(until),
                    None => {}
                }
            }
            _ => plan.push(Action::Start(spec.name.clone())),
        },
        Run::Ended(ended) if container.again || restarts(state.spec(), role, spec, ended) => {
            let at = container.crash_loop.ready_at(ended.finished_at);
            if is_over(at, now) {
                plan.push(Action::Start(spec.name.clone()));
                return;
            }
            plan.wake(at);
            // How it ended is told before that it waits.
            if !container.backoff_told && !state.status_busy {
                plan.push(Action::TellBackOff(spec.name.clone()));
            }
        }
        _ => {}
    }
}

fn stop_what_failed_its_probes(state: &PodState, now: Timestamp, plan: &mut Plan) {
    let spec_grace = state.spec().termination_grace_period_seconds.unwrap_or(30);
    for (_, spec) in state.specs() {
        let container = state.container(&spec.name);
        match (&container.run, &container.kill) {
            (Run::Running { .. }, Some((message, grace))) => {
                let grace = SignedDuration::from_secs(grace.unwrap_or(spec_grace).max(1));
                let deadline = now.saturating_add(grace).unwrap_or(Timestamp::MAX);
                plan.push(Action::Stop { name: spec.name.clone(), deadline, message: message.clone() });
            }
            (Run::Stopping(_), _) => progress(&spec.name, container, None, now, plan),
            _ => {}
        }
    }
}

/// What a newer object says of containers that run: another image, other resources.
fn change_what_runs(state: &PodState, now: Timestamp, plan: &mut Plan) {
    let grace = SignedDuration::from_secs(state.spec().termination_grace_period_seconds.unwrap_or(30).max(1));
    let deadline = now.saturating_add(grace).unwrap_or(Timestamp::MAX);
    let mut by_kernel = false;
    for (role, spec) in state.specs() {
        let container = state.container(&spec.name);
        if !matches!(container.run, Run::Running { .. }) || container.kill.is_some() {
            continue;
        }
        let name = spec.name.clone();
        let other_image = container.asked_image.is_some() && container.asked_image != spec.image;
        match resize::change(role, &spec, container.given.as_ref()) {
            _ if other_image && matches!(role, Role::Regular | Role::Sidecar) => {
                let message = format!("Container {name} definition changed, will be restarted");
                plan.push(Action::Replace { name, deadline, message });
            }
            Change::Restart => {
                let message = format!("Container {name} resize requires restart");
                plan.push(Action::Replace { name, deadline, message });
            }
            Change::Kernel => by_kernel = true,
            Change::None => {}
        }
    }
    match state.resize.retry_at {
        _ if !by_kernel || state.resize.busy => {}
        Some(at) if !is_over(at, now) => plan.wake(at),
        _ => plan.push(Action::Resize),
    }
}

/// Carries on with the stop of a container.
fn progress(name: &str, container: &ContainerState, shorter: Option<Timestamp>, now: Timestamp, plan: &mut Plan) {
    let Run::Stopping(stopping) = &container.run else { return };
    let mut deadline = stopping.deadline;
    if let Some(shorter) = shorter.filter(|s| *s < deadline) {
        plan.push(Action::Hasten(name.to_owned(), shorter));
        deadline = shorter;
    }
    match stopping.stage {
        StopStage::Hook if stopping.hook_done || now >= deadline => {
            let least = now.saturating_add(MINIMUM_GRACE).unwrap_or(Timestamp::MAX);
            plan.push(Action::Term(name.to_owned(), deadline.max(least)));
        }
        StopStage::Term if now >= deadline => plan.push(Action::Kill(name.to_owned())),
        StopStage::Hook | StopStage::Term => plan.wake(deadline),
        StopStage::Kill => {}
    }
}

fn terminate(state: &PodState, began: Timestamp, grace: SignedDuration, now: Timestamp, plan: &mut Plan) {
    // A clock that was set back makes it no longer.
    let deadline = began.min(now).saturating_add(grace).unwrap_or(Timestamp::MAX);
    let mut others_alive = false;
    let specs = state.specs();
    let stop = |spec: &core::Container, plan: &mut Plan| -> bool {
        let container = state.container(&spec.name);
        match &container.run {
            Run::Starting => plan.push(Action::CancelStart(spec.name.clone())),
            Run::Running { .. } => {
                let message = format!("Stopping container {}", spec.name);
                let least = now.saturating_add(MINIMUM_GRACE.min(grace)).unwrap_or(Timestamp::MAX);
                plan.push(Action::Stop { name: spec.name.clone(), deadline: deadline.max(least), message });
            }
            Run::Stopping(_) => progress(&spec.name, container, Some(deadline), now, plan),
            Run::Absent | Run::Ended(_) => return false,
        }
        true
    };
    for (role, spec) in specs.iter().filter(|(role, _)| *role != Role::Sidecar) {
        let _ = role;
        others_alive |= stop(spec, plan);
    }
    if others_alive {
        return;
    }
    // Sidecars end after everything else, the last one first.
    for (_, spec) in specs.iter().rev().filter(|(role, _)| *role == Role::Sidecar) {
        if stop(spec, plan) {
            return;
        }
    }
    match state.sandbox {
        Stage::Ready | Stage::Failed(_) => return plan.push(Action::RemoveSandbox),
        Stage::Busy | Stage::Removing => return,
        Stage::Missing | Stage::Removed => {}
    }
    let deleting = state.pod.metadata.deletion_timestamp.is_some();
    if !deleting && state.removed_at.is_none() && state.shutdown_at.is_some() {
        if !state.status_busy && state.volumes != Stage::Busy {
            plan.push(Action::Finish);
        }
        return;
    }
    let gone = deleting || state.removed_at.is_some();
    match state.volumes {
        Stage::Removed if state.cleaned || !gone => {}
        Stage::Busy | Stage::Removing => return,
        _ => return plan.push(Action::RemoveVolumes),
    }
    if state.status_busy {
        return;
    }
    if state.removed_at.is_some() {
        plan.push(Action::Finish);
    } else if deleting && !state.delete_sent {
        plan.push(Action::Delete);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).expect("in range")
    }

    fn state(spec: serde_json::Value) -> PodState {
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec});
        let mut state = PodState::new(serde_json::from_value(pod).expect("a pod"), at(0));
        state.volumes = Stage::Ready;
        state.sandbox = Stage::Ready;
        state
    }

    fn set(state: &mut PodState, name: &str, run: Run) {
        state.containers.get_mut(name).expect("a container of the pod").run = run;
    }

    fn running() -> Run {
        Run::Running { started_at: at(0), hooked: true }
    }

    fn ended(code: i32, when: i64) -> Run {
        Run::Ended(Ended {
            exit_code: code,
            reason: "Error".into(),
            message: String::new(),
            started_at: at(0),
            finished_at: at(when),
            container_id: String::new(),
        })
    }

    fn actions(state: &PodState, seconds: i64) -> Vec<Action> {
        decide(state, at(seconds)).actions
    }

    fn one(policy: &str) -> PodState {
        state(json!({"restartPolicy": policy, "containers": [{"name": "c"}]}))
    }

    #[test]
    fn init_containers_run_in_order_and_a_sidecar_holds_the_next_until_it_started() {
        let mut s = state(json!({
            "initContainers": [
                {"name": "one"},
                {"name": "side", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 1}}},
                {"name": "two"},
            ],
            "containers": [{"name": "a"}, {"name": "b"}],
        }));
        let start = |n: &str| Action::Start(n.into());
        assert_eq!(actions(&s, 0), [start("one")]);
        set(&mut s, "one", ended(0, 1));
        assert_eq!(actions(&s, 1), [start("side")]);
        set(&mut s, "side", running());
        assert_eq!(actions(&s, 2), [], "the startup probe has not succeeded");
        s.containers.get_mut("side").expect("there").startup = true;
        assert_eq!(actions(&s, 2), [start("two")]);
        set(&mut s, "two", ended(1, 3));
        assert_eq!(actions(&s, 3), [start("two")], "a failed init container restarts under Always");
        set(&mut s, "two", ended(0, 3));
        assert_eq!(actions(&s, 4), [start("a"), start("b")]);
        set(&mut s, "a", running());
        set(&mut s, "b", running());
        set(&mut s, "side", ended(0, 5));
        assert_eq!(actions(&s, 5), [start("side")], "a sidecar restarts even after success");
    }

    #[test]
    fn restart_policies() {
        for (policy, code, restarts) in [
            ("Always", 0, true),
            ("Always", 1, true),
            ("OnFailure", 0, false),
            ("OnFailure", 1, true),
            ("Never", 1, false),
        ] {
            let mut s = one(policy);
            set(&mut s, "c", ended(code, 1));
            let started = actions(&s, 1).contains(&Action::Start("c".into()));
            assert_eq!(started, restarts, "{policy} {code}");
        }
    }

    #[test]
    fn a_crash_loop_waits_and_tells_once() {
        let mut s = one("Always");
        set(&mut s, "c", ended(1, 100));
        s.containers.get_mut("c").expect("there").crash_loop.next(at(90));
        s.status_busy = true;
        assert_eq!(actions(&s, 101), [], "how it ended is told first");
        s.status_busy = false;
        let plan = decide(&s, at(101));
        assert_eq!(plan, Plan { actions: vec![Action::TellBackOff("c".into())], wake_at: Some(at(110)) });
        s.containers.get_mut("c").expect("there").backoff_told = true;
        assert_eq!(actions(&s, 101), []);
        assert_eq!(actions(&s, 110), [Action::Start("c".into())]);
    }

    #[test]
    fn a_completed_pod_gives_up_its_sandbox_and_keeps_its_object() {
        let mut s = one("Never");
        set(&mut s, "c", ended(0, 1));
        assert_eq!(actions(&s, 1), [Action::RemoveSandbox]);
        s.sandbox = Stage::Removed;
        assert_eq!(actions(&s, 1), [Action::RemoveVolumes]);
        s.volumes = Stage::Removed;
        assert_eq!(decide(&s, at(1)), Plan::default());
    }

    #[test]
    fn deletion_stops_containers_then_sidecars_in_reverse_then_deletes() {
        let mut s = state(json!({
            "terminationGracePeriodSeconds": 10,
            "initContainers": [{"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
            "containers": [{"name": "c", "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}],
        }));
        for name in ["s1", "s2", "c"] {
            set(&mut s, name, running());
        }
        s.pod.metadata.deletion_timestamp = Some(at(110).into());
        s.pod.metadata.deletion_grace_period_seconds = Some(10);
        let stop = |name: &str, t: i64| Action::Stop {
            name: name.into(),
            deadline: at(t),
            message: format!("Stopping container {name}"),
        };
        assert_eq!(actions(&s, 100), [stop("c", 110)]);
        let stopping = |stage, hook_done| {
            Run::Stopping(super::super::pod_state::Stopping { started_at: at(0), deadline: at(110), stage, hook_done })
        };
        set(&mut s, "c", stopping(StopStage::Hook, false));
        assert_eq!(decide(&s, at(101)), Plan { actions: vec![], wake_at: Some(at(110)) });
        assert_eq!(actions(&s, 110), [Action::Term("c".into(), at(112))], "two seconds are always left after a hook");
        set(&mut s, "c", stopping(StopStage::Term, true));
        assert_eq!(actions(&s, 110), [Action::Kill("c".into())]);
        set(&mut s, "c", ended(137, 111));
        assert_eq!(actions(&s, 105), [stop("s2", 110)]);
        set(&mut s, "s2", ended(0, 106));
        assert_eq!(actions(&s, 106), [stop("s1", 110)]);
        set(&mut s, "s1", ended(0, 107));
        assert_eq!(actions(&s, 107), [Action::RemoveSandbox]);
        s.sandbox = Stage::Removed;
        s.volumes = Stage::Removed;
        assert_eq!(actions(&s, 107), [Action::RemoveVolumes], "records and logs go as well");
        s.cleaned = true;
        assert_eq!(actions(&s, 107), [Action::Delete]);
        s.delete_sent = true;
        assert_eq!(actions(&s, 107), []);
        s.removed_at = Some(at(108));
        assert_eq!(actions(&s, 108), [Action::Finish]);
    }

    #[test]
    fn a_shorter_grace_period_hastens_the_kill() {
        let mut s = one("Always");
        let run = super::super::pod_state::Stopping {
            started_at: at(0),
            deadline: at(130),
            stage: StopStage::Term,
            hook_done: true,
        };
        set(&mut s, "c", Run::Stopping(run));
        s.pod.metadata.deletion_timestamp = Some(at(105).into());
        s.pod.metadata.deletion_grace_period_seconds = Some(5);
        let hasten = Action::Hasten("c".into(), at(105));
        assert_eq!(decide(&s, at(101)), Plan { actions: vec![hasten.clone()], wake_at: Some(at(105)) });
        assert_eq!(actions(&s, 105), [hasten, Action::Kill("c".into())]);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_wait_longer() {
        const HOURS: i64 = 5 * 3600;
        let mut s = one("Always");
        set(&mut s, "c", ended(1, HOURS));
        s.containers.get_mut("c").expect("there").crash_loop.next(at(HOURS));
        assert_eq!(actions(&s, 0), [Action::Start("c".into())]);
        s.containers.get_mut("c").expect("there").make_room();
        s.containers.get_mut("c").expect("there").retry_at = Some(at(HOURS));
        assert_eq!(actions(&s, 0), [Action::Start("c".into())]);
        s.sandbox = Stage::Failed(at(HOURS));
        assert_eq!(actions(&s, 0), [Action::CreateSandbox { changed: false }]);
        s.volumes = Stage::Failed(at(HOURS));
        assert_eq!(actions(&s, 0), [Action::MountVolumes]);
        s.volumes = Stage::Failed(Timestamp::MAX);
        assert_eq!(decide(&s, at(0)), Plan::default(), "only an object's change can help");

        let mut s = one("Always");
        let stopping = super::super::pod_state::Stopping {
            started_at: at(HOURS),
            deadline: at(HOURS + 30),
            stage: StopStage::Term,
            hook_done: true,
        };
        set(&mut s, "c", Run::Stopping(stopping));
        s.pod.metadata.deletion_timestamp = Some(at(HOURS + 30).into());
        s.pod.metadata.deletion_grace_period_seconds = Some(30);
        let plan = decide(&s, at(1));
        assert_eq!(plan, Plan { actions: vec![Action::Hasten("c".into(), at(31))], wake_at: Some(at(31)) });
    }

    #[test]
    fn a_clock_that_was_set_ends_no_container_that_runs() {
        let probe = json!({"httpGet": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1});
        let mut s = state(json!({"restartPolicy": "Always", "terminationGracePeriodSeconds": 1,
            "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": probe}],
            "containers": [{"name": "c", "livenessProbe": probe, "readinessProbe": probe}]}));
        for name in ["s", "c"] {
            set(&mut s, name, running());
            s.containers.get_mut(name).expect("there").startup = true;
        }
        for now in [-5 * 3600, 0, 5 * 3600, 100 * 24 * 3600] {
            assert_eq!(decide(&s, at(now)), Plan::default(), "{now}");
        }
    }

    #[test]
    fn the_active_deadline_fails_the_pod() {
        let mut s = one("Always");
        s.pod.spec.as_mut().expect("a spec").active_deadline_seconds = Some(5);
        set(&mut s, "c", running());
        assert_eq!(decide(&s, at(1)).wake_at, Some(at(5)));
        assert!(matches!(&actions(&s, 5)[..], [Action::Fail(reason, _)] if reason == "DeadlineExceeded"));
    }

    #[test]
    fn a_liveness_failure_stops_the_container_with_the_probes_grace() {
        let mut s = one("Always");
        set(&mut s, "c", running());
        s.containers.get_mut("c").expect("there").kill = Some(("failed".into(), Some(3)));
        assert_eq!(actions(&s, 7), [Action::Stop { name: "c".into(), deadline: at(10), message: "failed".into() }]);
    }

    #[test]
    fn a_dead_sandbox_is_replaced_once_its_containers_are_gone() {
        let mut s = one("Always");
        s.sandbox = Stage::Removed;
        s.had_sandbox = true;
        set(&mut s, "c", ended(255, 1));
        assert_eq!(actions(&s, 1), [Action::ReplaceSandbox]);
        s.sandbox = Stage::Missing;
        assert_eq!(actions(&s, 1), [Action::CreateSandbox { changed: true }]);
    }
}
