//! Jobs and a CronJob: pods that come to an end, are counted once, and leave nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use mini::api::{Gvr, StatusResult, meta};
use mini::client::fake::{Admission, FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::job::TRACKING_FINALIZER;
use mini::controllers::{self, Controller};
use mini::env::rfc3339;

use crate::invariants::{is_finished, owner};
use crate::node::ended;
use crate::story::{KindRow, Story};
use crate::world::{NAMESPACE, World, now};

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Exit codes that the failure policies of this story know.
const FAILS_JOB: i64 = 42;
const IGNORED: i64 = 3;
const FAILS_INDEX: i64 = 5;

/// The story, and the truth as the API's history tells it.
#[derive(Default)]
pub struct Batch {
    made: usize,
    time: Timestamp,
    jobs: BTreeMap<String, Arc<Value>>,
    pods: BTreeMap<String, Arc<Value>>,
    crons: BTreeMap<String, Arc<Value>>,
    /// The largest parallelism of each Job (by uid) so far.
    widest: BTreeMap<String, i64>,
    /// Jobs that were suspended or narrowed once: pods that they gave up are not counted.
    narrowed: BTreeSet<String>,
    /// Pods that a Job's status has named as uncounted.
    named: BTreeMap<String, BTreeSet<String>>,
    /// Jobs that a user deleted.
    deleted_by_user: BTreeSet<String>,
}

impl Story for Batch {
    fn kinds(&self) -> Vec<KindRow> {
        vec![
            (gvr::<Pod>(), "Pod", true),
            (gvr::<Job>(), "Job", true),
            (gvr::<CronJob>(), "CronJob", true),
            (gvr::<Node>(), "Node", false),
        ]
    }

    fn controllers(&mut self, _world: &World) -> Vec<Arc<dyn Controller>> {
        vec![
            Arc::new(controllers::job::JobController::default()),
            Arc::new(controllers::job::OrphanController),
            Arc::new(controllers::cron_job::CronJobController::default()),
            Arc::new(controllers::ttl_after_finished::TtlAfterFinishedController),
            // Pods that are deleted before they have a node are nobody else's.
            Arc::new(controllers::pod_gc::PodGcController),
            Arc::new(controllers::garbage_collector::GarbageCollector),
        ]
    }

    fn admission(&self) -> Option<Admission> {
        Some(Arc::new(select_own_pods))
    }

    fn stride(&self) -> SignedDuration {
        SignedDuration::from_secs(20)
    }

    fn begin(&mut self, world: &World) {
        self.time = world.env.now();
        self.create_job(world);
        if world.chance(60) {
            create_cron_job(world);
        }
    }

    fn user_acts(&mut self, world: &World) {
        let (jobs, crons) = (world.api.all(&gvr::<Job>()), world.api.all(&gvr::<CronJob>()));
        match world.env.below(100) {
            0..25 if jobs.len() < 4 => self.create_job(world),
            25..65 if !jobs.is_empty() => self.change_job(world, &jobs[world.pick(jobs.len())]),
            65..85 => drop(world.delete_some_pod()),
            _ => match crons.first() {
                None if world.chance(50) => create_cron_job(world),
                Some(cron) if world.chance(80) => {
                    let spec = json!({"suspend": cron["spec"]["suspend"] != true});
                    patch(world, &gvr::<CronJob>(), cron, spec);
                }
                Some(cron) => delete(world, &gvr::<CronJob>(), cron),
                None => {}
            },
        }
    }

    fn ends(&mut self, world: &World, _pod: &Value) -> Option<Value> {
        if !world.is_settling() && !world.chance(15) {
            return None;
        }
        let time = rfc3339(world.env.now());
        if world.chance(if world.is_settling() { 80 } else { 50 }) {
            return Some(ended("Succeeded", 0, &time));
        }
        let code = [1, 1, IGNORED, FAILS_INDEX, FAILS_JOB][world.pick(5)];
        Some(ended("Failed", code, &time))
    }

    fn time_passed(&mut self, world: &World) {
        self.time = world.env.now();
    }

    fn settles(&mut self, world: &World) {
        for cron in world.api.all(&gvr::<CronJob>()) {
            patch(world, &gvr::<CronJob>(), &cron, json!({"suspend": true}));
        }
    }

    fn see(&mut self, change: &Logged) {
        let (object, uid) = (&change.object, meta::uid(&change.object).to_owned());
        match &*change.gvr.resource {
            "pods" => self.see_pod(change),
            "jobs" => self.see_job(change),
            "cronjobs" if change.deleted => drop(self.crons.remove(&uid)),
            "cronjobs" => drop(self.crons.insert(uid, object.clone())),
            _ => {}
        }
    }

    fn at_rest(&mut self, api: &FakeApi) {
        for pod in api.all(&gvr::<Pod>()) {
            // The last failure of an index waits until its replacement, which takes its count over, is made.
            let job = owner(&pod).and_then(|uid| self.jobs.get(uid));
            let waits = job.is_some_and(|job| !is_over(job) && !job["spec"]["backoffLimitPerIndex"].is_null());
            assert!(waits || !is_tracked(&pod), "{} keeps its finalizer: {pod}", meta::name(&pod));
            assert!(waits || !meta::is_terminating(&pod), "{} does not go", meta::name(&pod));
            let lost = owner(&pod).filter(|owner| !self.jobs.contains_key(*owner));
            assert!(lost.is_none(), "{} outlives its Job", meta::name(&pod));
        }
        for job in api.all(&gvr::<Job>()) {
            self.check_rest(&job);
        }
        for cron in api.all(&gvr::<CronJob>()) {
            let children = self.jobs.values().filter(|job| owner(job) == Some(meta::uid(&cron)));
            let ended = |type_: &str| children.clone().filter(|job| has(job, type_)).count();
            for (field, type_) in [("successfulJobsHistoryLimit", "Complete"), ("failedJobsHistoryLimit", "Failed")] {
                let limit = cron["spec"][field].as_u64().expect("it is set");
                assert!(ended(type_) as u64 <= limit, "{} Jobs are {type_}, {limit} are kept", ended(type_));
            }
            let active = cron["status"]["active"].as_array().map_or(0, Vec::len);
            assert_eq!(active, children.clone().filter(|job| !is_over(job)).count(), "{cron}");
        }
    }
}

impl Batch {
    fn create_job(&mut self, world: &World) {
        self.made += 1;
        let job = json!({"apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": format!("job-{}", self.made), "namespace": NAMESPACE}, "spec": job_spec(world)});
        world.say(|| format!("user creates {job}"));
        now(world.api.create(&gvr::<Job>(), NAMESPACE, "", "", job)).expect("created");
    }

    fn change_job(&mut self, world: &World, job: &Value) {
        match world.env.below(10) {
            0..4 => patch(world, &gvr::<Job>(), job, json!({"suspend": job["spec"]["suspend"] != true})),
            4..7 => patch(world, &gvr::<Job>(), job, json!({"parallelism": world.env.below(4)})),
            _ => {
                self.deleted_by_user.insert(meta::uid(job).to_owned());
                delete(world, &gvr::<Job>(), job);
            }
        }
    }

    fn see_pod(&mut self, change: &Logged) {
        let (pod, uid) = (&change.object, meta::uid(&change.object).to_owned());
        if change.old.as_ref().is_some_and(|old| is_tracked(old)) && (change.deleted || !is_tracked(pod)) {
            self.check_release(pod);
        }
        if change.deleted {
            self.pods.remove(&uid);
            return;
        }
        self.pods.insert(uid, pod.clone());
        if change.old.is_none() && owner(pod).is_some() {
            self.check_pods(pod);
        }
    }

    fn pods_of<'a>(&'a self, job: &'a str) -> impl Iterator<Item = &'a Arc<Value>> {
        self.pods.values().filter(move |pod| owner(pod) == Some(job))
    }

    /// A new pod: never more than `parallelism` at work, and never two for one index.
    fn check_pods(&self, new: &Value) {
        let uid = owner(new).expect("it was looked for");
        // Its Job may be gone without the controller's knowing: then it goes as well.
        let Some(job) = self.jobs.get(uid) else { return };
        assert!(!is_over(job) && !is_ending(job), "{} is made for a Job that is over", meta::name(new));
        let waits = replaces_only_failed(job);
        let at_work = |pod: &&Arc<Value>| !is_finished(pod) && (waits || !meta::is_terminating(pod));
        let count = self.pods_of(uid).filter(at_work).count();
        let most = self.widest[uid];
        assert!(i64::try_from(count).expect("few") <= most, "{count} pods of {}, {most} at most", meta::name(job));
        if let Some(index) = index(new) {
            let same = self.pods_of(uid).filter(at_work).filter(|pod| self::index(pod) == Some(index)).count();
            assert_eq!(same, 1, "pods of index {index} of {}", meta::name(job));
            let done = intervals(&job["status"]["completedIndexes"]);
            assert!(!done.contains(&index), "index {index} has succeeded already");
            let failed = intervals(&job["status"]["failedIndexes"]);
            assert!(!failed.contains(&index), "index {index} has failed for good");
        }
    }

    /// A finished pod loses its finalizer only when the Job's status has counted it, or names it.
    fn check_release(&self, pod: &Value) {
        let Some(job) = owner(pod).and_then(|uid| self.jobs.get(uid)) else { return };
        let settled = is_ending(job) || is_over(job) || meta::is_terminating(job);
        if settled || self.narrowed.contains(meta::uid(job)) || pod["status"]["phase"] != "Succeeded" {
            return;
        }
        let counted = match index(pod) {
            Some(index) => intervals(&job["status"]["completedIndexes"]).contains(&index),
            None => self.named.get(meta::uid(job)).is_some_and(|named| named.contains(meta::uid(pod))),
        };
        assert!(counted, "{} succeeded, and {} does not count it", meta::name(pod), meta::name(job));
    }

    fn see_job(&mut self, change: &Logged) {
        let (job, uid) = (&change.object, meta::uid(&change.object).to_owned());
        if change.deleted {
            self.jobs.remove(&uid);
            return;
        }
        let width = |job: &Value| if job["spec"]["suspend"] == true { 0 } else { parallelism(job) };
        let widest = self.widest.entry(uid.clone()).or_default();
        *widest = width(job).max(*widest);
        if change.old.as_ref().is_some_and(|old| width(old) > width(job)) {
            self.narrowed.insert(uid.clone());
        }
        match &change.old {
            None => self.check_start(job),
            Some(old) => {
                self.check_counting(old, job);
                check_course(old, job);
                if !is_over(old) && is_over(job) {
                    self.check_end(job);
                }
                if meta::is_terminating(job) && !meta::is_terminating(old) {
                    self.check_ttl(job);
                }
            }
        }
        self.jobs.insert(uid, job.clone());
    }

    /// A CronJob's Job: one for each time, within the deadline, and as the concurrency policy allows.
    fn check_start(&self, job: &Value) {
        let Some(at) = job["metadata"]["annotations"][SCHEDULED].as_str() else { return };
        let at: Timestamp = at.parse().expect("a time");
        let Some(cron) = owner(job).and_then(|uid| self.crons.get(uid)) else { return };
        let time = |value: &Value| value.as_str().map(|text| text.parse::<Timestamp>().expect("a time"));
        let last = time(&cron["status"]["lastScheduleTime"]);
        assert!(last.is_none_or(|last| last < at), "a second Job for {at}: {cron}");
        assert!(time(&cron["metadata"]["creationTimestamp"]) < Some(at), "{at} was before the CronJob");
        assert!(at <= self.time, "{at} is still to come");
        if let Some(deadline) = cron["spec"]["startingDeadlineSeconds"].as_i64() {
            assert!(self.time.duration_since(at) <= SignedDuration::from_secs(deadline), "too late for {at}");
        }
        let children = self.jobs.values().filter(|other| owner(other) == owner(job) && !is_over(other));
        let others: Vec<_> = match cron["spec"]["concurrencyPolicy"].as_str() {
            Some("Forbid") => children.collect(),
            Some("Replace") => children.filter(|other| !meta::is_terminating(other)).collect(),
            _ => Vec::new(),
        };
        assert!(others.is_empty(), "{} begins beside {others:?}", meta::name(job));
    }

    /// What leaves the list of uncounted pods is counted, once.
    fn check_counting(&mut self, old: &Value, job: &Value) {
        let named = self.named.entry(meta::uid(job).to_owned()).or_default();
        for (counter, by_index) in [("succeeded", is_indexed(job)), ("failed", false)] {
            let list = |job: &Value| -> BTreeSet<String> {
                let uids = job["status"]["uncountedTerminatedPods"][counter].as_array();
                uids.into_iter().flatten().map(|uid| uid.as_str().expect("a uid").to_owned()).collect()
            };
            let (before, after) = (list(old), list(job));
            for new in after.difference(&before) {
                assert!(named.insert(new.clone()), "{new} is counted twice");
            }
            let count = |job: &Value| job["status"][counter].as_u64().unwrap_or_default();
            let moved = before.difference(&after).count() as u64;
            if by_index {
                let done = intervals(&job["status"]["completedIndexes"]).len() as u64;
                assert_eq!(count(job), done, "{job}");
            } else {
                assert_eq!(count(job) - count(old), moved, "{counter} of {job}");
            }
        }
    }

    /// The end of a Job: nothing of it is at work any more, and it is as its specification says.
    fn check_end(&self, job: &Value) {
        let left: Vec<_> = self.pods_of(meta::uid(job)).filter(|pod| !is_finished(pod)).collect();
        assert!(left.is_empty(), "{} ends before its pods: {left:?}", meta::name(job));
        let (spec, status) = (&job["spec"], &job["status"]);
        let number = |value: &Value| value.as_i64().unwrap_or_default();
        match reason(job) {
            "CompletionsReached" => {
                let wanted = spec["completions"].as_i64().unwrap_or(1);
                assert!(number(&status["succeeded"]) >= wanted, "{job}");
            }
            "SuccessPolicy" => {
                let done = intervals(&status["completedIndexes"]);
                let rule = &spec["successPolicy"]["rules"][0];
                let enough = match rule["succeededCount"].as_u64() {
                    Some(count) => done.len() as u64 >= count,
                    None => intervals(&rule["succeededIndexes"]).is_subset(&done),
                };
                assert!(enough, "{job}");
            }
            "BackoffLimitExceeded" => assert!(number(&status["failed"]) > number(&spec["backoffLimit"]), "{job}"),
            "DeadlineExceeded" => {
                let start: Timestamp = status["startTime"].as_str().expect("it began").parse().expect("a time");
                let limit = SignedDuration::from_secs(number(&spec["activeDeadlineSeconds"]));
                assert!(self.time.duration_since(start) >= limit, "{job}");
            }
            "PodFailurePolicy" => assert!(!spec["podFailurePolicy"].is_null(), "{job}"),
            "MaxFailedIndexesExceeded" => {
                let failed = intervals(&status["failedIndexes"]).len();
                assert!(i64::try_from(failed).expect("few") > number(&spec["maxFailedIndexes"]), "{job}");
            }
            "FailedIndexes" => {
                let (done, failed) = (intervals(&status["completedIndexes"]), intervals(&status["failedIndexes"]));
                assert!(!failed.is_empty() && done.is_disjoint(&failed), "{job}");
                assert_eq!((done.len() + failed.len()) as i64, number(&spec["completions"]), "{job}");
            }
            other => panic!("{} ends with the reason {other}", meta::name(job)),
        }
    }

    /// A Job of its own that nobody deletes goes when its time after its end is over.
    fn check_ttl(&self, job: &Value) {
        if owner(job).is_some() || self.deleted_by_user.contains(meta::uid(job)) {
            return;
        }
        let seconds = job["spec"]["ttlSecondsAfterFinished"].as_i64().expect("only then it is deleted");
        let end: Timestamp = final_condition(job).expect("it is over")["lastTransitionTime"]
            .as_str()
            .and_then(|time| time.parse().ok())
            .expect("a time");
        assert!(self.time >= end + SignedDuration::from_secs(seconds), "{} goes too early", meta::name(job));
    }

    fn check_rest(&self, job: &Value) {
        let pods: Vec<_> = self.pods_of(meta::uid(job)).collect();
        let waiting = job["status"]["uncountedTerminatedPods"].as_object();
        assert!(waiting.is_none_or(|lists| lists.is_empty()), "{job}");
        assert!(pods.iter().all(|pod| is_finished(pod)), "{} has pods at work: {pods:?}", meta::name(job));
        assert!(job["status"]["active"].is_null(), "{job}");
        if is_over(job) {
            let is_own = owner(job).is_none();
            assert!(!is_own || job["spec"]["ttlSecondsAfterFinished"].is_null(), "{} stays", meta::name(job));
            return;
        }
        let may_wait = job["spec"]["suspend"] == true || parallelism(job) == 0;
        assert!(may_wait, "{} is not over: {job}", meta::name(job));
    }
}

