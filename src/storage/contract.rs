//! What every backend must do, run on each of them: etcd's semantics of reads and writes, and the six properties that etcd's
//! robustness tests ask of a watch (ordered, unique, atomic, reliable, resumable, bookmarkable).

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use proptest::prelude::*;
use tokio::task::JoinSet;

use super::etcd::server::Server;
use super::{
    Body, Durability, Entry, Error, EtcdOptions, Event, Expect, Limits, Storage, Watch, memory, open_etcd, open_sled,
};

/// A backend and what must outlive it.
struct Backend {
    storage: Arc<dyn Storage>,
    dir: Option<tempfile::TempDir>,
    etcd: Option<EtcdOptions>,
    /// An etcd of its own.
    _server: Option<Server>,
}

type Make = fn(Limits) -> BoxFuture<'static, Backend>;

impl Backend {
    async fn memory(limits: Limits) -> Self {
        Self { storage: memory(limits), dir: None, etcd: None, _server: None }
    }

    async fn sled(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let storage = open_sled(dir.path(), limits).expect("it opens");
        Self { storage, dir: Some(dir), etcd: None, _server: None }
    }

    async fn etcd(limits: Limits, options: EtcdOptions, server: Option<Server>) -> Self {
        let storage = open_etcd(&options, limits).await.expect("it opens");
        Self { storage, dir: None, etcd: Some(options), _server: server }
    }

    /// Closes and opens again, where that means something.
    async fn restart(&mut self, limits: Limits) {
        if let Some(dir) = &self.dir {
            self.storage.close().await;
            self.storage = memory(limits);
            self.storage = open_sled(dir.path(), limits).expect("it opens again");
        }
        if let Some(options) = &self.etcd {
            self.storage.close().await;
            self.storage = open_etcd(options, limits).await.expect("it opens again");
        }
    }
}

/// Runs each check on each backend.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod on_memory {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(|limits| Box::pin(Backend::memory(limits))).await; })*
        }
        mod on_etcd {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                // Some checks make two backends; where there is no etcd there is none for the first.
                if Server::start().is_some() {
                    super::$name(|limits| Box::pin(async move {
                        let server = Server::start().expect("there was one");
                        Backend::etcd(limits, server.options(""), Some(server)).await
                    })).await;
                }
            })*
        }
        mod on_sled {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(|limits| Box::pin(Backend::sled(limits))).await; })*
        }
    };
}

contract!(
    reads_and_writes,
    preconditions,
    lists_in_pages_and_of_the_past,
    large_values,
    a_slow_watcher_is_told,
    a_quiet_watcher_is_never_compacted,
    bookmarks_follow_the_store,
    closing_ends_everything,
    lazy_writes_keep_the_order,
    watch_properties_under_concurrent_writers,
    one_of_many_wins,
);

fn body(text: &str) -> Body {
    Body { before: format!("{{\"text\":\"{text}\",\"rv\":\"").into(), after: "\"}".into() }
}

fn text(entry: &Entry) -> String {
    let value = entry.value();
    assert_eq!(value["rv"], entry.revision.to_string(), "the revision is spliced in");
    value["text"].as_str().expect("a text").to_owned()
}

async fn create(storage: &Arc<dyn Storage>, key: &str, text: &str) -> Arc<Entry> {
    storage.put(key, Expect::Absent, body(text), Durability::Now).await.expect("the key is free")
}

async fn texts(storage: &Arc<dyn Storage>, prefix: &str, revision: u64) -> Vec<String> {
    let listing = storage.list(prefix, None, 0, revision).await.expect("it is kept");
    listing.entries.iter().map(|entry| format!("{}={}", entry.key, text(entry))).collect()
}

