//! The simulated cluster: who acts, in which order, and what goes wrong. What it runs is a [`Story`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use mini::api::{Gvr, Status, meta};
use mini::client::cache::{Cache, Key};
use mini::client::fake::{FakeApi, Fault};
use mini::client::typed::gvr;
use mini::client::{Api, ListOptions};
use mini::controllers::caches::{Caches, Graph, GraphKind};
use mini::controllers::plan::{Action, Write, Written};
use mini::controllers::runner::execute;
use mini::controllers::{Controller, Enqueue};
use mini::env::{Env, rfc3339};

use crate::scheduling::Scheduler;
use crate::story::{KindRow, Story};

pub const NAMESPACE: &str = "sim";
const NODES: [&str; 2] = ["node-a", "node-b"];
/// A cluster that does not come to rest within this many steps goes round in circles.
const PATIENCE: usize = 20_000;

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
    /// How often keys have failed in a row.
    failures: BTreeMap<Key, u32>,
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
    pub caches: Caches,
    /// How far each informer is.
    cursors: BTreeMap<Gvr, u64>,
    running: Vec<Running>,
    trouble: Arc<Mutex<Trouble>>,
    pub scheduler: Scheduler,
    /// Where futures that wait are polled; nothing runs in it.
    pub runtime: Arc<Runtime>,
    /// Out of its place only while it is asked.
    story: Option<Box<dyn Story>>,
    checked: u64,
    /// Since when it settles: nothing goes wrong any more.
    settling: Option<Timestamp>,
    trace: bool,
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

/// The first and the longest delay after failures, as work queues have them.
const FIRST_DELAY: Duration = Duration::from_millis(5);
const LONGEST_DELAY: Duration = Duration::from_secs(1000);

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
        if let Some(admission) = story.admission() {
            api.on_create(admission);
        }
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
            scheduler: Scheduler::default(),
            runtime: Arc::new(Builder::new_current_thread().enable_time().build().expect("a runtime without threads")),
            story: Some(story),
            checked: 0,
            settling: None,
            trace: std::env::var_os("MINI_SIMULATION_TRACE").is_some(),
        };
        world.start_processes();
        world.tell(|story, world| story.begin(world));
        world.check();
        world
    }

    /// The controllers that act.
    pub fn controllers(&self) -> impl Iterator<Item = &'static str> {
        self.running.iter().map(|running| running.controller.name())
    }

    pub fn story(&self) -> &dyn Story {
        &**self.story.as_ref().expect("it is in its place")
    }

    pub fn tell(&mut self, what: impl FnOnce(&mut dyn Story, &Self)) {
        let mut story = self.story.take().expect("it is in its place");
        what(&mut *story, self);
        self.story = Some(story);
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{} {}", rfc3339(self.env.now()), what());
        }
    }

    pub fn is_settling(&self) -> bool {
        self.settling.is_some()
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
        let mut controllers = Vec::new();
        self.tell(|story, world| controllers = story.controllers(world));
        for controller in controllers {
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
            self.running.push(Running { controller, queue, held: Vec::new(), failures: BTreeMap::new() });
        }
        self.start_scheduler();
    }

    /// The revision up to which the caches of a resource show the truth.
    pub fn shown(&self, gvr: &Gvr) -> u64 {
        self.cursors.get(gvr).copied().unwrap_or_default()
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
        self.settling = Some(self.env.now());
        self.say(|| "settle".into());
        self.tell(|story, world| story.settles(world));
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
                    let left: Vec<_> = plan.actions().filter(|action| self.changes_something(action)).collect();
                    assert!(left.is_empty(), "{} still wants of {key}: {left:?}", running.controller.name());
                }
            }
        }
    }

    /// Whether an action is more than something to tell, to ask, or to say once more.
    fn changes_something(&self, action: &Action) -> bool {
        match &action.write {
            Write::Nothing
            | Write::ExpectNone { .. }
            | Write::ExpectAllowed { .. }
            | Write::ExpectAbsent { .. }
            | Write::ExpectUnused { .. } => false,
            // What goes already is held by a finalizer.
            Write::Delete { gvr, key, .. } => {
                !now(self.api.get(gvr, &key.namespace, &key.name)).is_ok_and(|object| meta::is_terminating(&object))
            }
            _ => true,
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
            let mut left = count;
            for change in changes {
                if change.gvr == gvr {
                    if left == 0 {
                        break;
                    }
                    left -= 1;
                    self.caches.apply(&gvr, &change.object, change.deleted);
                    delivered = true;
                }
                self.cursors.insert(gvr.clone(), change.revision);
            }
        }
        delivered
    }

    /// A random controller handles one of its keys.
    fn reconcile_some(&mut self) -> bool {
        let caches = self.caches.clone();
        for running in &mut self.running {
            running.held.retain(|(key, written)| {
                let showing = |write: &Written| caches.showing(&write.gvr);
                if written.iter().any(|write| showing(write).iter().any(|cache| !write.is_seen_by(&**cache))) {
                    return true;
                }
                if written.iter().any(|write| showing(write).iter().any(|cache| write.is_undone_in(&**cache))) {
                    running.queue.lock().expect("one thread").ready.insert(key.clone());
                }
                false
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
        now(running.controller.ask(&*self.api, &self.caches, &key));
        let plan = running.controller.reconcile(&self.caches, &key, self.env.now());
        let name = running.controller.name();
        self.say(|| format!("{name} {key}: {} actions", plan.actions().count()));
        let trouble = if self.is_settling() { Trouble::None } else { self.trouble(plan.actions().count()) };
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
            let failures = running.failures.entry(key.clone()).or_default();
            let delay = FIRST_DELAY.saturating_mul(1 << (*failures).min(20)).min(LONGEST_DELAY);
            *failures += 1;
            queue.later.insert((after(&self.env, delay), key.clone()));
        } else {
            running.failures.remove(&key);
        }
        if let Some(delay) = requeue_after {
            queue.later.insert((after(&self.env, delay), key.clone()));
        }
        drop(queue);
        running.held.push((key, written));
    }

    /// Carries something out of which one write may be refused.
    pub fn with_refusal<T>(&self, percent: u64, act: impl FnOnce() -> T) -> T {
        if !self.is_settling() && self.chance(percent) {
            *self.trouble.lock().expect("one thread") = Trouble::Refuse(0);
        }
        let done = act();
        *self.trouble.lock().expect("one thread") = Trouble::None;
        done
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

    /// The clock goes on: a little, or to the next deadline while settling. Returns whether anything was due.
    fn time_passes(&mut self) -> bool {
        let deadlines = self.running.iter().filter_map(|running| {
            let queue = running.queue.lock().expect("one thread");
            queue.later.first().map(|(at, _)| *at)
        });
        let next = deadlines.chain(self.scheduler.next_deadline()).chain(self.story().next_deadline()).min();
        if next.zip(self.settling).is_some_and(|(at, since)| at.duration_since(since) > self.story().patience()) {
            return false;
        }
        let stride = self.story().stride().as_millis().unsigned_abs();
        let step = self.env.below(u64::try_from(stride).expect("it fits"));
        let step = SignedDuration::from_millis(1 + i64::try_from(step).expect("it fits"));
        let wait = next.map_or(step, |at| at.duration_since(self.env.now()).max(SignedDuration::ZERO));
        self.env.advance(if self.is_settling() { wait } else { wait.min(step) });
        self.tell(|story, world| story.time_passed(world));
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
