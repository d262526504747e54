//! The API under load: creates, reads, lists, watches of ConfigMaps of 1 KiB over TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::task::JoinSet;

use super::samples::{Samples, duration, rate};
use super::session::Protocol::{self, Http1, Http2};
use super::session::{CONFIG_MAPS, Session};
use super::{Context, Row};
use crate::client::https::HttpsApi;
use crate::client::{Api, ListOptions};

const LISTED: usize = 5000;
const WATCHERS: usize = 100;
const WATCHED: usize = 1000;

pub(super) async fn run(context: &Context) -> Result<Vec<Row>> {
    let session = Arc::new(context.session().await?);
    let result = measure(&session).await;
    if let Ok(session) = Arc::try_unwrap(session) {
        session.close().await?;
    }
    result
}

async fn measure(session: &Arc<Session>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut from = 0;
    for (protocol, connections, to, goal, peer) in [
        (Http1, 1, 300, "", ""),
        (Http2, 1, 600, "", ""),
        (Http1, 8, 1300, "", ""),
        (Http2, 8, 2000, "", ""),
        (Http1, 32, 3500, "10x the real apiserver + etcd", "real apiserver + etcd 1,415/s"),
        (Http2, 32, LISTED, "", ""),
    ] {
        let measured = work(session, protocol, connections, from..to, create).await?;
        let what = format!("durable creates, {connections} connections{}", over(protocol));
        rows.push(Row::new(what, measured, goal, peer));
        from = to;
    }
    for connections in [1, 8, 32] {
        for protocol in [Http1, Http2] {
            let measured = work(session, protocol, connections, 0..LISTED, get).await?;
            let (goal, peer) = match (protocol, connections) {
                (Http1, 32) => ("5x the real apiserver", "real apiserver 3,445/s"),
                _ => ("", ""),
            };
            rows.push(Row::new(format!("GET, {connections} connections{}", over(protocol)), measured, goal, peer));
        }
    }
    rows.push(list(session).await?);
    rows.push(watch(session).await?);
    Ok(rows)
}

fn over(protocol: Protocol) -> &'static str {
    match protocol {
        Http1 => "",
        Http2 => ", HTTP/2",
    }
}

pub(super) type Call = fn(HttpsApi, Arc<Session>, usize) -> futures_util::future::BoxFuture<'static, Result<()>>;

/// Calls `call` with every number of a range, from several connections at once.
pub(super) async fn work(
    session: &Arc<Session>,
    protocol: Protocol,
    connections: usize,
    range: std::ops::Range<usize>,
    call: Call,
) -> Result<String> {
    let next = Arc::new(AtomicUsize::new(range.start));
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(session.connect(protocol).await?);
    }
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for client in clients {
        let (session, next, end) = (session.clone(), next.clone(), range.end);
        tasks.spawn(async move {
            let mut samples = Samples::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return anyhow::Ok(samples);
                }
                let start = Instant::now();
                call(client.clone(), session.clone(), number).await?;
                samples.push(start.elapsed());
            }
        });
    }
    let mut all = Samples::default();
    for samples in tasks.join_all().await {
        all.extend(samples?);
    }
    Ok(format!("{} ({})", rate(range.len(), began.elapsed()), all.text()))
}

pub(super) fn create(
    client: HttpsApi,
    session: Arc<Session>,
    number: usize,
) -> futures_util::future::BoxFuture<'static, Result<()>> {
    Box::pin(async move {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("bench-{number}")},
            "data": {"payload": "x".repeat(1000)},
        });
        let path = session.path(&CONFIG_MAPS, "");
        client.fetch(Method::POST, &path, "application/json", object.to_string().into()).await?;
        Ok(())
    })
}

fn get(client: HttpsApi, session: Arc<Session>, number: usize) -> futures_util::future::BoxFuture<'static, Result<()>> {
    Box::pin(async move {
        let path = session.path(&CONFIG_MAPS, &format!("bench-{number}"));
        client.fetch(Method::GET, &path, "", Bytes::new()).await?;
        Ok(())
    })
}

async fn list(session: &Session) -> Result<Row> {
    let client = session.connect(Http1).await?;
    let path = session.path(&CONFIG_MAPS, "");
    let mut samples = Samples::default();
    for _ in 0..10 {
        let start = Instant::now();
        let answer = client.fetch(Method::GET, &path, "", Bytes::new()).await?;
        samples.push(start.elapsed());
        ensure!(answer.len() > LISTED * 1000, "the list is not complete");
    }
    let what = format!("LIST of {LISTED}");
    Ok(Row::new(what, duration(samples.percentile(50)), "5x the real apiserver", "real apiserver 81 ms"))
}

/// From the first create to the last event at the last watcher.
async fn watch(session: &Arc<Session>) -> Result<Row> {
    let options = ListOptions { field_selector: "metadata.name=none".to_owned(), ..ListOptions::default() };
    let now = session.api.list(&CONFIG_MAPS, &session.namespace, &options).await?.resource_version;
    let path = format!("{}?watch=true&resourceVersion={now}", session.path(&CONFIG_MAPS, ""));
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let client = session.connect(Http1).await?;
        let answer = client.send(Method::GET, &path, "", Bytes::new()).await?;
        ensure!(answer.status().is_success(), "a watch was refused: {}", answer.status());
        watchers.spawn(async move {
            let (mut body, mut events) = (answer.into_body(), 0);
            // The client stays as long as its watch. One line is one event.
            let _client = client;
            while events < WATCHED {
                let Some(frame) = body.frame().await else { anyhow::bail!("a watch ended after {events} events") };
                if let Some(data) = frame?.data_ref() {
                    events += data.iter().filter(|byte| **byte == b'\n').count();
                }
            }
            Ok(Instant::now())
        });
    }
    let began = Instant::now();
    work(session, Http1, 8, LISTED..LISTED + WATCHED, create).await?;
    let mut last = Duration::ZERO;
    for end in watchers.join_all().await {
        last = last.max(end? - began);
    }
    let what = format!("watch fan-out, {WATCHERS} x {WATCHED} events");
    Ok(Row::new(what, duration(last), "5x the real apiserver", "real apiserver 2.5 s"))
}
