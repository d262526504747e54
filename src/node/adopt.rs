//! What is known of a pod when its worker begins: from the runtime (containers outlive the daemon) and from the status
//! that was written last. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::pod_state::{ContainerState, Ended, PodState, Run};
use super::resize;
use super::runtime::{self, Exit, SandboxStatus};

/// What container IDs begin with.
pub const SCHEME: &str = "mini://";

/// The beginning of a worker.
pub struct Adopted {
    /// What is known.
    pub state: PodState,
    /// Whether the sandbox runs and its network has to be attached again.
    pub sandbox_runs: bool,
    /// Ended instances beside the current ones, oldest first.
    pub dead: BTreeMap<String, Vec<(String, i32)>>,
}

/// Puts together what is there.
pub fn adopt(mut pod: core::Pod, found: Option<&SandboxStatus>, now: Timestamp) -> Adopted {
    let old = pod.status.clone().unwrap_or_default();
    let desired = resize::hold_back(&mut pod, |name| resize::given_by_status(&old, name));
    let mut state = PodState::new(pod, now);
    (state.resize.desired, state.resize.progress) = (desired, resize::recalled(&old));
    let mut dead: BTreeMap<String, Vec<(String, i32)>> = BTreeMap::new();
    let sandbox_runs = found.is_some_and(|f| f.sandbox.is_some());
    if old.phase.as_deref() == Some("Failed") && old.reason.is_some() {
        state.failed = Some((old.reason.clone().unwrap_or_default(), old.message.clone().unwrap_or_default()));
    }
    state.ips = old.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    let statuses = [&old.init_container_statuses, &old.container_statuses, &old.ephemeral_container_statuses];
    for status in statuses.into_iter().flatten().flatten() {
        if let Some(container) = state.containers.get_mut(&status.name) {
            from_status(container, status, now);
        }
    }
    for container in found.iter().flat_map(|f| &f.containers) {
        let attempt = i32::try_from(container.attempt).unwrap_or(i32::MAX);
        let Some(known) = state.containers.get_mut(&container.name) else { continue };
        let id = format!("{SCHEME}{}", container.id);
        if known.id == id || attempt >= known.restarts {
            if !known.id.is_empty()
                && known.id != id
                && let Some(id) = known.id.strip_prefix(SCHEME)
            {
                // An older instance that the runtime still has.
                let old = (id.to_owned(), known.restarts);
                let exists = found.iter().flat_map(|f| &f.containers).any(|c| c.id == id);
                if exists {
                    dead.entry(container.name.clone()).or_default().push(old);
                }
            }
            from_runtime(known, container, &id, sandbox_runs, now);
        } else {
            dead.entry(container.name.clone()).or_default().push((container.id.clone(), attempt));
        }
    }
    if sandbox_runs {
        let known: Vec<String> =
            found.iter().flat_map(|f| &f.containers).map(|container| format!("{SCHEME}{}", container.id)).collect();
        state.initialize_again(|id| !known.iter().any(|known| known == id));
    }
    for (_, spec) in state.specs() {
        if let Some(container) = state.containers.get_mut(&spec.name).filter(|container| container.alive()) {
            container.given = resize::given_by_status(&old, &spec.name).or(spec.resources);
        }
    }
    state.had_sandbox =
        found.is_some() || state.containers.values().any(|c| !c.id.is_empty() || matches!(c.run, Run::Ended(_)));
    // A completed pod keeps showing its address.
    if !sandbox_runs && !super::sync_pod::is_complete(&state) && state.failed.is_none() {
        state.ips.clear();
    }
    Adopted { state, sandbox_runs, dead }
}

/// What the last written status says; a container that ran and that the runtime does not know was lost.
fn from_status(container: &mut ContainerState, status: &core::ContainerStatus, now: Timestamp) {
    container.id = status.container_id.clone().unwrap_or_default();
    container.image = status.image.clone();
    container.image_id = status.image_id.clone();
    container.restarts = status.restart_count;
    container.startup = status.started == Some(true);
    container.readiness = status.ready;
    let terminated = |state: &Option<core::ContainerState>| {
        state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| Ended {
            exit_code: t.exit_code,
            reason: t.reason.clone().unwrap_or_default(),
            message: t.message.clone().unwrap_or_default(),
            started_at: t.started_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            finished_at: t.finished_at.as_ref().map_or(now, |t| t.0),
            container_id: t.container_id.clone().unwrap_or_default(),
        })
    };
    let last = terminated(&status.last_state);
    let state = status.state.as_ref();
    if let Some(ended) = terminated(&status.state) {
        container.run = Run::Ended(ended);
        container.last = last;
    } else if let Some(running) = state.and_then(|s| s.running.as_ref()) {
        let started_at = running.started_at.as_ref().map_or(now, |t| t.0);
        container.run = Run::Ended(lost(&container.id, started_at, now));
        container.last = last;
    } else if let Some(ended) = last {
        // It waited for its successor.
        container.run = Run::Ended(ended);
    }
}

fn from_runtime(
    known: &mut ContainerState,
    container: &runtime::ContainerStatus,
    id: &str,
    sandbox_runs: bool,
    now: Timestamp,
) {
    let same = known.id == id;
    if !same {
        known.last = known.ended().cloned().or(known.last.take());
        known.startup = false;
        known.readiness = false;
    }
    known.id = id.to_owned();
    known.image = container.image.clone();
    known.image_id = container.image_id.clone();
    known.restarts = i32::try_from(container.attempt).unwrap_or(i32::MAX);
    known.run = match &container.exit {
        None if sandbox_runs => Run::Running { started_at: container.started_at, hooked: true },
        None => Run::Ended(lost(id, container.started_at, now)),
        // The status has the termination message already.
        Some(_) if same && known.ended().is_some_and(|e| e.container_id == id && e.reason != "Unknown") => {
            known.run.clone()
        }
        Some(exit) => Run::Ended(ended(id, container.started_at, exit)),
    };
}

