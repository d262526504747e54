//! In-place resize: what the containers of a running pod shall have, what the node gave them, what the kernel holds them to. Pure.
//!
//! The worker's pod always has the resources that the node gave (the kubelet's *allocated* ones); what a newer object asks for
//! beside that is kept here until the node has room. The words and conditions are those of the kubelet's `allocation_manager.go`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

use super::pod_state::{PodState, Role, Run};

/// The condition of a resize that the node has not accepted (yet).
pub const PENDING: &str = "PodResizePending";
/// The condition of a resize that is being carried out.
pub const IN_PROGRESS: &str = "PodResizeInProgress";

/// Why a resize is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `Deferred`: there is no room now. `Infeasible`: there never will be.
    pub reason: &'static str,
    /// The condition's message.
    pub message: String,
}

/// A resize that was accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The generation of the object that asked for it.
    pub generation: Option<i64>,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// What is known of the resize of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resize {
    /// What containers shall have, where it is not what the node gave.
    pub desired: BTreeMap<String, core::ResourceRequirements>,
    /// Why they do not get it, and the generation that asked.
    pub pending: Option<(Refusal, Option<i64>)>,
    /// The resize that goes on.
    pub progress: Option<Progress>,
    /// Whether the kernel is being told.
    pub busy: bool,
    /// When to try again after a failure.
    pub retry_at: Option<Timestamp>,
}

/// How a container gets what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has it.
    None,
    /// By the kernel, while it runs.
    Kernel,
    /// By a restart.
    Restart,
}

fn resizable(spec: &mut core::PodSpec) -> impl Iterator<Item = &mut core::Container> {
    let sidecars = spec.init_containers.iter_mut().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter_mut().chain(sidecars)
}

/// Leaves a newer object with what the node gave (as `given` has it) and returns what it asks for beside that.
pub fn hold_back(
    pod: &mut core::Pod,
    given: impl Fn(&str) -> Option<core::ResourceRequirements>,
) -> BTreeMap<String, core::ResourceRequirements> {
    let mut desired = BTreeMap::new();
    for container in pod.spec.iter_mut().flat_map(resizable) {
        let Some(given) = given(&container.name) else { continue };
        let asked = container.resources.clone().unwrap_or_default();
        if asked != given {
            container.resources = Some(given);
            desired.insert(container.name.clone(), asked);
        }
    }
    desired
}

/// What the node gave a container of a pod.
pub fn given_by(pod: &core::Pod, name: &str) -> Option<core::ResourceRequirements> {
    let spec = pod.spec.as_ref()?;
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    Some(all.find(|c| c.name == name)?.resources.clone().unwrap_or_default())
}

/// What the last status says that a running container was given: the node's memory across a restart of the daemon.
pub fn given_by_status(status: &core::PodStatus, name: &str) -> Option<core::ResourceRequirements> {
    let statuses = [&status.container_statuses, &status.init_container_statuses];
    let status = statuses.into_iter().flatten().flatten().find(|status| status.name == name)?;
    status.state.as_ref()?.running.as_ref()?;
    status.resources.clone()
}

/// The pod with what it asks for.
pub fn granted(pod: &core::Pod, desired: &BTreeMap<String, core::ResourceRequirements>) -> core::Pod {
    let mut pod = pod.clone();
    for container in pod.spec.iter_mut().flat_map(resizable) {
        if let Some(resources) = desired.get(&container.name) {
            container.resources = Some(resources.clone());
        }
    }
    pod
}

/// How a running container gets what its spec gives it (`computePodResizeAction`).
pub fn change(role: Role, spec: &core::Container, actual: Option<&core::ResourceRequirements>) -> Change {
    let (Some(actual), Role::Regular | Role::Sidecar) = (actual, role) else { return Change::None };
    let wanted = spec.resources.clone().unwrap_or_default();
    let value = |resources: &core::ResourceRequirements, name: &str| {
        let of = |list: &Option<BTreeMap<String, _>>| list.as_ref().and_then(|list| list.get(name)).cloned();
        (of(&resources.requests), of(&resources.limits))
    };
    let changed = |name: &str| value(&wanted, name) != value(actual, name);
    let restarts = |name: &str| {
        let mut policies = spec.resize_policy.iter().flatten();
        policies.any(|policy| policy.resource_name == name && policy.restart_policy == "RestartContainer")
    };
    let changes: Vec<&str> = ["cpu", "memory"].into_iter().filter(|name| changed(name)).collect();
    match changes.iter().any(|name| restarts(name)) {
        true => Change::Restart,
        false if changes.is_empty() => Change::None,
        false => Change::Kernel,
    }
}

/// Whether every container that runs has what it was given.
pub fn is_done(state: &PodState) -> bool {
    state.resize.progress.is_some()
        && !state.resize.busy
        && state.specs().iter().all(|(role, spec)| {
            let container = state.container(&spec.name);
            let settled = !matches!(container.run, Run::Starting | Run::Stopping(_)) && !container.again;
            settled && (!container.alive() || change(*role, spec, container.given.as_ref()) == Change::None)
        })
}

