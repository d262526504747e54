//! PodDisruptionBudgets: counts what they cover and says how many more may go (`pkg/controller/disruption`).

mod expected;
mod stale_condition;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

pub use stale_condition::StaleConditionController;

use super::caches::Caches;
use super::plan::{Action, Plan};
use super::pod_status::is_ready;
use super::{Controller, Enqueue};
use crate::client::cache::{Cache, Key};
use crate::client::recorder::{EventType, reference};
use crate::client::selector;
use crate::client::typed::{Meta, Object};
use expected::{Expected, Scales};

/// A pod that was announced as evicted but is not deleted within this time stays (`DeletionTimeout`).
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);
/// The condition's type.
const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";

/// The controller.
pub struct DisruptionController;

impl Controller for DisruptionController {
    fn name(&self) -> &'static str {
        "disruption"
    }
    fn account(&self) -> &'static str {
        "disruption-controller"
    }
    fn component(&self) -> &'static str {
        "controllermanager"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.budgets);
        let (budgets, add) = (caches.budgets.clone(), enqueue.clone());
        caches.pods.subscribe(move |change| {
            for pod in change.old.iter().chain(&change.new) {
                let covers = |budget: &PodDisruptionBudget| covers(budget, pod);
                budgets.select(pod.namespace(), covers).iter().for_each(|budget| add.add(Key::of(&**budget)));
            }
        });
        on_scale(&caches.deployments, caches, enqueue, |object| object.spec.as_ref()?.replicas);
        on_scale(&caches.replica_sets, caches, enqueue, |object| object.spec.as_ref()?.replicas);
        on_scale(&caches.stateful_sets, caches, enqueue, |object| object.spec.as_ref()?.replicas);
        on_scale(&caches.replication_controllers, caches, enqueue, |object| object.spec.as_ref()?.replicas);
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let Some(budget) = caches.budgets.get(key) else { return Plan::default() };
        let pods = caches.pods.select(&key.namespace, |pod| covers(&budget, pod));
        reconcile(&budget, &pods, &Scales(caches), now)
    }
}

/// Percentages are of what the controllers of the pods want: their namespace's budgets hear of it.
fn on_scale<T: Object>(cache: &Cache<T>, caches: &Caches, enqueue: &Enqueue, replicas: fn(&T) -> Option<i32>) {
    let (budgets, add) = (caches.budgets.clone(), enqueue.clone());
    cache.subscribe(move |change| {
        let size = |object: &Option<Arc<T>>| object.as_ref().and_then(|object| replicas(object));
        if size(&change.old) != size(&change.new) {
            budgets.in_namespace(change.object().namespace()).iter().for_each(|budget| add.add(Key::of(&**budget)));
        }
    });
}

/// Whether the budget's selector matches the pod; an empty one matches every pod of the namespace.
fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    budget.namespace() == pod.namespace()
        && selector::matches(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()), pod.labels())
}

/// The decision.
fn reconcile(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], scales: &Scales<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut told = Vec::new();
    if pods.is_empty() {
        told.push((EventType::Normal, "NoPods", "No matching pods found".to_owned()));
    }
    let before = budget.status.clone().unwrap_or_default();
    let status = match expected::count(budget, pods, scales) {
        Ok(expected) => {
            if expected.unmanaged {
                told.push((EventType::Warning, "UnmanagedPods", unmanaged(budget)));
            }
            let (disrupted, again) = disrupted(budget, pods, now);
            if let Some(at) = again {
                plan.requeue(Duration::try_from(at.duration_since(now)).unwrap_or_default());
            }
            status(budget, &before, &expected, pods, disrupted, now)
        }
        Err(why) => {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            told.push((EventType::Warning, "CalculateExpectedPodCountFailed", message));
            failed(&before, why, now)
        }
    };
    if budget.status.as_ref() != Some(&status) {
        for (type_, reason, message) in told {
            plan.push(Action::event(reference(budget), type_, reason, message));
        }
        let updated = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        plan.push(Action::update_status(&updated));
    }
    plan
}

