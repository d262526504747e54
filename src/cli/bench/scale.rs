//! Many objects, on nodes that exist in the API only: how fast the controllers and the scheduler are, and what the objects
//! cost. The cluster is a profile of its own.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::process::{Usage, daemon};
use super::samples::{bytes, duration, rate};
use super::session::{PODS, Protocol, Session};
use super::start::Profile;
use super::{Context, Row};
use crate::api::{Gvr, meta};
use crate::client::https::HttpsApi;
use crate::client::{Api, DeleteOptions, ListOptions, Patch, WatchEvent};
use crate::env::{rfc3339, rfc3339_micro};

const NODES: Gvr = Gvr::new("", "v1", "nodes");
const LEASES: Gvr = Gvr::new("coordination.k8s.io", "v1", "leases");
const DEPLOYMENTS: Gvr = Gvr::new("apps", "v1", "deployments");
const CLAIMS: Gvr = Gvr::new("", "v1", "persistentvolumeclaims");
const VOLUMES: Gvr = Gvr::new("", "v1", "persistentvolumes");

/// As many as a kubelet allows (`--max-pods`), and some room.
const PODS_PER_NODE: usize = 100;
const REPLICAS: usize = 10;
/// Requests under way at once.
const CLIENTS: usize = 32;
/// The label of our nodes; pods ask for it, so that none comes to the real node.
const LABEL: &str = "mini.bench/fake";
/// Between two renewals of a node's lease (`nodeLeaseDurationSeconds` / 4).
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The claim that the pods of the second part wait for.
const CLAIM: &str = "gate";

pub(super) async fn run(context: &Context) -> Result<Vec<Row>> {
    let mut profile = Profile::new(&context.global)?;
    profile.mini("start", &["--keep-context"])?;
    let context = context.in_profile(profile.name());
    let result = measure(&context).await;
    let deleted = profile.mini("delete", &[]);
    let rows = result?;
    deleted?;
    Ok(rows)
}

async fn measure(context: &Context) -> Result<Vec<Row>> {
    let session = context.session().await?;
    let daemon = daemon(&context.global).await?;
    let usage = || Usage::of(daemon).context("the daemon has ended");
    let api = session.api.clone();
    let nodes: Vec<String> = (0..context.pods.div_ceil(PODS_PER_NODE)).map(|n| format!("fake-{n:04}")).collect();
    let before = usage()?;
    each(nodes.clone(), |name| create_node(&api, name)).await?;
    let kubelets = tokio::spawn(heartbeats(api.clone(), nodes.clone()));
    let kubelet = Kubelet::start(&session).await?;

    let deployments = (context.pods / REPLICAS).max(1);
    let pods = deployments * REPLICAS;
    let began = Instant::now();
    let names: Vec<String> = (0..deployments).map(|n| format!("web-{n:05}")).collect();
    each(names, |name| create_deployment(&session, name)).await?;
    let accepted = began.elapsed();
    let seen = kubelet.until(|seen| seen.ready >= pods).await?;
    settled(&session, deployments).await?;
    let settled = began.elapsed();
    let after = usage()?;

    let (evicted, drained) = drain(&session, &kubelet, &nodes[0]).await?;
    let burst = burst(&session, &kubelet, pods).await?;
    kubelets.abort();
    let whole = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| at.duration_since(began));
    let grown = after.resident.saturating_sub(before.resident);
    Ok(vec![
        Row::new(
            format!("{deployments} Deployments accepted over TLS"),
            format!("{} ({})", duration(accepted), rate(deployments, accepted)),
            "",
            "",
        ),
        Row::new(
            format!("their {pods} pods on {} nodes: created, bound, Ready", nodes.len()),
            format!(
                "{}, {}, {}",
                duration(whole(seen.last_created)),
                duration(whole(seen.last_bound)),
                duration(whole(seen.last_ready))
            ),
            "",
            "",
        ),
        Row::new("until every Deployment says so", duration(settled), "", ""),
        Row::new(
            "CPU time of the daemon for it",
            format!(
                "{}, {:.2} ms a pod",
                duration(after.cpu.saturating_sub(before.cpu)),
                per(after.cpu - before.cpu, pods)
            ),
            "",
            "",
        ),
        Row::new(
            format!("memory with {pods} pods"),
            format!("{} ({} a pod more than without)", bytes(after.resident), bytes(grown / pods as u64)),
            "",
            "",
        ),
        Row::new(
            format!("drain of a node with {evicted} pods, until all are Ready elsewhere"),
            duration(drained),
            "",
            "",
        ),
        Row::new(
            format!("{pods} waiting pods scheduled and bound at once"),
            format!("{} ({})", duration(burst), rate(pods, burst)),
            "5,000/s",
            "kube-scheduler's own benchmark asks for 680/s at 5,000 nodes",
        ),
    ])
}

fn per(time: Duration, count: usize) -> f64 {
    time.as_secs_f64() * 1e3 / count as f64
}

