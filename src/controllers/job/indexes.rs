//! Completion indexes of pods and what was counted for each index (`indexed_job_utils.go`).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::Pod;

use super::Pods;
use super::backoff::{Failures, finished_at};
use super::failure_policy::{Verdict, judge};
use crate::api::index_intervals::IndexIntervals;
use crate::client::typed::Meta;

/// The annotation and label with the index of a pod.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often the index of a pod has failed before it.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// How often it has failed without counting.
pub const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// The index of a pod.
pub fn index_of(pod: &Pod) -> Option<i32> {
    pod.annotation(INDEX)?.parse().ok().filter(|index| *index >= 0)
}

/// All indexes of some pods.
pub fn of<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> IndexIntervals {
    pods.into_iter().filter_map(|pod| index_of(pod)).collect()
}

fn number(pod: &Pod, annotation: &str) -> i32 {
    pod.annotation(annotation).and_then(|text| text.parse().ok()).filter(|number| *number >= 0).unwrap_or_default()
}

/// How often the pod's index had failed before it: counting failures, and ignored ones.
pub fn failures_before(pod: &Pod) -> (i32, i32) {
    (number(pod, FAILURES), number(pod, IGNORED_FAILURES))
}

/// The counts that the replacement of a failed pod begins with.
pub fn failures_after(spec: &JobSpec, replaced: Option<&Arc<Pod>>) -> (i32, i32) {
    let Some(pod) = replaced else { return (0, 0) };
    let (counted, ignored) = failures_before(pod);
    match judge(spec.pod_failure_policy.as_ref(), pod) {
        Verdict::Ignored => (counted, ignored.saturating_add(1)),
        _ => (counted.saturating_add(1), ignored),
    }
}

/// Whether this failed pod means that its index has failed for good.
pub fn fails_for_good(spec: &JobSpec, pod: &Pod) -> bool {
    let limit = spec.backoff_limit_per_index.unwrap_or(i32::MAX);
    match judge(spec.pod_failure_policy.as_ref(), pod) {
        Verdict::FailsIndex => true,
        Verdict::Ignored => false,
        Verdict::Counts | Verdict::FailsJob(_) => failures_before(pod).0 >= limit,
    }
}

/// Of each index that is to be tried again the pod that failed last: it stays uncounted until its replacement, which
/// takes its failure count over, is there (`getPodsWithDelayedDeletionPerIndex`).
pub fn last_failed<'a>(
    failed: impl Iterator<Item = &'a Arc<Pod>>,
    settled: &IndexIntervals,
    completions: i32,
) -> BTreeMap<i32, Arc<Pod>> {
    let mut last: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    let order = |pod: &Pod| {
        let (counted, ignored) = failures_before(pod);
        (counted.saturating_add(ignored), finished_at(pod))
    };
    for pod in failed {
        let Some(index) = index_of(pod).filter(|index| *index < completions && !settled.contains(*index)) else {
            continue;
        };
        match last.get(&index) {
            Some(known) if order(known) > order(pod) => {}
            _ => drop(last.insert(index, pod.clone())),
        }
    }
    last
}

/// The failures of an index, seen from its last failed pod.
pub fn failures_of(pod: &Pod) -> Failures {
    let (counted, ignored) = failures_before(pod);
    let count = u32::try_from(counted.saturating_add(ignored)).unwrap_or_default().saturating_add(1);
    Failures { count, last: Some(finished_at(pod)) }
}

/// Pods in the order of their indexes; those without one come first.
pub fn sorted(pods: &Pods) -> Vec<Arc<Pod>> {
    let mut pods = pods.to_vec();
    pods.sort_by_key(|pod| index_of(pod).unwrap_or(-1));
    pods
}
