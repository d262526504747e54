//! The roles and bindings that every cluster has (`plugin/pkg/auth/authorizer/rbac/bootstrappolicy`).

use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";
const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const READ_WRITE: &str = "create delete deletecollection get list patch update watch";
const READ_UPDATE: &str = "get list patch update watch";

/// `verbs | groups | resources`, or `verbs | paths`; words are separated by blanks, `core` is the core group.
fn rule(text: &str) -> Value {
    let mut parts = text.split('|').map(|part| part.split_whitespace().collect::<Vec<_>>());
    let verbs = parts.next().unwrap_or_default();
    let verbs: Vec<&str> = verbs
        .iter()
        .flat_map(|v| match *v {
            "READ" => READ.split(' ').collect::<Vec<_>>(),
            "WRITE" => WRITE.split(' ').collect(),
            "READWRITE" => READ_WRITE.split(' ').collect(),
            "READUPDATE" => READ_UPDATE.split(' ').collect(),
            verb => vec![verb],
        })
        .collect();
    let second = parts.next().unwrap_or_default();
    match parts.next() {
        Some(resources) => {
            let groups: Vec<&str> = second.iter().map(|g| if *g == "core" { "" } else { *g }).collect();
            let mut rule = json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
            if let Some(names) = parts.next() {
                rule["resourceNames"] = json!(names);
            }
            rule
        }
        None => json!({"nonResourceURLs": second, "verbs": verbs}),
    }
}

fn meta(name: &str, labels: &[(&str, &str)]) -> Value {
    let mut labels: serde_json::Map<String, Value> =
        labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
    labels.insert("kubernetes.io/bootstrapping".into(), "rbac-defaults".into());
    json!({"name": name, "labels": labels, "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}})
}

fn role(name: &str, rules: &[&str]) -> Value {
    labelled(name, &[], rules)
}

fn labelled(name: &str, labels: &[(&str, &str)], rules: &[&str]) -> Value {
    let rules: Vec<Value> = rules.iter().map(|r| rule(r)).collect();
    json!({"apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": meta(name, labels), "rules": rules})
}

fn aggregate(name: &str, labels: &[(&str, &str)], selector: &str) -> Value {
    json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": meta(name, labels), "rules": [],
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {selector: "true"}}]},
    })
}

fn binding(name: &str, role: &str, subjects: Value) -> Value {
    json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRoleBinding", "metadata": meta(name, &[]),
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}, "subjects": subjects,
    })
}

fn groups(names: &[&str]) -> Value {
    names.iter().map(|n| json!({"apiGroup": RBAC, "kind": "Group", "name": n})).collect()
}

fn user(name: &str) -> Value {
    json!([{"apiGroup": RBAC, "kind": "User", "name": name}])
}

const TO_ADMIN: (&str, &str) = ("rbac.authorization.k8s.io/aggregate-to-admin", "true");
const TO_EDIT: (&str, &str) = ("rbac.authorization.k8s.io/aggregate-to-edit", "true");
const TO_VIEW: (&str, &str) = ("rbac.authorization.k8s.io/aggregate-to-view", "true");

/// What every node may do, where the node authorizer does not look closer (`bootstrappolicy.NodeRules`).
const NODE_RULES: [&str; 23] = [
    "create | authentication.k8s.io | tokenreviews",
    "create | authorization.k8s.io | localsubjectaccessreviews subjectaccessreviews",
    "READ | core | services",
    "create get list watch | core | nodes",
    "patch update | core | nodes/status",
    "patch update | core | nodes",
    "create patch update | core events.k8s.io | events",
    "READ | core | pods",
    "create delete | core | pods",
    "patch update | core | pods/status",
    "create | core | pods/eviction",
    "READ | core | configmaps secrets",
    "get | core | persistentvolumeclaims persistentvolumes",
    "get | core | endpoints",
    "create get list watch | certificates.k8s.io | certificatesigningrequests",
    "create delete get patch update | coordination.k8s.io | leases",
    "get | storage.k8s.io | volumeattachments",
    "create | core | serviceaccounts/token",
    "get patch update | core | persistentvolumeclaims/status",
    "READ | storage.k8s.io | csidrivers",
    "create delete get patch update | storage.k8s.io | csinodes",
    "READ | node.k8s.io | runtimeclasses",
    "READ | resource.k8s.io | resourceclaims resourceslices",
];

