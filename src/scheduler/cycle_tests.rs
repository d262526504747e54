//! What becomes of single pods: each plugin in its words, and which node is liked best. The expectations are those of
//! kube-scheduler's own tests and documentation.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::cycle::{Decision, schedule};
use super::nodes::Nodes;
use super::pod_info::PodInfo;
use super::volumes::Choice;
use crate::client::{Change, Object};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

fn node(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Node> {
    let mut value = json!({"metadata": {"name": name, "labels": {HOST: name}}, "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}}});
    change(&mut value);
    Arc::new(Node::parse(&value).expect("a node"))
}

fn labelled(name: &str, key: &str, value: &str) -> Arc<Node> {
    node(name, |node| node["metadata"]["labels"][key] = value.into())
}

/// A pod with the label `app=web` in the namespace `a`.
fn pod(name: &str, mut spec: Value) -> PodInfo {
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    let value =
        json!({"metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"}}, "spec": spec});
    PodInfo::new(Arc::new(Pod::parse(&value).expect("a pod")))
}

fn in_namespace(namespace: &str, name: &str, spec: Value) -> Arc<PodInfo> {
    let mut pod = (*pod(name, spec).pod).clone();
    pod.metadata.namespace = Some(namespace.into());
    Arc::new(PodInfo::new(Arc::new(pod)))
}

fn put(nodes: &mut Nodes, node: &str, name: &str, spec: Value) {
    nodes.add_pod(node, Arc::new(pod(name, spec)));
}

fn requests(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
}

fn decide(pod: &PodInfo, nodes: &Nodes) -> Decision {
    schedule(pod, nodes, &mut 0, |_| 0)
}

fn said(decision: Decision) -> String {
    match decision {
        Decision::Node { name, .. } => name,
        Decision::Nowhere { message, .. } => message,
    }
}

/// What becomes of a pod: the node, or what comes before the words about preemption.
fn check(nodes: &Nodes, spec: Value, expected: &str) {
    let said = said(decide(&pod("new", spec), nodes));
    assert!(said == expected || said.starts_with(&format!("{expected}. no new claims")), "{said}");
}

fn web() -> Value {
    json!({"matchLabels": {"app": "web"}})
}

fn required(kind: &str, key: &str, more: Value) -> Value {
    let mut term = json!({"topologyKey": key, "labelSelector": web()});
    term.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({"affinity": {kind: {REQUIRED: [term]}}})
}

fn spread(more: Value) -> Value {
    let mut constraint =
        json!({"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": web()});
    constraint.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({"topologySpreadConstraints": [constraint]})
}

#[test]
fn messages_are_those_of_kubernetes() {
    let mut nodes = Nodes::default();
    check(&nodes, json!({}), "no nodes available to schedule pods");
    nodes.set_node(node("n", |_| {}));
    put(&mut nodes, "n", "old", requests("1500m"));
    let message = |cpu: &str| said(decide(&pod("new", requests(cpu)), &nodes));
    assert_eq!(
        message("1"),
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: \
         1 No preemption victims found for incoming pod."
    );
    assert_eq!(
        message("3"),
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: \
         1 Preemption is not helpful for scheduling."
    );
    assert_eq!(message("500m"), "n");
    nodes.set_node(node("m", |node| {
        node["spec"]["taints"] = json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
    }));
    let message = said(decide(&pod("new", requests("1")), &nodes));
    assert_eq!(
        message,
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s). no new claims to deallocate, \
         preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful \
         for scheduling."
    );
}

