//! Lists: selectors, pages with consistent continue tokens, resourceVersion semantics.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{kind_prefix, storage_failed};
use crate::api::{Kind, Status, StatusResult};
use crate::apiserver::ApiServer;
use crate::apiserver::selector::Selection;
use crate::storage::{Entry, Error};

/// Which part of a list, and how old it may be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    pub limit: usize,
    pub token: String,
    pub resource_version: String,
    pub version_match: String,
}

/// A part of a list.
pub(crate) struct Listed {
    pub entries: Vec<Arc<Entry>>,
    pub revision: u64,
    /// `metadata.continue`; empty at the end.
    pub token: String,
    pub remaining: Option<usize>,
}

impl Page {
    /// Checks the combination of parameters (`ValidateListOptions`).
    pub fn validate(&self) -> StatusResult<()> {
        let invalid = |field: &str, detail: String| {
            let error =
                crate::api::status::FieldError { reason: "FieldValueForbidden", field: field.into(), message: detail };
            Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]))
        };
        if self.version_match.is_empty() {
            return Ok(());
        }
        if !["Exact", "NotOlderThan"].contains(&self.version_match.as_str()) {
            let error = crate::api::status::FieldError::not_supported(
                "resourceVersionMatch",
                &json!(self.version_match),
                &["Exact", "NotOlderThan", ""],
            );
            return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]));
        }
        if !self.token.is_empty() {
            return invalid(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden when continue is provided".into(),
            );
        }
        if self.resource_version.is_empty() {
            return invalid(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided".into(),
            );
        }
        if self.version_match == "Exact" && self.resource_version == "0" {
            return invalid(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"".into(),
            );
        }
        Ok(())
    }
}

/// Reads a resourceVersion; empty is 0.
pub(crate) fn parse_version(text: &str) -> StatusResult<u64> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        let detail = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        Status::bad_request(format!("invalid resource version {text:?}: {detail}"))
    })
}

/// A version from the future.
pub(crate) fn too_large(asked: u64, current: u64) -> Status {
    let mut status =
        Status::new(504, "Timeout", format!("Timeout: Too large resource version: {asked}, current: {current}"));
    status.details = json!({
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1,
    });
    status
}

impl ApiServer {
    /// The objects of a kind (in a namespace, or in all when it is empty) that match.
    pub(crate) async fn list(
        &self,
        kind: &Kind,
        namespace: &str,
        selection: &Selection,
        page: &Page,
    ) -> StatusResult<Listed> {
        page.validate()?;
        let prefix = kind_prefix(kind, namespace);
        let version = parse_version(&page.resource_version);
        let (after, asked) = if page.token.is_empty() {
            let version = version?;
            let current = self.storage.revision().await.map_err(storage_failed)?;
            if version > current {
                return Err(too_large(version, current));
            }
            let exact =
                page.version_match == "Exact" || (page.version_match.is_empty() && page.limit > 0 && version > 0);
            (None, if exact { version } else { 0 })
        } else {
            if !page.resource_version.is_empty() && page.resource_version != "0" {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            let (start, revision) = decode_token(&page.token)?;
            (Some(format!("{prefix}{}", start.trim_end_matches('\0'))), revision)
        };
        let limit = if selection.is_everything() { page.limit } else { 0 };
        let listing = self.storage.list(&prefix, after.as_deref(), limit, asked).await;
        let listing = listing.map_err(|error| match (error, &after) {
            (Error::Compacted { .. }, Some(after)) => expired_token(after.strip_prefix(&prefix).unwrap_or_default()),
            (other, _) => storage_failed(other),
        })?;
        let revision = listing.revision;
        let mut entries = self.all_in_version(kind, listing.entries).await?;
        let (mut more, mut remaining) = (listing.more, listing.more.then_some(listing.remaining));
        if !selection.is_everything() {
            entries.retain(|entry| selection.matches(kind, &entry.value()));
            if page.limit > 0 && entries.len() > page.limit {
                entries.truncate(page.limit);
                more = true;
            }
            remaining = None;
        }
        let token = match entries.last().filter(|_| more && page.limit > 0) {
            Some(last) => encode_token(last.key.strip_prefix(&prefix).unwrap_or_default(), revision.into()),
            None => String::new(),
        };
        if token.is_empty() {
            remaining = None;
        }
        Ok(Listed { entries, revision, token, remaining })
    }
}

/// `{"v":"meta.k8s.io/v1","rv":…,"start":…}` (`pkg/storage/continue.go`); -1: whatever version there is then.
fn encode_token(last: &str, revision: i128) -> String {
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision as i64, "start": format!("{last}\0")});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

fn decode_token(token: &str) -> StatusResult<(String, u64)> {
    let invalid = |why: &str| Status::bad_request(format!("continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|e| invalid(&e.to_string()))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| invalid(&e.to_string()))?;
    if value["v"] != "meta.k8s.io/v1" {
        let version = &value["v"];
        let why = format!(
            "invalid continue token: continue key is not valid: server does not recognize this encoded version {version}"
        );
        return Err(Status::bad_request(why));
    }
    // A negative version goes on with what there is now.
    let revision = match value["rv"].as_i64() {
        Some(rv) if rv > 0 => rv.unsigned_abs(),
        Some(rv) if rv < 0 => 0,
        _ => return Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)")),
    };
    let start = value["start"]
        .as_str()
        .filter(|s| !s.is_empty())
        .ok_or_else(|| invalid("encoded start key empty (version meta.k8s.io/v1)"))?;
    if start.split('/').any(|part| part == "..") {
        return Err(invalid("incorrect encoded start key"));
    }
    Ok((start.to_owned(), revision))
}

/// 410 for a token whose version is gone, with a token that goes on after `last` at another version
/// (`handleCompactedErrorForPaging`).
fn expired_token(last: &str) -> Status {
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
         the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
         Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
         deleted between the time the first chunk was returned and now may show up in the list.",
    );
    status.continue_token = encode_token(last, -1);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_come_back_and_strange_ones_are_refused() {
        let token = encode_token("default/a", 7);
        assert_eq!(decode_token(&token), Ok(("default/a\0".to_owned(), 7)));
        assert_eq!(decode_token("!!").expect_err("refused").code, 400);
        assert_eq!(decode_token(&encode_token("default/a", -1)), Ok(("default/a\0".to_owned(), 0)));
        let climbing = URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":7,"start":"../x"}"#);
        assert_eq!(decode_token(&climbing).expect_err("refused").code, 400);
    }
}