async fn reads_and_writes(make: Make) {
    let mut backend = make(Limits::default()).await;
    let start = backend.storage.revision().await.expect("open");
    let a = create(&backend.storage, "/a/1", "x").await;
    assert_eq!((a.revision, text(&a)), (start + 1, "x".to_owned()), "one counter, by one");
    let b = create(&backend.storage, "/b/1", "y").await;
    let a = backend
        .storage
        .put("/a/1", Expect::Revision(a.revision), body("z"), Durability::Now)
        .await
        .expect("the revision fits");
    assert_eq!((b.revision, a.revision), (start + 2, start + 3));
    let gone = backend.storage.delete("/b/1", b.revision, body("y")).await.expect("it exists");
    assert_eq!((gone.revision, text(&gone)), (start + 4, "y".to_owned()), "a delete has its own revision");
    backend.restart(Limits::default()).await;
    let storage = &backend.storage;
    assert_eq!(storage.revision().await.expect("open"), start + 4, "also after a delete at the end");
    assert!(storage.get("/b/1").await.expect("open").is_none());
    let again = storage.get("/a/1").await.expect("open").expect("it is there");
    assert_eq!((again.revision, &again.json), (a.revision, &a.json));
    assert_eq!(storage.count("/a/").await.expect("open"), 1);
    assert_eq!(create(storage, "/b/1", "w").await.revision, start + 5, "revisions are never used again");
}

async fn preconditions(make: Make) {
    let Backend { storage, .. } = &make(Limits::default()).await;
    let missing = storage.put("/a", Expect::Revision(1), body("x"), Durability::Now).await;
    assert!(matches!(missing, Err(Error::Conflict(None))));
    assert!(matches!(storage.delete("/a", 1, body("x")).await, Err(Error::Conflict(None))));
    let first = create(storage, "/a", "x").await;
    let taken = storage.put("/a", Expect::Absent, body("y"), Durability::Lazy).await;
    assert!(matches!(taken, Err(Error::Conflict(Some(there))) if there.revision == first.revision));
    let stale = storage.delete("/a", first.revision - 1, body("x")).await;
    assert!(matches!(stale, Err(Error::Conflict(Some(there))) if there.revision == first.revision));
    assert_eq!(storage.revision().await.expect("open"), first.revision, "a failed write takes no revision");
}

async fn lists_in_pages_and_of_the_past(make: Make) {
    let backend = make(Limits::default()).await;
    let storage = &backend.storage;
    let mut revisions = vec![];
    for number in 0..5 {
        revisions.push(create(storage, &format!("/a/{number}"), "old").await.revision);
    }
    create(storage, "/b/0", "other").await;
    let then = storage.revision().await.expect("open");
    let page = storage.list("/a/", None, 2, 0).await.expect("now");
    assert_eq!((page.revision, page.more, page.remaining, page.entries.len()), (then, true, 3, 2));
    // The rest of the list is asked for at the first page's revision, whatever happened since.
    storage.delete("/a/3", revisions[3], body("old")).await.expect("it exists");
    storage.put("/a/4", Expect::Revision(revisions[4]), body("new"), Durability::Now).await.expect("it exists");
    create(storage, "/a/2a", "late").await;
    let rest = storage.list("/a/", Some("/a/1"), 2, then).await.expect("it is kept");
    let keys: Vec<_> = rest.entries.iter().map(|entry| (&*entry.key, text(entry))).collect();
    assert_eq!(keys, [("/a/2", "old".to_owned()), ("/a/3", "old".to_owned())]);
    assert_eq!((rest.revision, rest.more, rest.remaining), (then, true, 1));
    assert_eq!(texts(storage, "/a/", 0).await, ["/a/0=old", "/a/1=old", "/a/2=old", "/a/2a=late", "/a/4=new"]);
    assert_eq!(texts(storage, "/a/", revisions[1]).await, ["/a/0=old", "/a/1=old"]);
    assert_eq!(texts(storage, "", revisions[0]).await, ["/a/0=old"]);
    let future = storage.list("/a/", None, 0, then + 100).await;
    assert!(matches!(future, Err(Error::TooLarge { current, .. }) if current == then + 3));
    let past = storage.list("/a/", None, 0, revisions[0] - 2).await;
    assert!(past.is_err() || revisions[0] == 2, "what came before the store opened is not known");
}

