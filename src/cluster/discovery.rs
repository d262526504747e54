//! How a machine that joins comes to trust the cluster (kubeadm's token-based discovery): it reads the published
//! authority without knowing whom it asks, checks that it is signed with the token and that its key is the pinned one, and
//! reads it again with that authority.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::api::certificates::public_key_hash;
use crate::api::kinds::gvr;
use crate::apiserver::Anybody;
use crate::client::Api;
use crate::client::https::{Access, HttpsApi};
use crate::controllers::bootstrap_signer::signature;

const AGENT: &str = "mini-node";

/// The authority of the cluster at `server`, PEM. `pins` are hashes of its public key (`sha256:…`), one of which must fit.
///
/// # Errors
/// When the cluster does not answer, does not know the token, or is not the one that was meant.
pub async fn authority(server: SocketAddr, token: &str, pins: &[String]) -> Result<String> {
    let (id, secret) = token.split_once('.').context("a token looks like abcdef.0123456789abcdef")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Whoever answers is believed for now: what it says proves itself.
    let tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    let address = format!("https://{server}");
    let unverified = HttpsApi::with_tls(tls, &address, "", AGENT, false);
    let info = cluster_info(&unverified).await?;
    let ca = check(&info, id, secret, pins)?;
    let access = Access {
        server: address,
        ca_pem: ca.clone().into_bytes(),
        cert_pem: Vec::new(),
        key_pem: Vec::new(),
        token: String::new(),
    };
    let again = cluster_info(&HttpsApi::new(&access, AGENT, false)?).await?;
    if check(&again, id, secret, pins)? != ca {
        bail!("the cluster's authority changed while it was read");
    }
    Ok(ca)
}

async fn cluster_info(api: &dyn Api) -> Result<Arc<Value>> {
    api.get(&gvr::CONFIG_MAPS, "kube-public", "cluster-info")
        .await
        .context("reading the cluster's information; 'mini node token' publishes it")
}

/// The authority in `cluster-info`, when it is signed with the token and is one of those that are pinned.
fn check(info: &Value, id: &str, secret: &str, pins: &[String]) -> Result<String> {
    let content = info["data"]["kubeconfig"].as_str().context("the cluster's information is empty")?;
    let signed = info["data"][format!("jws-kubeconfig-{id}")].as_str();
    let Some(signed) = signed else { bail!("there is no valid token with the id {id:?} in the cluster") };
    if signed != signature(content, id, secret) {
        bail!("the cluster's information is not signed with this token");
    }
    let kubeconfig: Value = serde_saphyr::from_str(content).context("the cluster's information is no kubeconfig")?;
    let data = kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap_or_default();
    let ca = String::from_utf8(STANDARD.decode(data).context("the cluster's authority")?)?;
    let hash = public_key_hash(&ca).map_err(anyhow::Error::msg).context("the cluster's authority")?;
    if !pins.iter().any(|pin| pin.eq_ignore_ascii_case(&hash)) {
        bail!("the cluster's authority has the public key {hash}, which is none of those that are pinned");
    }
    Ok(ca)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_pinned_authority_signed_with_the_token_is_trusted() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let ca = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate").pem();
        let cluster = json!({"certificate-authority-data": STANDARD.encode(&ca)});
        let content = json!({"clusters": [{"cluster": cluster}]}).to_string();
        let info =
            json!({"data": {"kubeconfig": content, "jws-kubeconfig-abcdef": signature(&content, "abcdef", "s")}});
        let pin = public_key_hash(&ca).expect("a hash");
        assert_eq!(check(&info, "abcdef", "s", &[pin.clone()]).expect("trusted"), ca);
        let refused = |id: &str, secret: &str, pins: &[String]| {
            check(&info, id, secret, pins).expect_err("not trusted").to_string()
        };
        assert!(refused("abcdef", "t", &[pin.clone()]).contains("not signed"));
        assert!(refused("ghijkl", "s", &[pin.clone()]).contains("no valid token"));
        assert!(refused("abcdef", "s", &["sha256:00".to_owned()]).contains("none of those that are pinned"));
        assert!(refused("abcdef", "s", &[]).contains("none of those that are pinned"));
    }
}
