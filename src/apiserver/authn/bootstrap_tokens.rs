//! Bootstrap tokens (`plugin/pkg/auth/authenticator/token/bootstrap`): `abcdef.0123456789abcdef`, each a Secret in `kube-system`,
//! by which a machine that has no identity yet asks for one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::{AUTHENTICATED, User, constant_time_equal};
use crate::api::{StatusResult, meta};
use crate::apiserver::{ApiServer, registry};

/// The group of all who come with such a token.
const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// The id and the secret of a token of this form.
pub(super) fn parse(token: &str) -> Option<(&str, &str)> {
    let fits = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    token.split_once('.').filter(|(id, secret)| fits(id, 6) && fits(secret, 16))
}

/// The user of a token; `None`: there is no such token, or it does not hold.
pub(super) async fn user(server: &ApiServer, id: &str, secret: &str) -> StatusResult<Option<User>> {
    let key = registry::key("", "secrets", "kube-system", &format!("bootstrap-token-{id}"));
    let entry = server.storage.get(&key).await.map_err(registry::storage_failed)?;
    Ok(entry.and_then(|entry| user_of(&entry.value(), id, secret, server.env.now())))
}

fn user_of(object: &Value, id: &str, secret: &str, now: Timestamp) -> Option<User> {
    let data = |field: &str| {
        let bytes = STANDARD.decode(object["data"][field].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let is_token = object["type"] == "bootstrap.kubernetes.io/token" && !meta::is_terminating(object);
    let known = constant_time_equal(data("token-secret")?.as_bytes(), secret.as_bytes());
    if !is_token || !known || data("token-id")? != id || data("usage-bootstrap-authentication")? != "true" {
        return None;
    }
    if let Some(expiration) = data("expiration").filter(|text| !text.is_empty()) {
        // A time that cannot be read has passed.
        if !expiration.parse::<Timestamp>().is_ok_and(|at| at > now) {
            return None;
        }
    }
    let extra = data("auth-extra-groups").unwrap_or_default();
    let extra: Vec<&str> = extra.split(',').filter(|group| !group.is_empty()).collect();
    if extra.iter().any(|group| !is_group(group)) {
        return None;
    }
    let mut groups = extra;
    groups.push(BOOTSTRAPPERS);
    groups.sort_unstable();
    groups.dedup();
    groups.push(AUTHENTICATED);
    Some(User::new(&format!("system:bootstrap:{id}"), &groups))
}

/// `\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`
fn is_group(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("system:bootstrappers:") else { return false };
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    rest.len() <= 256
        && rest.bytes().all(|b| word(b) || b == b':' || b == b'-')
        && rest.bytes().last().is_some_and(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(change: impl FnOnce(&mut Value)) -> Option<Vec<String>> {
        let text = |text: &str| Value::from(STANDARD.encode(text));
        let mut secret = json!({"type": "bootstrap.kubernetes.io/token", "data": {
            "token-id": text("abcdef"), "token-secret": text("0123456789abcdef"),
            "usage-bootstrap-authentication": text("true"), "expiration": text("2026-01-02T00:00:00Z"),
            "auth-extra-groups": text("system:bootstrappers:kubeadm:default-node-token"),
        }});
        change(&mut secret);
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let user = user_of(&secret, "abcdef", "0123456789abcdef", now)?;
        assert_eq!(user.name, "system:bootstrap:abcdef");
        Some(user.groups)
    }

    #[test]
    fn tokens_hold_until_they_expire_and_for_what_they_are() {
        let groups =
            ["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"];
        assert_eq!(check(|_| {}), Some(groups.map(str::to_owned).to_vec()));
        let set = |field: &'static str, text: &'static str| {
            check(move |secret| secret["data"][field] = STANDARD.encode(text).into())
        };
        assert_eq!(set("expiration", "2025-12-31T00:00:00Z"), None);
        assert_eq!(set("expiration", "soon"), None);
        assert_eq!(set("token-secret", "0123456789abcdee"), None);
        assert_eq!(set("token-id", "abcdee"), None);
        assert_eq!(set("usage-bootstrap-authentication", "false"), None);
        assert_eq!(set("auth-extra-groups", "system:masters"), None);
        assert_eq!(check(|secret| secret["type"] = "Opaque".into()), None);
        assert_eq!(check(|secret| secret["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()), None);
        assert!(check(|secret| drop(secret["data"].as_object_mut().map(|d| d.remove("expiration")))).is_some());
    }

    #[test]
    fn other_tokens_are_none_of_these() {
        assert_eq!(parse("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for other in ["abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "abcdef0123456789abcdef", "a.b.c", ""] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
