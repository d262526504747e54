//! Single reconciles of Deployments; whole rollouts are in the simulation.

use serde_json::{Value, json};

use super::*;
use crate::client::Object;
use crate::controllers::plan::Write;

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().expect("a time")
}

fn deployment(change: impl FnOnce(&mut Value)) -> Arc<Deployment> {
    let mut value = json!({
        "metadata": {"name": "web", "namespace": "a", "uid": "d", "generation": 1, "annotations": {"note": "x"}},
        "spec": {"replicas": 10, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 10,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}},
    });
    change(&mut value);
    Arc::new(Deployment::parse(&value).expect("a deployment"))
}

/// A set with this image, `size` wanted and `available` available.
fn set(name: &str, image: &str, size: i32, available: i32, revision: &str) -> Arc<ReplicaSet> {
    let value = json!({
        "metadata": {"name": name, "namespace": "a", "uid": name, "generation": 1, "labels": {"app": "web"},
            "creationTimestamp": "2026-01-02T03:00:00Z",
            "annotations": {"note": "x", "deployment.kubernetes.io/revision": revision,
                "deployment.kubernetes.io/desired-replicas": "10", "deployment.kubernetes.io/max-replicas": "13"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true}]},
        "spec": {"replicas": size, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web", "pod-template-hash": name}},
                "spec": {"containers": [{"name": "c", "image": image}]}}},
        "status": {"replicas": size, "availableReplicas": available, "readyReplicas": available, "observedGeneration": 1},
    });
    Arc::new(ReplicaSet::parse(&value).expect("a set"))
}

fn plan(deployment: Arc<Deployment>, sets: Vec<Arc<ReplicaSet>>) -> Plan {
    reconcile(&Snapshot { deployment, sets, pods: Vec::new() }, now())
}

/// The messages of `ScalingReplicaSet`.
fn scaled(plan: &Plan) -> Vec<String> {
    let told = plan.actions().filter_map(|action| action.told.as_ref()?.success.clone());
    told.map(|(_, _, message)| message).collect()
}

fn status(plan: &Plan) -> Value {
    let last = plan.actions().last().expect("a write");
    let Write::Update { object, subresource: "status", .. } = &last.write else { panic!("no status: {last:?}") };
    object.clone()
}

