//! What kube-proxy serves beside Services: its mode and its health, and the health checks of Services that a load balancer asks
//! for (`healthCheckNodePort`).
//!
//! All of it answers inside the node's network namespace, as at a node of any cluster, and under the node's address of the host,
//! where a load balancer of this machine would ask.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::ProxyMode;
use super::host_ports::reference;
use super::namespace_thread::NamespaceThread;
use super::service_table::{ObjectName, ServiceTable};
use crate::client::recorder::{EventType, Recorder};
use crate::env::Env;

/// `--metrics-bind-address`: the mode, for who is on the node.
const METRICS_PORT: u16 = 10249;
/// `--healthz-bind-address`: the health, for everybody.
const HEALTH_PORT: u16 = 10256;

/// What [`run`] works with.
#[derive(Clone)]
pub struct ProxyServer {
    /// The Services.
    pub table: watch::Receiver<Arc<ServiceTable>>,
    /// Sockets inside the node's namespace.
    pub node: NamespaceThread,
    /// The name of the Node.
    pub node_name: String,
    /// The node's address of the host.
    pub host_ip: Ipv4Addr,
    /// How Services are implemented.
    pub mode: ProxyMode,
    /// Whether Services work.
    pub healthy: bool,
    /// The clock.
    pub env: Env,
    /// Tells what cannot be opened.
    pub recorder: Recorder,
}

/// The ports on which a Service's health is asked for.
fn health_checks(table: &ServiceTable) -> BTreeMap<u16, ObjectName> {
    let ports = table.services.values().filter_map(|s| Some((s.health_check?.port, s.name.clone())));
    ports.collect()
}

/// Runs until it is dropped; the listeners close with it.
pub async fn run(mut server: ProxyServer) {
    let metrics = server.metrics();
    let health = server.health();
    let mut own = Vec::new();
    for (within, port, router) in
        [(Ipv4Addr::LOCALHOST, METRICS_PORT, metrics), (Ipv4Addr::UNSPECIFIED, HEALTH_PORT, health)]
    {
        match server.serve(within, port, &router).await {
            Ok(listeners) => own.push(listeners),
            Err(error) => tracing::warn!(port, %error, "the proxy's own port cannot be opened"),
        }
    }
    let mut open: BTreeMap<u16, (ObjectName, Option<Listeners>)> = BTreeMap::new();
    loop {
        let snapshot = server.table.borrow_and_update().clone();
        let wanted = health_checks(&snapshot);
        open.retain(|port, (name, _)| wanted.get(port) == Some(name));
        for (port, name) in wanted {
            if open.contains_key(&port) {
                continue;
            }
            let listeners = match server.serve(Ipv4Addr::UNSPECIFIED, port, &server.health_check(&name)).await {
                Ok(listeners) => Some(listeners),
                Err(error) => {
                    server.tell(&snapshot, &name, port, &error);
                    None
                }
            };
            open.insert(port, (name, listeners));
        }
        if server.table.changed().await.is_err() {
            return;
        }
    }
}

/// A port's listeners; dropping it closes them.
type Listeners = Vec<AbortOnDropHandle<()>>;

impl ProxyServer {
    /// Opens a port inside the namespace (at the address `within`) and on the host.
    async fn serve(&self, within: Ipv4Addr, port: u16, router: &Router) -> io::Result<Listeners> {
        let inside = self.node.listen(SocketAddrV4::new(within, port)).await?;
        let outside = TcpListener::bind(SocketAddr::from((self.host_ip, port))).await?;
        let serve = |listener: TcpListener| {
            let router = router.clone();
            let task = tokio::spawn(async move {
                if let Err(error) = axum::serve(listener, router).await {
                    tracing::warn!(%error, "a server of the proxy has ended");
                }
            });
            AbortOnDropHandle::new(task)
        };
        Ok(vec![serve(inside), serve(outside)])
    }

