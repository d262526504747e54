//! Amounts of resources, and what a pod requests (`k8s.io/component-helpers/resource`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What scoring assumes of a container that requests no CPU (`DefaultMilliCPURequest`).
const ASSUMED_CPU: i64 = 100;
/// What scoring assumes of a container that requests no memory (`DefaultMemoryRequest`).
const ASSUMED_MEMORY: i64 = 200 * 1024 * 1024;

/// The most of anything that a pod counts for: more than any node has, and so little that the pods of a node add up exactly.
const MOST: i64 = i64::MAX >> 11;

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// CPU in thousandths.
    pub milli_cpu: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Ephemeral storage in bytes.
    pub ephemeral: i64,
    /// Extended resources and huge pages.
    pub scalar: BTreeMap<String, i64>,
}

type List = BTreeMap<String, Quantity>;

impl Resources {
    /// From a resource list; what cannot be read counts as nothing.
    pub fn of(list: &List) -> Self {
        let mut all = Self::default();
        for (name, quantity) in list {
            let Ok(amount) = quantity.0.parse::<crate::api::quantity::Quantity>() else { continue };
            match name.as_str() {
                "cpu" => all.milli_cpu = amount.milli_value(),
                "memory" => all.memory = amount.value(),
                "ephemeral-storage" => all.ephemeral = amount.value(),
                "pods" => {}
                name => drop(all.scalar.insert(name.to_owned(), amount.value())),
            }
        }
        all
    }
    /// Adds (or with `sign` -1 takes away). What is more than everything stays everything: it must not wrap into nothing.
    pub fn add(&mut self, other: &Self, sign: i64) {
        let add = |to: &mut i64, amount: i64| *to = to.saturating_add(amount.saturating_mul(sign));
        add(&mut self.milli_cpu, other.milli_cpu);
        add(&mut self.memory, other.memory);
        add(&mut self.ephemeral, other.ephemeral);
        for (name, amount) in &other.scalar {
            add(self.scalar.entry(name.clone()).or_default(), *amount);
        }
    }
    /// With at most [`MOST`] of each.
    fn capped(mut self) -> Self {
        for amount in [&mut self.milli_cpu, &mut self.memory, &mut self.ephemeral] {
            *amount = (*amount).min(MOST);
        }
        self.scalar.values_mut().for_each(|amount| *amount = (*amount).min(MOST));
        self
    }
    /// The larger of each.
    fn max(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        for (name, amount) in &other.scalar {
            let known = self.scalar.entry(name.clone()).or_default();
            *known = (*known).max(*amount);
        }
    }
    /// An extended resource or huge pages; 0 when there is none.
    pub fn scalar(&self, name: &str) -> i64 {
        self.scalar.get(name).copied().unwrap_or_default()
    }
    /// Whether any amount is smaller than in `before`.
    pub fn is_less_than(&self, before: &Self) -> bool {
        self.milli_cpu < before.milli_cpu
            || self.memory < before.memory
            || self.ephemeral < before.ephemeral
            || before.scalar.iter().any(|(name, amount)| self.scalar(name) < *amount)
    }
    /// The resources of which `wanted` more do not fit beside `used`, each with whether they would fit alone.
    pub fn lacking<'a>(&self, used: &Self, wanted: &'a Self) -> Vec<(&'a str, bool)> {
        let mut lacking = Vec::new();
        let mut check = |name: &'a str, wanted: i64, used: i64, total: i64| {
            if wanted > 0 && wanted > total.saturating_sub(used) {
                lacking.push((name, wanted <= total));
            }
        };
        check("cpu", wanted.milli_cpu, used.milli_cpu, self.milli_cpu);
        check("memory", wanted.memory, used.memory, self.memory);
        check("ephemeral-storage", wanted.ephemeral, used.ephemeral, self.ephemeral);
        for (name, amount) in &wanted.scalar {
            check(name, *amount, used.scalar(name), self.scalar(name));
        }
        lacking
    }
}