/// Once a Job is over it stays so, and no index is forgotten.
fn check_course(old: &Value, job: &Value) {
    for type_ in ["Complete", "Failed", "SuccessCriteriaMet", "FailureTarget"] {
        assert!(!has(old, type_) || has(job, type_), "{} is not {type_} any more", meta::name(job));
    }
    assert!(!(has(job, "Complete") && has(job, "Failed")), "{job}");
    for field in ["completedIndexes", "failedIndexes"] {
        let (before, after) = (intervals(&old["status"][field]), intervals(&job["status"][field]));
        assert!(before.is_subset(&after), "{field} were {before:?}, are {after:?}");
    }
}

/// What the server gives to a new Job: a selector of its own (`generateSelector`).
fn select_own_pods(_: &FakeApi, gvr: &Gvr, object: &mut Value) -> StatusResult<()> {
    if &*gvr.resource == "jobs" {
        let uid = object["metadata"]["uid"].clone();
        object["spec"]["selector"] = json!({"matchLabels": {UID_LABEL: uid}});
        object["spec"]["template"]["metadata"]["labels"][UID_LABEL] = uid;
    }
    Ok(())
}

fn job_spec(world: &World) -> Value {
    let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}});
    let template = json!({"metadata": {}, "spec": {"restartPolicy": "Never", "containers": [container]}});
    let mut spec =
        json!({"parallelism": 1 + world.env.below(3), "backoffLimit": world.env.below(4), "template": template});
    let is_indexed = world.chance(50);
    spec["completionMode"] = if is_indexed { "Indexed" } else { "NonIndexed" }.into();
    if is_indexed || world.chance(70) {
        spec["completions"] = (1 + world.env.below(4)).into();
    }
    if is_indexed && world.chance(40) {
        spec["backoffLimitPerIndex"] = world.env.below(2).into();
        spec["backoffLimit"] = i32::MAX.into();
        if world.chance(50) {
            spec["maxFailedIndexes"] = world.env.below(3).into();
        }
    }
    if is_indexed && world.chance(30) {
        let rule = if world.chance(50) { json!({"succeededCount": 1}) } else { json!({"succeededIndexes": "0"}) };
        spec["successPolicy"] = json!({"rules": [rule]});
    }
    if world.chance(40) {
        let code =
            |action: &str, code: i64| json!({"action": action, "onExitCodes": {"operator": "In", "values": [code]}});
        let mut rules = vec![code("FailJob", FAILS_JOB), code("Ignore", IGNORED)];
        if !spec["backoffLimitPerIndex"].is_null() {
            rules.push(code("FailIndex", FAILS_INDEX));
        }
        spec["podFailurePolicy"] = json!({"rules": rules});
        spec["podReplacementPolicy"] = "Failed".into();
    } else {
        spec["podReplacementPolicy"] = if world.chance(50) { "Failed" } else { "TerminatingOrFailed" }.into();
    }
    if world.chance(15) {
        spec["suspend"] = true.into();
    }
    if world.chance(20) {
        spec["activeDeadlineSeconds"] = (20 + world.env.below(60)).into();
    }
    if world.chance(30) {
        spec["ttlSecondsAfterFinished"] = world.env.below(30).into();
    }
    spec
}

