//! One reconcile of a Job (`syncJob`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::backoff::Failures;
use super::counts::{self, Counts, Uncounted, has_failed, is_counted, replaces_only_failed};
use super::finish::{self, End, is_suspended};
use super::indexes::{self, index_of};
use super::pods::{self, is_indexed};
use super::{Pods, TRACKING_FINALIZER, is_finished, is_managed_elsewhere, is_tracked};
use crate::api::index_intervals::IndexIntervals;
use crate::client::recorder::{EventType, reference};
use crate::client::typed::Meta;
use crate::controllers::plan::{Action, Plan, Step, Words};
use crate::controllers::pod_status::{is_ready, phase};
use crate::controllers::{ownership, pod_control};

/// Creates or deletes at most this many pods in one reconcile (`MaxPodCreateDeletePerSync`).
const BURST: usize = 500;
/// Names at most this many pods as uncounted at a time (`MaxUncountedPods`).
const MOST_UNCOUNTED: usize = 500;

/// The decision. `pods` are those that the Job controls, and orphans that it selects.
pub fn reconcile(job: &Arc<Job>, pods: &Pods, failures: &Failures, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = job.spec.as_ref().filter(|_| !is_managed_elsewhere(job) && !is_finished(job)) else { return plan };
    let (mine, claims) =
        ownership::claim_tracked(&**job, spec.selector.as_ref(), pods.iter().cloned(), TRACKING_FINALIZER);
    if !claims.is_empty() {
        // What is adopted or released is counted when it is seen.
        claims.into_iter().for_each(|action| plan.push(action));
        return plan;
    }
    // Times are stored in whole seconds.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Sync::new(job, spec, &mine, failures, now).plan(plan)
}

/// A Job, its pods and what becomes of them.
struct Sync<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: Vec<Arc<Pod>>,
    failures: &'a Failures,
    now: Timestamp,
    uncounted: Uncounted,
    counts: Counts,
    status: JobStatus,
    /// How many pods are active, terminating and ready after the plan's creations and deletions.
    active: i32,
    terminating: i32,
    ready: i32,
}

