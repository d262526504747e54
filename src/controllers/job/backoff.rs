//! How long a Job waits after failures of its pods (`backoff_utils.go`): 10 s, doubled with every failure since the last
//! success, 10 minutes at most.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::is_tracked;
use crate::client::typed::Meta;
use crate::controllers::pod_status::{condition, phase};

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_mins(10);

/// Failures since the last success.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failures {
    /// How many.
    pub count: u32,
    /// When the last one was.
    pub last: Option<Timestamp>,
}

#[derive(Default)]
struct Record {
    last_success: Option<Timestamp>,
    /// Pods that failed since, by uid.
    failed: BTreeMap<String, Timestamp>,
}

/// What the pod cache has shown of pods that finished, by the uid of their Job. Cloning shares it. It is fed where the
/// cache tells of a change, so that it is as new as the cache, and remembers pods that the cache has no more.
#[derive(Clone, Default)]
pub struct Finished(Arc<Mutex<HashMap<String, Record>>>);

const UNPOISONED: &str = "no panic while the record is held";

impl Finished {
    /// Looks at a pod of a Job.
    pub fn note(&self, job: &str, pod: &Pod) {
        let succeeded = phase(pod) == "Succeeded";
        // What was counted, or will not be counted, is no news.
        if !is_tracked(pod) {
            return;
        }
        if !succeeded && phase(pod) != "Failed" && !pod.is_terminating() {
            return;
        }
        let at = finished_at(pod);
        let mut records = self.0.lock().expect(UNPOISONED);
        let record = records.entry(job.to_owned()).or_default();
        if succeeded {
            record.last_success = Some(record.last_success.map_or(at, |known| known.max(at)));
            record.failed.remove(pod.uid());
            record.failed.retain(|_, failed| *failed > at);
        } else if record.last_success.is_none_or(|success| at > success) {
            record.failed.entry(pod.uid().to_owned()).or_insert(at);
        }
    }
    /// A Job is over or gone.
    pub fn forget(&self, job: &str) {
        self.0.lock().expect(UNPOISONED).remove(job);
    }
    /// The failures of a Job's pods since the last success.
    pub fn failures_since_success(&self, job: &str) -> Failures {
        let records = self.0.lock().expect(UNPOISONED);
        let Some(record) = records.get(job) else { return Failures::default() };
        let count = u32::try_from(record.failed.len()).unwrap_or(u32::MAX);
        Failures { count, last: record.failed.values().max().copied() }
    }
}

impl Failures {
    /// The time that is still to be waited; zero when it is over.
    pub fn remaining(&self, now: Timestamp) -> Duration {
        let Some(last) = self.last.filter(|_| self.count > 0) else { return Duration::ZERO };
        let doublings = (self.count - 1).min(16);
        let backoff = FIRST.saturating_mul(1 << doublings).min(LONGEST);
        Duration::try_from(backoff - now.duration_since(last)).unwrap_or(Duration::ZERO)
    }
}

/// When a pod finished: the end of its last container, or since when it is not ready, or when its deletion began.
pub fn finished_at(pod: &Pod) -> Timestamp {
    let created = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    end_of_containers(pod).or_else(|| unready_since(pod)).or_else(|| deleted_at(pod)).unwrap_or(created)
}

fn end_of_containers(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.as_deref().unwrap_or_default();
    let ends = statuses.iter().map(|status| {
        let ended = status.state.as_ref()?.terminated.as_ref()?;
        ended.finished_at.as_ref().map(|time| time.0)
    });
    ends.collect::<Option<Vec<_>>>()?.into_iter().max()
}

fn unready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "False")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

fn deleted_at(pod: &Pod) -> Option<Timestamp> {
    let end = pod.metadata.deletion_timestamp.as_ref()?.0;
    let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or_default());
    Some(end.saturating_sub(grace).unwrap_or(Timestamp::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use serde_json::json;

    fn pod(uid: &str, phase: &str, finished: &str) -> Pod {
        let status = json!({"phase": phase, "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": finished}}}]});
        let metadata = json!({"name": uid, "uid": uid, "finalizers": ["batch.kubernetes.io/job-tracking"]});
        Pod::parse(&json!({"metadata": metadata, "status": status})).expect("a pod")
    }

    #[test]
    fn the_wait_doubles_up_to_ten_minutes() {
        let last: Timestamp = "2026-01-02T03:00:00Z".parse().expect("a time");
        let wait = |count, seconds| {
            let now = last + SignedDuration::from_secs(seconds);
            Failures { count, last: Some(last) }.remaining(now).as_secs()
        };
        assert_eq!([wait(0, 0), wait(1, 0), wait(1, 4), wait(1, 10), wait(1, 99)], [0, 10, 6, 0, 0]);
        assert_eq!([wait(2, 0), wait(3, 0), wait(6, 0), wait(7, 0), wait(4_000_000_000, 0)], [20, 40, 320, 600, 600]);
    }

    #[test]
    fn a_success_forgets_the_failures_before_it() {
        let finished = Finished::default();
        finished.note("job", &pod("a", "Failed", "2026-01-02T03:00:00Z"));
        finished.note("job", &pod("a", "Failed", "2026-01-02T03:00:00Z"));
        finished.note("job", &pod("b", "Failed", "2026-01-02T03:00:20Z"));
        assert_eq!(finished.failures_since_success("job").count, 2);
        finished.note("job", &pod("c", "Succeeded", "2026-01-02T03:00:10Z"));
        let left = finished.failures_since_success("job");
        assert_eq!((left.count, left.last.map(|time| time.to_string())), (1, Some("2026-01-02T03:00:20Z".into())));
        finished.forget("job");
        assert_eq!(finished.failures_since_success("job"), Failures::default());
    }

    #[test]
    fn a_deleted_pod_failed_when_its_deletion_began() {
        let deleted = json!({"metadata": {"name": "p", "uid": "p", "creationTimestamp": "2026-01-02T03:00:00Z",
            "deletionTimestamp": "2026-01-02T03:01:00Z", "deletionGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
        let deleted = Pod::parse(&deleted).expect("a pod");
        assert_eq!(finished_at(&deleted).to_string(), "2026-01-02T03:00:30Z");
    }
}
