//! `status` of a pod from what is known of it. Pure.
//!
//! The rules are those of the kubelet's `generateAPIPodStatus`, `convertToAPIContainerStatuses` and `status/generate.go`.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::pod_state::{ContainerState, Ended, PodState, Role, Run, Stage};
use super::{resize, sync_pod};

/// The whole status of a pod.
pub fn generate(state: &PodState, host_ips: &[IpAddr], now: Timestamp) -> core::PodStatus {
    let specs = state.specs();
    let initialized = sync_pod::initialized(state);
    let by_role = |wanted: &[Role]| -> Vec<core::ContainerStatus> {
        specs
            .iter()
            .filter(|(role, _)| wanted.contains(role))
            .map(|(role, spec)| container_status(state, *role, spec, initialized))
            .collect()
    };
    let containers = by_role(&[Role::Regular]);
    let init = by_role(&[Role::Init, Role::Sidecar]);
    let ephemeral = by_role(&[Role::Ephemeral]);
    let phase = phase(state);
    let generation = state.pod.metadata.generation;
    let mut conditions = conditions(state, phase, initialized, &specs);
    let old = state.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    carry_over(&mut conditions, old, generation, now);
    let mut resized = resize::conditions(&state.resize);
    for condition in &mut resized {
        condition.last_transition_time = resize::since(old, condition, now);
    }
    conditions.splice(0..0, resized);
    let ips: Vec<String> = state.ips.iter().map(ToString::to_string).collect();
    // A pod that the node refused says why, and nothing of containers that it never had (`rejectPod`).
    let refused = state.failed.is_some() && state.containers.values().all(|c| c.run == Run::Absent && c.id.is_empty());
    let some = |list: Vec<core::ContainerStatus>| Some(list).filter(|list| !list.is_empty() && !refused);
    core::PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        container_statuses: some(containers),
        init_container_statuses: some(init),
        ephemeral_container_statuses: some(ephemeral),
        host_ip: host_ips.first().map(ToString::to_string),
        host_ips: Some(host_ips.iter().map(|ip| core::HostIP { ip: ip.to_string() }).collect()),
        message: match (&state.failed, &state.blocked) {
            (Some((_, message)), _) => Some(message.clone()),
            (None, Some((_, message))) => Some(format!("Pod {message}")),
            (None, None) => None,
        },
        reason: state.failed.as_ref().or(state.blocked.as_ref()).map(|(reason, _)| reason.clone()),
        observed_generation: generation,
        pod_ip: ips.first().cloned(),
        pod_ips: if ips.is_empty() { None } else { Some(ips.into_iter().map(|ip| core::PodIP { ip }).collect()) },
        qos_class: Some(
            state
                .pod
                .status
                .as_ref()
                .and_then(|s| s.qos_class.clone())
                .unwrap_or_else(|| qos_class(state.spec()).to_owned()),
        ),
        start_time: Some(Time(state.start_time)),
        ..core::PodStatus::default()
    }
}

/// `Pending`, `Running`, `Succeeded` or `Failed` (`getPhase` of the kubelet).
pub fn phase(state: &PodState) -> &'static str {
    let spec = state.spec();
    if state.failed.is_some() {
        return "Failed";
    }
    let specs = state.specs();
    let deleted = (state.pod.metadata.deletion_timestamp.is_some() || state.removed_at.is_some())
        && !state.containers.values().any(|c| c.alive() || c.run == Run::Starting);
    let (mut running, mut stopped, mut succeeded, mut waiting) = (0, 0, 0, 0);
    let mut init_failed = false;
    for (role, c) in &specs {
        let container = state.container(&c.name);
        match (role, &container.run) {
            (Role::Init, Run::Ended(e)) if e.exit_code != 0 && !sync_pod::restarts(spec, *role, c, e) => {
                init_failed = true;
            }
            (Role::Regular, Run::Running { .. } | Run::Stopping(_)) => running += 1,
            (Role::Regular, Run::Ended(_) | Run::Absent | Run::Starting) => match container.latest_end() {
                Some(ended) => {
                    stopped += 1;
                    succeeded += usize::from(ended.exit_code == 0);
                }
                None => waiting += 1,
            },
            _ => {}
        }
    }
    if init_failed {
        return "Failed";
    }
    if deleted && running == 0 {
        return if stopped > 0 && succeeded == stopped && waiting == 0 { "Succeeded" } else { "Failed" };
    }
    if !sync_pod::initialized(state) || waiting > 0 {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    if stopped > 0 && sync_pod::is_complete(state) {
        return if succeeded == stopped { "Succeeded" } else { "Failed" };
    }
    if stopped > 0 { "Running" } else { "Pending" }
}

