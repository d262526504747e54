//! Deletes Jobs `ttlSecondsAfterFinished` after their end (`pkg/controller/ttlafterfinished`).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;

use super::caches::Caches;
use super::job::final_condition;
use super::plan::{Action, Plan};
use super::{Controller, Enqueue};
use crate::client::DeleteOptions;
use crate::client::cache::Key;
use crate::client::typed::Meta;

/// The controller; its keys are Jobs.
pub struct TtlAfterFinishedController;

impl Controller for TtlAfterFinishedController {
    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }
    fn account(&self) -> &'static str {
        "ttl-after-finished-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let add = enqueue.clone();
        caches.jobs.subscribe(move |change| {
            if let Some(job) = change.new.as_ref().filter(|job| expires_at(job).is_some()) {
                add.add(Key::of(&**job));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(job) = caches.jobs.get(key) else { return plan };
        match expires_at(&job) {
            Some(at) if at > now => plan.requeue(Duration::try_from(at.duration_since(now)).unwrap_or_default()),
            Some(_) => {
                // Only this state of it: somebody may just have given it more time.
                let options = DeleteOptions {
                    uid: job.metadata.uid.clone(),
                    resource_version: job.metadata.resource_version.clone(),
                    propagation_policy: Some("Foreground"),
                    ..Default::default()
                };
                plan.push(Action::delete_with::<Job>(key.clone(), options));
            }
            None => {}
        }
        plan
    }
}

/// When a finished Job is to be deleted; `None` when it is not finished, stays, or goes already.
fn expires_at(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let finished = final_condition(job).filter(|_| !job.is_terminating())?;
    let finished = finished.last_transition_time.as_ref()?.0;
    Some(finished.saturating_add(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use crate::controllers::plan::Write;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn check(ttl: Value, condition: &str, now: &str) -> (Option<&'static str>, Option<u64>) {
        let caches = Caches::default();
        let job = json!({"metadata": {"name": "j", "namespace": "a", "uid": "u", "resourceVersion": "7"},
            "spec": {"ttlSecondsAfterFinished": ttl, "template": {"spec": {"containers": []}}},
            "status": {"conditions": [{"type": condition, "status": "True", "lastTransitionTime": "2026-01-02T03:00:00Z"}]}});
        caches.jobs.put(Arc::new(Job::parse(&job).expect("a job")));
        let now = now.parse().expect("a time");
        let plan = TtlAfterFinishedController.reconcile(&caches, &Key::new("a", "j"), now);
        let policy = plan.actions().find_map(|action| match &action.write {
            Write::Delete { options, .. } => options.propagation_policy,
            _ => None,
        });
        (policy, plan.requeue_after.map(|delay| delay.as_secs()))
    }

    #[test]
    fn finished_jobs_go_when_their_time_is_over() {
        assert_eq!(check(json!(100), "Complete", "2026-01-02T03:00:40Z"), (None, Some(60)));
        assert_eq!(check(json!(100), "Failed", "2026-01-02T03:01:40Z"), (Some("Foreground"), None));
        assert_eq!(check(json!(0), "Complete", "2026-01-02T03:00:00Z"), (Some("Foreground"), None));
        assert_eq!(check(json!(0), "FailureTarget", "2026-01-02T03:00:00Z"), (None, None));
        assert_eq!(check(Value::Null, "Complete", "2027-01-02T03:00:00Z"), (None, None));
    }
}
