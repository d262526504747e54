//! Single rounds of StatefulSets; whole lives are in the simulation.

use serde_json::{Value, json};

use super::*;
use crate::client::Object;
use crate::controllers::history;
use crate::controllers::plan::Write;

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().expect("a time")
}

fn set(change: impl FnOnce(&mut Value)) -> Arc<StatefulSet> {
    let mut value = json!({
        "metadata": {"name": "web", "namespace": "a", "uid": "set", "generation": 1},
        "spec": {"replicas": 3, "serviceName": "nginx", "selector": {"matchLabels": {"app": "nginx"}},
            "podManagementPolicy": "OrderedReady", "revisionHistoryLimit": 10,
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "template": {"metadata": {"labels": {"app": "nginx"}},
                "spec": {"containers": [{"name": "c", "image": "i:1"}], "volumes": [{"name": "tmp", "emptyDir": {}}]}}},
    });
    change(&mut value);
    Arc::new(StatefulSet::parse(&value).expect("a set"))
}

fn parallel(value: &mut Value) {
    value["spec"]["podManagementPolicy"] = "Parallel".into();
}

fn image(image: &str) -> impl Fn(&mut Value) {
    let image = image.to_owned();
    move |value| value["spec"]["template"]["spec"]["containers"][0]["image"] = image.clone().into()
}

fn with_claims(value: &mut Value) {
    value["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "www", "labels": {"tier": "web"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
}

/// The revision that stores the template of a set.
fn revision(set: &StatefulSet, number: i64) -> Arc<ControllerRevision> {
    let template = &set.spec.as_ref().expect("a spec").template;
    let hash = history::hash(&history::patch(template), 0);
    let mut revision = history::build(set, format!("web-{hash}"), ("hash", hash), template, number);
    revision.metadata.uid = Some(format!("revision-{number}"));
    Arc::new(revision)
}

/// A pod of a revision that is `ready`, `running`, `pending`, `failed` or `terminating` (and ready).
fn pod(ordinal: i64, of: &ControllerRevision, state: &str) -> Arc<Pod> {
    let name = format!("web-{ordinal}");
    let phase = match state {
        "pending" => "Pending",
        "failed" => "Failed",
        _ => "Running",
    };
    let ready = if ["ready", "terminating"].contains(&state) { "True" } else { "False" };
    let mut value = json!({
        "metadata": {"name": name, "namespace": "a", "uid": name,
            "labels": {"app": "nginx", "controller-revision-hash": of.name(), "statefulset.kubernetes.io/pod-name": name},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "set", "controller": true}]},
        "spec": {"containers": []},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-02T03:04:00Z"}]},
    });
    if state == "terminating" {
        value["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
    }
    Arc::new(Pod::parse(&value).expect("a pod"))
}

fn changed(pod: &Pod, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let mut value = crate::client::typed::to_value(pod);
    change(&mut value);
    Arc::new(Pod::parse(&value).expect("a pod"))
}

fn claim(ordinal: i64, owners: Value) -> Arc<PersistentVolumeClaim> {
    let name = format!("www-web-{ordinal}");
    let value = json!({"metadata": {"name": name, "namespace": "a", "uid": name, "ownerReferences": owners}});
    Arc::new(PersistentVolumeClaim::parse(&value).expect("a claim"))
}

fn plan(set: Arc<StatefulSet>, revisions: Vec<Arc<ControllerRevision>>, pods: Vec<Arc<Pod>>) -> Plan {
    reconcile(&Snapshot { set, pods, revisions, claims: Vec::new() }, now())
}

/// What the plan does to pods and claims, in the order of its steps.
fn acts(plan: &Plan) -> Vec<String> {
    let act = |action: &Action| match &action.write {
        Write::Create { gvr, object, .. } if gvr.resource != "controllerrevisions" => {
            Some(format!("create {}", crate::api::meta::name(object)))
        }
        Write::Delete { gvr, key, .. } if gvr.resource != "controllerrevisions" => Some(format!("delete {}", key.name)),
        Write::Patch { key, .. } => Some(format!("patch {}", key.name)),
        Write::Update { gvr, key, subresource: "", .. } if gvr.resource != "controllerrevisions" => {
            Some(format!("update {}", key.name))
        }
        _ => None,
    };
    plan.actions().filter_map(act).collect()
}

