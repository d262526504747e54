//! The store alone, in a process with 32 clients: killed again and again, and on a full disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use mini::env::Env;
use mini::storage::{self, Body, Durability, Error, Expect, Limits, Storage};

use crate::history::{Action, CLIENTS, Client, History, Note, Outcome, Store};
use crate::{Lines, as_child, child, kill, rounds, runtime, say};

const PREFIX: &str = "/test/";

fn body(tag: &str, size: usize) -> Body {
    let padding = "x".repeat(size);
    Body { before: format!("{{\"tag\":\"{tag}\",\"padding\":\"{padding}\",\"rv\":\"").into(), after: "\"}".into() }
}

fn tag(entry: &storage::Entry) -> String {
    entry.value()["tag"].as_str().expect("every body has one").to_owned()
}

struct Direct(Arc<dyn Storage>);

impl Direct {
    async fn try_to(&self, key: &str, action: &Action) -> Result<Outcome, Error> {
        let key = format!("{PREFIX}{key}");
        Ok(match action {
            Action::Read => self.0.get(&key).await?.map_or(Outcome::Absent, |entry| {
                let (revision, tag) = (entry.revision, tag(&entry));
                Outcome::Found { revision, tag }
            }),
            Action::Put { expect, tag } => {
                // Nothing is told of lazy writes, and they must not disturb.
                self.0.put(&format!("/lazy/{tag}"), Expect::Absent, body("", 1), Durability::Lazy).await?;
                let expect = if *expect == 0 { Expect::Absent } else { Expect::Revision(*expect) };
                // From what fits in one entry of the database to what needs parts.
                let size = tag.bytes().map(usize::from).sum::<usize>() * 37 % 7000;
                let entry = self.0.put(&key, expect, body(tag, size), Durability::Now).await?;
                Outcome::Written { revision: entry.revision }
            }
            Action::Delete { expect } => {
                let entry = self.0.delete(&key, *expect, body("", 1)).await?;
                Outcome::Deleted { revision: Some(entry.revision) }
            }
        })
    }
}

#[async_trait]
impl Store for Direct {
    async fn perform(&self, key: &str, action: &Action) -> Option<Outcome> {
        match self.try_to(key, action).await {
            Err(Error::Conflict { .. }) => Some(Outcome::Refused),
            outcome => Some(outcome.expect("the disk has room")),
        }
    }
}

/// Has 32 clients work for ever, and tells everything that they do.
async fn work_for_ever(folder: &Path) {
    let storage = storage::open_sled(folder, Limits::default()).expect("it opens");
    let note = |note: Note| say(&serde_json::to_string(&note).expect("plain values"));
    let clients = (0..CLIENTS).map(|number| Client { store: Direct(Arc::clone(&storage)), note, number }.work());
    clients.collect::<tokio::task::JoinSet<()>>().join_all().await;
}

#[test]
fn acknowledged_writes_survive_a_kill() {
    if let Some(folder) = as_child() {
        return runtime().block_on(work_for_ever(&folder));
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (env, mut history) = (Env::real(), History::default());
    for round in 0..rounds() {
        let mut child = child("storage::acknowledged_writes_survive_a_kill", dir.path()).spawn().expect("it starts");
        let lines = Lines::of(&mut child);
        // Then the pipe is read to its end: all that was told before the kill.
        let end = 1 + env.below(3000);
        for (told, line) in (1..).zip(lines) {
            history.note(serde_json::from_str(&line).expect("a note")).unwrap_or_else(|why| panic!("{round}: {why}"));
            if told == end {
                child.kill().expect("it was started");
            }
        }
        kill(&mut child);
        runtime().block_on(async {
            let storage = storage::open_sled(dir.path(), Limits::default()).expect("it opens after a kill");
            let listing = storage.list(PREFIX, None, 0, 0).await.expect("open");
            let state = |entry: &Arc<storage::Entry>| {
                (entry.key.trim_start_matches(PREFIX).to_owned(), (entry.revision, tag(entry)))
            };
            let found: BTreeMap<_, _> = listing.entries.iter().map(state).collect();
            let revision = storage.revision().await.expect("open");
            history.restarted(revision, &found).unwrap_or_else(|why| panic!("after the kill of round {round}: {why}"));
            storage.close().await;
        });
    }
    println!("{} rounds, {} acknowledged writes", rounds(), history.acknowledged());
    assert!(history.acknowledged() > 0, "the clients wrote");
}

/// Limits the size of files: what a full disk is for the database.
fn limit_files(bytes: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).expect("readable");
    setrlimit(Resource::RLIMIT_FSIZE, bytes.min(hard), hard).expect("below the hard limit");
}

async fn fill(storage: &Arc<dyn Storage>, from: usize, to: usize) -> (Vec<String>, usize) {
    let mut writers = tokio::task::JoinSet::new();
    for number in from..to {
        let storage = storage.clone();
        writers.spawn(async move {
            let key = format!("/a/{number}");
            match storage.put(&key, Expect::Absent, body("", 3000), Durability::Now).await {
                Ok(_) => Some(key),
                Err(Error::Backend(_)) => None,
                Err(error) => panic!("{error}"),
            }
        });
    }
    let written: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
    let failed = to - from - written.len();
    (written, failed)
}

async fn run_full(dir: &Path) {
    // SIGXFSZ would end the process; ignored, the write fails with EFBIG.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGXFSZ, nix::sys::signal::SigHandler::SigIgn) }
        .expect("it can be ignored");
    let storage = storage::open_sled(dir, Limits::default()).expect("it opens");
    let (mut written, failed) = fill(&storage, 0, 100).await;
    assert_eq!(failed, 0);
    limit_files(2 << 20);
    let (more, failed) = fill(&storage, 100, 2000).await;
    assert!(failed > 0, "two MiB hold no six");
    written.extend(more);
    assert_eq!(storage.count("/").await.expect("reads go on"), written.len());
    limit_files(u64::MAX);
    let (more, failed) = fill(&storage, 2000, 2100).await;
    assert_eq!(failed, 0, "there is room again");
    written.extend(more);
    storage.close().await;
    drop(storage);
    let storage = storage::open_sled(dir, Limits::default()).expect("it opens again");
    for key in &written {
        assert!(storage.get(key).await.expect("open").is_some(), "{key} was acknowledged");
    }
    assert_eq!(storage.count("/").await.expect("open"), written.len(), "and nothing else is there");
    say("{\"complete\": true}");
}

#[test]
fn a_full_disk_loses_nothing() {
    if let Some(folder) = as_child() {
        return runtime().block_on(run_full(&folder));
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut child = child("storage::a_full_disk_loses_nothing", dir.path()).spawn().expect("it starts");
    let said: Vec<_> = Lines::of(&mut child).collect();
    child.wait().expect("it was started");
    assert_eq!(said, ["{\"complete\": true}\n"], "the child says on stderr what is wrong");
}
