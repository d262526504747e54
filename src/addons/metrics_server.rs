//! `metrics-server`: `metrics.k8s.io/v1beta1` for `kubectl top`, measured when somebody asks.
//!
//! A rate needs two measurements. Each request is one; its predecessor is the last request's when that is between
//! 1 second and 10 minutes old, else the start of the container. So nothing runs while nobody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{Addon, Context, Nodes, Running};
use crate::api::kinds::gvr;
use crate::api::selector::LabelSelector;
use crate::api::{Gvr, Status, StatusResult, meta};
use crate::client::{Api, ListOptions};
use crate::env::Env;

/// The entry of the list.
pub const ADDON: Addon = Addon {
    name: "metrics-server",
    about: "CPU and memory of nodes and pods for kubectl top",
    default: false,
    start: |context| Box::pin(async move { Ok(Box::new(start(context).await?) as Box<dyn Running>) }),
};

/// `nodes.metrics.k8s.io`.
pub const NODE_METRICS: Gvr = Gvr::new("metrics.k8s.io", "v1beta1", "nodes");
/// `pods.metrics.k8s.io`.
pub const POD_METRICS: Gvr = Gvr::new("metrics.k8s.io", "v1beta1", "pods");

/// The name of its APIService.
const API_SERVICE: &str = "v1beta1.metrics.k8s.io";

struct MetricsServer(Arc<Context>);

async fn start(context: Arc<Context>) -> anyhow::Result<MetricsServer> {
    let metrics = Metrics {
        api: context.api.clone(),
        nodes: context.nodes.clone(),
        env: context.env.clone(),
        last: Mutex::default(),
    };
    context.aggregation.serve_metrics(Arc::new(metrics)).await?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "metrics-server", "namespace": "kube-system",
            "labels": {"k8s-app": "metrics-server", "kubernetes.io/name": "Metrics-server"},
        },
        "spec": {"ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 443}]},
    });
    context.apply(&gvr::SERVICES, service).await?;
    // The API server serves it inside of this process (see `serve_metrics`), whatever the Service's endpoints are.
    let api_service = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {
            "name": API_SERVICE,
            "labels": {"k8s-app": "metrics-server", "kubernetes.io/name": "Metrics-server"},
        },
        "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
            "insecureSkipTLSVerify": true, "service": {"name": "metrics-server", "namespace": "kube-system"},
        },
    });
    context.apply(&gvr::API_SERVICES, api_service).await?;
    Ok(MetricsServer(context))
}

#[async_trait]
impl Running for MetricsServer {
    async fn stop(&self, forever: bool) -> anyhow::Result<()> {
        self.0.aggregation.end_metrics().await;
        if forever {
            self.0.remove(&gvr::API_SERVICES, "", API_SERVICE).await?;
            self.0.remove(&gvr::SERVICES, "kube-system", "metrics-server").await?;
        }
        Ok(())
    }
}

/// How long a node may take to answer.
const SCRAPE: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const MOST_SUMMARY: usize = 16 << 20;
/// The widest window over which a rate is computed.
const OLDEST: SignedDuration = SignedDuration::from_mins(10);

/// The part of a node's `stats.k8s.io/v1alpha1` Summary that is used here.
#[derive(Deserialize)]
struct Summary {
    node: Stats,
    pods: Vec<PodStats>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodReference,
    containers: Vec<Stats>,
}

#[derive(Deserialize)]
struct PodReference {
    uid: String,
}