fn unmanaged(budget: &PodDisruptionBudget) -> String {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    format!(
        "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the status of \
         the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please \
         set \".spec.minAvailable\" field of the PDB to an integer value.",
        selector.map(selector::go_text).unwrap_or_else(|| "nil".into())
    )
}

/// The announced evictions that are still to come, and when the first of them is given up.
fn disrupted(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Timestamp>) {
    let announced = budget.status.as_ref().and_then(|status| status.disrupted_pods.clone()).unwrap_or_default();
    let (mut left, mut again) = (BTreeMap::new(), None::<Timestamp>);
    for pod in pods.iter().filter(|pod| !pod.is_terminating()) {
        let Some(time) = announced.get(pod.name()) else { continue };
        let until = time.0.saturating_add(DELETION_TIMEOUT).unwrap_or(Timestamp::MAX);
        if until > now {
            again = Some(again.map_or(until, |known| known.min(until)));
            left.insert(pod.name().to_owned(), time.clone());
        }
    }
    (left, again)
}

fn status(
    budget: &PodDisruptionBudget,
    before: &PodDisruptionBudgetStatus,
    expected: &Expected,
    pods: &[Arc<Pod>],
    disrupted: BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let stays = |pod: &&Arc<Pod>| !pod.is_terminating() && is_ready(pod) && !disrupted.contains_key(pod.name());
    let healthy = i32::try_from(pods.iter().filter(stays).count()).unwrap_or(i32::MAX);
    // Nothing is allowed while nothing is expected: the first pods may appear before the next count.
    let allowed = if expected.pods <= 0 { 0 } else { (healthy - expected.healthy).max(0) };
    let observed = budget.metadata.generation;
    let (state, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let condition = Condition {
        type_: DISRUPTION_ALLOWED.into(),
        status: state.into(),
        reason: reason.into(),
        message: String::new(),
        observed_generation: observed,
        last_transition_time: Time(now),
    };
    PodDisruptionBudgetStatus {
        conditions: with_condition(before, condition),
        current_healthy: healthy,
        desired_healthy: expected.healthy,
        disrupted_pods: Some(disrupted).filter(|pods| !pods.is_empty()),
        disruptions_allowed: allowed,
        expected_pods: expected.pods,
        observed_generation: observed,
    }
}

/// When nothing can be counted nothing may go (`failSafe`).
fn failed(before: &PodDisruptionBudgetStatus, why: String, now: Timestamp) -> PodDisruptionBudgetStatus {
    let condition = Condition {
        type_: DISRUPTION_ALLOWED.into(),
        status: "False".into(),
        reason: "SyncFailed".into(),
        message: why,
        observed_generation: before.observed_generation,
        last_transition_time: Time(now),
    };
    PodDisruptionBudgetStatus {
        disruptions_allowed: 0,
        conditions: with_condition(before, condition),
        ..before.clone()
    }
}

/// The conditions with another one; its transition time changes only with its status (`SetStatusCondition`).
fn with_condition(before: &PodDisruptionBudgetStatus, mut new: Condition) -> Option<Vec<Condition>> {
    let mut conditions = before.conditions.clone().unwrap_or_default();
    match conditions.iter_mut().find(|known| known.type_ == new.type_) {
        Some(known) => {
            if known.status == new.status {
                new.last_transition_time = known.last_transition_time.clone();
            }
            *known = new;
        }
        None => conditions.push(new),
    }
    Some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().expect("a time")
    }

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let metadata = json!({"name": "pdb", "namespace": "a", "uid": "pdb", "generation": 1});
        let mut spec = spec;
        spec["selector"] = json!({"matchLabels": {"app": "web"}});
        PodDisruptionBudget::parse(&json!({"metadata": metadata, "spec": spec, "status": status})).expect("a budget")
    }

    fn put_pod(caches: &Caches, name: &str, ready: bool) {
        let pod = json!({
            "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"}, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "set", "controller": true}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        caches.pods.put(Arc::new(Pod::parse(&pod).expect("a pod")));
    }

    fn set_of_four(caches: &Caches) {
        let set = json!({"metadata": {"name": "web", "namespace": "a", "uid": "set"},
            "spec": {"replicas": 4, "selector": {}}});
        caches.replica_sets.put(Arc::new(Object::parse(&set).expect("a set")));
    }

    fn written(caches: &Caches, budget: PodDisruptionBudget) -> Value {
        let key = Key::of(&budget);
        caches.budgets.put(Arc::new(budget));
        let plan = DisruptionController.reconcile(caches, &key, now());
        let write = plan.actions().last().map(|action| action.write.clone());
        match write {
            Some(super::super::plan::Write::Update { object, .. }) => object["status"].clone(),
            None => Value::Null,
            other => panic!("the last write is the status, not {other:?}"),
        }
    }

    #[test]
    fn what_is_healthy_beyond_the_wanted_number_may_go() {
        let caches = Caches::default();
        set_of_four(&caches);
        (0..4).for_each(|index| put_pod(&caches, &format!("p{index}"), index != 3));
        let counts = |spec: Value| {
            let status = written(&caches, budget(spec, Value::Null));
            ["currentHealthy", "desiredHealthy", "expectedPods", "disruptionsAllowed"]
                .map(|field| status[field].as_i64())
        };
        assert_eq!(counts(json!({"maxUnavailable": 2})), [Some(3), Some(2), Some(4), Some(1)]);
        assert_eq!(counts(json!({"maxUnavailable": "30%"})), [Some(3), Some(2), Some(4), Some(1)]);
        assert_eq!(counts(json!({"minAvailable": 3})), [Some(3), Some(3), Some(4), Some(0)]);
        assert_eq!(counts(json!({"minAvailable": "50%"})), [Some(3), Some(2), Some(4), Some(1)]);
    }

    #[test]
    fn announced_evictions_count_until_they_are_given_up() {
        let caches = Caches::default();
        set_of_four(&caches);
        (0..4).for_each(|index| put_pod(&caches, &format!("p{index}"), true));
        let announced = |time: &str| {
            json!({"disruptedPods": {"p0": time, "gone": time}, "disruptionsAllowed": 0,
            "currentHealthy": 4, "desiredHealthy": 2, "expectedPods": 4})
        };
        let status = written(&caches, budget(json!({"minAvailable": 2}), announced("2026-01-02T03:04:00Z")));
        assert_eq!((&status["currentHealthy"], &status["disruptionsAllowed"]), (&json!(3), &json!(1)));
        assert_eq!(status["disruptedPods"], json!({"p0": "2026-01-02T03:04:00Z"}));
        let status = written(&caches, budget(json!({"minAvailable": 2}), announced("2026-01-02T03:02:00Z")));
        assert_eq!((&status["currentHealthy"], &status["disruptedPods"]), (&json!(4), &Value::Null));
    }

    #[test]
    fn pods_of_unknown_controllers_block_everything() {
        let caches = Caches::default();
        put_pod(&caches, "p", true);
        let status = written(&caches, budget(json!({"maxUnavailable": 1}), Value::Null));
        let condition = &status["conditions"][0];
        assert_eq!((&status["disruptionsAllowed"], &condition["reason"]), (&json!(0), &json!("SyncFailed")));
        assert_eq!(condition["message"], "found no controllers for pod \"p\"");
    }

    #[test]
    fn a_status_that_is_right_is_not_written_again() {
        let caches = Caches::default();
        set_of_four(&caches);
        (0..4).for_each(|index| put_pod(&caches, &format!("p{index}"), true));
        let first = written(&caches, budget(json!({"maxUnavailable": 1}), Value::Null));
        assert_eq!(written(&caches, budget(json!({"maxUnavailable": 1}), first)), Value::Null);
    }
}
