//! Who has to go for whom. The expectations are those of kube-scheduler's own tests and documentation.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use super::nodes::Nodes;
use super::pod_info::PodInfo;
use super::preemption::Preemption;
use super::world::{Attempt, Outcome, World};
use crate::client::cache::Key;
use crate::client::{Change, Object};

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().expect("a time")
}

fn node(name: &str, cpu: &str) -> Arc<Node> {
    let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "110"}}});
    Arc::new(Node::parse(&node).expect("a node"))
}

fn pod(name: &str, priority: i32, cpu: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let mut pod = json!({"metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": name}},
        "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
        "status": {"startTime": "2026-01-01T00:00:00Z"}});
    change(&mut pod);
    Arc::new(Pod::parse(&pod).expect("a pod"))
}

fn nodes(count: usize) -> Nodes {
    let mut nodes = Nodes::default();
    (1..=count).for_each(|n| nodes.set_node(node(&format!("n{n}"), "1")));
    nodes
}

fn put(nodes: &mut Nodes, at: &str, pod: Arc<Pod>) {
    nodes.add_pod(at, Arc::new(PodInfo::new(pod)));
}

/// The node and the victims, or why there are none.
fn preempt(nodes: &Nodes, pod: Arc<Pod>) -> String {
    match super::cycle::schedule(&PodInfo::new(pod), nodes, &mut 0, |_| 0) {
        super::cycle::Decision::Node { name, .. } => format!("fits {name}"),
        super::cycle::Decision::Nowhere { preemption, .. } => match preemption {
            Preemption::Keep(why) | Preemption::Hopeless(why) => why,
            Preemption::Victims { node, victims, .. } => {
                let names: Vec<_> = victims.iter().map(|victim| victim.key.name.as_str()).collect();
                format!("{node}: {}", names.join(" "))
            }
        },
    }
}

#[test]
fn only_as_many_as_needed_go_and_the_least_important_first() {
    let mut nodes = nodes(1);
    for (name, priority, cpu) in [("low", 0, "300m"), ("lower", -5, "300m"), ("mid", 5, "300m")] {
        put(&mut nodes, "n1", pod(name, priority, cpu, |_| {}));
    }
    assert_eq!(preempt(&nodes, pod("new", 10, "300m", |_| {})), "n1: lower");
    assert_eq!(preempt(&nodes, pod("new", 10, "600m", |_| {})), "n1: low lower");
    assert_eq!(preempt(&nodes, pod("new", 10, "1", |_| {})), "n1: mid low lower");
    // Nobody of equal or higher priority goes.
    let full = "0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    assert_eq!(preempt(&nodes, pod("new", -5, "300m", |_| {})), full);
    assert_eq!(preempt(&nodes, pod("new", 5, "1", |_| {})), "0/1 nodes are available: 1 Insufficient cpu.");
    let helpless = "0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    assert_eq!(preempt(&nodes, pod("new", 10, "2", |_| {})), helpless);
    let never = |pod: &mut Value| pod["spec"]["preemptionPolicy"] = "Never".into();
    assert_eq!(preempt(&nodes, pod("new", 10, "300m", never)), "not eligible due to preemptionPolicy=Never.");
}

#[test]
fn of_equals_the_youngest_goes() {
    let mut nodes = nodes(1);
    let started = |time: &'static str| move |pod: &mut Value| pod["status"]["startTime"] = time.into();
    put(&mut nodes, "n1", pod("old", 0, "500m", started("2026-01-01T00:00:00Z")));
    put(&mut nodes, "n1", pod("young", 0, "500m", started("2026-01-01T00:00:09Z")));
    assert_eq!(preempt(&nodes, pod("new", 10, "500m", |_| {})), "n1: young");
}

#[test]
fn budgets_are_kept_where_that_is_possible() {
    let budget = |nodes: &mut Nodes, app: &str| {
        let budget = json!({"metadata": {"name": app, "namespace": "a"}, "spec": {"selector": {"matchLabels": {"app": app}}},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}});
        let budget = PodDisruptionBudget::parse(&budget).expect("a budget");
        nodes.budgets.apply(&Change { old: None, new: Some(Arc::new(budget)) });
    };
    let mut nodes = nodes(2);
    put(&mut nodes, "n1", pod("guarded", 0, "1", |_| {}));
    put(&mut nodes, "n2", pod("free", 5, "1", |_| {}));
    assert_eq!(preempt(&nodes, pod("new", 10, "1", |_| {})), "n1: guarded");
    budget(&mut nodes, "guarded");
    assert_eq!(preempt(&nodes, pod("new", 10, "1", |_| {})), "n2: free");
    // A budget is no shield: when there is no other way, its pods go.
    budget(&mut nodes, "free");
    assert_eq!(preempt(&nodes, pod("new", 10, "1", |_| {})), "n1: guarded");
}

