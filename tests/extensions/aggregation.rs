//! API servers behind Services.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use mini::apiserver::testing;
use mini::apiserver::{Dialer, Stream};
use mini::env::Env;
use mini::storage::{Limits, memory};
use serde_json::{Value, json};

use crate::world::{Backend, World, version, widgets};

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const THINGS: &str = "/apis/things.example.com/v1/namespaces/default/things";

/// Whatever the address: pods are on loopback here.
struct ToLoopback;

#[async_trait::async_trait]
impl Dialer for ToLoopback {
    async fn dial(&self, _: IpAddr, port: u16) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?))
    }
}

async fn world() -> World {
    let server = testing::start_with(memory(Limits::default()), Env::real(), |options| {
        options.dialer = Arc::new(ToLoopback);
    });
    World { server: server.await }
}

fn document(path: &str, _: &Value) -> Value {
    match path {
        "/apis/things.example.com/v1" => {
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "things.example.com/v1",
            "resources": [{"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get", "list"]}]})
        }
        "/openapi/v3" => {
            json!({"paths": {"apis/things.example.com/v1": {"serverRelativeURL": "/openapi/v3/apis/things.example.com/v1?hash=7"}}})
        }
        "/openapi/v3/apis/things.example.com/v1" => json!({"openapi": "3.0.0", "info": {"title": "things"}}),
        "/openapi/v2" => json!({"swagger": "2.0",
            "paths": {"/apis/things.example.com/v1/": {"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/com.example.Thing"}}}}}},
            "definitions": {"com.example.Thing": {"type": "object"}, "com.example.Other": {"type": "object"}}}),
        path => json!({"kind": "ThingList", "apiVersion": "things.example.com/v1", "path": path}),
    }
}

fn api_service(more: Value) -> Value {
    let mut spec = json!({"group": "things.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 15,
        "service": {"namespace": "default", "name": "hooks"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.things.example.com"}, "spec": spec})
}

fn slice(backend: &Backend) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "hooks-1", "labels": {"kubernetes.io/service-name": "hooks"}},
        "ports": [{"name": "https", "port": backend.address.port()}],
        "endpoints": [{"addresses": ["10.1.2.3"], "conditions": {"ready": true}}]})
}

impl World {
    /// Waits until the condition `Available` of an APIService has a reason. Returns status and message.
    async fn until_reason(&self, name: &str, reason: &str) -> (String, String) {
        let arrived = async {
            let watch = self.server.server.clone();
            let mut kinds = watch.served_kinds();
            loop {
                let object = self.get(&format!("{API_SERVICES}/{name}")).await.body;
                let condition = object["status"]["conditions"][0].clone();
                if condition["reason"] == reason {
                    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
                    return (text("status"), text("message"));
                }
                let _ = tokio::time::timeout(Duration::from_millis(20), kinds.changed()).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), arrived).await.expect("it says so in time")
    }

