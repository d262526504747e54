//! The scheduler against an API in memory: what it writes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use serde_json::{Value, json};

use super::start;
use super::world::node_name;
use crate::api::Status;
use crate::client::cache::Key;
use crate::client::fake::{FakeApi, Fault};
use crate::client::typed::{Meta, gvr};
use crate::client::{Api, Cache, Client, DeleteOptions, Factory, ListOptions};
use crate::env::Env;

fn node() -> Value {
    json!({"metadata": {"name": "n"}, "spec": {}, "status": {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "110000"}}})
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "a"},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
}

async fn until(cache: &Cache<Pod>, want: impl Fn(&Cache<Pod>) -> bool) {
    let mut progress = cache.progress();
    while !want(cache) {
        progress.changed().await.expect("the cache lives");
    }
}

fn on_node(name: &'static str) -> impl Fn(&Cache<Pod>) -> bool {
    move |cache| cache.get(&Key::new("a", name)).is_some_and(|pod| node_name(&pod) == "n")
}

fn says(name: &'static str, start: &'static str) -> impl Fn(&Cache<Pod>) -> bool {
    let message = |pod: &Pod| pod.status.as_ref()?.conditions.as_ref()?.first()?.message.clone();
    move |cache| {
        let said = cache.get(&Key::new("a", name)).and_then(|pod| message(&pod));
        said.is_some_and(|said| said.starts_with(start))
    }
}

async fn events(api: &Arc<FakeApi>) -> Vec<(String, String)> {
    let client = Client::new(api.clone());
    let events: Vec<Event> = client.list("a", &ListOptions::default()).await.expect("a list");
    let pair = |event: &Event| Some((event.involved_object.name.clone()?, event.message.clone()?));
    events.iter().filter_map(pair).collect()
}

#[tokio::test]
async fn pods_are_bound_when_they_fit_and_told_why_not() {
    let env = Env::real();
    let api = FakeApi::new(env.clone());
    let client = Client::new(api.clone());
    let pods = gvr::<Pod>();
    api.seed(&gvr::<Node>(), node());
    let mut refused = false;
    api.on_write(move |call| {
        // The first binding is refused once.
        let refuse = call.subresource == "binding" && !std::mem::replace(&mut refused, true);
        refuse.then(|| Fault::Refuse(Status::internal("no")))
    });
    let handle = start(api.clone(), env);
    let factory = Factory::new(api.clone());
    let cache = factory.cache::<Pod>();
    api.create(&pods, "a", "", "", pod("one", "800m")).await.expect("created");
    until(&cache, on_node("one")).await;
    api.create(&pods, "a", "", "", pod("two", "800m")).await.expect("created");
    until(&cache, says("two", "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, ")).await;
    let now = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
    client.delete::<Pod>("a", "one", &now).await.expect("deleted");
    until(&cache, on_node("two")).await;
    handle.stop().await;
    let said = events(&api).await;
    let has = |name: &str, message: &str| said.contains(&(name.to_owned(), message.to_owned()));
    assert!(has("one", "Successfully assigned a/one to n"), "{said:?}");
    let rejected = "binding rejected: running Bind plugin \"DefaultBinder\": Internal error occurred: no";
    assert!(has("one", rejected), "{said:?}");
}

#[tokio::test]
async fn victims_are_told_why_they_go_and_the_preemptor_gets_their_node() {
    let env = Env::real();
    let api = FakeApi::new(env.clone());
    let pods = gvr::<Pod>();
    api.seed(&gvr::<Node>(), node());
    let handle = start(api.clone(), env);
    let factory = Factory::new(api.clone());
    let cache = factory.cache::<Pod>();
    api.create(&pods, "a", "", "", pod("low", "800m")).await.expect("created");
    until(&cache, on_node("low")).await;
    let mut high = pod("high", "800m");
    high["spec"]["priority"] = 1000.into();
    let uid = crate::api::meta::uid(&api.create(&pods, "a", "", "", high).await.expect("created")).to_owned();
    // The victim ends gracefully: meanwhile the preemptor is nominated and waits.
    until(&cache, |cache| cache.get(&Key::new("a", "low")).is_some_and(|pod| pod.is_terminating())).await;
    let low = cache.get(&Key::new("a", "low")).expect("it ends");
    let conditions = low.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").expect("it is told");
    let told = (target.reason.as_deref(), target.message.as_deref());
    let expected = "default-scheduler: preempting to accommodate a higher priority pod";
    assert_eq!(told, (Some("PreemptionByScheduler"), Some(expected)));
    let nominated = |pod: &Pod| pod.status.as_ref().and_then(|status| status.nominated_node_name.clone());
    until(&cache, |cache| cache.get(&Key::new("a", "high")).and_then(|pod| nominated(&pod)).as_deref() == Some("n"))
        .await;
    assert!(says("high", "0/1 nodes are available: 1 Insufficient cpu.")(&cache));
    let now = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
    Client::new(api.clone()).delete::<Pod>("a", "low", &now).await.expect("deleted");
    until(&cache, on_node("high")).await;
    handle.stop().await;
    let said = events(&api).await;
    assert!(said.contains(&("low".to_owned(), format!("Preempted by pod {uid} on node n"))), "{said:?}");
}

#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn measure_five_thousand_pods() {
    let env = Env::real();
    let api = FakeApi::new(env.clone());
    api.seed(&gvr::<Node>(), node());
    for n in 0..5000 {
        api.create(&gvr::<Pod>(), "a", "", "", pod(&format!("p{n}"), "0")).await.expect("created");
    }
    let factory = Factory::new(api.clone());
    let cache = factory.cache::<Pod>();
    cache.synced().await;
    let from = Env::real().now();
    let handle = start(api.clone(), env.clone());
    until(&cache, |cache| {
        cache.get(&Key::new("a", "p999")).is_some_and(|pod| node_name(&pod) == "n")
            && cache.list().iter().all(|pod| node_name(pod) == "n")
    })
    .await;
    let took = env.now().duration_since(from);
    println!("5000 pods scheduled and bound in {took:?}");
    handle.stop().await;
}
