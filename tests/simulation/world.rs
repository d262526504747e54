//! The simulated cluster: who acts, in which order, and what goes wrong. What it runs is a [`Story`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use mini::api::{Gvr, Status, meta};
use mini::client::cache::{Cache, Change, Key};
use mini::client::fake::{FakeApi, Fault, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, ListOptions, Patch};
use mini::controllers::caches::{Caches, Graph, GraphKind};
use mini::controllers::plan::Written;
use mini::controllers::runner::execute;
use mini::controllers::{Controller, Enqueue};
use mini::env::{Env, rfc3339};
use mini::scheduler::world::{Attempt, Outcome, World as SchedulerWorld};

pub const NAMESPACE: &str = "sim";
const NODES: [&str; 2] = ["node-a", "node-b"];
/// A cluster that does not come to rest within this many steps goes round in circles.
const PATIENCE: usize = 20_000;

/// A resource, its kind, and whether it is namespaced.
pub type KindRow = (Gvr, &'static str, bool);

/// What a world runs: its controllers, what a user does, and what must hold.
pub trait Story {
    /// The kinds that play a part.
    fn kinds(&self) -> Vec<KindRow>;
    /// The controllers that act (a new process gets new ones).
    fn controllers(&self) -> Vec<Arc<dyn Controller>>;
    /// What is there at the beginning.
    fn begin(&mut self, world: &World);
    /// A user does something.
    fn user_acts(&mut self, world: &World);
    /// Whether pods also fail for good.
    fn pods_fail(&self) -> bool {
        false
    }
    /// Somebody else than the controllers takes a pod, or its readiness, away.
    fn disturbed(&mut self, pod: &Value);
    /// One change of the truth: nothing that must hold may be broken by it.
    fn see(&mut self, change: &Logged);
    /// After everything has settled.
    fn at_rest(&mut self, api: &FakeApi);
}

/// Keys of one controller.
#[derive(Default)]
struct Queue {
    ready: BTreeSet<Key>,
    later: BTreeSet<(Timestamp, Key)>,
}

struct Running {
    controller: Arc<dyn Controller>,
    queue: Arc<Mutex<Queue>>,
    /// Keys that wait until the caches show what was written.
    held: Vec<(Key, Vec<Written>)>,
}

/// What happens to the writes of the plan that is being carried out.
#[derive(Clone, Copy, Default)]
enum Trouble {
    #[default]
    None,
    /// The write after so many fails.
    Refuse(usize),
    /// The write after so many loses a race.
    Conflict(usize),
    /// The write after so many and all others fail: the process is gone.
    Crash(usize),
}

pub struct World {
    pub env: Env,
    pub api: Arc<FakeApi>,
    caches: Caches,
    /// How far each informer is.
    cursors: BTreeMap<Gvr, u64>,
    running: Vec<Running>,
    trouble: Arc<Mutex<Trouble>>,
    scheduler: SchedulerWorld,
    news: Arc<Mutex<VecDeque<News>>>,
    /// Out of its place only while it is asked.
    story: Option<Box<dyn Story>>,
    checked: u64,
    /// While it settles nothing goes wrong any more.
    settling: bool,
    trace: bool,
}

enum News {
    Pod(Change<Pod>),
    Node(Change<Node>),
    Claim(Change<PersistentVolumeClaim>),
    Volume(Change<PersistentVolume>),
}

fn fresh_caches(kinds: Vec<KindRow>) -> Caches {
    let node = |(gvr, kind, namespaced): KindRow| GraphKind {
        gvr,
        kind: kind.into(),
        namespaced,
        custom: false,
        cache: Cache::default(),
    };
    let graph = Graph::new(kinds.into_iter().map(node).collect());
    Caches { graph, ..Default::default() }
}

/// The fake API never waits.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the API in memory answers at once")
}

