//! `securityContext` of pod and container, merged into what the runtime applies. Pure.

use k8s_openapi::api::core::v1 as core;

use super::runtime::{Resources, Seccomp, Security};
use super::{quantity, status};

/// Merges the contexts; `image_user` is the image's `User`.
///
/// # Errors
/// The kubelet's message of `CreateContainerConfigError`.
pub fn merge(pod: &core::Pod, container: &core::Container, image_user: &str) -> Result<Security, String> {
    let spec = pod.spec.as_ref();
    let of_pod = spec.and_then(|s| s.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let run_as_user = own.run_as_user.or(of_pod.run_as_user);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        verify_non_root(pod, container, run_as_user, image_user)?;
    }
    let privileged = own.privileged == Some(true);
    let seccomp = match own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()) {
        _ if privileged => Seccomp::Unconfined,
        // Without a profile the kubelet runs containers unconfined unless `seccompDefault` is set; mini sets it.
        None => Seccomp::RuntimeDefault,
        Some(profile) => match profile.type_.as_str() {
            "Unconfined" => Seccomp::Unconfined,
            // A path below the node's folder of profiles.
            "Localhost" => Seccomp::Localhost(profile.localhost_profile.clone().unwrap_or_default().into()),
            _ => Seccomp::RuntimeDefault,
        },
    };
    let capabilities = own.capabilities.unwrap_or_default();
    let plain = |list: Option<Vec<String>>| {
        list.into_iter().flatten().map(|c| c.strip_prefix("CAP_").map_or(c.clone(), str::to_owned)).collect()
    };
    let mut groups = of_pod.supplemental_groups.unwrap_or_default();
    groups.extend(of_pod.fs_group);
    groups.dedup();
    Ok(Security {
        run_as_user,
        run_as_group: own.run_as_group.or(of_pod.run_as_group),
        supplemental_groups: groups,
        privileged,
        add_capabilities: plain(capabilities.add),
        drop_capabilities: plain(capabilities.drop),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        read_only_rootfs: own.read_only_root_filesystem == Some(true),
        strict_groups: of_pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        seccomp,
        app_armor: None,
    })
}

/// `verifyRunAsNonRoot` of the kubelet.
fn verify_non_root(
    pod: &core::Pod,
    container: &core::Container,
    run_as_user: Option<i64>,
    image_user: &str,
) -> Result<(), String> {
    let described = || {
        let m = &pod.metadata;
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        format!("(pod: \"{}_{}({})\", container: {})", text(&m.name), text(&m.namespace), text(&m.uid), container.name)
    };
    match run_as_user {
        Some(0) => return Err(format!("container's runAsUser breaks non-root policy {}", described())),
        Some(_) => return Ok(()),
        None => {}
    }
    let user = image_user.split(':').next().unwrap_or_default();
    match user.parse::<i64>() {
        Ok(0) => Err(format!("container has runAsNonRoot and image will run as root {}", described())),
        Ok(_) => Ok(()),
        Err(_) if user.is_empty() => {
            Err(format!("container has runAsNonRoot and image will run as root {}", described()))
        }
        Err(_) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root {}",
            described()
        )),
    }
}

/// The limits of a container in the kernel's units.
pub fn resources(container: &core::Container) -> Resources {
    let r = container.resources.as_ref();
    let requests = r.and_then(|r| r.requests.as_ref());
    let limits = r.and_then(|r| r.limits.as_ref());
    let get = |map: Option<&std::collections::BTreeMap<String, _>>, key: &str| {
        let q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity = map?.get(key)?;
        quantity::parse(&q.0).filter(|n| *n > 0)
    };
    let cpu_limit = get(limits, "cpu");
    Resources {
        cpu_request_milli: get(requests, "cpu").or(cpu_limit).and_then(|n| u64::try_from(n).ok()),
        cpu_limit_milli: cpu_limit.and_then(|n| u64::try_from(n).ok()),
        memory_limit: get(limits, "memory").and_then(|n| u64::try_from(n / 1000).ok()),
        pids_limit: None,
    }
}

/// The limits of the pod as a whole: its own, or those of all containers together where every one has one
/// (`ResourceConfigForPod`).
pub fn pod_resources(spec: &core::PodSpec) -> Resources {
    let object = serde_json::json!({"spec": spec});
    let (requests, limits) = (crate::api::pod::requests(&object), crate::api::pod::limits(&object));
    let limited = |resources: &Option<core::ResourceRequirements>, name: &str| {
        let limit = resources.as_ref().and_then(|r| r.limits.as_ref()?.get(name));
        limit.and_then(|q| quantity::parse(&q.0)).is_some_and(|n| n > 0)
    };
    let declared = |name: &str| {
        let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        limited(&spec.resources, name) || containers.all(|c| limited(&c.resources, name))
    };
    let milli = |list: &crate::api::pod::Resources, name: &str| {
        list.get(name).and_then(|q| u64::try_from(q.milli_value()).ok()).filter(|n| *n > 0)
    };
    let memory = limits.get("memory").and_then(|q| u64::try_from(q.value()).ok());
    Resources {
        cpu_request_milli: milli(&requests, "cpu"),
        cpu_limit_milli: milli(&limits, "cpu").filter(|_| declared("cpu")),
        memory_limit: memory.filter(|_| declared("memory")),
        pids_limit: None,
    }
}

/// `oom_score_adj` (`GetContainerOOMScoreAdjust`).
pub fn oom_score_adj(spec: &core::PodSpec, container: &core::Container, node_memory: i128) -> i32 {
    match status::qos_class(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = container
                .resources
                .as_ref()
                .and_then(|r| r.requests.as_ref().or(r.limits.as_ref()))
                .and_then(|r| r.get("memory"))
                .and_then(|q| quantity::parse(&q.0))
                .unwrap_or(0)
                / 1000;
            let score = 1000 - 1000 * request / node_memory.max(1);
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(pod: serde_json::Value, own: serde_json::Value, user: &str) -> Result<Security, String> {
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}});
        let pod: core::Pod = serde_json::from_value(pod).expect("a pod");
        let container = pod.spec.as_ref().expect("a spec").containers[0].clone();
        merge(&pod, &container, user)
    }

    #[test]
    fn the_container_wins_over_the_pod() {
        let security = merged(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 7, "supplementalGroups": [5]}),
            json!({"runAsUser": 3, "capabilities": {"add": ["CAP_NET_ADMIN"], "drop": ["ALL"]}}),
            "",
        )
        .expect("fine");
        assert_eq!((security.run_as_user, security.run_as_group), (Some(3), Some(2)));
        assert_eq!(security.supplemental_groups, [5, 7]);
        assert_eq!(security.add_capabilities, ["NET_ADMIN"]);
    }

    #[test]
    fn non_root_is_verified_with_the_kubelets_words() {
        let non_root = json!({"runAsNonRoot": true});
        let failed = |own, user| merged(non_root.clone(), own, user).expect_err("refused");
        assert_eq!(
            failed(json!({}), ""),
            "container has runAsNonRoot and image will run as root (pod: \"p_d(u)\", container: c)"
        );
        assert!(failed(json!({}), "web").contains("non-numeric user (web)"));
        assert!(failed(json!({"runAsUser": 0}), "5").starts_with("container's runAsUser breaks non-root policy"));
        assert!(merged(non_root.clone(), json!({}), "1000:1000").is_ok());
    }
}
