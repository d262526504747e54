//! What every cluster has: four namespaces, the bootstrap roles, two priority classes, what aggregated API servers have to know, and
//! the Service `kubernetes` with its endpoint.

use std::sync::Arc;

use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::following::{Following, Told};
use super::registry::update::Part;
use super::registry::{Context, key};
use super::{ApiServer, User, authz, codec};
use crate::api::kinds::priority_class;
use crate::api::{Kind, Status, StatusResult, flow_control, meta};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Roles with this annotation are brought up to date at every start.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const RBAC: &str = "rbac.authorization.k8s.io";

/// Creates what is missing. All at once: the storage makes many writes durable together.
pub(crate) async fn run(server: &Arc<ApiServer>) -> StatusResult<()> {
    let namespaces = NAMESPACES.map(|name| ensure(server, "", "namespaces", json!({"metadata": {"name": name}})));
    try_join_all(namespaces).await?;
    let roles = authz::bootstrap::cluster_roles().into_iter().map(|role| ("clusterroles", role));
    let bindings =
        authz::bootstrap::cluster_role_bindings().into_iter().map(|binding| ("clusterrolebindings", binding));
    try_join_all(roles.chain(bindings).map(|(resource, object)| ensure(server, RBAC, resource, object))).await?;
    self::flow_control(server).await?;
    let range = server.options.service_cidr.to_string();
    let range = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [range]}});
    ensure(server, "networking.k8s.io", "servicecidrs", range).await?;
    let classes = priority_class::SYSTEM
        .map(|class| json!({"metadata": {"name": class.name}, "value": class.value, "description": class.description}));
    try_join_all(classes.map(|class| ensure(server, "scheduling.k8s.io", "priorityclasses", class))).await?;
    authentication_of_extensions(server).await
}

/// The name of the ConfigMap in which aggregated API servers find whom to believe, and of the Role to read it.
const EXTENSIONS: &str = "extension-apiserver-authentication";

/// Publishes the authorities of clients and of this server as their front proxy (the cluster authentication trust controller).
async fn authentication_of_extensions(server: &ApiServer) -> StatusResult<()> {
    let reader = format!("{EXTENSIONS}-reader");
    let metadata = |name: &str| {
        json!({"name": name, "namespace": "kube-system", "annotations": {AUTOUPDATE: "true"},
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}})
    };
    let role = json!({"metadata": metadata(&reader), "rules": [{
        "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [EXTENSIONS], "verbs": ["get", "list", "watch"],
    }]});
    ensure(server, RBAC, "roles", role).await?;
    let user = |name: &str| json!({"apiGroup": RBAC, "kind": "User", "name": name});
    let binding = json!({"metadata": metadata(&format!("system::{reader}")),
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": reader},
        "subjects": [user("system:kube-controller-manager"), user("system:kube-scheduler")]});
    ensure(server, RBAC, "rolebindings", binding).await?;
    let mut data = json!({"client-ca-file": String::from_utf8_lossy(&server.options.client_ca_pem)});
    if let Some(front_proxy) = &server.options.front_proxy {
        data["requestheader-client-ca-file"] = front_proxy.ca_pem.as_str().into();
        for (key, value) in [
            ("requestheader-allowed-names", "front-proxy-client"),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
            ("requestheader-group-headers", "X-Remote-Group"),
            ("requestheader-uid-headers", "X-Remote-Uid"),
            ("requestheader-username-headers", "X-Remote-User"),
        ] {
            data[key] = json!([value]).to_string().into();
        }
    }
    let Some(kind) = server.kind("", "v1", "configmaps") else { return Ok(()) };
    let wanted = json!({"metadata": {"name": EXTENSIONS, "namespace": "kube-system"}, "data": data});
    ensure(server, "", "configmaps", wanted.clone()).await?;
    let there = server.stored(&kind, "kube-system", EXTENSIONS).await?;
    if there.is_some_and(|there| there.value()["data"] != wanted["data"]) {
        let user = User::master("system:apiserver");
        let make = |old: &Value| {
            let mut object = old.clone();
            object["data"] = wanted["data"].clone();
            Ok(object)
        };
        server.change(&Context::new(&user), &kind, "kube-system", EXTENSIONS, Part::Main, make).await?;
    }
    Ok(())
}

