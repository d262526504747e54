//! Durable writes into the storage, without an API server before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use super::samples::{Samples, duration, rate};
use super::{Context, Row};
use crate::storage::{Body, Durability, Entry, Expect, Limits, Storage, open_sled};

/// How long each number of writers writes.
const SPAN: Duration = Duration::from_secs(3);
const KEYS: usize = 1000;

pub(super) async fn run(context: &Context) -> Result<Vec<Row>> {
    // On the disk that profiles are on, not in a temporary directory, which may be memory.
    let paths = context.global.paths()?;
    let profiles = paths.root().parent().context("a profile lies in a directory")?;
    let dir = profiles.with_file_name(format!("bench-{}", std::process::id()));
    let result = measure(&dir).await;
    let removed = std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()));
    let rows = result?;
    removed.map(|()| rows)
}

async fn measure(dir: &std::path::Path) -> Result<Vec<Row>> {
    let storage = open_sled(dir, Limits::default())?;
    let mut rows = Vec::new();
    for (writers, goal, peer) in
        [(1, "", "the prototype: 0.44 ms each"), (8, "", ""), (64, "", "the prototype: 53,000/s")]
    {
        let (count, elapsed, latency) = write(&storage, writers).await?;
        let measured = format!("{} ({} each)", rate(count, elapsed), duration(latency.percentile(50)));
        rows.push(Row::new(format!("storage: durable updates of 1 KiB, {writers} writers"), measured, goal, peer));
    }
    storage.close().await;
    drop(storage);
    let began = Instant::now();
    let storage = open_sled(dir, Limits::default())?;
    let opened = began.elapsed();
    let entries = storage.count("").await?;
    storage.close().await;
    rows.push(Row::new(format!("storage: opening and checking {entries} entries"), duration(opened), "", ""));
    Ok(rows)
}

async fn write(storage: &Arc<dyn Storage>, writers: usize) -> Result<(usize, Duration, Samples)> {
    let began = Instant::now();
    let count = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let (storage, count) = (storage.clone(), count.clone());
        tasks.spawn(async move {
            let body =
                Body { before: format!("{{\"data\":\"{}\",\"rv\":\"", "x".repeat(1000)).into(), after: "\"}".into() };
            let mut known: Vec<Option<Arc<Entry>>> = Vec::new();
            for key in 0..KEYS / writers {
                known.push(storage.get(&format!("/{writers}/{writer}/{key}")).await?);
            }
            let mut samples = Samples::default();
            for number in 0.. {
                let key = number % known.len();
                let expect = known[key].as_ref().map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
                let start = Instant::now();
                let name = format!("/{writers}/{writer}/{key}");
                known[key] = Some(storage.put(&name, expect, body.clone(), Durability::Now).await?);
                samples.push(start.elapsed());
                count.fetch_add(1, Ordering::Relaxed);
                if began.elapsed() > SPAN {
                    break;
                }
            }
            Ok::<_, crate::storage::Error>(samples)
        });
    }
    let mut all = Samples::default();
    for samples in tasks.join_all().await {
        all.extend(samples?);
    }
    Ok((count.load(Ordering::Relaxed), began.elapsed(), all))
}
