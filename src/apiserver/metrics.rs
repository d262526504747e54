//! What the server counts about itself, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::http::request::RequestInfo;

/// The buckets of kube-apiserver's request durations, shortened.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.25, 2.0, 5.0, 10.0, 60.0];

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

impl Labels {
    fn of(info: &RequestInfo) -> Self {
        let scope = match (info.is_resource, info.name.is_empty(), info.namespace.is_empty()) {
            (false, ..) => "",
            (true, false, _) => "resource",
            (true, true, false) => "namespace",
            (true, true, true) => "cluster",
        };
        Self {
            verb: info.verb.to_uppercase(),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            scope,
        }
    }

    fn write(&self, out: &mut String) {
        let Self { verb, group, version, resource, subresource, scope } = self;
        let _ = write!(
            out,
            "group={group:?},resource={resource:?},scope={scope:?},subresource={subresource:?},verb={verb:?},version={version:?}"
        );
    }
}

#[derive(Default)]
struct Histogram {
    counts: [u64; BUCKETS.len()],
    sum: f64,
    count: u64,
}

#[derive(Default)]
struct Tables {
    totals: BTreeMap<(Labels, u16), u64>,
    durations: BTreeMap<Labels, Histogram>,
    long_running: BTreeMap<Labels, i64>,
}

/// The counters.
#[derive(Default)]
pub(crate) struct Metrics {
    tables: Mutex<Tables>,
    reading: AtomicI64,
    writing: AtomicI64,
}

/// A request that is being answered.
pub(crate) struct InFlight<'a> {
    gauge: Option<&'a AtomicI64>,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(gauge) = self.gauge {
            gauge.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Whether a request lasts as long as its client likes.
pub(crate) fn is_long_running(info: &RequestInfo) -> bool {
    info.verb == "watch" || ["log", "exec", "attach", "portforward", "proxy"].contains(&info.subresource.as_str())
}

impl Metrics {
    /// Counts a request while it is answered.
    pub fn begin(&self, info: &RequestInfo) -> InFlight<'_> {
        if is_long_running(info) {
            return InFlight { gauge: None };
        }
        let reading = ["get", "list"].contains(&info.verb.as_str());
        let gauge = if reading { &self.reading } else { &self.writing };
        gauge.fetch_add(1, Ordering::Relaxed);
        InFlight { gauge: Some(gauge) }
    }

    /// Counts an answered request.
    pub fn observe(&self, info: &RequestInfo, code: u16, took: Duration) {
        let labels = Labels::of(info);
        let mut tables = self.tables.lock().expect("no panic under this lock");
        *tables.totals.entry((labels.clone(), code)).or_default() += 1;
        if info.verb == "watch" {
            return;
        }
        let histogram = tables.durations.entry(labels).or_default();
        let seconds = took.as_secs_f64();
        histogram.sum += seconds;
        histogram.count += 1;
        for (bucket, count) in BUCKETS.iter().zip(&mut histogram.counts) {
            if seconds <= *bucket {
                *count += 1;
            }
        }
    }

    /// A watch begins (`1`) or ends (`-1`).
    pub fn long_running(&self, info: &RequestInfo, change: i64) {
        let mut tables = self.tables.lock().expect("no panic under this lock");
        *tables.long_running.entry(Labels::of(info)).or_default() += change;
    }

    /// Everything as text; `objects` are the counts of stored objects by resource.
    pub fn render(&self, objects: &[(String, usize)]) -> String {
        let mut out = String::new();
        let tables = self.tables.lock().expect("no panic under this lock");
        head(
            &mut out,
            "apiserver_request_total",
            "counter",
            "Counter of apiserver requests broken out for each verb, group, version, resource, scope, component, and HTTP response code.",
        );
        for ((labels, code), count) in &tables.totals {
            out.push_str("apiserver_request_total{");
            let _ = write!(out, "code=\"{code}\",component=\"apiserver\",dry_run=\"\",");
            labels.write(&mut out);
            let _ = writeln!(out, "}} {count}");
        }
        head(
            &mut out,
            "apiserver_request_duration_seconds",
            "histogram",
            "Response latency distribution in seconds for each verb, group, version, resource, subresource, scope and component.",
        );
        for (labels, histogram) in &tables.durations {
            let bounds = BUCKETS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
            for (bound, count) in bounds.zip(histogram.counts.iter().chain([&histogram.count])) {
                out.push_str("apiserver_request_duration_seconds_bucket{component=\"apiserver\",");
                labels.write(&mut out);
                let _ = writeln!(out, ",le=\"{bound}\"}} {count}");
            }
            for (suffix, value) in [("sum", histogram.sum), ("count", histogram.count as f64)] {
                let _ = write!(out, "apiserver_request_duration_seconds_{suffix}{{component=\"apiserver\",");
                labels.write(&mut out);
                let _ = writeln!(out, "}} {value}");
            }
        }
        head(
            &mut out,
            "apiserver_longrunning_requests",
            "gauge",
            "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component.",
        );
        for (labels, count) in &tables.long_running {
            out.push_str("apiserver_longrunning_requests{component=\"apiserver\",");
            labels.write(&mut out);
            let _ = writeln!(out, "}} {count}");
        }
        head(
            &mut out,
            "apiserver_current_inflight_requests",
            "gauge",
            "Maximal number of currently used inflight request limit of this apiserver per request kind in last second.",
        );
        let (reading, writing) = (self.reading.load(Ordering::Relaxed), self.writing.load(Ordering::Relaxed));
        let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"readOnly\"}} {reading}");
        let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"mutating\"}} {writing}");
        head(
            &mut out,
            "apiserver_storage_objects",
            "gauge",
            "Number of stored objects at the time of last check split by kind.",
        );
        for (resource, count) in objects {
            let _ = writeln!(out, "apiserver_storage_objects{{resource={resource:?}}} {count}");
        }
        process(&mut out);
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

/// What the kernel counts about this process.
fn process(out: &mut String) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let cpu = (number(11) + number(12)) as f64 / 100.0;
    head(out, "process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.");
    let _ = writeln!(out, "process_cpu_seconds_total {cpu}");
    head(out, "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.");
    let _ = writeln!(out, "process_resident_memory_bytes {}", number(21) * 4096);
    head(out, "process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.");
    let _ = writeln!(out, "process_virtual_memory_bytes {}", number(20));
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        head(out, "process_open_fds", "gauge", "Number of open file descriptors.");
        let _ = writeln!(out, "process_open_fds {}", files.count());
    }
}
