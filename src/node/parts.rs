//! Parts of the cluster that run inside this process, shown as what they would be elsewhere: static pods. Each has a mirror pod with
//! a true state and a log of its own. It has no process of its own, so nothing can be run in it; a deleted one comes back.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::adopt::{self, SCHEME};
use super::context::Context;
use super::pod_state::{Ended, PodState, Run, Stage};
use super::{pod_tasks, status};
use crate::api::{Gvr, StatusResult, meta};
use crate::client::ListOptions;
use crate::telemetry;

const PODS: Gvr = Gvr::new("", "v1", "pods");
const NODES: Gvr = Gvr::new("", "v1", "nodes");
/// How long a pod that was deleted stays away: who waits for its end by name (`kubectl delete`) must not find its successor.
const AWAY: Duration = Duration::from_secs(1);
/// What marks a mirror pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A part of the process.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// What it is called; its pod is `<name>-<node>`.
    pub name: &'static str,
    /// Where its pod is.
    pub namespace: &'static str,
    /// The pod's labels.
    pub labels: &'static [(&'static str, &'static str)],
    /// The pod's priority class.
    pub priority_class: &'static str,
    /// The modules that do its work, whose log is its own.
    pub modules: &'static [&'static str],
}

impl Part {
    /// The name of its pod.
    pub fn pod_name(&self, node: &str) -> String {
        format!("{}-{node}", self.name)
    }

    /// Its pod. The hash tells apart what another version would show.
    fn object(&self, node: &str, node_uid: &str, now: Timestamp) -> Value {
        let labels: Map<String, Value> = self.labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
        let spec = json!({
            "nodeName": node, "hostNetwork": true, "priorityClassName": self.priority_class, "enableServiceLinks": false,
            "tolerations": [{"operator": "Exists", "effect": "NoExecute"}],
            "containers": [{"name": self.name, "image": concat!("mini:v", env!("CARGO_PKG_VERSION")),
                "imagePullPolicy": "Never"}],
        });
        let hash = crate::api::pod::safe_hash(&json!([labels, spec]), None);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.pod_name(node), "namespace": self.namespace, "labels": labels,
                "annotations": {"kubernetes.io/config.hash": hash, MIRROR: hash,
                    "kubernetes.io/config.seen": now.to_string(), "kubernetes.io/config.source": "file"},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid, "controller": true}],
            },
            "spec": spec,
        })
    }
}

/// Whether a pod mirrors something that the node has by itself.
pub fn is_mirror(pod: &core::Pod) -> bool {
    pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(MIRROR)).is_some_and(|m| !m.is_empty())
}

/// As [`is_mirror`].
pub fn is_mirror_object(pod: &Value) -> bool {
    meta::annotation(pod, MIRROR).is_some_and(|m| !m.is_empty())
}

/// What the keeper of a part is told.
pub enum News {
    /// The object changed.
    Pod(Box<core::Pod>),
    /// The object with this uid is gone.
    Removed(String),
    /// The part ends; `true`: for good, and its pod with it.
    End(bool),
}

/// A part that is shown.
pub struct Shown {
    /// Where its keeper takes news.
    pub sender: mpsc::UnboundedSender<News>,
    /// The pod, for the kubelet API.
    pub view: watch::Receiver<Arc<PodState>>,
    /// The keeper.
    pub task: JoinHandle<()>,
}

/// Shows a part from now on.
pub fn show(context: Arc<Context>, part: Part) -> Shown {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (now, id) = (context.env.now(), format!("{SCHEME}{}", super::pod_worker::hex(&context.env.bytes::<32>())));
    let (publish, view) = watch::channel(Arc::new(PodState::new(core::Pod::default(), now)));
    let keeper = Keeper { context, part, id, started_at: now, view: publish };
    Shown { sender, view, task: tokio::spawn(keeper.run(receiver)) }
}

struct Keeper {
    context: Arc<Context>,
    part: Part,
    /// The container's ID for as long as this process lives.
    id: String,
    started_at: Timestamp,
    view: watch::Sender<Arc<PodState>>,
}

impl Keeper {
    async fn run(self, mut receiver: mpsc::UnboundedReceiver<News>) {
        self.settle().await;
        loop {
            let uid = self.view.borrow().uid().to_owned();
            match receiver.recv().await {
                Some(News::Pod(pod)) if pod.metadata.uid.as_deref() == Some(&uid) => self.take(*pod).await,
                // Somebody else made it, or it is not this process': settle which it is.
                Some(News::Pod(_)) => self.settle().await,
                Some(News::Removed(gone)) if gone == uid => {
                    self.remove_log();
                    tokio::time::sleep(AWAY).await;
                    self.settle().await;
                }
                Some(News::Removed(_)) => {}
                Some(News::End(for_good)) => return self.end(for_good).await,
                None => return,
            }
        }
    }