#[test]
fn names_labels_taints_and_ports() {
    let mut nodes = Nodes::default();
    nodes.set_node(labelled("n", "disk", "ssd"));
    let reason = |reason: &str| format!("0/1 nodes are available: 1 {reason}");
    check(&nodes, json!({"nodeName": "other"}), &reason("node(s) didn't match the requested node name"));
    check(
        &nodes,
        json!({"nodeSelector": {"disk": "hdd"}}),
        &reason("node(s) didn't match Pod's node affinity/selector"),
    );
    check(&nodes, json!({"nodeSelector": {"disk": "ssd"}}), "n");
    let affinity = |key: &str, operator: &str, values: &[&str]| {
        let terms = json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
        json!({"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}})
    };
    check(&nodes, affinity("disk", "In", &["ssd"]), "n");
    check(&nodes, affinity("disk", "DoesNotExist", &[]), &reason("node(s) didn't match Pod's node affinity/selector"));
    let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    check(&nodes, port.clone(), "n");
    put(&mut nodes, "n", "port", port.clone());
    check(&nodes, port, &reason("node(s) didn't have free ports for the requested pod ports"));

    nodes.set_node(node("n", |node| {
        node["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]);
    }));
    check(&nodes, json!({}), &reason("node(s) had untolerated taint(s)"));
    check(&nodes, json!({"tolerations": [{"key": "k", "operator": "Exists"}]}), "n");
    check(&nodes, json!({"tolerations": [{"key": "k", "value": "w"}]}), &reason("node(s) had untolerated taint(s)"));
    nodes.set_node(node("n", |node| node["spec"]["unschedulable"] = true.into()));
    check(&nodes, json!({}), &reason("node(s) were unschedulable"));
    check(&nodes, json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}), "n");
    nodes.set_node(node("n", |node| node["status"]["allocatable"]["pods"] = "1".into()));
    check(&nodes, json!({}), &reason("Too many pods"));
    let device = json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/dongle": "1"}}}]});
    check(&nodes, device, "0/1 nodes are available: 1 Insufficient example.com/dongle, 1 Too many pods");
}

#[test]
fn a_pod_of_a_daemon_set_is_about_one_node() {
    let mut nodes = Nodes::default();
    nodes.set_node(node("a", |_| {}));
    nodes.set_node(node("b", |_| {}));
    put(&mut nodes, "b", "old", requests("2"));
    let daemon = |names: &[&str], cpu: &str| {
        let terms = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": names}]}]);
        let mut spec = requests(cpu);
        spec["affinity"] = json!({"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}});
        spec
    };
    check(&nodes, daemon(&["a"], "1"), "a");
    check(
        &nodes,
        daemon(&["b"], "1"),
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't satisfy plugin(s) [NodeAffinity]",
    );
    let mut conflict = daemon(&["a"], "1");
    let fields = conflict.pointer_mut(&format!("/affinity/nodeAffinity/{REQUIRED}/nodeSelectorTerms/0/matchFields"));
    fields
        .and_then(Value::as_array_mut)
        .expect("fields")
        .push(json!({"key": "metadata.name", "operator": "In", "values": ["b"]}));
    check(&nodes, conflict, "0/2 nodes are available: pod affinity terms conflict");
}

#[test]
fn pods_stay_together_or_apart() {
    let mut nodes = Nodes::default();
    nodes.set_node(labelled("n", ZONE, "z"));
    let reason = |reason: &str| format!("0/1 nodes are available: 1 {reason}");
    let db = json!({"labelSelector": {"matchLabels": {"app": "db"}}});
    check(&nodes, required("podAffinity", HOST, json!({})), "n"); // the first of its group
    check(&nodes, required("podAffinity", HOST, db), &reason("node(s) didn't match pod affinity rules"));
    check(&nodes, required("podAffinity", "rack", json!({})), &reason("node(s) didn't match pod affinity rules"));
    put(&mut nodes, "n", "old", json!({}));
    let apart = required("podAntiAffinity", HOST, json!({}));
    check(&nodes, apart.clone(), &reason("node(s) didn't match pod anti-affinity rules"));
    check(&nodes, required("podAntiAffinity", "rack", json!({})), "n");
    put(&mut nodes, "n", "loner", apart);
    check(&nodes, json!({}), &reason("node(s) didn't satisfy existing pods anti-affinity rules"));
}

#[test]
fn terms_look_into_other_namespaces_by_label() {
    let mut nodes = Nodes::default();
    for name in ["n", "m"] {
        nodes.set_node(node(name, |_| {}));
    }
    nodes.namespaces.insert("b".into(), [("team".to_owned(), "red".to_owned())].into());
    nodes.add_pod("m", in_namespace("b", "other", json!({})));
    let near = |more: Value| required("podAffinity", HOST, more);
    check(&nodes, near(json!({"namespaceSelector": {"matchLabels": {"team": "red"}}})), "m");
    check(&nodes, near(json!({"namespaces": ["b"]})), "m");
    check(&nodes, near(json!({"namespaceSelector": {}})), "m");
    let nowhere = "0/2 nodes are available: 2 node(s) didn't match pod affinity rules";
    check(&nodes, near(json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}})), nowhere);
}

