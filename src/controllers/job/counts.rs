//! What the pods of a Job add up to: active, terminating, succeeded, failed (`syncJobCtx`).

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus, PodFailurePolicy};
use k8s_openapi::api::core::v1::Pod;

use super::failure_policy::{Verdict, judge};
use super::indexes::{self, index_of};
use super::pods::is_indexed;
use super::{Pods, is_tracked};
use crate::api::index_intervals::IndexIntervals;
use crate::client::typed::Meta;
use crate::controllers::pod_status::{is_active, is_finished, is_ready, phase};

/// Pods of a Job and what they mean.
pub struct Counts {
    /// Neither finished nor deleted.
    pub active: Vec<Arc<Pod>>,
    /// Deleted but not finished.
    pub terminating: i32,
    /// Active and ready.
    pub ready: i32,
    /// Successes, counted or not; indexes in an Indexed Job.
    pub succeeded: i32,
    /// Failures, counted or not, without the ignored ones.
    pub failed: i32,
    /// Of an Indexed Job: what the status says of succeeded indexes.
    pub counted_indexes: IndexIntervals,
    /// Of an Indexed Job: the indexes that have succeeded.
    pub succeeded_indexes: IndexIntervals,
    /// With a backoff limit per index: the indexes that have failed for good.
    pub failed_indexes: Option<IndexIntervals>,
}

/// Uids of pods that a status names as finished but not counted.
pub struct Uncounted {
    /// Those that succeeded.
    pub succeeded: BTreeSet<String>,
    /// Those that failed.
    pub failed: BTreeSet<String>,
}

impl Uncounted {
    /// What a status says.
    pub fn of(status: &JobStatus) -> Self {
        let pods = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let set = |list: Option<Vec<String>>| list.unwrap_or_default().into_iter().collect();
        Self { succeeded: set(pods.succeeded), failed: set(pods.failed) }
    }
}

/// Whether replacements wait for the end of what they replace.
pub fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Whether a pod counts as failed; a deleted one does unless its Job waits for its end.
pub fn has_failed(spec: &JobSpec, pod: &Pod) -> bool {
    match phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pod.is_terminating() && !replaces_only_failed(spec),
    }
}

/// Whether the failure of a pod counts towards limits.
pub fn is_counted(policy: Option<&PodFailurePolicy>, pod: &Pod) -> bool {
    judge(policy, pod) != Verdict::Ignored
}

fn total(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Counts the pods of a Job.
pub fn count(job: &Job, spec: &JobSpec, pods: &Pods, uncounted: &Uncounted) -> Counts {
    let status = job.status.clone().unwrap_or_default();
    let completions = spec.completions.unwrap_or_default();
    let has_place = |pod: &Arc<Pod>| !is_indexed(spec) || index_of(pod).is_some_and(|index| index < completions);
    let news =
        |known: &BTreeSet<String>, pod: &Arc<Pod>| is_tracked(pod) && !known.contains(pod.uid()) && has_place(pod);
    let policy = spec.pod_failure_policy.as_ref();
    let succeeded = pods.iter().filter(|pod| phase(pod) == "Succeeded" && news(&uncounted.succeeded, pod)).count();
    let failed = pods
        .iter()
        .filter(|pod| has_failed(spec, pod) && news(&uncounted.failed, pod) && is_counted(policy, pod))
        .count();
    let active: Vec<_> = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
    let mut counts = Counts {
        terminating: total(pods.iter().filter(|pod| pod.is_terminating() && !is_finished(pod)).count()),
        ready: total(active.iter().filter(|pod| is_ready(pod)).count()),
        active,
        succeeded: status.succeeded.unwrap_or_default() + total(succeeded + uncounted.succeeded.len()),
        failed: status.failed.unwrap_or_default() + total(failed + uncounted.failed.len()),
        counted_indexes: IndexIntervals::default(),
        succeeded_indexes: IndexIntervals::default(),
        failed_indexes: None,
    };
    if is_indexed(spec) {
        count_indexes(&mut counts, spec, &status, pods);
    }
    counts
}

fn count_indexes(counts: &mut Counts, spec: &JobSpec, status: &JobStatus, pods: &Pods) {
    let completions = spec.completions.unwrap_or_default();
    let read = |text: &Option<String>| IndexIntervals::parse_lenient(text.as_deref().unwrap_or_default(), completions);
    let of = |what: &dyn Fn(&Pod) -> bool| {
        let found = indexes::of(pods.iter().filter(|pod| is_tracked(pod) && what(pod)));
        IndexIntervals::parse_lenient(&found.to_string(), completions)
    };
    counts.counted_indexes = read(&status.completed_indexes);
    counts.succeeded_indexes = counts.counted_indexes.union(&of(&|pod| phase(pod) == "Succeeded"));
    counts.succeeded = counts.succeeded_indexes.count();
    if spec.backoff_limit_per_index.is_some() {
        let failed = of(&|pod| has_failed(spec, pod) && indexes::fails_for_good(spec, pod));
        counts.failed_indexes = Some(read(&status.failed_indexes).union(&failed));
    }
}
