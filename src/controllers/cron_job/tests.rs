//! Reconciles of CronJobs.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::{Value, json};

use super::CronJobController;
use crate::client::cache::Key;
use crate::client::{Object, typed::Meta};
use crate::controllers::caches::Caches;
use crate::controllers::plan::{Plan, Write};
use crate::controllers::{Controller, Enqueue};

fn cron_job(spec: Value, status: Value) -> CronJob {
    let mut object = json!({
        "metadata": {"name": "cj", "namespace": "a", "uid": "cj", "creationTimestamp": "2026-01-02T00:00:00Z", "resourceVersion": "1"},
        "spec": {"schedule": "0 * * * *", "concurrencyPolicy": "Allow", "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1,
            "jobTemplate": {"metadata": {"labels": {"l": "v"}}, "spec": {"template": {"spec": {"containers": []}}}}},
        "status": status,
    });
    crate::api::patch::merge(&mut object["spec"], &spec).expect("a patch");
    CronJob::parse(&object).expect("a cron job")
}

fn job(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Job> {
    let mut object = json!({"metadata": {"name": name, "namespace": "a", "uid": name,
        "annotations": {"batch.kubernetes.io/cronjob-scheduled-timestamp": "x"},
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "cj", "uid": "cj", "controller": true}]},
        "spec": {"template": {"spec": {"containers": []}}}, "status": {}});
    change(&mut object);
    Arc::new(Job::parse(&object).expect("a job"))
}

fn ended(name: &str, end: &str, start: &str) -> Arc<Job> {
    job(name, |job| {
        job["status"] =
            json!({"startTime": start, "completionTime": start, "conditions": [{"type": end, "status": "True"}]});
    })
}

fn plan(cron_job: CronJob, jobs: &[Arc<Job>], now: &str) -> Plan {
    let caches = Caches::default();
    let key = Key::of(&cron_job);
    caches.cron_jobs.put(Arc::new(cron_job));
    jobs.iter().for_each(|job| caches.jobs.put(job.clone()));
    CronJobController::default().reconcile(&caches, &key, now.parse().expect("a time"))
}

