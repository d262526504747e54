//! The API server: one generic request path for every kind, over TLS and in process.
//!
//! `http` parses Kubernetes requests and writes its answers; `authn` says who asks; `authz` whether they may; `registry` does the
//! verbs on objects (and `admission` what happens around a write); `subresources` are the requests that are not plain objects.
//! The in-process door ([`local`]) calls the same verbs.

pub mod admission;
mod aggregation;
pub mod audit;
pub mod authn;
pub mod authz;
mod bootstrap;
mod certificates;
mod codec;
mod component_status;
mod discovery;
mod extensions;
mod flow_control;
mod following;
pub mod http;
mod kinds;
pub mod local;
mod metrics;
mod openapi;
mod outbound;
pub mod registry;
mod reservations;
mod selector;
mod service;
mod subresources;
mod table;
pub mod testing;
mod token_secrets;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::{Arc, RwLock};

use ::http::{Request, Response};
use async_trait::async_trait;
use axum::body::Body;
use hyper::upgrade::Upgraded;
use ipnet::Ipv4Net;
use tokio::io::{AsyncRead, AsyncWrite};

pub use authn::User;
pub use http::node_tunnel::Purpose;
use kinds::Kinds;
pub use kinds::Served;
pub use outbound::Anybody;
pub use subresources::proxy::forward;

use crate::api::{Kind, Status, StatusResult};
use crate::env::Env;
use crate::storage::Storage;

/// Reaches the kubelet API of nodes.
#[async_trait]
pub trait NodeConnection: Send + Sync + 'static {
    /// Passes a request in the kubelet's API (`/containerLogs/…`, `/exec/…`) to a node; upgrades stay intact.
    async fn call(&self, node: &str, request: Request<Body>) -> Response<Body>;
    /// Takes a connection over that a node has opened, so that it can be reached by it; returns when the connection ends.
    /// Whoever knows only nodes of its own process closes it.
    async fn accept(&self, _node: &str, _purpose: Purpose, _connection: Upgraded) {}
}

/// A connection in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens connections into the pod network (for proxied pods and services).
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// Connects to a port of a pod.
    async fn dial(&self, ip: IpAddr, port: u16) -> io::Result<Box<dyn Stream>>;
}

/// An API group version that somebody else in this process serves, as an aggregated API server would.
#[async_trait]
pub trait AggregatedApi: Send + Sync + 'static {
    /// The `resources` of its `APIResourceList`.
    fn resources(&self) -> Vec<serde_json::Value>;
    /// Answers a request that has been authenticated and authorised.
    async fn handle(&self, user: &User, request: Request<Body>) -> Response<Body>;
}

type Apis = BTreeMap<(String, String), Arc<dyn AggregatedApi>>;

/// The aggregated APIs by group and version; shared, and changed live.
#[derive(Clone, Default)]
pub struct Aggregated {
    apis: Arc<RwLock<Apis>>,
    changed: Arc<tokio::sync::watch::Sender<()>>,
}

impl Aggregated {
    /// Starts to serve `group/version`.
    pub fn enable(&self, group: &str, version: &str, api: Arc<dyn AggregatedApi>) {
        let key = (group.to_owned(), version.to_owned());
        self.apis.write().expect("no panic under this lock").insert(key, api);
        self.changed.send_replace(());
    }
    /// Stops to serve `group/version`.
    pub fn disable(&self, group: &str, version: &str) {
        let key = (group.to_owned(), version.to_owned());
        self.apis.write().expect("no panic under this lock").remove(&key);
        self.changed.send_replace(());
    }
    /// Who serves `group/version`.
    pub fn get(&self, group: &str, version: &str) -> Option<Arc<dyn AggregatedApi>> {
        let key = (group.to_owned(), version.to_owned());
        self.apis.read().expect("no panic under this lock").get(&key).cloned()
    }
    /// All of them.
    pub fn all(&self) -> Vec<((String, String), Arc<dyn AggregatedApi>)> {
        let map = self.apis.read().expect("no panic under this lock");
        map.iter().map(|(key, api)| (key.clone(), Arc::clone(api))).collect()
    }
    /// Tells every change.
    fn subscribe(&self) -> tokio::sync::watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// The identity with which the server asks aggregated API servers on behalf of a user, all PEM.
#[derive(Clone)]
pub struct FrontProxy {
    /// The authority that they trust with that (`requestheader-client-ca-file`).
    pub ca_pem: String,
    /// The client certificate, of the name `front-proxy-client`.
    pub certificate_pem: Arc<Vec<u8>>,
    /// Its key.
    pub key_pem: Arc<Vec<u8>>,
}

/// What the API server is started with.
pub struct Options {
    /// The serving certificate chain, PEM.
    pub tls_cert_pem: Vec<u8>,
    /// Its private key, PEM.
    pub tls_key_pem: Vec<u8>,
    /// The authority whose certificates are users, PEM.
    pub client_ca_pem: Vec<u8>,
    /// The private key (EC P-256 or RSA, PEM in PKCS#8) that signs service account tokens.
    pub service_account_key_pem: Vec<u8>,
    /// The `iss` of service account tokens and their default audience.
    pub issuer: String,
    /// Where ClusterIPs come from.
    pub service_cidr: Ipv4Net,
    /// Where NodePorts come from (30000-32767).
    pub node_ports: RangeInclusive<u16>,
    /// The address and port behind the Service `kubernetes.default`.
    pub endpoint: (Ipv4Addr, u16),
    /// Whether other API servers work on the same store: their endpoints of the Service `kubernetes` stay.
    pub peers: bool,
    /// Bearer tokens that are users as they stand.
    pub static_tokens: Vec<(String, User)>,
    /// The way to the nodes.
    pub nodes: Arc<dyn NodeConnection>,
    /// The way into the pod network.
    pub dialer: Arc<dyn Dialer>,
    /// API groups served by addons.
    pub aggregated: Aggregated,
    /// The audit log; `None`: nothing is told.
    pub audit: Option<audit::Options>,
    /// What aggregated API servers know this one by; without it they cannot be asked on behalf of a user.
    pub front_proxy: Option<FrontProxy>,
    /// What admission plugins are configured with.
    pub admission: admission::Configuration,
    /// Features that are switched on or off.
    pub feature_gates: crate::config::FeatureGates,
}

/// The API server. Make one with [`ApiServer::new`], then [`ApiServer::serve`] or [`ApiServer::accept_stream`].
pub struct ApiServer {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) env: Env,
    pub(crate) options: Options,
    pub(crate) kinds: Kinds,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) tokens: authn::tokens::Tokens,
    pub(crate) tls: http::server::Tls,
    pub(crate) rbac: authz::rbac::Rbac,
    pub(crate) nodes: authz::node::NodeGraph,
    pub(crate) allocations: service::Allocations,
    pub(crate) audit: Option<audit::Audit>,
    pub(crate) quotas: registry::quota::Quotas,
    pub(crate) flow_control: flow_control::FlowControl,
    pub(crate) components: component_status::Components,
    pub(crate) extensions: extensions::Extensions,
    pub(crate) aggregation: aggregation::ApiServices,
    pub(crate) registrations: admission::registrations::Registrations,
    pub(crate) closing: tokio::sync::watch::Sender<bool>,
}