/// A node's or a container's figures.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    #[serde(default, alias = "nodeName")]
    name: String,
    start_time: Timestamp,
    cpu: CpuStats,
    memory: MemoryStats,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CpuStats {
    usage_core_nano_seconds: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MemoryStats {
    working_set_bytes: u64,
}

/// A measurement and when it was made.
#[derive(Clone, Copy)]
struct Sample {
    at: Timestamp,
    cpu_nanoseconds: u64,
}

/// The source of `metrics.k8s.io`.
pub struct Metrics {
    api: Arc<dyn Api>,
    nodes: Arc<dyn Nodes>,
    env: Env,
    last: Mutex<BTreeMap<String, Sample>>,
}

/// CPU in nano-cores between two samples, and the time between them.
fn rate(before: Sample, now: Sample) -> (u64, SignedDuration) {
    let window = now.at.duration_since(before.at);
    let nanoseconds = u128::try_from(window.as_nanos()).unwrap_or_default().max(1);
    let used = u128::from(now.cpu_nanoseconds.saturating_sub(before.cpu_nanoseconds));
    (u64::try_from(used * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX), window)
}

/// Whether a sample of that age gives a useful rate.
fn usable(age: SignedDuration) -> bool {
    age >= SignedDuration::from_secs(1) && age <= OLDEST
}

fn usage_object(nano_cores: u64, memory_bytes: u64) -> Value {
    json!({"cpu": format!("{nano_cores}n"), "memory": format!("{}Ki", memory_bytes / 1024)})
}

impl Metrics {
    /// The list of NodeMetrics; a name narrows it to one. A node that does not answer is left out, as metrics-server does.
    ///
    /// # Errors
    /// 404 when there is no such node, or no figures of it.
    pub async fn nodes(&self, name: Option<&str>) -> StatusResult<Value> {
        let nodes =
            match name {
                Some(name) => vec![self.api.get(&gvr::NODES, "", name).await.map_err(|error| {
                    if error.is_not_found() { Status::not_found(&NODE_METRICS, name) } else { error }
                })?],
                None => self.api.list(&gvr::NODES, "", &ListOptions::default()).await?.items,
            };
        let names = nodes.iter().map(|node| meta::name(node).to_owned()).collect();
        let summaries = self.summaries(names).await;
        let mut items = Vec::new();
        for node in &nodes {
            let Some(summary) = summaries.get(meta::name(node)) else { continue };
            let (cpu, window) = self.measure(&format!("node/{}", meta::name(node)), &summary.node).await;
            items.push(json!({
                "kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
                "metadata": self.metadata(node),
                "timestamp": crate::env::rfc3339(self.env.now()), "window": format!("{:.3}s", window.as_secs_f64()),
                "usage": usage_object(cpu, summary.node.memory.working_set_bytes),
            }));
        }
        match name {
            Some(name) => items.pop().ok_or_else(|| Status::not_found(&NODE_METRICS, name)),
            None => Ok(list("NodeMetricsList", items)),
        }
    }

    /// The list of PodMetrics of a namespace (empty: all) with a label selector; a name narrows it to one.
    ///
    /// # Errors
    /// 404 when the pod does not run, 400 for a bad selector.
    pub async fn pods(&self, namespace: &str, name: Option<&str>, selector: &str) -> StatusResult<Value> {
        LabelSelector::parse(selector).map_err(Status::bad_request)?;
        let options = ListOptions { label_selector: selector.to_owned(), ..ListOptions::default() };
        let mut pods = self.api.list(&gvr::PODS, namespace, &options).await?.items;
        pods.retain(|pod| name.is_none_or(|name| name == meta::name(pod)));
        let nodes = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned)).collect();
        let summaries = self.summaries(nodes).await;
        let of_uid: BTreeMap<&str, &PodStats> =
            summaries.values().flat_map(|summary| &summary.pods).map(|stats| (&*stats.pod_ref.uid, stats)).collect();
        let mut items = Vec::new();
        for pod in &pods {
            let Some(stats) = of_uid.get(meta::uid(pod)).filter(|stats| !stats.containers.is_empty()) else { continue };
            let mut containers = Vec::new();
            let mut widest = SignedDuration::ZERO;
            for used in &stats.containers {
                let (cpu, window) = self.measure(&format!("pod/{}/{}", stats.pod_ref.uid, used.name), used).await;
                widest = widest.max(window);
                let usage = usage_object(cpu, used.memory.working_set_bytes);
                containers.push(json!({"name": used.name, "usage": usage}));
            }
            items.push(json!({
                "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
                "metadata": self.metadata(pod),
                "timestamp": crate::env::rfc3339(self.env.now()), "window": format!("{:.3}s", widest.as_secs_f64()),
                "containers": containers,
            }));
        }
        match name {
            Some(name) => items.pop().ok_or_else(|| Status::not_found(&POD_METRICS, name)),
            None => Ok(list("PodMetricsList", items)),
        }
    }

    /// What the nodes say, asked all at once.
    async fn summaries(&self, nodes: BTreeSet<String>) -> BTreeMap<String, Summary> {
        let asked = nodes.into_iter().map(|node| async move {
            match tokio::time::timeout(SCRAPE, self.summary(&node)).await {
                Ok(Ok(summary)) => Some((node, summary)),
                Ok(Err(error)) => {
                    tracing::warn!(node, %error, "a node gives no figures");
                    None
                }
                Err(_) => {
                    tracing::warn!(node, "a node takes too long to give its figures");
                    None
                }
            }
        });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    async fn summary(&self, node: &str) -> anyhow::Result<Summary> {
        let answer = self.nodes.get(node, "/stats/summary").await;
        let code = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), MOST_SUMMARY).await?;
        anyhow::ensure!(code.is_success(), "{code}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    fn metadata(&self, object: &Value) -> Value {
        let mut metadata =
            json!({"name": meta::name(object), "creationTimestamp": crate::env::rfc3339(self.env.now())});
        for field in ["namespace", "labels"] {
            if !object["metadata"][field].is_null() {
                metadata[field] = object["metadata"][field].clone();
            }
        }
        metadata
    }

    async fn measure(&self, key: &str, usage: &Stats) -> (u64, SignedDuration) {
        let now = Sample { at: self.env.now(), cpu_nanoseconds: usage.cpu.usage_core_nano_seconds };
        let mut last = self.last.lock().await;
        let start = Sample { at: usage.start_time, cpu_nanoseconds: 0 };
        let before = match last.get(key) {
            Some(sample) if now.at.duration_since(sample.at) < SignedDuration::from_secs(1) => {
                // Asked twice within a second: the same window again, not a shorter one.
                return rate(start.max_age(*sample), now);
            }
            Some(sample) if usable(now.at.duration_since(sample.at)) => *sample,
            _ => start,
        };
        // What was not asked for that long is not there any more, or gives no rate.
        last.retain(|_, sample| now.at.duration_since(sample.at) <= OLDEST);
        last.insert(key.to_owned(), now);
        rate(before, now)
    }
}

impl Sample {
    /// The older of two samples: the wider window.
    fn max_age(self, other: Self) -> Self {
        if self.at <= other.at { self } else { other }
    }
}

fn list(kind: &str, items: Vec<Value>) -> Value {
    json!({"kind": kind, "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_core_for_two_seconds_is_half_a_billion_nano_cores() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let later = start + SignedDuration::from_secs(2);
        let (cpu, window) =
            rate(Sample { at: start, cpu_nanoseconds: 5 }, Sample { at: later, cpu_nanoseconds: 1_000_000_005 });
        assert_eq!((cpu, window.as_secs()), (500_000_000, 2));
        assert!(!usable(SignedDuration::from_millis(20)) && usable(window) && !usable(SignedDuration::from_hours(1)));
    }
}