async fn large_values(make: Make) {
    let mut backend = make(Limits::default()).await;
    let long = |size: usize| "a".repeat(size);
    let mut entries = BTreeMap::new();
    for (number, size) in [1_500_000, 5_000, 5_120, 40_000, 10, 300_000].into_iter().enumerate() {
        let key = format!("/large/{number}");
        entries.insert(key.clone(), create(&backend.storage, &key, &long(size)).await);
    }
    // Shorter and longer than before: no part of the old value may be left.
    for (key, size) in [("/large/0", 20_000), ("/large/4", 100_000), ("/large/5", 3)] {
        let expect = Expect::Revision(entries[key].revision);
        let entry = backend.storage.put(key, expect, body(&long(size)), Durability::Now).await.expect("it exists");
        entries.insert(key.to_owned(), entry);
    }
    backend.restart(Limits::default()).await;
    let listing = backend.storage.list("/large/", None, 0, 0).await.expect("open");
    let found: Vec<_> = listing.entries.iter().map(|entry| (entry.revision, &entry.json)).collect();
    assert!(found == entries.values().map(|entry| (entry.revision, &entry.json)).collect::<Vec<_>>());
    if let Some(dir) = &backend.dir {
        let blobs = std::fs::read_dir(dir.path().join("blobs")).expect("sled makes it").count();
        assert_eq!(blobs, 0, "sled does not sync blob files");
    }
}

async fn a_slow_watcher_is_told(make: Make) {
    let backend = make(Limits { events: 4, bytes: 1 << 20 }).await;
    let storage = &backend.storage;
    let first = create(storage, "/a/0", "x").await.revision;
    let mut slow = storage.watch("/a/", first).await.expect("now");
    for number in 1..=6 {
        create(storage, &format!("/a/{number}"), "x").await;
    }
    assert!(
        matches!(slow.next().await, Err(Error::Compacted { asked, oldest }) if asked == first && oldest == first + 2)
    );
    assert!(matches!(storage.watch("/a/", first + 1).await, Err(Error::Compacted { .. })));
    assert!(matches!(storage.list("/a/", None, 0, first + 1).await, Err(Error::Compacted { .. })));
    let kept = storage.watch("/a/", first + 2).await.expect("just kept").next().await.expect("events");
    assert_eq!(
        kept.iter().map(|event| event.revision).collect::<Vec<_>>(),
        (first + 3..=first + 6).collect::<Vec<_>>()
    );
    // Bytes bound it as well, but the last event is always there.
    let backend = make(Limits { events: 100, bytes: 64 }).await;
    create(&backend.storage, "/a/0", "x").await;
    let before = backend.storage.revision().await.expect("open");
    create(&backend.storage, "/a/1", &"x".repeat(1000)).await;
    assert_eq!(backend.storage.watch("/", before).await.expect("kept").next().await.expect("it").len(), 1);
    assert!(matches!(backend.storage.watch("/", before - 1).await, Err(Error::Compacted { .. })));
}

async fn a_quiet_watcher_is_never_compacted(make: Make) {
    let backend = make(Limits { events: 2, bytes: 1 << 20 }).await;
    let storage = &backend.storage;
    let mut quiet = storage.watch("/quiet/", 0).await.expect("now");
    for number in 0..10 {
        create(storage, &format!("/loud/{number}"), "x").await;
    }
    create(storage, "/quiet/1", "y").await;
    let events = quiet.next().await.expect("nothing below the prefix was lost");
    assert_eq!(events.len(), 1);
    assert_eq!(&*events[0].entry.key, "/quiet/1");
}

async fn bookmarks_follow_the_store(make: Make) {
    let backend = make(Limits::default()).await;
    let storage = &backend.storage;
    let mut watch = storage.watch("/a/", 0).await.expect("now");
    let other = create(storage, "/b/1", "x").await.revision;
    assert_eq!(watch.seen(), other, "nothing happened below the prefix");
    let ours = create(storage, "/a/1", "x").await.revision;
    assert!(watch.seen() <= other, "an event waits");
    assert_eq!(watch.next().await.expect("events").len(), 1);
    assert_eq!(watch.seen(), ours);
    // A watch from a revision that is not there yet shows nothing before it.
    let mut later = storage.watch("/a/", ours + 1).await.expect("etcd waits, too");
    create(storage, "/a/2", "x").await;
    let wanted = create(storage, "/a/3", "x").await;
    assert_eq!(later.next().await.expect("events")[0].revision, wanted.revision);
}