#[test]
fn pods_spread_over_domains() {
    let mut nodes = Nodes::default();
    nodes.set_node(node("n", |_| {}));
    let missing =
        "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label)";
    check(&nodes, spread(json!({})), missing);
    nodes.remove_node("n");
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        nodes.set_node(labelled(name, ZONE, zone));
    }
    put(&mut nodes, "a1", "one", json!({}));
    check(&nodes, spread(json!({})), "b1");
    put(&mut nodes, "b1", "two", requests("2"));
    let mut big = spread(json!({}));
    big["containers"] = requests("1")["containers"].clone();
    check(&nodes, big.clone(), "a2");
    put(&mut nodes, "a2", "three", requests("2"));
    put(&mut nodes, "a1", "four", requests("2"));
    let full = "0/3 nodes are available: 3 Insufficient cpu";
    check(&nodes, big, full);
    check(
        &nodes,
        spread(json!({"minDomains": 3})),
        "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints",
    );
    check(&nodes, spread(json!({"minDomains": 3, "maxSkew": 9})), "b1");
}

#[test]
fn nodes_that_a_pod_may_not_use_are_no_domains() {
    let mut nodes = Nodes::default();
    for (name, zone) in [("a1", "a"), ("b1", "b")] {
        nodes.set_node(labelled(name, ZONE, zone));
    }
    nodes.set_node(node("c1", |node| {
        node["metadata"]["labels"][ZONE] = "c".into();
        node["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
    }));
    put(&mut nodes, "a1", "one", json!({}));
    put(&mut nodes, "b1", "two", json!({}));
    // An empty zone of tainted nodes counts (Ignore) unless it is said that it does not (Honor).
    let refused = "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 node(s) didn't match pod topology spread constraints";
    check(&nodes, spread(json!({})), refused);
    check(&nodes, spread(json!({"nodeTaintsPolicy": "Honor"})), "a1");
    // Nodes that the pod's affinity excludes do not count, unless told to.
    let with = |policy: &str| {
        let mut spec = spread(json!({"nodeAffinityPolicy": policy, "nodeTaintsPolicy": "Honor"}));
        spec["nodeSelector"] = json!({ZONE: "a"});
        spec
    };
    nodes.remove_pod("two");
    check(&nodes, with("Honor"), "a1");
    check(
        &nodes,
        with("Ignore"),
        "0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) didn't match pod topology \
         spread constraints, 1 node(s) had untolerated taint(s)",
    );
}

fn storage(nodes: &mut Nodes) -> impl FnMut(&mut Nodes, Value) + use<> {
    let _ = nodes;
    |nodes: &mut Nodes, object: Value| match object["kind"].as_str() {
        Some("PersistentVolumeClaim") => {
            nodes.volumes.claim(&Change { old: None, new: Some(Arc::new(Object::parse(&object).expect("a claim"))) });
        }
        Some("PersistentVolume") => {
            nodes.volumes.volume(&Change { old: None, new: Some(Arc::new(Object::parse(&object).expect("a volume"))) });
        }
        _ => nodes.volumes.class(&Change { old: None, new: Some(Arc::new(Object::parse(&object).expect("a class"))) }),
    }
}

fn claim(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut claim = json!({"kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "a", "uid": name},
        "spec": {"storageClassName": "standard", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    change(&mut claim);
    claim
}

fn volume(name: &str, size: &str, host: &str) -> Value {
    let terms = json!([{"matchExpressions": [{"key": HOST, "operator": "In", "values": [host]}]}]);
    json!({"kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"storageClassName": "standard", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size},
            "hostPath": {"path": "/x"}, "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}},
        "status": {"phase": "Available"}})
}

fn bound(claim: &mut Value) {
    claim["spec"]["volumeName"] = "pv".into();
    claim["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
}

fn uses(claims: &[&str]) -> Value {
    let volumes = claims.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    json!({"volumes": volumes.collect::<Vec<_>>()})
}

fn class(provisioner: &str) -> Value {
    json!({"metadata": {"name": "standard"}, "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer"})
}

#[test]
fn claims_must_exist_and_be_bound_or_wait_for_their_consumer() {
    let mut nodes = Nodes::default();
    nodes.set_node(node("n", |_| {}));
    let mut set = storage(&mut nodes);
    let said = |text: &str| format!("0/1 nodes are available: {text}");
    check(&nodes, uses(&["data"]), &said("persistentvolumeclaim \"data\" not found"));
    set(&mut nodes, claim("data", |_| {}));
    check(&nodes, uses(&["data"]), &said("pod has unbound immediate PersistentVolumeClaims"));
    set(&mut nodes, class("p"));
    check(&nodes, uses(&["data"]), "n");
    set(&mut nodes, claim("data", bound));
    let gone = "1 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
    check(&nodes, uses(&["data"]), &said(gone));
    set(&mut nodes, volume("pv", "1Gi", "other"));
    check(&nodes, uses(&["data"]), &said("1 node(s) didn't match PersistentVolume's node affinity"));
    set(&mut nodes, claim("data", |claim| claim["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into()));
    check(&nodes, uses(&["data"]), &said("persistentvolumeclaim \"data\" is being deleted"));
    set(
        &mut nodes,
        claim("data", |claim| {
            bound(claim);
            claim["status"] = json!({"phase": "Lost"});
        }),
    );
    check(
        &nodes,
        uses(&["data"]),
        &said("persistentvolumeclaim \"data\" bound to non-existent persistentvolume \"pv\""),
    );
    let ephemeral = json!({"volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]});
    let waits = "waiting for ephemeral volume controller to create the persistentvolumeclaim \"new-v\"";
    check(&nodes, ephemeral.clone(), &said(waits));
    set(&mut nodes, claim("new-v", |_| {}));
    check(&nodes, ephemeral, &said("PVC a/new-v was not created for pod a/new (pod is not owner)"));
}

#[test]
fn the_first_consumer_goes_where_its_claims_can_be_bound() {
    let mut nodes = Nodes::default();
    for name in ["n", "m"] {
        nodes.set_node(node(name, |_| {}));
    }
    let mut set = storage(&mut nodes);
    set(&mut nodes, class("kubernetes.io/no-provisioner"));
    set(&mut nodes, claim("one", |_| {}));
    set(&mut nodes, claim("two", |_| {}));
    let nowhere = "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind";
    check(&nodes, uses(&["one"]), nowhere);
    set(&mut nodes, volume("large", "9Gi", "m"));
    set(&mut nodes, volume("small", "1Gi", "m"));
    set(&mut nodes, volume("tiny", "1Mi", "n"));
    let taken = |nodes: &Nodes, claims: &[&str]| match decide(&pod("new", uses(claims)), nodes) {
        Decision::Node { name, volumes } => (name, volumes),
        Decision::Nowhere { message, .. } => panic!("{message}"),
    };
    let take = |claim: &str, volume: &str| Choice::Take {
        claim: crate::client::cache::Key::new("a", claim),
        volume: volume.into(),
    };
    assert_eq!(taken(&nodes, &["one"]), ("m".into(), vec![take("one", "small")]), "the smallest that suffices");
    assert_eq!(taken(&nodes, &["one", "two"]).1, [take("one", "small"), take("two", "large")]);
    nodes.volumes.promise(&[take("one", "small")], "m");
    assert_eq!(taken(&nodes, &["two"]).1, [take("two", "large")], "what is promised is not free");
    nodes.volumes.promise(&[take("two", "large")], "m");
    set(&mut nodes, claim("three", |_| {}));
    check(&nodes, uses(&["three"]), nowhere);

    // With a provisioner, a claim goes with its first consumer, and the next consumer to the same node.
    set(&mut nodes, class("p"));
    let (name, volumes) = taken(&nodes, &["three"]);
    assert!(matches!(volumes[..], [Choice::Provision { .. }]), "{volumes:?}");
    nodes.volumes.promise(&volumes, "n");
    assert_eq!(name, "m", "the first of equals");
    check(&nodes, uses(&["three"]), "n");
    nodes.volumes.forget(&volumes);
    check(&nodes, uses(&["three"]), "m");
    let mut zoned = class("p");
    zoned["allowedTopologies"] = json!([{"matchLabelExpressions": [{"key": HOST, "values": ["n"]}]}]);
    set(&mut nodes, zoned);
    check(&nodes, uses(&["three"]), "n");
}

#[test]
fn volumes_have_zones_and_exclusive_users() {
    let mut nodes = Nodes::default();
    nodes.set_node(labelled("n", ZONE, "z"));
    let mut set = storage(&mut nodes);
    let mut zoned = volume("pv", "1Gi", "n");
    zoned["metadata"]["labels"] = json!({"failure-domain.beta.kubernetes.io/zone": "x__y"});
    set(&mut nodes, zoned.clone());
    set(&mut nodes, claim("data", bound));
    check(&nodes, uses(&["data"]), "0/1 nodes are available: 1 node(s) had no available volume zone");
    zoned["metadata"]["labels"] = json!({ZONE: "x__z"});
    set(&mut nodes, zoned);
    check(&nodes, uses(&["data"]), "n");
    set(
        &mut nodes,
        claim("data", |claim| {
            bound(claim);
            claim["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
        }),
    );
    check(&nodes, uses(&["data"]), "n");
    put(&mut nodes, "n", "user", uses(&["data"]));
    let used = "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    check(&nodes, uses(&["data"]), used);
    // Local volumes name their nodes.
    let mut local = volume("pv", "1Gi", "other");
    local["spec"]["local"] = json!({"path": "/x"});
    local["spec"].as_object_mut().expect("an object").remove("hostPath");
    set(&mut nodes, local);
    nodes.remove_pod("user");
    check(&nodes, uses(&["data"]), "0/1 nodes are available: 1 node(s) didn't satisfy plugin(s) [VolumeBinding]");
}

#[test]
fn the_emptier_node_and_the_preferred_one_win() {
    let mut nodes = Nodes::default();
    nodes.set_node(node("a", |_| {}));
    nodes.set_node(labelled("b", "disk", "ssd"));
    put(&mut nodes, "a", "old", requests("1"));
    check(&nodes, requests("100m"), "b");
    put(&mut nodes, "b", "two", requests("1"));
    let preferred = json!({"nodeAffinity": {PREFERRED: [{"weight": 1,
        "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}]}});
    check(&nodes, json!({"affinity": preferred}), "b");
    nodes.remove_pod("old");
    check(&nodes, spread(json!({"topologyKey": HOST})), "a");
}

#[test]
fn soft_taints_images_and_neighbours_decide() {
    let mut nodes = Nodes::default();
    let soft = json!([{"key": "k", "effect": "PreferNoSchedule"}]);
    nodes.set_node(node("a", |node| node["spec"]["taints"] = soft));
    nodes.set_node(node("b", |_| {}));
    check(&nodes, json!({}), "b");
    check(&nodes, json!({"tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]}), "b");
    check(&nodes, json!({"tolerations": [{"key": "k", "operator": "Exists"}]}), "a");

    nodes.set_node(node("a", |_| {}));
    nodes.set_node(node("b", |node| {
        node["status"]["images"] = json!([{"names": ["docker.io/big:latest"], "sizeBytes": 900_000_000}]);
    }));
    check(&nodes, json!({"containers": [{"name": "c", "image": "docker.io/big"}]}), "b");

    let term = json!({"topologyKey": HOST, "labelSelector": web()});
    let weighted = json!({"affinity": {"podAffinity": {PREFERRED: [{"weight": 100, "podAffinityTerm": term}]}}});
    put(&mut nodes, "b", "old", requests("1"));
    check(&nodes, weighted, "b");
    let away = json!({"affinity": {"podAntiAffinity": {PREFERRED: [{"weight": 100, "podAffinityTerm": term}]}}});
    put(&mut nodes, "a", "shy", away);
    put(&mut nodes, "a", "two", requests("500m"));
    check(&nodes, json!({}), "b"); // the shy one does not want it near
}

#[test]
fn pods_of_a_service_spread_by_themselves() {
    let mut nodes = Nodes::default();
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        nodes.set_node(labelled(name, ZONE, zone));
    }
    // Two pods fill zone a; b1 is fuller as far as resources go.
    put(&mut nodes, "a1", "one", json!({}));
    put(&mut nodes, "a2", "two", json!({}));
    nodes.add_pod("b1", in_namespace("b", "big", requests("300m")));
    check(&nodes, json!({}), "a1");
    let service =
        json!({"kind": "Service", "metadata": {"name": "web", "namespace": "a"}, "spec": {"selector": {"app": "web"}}});
    let service = super::workloads::Workload::parse(&service).expect("a service");
    nodes.workloads.apply(&Change { old: None, new: Some(Arc::new(service)) });
    check(&nodes, json!({}), "b1");
}

#[test]
fn only_a_part_of_many_nodes_is_looked_at_and_all_get_their_turn() {
    let mut nodes = Nodes::default();
    for n in 0..300 {
        nodes.set_node(node(&format!("n{n:03}"), |_| {}));
    }
    let mut start = 0;
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..6 {
        // 300 nodes: 48 percent of them, 144, are enough.
        let decision = schedule(&pod("p", json!({})), &nodes, &mut start, |equals| {
            assert_eq!(equals, 144);
            0
        });
        seen.insert(said(decision));
        assert_eq!(start, (round + 1) * 144 % 300);
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
}