/// The rules of [`NODE_RULES`] as objects.
pub(crate) fn node_rules() -> Vec<Value> {
    NODE_RULES.iter().map(|text| rule(text)).collect()
}

/// All cluster roles.
pub(crate) fn cluster_roles() -> Vec<Value> {
    let mut roles = vec![
        role("cluster-admin", &["* | * | *", "* | *"]),
        role(
            "system:discovery",
            &["get | /api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/"],
        ),
        role(
            "system:basic-user",
            &[
                "create | authorization.k8s.io | selfsubjectaccessreviews selfsubjectrulesreviews",
                "create | authentication.k8s.io | selfsubjectreviews",
            ],
        ),
        role("system:public-info-viewer", &["get | /healthz /livez /readyz /version /version/"]),
        role(
            "system:monitoring",
            &["get | /healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*"],
        ),
        role(
            "system:service-account-issuer-discovery",
            &[
                "get | /.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/",
            ],
        ),
        aggregate("admin", &[], TO_ADMIN.0),
        aggregate("edit", &[TO_ADMIN], TO_EDIT.0),
        aggregate("view", &[TO_EDIT], TO_VIEW.0),
        labelled(
            "system:aggregate-to-admin",
            &[TO_ADMIN],
            &[
                "create | authorization.k8s.io | localsubjectaccessreviews",
                "READWRITE | rbac.authorization.k8s.io | rolebindings roles",
            ],
        ),
        labelled(
            "system:aggregate-to-edit",
            &[TO_EDIT],
            &[
                "READ | core | pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy",
                "impersonate | core | serviceaccounts",
                "WRITE | core | pods pods/attach pods/exec pods/portforward pods/proxy",
                "create | core | pods/eviction",
                "WRITE | core | configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts services services/proxy",
                "create | core | serviceaccounts/token",
                "WRITE | apps | daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale",
                "WRITE | autoscaling | horizontalpodautoscalers",
                "WRITE | batch | cronjobs jobs",
                "WRITE | policy | poddisruptionbudgets",
                "WRITE | networking.k8s.io | ingresses networkpolicies",
                "READWRITE | coordination.k8s.io | leases",
            ],
        ),
        labelled(
            "system:aggregate-to-view",
            &[TO_VIEW],
            &[
                "READ | core | configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status",
                "READ | core | bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status",
                "READ | core | namespaces",
                "READ | discovery.k8s.io | endpointslices",
                "READ | apps | controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
                "READ | autoscaling | horizontalpodautoscalers horizontalpodautoscalers/status",
                "READ | batch | cronjobs cronjobs/status jobs jobs/status",
                "READ | policy | poddisruptionbudgets poddisruptionbudgets/status",
                "READ | networking.k8s.io | ingresses ingresses/status networkpolicies",
            ],
        ),
        role("system:node", &NODE_RULES),
        role(
            "system:node-problem-detector",
            &["get | core | nodes", "patch | core | nodes/status", "create patch update | core events.k8s.io | events"],
        ),
        role(
            "system:node-proxier",
            &[
                "list watch | core | endpoints services",
                "READ | core | nodes",
                "create patch update | core events.k8s.io | events",
                "list watch | discovery.k8s.io | endpointslices",
                "list watch | networking.k8s.io | servicecidrs",
            ],
        ),
        // Ours: what a node's process needs beside the kubelet, which is elsewhere a matter of kube-proxy, DNS and network pods.
        role(
            "mini:node-network",
            &[
                "list watch | core | namespaces services",
                "list watch | discovery.k8s.io | endpointslices",
                "get | /node/tunnel",
                "get | /node/link",
            ],
        ),
        role(
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            &["create | certificates.k8s.io | certificatesigningrequests/nodeclient"],
        ),
        role(
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            &["create | certificates.k8s.io | certificatesigningrequests/selfnodeclient"],
        ),
        role(
            "system:certificates.k8s.io:legacy-unknown-approver",
            &["approve | certificates.k8s.io | signers | kubernetes.io/legacy-unknown"],
        ),
        role(
            "system:certificates.k8s.io:kubelet-serving-approver",
            &["approve | certificates.k8s.io | signers | kubernetes.io/kubelet-serving"],
        ),
        role(
            "system:certificates.k8s.io:kube-apiserver-client-approver",
            &["approve | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client"],
        ),
        role(
            "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
            &["approve | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client-kubelet"],
        ),
        role("system:node-bootstrapper", &["create get list watch | certificates.k8s.io | certificatesigningrequests"]),
        role(
            "system:kubelet-api-admin",
            &[
                "READ | core | nodes",
                "proxy | core | nodes",
                "* | core | nodes/log nodes/metrics nodes/proxy nodes/stats nodes/configz nodes/healthz nodes/pods",
            ],
        ),
        role(
            "system:auth-delegator",
            &["create | authentication.k8s.io | tokenreviews", "create | authorization.k8s.io | subjectaccessreviews"],
        ),
        role("system:kube-aggregator", &["READ | core | endpoints services"]),
        role("system:kube-dns", &["list watch | core | endpoints services"]),
        role(
            "system:persistent-volume-provisioner",
            &[
                "create delete get list watch | core | persistentvolumes",
                "get list update watch | core | persistentvolumeclaims",
                "READ | storage.k8s.io | storageclasses",
                "watch | core | events",
                "create patch update | core events.k8s.io | events",
            ],
        ),
        role(
            "system:kube-scheduler",
            &[
                "create patch update | core events.k8s.io | events",
                "create get list patch update watch | coordination.k8s.io | leases",
                "READ | core | nodes",
                "delete get list watch | core | pods",
                "create | core | bindings pods/binding",
                "patch update | core | pods/status",
                "READ | core | replicationcontrollers services",
                "READ | apps | replicasets statefulsets",
                "READ | policy | poddisruptionbudgets",
                "READUPDATE | core | persistentvolumeclaims persistentvolumes",
                "create | authentication.k8s.io | tokenreviews",
                "create | authorization.k8s.io | subjectaccessreviews",
                "READ | storage.k8s.io | csinodes csidrivers csistoragecapacities storageclasses volumeattachments",
                "READ | core | namespaces",
            ],
        ),
        role(
            "system:kube-controller-manager",
            &[
                "create patch update | core events.k8s.io | events",
                "create get update | coordination.k8s.io | leases",
                "create | core | secrets serviceaccounts",
                "delete | core | secrets",
                "get | core | configmaps namespaces secrets serviceaccounts",
                "update | core | secrets serviceaccounts",
                "create | authentication.k8s.io | tokenreviews",
                "create | authorization.k8s.io | subjectaccessreviews",
                "list watch | * | *",
                "create | core | serviceaccounts/token",
            ],
        ),
        role(
            "system:volume-scheduler",
            &[
                "READUPDATE | core | persistentvolumes",
                "READ | storage.k8s.io | storageclasses",
                "READUPDATE | core | persistentvolumeclaims",
            ],
        ),
    ];
    roles.extend(CONTROLLERS.iter().map(|(name, rules)| {
        let mut rules = rules.to_vec();
        rules.push("create patch update | core events.k8s.io | events");
        role(&format!("system:controller:{name}"), &rules)
    }));
    roles
}