async fn closing_ends_everything(make: Make) {
    let backend = make(Limits::default()).await;
    let storage = backend.storage.clone();
    let mut watch = storage.watch("/", 0).await.expect("now");
    let waiting = tokio::spawn(async move { watch.next().await.map(|events| events.len()) });
    storage.close().await;
    storage.close().await;
    assert!(matches!(waiting.await.expect("no panic"), Err(Error::Backend(_))));
    assert!(storage.put("/a", Expect::Absent, body("x"), Durability::Now).await.is_err());
    assert!(storage.get("/a").await.is_err());
    assert!(storage.watch("/", 0).await.is_err());
}

async fn lazy_writes_keep_the_order(make: Make) {
    let mut backend = make(Limits::default()).await;
    let mut watch = backend.storage.watch("/", 0).await.expect("now");
    let mut tasks = JoinSet::new();
    for writer in 0..8 {
        let storage = backend.storage.clone();
        tasks.spawn(async move {
            for number in 0..20 {
                let durability = if (writer + number) % 2 == 0 { Durability::Lazy } else { Durability::Now };
                let key = format!("/{writer}/{number}");
                let entry = storage.put(&key, Expect::Absent, body("x"), durability).await.expect("free");
                let read = storage.get(&key).await.expect("open").expect("a writer sees its own write");
                assert_eq!(read.revision, entry.revision);
            }
        });
    }
    let mut last = 0;
    let mut count = 0;
    while count < 160 {
        for event in watch.next().await.expect("kept") {
            assert!(event.revision > last, "ordered");
            (last, count) = (event.revision, count + 1);
        }
    }
    tasks.join_all().await;
    // Lazy writes and lazy deletes reach the disk at the latest when it is closed.
    let lease = backend.storage.put("/lease", Expect::Absent, body("1"), Durability::Lazy).await.expect("free");
    let gone = backend.storage.get("/0/0").await.expect("open").expect("written above");
    backend.storage.delete_lazily("/0/0", gone.revision, body("x")).await.expect("it exists");
    let revision = backend.storage.revision().await.expect("open");
    backend.restart(Limits::default()).await;
    assert_eq!(backend.storage.revision().await.expect("open"), revision);
    assert_eq!(backend.storage.count("/").await.expect("open"), 160);
    let read = backend.storage.get("/lease").await.expect("open").expect("it is there");
    assert_eq!(read.revision, lease.revision);
}

async fn one_of_many_wins(make: Make) {
    let backend = make(Limits::default()).await;
    let storage = &backend.storage;
    let mut revision = create(storage, "/a", "0").await.revision;
    for _ in 0..10 {
        let mut tasks = JoinSet::new();
        for writer in 0..8 {
            let storage = storage.clone();
            let expect = Expect::Revision(revision);
            tasks.spawn(async move { storage.put("/a", expect, body(&writer.to_string()), Durability::Now).await });
        }
        let (won, lost): (Vec<_>, Vec<_>) = tasks.join_all().await.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 7));
        let winner = won.into_iter().next().and_then(Result::ok).expect("one won").revision;
        for error in lost.into_iter().filter_map(Result::err) {
            assert!(matches!(error, Error::Conflict(Some(there)) if there.revision == winner), "losers see the winner");
        }
        revision = winner;
    }
}

/// Reads until the event of `until` was seen.
async fn follow(mut watch: Box<dyn Watch>, until: u64) -> (Vec<Event>, Vec<u64>) {
    let (mut events, mut bookmarks) = (Vec::<Event>::new(), vec![]);
    while events.last().is_none_or(|event| event.revision < until) {
        let bookmark = watch.seen();
        let more = watch.next().await.expect("kept");
        assert!(more[0].revision > bookmark, "bookmarkable: nothing comes at or before what was said to be seen");
        events.extend(more);
        bookmarks.push(watch.seen());
    }
    (events, bookmarks)
}

