//! Requests against the bootstrap objects: who belongs where, whose turn it is, and who is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::Value;

use super::classify::{Compiled, Limits};
use super::levels::{Levels, Rejected, Seat};
use crate::api::flow_control::{flow_schemas, priority_levels};
use crate::apiserver::User;
use crate::apiserver::http::request::{Query, RequestInfo};

fn shared(objects: Vec<Value>) -> Vec<Arc<Value>> {
    objects.into_iter().map(Arc::new).collect()
}

fn bootstrap() -> Compiled {
    Compiled::new(&shared(flow_schemas()), &shared(priority_levels()), &Compiled::default())
}

fn info(method: &Method, path: &str) -> RequestInfo {
    RequestInfo::new(method, path, &Query::default())
}

/// The schema, level and flow of a request.
fn belongs(user: &User, method: &Method, path: &str) -> (String, String, String) {
    let compiled = bootstrap();
    let (schema, flow) = compiled.classify(user, &info(method, path)).expect("catch-all catches all");
    (schema.name.clone(), schema.level.clone(), flow)
}

#[test]
fn requests_belong_where_kubernetes_puts_them() {
    let is = |user: &User, method: Method, path: &str, schema: &str, level: &str, flow: &str| {
        assert_eq!(belongs(user, &method, path), (schema.into(), level.into(), flow.into()), "{path}");
    };
    let pods = "/api/v1/namespaces/a/pods";
    let authenticated = "system:authenticated";
    is(&User::master("admin"), Method::GET, pods, "exempt", "exempt", "");
    let person = User::new("jane", &[authenticated]);
    is(&person, Method::GET, pods, "global-default", "global-default", "jane");
    is(&person, Method::GET, "/healthz", "probes", "exempt", "");
    is(&User::anonymous(), Method::GET, "/livez", "probes", "exempt", "");
    let node = User::new("system:node:n", &["system:nodes", authenticated]);
    is(&node, Method::PATCH, "/api/v1/nodes/n/status", "system-node-high", "node-high", "system:node:n");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
    is(&node, Method::PUT, lease, "system-node-high", "node-high", "system:node:n");
    is(&node, Method::GET, pods, "system-nodes", "system", "system:node:n");
    let scheduler = User::new("system:kube-scheduler", &[authenticated]);
    is(&scheduler, Method::POST, pods, "kube-scheduler", "workload-high", "a");
    let own = User::new("system:serviceaccount:kube-system:x", &["system:serviceaccounts", authenticated]);
    is(&own, Method::GET, pods, "kube-system-service-accounts", "workload-high", "a");
    is(&own, Method::PUT, lease, "workload-leader-election", "leader-election", "system:serviceaccount:kube-system:x");
    let account = User::new("system:serviceaccount:a:x", &["system:serviceaccounts", authenticated]);
    is(&account, Method::GET, pods, "service-accounts", "workload-low", "system:serviceaccount:a:x");
}

#[test]
fn the_seats_are_divided_by_shares() {
    let levels = Arc::new(Levels::new(600));
    levels.configure(&bootstrap().levels);
    // ceil(600 * shares / 245), as kube-apiserver computes NominalCL.
    let nominal: BTreeMap<String, u32> = levels.nominal().into_iter().collect();
    assert_eq!((nominal["catch-all"], nominal["workload-low"], nominal["system"]), (13, 245, 74));
}

/// One level with this many seats and queues, beside an idle one that lends nothing.
fn world(seats: u32, queues: Option<(usize, usize)>) -> (Arc<Levels>, Compiled) {
    let level = |shares: u32| Limits { shares, lendable: 0, borrowing: Some(0), queues };
    let levels = Arc::new(Levels::new(seats * 2));
    levels.configure(&BTreeMap::from([("global-default".to_owned(), level(1)), ("other".to_owned(), level(1))]));
    (levels, bootstrap())
}

async fn take(levels: &Arc<Levels>, compiled: &Compiled, user: &str) -> Result<Seat, Rejected> {
    let user = User::new(user, &["system:authenticated"]);
    let (schema, flow) = compiled.classify(&user, &info(&Method::GET, "/api/v1/pods")).expect("it matches");
    Levels::take(levels, schema, flow, Duration::from_millis(200)).await
}

#[tokio::test]
async fn flows_take_turns() {
    let (levels, compiled) = world(1, Some((100, 10)));
    let compiled = Arc::new(compiled);
    let first = take(&levels, &compiled, "busy").await.expect("it is free");
    let (order, mut finished) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    // One user has four requests waiting before another has the first.
    for user in ["busy", "busy", "busy", "busy", "quiet"] {
        let (levels, compiled, order) = (Arc::clone(&levels), Arc::clone(&compiled), order.clone());
        tasks.push(tokio::spawn(async move {
            let seat = take(&levels, &compiled, user).await.expect("its turn comes");
            let _ = order.send(user);
            drop(seat);
        }));
        tokio::task::yield_now().await;
    }
    drop(first);
    for task in tasks {
        task.await.expect("no panic");
    }
    drop(order);
    let mut users = Vec::new();
    while let Some(user) = finished.recv().await {
        users.push(user);
    }
    assert_eq!(users, ["busy", "quiet", "busy", "busy", "busy"]);
}

#[tokio::test]
async fn too_many_are_refused_and_waiting_ends() {
    let (levels, compiled) = world(1, Some((100, 1)));
    let seat = take(&levels, &compiled, "a").await.expect("it is free");
    // The second waits until its patience ends; meanwhile a third of the same flow is one too many.
    let (second, third) = tokio::join!(take(&levels, &compiled, "a"), take(&levels, &compiled, "a"));
    assert_eq!(second.expect_err("nobody left"), Rejected::TimeOut);
    assert_eq!(third.expect_err("the queue is full"), Rejected::QueueFull);
    drop(seat);
    // What waited in vain took no seat with it.
    drop(take(&levels, &compiled, "a").await.expect("it is free again"));
    let (levels, compiled) = world(1, None);
    let _seat = take(&levels, &compiled, "a").await.expect("it is free");
    assert_eq!(take(&levels, &compiled, "a").await.expect_err("no queue"), Rejected::ConcurrencyLimit);
}

#[tokio::test]
async fn idle_seats_are_lent() {
    let level = |lendable: u32| Limits { shares: 1, lendable, borrowing: None, queues: None };
    let levels = Arc::new(Levels::new(4));
    levels.configure(&BTreeMap::from([("global-default".to_owned(), level(0)), ("other".to_owned(), level(50))]));
    let compiled = bootstrap();
    // Two of its own, and one of the two that the other level lends.
    let mut seats = Vec::new();
    for _ in 0..3 {
        seats.push(take(&levels, &compiled, "a").await.expect("a seat"));
    }
    assert_eq!(take(&levels, &compiled, "a").await.expect_err("the rest is reserved"), Rejected::ConcurrencyLimit);
}
