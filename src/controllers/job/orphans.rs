//! Takes the tracking finalizer from pods that no Job will ever count: theirs is over, gone, or not theirs any more
//! (`syncOrphanPod`).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

use super::{is_finished, is_managed_elsewhere, is_tracked, pods};
use crate::client::cache::Key;
use crate::client::typed::{Meta, gvr};
use crate::controllers::caches::Caches;
use crate::controllers::plan::{Action, Plan, Write};
use crate::controllers::{Controller, Enqueue};

/// The controller; its keys are pods.
pub struct OrphanController;

impl Controller for OrphanController {
    fn name(&self) -> &'static str {
        "job-orphan-pods"
    }
    fn account(&self) -> &'static str {
        "job-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let (jobs, add) = (caches.jobs.clone(), enqueue.clone());
        caches.pods.subscribe(move |change| {
            let Some(pod) = change.new.as_ref().filter(|pod| is_tracked(pod)) else { return };
            let waits = pod.controller().is_some_and(|owner| {
                let job = jobs.get(&Key::new(pod.namespace(), &*owner.name)).filter(|job| job.uid() == owner.uid);
                job.is_some_and(|job| !is_finished(&job))
            });
            if !waits {
                add.add(Key::of(&**pod));
            }
        });
        let (pods, add) = (caches.pods.clone(), enqueue.clone());
        caches.jobs.subscribe(move |change| {
            if change.new.as_ref().is_none_or(|job| is_finished(job)) {
                let mine = pods.owned_by(change.object().uid());
                mine.iter().filter(|pod| is_tracked(pod)).for_each(|pod| add.add(Key::of(&**pod)));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(pod) = caches.pods.get(key).filter(|pod| is_tracked(pod)) else { return plan };
        if let Some(owner) = pod.controller() {
            if owner.kind != "Job" || owner.api_version != "batch/v1" {
                return plan;
            }
            let job_key = Key::new(pod.namespace(), &*owner.name);
            let job: Option<Arc<Job>> = caches.jobs.get(&job_key).filter(|job| job.uid() == owner.uid);
            match job {
                Some(job) if !is_finished(&job) || is_managed_elsewhere(&job) => return plan,
                Some(_) => {}
                // This cache may be behind the pods': ask before a pod is lost for its Job.
                None => plan.push(Action::write(Write::ExpectAbsent {
                    gvr: gvr::<Job>(),
                    key: job_key,
                    uid: owner.uid.clone(),
                })),
            }
        }
        plan.push(pods::release(&pod));
        plan
    }
}
