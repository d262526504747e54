//! A node's identity towards the API server: a key that never leaves its directory, and a certificate that the cluster issues
//! for it, first for a bootstrap token (TLS bootstrapping as kubelets do it), later for the old certificate.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};

use super::pki::{read, write};
use crate::api::certificates::{KUBELET_CLIENT_SIGNER, not_after, not_before};
use crate::api::kinds::gvr::CERTIFICATE_SIGNING_REQUESTS;
use crate::api::meta;
use crate::client::https::{Access, HttpsApi};
use crate::client::{Api, ListOptions, WatchEvent};
use crate::env::Env;

const CA: &str = "ca.crt";
const CERT: &str = "kubelet-client.crt";
const KEY: &str = "kubelet-client.key";
const AGENT: &str = "mini-node";
/// How long the cluster may take to issue a certificate.
const PATIENCE: Duration = Duration::from_secs(60);
/// The wait after a renewal that failed.
const RETRY: Duration = Duration::from_secs(60);

/// The identity of one node.
pub struct Identity {
    dir: PathBuf,
    node: String,
    server: SocketAddr,
    ca: String,
    current: Arc<Replaceable>,
}

/// A certificate that connections take as it is when they are made.
#[derive(Debug)]
struct Replaceable(RwLock<Arc<CertifiedKey>>);

impl ResolvesClientCert for Replaceable {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().expect("no panic under this lock").clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// Whether a node has a certificate in its directory that still holds.
pub fn is_there(dir: &Path, now: Timestamp) -> bool {
    let cert = read(dir, CERT).ok().flatten();
    cert.and_then(|pem| not_after(pem.as_bytes())).is_some_and(|end| end > now) && dir.join(KEY).exists()
}

/// Puts the cluster's authority into a node's directory.
///
/// # Errors
/// When the file cannot be written.
pub fn trust(dir: &Path, ca: &str) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    write(dir, CA, ca)
}

impl Identity {
    /// The identity that the node has, or a new one for a bootstrap token. The authority must be there (see [`trust`]).
    ///
    /// # Errors
    /// When there is neither, or the cluster does not issue one.
    pub async fn ensure(
        dir: &Path,
        node: &str,
        server: SocketAddr,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<Arc<Self>> {
        let ca = read(dir, CA)?.context("the cluster's authority is missing")?;
        if !is_there(dir, now) {
            let token = token.context("the node has no valid certificate and no token to get one")?;
            let access = Access {
                server: format!("https://{server}"),
                ca_pem: ca.clone().into_bytes(),
                cert_pem: Vec::new(),
                key_pem: Vec::new(),
                token: token.to_owned(),
            };
            let (cert, key) = request(&HttpsApi::new(&access, AGENT, false)?, node).await?;
            write(dir, KEY, &key)?;
            write(dir, CERT, &cert)?;
        }
        let current = certified(&read(dir, CERT)?.unwrap_or_default(), &read(dir, KEY)?.unwrap_or_default())?;
        let current = Arc::new(Replaceable(RwLock::new(Arc::new(current))));
        Ok(Arc::new(Self { dir: dir.to_owned(), node: node.to_owned(), server, ca, current }))
    }

    /// Where the API server is.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// How TLS is done as this node. Connections that are made after a renewal use the new certificate.
    ///
    /// # Errors
    /// When the authority's certificate cannot be read.
    pub fn tls(&self) -> Result<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(self.ca.as_bytes()) {
            roots.add(cert?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(tls.with_root_certificates(roots).with_client_cert_resolver(self.current.clone()))
    }

    /// The API as this node.
    ///
    /// # Errors
    /// As [`Identity::tls`].
    pub fn api(&self) -> Result<HttpsApi> {
        Ok(HttpsApi::with_tls(self.tls()?, &format!("https://{}", self.server), "", AGENT, true))
    }

    /// Renews the certificate when most of its life is over. Runs until it is dropped.
    pub async fn keep(self: Arc<Self>, env: Env) {
        loop {
            let at = self.renewal(&env).unwrap_or_else(|| env.now());
            let wait = Duration::try_from(at.duration_since(env.now())).unwrap_or_default();
            tokio::time::sleep(wait).await;
            if let Err(error) = self.renew().await {
                tracing::warn!("the node's certificate could not be renewed: {error:#}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Between 70 and 90 % of the certificate's life, so that not all nodes come at once.
    fn renewal(&self, env: &Env) -> Option<Timestamp> {
        let pem = read(&self.dir, CERT).ok()??;
        let (begin, end) = (not_before(pem.as_bytes())?, not_after(pem.as_bytes())?);
        let life = end.duration_since(begin).as_secs();
        let part = 70 + i64::try_from(env.below(20)).unwrap_or_default();
        Timestamp::from_second(begin.as_second() + life / 100 * part).ok()
    }

    async fn renew(&self) -> Result<()> {
        let (cert, key) = request(&self.api()?, &self.node).await?;
        let certified = certified(&cert, &key)?;
        write(&self.dir, KEY, &key)?;
        write(&self.dir, CERT, &cert)?;
        *self.current.0.write().expect("no panic under this lock") = Arc::new(certified);
        tracing::info!("the node's certificate was renewed");
        Ok(())
    }
}

fn certified(cert: &str, key: &str) -> Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the node's key")?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).context("the node's certificate")
}

/// A new key, and the certificate that the cluster issues for it.
async fn request(api: &dyn Api, node: &str) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    let pem = params.serialize_request(&key)?.pem()?;
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "csr-"},
        "spec": {"request": STANDARD.encode(pem), "signerName": KUBELET_CLIENT_SIGNER,
            "usages": ["digital signature", "client auth"]},
    });
    let made = api.create(&CERTIFICATE_SIGNING_REQUESTS, "", "", "", object).await;
    let made = made.context("asking for the node's certificate")?;
    let cert = tokio::time::timeout(PATIENCE, issued(api, meta::name(&made))).await;
    let cert = cert.with_context(|| format!("the request {} was not approved in time", meta::name(&made)))??;
    Ok((cert, key.serialize_pem()))
}

/// Waits for a request's certificate.
async fn issued(api: &dyn Api, name: &str) -> Result<String> {
    let only = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
    let mut events = api.watch(&CERTIFICATE_SIGNING_REQUESTS, "", &only).await?;
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Added(csr) | WatchEvent::Modified(csr) => {
                if let Some(cert) = outcome(&csr)? {
                    return Ok(cert);
                }
            }
            WatchEvent::Deleted(_) => bail!("the request {name} was deleted"),
            WatchEvent::Bookmark(_) => {}
        }
    }
    bail!("the watch of the request {name} ended")
}

