//! Quotas over a whole server: charged before a write, counted anew after.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::api::kinds::gvr;
use crate::api::{Gvr, StatusResult, meta};
use crate::apiserver::local::{Delete, Event, Query};
use crate::apiserver::testing::{self, TestServer};
use crate::apiserver::{ApiServer, User};
use crate::env::Env;
use crate::storage::{Limits, memory};

struct World {
    test: TestServer,
    user: User,
}

impl World {
    async fn new() -> Self {
        let test = testing::start(memory(Limits::default()), Env::real()).await;
        let world = Self { test, user: User::master("admin") };
        world.create(&gvr::SERVICE_ACCOUNTS, json!({"metadata": {"name": "default"}})).await.expect("it is new");
        world
    }
    fn server(&self) -> &Arc<ApiServer> {
        &self.test.server
    }
    async fn create(&self, gvr: &Gvr, object: Value) -> StatusResult<Arc<Value>> {
        self.server().local_create(&self.user, gvr, "default", "", "", object).await
    }
    async fn quota(&self, hard: Value) -> Arc<Value> {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
        self.create(&gvr::RESOURCE_QUOTAS, quota).await.expect("a valid quota")
    }
    async fn delete(&self, gvr: &Gvr, name: &str) {
        let deleted = self.server().local_delete(&self.user, gvr, "default", name, &Delete::default()).await;
        deleted.expect("it is there");
    }
    /// Waits until the quota says that this much is used.
    async fn used(&self, resource: &str, wanted: &str) {
        let query = Query { gvr: &gvr::RESOURCE_QUOTAS, namespace: "default", labels: "", fields: "" };
        let mut events = self.server().local_watch(&self.user, query, "", false).await.expect("a watch");
        while let Some(Ok(event)) = events.next().await {
            let (Event::Added(quota) | Event::Modified(quota)) = event else { continue };
            if quota["status"]["used"][resource] == wanted {
                return;
            }
        }
        panic!("the watch ended before {resource} was {wanted}");
    }
}

fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

fn pod(name: &str, memory: &str) -> Value {
    let resources = json!({"requests": {"memory": memory}});
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "a", "resources": resources}]}})
}

#[tokio::test]
async fn concurrent_creates_get_no_more_than_the_quota() {
    let world = World::new().await;
    world.quota(json!({"count/configmaps": "20", "configmaps": "25"})).await;
    let names: Vec<String> = (0..60).map(|n| format!("m{n}")).collect();
    let creates = names.iter().map(|name| async { world.create(&gvr::CONFIG_MAPS, config_map(name)).await });
    let results = join_all(creates).await;
    let refused: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!(refused.len(), 40);
    assert!(refused.iter().all(|status| status.code == 403));
    let why = "is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=20, limited: \
        count/configmaps=20";
    assert!(refused.iter().any(|status| status.message.ends_with(why)), "{}", refused[0].message);
    world.used("count/configmaps", "20").await;
    // What goes makes room.
    let made = results.iter().find_map(|result| result.as_ref().ok()).expect("twenty were made");
    world.delete(&gvr::CONFIG_MAPS, meta::name(made)).await;
    world.used("count/configmaps", "19").await;
    world.create(&gvr::CONFIG_MAPS, config_map("again")).await.expect("there is room");
}

#[tokio::test]
async fn a_write_that_fails_is_not_counted() {
    let world = World::new().await;
    world.quota(json!({"configmaps": "5"})).await;
    world.create(&gvr::CONFIG_MAPS, config_map("a")).await.expect("there is room");
    world.create(&gvr::CONFIG_MAPS, config_map("a")).await.expect_err("it is there already");
    world.used("configmaps", "1").await;
}

#[tokio::test]
async fn pods_that_end_are_counted_no_longer() {
    let world = World::new().await;
    world.quota(json!({"pods": "1", "requests.memory": "1Gi"})).await;
    let unspecified = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
    let refused = world.create(&gvr::PODS, unspecified).await.expect_err("it does not say what it needs");
    assert_eq!(refused.message, "pods \"p\" is forbidden: failed quota: q: must specify requests.memory for: c");
    world.create(&gvr::PODS, pod("p", "2Gi")).await.expect_err("it is too much");
    let first = world.create(&gvr::PODS, pod("p", "512Mi")).await.expect("it fits");
    world.used("requests.memory", "512Mi").await;
    world.create(&gvr::PODS, pod("q", "1Mi")).await.expect_err("there is one already");
    let mut ended = (*first).clone();
    ended["status"]["phase"] = "Succeeded".into();
    let server = world.server();
    server.local_update(&world.user, &gvr::PODS, "default", "p", "status", ended).await.expect("a valid status");
    world.used("pods", "0").await;
    world.create(&gvr::PODS, pod("q", "1Mi")).await.expect("there is room again");
}

#[tokio::test]
async fn a_new_limit_counts_what_is_there() {
    let world = World::new().await;
    world.create(&gvr::CONFIG_MAPS, config_map("a")).await.expect("it is new");
    let quota = world.quota(json!({"secrets": "5"})).await;
    let mut more = (*quota).clone();
    more["spec"]["hard"] = json!({"secrets": "5", "configmaps": "1"});
    more["metadata"]["resourceVersion"] = Value::Null;
    let server = world.server();
    server.local_update(&world.user, &gvr::RESOURCE_QUOTAS, "default", "q", "", more).await.expect("a valid quota");
    let refused = world.create(&gvr::CONFIG_MAPS, config_map("b")).await.expect_err("there is one already");
    assert_eq!(
        refused.message,
        "configmaps \"b\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: \
         configmaps=1"
    );
}

#[tokio::test]
async fn limit_ranges_fill_in_what_quotas_demand() {
    let world = World::new().await;
    let limits = json!([{"type": "Container", "default": {"memory": "512Mi"}, "defaultRequest": {"memory": "256Mi"},
        "max": {"memory": "1Gi"}}]);
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": limits}});
    world.create(&gvr::LIMIT_RANGES, range).await.expect("a valid range");
    world.quota(json!({"requests.memory": "300Mi"})).await;
    let bare = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
    let pod = world.create(&gvr::PODS, bare).await.expect("the defaults fit");
    assert_eq!(
        pod["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: memory request for container c; memory limit for container c"
    );
    world.used("requests.memory", "256Mi").await;
    let large = json!({"metadata": {"name": "l"}, "spec": {"containers": [{"name": "c", "image": "a",
        "resources": {"limits": {"memory": "2Gi"}}}]}});
    let refused = world.create(&gvr::PODS, large).await.expect_err("it is too large");
    assert_eq!(refused.message, "pods \"l\" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi");
}