    async fn groups(&self) -> Vec<String> {
        let groups = self.get("/apis").await.ok()["groups"].clone();
        groups
            .as_array()
            .into_iter()
            .flatten()
            .map(|group| group["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

#[tokio::test]
async fn a_group_version_is_passed_on_to_its_service() {
    let world = world().await;
    let backend = Backend::start(document).await;
    world.post(API_SERVICES, &api_service(json!({"caBundle": backend.ca_bundle()}))).await.ok();
    let (status, message) = world.until_reason("v1.things.example.com", "ServiceNotFound").await;
    assert_eq!((status.as_str(), message.as_str()), ("False", "service/hooks in \"default\" is not present"));
    let answer = world.get(THINGS).await;
    assert_eq!((answer.code, answer.body), (503, "service unavailable\n".into()));

    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hooks"},
        "spec": {"ports": [{"name": "https", "port": 443}]}});
    world.post("/api/v1/namespaces/default/services", &service).await.ok();
    world.until_reason("v1.things.example.com", "EndpointsNotFound").await;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    world.post(slices, &slice(&backend)).await.ok();
    let (status, message) = world.until_reason("v1.things.example.com", "Passed").await;
    assert_eq!((status.as_str(), message.as_str()), ("True", "all checks passed"));

    // What the client says about itself does not get through.
    let request = Request::builder()
        .uri(format!("{THINGS}?limit=5"))
        .header("authorization", "Bearer x")
        .header("x-remote-user", "root");
    let answer = world.ask(request.body(Body::empty()).expect("a request")).await;
    assert_eq!((answer.code, &answer.body["path"]), (200, &THINGS.into()));
    let (_, _, headers) = backend.seen.lock().expect("no panic").last().expect("it was asked").clone();
    let all =
        |name: &str| headers.get_all(name).iter().map(|v| v.to_str().expect("a text").to_owned()).collect::<Vec<_>>();
    assert_eq!(all("x-remote-user"), ["admin"]);
    assert_eq!(all("x-remote-group"), ["system:masters", "system:authenticated"]);
    assert_eq!(all("authorization"), [""; 0]);

    // Discovery, between Kubernetes' own groups and custom resources.
    let groups = world.groups().await;
    assert_eq!(groups.last().map(String::as_str), Some("things.example.com"));
    assert_eq!(world.get("/apis/things.example.com").await.ok()["preferredVersion"]["version"], "v1");
    assert_eq!(world.get("/apis/things.example.com/v1").await.ok()["resources"][0]["kind"], "Thing");
    let request = Request::builder()
        .uri("/apis")
        .header("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let list = world.ask(request.body(Body::empty()).expect("a request")).await.ok();
    let items = list["items"].as_array().expect("groups");
    let group = items.iter().find(|item| item["metadata"]["name"] == "things.example.com").expect("it is there");
    assert_eq!(group["versions"][0]["freshness"], "Current");
    assert_eq!(group["versions"][0]["resources"][0]["resource"], "things");

    // OpenAPI.
    let index = world.get("/openapi/v3").await.ok();
    let url =
        index["paths"]["apis/things.example.com/v1"]["serverRelativeURL"].as_str().expect("it is there").to_owned();
    assert_eq!(world.get(&url).await.ok()["info"]["title"], "things");
    let v2 = world.get("/openapi/v2").await.ok();
    assert!(
        v2["paths"]["/apis/things.example.com/v1/"].is_object() && v2["definitions"]["com.example.Thing"].is_object()
    );
    assert!(v2["definitions"]["com.example.Other"].is_null(), "nobody refers to it");

    // The backend goes.
    world.delete(&format!("{slices}/hooks-1")).await.ok();
    world.until_reason("v1.things.example.com", "EndpointsNotFound").await;
    assert_eq!(world.get(THINGS).await.code, 503);
    world.delete(&format!("{API_SERVICES}/v1.things.example.com")).await.ok();
    assert_eq!(world.get(THINGS).await.code, 404);
}

#[tokio::test]
async fn a_backend_that_is_not_believed_is_not_asked() {
    let world = world().await;
    let (backend, other) = (Backend::start(document).await, Backend::start(document).await);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hooks"},
        "spec": {"ports": [{"name": "https", "port": 443}]}});
    world.post("/api/v1/namespaces/default/services", &service).await.ok();
    world.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice(&backend)).await.ok();
    world.post(API_SERVICES, &api_service(json!({"caBundle": other.ca_bundle()}))).await.ok();
    // The check looks at no certificate, as in Kubernetes.
    world.until_reason("v1.things.example.com", "Passed").await;
    let answer = world.get(THINGS).await;
    let said = answer.body.as_str().unwrap_or_default();
    assert!(
        answer.code == 503
            && said.starts_with("error trying to reach service: tls: failed to verify certificate: x509:"),
        "{said}"
    );
    assert!(!backend.seen.lock().expect("no panic").iter().any(|(path, ..)| path == THINGS));
    world
        .merge(
            &format!("{API_SERVICES}/v1.things.example.com"),
            &json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}}),
        )
        .await
        .ok();
    assert_eq!(world.get(THINGS).await.code, 200);
}

#[tokio::test]
async fn what_is_served_here_is_registered() {
    let world = world().await;
    let apps = world.get(&format!("{API_SERVICES}/v1.apps")).await.ok();
    assert_eq!(apps["metadata"]["labels"], json!({"kube-aggregator.kubernetes.io/automanaged": "onstart"}));
    assert_eq!(
        apps["spec"],
        json!({"group": "apps", "version": "v1", "groupPriorityMinimum": 17800, "versionPriority": 15})
    );
    assert_eq!(apps["status"]["conditions"][0]["message"], "Local APIServices are always available");
    let all = world.get(API_SERVICES).await.ok();
    let names =
        all["items"].as_array().expect("a list").iter().map(|item| item["metadata"]["name"].as_str().expect("a name"));
    assert!(names.clone().any(|name| name == "v1.") && !names.clone().any(|name| name.contains("apiregistration")));

    world.define(&widgets(json!([version("v1", true, json!({"type": "object"}))]))).await;
    let (status, _) = world.until_reason("v1.x.example.com", "Local").await;
    assert_eq!(status, "True");
    let custom = world.get(&format!("{API_SERVICES}/v1.x.example.com")).await.ok();
    assert_eq!(custom["spec"]["groupPriorityMinimum"], 1000);
    // It is kept as long as the definition is there, and no longer.
    world.delete(&format!("{API_SERVICES}/v1.x.example.com")).await.ok();
    world.until_reason("v1.x.example.com", "Local").await;
    world.delete(&format!("{}/widgets.x.example.com", crate::world::DEFINITIONS)).await.ok();
    world.until(&format!("{API_SERVICES}/v1.x.example.com"), 404).await;
}

#[tokio::test]
async fn backends_learn_whom_to_believe() {
    let world = world().await;
    let map = world.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication").await.ok();
    assert_eq!(map["data"]["client-ca-file"], world.server.ca_pem);
    assert_eq!(map["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    let role =
        "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/extension-apiserver-authentication-reader";
    assert_eq!(world.get(role).await.ok()["rules"][0]["resourceNames"], json!(["extension-apiserver-authentication"]));
}
