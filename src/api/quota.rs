//! What objects count for in ResourceQuotas: their usage, the scopes they fall in, and whether a request fits.
//!
//! Follows `pkg/quota/v1/evaluator/core` and the admission plugin `resourcequota` of Kubernetes, whose words the messages are.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::kind::Gvr;
use super::kinds::pod::is_extended;
use super::meta::{self, items, number, text};
use super::pod::{self, Resources};
use super::quantity::{Format, Quantity};

/// Resources that can be told by their plain names beside `count/…`.
const COUNTED: [&str; 5] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets", "services"];
/// Compute resources of pods in quotas.
const COMPUTE: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
/// Compute resources that every container must ask for when they are limited (kept so for compatibility).
const DEMANDED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
const OF_CLASS: [&str; 2] =
    [".storageclass.storage.k8s.io/persistentvolumeclaims", ".storageclass.storage.k8s.io/requests.storage"];
const OF_DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// How many devices a claim for all of them counts for (`AllocationResultsMaxSize`).
const ALL_DEVICES: i64 = 32;

/// `count/deployments.apps`.
pub fn count_name(gvr: &Gvr) -> String {
    format!("count/{}", gvr.qualified())
}

/// Whether objects of `gvr` can use the resource `name` of a quota (`MatchingResources`).
pub fn concerns(gvr: &Gvr, name: &str) -> bool {
    if name.strip_prefix("count/") == Some(gvr.qualified().as_str()) {
        return true;
    }
    match (gvr.group.as_ref(), gvr.resource.as_ref()) {
        ("", "pods") => COMPUTE.contains(&name) || is_large_page(name) || is_requested_extended(name),
        ("", "services") => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
        ("", "persistentvolumeclaims") => {
            matches!(name, "persistentvolumeclaims" | "requests.storage") || OF_CLASS.iter().any(|s| name.ends_with(s))
        }
        ("", resource) => COUNTED.contains(&resource) && name == resource,
        ("resource.k8s.io", "resourceclaims") => name.ends_with(OF_DEVICES),
        _ => false,
    }
}

fn is_large_page(name: &str) -> bool {
    name.starts_with("hugepages-") || name.starts_with("requests.hugepages-")
}

fn is_requested_extended(name: &str) -> bool {
    name.strip_prefix("requests.").is_some_and(is_extended)
}

/// What an object uses of all resources that there are for its kind.
pub fn usage(gvr: &Gvr, object: &Value, now: Timestamp) -> Resources {
    let one = Quantity::from_units(1, Format::DecimalSi);
    let mut used = Resources::from([(count_name(gvr), one)]);
    match (gvr.group.as_ref(), gvr.resource.as_ref()) {
        ("", "pods") if is_alive(object, now) => used.extend(of_pod(object)),
        ("", "services") => used.extend(of_service(object)),
        ("", "persistentvolumeclaims") => used.extend(of_claim(object)),
        ("", resource) if COUNTED.contains(&resource) => drop(used.insert(resource.to_owned(), one)),
        ("resource.k8s.io", "resourceclaims") => used.extend(of_devices(object)),
        _ => {}
    }
    used
}

