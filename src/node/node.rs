//! The node as a whole: registration, the pods that are bound to it, events of the runtime, the end.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt as _;
use http::{Request, Response};
use k8s_openapi::api::core::v1 as core;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::context::{Context, Options};
use super::image::Images;
use super::network::PodNetwork;
use super::objects::Objects;
use super::parts::{self, News, Part, Shown};
use super::pod_state::PodState;
use super::pod_worker::{self, Msg};
use super::runtime::{Runtime, RuntimeEvent, SandboxStatus};
use super::{node_status, pod_tasks, server};
use crate::api::{Gvr, Status, StatusResult, meta};
use crate::client::recorder::{EventType, Recorder};
use crate::client::{Api, Cache, ListOptions, Patch, WatchEvent, informer, pause};
use crate::env::{Env, rfc3339_micro};

const NODES: Gvr = Gvr::new("", "v1", "nodes");
const PODS: Gvr = Gvr::new("", "v1", "pods");
const LEASES: Gvr = Gvr::new("coordination.k8s.io", "v1", "leases");
/// How often a node that others watch says that its status is still the same (kubelet's `nodeStatusReportFrequency`).
const REPORT_EVERY: Duration = Duration::from_secs(5 * 60);
/// The waits between attempts to reach the API server begin and end here.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The node agent.
pub struct Node {
    context: Arc<Context>,
    pods: Arc<Mutex<HashMap<String, PodEntry>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// What happened to pods whose workers do not run yet; `None` once the first list has been gone through.
    early: Mutex<Option<HashMap<String, Vec<Msg>>>>,
    /// How many pod workers run.
    running: watch::Sender<usize>,
    /// Parts of the cluster in this process, by namespace and name of their pods.
    parts: Mutex<BTreeMap<(String, String), Shown>>,
}

struct PodEntry {
    sender: mpsc::UnboundedSender<Msg>,
    task: tokio::task::AbortHandle,
    view: watch::Receiver<Arc<PodState>>,
}

impl Node {
    /// Registers the node, finds what runs already, and takes care of its pods from then on.
    ///
    /// # Errors
    /// When the API or the runtime does not answer.
    pub async fn start(
        options: Options,
        api: Arc<dyn Api>,
        env: Env,
        runtime: Arc<dyn Runtime>,
        images: Arc<dyn Images>,
        network: Arc<dyn PodNetwork>,
    ) -> StatusResult<Arc<Self>> {
        let recorder = Recorder::new(api.clone(), env.clone(), "kubelet", &options.name);
        let context = Arc::new(Context {
            objects: Objects::new(api.clone()),
            started: env.now(),
            options,
            api,
            env,
            runtime,
            images,
            network,
            recorder,
            node_changed: tokio::sync::Notify::new(),
            stopping: RwLock::new(false),
            admitted: Mutex::default(),
            room: watch::Sender::new(0),
        });
        let node = Arc::new(Self {
            context,
            pods: Arc::default(),
            tasks: Mutex::default(),
            early: Mutex::new(Some(HashMap::new())),
            running: watch::Sender::new(0),
            parts: Mutex::default(),
        });
        let events = node.context.runtime.subscribe();
        let found = node.context.runtime.list().await.map_err(Status::internal)?;
        node.register().await?;
        node.context.options.parts.iter().for_each(|part| node.show_part(*part));
        let mut tasks = vec![
            tokio::spawn(node.clone().runtime_events(events)),
            tokio::spawn(node.clone().watch_pods(found)),
            tokio::spawn(node.clone().write_node_status()),
        ];
        if let Some(duration) = node.context.options.lease_duration {
            tasks.push(tokio::spawn(node.clone().renew_lease(duration)));
            tasks.push(tokio::spawn(node.clone().follow_node()));
        }
        *node.tasks.lock().expect("no panic while held") = tasks;
        Ok(node)
    }

    /// `metadata.name` of the Node.
    pub fn name(&self) -> &str {
        &self.context.options.name
    }

    /// Shows a part of this process as a pod, unless it is shown already.
    pub fn show_part(&self, part: Part) {
        let key = (part.namespace.to_owned(), part.pod_name(self.name()));
        let mut parts = self.parts.lock().expect("no panic while held");
        parts.entry(key).or_insert_with(|| parts::show(self.context.clone(), part));
    }

    /// Shows a part no more; its pod goes.
    pub async fn hide_part(&self, part: Part) {
        let key = (part.namespace.to_owned(), part.pod_name(self.name()));
        let shown = self.parts.lock().expect("no panic while held").remove(&key);
        if let Some(shown) = shown {
            end_parts([shown], true).await;
        }
    }

