//! Reconciles of Jobs: what is written, in which order, for which pods.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::backoff::{Failures, Finished};
use super::sync::reconcile;
use crate::client::Object;
use crate::controllers::plan::{Plan, Write};

const NOW: &str = "2026-01-02T03:04:05Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn job(spec: Value, status: Value) -> Arc<Job> {
    let mut object = json!({
        "metadata": {"name": "j", "namespace": "a", "uid": "job"},
        "spec": {"parallelism": 1, "completions": 1, "backoffLimit": 6, "completionMode": "NonIndexed",
            "podReplacementPolicy": "TerminatingOrFailed", "selector": {"matchLabels": {"job": "j"}},
            "template": {"metadata": {"labels": {"job": "j"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}},
        "status": status,
    });
    crate::api::patch::merge(&mut object["spec"], &spec).expect("a patch");
    Arc::new(Job::parse(&object).expect("a job"))
}

fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"job": "j"},
            "creationTimestamp": "2026-01-02T03:00:00Z", "finalizers": [super::TRACKING_FINALIZER],
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "job", "controller": true}]},
        "spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Running"},
    });
    change(&mut object);
    Arc::new(Pod::parse(&object).expect("a pod"))
}

fn with_phase(name: &str, phase: &str) -> Arc<Pod> {
    pod(name, |pod| pod["status"]["phase"] = phase.into())
}

fn indexed(name: &str, index: &str, phase: &str) -> Arc<Pod> {
    pod(name, |pod| {
        pod["metadata"]["annotations"] = json!({"batch.kubernetes.io/job-completion-index": index});
        pod["status"]["phase"] = phase.into();
    })
}

fn plan(job: &Arc<Job>, pods: &[Arc<Pod>]) -> Plan {
    reconcile(job, pods, &Failures::default(), now())
}

