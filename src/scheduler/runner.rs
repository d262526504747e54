//! The scheduler's I/O: hears of pods, nodes and what belongs to them, runs cycles, carries out what they decide in the
//! background, tells events and conditions.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::binder::Binder;
use super::pod_info::PodInfo;
use super::volumes::Choice;
use super::workloads::{KINDS, Workload};
use super::world::{Attempt, Outcome, World};
use super::{DEFAULT_SCHEDULER, USER};
use crate::api::{Gvr, Status};
use crate::client::cache::Key;
use crate::client::recorder::{EventType, Note, reference};
use crate::client::typed::gvr;
use crate::client::{Api, Cache, Change, Factory, ListOptions, Object, Patch, Recorder, informer};
use crate::env::{Env, rfc3339};

/// After so many cycles in a row the other tasks of the thread get their turn.
const CYCLES: usize = 32;

/// What the scheduler hears of.
enum Heard {
    Pod(Change<Pod>),
    Node(Change<Node>),
    Claim(Change<PersistentVolumeClaim>),
    Volume(Change<PersistentVolume>),
    Class(Change<StorageClass>),
    Namespace(Change<Namespace>),
    Workload(Change<Workload>),
    Budget(Change<PodDisruptionBudget>),
    BindFailed(Arc<PodInfo>, Vec<Choice>, Status),
    Preempted(Key, bool),
    /// The status of a pod is written.
    Told(Key),
}

/// A running scheduler.
pub struct Handle {
    stop: CancellationToken,
    tasks: TaskTracker,
    factory: Factory,
}

impl Handle {
    /// Tells whether the scheduler runs, also after this handle is gone.
    pub fn running(&self) -> impl Fn() -> bool + Send + 'static {
        let tasks = self.tasks.clone();
        move || !tasks.is_empty()
    }

    /// Lets bindings under way finish, then stops.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.factory.stop();
    }
}

/// Starts the scheduler, which acts through `api` (as [`USER`]). Inside a tokio runtime.
pub fn start(api: Arc<dyn Api>, env: Env) -> Handle {
    tracing::debug!(user = USER, "the scheduler starts");
    let factory = Factory::new(api.clone());
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let (sender, receiver) = unbounded_channel();
    let scheduler = Scheduler {
        world: World::default(),
        factory: factory.clone(),
        recorder: Recorder::new(api.clone(), env.clone(), DEFAULT_SCHEDULER, ""),
        telling: HashMap::new(),
        informers: JoinSet::new(),
        api,
        env,
        sender,
        tasks: tasks.clone(),
        stop: stop.clone(),
    };
    let stopped = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = scheduler.run(receiver) => {}
            () = stopped.cancelled() => {}
        }
    });
    Handle { stop, tasks, factory }
}

