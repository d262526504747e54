//! What ConfigMaps of 1 KiB cost as they grow in number: memory, disk, lists, and starting with them. The cluster is a profile
//! of its own.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Method;

use super::objects::{create, work};
use super::process::{Usage, daemon};
use super::samples::{bytes, duration};
use super::session::{CONFIG_MAPS, Protocol, Session};
use super::start::Profile;
use super::{Context, Row};

/// How many there are when it is measured, up to `--objects`.
const SIZES: [usize; 6] = [0, 1_000, 10_000, 50_000, 100_000, 200_000];

pub(super) async fn run(context: &Context) -> Result<Vec<Row>> {
    let mut profile = Profile::new(&context.global)?;
    let context = context.in_profile(profile.name());
    let result = measure(&context, &mut profile).await;
    let deleted = profile.mini("delete", &[]);
    let rows = result?;
    deleted?;
    Ok(rows)
}

async fn measure(context: &Context, profile: &mut Profile) -> Result<Vec<Row>> {
    profile.mini("start", &["--keep-context"])?;
    let session = Arc::new(context.session().await?);
    let mut rows = Vec::new();
    let (mut from, mut empty) = (0, 0);
    for size in SIZES.into_iter().filter(|size| *size <= context.objects) {
        if size > from {
            let made = work(&session, Protocol::Http1, 32, from..size, create).await?;
            rows.push(Row::new(format!("creates from {from} to {size} ConfigMaps, 32 connections"), made, "", ""));
        }
        from = size;
        let grown = resident(context).await?;
        profile.mini("stop", &[])?;
        let start = profile.mini("start", &["--keep-context"])?;
        let fresh = resident(context).await?;
        if size == 0 {
            empty = fresh;
        }
        let each = |memory: u64| {
            memory
                .saturating_sub(empty)
                .checked_div(size as u64)
                .map_or(String::new(), |each| format!(" ({each} B each)"))
        };
        rows.push(Row::new(
            format!("memory with {size}: after the creates, after a start"),
            format!("{}{}, {}{}", bytes(grown), each(grown), bytes(fresh), each(fresh)),
            "",
            "",
        ));
        rows.push(Row::new(format!("start with {size}, to a Ready node"), duration(start), "", ""));
        rows.push(Row::new(format!("database with {size}"), bytes(disk(context)?), "", ""));
        if size > 0 {
            rows.push(Row::new(format!("LIST of {size}"), list(&session).await?, "", ""));
        }
    }
    Ok(rows)
}

async fn resident(context: &Context) -> Result<u64> {
    Ok(Usage::of(daemon(&context.global).await?).context("the daemon has ended")?.resident)
}

/// Bytes of the database's files.
fn disk(context: &Context) -> Result<u64> {
    let mut sum = 0;
    let mut folders = vec![context.global.paths()?.db()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let data = entry.metadata()?;
            if data.is_dir() { folders.push(entry.path()) } else { sum += data.len() }
        }
    }
    Ok(sum)
}

/// A whole list in one answer, and in parts of 500 as kubectl asks for it.
async fn list(session: &Session) -> Result<String> {
    let client = session.connect(Protocol::Http1).await?;
    let path = session.path(&CONFIG_MAPS, "");
    let began = Instant::now();
    client.fetch(Method::GET, &path, "", Bytes::new()).await?;
    let whole = began.elapsed();
    let began = Instant::now();
    let mut token = String::new();
    loop {
        let query = format!("{path}?limit=500&continue={token}");
        let page: serde_json::Value =
            serde_json::from_slice(&client.fetch(Method::GET, &query, "", Bytes::new()).await?)?;
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            return Ok(format!("{} whole, {} in parts of 500", duration(whole), duration(began.elapsed())));
        }
    }
}