async fn watch_properties_under_concurrent_writers(make: Make) {
    const PREFIXES: [&str; 4] = ["/", "/a/", "/b/", "/a/1"];
    let backend = make(Limits::default()).await;
    let storage = backend.storage.clone();
    let start = create(&storage, "/a/1", "0").await.revision;
    let mut writers = JoinSet::new();
    for writer in 0..8_usize {
        let storage = storage.clone();
        writers.spawn(async move {
            for number in 0..40_usize {
                let key = format!("/{}/{}", ["a", "b", "c"][(writer + number) % 3], (writer * number) % 4);
                let durability = if number % 5 == 0 { Durability::Lazy } else { Durability::Now };
                let now = storage.get(&key).await.expect("open");
                // A lost race is as good as a won one here.
                let _ = match now {
                    Some(entry) if number % 7 == 3 => storage.delete(&key, entry.revision, body("gone")).await,
                    Some(entry) => storage.put(&key, Expect::Revision(entry.revision), body("x"), durability).await,
                    None => storage.put(&key, Expect::Absent, body("x"), durability).await,
                };
            }
        });
    }
    // Watchers that start at the beginning, and others in the middle of it all from a list.
    let mut watchers = vec![];
    for prefix in PREFIXES {
        watchers.push((prefix, start, vec![], storage.watch(prefix, start).await.expect("kept")));
    }
    tokio::task::yield_now().await;
    for prefix in PREFIXES {
        let listing = storage.list(prefix, None, 0, 0).await.expect("now");
        let watch = storage.watch(prefix, listing.revision).await.expect("kept");
        watchers.push((prefix, listing.revision, listing.entries, watch));
    }
    let ends = writers.join_all();
    let reading = async {
        let mut tasks = JoinSet::new();
        let done = Arc::new(tokio::sync::watch::Sender::new(0));
        for (prefix, from, entries, watch) in watchers {
            let mut end = done.subscribe();
            tasks.spawn(async move {
                let mut watch = watch;
                let mut events = vec![];
                loop {
                    tokio::select! {
                        more = watch.next() => events.extend(more.expect("kept")),
                        _ = end.wait_for(|end| *end > 0) => break,
                    }
                }
                let until = *end.borrow();
                if events.last().is_none_or(|event: &Event| event.revision < until) {
                    events.extend(follow(watch, until).await.0);
                }
                (prefix, from, entries, events)
            });
        }
        (tasks, done)
    };
    let (_, (tasks, done)) = tokio::join!(ends, reading);
    // The last write is below every prefix.
    let end = storage.get("/a/1").await.expect("open");
    let end = match end {
        Some(entry) => storage.put("/a/1", Expect::Revision(entry.revision), body("end"), Durability::Now).await,
        None => storage.put("/a/1", Expect::Absent, body("end"), Durability::Now).await,
    };
    let end_a = end.expect("nobody else writes").revision;
    let end_b = match storage.get("/b/end").await.expect("open") {
        Some(_) => unreachable!("nobody wrote it"),
        None => create(&storage, "/b/end", "end").await.revision,
    };
    // "/a/" and "/a/1" end with the first of the two, "/" and "/b/" with the second.
    done.send_replace(end_a);
    let (history, bookmarks) = follow(storage.watch("/", start).await.expect("kept"), end_b).await;
    let revisions: Vec<_> = history.iter().map(|event| event.revision).collect();
    assert_eq!(revisions, (start + 1..=end_b).collect::<Vec<_>>(), "reliable: every revision is one event");
    assert!(bookmarks.iter().all(|bookmark| *bookmark <= end_b));
    for (prefix, from, entries, events) in tasks.join_all().await {
        let expected: Vec<_> =
            history.iter().filter(|event| event.revision > from && event.entry.key.starts_with(prefix)).collect();
        assert!(events.len() <= expected.len() && events.len() + 1 >= expected.len(), "{prefix}: unique and reliable");
        for (event, expected) in events.iter().zip(expected) {
            assert_eq!(event.revision, expected.revision, "{prefix}: ordered, and resumable from {from}");
            assert_eq!((event.deleted, &event.entry.json), (expected.deleted, &expected.entry.json));
        }
        // Atomic: the list and the events after it give the state of now.
        let mut state: BTreeMap<Arc<str>, u64> =
            entries.iter().map(|entry| (entry.key.clone(), entry.revision)).collect();
        if from == start {
            state.insert("/a/1".into(), start);
            state.retain(|key, _| key.starts_with(prefix));
        }
        for event in history.iter().filter(|event| event.revision > from && event.entry.key.starts_with(prefix)) {
            let previous = event.previous.as_ref().map(|entry| entry.revision);
            assert_eq!(state.get(&event.entry.key).copied(), previous, "{prefix}: the previous entry is the last one");
            if event.deleted {
                state.remove(&event.entry.key);
            } else {
                state.insert(event.entry.key.clone(), event.revision);
            }
        }
        let listing = storage.list(prefix, None, 0, 0).await.expect("now");
        let now: BTreeMap<_, _> = listing.entries.iter().map(|entry| (entry.key.clone(), entry.revision)).collect();
        assert_eq!(state, now, "{prefix}");
    }
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, fits: bool, lazy: bool },
    Delete { key: u8, fits: bool, lazy: bool },
    ListAt { back: u64, after: Option<u8>, limit: usize },
    WatchFrom { back: u64, narrow: bool },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let (key, mostly) = (0..6_u8, prop::bool::weighted(0.8));
    prop_oneof![
        6 => (key.clone(), mostly.clone(), any::<bool>()).prop_map(|(key, fits, lazy)| Step::Put { key, fits, lazy }),
        3 => (key.clone(), mostly, any::<bool>()).prop_map(|(key, fits, lazy)| Step::Delete { key, fits, lazy }),
        2 => (0..30_u64, prop::option::of(key), 0..4_usize)
            .prop_map(|(back, after, limit)| Step::ListAt { back, after, limit }),
        2 => (1..30_u64, any::<bool>()).prop_map(|(back, narrow)| Step::WatchFrom { back, narrow }),
        1 => Just(Step::Restart),
    ]
}

