//! Keeping a number of equal pods: what ReplicaSets and ReplicationControllers have in common (`pkg/controller/replicaset`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};

use super::plan::{Action, Plan, Step};
use super::pod_status::{available_at, is_active, is_finished, is_ready};
use super::{Enqueue, ownership, pod_control};
use crate::client::cache::{Cache, Key};
use crate::client::selector;
use crate::client::typed::{Meta, Typed};

/// Creates or deletes at most this many pods per reconcile (`BurstReplicas`).
const BURST: usize = 500;

/// A kind that keeps a number of pods.
pub trait Replicated: Typed + Clone {
    /// What its specification asks for; `None` without a specification.
    fn wanted(&self) -> Option<Wanted>;
    /// Whether its selector matches these labels.
    fn selects(&self, labels: &BTreeMap<String, String>) -> bool;
    /// Its status in the shape of a ReplicaSet's.
    fn status(&self) -> Option<ReplicaSetStatus>;
    /// The object with another status.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

/// What is asked for.
pub struct Wanted {
    /// `spec.replicas`.
    pub replicas: i32,
    /// `spec.minReadySeconds`.
    pub min_ready_seconds: i32,
    /// `spec.selector`.
    pub selector: LabelSelector,
    /// `spec.template`.
    pub template: Option<PodTemplateSpec>,
}

/// What a reconcile sees.
pub struct Snapshot<T> {
    /// The set.
    pub set: Arc<T>,
    /// The pods of its namespace that are its own or nobody's.
    pub pods: Vec<Arc<Pod>>,
    /// Pods of all sets with the same controller.
    pub related: Vec<Arc<Pod>>,
}

/// Adds the set of every pod that changes, and for orphans all sets that would adopt them.
pub fn watch<T: Replicated>(sets: &Cache<T>, pods: &Cache<Pod>, enqueue: &Enqueue) {
    enqueue.on_change(sets);
    let (sets, add) = (sets.clone(), enqueue.clone());
    pods.subscribe(move |change| {
        for pod in change.old.iter().chain(&change.new) {
            match pod.controller() {
                Some(owner) if owner.kind == T::KIND => add.add(Key::new(pod.namespace(), &*owner.name)),
                Some(_) => {}
                None => {
                    let wants = |set: &T| set.selects(pod.labels());
                    sets.select(pod.namespace(), wants).iter().for_each(|set| add.add(Key::of(&**set)));
                }
            }
        }
    });
}

/// The decision.
pub fn reconcile<T: Replicated>(snapshot: &Snapshot<T>, now: Timestamp) -> Plan {
    let set = &*snapshot.set;
    let mut plan = Plan::default();
    let Some(spec) = set.wanted() else { return plan };
    let candidates = snapshot.pods.iter().filter(|pod| !is_finished(pod)).cloned();
    let (claimed, adoptions) = ownership::claim(set, Some(&spec.selector), candidates);
    adoptions.into_iter().for_each(|action| plan.push(action));
    let (pods, terminating): (Vec<_>, Vec<_>) = claimed.into_iter().partition(|pod| is_active(pod));

    let wanted = usize::try_from(spec.replicas).unwrap_or_default();
    let mut reason = "FailedCreate";
    if !set.is_terminating() {
        if pods.len() < wanted {
            let count = (wanted - pods.len()).min(BURST);
            let pod = pod_control::from_template(set, &spec.template.clone().unwrap_or_default());
            plan.steps.push(Step::SlowStart(vec![pod_control::create(set, &pod); count]));
        } else if pods.len() > wanted {
            reason = "FailedDelete";
            let mut victims = pods.clone();
            pod_control::rank(&mut victims, &snapshot.related, now);
            victims.truncate((pods.len() - wanted).min(BURST));
            plan.steps.push(Step::All(victims.iter().map(|pod| pod_control::delete(set, pod)).collect()));
        }
    }

    let status = status(set, &spec, &pods, &terminating, now);
    let updated = set.with_status(status.clone());
    if updated.status() != set.status() {
        plan.push(Action::update_status(&updated));
    }
    let failed = set.clone();
    plan.on_failure = Some(Box::new(move |error| {
        let before = failed.status();
        let known = before.iter().flat_map(|status| status.conditions.iter().flatten());
        let known = known.into_iter().find(|condition| condition.type_ == "ReplicaFailure").cloned();
        let condition = known.unwrap_or_else(|| ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(error.message.clone()),
            last_transition_time: Some(Time(now)),
        });
        let mut status = status;
        status.conditions.get_or_insert_default().push(condition);
        let updated = failed.with_status(status);
        if updated.status() == before { Vec::new() } else { vec![Action::update_status(&updated)] }
    }));
    // Availability comes with time alone: look again when the next pod has been ready for long enough.
    let next = pods.iter().filter_map(|pod| available_at(pod, spec.min_ready_seconds)).filter(|at| *at > now).min();
    if let Some(at) = next {
        plan.requeue(Duration::try_from(at.duration_since(now)).unwrap_or_default());
    }
    plan
}

