//! Whether an APIService is available (`AvailableConditionController` of kube-aggregator): its Service has the port and an endpoint,
//! and the backend answers for its group version.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::backend::{self, Backend};
use super::{ApiServer, Said};
use crate::api::kinds::api_service;
use crate::api::meta::{items, text};
use crate::apiserver::registry::list::Page;
use crate::apiserver::selector::Selection;
use crate::env::rfc3339;

/// How long a backend may take to answer the check.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why an APIService is not available.
#[derive(Debug, PartialEq)]
pub(super) struct Unavailable {
    reason: &'static str,
    message: String,
    /// Whether that may change without anything that is followed changing.
    pub may_recover: bool,
}

impl Unavailable {
    fn new(reason: &'static str, message: String) -> Self {
        Self { reason, message, may_recover: false }
    }
    /// The condition that says so.
    pub fn condition(&self) -> Value {
        json!({"type": "Available", "status": "False", "reason": self.reason, "message": self.message})
    }
}

/// The condition of what this server serves itself.
pub(super) fn local() -> Value {
    json!({"type": "Available", "status": "True", "reason": "Local", "message": "Local APIServices are always available"})
}

/// The condition of a backend that answers.
pub(super) fn passed() -> Value {
    json!({"type": "Available", "status": "True", "reason": "Passed", "message": "all checks passed"})
}

/// Whether an object says that it is local.
pub(super) fn is_local(object: &Value) -> bool {
    says(object, &local())
}

/// Whether an object has a condition already.
pub(super) fn says(object: &Value, condition: &Value) -> bool {
    let there = api_service::available(object);
    there.is_some_and(|there| ["status", "reason", "message"].iter().all(|field| there[*field] == condition[*field]))
}

/// Sets the condition `Available`. The time changes with the status.
pub(super) fn set(object: &mut Value, condition: &Value, now: Timestamp) {
    let there = api_service::available(object);
    let since = there.filter(|there| there["status"] == condition["status"]);
    let since = since.map_or_else(|| rfc3339(now).into(), |there| there["lastTransitionTime"].clone());
    let mut condition = condition.clone();
    condition["lastTransitionTime"] = since;
    let mut conditions = items(&object["status"]["conditions"]).to_vec();
    match conditions.iter_mut().find(|there| there["type"] == "Available") {
        Some(there) => *there = condition,
        None => conditions.push(condition),
    }
    object["status"]["conditions"] = conditions.into();
}

/// What the Service and its endpoints say.
fn of_service(api_service: &Value, service: Option<&Value>, slices: &[Value]) -> Result<(), Unavailable> {
    let wanted = &api_service["spec"]["service"];
    let (name, namespace) = (text(&wanted["name"]), text(&wanted["namespace"]));
    let Some(service) = service else {
        let message = format!("service/{name} in {namespace:?} is not present");
        return Err(Unavailable::new("ServiceNotFound", message));
    };
    if service["spec"]["type"] != "ClusterIP" {
        return Ok(());
    }
    let port = items(&service["spec"]["ports"]).iter().find(|port| port["port"] == wanted["port"]);
    let Some(port) = port else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {}", wanted["port"]);
        return Err(Unavailable::new("ServicePortError", message));
    };
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Err(Unavailable::new("EndpointsNotFound", message));
    }
    let port_name = text(&port["name"]);
    let is_ready = |slice: &&Value| {
        items(&slice["endpoints"]).iter().any(|endpoint| endpoint["conditions"]["ready"] != false)
            && items(&slice["ports"]).iter().any(|port| text(&port["name"]) == port_name && port["port"].is_u64())
    };
    if !slices.iter().any(|slice| is_ready(&slice)) {
        let message = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        return Err(Unavailable::new("MissingEndpoints", message));
    }
    Ok(())
}