struct Scheduler {
    world: World,
    factory: Factory,
    api: Arc<dyn Api>,
    recorder: Recorder,
    env: Env,
    /// Pods whose status is being written, and what is to be written next.
    telling: HashMap<Key, Option<Value>>,
    informers: JoinSet<()>,
    sender: UnboundedSender<Heard>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Scheduler {
    async fn run(mut self, mut heard: UnboundedReceiver<Heard>) {
        // What pods need comes before the pods.
        self.hear_of(Heard::Namespace).await;
        self.hear_of(Heard::Class).await;
        self.hear_of(Heard::Volume).await;
        self.hear_of(Heard::Claim).await;
        for gvr in KINDS {
            self.hear_of_workloads(gvr).await;
        }
        if self.serves(&gvr::<PodDisruptionBudget>()).await {
            self.hear_of(Heard::Budget).await;
        }
        self.hear_of(Heard::Node).await;
        self.hear_of(Heard::Pod).await;
        loop {
            while let Ok(news) = heard.try_recv() {
                self.hear(news);
            }
            let worked = (0..CYCLES).take_while(|_| self.cycle()).count();
            if worked > 0 {
                tokio::task::yield_now().await;
                continue;
            }
            let news = match self.world.queue.next_deadline() {
                None => heard.recv().await,
                Some(deadline) => {
                    let wait = deadline.duration_since(self.env.now()).try_into().unwrap_or_default();
                    tokio::select! {
                        news = heard.recv() => news,
                        () = tokio::time::sleep(wait) => continue,
                    }
                }
            };
            if let Some(news) = news {
                self.hear(news);
            }
        }
    }

    fn subscribe<T: Object>(&self, cache: &Cache<T>, heard: fn(Change<T>) -> Heard) {
        let sender = self.sender.clone();
        // The receiver lives as long as the scheduler.
        cache.subscribe(move |change| drop(sender.send(heard(change.clone()))));
    }

    async fn hear_of<T: crate::client::typed::Typed>(&self, heard: fn(Change<T>) -> Heard) {
        let cache = self.factory.cache::<T>();
        cache.synced().await;
        self.subscribe(&cache, heard);
    }

    async fn hear_of_workloads(&mut self, gvr: Gvr) {
        if !self.serves(&gvr).await {
            return;
        }
        let cache = Cache::<Workload>::default();
        let (api, options) = (self.api.clone(), ListOptions::default());
        self.informers.spawn(informer::run(api, gvr, String::new(), options, cache.clone()));
        cache.synced().await;
        self.subscribe(&cache, Heard::Workload);
    }

    /// Whether the API has the resource at all.
    async fn serves(&self, gvr: &Gvr) -> bool {
        let nothing = ListOptions { field_selector: "metadata.name=".into(), ..Default::default() };
        !matches!(self.api.list(gvr, "", &nothing).await, Err(status) if status.is_not_found())
    }

    fn hear(&mut self, news: Heard) {
        let now = self.env.now();
        match news {
            Heard::Pod(change) => self.world.pod(&change, now),
            Heard::Node(change) => self.world.node(&change, now),
            Heard::Claim(change) => self.world.claim(&change, now),
            Heard::Volume(change) => self.world.volume(&change, now),
            Heard::Class(change) => self.world.class(&change, now),
            Heard::Namespace(change) => self.world.namespace(&change, now),
            Heard::Workload(change) => self.world.workload(&change),
            Heard::Budget(change) => self.world.budget(&change),
            Heard::BindFailed(pod, volumes, status) => {
                if self.world.bind_failed(&pod, &volumes, now) {
                    tracing::info!(pod = %pod.key, error = %status, "a binding was rejected");
                    self.tell_failure(&pod, "SchedulerError", &status.message, None);
                }
            }
            Heard::Preempted(pod, failed) => self.world.preempted(&pod, failed, now),
            Heard::Told(pod) => {
                if let Some(Some(next)) = self.telling.remove(&pod) {
                    self.tell(pod, next);
                }
            }
        }
    }

    /// Schedules one pod. Returns whether there was one.
    fn cycle(&mut self) -> bool {
        let env = &self.env;
        let Some(Attempt { pod, outcome }) = self.world.next(env.now(), |equals| below(env, equals)) else {
            return false;
        };
        match outcome {
            Outcome::Bind { node, volumes } => self.bind(pod, node, volumes),
            Outcome::Fail { message, nomination, victims, demoted } => {
                let node = self.world.nodes.nomination(&pod.uid).to_owned();
                self.tell_failure(&pod, "Unschedulable", &message, nomination);
                for other in demoted {
                    self.tell(
                        other.key.clone(),
                        json!({"metadata": {"uid": other.uid()}, "status": {"nominatedNodeName": null}}),
                    );
                }
                if !victims.is_empty() {
                    self.preempt(&pod, node, victims);
                }
            }
        }
        true
    }

    fn bind(&self, pod: Arc<PodInfo>, node: String, volumes: Vec<Choice>) {
        let (recorder, sender, stop) = (self.recorder.clone(), self.sender.clone(), self.stop.clone());
        let binder = Binder::new(self.api.clone(), &self.factory);
        self.tasks.spawn(async move {
            // Claims may take their time; a scheduler that stops does not wait for them.
            let claimed = tokio::select! {
                claimed = binder.claims(&pod, &node, &volumes) => claimed,
                () = stop.cancelled() => return,
            };
            let bound = match claimed {
                Ok(()) => binder.pod(&pod, &node).await,
                Err(status) => Err(status),
            };
            match bound {
                Ok(()) => {
                    let message = format!("Successfully assigned {} to {node}", pod.key);
                    recorder.note(note(&pod.pod, EventType::Normal, "Scheduled", "Binding", message));
                }
                // The scheduler may have been stopped meanwhile.
                Err(status) => drop(sender.send(Heard::BindFailed(pod, volumes, status))),
            }
        });
    }

    /// Deletes the victims, all at once.
    fn preempt(&self, pod: &Arc<PodInfo>, node: String, victims: Vec<Arc<PodInfo>>) {
        let (pod, now, recorder, sender) = (pod.clone(), self.env.now(), self.recorder.clone(), self.sender.clone());
        let binder = Binder::new(self.api.clone(), &self.factory);
        self.tasks.spawn(async move {
            let deletions = victims.iter().map(|victim| binder.evict(victim, now));
            let mut failed = false;
            for (victim, answer) in victims.iter().zip(futures_util::future::join_all(deletions).await) {
                match answer {
                    Ok(true) => {
                        let message = format!("Preempted by pod {} on node {node}", pod.uid());
                        recorder.note(note(&victim.pod, EventType::Normal, "Preempted", "Preempting", message));
                    }
                    Ok(false) => {} // it was gone already
                    Err(status) => {
                        tracing::info!(victim = %victim.key, preemptor = %pod.key, error = %status, "a pod could not be preempted");
                        failed = true;
                    }
                }
            }
            drop(sender.send(Heard::Preempted(pod.key.clone(), failed)));
        });
    }

    /// The event FailedScheduling, the condition PodScheduled, and the nomination if it changes.
    fn tell_failure(&mut self, pod: &PodInfo, reason: &str, message: &str, nomination: Option<String>) {
        let note = note(&pod.pod, EventType::Warning, "FailedScheduling", "Scheduling", message.to_owned());
        self.recorder.note(note);
        let status = pod.pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let known = conditions.iter().find(|condition| condition.type_ == "PodScheduled");
        let says = |known: &PodCondition| {
            known.status == "False"
                && known.reason.as_deref() == Some(reason)
                && known.message.as_deref() == Some(message)
        };
        if known.is_some_and(says) && nomination.is_none() && !self.telling.contains_key(&pod.key) {
            return;
        }
        let since = known.filter(|known| known.status == "False").and_then(|known| known.last_transition_time.as_ref());
        let since = rfc3339(since.map_or(self.env.now(), |time| time.0));
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastProbeTime": null, "lastTransitionTime": since, "observedGeneration": pod.pod.metadata.generation});
        let mut patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
        if let Some(node) = nomination {
            patch["status"]["nominatedNodeName"] = if node.is_empty() { Value::Null } else { node.into() };
        }
        self.tell(pod.key.clone(), patch);
    }

    /// Writes a pod's status in the background; what is told meanwhile is written afterwards, the newest only.
    fn tell(&mut self, pod: Key, patch: Value) {
        if let Some(next) = self.telling.get_mut(&pod) {
            match next {
                Some(earlier) => overlay(earlier, patch),
                None => *next = Some(patch),
            }
            return;
        }
        self.telling.insert(pod.clone(), None);
        let (api, sender) = (self.api.clone(), self.sender.clone());
        self.tasks.spawn(async move {
            match api.patch(&gvr::<Pod>(), &pod.namespace, &pod.name, "status", Patch::Strategic(patch)).await {
                Err(status) if !status.is_not_found() && !status.is_conflict() => {
                    tracing::info!(%pod, error = %status, "the condition PodScheduled could not be written");
                }
                _ => {}
            }
            drop(sender.send(Heard::Told(pod)));
        });
    }
}

/// Lays a later status over an earlier one that is not written yet.
fn overlay(earlier: &mut Value, later: Value) {
    if earlier["metadata"]["uid"] != later["metadata"]["uid"] {
        *earlier = later;
        return;
    }
    for (field, value) in later["status"].as_object().into_iter().flatten() {
        earlier["status"][field] = value.clone();
    }
}

fn below(env: &Env, count: usize) -> usize {
    usize::try_from(env.below(count.max(1) as u64)).unwrap_or_default()
}

fn note(pod: &Pod, type_: EventType, reason: &str, action: &str, message: String) -> Note {
    Note {
        regarding: reference(pod),
        type_,
        reason: reason.into(),
        message,
        action: action.into(),
        annotations: Vec::new(),
    }
}
