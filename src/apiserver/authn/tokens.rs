//! Service account tokens: signed, bound to their account and (when asked) to a pod, secret or node, and short-lived.

use base64::Engine as _;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::PublicKeyData as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{AUTHENTICATED, User};
use crate::api::meta;
use crate::apiserver::ApiServer;

/// The claim set (KEP-1205, `pkg/serviceaccount/claims.go`).
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    nbf: i64,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Private,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Private {
    namespace: String,
    serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warnafter: Option<i64>,
}

/// The claims of a token in a Secret (`LegacyClaims`): it does not expire.
#[derive(Debug, Serialize, Deserialize)]
struct SecretClaims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    sub: String,
}

/// The issuer of tokens in Secrets.
const SECRET_ISSUER: &str = "kubernetes/serviceaccount";
/// How long after its deletion time an object that a token is bound to still counts (seconds).
const DELETION_LEEWAY: i64 = 60;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Reference {
    name: String,
    uid: String,
}

/// What a token is asked for.
pub struct TokenRequest<'a> {
    /// The account's namespace.
    pub namespace: &'a str,
    /// The account's name.
    pub name: &'a str,
    /// The account's uid.
    pub uid: &'a str,
    /// Who will accept it; empty: the API server.
    pub audiences: Vec<String>,
    /// How long it is valid.
    pub seconds: i64,
    /// `Pod`, `Secret` or `Node` with name and uid, whose end is the token's end.
    pub bound: Option<(&'a str, &'a str, &'a str)>,
    /// Name and uid of the node of the pod that it is bound to.
    pub node: Option<(&'a str, &'a str)>,
}

/// What is known of a token that was accepted.
pub struct Review {
    /// The service account as a user.
    pub user: User,
    /// The audiences for which it is valid.
    pub audiences: Vec<String>,
}

/// Signs and checks service account tokens.
pub struct Tokens {
    algorithm: Algorithm,
    encoding: EncodingKey,
    decoding: DecodingKey,
    key_id: String,
    issuer: String,
    jwk: Value,
}

impl Tokens {
    /// From a private key: EC P-256 (ES256) or RSA (RS256), PEM in PKCS#8.
    ///
    /// # Errors
    /// When the key is of another kind.
    pub fn new(key_pem: &[u8], issuer: &str) -> Result<Self, String> {
        let text = std::str::from_utf8(key_pem).map_err(|e| e.to_string())?;
        let b64 = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let pair = rcgen::KeyPair::from_pem(text).map_err(|e| e.to_string())?;
        let spki = pair.subject_public_key_info();
        let key_id = {
            use sha2::Digest as _;
            b64(&sha2::Sha256::digest(&spki))
        };
        let (algorithm, encoding, decoding, jwk) = if let Ok(encoding) = EncodingKey::from_ec_pem(key_pem) {
            let point = pair.public_key_raw();
            if point.len() != 65 || point[0] != 4 {
                return Err("only P-256 is known among the elliptic curves".into());
            }
            let (x, y) = (b64(&point[1..33]), b64(&point[33..]));
            let decoding = DecodingKey::from_ec_components(&x, &y).map_err(|e| e.to_string())?;
            let jwk = json!({"use": "sig", "kty": "EC", "kid": key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y});
            (Algorithm::ES256, encoding, decoding, jwk)
        } else {
            let encoding = EncodingKey::from_rsa_pem(key_pem).map_err(|e| e.to_string())?;
            let (n, e) = rsa_components(pair.public_key_raw()).ok_or("the RSA key cannot be read")?;
            let (n, e) = (b64(&n), b64(&e));
            let decoding = DecodingKey::from_rsa_components(&n, &e).map_err(|e| e.to_string())?;
            let jwk = json!({"use": "sig", "kty": "RSA", "kid": key_id, "alg": "RS256", "n": n, "e": e});
            (Algorithm::RS256, encoding, decoding, jwk)
        };
        Ok(Self { algorithm, encoding, decoding, key_id, issuer: issuer.to_owned(), jwk })
    }

