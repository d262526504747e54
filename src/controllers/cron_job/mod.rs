//! CronJobs: makes a Job at each time of a schedule (`pkg/controller/cronjob`).

mod missed;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::caches::Caches;
use super::job::final_condition;
use super::ownership::controller_reference;
use super::plan::{Action, Plan, Words, Write};
use super::{Controller, Enqueue};
use crate::api::cron::{Schedule, time_zone};
use crate::client::DeleteOptions;
use crate::client::cache::Key;
use crate::client::recorder::{EventType, reference};
use crate::client::typed::{Meta, gvr};
use missed::{Missed, most_recent, wait};

/// When a Job was due, in its CronJob's time zone.
const SCHEDULED_ANNOTATION: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// The controller.
#[derive(Default)]
pub struct CronJobController {
    /// CronJobs whose schedule changed, with the revision of the change: it does not reach back.
    rescheduled: Arc<Mutex<HashMap<Key, u64>>>,
}

const UNPOISONED: &str = "no panic while the changes are held";

impl Controller for CronJobController {
    fn name(&self) -> &'static str {
        "cronjob"
    }
    fn account(&self) -> &'static str {
        "cronjob-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let (rescheduled, add) = (self.rescheduled.clone(), enqueue.clone());
        caches.cron_jobs.subscribe(move |change| {
            let key = Key::of(&**change.object());
            let times =
                |cron_job: &CronJob| cron_job.spec.as_ref().map(|spec| (spec.schedule.clone(), spec.time_zone.clone()));
            let mut rescheduled = rescheduled.lock().expect(UNPOISONED);
            match (&change.old, &change.new) {
                (Some(old), Some(new)) if times(old) != times(new) => {
                    rescheduled.insert(key.clone(), new.revision());
                }
                _ => drop(rescheduled.remove(&key)),
            }
            add.add(key);
        });
        let add = enqueue.clone();
        caches.jobs.subscribe(move |change| {
            for job in change.old.iter().chain(&change.new) {
                if let Some(owner) = job.controller().filter(|owner| owner.kind == "CronJob") {
                    add.add(Key::new(job.namespace(), &*owner.name));
                }
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let Some(cron_job) = caches.cron_jobs.get(key) else { return Plan::default() };
        let jobs = caches.jobs.owned_by(cron_job.uid());
        let jobs = jobs.into_iter().filter(|job| job.controller().is_some_and(|owner| owner.uid == cron_job.uid()));
        let taken = |name: &str| caches.jobs.get(&Key::new(&*key.namespace, name));
        let changed = self.rescheduled.lock().expect(UNPOISONED).get(key) == Some(&cron_job.revision());
        Sync::new(&cron_job, jobs.collect(), &taken, changed, now).plan()
    }
}

struct Sync<'a> {
    cron_job: &'a CronJob,
    jobs: Vec<Arc<Job>>,
    /// The Job with a name, whosoever it is.
    taken: &'a dyn Fn(&str) -> Option<Arc<Job>>,
    /// Whether the schedule has just been changed.
    rescheduled: bool,
    now: Timestamp,
    status: CronJobStatus,
    told: Vec<Words>,
    plan: Plan,
}

fn end_of(job: &Job) -> Option<&str> {
    final_condition(job).map(|condition| condition.type_.as_str())
}

impl<'a> Sync<'a> {
    fn new(
        cron_job: &'a CronJob,
        jobs: Vec<Arc<Job>>,
        taken: &'a dyn Fn(&str) -> Option<Arc<Job>>,
        rescheduled: bool,
        now: Timestamp,
    ) -> Self {
        let status = cron_job.status.clone().unwrap_or_default();
        Self { cron_job, jobs, taken, rescheduled, now, status, told: Vec::new(), plan: Plan::default() }
    }

    fn tell(&mut self, type_: EventType, reason: &'static str, message: String) {
        self.told.push((type_, reason, message));
    }