/// Does something with many names, [`CLIENTS`] at a time.
async fn each<F>(names: Vec<String>, what: impl Fn(String) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut running = stream::iter(names).map(what).buffer_unordered(CLIENTS);
    while let Some(done) = running.next().await {
        done?;
    }
    Ok(())
}

async fn create_node(api: &HttpsApi, name: String) -> Result<()> {
    let now = jiff::Timestamp::now();
    let conditions: Vec<_> = [
        ("Ready", "True"),
        ("MemoryPressure", "False"),
        ("DiskPressure", "False"),
        ("PIDPressure", "False"),
    ]
    .map(|(type_, status)| {
        json!({"type": type_, "status": status, "reason": "Fake", "message": "", "lastHeartbeatTime": rfc3339(now),
                "lastTransitionTime": rfc3339(now)})
    })
    .to_vec();
    let has = json!({"cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "250"});
    let node = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {LABEL: "true", "kubernetes.io/hostname": name}},
        "status": {"capacity": has, "allocatable": has, "conditions": conditions}});
    api.create(&NODES, "", "", "", node).await?;
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": rfc3339_micro(now)});
    let lease =
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec});
    api.create(&LEASES, "kube-node-lease", "", "", lease).await?;
    Ok(())
}

/// Keeps the nodes alive until it is aborted.
async fn heartbeats(api: HttpsApi, nodes: Vec<String>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let now = rfc3339_micro(jiff::Timestamp::now());
        for name in &nodes {
            let patch = Patch::Merge(json!({"spec": {"renewTime": now}}));
            if let Err(error) = api.patch(&LEASES, "kube-node-lease", name, "", patch).await {
                tracing::warn!(%error, "a fake node's lease could not be renewed");
            }
        }
    }
}

fn template(labels: Value, volumes: Value) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {
        "nodeSelector": {LABEL: "true"}, "terminationGracePeriodSeconds": 0, "volumes": volumes,
        "containers": [{"name": "c", "image": "fake", "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}]}})
}

async fn create_deployment(session: &Session, name: String) -> Result<()> {
    let labels = json!({"app": name});
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": REPLICAS, "selector": {"matchLabels": labels}, "template": template(labels, Value::Null)}});
    session.api.create(&DEPLOYMENTS, &session.namespace, "", "", object).await?;
    Ok(())
}

/// Waits until so many Deployments are complete.
async fn settled(session: &Session, count: usize) -> Result<()> {
    let complete = |object: &Value| object["status"]["availableReplicas"].as_u64() == Some(REPLICAS as u64);
    let list = session.api.list(&DEPLOYMENTS, &session.namespace, &ListOptions::default()).await?;
    let mut done: HashSet<String> =
        list.items.iter().filter(|object| complete(object)).map(|object| meta::name(object).to_owned()).collect();
    let options = ListOptions { resource_version: list.resource_version, ..ListOptions::default() };
    let mut events = session.api.watch(&DEPLOYMENTS, &session.namespace, &options).await?;
    while done.len() < count {
        if let WatchEvent::Added(object) | WatchEvent::Modified(object) =
            events.next().await.context("the watch of the Deployments ended")??
            && complete(&object)
        {
            done.insert(meta::name(&object).to_owned());
        }
    }
    Ok(())
}

/// Cordons a node and evicts its pods. Returns how many there were, and how long it took until as many are Ready elsewhere.
async fn drain(session: &Session, kubelet: &Kubelet, node: &str) -> Result<(usize, Duration)> {
    let before = kubelet.now();
    let began = Instant::now();
    let cordon = Patch::Strategic(json!({"spec": {"unschedulable": true}}));
    session.api.patch(&NODES, "", node, "", cordon).await?;
    let options = ListOptions { field_selector: format!("spec.nodeName={node}"), ..ListOptions::default() };
    let pods = session.api.list(&PODS, &session.namespace, &options).await?.items;
    let names = pods.iter().map(|pod| meta::name(pod).to_owned()).collect();
    each(names, |name| async move {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        session.api.create(&PODS, &session.namespace, &name, "eviction", eviction).await?;
        Ok(())
    })
    .await?;
    let seen = kubelet.until(|seen| seen.ready >= before.ready + pods.len()).await?;
    Ok((pods.len(), seen.last_ready.map_or(Duration::ZERO, |at| at.duration_since(began))))
}

/// Pods that all wait for one claim get it, and with it their nodes: how long that takes.
async fn burst(session: &Session, kubelet: &Kubelet, pods: usize) -> Result<Duration> {
    let mode = json!(["ReadWriteMany"]);
    let size = json!({"storage": "1Mi"});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM},
        "spec": {"accessModes": mode, "storageClassName": "bench", "resources": {"requests": size}}});
    session.api.create(&CLAIMS, &session.namespace, "", "", claim).await?;
    let before = kubelet.now();
    let names: Vec<String> = (0..pods).map(|n| format!("bare-{n:06}")).collect();
    each(names, |name| async move {
        let volumes = json!([{"name": "gate", "persistentVolumeClaim": {"claimName": CLAIM}}]);
        let mut pod = template(json!({"app": "bare"}), volumes);
        pod["metadata"]["name"] = name.into();
        session.api.create(&PODS, &session.namespace, "", "", pod).await?;
        Ok(())
    })
    .await?;
    kubelet.until(|seen| seen.told >= before.told + pods).await?;
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": session.namespace},
        "spec": {"accessModes": mode, "capacity": size, "storageClassName": "bench", "hostPath": {"path": "/nowhere"},
            "persistentVolumeReclaimPolicy": "Retain"}});
    let began = Instant::now();
    session.api.create(&VOLUMES, "", "", "", volume).await?;
    let seen = kubelet.until(|seen| seen.bound >= before.bound + pods).await?;
    Ok(seen.last_bound.map_or(Duration::ZERO, |at| at.duration_since(began)))
}