fn check(set: Arc<StatefulSet>, revisions: &[Arc<ControllerRevision>], pods: &[Arc<Pod>], expected: &[&str]) {
    assert_eq!(acts(&plan(set, revisions.to_vec(), pods.to_vec())), expected);
}

fn status(plan: &Plan) -> Value {
    let write = plan.actions().find_map(|action| match &action.write {
        Write::Update { object, subresource: "status", .. } => Some(object["status"].clone()),
        _ => None,
    });
    write.expect("a status")
}

#[test]
fn the_first_round_makes_the_first_pod_and_its_claims() {
    let set = set(with_claims);
    let plan = plan(set.clone(), Vec::new(), Vec::new());
    assert_eq!(acts(&plan), ["create www-web-0", "create web-0"]);
    let created: Vec<Value> = plan
        .actions()
        .filter_map(|action| match &action.write {
            Write::Create { object, .. } => Some(object.clone()),
            _ => None,
        })
        .collect();
    let [revision, claim, pod] = created.as_slice() else { panic!("three objects: {created:?}") };
    let name = revision["metadata"]["name"].as_str().expect("a name");
    assert_eq!(revision["revision"], 1);
    assert_eq!(revision["data"]["spec"]["template"]["$patch"], "replace");
    assert_eq!(revision["metadata"]["labels"]["app"], "nginx");
    assert_eq!(claim["metadata"]["labels"], json!({"app": "nginx", "tier": "web"}));
    let labels = json!({"app": "nginx", "controller-revision-hash": name, "apps.kubernetes.io/pod-index": "0",
        "statefulset.kubernetes.io/pod-name": "web-0"});
    assert_eq!(pod["metadata"]["labels"], labels);
    assert_eq!(pod["metadata"]["generateName"], "web-");
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&"web-0".into(), &"nginx".into()));
    let volumes =
        json!([{"name": "www", "persistentVolumeClaim": {"claimName": "www-web-0"}}, {"name": "tmp", "emptyDir": {}}]);
    assert_eq!(pod["spec"]["volumes"], volumes);
    let words: Vec<String> =
        plan.actions().filter_map(|a| Some(a.told.as_ref()?.success.as_ref()?.2.clone())).collect();
    let expected = [
        "create Claim www-web-0 Pod web-0 in StatefulSet web success",
        "create Pod web-0 in StatefulSet web successful",
    ];
    assert_eq!(words, expected);
    let expected = json!({"observedGeneration": 1, "replicas": 0, "availableReplicas": 0, "collisionCount": 0,
        "currentRevision": name, "updateRevision": name});
    assert_eq!(status(&plan), expected);
}

#[test]
fn each_pod_waits_for_the_one_before() {
    let one = revision(&set(|_| {}), 1);
    for state in ["pending", "running", "terminating"] {
        check(set(|_| {}), std::slice::from_ref(&one), &[pod(0, &one, state)], &[]);
    }
    check(set(|_| {}), std::slice::from_ref(&one), &[pod(0, &one, "ready")], &["create web-1"]);
    // A gap is filled before anything else.
    check(set(|_| {}), std::slice::from_ref(&one), &[pod(0, &one, "ready"), pod(2, &one, "ready")], &["create web-1"]);
    check(set(parallel), std::slice::from_ref(&one), &[pod(1, &one, "pending")], &["create web-0", "create web-2"]);
}

#[test]
fn ordinals_may_start_anywhere() {
    let set = set(|value| {
        parallel(value);
        value["spec"]["ordinals"] = json!({"start": 5});
    });
    let one = revision(&set, 1);
    let pods = [pod(0, &one, "ready"), pod(5, &one, "ready")];
    check(set, &[one], &pods, &["create web-6", "create web-7", "delete web-0"]);
}