/// What a container requests; one that is being resized also what it still has (KEP-1287).
fn container_requests(container: &Container, status: Option<&ContainerStatus>, infeasible: bool) -> Resources {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let mut wanted = requests.map(Resources::of).unwrap_or_default();
    let Some(status) = status else { return wanted };
    let actual = status.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    if infeasible && (actual.is_some() || status.allocated_resources.is_some()) {
        wanted = Resources::default();
    }
    for list in [actual, status.allocated_resources.as_ref()].into_iter().flatten() {
        wanted.max(&Resources::of(list));
    }
    wanted
}

/// How [`requests`] counts.
#[derive(Clone, Copy)]
struct Assumed {
    cpu: i64,
    memory: i64,
}

impl Assumed {
    const NOTHING: Self = Self { cpu: 0, memory: 0 };

    /// Fills in what a container does not mention at all.
    fn fill(self, container: &Container, mut wanted: Resources) -> Resources {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let mentions = |name: &str| requests.is_some_and(|requests| requests.contains_key(name));
        if !mentions("cpu") {
            wanted.milli_cpu = wanted.milli_cpu.max(self.cpu);
        }
        if !mentions("memory") {
            wanted.memory = wanted.memory.max(self.memory);
        }
        wanted
    }
}

/// The sum over containers and sidecars, or the most that starting takes; and the overhead (`PodRequests`).
fn requests(pod: &Pod, spec: &PodSpec, assumed: Assumed) -> Resources {
    let status = pod.status.as_ref();
    let infeasible = status.and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
        conditions.iter().any(|c| c.type_ == "PodResizePending" && c.reason.as_deref() == Some("Infeasible"))
    });
    let find = |list: Option<&Vec<ContainerStatus>>, name: &str| {
        list.and_then(|list| list.iter().find(|status| status.name == name)).cloned()
    };
    let each = |container: &Container, list| {
        assumed.fill(container, container_requests(container, find(list, &container.name).as_ref(), infeasible))
    };
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&each(container, status.and_then(|status| status.container_statuses.as_ref())), 1);
    }
    let (mut sidecars, mut starting) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let own = each(container, status.and_then(|status| status.init_container_statuses.as_ref()));
        let mut while_starting = sidecars.clone();
        while_starting.add(&own, 1);
        starting.max(&while_starting);
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&own, 1);
            sidecars.add(&own, 1);
        }
    }
    running.max(&starting);
    if let Some(whole) = pod_level(spec) {
        // Requests of the whole pod (KEP-2837) stand in the place of the sum.
        let whole_pod = Resources::of(whole);
        if whole.contains_key("cpu") {
            running.milli_cpu = whole_pod.milli_cpu;
        }
        if whole.contains_key("memory") {
            running.memory = whole_pod.memory;
        }
        running.scalar.extend(whole_pod.scalar.into_iter().filter(|(name, _)| name.starts_with("hugepages-")));
    }
    running.add(&spec.overhead.as_ref().map(Resources::of).unwrap_or_default(), 1);
    running.capped()
}

fn pod_level(spec: &PodSpec) -> Option<&List> {
    spec.resources.as_ref()?.requests.as_ref().filter(|list| !list.is_empty())
}

/// What must be free on a node for the pod.
pub fn of_pod(pod: &Pod) -> Resources {
    pod.spec.as_ref().map(|spec| requests(pod, spec, Assumed::NOTHING)).unwrap_or_default()
}