/// What was seen of the pods.
#[derive(Clone, Copy, Default)]
struct Seen {
    created: usize,
    /// Those that were told why they fit nowhere.
    told: usize,
    bound: usize,
    ready: usize,
    last_created: Option<Instant>,
    last_bound: Option<Instant>,
    last_ready: Option<Instant>,
}

/// Watches pods, and says of those that have a node that they run.
struct Kubelet {
    seen: watch::Receiver<Seen>,
    tasks: tokio::task::JoinSet<()>,
}

#[derive(Default)]
struct Known {
    told: bool,
    bound: bool,
    ready: bool,
}

impl Kubelet {
    async fn start(session: &Session) -> Result<Self> {
        let (sender, seen) = watch::channel(Seen::default());
        let list = session.api.list(&PODS, &session.namespace, &ListOptions::default()).await?;
        let options = ListOptions { resource_version: list.resource_version, ..ListOptions::default() };
        // A connection of its own: what it sees is not to wait behind what it says.
        let watcher = session.connect(Protocol::Http1).await?;
        let mut events = watcher.watch(&PODS, &session.namespace, &options).await?;
        let (orders, receiver) = tokio::sync::mpsc::unbounded_channel::<Arc<Value>>();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut known: HashMap<String, Known> = HashMap::new();
            while let Some(Ok(event)) = events.next().await {
                let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else { continue };
                let now = Some(Instant::now());
                sender.send_modify(|seen| {
                    let known = known.entry(meta::name(&pod).to_owned()).or_insert_with(|| {
                        seen.created += 1;
                        seen.last_created = now;
                        Known::default()
                    });
                    let is = |type_: &str, status: &str| {
                        let conditions = pod["status"]["conditions"].as_array();
                        conditions.into_iter().flatten().any(|c| c["type"] == type_ && c["status"] == status)
                    };
                    if !known.told && is("PodScheduled", "False") {
                        known.told = true;
                        seen.told += 1;
                    }
                    if !known.bound && pod["spec"]["nodeName"].is_string() {
                        known.bound = true;
                        seen.bound += 1;
                        seen.last_bound = now;
                        let _ = orders.send(pod.clone());
                    }
                    if !known.ready && is("Ready", "True") {
                        known.ready = true;
                        seen.ready += 1;
                        seen.last_ready = now;
                    }
                });
            }
        });
        let (api, namespace) = (session.api.clone(), session.namespace.clone());
        tasks.spawn(async move {
            let pods = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
            let say = |pod: Arc<Value>| say_that_it_runs(&api, &namespace, pod);
            pods.map(say).buffer_unordered(CLIENTS).for_each(|()| async {}).await;
        });
        Ok(Self { seen, tasks })
    }

    fn now(&self) -> Seen {
        *self.seen.borrow()
    }

    async fn until(&self, want: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let mut seen = self.seen.clone();
        let seen = seen.wait_for(|seen| want(seen)).await.context("the watch of the pods ended")?;
        Ok(*seen)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

async fn say_that_it_runs(api: &HttpsApi, namespace: &str, pod: Arc<Value>) {
    let now = rfc3339(jiff::Timestamp::now());
    let name = meta::name(&pod);
    if meta::is_terminating(&pod) {
        let options = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
        let _ = api.delete(&PODS, namespace, name, &options).await;
        return;
    }
    let condition = |type_: &str| json!({"type": type_, "status": "True", "lastTransitionTime": now});
    let conditions: Vec<_> = ["Initialized", "ContainersReady", "Ready"].map(condition).to_vec();
    let container = json!({"name": "c", "image": "fake", "imageID": "fake", "ready": true, "started": true, "restartCount": 0,
        "state": {"running": {"startedAt": now}}});
    let status =
        json!({"phase": "Running", "startTime": now, "conditions": conditions, "containerStatuses": [container]});
    if let Err(error) = api.patch(&PODS, namespace, name, "status", Patch::Strategic(json!({"status": status}))).await {
        tracing::warn!(%error, "the status of a fake pod could not be written");
    }
}
