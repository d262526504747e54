//! A node and the pods on it, kept up to date event by event.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use super::pod_info::{HostPort, PodInfo};
use super::resources::Resources;
use crate::client::cache::Key;
use crate::client::typed::Meta;

/// A node and what is on it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// The node; `None` while only its pods are known.
    pub node: Option<Arc<Node>>,
    /// Pods that are bound to it, or assumed to be soon.
    pub pods: Vec<Arc<PodInfo>>,
    /// The sum of the pods' requests.
    pub requested: Resources,
    /// The sum of the requests for scoring.
    pub assumed: (i64, i64),
    /// What pods may request together.
    pub allocatable: Resources,
    /// How many pods there may be.
    pub allowed_pods: i64,
    /// Image name -> size in bytes.
    pub images: Arc<HashMap<String, i64>>,
    /// Ports that the pods take.
    pub(super) ports: Vec<HostPort>,
}

impl NodeInfo {
    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&String> {
        self.node.as_ref()?.labels().get(key)
    }
    /// The taints.
    pub fn taints(&self) -> &[Taint] {
        self.node.as_deref().map(taints).unwrap_or_default()
    }
    /// `spec.unschedulable`.
    pub fn is_unschedulable(&self) -> bool {
        self.node.as_deref().is_some_and(is_unschedulable)
    }
    /// Whether `port` is free.
    pub fn is_free(&self, port: &HostPort) -> bool {
        !self.ports.iter().any(|taken| taken.conflicts(port))
    }
    /// Whether a pod on the node uses the claim.
    pub fn uses(&self, claim: &Key) -> bool {
        self.pods.iter().any(|pod| pod.claims.contains(claim))
    }

    /// What the node says of itself.
    pub(super) fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        self.allocatable = allocatable.map(Resources::of).unwrap_or_default();
        let pods = allocatable.and_then(|list| list.get("pods"));
        let pods = pods.and_then(|amount| amount.0.parse::<crate::api::quantity::Quantity>().ok());
        self.allowed_pods = pods.map_or(0, |amount| amount.value());
        let images = status.and_then(|status| status.images.as_ref()).into_iter().flatten();
        let named = images.flat_map(|image| {
            let size = image.size_bytes.unwrap_or_default();
            image.names.iter().flatten().map(move |name| (name.clone(), size))
        });
        self.images = Arc::new(named.collect());
        self.node = Some(node);
    }

    /// A pod comes; one with the same uid is replaced.
    pub(super) fn add(&mut self, pod: Arc<PodInfo>) {
        self.remove(&pod.uid);
        self.requested.add(&pod.requests, 1);
        self.assumed = (self.assumed.0 + pod.assumed.0, self.assumed.1 + pod.assumed.1);
        self.ports.extend(pod.ports.iter().cloned());
        self.pods.push(pod);
    }

    /// A pod goes.
    pub(super) fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|pod| &*pod.uid == uid)?;
        let pod = self.pods.remove(at);
        self.requested.add(&pod.requests, -1);
        self.assumed = (self.assumed.0 - pod.assumed.0, self.assumed.1 - pod.assumed.1);
        for port in &pod.ports {
            if let Some(at) = self.ports.iter().position(|taken| taken == port) {
                self.ports.swap_remove(at);
            }
        }
        Some(pod)
    }
}

/// `spec.taints`.
pub fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// `spec.unschedulable`.
pub fn is_unschedulable(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}