/// Whether a pod still counts: not at its end, nor deleted and past its grace (`QuotaV1Pod`).
fn is_alive(pod: &Value, now: Timestamp) -> bool {
    let deleted = pod["metadata"]["deletionTimestamp"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
    let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let over = deleted.zip(grace).is_some_and(|(deleted, grace)| {
        deleted.checked_add(jiff::SignedDuration::from_secs(grace)).is_ok_and(|end| end < now)
    });
    !pod::is_terminal(pod) && !over
}

fn of_pod(pod: &Value) -> Resources {
    compute(&pod::requests(pod), &pod::limits(pod))
}

/// `podComputeUsageHelper`.
fn compute(requests: &Resources, limits: &Resources) -> Resources {
    let mut used = Resources::from([("pods".to_owned(), Quantity::from_units(1, Format::DecimalSi))]);
    for (name, quantity) in requests {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            used.insert(name.clone(), *quantity);
            used.insert(format!("requests.{name}"), *quantity);
        } else if is_extended(name) {
            used.insert(format!("requests.{name}"), *quantity);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(quantity) = limits.get(name) {
            used.insert(format!("limits.{name}"), *quantity);
        }
    }
    used
}

fn of_service(service: &Value) -> Resources {
    let ports = items(&service["spec"]["ports"]);
    let (node_ports, balancers) = match text(&service["spec"]["type"]) {
        "NodePort" => (ports.len(), 0),
        "LoadBalancer" if service["spec"]["allocateLoadBalancerNodePorts"] == false => {
            (ports.iter().filter(|port| number(&port["nodePort"]) != 0).count(), 1)
        }
        "LoadBalancer" => (ports.len(), 1),
        _ => (0, 0),
    };
    let count = |n: usize| Quantity::from_units(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSi);
    Resources::from([
        ("services".to_owned(), count(1)),
        ("services.nodeports".to_owned(), count(node_ports)),
        ("services.loadbalancers".to_owned(), count(balancers)),
    ])
}

fn of_claim(claim: &Value) -> Resources {
    let one = Quantity::from_units(1, Format::DecimalSi);
    let asked = claim["spec"]["resources"]["requests"].get("storage").map(Quantity::of);
    let allocated = claim["status"]["allocatedResources"].get("storage").map(Quantity::of);
    let storage = asked.into_iter().chain(allocated).max();
    let class = meta::annotation(claim, "volume.beta.kubernetes.io/storage-class")
        .unwrap_or_else(|| text(&claim["spec"]["storageClassName"]));
    let mut used = Resources::from([("persistentvolumeclaims".to_owned(), one)]);
    if !class.is_empty() {
        used.insert(format!("{class}{}", OF_CLASS[0]), one);
    }
    if let Some(storage) = storage {
        used.insert("requests.storage".to_owned(), storage);
        if !class.is_empty() {
            used.insert(format!("{class}{}", OF_CLASS[1]), storage);
        }
    }
    used
}

fn of_devices(claim: &Value) -> Resources {
    let amount = |request: &Value| match text(&request["allocationMode"]) {
        "All" => ALL_DEVICES,
        _ => request["count"].as_i64().unwrap_or(1),
    };
    let mut used = BTreeMap::<String, i64>::new();
    for request in items(&claim["spec"]["devices"]["requests"]) {
        let mut largest = BTreeMap::<String, i64>::new();
        // Of alternatives only one is taken: each class counts with its largest.
        for choice in items(&request["firstAvailable"]).iter().chain(Some(&request["exactly"])) {
            let class = text(&choice["deviceClassName"]);
            if !class.is_empty() {
                let entry = largest.entry(format!("{class}{OF_DEVICES}")).or_default();
                *entry = (*entry).max(amount(choice));
            }
        }
        for (name, amount) in largest {
            *used.entry(name).or_default() += amount;
        }
    }
    used.into_iter().map(|(name, n)| (name, Quantity::from_units(n, Format::DecimalSi))).collect()
}

/// The requirements of a quota on what it counts: its scopes (which must exist) and its scope selector.
fn requirements(spec: &Value) -> Vec<(&str, &str, Vec<&str>)> {
    let scopes = items(&spec["scopes"]).iter().map(|scope| (text(scope), "Exists", Vec::new()));
    let expressions = items(&spec["scopeSelector"]["matchExpressions"]).iter().map(|expression| {
        let values = items(&expression["values"]).iter().map(text).collect();
        (text(&expression["scopeName"]), text(&expression["operator"]), values)
    });
    scopes.chain(expressions).collect()
}

/// Whether the object falls into all scopes of a quota with this spec.
pub fn is_in_scope(spec: &Value, gvr: &Gvr, object: &Value) -> bool {
    requirements(spec).into_iter().all(|(scope, operator, values)| {
        match (gvr.group.as_ref(), gvr.resource.as_ref()) {
            ("", "pods") => pod_is_in(object, scope, operator, &values),
            ("", "persistentvolumeclaims") if scope == "VolumeAttributesClass" => {
                selects(&attribute_classes(object), operator, &values)
            }
            // Nothing else has scopes.
            _ => false,
        }
    })
}

fn pod_is_in(pod: &Value, scope: &str, operator: &str, values: &[&str]) -> bool {
    let deadline = pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => deadline,
        "NotTerminating" => !deadline,
        "BestEffort" => pod::qos_class(pod) == "BestEffort",
        "NotBestEffort" => pod::qos_class(pod) != "BestEffort",
        "PriorityClass" => {
            let class = text(&pod["spec"]["priorityClassName"]);
            selects(&if class.is_empty() { vec![] } else { vec![class] }, operator, values)
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

/// A label selector over the names that an object has, any of which may match.
fn selects(names: &[&str], operator: &str, values: &[&str]) -> bool {
    match operator {
        "Exists" => !names.is_empty(),
        "DoesNotExist" => names.is_empty(),
        "In" => names.iter().any(|name| values.contains(name)),
        "NotIn" => names.is_empty() || names.iter().any(|name| !values.contains(name)),
        _ => false,
    }
}

fn attribute_classes(claim: &Value) -> Vec<&str> {
    let status = &claim["status"];
    let names = [
        &claim["spec"]["volumeAttributesClassName"],
        &status["currentVolumeAttributesClassName"],
        &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ];
    names.into_iter().map(text).filter(|name| !name.is_empty()).collect()
}

/// Whether a term of the pod's affinity names other namespaces (`usesCrossNamespacePodAffinity`).
fn crosses_namespaces(pod: &Value) -> bool {
    let affinity = &pod["spec"]["affinity"];
    let crosses = |term: &Value| !items(&term["namespaces"]).is_empty() || term["namespaceSelector"].is_object();
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let required = items(&affinity[*kind]["requiredDuringSchedulingIgnoredDuringExecution"]).iter();
        let preferred = items(&affinity[*kind]["preferredDuringSchedulingIgnoredDuringExecution"]).iter();
        required.chain(preferred.map(|weighted| &weighted["podAffinityTerm"])).any(crosses)
    })
}

/// Why a pod is refused that does not say what it uses of the limited resources, if so.
pub fn unspecified(hard: &Map<String, Value>, pod: &Value) -> Option<String> {
    let of_pod = &pod["spec"]["resources"];
    if ["limits", "requests"].iter().any(|list| of_pod[*list].as_object().is_some_and(|list| !list.is_empty())) {
        return None;
    }
    let required = DEMANDED.iter().filter(|name| hard.contains_key(**name));
    let containers = || items(&pod["spec"]["containers"]).iter().chain(items(&pod["spec"]["initContainers"]));
    let mut missing = BTreeMap::<&str, BTreeSet<&str>>::new();
    for name in required {
        for container in containers() {
            let list = |list: &str| pod::resource_list(&container["resources"][list]);
            if !compute(&list("requests"), &list("limits")).contains_key(*name) {
                missing.entry(name).or_default().insert(text(&container["name"]));
            }
        }
    }
    let texts: Vec<String> = missing
        .into_iter()
        .map(|(name, of)| format!("{name} for: {}", of.into_iter().collect::<Vec<_>>().join(",")))
        .collect();
    (!texts.is_empty()).then(|| format!("must specify {}", texts.join("; ")))
}

/// What is used when `delta` is added, as far as the quota limits it; `None` when the quota is not touched.
///
/// # Errors
/// The message when a limit would be exceeded.
pub fn charged(quota: &Value, delta: &Resources) -> Result<Option<Resources>, String> {
    let (hard, used) = (pod::resource_list(&quota["status"]["hard"]), pod::resource_list(&quota["status"]["used"]));
    let asked: Resources = delta.iter().filter(|(k, v)| hard.contains_key(*k) && !v.is_zero()).map(copy).collect();
    if asked.is_empty() {
        return Ok(None);
    }
    let mut sum = used.clone();
    for (name, quantity) in &asked {
        *sum.entry(name.clone()).or_default() += *quantity;
    }
    let exceeded: Vec<&str> = asked.keys().filter(|k| sum[*k] > hard[*k]).map(String::as_str).collect();
    if exceeded.is_empty() {
        return Ok(Some(sum));
    }
    let show = |list: &Resources| {
        let shown = exceeded.iter().filter_map(|name| list.get(*name).map(|q| format!("{name}={q}")));
        shown.collect::<Vec<_>>().join(",")
    };
    let name = meta::name(quota);
    let (asked, used, hard) = (show(&asked), show(&used), show(&hard));
    Err(format!("exceeded quota: {name}, requested: {asked}, used: {used}, limited: {hard}"))
}

fn copy((name, quantity): (&String, &Quantity)) -> (String, Quantity) {
    (name.clone(), *quantity)
}

/// `new - old`.
pub fn difference(new: &Resources, old: &Resources) -> Resources {
    let mut result = new.clone();
    for (name, quantity) in old {
        *result.entry(name.clone()).or_default() -= *quantity;
    }
    result
}

/// Quantities as an object has them.
pub fn to_value(resources: &Resources) -> Value {
    resources.iter().map(|(name, quantity)| (name.clone(), Value::from(quantity.to_string()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::kinds::gvr;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn shown(resources: &Resources) -> Vec<String> {
        resources.iter().map(|(name, quantity)| format!("{name}={quantity}")).collect()
    }

    #[test]
    fn usage_of_pods_services_and_claims() {
        // TestPodEvaluatorUsage, TestServiceEvaluatorUsage and TestPersistentVolumeClaimEvaluatorUsage.
        let pod = json!({"spec": {"containers": [{"resources": {
            "requests": {"cpu": "1", "example.com/dongle": "3", "hugepages-2Mi": "100Mi"}, "limits": {"cpu": "2"}}}]}});
        assert_eq!(
            shown(&usage(&gvr::PODS, &pod, NOW)),
            [
                "count/pods=1",
                "cpu=1",
                "hugepages-2Mi=100Mi",
                "limits.cpu=2",
                "pods=1",
                "requests.cpu=1",
                "requests.example.com/dongle=3",
                "requests.hugepages-2Mi=100Mi"
            ]
        );
        let ended = json!({"spec": pod["spec"], "status": {"phase": "Failed"}});
        assert_eq!(shown(&usage(&gvr::PODS, &ended, NOW)), ["count/pods=1"]);
        let service = json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
            "ports": [{"port": 27443}, {"port": 27444, "nodePort": 32001}]}});
        assert_eq!(
            shown(&usage(&gvr::SERVICES, &service, NOW)),
            ["count/services=1", "services=1", "services.loadbalancers=1", "services.nodeports=1"]
        );
        let claim =
            json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "10Gi"}}}, "status": {}});
        assert_eq!(
            shown(&usage(&gvr::PERSISTENT_VOLUME_CLAIMS, &claim, NOW)),
            [
                "count/persistentvolumeclaims=1",
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims=1",
                "gold.storageclass.storage.k8s.io/requests.storage=10Gi",
                "persistentvolumeclaims=1",
                "requests.storage=10Gi"
            ]
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let pod = json!({"spec": {"priorityClassName": "high", "activeDeadlineSeconds": 0, "containers": [{}]}});
        let is_in = |spec: Value| is_in_scope(&spec, &gvr::PODS, &pod);
        assert!(is_in(json!({"scopes": ["Terminating", "BestEffort"]})));
        assert!(!is_in(json!({"scopes": ["NotTerminating"]})) && !is_in(json!({"scopes": ["NotBestEffort"]})));
        let class = |operator: &str, values: Value| json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}});
        assert!(is_in(class("In", json!(["high", "low"]))) && is_in(class("Exists", json!([]))));
        assert!(!is_in(class("NotIn", json!(["high"]))) && !is_in(class("DoesNotExist", json!([]))));
        assert!(!is_in_scope(&json!({"scopes": ["BestEffort"]}), &gvr::SECRETS, &json!({})));
        assert!(is_in_scope(&json!({}), &gvr::SECRETS, &json!({})));
    }

    #[test]
    fn a_quota_that_is_exceeded_says_so_in_kubernetes_words() {
        let quota = json!({"metadata": {"name": "q"}, "status": {
            "hard": {"pods": "2", "requests.memory": "1Gi", "secrets": "5"}, "used": {"pods": "2", "requests.memory": "512Mi", "secrets": "1"}}});
        let pod = json!({"spec": {"containers": [{"resources": {"requests": {"memory": "1Gi"}}}]}});
        assert_eq!(
            charged(&quota, &usage(&gvr::PODS, &pod, NOW)),
            Err("exceeded quota: q, requested: pods=1,requests.memory=1Gi, used: pods=2,requests.memory=512Mi, limited: \
                pods=2,requests.memory=1Gi"
                .to_owned())
        );
        let secret = charged(&quota, &usage(&gvr::SECRETS, &json!({}), NOW)).expect("it fits").expect("it counts");
        assert_eq!(to_value(&secret), json!({"pods": "2", "requests.memory": "512Mi", "secrets": "2"}));
        assert_eq!(charged(&quota, &usage(&gvr::CONFIG_MAPS, &json!({}), NOW)), Ok(None));
    }

    #[test]
    fn containers_must_say_what_is_limited() {
        let hard = json!({"limits.cpu": "1", "requests.memory": "1Gi", "pods": "1"});
        let hard = hard.as_object().expect("an object");
        let pod = json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"requests": {"memory": "1Mi"}}}]}});
        assert_eq!(
            unspecified(hard, &pod).as_deref(),
            Some("must specify limits.cpu for: a,b; requests.memory for: b")
        );
        let whole = json!({"spec": {"resources": {"limits": {"cpu": "1"}}, "containers": [{"name": "b"}]}});
        assert_eq!(unspecified(hard, &whole), None);
    }

    #[test]
    fn resources_belong_to_the_kinds_that_use_them() {
        let deployments = Gvr::new("apps", "v1", "deployments");
        assert!(concerns(&deployments, "count/deployments.apps") && !concerns(&deployments, "deployments"));
        assert!(concerns(&gvr::SECRETS, "secrets") && concerns(&gvr::SECRETS, "count/secrets"));
        assert!(concerns(&gvr::PODS, "requests.nvidia.com/gpu") && !concerns(&gvr::PODS, "nvidia.com/gpu"));
        assert!(!concerns(&gvr::EVENTS, "events"));
    }

    #[test]
    fn devices_count_by_class() {
        // TestResourceClaimEvaluatorUsage.
        let claim = json!({"spec": {"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
            {"name": "b", "exactly": {"deviceClassName": "gpu", "allocationMode": "All"}},
            {"name": "c", "firstAvailable": [{"deviceClassName": "nic", "count": 1}, {"deviceClassName": "nic", "count": 3}]},
        ]}}});
        assert_eq!(
            shown(&usage(&Gvr::new("resource.k8s.io", "v1", "resourceclaims"), &claim, NOW)),
            [
                "count/resourceclaims.resource.k8s.io=1",
                "gpu.deviceclass.resource.k8s.io/devices=34",
                "nic.deviceclass.resource.k8s.io/devices=3"
            ]
        );
    }
}
