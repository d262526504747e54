//! `/stats/summary` and `/metrics/resource`, measured when asked.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::env::rfc3339;
use crate::node::Node;
use crate::node::pod_state::PodState;
use crate::node::runtime::{PodUsage, Usage};

/// What the node uses. It is its process and its pods: several nodes may share a machine, and share it with others.
struct NodeUsage {
    cpu_nanoseconds: u64,
    working_set: u64,
    /// What its pods could still have.
    available: u64,
}

fn node_usage(node: &Arc<Node>, pods: &[(PodState, PodUsage)]) -> NodeUsage {
    let (own_cpu, own_memory) = process_usage();
    let pods = || pods.iter().map(|(_, usage)| &usage.pod);
    let cpu_nanoseconds = own_cpu + pods().map(|pod| pod.cpu_nanoseconds).sum::<u64>();
    let working_set = own_memory + pods().map(|pod| pod.memory_working_set).sum::<u64>();
    let left = node.context().options.machine.memory.saturating_sub(working_set);
    NodeUsage { cpu_nanoseconds, working_set, available: left.min(free_memory()) }
}

/// CPU time in nanoseconds and resident memory in bytes of this process.
fn process_usage() -> (u64, u64) {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeVal;
    let nanoseconds = |t: TimeVal| t.tv_sec().unsigned_abs() * 1_000_000_000 + t.tv_usec().unsigned_abs() * 1_000;
    let cpu = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |u| nanoseconds(u.user_time()) + nanoseconds(u.system_time()));
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or_default();
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    (cpu, pages * page.unsigned_abs())
}

/// The memory that the machine can still give, in bytes.
fn free_memory() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().map_or(u64::MAX, |kib| kib * 1024)
}

async fn usages(node: &Arc<Node>) -> Vec<(PodState, PodUsage)> {
    let mut all = Vec::new();
    for pod in node.pods() {
        // A pod that has just ended has no figures.
        if let Ok(usage) = node.context().runtime.usage(pod.uid()).await {
            all.push((pod, usage));
        }
    }
    all.sort_by(|(a, _), (b, _)| (a.namespace(), a.name()).cmp(&(b.namespace(), b.name())));
    all
}

/// `stats.k8s.io/v1alpha1` Summary.
pub async fn summary(node: &Arc<Node>) -> Value {
    let context = node.context();
    let now = rfc3339(context.env.now());
    let usages = usages(node).await;
    let whole = node_usage(node, &usages);
    let figures = |at: Timestamp, usage: &Usage| {
        let at = rfc3339(at);
        (
            json!({"time": at, "usageCoreNanoSeconds": usage.cpu_nanoseconds}),
            json!({"time": at, "workingSetBytes": usage.memory_working_set, "rssBytes": usage.memory_rss,
                "usageBytes": usage.memory_working_set}),
        )
    };
    let mut pods = Vec::new();
    for (pod, usage) in &usages {
        let containers: Vec<Value> = usage
            .containers
            .iter()
            .map(|(name, used)| {
                let (cpu, memory) = figures(usage.at, used);
                let started = pod.container(name).started_at().unwrap_or(pod.start_time);
                json!({"name": name, "startTime": rfc3339(started), "cpu": cpu, "memory": memory})
            })
            .collect();
        let (cpu, memory) = figures(usage.at, &usage.pod);
        pods.push(json!({
            "podRef": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
            "startTime": rfc3339(pod.start_time), "containers": containers, "cpu": cpu, "memory": memory,
            "process_stats": {"process_count": usage.pod.processes},
        }));
    }
    json!({
        "node": {
            "nodeName": context.options.name, "startTime": rfc3339(context.started),
            "cpu": {"time": now, "usageCoreNanoSeconds": whole.cpu_nanoseconds},
            "memory": {"time": now, "availableBytes": whole.available, "usageBytes": whole.working_set,
                "workingSetBytes": whole.working_set},
        },
        "pods": pods,
    })
}

/// The figures that metrics-server reads, in the text format of Prometheus.
pub async fn resource_metrics(node: &Arc<Node>) -> String {
    let now = node.context().env.now();
    let usages = usages(node).await;
    let whole = node_usage(node, &usages);
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, f64, Timestamp)>| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for (labels, value, at) in samples {
            let _ = writeln!(text, "{name}{labels} {value} {}", at.as_millisecond());
        }
    };
    let pod_labels = |pod: &PodState| format!("{{namespace=\"{}\",pod=\"{}\"}}", pod.namespace(), pod.name());
    let containers = |value: fn(&Usage) -> f64| {
        let mut samples = Vec::new();
        for (pod, usage) in &usages {
            for (name, used) in &usage.containers {
                let labels =
                    format!("{{container=\"{name}\",namespace=\"{}\",pod=\"{}\"}}", pod.namespace(), pod.name());
                samples.push((labels, value(used), usage.at));
            }
        }
        samples
    };
    let starts = usages
        .iter()
        .flat_map(|(pod, usage)| usage.containers.iter().map(move |(name, _)| (pod, name)))
        .filter_map(|(pod, name)| {
            let started = pod.container(name).started_at()?;
            let labels = format!("{{container=\"{name}\",namespace=\"{}\",pod=\"{}\"}}", pod.namespace(), pod.name());
            Some((labels, started.as_millisecond() as f64 / 1e3, now))
        })
        .collect();
    let pods = |value: fn(&Usage) -> f64| {
        usages.iter().map(|(pod, usage)| (pod_labels(pod), value(&usage.pod), usage.at)).collect::<Vec<_>>()
    };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        containers(|u| u.cpu_nanoseconds as f64 / 1e9),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        containers(|u| u.memory_working_set as f64),
    );
    family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds", starts);
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        vec![(String::new(), seconds(whole.cpu_nanoseconds), now)],
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        vec![(String::new(), whole.working_set as f64, now)],
    );
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        pods(|u| u.cpu_nanoseconds as f64 / 1e9),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        pods(|u| u.memory_working_set as f64),
    );
    text.push_str(
        "# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise\n\
         # TYPE resource_scrape_error gauge\nresource_scrape_error 0\n",
    );
    text
}