    /// Stops all pods, each with its grace period, at most `most` long, and says so in the node's status. The objects stay.
    pub async fn stop(&self, most: Duration) {
        *self.context.stopping.write().expect("no panic while held") = true;
        for task in self.tasks.lock().expect("no panic while held").iter().skip(1) {
            task.abort();
        }
        let senders: Vec<_> =
            self.pods.lock().expect("no panic while held").values().map(|entry| entry.sender.clone()).collect();
        for sender in senders {
            // A worker that is gone has nothing to stop.
            let _ = sender.send(Msg::Shutdown);
        }
        let mut running = self.running.subscribe();
        if tokio::time::timeout(most, running.wait_for(|n| *n == 0)).await.is_err() {
            tracing::warn!("pods did not end in time: they are killed");
            let uids: Vec<String> = {
                let pods = self.pods.lock().expect("no panic while held");
                pods.values().for_each(|entry| entry.task.abort());
                pods.keys().cloned().collect()
            };
            for uid in uids {
                if let Err(error) = self.context.runtime.stop_sandbox(&uid).await {
                    tracing::warn!(%error, uid, "a sandbox could not be stopped");
                }
            }
        }
        let parts = std::mem::take(&mut *self.parts.lock().expect("no panic while held"));
        end_parts(parts.into_values(), false).await;
        if let Err(error) = self.put_status(false, false).await {
            tracing::debug!(%error, "the node's last status was not written");
        }
        self.context.recorder.flush().await;
        for task in self.tasks.lock().expect("no panic while held").drain(..) {
            task.abort();
        }
    }

    /// Ends all tasks at once, as a crash of the daemon does.
    #[cfg(test)]
    pub(super) fn abandon(&self) {
        self.tasks.lock().expect("no panic while held").drain(..).for_each(|task| task.abort());
        self.pods.lock().expect("no panic while held").drain().for_each(|(_, entry)| entry.task.abort());
        let parts = std::mem::take(&mut *self.parts.lock().expect("no panic while held"));
        parts.into_values().for_each(|shown| shown.task.abort());
    }

    /// Answers a request in the kubelet's API.
    pub async fn handle(self: &Arc<Self>, request: Request<Body>) -> Response<Body> {
        server::handle(self, request).await
    }

    /// What the parts of the node share.
    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The pods as they are known now.
    pub(super) fn pods(&self) -> Vec<PodState> {
        let pods = self.pods.lock().expect("no panic while held");
        pods.values().map(|entry| entry.view.borrow().as_ref().clone()).collect()
    }

    /// A pod by name, as it changes. One that is being deleted yields to a newer one of its name.
    pub(super) fn view(&self, namespace: &str, name: &str) -> Option<watch::Receiver<Arc<PodState>>> {
        let pods = self.pods.lock().expect("no panic while held");
        let of_name = pods.values().filter(|entry| {
            let pod = entry.view.borrow();
            pod.namespace() == namespace && pod.name() == name
        });
        let pod = of_name.max_by_key(|entry| entry.view.borrow().start_time).map(|entry| entry.view.clone());
        let parts = self.parts.lock().expect("no panic while held");
        pod.or_else(|| parts.get(&(namespace.to_owned(), name.to_owned())).map(|shown| shown.view.clone()))
    }

    async fn register(&self) -> StatusResult<()> {
        let context = &self.context;
        let name = &context.options.name;
        let enforcement = context.runtime.enforcement();
        let node = self.description(&enforcement, &[], true);
        let object = node_status::object(&node);
        let labels = object["metadata"]["labels"].clone();
        let created = match context.api.create(&NODES, "", "", "", object).await {
            Ok(created) => created,
            Err(error) if error.is_already_exists() => {
                let patch = json!({"metadata": {"labels": labels}});
                context.api.patch(&NODES, "", name, "", Patch::Merge(patch)).await?
            }
            Err(error) => return Err(error),
        };
        // Like the kubelet, events of the node have the node's name as uid.
        let reference = self.reference();
        context.recorder.about(reference.clone(), EventType::Normal, "Starting", "Starting kubelet.");
        let was_ready = ready(&created["status"]);
        self.put_status(true, false).await?;
        for (reason, what) in [
            ("NodeHasSufficientMemory", "NodeHasSufficientMemory"),
            ("NodeHasNoDiskPressure", "NodeHasNoDiskPressure"),
            ("NodeHasSufficientPID", "NodeHasSufficientPID"),
        ] {
            let message = format!("Node {name} status is now: {what}");
            context.recorder.about(reference.clone(), EventType::Normal, reason, message);
        }
        if !was_ready {
            let message = format!("Node {name} status is now: NodeReady");
            context.recorder.about(reference.clone(), EventType::Normal, "NodeReady", message);
        }
        if let Some(reason) = enforcement.reason {
            context.recorder.about(reference, EventType::Warning, "CgroupLimitsNotEnforced", reason);
        }
        Ok(())
    }

