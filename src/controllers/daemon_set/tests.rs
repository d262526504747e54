//! Single reconciles of DaemonSets; whole lives are in the simulation.

use serde_json::{Value, json};

use super::*;
use crate::client::Object;
use crate::controllers::plan::Write;

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().expect("a time")
}

fn set(change: impl FnOnce(&mut Value)) -> Arc<DaemonSet> {
    let mut value = json!({
        "metadata": {"name": "agent", "namespace": "a", "uid": "set", "generation": 1,
            "annotations": {"deprecated.daemonset.template.generation": "1"}},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "revisionHistoryLimit": 10,
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}},
    });
    change(&mut value);
    Arc::new(DaemonSet::parse(&value).expect("a set"))
}

fn image(value: &mut Value) {
    value["spec"]["template"]["spec"]["containers"][0]["image"] = "i:2".into();
    value["metadata"]["annotations"]["deprecated.daemonset.template.generation"] = "2".into();
}

fn surge(value: &mut Value) {
    value["spec"]["updateStrategy"]["rollingUpdate"] = json!({"maxUnavailable": 0, "maxSurge": 1});
}

fn node(name: &str, taints: Value) -> Arc<Node> {
    let value =
        json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {"taints": taints}});
    Arc::new(Node::parse(&value).expect("a node"))
}

fn nodes(names: &[&str]) -> Vec<Arc<Node>> {
    names.iter().map(|name| node(name, Value::Null)).collect()
}

fn hash(set: &DaemonSet) -> String {
    let template = &set.spec.as_ref().expect("a spec").template;
    crate::controllers::deployment::replica_sets::template_hash(template, None)
}

fn revision(set: &DaemonSet, number: i64) -> Arc<ControllerRevision> {
    let (hash, template) = (hash(set), &set.spec.as_ref().expect("a spec").template);
    let label = (crate::controllers::history::REVISION_LABEL, hash.clone());
    let mut revision = crate::controllers::history::build(set, format!("agent-{hash}"), label, template, number);
    revision.metadata.uid = Some(format!("revision-{number}"));
    Arc::new(revision)
}

/// A pod of a set as it was, on a node: `ready`, `running`, `failed`, `succeeded` or `terminating`.
fn pod(name: &str, of: &DaemonSet, node: &str, state: &str) -> Arc<Pod> {
    let phase = match state {
        "failed" => "Failed",
        "succeeded" => "Succeeded",
        _ => "Running",
    };
    let ready = if state == "ready" { "True" } else { "False" };
    let generation = of.annotation("deprecated.daemonset.template.generation");
    let mut value = json!({
        "metadata": {"name": name, "namespace": "a", "uid": name, "creationTimestamp": "2026-01-02T03:00:00Z",
            "labels": {"app": "agent", "controller-revision-hash": hash(of), "pod-template-generation": generation},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "set", "controller": true}]},
        "spec": {"containers": [], "nodeName": node},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-02T03:04:00Z"}]},
    });
    if state == "terminating" {
        value["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
    }
    Arc::new(Pod::parse(&value).expect("a pod"))
}

fn decide(
    set: Arc<DaemonSet>,
    nodes: Vec<Arc<Node>>,
    old: &[Arc<ControllerRevision>],
    pods: Vec<Arc<Pod>>,
) -> Decision {
    let mut revisions = old.to_vec();
    revisions.push(revision(&set, 9));
    reconcile(&Snapshot { set, nodes, pods, revisions }, &Backoff::default(), now())
}