#[test]
fn scaling_down_goes_backwards_and_waits() {
    let small = |value: &mut Value| value["spec"]["replicas"] = 1.into();
    let one = revision(&set(|_| {}), 1);
    let history = std::slice::from_ref(&one);
    let ready = [pod(0, &one, "ready"), pod(1, &one, "ready"), pod(2, &one, "ready")];
    check(set(small), history, &ready, &["delete web-2"]);
    let going = [pod(0, &one, "ready"), pod(1, &one, "ready"), pod(2, &one, "terminating")];
    check(set(small), history, &going, &[]);
    // Something below is unwell: wait. What is itself the first that is unwell may go.
    let below = [pod(0, &one, "ready"), pod(1, &one, "running"), pod(2, &one, "running")];
    check(set(small), history, &below, &[]);
    let last = [pod(0, &one, "ready"), pod(1, &one, "ready"), pod(2, &one, "running")];
    check(set(small), history, &last, &["delete web-2"]);
    let first = [pod(0, &one, "running"), pod(1, &one, "ready")];
    check(set(small), history, &first, &[]);
    let ended = [pod(0, &one, "ready"), pod(1, &one, "failed"), pod(2, &one, "failed")];
    check(set(small), history, &ended, &["delete web-2"]);
    let both = |value: &mut Value| {
        small(value);
        parallel(value);
    };
    check(set(both), history, &going, &["delete web-1"]);
    check(set(both), history, &first, &["delete web-1"]);
}