fn create_cron_job(world: &World) {
    let policy = ["Allow", "Forbid", "Replace"][world.pick(3)];
    let mut job = job_spec(world);
    job["suspend"] = Value::Null;
    let mut spec = json!({"schedule": "* * * * *", "concurrencyPolicy": policy, "jobTemplate": {"spec": job},
        "successfulJobsHistoryLimit": world.env.below(3), "failedJobsHistoryLimit": world.env.below(2)});
    if world.chance(30) {
        spec["startingDeadlineSeconds"] = (10 + world.env.below(200)).into();
    }
    let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "cron", "namespace": NAMESPACE}, "spec": spec});
    world.say(|| format!("user creates {cron}"));
    now(world.api.create(&gvr::<CronJob>(), NAMESPACE, "", "", cron)).expect("created");
}

fn patch(world: &World, gvr: &Gvr, object: &Value, spec: Value) {
    world.say(|| format!("user changes {}: {spec}", meta::name(object)));
    let patch = Patch::Merge(json!({"spec": spec}));
    now(world.api.patch(gvr, NAMESPACE, meta::name(object), "", patch)).expect("it is there");
}

fn delete(world: &World, gvr: &Gvr, object: &Value) {
    let policy = ["Background", "Foreground", "Orphan"][world.pick(3)];
    world.say(|| format!("user deletes {}: {policy}", meta::name(object)));
    let options = DeleteOptions { propagation_policy: Some(policy), ..Default::default() };
    now(world.api.delete(gvr, NAMESPACE, meta::name(object), &options)).expect("it is there");
}

