//! What every cluster has beside the API server's own objects, and how components are configured.

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::api::Status;
use crate::api::kinds::gvr;
use crate::client::{Api, ListOptions, Patch, WatchEvent};
use crate::config::{Config, Paths};
use crate::net::Network;
use crate::node::image::{ImageStore, Images};
use crate::{builtin_images, config};

/// Creates the Service `kube-dns` (its address is answered by the network itself).
///
/// # Errors
/// The API server's.
pub async fn ensure(api: &dyn Api, config: &Config) -> Result<(), Status> {
    let address = config.dns_service_ip().to_string();
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
            "annotations": {"prometheus.io/port": "9153", "prometheus.io/scrape": "true"},
        },
        "spec": {
            "clusterIP": address, "clusterIPs": [address],
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    });
    match api.create(&gvr::SERVICES, "kube-system", "", "", service).await {
        Err(status) if !status.is_already_exists() && status.reason != "Invalid" => Err(status),
        // Invalid: the address is taken, by the kube-dns of an earlier start.
        Err(status) if status.reason == "Invalid" => {
            api.get(&gvr::SERVICES, "kube-system", "kube-dns").await.map(|_| ()).map_err(|_| status)
        }
        _ => Ok(()),
    }
}

/// Gives a Node the labels that it may not give itself (`NodeRestriction`): its role, and those of minikube.
///
/// # Errors
/// The API server's.
pub async fn label_node(api: &dyn Api, name: &str, profile: &str, is_first: bool) -> Result<(), Status> {
    let mut labels = json!({
        "minikube.k8s.io/name": profile,
        "minikube.k8s.io/primary": is_first.to_string(),
        "minikube.k8s.io/version": concat!("v", env!("CARGO_PKG_VERSION")),
    });
    if is_first {
        labels["node-role.kubernetes.io/control-plane"] = "".into();
        labels["node.kubernetes.io/exclude-from-external-load-balancers"] = "".into();
    }
    let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
    api.patch(&gvr::NODES, "", name, "", patch).await.map(drop)
}

/// Whether a Node's condition Ready is True.
pub fn ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A Node's address of a type.
pub fn address(node: &Value, kind: &str) -> Option<String> {
    let mut addresses = node["status"]["addresses"].as_array()?.iter();
    addresses.find(|a| a["type"] == kind)?["address"].as_str().map(str::to_owned)
}

/// Whether the node's condition Ready is True.
pub async fn is_node_ready(api: &dyn Api, name: &str) -> bool {
    api.get(&gvr::NODES, "", name).await.is_ok_and(|node| ready(&node))
}

/// Waits until the node is Ready.
///
/// # Errors
/// When the watch fails.
pub async fn node_ready(api: &dyn Api, name: &str) -> Result<()> {
    let options = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
    let mut events = api.watch(&gvr::NODES, "", &options).await?;
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Added(node) | WatchEvent::Modified(node) if ready(&node) => return Ok(()),
            _ => {}
        }
    }
    bail!("the watch of the node ended")
}

/// Waits until DNS answers in the pod network: a question over TCP for the API's own name, through the engine.
///
/// # Errors
/// When the network refuses, or the answer has no address.
pub async fn dns_answers(network: &Network, config: &Config) -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    if network.status().degraded.is_some() {
        return Ok(());
    }
    let mut question = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in format!("kubernetes.default.svc.{}", config.cluster_domain).split('.') {
        question.push(u8::try_from(label.len()).context("a DNS label")?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let mut stream = network.connect(config.dns_service_ip(), 53).await.context("connecting to cluster DNS")?;
    stream.write_u16(u16::try_from(question.len())?).await?;
    stream.write_all(&question).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if answer.get(3).is_none_or(|flags| flags & 15 != 0) || answer.get(7).is_none_or(|n| *n == 0) {
        bail!("cluster DNS does not know the API server");
    }
    Ok(())
}

/// Puts the images that come along into the store, when they are not there yet.
///
/// # Errors
/// When an archive is damaged or the disk is full.
pub async fn load_built_in_images(images: &ImageStore, paths: &Paths) -> Result<()> {
    // Of another build of this binary: the image is made anew.
    let stamp = paths.images().join("built-in");
    let current = format!("{:?}", std::fs::metadata("/proc/self/exe").and_then(|m| m.modified()).ok());
    if images.resolve(builtin_images::ECHO).await?.is_none()
        || std::fs::read_to_string(&stamp).ok().as_ref() != Some(&current)
    {
        let archive = tokio::task::spawn_blocking(builtin_images::echo_archive).await??;
        images.load_from(archive).await.context("loading the built-in echo image")?;
        std::fs::write(&stamp, current)?;
    }
    let home = config::home().map_err(anyhow::Error::msg)?;
    for archive in builtin_images::archives(&home) {
        let marker =
            paths.images().join(format!("loaded-{}", archive.file_name().unwrap_or_default().to_string_lossy()));
        let current = format!("{:?}", std::fs::metadata(&archive).and_then(|m| m.modified()).ok());
        if std::fs::read_to_string(&marker).ok().as_ref() == Some(&current) {
            continue;
        }
        let file = std::fs::File::open(&archive).with_context(|| format!("reading {}", archive.display()))?;
        images.load_from(file).await.with_context(|| format!("loading {}", archive.display()))?;
        std::fs::write(&marker, current)?;
    }
    Ok(())
}