/// The nodes that get a pod, and the pods that are deleted.
fn acts(plan: &Plan) -> Vec<String> {
    let act = |action: &Action| match &action.write {
        Write::Create { gvr, object, .. } if gvr.resource == "pods" => {
            let affinity =
                &object["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
            let node = affinity["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str()?;
            Some(format!("create on {node}"))
        }
        Write::Delete { gvr, key, .. } if gvr.resource == "pods" => Some(format!("delete {}", key.name)),
        _ => None,
    };
    plan.actions().filter_map(act).collect()
}

fn status(plan: &Plan) -> Value {
    let write = plan.actions().find_map(|action| match &action.write {
        Write::Update { object, subresource: "status", .. } => Some(object["status"].clone()),
        _ => None,
    });
    write.expect("a status")
}

#[test]
fn every_node_gets_a_pod_that_tolerates_what_nodes_suffer() {
    let set = set(|_| {});
    let decision = reconcile(
        &Snapshot { set: set.clone(), nodes: nodes(&["n1", "n2"]), pods: Vec::new(), revisions: Vec::new() },
        &Backoff::default(),
        now(),
    );
    assert_eq!(acts(&decision.plan), ["create on n1", "create on n2"]);
    let created: Vec<Value> = decision
        .plan
        .actions()
        .filter_map(|action| match &action.write {
            Write::Create { object, .. } => Some(object.clone()),
            _ => None,
        })
        .collect();
    let (revision, pod) = (&created[0], &created[1]);
    let hash = hash(&set);
    assert_eq!(revision["metadata"]["name"], format!("agent-{hash}"));
    let labels = json!({"app": "agent", "controller-revision-hash": hash, "pod-template-generation": "1"});
    assert_eq!(pod["metadata"]["labels"], labels);
    // As recorded from Kubernetes.
    let toleration = |key: &str, effect: &str| json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": effect});
    let expected = [
        toleration("not-ready", "NoExecute"),
        toleration("unreachable", "NoExecute"),
        toleration("disk-pressure", "NoSchedule"),
        toleration("memory-pressure", "NoSchedule"),
        toleration("pid-pressure", "NoSchedule"),
        toleration("unschedulable", "NoSchedule"),
    ];
    assert_eq!(pod["spec"]["tolerations"], json!(expected));
    let fields = json!([{"key": "metadata.name", "operator": "In", "values": ["n1"]}]);
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchFields": fields}]}}});
    assert_eq!(pod["spec"]["affinity"], affinity);
    let expected = json!({"observedGeneration": 1, "desiredNumberScheduled": 2, "currentNumberScheduled": 0,
        "numberMisscheduled": 0, "numberReady": 0, "numberUnavailable": 2});
    assert_eq!(status(&decision.plan), expected);
}

#[test]
fn nodes_are_chosen_by_labels_and_taints() {
    let check = |change: fn(&mut Value), taints: Value, expected: Verdict| {
        assert_eq!(nodes::verdict(&set(change), &node("n1", taints)), expected);
    };
    check(|_| {}, Value::Null, Verdict::Run);
    check(|_| {}, json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]), Verdict::Run);
    check(|_| {}, json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]), Verdict::Run);
    check(|_| {}, json!([{"key": "gpu", "effect": "PreferNoSchedule"}]), Verdict::Run);
    check(|_| {}, json!([{"key": "gpu", "effect": "NoSchedule"}]), Verdict::Stay);
    check(|_| {}, json!([{"key": "gpu", "effect": "NoExecute"}]), Verdict::NoPod);
    let all = |value: &mut Value| value["spec"]["template"]["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    check(all, json!([{"key": "gpu", "effect": "NoExecute"}]), Verdict::Run);
    let here = |name: &str| json!({"kubernetes.io/hostname": name});
    check(
        |value| value["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "ssd"}),
        Value::Null,
        Verdict::NoPod,
    );
    let chosen = set(|value| value["spec"]["template"]["spec"]["nodeSelector"] = here("n1"));
    assert_eq!(nodes::verdict(&chosen, &node("n1", Value::Null)), Verdict::Run);
    check(|value| value["spec"]["template"]["spec"]["nodeName"] = "n2".into(), Value::Null, Verdict::NoPod);
}

#[test]
fn pods_leave_nodes_that_should_have_none() {
    let here = set(|value| value["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n1"}));
    let pods =
        vec![pod("p1", &here, "n1", "ready"), pod("p2", &here, "n2", "ready"), pod("p3", &here, "n2", "terminating")];
    let decision = decide(here, nodes(&["n1", "n2"]), &[], pods);
    assert_eq!(acts(&decision.plan), ["delete p2"]);
    let status = status(&decision.plan);
    assert_eq!((&status["desiredNumberScheduled"], &status["numberMisscheduled"]), (&1.into(), &1.into()));
    // One too many goes, the younger of two; a pod whose node is gone and that waits for it goes too.
    let plain = set(|_| {});
    let mut young = (*pod("young", &plain, "n1", "ready")).clone();
    young.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    let mut waits = (*pod("waits", &plain, "", "running")).clone();
    waits.spec = pods::new_pod(&plain, "h", "lost").spec;
    let pods = vec![Arc::new(young), pod("old", &plain, "n1", "ready"), Arc::new(waits)];
    assert_eq!(acts(&decide(plain, nodes(&["n1"]), &[], pods).plan), ["delete young", "delete waits"]);
}

