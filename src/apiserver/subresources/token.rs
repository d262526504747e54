//! `serviceaccounts/token`: TokenRequest.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::kind::Subresource;
use crate::api::status::FieldError;
use crate::api::{Gvr, Kind, Status, StatusResult, meta};
use crate::apiserver::ApiServer;
use crate::apiserver::admission::{self, Operation};
use crate::apiserver::authn::tokens::TokenRequest;
use crate::apiserver::registry::{self, Context, storage_failed};
use crate::env::rfc3339;

/// The shortest life of a token.
const SHORTEST: i64 = 10 * 60;
/// The longest (`1 << 32` in the validation of TokenRequest).
const LONGEST: i64 = 1 << 32;

pub(super) async fn create(
    server: &ApiServer,
    context: &Context<'_>,
    kind: &Arc<Kind>,
    namespace: &str,
    name: &str,
    mut request: Value,
) -> StatusResult<Value> {
    let account = server.get_entry(kind, namespace, name).await?.value();
    let seconds = match &request["spec"]["expirationSeconds"] {
        Value::Null => 3600,
        value => value.as_i64().ok_or_else(|| Status::bad_request("spec.expirationSeconds must be a whole number"))?,
    };
    let invalid = |why: &str| {
        let error = FieldError::invalid("spec.expirationSeconds", &json!(seconds), why);
        Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &[error]))
    };
    if seconds < SHORTEST {
        return invalid("may not specify a duration less than 10 minutes");
    }
    if seconds > LONGEST {
        return invalid("may not specify a duration larger than 2^32 seconds");
    }
    let attributes = admission::Attributes {
        user: context.user,
        context,
        operation: Operation::Create,
        kind,
        namespace,
        name: name.to_owned(),
        subresource: Some(Subresource::Token),
    };
    admission::mutate(server, &attributes, &mut request, None).await?;
    admission::validate(server, &attributes, &request, None).await?;
    let bound = bound_object(server, namespace, name, &request["spec"]["boundObjectRef"]).await?;
    let node = match &bound {
        Some((kind, pod, _)) if kind == "Pod" => node_of(server, namespace, pod).await?,
        _ => None,
    };
    let audiences: Vec<String> = request["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let audiences = if audiences.is_empty() { vec![server.options.issuer.clone()] } else { audiences };
    let asked = TokenRequest {
        namespace,
        name,
        uid: meta::uid(&account),
        audiences: audiences.clone(),
        seconds,
        bound: bound.as_ref().map(|(kind, name, uid)| (kind.as_str(), name.as_str(), uid.as_str())),
        node: node.as_ref().map(|(name, uid)| (name.as_str(), uid.as_str())),
    };
    let now = server.env.now();
    let (token, expires) = server.tokens.issue(asked, now, server.env.uid()).map_err(Status::internal)?;
    let expires = jiff::Timestamp::from_second(expires).map_err(Status::internal)?;
    let _ = context;
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": rfc3339(now)});
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = seconds.into();
    if request["spec"].get("boundObjectRef").is_none() {
        request["spec"]["boundObjectRef"] = Value::Null;
    }
    request["status"] = json!({"token": token, "expirationTimestamp": rfc3339(expires)});
    Ok(request)
}

/// Name and uid of the node of a pod (KEP-4193).
async fn node_of(server: &ApiServer, namespace: &str, pod: &str) -> StatusResult<Option<(String, String)>> {
    let get = |resource: &'static str, namespace: &str, name: &str| {
        let key = registry::key("", resource, namespace, name);
        async move { Ok::<_, Status>(server.storage.get(&key).await.map_err(storage_failed)?.map(|entry| entry.value())) }
    };
    let Some(pod) = get("pods", namespace, pod).await? else { return Ok(None) };
    let name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    Ok(get("nodes", "", name).await?.map(|node| (name.to_owned(), meta::uid(&node).to_owned())))
}

/// Kind, name and uid of what the token is bound to.
async fn bound_object(
    server: &ApiServer,
    namespace: &str,
    account: &str,
    reference: &Value,
) -> StatusResult<Option<(String, String, String)>> {
    if reference.is_null() {
        return Ok(None);
    }
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let (resource, place): (&'static str, &str) = match (text("apiVersion"), kind) {
        ("v1", "Pod") => ("pods", namespace),
        ("v1", "Secret") => ("secrets", namespace),
        ("v1", "Node") => ("nodes", ""),
        (version, kind) => {
            let gvk = format!("{version}, Kind={kind}");
            return Err(Status::bad_request(format!("cannot bind token for serviceaccount {account:?} to type {gvk}")));
        }
    };
    let entry = server.storage.get(&registry::key("", resource, place, name)).await.map_err(storage_failed)?;
    let gvr = Gvr::new("", "v1", resource);
    let object = entry.ok_or_else(|| Status::not_found(&gvr, name))?.value();
    if kind == "Pod" && object["spec"]["serviceAccountName"].as_str() != Some(account) {
        let used = object["spec"]["serviceAccountName"].as_str().unwrap_or_default();
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name. \
             pod.spec.serviceAccountName={used:?}"
        )));
    }
    if !uid.is_empty() && uid != meta::uid(&object) {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(&gvr, name, &why));
    }
    Ok(Some((kind.to_owned(), name.to_owned(), meta::uid(&object).to_owned())))
}