    /// The key set that `/openid/v1/jwks` answers.
    pub fn key_set(&self) -> Value {
        json!({"keys": [self.jwk]})
    }

    /// The name of the signature algorithm.
    pub fn algorithm(&self) -> &'static str {
        if self.algorithm == Algorithm::ES256 { "ES256" } else { "RS256" }
    }

    /// A new token, and when it expires (seconds since 1970).
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(&self, request: TokenRequest<'_>, now: jiff::Timestamp, id: String) -> Result<(String, i64), String> {
        let now = now.as_second();
        let exp = now + request.seconds;
        let reference = |name: &str, uid: &str| Some(Reference { name: name.to_owned(), uid: uid.to_owned() });
        let mut private = Private { namespace: request.namespace.to_owned(), ..Private::default() };
        private.serviceaccount = Reference { name: request.name.to_owned(), uid: request.uid.to_owned() };
        match request.bound {
            Some(("Pod", name, uid)) => private.pod = reference(name, uid),
            Some(("Secret", name, uid)) => private.secret = reference(name, uid),
            Some(("Node", name, uid)) => private.node = reference(name, uid),
            _ => {}
        }
        if let Some((name, uid)) = request.node {
            private.node = reference(name, uid);
        }
        let audiences = if request.audiences.is_empty() { vec![self.issuer.clone()] } else { request.audiences };
        let claims = Claims {
            aud: audiences,
            exp,
            iat: now,
            iss: self.issuer.clone(),
            jti: id,
            nbf: now,
            sub: format!("system:serviceaccount:{}:{}", request.namespace, request.name),
            kubernetes: private,
        };
        let mut header = Header::new(self.algorithm);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        let token = jsonwebtoken::encode(&header, &claims, &self.encoding).map_err(|e| e.to_string())?;
        Ok((token, exp))
    }

    /// A token for the Secret that will have it.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue_for_secret(&self, namespace: &str, secret: &str, account: &str, uid: &str) -> Result<String, String> {
        let claims = SecretClaims {
            iss: SECRET_ISSUER.to_owned(),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            account: account.to_owned(),
            uid: uid.to_owned(),
            sub: format!("system:serviceaccount:{namespace}:{account}"),
        };
        let mut header = Header::new(self.algorithm);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, &claims, &self.encoding).map_err(|e| e.to_string())
    }

    fn validation(&self, issuer: &str) -> Validation {
        let mut validation = Validation::new(self.algorithm);
        validation.set_issuer(&[issuer]);
        validation.validate_aud = false;
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        validation
    }

    /// Who bears a token of a Secret: the Secret must still have it, and the account must still be there.
    async fn review_secret(
        &self,
        server: &ApiServer,
        token: &str,
        audiences: &[String],
    ) -> Option<Result<Review, String>> {
        let validation = self.validation(SECRET_ISSUER);
        let claims = jsonwebtoken::decode::<SecretClaims>(token, &self.decoding, &validation).ok()?.claims;
        Some(self.check_secret(server, token, audiences, claims).await)
    }

    async fn check_secret(
        &self,
        server: &ApiServer,
        token: &str,
        audiences: &[String],
        claims: SecretClaims,
    ) -> Result<Review, String> {
        let own = [self.issuer.clone()];
        let valid: Vec<String> = match audiences {
            [] => own.to_vec(),
            wanted => wanted.iter().filter(|audience| own.contains(audience)).cloned().collect(),
        };
        if valid.is_empty() {
            return Err("invalid bearer token".to_owned());
        }
        let key = crate::apiserver::registry::key("", "secrets", &claims.namespace, &claims.secret);
        let secret = server.storage.get(&key).await.map_err(|e| e.to_string())?.map(|entry| entry.value());
        let encoded = base64::engine::general_purpose::STANDARD.encode(token);
        if secret.is_none_or(|s| meta::is_terminating(&s) || s["data"]["token"] != encoded) {
            return Err("service account token has been invalidated".to_owned());
        }
        let account = Reference { name: claims.account, uid: claims.uid.clone() };
        self.check_exists(server, "serviceaccounts", &claims.namespace, &account, "service account").await?;
        let user = User {
            name: claims.sub,
            uid: claims.uid,
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{}", claims.namespace),
                AUTHENTICATED.into(),
            ],
            ..User::default()
        };
        Ok(Review { user, audiences: valid })
    }

    /// Who bears this token. Signature, issuer, times, audience, and that the account and what it is bound to still exist.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub async fn review(&self, server: &ApiServer, token: &str, audiences: &[String]) -> Result<Review, String> {
        if let Some(review) = self.review_secret(server, token, audiences).await {
            return review;
        }
        let validation = self.validation(&self.issuer);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)
            .map_err(|_| "invalid bearer token".to_owned())?
            .claims;
        let now = server.env.now().as_second();
        if now >= claims.exp {
            return Err("invalid bearer token, service account token has expired".into());
        }
        if now + 60 < claims.nbf {
            return Err("invalid bearer token, service account token is not valid yet".into());
        }
        let own = [self.issuer.clone()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let valid: Vec<String> = wanted.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if valid.is_empty() {
            return Err(format!(
                "invalid bearer token, token audiences {:?} is invalid for the target audiences {wanted:?}",
                claims.aud
            ));
        }
        let private = claims.kubernetes;
        self.check_exists(server, "serviceaccounts", &private.namespace, &private.serviceaccount, "service account")
            .await?;
        for (resource, reference, what) in [("pods", &private.pod, "pod"), ("secrets", &private.secret, "secret")] {
            if let Some(reference) = reference {
                self.check_exists(server, resource, &private.namespace, reference, what).await?;
            }
        }
        if let (Some(node), None) = (&private.node, &private.pod) {
            self.check_exists(server, "nodes", "", node, "node").await?;
        }
        let mut user = User {
            name: claims.sub,
            uid: private.serviceaccount.uid,
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{}", private.namespace),
                AUTHENTICATED.into(),
            ],
            ..User::default()
        };
        let mut extra = |key: &str, value: String| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        extra("credential-id", format!("JTI={}", claims.jti));
        if let Some(pod) = private.pod {
            extra("pod-name", pod.name);
            extra("pod-uid", pod.uid);
        }
        if let Some(node) = private.node {
            extra("node-name", node.name);
            extra("node-uid", node.uid);
        }
        Ok(Review { user, audiences: valid })
    }

    async fn check_exists(
        &self,
        server: &ApiServer,
        resource: &str,
        namespace: &str,
        reference: &Reference,
        what: &str,
    ) -> Result<(), String> {
        let key = crate::apiserver::registry::key("", resource, namespace, &reference.name);
        let entry = server.storage.get(&key).await.map_err(|e| e.to_string())?;
        let Some(entry) = entry else {
            return Err(format!("invalid bearer token, {what} {namespace}/{} has been deleted", reference.name));
        };
        let deleted =
            entry.value()["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        if deleted.is_some_and(|at| at.as_second() + DELETION_LEEWAY < server.env.now().as_second()) {
            return Err(format!("invalid bearer token, {what} {namespace}/{} has been deleted", reference.name));
        }
        if meta::uid(&entry.value()) != reference.uid {
            return Err(format!("invalid bearer token, {what} UID ({}) does not match claim", reference.name));
        }
        Ok(())
    }
}

/// Modulus and exponent of a DER `RSAPublicKey`.
fn rsa_components(der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    use x509_parser::prelude::FromDer as _;
    use x509_parser::public_key::RSAPublicKey;
    let (_, key) = RSAPublicKey::from_der(der).ok()?;
    let strip = |bytes: &[u8]| bytes.iter().skip_while(|b| **b == 0).copied().collect();
    Some((strip(key.modulus), strip(key.exponent)))
}
