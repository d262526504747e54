//! Damage, foreign files, locks and full disks: a clear error or everything, never a panic and never silent loss.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::storage::{Body, Durability, Expect};

fn body(text: &str) -> Body {
    Body { before: format!("{{\"text\":\"{text}\",\"rv\":\"").into(), after: "\"}".into() }
}

async fn put(storage: &Arc<dyn Storage>, key: &str, durability: Durability) -> Result<Arc<Entry>, Error> {
    storage.put(key, Expect::Absent, body(&"x".repeat(600)), durability).await
}

/// A closed database with this many entries, each written twice.
async fn filled(entries: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let storage = open_sled(dir.path(), Limits::default()).expect("it opens");
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..entries {
        let storage = storage.clone();
        writes.spawn(async move {
            let key = format!("/a/{number}");
            let first = put(&storage, &key, Durability::Now).await.expect("free");
            let expect = Expect::Revision(first.revision);
            storage.put(&key, expect, body("again"), Durability::Now).await.expect("nobody else writes it");
        });
    }
    writes.join_all().await;
    storage.close().await;
    dir
}

fn refusal(dir: &Path) -> String {
    match open_sled(dir, Limits::default()) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused_or_complete() {
    let dir = filled(2000).await;
    let db = std::fs::read(dir.path().join("db")).expect("it is there");
    let files: Vec<_> = std::fs::read_dir(dir.path())
        .expect("a directory")
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_file()))
        .map(|entry| (entry.file_name(), std::fs::read(entry.path()).expect("readable")))
        .collect();
    let mut damages: Vec<(String, Vec<u8>)> = vec![
        ("none".into(), db.clone()),
        ("nothing left".into(), vec![]),
        ("noise".into(), (0..db.len()).map(|at| (at * 31 % 251) as u8).collect()),
    ];
    for part in 1..8 {
        damages.push((format!("cut at {part}/8"), db[..db.len() * part / 8].to_vec()));
        let mut zeroed = db.clone();
        let from = db.len() * part / 8;
        zeroed[from..(from + 4096).min(db.len())].fill(0);
        damages.push((format!("zeroes at {part}/8"), zeroed));
        let mut flipped = db.clone();
        flipped[from + 100] ^= 0x40;
        damages.push((format!("a bit at {part}/8"), flipped));
    }
    assert!(db.len() > 2 << 20, "several of sled's log segments");
    for with_snapshot in [true, false] {
        for (damage, content) in &damages {
            let copy = tempfile::tempdir().expect("a temporary directory");
            for (name, content) in &files {
                if with_snapshot || !name.to_string_lossy().starts_with("snap") {
                    std::fs::write(copy.path().join(name), content).expect("writable");
                }
            }
            std::fs::write(copy.path().join("db"), content).expect("writable");
            match open_sled(copy.path(), Limits::default()) {
                Err(error) if damage == "none" => panic!("{error}"),
                Err(error) => assert!(error.to_string().contains("the database in"), "{damage}: {error}"),
                Ok(storage) => {
                    let count = storage.count("/a/").await.expect("open");
                    assert_eq!(count, 2000, "{damage}: opened without all entries");
                }
            }
        }
    }
}

#[tokio::test]
async fn foreign_files_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("db"), b"SQLite format 3\0").expect("writable");
    assert!(refusal(dir.path()).contains("`conf` is missing"));
    assert_eq!(std::fs::read(dir.path().join("db")).expect("there"), b"SQLite format 3\0", "it was left alone");

    let dir = tempfile::tempdir().expect("a temporary directory");
    let foreign = sled::open(dir.path()).expect("it opens");
    foreign.insert("a", "b").expect("written");
    drop(foreign);
    assert!(refusal(dir.path()).contains("not written by mini"));

    let dir = filled(10).await;
    let other = sled::Config::new().path(dir.path()).mode(sled::Mode::LowSpace).open().expect("it opens");
    other.insert(SCHEMA_KEY, "mini storage 7").expect("written");
    drop(other);
    assert!(refusal(dir.path()).contains("mini storage 7"));

    let dir = filled(10).await;
    std::fs::remove_file(dir.path().join("db")).expect("it is there");
    assert!(refusal(dir.path()).contains("data is lost"));
}

#[tokio::test]
async fn an_older_copy_of_the_file_is_noticed() {
    let dir = filled(10).await;
    let save = |name: &str| std::fs::read(dir.path().join(name)).expect("there");
    let (db, conf) = (save("db"), save("conf"));
    let storage = open_sled(dir.path(), Limits::default()).expect("it opens");
    put(&storage, "/b", Durability::Now).await.expect("free");
    storage.close().await;
    drop(storage);
    for entry in std::fs::read_dir(dir.path()).expect("a directory").filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with("snap") {
            std::fs::remove_file(entry.path()).expect("removable");
        }
    }
    std::fs::write(dir.path().join("db"), db).expect("writable");
    std::fs::write(dir.path().join("conf"), conf).expect("writable");
    assert!(refusal(dir.path()).contains("data is lost"));
}