#[test]
fn a_new_deployment_gets_its_set_at_once() {
    let plan = plan(deployment(|_| {}), Vec::new());
    let Write::Create { object, .. } = &plan.actions().next().expect("a create").write else { panic!("no create") };
    assert_eq!(object["spec"]["replicas"], 10);
    let annotations = json!({"note": "x", "deployment.kubernetes.io/revision": "1",
        "deployment.kubernetes.io/desired-replicas": "10", "deployment.kubernetes.io/max-replicas": "13"});
    assert_eq!(object["metadata"]["annotations"], annotations);
    let name = object["metadata"]["name"].as_str().expect("a name");
    assert_eq!(scaled(&plan), [format!("Scaled up replica set {name} from 0 to 10")]);
    let object = status(&plan);
    assert_eq!(object["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    assert_eq!(object["status"]["conditions"][0]["message"], format!("Created new replica set {name:?}"));
}

#[test]
fn a_rolling_update_goes_step_by_step() {
    let image = |value: &mut Value| value["spec"]["template"]["spec"]["containers"][0]["image"] = "i:2".into();
    // The first step: the surge.
    let first = plan(deployment(image), vec![set("old", "i:1", 10, 10, "1")]);
    assert!(scaled(&first)[0].ends_with("from 0 to 3"), "{:?}", scaled(&first));
    // The surge is full: old ones go down to the floor of 8 available.
    let second = plan(deployment(image), vec![set("old", "i:1", 10, 10, "1"), set("new", "i:2", 3, 0, "2")]);
    assert_eq!(scaled(&second), ["Scaled down replica set old from 10 to 8"]);
    let third = plan(deployment(image), vec![set("old", "i:1", 8, 8, "1"), set("new", "i:2", 3, 0, "2")]);
    assert_eq!(scaled(&third), ["Scaled up replica set new from 3 to 5"]);
    // New ones that never become available stop the rollout.
    let stuck = plan(deployment(image), vec![set("old", "i:1", 8, 8, "1"), set("new", "i:2", 5, 0, "2")]);
    assert!(scaled(&stuck).is_empty());
}

#[test]
fn an_annotation_reaches_the_new_set_without_a_rollout() {
    // `kubectl annotate deployment/web kubernetes.io/change-cause=…` after a rollout, as the page "Deployments" does it.
    let cause = |value: &mut Value| value["metadata"]["annotations"]["kubernetes.io/change-cause"] = "first".into();
    let plan = plan(deployment(cause), vec![set("one", "i:1", 10, 10, "1")]);
    let written = plan.actions().find_map(|action| match &action.write {
        Write::Update { object, subresource: "", .. } => Some(object.clone()),
        _ => None,
    });
    let written = written.expect("an update of the set");
    assert_eq!(written["metadata"]["name"], "one");
    assert_eq!(written["metadata"]["annotations"]["kubernetes.io/change-cause"], "first");
    assert!(scaled(&plan).is_empty());
}

#[test]
fn a_rollback_reuses_the_old_set_under_a_new_revision() {
    let sets = vec![set("one", "i:1", 0, 0, "1"), set("two", "i:2", 10, 10, "2")];
    let plan = plan(deployment(|_| {}), sets);
    let Write::Update { object, .. } = &plan.actions().next().expect("an update").write else { panic!("no update") };
    assert_eq!(object["metadata"]["name"], "one");
    assert_eq!(object["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    assert_eq!(object["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"], "1");
    assert_eq!(scaled(&plan), ["Scaled up replica set one from 0 to 3"]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    // The example of the documentation: 10 -> 15 with 8 old and 5 new of at most 13, surge 3.
    let deployment = deployment(|value| {
        value["spec"]["replicas"] = 15.into();
        value["spec"]["strategy"]["rollingUpdate"] = json!({"maxSurge": 3, "maxUnavailable": 2});
        value["spec"]["template"]["spec"]["containers"][0]["image"] = "i:2".into();
    });
    let plan = plan(deployment, vec![set("old", "i:1", 8, 8, "1"), set("new", "i:2", 5, 0, "2")]);
    let expected = ["Scaled up replica set old from 8 to 11", "Scaled up replica set new from 5 to 7"];
    assert_eq!(scaled(&plan), expected);
}

#[test]
fn a_complete_rollout_says_so_and_is_cleaned_up() {
    let deployment = deployment(|value| {
        value["spec"]["revisionHistoryLimit"] = 1.into();
        value["status"] = json!({"observedGeneration": 1, "replicas": 10, "updatedReplicas": 10, "readyReplicas": 10,
            "availableReplicas": 10});
    });
    let sets = vec![set("three", "i:1", 10, 10, "3"), set("two", "i:2", 0, 0, "2"), set("one", "i:0", 0, 0, "1")];
    let plan = plan(deployment, sets);
    let deleted = plan.actions().filter_map(|action| match &action.write {
        Write::Delete { key, .. } => Some(key.name.as_str()),
        _ => None,
    });
    let deleted: Vec<_> = deleted.collect();
    assert_eq!(deleted, ["one"]);
    let messages: Vec<_> = status(&plan)["status"]["conditions"].as_array().into_iter().flatten().cloned().collect();
    let progressing = messages.iter().find(|condition| condition["type"] == "Progressing").expect("a condition");
    assert_eq!(progressing["reason"], "NewReplicaSetAvailable");
    assert_eq!(progressing["message"], "ReplicaSet \"three\" has successfully progressed.");
}

#[test]
fn the_deadline_is_awaited_and_then_told() {
    let since = |seconds: i64| {
        let time = crate::env::rfc3339(now() - jiff::SignedDuration::from_secs(seconds));
        deployment(move |value| {
            value["status"] = json!({"observedGeneration": 1, "replicas": 10, "updatedReplicas": 10, "unavailableReplicas": 10,
                "terminatingReplicas": 0,
                "conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
                    "lastUpdateTime": time, "lastTransitionTime": time}]});
        })
    };
    let waiting = plan(since(590), vec![set("one", "i:1", 10, 0, "1")]);
    assert_eq!(waiting.requeue_after.map(|delay| delay.as_secs()), Some(11));
    let late = plan(since(601), vec![set("one", "i:1", 10, 0, "1")]);
    let conditions = status(&late)["status"]["conditions"].clone();
    let progressing = conditions.as_array().into_iter().flatten().find(|c| c["type"] == "Progressing").cloned();
    let progressing = progressing.expect("a condition");
    assert_eq!(progressing["reason"], "ProgressDeadlineExceeded");
    assert_eq!(progressing["message"], "ReplicaSet \"one\" has timed out progressing.");
    assert_eq!(late.requeue_after, None);
}