/// The writes in a short form: `create`, `delete p`, `release p`, `status`, `event Reason`.
fn writes(plan: &Plan) -> Vec<String> {
    plan.actions()
        .map(|action| match &action.write {
            Write::Create { .. } => "create".to_owned(),
            Write::Delete { key, .. } => format!("delete {}", key.name),
            Write::Patch { key, .. } => format!("release {}", key.name),
            Write::Update { .. } => "status".to_owned(),
            Write::Nothing => {
                let told = action.told.as_ref().and_then(|told| told.success.clone());
                format!("event {}", told.map_or("", |words| words.1))
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

fn conditions(status: &Value) -> Vec<(String, String)> {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    conditions.iter().map(|condition| (text(&condition["type"]), text(&condition["reason"]))).collect()
}

fn created(plan: &Plan) -> Vec<Value> {
    plan.actions()
        .filter_map(|action| match &action.write {
            Write::Create { object, .. } => Some(object.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_new_job_starts_its_pods() {
    let plan = plan(&job(json!({"parallelism": 3, "completions": 2}), Value::Null), &[]);
    assert_eq!(writes(&plan), ["create", "create", "status"]);
    assert_eq!(
        status(&plan),
        json!({"active": 2, "ready": 0, "terminating": 0, "startTime": NOW, "uncountedTerminatedPods": {}})
    );
    let pod = &created(&plan)[0];
    assert_eq!(pod["metadata"]["finalizers"], json!(["batch.kubernetes.io/job-tracking"]));
    assert_eq!(pod["metadata"]["generateName"], "j-");
}

#[test]
fn a_success_is_named_released_counted_and_then_the_job_ends() {
    let running = json!({"active": 1, "ready": 0, "terminating": 0, "startTime": NOW, "uncountedTerminatedPods": {}});
    let first = plan(&job(json!({}), running), &[with_phase("p", "Succeeded")]);
    assert_eq!(writes(&first), ["status", "release p"]);
    let named = status(&first);
    assert_eq!(named["uncountedTerminatedPods"], json!({"succeeded": ["p"]}));
    assert_eq!((&named["succeeded"], &named["active"]), (&Value::Null, &Value::Null));
    assert_eq!(conditions(&named), [("SuccessCriteriaMet".into(), "CompletionsReached".into())]);

    let released = pod("p", |pod| {
        pod["metadata"]["finalizers"] = json!([]);
        pod["status"]["phase"] = "Succeeded".into();
    });
    let second = plan(&job(json!({}), named), &[released.clone()]);
    assert_eq!(writes(&second), ["status", "event Completed"]);
    let done = status(&second);
    assert_eq!((&done["succeeded"], &done["completionTime"]), (&json!(1), &json!(NOW)));
    assert_eq!(done["uncountedTerminatedPods"], json!({}));
    assert_eq!(conditions(&done)[1], ("Complete".into(), "CompletionsReached".into()));
    assert!(plan(&job(json!({}), done), &[released]).is_empty());
}

#[test]
fn a_status_that_was_written_but_not_acted_on_counts_nothing_twice() {
    let named = json!({"startTime": NOW, "uncountedTerminatedPods": {"failed": ["p"]}, "ready": 0, "terminating": 0});
    let pods = [with_phase("p", "Failed")];
    let plan = reconcile(&job(json!({}), named), &pods, &Failures { count: 1, last: Some(now()) }, now());
    assert_eq!(writes(&plan), ["release p"]);
    assert_eq!(plan.requeue_after.map(|delay| delay.as_secs()), Some(10));
}

#[test]
fn too_many_failures_end_the_job() {
    let running = json!({"active": 1, "failed": 1, "startTime": NOW});
    let pods = [with_phase("f", "Failed"), with_phase("r", "Running")];
    let spec = json!({"backoffLimit": 1, "parallelism": 2, "completions": 2});
    let first = plan(&job(spec.clone(), running), &pods);
    assert_eq!(writes(&first), ["delete r", "status", "release f", "release r"]);
    let announced = status(&first);
    assert_eq!(conditions(&announced), [("FailureTarget".into(), "BackoffLimitExceeded".into())]);
    // What still ran counts as failed.
    assert_eq!(announced["uncountedTerminatedPods"], json!({"failed": ["f", "r"]}));
    assert_eq!((&announced["terminating"], &announced["active"]), (&json!(1), &Value::Null));

    // Nothing ends while a pod does.
    let ending = pod("r", |pod| {
        pod["metadata"]["finalizers"] = json!([]);
        pod["metadata"]["deletionTimestamp"] = NOW.into();
    });
    let second = plan(&job(spec.clone(), announced), &[ending]);
    let counted = status(&second);
    assert_eq!((&counted["failed"], conditions(&counted).len()), (&json!(3), 1));
    let third = plan(&job(spec, counted), &[]);
    assert_eq!(writes(&third), ["status", "event BackoffLimitExceeded"]);
    assert_eq!(conditions(&status(&third))[1], ("Failed".into(), "BackoffLimitExceeded".into()));
}

#[test]
fn replacements_wait_for_the_backoff() {
    let pods = [with_phase("p", "Failed")];
    let finished = Finished::default();
    finished.note("job", &pods[0]);
    let failures = Failures { last: Some(now()), ..finished.failures_since_success("job") };
    let started = json!({"startTime": NOW});
    let waiting = reconcile(&job(json!({}), started.clone()), &pods, &failures, now());
    assert_eq!(writes(&waiting), ["status", "release p"]);
    assert_eq!(waiting.requeue_after.map(|delay| delay.as_secs()), Some(10));
    let later = now() + jiff::SignedDuration::from_secs(10);
    assert_eq!(writes(&reconcile(&job(json!({}), started), &pods, &failures, later))[0], "create");
}

#[test]
fn a_deadline_ends_the_job_and_is_waited_for() {
    let started = |time: &str| json!({"startTime": time, "active": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}});
    let spec = json!({"activeDeadlineSeconds": 60});
    let pods = [with_phase("p", "Running")];
    let waiting = plan(&job(spec.clone(), started("2026-01-02T03:03:35Z")), &pods);
    assert_eq!((writes(&waiting).len(), waiting.requeue_after.map(|delay| delay.as_secs())), (0, Some(30)));
    let over = plan(&job(spec, started("2026-01-02T03:03:05Z")), &pods);
    assert_eq!(conditions(&status(&over)), [("FailureTarget".into(), "DeadlineExceeded".into())]);
}

#[test]
fn a_suspended_job_has_no_pods_and_no_failures() {
    let running = json!({"active": 1, "startTime": "2026-01-02T03:00:00Z"});
    let plan_of = |spec: Value, status: Value, pods: &[Arc<Pod>]| plan(&job(spec, status), pods);
    let suspended = plan_of(json!({"suspend": true}), running, &[with_phase("p", "Running")]);
    assert_eq!(writes(&suspended), ["release p", "delete p", "status", "event Suspended"]);
    let stored = status(&suspended);
    assert_eq!((&stored["active"], &stored["failed"]), (&Value::Null, &Value::Null));
    assert_eq!(conditions(&stored), [("Suspended".into(), "JobSuspended".into())]);
    let resumed = plan_of(json!({"suspend": false, "activeDeadlineSeconds": 60}), stored, &[]);
    assert_eq!(writes(&resumed), ["create", "status", "event Resumed"]);
    assert_eq!(status(&resumed)["startTime"], NOW);
    assert_eq!(conditions(&status(&resumed)), [("Suspended".into(), "JobResumed".into())]);
}

#[test]
fn each_index_gets_a_pod_until_one_succeeds() {
    let spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 3});
    let pods = [indexed("zero", "0", "Succeeded"), indexed("two", "2", "Running"), indexed("again", "2", "Running")];
    let first = plan(&job(spec.clone(), json!({"startTime": NOW})), &pods);
    // Duplicates go before anything new comes.
    assert_eq!(writes(&first)[..3], ["release again", "delete again", "status"]);
    assert_eq!((&status(&first)["completedIndexes"], &status(&first)["succeeded"]), (&json!("0"), &json!(1)));
    let second =
        plan(&job(spec, json!({"startTime": NOW, "completedIndexes": "0"})), &[indexed("two", "2", "Running")]);
    let pods = created(&second);
    let names: Vec<_> = pods.iter().map(|pod| pod["metadata"]["generateName"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["j-1-", "j-3-"]);
    assert_eq!(pods[0]["spec"]["hostname"], "j-1");
    assert_eq!(pods[0]["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"], "1");
    assert_eq!(
        pods[0]["spec"]["containers"][0]["env"],
        json!([{"name": "JOB_COMPLETION_INDEX",
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']"}}}])
    );
}

#[test]
fn an_index_has_its_own_limit() {
    let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 1,
        "backoffLimit": i32::MAX});
    let failed = |name: &str, index: &str, before: &str| {
        pod(name, |pod| {
            pod["metadata"]["annotations"] = json!({"batch.kubernetes.io/job-completion-index": index,
                "batch.kubernetes.io/job-index-failure-count": before});
            pod["status"]["phase"] = "Failed".into();
        })
    };
    let started = json!({"startTime": NOW, "completedIndexes": "1", "succeeded": 1});
    // The failed pod stays until its replacement has taken its count over.
    let first = plan(&job(spec.clone(), started.clone()), &[failed("zero", "0", "0")]);
    assert_eq!(writes(&first), ["create", "status"]);
    let annotations = &created(&first)[0]["metadata"]["annotations"];
    assert_eq!(annotations["batch.kubernetes.io/job-index-failure-count"], "1");
    let second =
        plan(&job(spec.clone(), started.clone()), &[failed("zero", "0", "0"), indexed("next", "0", "Running")]);
    assert_eq!(writes(&second), ["status", "release zero"]);
    let third = plan(&job(spec, started), &[failed("next", "0", "1")]);
    assert_eq!(status(&third)["failedIndexes"], "0");
    assert_eq!(conditions(&status(&third)), [("FailureTarget".into(), "FailedIndexes".into())]);
}

#[test]
fn policies_end_a_job_early() {
    let policy = json!({"podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]}});
    let disrupted = pod("p", |pod| {
        pod["status"] = json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True"}]});
    });
    let failing = status(&plan(&job(policy, json!({"startTime": NOW})), &[disrupted]));
    assert_eq!(conditions(&failing), [("FailureTarget".into(), "PodFailurePolicy".into())]);
    let success = json!({"completionMode": "Indexed", "completions": 5, "parallelism": 5,
        "successPolicy": {"rules": [{"succeededIndexes": "0-2", "succeededCount": 1}]}});
    let pods = [indexed("one", "1", "Succeeded"), indexed("four", "4", "Running")];
    let first = plan(&job(success, json!({"startTime": NOW})), &pods);
    assert_eq!(writes(&first), ["delete four", "status", "release one", "release four"]);
    assert_eq!(conditions(&status(&first)), [("SuccessCriteriaMet".into(), "SuccessPolicy".into())]);
    // What still ran is not a failure.
    assert_eq!(status(&first)["uncountedTerminatedPods"], json!({}));
}

#[test]
fn replacements_may_wait_for_the_end_of_deleted_pods() {
    let deleted = pod("p", |pod| pod["metadata"]["deletionTimestamp"] = NOW.into());
    let started = json!({"startTime": NOW});
    let at_once = plan(&job(json!({}), started.clone()), &[deleted.clone()]);
    assert_eq!(writes(&at_once), ["create", "status", "release p"]);
    let waits = plan(&job(json!({"podReplacementPolicy": "Failed"}), started), &[deleted]);
    assert_eq!(writes(&waits), ["status"]);
    assert_eq!(status(&waits)["terminating"], 1);
}

#[test]
fn strangers_are_left_alone_and_orphans_adopted() {
    let stranger = pod("s", |pod| pod["metadata"]["ownerReferences"][0]["uid"] = "other".into());
    let orphan = pod("o", |pod| pod["metadata"]["ownerReferences"] = Value::Null);
    let plan = plan(&job(json!({}), json!({"startTime": NOW})), &[stranger, orphan]);
    let Some(Write::Patch { key, patch, .. }) = plan.actions().next().map(|action| &action.write) else {
        panic!("the orphan is adopted")
    };
    assert_eq!((key.name.as_str(), plan.actions().count()), ("o", 1));
    assert!(format!("{patch:?}").contains("batch.kubernetes.io/job-tracking"));
}

#[test]
fn jobs_of_other_controllers_are_theirs() {
    assert!(plan(&job(json!({"managedBy": "acme.io/foo"}), Value::Null), &[]).is_empty());
    assert!(!plan(&job(json!({"managedBy": "kubernetes.io/job-controller"}), Value::Null), &[]).is_empty());
}

#[test]
fn absurd_numbers_start_a_few_pods_at_a_time() {
    let plan = plan(&job(json!({"parallelism": i32::MAX, "completions": i32::MAX}), Value::Null), &[]);
    assert_eq!(created(&plan).len(), 500);
}
