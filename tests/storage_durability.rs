//! Durability against the real kernel: acknowledged writes survive SIGKILL at any instant, and a full disk loses nothing.
//!
//! The writer is this test binary itself, started again with `MINI_STORAGE_CHILD`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use mini::storage::{self, Body, Durability, Error, Expect, Limits, Storage};

const CHILD: &str = "MINI_STORAGE_CHILD";
const WRITERS: usize = 8;

fn body(text: &str) -> Body {
    Body { before: format!("{{\"text\":\"{text}\",\"rv\":\"").into(), after: "\"}".into() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime")
}

fn child(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", test, "--nocapture"]).env(CHILD, dir).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent may have stopped to listen.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Writes for ever, and tells each acknowledged write: `<key> <revision>` or `<key> gone`.
async fn write_for_ever(dir: &Path) {
    let storage = storage::open_sled(dir, Limits::default()).expect("it opens");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let storage = storage.clone();
        writers.spawn(async move {
            for number in 0.. {
                let key = format!("/{writer}/{}", number % 20);
                let text = "x".repeat(number * 37 % 7000);
                let result = match storage.get(&key).await.expect("open") {
                    Some(entry) if number % 5 == 4 => {
                        storage.delete(&key, entry.revision, body(&text)).await.expect("its own key");
                        format!("{key} gone")
                    }
                    now => {
                        let expect = now.map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
                        // Nothing is told of lazy writes, and they must not disturb.
                        if number % 11 == 0 {
                            let lazy = format!("/lazy/{writer}/{number}");
                            // (Those of an earlier round may be there.)
                            let _ = storage.put(&lazy, Expect::Absent, body("x"), Durability::Lazy).await;
                        }
                        let entry = storage.put(&key, expect, body(&text), Durability::Now).await.expect("its own key");
                        format!("{key} {}", entry.revision)
                    }
                };
                say(&result);
            }
        });
    }
    writers.join_all().await;
}

#[test]
fn acknowledged_writes_survive_a_kill() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return runtime().block_on(write_for_ever(Path::new(&dir)));
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut known: BTreeMap<String, Option<u64>> = BTreeMap::new();
    let mut highest = 0;
    for round in 0..10 {
        let mut child = child("acknowledged_writes_survive_a_kill", dir.path()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        // Another instant in every round; then the pipe is read to its end: all that was told before the kill.
        let mut told = 0;
        while let Some(Ok(line)) = lines.next() {
            // The test harness of the child shares its stdout; the first line may begin with its words.
            let Some(at) = line.find('/') else { continue };
            let Some((key, what)) = line[at..].split_once(' ') else { continue };
            let revision = what.parse().ok();
            if revision.is_none() && what != "gone" {
                continue;
            }
            highest = highest.max(revision.unwrap_or_default());
            known.insert(key.to_owned(), revision);
            told += 1;
            if told == 50 + round * 67 {
                child.kill().expect("it runs");
            }
        }
        child.wait().expect("it was killed");
        assert!(told > 0, "the child wrote");
        runtime().block_on(async {
            let storage = storage::open_sled(dir.path(), Limits::default()).expect("it opens after a kill");
            assert!(storage.revision().await.expect("open") >= highest);
            for (key, told) in &known {
                let found = storage.get(key).await.expect("open").map(|entry| entry.revision);
                // The writer was at most one write further than what it told.
                let further = found.is_none_or(|found| found > told.unwrap_or_default());
                assert!(found == *told || further && (found.is_some() || told.is_some()), "{key}: {told:?}, {found:?}");
                if found != *told {
                    let writer = &key[..3];
                    let others = known.iter().filter(|(other, _)| other.starts_with(writer) && *other != key);
                    for (other, told) in others {
                        let found = storage.get(other).await.expect("open").map(|entry| entry.revision);
                        assert_eq!(found, *told, "{other}: one writer has one unacknowledged write at most");
                    }
                }
            }
            // From here on the truth is what is there.
            for (key, told) in &mut known {
                *told = storage.get(key).await.expect("open").map(|entry| entry.revision);
            }
            storage.close().await;
        });
    }
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
            match storage.put(&key, Expect::Absent, body(&"x".repeat(3000)), Durability::Now).await {
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
    say("complete");
}

#[test]
fn a_full_disk_loses_nothing() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return runtime().block_on(run_full(Path::new(&dir)));
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = child("a_full_disk_loses_nothing", dir.path()).stderr(Stdio::piped()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("complete"), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}