/// `TestPickOneNodeForPreemption`.
#[test]
fn the_node_is_chosen_by_what_is_lost() {
    let check = |pods: &[(&str, &str, i32, &'static str)], expected: &str| {
        let mut nodes = nodes(3);
        let used: std::collections::BTreeSet<&str> = pods.iter().map(|(at, ..)| *at).collect();
        for name in ["n1", "n2", "n3"] {
            if !used.contains(name) {
                nodes.remove_node(name);
            }
        }
        for (at, name, priority, time) in pods {
            let count = pods.iter().filter(|(other, ..)| other == at).count();
            let cpu = format!("{}m", 1000 / count);
            put(&mut nodes, at, pod(name, *priority, &cpu, |pod| pod["status"]["startTime"] = (*time).into()));
        }
        assert_eq!(preempt(&nodes, pod("new", 100, "1", |_| {})), expected);
    };
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z");
    // The highest priority among the victims is lowest.
    check(&[("n1", "a", 9, early), ("n2", "b", 5, early), ("n2", "c", 1, early)], "n2: b c");
    // The sum of priorities.
    check(&[("n1", "a", 5, early), ("n1", "b", 4, early), ("n2", "c", 5, early), ("n2", "d", 3, early)], "n2: c d");
    // Fewer victims, also when their priorities are negative.
    check(&[("n1", "a", -5, early), ("n1", "b", -5, early), ("n2", "c", -5, early)], "n2: c");
    // The latest start of the most important.
    check(&[("n1", "a", 5, early), ("n2", "b", 5, late)], "n2: b");
    // The first.
    check(&[("n1", "a", 5, early), ("n2", "b", 5, early)], "n1: a");
}

#[test]
fn victims_make_room_for_more_than_resources() {
    let mut nodes = nodes(1);
    let port = |pod: &mut Value| pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 80}]);
    put(&mut nodes, "n1", pod("port", 0, "100m", port));
    put(&mut nodes, "n1", pod("other", 0, "100m", |_| {}));
    assert_eq!(preempt(&nodes, pod("new", 10, "100m", port)), "n1: port");
    let term = |app: &str| {
        json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}}]}})
    };
    let apart = |app: &'static str| move |pod: &mut Value| pod["spec"]["affinity"] = term(app);
    assert_eq!(preempt(&nodes, pod("new", 10, "100m", apart("other"))), "n1: other");
    put(&mut nodes, "n1", pod("shy", 0, "100m", apart("new")));
    assert_eq!(preempt(&nodes, pod("new", 10, "100m", |_| {})), "n1: shy");
    nodes.remove_pod("shy");
    let spread = |pod: &mut Value| {
        pod["spec"]["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "other"}}}]);
        pod["metadata"]["labels"]["app"] = "other".into();
    };
    nodes.set_node(node("n2", "0"));
    let said = preempt(&nodes, pod("new", 10, "100m", spread));
    assert_eq!(said, "n1: other");
}

fn change(pod: &Arc<Pod>) -> Change<Pod> {
    Change { old: None, new: Some(pod.clone()) }
}

fn on_node(pod: &Arc<Pod>, node: &str) -> Arc<Pod> {
    let mut pod = (**pod).clone();
    pod.spec.get_or_insert_default().node_name = Some(node.into());
    Arc::new(pod)
}

fn failure(attempt: Option<Attempt>) -> (Option<String>, Vec<String>, Vec<String>) {
    match attempt.expect("a pod waits").outcome {
        Outcome::Bind { node, .. } => panic!("bound to {node}"),
        Outcome::Fail { nomination, victims, demoted, .. } => {
            let names = |pods: Vec<Arc<PodInfo>>| pods.iter().map(|pod| pod.key.name.clone()).collect();
            (nomination, names(victims), names(demoted))
        }
    }
}