    fn reference(&self) -> core::ObjectReference {
        let name = self.context.options.name.clone();
        core::ObjectReference {
            kind: Some("Node".into()),
            name: Some(name.clone()),
            uid: Some(name),
            ..core::ObjectReference::default()
        }
    }

    fn description<'a>(
        &'a self,
        enforcement: &'a super::runtime::Enforcement,
        images: &'a [(Vec<String>, u64)],
        ready: bool,
    ) -> node_status::Node<'a> {
        let options = &self.context.options;
        node_status::Node {
            name: &options.name,
            internal_ips: &options.internal_ips,
            external_ip: options.external_ip,
            pod_cidr: &options.pod_cidr,
            machine: &options.machine,
            enforcement,
            images,
            app_armor: options.app_armor.is_available(),
            ready,
        }
    }

    /// Writes the node's status when it says something new; `beat`: in any case.
    async fn put_status(&self, ready: bool, beat: bool) -> StatusResult<()> {
        let context = &self.context;
        let enforcement = context.runtime.enforcement();
        let mut images = match context.images.list().await {
            Ok(images) => images,
            Err(error) => {
                tracing::warn!(%error, "images could not be listed");
                Vec::new()
            }
        };
        images.sort_by(|a, b| b.size.cmp(&a.size).then(a.id.cmp(&b.id)));
        let names = |i: super::image::Image| (i.repo_digests.into_iter().chain(i.repo_tags).collect(), i.size);
        let images: Vec<(Vec<String>, u64)> = images.into_iter().map(names).collect();
        let old = context.api.get(&NODES, "", &context.options.name).await?;
        let status =
            node_status::status(&self.description(&enforcement, &images, ready), &old["status"], context.env.now());
        if !beat && node_status::same(&old["status"], &status) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"status": status}));
        context.api.patch(&NODES, "", &context.options.name, "status", patch).await?;
        Ok(())
    }

    /// Writes the node's status whenever it may have changed and, where silence counts, from time to time.
    async fn write_node_status(self: Arc<Self>) {
        let context = &self.context;
        let silence_counts = context.options.lease_duration.is_some();
        loop {
            let beat = tokio::select! {
                () = context.node_changed.notified() => false,
                () = tokio::time::sleep(REPORT_EVERY), if silence_counts => true,
            };
            let mut wait = FIRST_WAIT;
            while let Err(error) = self.put_status(true, beat).await {
                tracing::warn!(%error, "the node's status could not be written");
                if error.code < 500 && !error.is_conflict() {
                    break;
                }
                pause(&*context.api, wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }

    /// Sets right what a controller has said of a node that was out of reach, as soon as this one sees it.
    async fn follow_node(self: Arc<Self>) {
        let cache = Cache::<core::Node>::default();
        let node = Arc::downgrade(&self);
        cache.subscribe(move |change| {
            if let (Some(node), Some(object)) = (node.upgrade(), &change.new)
                && node_status::is_doubted(object)
            {
                node.context.node_changed.notify_one();
            }
        });
        let field_selector = format!("metadata.name={}", self.context.options.name);
        let options = ListOptions { field_selector, ..ListOptions::default() };
        informer::run(self.context.api.clone(), NODES, String::new(), options, cache).await;
    }

    /// Renews the Lease four times in its duration (Kubernetes: 40 s, every 10 s). Waits for nothing else.
    async fn renew_lease(self: Arc<Self>, duration: Duration) {
        let name = &self.context.options.name;
        let mut ticks = tokio::time::interval((duration / 4).max(Duration::from_secs(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = rfc3339_micro(self.context.env.now());
            let spec = json!({"holderIdentity": name, "leaseDurationSeconds": duration.as_secs(), "renewTime": now});
            let patch = Patch::Merge(json!({"spec": spec}));
            let api = &self.context.api;
            let renewed = match api.patch(&LEASES, "kube-node-lease", name, "", patch).await {
                Err(error) if error.is_not_found() => {
                    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                        "metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": spec});
                    api.create(&LEASES, "kube-node-lease", "", "", lease).await
                }
                other => other,
            };
            if let Err(error) = renewed {
                tracing::warn!(%error, "the node's lease could not be renewed");
            }
        }
    }

    async fn runtime_events(self: Arc<Self>, mut events: mpsc::UnboundedReceiver<RuntimeEvent>) {
        while let Some(event) = events.recv().await {
            match event {
                RuntimeEvent::Exited { pod_uid, id, exit } => self.tell(&pod_uid, Msg::Exited(id, exit)),
                RuntimeEvent::SandboxLost { pod_uid } => self.tell(&pod_uid, Msg::SandboxLost),
            }
        }
    }

    fn tell(&self, uid: &str, message: Msg) {
        let pods = self.pods.lock().expect("no panic while held");
        if let Some(entry) = pods.get(uid) {
            // A worker that has just ended needs no message.
            let _ = entry.sender.send(message);
            return;
        }
        let parts = self.parts.lock().expect("no panic while held");
        if let Some(shown) = parts.values().find(|shown| shown.view.borrow().uid() == uid) {
            if matches!(message, Msg::Removed) {
                let _ = shown.sender.send(News::Removed(uid.to_owned()));
            }
        } else if let Some(early) = self.early.lock().expect("no panic while held").as_mut() {
            early.entry(uid.to_owned()).or_default().push(message);
        }
    }

    /// Follows the pods that are bound to this node. `found` is what the runtime had at the start.
    async fn watch_pods(self: Arc<Self>, found: Vec<SandboxStatus>) {
        let mut found: HashMap<String, SandboxStatus> =
            found.into_iter().map(|status| (status.config.uid.clone(), status)).collect();
        let mut first = true;
        let mut wait = FIRST_WAIT;
        let options = ListOptions {
            field_selector: format!("spec.nodeName={}", self.context.options.name),
            ..ListOptions::default()
        };
        loop {
            let list = match self.context.api.list(&PODS, "", &options).await {
                Ok(list) => list,
                Err(error) => {
                    tracing::warn!(%error, "pods could not be listed");
                    pause(&*self.context.api, wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                    continue;
                }
            };
            self.reconcile_list(&list.items, &mut found);
            if std::mem::take(&mut first) {
                *self.early.lock().expect("no panic while held") = None;
                let mirrors = list.items.iter().filter(|pod| parts::is_mirror_object(pod)).map(|pod| meta::uid(pod));
                let mirrors = mirrors.map(str::to_owned).collect();
                self.remove_strangers(std::mem::take(&mut found), mirrors).await;
            }
            let options = ListOptions { resource_version: list.resource_version, ..options.clone() };
            let mut events = match self.context.api.watch(&PODS, "", &options).await {
                Ok(events) => events,
                Err(error) => {
                    tracing::warn!(%error, "pods could not be watched");
                    pause(&*self.context.api, wait).await;
                    continue;
                }
            };
            let mut heard = false;
            while let Some(Ok(event)) = events.next().await {
                heard = true;
                wait = FIRST_WAIT;
                match event {
                    WatchEvent::Added(pod) | WatchEvent::Modified(pod) => self.upsert(&pod, None),
                    WatchEvent::Deleted(pod) => self.tell(meta::uid(&pod), Msg::Removed),
                    WatchEvent::Bookmark(_) => {}
                }
            }
            if !heard {
                // A server that closes ends each watch at once.
                pause(&*self.context.api, wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }

    fn reconcile_list(self: &Arc<Self>, pods: &[Arc<Value>], found: &mut HashMap<String, SandboxStatus>) {
        let listed: std::collections::HashSet<&str> = pods.iter().map(|pod| meta::uid(pod)).collect();
        let gone: Vec<String> = {
            let known = self.pods.lock().expect("no panic while held");
            let parts = self.parts.lock().expect("no panic while held");
            let parts = parts.values().map(|shown| shown.view.borrow().uid().to_owned()).filter(|uid| !uid.is_empty());
            known.keys().cloned().chain(parts).filter(|uid| !listed.contains(uid.as_str())).collect()
        };
        for uid in gone {
            self.tell(&uid, Msg::Removed);
        }
        for pod in pods {
            let found = found.remove(meta::uid(pod));
            self.upsert(pod, found);
        }
    }

    fn upsert(self: &Arc<Self>, pod: &Arc<Value>, found: Option<SandboxStatus>) {
        let pod = match core::Pod::deserialize(pod.as_ref()) {
            Ok(pod) => pod,
            Err(error) => {
                tracing::error!(%error, name = meta::name(pod), "a pod could not be read");
                return;
            }
        };
        if parts::is_mirror(&pod) {
            return self.mirror(pod);
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut pods = self.pods.lock().expect("no panic while held");
        if let Some(entry) = pods.get(&uid)
            && !entry.sender.is_closed()
        {
            // It ends only after the object is gone.
            let _ = entry.sender.send(Msg::Pod(Box::new(pod)));
            return;
        }
        if *self.context.stopping.read().expect("no panic while held") {
            return;
        }
        let (handle, run) = pod_worker::spawn(self.context.clone(), pod, found);
        let early = self.early.lock().expect("no panic while held").as_mut().and_then(|early| early.remove(&uid));
        for message in early.into_iter().flatten() {
            // The worker has not begun, so its channel is open.
            let _ = handle.sender.send(message);
        }
        self.running.send_modify(|n| *n += 1);
        let over = Over { node: self.clone(), uid: uid.clone(), sender: handle.sender.clone() };
        // The entry is there before the worker can end: the map is locked until then.
        let task = tokio::spawn(async move {
            let _over = over;
            run.await;
        });
        pods.insert(uid, PodEntry { sender: handle.sender, task: task.abort_handle(), view: handle.view });
    }

    /// A mirror pod appeared or changed. One that mirrors nothing goes.
    fn mirror(&self, pod: core::Pod) {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let key = (text(&pod.metadata.namespace), text(&pod.metadata.name));
        match self.parts.lock().expect("no panic while held").get(&key) {
            Some(shown) => drop(shown.sender.send(News::Pod(Box::new(pod)))),
            None => drop(tokio::spawn(pod_tasks::delete(self.context.clone(), pod))),
        }
    }

    /// Removes what runs for pods that no longer exist.
    async fn remove_strangers(self: &Arc<Self>, found: HashMap<String, SandboxStatus>, mirrors: Vec<String>) {
        for (uid, status) in found {
            tracing::info!(uid, pod = status.config.name, "removing the sandbox of a pod that is gone");
            if let Err(error) = self.context.network.detach(&uid).await {
                tracing::warn!(%error, uid, "a pod's network could not be detached");
            }
            if let Err(error) = self.context.runtime.remove_sandbox(&uid).await {
                tracing::warn!(%error, uid, "a sandbox could not be removed");
            }
        }
        let dir = self.context.options.pods.clone();
        let logs = self.context.options.pod_logs.clone();
        let node = self.clone();
        let cleaned = tokio::task::spawn_blocking(move || {
            // What is there is looked at before who is known: it belongs to somebody known, or to nobody.
            let logs: Vec<_> = std::fs::read_dir(&logs).into_iter().flatten().flatten().collect();
            let mut known: Vec<String> = node.pods.lock().expect("no panic while held").keys().cloned().collect();
            let parts = node.parts.lock().expect("no panic while held");
            known.extend(parts.values().map(|shown| shown.view.borrow().uid().to_owned()));
            drop(parts);
            known.extend(mirrors);
            for entry in logs {
                let name = entry.file_name().to_string_lossy().into_owned();
                let uid = name.rsplit('_').next().unwrap_or_default();
                if uuid::Uuid::parse_str(uid).is_ok()
                    && !known.iter().any(|k| k == uid)
                    && let Err(error) = std::fs::remove_dir_all(entry.path())
                {
                    tracing::warn!(%error, name, "the logs of a pod that is gone could not be removed");
                }
            }
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                // Only directories named by a uid are pods'.
                if uuid::Uuid::parse_str(&name).is_ok() && !known.contains(&name) {
                    let removed = super::volumes::tear_down(&entry.path());
                    if let Err(error) = removed.and_then(|()| std::fs::remove_dir_all(entry.path())) {
                        tracing::warn!(%error, name, "the directory of a pod that is gone could not be removed");
                    }
                }
            }
        });
        if let Err(panic) = cleaned.await {
            tracing::error!(%panic, "cleaning up failed");
        }
    }
}

/// Ends parts and waits until their pods say so, or are gone (`for_good`).
async fn end_parts(parts: impl IntoIterator<Item = Shown>, for_good: bool) {
    let ended = parts.into_iter().map(|shown| {
        // A keeper that has ended needs no news.
        let _ = shown.sender.send(News::End(for_good));
        shown.task
    });
    // An API server that does not answer must not keep the node from stopping.
    let ended = futures_util::future::join_all(ended);
    let _ = tokio::time::timeout(Duration::from_secs(5), ended).await;
}

/// Forgets a worker when it ends, also by a panic.
struct Over {
    node: Arc<Node>,
    uid: String,
    sender: mpsc::UnboundedSender<Msg>,
}

impl Drop for Over {
    fn drop(&mut self) {
        if let Ok(mut pods) = self.node.pods.lock()
            && pods.get(&self.uid).is_some_and(|entry| entry.sender.same_channel(&self.sender))
        {
            pods.remove(&self.uid);
        }
        self.node.running.send_modify(|n| *n = n.saturating_sub(1));
    }
}

fn ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}
