//! `pods/binding`: a pod gets its node, once.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::kind::Subresource;
use crate::api::{Kind, Status, StatusResult, meta};
use crate::apiserver::ApiServer;
use crate::apiserver::registry::Context;
use crate::apiserver::registry::update::Part;
use crate::env::rfc3339;

pub(super) async fn create(
    server: &ApiServer,
    context: &Context<'_>,
    kind: &Arc<Kind>,
    namespace: &str,
    name: &str,
    binding: &Value,
) -> StatusResult<Value> {
    let sent = meta::name(binding);
    if !sent.is_empty() && sent != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let target = &binding["target"];
    let target_kind = target["kind"].as_str().unwrap_or_default();
    if !["", "Node"].contains(&target_kind) {
        let message =
            format!("target.kind: Unsupported value: {target_kind:?}: supported values: \"Node\", \"<empty>\"");
        return Err(Status::new(500, "", message));
    }
    let node = target["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::new(500, "", "target.name: Required value"));
    }
    let now = rfc3339(server.env.now());
    server
        .change(context, kind, namespace, name, Part::Special(Subresource::Binding), |pod| {
            bind(kind, pod, binding, node, &now)
        })
        .await?;
    Ok(super::success())
}

fn bind(kind: &Kind, pod: &Value, binding: &Value, node: &str, now: &str) -> StatusResult<Value> {
    let name = meta::name(pod);
    let conflict = |why: String| Err(Status::conflict(&crate::api::Gvr::new("", "v1", "pods/binding"), name, &why));
    let uid = meta::uid(binding);
    if !uid.is_empty() && uid != meta::uid(pod) {
        return conflict(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::uid(pod)
        ));
    }
    if meta::is_terminating(pod) {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    match pod["spec"]["nodeName"].as_str().unwrap_or_default() {
        "" => {}
        there => return conflict(format!("pod {name} is already assigned to node {there:?}")),
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let _ = kind;
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = node.into();
    for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
        pod["metadata"]["annotations"][key] = value.clone();
    }
    // Since 1.35 a nomination ends with the binding (`ClearingNominatedNodeNameAfterBinding`).
    if let Some(status) = pod["status"].as_object_mut() {
        status.remove("nominatedNodeName");
    }
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let conditions = &mut pod["status"]["conditions"];
    match conditions.as_array_mut() {
        Some(all) => match all.iter_mut().find(|c| c["type"] == "PodScheduled") {
            Some(there) => *there = condition,
            None => all.push(condition),
        },
        None => *conditions = json!([condition]),
    }
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let kind = crate::api::kinds::all().into_iter().find(|k| k.gvr.resource == "pods").expect("pods are built in");
        let pod = json!({"metadata": {"name": "p"}, "spec": {}, "status": {"nominatedNodeName": "n"}});
        let bound = bind(&kind, &pod, &json!({}), "n", "2026-01-01T00:00:00Z").expect("bound");
        assert_eq!(bound["status"]["conditions"][0]["status"], "True");
        assert!(bound["status"]["nominatedNodeName"].is_null());
        let again = bind(&kind, &bound, &json!({}), "m", "2026-01-01T00:00:00Z").expect_err("refused");
        assert_eq!(
            again.message,
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\""
        );
    }
}