impl World {
    pub fn new(seed: u64, story: Box<dyn Story>) -> Self {
        let start = "2026-01-02T03:04:05Z".parse().expect("a time");
        let env = Env::simulated(seed, start);
        let api = FakeApi::new(env.clone());
        let trouble = Arc::new(Mutex::new(Trouble::None));
        let hook = trouble.clone();
        api.on_write(move |_| {
            let mut trouble = hook.lock().expect("one thread");
            let (count, status) = match &mut *trouble {
                Trouble::None => return None,
                Trouble::Refuse(count) => (count, Status::internal("the disk is on fire")),
                Trouble::Conflict(count) => (count, Status::new(409, "Conflict", "somebody was faster")),
                Trouble::Crash(count) => (count, Status::internal("the process is gone")),
            };
            if *count > 0 {
                *count -= 1;
                return None;
            }
            if !matches!(*trouble, Trouble::Crash(_)) {
                *trouble = Trouble::None;
            }
            Some(Fault::Refuse(status))
        });
        for name in NODES {
            api.seed(
                &gvr::<Node>(),
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "spec": {}, "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"}}}),
            );
        }
        let mut world = Self {
            env,
            api,
            caches: fresh_caches(story.kinds()),
            cursors: BTreeMap::new(),
            running: Vec::new(),
            trouble,
            scheduler: SchedulerWorld::default(),
            news: Arc::default(),
            story: Some(story),
            checked: 0,
            settling: false,
            trace: std::env::var_os("MINI_SIMULATION_TRACE").is_some(),
        };
        world.start_processes();
        world.tell(|story, world| story.begin(world));
        world
    }

    fn story(&self) -> &dyn Story {
        &**self.story.as_ref().expect("it is in its place")
    }

    fn tell(&mut self, what: impl FnOnce(&mut dyn Story, &Self)) {
        let mut story = self.story.take().expect("it is in its place");
        what(&mut *story, self);
        self.story = Some(story);
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{} {}", rfc3339(self.env.now()), what());
        }
    }

    pub fn chance(&self, percent: u64) -> bool {
        self.env.below(100) < percent
    }

    pub fn pick(&self, count: usize) -> usize {
        usize::try_from(self.env.below(count.max(1) as u64)).expect("it fits")
    }

    /// A new process: empty queues, caches that list first, a scheduler that knows nothing.
    fn start_processes(&mut self) {
        let kinds = self.story().kinds();
        self.caches = fresh_caches(kinds.clone());
        self.cursors.clear();
        kinds.into_iter().for_each(|(gvr, ..)| self.relist(&gvr));
        self.running.clear();
        for controller in self.story().controllers() {
            let queue = Arc::new(Mutex::new(Queue::default()));
            let (adder, delayer, env) = (queue.clone(), queue.clone(), self.env.clone());
            let enqueue = Enqueue::new(
                move |key| {
                    adder.lock().expect("one thread").ready.insert(key);
                },
                move |key, delay| {
                    delayer.lock().expect("one thread").later.insert((after(&env, delay), key));
                },
            );
            controller.watch(&self.caches, &enqueue);
            self.running.push(Running { controller, queue, held: Vec::new() });
        }
        self.scheduler = SchedulerWorld::default();
        self.news = Arc::default();
        let (pods, nodes, claims) = (self.news.clone(), self.news.clone(), self.news.clone());
        let volumes = self.news.clone();
        self.caches.volumes.subscribe(move |c| volumes.lock().expect("one thread").push_back(News::Volume(c.clone())));
        self.caches.claims.subscribe(move |c| claims.lock().expect("one thread").push_back(News::Claim(c.clone())));
        self.caches.nodes.subscribe(move |c| nodes.lock().expect("one thread").push_back(News::Node(c.clone())));
        self.caches.pods.subscribe(move |c| pods.lock().expect("one thread").push_back(News::Pod(c.clone())));
    }

    fn relist(&mut self, gvr: &Gvr) {
        let list = now(self.api.list(gvr, "", &ListOptions::default())).expect("a list");
        let revision = list.resource_version.parse().expect("a number");
        self.caches.relist(gvr, &list.items, revision);
        self.cursors.insert(gvr.clone(), revision);
    }

    /// One random thing happens, and the invariants are looked at.
    pub fn step(&mut self) {
        match self.env.below(100) {
            0..35 => drop(self.deliver_some()),
            35..60 => drop(self.reconcile_some()),
            60..70 => drop(self.schedule_one()),
            70..85 => drop(self.node_acts()),
            85..92 => self.tell(|story, world| story.user_acts(world)),
            92..98 => drop(self.time_passes()),
            98 => {
                let kinds = self.story().kinds();
                let (gvr, ..) = &kinds[self.pick(kinds.len())];
                self.say(|| format!("relist {gvr:?}"));
                self.relist(gvr);
            }
            _ => {
                self.say(|| "restart".into());
                self.start_processes();
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let log = self.api.log_since(self.checked);
        for change in &log {
            self.say(|| {
                let verb = if change.deleted {
                    "deleted"
                } else if change.old.is_none() {
                    "created"
                } else {
                    "changed"
                };
                let (spec, status) = (&change.object["spec"], &change.object["status"]);
                let sizes = if spec["replicas"].is_null() {
                    String::new()
                } else {
                    format!(
                        "{} wanted, {} there, {} available",
                        spec["replicas"], status["replicas"], status["availableReplicas"]
                    )
                };
                let (resource, name) = (&change.gvr.resource, meta::name(&change.object));
                format!("  {} {verb} {resource} {name} {sizes}", change.revision)
            });
            self.tell(|story, _| story.see(change));
        }
        self.checked = self.api.revision();
    }

    /// Nothing goes wrong any more: everything must come to rest, and be as it should be.
    pub fn settle(&mut self) {
        self.settling = true;
        self.say(|| "settle".into());
        for _ in 0..PATIENCE {
            let busy = self.deliver(usize::MAX) | self.reconcile_some() | self.schedule_one() | self.node_acts();
            self.check();
            if !busy && !self.time_passes() {
                self.tell(|story, world| story.at_rest(&world.api));
                self.every_plan_is_empty();
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    fn every_plan_is_empty(&self) {
        for running in &self.running {
            for (gvr, ..) in self.story().kinds() {
                for object in self.api.all(&gvr) {
                    let key = Key::new(meta::namespace(&object), meta::name(&object));
                    let plan = running.controller.reconcile(&self.caches, &key, self.env.now());
                    let left: Vec<_> = plan.actions().collect();
                    assert!(left.is_empty(), "{} still wants of {key}: {left:?}", running.controller.name());
                }
            }
        }
    }

    fn deliver_some(&mut self) -> bool {
        let count = 1 + self.pick(6);
        self.deliver(count)
    }

    /// One informer (all, when `count` is unlimited) hears of so many changes.
    fn deliver(&mut self, count: usize) -> bool {
        let kinds = self.story().kinds();
        let chosen: Vec<Gvr> = if count == usize::MAX {
            kinds.into_iter().map(|kind| kind.0).collect()
        } else {
            vec![kinds[self.pick(kinds.len())].0.clone()]
        };
        let mut delivered = false;
        for gvr in chosen {
            let from = self.cursors.get(&gvr).copied().unwrap_or_default();
            let changes = self.api.log_since(from);
            for change in changes.iter().filter(|change| change.gvr == gvr).take(count) {
                self.caches.apply(&gvr, &change.object, change.deleted);
                self.cursors.insert(gvr.clone(), change.revision);
                delivered = true;
            }
        }
        delivered
    }

    /// A random controller handles one of its keys.
    fn reconcile_some(&mut self) -> bool {
        let caches = self.caches.clone();
        for running in &mut self.running {
            running.held.retain(|(key, written)| {
                let seen = written
                    .iter()
                    .all(|write| caches.showing(&write.gvr).iter().all(|cache| write.is_seen_by(&**cache)));
                if seen {
                    // What was added while it was held is in `ready` already.
                    let _ = key;
                }
                !seen
            });
        }
        let able = |running: &Running| {
            let queue = running.queue.lock().expect("one thread");
            let free = |key: &&Key| !running.held.iter().any(|(held, _)| held == *key);
            queue.ready.iter().filter(free).cloned().collect::<Vec<_>>()
        };
        let all: Vec<(usize, Vec<Key>)> =
            self.running.iter().map(able).enumerate().filter(|(_, keys)| !keys.is_empty()).collect();
        if all.is_empty() {
            return false;
        }
        let (index, keys) = &all[self.pick(all.len())];
        let key = keys[self.pick(keys.len())].clone();
        self.reconcile(*index, key);
        true
    }

    fn reconcile(&mut self, index: usize, key: Key) {
        let running = &self.running[index];
        running.queue.lock().expect("one thread").ready.remove(&key);
        let plan = running.controller.reconcile(&self.caches, &key, self.env.now());
        let name = running.controller.name();
        self.say(|| format!("{name} {key}: {} actions", plan.actions().count()));
        let trouble = if self.settling { Trouble::None } else { self.trouble(plan.actions().count()) };
        *self.trouble.lock().expect("one thread") = trouble;
        let requeue_after = plan.requeue_after;
        let (written, failure) = now(execute(&*self.api, plan, &|_, _| {}));
        let crashed = matches!(*self.trouble.lock().expect("one thread"), Trouble::Crash(0)) && failure.is_some();
        *self.trouble.lock().expect("one thread") = Trouble::None;
        if crashed {
            self.say(|| "crash".into());
            return self.start_processes();
        }
        let running = &mut self.running[index];
        let mut queue = running.queue.lock().expect("one thread");
        if let Some(status) = failure {
            if self.trace {
                println!("  failed: {status}");
            }
            queue.later.insert((after(&self.env, Duration::from_millis(5)), key.clone()));
        }
        if let Some(delay) = requeue_after {
            queue.later.insert((after(&self.env, delay), key.clone()));
        }
        drop(queue);
        running.held.push((key, written));
    }

    fn trouble(&self, actions: usize) -> Trouble {
        let at = self.pick(actions);
        match self.env.below(100) {
            0..5 => Trouble::Refuse(at),
            5..10 => Trouble::Conflict(at),
            10..13 => Trouble::Crash(at),
            _ => Trouble::None,
        }
    }

    fn schedule_one(&mut self) -> bool {
        let time = self.env.now();
        let news: Vec<News> = self.news.lock().expect("one thread").drain(..).collect();
        for news in &news {
            match news {
                News::Pod(change) => self.scheduler.pod(change, time),
                News::Node(change) => self.scheduler.node(change, time),
                News::Claim(change) => self.scheduler.claim(change, time),
                News::Volume(change) => self.scheduler.volume(change, time),
            }
        }
        let env = self.env.clone();
        let below = |count: usize| usize::try_from(env.below(count.max(1) as u64)).expect("few");
        let Some(Attempt { pod, outcome }) = self.scheduler.next(time, below) else { return !news.is_empty() };
        if let Outcome::Bind { node, volumes } = outcome {
            let binding = json!({"metadata": {"name": pod.key.name}, "target": {"kind": "Node", "name": node}});
            let (namespace, name) = (&pod.key.namespace, &pod.key.name);
            if now(self.api.create(&gvr::<Pod>(), namespace, name, "binding", binding)).is_err() {
                self.scheduler.bind_failed(&pod, &volumes, time);
            }
        }
        true
    }

    /// Whoever provides volumes makes one for a claim and binds it.
    fn bind_a_claim(&self) -> bool {
        let gvr = gvr::<PersistentVolumeClaim>();
        let claims = self.api.all(&gvr);
        let Some(claim) = claims.iter().find(|claim| claim["spec"]["volumeName"].is_null()) else { return false };
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": meta::uid(claim),
            "finalizers": ["kubernetes.io/pv-protection"]}, "spec": {"hostPath": {"path": "/data"}}});
        now(self.api.create(&mini::client::typed::gvr::<PersistentVolume>(), "", "", "", volume))
            .expect("its name is new");
        let metadata = json!({"annotations": {"pv.kubernetes.io/bind-completed": "yes"},
            "finalizers": ["kubernetes.io/pvc-protection"]});
        let patch = json!({"metadata": metadata, "spec": {"volumeName": meta::uid(claim)}});
        let patch = self.api.patch(&gvr, NAMESPACE, meta::name(claim), "", Patch::Merge(patch));
        now(patch).expect("it is there");
        true
    }

    /// The fake node does the next thing for one of its pods.
    fn node_acts(&mut self) -> bool {
        if self.bind_a_claim() {
            return true;
        }
        let pods = self.api.all(&gvr::<Pod>());
        let nodes = self.api.all(&gvr::<Node>());
        let runs = |pod: &Value| {
            let failed = pod["status"]["phase"] == "Failed";
            !failed && nodes.iter().any(|node| pod["spec"]["nodeName"] == meta::name(node))
        };
        let bound: Vec<_> = pods.into_iter().filter(|pod| runs(pod)).collect();
        let ready = |pod: &Value| {
            pod["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        let todo: Vec<_> = bound.iter().filter(|pod| meta::is_terminating(pod) || !ready(pod)).collect();
        if let Some(pod) = todo.get(self.pick(todo.len())) {
            let name = meta::name(pod);
            if meta::is_terminating(pod) {
                let options = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
                now(self.api.delete(&gvr::<Pod>(), NAMESPACE, name, &options)).expect("it is there");
            } else {
                self.set_ready(pod, true);
            }
            return true;
        }
        // Sometimes a container fails and is started again.
        if !self.settling && !bound.is_empty() && self.chance(10) {
            let pod = bound[self.pick(bound.len())].clone();
            self.tell(|story, _| story.disturbed(&pod));
            if self.story().pods_fail() && self.chance(30) {
                self.fail(&pod);
            } else {
                self.set_ready(&pod, false);
            }
        }
        false
    }

    fn set_ready(&self, pod: &Value, ready: bool) {
        let address = format!("10.0.{}.{}", self.env.below(250), self.env.below(250));
        let address = pod["status"]["podIP"].as_str().map_or(address, str::to_owned);
        let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" },
            "lastTransitionTime": rfc3339(self.env.now())});
        let patch = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}});
        now(self.api.patch(&gvr::<Pod>(), NAMESPACE, meta::name(pod), "status", Patch::Strategic(patch)))
            .expect("it is there");
    }

    /// A pod ends, and its containers are not started again.
    fn fail(&self, pod: &Value) {
        let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": rfc3339(self.env.now())});
        let patch = Patch::Strategic(json!({"status": {"phase": "Failed", "conditions": [condition]}}));
        now(self.api.patch(&gvr::<Pod>(), NAMESPACE, meta::name(pod), "status", patch)).expect("it is there");
    }

    /// A user deletes some pod, which is returned as it was.
    pub fn delete_some_pod(&self) -> Option<Arc<Value>> {
        let pods = self.api.all(&gvr::<Pod>());
        let pod = pods.get(self.pick(pods.len()))?;
        self.say(|| format!("user deletes {}", meta::name(pod)));
        now(self.api.delete(&gvr::<Pod>(), NAMESPACE, meta::name(pod), &DeleteOptions::default()))
            .expect("it is there");
        Some(pod.clone())
    }

    /// The clock goes on: a little, or to the next deadline while settling. Returns whether anything was due.
    fn time_passes(&mut self) -> bool {
        let deadlines = self.running.iter().filter_map(|running| {
            let queue = running.queue.lock().expect("one thread");
            queue.later.first().map(|(at, _)| *at)
        });
        let next = deadlines.chain(self.scheduler.queue.next_deadline()).min();
        let step = SignedDuration::from_millis(1 + i64::try_from(self.env.below(5000)).expect("it fits"));
        let wait = next.map_or(step, |at| at.duration_since(self.env.now()).max(SignedDuration::ZERO));
        self.env.advance(if self.settling { wait } else { wait.min(step) });
        let time = self.env.now();
        for running in &self.running {
            let mut queue = running.queue.lock().expect("one thread");
            while queue.later.first().is_some_and(|(at, _)| *at <= time) {
                let (_, key) = queue.later.pop_first().expect("it was just seen");
                queue.ready.insert(key);
            }
        }
        next.is_some()
    }
}

fn after(env: &Env, delay: Duration) -> Timestamp {
    let delay = SignedDuration::try_from(delay).expect("a delay of a controller");
    env.now().saturating_add(delay).expect("a duration saturates")
}
