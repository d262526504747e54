//! The FlowSchemas and PriorityLevelConfigurations that every cluster has (`pkg/apis/flowcontrol/bootstrap` of the API server).

use serde_json::{Value, json};

/// Objects with this annotation are kept as they are made here.
pub const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// A mandatory FlowSchema, whose spec may not change.
pub fn mandatory_flow_schema(name: &str) -> Option<Value> {
    ["catch-all", "exempt"].contains(&name).then(|| find(flow_schemas(), name)).flatten()
}

/// A mandatory PriorityLevelConfiguration, whose spec may not change (but for the shares of `exempt`).
pub fn mandatory_priority_level(name: &str) -> Option<Value> {
    ["catch-all", "exempt"].contains(&name).then(|| find(priority_levels(), name)).flatten()
}

fn find(objects: Vec<Value>, name: &str) -> Option<Value> {
    objects.into_iter().find(|object| object["metadata"]["name"] == name)
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "annotations": {AUTOUPDATE: "true"}})
}

/// All priority levels.
pub fn priority_levels() -> Vec<Value> {
    // Shares, how much of them others may have meanwhile (%), queues, hand size.
    const QUEUED: [(&str, i64, i64, i64, i64); 6] = [
        ("system", 30, 33, 64, 6),
        ("node-high", 40, 25, 64, 6),
        ("leader-election", 10, 0, 16, 4),
        ("workload-high", 40, 50, 128, 6),
        ("workload-low", 100, 90, 128, 6),
        ("global-default", 20, 50, 128, 6),
    ];
    let queued = QUEUED.map(|(name, shares, lendable, queues, hand)| {
        let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
        let limited = json!({
            "nominalConcurrencyShares": shares, "lendablePercent": lendable,
            "limitResponse": {"type": "Queue", "queuing": queuing},
        });
        json!({"metadata": metadata(name), "spec": {"type": "Limited", "limited": limited}})
    });
    let exempt = json!({"nominalConcurrencyShares": 0, "lendablePercent": 0});
    let rest = json!({"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}});
    let mandatory = [
        json!({"metadata": metadata("exempt"), "spec": {"type": "Exempt", "exempt": exempt}}),
        json!({"metadata": metadata("catch-all"), "spec": {"type": "Limited", "limited": rest}}),
    ];
    mandatory.into_iter().chain(queued).collect()
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}
fn group(name: &str) -> Value {
    json!({"kind": "Group", "group": {"name": name}})
}
/// A service account of `kube-system`; `*`: all of them.
fn account(name: &str) -> Value {
    json!({"kind": "ServiceAccount", "serviceAccount": {"name": name, "namespace": "kube-system"}})
}

fn resources(verbs: &[&str], groups: &[&str], resources: &[&str], namespaces: &[&str], cluster: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": resources});
    if cluster {
        rule["clusterScope"] = true.into();
    }
    if !namespaces.is_empty() {
        rule["namespaces"] = json!(namespaces);
    }
    rule
}

/// Everything that subjects may ask for.
fn everything(subjects: &[Value]) -> Value {
    json!({
        "subjects": subjects,
        "resourceRules": [resources(&["*"], &["*"], &["*"], &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    })
}

fn schema(name: &str, level: &str, precedence: i64, distinguisher: &str, rules: &[Value]) -> Value {
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": rules,
    });
    if !distinguisher.is_empty() {
        spec["distinguisherMethod"] = json!({"type": distinguisher});
    }
    json!({"metadata": metadata(name), "spec": spec})
}

/// All FlowSchemas.
pub fn flow_schemas() -> Vec<Value> {
    const CHANGE: [&str; 3] = ["get", "create", "update"];
    const LEASES: [&str; 1] = ["coordination.k8s.io"];
    let everybody = [group("system:unauthenticated"), group("system:authenticated")];
    let nodes = [group("system:nodes")];
    let rule = |subjects: &[Value], rules: &[Value]| json!({"subjects": subjects, "resourceRules": rules});
    let probes = json!({"subjects": everybody, "nonResourceRules": [
        {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]});
    let leaders = [user("system:kube-controller-manager"), user("system:kube-scheduler"), account("*")];
    let lease = resources(&CHANGE, &LEASES, &["leases"], &["*"], false);
    let endpoints = resources(&CHANGE, &[""], &["endpoints"], &["*"], false);
    let endpoint_controllers = [
        user("system:kube-controller-manager"),
        account("endpoint-controller"),
        account("endpointslicemirroring-controller"),
    ];
    let old_locks = resources(&CHANGE, &[""], &["endpoints", "configmaps"], &["*"], false);
    let own_node = resources(&["*"], &[""], &["nodes", "nodes/status"], &["*"], true);
    let own_lease = resources(&["*"], &LEASES, &["leases"], &["*"], false);
    vec![
        schema("exempt", "exempt", 1, "", &[everything(&[group("system:masters")])]),
        schema("probes", "exempt", 2, "", &[probes]),
        schema("system-leader-election", "leader-election", 100, "ByUser", &[rule(&leaders[..2], &[lease.clone()])]),
        schema("endpoint-controller", "workload-high", 150, "ByUser", &[rule(&endpoint_controllers, &[endpoints])]),
        schema(
            "workload-leader-election",
            "leader-election",
            200,
            "ByUser",
            &[rule(&leaders[2..], &[old_locks, lease])],
        ),
        schema("system-node-high", "node-high", 400, "ByUser", &[rule(&nodes, &[own_node, own_lease])]),
        schema("system-nodes", "system", 500, "ByUser", &[everything(&nodes)]),
        schema("kube-controller-manager", "workload-high", 800, "ByNamespace", &[everything(&leaders[..1])]),
        schema("kube-scheduler", "workload-high", 800, "ByNamespace", &[everything(&leaders[1..2])]),
        schema("kube-system-service-accounts", "workload-high", 900, "ByNamespace", &[everything(&leaders[2..])]),
        schema("service-accounts", "workload-low", 9000, "ByUser", &[everything(&[group("system:serviceaccounts")])]),
        schema("global-default", "global-default", 9900, "ByUser", &[everything(&everybody)]),
        schema("catch-all", "catch-all", 10_000, "ByUser", &[everything(&everybody)]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_has_its_level() {
        let levels: Vec<String> = priority_levels()
            .iter()
            .map(|level| level["metadata"]["name"].as_str().expect("a name").to_owned())
            .collect();
        for schema in flow_schemas() {
            let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().expect("a name");
            assert!(levels.iter().any(|known| known == level), "{schema}");
        }
        assert!(mandatory_flow_schema("exempt").is_some() && mandatory_flow_schema("probes").is_none());
    }
}
