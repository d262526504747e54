//! What only a store shared by several servers, and reached over a network, has to prove.

use super::server::Server;
use super::*;

fn body(text: &str) -> Body {
    Body { before: format!("{{\"text\":\"{text}\",\"rv\":\"").into(), after: "\"}".into() }
}

async fn create(storage: &Arc<dyn Storage>, key: &str) -> Arc<Entry> {
    storage.put(key, Expect::Absent, body("x"), Durability::Now).await.expect("the key is free")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_see_each_others_writes_at_once() {
    let Some(server) = Server::start() else { return };
    let open = async || open_etcd(&server.options(""), Limits::default()).await.expect("it opens");
    let (one, two) = (open().await, open().await);
    let mut watch = two.watch("/a/", 0).await.expect("now");
    for number in 0..50 {
        let key = format!("/a/{number}");
        let written = create(&one, &key).await;
        let read = two.get(&key).await.expect("open").expect("a read sees every write that was acknowledged before");
        assert_eq!((read.revision, &read.json), (written.revision, &written.json));
        assert_eq!(two.list("/a/", None, 0, 0).await.expect("open").entries.len(), number + 1);
        let changed =
            two.put(&key, Expect::Revision(read.revision), body("y"), Durability::Now).await.expect("it fits");
        let stale = one.put(&key, Expect::Revision(written.revision), body("z"), Durability::Now).await;
        assert!(matches!(stale, Err(Error::Conflict(Some(there))) if there.revision == changed.revision));
    }
    let mut revisions = vec![];
    while revisions.len() < 100 {
        revisions.extend(watch.next().await.expect("kept").iter().map(|event| event.revision));
    }
    assert!(revisions.is_sorted_by(|a, b| a < b), "one order for all");
    // A list of one is continued at the other, which was not there when it began.
    let page = one.list("/a/", None, 10, 0).await.expect("now");
    create(&one, "/a/00").await;
    let late = open().await;
    let rest = late.list("/a/", Some(&page.entries[9].key), 0, page.revision).await.expect("etcd remembers");
    assert_eq!((rest.entries.len(), rest.revision), (40, page.revision));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_keep_in_the_same_etcd_is_theirs() {
    let Some(server) = Server::start() else { return };
    let mine = open_etcd(&server.options("/mine"), Limits::default()).await.expect("it opens");
    let other = open_etcd(&server.options("/mine-too"), Limits::default()).await.expect("it opens");
    create(&other, "/a/1").await;
    assert_eq!(mine.count("").await.expect("open"), 0);
    assert!(mine.list("", None, 0, 0).await.expect("open").entries.is_empty());
    // Several keys in one transaction, which we never do, are one step for watchers.
    let mut watch = mine.watch("/a/", 0).await.expect("now");
    create(&mine, "/a/1").await;
    create(&mine, "/a/2").await;
    let client = Client::connect([&server.endpoint], None).await.expect("it answers");
    let all = etcd_client::DeleteOptions::new().with_prefix();
    client.kv_client().delete("/mine/", Some(all)).await.expect("deleted");
    let mut events = vec![];
    while events.len() < 4 {
        events.extend(watch.next().await.expect("kept"));
    }
    assert!(events[2].deleted && events[3].deleted && events[2].revision == events[3].revision);
    assert_eq!(mine.count("/").await.expect("open"), 0);
    // What is not ours is refused, not misread.
    client.kv_client().put("/mine/a/3", "k8s\0protobuf", None).await.expect("written");
    assert!(mine.get("/a/3").await.expect_err("foreign").to_string().contains("was not written by mini"));
    assert!(open_etcd(&server.options("/mine"), Limits::default()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_past_is_told_and_the_present_goes_on() {
    let Some(server) = Server::start() else { return };
    let storage = open_etcd(&server.options(""), Limits::default()).await.expect("it opens");
    let first = create(&storage, "/a/1").await;
    let second = create(&storage, "/a/2").await;
    let client = Client::connect([&server.endpoint], None).await.expect("it answers");
    client.kv_client().compact(signed(second.revision), None).await.expect("compacted");
    assert!(matches!(storage.list("/a/", None, 0, first.revision).await, Err(Error::Compacted { .. })));
    assert_eq!(storage.list("/a/", None, 0, second.revision).await.expect("kept").entries.len(), 2);
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_an_error_at_once() {
    let options = EtcdOptions { endpoints: vec!["http://127.0.0.1:1".into()], ..EtcdOptions::default() };
    let Err(error) = open_etcd(&options, Limits::default()).await else { panic!("it opened") };
    assert!(error.to_string().contains("no etcd answers at http://127.0.0.1:1"), "{error}");
    assert!(open_etcd(&EtcdOptions::default(), Limits::default()).await.is_err(), "no endpoint");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_has_one_owner() {
    let Some(server) = Server::start() else { return };
    let options = server.options("");
    for _ in 0..2 {
        claim_etcd(&options, "mini on one").await.expect("it is free, and then its own");
    }
    let error = claim_etcd(&options, "mini on two").await.expect_err("it is taken").to_string();
    assert!(error.contains("belongs to mini on one"), "{error}");
    claim_etcd(&server.options("/other"), "mini on two").await.expect("another cluster");
    clear(&options).await.expect("cleared");
    claim_etcd(&options, "mini on two").await.expect("free again");
}
