//! Who asks: client certificates, bearer tokens, anonymous; and impersonation.

mod bootstrap_tokens;
pub mod certificates;
pub mod tokens;

use std::collections::BTreeMap;

use http::HeaderMap;

use crate::api::{Status, StatusResult};

use super::ApiServer;

/// Everybody who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everybody who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group that may do everything.
pub const MASTERS: &str = "system:masters";

/// The user of a request (`authentication/user.Info`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The name, such as `system:serviceaccount:default:default`.
    pub name: String,
    /// The uid; empty when the authenticator knows none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What the authenticator says beyond that.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user with groups, of whom no more is known.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        Self { name: name.to_owned(), groups: groups.iter().map(|g| (*g).to_owned()).collect(), ..Self::default() }
    }
    /// A member of `system:masters`, who may do everything.
    pub fn master(name: &str) -> Self {
        Self::new(name, &[MASTERS, AUTHENTICATED])
    }
    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self::new("system:anonymous", &[UNAUTHENTICATED])
    }
    /// Whether it belongs to `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
    /// Whether it may do everything.
    pub fn is_master(&self) -> bool {
        self.is_in(MASTERS)
    }
}

/// The group of all nodes.
pub const NODES: &str = "system:nodes";

/// The name of the node whose identity the user is (`nodeidentifier.NodeIdentity`).
pub fn node_name(user: &User) -> Option<&str> {
    user.name.strip_prefix("system:node:").filter(|name| !name.is_empty() && user.is_in(NODES))
}

/// 401, as Kubernetes answers to credentials that it does not accept.
pub(crate) fn unauthorized() -> Status {
    Status::new(401, "Unauthorized", "Unauthorized")
}

/// The user of a request: of its certificate (already verified by TLS), else of its bearer token, else anonymous.
pub(crate) async fn authenticate(
    server: &ApiServer,
    headers: &HeaderMap,
    certificate: Option<&User>,
) -> StatusResult<User> {
    if let Some(user) = certificate {
        return Ok(user.clone());
    }
    let Some(token) = bearer_token(headers) else {
        return Ok(User::anonymous());
    };
    for (known, user) in &server.options.static_tokens {
        if constant_time_equal(known.as_bytes(), token.as_bytes()) {
            let mut user = user.clone();
            if !user.is_in(AUTHENTICATED) {
                user.groups.push(AUTHENTICATED.to_owned());
            }
            return Ok(user);
        }
    }
    if let Some((id, secret)) = bootstrap_tokens::parse(&token) {
        return bootstrap_tokens::user(server, id, secret).await?.ok_or_else(unauthorized);
    }
    let review = server.tokens.review(server, &token, &[]).await.map_err(|_| unauthorized())?;
    Ok(review.user)
}

/// `Authorization: Bearer`, or the WebSocket protocol that browsers have to use instead.
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(http::header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned()).filter(|t| !t.is_empty());
    }
    let protocols = headers.get(http::header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded = protocols.split(',').find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?;
    String::from_utf8(bytes).ok()
}

fn constant_time_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}

/// The user that the `Impersonate-*` headers ask for, if they do.
///
/// # Errors
/// When groups, uid or extras come without a user.
pub(crate) fn impersonated(headers: &HeaderMap) -> StatusResult<Option<User>> {
    let texts = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
    };
    let mut user = User { groups: texts("impersonate-group"), ..User::default() };
    user.uid = texts("impersonate-uid").into_iter().next().unwrap_or_default();
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
            user.extra.insert(percent_decode(key), texts(name.as_str()));
        }
    }
    user.name = texts("impersonate-user").into_iter().next().unwrap_or_default();
    if user.name.is_empty() {
        if user.groups.is_empty() && user.uid.is_empty() && user.extra.is_empty() {
            return Ok(None);
        }
        let what = format!("requested {:?} without impersonating a user name", user.groups);
        return Err(Status::internal(what));
    }
    if let Some(rest) = user.name.strip_prefix("system:serviceaccount:")
        && let Some((namespace, _)) = rest.split_once(':')
        && user.groups.is_empty()
    {
        user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    if user.name == "system:anonymous" {
        user.groups.push(UNAUTHENTICATED.into());
    } else if !user.is_in(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    Ok(Some(user))
}

fn percent_decode(text: &str) -> String {
    super::http::request::percent_decode(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_tokens_come_from_the_header_or_the_websocket_protocol() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer abc".parse().expect("a header"));
        assert_eq!(bearer_token(&headers).as_deref(), Some("abc"));
        let mut headers = HeaderMap::new();
        let protocols = "base64url.bearer.authorization.k8s.io.YWJj, v5.channel.k8s.io";
        headers.insert("sec-websocket-protocol", protocols.parse().expect("a header"));
        assert_eq!(bearer_token(&headers).as_deref(), Some("abc"));
    }

    #[test]
    fn impersonated_service_accounts_get_their_groups() {
        let mut headers = HeaderMap::new();
        headers.insert("impersonate-user", "system:serviceaccount:a:b".parse().expect("a header"));
        let user = impersonated(&headers).expect("valid").expect("a user");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:a", AUTHENTICATED]);
    }
}