/// CPU and memory for scoring, where what containers do not request is assumed (`non0Requests`). `requests` is [`of_pod`].
pub fn assumed(pod: &Pod, requests: &Resources) -> (i64, i64) {
    let Some(spec) = &pod.spec else { return (0, 0) };
    let mut fill = Assumed { cpu: ASSUMED_CPU, memory: ASSUMED_MEMORY };
    if pod_level(spec).is_some() {
        fill.cpu = if requests.milli_cpu == 0 { fill.cpu } else { 0 };
        fill.memory = if requests.memory == 0 { fill.memory } else { 0 };
    }
    let filled = self::requests(pod, spec, fill);
    (filled.milli_cpu, filled.memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use serde_json::{Value, json};

    const GIB: i64 = 1024 * 1024 * 1024;

    /// CPU and memory that must be free, and those for scoring.
    fn check(pod: Value, expected: ((i64, i64), (i64, i64))) {
        let pod = Pod::parse(&pod).expect("a pod");
        let requests = of_pod(&pod);
        assert_eq!(((requests.milli_cpu, requests.memory), assumed(&pod, &requests)), expected, "{pod:?}");
    }

    fn container(name: &str, cpu: &str) -> Value {
        json!({"name": name, "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}})
    }

    #[test]
    fn requests_are_the_most_that_is_needed_at_once() {
        let mut sidecar = container("s", "100m");
        sidecar["restartPolicy"] = "Always".into();
        let spec = json!({"containers": [container("a", "250m"), container("b", "250m")],
            "initContainers": [sidecar, container("i", "2")], "overhead": {"cpu": "10m"}});
        check(json!({"spec": spec}), ((2110, 3 * GIB), (2110, 3 * GIB)));
    }

    #[test]
    fn absurd_requests_do_not_wrap_into_small_ones() {
        let most = json!({"name": "c", "resources": {"requests": {"memory": i64::MAX.to_string(), "cpu": "9007199254740992"}}});
        check(json!({"spec": {"containers": [most, most]}}), ((MOST, MOST), (MOST, MOST)));
        let node = Resources { milli_cpu: 4000, memory: 8 * GIB, ..Resources::default() };
        let absurd = Resources { milli_cpu: MOST, memory: MOST, ..Resources::default() };
        let own = Resources { milli_cpu: 500, memory: GIB, ..Resources::default() };
        let mut used = own.clone();
        (0..2000).for_each(|_| used.add(&absurd, 1));
        assert_eq!(node.lacking(&used, &own), [("cpu", true), ("memory", true)]);
        (0..2000).for_each(|_| used.add(&absurd, -1));
        assert_eq!(used, own, "they leave nothing behind");
    }

    #[test]
    fn scoring_assumes_what_containers_do_not_mention() {
        let bare = json!({"name": "a"});
        check(json!({"spec": {"containers": [bare, bare]}}), ((0, 0), (200, 2 * ASSUMED_MEMORY)));
        let zero = json!({"name": "a", "resources": {"requests": {"cpu": "0"}}});
        check(json!({"spec": {"containers": [zero]}}), ((0, 0), (0, ASSUMED_MEMORY)));
    }

    #[test]
    fn requests_of_the_whole_pod_replace_the_sum() {
        let spec = json!({"containers": [container("a", "250m")], "resources": {"requests": {"cpu": "1"}}});
        check(json!({"spec": spec}), ((1000, GIB), (1000, GIB)));
        let spec = json!({"containers": [{"name": "a"}], "resources": {"requests": {"cpu": "1"}}});
        check(json!({"spec": spec}), ((1000, 0), (1000, ASSUMED_MEMORY)));
    }

    #[test]
    fn a_pod_that_shrinks_keeps_its_room_until_it_has_shrunk() {
        let status = json!({"name": "a", "allocatedResources": {"cpu": "500m"}, "resources": {"requests": {"cpu": "500m"}},
            "image": "", "imageID": "", "ready": true, "restartCount": 0});
        let pod = |conditions: Value| {
            json!({"spec": {"containers": [container("a", "250m")]},
            "status": {"containerStatuses": [status], "conditions": conditions}})
        };
        check(pod(json!([])), ((500, GIB), (500, GIB)));
        let mut grows = pod(json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]));
        grows["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "64".into();
        let requests = of_pod(&Pod::parse(&grows).expect("a pod"));
        assert_eq!(requests.milli_cpu, 500, "what cannot be granted takes no room");
    }
}