fn parallelism(job: &Value) -> i64 {
    job["spec"]["parallelism"].as_i64().unwrap_or(1)
}

fn is_indexed(job: &Value) -> bool {
    job["spec"]["completionMode"] == "Indexed"
}

fn replaces_only_failed(job: &Value) -> bool {
    job["spec"]["podReplacementPolicy"] == "Failed"
}

fn is_tracked(pod: &Value) -> bool {
    meta::finalizers(pod).any(|finalizer| finalizer == TRACKING_FINALIZER)
}

fn index(pod: &Value) -> Option<u64> {
    pod["metadata"]["annotations"][INDEX].as_str()?.parse().ok()
}

fn condition<'a>(job: &'a Value, type_: &str) -> Option<&'a Value> {
    let mut conditions = job["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == type_ && condition["status"] == "True")
}

fn has(job: &Value, type_: &str) -> bool {
    condition(job, type_).is_some()
}

fn final_condition(job: &Value) -> Option<&Value> {
    condition(job, "Complete").or_else(|| condition(job, "Failed"))
}

fn is_over(job: &Value) -> bool {
    final_condition(job).is_some()
}

fn is_ending(job: &Value) -> bool {
    has(job, "SuccessCriteriaMet") || has(job, "FailureTarget")
}

fn reason(job: &Value) -> &str {
    final_condition(job).and_then(|condition| condition["reason"].as_str()).unwrap_or_default()
}

/// `0-2,5`.
fn intervals(text: &Value) -> BTreeSet<u64> {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let parts = text.as_str().unwrap_or_default().split(',').filter(|part| !part.is_empty());
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        number(from)..=number(to)
    };
    parts.flat_map(range).collect()
}