#[test]
fn failed_pods_are_replaced_with_patience() {
    let set = set(|_| {});
    let failed = vec![pod("p1", &set, "n1", "failed")];
    let decision = decide(set.clone(), nodes(&["n1"]), &[], failed.clone());
    assert_eq!(acts(&decision.plan), ["delete p1"]);
    let told = decision.plan.actions().find_map(|action| action.told.as_ref()?.success.clone()).expect("an event");
    assert_eq!((told.1, &*told.2), ("FailedDaemonPod", "Found failed daemon pod a/p1 on node n1, will try to kill it"));
    let mut failures = Backoff::default();
    decision.failed.iter().for_each(|place| failures.failed(place, now()));
    let snapshot = Snapshot { revisions: vec![revision(&set, 1)], set, nodes: nodes(&["n1"]), pods: failed };
    let again = reconcile(&snapshot, &failures, now());
    assert!(acts(&again.plan).is_empty());
    assert_eq!(again.plan.requeue_after, Some(Duration::from_secs(1)));
    let later = reconcile(&snapshot, &failures, now() + jiff::SignedDuration::from_secs(1));
    assert_eq!(acts(&later.plan), ["delete p1"]);
}

#[test]
fn pods_that_ended_well_are_made_anew_too() {
    let set = set(|_| {});
    let decision = decide(set.clone(), nodes(&["n1"]), &[], vec![pod("p1", &set, "n1", "succeeded")]);
    let told = decision.plan.actions().find_map(|action| action.told.as_ref()?.success.clone()).expect("an event");
    assert_eq!(told.2, "Found succeeded daemon pod a/p1 on node n1, will try to delete it");
    assert_eq!(acts(&decision.plan), ["delete p1"]);
}

/// A new template, and pods of the old one or (where the name begins with `n`) the new one on nodes n1, n2, ….
fn roll(change: fn(&mut Value), pods: &[(&str, &str, &str)], expected: &[&str]) {
    let old = set(change);
    let new = set(|value| {
        change(value);
        image(value);
    });
    let pods = pods
        .iter()
        .map(|(name, node, state)| pod(name, if name.starts_with("new") { &new } else { &old }, node, state));
    let decision = decide(new.clone(), nodes(&["n1", "n2", "n3"]), &[revision(&old, 1)], pods.collect());
    assert_eq!(acts(&decision.plan), expected);
}

