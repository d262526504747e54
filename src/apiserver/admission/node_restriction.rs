//! `NodeRestriction`: a node changes its own Node, Lease and CSINode, the status of its own pods, and gets tokens for them.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::api::kind::Subresource;
use crate::api::meta::{self, items, text};
use crate::api::{Status, StatusResult};
use crate::apiserver::{ApiServer, authn, registry};

/// The annotation of pods that show what a node runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels of Kubernetes' own domains that a kubelet sets (`kubeletapis.IsKubeletLabel`).
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "kubernetes.io/os",
    "kubernetes.io/arch",
];
/// Label domains that are a kubelet's as a whole.
const KUBELET_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

pub(super) struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.user.is_in(authn::NODES) && attributes.user.name.starts_with("system:node:")
    }

    async fn validate(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        object: &Value,
        old: Option<&Value>,
    ) -> StatusResult<()> {
        let gvr = &attributes.kind.gvr;
        let forbidden = |why: String| Status::forbidden(gvr, &attributes.name, &why);
        let node = authn::node_name(attributes.user).unwrap_or_default();
        if node.is_empty() {
            return Err(forbidden(format!("could not determine node from user {:?}", attributes.user.name)));
        }
        let old = old.unwrap_or(&Value::Null);
        let checked = match (gvr.group.as_ref(), gvr.resource.as_ref()) {
            ("", "pods") => match (attributes.subresource, attributes.operation) {
                (None, Operation::Create) => {
                    let uid = node_uid(server, node).await?;
                    check_mirror(node, object, &uid)
                }
                (None, Operation::Delete) => {
                    let pod = stored(server, "pods", attributes.namespace, &attributes.name).await?;
                    only_own(&pod, node, "delete pods")
                }
                (None, operation) => Err(format!(
                    "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                    format!("{operation:?}").to_uppercase()
                )),
                (Some(Subresource::Status), _) => check_pod_status(node, object, old),
                // An eviction ends in a delete, which is asked about by itself.
                (Some(Subresource::Eviction), _) => Ok(()),
                (Some(other), _) => Err(format!(
                    "unexpected pod subresource {:?}, only 'status' and 'eviction' are allowed",
                    other.as_str()
                )),
            },
            ("", "nodes") => check_node(node, attributes, object, old),
            ("", "persistentvolumeclaims") => match attributes.subresource {
                Some(Subresource::Status) => check_claim_status(node, object, old),
                _ => Err("may only update PVC status".to_owned()),
            },
            ("", "serviceaccounts") if attributes.subresource == Some(Subresource::Token) => {
                check_token(server, node, attributes.namespace, object).await?
            }
            ("coordination.k8s.io", "leases") if attributes.namespace != "kube-node-lease" => {
                Err("can only access leases in the \"kube-node-lease\" system namespace".to_owned())
            }
            ("coordination.k8s.io", "leases") if name_of(attributes, object) != node => {
                Err("can only access node lease with the same name as the requesting node".to_owned())
            }
            ("storage.k8s.io", "csinodes") if name_of(attributes, object) != node => {
                Err("can only access CSINode with the same name as the requesting node".to_owned())
            }
            _ => Ok(()),
        };
        checked.map_err(forbidden)
    }
}

/// A create knows its name only from the object.
fn name_of<'a>(attributes: &'a Attributes<'_>, object: &'a Value) -> &'a str {
    if attributes.operation == Operation::Create { meta::name(object) } else { &attributes.name }
}

async fn stored(
    server: &ApiServer,
    resource: &str,
    namespace: &str,
    name: &str,
) -> StatusResult<std::sync::Arc<Value>> {
    let kind = server.known_kind("", "v1", resource)?;
    Ok(server.get_entry(&kind, namespace, name).await?.value())
}

async fn node_uid(server: &ApiServer, node: &str) -> StatusResult<String> {
    let key = registry::key("", "nodes", "", node);
    let entry = server.storage.get(&key).await.map_err(registry::storage_failed)?;
    Ok(entry.map(|entry| meta::uid(&entry.value()).to_owned()).unwrap_or_default())
}

fn only_own(pod: &Value, node: &str, what: &str) -> Result<(), String> {
    match pod["spec"]["nodeName"] == node {
        true => Ok(()),
        false => Err(format!("node {node:?} can only {what} with spec.nodeName set to itself")),
    }
}