/// The writes in a short form.
fn writes(plan: &Plan) -> Vec<String> {
    plan.actions()
        .map(|action| match &action.write {
            Write::Create { object, .. } => {
                format!("create {}", object["metadata"]["name"].as_str().unwrap_or_default())
            }
            Write::Delete { key, .. } => format!("delete {}", key.name),
            Write::Update { .. } => "status".to_owned(),
            Write::ExpectAbsent { key, .. } => format!("expect no {}", key.name),
            Write::Nothing => {
                format!("event {}", action.told.as_ref().and_then(|told| told.success.clone()).map_or("", |w| w.1))
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

fn status(plan: &Plan) -> Value {
    let update = plan.actions().find_map(|action| match &action.write {
        Write::Update { object, .. } => Some(object["status"].clone()),
        _ => None,
    });
    update.expect("a status is written")
}

#[test]
fn a_job_is_made_when_it_is_due_and_its_name_tells_when() {
    let due = plan(cron_job(json!({}), Value::Null), &[], "2026-01-02T01:00:00.100Z");
    assert_eq!(writes(&due), ["create cj-29455260", "status"]);
    assert_eq!(status(&due), json!({"lastScheduleTime": "2026-01-02T01:00:00Z"}));
    assert_eq!(due.requeue_after.map(|delay| delay.as_secs()), Some(3600));
    let made = due.actions().find_map(|action| match &action.write {
        Write::Create { object, .. } => Some(object["metadata"].clone()),
        _ => None,
    });
    let made = made.expect("a job");
    assert_eq!(made["annotations"], json!({"batch.kubernetes.io/cronjob-scheduled-timestamp": "2026-01-02T01:00:00Z"}));
    assert_eq!(made["labels"], json!({"l": "v"}));
    let early = plan(cron_job(json!({}), Value::Null), &[], "2026-01-02T00:30:00Z");
    assert_eq!((writes(&early).len(), early.requeue_after.map(|delay| delay.as_millis())), (0, Some(1_800_100)));
}

#[test]
fn the_made_job_is_listed_and_its_end_is_noted() {
    let made = json!({"lastScheduleTime": "2026-01-02T01:00:00Z"});
    let listed = plan(cron_job(json!({}), made), &[job("cj-29455260", |_| {})], "2026-01-02T01:00:01Z");
    assert_eq!(writes(&listed), ["status"]);
    let active = status(&listed);
    assert_eq!(active["active"][0]["name"], "cj-29455260");
    let over = [ended("cj-29455260", "Complete", "2026-01-02T01:00:02Z")];
    let over = plan(cron_job(json!({}), active), &over, "2026-01-02T01:00:03Z");
    assert_eq!(writes(&over), ["status", "event SawCompletedJob"]);
    assert_eq!(
        status(&over),
        json!({"lastScheduleTime": "2026-01-02T01:00:00Z", "lastSuccessfulTime": "2026-01-02T01:00:02Z"})
    );
}

#[test]
fn time_zones_move_the_schedule() {
    let spec = json!({"schedule": "0 3 * * *", "timeZone": "Asia/Seoul"});
    let due = plan(cron_job(spec, Value::Null), &[], "2026-01-02T18:00:01Z");
    let Some(Write::Create { object, .. }) = due.actions().next().map(|action| action.write.clone()) else {
        panic!("a job is made")
    };
    let annotation = &object["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert_eq!(annotation, "2026-01-03T03:00:00+09:00");
    let unknown = plan(cron_job(json!({"timeZone": "Gone/Away"}), Value::Null), &[], "2026-01-02T18:00:01Z");
    assert_eq!((writes(&unknown), unknown.requeue_after), (vec!["event UnknownTimeZone".to_owned()], None));
}

#[test]
fn policies_decide_about_a_job_that_still_runs() {
    let running = json!({"lastScheduleTime": "2026-01-02T01:00:00Z", "active": [{"name": "old", "namespace": "a", "uid": "old", "kind": "Job"}]});
    let jobs = [job("old", |_| {})];
    let with = |policy: &str| {
        writes(&plan(cron_job(json!({"concurrencyPolicy": policy}), running.clone()), &jobs, "2026-01-02T02:00:01Z"))
    };
    assert_eq!(with("Allow"), ["create cj-29455320", "status"]);
    assert_eq!(with("Forbid"), ["event JobAlreadyActive"]);
    assert_eq!(with("Replace"), ["delete old", "create cj-29455320", "status"]);
}

#[test]
fn missed_runs_are_made_up_for_once_and_not_too_late() {
    let after_days = "2026-01-12T00:30:00Z";
    let many = plan(cron_job(json!({}), Value::Null), &[], after_days);
    assert_eq!(writes(&many), ["create cj-29469600", "status", "event TooManyMissedTimes"]);
    let late = json!({"startingDeadlineSeconds": 600});
    let skipped = plan(cron_job(late, Value::Null), &[], after_days);
    assert_eq!((writes(&skipped).len(), skipped.requeue_after.map(|delay| delay.as_secs())), (0, Some(1800)));
    let soon = json!({"startingDeadlineSeconds": 3000});
    assert_eq!(writes(&plan(cron_job(soon, Value::Null), &[], after_days)), ["create cj-29469600", "status"]);
}

#[test]
fn a_schedule_that_never_comes_is_told_and_not_asked_again() {
    let never = plan(cron_job(json!({"schedule": "59 23 31 2 *"}), Value::Null), &[], "2026-01-02T01:00:00Z");
    assert_eq!((writes(&never), never.requeue_after), (vec!["event InvalidSchedule".to_owned()], None));
    let suspended = plan(cron_job(json!({"suspend": true}), Value::Null), &[], "2026-01-02T05:00:00Z");
    assert_eq!((writes(&suspended).len(), suspended.requeue_after), (0, None));
}

#[test]
fn history_is_limited_and_what_is_gone_is_not_active() {
    let jobs: Vec<_> = (0..5)
        .map(|i| ended(&format!("c{i}"), "Complete", &format!("2026-01-02T00:0{i}:00Z")))
        .chain((0..2).map(|i| ended(&format!("f{i}"), "Failed", &format!("2026-01-02T00:1{i}:00Z"))))
        .collect();
    let listed = json!({"lastSuccessfulTime": "2026-01-02T00:04:00Z", "active": [{"name": "gone", "uid": "gone"}]});
    let cleaned = plan(cron_job(json!({}), listed), &jobs, "2026-01-02T00:30:00Z");
    assert_eq!(
        writes(&cleaned),
        ["expect no gone", "delete c0", "delete c1", "delete f0", "status", "event MissingJob"]
    );
}

#[test]
fn a_new_schedule_does_not_reach_back() {
    let (caches, controller) = (Caches::default(), CronJobController::default());
    controller.watch(&caches, &Enqueue::new(|_| {}, |_, _| {}));
    let last = json!({"lastScheduleTime": "2026-01-02T00:00:00Z"});
    let put = |schedule: &str, revision: &str| {
        let mut changed = cron_job(json!({"schedule": schedule}), last.clone());
        changed.metadata.resource_version = Some(revision.into());
        caches.cron_jobs.put(Arc::new(changed));
    };
    put("0 0 * * *", "1");
    put("0 * * * *", "2");
    let plan = controller.reconcile(&caches, &Key::new("a", "cj"), "2026-01-02T15:10:00Z".parse().expect("a time"));
    assert_eq!((writes(&plan).len(), plan.requeue_after.map(|delay| delay.as_secs())), (0, Some(3000)));
    assert_eq!(caches.cron_jobs.get(&Key::new("a", "cj")).map(|found| found.revision()), Some(2));
}