#[test]
fn updates_go_backwards_one_by_one() {
    let (one, new) = (revision(&set(|_| {}), 1), set(image("i:2")));
    let two = revision(&new, 2);
    let history = [one.clone(), two.clone()];
    let old = [pod(0, &one, "ready"), pod(1, &one, "ready"), pod(2, &one, "ready")];
    check(new.clone(), &history, &old, &["delete web-2"]);
    check(new.clone(), &history, &[old[0].clone(), old[1].clone()], &["create web-2"]);
    let waiting = [old[0].clone(), old[1].clone(), pod(2, &two, "running")];
    check(new.clone(), &history, &waiting, &[]);
    let next = [old[0].clone(), old[1].clone(), pod(2, &two, "ready")];
    check(new, &history, &next, &["delete web-1"]);
    let on_delete = set(|value| {
        image("i:2")(value);
        value["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
    });
    check(on_delete.clone(), &history, &old, &[]);
    check(on_delete, &history, &old[..2], &["create web-2"]);
}

#[test]
fn a_partition_keeps_what_is_below_it() {
    let one = revision(&set(|_| {}), 1);
    let canary = |partition: i32| {
        let current = one.name().to_owned();
        set(move |value| {
            image("i:2")(value);
            value["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = partition.into();
            value["status"] = json!({"replicas": 3, "currentRevision": current});
        })
    };
    let history = [one.clone(), revision(&canary(0), 2)];
    let old = [pod(0, &one, "ready"), pod(1, &one, "ready"), pod(2, &one, "ready")];
    check(canary(3), &history, &old, &[]);
    check(canary(2), &history, &old, &["delete web-2"]);
    let made = |partition: i32, pods: &[Arc<Pod>]| {
        let plan = plan(canary(partition), history.to_vec(), pods.to_vec());
        let pod = plan.actions().find_map(|action| match &action.write {
            Write::Create { object, .. } => Some(object["spec"]["containers"][0]["image"].clone()),
            _ => None,
        });
        pod.expect("a pod")
    };
    assert_eq!(made(2, &old[..1]), "i:1");
    assert_eq!(made(2, &old[..2]), "i:2");
}

#[test]
fn several_may_be_unavailable_where_that_is_asked_for() {
    let (one, most) = (revision(&set(|_| {}), 1), |most: Value, parallel_too: bool| {
        set(move |value| {
            image("i:2")(value);
            value["spec"]["replicas"] = 4.into();
            value["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] = most;
            if parallel_too {
                parallel(value);
            }
        })
    });
    let two = revision(&most(1.into(), false), 2);
    let history = [one.clone(), two.clone()];
    let all =
        |states: [&str; 4]| -> Vec<Arc<Pod>> { (0..).zip(states).map(|(n, state)| pod(n, &one, state)).collect() };
    check(most(2.into(), false), &history, &all(["ready"; 4]), &["delete web-3", "delete web-2"]);
    check(most("50%".into(), true), &history, &all(["ready"; 4]), &["delete web-3", "delete web-2"]);
    check(most("10%".into(), true), &history, &all(["ready"; 4]), &["delete web-3"]);
    // What is unavailable anyway is replaced at once, and uses up the room.
    let broken = all(["running", "ready", "ready", "ready"]);
    check(most(2.into(), true), &history, &broken, &["delete web-0", "delete web-3"]);
    check(most(1.into(), true), &history, &broken, &["delete web-0"]);
    let mut waiting = all(["ready"; 4]);
    waiting[3] = pod(3, &two, "running");
    check(most(1.into(), true), &history, &waiting, &[]);
}

#[test]
fn a_pod_that_ended_is_made_anew() {
    let one = revision(&set(|_| {}), 1);
    let history = std::slice::from_ref(&one);
    check(set(|_| {}), history, &[pod(0, &one, "failed"), pod(1, &one, "ready")], &["delete web-0"]);
    let pods = [pod(0, &one, "failed"), pod(1, &one, "ready")];
    check(set(parallel), history, &pods, &["create web-2", "delete web-0"]);
}

#[test]
fn orphans_with_a_fitting_name_are_adopted() {
    let one = revision(&set(|_| {}), 1);
    let orphan = |name: &str| {
        let pod = pod(1, &one, "ready");
        changed(&pod, |value| {
            value["metadata"]["ownerReferences"] = Value::Null;
            value["metadata"]["name"] = name.into();
            value["metadata"]["uid"] = name.into();
        })
    };
    let found = [orphan("web-1"), orphan("db-0"), orphan("web-x")];
    check(set(|_| {}), std::slice::from_ref(&one), &found, &["patch web-1", "create web-0"]);
    // Revisions too.
    let mut free = (*one).clone();
    free.metadata.owner_references = None;
    free.metadata.labels.get_or_insert_default().insert("app".into(), "nginx".into());
    let name = format!("patch {}", one.name());
    check(set(|_| {}), &[Arc::new(free)], &[pod(0, &one, "running")], &[&name]);
}

#[test]
fn a_name_that_is_taken_is_waited_for() {
    let one = revision(&set(|_| {}), 1);
    let stranger =
        changed(&pod(0, &one, "ready"), |value| value["metadata"]["ownerReferences"][0]["uid"] = "other".into());
    check(set(|_| {}), std::slice::from_ref(&one), std::slice::from_ref(&stranger), &[]);
    check(set(parallel), std::slice::from_ref(&one), &[stranger], &["create web-1", "create web-2"]);
}

#[test]
fn lost_labels_come_back() {
    let one = revision(&set(|_| {}), 1);
    let bare = changed(&pod(0, &one, "ready"), |value| {
        value["metadata"]["labels"] = json!({"app": "nginx", "controller-revision-hash": one.name()});
    });
    check(set(|_| {}), std::slice::from_ref(&one), &[bare], &["update web-0", "create web-1"]);
}

#[test]
fn claims_follow_the_policy() {
    let keep = |value: &mut Value| {
        with_claims(value);
        value["spec"]["replicas"] = 1.into();
        value["spec"]["persistentVolumeClaimRetentionPolicy"] =
            json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
    };
    let one = revision(&set(keep), 1);
    let with_volume = |ordinal: i64| {
        changed(&pod(ordinal, &one, "ready"), |value| {
            let claim = format!("www-web-{ordinal}");
            value["spec"]["volumes"] = json!([{"name": "www", "persistentVolumeClaim": {"claimName": claim}}]);
        })
    };
    let round = |pods: Vec<Arc<Pod>>, claims: Vec<Arc<PersistentVolumeClaim>>| {
        reconcile(&Snapshot { set: set(keep), pods, revisions: vec![one.clone()], claims }, now())
    };
    let none = json!([]);
    let both = round(vec![with_volume(0), with_volume(1)], vec![claim(0, none.clone()), claim(1, none.clone())]);
    assert_eq!(acts(&both), ["update www-web-0", "update www-web-1", "delete web-1"]);
    let owners = both.actions().filter_map(|action| match &action.write {
        Write::Update { object, subresource: "", .. } => Some(object["metadata"]["ownerReferences"][0]["uid"].clone()),
        _ => None,
    });
    assert_eq!(owners.collect::<Vec<_>>(), ["set", "web-1"]);
    // The claim of a pod that is gone has to go before the pod comes back; so has one that is being deleted.
    let gone = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "earlier", "controller": true}]);
    assert!(acts(&round(Vec::new(), vec![claim(0, gone)])).is_empty());
    let mut going = (*claim(0, none)).clone();
    going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    let waiting = round(Vec::new(), vec![Arc::new(going)]);
    assert!(acts(&waiting).is_empty());
    let told = waiting.actions().find_map(|action| action.told.as_ref()?.success.clone()).expect("an event");
    assert_eq!(told.2, "create Pod web-0 in StatefulSet web failed error: pvc www-web-0 is being deleted");
}

