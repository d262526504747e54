//! Where components meet: each trait that one of them defines is implemented here for another.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use axum::body::Body;
use axum::response::IntoResponse;
use http::{Request, Response, StatusCode};
use hyper::upgrade::Upgraded;
use serde_json::{Value, json};

use super::links::Links;
use super::tunnel::Tunnels;
use crate::addons::metrics_server::Metrics;
use crate::addons::{Aggregation, Nodes};
use crate::api::Status;
use crate::apiserver::{Aggregated, AggregatedApi, Dialer, NodeConnection, Purpose, Stream, User};
use crate::net::Network;
use crate::node::Node;
use crate::node::network::{Attachment, PodNetwork};

/// The API server's way to the nodes and into the pod network; all come up after it.
#[derive(Clone, Default)]
pub struct Ways {
    node: Arc<OnceLock<Arc<Node>>>,
    network: Arc<OnceLock<Arc<Network>>>,
    tunnels: Tunnels,
    links: Arc<OnceLock<Links>>,
}

impl Ways {
    /// The node is up.
    pub fn set_node(&self, node: Arc<Node>) {
        let _ = self.node.set(node);
    }
    /// The network is up.
    pub fn set_network(&self, network: Arc<Network>) {
        let _ = self.network.set(network);
    }
    /// Nodes of other machines may be linked.
    pub fn set_links(&self, links: Links) {
        let _ = self.links.set(links);
    }
}

#[async_trait]
impl NodeConnection for Ways {
    async fn call(&self, node: &str, request: Request<Body>) -> Response<Body> {
        match self.node.get() {
            Some(ours) if ours.name() == node => ours.handle(request).await,
            _ => self.tunnels.call(node, request).await,
        }
    }

    async fn accept(&self, node: &str, purpose: Purpose, connection: Upgraded) {
        match (purpose, self.links.get()) {
            (Purpose::Kubelet, _) => self.tunnels.accept(node, connection).await,
            (Purpose::Packets, Some(links)) => links.accept(node, connection).await,
            // It will ask again.
            (Purpose::Packets, None) => {}
        }
    }
}

#[async_trait]
impl Dialer for Ways {
    async fn dial(&self, ip: IpAddr, port: u16) -> io::Result<Box<dyn Stream>> {
        let network = self.network.get().ok_or_else(|| io::Error::other("the pod network is not up yet"))?;
        Ok(Box::new(connect(network, ip, port).await?))
    }
}

async fn connect(network: &Network, ip: IpAddr, port: u16) -> io::Result<tokio::net::TcpStream> {
    match ip {
        IpAddr::V4(ip) => network.connect(ip, port).await,
        IpAddr::V6(_) => Err(io::Error::other("the pod network has no IPv6")),
    }
}

/// The node's view of the pod network.
pub struct Pods(pub Arc<Network>);

#[async_trait]
impl PodNetwork for Pods {
    async fn attach(&self, attachment: &Attachment) -> io::Result<Vec<IpAddr>> {
        let ip = self.0.attach(&attachment.uid, &attachment.netns).await?;
        Ok(vec![IpAddr::V4(ip)])
    }
    async fn detach(&self, uid: &str) -> io::Result<()> {
        self.0.detach(uid).await
    }
    async fn dial(&self, ip: IpAddr, port: u16) -> io::Result<Box<dyn crate::node::network::Stream>> {
        Ok(Box::new(connect(&self.0, ip, port).await?))
    }
}

#[async_trait]
impl Nodes for Ways {
    async fn get(&self, node: &str, uri: &str) -> Response<Body> {
        match Request::builder().uri(uri).body(Body::empty()) {
            Ok(request) => self.call(node, request).await,
            Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
        }
    }
}

#[async_trait]
impl Aggregation for Aggregated {
    async fn serve_metrics(&self, source: Arc<Metrics>) -> anyhow::Result<()> {
        self.enable("metrics.k8s.io", "v1beta1", Arc::new(MetricsApi(source)));
        Ok(())
    }
    async fn end_metrics(&self) {
        self.disable("metrics.k8s.io", "v1beta1");
    }
}

/// `metrics.k8s.io/v1beta1` over HTTP.
struct MetricsApi(Arc<Metrics>);

#[async_trait]
impl AggregatedApi for MetricsApi {
    fn resources(&self) -> Vec<Value> {
        let resource = |name: &str, kind: &str, namespaced: bool| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
        vec![resource("nodes", "NodeMetrics", false), resource("pods", "PodMetrics", true)]
    }

    async fn handle(&self, _user: &User, request: Request<Body>) -> Response<Body> {
        let path: Vec<&str> = request.uri().path().split('/').filter(|s| !s.is_empty()).collect();
        let query = request.uri().query().unwrap_or_default();
        let selector = form(query, "labelSelector");
        // apis / metrics.k8s.io / v1beta1 / …
        let answer = match path.get(3..) {
            Some(["nodes"]) => self.0.nodes(None).await,
            Some(["nodes", name]) => self.0.nodes(Some(name)).await,
            Some(["pods"]) => self.0.pods("", None, &selector).await,
            Some(["namespaces", namespace, "pods"]) => self.0.pods(namespace, None, &selector).await,
            Some(["namespaces", namespace, "pods", name]) => self.0.pods(namespace, Some(name), "").await,
            _ => Err(Status::new(404, "NotFound", "the server could not find the requested resource")),
        };
        match answer {
            Ok(object) => json_answer(StatusCode::OK, &object),
            Err(status) => {
                let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                json_answer(code, &status.to_object())
            }
        }
    }
}

/// A JSON answer.
pub fn json_answer(code: StatusCode, object: &Value) -> Response<Body> {
    (code, [(http::header::CONTENT_TYPE, "application/json")], object.to_string()).into_response()
}

/// A parameter of a query string, decoded.
fn form(query: &str, name: &str) -> String {
    let uri = format!("/?{query}");
    let parsed = uri
        .parse()
        .ok()
        .and_then(|uri| axum::extract::Query::<std::collections::BTreeMap<String, String>>::try_from_uri(&uri).ok());
    parsed.and_then(|mut q| q.0.remove(name)).unwrap_or_default()
}
