//! Two API servers on one etcd: what one writes the other serves, and nothing is given away twice.

#[path = "../src/storage/etcd/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt;
use mini::apiserver::User;
use mini::apiserver::testing::{self, TestServer};
use mini::env::Env;
use mini::storage::{EtcdOptions, Limits, open_etcd};
use serde_json::{Value, json};

async fn start(options: &EtcdOptions) -> TestServer {
    let storage = open_etcd(options, Limits::default()).await.expect("it opens");
    testing::start_with(storage, Env::real(), |options| options.peers = true).await
}

async fn call(server: &TestServer, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    call_as(server, &User::master("admin"), method, path, body).await
}

async fn call_as(server: &TestServer, user: &User, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let response = server.call(Some(user), request.body(body).expect("a request")).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("an answer").to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_are_one_cluster() {
    let Some(etcd) = server::Server::start() else { return };
    let options = etcd.options("");
    let (one, two) = (start(&options).await, start(&options).await);
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, made) =
        call(&one, Method::POST, maps, Some(json!({"metadata": {"name": "a"}, "data": {"k": "1"}}))).await;
    assert_eq!(code, 201, "{made}");
    let (code, read) = call(&two, Method::GET, &format!("{maps}/a"), None).await;
    assert_eq!((code, &read), (200, &made), "a read sees what was acknowledged before it");
    let mut changed = read.clone();
    changed["data"]["k"] = "2".into();
    assert_eq!(call(&two, Method::PUT, &format!("{maps}/a"), Some(changed.clone())).await.0, 200);
    changed["data"]["k"] = "3".into();
    let (code, conflict) = call(&one, Method::PUT, &format!("{maps}/a"), Some(changed)).await;
    assert_eq!((code, conflict["reason"].as_str()), (409, Some("Conflict")));

    // Both are behind the Service `kubernetes`.
    let (_, endpoints) = call(&one, Method::GET, "/api/v1/namespaces/default/endpoints/kubernetes", None).await;
    assert_eq!(endpoints["subsets"][0]["addresses"].as_array().map(Vec::len), Some(1), "both have the test's address");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_and_ports_are_given_away_once() {
    let Some(etcd) = server::Server::start() else { return };
    let options = etcd.options("");
    let servers = Arc::new([start(&options).await, start(&options).await]);
    let services = "/api/v1/namespaces/default/services";
    let spec = |ip: Option<&str>, port: Option<u16>| json!({"type": "NodePort", "clusterIP": ip, "ports": [{"port": 80, "nodePort": port}]});
    // Everybody wants the same ports, two at a time.
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40_u16 {
        let (servers, spec) = (servers.clone(), spec(None, Some(30000 + number / 2)));
        tasks.spawn(async move {
            let object = json!({"metadata": {"name": format!("s{number}")}, "spec": spec});
            call(&servers[usize::from(number % 2)], Method::POST, services, Some(object)).await
        });
    }
    let answers = tasks.join_all().await;
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(code, _)| *code == 201);
    assert_eq!((made.len(), refused.len()), (20, 20));
    for (code, status) in &refused {
        let message = status["message"].as_str().unwrap_or_default();
        assert!(*code == 422 && message.ends_with("provided port is already allocated"), "{status}");
    }
    let addresses: BTreeSet<_> = made.iter().map(|(_, s)| s["spec"]["clusterIP"].to_string()).collect();
    assert_eq!(addresses.len(), 20);

    // What goes at one server is free at the other; what is taken there cannot be had here.
    let (_, service) = made.first().expect("some were made");
    let name = service["metadata"]["name"].as_str().expect("a name");
    let ip = service["spec"]["clusterIP"].as_str().expect("an address");
    let wanted = || Some(json!({"metadata": {"name": "again"}, "spec": spec(Some(ip), None)}));
    let (code, status) = call(&servers[1], Method::POST, services, wanted()).await;
    assert!(code == 422 && status["message"].as_str().is_some_and(|m| m.contains("already allocated")), "{status}");
    let events = servers[1].server.clone();
    assert_eq!(call(&servers[0], Method::DELETE, &format!("{services}/{name}"), None).await.0, 200);
    drop(events);
    // A third server, which was not there when all this happened, knows it too.
    let late = start(&options).await;
    let (code, status) = call(&late, Method::POST, services, wanted()).await;
    assert_eq!(code, 201, "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_given_at_one_server_counts_at_the_other() {
    let Some(etcd) = server::Server::start() else { return };
    let options = etcd.options("");
    let (one, two) = (start(&options).await, start(&options).await);
    let jane = User::new("jane", &["system:authenticated"]);
    let pods = "/api/v1/namespaces/default/pods";
    assert_eq!(call_as(&two, &jane, Method::GET, pods, None).await.0, 403);
    let version = call(&two, Method::GET, pods, None).await.1["metadata"]["resourceVersion"].clone();
    let binding = json!({"metadata": {"name": "jane"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
        "name": "view"}, "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let watch = format!("{bindings}?watch=true&resourceVersion={}", version.as_str().unwrap_or_default());
    let request = Request::builder().uri(&watch).body(Body::empty()).expect("a request");
    let mut events = two.call(Some(&User::master("admin")), request).await.into_body();
    assert_eq!(call(&one, Method::POST, bindings, Some(binding)).await.0, 201);
    events.frame().await.expect("the other server hears of it").expect("intact");
    // Its index of roles is told by the same ring of events; give it the turn that it may still need.
    let allowed = async {
        while call_as(&two, &jane, Method::GET, pods, None).await.0 != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), allowed).await.expect("jane may look at pods");
}
