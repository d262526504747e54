//! A server over memory storage with certificates of its own, for tests and for trying a client against it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use tokio::net::TcpListener;

use super::{Aggregated, ApiServer, Dialer, FrontProxy, NodeConnection, Options, Stream, User};
use crate::env::Env;
use crate::storage::{self, Storage};

/// The bearer token of a cluster administrator.
pub const ADMIN_TOKEN: &str = "test-admin-token";

/// A running server.
pub struct TestServer {
    /// The server, for its in-process door.
    pub server: Arc<ApiServer>,
    /// Where it listens.
    pub address: SocketAddr,
    /// The authority of its certificate and of its clients', PEM.
    pub ca_pem: String,
    /// A certificate of a cluster administrator, PEM.
    pub client_cert_pem: String,
    /// Its key, PEM.
    pub client_key_pem: String,
    shutdown: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(shutdown) = self.shutdown.take() {
            let _ = shutdown.send(());
        }
    }
}

struct NoNodes;

#[async_trait]
impl NodeConnection for NoNodes {
    async fn call(&self, node: &str, _: Request<Body>) -> Response<Body> {
        let mut response = Response::new(Body::from(format!("node {node} is not there")));
        *response.status_mut() = http::StatusCode::BAD_GATEWAY;
        response
    }
}

#[async_trait]
impl Dialer for NoNodes {
    async fn dial(&self, ip: IpAddr, port: u16) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(tokio::net::TcpStream::connect((ip, port)).await?))
    }
}

/// A store for one test: in memory, or in the etcd that `MINI_TEST_ETCD` names, below a prefix of its own.
///
/// # Panics
/// When that etcd does not answer.
pub async fn store(env: &Env) -> Arc<dyn Storage> {
    let limits = storage::Limits::default();
    let Ok(endpoint) = std::env::var("MINI_TEST_ETCD") else { return storage::memory(limits) };
    let prefix = format!("/test-{}", env.uid());
    let options = storage::EtcdOptions { endpoints: vec![endpoint], prefix, ..storage::EtcdOptions::default() };
    storage::open_etcd(&options, limits).await.expect("MINI_TEST_ETCD names an etcd")
}

/// The folder with recordings of a real Kubernetes: `MINI_RECORDINGS`, or what lies beside the repository.
pub fn recordings() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("MINI_RECORDINGS") {
        return Some(folder.into());
    }
    // Tests run in the package's folder.
    let beside = ["../shared/recordings", "../../shared/recordings"].map(PathBuf::from);
    beside.into_iter().find(|folder| folder.is_dir())
}

/// Name and text of the recorded cases of a folder, in order; none where there are no recordings.
///
/// # Panics
/// When they cannot be read.
pub fn recorded(folder: &str) -> Vec<(String, String)> {
    let Some(root) = recordings() else { return Vec::new() };
    let files = std::fs::read_dir(root.join(folder)).expect("a readable folder");
    let paths = files.map(|file| file.expect("a readable entry").path());
    let mut cases: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_stem().expect("a file name").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&path).expect("a readable file"))
        })
        .collect();
    cases.sort();
    cases
}

/// Starts a server on a free port of 127.0.0.1.
///
/// # Panics
/// When that is not possible: it is for tests.
pub async fn start(storage: Arc<dyn Storage>, env: Env) -> TestServer {
    start_with(storage, env, |_| {}).await
}

/// Starts a server with other options.
///
/// # Panics
/// When that is not possible: it is for tests.
pub async fn start_with(storage: Arc<dyn Storage>, env: Env, change: impl FnOnce(&mut Options)) -> TestServer {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate");
    let issue = |name: &str, organisation: Option<&str>| {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(organisation) = organisation {
            params.distinguished_name.push(DnType::OrganizationName, organisation);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &ca).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    };
    let (cert, key) = issue("kube-apiserver", None);
    let (client_cert_pem, client_key_pem) = issue("admin", Some("system:masters"));
    let (proxy_cert, proxy_key) = issue("front-proxy-client", None);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let mut options = Options {
        tls_cert_pem: cert.into_bytes(),
        tls_key_pem: key.into_bytes(),
        client_ca_pem: ca.pem().into_bytes(),
        service_account_key_pem: KeyPair::generate().expect("a key").serialize_pem().into_bytes(),
        issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
        service_cidr: "10.96.0.0/16".parse().expect("a network"),
        node_ports: 30000..=32767,
        endpoint: (Ipv4Addr::new(192, 0, 2, 1), address.port()),
        peers: false,
        static_tokens: vec![(ADMIN_TOKEN.to_owned(), User::master("admin"))],
        nodes: Arc::new(NoNodes),
        dialer: Arc::new(NoNodes),
        aggregated: Aggregated::default(),
        audit: None,
        front_proxy: Some(FrontProxy {
            ca_pem: ca.pem(),
            certificate_pem: Arc::new(proxy_cert.into_bytes()),
            key_pem: Arc::new(proxy_key.into_bytes()),
        }),
        admission: super::admission::Configuration::default(),
        feature_gates: crate::config::FeatureGates::default(),
    };
    change(&mut options);
    let server = ApiServer::new(storage, env, options).await.expect("a server");
    let (shutdown, stop) = tokio::sync::oneshot::channel();
    let serving = Arc::clone(&server).serve(listener, async move { drop(stop.await) });
    tokio::spawn(serving);
    TestServer { server, address, ca_pem: ca.pem(), client_cert_pem, client_key_pem, shutdown: Some(shutdown) }
}

impl TestServer {
    /// A kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> String {
        use base64::Engine as _;
        let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: t\n  cluster:\n    server: https://{}\n    certificate-authority-data: {}\n\
             users:\n- name: t\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
             contexts:\n- name: t\n  context:\n    cluster: t\n    user: t\ncurrent-context: t\n",
            self.address,
            b64(&self.ca_pem),
            b64(&self.client_cert_pem),
            b64(&self.client_key_pem)
        )
    }
}

impl TestServer {
    /// Answers a request as the HTTP door does, for the user of a client certificate (or nobody), without a connection.
    pub async fn call(&self, user: Option<&User>, request: Request<Body>) -> Response<Body> {
        super::http::handle(&self.server, user, request).await
    }

    /// Whether a path is about a resource that is served.
    pub fn serves(&self, path: &str) -> bool {
        use super::http::request::{Query, RequestInfo};
        let info = RequestInfo::new(&http::Method::GET, path, &Query::default());
        !info.is_resource || self.server.kind(&info.group, &info.version, &info.resource).is_some()
    }
}