/// The controllers' own roles, each bound to the ServiceAccount of the same name in kube-system.
const CONTROLLERS: &[(&str, &[&str])] = &[
    (
        "deployment-controller",
        &[
            "get list update watch | apps extensions | deployments",
            "update | apps extensions | deployments/status",
            "update | apps extensions | deployments/finalizers",
            "create delete get list patch update watch | apps extensions | replicasets",
            "get list update watch | core | pods",
        ],
    ),
    (
        "daemon-set-controller",
        &[
            "READ | apps extensions | daemonsets",
            "update | apps extensions | daemonsets/status",
            "update | apps extensions | daemonsets/finalizers",
            "list watch | core | nodes",
            "create delete list patch watch | core | pods",
            "create | core | pods/binding",
            "create delete get list patch update watch | apps | controllerrevisions",
        ],
    ),
    (
        "statefulset-controller",
        &[
            "list watch | core | pods",
            "READ | apps | statefulsets",
            "update | apps | statefulsets/status",
            "update | apps | statefulsets/finalizers",
            "create delete get patch update | core | pods",
            "create delete get list patch update watch | apps | controllerrevisions",
            "create get | core | persistentvolumeclaims",
            "delete update | core | persistentvolumeclaims",
        ],
    ),
    (
        "replicaset-controller",
        &[
            "get list update watch | apps extensions | replicasets",
            "update | apps extensions | replicasets/status",
            "update | apps extensions | replicasets/finalizers",
            "create delete list patch watch | core | pods",
        ],
    ),
    (
        "replication-controller",
        &[
            "get list update watch | core | replicationcontrollers",
            "update | core | replicationcontrollers/status",
            "update | core | replicationcontrollers/finalizers",
            "create delete list patch watch | core | pods",
        ],
    ),
    (
        "job-controller",
        &[
            "get list patch update watch | batch | jobs",
            "update | batch | jobs/status",
            "update | batch | jobs/finalizers",
            "create delete list patch watch | core | pods",
        ],
    ),
    (
        "cronjob-controller",
        &[
            "get list update watch | batch | cronjobs",
            "create delete get list patch update watch | batch | jobs",
            "update | batch | cronjobs/status",
            "update | batch | cronjobs/finalizers",
            "delete list | core | pods",
        ],
    ),
    ("ttl-after-finished-controller", &["delete get list watch | batch | jobs"]),
    (
        "horizontal-pod-autoscaler",
        &[
            "READ | autoscaling | horizontalpodautoscalers",
            "update | autoscaling | horizontalpodautoscalers/status",
            "get update | * | */scale",
            "list | core | pods",
            "list | metrics.k8s.io | pods",
            "get list | custom.metrics.k8s.io | *",
            "get list | external.metrics.k8s.io | *",
        ],
    ),
    (
        "disruption-controller",
        &[
            "READ | apps extensions | deployments",
            "READ | apps extensions | replicasets",
            "READ | core | replicationcontrollers",
            "READ | policy | poddisruptionbudgets",
            "READ | apps | statefulsets",
            "update | policy | poddisruptionbudgets/status",
            "patch update | core | pods/status",
            "get | * | */scale",
        ],
    ),
    (
        "endpoint-controller",
        &[
            "READ | core | pods services",
            "create delete get list update | core | endpoints",
            "create | core | endpoints/restricted",
        ],
    ),
    (
        "endpointslice-controller",
        &[
            "READ | core | nodes pods services",
            "update | core | services/finalizers",
            "create delete get list update | discovery.k8s.io | endpointslices",
            "create | discovery.k8s.io | endpointslices/restricted",
        ],
    ),
    (
        "endpointslicemirroring-controller",
        &[
            "READ | core | endpoints services",
            "update | core | endpoints/finalizers services/finalizers",
            "create delete get list update | discovery.k8s.io | endpointslices",
            "create | discovery.k8s.io | endpointslices/restricted",
        ],
    ),
    (
        "namespace-controller",
        &[
            "delete get list watch | core | namespaces",
            "update | core | namespaces/finalize namespaces/status",
            "delete deletecollection get list | * | *",
        ],
    ),
    ("generic-garbage-collector", &["delete get list patch update watch | * | *"]),
    (
        "node-controller",
        &[
            "delete get list patch update watch | core | nodes",
            "patch update | core | nodes/status",
            "patch update | core | pods/status",
            "delete list get watch | core | pods",
        ],
    ),
    (
        "certificate-controller",
        &[
            "delete get list watch | certificates.k8s.io | certificatesigningrequests",
            "update | certificates.k8s.io | certificatesigningrequests/approval certificatesigningrequests/status",
            "approve | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client-kubelet",
            "sign | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client kubernetes.io/kube-apiserver-client-kubelet kubernetes.io/kubelet-serving kubernetes.io/legacy-unknown",
            "create | authorization.k8s.io | subjectaccessreviews",
        ],
    ),
    ("service-account-controller", &["create | core | serviceaccounts"]),
    ("root-ca-cert-publisher", &["create update | core | configmaps"]),
    (
        "ephemeral-volume-controller",
        &[
            "READ | core | pods",
            "update | core | pods/finalizers",
            "create get list watch | core | persistentvolumeclaims",
        ],
    ),
    (
        "persistent-volume-binder",
        &[
            "create delete get list update watch | core | persistentvolumes",
            "update | core | persistentvolumes/status",
            "get list update watch | core | persistentvolumeclaims",
            "update | core | persistentvolumeclaims/status",
            "create delete get list watch | core | pods",
            "READ | storage.k8s.io | storageclasses",
        ],
    ),
    (
        "pod-garbage-collector",
        &["delete list watch | core | pods", "get list | core | nodes", "patch update | core | pods/status"],
    ),
    (
        "clusterrole-aggregation-controller",
        &["escalate get list patch update watch | rbac.authorization.k8s.io | clusterroles"],
    ),
    (
        "validatingadmissionpolicy-status-controller",
        &[
            "READ | admissionregistration.k8s.io | validatingadmissionpolicies",
            "get patch update | admissionregistration.k8s.io | validatingadmissionpolicies/status",
        ],
    ),
];