#[test]
fn a_rollback_reuses_the_old_revision_under_a_new_number() {
    let (first, second) = (set(|_| {}), set(image("i:2")));
    let (one, two) = (revision(&first, 1), revision(&second, 2));
    let pods = vec![pod(0, &two, "ready"), pod(1, &two, "ready"), pod(2, &two, "ready")];
    let plan = plan(first, vec![two, one.clone()], pods);
    let numbered = plan.actions().find_map(|action| match &action.write {
        Write::Update { key, object, subresource: "", .. } => Some((key.name.clone(), object["revision"].clone())),
        _ => None,
    });
    assert_eq!(numbered, Some((one.name().to_owned(), 3.into())));
    assert_eq!(acts(&plan), ["delete web-2"]);
    assert_eq!(status(&plan)["updateRevision"], one.name());
}

#[test]
fn history_keeps_what_pods_are_made_of() {
    let revisions: Vec<_> = (1..=5).map(|n| revision(&set(image(&format!("i:{n}"))), n)).collect();
    let last = |value: &mut Value| {
        image("i:5")(value);
        value["spec"]["revisionHistoryLimit"] = 1.into();
    };
    let plan = plan(set(last), revisions.clone(), vec![pod(0, &revisions[0], "running")]);
    let deleted = plan.actions().filter_map(|action| match &action.write {
        Write::Delete { key, .. } => Some(key.name.clone()),
        _ => None,
    });
    assert_eq!(deleted.collect::<Vec<_>>(), [revisions[1].name(), revisions[2].name()]);
}

#[test]
fn another_revision_with_the_name_is_a_collision() {
    let set = set(|_| {});
    let mut taken = (*revision(&set, 1)).clone();
    taken.metadata.owner_references = None;
    taken.metadata.labels = None;
    let plan = plan(set, vec![Arc::new(taken)], Vec::new());
    assert_eq!(status(&plan)["collisionCount"], 1);
}

#[test]
fn a_finished_roll_out_makes_the_update_current() {
    let one = revision(&set(|_| {}), 1);
    let new = set(|value| {
        image("i:2")(value);
        value["status"] = json!({"replicas": 3, "currentRevision": one.name()});
    });
    let two = revision(&new, 2);
    let history = vec![one.clone(), two.clone()];
    let half =
        plan(new.clone(), history.clone(), vec![pod(0, &one, "ready"), pod(1, &one, "ready"), pod(2, &two, "ready")]);
    let expected = json!({"observedGeneration": 1, "replicas": 3, "readyReplicas": 3, "availableReplicas": 3,
        "currentReplicas": 2, "updatedReplicas": 1, "currentRevision": one.name(), "updateRevision": two.name(),
        "collisionCount": 0});
    assert_eq!(status(&half), expected);
    let done = plan(new, history, (0..3).map(|n| pod(n, &two, "ready")).collect());
    assert_eq!(status(&done)["currentRevision"], two.name());
    assert_eq!(status(&done)["currentReplicas"], 3);
}

#[test]
fn availability_is_waited_for() {
    let set = set(|value| value["spec"]["minReadySeconds"] = 20.into());
    let one = revision(&set, 1);
    let plan = plan(set, vec![one.clone()], vec![pod(0, &one, "ready")]);
    assert!(acts(&plan).is_empty());
    assert_eq!(plan.requeue_after.map(|delay| delay.as_secs()), Some(15));
    assert_eq!(status(&plan)["readyReplicas"], 1);
    assert_eq!(status(&plan)["availableReplicas"], 0);
}

#[test]
fn a_set_that_goes_only_counts() {
    let one = revision(&set(|_| {}), 1);
    let going = set(|value| {
        value["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
        value["status"] = json!({"replicas": 3, "currentRevision": one.name(), "updateRevision": one.name()});
    });
    let plan = plan(going, vec![one.clone()], vec![pod(0, &one, "ready")]);
    assert_eq!(plan.actions().count(), 1);
    assert_eq!(status(&plan)["replicas"], 1);
}

#[test]
fn absurd_numbers_do_no_harm() {
    let huge = set(|value| {
        parallel(value);
        value["spec"]["replicas"] = i32::MAX.into();
        value["spec"]["ordinals"] = json!({"start": i32::MAX});
    });
    assert_eq!(acts(&plan(huge, Vec::new(), Vec::new())).len(), 500);
}
