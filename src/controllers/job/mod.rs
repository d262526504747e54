//! Jobs: runs pods until enough of them have succeeded, and counts each finished pod once (`pkg/controller/job`).
//!
//! A finished pod keeps a finalizer until the Job's status names it. One reconcile writes the status with the pod's uid
//! among the uncounted ones, then takes the finalizer away; the next one sees that and moves the uid into the counter.

mod backoff;
mod counts;
mod failure_policy;
mod finish;
mod indexes;
mod orphans;
mod pods;
mod sync;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::Pod;

use backoff::Finished;
pub use orphans::OrphanController;

use super::caches::Caches;
use super::plan::Plan;
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::selector;
use crate::client::typed::Meta;

/// The finalizer of pods that are not counted yet.
pub const TRACKING_FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// The controller that Jobs are managed by when they name none.
const OWN_NAME: &str = "kubernetes.io/job-controller";

/// The controller.
#[derive(Default)]
pub struct JobController {
    /// When pods finished, also those that are gone.
    finished: Finished,
}

impl Controller for JobController {
    fn name(&self) -> &'static str {
        "job"
    }
    fn account(&self) -> &'static str {
        "job-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let (finished, add) = (self.finished.clone(), enqueue.clone());
        caches.jobs.subscribe(move |change| {
            if change.new.as_ref().is_none_or(|job| is_finished(job)) {
                finished.forget(change.object().uid());
            }
            add.add(Key::of(&**change.object()));
        });
        let (finished, jobs, add) = (self.finished.clone(), caches.jobs.clone(), enqueue.clone());
        caches.pods.subscribe(move |change| {
            for pod in change.old.iter().chain(&change.new) {
                match pod.controller() {
                    Some(owner) if owner.kind == "Job" => {
                        finished.note(&owner.uid, pod);
                        add.add(Key::new(pod.namespace(), &*owner.name));
                    }
                    Some(_) => {}
                    None => {
                        let wants = |job: &Job| selects(job, pod);
                        jobs.select(pod.namespace(), wants).iter().for_each(|job| add.add(Key::of(&**job)));
                    }
                }
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let Some(job) = caches.jobs.get(key) else { return Plan::default() };
        let mut pods = caches.pods.claimable(&key.namespace, job.uid());
        pods.retain(|pod| pod.controller().map_or_else(|| selects(&job, pod), |owner| owner.uid == job.uid()));
        let failures = self.finished.failures_since_success(job.uid());
        sync::reconcile(&job, &pods, &failures, now)
    }
}

fn selects(job: &Job, pod: &Pod) -> bool {
    selector::matches(job.spec.as_ref().and_then(|spec| spec.selector.as_ref()), pod.labels())
}

/// A condition of a Job.
pub fn condition<'a>(job: &'a Job, type_: &str) -> Option<&'a JobCondition> {
    job.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// The condition with which a Job ended, if it is over.
pub fn final_condition(job: &Job) -> Option<&JobCondition> {
    let is_true = |condition: &&JobCondition| condition.status == "True";
    ["Complete", "Failed"].iter().find_map(|type_| condition(job, type_).filter(is_true))
}

/// Whether the Job is over (`IsJobFinished`).
pub fn is_finished(job: &Job) -> bool {
    final_condition(job).is_some()
}

/// Whether the Job is another controller's to run.
fn is_managed_elsewhere(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref()).is_some_and(|name| name != OWN_NAME)
}

/// Whether a pod still waits to be counted.
pub fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING_FINALIZER)
}

/// The pods of a Job, for those that count them.
type Pods = [Arc<Pod>];