/// Why the API server could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    /// The TLS certificate, its key or the client authority cannot be used.
    #[error("cannot use the certificates: {0}")]
    Tls(String),
    /// The service account key cannot be used.
    #[error("cannot use the service account key: {0}")]
    Key(String),
    /// The audit log cannot be kept.
    #[error(transparent)]
    Audit(#[from] audit::Error),
    /// The objects that every cluster has could not be written.
    #[error("cannot write the objects that every cluster has: {0}")]
    Bootstrap(#[from] Status),
    /// The database does not answer.
    #[error(transparent)]
    Storage(#[from] crate::storage::Error),
}

impl ApiServer {
    /// Makes a server over `storage`: reads what it has to know (allocated addresses, roles) and writes what every cluster has
    /// (the four namespaces, bootstrap roles, the Service `kubernetes`).
    ///
    /// # Errors
    /// When certificates or keys cannot be used, or the storage fails.
    pub async fn new(storage: Arc<dyn Storage>, env: Env, options: Options) -> Result<Arc<Self>, NewError> {
        let tls = http::server::Tls::new(&options.tls_cert_pem, &options.tls_key_pem, &options.client_ca_pem)
            .map_err(NewError::Tls)?;
        let tokens =
            authn::tokens::Tokens::new(&options.service_account_key_pem, &options.issuer).map_err(NewError::Key)?;
        let audit = options.audit.as_ref().map(|options| audit::Audit::new(options, &env)).transpose()?;
        let allocations = service::Allocations::new(options.service_cidr, options.node_ports.clone());
        let server = Arc::new(Self {
            storage,
            env,
            options,
            kinds: Kinds::built_in(),
            metrics: metrics::Metrics::default(),
            tokens,
            tls,
            rbac: authz::rbac::Rbac::default(),
            nodes: authz::node::NodeGraph::default(),
            allocations,
            audit,
            quotas: registry::quota::Quotas::default(),
            flow_control: flow_control::FlowControl::default(),
            components: component_status::Components::default(),
            extensions: extensions::Extensions::default(),
            aggregation: aggregation::ApiServices::default(),
            registrations: admission::registrations::Registrations::default(),
            closing: tokio::sync::watch::Sender::new(false),
        });
        reservations::start(&server).await?;
        bootstrap::run(&server).await?;
        authz::rbac::follow(&server).await?;
        extensions::follow(&server).await?;
        aggregation::start(&server).await?;
        admission::registrations::follow(&server).await?;
        authz::node::follow(&server).await?;
        registry::expiry::follow(&server).await?;
        registry::quota::follow(&server).await?;
        flow_control::follow::follow(&server).await?;
        token_secrets::follow(&server).await?;
        bootstrap::maintain_kubernetes_service(&server).await?;
        Ok(server)
    }

    /// The kinds that are served, and every change of them.
    pub fn served_kinds(&self) -> tokio::sync::watch::Receiver<Served> {
        self.kinds.subscribe()
    }

    /// The kind of a resource that is served.
    pub(crate) fn kind(&self, group: &str, version: &str, resource: &str) -> Option<Arc<Kind>> {
        self.kinds.get(group, version, resource)
    }

    /// The kind of a resource of this process's own making.
    pub(crate) fn known_kind(&self, group: &str, version: &str, resource: &str) -> StatusResult<Arc<Kind>> {
        self.kind(group, version, resource)
            .ok_or_else(|| Status::new(404, "NotFound", "the server could not find the requested resource"))
    }
}

/// Waits until the server closes.
pub(crate) async fn closed(closing: &mut tokio::sync::watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}