/// Keeps the FlowSchemas and priority levels that every cluster has, as long as their annotation says so.
pub(crate) async fn flow_control(server: &Arc<ApiServer>) -> StatusResult<()> {
    let levels = flow_control::priority_levels().into_iter().map(|level| ("prioritylevelconfigurations", level));
    let schemas = flow_control::flow_schemas().into_iter().map(|schema| ("flowschemas", schema));
    try_join_all(levels.chain(schemas).map(|(resource, object)| ensure_spec(server, resource, object))).await?;
    Ok(())
}

/// Creates an object of flow control, or gives it back its spec.
async fn ensure_spec(server: &ApiServer, resource: &str, object: Value) -> StatusResult<()> {
    let kind = server.known_kind("flowcontrol.apiserver.k8s.io", "v1", resource)?;
    let name = meta::name(&object).to_owned();
    let user = User::master("system:apiserver");
    let context = Context::new(&user);
    let wanted = super::registry::decode(&context, &kind, codec::made(object.clone()))?;
    let result = match server.stored(&kind, "", &name).await? {
        None => server.create(&context, &kind, "", codec::made(object)).await,
        Some(entry) => {
            let there = entry.value();
            let kept = meta::annotation(&there, flow_control::AUTOUPDATE) == Some("true");
            if !kept || there["spec"] == wanted["spec"] {
                return Ok(());
            }
            let make = |old: &Value| {
                let mut object = old.clone();
                object["spec"] = wanted["spec"].clone();
                Ok(object)
            };
            server.change(&context, &kind, "", &name, Part::Main, make).await
        }
    };
    match result {
        Err(status) if !status.is_not_found() && !status.is_already_exists() => Err(status),
        _ => Ok(()),
    }
}

/// Creates an object unless it (or its kind) is not there. A bootstrap role that is there gets the rules that it lacks.
async fn ensure(server: &ApiServer, group: &str, resource: &str, object: Value) -> StatusResult<()> {
    let Some(kind) = server.kind(group, "v1", resource) else { return Ok(()) };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let namespace = meta::namespace(&object).to_owned();
    let user = User::master("system:apiserver");
    let context = Context::new(&user);
    if let Some(entry) = server.stored(&kind, &namespace, &name).await? {
        let there = entry.value();
        if meta::annotation(&there, AUTOUPDATE) != Some("true") || lacking(&there, &object).is_empty() {
            return Ok(());
        }
        let make = |old: &Value| {
            let mut role = old.clone();
            let mut rules = old["rules"].as_array().cloned().unwrap_or_default();
            rules.extend(lacking(old, &object));
            role["rules"] = rules.into();
            Ok(role)
        };
        return match server.change(&context, &kind, &namespace, &name, Part::Main, make).await {
            Err(status) if !status.is_not_found() => Err(status),
            _ => Ok(()),
        };
    }
    match server.create(&context, &kind, &namespace, codec::made(object)).await {
        Err(status) if !status.is_already_exists() => Err(status),
        _ => Ok(()),
    }
}

/// The rules of `wanted` that `there` does not have word by word.
fn lacking(there: &Value, wanted: &Value) -> Vec<Value> {
    let have = there["rules"].as_array();
    let wanted = wanted["rules"].as_array().into_iter().flatten();
    wanted.filter(|rule| !have.is_some_and(|have| have.contains(rule))).cloned().collect()
}

/// Keeps the Service `kubernetes` and its endpoint as they must be, also after somebody deleted them.
pub(crate) async fn maintain_kubernetes_service(server: &Arc<ApiServer>) -> StatusResult<()> {
    let mut following = Following::new(server, "the Service kubernetes");
    for (group, resource) in [("", "services"), ("", "endpoints"), ("discovery.k8s.io", "endpointslices")] {
        following.add((), &key(group, resource, "default", "kubernetes")).await?;
    }
    reconcile(server).await?;
    tokio::spawn(async move {
        while let Some(Told { server, .. }) = following.next().await {
            if let Err(status) = reconcile(&server).await {
                tracing::warn!(%status, "cannot maintain the Service kubernetes");
            }
        }
    });
    Ok(())
}