fn bound(attempt: Option<Attempt>) -> (String, String) {
    let attempt = attempt.expect("a pod waits");
    match attempt.outcome {
        Outcome::Bind { node, .. } => (attempt.pod.key.name.clone(), node),
        Outcome::Fail { message, .. } => panic!("{message}"),
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn room_that_was_made_is_kept_for_whom_it_was_made() {
    let mut world = World::default();
    world.node(&Change { old: None, new: Some(node("n1", "1")) }, now());
    let victim = on_node(&pod("victim", 0, "1", |_| {}), "n1");
    world.pod(&change(&victim), now());
    world.pod(&change(&pod("high", 10, "1", |_| {})), now());
    assert_eq!(failure(world.next(now(), |_| 0)), (Some("n1".into()), strings(&["victim"]), vec![]));
    assert!(world.next(now(), |_| 0).is_none());
    // While the victim ends, a pod of lower priority does not get the room, one of higher takes it over.
    let mut going = (*victim).clone();
    going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    let going = Arc::new(going);
    world.pod(&Change { old: Some(victim.clone()), new: Some(going.clone()) }, now());
    world.preempted(&Key::new("a", "high"), false, now());
    world.pod(&Change { old: Some(going), new: None }, now());
    world.pod(&change(&pod("low", 1, "1", |_| {})), now());
    world.pod(&change(&pod("highest", 20, "1", |_| {})), now());
    assert_eq!(bound(world.next(now(), |_| 0)), ("highest".into(), "n1".into()));
    assert_eq!(failure(world.next(now(), |_| 0)).1, Vec::<String>::new(), "low finds nobody to preempt");
    assert_eq!(failure(world.next(now(), |_| 0)), (Some(String::new()), vec![], vec![]), "high has lost its room");
}

#[test]
fn a_nominated_pod_waits_and_then_gets_its_node() {
    let mut world = World::default();
    world.node(&Change { old: None, new: Some(node("n1", "1")) }, now());
    let victim = on_node(&pod("victim", 0, "1", |_| {}), "n1");
    world.pod(&change(&victim), now());
    let high = pod("high", 10, "1", |_| {});
    world.pod(&change(&high), now());
    failure(world.next(now(), |_| 0));
    world.preempted(&Key::new("a", "high"), false, now());
    // The status comes back from the API: nothing to try again for.
    let mut told = (*high).clone();
    told.status.get_or_insert_default().nominated_node_name = Some("n1".into());
    world.pod(&Change { old: Some(high), new: Some(Arc::new(told)) }, now());
    assert!(world.next(now(), |_| 0).is_none());
    world.pod(&change(&pod("low", 1, "1", |_| {})), now());
    failure(world.next(now(), |_| 0));
    world.pod(&Change { old: Some(victim), new: None }, now());
    assert_eq!(bound(world.next(now(), |_| 0)), ("high".into(), "n1".into()));
}

#[test]
fn no_more_pods_go_while_the_first_victims_end() {
    let mut world = World::default();
    for name in ["n1", "n2"] {
        world.node(&Change { old: None, new: Some(node(name, "1")) }, now());
    }
    let first = on_node(&pod("first", 0, "1", |_| {}), "n1");
    world.pod(&change(&first), now());
    world.pod(&change(&on_node(&pod("second", 5, "1", |_| {}), "n2")), now());
    world.pod(&change(&pod("high", 10, "1", |_| {})), now());
    assert_eq!(failure(world.next(now(), |_| 0)).1, strings(&["first"]));
    let mut going = (*first).clone();
    going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    let condition = json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]);
    going.status.get_or_insert_default().conditions = serde_json::from_value(condition).expect("a condition");
    world.pod(&Change { old: Some(first), new: Some(Arc::new(going)) }, now());
    world.preempted(&Key::new("a", "high"), true, now());
    let Some(Attempt { outcome: Outcome::Fail { message, nomination, victims, .. }, .. }) = world.next(now(), |_| 0)
    else {
        panic!("it is tried again, because a deletion failed, and does not fit yet");
    };
    assert!(victims.is_empty() && nomination.is_none());
    assert!(message.ends_with("preemption: not eligible due to a terminating pod on the nominated node."), "{message}");
}

#[test]
fn a_pod_of_lower_priority_loses_its_nomination() {
    let mut world = World::default();
    world.node(&Change { old: None, new: Some(node("n1", "1")) }, now());
    world.pod(&change(&on_node(&pod("victim", 0, "1", |_| {}), "n1")), now());
    world.pod(&change(&pod("mid", 5, "1", |_| {})), now());
    failure(world.next(now(), |_| 0));
    world.preempted(&Key::new("a", "mid"), false, now());
    world.pod(&change(&pod("high", 10, "1", |_| {})), now());
    assert_eq!(failure(world.next(now(), |_| 0)), (Some("n1".into()), strings(&["victim"]), strings(&["mid"])));
}
