//! Whether a Job is about to end, and how: the conditions that announce it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::counts::{Counts, has_failed};
use super::failure_policy::{Verdict, judge};
use super::{Pods, condition};
use crate::api::index_intervals::IndexIntervals;
use crate::controllers::pod_status::{is_finished, phase};

/// A Job that will end.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Whether it ends well.
    pub success: bool,
    /// The reason in its conditions.
    pub reason: String,
    /// The message in its conditions.
    pub message: String,
    /// Whether the status has announced it already.
    pub announced: bool,
}

/// The reasons of failures.
const REASONS: [&str; 5] =
    ["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy", "MaxFailedIndexesExceeded", "FailedIndexes"];

impl End {
    /// The reason for an event.
    pub fn known_reason(&self) -> &'static str {
        REASONS.iter().find(|reason| **reason == self.reason).copied().unwrap_or("Failed")
    }
    fn failure(reason: &str, message: impl Into<String>) -> Self {
        Self { success: false, reason: reason.into(), message: message.into(), announced: false }
    }
    /// The end when enough has succeeded.
    pub fn completions_reached() -> Self {
        let message = "Reached expected number of succeeded pods";
        Self { success: true, reason: "CompletionsReached".into(), message: message.into(), announced: false }
    }
    fn announced_by(condition: &JobCondition, success: bool) -> Self {
        Self {
            success,
            reason: condition.reason.clone().unwrap_or_default(),
            message: condition.message.clone().unwrap_or_default(),
            announced: true,
        }
    }
    /// The condition that announces it.
    pub fn announcement(&self, now: Timestamp) -> JobCondition {
        self.condition(if self.success { "SuccessCriteriaMet" } else { "FailureTarget" }, now)
    }
    /// The condition that ends the Job.
    pub fn last(&self, now: Timestamp) -> JobCondition {
        self.condition(if self.success { "Complete" } else { "Failed" }, now)
    }
    fn condition(&self, type_: &str, now: Timestamp) -> JobCondition {
        JobCondition {
            type_: type_.into(),
            status: "True".into(),
            reason: Some(self.reason.clone()).filter(|text| !text.is_empty()),
            message: Some(self.message.clone()).filter(|text| !text.is_empty()),
            last_probe_time: Some(Time(now)),
            last_transition_time: Some(Time(now)),
        }
    }
}

/// Whether `spec.suspend` is set.
pub fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend == Some(true)
}

/// When `activeDeadlineSeconds` is over, counted from `start`.
pub fn deadline(spec: &JobSpec, start: Option<Timestamp>) -> Option<Timestamp> {
    let seconds = spec.active_deadline_seconds.filter(|_| !is_suspended(spec))?;
    Some(start?.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX))
}

/// How the Job ends, if its conditions or counts say that it does.
pub fn end(
    job: &Job,
    spec: &JobSpec,
    pods: &Pods,
    counts: &Counts,
    start: Option<Timestamp>,
    now: Timestamp,
) -> Option<End> {
    let is_true = |condition: &&JobCondition| condition.status == "True";
    if let Some(met) = condition(job, "SuccessCriteriaMet").filter(is_true) {
        return Some(End::announced_by(met, true));
    }
    if let Some(failing) = condition(job, "FailureTarget").filter(is_true) {
        return Some(End::announced_by(failing, false));
    }
    for pod in pods.iter().filter(|pod| has_failed(spec, pod)) {
        if let Verdict::FailsJob(message) = judge(spec.pod_failure_policy.as_ref(), pod) {
            return Some(End::failure("PodFailurePolicy", message));
        }
    }
    if counts.failed > spec.backoff_limit.unwrap_or(6) || too_many_restarts(spec, pods) {
        return Some(End::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    if deadline(spec, start).is_some_and(|at| at <= now) {
        return Some(End::failure("DeadlineExceeded", "Job was active longer than specified deadline"));
    }
    failed_indexes(spec, counts).or_else(|| success_policy(spec, &counts.succeeded_indexes))
}

/// With `restartPolicy: OnFailure` restarts of containers count as failures.
fn too_many_restarts(spec: &JobSpec, pods: &Pods) -> bool {
    let policy = spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let running = pods.iter().filter(|pod| !is_finished(pod) && ["Running", "Pending"].contains(&phase(pod)));
    let statuses = running.filter_map(|pod| pod.status.as_ref()).flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    });
    let restarts: i32 = statuses.map(|status| status.restart_count).fold(0, i32::saturating_add);
    match spec.backoff_limit.unwrap_or(6) {
        0 => restarts > 0,
        limit => restarts >= limit,
    }
}

fn failed_indexes(spec: &JobSpec, counts: &Counts) -> Option<End> {
    let failed = counts.failed_indexes.as_ref()?.count();
    if spec.max_failed_indexes.is_some_and(|limit| failed > limit) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Some(End::failure("MaxFailedIndexesExceeded", message));
    }
    let settled = failed.saturating_add(counts.succeeded_indexes.count());
    (failed > 0 && settled >= spec.completions.unwrap_or_default())
        .then(|| End::failure("FailedIndexes", "Job has failed indexes"))
}

fn success_policy(spec: &JobSpec, succeeded: &IndexIntervals) -> Option<End> {
    let rules = spec.success_policy.as_ref().filter(|_| !succeeded.is_empty())?.rules.iter();
    for (index, rule) in rules.enumerate() {
        let enough = match &rule.succeeded_indexes {
            Some(text) => {
                let wanted = IndexIntervals::parse_lenient(text, spec.completions.unwrap_or_default());
                let have = wanted.common_count(succeeded);
                let count = rule.succeeded_count.unwrap_or(i32::MAX);
                !wanted.is_empty() && (have == wanted.count() || have >= count)
            }
            None => rule.succeeded_count.is_some_and(|count| succeeded.count() >= count),
        };
        if enough {
            let message = format!("Matched rules at index {index}");
            return Some(End { success: true, reason: "SuccessPolicy".into(), message, announced: false });
        }
    }
    None
}
