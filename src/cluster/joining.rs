//! What lets other nodes join: bootstrap tokens, the permissions that go with them, and what is published for those who come.
//! The objects and their names are kubeadm's, so that what is known of it holds here too.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::api::kinds::gvr;
use crate::api::{Gvr, Status, meta};
use crate::client::{Api, Patch};
use crate::config::SharedSettings;
use crate::env::{Env, rfc3339};

/// The group of those who come with a token.
const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";
const NODES: &str = "system:nodes";
/// The ConfigMap in `kube-system` that says what all nodes have to agree on.
const SETTINGS: &str = "mini-config";
const RBAC: &str = "rbac.authorization.k8s.io";

/// A bootstrap token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The part that everybody may know.
    pub id: String,
    /// The other.
    pub secret: String,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

impl Token {
    fn random(env: &Env) -> Self {
        const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let text = |length: usize| -> String {
            (0..length).map(|_| char::from(LETTERS[usize::try_from(env.below(36)).unwrap_or_default()])).collect()
        };
        Self { id: text(6), secret: text(16) }
    }
}

/// Makes a token that lives for `ttl` (`None`: for ever).
///
/// # Errors
/// The API server's.
pub async fn make_token(api: &dyn Api, env: &Env, ttl: Option<Duration>, description: &str) -> Result<Token, Status> {
    let token = Token::random(env);
    let mut data = json!({
        "token-id": token.id, "token-secret": token.secret, "description": description,
        "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true", "auth-extra-groups": GROUP,
    });
    if let Some(ttl) = ttl {
        data["expiration"] = rfc3339(env.now() + ttl).into();
    }
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{}", token.id), "namespace": "kube-system"},
        "stringData": data,
    });
    api.create(&gvr::SECRETS, "kube-system", "", "", secret).await?;
    Ok(token)
}

/// Lets those who come with a token become nodes, and tells nodes what they have to know.
///
/// # Errors
/// The API server's.
pub async fn prepare(api: &dyn Api, shared: &SharedSettings) -> Result<(), Status> {
    let bindings = [
        ("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", GROUP),
        (
            "kubeadm:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            GROUP,
        ),
        (
            "kubeadm:node-autoapprove-certificate-rotation",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            NODES,
        ),
    ];
    for (name, role, group) in bindings {
        let binding = json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": group}],
        });
        ensure(api, &gvr::CLUSTER_ROLE_BINDINGS, binding).await?;
    }
    let text = |settings: serde_json::Result<String>| settings.map_err(Status::internal);
    let data = json!({
        "networking": text(serde_json::to_string(&shared.networking))?,
        "loadBalancerCidr": text(serde_json::to_string(&shared.load_balancer_cidr))?,
        "featureGates": text(serde_json::to_string(&shared.feature_gates))?,
    });
    ensure(api, &gvr::CONFIG_MAPS, config_map("kube-system", SETTINGS, data)).await?;
    let groups = json!([{"apiGroup": RBAC, "kind": "Group", "name": NODES}]);
    readable(api, "kube-system", SETTINGS, "mini:nodes-config", groups).await
}

/// Publishes the cluster's address and authority for everybody, signed with the tokens (see the bootstrap signer).
///
/// # Errors
/// The API server's.
pub async fn publish(api: &dyn Api, server: SocketAddr, ca_pem: &str) -> Result<(), Status> {
    let kubeconfig = format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: https://{server}\n  \
         name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {{}}\nusers: null\n",
        STANDARD.encode(ca_pem)
    );
    ensure(api, &gvr::CONFIG_MAPS, config_map("kube-public", "cluster-info", json!({"kubeconfig": kubeconfig})))
        .await?;
    let anybody = json!([{"apiGroup": RBAC, "kind": "User", "name": "system:anonymous"}]);
    readable(api, "kube-public", "cluster-info", "kubeadm:bootstrap-signer-clusterinfo", anybody).await
}

/// What all nodes have to agree on, as a node reads it.
///
/// # Errors
/// The API server's, or when it is not what it should be.
pub async fn shared_settings(api: &dyn Api) -> Result<SharedSettings> {
    let map = api.get(&gvr::CONFIG_MAPS, "kube-system", SETTINGS).await.context("reading the cluster's settings")?;
    let text = |key: &str| map["data"][key].as_str().unwrap_or_default();
    let read = || -> serde_json::Result<SharedSettings> {
        Ok(SharedSettings {
            networking: serde_json::from_str(text("networking"))?,
            load_balancer_cidr: serde_json::from_str(text("loadBalancerCidr"))?,
            feature_gates: serde_json::from_str(text("featureGates"))?,
        })
    };
    read().with_context(|| format!("the ConfigMap {SETTINGS} is not what it should be"))
}

fn config_map(namespace: &str, name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data})
}

/// Lets subjects get one ConfigMap.
async fn readable(api: &dyn Api, namespace: &str, map: &str, name: &str, subjects: Value) -> Result<(), Status> {
    let metadata = json!({"name": name, "namespace": namespace});
    let role = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": metadata,
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [map], "verbs": ["get"]}],
    });
    ensure(api, &gvr::ROLES, role).await?;
    let binding = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding", "metadata": metadata,
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name}, "subjects": subjects,
    });
    ensure(api, &gvr::ROLE_BINDINGS, binding).await
}

/// Creates an object, or makes the one that is there say the same.
async fn ensure(api: &dyn Api, gvr: &Gvr, object: Value) -> Result<(), Status> {
    let (namespace, name) = (meta::namespace(&object).to_owned(), meta::name(&object).to_owned());
    match api.create(gvr, &namespace, "", "", object.clone()).await {
        Err(status) if status.is_already_exists() => {
            api.patch(gvr, &namespace, &name, "", Patch::Merge(object)).await.map(drop)
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake::FakeApi;
    use crate::config::Config;

    #[tokio::test]
    async fn tokens_have_kubeadms_form_and_nodes_read_what_was_prepared() {
        let env = Env::simulated(7, "2026-01-01T00:00:00Z".parse().expect("a time"));
        let api = FakeApi::new(env.clone());
        let token = make_token(&*api, &env, Some(Duration::from_secs(3600)), "test").await.expect("made");
        assert_eq!((token.id.len(), token.secret.len(), token.to_string().len()), (6, 16, 23));
        let name = format!("bootstrap-token-{}", token.id);
        let secret = api.get(&gvr::SECRETS, "kube-system", &name).await.expect("there");
        assert_eq!(secret["stringData"]["expiration"], "2026-01-01T01:00:00Z");
        let shared = Config::new("mini").shared();
        for _ in 0..2 {
            prepare(&*api, &shared).await.expect("prepared");
            publish(&*api, "192.0.2.1:8443".parse().expect("an address"), "PEM").await.expect("published");
        }
        assert_eq!(shared_settings(&*api).await.expect("read"), shared);
    }
}
