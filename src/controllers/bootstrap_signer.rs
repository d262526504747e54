//! Signs the ConfigMap `cluster-info` in `kube-public` with every bootstrap token (`pkg/controller/bootstrap/bootstrapsigner.go`):
//! whoever has a token can tell that what it reads there, without an identity, comes from the cluster.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey};
use k8s_openapi::api::core::v1::ConfigMap;

use super::bootstrap_tokens::{expiration, is_token, signs};
use super::caches::Caches;
use super::plan::{Action, Plan};
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::typed::Meta;

const NAMESPACE: &str = "kube-public";
const NAME: &str = "cluster-info";
const SIGNED: &str = "kubeconfig";
/// The fields with signatures are called so, with the token's id behind it.
const SIGNATURE: &str = "jws-kubeconfig-";

/// The controller; it has one key.
pub struct BootstrapSignerController;

impl Controller for BootstrapSignerController {
    fn name(&self) -> &'static str {
        "bootstrap-signer-controller"
    }
    fn account(&self) -> &'static str {
        "bootstrap-signer"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let add = enqueue.clone();
        caches.secrets.subscribe(move |change| {
            if is_token(change.object()) {
                add.add(Key::new(NAMESPACE, NAME));
            }
        });
        let add = enqueue.clone();
        caches.config_maps.subscribe(move |change| {
            if change.object().namespace() == NAMESPACE && change.object().name() == NAME {
                add.add(Key::new(NAMESPACE, NAME));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(map) = caches.config_maps.get(key) else { return plan };
        let secrets = caches.secrets.list();
        let tokens = secrets.iter().filter_map(|secret| signs(secret, now));
        if let Some(signed) = sign(&map, tokens) {
            plan.push(Action::update(&signed));
        }
        let next = secrets.iter().filter(|s| signs(s, now).is_some()).filter_map(|s| expiration(s)).min();
        if let Some(at) = next {
            plan.requeue(at.duration_since(now).try_into().unwrap_or_default());
        }
        plan
    }
}

/// The map with the signatures of these tokens and no others; `None` when it has them.
fn sign<'a>(map: &ConfigMap, tokens: impl Iterator<Item = (&'a str, &'a str)>) -> Option<ConfigMap> {
    let data = map.data.clone().unwrap_or_default();
    let content = data.get(SIGNED)?;
    let mut wanted: BTreeMap<String, String> =
        data.iter().filter(|(field, _)| !field.starts_with(SIGNATURE)).map(|(k, v)| (k.clone(), v.clone())).collect();
    for (id, secret) in tokens {
        wanted.insert(format!("{SIGNATURE}{id}"), signature(content, id, secret));
    }
    (wanted != data).then(|| ConfigMap { data: Some(wanted), ..map.clone() })
}

/// A JWS whose payload is left out (`ComputeDetachedSignature`).
pub fn signature(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature =
        jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).expect("HMAC takes a key of any length");
    format!("{header}..{signature}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_cluster_bootstrap() {
        // `token/jws/jws_test.go`: content, id, secret and the signature that is expected.
        let expected = "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8";
        assert_eq!(
            signature(
                "Hello from the other side. I must have called a thousand times.",
                "joshua",
                "my voice is my passcode"
            ),
            expected
        );
    }

    #[test]
    fn every_token_signs_and_what_others_left_goes() {
        let map = |data: &[(&str, &str)]| ConfigMap {
            data: Some(data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            ..Default::default()
        };
        let signed = sign(&map(&[("kubeconfig", "x"), ("jws-kubeconfig-gone00", "y")]), [("abcdef", "s")].into_iter());
        let signed = signed.expect("it changes");
        let fields: Vec<_> = signed.data.as_ref().expect("data").keys().cloned().collect();
        assert_eq!(fields, ["jws-kubeconfig-abcdef", "kubeconfig"]);
        assert_eq!(sign(&signed, [("abcdef", "s")].into_iter()), None);
        assert_eq!(sign(&map(&[]), [("abcdef", "s")].into_iter()), None);
    }
}