    /// Finds the pod or makes it, and writes its status. Tries until it is done.
    async fn settle(&self) {
        let mut wait = Duration::from_millis(100);
        while let Err(error) = self.try_settle().await {
            tracing::warn!(part = self.part.name, %error, "the pod of a part cannot be made");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(60));
        }
    }

    async fn try_settle(&self) -> StatusResult<()> {
        let context = &self.context;
        let node = &context.options.name;
        let (namespace, name) = (self.part.namespace, self.part.pod_name(node));
        let node_object = context.api.get(&NODES, "", node).await?;
        let wanted = self.part.object(node, meta::uid(&node_object), self.started_at);
        // A node may ask by name only for pods that are there: see the node authorizer.
        let mine = ListOptions {
            field_selector: format!("spec.nodeName={node},metadata.name={name}"),
            ..ListOptions::default()
        };
        let current = context.api.list(&PODS, namespace, &mine).await?.items.into_iter().next();
        let hash = |pod: &Value| meta::annotation(pod, MIRROR).map(str::to_owned);
        let pod = match current {
            Some(pod) if hash(&pod) == hash(&wanted) && pod["metadata"]["deletionTimestamp"].is_null() => pod,
            other => {
                if let Some(pod) = other.and_then(|pod| core::Pod::deserialize(pod.as_ref()).ok()) {
                    pod_tasks::delete(context.clone(), pod).await;
                }
                context.api.create(&PODS, namespace, "", "", wanted).await?
            }
        };
        let pod = core::Pod::deserialize(pod.as_ref()).map_err(crate::api::Status::internal)?;
        let state = self.state(pod);
        // Known before its log is there: a log of nobody's would be removed.
        self.view.send_replace(Arc::new(state.clone()));
        self.open_log(&state);
        self.publish(state).await;
        Ok(())
    }

    /// What is true of the part: it runs for as long as this process does. What ran before was another instance.
    fn state(&self, pod: core::Pod) -> PodState {
        let before = adopt::adopt(pod, None, self.started_at).state;
        let mut state = before.clone();
        (state.volumes, state.sandbox, state.had_sandbox) = (Stage::Ready, Stage::Ready, true);
        state.failed = None;
        state.ips = self.context.options.internal_ips.clone();
        let before = before.container(self.part.name);
        let container = state.containers.entry(self.part.name.to_owned()).or_default();
        if !before.id.is_empty() && before.id != self.id {
            container.last = before.ended().cloned().or(before.last.clone());
            container.restarts = before.restarts + 1;
        }
        container.id = self.id.clone();
        container.run = Run::Running { started_at: self.started_at, hooked: true };
        state
    }

    async fn publish(&self, mut state: PodState) {
        let new = status::generate(&state, &self.context.options.internal_ips, self.context.env.now());
        let patch = pod_tasks::status_patch(state.pod.status.as_ref(), &new, state.uid());
        while !pod_tasks::write_status(self.context.clone(), state.pod.clone(), patch.clone()).await {}
        state.pod.status = Some(new);
        self.view.send_replace(Arc::new(state));
    }

    async fn take(&self, pod: core::Pod) {
        if pod.metadata.deletion_timestamp.is_some() {
            // As the kubelet does with a mirror pod that is to go: at once, and its successor follows.
            pod_tasks::delete(self.context.clone(), pod).await;
            return;
        }
        self.view.send_modify(|state| {
            let mut newer = (**state).clone();
            newer.pod.metadata = pod.metadata;
            *state = Arc::new(newer);
        });
    }

    async fn end(&self, for_good: bool) {
        let name = self.part.pod_name(&self.context.options.name);
        telemetry::close_part(&name);
        let mut state = (**self.view.borrow()).clone();
        if state.uid().is_empty() {
            return;
        }
        if for_good {
            self.remove_log();
            while !pod_tasks::delete(self.context.clone(), state.pod.clone()).await {}
            return;
        }
        let ended = Ended {
            exit_code: 0,
            reason: "Completed".to_owned(),
            message: String::new(),
            started_at: self.started_at,
            finished_at: self.context.env.now(),
            container_id: self.id.clone(),
        };
        if let Some(container) = state.containers.get_mut(self.part.name) {
            container.run = Run::Ended(ended);
        }
        self.publish(state).await;
    }

    /// The log of this instance; that of the one before stays for `kubectl logs --previous`.
    fn open_log(&self, state: &PodState) {
        let restarts = state.container(self.part.name).restarts;
        let directory = self.context.log_dir(&state.pod).join(self.part.name);
        let name = self.part.pod_name(&self.context.options.name);
        let open = || -> io::Result<()> {
            std::fs::create_dir_all(&directory)?;
            if let Err(error) = std::fs::remove_file(directory.join(format!("{}.log", restarts - 2)))
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            telemetry::open_part(&name, self.part.modules, &directory.join(format!("{restarts}.log")))?;
            let text = format!("{} runs in process {} since {}", self.part.name, std::process::id(), self.started_at);
            telemetry::write_part(&name, &text)
        };
        if let Err(error) = open() {
            tracing::warn!(part = self.part.name, %error, "a part has no log of its own");
        }
    }

    fn remove_log(&self) {
        let directory = self.context.log_dir(&self.view.borrow().pod);
        if let Err(error) = std::fs::remove_dir_all(&directory) {
            tracing::debug!(%error, directory = %directory.display(), "a log could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_looks_like_a_static_pod() {
        let part = Part {
            name: "etcd",
            namespace: "kube-system",
            labels: &[("component", "etcd"), ("tier", "control-plane")],
            priority_class: "system-node-critical",
            modules: &["mini::storage"],
        };
        let object = part.object("mini", "uid-of-node", Timestamp::UNIX_EPOCH);
        assert_eq!((meta::name(&object), meta::namespace(&object)), ("etcd-mini", "kube-system"));
        assert_eq!(object["metadata"]["ownerReferences"][0]["kind"], "Node");
        let pod = core::Pod::deserialize(&object).expect("a pod");
        assert!(is_mirror(&pod));
        assert_eq!(object, part.object("mini", "uid-of-node", Timestamp::UNIX_EPOCH), "the hash is stable");
    }
}