    fn plan(mut self) -> Plan {
        self.look_at_jobs();
        if !self.cron_job.is_terminating()
            && let Some(spec) = &self.cron_job.spec
        {
            self.start_what_is_due(spec);
            self.delete_old(spec.successful_jobs_history_limit, "Complete");
            self.delete_old(spec.failed_jobs_history_limit, "Failed");
        }
        self.status.active = self.status.active.take().filter(|active| !active.is_empty());
        let before = self.cron_job.status.clone().unwrap_or_default();
        let before = CronJobStatus { active: before.active.filter(|active| !active.is_empty()), ..before };
        if self.status != before {
            let updated = CronJob { status: Some(self.status), ..self.cron_job.clone() };
            self.plan.push(Action::update_status(&updated));
        }
        for (type_, reason, message) in self.told {
            self.plan.push(Action::event(reference(self.cron_job), type_, reason, message));
        }
        self.plan
    }

    /// Brings the list of active Jobs and the time of the last success up to date.
    fn look_at_jobs(&mut self) {
        let mut active = self.status.active.take().unwrap_or_default();
        for job in self.jobs.clone() {
            let listed = active.iter().position(|known| known.uid.as_deref() == Some(job.uid()));
            match (listed, end_of(&job)) {
                (None, None) if self.is_own(&job) => active.push(reference(&*job)),
                (None, None) => {
                    let message = format!("Saw a job that the controller did not create or forgot: {}", job.name());
                    self.tell(EventType::Warning, "UnexpectedJob", message);
                }
                (Some(position), Some(end)) => {
                    active.remove(position);
                    let message = format!("Saw completed job: {}, status: {end}", job.name());
                    self.tell(EventType::Normal, "SawCompletedJob", message);
                    self.note_success(&job);
                }
                (None, Some(_)) => self.note_success(&job),
                (Some(_), None) => {}
            }
        }
        for gone in active.extract_if(.., |known| !self.jobs.iter().any(|job| known.uid.as_deref() == Some(job.uid())))
        {
            let (name, uid) = (gone.name.unwrap_or_default(), gone.uid.unwrap_or_default());
            // The list of Jobs may be older than the status.
            let key = Key::new(self.cron_job.namespace(), &*name);
            self.plan.push(Action::write(Write::ExpectAbsent { gvr: gvr::<Job>(), key, uid }));
            self.told.push((EventType::Normal, "MissingJob", format!("Active job went missing: {name}")));
        }
        self.status.active = Some(active);
    }

    /// Whether this is the Job of the last schedule time, which the status does not list yet.
    fn is_own(&self, job: &Job) -> bool {
        let last = self.cron_job.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
        let of_last = last.is_some_and(|last| job.name() == job_name(self.cron_job, last.0));
        // Or it was made before a status could be written.
        of_last || job.annotation(SCHEDULED_ANNOTATION).is_some()
    }

    fn note_success(&mut self, job: &Job) {
        let time = job.status.as_ref().and_then(|status| status.completion_time.clone());
        if end_of(job) == Some("Complete")
            && let Some(time) = time
            && self.status.last_successful_time.as_ref().is_none_or(|known| known.0 < time.0)
        {
            self.status.last_successful_time = Some(time);
        }
    }

