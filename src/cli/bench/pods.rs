//! Pods of the built-in echo image: how fast they come and go.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::samples::{Samples, bytes, duration};
use super::session::{PODS, Session};
use super::{Context, Row, process};
use crate::api::{Gvr, meta};
use crate::client::{Api, DeleteOptions, ListOptions, Patch, WatchEvent};

const ONE_BY_ONE: usize = 30;
const AT_ONCE: usize = 100;
const ORDINALS: usize = 10;
const STATEFUL_SETS: Gvr = Gvr::new("apps", "v1", "statefulsets");

pub(super) async fn run(context: &Context) -> Result<Vec<Row>> {
    let session = context.session().await?;
    let result = measure(&session, process::daemon(&context.global).await?).await;
    session.close().await?;
    result
}

async fn measure(session: &Session, daemon: i32) -> Result<Vec<Row>> {
    let (mut running, mut gone) = (Samples::default(), Samples::default());
    let names: Vec<_> = (0..ONE_BY_ONE).map(|number| format!("one-{number}")).collect();
    for name in &names {
        let start = Instant::now();
        create(session, name).await?;
        session.wait(&PODS, name, |pod| pod.is_some_and(|pod| pod["status"]["phase"] == "Running")).await?;
        running.push(start.elapsed());
    }
    // Afterwards: a process that has only just begun is deaf to SIGTERM and gets its whole grace period.
    for name in &names {
        let start = Instant::now();
        session.api.delete(&PODS, &session.namespace, name, &DeleteOptions::default()).await?;
        session.wait(&PODS, name, |pod| pod.is_none()).await?;
        gone.push(start.elapsed());
    }
    // Before there are as many pods as a node takes.
    let rolled = roll(session).await?;
    let without = process::proportional(daemon)?;
    let list = session.api.list(&PODS, &session.namespace, &ListOptions::default()).await?;
    let options = ListOptions { resource_version: list.resource_version, ..ListOptions::default() };
    let mut events = session.api.watch(&PODS, &session.namespace, &options).await?;
    let start = Instant::now();
    let names: Vec<_> = (0..AT_ONCE).map(|number| format!("many-{number}")).collect();
    futures_util::future::try_join_all(names.iter().map(|name| create(session, name))).await?;
    let mut ready = std::collections::HashSet::new();
    while ready.len() < AT_ONCE {
        let event = events.next().await.context("the watch of the pods ended")??;
        if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
            && is_ready(&pod)
        {
            ready.insert(meta::name(&pod).to_owned());
        }
    }
    let all = start.elapsed();
    let each = process::proportional(daemon)?.saturating_sub(without) / AT_ONCE as u64;
    Ok(vec![
        Row::new(
            "pod, create to Running",
            running.text(),
            "p50 under 100 ms, p99 under 500 ms",
            "kubelet + containerd p50 0.99 s, max 1.49 s",
        ),
        Row::new("pod, delete to gone", gone.text(), "under 0.2 s", "kubelet + containerd 7 s"),
        Row::new(format!("{AT_ONCE} pods Ready"), duration(all), "under 5 s", "kubelet + containerd 17 s"),
        Row::new(
            "memory of a pod's shim, and of what the daemon knows of it",
            bytes(each),
            "under 2 MB",
            "containerd's shim 5.2 MB",
        ),
        Row::new(
            format!("rolling update of a StatefulSet with {ORDINALS} pods, one after the other"),
            duration(rolled),
            "",
            "",
        ),
    ])
}

/// Makes a StatefulSet, changes its template when it is complete, and removes it. Returns how long the update took.
async fn roll(session: &Session) -> Result<Duration> {
    let labels = json!({"app": "roll"});
    let template = json!({"metadata": {"labels": labels},
        "spec": {"containers": [{"name": "echo", "image": crate::builtin_images::ECHO}]}});
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "roll"},
        "spec": {"replicas": ORDINALS, "serviceName": "roll", "selector": {"matchLabels": labels}, "template": template}});
    session.api.create(&STATEFUL_SETS, &session.namespace, "", "", set).await?;
    let complete = |set: &Value| {
        let status = &set["status"];
        status["observedGeneration"] == set["metadata"]["generation"]
            && status["updateRevision"] == status["currentRevision"]
            && status["availableReplicas"] == ORDINALS
    };
    session.wait(&STATEFUL_SETS, "roll", |set| set.is_some_and(complete)).await?;
    let start = Instant::now();
    let change = Patch::Merge(json!({"spec": {"template": {"metadata": {"annotations": {"rolled": "once"}}}}}));
    session.api.patch(&STATEFUL_SETS, &session.namespace, "roll", "", change).await?;
    session.wait(&STATEFUL_SETS, "roll", |set| set.is_some_and(complete)).await?;
    let took = start.elapsed();
    session.api.delete(&STATEFUL_SETS, &session.namespace, "roll", &DeleteOptions::default()).await?;
    for ordinal in 0..ORDINALS {
        session.wait(&PODS, &format!("roll-{ordinal}"), |pod| pod.is_none()).await?;
    }
    Ok(took)
}

async fn create(session: &Session, name: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "echo", "image": crate::builtin_images::ECHO}]},
    });
    session.api.create(&PODS, &session.namespace, "", "", pod).await?;
    Ok(())
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}