fn total(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

impl<'a> Sync<'a> {
    fn new(job: &'a Job, spec: &'a JobSpec, mine: &Pods, failures: &'a Failures, now: Timestamp) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let uncounted = Uncounted::of(&status);
        let counts = counts::count(job, spec, mine, &uncounted);
        let (active, terminating, ready) = (total(counts.active.len()), counts.terminating, counts.ready);
        let pods = if is_indexed(spec) { indexes::sorted(mine) } else { mine.to_vec() };
        Self { job, spec, pods, failures, now, uncounted, counts, status, active, terminating, ready }
    }

    fn plan(mut self, mut plan: Plan) -> Plan {
        let resumes = super::condition(self.job, "Suspended").is_some_and(|condition| condition.status == "True");
        if !is_suspended(self.spec) && (resumes || self.status.start_time.is_none()) {
            // The deadline counts from here, also after a suspension.
            self.status.start_time = Some(Time(self.now));
        }
        let mut told = Vec::new();
        let start = self.status.start_time.as_ref().map(|time| time.0);
        let mut end = finish::end(self.job, self.spec, &self.pods, &self.counts, start, self.now);
        let last_failed = self.last_failed();
        if end.is_some() {
            let all = self.counts.active.clone();
            self.delete(&mut plan, &all, false);
        } else {
            if !self.job.is_terminating() {
                self.manage(&mut plan, &last_failed);
            }
            let enough = self.spec.completions.map_or(self.counts.succeeded > 0, |c| self.counts.succeeded >= c);
            if enough && self.active == 0 {
                end = Some(End::completions_reached());
            } else if !self.job.is_terminating() {
                told.extend(self.suspend_or_resume());
            }
            if let Some(at) = finish::deadline(self.spec, self.status.start_time.as_ref().map(|time| time.0)) {
                plan.requeue(Duration::try_from(at.duration_since(self.now)).unwrap_or_default());
            }
        }
        let released = self.track(end.as_ref(), &last_failed);
        if let Some(end) = &end {
            told.extend(self.finish(end, released.is_empty()));
        }
        self.write(&mut plan, told);
        plan.steps.push(Step::All(released.iter().map(pods::release).collect()));
        plan.steps.retain(|step| !matches!(step, Step::All(actions) if actions.is_empty()));
        plan
    }

    /// With a backoff limit per index: the last failed pod of every index that will be tried again.
    fn last_failed(&self) -> BTreeMap<i32, Arc<Pod>> {
        let Some(failed) = &self.counts.failed_indexes else { return Default::default() };
        let active = indexes::of(&self.counts.active);
        let settled = self.counts.succeeded_indexes.union(failed).union(&active);
        let candidates = self.pods.iter().filter(|pod| is_tracked(pod) && has_failed(self.spec, pod));
        indexes::last_failed(candidates, &settled, self.spec.completions.unwrap_or_default())
    }

    /// Deletes active pods. Without `uncount` they keep their finalizer and are counted.
    fn delete(&mut self, plan: &mut Plan, chosen: &Pods, uncount: bool) {
        if chosen.is_empty() {
            return;
        }
        if uncount {
            plan.steps.push(Step::All(chosen.iter().filter(|pod| is_tracked(pod)).map(pods::release).collect()));
        }
        plan.steps.push(Step::All(chosen.iter().map(|pod| pod_control::delete(self.job, pod)).collect()));
        self.active -= total(chosen.len());
        self.terminating += total(chosen.len());
        self.ready -= total(chosen.iter().filter(|pod| is_ready(pod)).count());
    }

    /// Creates or deletes pods so that as many run as should (`manageJob`).
    fn manage(&mut self, plan: &mut Plan, last_failed: &BTreeMap<i32, Arc<Pod>>) {
        let active = self.active;
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let wanted = match self.spec.completions {
            _ if is_suspended(self.spec) => 0,
            // Any success is enough: what runs may finish, nothing new begins.
            None if self.counts.succeeded > 0 => active,
            None => parallelism,
            Some(completions) => (completions - self.counts.succeeded).clamp(0, parallelism.max(0)),
        };
        let surplus = usize::try_from(active - wanted).unwrap_or_default();
        let mut chosen = pods::for_removal(self.spec, &self.counts.active, surplus, self.now);
        chosen.truncate(BURST);
        if !chosen.is_empty() || is_suspended(self.spec) {
            return self.delete(plan, &chosen, true);
        }
        let waiting = if replaces_only_failed(self.spec) { self.terminating } else { 0 };
        let missing = usize::try_from(wanted - waiting - active).unwrap_or_default().min(BURST);
        if missing > 0 {
            self.create(plan, missing, last_failed);
        }
    }

    fn create(&mut self, plan: &mut Plan, missing: usize, last_failed: &BTreeMap<i32, Arc<Pod>>) {
        let per_index = self.spec.backoff_limit_per_index.is_some();
        if !per_index {
            let wait = self.failures.remaining(self.now);
            if !wait.is_zero() {
                return plan.requeue(wait);
            }
        }
        let new = |index: Option<i32>| {
            let replaced = index.and_then(|index| last_failed.get(&index));
            pod_control::create(self.job, &pods::new(self.job, self.spec, index, replaced))
        };
        let created: Vec<Action> = if is_indexed(self.spec) {
            let wait = |index: &i32| {
                let last = last_failed.get(index).filter(|_| per_index);
                last.map_or(Duration::ZERO, |pod| indexes::failures_of(pod).remaining(self.now))
            };
            let pending = self.pending_indexes(missing);
            if let Some(soonest) = pending.iter().map(wait).filter(|wait| !wait.is_zero()).min() {
                plan.requeue(soonest);
            }
            pending.into_iter().filter(|index| wait(index).is_zero()).map(|index| new(Some(index))).collect()
        } else {
            vec![new(None); missing]
        };
        if !created.is_empty() {
            self.active += total(created.len());
            plan.steps.push(Step::SlowStart(created));
        }
    }

    /// The first indexes that neither run nor are settled (`firstPendingIndexes`).
    fn pending_indexes(&self, count: usize) -> Vec<i32> {
        let mut taken = self.counts.succeeded_indexes.union(&indexes::of(&self.counts.active));
        if replaces_only_failed(self.spec) {
            let going = self.pods.iter().filter(|pod| pod.is_terminating() && phase(pod) != "Failed");
            taken = taken.union(&indexes::of(going));
        }
        if let Some(failed) = &self.counts.failed_indexes {
            taken = taken.union(failed);
        }
        taken.missing(count, self.spec.completions.unwrap_or_default())
    }

    /// Keeps the condition `Suspended` in step with the specification.
    fn suspend_or_resume(&mut self) -> Option<Words> {
        let (status, reason, message) = match is_suspended(self.spec) {
            true => ("True", "JobSuspended", "Job suspended"),
            false => ("False", "JobResumed", "Job resumed"),
        };
        let condition = JobCondition {
            type_: "Suspended".into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_probe_time: Some(Time(self.now)),
            last_transition_time: Some(Time(self.now)),
        };
        let conditions = self.status.conditions.get_or_insert_default();
        match conditions.iter_mut().find(|known| known.type_ == "Suspended") {
            Some(known) if known.status == status => return None,
            Some(known) => *known = condition,
            None if is_suspended(self.spec) => conditions.push(condition),
            None => return None,
        }
        if is_suspended(self.spec) {
            return Some((EventType::Normal, "Suspended", message.into()));
        }
        Some((EventType::Normal, "Resumed", message.into()))
    }

    /// Moves counted pods into the counters, names finished ones as uncounted, and returns those whose finalizer can go
    /// once that is written (`trackJobStatusAndRemoveFinalizers`).
    fn track(&mut self, end: Option<&End>, last_failed: &BTreeMap<i32, Arc<Pod>>) -> Vec<Arc<Pod>> {
        let tracked: BTreeSet<&str> = self.pods.iter().filter(|pod| is_tracked(pod)).map(|pod| pod.uid()).collect();
        let mut waiting = self.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let settle = |list: &mut Option<Vec<String>>, counter: &mut Option<i32>| {
            let before = list.as_ref().map_or(0, Vec::len);
            list.get_or_insert_default().retain(|uid| tracked.contains(uid.as_str()));
            let after = list.as_ref().map_or(0, Vec::len);
            *counter = Some(counter.unwrap_or_default() + total(before - after));
        };
        settle(&mut waiting.succeeded, &mut self.status.succeeded);
        settle(&mut waiting.failed, &mut self.status.failed);
        let (mut released, mut new_indexes) = (Vec::new(), Vec::new());
        for pod in self.pods.iter().filter(|pod| is_tracked(pod)) {
            if !self.can_release(pod, end, last_failed) {
                continue;
            }
            released.push(pod.clone());
            self.name_uncounted(pod, end, &mut waiting, &mut new_indexes);
            let named = [&waiting.succeeded, &waiting.failed].map(|list| list.as_ref().map_or(0, Vec::len));
            if new_indexes.len() + named[0] + named[1] >= MOST_UNCOUNTED {
                break;
            }
        }
        if is_indexed(self.spec) {
            let new: IndexIntervals = new_indexes.into_iter().collect();
            let completed = self.counts.counted_indexes.union(&new);
            self.status.succeeded = Some(completed.count());
            self.status.completed_indexes = Some(completed.to_string());
            self.status.failed_indexes = self.counts.failed_indexes.as_ref().map(ToString::to_string);
        }
        let list = |list: Option<Vec<String>>| list.filter(|list| !list.is_empty());
        self.status.uncounted_terminated_pods =
            Some(UncountedTerminatedPods { succeeded: list(waiting.succeeded), failed: list(waiting.failed) });
        released
    }

    fn can_release(&self, pod: &Arc<Pod>, end: Option<&End>, last_failed: &BTreeMap<i32, Arc<Pod>>) -> bool {
        if self.job.is_terminating() || end.is_some() || phase(pod) == "Succeeded" {
            return true;
        }
        let awaits_replacement =
            index_of(pod).and_then(|index| last_failed.get(&index)).is_some_and(|last| last.uid() == pod.uid());
        has_failed(self.spec, pod) && !awaits_replacement
    }

    fn name_uncounted(
        &self,
        pod: &Arc<Pod>,
        end: Option<&End>,
        waiting: &mut UncountedTerminatedPods,
        new_indexes: &mut Vec<i32>,
    ) {
        let (indexed, uid) = (is_indexed(self.spec), pod.uid().to_owned());
        let index = index_of(pod).filter(|index| *index < self.spec.completions.unwrap_or_default());
        let is_named = |list: &Option<Vec<String>>| list.iter().flatten().any(|known| *known == uid);
        if phase(pod) == "Succeeded" && !self.uncounted.failed.contains(&uid) {
            match index.filter(|_| indexed) {
                // The index itself is the record.
                Some(index) if !self.counts.counted_indexes.contains(index) => new_indexes.push(index),
                None if !indexed && !is_named(&waiting.succeeded) => {
                    waiting.succeeded.get_or_insert_default().push(uid);
                }
                _ => {}
            }
        } else if (has_failed(self.spec, pod) || end.is_some_and(|end| !end.success))
            && (!indexed || index.is_some())
            && !is_named(&waiting.failed)
            && is_counted(self.spec.pod_failure_policy.as_ref(), pod)
        {
            waiting.failed.get_or_insert_default().push(uid);
        }
    }

    /// Announces the end, or, when that has been done and nothing is left to wait for, ends the Job (`enactJobFinished`).
    fn finish(&mut self, end: &End, nothing_to_release: bool) -> Vec<Words> {
        let conditions = self.status.conditions.get_or_insert_default();
        if !end.announced {
            conditions.push(end.announcement(self.now));
            return Vec::new();
        }
        let waiting = self.status.uncounted_terminated_pods.clone().unwrap_or_default();
        if !nothing_to_release || waiting != UncountedTerminatedPods::default() || self.terminating > 0 {
            return Vec::new();
        }
        conditions.push(end.last(self.now));
        if !end.success {
            return vec![(EventType::Warning, end.known_reason(), end.message.clone())];
        }
        self.status.completion_time = Some(Time(self.now));
        let mut told = Vec::new();
        if self.spec.completions.is_some_and(|completions| self.status.succeeded > Some(completions)) {
            let message = "Too many succeeded pods running after completion count reached";
            told.push((EventType::Warning, "TooManySucceededPods", message.into()));
        }
        told.push((EventType::Normal, "Completed", "Job completed".into()));
        told
    }

    /// Writes the status if it is another one, and tells what it means.
    fn write(&mut self, plan: &mut Plan, told: Vec<Words>) {
        let some = |count: i32| Some(count).filter(|count| *count != 0);
        let status = JobStatus {
            active: some(self.active),
            terminating: Some(self.terminating),
            ready: Some(self.ready),
            succeeded: self.status.succeeded.and_then(some),
            failed: self.status.failed.and_then(some),
            completed_indexes: self.status.completed_indexes.clone().filter(|text| !text.is_empty()),
            conditions: self.status.conditions.clone().filter(|conditions| !conditions.is_empty()),
            ..self.status.clone()
        };
        if self.job.status.as_ref() == Some(&status) {
            return;
        }
        plan.push(Action::update_status(&Job { status: Some(status.clone()), ..self.job.clone() }));
        for (type_, reason, message) in told {
            plan.push(Action::event(reference(self.job), type_, reason, message));
        }
        // Pods that could not be made are not active, but the rest of the status is true.
        let (job, active, ready) = (self.job.clone(), some(total(self.counts.active.len())), self.counts.ready);
        let creates = plan.steps.iter().any(|step| matches!(step, Step::SlowStart(_)));
        plan.on_failure = creates.then(|| -> Box<dyn FnOnce(&crate::api::Status) -> Vec<Action> + Send> {
            Box::new(move |error| {
                let status = JobStatus { active, ready: Some(ready), ..status };
                if error.is_conflict() || job.status.as_ref() == Some(&status) {
                    return Vec::new();
                }
                vec![Action::update_status(&Job { status: Some(status), ..job })]
            })
        });
    }
}