/// What a storage is: all its states, by revision.
struct Model {
    states: Vec<(u64, BTreeMap<String, u64>)>,
    events: Vec<(u64, String)>,
    kept: usize,
    floor: u64,
}

impl Model {
    fn now(&self) -> &(u64, BTreeMap<String, u64>) {
        self.states.last().expect("there is a first one")
    }
    fn push(&mut self, key: &str, exists: bool) {
        let (revision, mut state) = self.now().clone();
        if exists {
            state.insert(key.to_owned(), revision + 1);
        } else {
            state.remove(key);
        }
        self.states.push((revision + 1, state));
        self.events.push((revision + 1, key.to_owned()));
        if self.events.len() > self.kept {
            self.floor = self.events.remove(0).0;
        }
    }
}

async fn replay(mut backend: Backend, steps: Vec<Step>) {
    const LIMITS: Limits = Limits { events: 12, bytes: 1 << 20 };
    let start = backend.storage.revision().await.expect("open");
    let mut model = Model { states: vec![(start, BTreeMap::new())], events: vec![], kept: 12, floor: start };
    let name = |key: u8| format!("/{}/{key}", if key % 2 == 0 { "even" } else { "odd" });
    for step in steps {
        let storage = backend.storage.clone();
        let (now, state) = model.now().clone();
        match step {
            Step::Put { key, fits, lazy } => {
                let (key, durability) = (name(key), if lazy { Durability::Lazy } else { Durability::Now });
                let expect = match state.get(&key) {
                    Some(revision) if fits => Expect::Revision(*revision),
                    None if !fits => Expect::Revision(now),
                    _ => Expect::Absent,
                };
                let result = storage.put(&key, expect, body("x"), durability).await;
                assert_eq!(result.is_ok(), fits);
                if fits {
                    model.push(&key, true);
                }
            }
            Step::Delete { key, fits, lazy } => {
                let key = name(key);
                let revision = state.get(&key).map_or(now, |revision| if fits { *revision } else { revision + 1 });
                let fits = state.get(&key) == Some(&revision);
                let result = if lazy {
                    storage.delete_lazily(&key, revision, body("x")).await
                } else {
                    storage.delete(&key, revision, body("x")).await
                };
                assert_eq!(result.is_ok(), fits);
                if fits {
                    model.push(&key, false);
                }
            }
            Step::ListAt { back, after, limit } => {
                let at = now.saturating_sub(back).max(1);
                let after = after.map(name);
                let result = storage.list("/even/", after.as_deref(), limit, at).await;
                let Ok(listing) = result else {
                    assert!(at < model.floor, "{at} is kept");
                    continue;
                };
                // etcd remembers more than our ring.
                assert!(at >= model.floor || backend.etcd.is_some());
                if at < model.floor {
                    continue;
                }
                let (_, state) = model.states.iter().rev().find(|(revision, _)| *revision <= at).expect("it is kept");
                let all: Vec<_> = state
                    .iter()
                    .filter(|(key, _)| key.starts_with("/even/") && after.as_ref().is_none_or(|after| *key > after))
                    .map(|(key, revision)| (key.clone(), *revision))
                    .collect();
                let page: Vec<_> =
                    listing.entries.iter().map(|entry| (entry.key.to_string(), entry.revision)).collect();
                let size = if limit == 0 { all.len() } else { limit.min(all.len()) };
                assert_eq!(page, all[..size]);
                assert_eq!((listing.remaining, listing.revision), (all.len() - size, at));
            }
            Step::WatchFrom { back, narrow } => {
                let from = now.saturating_sub(back).max(1);
                let prefix = if narrow { "/odd/" } else { "/" };
                let Ok(mut watch) = storage.watch(prefix, from).await else {
                    assert!(from < model.floor, "{from} is kept");
                    continue;
                };
                assert!(from >= model.floor);
                let expected: Vec<_> =
                    model.events.iter().filter(|(at, key)| *at > from && key.starts_with(prefix)).cloned().collect();
                if !expected.is_empty() {
                    let events = watch.next().await.expect("it is kept");
                    let events: Vec<_> =
                        events.iter().map(|event| (event.revision, event.entry.key.to_string())).collect();
                    assert_eq!(events, expected);
                }
                assert_eq!(watch.seen(), now);
            }
            Step::Restart if backend.dir.is_some() || backend.etcd.is_some() => {
                drop(storage);
                backend.restart(LIMITS).await;
                assert_eq!(backend.storage.revision().await.expect("open"), now);
                (model.events, model.floor) = (vec![], now);
            }
            Step::Restart => {}
        }
    }
    let listing = backend.storage.list("", None, 0, 0).await.expect("now");
    let found: BTreeMap<_, _> = listing.entries.iter().map(|entry| (entry.key.to_string(), entry.revision)).collect();
    assert_eq!((listing.revision, &found), (model.now().0, &model.now().1));
}

fn run(make: impl AsyncFnOnce(Limits) -> Backend, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { replay(make(Limits { events: 12, bytes: 1 << 20 }).await, steps).await });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn memory_is_the_model(steps in prop::collection::vec(step(), 1..60)) {
        run(Backend::memory, steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn sled_is_the_model(steps in prop::collection::vec(step(), 1..60)) {
        run(Backend::sled, steps);
    }
}

/// One etcd for all histories: each has keys of its own, and what others wrote before is its past.
#[test]
fn etcd_is_the_model() {
    let Some(server) = Server::start() else { return };
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    let cases = std::cell::Cell::new(0);
    let mut runner = prop::test_runner::TestRunner::new(config);
    let result = runner.run(&prop::collection::vec(step(), 1..60), |steps| {
        cases.set(cases.get() + 1);
        let options = server.options(&format!("/case-{}", cases.get()));
        run(async |limits| Backend::etcd(limits, options, None).await, steps);
        Ok(())
    });
    result.expect("etcd is the model");
}