    fn tell(&self, table: &ServiceTable, name: &ObjectName, port: u16, error: &io::Error) {
        let (namespace, service) = name;
        let message = format!(
            "node {} failed to start healthcheck \"{namespace}/{service}\" on port {port}: {error}",
            self.node_name
        );
        tracing::warn!("{message}");
        if let Some(service) = table.services.get(name) {
            self.recorder.about(reference(service), EventType::Warning, "FailedToStartServiceHealthcheck", message);
        }
    }

    fn metrics(&self) -> Router {
        let mode = self.mode.as_str();
        let text =
            |text: &'static str| move || async move { answer(StatusCode::OK, "text/plain; charset=utf-8", text) };
        Router::new().route("/proxyMode", get(text(mode))).route("/healthz", get(text("ok")))
    }

    fn health(&self) -> Router {
        let health = |eligible: &'static str| {
            let server = self.clone();
            move || async move {
                let status = if server.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let now = go_time(server.env.now());
                let text = format!("{{\"lastUpdated\": \"{now}\",\"currentTime\": \"{now}\"{eligible}}}");
                answer(status, "application/json", text)
            }
        };
        Router::new().route("/healthz", get(health(", \"nodeEligible\": true"))).route("/livez", get(health("")))
    }

    /// The health check of a Service, under every path.
    fn health_check(&self, name: &ObjectName) -> Router {
        let (server, name) = (self.clone(), name.clone());
        Router::new().fallback(move || async move {
            let table = server.table.borrow().clone();
            let count = table.services.get(&name).and_then(|s| s.health_check).map_or(0, |h| h.local_endpoints);
            report(&name, count, server.healthy)
        })
    }
}

/// The words of kube-proxy's `hcHandler`.
fn report((namespace, name): &ObjectName, count: usize, healthy: bool) -> Response {
    let text = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": \
         {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    let status = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = answer(status, "application/json", text);
    response.headers_mut().insert("x-load-balancing-endpoint-weight", count.into());
    response
}

fn answer(status: StatusCode, kind: &'static str, text: impl IntoResponse) -> Response {
    (status, [(header::CONTENT_TYPE, kind), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], text).into_response()
}

/// A time as Go's `Time.String` has it.
fn go_time(time: Timestamp) -> String {
    format!("{} +0000 UTC", time.strftime("%Y-%m-%d %H:%M:%S.%9f"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::net::service_table::{
        Objects,
        tests::{service, slice},
    };

    #[test]
    fn the_ports_are_those_of_services_that_ask() {
        let mut objects = Objects::new("mini");
        let spec = json!({"type": "LoadBalancer", "healthCheckNodePort": 32_122, "ports": [{"port": 80}]});
        objects.apply_service(service("web", spec));
        objects.apply_service(service("plain", json!({"type": "LoadBalancer", "ports": [{"port": 80}]})));
        let ports = json!([{"name": "", "port": 80, "protocol": "TCP"}]);
        let here = json!([{"addresses": ["10.244.0.2"], "nodeName": "mini"}, {"addresses": ["10.244.1.2"], "nodeName": "x"},
            {"addresses": ["10.244.0.3"], "nodeName": "mini", "conditions": {"ready": false}}]);
        objects.apply_slice(&slice("a", "web", ports, here));
        let table = objects.snapshot();
        let name = ("default".to_owned(), "web".to_owned());
        assert_eq!(health_checks(&table), BTreeMap::from([(32_122, name.clone())]));
        assert_eq!(table.services[&name].health_check.expect("it asks").local_endpoints, 1);
    }

    #[tokio::test]
    async fn health_is_told_in_the_words_of_kube_proxy() {
        let name = ("default".to_owned(), "loadbalancer".to_owned());
        let text = |response: Response| async move {
            let bytes = axum::body::to_bytes(response.into_body(), 4096).await.expect("a body");
            serde_json::from_slice::<serde_json::Value>(&bytes).expect("JSON")
        };
        let response = report(&name, 2, true);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["x-load-balancing-endpoint-weight"], "2");
        let expected = json!({"service": {"namespace": "default", "name": "loadbalancer"}, "localEndpoints": 2,
            "serviceProxyHealthy": true});
        assert_eq!(text(response).await, expected);
        assert_eq!(report(&name, 0, true).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(report(&name, 1, false).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
