//! Whether the node takes a pod that was bound to it: the checks of the kubelet's admission handlers. Pure.

use k8s_openapi::api::core::v1 as core;

use super::resize;
use crate::api::pod::Resources;
use crate::api::quantity::Quantity;

/// Why a pod is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, also of the event.
    pub reason: String,
    /// The event's message.
    pub message: String,
}

/// What the node has, and what the pods that it took before ask for.
pub struct Room<'a> {
    /// `status.allocatable`.
    pub allocatable: &'a Resources,
    /// The requests of the other pods together.
    pub used: &'a Resources,
    /// How many they are.
    pub pods: usize,
}

/// How many pods the node takes (`--max-pods`).
pub const MAX_PODS: i64 = 110;

/// Kernel parameters that concern nobody but the pod, and the namespace that they belong to (`pkg/kubelet/sysctl/safe_sysctls.go`).
const SAFE_SYSCTLS: [(&str, Namespace); 12] = [
    ("kernel.shm_rmid_forced", Namespace::Ipc),
    ("net.ipv4.ip_local_port_range", Namespace::Net),
    ("net.ipv4.tcp_syncookies", Namespace::Net),
    ("net.ipv4.ping_group_range", Namespace::Net),
    ("net.ipv4.ip_unprivileged_port_start", Namespace::Net),
    ("net.ipv4.ip_local_reserved_ports", Namespace::Net),
    ("net.ipv4.tcp_keepalive_time", Namespace::Net),
    ("net.ipv4.tcp_fin_timeout", Namespace::Net),
    ("net.ipv4.tcp_keepalive_intvl", Namespace::Net),
    ("net.ipv4.tcp_keepalive_probes", Namespace::Net),
    ("net.ipv4.tcp_rmem", Namespace::Net),
    ("net.ipv4.tcp_wmem", Namespace::Net),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

/// Refuses a pod that the node cannot run as it asks.
///
/// # Errors
/// The first thing that is in the way.
pub fn admit(pod: &core::Pod, requests: &Resources, room: &Room<'_>) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let refuse = |reason: &str, message: String| Err(Refusal { reason: reason.to_owned(), message });
    if let Err(why) = sysctls(spec) {
        return refuse("SysctlForbidden", format!("forbidden sysctl: {why}"));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS".to_owned());
    }
    if spec.host_users == Some(false) {
        let message = "user namespaces of a pod's own (hostUsers: false) are not supported by this node's runtime";
        return refuse("PodFeatureUnsupported", message.to_owned());
    }
    if let Some((name, message)) = missing(requests, room) {
        return refuse(&format!("OutOf{name}"), message);
    }
    Ok(())
}

/// Whether a pod that runs here may ask for this instead (`canResizePod`).
///
/// # Errors
/// When it is more than the node has at all, or has left.
pub fn resize(requests: &Resources, room: &Room<'_>) -> Result<(), resize::Refusal> {
    for name in ["memory", "cpu"] {
        let (Some(asked), Some(all)) = (requests.get(name), room.allocatable.get(name)) else { continue };
        if asked > all {
            let (requested, capacity) = (number(name, *asked), number(name, *all));
            let message =
                format!("Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}");
            return Err(resize::Refusal { reason: "Infeasible", message });
        }
    }
    match missing(requests, room) {
        Some((_, message)) => Err(resize::Refusal { reason: "Deferred", message }),
        None => Ok(()),
    }
}

/// An amount as messages have it: of CPU in thousandths.
fn number(name: &str, quantity: Quantity) -> i128 {
    if name == "cpu" { i128::from(quantity.milli_value()) } else { i128::from(quantity.value()) }
}

fn sysctls(spec: &core::PodSpec) -> Result<(), String> {
    let asked = spec.security_context.as_ref().and_then(|s| s.sysctls.as_ref());
    for sysctl in asked.into_iter().flatten() {
        let name = sysctl.name.replace('/', ".");
        let Some((_, namespace)) = SAFE_SYSCTLS.iter().find(|(safe, _)| *safe == name) else {
            return Err(format!("{name:?} not allowlisted"));
        };
        match namespace {
            Namespace::Net if spec.host_network == Some(true) => {
                return Err(format!("{name:?} not allowed with host net enabled"));
            }
            Namespace::Ipc if spec.host_ipc == Some(true) => {
                return Err(format!("{name:?} not allowed with host ipc enabled"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The first resource of which there is too little (`InsufficientResourceError`). What the node does not have at all is no concern of
/// it: such pods are placed by who knows why.
fn missing(requests: &Resources, room: &Room<'_>) -> Option<(String, String)> {
    let text = |name: &str, requested: i128, used: i128, capacity: i128| {
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        (name.to_owned(), message)
    };
    let pods = i64::try_from(room.pods).unwrap_or(i64::MAX);
    if pods >= MAX_PODS {
        return Some(text("pods", 1, pods.into(), MAX_PODS.into()));
    }
    requests.iter().filter(|(_, asked)| **asked > Quantity::ZERO).find_map(|(name, asked)| {
        let allocatable = *room.allocatable.get(name)?;
        let used = room.used.get(name).copied().unwrap_or_default();
        let number = |quantity: Quantity| number(name, quantity);
        (used + *asked > allocatable).then(|| text(name, number(*asked), number(used), number(allocatable)))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::pod::resource_list;

    fn judged(
        spec: serde_json::Value,
        requests: serde_json::Value,
        used: serde_json::Value,
    ) -> Result<(), (String, String)> {
        let pod: core::Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a pod");
        let allocatable = resource_list(&json!({"cpu": "2", "memory": "4Gi"}));
        let used = resource_list(&used);
        let room = Room { allocatable: &allocatable, used: &used, pods: 3 };
        admit(&pod, &resource_list(&requests), &room).map_err(|r| (r.reason, r.message))
    }

    #[test]
    fn pods_must_fit() {
        let none = || json!({"containers": []});
        assert_eq!(judged(none(), json!({"cpu": "500m", "example.com/x": "1"}), json!({"cpu": "1500m"})), Ok(()));
        assert_eq!(
            judged(none(), json!({"cpu": "1"}), json!({"cpu": "1500m"})),
            Err((
                "OutOfcpu".into(),
                "Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000".into()
            ))
        );
        assert_eq!(judged(none(), json!({"memory": "5Gi"}), json!({})).expect_err("too much").0, "OutOfmemory");
    }

    #[test]
    fn a_resize_must_fit() {
        let allocatable = resource_list(&json!({"cpu": "4", "memory": "4Gi"}));
        let used = resource_list(&json!({"cpu": "3", "memory": "1Gi"}));
        let room = Room { allocatable: &allocatable, used: &used, pods: 3 };
        let judged = |requests| resize(&resource_list(&requests), &room).map_err(|r| (r.reason, r.message));
        assert_eq!(judged(json!({"cpu": "1", "memory": "3Gi"})), Ok(()));
        let message = "Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000";
        assert_eq!(judged(json!({"cpu": "2"})), Err(("Deferred", message.into())));
        let message = "Node didn't have enough capacity: memory, requested: 4718592000, capacity: 4294967296";
        assert_eq!(judged(json!({"cpu": "5", "memory": "4500Mi"})), Err(("Infeasible", message.into())));
    }

    #[test]
    fn unsafe_sysctls_are_forbidden() {
        let sysctl = |name: &str, more: serde_json::Value| {
            let mut spec = json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            judged(spec, json!({}), json!({}))
        };
        assert_eq!(sysctl("net.ipv4.tcp_syncookies", json!({})), Ok(()));
        assert_eq!(sysctl("net/ipv4/tcp_syncookies", json!({})), Ok(()));
        let refused = |message: &str| Err(("SysctlForbidden".to_owned(), format!("forbidden sysctl: {message}")));
        assert_eq!(sysctl("kernel.msgmax", json!({})), refused("\"kernel.msgmax\" not allowlisted"));
        assert_eq!(
            sysctl("net.ipv4.tcp_syncookies", json!({"hostNetwork": true})),
            refused("\"net.ipv4.tcp_syncookies\" not allowed with host net enabled")
        );
        assert_eq!(
            sysctl("kernel.shm_rmid_forced", json!({"hostIPC": true})),
            refused("\"kernel.shm_rmid_forced\" not allowed with host ipc enabled")
        );
    }

    #[test]
    fn other_systems_and_users_of_its_own_are_refused() {
        let refused = |spec| judged(spec, json!({}), json!({})).expect_err("refused").0;
        assert_eq!(refused(json!({"containers": [], "os": {"name": "windows"}})), "PodOSNotSupported");
        assert_eq!(refused(json!({"containers": [], "hostUsers": false})), "PodFeatureUnsupported");
    }
}
