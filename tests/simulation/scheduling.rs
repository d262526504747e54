//! The scheduler of the simulated cluster: its real decisions, carried out by its real binder.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use jiff::Timestamp;
use serde_json::{Value, json};

use k8s_openapi::api::core::v1::Pod;
use mini::api::StatusResult;
use mini::client::cache::{Cache, Change, Key};
use mini::client::typed::gvr;
use mini::client::{Api, Object, Patch};
use mini::scheduler::binder::Binder;
use mini::scheduler::pod_info::PodInfo;
use mini::scheduler::volumes::Choice;
use mini::scheduler::world::{Attempt, Outcome, World as Decisions};

use crate::world::{World, now};

type News = Box<dyn FnOnce(&mut Decisions, Timestamp) + Send>;

/// A pod whose claims are being bound.
struct Binding {
    pod: Arc<PodInfo>,
    node: String,
    volumes: Vec<Choice>,
    claims: Pin<Box<dyn Future<Output = StatusResult<()>>>>,
}

/// A scheduler in a process.
#[derive(Default)]
pub struct Scheduler {
    decisions: Decisions,
    news: Arc<Mutex<VecDeque<News>>>,
    bindings: Vec<Binding>,
}

impl Scheduler {
    fn hear_of<T: Object>(&self, cache: &Cache<T>, hear: fn(&mut Decisions, &Change<T>, Timestamp)) {
        let news = self.news.clone();
        cache.subscribe(move |change| {
            let change = change.clone();
            let hear: News = Box::new(move |decisions, time| hear(decisions, &change, time));
            news.lock().expect("one thread").push_back(hear);
        });
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.decisions.queue.next_deadline()
    }
}

impl World {
    /// A new process: it knows nothing.
    pub fn start_scheduler(&mut self) {
        let scheduler = Scheduler::default();
        scheduler.hear_of(&self.caches.namespaces, Decisions::namespace);
        scheduler.hear_of(&self.caches.storage_classes, Decisions::class);
        scheduler.hear_of(&self.caches.volumes, Decisions::volume);
        scheduler.hear_of(&self.caches.claims, Decisions::claim);
        scheduler.hear_of(&self.caches.budgets, |decisions, change, _| decisions.budget(change));
        scheduler.hear_of(&self.caches.nodes, Decisions::node);
        scheduler.hear_of(&self.caches.pods, Decisions::pod);
        self.scheduler = scheduler;
    }

    fn binder(&self) -> Binder {
        let caches = &self.caches;
        Binder::of(self.api.clone(), caches.pods.clone(), caches.claims.clone(), caches.volumes.clone())
    }

    /// The scheduler hears what is new, and tries to place a pod or goes on with one.
    pub fn schedule_one(&mut self) -> bool {
        let time = self.env.now();
        let news: Vec<News> = self.scheduler.news.lock().expect("one thread").drain(..).collect();
        let heard = !news.is_empty();
        news.into_iter().for_each(|news| news(&mut self.scheduler.decisions, time));
        if self.go_on_binding() {
            return true;
        }
        let env = self.env.clone();
        let below = |count: usize| usize::try_from(env.below(count.max(1) as u64)).expect("few");
        let Some(Attempt { pod, outcome }) = self.scheduler.decisions.next(time, below) else { return heard };
        match outcome {
            Outcome::Bind { node, volumes } => {
                let (binder, target, wanted, chosen) = (self.binder(), pod.clone(), node.clone(), volumes.clone());
                let claims = Box::pin(async move { binder.claims(&target, &wanted, &chosen).await });
                self.scheduler.bindings.push(Binding { pod, node, volumes, claims });
                self.go_on_binding();
            }
            Outcome::Fail { nomination, victims, demoted, .. } => {
                for other in demoted {
                    self.nominate(&other, Value::Null);
                }
                if let Some(node) = nomination {
                    self.nominate(&pod, if node.is_empty() { Value::Null } else { node.into() });
                }
                if !victims.is_empty() {
                    self.preempt(&pod, &victims);
                }
            }
        }
        true
    }

    /// Binds the pods whose claims are bound. Returns whether there was anything to do.
    fn go_on_binding(&mut self) -> bool {
        let runtime = self.runtime.clone();
        let _entered = runtime.enter();
        let mut went_on = false;
        for mut binding in std::mem::take(&mut self.scheduler.bindings) {
            let Some(claimed) = (&mut binding.claims).now_or_never() else {
                self.scheduler.bindings.push(binding);
                continue;
            };
            went_on = true;
            let bind = || now(self.binder().pod(&binding.pod, &binding.node));
            if claimed.and_then(|()| self.with_refusal(5, bind)).is_err() {
                self.scheduler.decisions.bind_failed(&binding.pod, &binding.volumes, self.env.now());
            }
        }
        went_on
    }

    fn preempt(&mut self, pod: &PodInfo, victims: &[Arc<PodInfo>]) {
        let binder = self.binder();
        let evict = |victim: &Arc<PodInfo>| {
            self.say(|| format!("{} is preempted by {}", victim.key, pod.key));
            self.with_refusal(10, || now(binder.evict(victim, self.env.now()))).is_err()
        };
        let failed = victims.iter().fold(false, |failed, victim| evict(victim) | failed);
        self.scheduler.decisions.preempted(&pod.key, failed, self.env.now());
    }

    fn nominate(&self, pod: &PodInfo, node: Value) {
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"nominatedNodeName": node}});
        let Key { namespace, name } = &pod.key;
        // It may be gone; then there is nothing to tell.
        let _ = now(self.api.patch(&gvr::<Pod>(), namespace, name, "status", Patch::Strategic(patch)));
    }
}
