//! Bootstrap tokens as controllers see them: Secrets of a type and a name of their own in `kube-system`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::client::typed::Meta;

/// Where they are.
pub const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";

/// Whether a Secret is a token.
pub fn is_token(secret: &Secret) -> bool {
    secret.namespace() == NAMESPACE && secret.type_.as_deref() == Some(TYPE)
}

/// A text of its data.
pub fn data<'a>(secret: &'a Secret, field: &str) -> Option<&'a str> {
    std::str::from_utf8(&secret.data.as_ref()?.get(field)?.0).ok()
}

/// When it ends; `None`: never. A time that cannot be read has passed.
pub fn expiration(secret: &Secret) -> Option<Timestamp> {
    let text = data(secret, "expiration").filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The id and the secret of a token that signs at this time.
pub fn signs(secret: &Secret, now: Timestamp) -> Option<(&str, &str)> {
    if !is_token(secret) || secret.is_terminating() || expiration(secret).is_some_and(|at| at <= now) {
        return None;
    }
    if data(secret, "usage-bootstrap-signing") != Some("true") {
        return None;
    }
    let id = data(secret, "token-id").filter(|id| secret.name().strip_prefix(PREFIX) == Some(*id))?;
    Some((id, data(secret, "token-secret").filter(|secret| !secret.is_empty())?))
}
