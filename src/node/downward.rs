//! The downward API: fields of the pod and resources of its containers as text. Pure; used by env and volumes.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::quantity;

/// What the node adds to the pod's own fields.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The node's addresses.
    pub host_ips: Vec<IpAddr>,
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
    /// Allocatable CPU in thousandths: the limit of a container that has none.
    pub allocatable_cpu_milli: i128,
    /// Allocatable memory in bytes.
    pub allocatable_memory: i128,
    /// Allocatable ephemeral storage in bytes.
    pub allocatable_storage: i128,
}

/// The value of `fieldRef.fieldPath`.
///
/// # Errors
/// The message of the kubelet for a path it does not know.
pub fn field(pod: &core::Pod, facts: &Facts, path: &str) -> Result<String, String> {
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => metadata.labels.as_ref(),
            "metadata.annotations" => metadata.annotations.as_ref(),
            _ => return Err(format!("fieldPath {path:?} does not support subscript")),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    Ok(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(metadata.labels.as_ref()),
        "metadata.annotations" => format_map(metadata.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => facts.host_ips.first().map(ToString::to_string).unwrap_or_default(),
        "status.hostIPs" => join(&facts.host_ips),
        "status.podIP" => facts.pod_ips.first().map(ToString::to_string).unwrap_or_default(),
        "status.podIPs" => join(&facts.pod_ips),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['key']` as its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

fn format_map(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
}

/// The value of `resourceFieldRef`.
///
/// # Errors
/// The message of the kubelet for a resource or container it does not know.
pub fn resource(pod: &core::Pod, facts: &Facts, own: &str, r: &core::ResourceFieldSelector) -> Result<String, String> {
    let name = r.container_name.as_deref().filter(|n| !n.is_empty()).unwrap_or(own);
    let spec = pod.spec.as_ref().ok_or("pod has no spec")?;
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let container = all.into_iter().find(|c| c.name == name).ok_or_else(|| format!("container {name} not found"))?;
    let get = |limits: bool, key: &str| {
        let resources = container.resources.as_ref()?;
        let map = if limits { resources.limits.as_ref() } else { resources.requests.as_ref() };
        map?.get(key).and_then(|q| quantity::parse(&q.0))
    };
    let limit = |key: &str, all: i128| get(true, key).filter(|n| *n > 0).unwrap_or(all);
    let milli = match r.resource.as_str() {
        "limits.cpu" => limit("cpu", facts.allocatable_cpu_milli),
        "limits.memory" => limit("memory", facts.allocatable_memory * 1000),
        "limits.ephemeral-storage" => limit("ephemeral-storage", facts.allocatable_storage * 1000),
        other => match other.strip_prefix("requests.") {
            Some(key @ ("cpu" | "memory" | "ephemeral-storage")) => get(false, key).unwrap_or(0),
            Some(key) if key.starts_with("hugepages-") => get(false, key).unwrap_or(0),
            _ => match other.strip_prefix("limits.") {
                Some(key) if key.starts_with("hugepages-") => get(true, key).unwrap_or(0),
                _ => return Err(format!("unsupported container resource : {other}")),
            },
        },
    };
    let divisor = r.divisor.as_ref().and_then(|q| quantity::parse(&q.0)).filter(|d| *d > 0).unwrap_or(1000);
    Ok((milli.div_euclid(divisor) + i128::from(milli.rem_euclid(divisor) != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> core::Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "labels": {"b": "2", "a": "say \"1\""}},
            "spec": {"containers": [{"name": "c", "resources": {
                "limits": {"cpu": "250m", "memory": "64Mi"}, "requests": {"memory": "32Mi"}}}, {"name": "free"}]},
        }))
        .expect("a pod")
    }

    #[test]
    fn fields() {
        let facts = Facts { pod_ips: vec!["10.0.0.1".parse().expect("ip")], ..Facts::default() };
        let get = |path: &str| field(&pod(), &facts, path);
        assert_eq!(get("metadata.labels").expect("known"), "a=\"say \\\"1\\\"\"\nb=\"2\"");
        assert_eq!(get("metadata.labels['b']").expect("known"), "2");
        assert_eq!(get("status.podIP").expect("known"), "10.0.0.1");
        assert!(get("spec.volumes").is_err());
    }

    #[test]
    fn resources_round_up_and_fall_back_to_the_node() {
        let facts = Facts { allocatable_cpu_milli: 2000, allocatable_memory: 1 << 30, ..Facts::default() };
        let get = |container: &str, name: &str, divisor: &str| {
            let r = json!({"containerName": container, "resource": name, "divisor": divisor});
            resource(&pod(), &facts, "c", &serde_json::from_value(r).expect("a selector")).expect("known")
        };
        assert_eq!(get("", "limits.cpu", "0"), "1");
        assert_eq!(get("", "limits.cpu", "1m"), "250");
        assert_eq!(get("", "limits.memory", "1Mi"), "64");
        assert_eq!(get("", "requests.memory", "0"), "33554432");
        assert_eq!(get("free", "limits.cpu", "1"), "2");
        assert_eq!(get("free", "limits.memory", "1Mi"), "1024");
    }
}
