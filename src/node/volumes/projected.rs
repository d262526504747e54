//! `projected` volumes: several sources in one directory. Pure; tokens are requested before.

use k8s_openapi::api::core::v1 as core;

use super::atomic_writer::{File, Payload};
use super::{Sources, config_map, downward_api, secret};

/// A service account token that a volume asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenKey {
    /// The service account.
    pub account: String,
    /// Empty: the API server's.
    pub audience: String,
    /// `expirationSeconds`
    pub seconds: i64,
}

/// The tokens that a volume needs.
pub fn tokens(pod: &core::Pod, source: &core::ProjectedVolumeSource) -> Vec<TokenKey> {
    let tokens = source.sources.iter().flatten().filter_map(|s| s.service_account_token.as_ref());
    tokens.map(|t| token_key(pod, t)).collect()
}

fn token_key(pod: &core::Pod, token: &core::ServiceAccountTokenProjection) -> TokenKey {
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default();
    TokenKey {
        account: if account.is_empty() { "default".to_owned() } else { account },
        audience: token.audience.clone().unwrap_or_default(),
        seconds: token.expiration_seconds.unwrap_or(3600),
    }
}

/// The files of all sources.
///
/// # Errors
/// The kubelet's message; those of several sources in brackets.
pub fn payload(source: &core::ProjectedVolumeSource, sources: &Sources<'_>) -> Result<Payload, String> {
    let mode = source.default_mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(0o644);
    let mut files = Payload::new();
    let mut errors = Vec::new();
    for part in source.sources.iter().flatten() {
        match one(part, mode, sources) {
            Ok(more) => files.extend(more),
            Err(error) => errors.push(error),
        }
    }
    match errors.len() {
        0 => Ok(files),
        1 => Err(errors.remove(0)),
        _ => Err(format!("[{}]", errors.join(", "))),
    }
}

fn one(part: &core::VolumeProjection, mode: u32, sources: &Sources<'_>) -> Result<Payload, String> {
    if let Some(map) = &part.config_map {
        let object = (sources.lookup)("configmaps", &map.name);
        return config_map::payload(
            object.as_deref(),
            &map.name,
            map.items.as_deref(),
            mode,
            map.optional == Some(true),
        );
    }
    if let Some(s) = &part.secret {
        let object = (sources.lookup)("secrets", &s.name);
        return secret::payload(object.as_deref(), &s.name, s.items.as_deref(), mode, s.optional == Some(true));
    }
    if let Some(fields) = &part.downward_api {
        return downward_api::payload(sources.pod, sources.facts, fields.items.as_deref(), mode);
    }
    if let Some(token) = &part.service_account_token {
        let data = (sources.token)(&token_key(sources.pod, token))
            .ok_or_else(|| "failed to fetch token: no token was issued".to_owned())?;
        return Ok(Payload::from([(token.path.clone(), File { data: data.into_bytes(), mode })]));
    }
    let source = if part.cluster_trust_bundle.is_some() { "clusterTrustBundle" } else { "podCertificate" };
    Err(format!("projected volume source {source} is not supported by this node"))
}