/// Checks a backend. Returns what it says of itself.
pub(super) async fn check(server: &ApiServer, object: &Value) -> Result<Said, Unavailable> {
    let spec = &object["spec"];
    let (group, version) = (text(&spec["group"]), text(&spec["version"]));
    if let Some(api) = server.options.aggregated.get(group, version) {
        return Ok(Said { resources: api.resources(), document: None, at: server.env.now() });
    }
    let (name, namespace) = (text(&spec["service"]["name"]), text(&spec["service"]["namespace"]));
    let access = |status: crate::api::Status| {
        let message = format!("service/{name} in {namespace:?} cannot be checked due to: {}", status.message);
        Unavailable::new("ServiceAccessError", message)
    };
    let services = server.known_kind("", "v1", "services").map_err(access)?;
    let service = server.stored(&services, namespace, name).await.map_err(access)?.map(|entry| entry.value());
    let slices = slices(server, namespace, name).await.map_err(access)?;
    of_service(object, service.as_deref(), &slices)?;

    let cluster_ip = service.as_ref().map(|service| text(&service["spec"]["clusterIP"]).to_owned()).unwrap_or_default();
    let path = format!("/apis/{group}/{version}");
    let url = format!("https://{cluster_ip}:{}{path}", spec["service"]["port"]);
    let failed = |why: String| Unavailable {
        reason: "FailedDiscoveryCheck",
        message: format!("failing or missing response from {url}: {why}"),
        may_recover: true,
    };
    let backend = Backend::of(server, object).believing();
    let (code, list) = tokio::time::timeout(TIMEOUT, backend::get(server, &backend, &path))
        .await
        .map_err(|_| failed(format!("Get {url:?}: context deadline exceeded")))?
        .map_err(|why| failed(format!("Get {url:?}: {why}")))?;
    if !(200..300).contains(&code) {
        return Err(failed(format!("bad status from {url}: {code}")));
    }
    let document = tokio::time::timeout(TIMEOUT, backend::get(server, &backend, "/openapi/v3")).await;
    let document = document.ok().and_then(Result::ok).filter(|(code, _)| *code == 200);
    let document = document.map(|(_, index)| index["paths"][&path[1..]]["serverRelativeURL"].clone());
    Ok(Said {
        resources: items(&list["resources"]).to_vec(),
        document: document.as_ref().and_then(Value::as_str).map(str::to_owned),
        at: server.env.now(),
    })
}

async fn slices(server: &ApiServer, namespace: &str, service: &str) -> crate::api::StatusResult<Vec<Value>> {
    let kind = server.known_kind("discovery.k8s.io", "v1", "endpointslices")?;
    let selection = Selection::parse(&kind, &format!("kubernetes.io/service-name={service}"), "")?;
    let listed = server.list(&kind, namespace, &selection, &Page::default()).await?;
    Ok(listed.entries.iter().map(|entry| (*entry.value()).clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api_service() -> Value {
        json!({"spec": {"group": "g.io", "version": "v1", "service": {"namespace": "ns", "name": "api", "port": 443}}})
    }

    fn said(service: Option<Value>, slices: &[Value]) -> (&'static str, String) {
        match of_service(&api_service(), service.as_ref(), slices) {
            Ok(()) => ("", String::new()),
            Err(why) => (why.reason, why.message),
        }
    }

    #[test]
    fn the_service_must_have_the_port_and_an_endpoint() {
        assert_eq!(said(None, &[]), ("ServiceNotFound", "service/api in \"ns\" is not present".to_owned()));
        let service = |port: u16| json!({"spec": {"type": "ClusterIP", "ports": [{"name": "https", "port": port}]}});
        let listening = "service/api in \"ns\" is not listening on port 443".to_owned();
        assert_eq!(said(Some(service(80)), &[]), ("ServicePortError", listening));
        let found = "cannot find endpointslices for service/api in \"ns\"".to_owned();
        assert_eq!(said(Some(service(443)), &[]), ("EndpointsNotFound", found));
        let slice = |port: &str, ready: bool| json!({"ports": [{"name": port, "port": 8443}], "endpoints": [{"conditions": {"ready": ready}}]});
        let missing = "endpointslices for service/api in \"ns\" have no addresses with port name \"https\"";
        for slice in [slice("https", false), slice("http", true)] {
            assert_eq!(said(Some(service(443)), &[slice]), ("MissingEndpoints", missing.to_owned()));
        }
        assert_eq!(said(Some(service(443)), &[slice("https", true)]).0, "");
    }

    #[test]
    fn the_time_of_a_condition_is_that_of_its_status() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let mut object = api_service();
        set(&mut object, &local(), at(1));
        set(&mut object, &passed(), at(2));
        let condition = api_service::available(&object).expect("it was set");
        assert_eq!(
            (&condition["reason"], &condition["lastTransitionTime"]),
            (&"Passed".into(), &"1970-01-01T00:00:01Z".into())
        );
        set(&mut object, &Unavailable::new("ServiceNotFound", String::new()).condition(), at(3));
        let condition = api_service::available(&object).expect("it was set");
        assert_eq!(condition["lastTransitionTime"], "1970-01-01T00:00:03Z");
        assert_eq!(items(&object["status"]["conditions"]).len(), 1);
    }
}