#[tokio::test]
async fn one_process_at_a_time_and_private() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("db");
    let storage = open_sled(&path, Limits::default()).expect("it opens");
    assert!(refusal(&path).contains("another process is using it"));
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    put(&storage, "/a", Durability::Now).await.expect("free");
    drop(storage);
    assert_eq!(open_sled(&path, Limits::default()).expect("it is free now").count("/").await.expect("open"), 1);
}

#[tokio::test]
async fn lazy_revisions_are_not_used_again_after_a_crash() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let storage = open_sled(dir.path(), Limits::default()).expect("it opens");
    let kept = put(&storage, "/kept", Durability::Now).await.expect("free");
    let mut last = 0;
    for number in 0..1500 {
        last = put(&storage, &format!("/lazy/{number}"), Durability::Lazy).await.expect("free").revision;
    }
    // What a kill would leave behind.
    let copy = tempfile::tempdir().expect("a temporary directory");
    for entry in std::fs::read_dir(dir.path()).expect("a directory").filter_map(Result::ok) {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copied");
        }
    }
    let after = open_sled(copy.path(), Limits::default()).expect("it opens");
    assert!(after.revision().await.expect("open") >= last);
    assert_eq!(after.get("/kept").await.expect("open").expect("durable").revision, kept.revision);
    assert!(matches!(after.watch("/", last - 1).await, Err(Error::Compacted { .. })), "watchers must list again");
    assert!(put(&after, "/new", Durability::Now).await.expect("free").revision > last);
}

/// A disk that fails when it is told to, after it has written nevertheless.
struct Failing {
    inner: SledDisk,
    fail: Arc<std::sync::atomic::AtomicBool>,
}

impl Disk for Failing {
    fn commit(&mut self, changes: &Changes, ceiling: u64) -> Result<(), String> {
        self.inner.commit(changes, ceiling)?;
        if self.fail.load(std::sync::atomic::Ordering::SeqCst) { Err("no space left".to_owned()) } else { Ok(()) }
    }
}

#[tokio::test]
async fn a_failed_write_is_not_seen_now_or_later() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (inner, entries) = SledDisk::open(dir.path()).expect("it opens");
    let fail = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let state = State::new(entries, inner.summary.ceiling, Limits::default());
    let disk = Failing { inner, fail: fail.clone() };
    let storage: Arc<dyn Storage> = Arc::new(Engine::new(state, Some(Box::new(disk))).expect("a thread"));
    let before = put(&storage, "/a", Durability::Now).await.expect("free");
    let mut watch = storage.watch("/", 0).await.expect("now");

    assert!(storage.health().await.is_ok());
    fail.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(matches!(put(&storage, "/b", Durability::Now).await, Err(Error::Backend(_))));
    let update = storage.put("/a", Expect::Revision(before.revision), body("lost"), Durability::Now).await;
    assert!(matches!(update, Err(Error::Backend(_))));
    assert!(storage.delete("/a", before.revision, body("x")).await.is_err());
    assert!(storage.get("/b").await.expect("open").is_none());
    assert_eq!(storage.get("/a").await.expect("open").expect("there").revision, before.revision);
    assert!(put(&storage, "/lazy", Durability::Lazy).await.is_ok(), "heartbeats go on");
    assert!(matches!(storage.health().await, Err(Error::Backend(why)) if why == "no space left"));

    fail.store(false, std::sync::atomic::Ordering::SeqCst);
    assert!(storage.health().await.is_ok(), "it is asked again without a write");
    let c = put(&storage, "/c", Durability::Now).await.expect("there is room again");
    let mut events = vec![];
    while events.len() < 2 {
        events.extend(watch.next().await.expect("kept"));
    }
    let keys: Vec<_> = events.iter().map(|event| &*event.entry.key).collect();
    assert_eq!((keys, events[1].revision), (vec!["/lazy", "/c"], c.revision));
    storage.close().await;
    drop(storage);
    let again = open_sled(dir.path(), Limits::default()).expect("it opens");
    let listing = again.list("", None, 0, 0).await.expect("now");
    let found: Vec<_> = listing.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(found, ["/a", "/c", "/lazy"], "what failed but reached the disk was taken back");
    assert_eq!(listing.entries[0].revision, before.revision);
}
