//! A cluster whose objects lie in a real etcd, and their way there and back.

#[path = "../../src/storage/etcd/server.rs"]
mod server;

use mini::storage::EtcdOptions;

use crate::world::{World, like};

#[test]
fn a_clusters_objects_move_to_an_etcd_and_back() {
    let etcd = server::Server::start().expect("tests/run installs etcd");
    let w = World::new();
    let endpoint = &etcd.endpoint;
    let there = |w: &World, name: &str| w.ok(&format!("kubectl get configmap {name} -o jsonpath='{{.data.k}}'"));
    let keys = || w.ok(&format!("ETCDCTL_API=3 etcdctl --endpoints {endpoint} get --prefix --keys-only ''"));
    w.fails("mini start --datastore-endpoint 127.0.0.1:1");
    like(&w.fails("mini start --datastore-endpoint http://127.0.0.1:1").err, "*no etcd answers at http://127.0.0.1:1*");
    w.ok("mini delete");
    w.ok(&format!("mini start --datastore-endpoint {endpoint}"));
    like(&w.ok("mini status"), "*datastore: etcd at http://127.0.0.1:*");
    w.ok("kubectl create configmap one --from-literal=k=1");
    w.ok("kubectl create deployment echo --image=mini.local/echo:1.4");
    w.ok("kubectl rollout status deployment/echo --timeout=60s");
    assert!(keys().contains("/registry/core/configmaps/default/one"));
    // Killed with an etcd, as with the built-in database: nothing is lost.
    let pid = w.ok("mini status -o json | sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'");
    w.ok(&format!("kill -KILL {}", pid.trim()));
    w.ok("mini start");
    assert_eq!(there(&w, "one"), "1");
    // The etcd holds one cluster at this place.
    let other = w.fails(&format!("mini start -p other --datastore-endpoint {endpoint}"));
    like(&other.err, "*the cluster below /registry in this etcd belongs to the profile \"mini\"*");
    w.ok("mini delete -p other");
    assert_eq!(there(&w, "one"), "1", "what is not the other's stays");

    like(&w.fails("mini datastore migrate --to sled").err, "*'mini stop' first*");
    w.ok("mini stop");
    like(
        &w.ok("mini datastore migrate --to sled"),
        "The * objects of the cluster \"mini\" are in the built-in database",
    );
    assert_eq!(keys().trim(), "");
    w.ok("mini start");
    like(&w.ok("mini status"), "*datastore: built-in (sled)*");
    assert_eq!(there(&w, "one"), "1");
    w.ok("kubectl create configmap two --from-literal=k=2");
    w.ok("kubectl rollout status deployment/echo --timeout=60s");
    w.ok("mini stop");
    let elsewhere = w.fails(&format!("mini start --datastore-endpoint {endpoint}"));
    like(&elsewhere.err, "*keeps its objects elsewhere*");
    like(
        &w.ok(&format!("mini datastore migrate --to etcd --datastore-endpoint {endpoint} --datastore-prefix /mine")),
        "The * objects of the cluster \"mini\" are in the etcd",
    );
    assert!(!w.profile("mini").join("db").exists(), "there are no two truths");
    w.ok("mini start");
    assert_eq!((there(&w, "one"), there(&w, "two")), ("1".to_owned(), "2".to_owned()));
    w.ok("kubectl rollout status deployment/echo --timeout=60s");
    w.ok("mini delete");
    assert_eq!(keys().trim(), "", "delete leaves nothing in the etcd");
}
