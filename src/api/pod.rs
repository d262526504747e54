//! Pure facts about pods that several components need: readiness, phases, quality of service, effective resources.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::meta::{self, items, text};
use super::quantity::Quantity;

/// Resources by name (`cpu`, `memory`, …).
pub type Resources = BTreeMap<String, Quantity>;

/// `status.phase`; empty when absent.
pub fn phase(pod: &Value) -> &str {
    text(&pod["status"]["phase"])
}
/// Whether it has ended for good: `Succeeded` or `Failed`.
pub fn is_terminal(pod: &Value) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}
/// Whether it counts as a replica: neither ended nor being deleted (`IsPodActive`).
pub fn is_active(pod: &Value) -> bool {
    !is_terminal(pod) && !meta::is_terminating(pod)
}
/// A condition of the pod by its type.
pub fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(&pod["status"]["conditions"]).iter().find(|c| text(&c["type"]) == kind)
}
/// Whether a condition is `True`.
pub fn is_condition_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| text(&c["status"]) == "True")
}
/// Whether its `Ready` condition is `True`.
pub fn is_ready(pod: &Value) -> bool {
    is_condition_true(pod, "Ready")
}

/// Since when it has been ready; `None` when it is not.
pub fn ready_since(pod: &Value) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| text(&c["status"]) == "True")?["lastTransitionTime"].as_str()?.parse().ok()
}

/// Whether it has been ready for `min_ready_seconds` (`IsPodAvailable`).
pub fn is_available(pod: &Value, min_ready_seconds: i64, now: Timestamp) -> bool {
    is_ready(pod) && (min_ready_seconds <= 0 || available_at(pod, min_ready_seconds).is_some_and(|at| at <= now))
}

/// When a ready pod becomes (or became) available; `None` when it is not ready.
pub fn available_at(pod: &Value, min_ready_seconds: i64) -> Option<Timestamp> {
    ready_since(pod)?.checked_add(SignedDuration::from_secs(min_ready_seconds.max(0))).ok()
}

/// Whether an init container is a sidecar (`restartPolicy: Always`).
pub fn is_restartable_init(container: &Value) -> bool {
    text(&container["restartPolicy"]) == "Always"
}

/// Containers, init containers and ephemeral containers of a pod spec, in this order.
pub fn all_containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["containers", "initContainers", "ephemeralContainers"].into_iter().flat_map(|list| items(&spec[list]))
}

/// The controller that owns an object (`metav1.GetControllerOf`).
pub fn controller_of(object: &Value) -> Option<&Value> {
    items(&object["metadata"]["ownerReferences"]).iter().find(|r| r["controller"] == true)
}

/// A resource list of an object.
pub fn resource_list(list: &Value) -> Resources {
    list.as_object().into_iter().flatten().map(|(name, quantity)| (name.clone(), Quantity::of(quantity))).collect()
}

fn add(sum: &mut Resources, other: &Resources) {
    for (name, quantity) in other {
        *sum.entry(name.clone()).or_default() += *quantity;
    }
}

fn max(largest: &mut Resources, other: &Resources) {
    for (name, quantity) in other {
        let entry = largest.entry(name.clone()).or_insert(*quantity);
        if *quantity > *entry {
            *entry = *quantity;
        }
    }
}

/// What a pod asks for altogether: the larger of its containers with sidecars and of each init container with the
/// sidecars before it, or what the pod says as a whole; plus the overhead (`resource.PodRequests`).
pub fn requests(pod: &Value) -> Resources {
    let mut sum = aggregate(pod, "requests");
    add(&mut sum, &resource_list(&pod["spec"]["overhead"]));
    sum
}

/// The limits of a pod altogether, aggregated like [`requests`].
pub fn limits(pod: &Value) -> Resources {
    let mut sum = aggregate(pod, "limits");
    for (name, quantity) in resource_list(&pod["spec"]["overhead"]) {
        if let Some(limit) = sum.get_mut(&name) {
            *limit += quantity;
        }
    }
    sum
}

fn aggregate(pod: &Value, list: &str) -> Resources {
    let spec = &pod["spec"];
    let of = |container: &Value| resource_list(&container["resources"][list]);
    let mut sum = Resources::new();
    for container in items(&spec["containers"]) {
        add(&mut sum, &of(container));
    }
    let (mut sidecars, mut init) = (Resources::new(), Resources::new());
    for container in items(&spec["initContainers"]) {
        let mut asked = of(container);
        if is_restartable_init(container) {
            add(&mut sum, &asked);
            add(&mut sidecars, &asked);
            asked = sidecars.clone();
        } else {
            add(&mut asked, &sidecars);
        }
        max(&mut init, &asked);
    }
    max(&mut sum, &init);
    for (name, quantity) in resource_list(&spec["resources"][list]) {
        if name == "cpu" || name == "memory" || name.starts_with("hugepages-") {
            sum.insert(name, quantity);
        }
    }
    sum
}