#[test]
fn old_pods_go_within_what_may_be_unavailable() {
    let all = [("a", "n1", "ready"), ("b", "n2", "ready"), ("c", "n3", "ready")];
    roll(|_| {}, &all, &["delete a"]);
    roll(|value| value["spec"]["updateStrategy"] = json!({"type": "OnDelete"}), &all, &[]);
    roll(
        |value| value["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] = "50%".into(),
        &all,
        &["delete a", "delete b"],
    );
    // One that is not available goes whatever the limit, and takes the room of the others.
    roll(|_| {}, &[all[0], ("b", "n2", "running"), all[2]], &["delete b"]);
    roll(|_| {}, &[("new", "n1", "running"), all[1], all[2]], &[]);
    roll(|_| {}, &[("new", "n1", "ready"), all[1], all[2]], &["delete b"]);
    // A node without a pod is served first.
    roll(|_| {}, &[all[1], all[2]], &["create on n1"]);
    roll(|_| {}, &[("a", "n1", "terminating"), all[1], all[2]], &[]);
}

#[test]
fn a_surge_makes_the_new_pod_first() {
    let all = [("a", "n1", "ready"), ("b", "n2", "ready"), ("c", "n3", "ready")];
    roll(surge, &all, &["create on n1"]);
    roll(surge, &[all[0], ("new", "n1", "running"), all[1], all[2]], &[]);
    roll(surge, &[all[0], ("new", "n1", "ready"), all[1], all[2]], &["delete a"]);
    roll(surge, &[("new", "n1", "ready"), all[1], all[2]], &["create on n2"]);
    // An old pod that is not available has nothing to lose.
    roll(surge, &[all[0], ("b", "n2", "running"), all[2]], &["create on n2", "create on n1"]);
    roll(surge, &[all[0], ("b", "n2", "running"), ("new", "n2", "running"), all[2]], &["delete b"]);
}

#[test]
fn a_rollback_renumbers_and_duplicates_are_merged() {
    let (first, second) = (set(|_| {}), set(image));
    let (one, two) = (revision(&first, 1), revision(&second, 2));
    let mut copy = (*one).clone();
    copy.metadata.name = Some("agent-copy".into());
    copy.metadata.labels.get_or_insert_default().insert("controller-revision-hash".into(), "copy".into());
    copy.revision = 0;
    let mut copied = (*pod("p", &first, "n1", "ready")).clone();
    copied.metadata.labels.get_or_insert_default().insert("controller-revision-hash".into(), "copy".into());
    let snapshot = Snapshot {
        set: first,
        nodes: nodes(&["n1"]),
        pods: vec![Arc::new(copied)],
        revisions: vec![Arc::new(copy), two, one.clone()],
    };
    let plan = reconcile(&snapshot, &Backoff::default(), now()).plan;
    let writes: Vec<String> = plan
        .actions()
        .filter_map(|action| match &action.write {
            Write::Patch { key, .. } => Some(format!("patch {}", key.name)),
            Write::Delete { key, .. } => Some(format!("delete {}", key.name)),
            Write::Update { key, object, subresource: "", .. } => {
                Some(format!("{} is {}", key.name, object["revision"]))
            }
            _ => None,
        })
        .collect();
    assert_eq!(writes, ["patch p".to_owned(), "delete agent-copy".to_owned(), format!("{} is 3", one.name())]);
}

#[test]
fn old_revisions_are_cleaned_up() {
    let new = set(|value| {
        image(value);
        value["spec"]["revisionHistoryLimit"] = 0.into();
    });
    let old = set(|_| {});
    let gone = set(|value| value["spec"]["template"]["spec"]["containers"][0]["image"] = "i:0".into());
    let revisions = [revision(&gone, 1), revision(&old, 2)];
    let decision = decide(new, nodes(&["n1"]), &revisions, vec![pod("p", &old, "n1", "terminating")]);
    let deleted = decision.plan.actions().filter_map(|action| match &action.write {
        Write::Delete { key, .. } => Some(key.name.clone()),
        _ => None,
    });
    assert_eq!(deleted.collect::<Vec<_>>(), [revisions[0].name()]);
}

#[test]
fn a_set_that_goes_does_nothing() {
    let going = set(|value| value["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into());
    assert!(decide(going, nodes(&["n1"]), &[], Vec::new()).plan.is_empty());
}