    fn start_what_is_due(&mut self, spec: &CronJobSpec) {
        let zone = match spec.time_zone.as_deref().map(time_zone).transpose() {
            Ok(zone) => zone.unwrap_or(TimeZone::UTC),
            Err(why) => {
                let name = spec.time_zone.as_deref().unwrap_or_default();
                return self.tell(EventType::Warning, "UnknownTimeZone", format!("invalid timeZone: {name:?}: {why}"));
            }
        };
        if spec.suspend == Some(true) {
            return;
        }
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(why) => {
                let message = format!("unparseable schedule: {:?} : {why}", spec.schedule);
                return self.tell(EventType::Warning, "UnparseableSchedule", message);
            }
        };
        let due = match most_recent(self.cron_job, self.now, &schedule, &zone, true) {
            Ok(found) => found,
            Err(why) => {
                let message = format!("invalid schedule: {} : {why}", spec.schedule);
                return self.tell(EventType::Warning, "InvalidSchedule", message);
            }
        };
        if let Some(delay) = wait(self.cron_job, self.now, &schedule, &zone) {
            self.plan.requeue(delay);
        }
        if let Some(at) = due.time.filter(|_| !self.rescheduled) {
            self.start(spec, at, &zone, due.missed);
        }
    }

    fn start(&mut self, spec: &CronJobSpec, at: Timestamp, zone: &TimeZone, missed: Missed) {
        let late = spec.starting_deadline_seconds.is_some_and(|seconds| {
            at.saturating_add(SignedDuration::from_secs(seconds)).is_ok_and(|until| until < self.now)
        });
        if late {
            let at = at.to_zoned(TimeZone::UTC).strftime("%a, %d %b %Y %H:%M:%S +0000").to_string();
            return self.tell(
                EventType::Warning,
                "MissSchedule",
                format!("Missed scheduled time to start a job: {at}"),
            );
        }
        let name = job_name(self.cron_job, at);
        let active = self.status.active.clone().unwrap_or_default();
        if active.iter().any(|job| job.name.as_deref() == Some(&*name))
            || self.status.last_schedule_time.as_ref().is_some_and(|last| last.0 == at)
        {
            return;
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                return self.tell(EventType::Normal, "JobAlreadyActive", message.into());
            }
            Some("Replace") => active.iter().for_each(|job| self.delete(job)),
            _ => {}
        }
        match (self.taken)(&name) {
            // It was made, but the status could not be written.
            Some(job) if job.controller().is_some_and(|owner| owner.uid == self.cron_job.uid()) => {}
            Some(_) => return,
            None => {
                if missed == Missed::Many {
                    let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check \
                        clock skew";
                    self.tell(EventType::Warning, "TooManyMissedTimes", message.into());
                }
                self.plan.push(create(self.cron_job, spec, name, at, zone));
            }
        }
        // The list of active Jobs gets it when it is seen with its uid.
        self.status.last_schedule_time = Some(Time(at));
    }

    fn delete(&mut self, job: &ObjectReference) {
        let name = job.name.clone().unwrap_or_default();
        let options =
            DeleteOptions { uid: job.uid.clone(), propagation_policy: Some("Background"), ..Default::default() };
        let delete = Action::delete_with::<Job>(Key::new(self.cron_job.namespace(), &*name), options);
        self.plan.push(delete.tell(
            reference(self.cron_job),
            Some((EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}"))),
            Some((EventType::Warning, "FailedDelete", "Deleted job: {error}".into())),
        ));
        self.status.active.get_or_insert_default().retain(|known| known.uid != job.uid);
    }

    /// Deletes the oldest Jobs with this end beyond the limit.
    fn delete_old(&mut self, limit: Option<i32>, end: &str) {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { return };
        let mut ended: Vec<_> =
            self.jobs.iter().filter(|job| end_of(job) == Some(end) && !job.is_terminating()).cloned().collect();
        let start = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
        ended.sort_by_key(|job| (start(job).unwrap_or(Timestamp::MAX), job.name().to_owned()));
        for job in ended.iter().take(ended.len().saturating_sub(limit)) {
            self.delete(&reference(&**job));
        }
    }
}

/// The name of the Job of a time: the same for whoever makes it, so that it is made once.
fn job_name(cron_job: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron_job.name(), at.as_second().div_euclid(60))
}

fn create(cron_job: &CronJob, spec: &CronJobSpec, name: String, at: Timestamp, zone: &TimeZone) -> Action {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    let due = at.to_zoned(zone.clone());
    let due =
        if due.offset().is_zero() { due.strftime("%Y-%m-%dT%H:%M:%SZ") } else { due.strftime("%Y-%m-%dT%H:%M:%S%:z") };
    annotations.insert(SCHEDULED_ANNOTATION.into(), due.to_string());
    let job = Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cron_job.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron_job)]),
            ..Default::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    };
    Action::create(&job).tell(
        reference(cron_job),
        Some((EventType::Normal, "SuccessfulCreate", "Created job {name}".into())),
        Some((EventType::Warning, "FailedCreate", "Error creating job: {error}".into())),
    )
}

/// A delay that a queue can take.
fn positive(delay: SignedDuration) -> Duration {
    Duration::try_from(delay).unwrap_or_default()
}
