//! `ServiceAccount`: every pod runs as one, and gets its token, the cluster's authority and its namespace mounted.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::api::{Status, StatusResult, meta};
use crate::apiserver::{ApiServer, registry};

/// Where containers find the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// One hour and a bit, so that a kubelet that refreshes at 80 % does so before an hour has passed.
const EXPIRATION: i64 = 3607;

pub(super) struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Create && attributes.is("", "pods")
    }

    async fn admit(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        pod: &mut Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        let forbidden = |pod: &Value, why: &str| Status::forbidden(&attributes.kind.gvr, meta::name(pod), why);
        if let Some(mirror) = meta::annotation(pod, "kubernetes.io/config.mirror").filter(|m| !m.is_empty()) {
            let _ = mirror;
            if pod["spec"]["serviceAccountName"].as_str().is_some_and(|n| !n.is_empty()) {
                return Err(forbidden(pod, "a mirror pod may not reference service accounts"));
            }
            return Ok(());
        }
        if !pod["spec"].is_object() {
            return Ok(());
        }
        if pod["spec"]["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
            let old = pod["spec"]["serviceAccount"].as_str().filter(|n| !n.is_empty()).unwrap_or("default").to_owned();
            pod["spec"]["serviceAccountName"] = old.into();
        }
        let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned();
        pod["spec"]["serviceAccount"] = name.as_str().into();
        let key = registry::key("", "serviceaccounts", attributes.namespace, &name);
        let account = server.storage.get(&key).await.map_err(registry::storage_failed)?;
        let Some(account) = account else {
            let why = format!(
                "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                attributes.namespace
            );
            return Err(forbidden(pod, &why));
        };
        let account = account.value();
        if pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
            && account["imagePullSecrets"].as_array().is_some_and(|s| !s.is_empty())
        {
            pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
        }
        let mount = match pod["spec"]["automountServiceAccountToken"].as_bool() {
            Some(asked) => asked,
            None => account["automountServiceAccountToken"] != false,
        };
        if mount {
            mount_token(pod, &server.env.suffix(5));
        }
        Ok(())
    }
}

/// Adds the projected volume and its mounts to every container that does not mount something there itself.
fn mount_token(pod: &mut Value, suffix: &str) {
    let volumes = pod["spec"]["volumes"].as_array();
    let existing =
        volumes.into_iter().flatten().filter_map(|v| v["name"].as_str()).find(|n| n.starts_with("kube-api-access-"));
    let had = existing.map(str::to_owned);
    let name = had.clone().unwrap_or_else(|| format!("kube-api-access-{suffix}"));
    let mut needed = false;
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten().filter(|c| c.is_object()) {
            let mounts = &mut container["volumeMounts"];
            if mounts.as_array().into_iter().flatten().any(|m| m["mountPath"] == MOUNT_PATH) {
                continue;
            }
            let mount = json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH});
            match mounts.as_array_mut() {
                Some(all) => all.push(mount),
                None => *mounts = json!([mount]),
            }
            needed = true;
        }
        if pod["spec"][list].is_null()
            && let Some(spec) = pod["spec"].as_object_mut()
        {
            spec.remove(list);
        }
    }
    if !needed || had.is_some() {
        return;
    }
    let volume = json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": EXPIRATION, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    match pod["spec"]["volumes"].as_array_mut() {
        Some(all) => all.push(volume),
        None => pod["spec"]["volumes"] = json!([volume]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]}});
        mount_token(&mut pod, "abcde");
        let once = pod.clone();
        mount_token(&mut pod, "fghij");
        assert_eq!(pod, once);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], "kube-api-access-abcde");
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
        assert!(pod["spec"].get("initContainers").is_none());
    }
}