fn container_status(state: &PodState, role: Role, spec: &core::Container, initialized: bool) -> core::ContainerStatus {
    let container = state.container(&spec.name);
    let started = container.started(spec);
    let ready = match role {
        Role::Init => container.ended().is_some_and(|e| e.exit_code == 0),
        _ => container.ready(spec),
    };
    let (run_state, last) = states(state, role, spec, container, initialized);
    let image =
        if container.image.is_empty() { spec.image.clone().unwrap_or_default() } else { container.image.clone() };
    core::ContainerStatus {
        name: spec.name.clone(),
        container_id: if container.id.is_empty() { None } else { Some(container.id.clone()) },
        image,
        image_id: container.image_id.clone(),
        state: Some(run_state),
        last_state: Some(last.map_or_else(core::ContainerState::default, terminated)),
        ready,
        restart_count: container.restarts,
        started: Some(started),
        resources: container.given.clone().or_else(|| spec.resources.clone()).filter(|_| container.alive()),
        allocated_resources: spec.resources.as_ref().and_then(|r| r.requests.clone()).filter(|_| container.alive()),
        volume_mounts: spec.volume_mounts.as_ref().map(|mounts| {
            mounts
                .iter()
                .map(|m| core::VolumeMountStatus {
                    name: m.name.clone(),
                    mount_path: m.mount_path.clone(),
                    read_only: m.read_only,
                    recursive_read_only: m.read_only.filter(|r| *r).map(|_| "Disabled".to_owned()),
                })
                .collect()
        }),
        ..core::ContainerStatus::default()
    }
}

/// The current state and how the instance before ended.
fn states<'a>(
    state: &PodState,
    role: Role,
    spec: &core::Container,
    container: &'a ContainerState,
    initialized: bool,
) -> (core::ContainerState, Option<&'a Ended>) {
    let last = container.last.as_ref();
    let waiting = |reason: &str, message: Option<String>| core::ContainerState {
        waiting: Some(core::ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..core::ContainerState::default()
    };
    let told = || container.waiting.as_ref().map(|(reason, message)| waiting(reason, some(message)));
    if let Some(started_at) = container.started_at() {
        let running = core::ContainerStateRunning { started_at: Some(Time(started_at)) };
        return (core::ContainerState { running: Some(running), ..core::ContainerState::default() }, last);
    }
    match container.latest_end() {
        // What ended is shown until its successor is there; as waiting once there is a reason why that takes long.
        Some(ended) => {
            let ending = state.termination().is_some() || state.failed.is_some();
            match told() {
                Some(waiting) if !ending && sync_pod::restarts(state.spec(), role, spec, ended) => {
                    (waiting, Some(ended))
                }
                _ => (terminated(ended), last),
            }
        }
        None => {
            let has_init = state.spec().init_containers.as_ref().is_some_and(|list| !list.is_empty());
            let default = match (&state.blocked, !initialized && has_init) {
                (Some(_), _) => "Blocked",
                (None, true) => "PodInitializing",
                (None, false) => "ContainerCreating",
            };
            (told().unwrap_or_else(|| waiting(default, None)), last)
        }
    }
}

fn terminated(ended: &Ended) -> core::ContainerState {
    core::ContainerState {
        terminated: Some(core::ContainerStateTerminated {
            container_id: some(&ended.container_id),
            exit_code: ended.exit_code,
            finished_at: Some(Time(ended.finished_at)),
            started_at: Some(Time(ended.started_at)),
            reason: some(&ended.reason),
            message: some(&ended.message),
            signal: None,
        }),
        ..core::ContainerState::default()
    }
}

fn some(text: &str) -> Option<String> {
    if text.is_empty() { None } else { Some(text.to_owned()) }
}

type Verdict = (bool, Option<String>, Option<String>);

fn conditions(
    state: &PodState,
    phase: &str,
    initialized: bool,
    specs: &[(Role, core::Container)],
) -> Vec<core::PodCondition> {
    let terminal = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    let containers_ready = containers_ready(state, terminal, specs);
    let ready = ready(state, &containers_ready);
    let sandbox = state.sandbox == Stage::Ready && (!state.ips.is_empty() || state.spec().host_network == Some(true));
    let condition = |kind: &str, (holds, reason, message): Verdict| core::PodCondition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason,
        message,
        ..core::PodCondition::default()
    };
    vec![
        condition("PodReadyToStartContainers", (sandbox, None, None)),
        condition("Initialized", initialized_verdict(state, phase, initialized, specs)),
        condition("Ready", ready),
        condition("ContainersReady", containers_ready),
        condition("PodScheduled", (true, None, None)),
    ]
}