/// `Guaranteed`, `Burstable` or `BestEffort` (`qos.ComputePodQOS`).
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let compute = |list: &Value| -> Resources {
        let mut list = resource_list(list);
        list.retain(|name, quantity| matches!(name.as_str(), "cpu" | "memory") && *quantity > Quantity::ZERO);
        list
    };
    let (mut requests, mut limits, mut all_limited) = (Resources::new(), Resources::new(), true);
    let of_pod = &spec["resources"];
    let parts: Vec<&Value> = if compute(&of_pod["requests"]).is_empty() && compute(&of_pod["limits"]).is_empty() {
        items(&spec["containers"]).iter().chain(items(&spec["initContainers"])).map(|c| &c["resources"]).collect()
    } else {
        vec![of_pod]
    };
    for part in parts {
        let limited = compute(&part["limits"]);
        all_limited &= limited.len() == 2;
        add(&mut requests, &compute(&part["requests"]));
        add(&mut limits, &limited);
    }
    match (requests.is_empty(), limits.is_empty()) {
        (true, true) => "BestEffort",
        _ if all_limited && requests == limits => "Guaranteed",
        _ => "Burstable",
    }
}

/// The `pod-template-hash` of a template: FNV-1a of its canonical JSON (and the collision count), in the letters that
/// Kubernetes uses for names (`rand.SafeEncodeString`). Absent, null and empty are the same.
pub fn pod_template_hash(template: &Value, collision_count: Option<i64>) -> String {
    safe_hash(template, collision_count)
}

/// [`pod_template_hash`] for any value (revisions of StatefulSets and DaemonSets).
pub fn safe_hash(value: &Value, collision_count: Option<i64>) -> String {
    let mut hash = Fnv(0x811c_9dc5);
    hash.value(value);
    if let Some(count) = collision_count {
        hash.bytes(&(count as u32).to_le_bytes());
    }
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    hash.0.to_string().bytes().map(|digit| LETTERS[usize::from(digit) % LETTERS.len()] as char).collect()
}

/// 32-bit FNV-1a.
struct Fnv(u32);

impl Fnv {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
    /// Keys in their order, without what is null or empty.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().filter(|(_, v)| !is_empty(v)).collect();
                entries.sort_by_key(|(key, _)| key.as_str());
                self.bytes(b"{");
                for (key, value) in entries {
                    self.bytes(key.as_bytes());
                    self.bytes(b":");
                    self.value(value);
                    self.bytes(b",");
                }
                self.bytes(b"}");
            }
            Value::Array(array) => {
                self.bytes(b"[");
                for item in array {
                    self.value(item);
                    self.bytes(b",");
                }
                self.bytes(b"]");
            }
            other => self.bytes(other.to_string().as_bytes()),
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(array) => array.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: Value, init: Value) -> Value {
        json!({"spec": {"containers": containers, "initContainers": init}})
    }
    fn requesting(cpu: &str) -> Value {
        json!({"resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn requests_count_init_containers_and_sidecars() {
        let cpu = |pod: Value| requests(&pod)["cpu"].to_string();
        assert_eq!(cpu(pod(json!([requesting("1"), requesting("500m")]), json!([requesting("1200m")]))), "1500m");
        assert_eq!(cpu(pod(json!([requesting("1")]), json!([requesting("3"), requesting("2")]))), "3");
        // KEP-753: the init container after the sidecar runs beside it.
        let mut sidecar = requesting("1");
        sidecar["restartPolicy"] = "Always".into();
        assert_eq!(cpu(pod(json!([requesting("1")]), json!([sidecar, requesting("4")]))), "5");
        assert_eq!(cpu(pod(json!([requesting("1")]), json!([requesting("1"), sidecar]))), "2");
        let mut with_overhead = pod(json!([requesting("1")]), json!(null));
        with_overhead["spec"]["overhead"] = json!({"cpu": "250m"});
        assert_eq!(cpu(with_overhead), "1250m");
    }

    #[test]
    fn quality_of_service() {
        let one = |resources: Value| qos_class(&pod(json!([{"resources": resources}]), json!(null)));
        assert_eq!(one(json!({})), "BestEffort");
        assert_eq!(one(json!({"requests": {"cpu": "1"}})), "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(one(json!({"requests": both, "limits": both})), "Guaranteed");
        assert_eq!(one(json!({"requests": {"cpu": "1"}, "limits": both})), "Burstable");
        assert_eq!(one(json!({"limits": {"example.com/x": "1"}})), "BestEffort");
    }

    #[test]
    fn availability_waits_for_the_minimum() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().expect("a time");
        let pod = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:30Z"}]}});
        assert!(is_available(&pod, 0, now) && is_available(&pod, 30, now) && !is_available(&pod, 31, now));
    }

    #[test]
    fn the_template_hash_ignores_what_is_empty_and_counts_collisions() {
        let template = json!({"spec": {"containers": [{"name": "c"}]}});
        let hash = pod_template_hash(&template, None);
        assert_eq!(
            hash,
            pod_template_hash(
                &json!({"metadata": {"creationTimestamp": null}, "spec": {"x": null, "containers": [{"name": "c"}]}}),
                None
            )
        );
        assert_ne!(hash, pod_template_hash(&template, Some(1)));
        assert!(hash.len() <= 10 && hash.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b)));
    }
}