/// The conditions of a resize.
pub fn conditions(resize: &Resize) -> Vec<core::PodCondition> {
    let pending = resize.pending.as_ref().map(|(refusal, generation)| core::PodCondition {
        type_: PENDING.into(),
        status: "True".into(),
        reason: Some(refusal.reason.into()),
        message: Some(refusal.message.clone()),
        observed_generation: *generation,
        ..core::PodCondition::default()
    });
    let progress = resize.progress.as_ref().map(|progress| core::PodCondition {
        type_: IN_PROGRESS.into(),
        status: "True".into(),
        reason: progress.error.as_ref().map(|_| "Error".into()),
        message: progress.error.clone(),
        observed_generation: progress.generation,
        ..core::PodCondition::default()
    });
    pending.into_iter().chain(progress).collect()
}

/// The resize that the last status tells of, for a daemon that was restarted.
pub fn recalled(status: &core::PodStatus) -> Option<Progress> {
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == IN_PROGRESS)?;
    Some(Progress { generation: condition.observed_generation, error: condition.message.clone() })
}

/// When a condition began, as far as an older list knows it.
pub fn since(old: Option<&Vec<core::PodCondition>>, condition: &core::PodCondition, now: Timestamp) -> Option<Time> {
    let before = old.into_iter().flatten().find(|c| c.type_ == condition.type_ && c.reason == condition.reason);
    before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now)))
}

#[derive(Serialize)]
struct ContainerSummary<'a> {
    name: &'a str,
    resources: core::ResourceRequirements,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<ContainerSummary<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<ContainerSummary<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// The message of an event about a resize (`podResizeMessage`): `what` with the resources of the pod.
pub fn message(what: &str, pod: &core::Pod, generation: Option<i64>, error: Option<&str>) -> String {
    fn summaries<'a>(containers: impl Iterator<Item = &'a core::Container>) -> Vec<ContainerSummary<'a>> {
        containers
            .map(|c| ContainerSummary { name: &c.name, resources: c.resources.clone().unwrap_or_default() })
            .collect()
    }
    let spec = pod.spec.iter();
    let summary = Summary {
        init_containers: summaries(spec.clone().flat_map(|spec| spec.init_containers.iter().flatten())),
        containers: summaries(spec.flat_map(|spec| &spec.containers)),
        generation: generation.unwrap_or(0),
        error,
    };
    let json = serde_json::to_string(&summary).expect("names and quantities are JSON");
    format!("Pod resize {what}: {json}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(resources: Value) -> core::Pod {
        let spec = json!({"containers": [{"name": "c0", "resources": resources}],
            "initContainers": [{"name": "i"}, {"name": "side", "restartPolicy": "Always", "resources": {"limits": {"cpu": "1"}}}]});
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a pod")
    }

    #[test]
    fn what_is_asked_for_waits_until_it_is_granted() {
        let old = pod(json!({"requests": {"cpu": "100m"}}));
        let mut new = pod(json!({"requests": {"cpu": "200m"}}));
        let desired = hold_back(&mut new, |name| given_by(&old, name));
        assert_eq!(new.spec, old.spec);
        assert_eq!(desired.keys().collect::<Vec<_>>(), ["c0"]);
        assert_eq!(granted(&new, &desired).spec, pod(json!({"requests": {"cpu": "200m"}})).spec);
        assert!(hold_back(&mut new, |name| given_by(&old, name)).is_empty());
    }

    #[test]
    fn a_policy_may_ask_for_a_restart() {
        let given = |value: Value| serde_json::from_value::<core::ResourceRequirements>(value).expect("resources");
        let container = |resources: Value| -> core::Container {
            let policy = json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"},
                {"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
            serde_json::from_value(json!({"name": "c", "resources": resources, "resizePolicy": policy}))
                .expect("a container")
        };
        let actual = given(json!({"requests": {"cpu": "1", "memory": "64Mi"}, "limits": {"ephemeral-storage": "1Gi"}}));
        let of = |role, wanted: Value| change(role, &container(wanted), Some(&actual));
        assert_eq!(of(Role::Regular, json!({"requests": {"cpu": "1", "memory": "64Mi"}})), Change::None);
        assert_eq!(of(Role::Sidecar, json!({"requests": {"cpu": "2", "memory": "64Mi"}})), Change::Kernel);
        assert_eq!(of(Role::Regular, json!({"requests": {"cpu": "1", "memory": "32Mi"}})), Change::Restart);
        assert_eq!(of(Role::Init, json!({"requests": {"cpu": "2"}})), Change::None);
        assert_eq!(change(Role::Regular, &container(json!({})), None), Change::None, "it has not begun");
    }

    #[test]
    fn events_say_what_the_containers_have() {
        let pod = pod(json!({"limits": {"cpu": "100m", "memory": "100"}, "requests": {"cpu": "100m"}}));
        let expected = r#"Pod resize error: {"initContainers":[{"name":"i","resources":{}},{"name":"side","resources":{"limits":{"cpu":"1"}}}],"containers":[{"name":"c0","resources":{"limits":{"cpu":"100m","memory":"100"},"requests":{"cpu":"100m"}}}],"generation":5,"error":"x"}"#;
        assert_eq!(message("error", &pod, Some(5), Some("x")), expected);
    }
}
