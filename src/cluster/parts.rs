//! Which parts of the cluster are shown as pods: those that a cluster of many processes has as pods of `kube-system`.

use crate::node::parts::Part;

const CONTROL_PLANE: &str = "system-node-critical";
const CLUSTER: &str = "system-cluster-critical";
const SYSTEM: &str = "kube-system";

/// At the first node.
pub const OF_CONTROL_PLANE: &[Part] = &[
    Part {
        name: "etcd",
        namespace: SYSTEM,
        labels: &[("component", "etcd"), ("tier", "control-plane")],
        priority_class: CONTROL_PLANE,
        modules: &["mini::storage"],
    },
    Part {
        name: "kube-apiserver",
        namespace: SYSTEM,
        labels: &[("component", "kube-apiserver"), ("tier", "control-plane")],
        priority_class: CONTROL_PLANE,
        modules: &["mini::apiserver", "mini::api"],
    },
    Part {
        name: "kube-controller-manager",
        namespace: SYSTEM,
        labels: &[("component", "kube-controller-manager"), ("tier", "control-plane")],
        priority_class: CONTROL_PLANE,
        modules: &["mini::controllers"],
    },
    Part {
        name: "kube-scheduler",
        namespace: SYSTEM,
        labels: &[("component", "kube-scheduler"), ("tier", "control-plane")],
        priority_class: CONTROL_PLANE,
        modules: &["mini::scheduler"],
    },
    Part {
        name: "coredns",
        namespace: SYSTEM,
        labels: &[("k8s-app", "kube-dns")],
        priority_class: CLUSTER,
        modules: &["mini::net::dns"],
    },
];

/// At every node.
pub const OF_EVERY_NODE: &[Part] = &[Part {
    name: "kube-proxy",
    namespace: SYSTEM,
    labels: &[("k8s-app", "kube-proxy")],
    priority_class: CONTROL_PLANE,
    modules: &["mini::net"],
}];

/// What an addon is, when it is on.
pub fn of_addon(name: &str) -> Option<Part> {
    let part = |name, labels, modules| Part { name, namespace: SYSTEM, labels, priority_class: CLUSTER, modules };
    Some(match name {
        "storage-provisioner" => part(
            "storage-provisioner",
            &[("integration-test", "storage-provisioner")],
            &["mini::controllers::provisioner", "mini::controllers::host_directories"],
        ),
        "metrics-server" => part("metrics-server", &[("k8s-app", "metrics-server")], &["mini::addons::metrics_server"]),
        _ => return None,
    })
}