fn lost(id: &str, started_at: Timestamp, now: Timestamp) -> Ended {
    Ended {
        exit_code: 255,
        reason: "Unknown".into(),
        message: String::new(),
        started_at,
        finished_at: now,
        container_id: id.to_owned(),
    }
}

/// How a container ended, in the kubelet's words.
pub fn ended(id: &str, started_at: Timestamp, exit: &Exit) -> Ended {
    let reason = match exit.code {
        _ if exit.oom_killed => "OOMKilled",
        0 => "Completed",
        _ => "Error",
    };
    Ended {
        exit_code: exit.code,
        reason: reason.into(),
        message: String::new(),
        started_at,
        finished_at: exit.finished_at,
        container_id: id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::runtime::{ContainerStatus, Sandbox, SandboxConfig};
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).expect("in range")
    }

    fn pod() -> core::Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [{"name": "c"}]},
            "status": {"startTime": "2026-01-01T00:00:00Z", "containerStatuses": [{"name": "c", "image": "i", "imageID": "",
                "ready": true, "started": true, "restartCount": 2, "containerID": "mini://two",
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]},
        }))
        .expect("a pod")
    }

    fn instance(id: &str, attempt: u32, exit: Option<i32>) -> ContainerStatus {
        let exit = exit.map(|code| Exit { code, signal: None, oom_killed: false, finished_at: at(5) });
        ContainerStatus {
            id: id.into(),
            pod_uid: "u".into(),
            name: "c".into(),
            attempt,
            image: "i".into(),
            image_id: String::new(),
            state: if exit.is_some() { runtime::ContainerState::Exited } else { runtime::ContainerState::Running },
            pid: None,
            started_at: at(1),
            exit,
            log_path: "l".into(),
            message_path: None,
        }
    }

    fn found(runs: bool, containers: Vec<ContainerStatus>) -> SandboxStatus {
        let sandbox =
            runs.then(|| Sandbox { uid: "u".into(), pid: 1, netns: "/proc/1/ns/net".into(), created_at: at(0) });
        SandboxStatus { config: SandboxConfig::default(), sandbox, containers }
    }

    #[test]
    fn a_container_that_still_runs_goes_on_and_the_older_one_is_kept_for_its_log() {
        let found = found(true, vec![instance("one", 1, Some(1)), instance("two", 2, None)]);
        let adopted = adopt(pod(), Some(&found), at(9));
        let c = adopted.state.container("c");
        assert!(adopted.sandbox_runs);
        assert_eq!(c.run, Run::Running { started_at: at(1), hooked: true });
        assert_eq!((c.restarts, c.readiness, c.startup), (2, true, true));
        assert_eq!(adopted.dead["c"], [("one".to_owned(), 1)]);
    }

    #[test]
    fn an_exit_while_nobody_looked_is_found() {
        let adopted = adopt(pod(), Some(&found(true, vec![instance("two", 2, Some(3))])), at(9));
        assert_eq!(adopted.state.container("c").ended().map(|e| (e.exit_code, e.reason.as_str())), Some((3, "Error")));
    }

    #[test]
    fn what_waits_for_its_successor_goes_on_waiting() {
        let mut pod = pod();
        let status = &mut pod.status.as_mut().expect("a status").container_statuses.as_mut().expect("statuses")[0];
        let ended = json!({"terminated": {"exitCode": 1, "reason": "Error", "containerID": "mini://two"}});
        status.last_state = serde_json::from_value(ended).ok();
        status.state = serde_json::from_value(json!({"waiting": {"reason": "ErrImagePull"}})).ok();
        let adopted = adopt(pod, Some(&found(true, vec![instance("two", 2, Some(1))])), at(9));
        let c = adopted.state.container("c");
        assert_eq!(c.ended().map(|e| (e.exit_code, e.reason.as_str())), Some((1, "Error")));
        assert_eq!((c.restarts, c.next_attempt()), (2, 2));
        let mut c = c.clone();
        c.make_room();
        assert_eq!(c.next_attempt(), 3);
    }

    #[test]
    fn a_pod_that_initialises_again_goes_on_doing_so() {
        let mut pod = pod();
        let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]});
        pod.spec = serde_json::from_value(spec).ok();
        let ended = |name: &str, id: &str| {
            json!({"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "containerID": id, "state": {"terminated": {"exitCode": 0, "containerID": id}}})
        };
        let status = json!({"initContainerStatuses": [ended("i", "mini://zero")], "containerStatuses": [ended("c", "mini://two")]});
        pod.status = serde_json::from_value(status).ok();
        let again = adopt(pod.clone(), Some(&found(true, vec![])), at(9)).state;
        assert!(!super::super::sync_pod::initialized(&again), "both are of an earlier sandbox");
        let both = vec![instance("zero", 0, Some(0)), instance("two", 0, Some(0))];
        let both = both.into_iter().zip(["i", "c"]).map(|(one, name)| ContainerStatus { name: name.into(), ..one });
        let before = adopt(pod, Some(&found(true, both.collect())), at(9)).state;
        assert!(super::super::sync_pod::initialized(&before), "both are of this one");
    }

    #[test]
    fn after_a_reboot_the_containers_are_lost() {
        let adopted = adopt(pod(), None, at(9));
        let c = adopted.state.container("c");
        assert_eq!(c.ended().map(|e| (e.exit_code, e.reason.as_str())), Some((255, "Unknown")));
        assert!(adopted.state.had_sandbox && !adopted.sandbox_runs);
    }
}