/// The certificate, when there is one; an error, when there will be none.
fn outcome(csr: &Value) -> Result<Option<String>> {
    let conditions = csr["status"]["conditions"].as_array().into_iter().flatten();
    for condition in conditions.filter(|c| c["type"] == "Denied" || c["type"] == "Failed") {
        let [kind, reason, message] = ["type", "reason", "message"].map(|f| condition[f].as_str().unwrap_or_default());
        bail!("the request {} is {kind}: {reason}: {message}", meta::name(csr));
    }
    let Some(text) = csr["status"]["certificate"].as_str().filter(|text| !text.is_empty()) else { return Ok(None) };
    Ok(Some(String::from_utf8(STANDARD.decode(text)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_with_a_certificate_or_a_reason() {
        let with = |status: Value| json!({"metadata": {"name": "csr-1"}, "status": status});
        assert_eq!(outcome(&with(json!({}))).expect("pending"), None);
        let approved = json!({"conditions": [{"type": "Approved"}], "certificate": STANDARD.encode("PEM")});
        assert_eq!(outcome(&with(approved)).expect("issued").as_deref(), Some("PEM"));
        let denied = json!({"conditions": [{"type": "Denied", "reason": "No", "message": "not you"}]});
        let error = outcome(&with(denied)).expect_err("denied");
        assert_eq!(error.to_string(), "the request csr-1 is Denied: No: not you");
    }

    #[tokio::test]
    async fn without_certificate_and_token_there_is_no_identity() {
        let dir = tempfile::tempdir().expect("a directory");
        let server = "127.0.0.1:1".parse().expect("an address");
        let now = Timestamp::UNIX_EPOCH;
        let ensure = || Identity::ensure(dir.path(), "n", server, None, now);
        assert!(ensure().await.err().expect("an error").to_string().contains("authority is missing"));
        trust(dir.path(), "nonsense").expect("written");
        assert!(ensure().await.err().expect("an error").to_string().contains("no token"));
    }
}