/// All cluster role bindings.
pub(crate) fn cluster_role_bindings() -> Vec<Value> {
    let mut bindings = vec![
        binding("cluster-admin", "cluster-admin", groups(&["system:masters"])),
        binding("system:discovery", "system:discovery", groups(&["system:authenticated"])),
        binding("system:basic-user", "system:basic-user", groups(&["system:authenticated"])),
        binding(
            "system:public-info-viewer",
            "system:public-info-viewer",
            groups(&["system:authenticated", "system:unauthenticated"]),
        ),
        binding("system:monitoring", "system:monitoring", groups(&["system:monitoring"])),
        binding(
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            groups(&["system:serviceaccounts"]),
        ),
        // The node authorizer gives nodes what they need.
        binding("system:node", "system:node", json!([])),
        binding("mini:node-network", "mini:node-network", groups(&["system:nodes"])),
        binding("system:node-proxier", "system:node-proxier", user("system:kube-proxy")),
        binding("system:kube-scheduler", "system:kube-scheduler", user("system:kube-scheduler")),
        binding("system:volume-scheduler", "system:volume-scheduler", user("system:kube-scheduler")),
        binding(
            "system:kube-controller-manager",
            "system:kube-controller-manager",
            user("system:kube-controller-manager"),
        ),
        binding(
            "system:kube-dns",
            "system:kube-dns",
            json!([{"kind": "ServiceAccount", "name": "kube-dns", "namespace": "kube-system"}]),
        ),
    ];
    bindings.extend(CONTROLLERS.iter().map(|(name, _)| {
        let name_of = format!("system:controller:{name}");
        binding(&name_of, &name_of, json!([{"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}]))
    }));
    bindings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_from_their_short_form() {
        assert_eq!(
            rule("READ | core apps | pods"),
            json!({"apiGroups": ["", "apps"], "resources": ["pods"], "verbs": ["get", "list", "watch"]})
        );
        assert_eq!(rule("get | /version"), json!({"nonResourceURLs": ["/version"], "verbs": ["get"]}));
    }
}