async fn reconcile(server: &ApiServer) -> StatusResult<()> {
    let (ip, port) = server.options.endpoint;
    let ip = ip.to_string();
    let cluster_ip = super::service::nth(server.options.service_cidr, 1).to_string();
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "metadata": {"name": "kubernetes", "labels": labels},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}],
        },
    });
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    if server.options.peers {
        // Each server adds its own and leaves the others' alone; all of them serve the same port.
        create_missing(server, "", "services", service).await?;
        join(server, "", "endpoints", endpoints, "/subsets/0/addresses").await?;
        return join(server, "discovery.k8s.io", "endpointslices", slice, "/endpoints").await;
    }
    keep(server, "", "services", service, "/spec/ports").await?;
    keep(server, "", "endpoints", endpoints, "/subsets").await?;
    keep(server, "discovery.k8s.io", "endpointslices", slice, "/endpoints").await
}

/// Creates an object in `default` if there is none. Whether there was one.
async fn create_missing(server: &ApiServer, group: &str, resource: &str, wanted: Value) -> StatusResult<bool> {
    let Some(kind) = server.kind(group, "v1", resource) else { return Ok(false) };
    if server.stored(&kind, "default", "kubernetes").await?.is_some() {
        return Ok(true);
    }
    let user = User::master("system:apiserver");
    match server.create(&Context::new(&user), &kind, "default", codec::made(wanted)).await {
        Ok(_) => Ok(false),
        Err(status) if status.is_already_exists() => Ok(true),
        Err(status) => Err(status),
    }
}

/// Creates an object in `default`, or adds what the list at `pointer` lacks.
async fn join(server: &ApiServer, group: &str, resource: &str, wanted: Value, pointer: &str) -> StatusResult<()> {
    if !create_missing(server, group, resource, wanted.clone()).await? {
        return Ok(());
    }
    let Some(kind) = server.kind(group, "v1", resource) else { return Ok(()) };
    let user = User::master("system:apiserver");
    let make = |old: &Value| -> Result<Value, Status> {
        let mut object = old.clone();
        let ours = wanted.pointer(pointer).and_then(Value::as_array);
        if let (Some(there), Some(ours)) = (object.pointer_mut(pointer).and_then(Value::as_array_mut), ours) {
            let lacking: Vec<Value> =
                ours.iter().filter(|our| !there.iter().any(|t| contains(t, our))).cloned().collect();
            there.extend(lacking);
        }
        Ok(object)
    };
    match server.change(&Context::new(&user), &kind, "default", "kubernetes", Part::Main, make).await {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}

/// Creates an object in `default`, or makes the part at `pointer` what it must be.
async fn keep(server: &ApiServer, group: &str, resource: &str, wanted: Value, pointer: &str) -> StatusResult<()> {
    if !create_missing(server, group, resource, wanted.clone()).await? {
        return Ok(());
    }
    let Some(kind) = server.kind(group, "v1", resource) else { return Ok(()) };
    let user = User::master("system:apiserver");
    change(server, &Context::new(&user), &kind, &wanted, pointer).await
}

async fn change(
    server: &ApiServer,
    context: &Context<'_>,
    kind: &Arc<Kind>,
    wanted: &Value,
    pointer: &str,
) -> StatusResult<()> {
    let part = Part::Main;
    let make = |old: &Value| -> Result<Value, Status> {
        let mut object = old.clone();
        if let (Some(place), Some(value)) = (object.pointer_mut(pointer), wanted.pointer(pointer)) {
            if !contains(place, value) {
                *place = value.clone();
            }
        }
        Ok(object)
    };
    match server.change(context, kind, "default", "kubernetes", part, make).await {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}

/// Whether all that `wanted` says is in `have` (defaults may have been added).
fn contains(have: &Value, wanted: &Value) -> bool {
    match (have, wanted) {
        (Value::Object(have), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| have.get(key).is_some_and(|h| contains(h, value)))
        }
        (Value::Array(have), Value::Array(wanted)) => {
            have.len() == wanted.len() && have.iter().zip(wanted).all(|(h, w)| contains(h, w))
        }
        _ => have == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_gets_only_the_rules_that_it_lacks() {
        let rule = |verb: &str| json!({"apiGroups": [""], "resources": ["pods"], "verbs": [verb]});
        let there = json!({"rules": [rule("get"), rule("own")]});
        assert_eq!(lacking(&there, &json!({"rules": [rule("get"), rule("list")]})), [rule("list")]);
    }

    #[test]
    fn defaults_around_what_is_wanted_are_no_difference() {
        let have = json!([{"port": 443, "protocol": "TCP", "targetPort": 6443, "name": "https"}]);
        assert!(contains(&have, &json!([{"port": 443}])));
        assert!(!contains(&have, &json!([{"port": 444}])));
    }
}
