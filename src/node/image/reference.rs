//! Image names: parsing and normalisation as Docker's `reference` package does, and credentials for them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Credential, ImageError};

/// The registry that names without one mean.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// A full image name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// `docker.io`, `localhost:5000`, …
    pub registry: String,
    /// `library/busybox`
    pub repository: String,
    /// `latest` when neither a tag nor a digest is given.
    pub tag: Option<String>,
    /// `sha256:…`
    pub digest: Option<String>,
}

impl Reference {
    /// Parses and normalises a name: `busybox` is `docker.io/library/busybox:latest`.
    ///
    /// # Errors
    /// When it is not a valid image name, in the words of containerd.
    pub fn parse(name: &str) -> Result<Self, ImageError> {
        let invalid = |reason: &str| ImageError::InvalidName { name: name.to_owned(), reason: reason.to_owned() };
        if name.is_empty() {
            return Err(invalid("invalid reference format"));
        }
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.to_owned())),
            None => (name, None),
        };
        if digest.as_deref().is_some_and(|d| !is_digest(d)) {
            return Err(invalid("invalid reference format"));
        }
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag.to_owned())),
            _ => (rest, None),
        };
        if tag.as_deref().is_some_and(|t| !is_tag(t)) {
            return Err(invalid("invalid reference format"));
        }
        let (registry, repository) = match rest.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (first.to_owned(), rest.to_owned())
            }
            _ => (DEFAULT_REGISTRY.to_owned(), rest.to_owned()),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY.to_owned() } else { registry };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        if !is_registry(&registry) {
            return Err(invalid("invalid reference format"));
        }
        if repository.to_ascii_lowercase() != repository {
            return Err(invalid("invalid reference format: repository name must be lowercase"));
        }
        if repository.len() + registry.len() > 255 {
            return Err(invalid("repository name must not be more than 255 characters"));
        }
        if !repository.split('/').all(is_component) {
            return Err(invalid("invalid reference format"));
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry, repository, tag, digest })
    }

    /// `docker.io/library/busybox`
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What the registry is asked for: the digest when there is one, else the tag.
    pub fn target(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => write!(f, "@{digest}"),
            (Some(tag), None) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

/// Whether this is `sha256:` and 64 lower-case hexadecimal digits (the only algorithm that is used).
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !text.is_empty()
        && text.len() <= 128
        && text.bytes().enumerate().all(|(i, b)| word(b) || (i > 0 && (b == b'.' || b == b'-')))
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    port.is_none_or(|p| p.parse::<u16>().is_ok())
        && host.split('.').all(|part| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().copied().is_some_and(alnum) || !bytes.last().copied().is_some_and(alnum) {
        return false;
    }
    bytes
        .split(|&b| alnum(b))
        .filter(|s| !s.is_empty())
        .all(|sep| matches!(sep, b"." | b"_" | b"__") || sep.iter().all(|&b| b == b'-'))
}

/// The credentials for an image in a `.dockerconfigjson` (or legacy `.dockercfg`) document, best match first.
/// Keys match as the kubelet's do: host with optional scheme and path, `*` in host labels.
pub fn credentials(docker_config: &[u8], image: &Reference) -> Vec<Credential> {
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(docker_config) else { return Vec::new() };
    let Some(entries) = document.get("auths").unwrap_or(&document).as_object() else { return Vec::new() };
    let mut found: Vec<(usize, Credential)> =
        entries.iter().filter_map(|(key, value)| Some((match_key(key, image)?, credential(value)?))).collect();
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, credential)| credential).collect()
}

/// How well a key of a docker configuration fits: the length of its path; `None`: not at all.
fn match_key(key: &str, image: &Reference) -> Option<usize> {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = path.trim_end_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let host = if host == "index.docker.io" { DEFAULT_REGISTRY } else { host };
    let (labels, wanted): (Vec<_>, Vec<_>) = (host.split('.').collect(), image.registry.split('.').collect());
    let fits = labels.len() == wanted.len() && labels.iter().zip(&wanted).all(|(pattern, label)| glob(pattern, label));
    let below = path.is_empty()
        || image.repository == path
        || image.repository.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    (fits && below).then_some(path.len())
}

fn glob(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => {
            label.len() >= before.len() + after.len() && label.starts_with(before) && label.ends_with(after)
        }
    }
}

fn credential(value: &serde_json::Value) -> Option<Credential> {
    let text = |name: &str| value.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let mut credential = Credential {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
    };
    if credential.username.is_empty() {
        let decoded = STANDARD.decode(text("auth").trim()).ok().and_then(|b| String::from_utf8(b).ok());
        if let Some((user, password)) = decoded.as_deref().and_then(|d| d.split_once(':')) {
            credential.username = user.to_owned();
            credential.password = password.trim_end_matches('\0').to_owned();
        }
    }
    (credential != Credential::default()).then_some(credential)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (name, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("me/app", "docker.io/me/app:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x/y:t", "localhost:5000/x/y:t"),
            ("registry.k8s.io/e2e-test-images/agnhost:2.53", "registry.k8s.io/e2e-test-images/agnhost:2.53"),
            (&format!("busybox@{digest}"), &format!("docker.io/library/busybox@{digest}")),
            (&format!("busybox:1@{digest}"), &format!("docker.io/library/busybox@{digest}")),
        ] {
            assert_eq!(Reference::parse(name).map(|r| r.to_string()).ok().as_deref(), Some(expected), "{name}");
        }
    }

    #[test]
    fn invalid_names_are_refused() {
        for name in ["", "UPPER", "a b", "a:", "a//b", "-a", "a@sha256:12", "a:tag:tag/", "x..y/../z", "a/../b", "a:-t"]
        {
            assert!(matches!(Reference::parse(name), Err(ImageError::InvalidName { .. })), "{name}");
        }
    }

    #[test]
    fn credentials_match_by_host_and_path() {
        let config = br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"reg.example:5000/team":{"username":"a","password":"b"},"*.example.org":{"auth":"eDp5"}}}"#;
        let user = |name: &str| {
            let found = credentials(config, &Reference::parse(name).expect("a valid name"));
            found.first().map(|c| c.username.clone())
        };
        assert_eq!(user("busybox").as_deref(), Some("u"));
        assert_eq!(user("reg.example:5000/team/x").as_deref(), Some("a"));
        assert_eq!(user("reg.example:5000/teamx/x"), None);
        assert_eq!(user("eu.example.org/x").as_deref(), Some("x"));
    }
}