fn check_mirror(node: &str, pod: &Value, node_uid: &str) -> Result<(), String> {
    if meta::annotation(pod, MIRROR).is_none() {
        return Err(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    only_own(pod, node, "create pods")?;
    let owner = match items(&pod["metadata"]["ownerReferences"]) {
        [owner] => owner,
        [] => return Err(format!("node {node:?} can only create pods with an owner reference set to itself")),
        _ => return Err(format!("node {node:?} can only create pods with a single owner reference set to itself")),
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return Err(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owner["controller"] != true {
        return Err(format!("node {node:?} can only create pods with a controller owner reference set to itself"));
    }
    if owner["blockOwnerDeletion"] == true {
        return Err(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    if owner["uid"] != node_uid {
        let uid = text(&owner["uid"]);
        return Err(format!("node {node} UID mismatch: expected {uid} got {node_uid}"));
    }
    let spec = &pod["spec"];
    if !text(&spec["serviceAccountName"]).is_empty() {
        return Err(format!("node {node:?} can not create pods that reference a service account"));
    }
    for (fields, what) in [
        (&["secretKeyRef", "secretRef", "secret", "imagePullSecrets"][..], "secrets"),
        (&["configMapKeyRef", "configMapRef", "configMap"][..], "configmaps"),
        (&["persistentVolumeClaim"][..], "persistentvolumeclaims"),
        (&["clusterTrustBundle"][..], "clustertrustbundles"),
    ] {
        if mentions(spec, fields) {
            return Err(format!("node {node:?} can not create pods that reference {what}"));
        }
    }
    Ok(())
}

/// Whether one of the fields is set somewhere below.
fn mentions(value: &Value, fields: &[&str]) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| {
            fields.contains(&key.as_str()) && !value.is_null() && value.as_array().is_none_or(|all| !all.is_empty())
                || mentions(value, fields)
        }),
        Value::Array(all) => all.iter().any(|value| mentions(value, fields)),
        _ => false,
    }
}

fn check_pod_status(node: &str, pod: &Value, old: &Value) -> Result<(), String> {
    only_own(old, node, "update pod status for pods")?;
    let empty = |labels: &Value| labels.as_object().is_none_or(serde_json::Map::is_empty);
    let (labels, before) = (&pod["metadata"]["labels"], &old["metadata"]["labels"]);
    if labels != before && !(empty(labels) && empty(before)) {
        return Err(format!("node {node:?} cannot update labels through pod status"));
    }
    if items(&pod["status"]["resourceClaimStatuses"]) != items(&old["status"]["resourceClaimStatuses"]) {
        return Err(format!("node {node:?} cannot update resource claim statues"));
    }
    Ok(())
}

fn check_node(node: &str, attributes: &Attributes<'_>, object: &Value, old: &Value) -> Result<(), String> {
    let name = match attributes.operation {
        Operation::Create => meta::name(object),
        _ => &attributes.name,
    };
    if name != node {
        return Err(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let (source, before) = (&object["spec"]["configSource"], &old["spec"]["configSource"]);
    match attributes.operation {
        Operation::Create => {
            if !source.is_null() {
                return Err(format!("node {node:?} is not allowed to create pods with a non-nil configSource"));
            }
            match forbidden_labels(object, &Value::Null) {
                labels if labels.is_empty() => Ok(()),
                labels => Err(format!("node {node:?} is not allowed to set the following labels: {labels}")),
            }
        }
        Operation::Update => {
            if !source.is_null() && source != before {
                return Err(format!(
                    "node {node:?} is not allowed to update configSource to a new non-nil configSource"
                ));
            }
            if items(&object["spec"]["taints"]) != items(&old["spec"]["taints"]) {
                return Err(format!("node {node:?} is not allowed to modify taints"));
            }
            match forbidden_labels(object, old) {
                labels if labels.is_empty() => Ok(()),
                labels => Err(format!("is not allowed to modify labels: {labels}")),
            }
        }
        _ => Ok(()),
    }
}

/// The labels that differ and are not a node's own business, with commas between them.
fn forbidden_labels(object: &Value, old: &Value) -> String {
    let labels = |object: &Value| object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (new, old) = (labels(object), labels(old));
    let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    let changed = keys.into_iter().filter(|key| new.get(*key) != old.get(*key));
    changed.filter(|key| is_forbidden(key)).cloned().collect::<Vec<_>>().join(", ")
}

fn is_forbidden(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let below = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    let is_kubelets = KUBELET_LABELS.contains(&label) || KUBELET_DOMAINS.iter().any(|parent| below(parent));
    below("node-restriction.kubernetes.io") || (below("kubernetes.io") || below("k8s.io")) && !is_kubelets
}

fn check_claim_status(node: &str, claim: &Value, old: &Value) -> Result<(), String> {
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        for field in ["resourceVersion", "managedFields"] {
            claim["metadata"].as_object_mut().map(|map| map.remove(field));
        }
        for field in ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"] {
            claim["status"].as_object_mut().map(|map| map.remove(field));
        }
        claim
    };
    match rest(claim) == rest(old) {
        true => Ok(()),
        false => Err(format!(
            "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
        )),
    }
}

async fn check_token(
    server: &ApiServer,
    node: &str,
    namespace: &str,
    request: &Value,
) -> StatusResult<Result<(), String>> {
    let bound = &request["spec"]["boundObjectRef"];
    if bound["apiVersion"] != "v1" || bound["kind"] != "Pod" || text(&bound["name"]).is_empty() {
        return Ok(Err("node requested token not bound to a pod".to_owned()));
    }
    let uid = text(&bound["uid"]);
    if uid.is_empty() {
        return Ok(Err("node requested token with a pod binding without a uid".to_owned()));
    }
    let pod = stored(server, "pods", namespace, text(&bound["name"])).await?;
    Ok(if meta::uid(&pod) != uid {
        Err(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been \
             deleted and then recreated"
        ))
    } else if pod["spec"]["nodeName"] != node {
        Err("node requested token bound to a pod scheduled on a different node".to_owned())
    } else {
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_of_kubernetes_domains_are_not_a_nodes_own() {
        for label in [
            "node-role.kubernetes.io/control-plane",
            "minikube.k8s.io/primary",
            "node-restriction.kubernetes.io/x",
            "x.node-restriction.kubernetes.io/y",
            "kubernetes.io/made-up",
        ] {
            assert!(is_forbidden(label), "{label}");
        }
        for label in [
            "kubernetes.io/hostname",
            "node.kubernetes.io/exclude-from-external-load-balancers",
            "a.kubelet.kubernetes.io/b",
            "example.com/rack",
            "plain",
            "mykubernetes.io/x",
        ] {
            assert!(!is_forbidden(label), "{label}");
        }
        let with = |labels: Value| json!({"metadata": {"labels": labels}});
        let (old, new) = (with(json!({"a.k8s.io/x": "1", "b": "1"})), with(json!({"a.k8s.io/x": "2", "b": "2"})));
        assert_eq!(forbidden_labels(&new, &old), "a.k8s.io/x");
        assert_eq!(forbidden_labels(&old, &old), "");
    }

    #[test]
    fn mirror_pods_refer_to_nothing_but_their_node() {
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true}]);
        let pod = json!({"metadata": {"annotations": {MIRROR: "x"}, "ownerReferences": owner},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
        assert_eq!(check_mirror("n", &pod, "u"), Ok(()));
        let with = |change: fn(&mut Value)| {
            let mut pod = pod.clone();
            change(&mut pod);
            check_mirror("n", &pod, "u").expect_err("refused")
        };
        assert!(with(|p| p["metadata"]["annotations"] = json!({})).contains("can only create mirror pods"));
        assert!(with(|p| p["spec"]["nodeName"] = "m".into()).contains("spec.nodeName set to itself"));
        assert!(with(|p| p["metadata"]["ownerReferences"][0]["uid"] = "v".into()).contains("UID mismatch"));
        assert!(with(|p| p["spec"]["serviceAccountName"] = "s".into()).contains("service account"));
        let secret = with(|p| p["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "s"}}]));
        assert!(secret.contains("can not create pods that reference secrets"));
        assert!(with(|p| p["spec"]["volumes"] = json!([{"persistentVolumeClaim": {}}])).contains("claims"));
    }

    #[test]
    fn a_status_changes_nothing_else() {
        let claim = |size: &str, volume: &str| {
            json!({"metadata": {"name": "c", "resourceVersion": size},
            "spec": {"volumeName": volume}, "status": {"phase": "Bound", "capacity": {"storage": size}}})
        };
        assert_eq!(check_claim_status("n", &claim("2", "v"), &claim("1", "v")), Ok(()));
        assert!(check_claim_status("n", &claim("2", "w"), &claim("1", "v")).is_err());
        let pod = |label: &str, node: &str| json!({"metadata": {"labels": {"a": label}}, "spec": {"nodeName": node}});
        assert_eq!(check_pod_status("n", &pod("1", "n"), &pod("1", "n")), Ok(()));
        assert!(check_pod_status("n", &pod("2", "n"), &pod("1", "n")).expect_err("refused").contains("labels"));
        assert!(check_pod_status("n", &pod("1", "m"), &pod("1", "m")).is_err());
    }
}