fn count(pods: &[Arc<Pod>], what: impl Fn(&Pod) -> bool) -> Option<i32> {
    let number = i32::try_from(pods.iter().filter(|pod| what(pod)).count()).unwrap_or(i32::MAX);
    (number > 0).then_some(number)
}

fn status<T: Replicated>(
    set: &T,
    spec: &Wanted,
    pods: &[Arc<Pod>],
    terminating: &[Arc<Pod>],
    now: Timestamp,
) -> ReplicaSetStatus {
    let template = spec.template.as_ref().and_then(|template| template.metadata.as_ref());
    let template = template.and_then(|meta| meta.labels.clone()).unwrap_or_default();
    // The failure is over: had this reconcile's writes failed again, they would say so.
    let conditions = set.status().and_then(|status| status.conditions).unwrap_or_default();
    let conditions: Vec<_> = conditions.into_iter().filter(|c| c.type_ != "ReplicaFailure").collect();
    ReplicaSetStatus {
        replicas: count(pods, |_| true).unwrap_or_default(),
        fully_labeled_replicas: count(pods, |pod| selector::contains(pod.labels(), &template)),
        ready_replicas: count(pods, is_ready),
        available_replicas: count(pods, |pod| available_at(pod, spec.min_ready_seconds).is_some_and(|at| at <= now)),
        terminating_replicas: Some(count(terminating, |_| true).unwrap_or_default()),
        observed_generation: set.metadata().generation,
        conditions: Some(conditions).filter(|conditions| !conditions.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::pod_control::rank;
    use super::*;
    use crate::client::Object;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().expect("a time")
    }

    fn set(replicas: i64) -> Arc<ReplicaSet> {
        let value = json!({
            "metadata": {"name": "web-1", "namespace": "a", "uid": "set", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
        });
        Arc::new(ReplicaSet::parse(&value).expect("a set"))
    }

    fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"},
                "creationTimestamp": "2026-01-02T03:00:00Z",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "set", "controller": true}]},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:01:00Z"}]},
        });
        change(&mut value);
        Arc::new(Pod::parse(&value).expect("a pod"))
    }

    fn plan(replicas: i64, pods: Vec<Arc<Pod>>) -> Plan {
        reconcile(&Snapshot { set: set(replicas), related: pods.clone(), pods }, now())
    }

    fn words(plan: &Plan) -> Vec<String> {
        let told = plan.actions().filter_map(|action| action.told.as_ref()?.success.clone());
        told.map(|(_, _, message)| message).collect()
    }

    #[test]
    fn missing_pods_are_created_and_status_counts_what_is() {
        let plan = plan(3, vec![pod("one", |_| {})]);
        assert_eq!(words(&plan), ["Created pod: {name}", "Created pod: {name}"]);
        let super::super::plan::Write::Update { object, subresource, .. } =
            &plan.actions().last().expect("a status").write
        else {
            panic!("the last write is the status")
        };
        assert_eq!(*subresource, "status");
        assert_eq!(
            object["status"],
            json!({"replicas": 1, "fullyLabeledReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
                "terminatingReplicas": 0, "observedGeneration": 1})
        );
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let ready = pod("ready", |_| {});
        let unassigned = pod("unassigned", |pod| pod["spec"]["nodeName"] = Value::Null);
        let pending = pod("pending", |pod| pod["status"]["phase"] = "Pending".into());
        let unready = pod("unready", |pod| pod["status"]["conditions"] = json!([]));
        let cheap = pod("cheap", |pod| {
            pod["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": "-1"});
        });
        let young = pod("young", |pod| {
            pod["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-02T03:04:04Z".into();
        });
        let mut pods = vec![ready, young, cheap, unready, pending, unassigned];
        rank(&mut pods, &[], now());
        let names: Vec<&str> = pods.iter().map(|pod| pod.name()).collect();
        assert_eq!(names, ["unassigned", "pending", "unready", "cheap", "young", "ready"]);
        assert_eq!(words(&plan(5, pods)), ["Deleted pod: unassigned"]);
    }

    #[test]
    fn orphans_are_adopted_and_strangers_released() {
        let orphan = pod("orphan", |pod| pod["metadata"]["ownerReferences"] = Value::Null);
        let stranger = pod("stranger", |pod| pod["metadata"]["labels"] = json!({"app": "other"}));
        let finished = pod("finished", |pod| pod["status"]["phase"] = "Succeeded".into());
        let plan = plan(1, vec![orphan, stranger, finished]);
        let patches = plan.actions().filter(|a| matches!(a.write, super::super::plan::Write::Patch { .. })).count();
        assert_eq!((patches, words(&plan).len()), (2, 0));
    }
}