fn initialized_verdict(state: &PodState, phase: &str, initialized: bool, specs: &[(Role, core::Container)]) -> Verdict {
    if initialized {
        let reason = if phase == "Succeeded" { Some("PodCompleted".to_owned()) } else { None };
        return (true, reason, None);
    }
    let names: Vec<&str> = specs
        .iter()
        .filter(|(role, c)| match role {
            Role::Init => !state.container(&c.name).ended().is_some_and(|e| e.exit_code == 0),
            Role::Sidecar => !state.container(&c.name).started(c),
            _ => false,
        })
        .map(|(_, c)| c.name.as_str())
        .collect();
    let message = format!("containers with incomplete status: [{}]", names.join(" "));
    (false, Some("ContainersNotInitialized".to_owned()), Some(message))
}

fn containers_ready(state: &PodState, terminal: Option<&str>, specs: &[(Role, core::Container)]) -> Verdict {
    if let Some(reason) = terminal {
        return (false, Some(reason.to_owned()), None);
    }
    let unready: Vec<&str> = specs
        .iter()
        .filter(|(role, _)| matches!(role, Role::Regular | Role::Sidecar))
        .filter(|(_, c)| !state.container(&c.name).ready(c))
        .map(|(_, c)| c.name.as_str())
        .collect();
    if unready.is_empty() {
        return (true, None, None);
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    (false, Some("ContainersNotReady".to_owned()), Some(message))
}

fn ready(state: &PodState, containers_ready: &Verdict) -> Verdict {
    if !containers_ready.0 {
        return containers_ready.clone();
    }
    let existing = state.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut messages = Vec::new();
    for gate in state.spec().readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match existing.into_iter().flatten().find(|c| c.type_ == *kind) {
            None => messages.push(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(c) if c.status != "True" => {
                messages.push(format!("the status of pod readiness gate {kind:?} is not \"True\", but {}", c.status))
            }
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        return (true, None, None);
    }
    (false, Some("ReadinessGatesNotReady".to_owned()), Some(messages.join(", ")))
}

/// Keeps conditions of others, and the transition times of what did not change.
fn carry_over(
    conditions: &mut Vec<core::PodCondition>,
    old: Option<&Vec<core::PodCondition>>,
    generation: Option<i64>,
    now: Timestamp,
) {
    for condition in conditions.iter_mut() {
        let before = old.into_iter().flatten().find(|c| c.type_ == condition.type_);
        condition.last_transition_time = match before {
            Some(c) if c.status == condition.status => c.last_transition_time.clone(),
            _ => Some(Time(now)),
        };
        condition.observed_generation = generation;
    }
    let own: Vec<String> = conditions.iter().map(|c| c.type_.clone()).collect();
    let others = old.into_iter().flatten().filter(|c| !own.contains(&c.type_));
    conditions.extend(others.filter(|c| ![resize::PENDING, resize::IN_PROGRESS].contains(&c.type_.as_str())).cloned());
}

/// The quality-of-service class (`GetPodQOS`).
pub fn qos_class(spec: &core::PodSpec) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for c in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let resources = c.resources.as_ref();
        let requests = resources.and_then(|r| r.requests.as_ref());
        let limits = resources.and_then(|r| r.limits.as_ref());
        for name in ["cpu", "memory"] {
            let nonzero = |q: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>| {
                q.filter(|q| super::quantity::parse(&q.0).is_some_and(|n| n > 0)).cloned()
            };
            let request = nonzero(requests.and_then(|r| r.get(name)));
            let limit = nonzero(limits.and_then(|l| l.get(name)));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.as_ref().is_none_or(|r| Some(r) == limit.as_ref());
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
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
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u", "generation": 3}, "spec": spec});
        PodState::new(serde_json::from_value(pod).expect("a pod"), at(0))
    }

    fn condition<'a>(status: &'a core::PodStatus, kind: &str) -> &'a core::PodCondition {
        status.conditions.iter().flatten().find(|c| c.type_ == kind).expect("the condition")
    }

    #[test]
    fn a_new_pod_is_pending_with_kubernetes_words() {
        let s = state(json!({"containers": [{"name": "web", "image": "nginx"}]}));
        let status = generate(&s, &["192.168.49.2".parse().expect("an address")], at(0));
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        let ready = condition(&status, "Ready");
        assert_eq!(ready.reason.as_deref(), Some("ContainersNotReady"));
        assert_eq!(ready.message.as_deref(), Some("containers with unready status: [web]"));
        assert_eq!(ready.observed_generation, Some(3));
        assert_eq!(condition(&status, "Initialized").status, "True");
        let container = &status.container_statuses.as_ref().expect("statuses")[0];
        let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref()).expect("waiting");
        assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
        assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    }

    #[test]
    fn pods_with_init_containers_wait_as_pod_initializing() {
        let s = state(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}));
        let status = generate(&s, &[], at(0));
        assert_eq!(
            condition(&status, "Initialized").message.as_deref(),
            Some("containers with incomplete status: [i]")
        );
        let reason = |list: &Option<Vec<core::ContainerStatus>>| {
            let first = &list.as_ref().expect("statuses")[0];
            first.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.clone())
        };
        assert_eq!(reason(&status.container_statuses).as_deref(), Some("PodInitializing"));
    }

    #[test]
    fn a_crash_loop_shows_as_waiting_with_the_last_state() {
        let mut s = state(json!({"containers": [{"name": "c"}]}));
        s.sandbox = Stage::Ready;
        let c = s.containers.get_mut("c").expect("there");
        c.run = Run::Ended(Ended {
            exit_code: 1,
            reason: "Error".into(),
            message: String::new(),
            started_at: at(0),
            finished_at: at(1),
            container_id: "mini://x".into(),
        });
        c.waiting = Some(("CrashLoopBackOff".into(), "back-off 10s".into()));
        let status = generate(&s, &[], at(2));
        let c = &status.container_statuses.as_ref().expect("statuses")[0];
        let waiting = c.state.as_ref().and_then(|s| s.waiting.as_ref()).expect("waiting");
        assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
        let last = c.last_state.as_ref().and_then(|s| s.terminated.as_ref()).expect("terminated");
        assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
        assert_eq!(status.phase.as_deref(), Some("Running"), "the kubelet calls a crash-looping pod Running");
    }

    #[test]
    fn a_container_that_ended_is_shown_until_its_successor_is_there() {
        for (code, reason) in [(0, "Completed"), (3, "Error")] {
            let mut s = state(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}));
            let ended = Ended {
                exit_code: code,
                reason: reason.into(),
                message: String::new(),
                started_at: at(0),
                finished_at: at(1),
                container_id: "mini://one".into(),
            };
            s.containers.get_mut("i").expect("there").run = Run::Ended(Ended { exit_code: 0, ..ended.clone() });
            let shown = |s: &PodState| generate(s, &[], at(2)).container_statuses.expect("statuses").remove(0);
            let c = s.containers.get_mut("c").expect("there");
            (c.id, c.run) = ("mini://one".into(), Run::Ended(ended));
            let before = shown(&s);
            let terminated = before.state.as_ref().and_then(|s| s.terminated.as_ref()).expect("terminated");
            assert_eq!((terminated.exit_code, terminated.reason.as_deref()), (code, Some(reason)));
            let c = s.containers.get_mut("c").expect("there");
            c.make_room();
            assert_eq!(shown(&s), before, "its successor may begin");
            s.containers.get_mut("c").expect("there").run = Run::Starting;
            assert_eq!(shown(&s), before, "its successor's image is being pulled");
            assert_eq!(phase(&s), "Running");
            s.containers.get_mut("c").expect("there").waiting = Some(("ErrImagePull".into(), "no".into()));
            let waits = shown(&s);
            assert_eq!(waits.state.and_then(|s| s.waiting).and_then(|w| w.reason).as_deref(), Some("ErrImagePull"));
            assert_eq!((waits.last_state.as_ref(), waits.restart_count), (before.state.as_ref(), 0));
            let c = s.containers.get_mut("c").expect("there");
            c.created();
            (c.run, c.waiting) = (Run::Running { started_at: at(2), hooked: true }, None);
            let after = shown(&s);
            assert_eq!((after.last_state.as_ref(), after.restart_count), (before.state.as_ref(), 1));
        }
    }

    #[test]
    fn transition_times_stay_and_foreign_conditions_survive() {
        let mut s = state(json!({"containers": [{"name": "c"}], "readinessGates": [{"conditionType": "x/y"}]}));
        let mut first = generate(&s, &[], at(0));
        let foreign = json!({"type": "x/y", "status": "False"});
        first.conditions.as_mut().expect("some").push(serde_json::from_value(foreign).expect("a condition"));
        s.pod.status = Some(first.clone());
        s.sandbox = Stage::Ready;
        s.containers.get_mut("c").expect("there").run = Run::Running { started_at: at(1), hooked: true };
        let second = generate(&s, &[], at(9));
        assert_eq!(condition(&second, "PodScheduled").last_transition_time, Some(Time(at(0))));
        assert_eq!(condition(&second, "ContainersReady").last_transition_time, Some(Time(at(9))));
        assert_eq!(condition(&second, "Ready").reason.as_deref(), Some("ReadinessGatesNotReady"));
        assert_eq!(condition(&second, "x/y").status, "False");
    }

    #[test]
    fn qos_classes() {
        let class = |resources: serde_json::Value| {
            let spec = json!({"containers": [{"name": "c", "resources": resources}]});
            qos_class(&serde_json::from_value(spec).expect("a spec"))
        };
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        assert_eq!(
            class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}})),
            "Burstable"
        );
    }
}
