//! What a URL asks for: the `RequestInfo` of kube-apiserver.

use std::borrow::Cow;

use crate::api::{Status, StatusResult};

/// A request as authorisation, admission and metrics see it (`pkg/endpoints/request/requestinfo.go`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether it is about an API resource.
    pub is_resource: bool,
    /// The path, decoded.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the lower-case method for other paths.
    pub verb: String,
    /// API group; empty: core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; empty for cluster-scoped requests.
    pub namespace: String,
    /// Resource.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Name.
    pub name: String,
    /// What follows the subresource (for proxies), with its leading slash; not decoded.
    pub rest: String,
    /// `fieldSelector` of a list, watch or deletecollection.
    pub field_selector: String,
}

impl RequestInfo {
    /// Reads method, path (not yet percent-decoded) and query. An encoded slash parts a path like any other, as in Go, where
    /// everybody looks at the decoded path.
    pub fn new(method: &http::Method, path: &str, query: &Query) -> Self {
        let verb = method.as_str().to_lowercase();
        let path = with_plain_slashes(path);
        let mut info = Self { path: percent_decode(&path), verb, ..Self::default() };
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let groups = match parts[0] {
            "api" => 0,
            "apis" => 1,
            _ => return info,
        };
        if let Some(group) = parts.get(1).filter(|_| groups == 1) {
            info.group = percent_decode(group);
        }
        info.version = parts.get(1 + groups).map(|version| percent_decode(version)).unwrap_or_default();
        if parts.len() < 3 + groups {
            return info;
        }
        parts.drain(..2 + groups);
        if parts[0] == "watch" && parts.len() > 1 {
            parts.remove(0);
            info.verb = "watch".to_owned();
        } else {
            info.verb = match method.as_str() {
                "POST" => "create",
                "GET" | "HEAD" => "get",
                "PUT" => "update",
                "PATCH" => "patch",
                "DELETE" => "delete",
                _ => "",
            }
            .to_owned();
        }
        info.is_resource = true;
        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace = percent_decode(parts[1]);
            // `namespaces/x/status` and `…/finalize` are subresources of the Namespace; all else lies in it.
            if parts.len() > 2 && !["status", "finalize"].contains(&parts[2]) {
                parts.drain(..2);
            }
        }
        let part = |index: usize| parts.get(index).map(|part| percent_decode(part)).unwrap_or_default();
        (info.resource, info.name, info.subresource) = (part(0), part(1), part(2));
        if parts.len() > 3 {
            info.rest = format!("/{}", parts[3..].join("/"));
            if path.ends_with('/') {
                info.rest.push('/');
            }
        } else if parts.len() == 3 && path.ends_with('/') {
            info.rest = "/".into();
        }
        if info.name.is_empty() && info.verb == "get" {
            info.verb = if query.flag("watch") { "watch" } else { "list" }.to_owned();
        } else if info.verb == "get" && query.flag("watch") && info.subresource.is_empty() {
            // Kubernetes keeps `get` here; the object is returned.
        } else if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".to_owned();
        }
        if info.name.is_empty() && ["list", "watch", "deletecollection"].contains(&info.verb.as_str()) {
            info.field_selector = query.text("fieldSelector").to_owned();
            // A selector for one name is authorised as that name, but nobody deletes a collection by name.
            if info.verb != "deletecollection"
                && let Some(name) = only_name(&info.field_selector)
            {
                info.name = name;
            }
        }
        info
    }

    /// `apps/v1` or `v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// The name that a field selector selects, when that is all it says.
pub fn only_name(selector: &str) -> Option<String> {
    let name = selector.strip_prefix("metadata.name=")?;
    let name = name.strip_prefix('=').unwrap_or(name);
    (!name.is_empty() && !name.contains([',', '=', '!', '\\'])).then(|| name.to_owned())
}

/// The parameters of a query, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what follows the `?`.
    pub fn new(text: &str) -> Self {
        let pairs = text.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (percent_decode(&key.replace('+', " ")), percent_decode(&value.replace('+', " ")))
        });
        Self(pairs.collect())
    }
    /// From pairs that are decoded already.
    pub fn from_pairs(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }
    /// The same without a parameter.
    pub fn without(&self, key: &str) -> Self {
        Self(self.0.iter().filter(|(k, _)| k != key).cloned().collect())
    }
    /// The first value of a parameter.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
    /// All values of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }
    /// The first value, or an empty text.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }
    /// A boolean as `Convert_Slice_string_To_bool` reads it: present and neither `false` nor `0`.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !["false", "0"].contains(&value.to_lowercase().as_str()))
    }
    /// A whole number.
    ///
    /// # Errors
    /// 400 as Go's `strconv.ParseInt` words it.
    pub fn integer(&self, key: &str) -> StatusResult<Option<i64>> {
        let Some(text) = self.get(key).filter(|text| !text.is_empty()) else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
    }
}

/// A path where every slash is written as one, so that it has the same parts before and after it is decoded.
pub fn with_plain_slashes(path: &str) -> Cow<'_, str> {
    if path.contains("%2F") || path.contains("%2f") {
        return path.replace("%2F", "/").replace("%2f", "/").into();
    }
    path.into()
}

/// `%41` to `A`; invalid sequences stay, invalid UTF-8 is replaced.
pub fn percent_decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: u8| (b as char).to_digit(16);
        if bytes[i] == b'%'
            && let (Some(high), Some(low)) =
                (bytes.get(i + 1).and_then(|b| hex(*b)), bytes.get(i + 2).and_then(|b| hex(*b)))
        {
            out.push((high * 16 + low) as u8);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: &str, path: &str, query: &str) -> (String, String, String, String, String, String) {
        let i = RequestInfo::new(&method.parse().expect("a method"), path, &Query::new(query));
        (i.verb, i.group, i.namespace, i.resource, i.subresource, i.name)
    }

    fn expect(
        verb: &str,
        group: &str,
        namespace: &str,
        resource: &str,
        sub: &str,
        name: &str,
    ) -> (String, String, String, String, String, String) {
        (verb.into(), group.into(), namespace.into(), resource.into(), sub.into(), name.into())
    }

    #[test]
    fn as_requestinfo_test_go_has_it() {
        assert_eq!(info("GET", "/api/v1/namespaces", ""), expect("list", "", "", "namespaces", "", ""));
        assert_eq!(info("GET", "/api/v1/namespaces/other", ""), expect("get", "", "other", "namespaces", "", "other"));
        assert_eq!(info("GET", "/api/v1/namespaces/other/pods", ""), expect("list", "", "other", "pods", "", ""));
        assert_eq!(info("GET", "/api/v1/namespaces/other/pods/foo", ""), expect("get", "", "other", "pods", "", "foo"));
        assert_eq!(
            info("DELETE", "/api/v1/namespaces/other/pods", ""),
            expect("deletecollection", "", "other", "pods", "", "")
        );
        assert_eq!(
            info("PUT", "/api/v1/namespaces/other/finalize", ""),
            expect("update", "", "other", "namespaces", "finalize", "other")
        );
        assert_eq!(
            info("GET", "/apis/apps/v1/deployments", "watch=1"),
            expect("watch", "apps", "", "deployments", "", "")
        );
        assert_eq!(
            info("GET", "/api/v1/watch/namespaces/other/pods", ""),
            expect("watch", "", "other", "pods", "", "")
        );
        let by_name = |method: &str| info(method, "/api/v1/namespaces/a/pods", "fieldSelector=metadata.name%3Dx");
        assert_eq!(by_name("GET"), expect("list", "", "a", "pods", "", "x"));
        assert_eq!(by_name("DELETE"), expect("deletecollection", "", "a", "pods", "", ""));
    }

    #[test]
    fn the_rest_of_a_proxy_path_is_kept() {
        let check = |rest: &str, expected: &str| {
            let path = format!("/api/v1/namespaces/a/services/http:web:80/proxy{rest}");
            let info = RequestInfo::new(&http::Method::GET, &path, &Query::default());
            assert_eq!(
                (info.name.as_str(), info.subresource.as_str(), info.rest.as_str()),
                ("http:web:80", "proxy", expected),
                "{path}"
            );
        };
        check("", "");
        check("/", "/");
        check("/x/y/", "/x/y/");
        check("/x//y%20z%3F%2Fw", "/x//y%20z%3F/w");
    }

    #[test]
    fn encoded_slashes_part_the_path() {
        // `http.Request.URL.Path` is decoded before anything looks at it.
        assert_eq!(
            info("GET", "/apis%2Fmetrics.example.com/v1/x", ""),
            expect("list", "metrics.example.com", "", "x", "", "")
        );
        assert_eq!(info("GET", "/api/v1/namespaces/a/pods/p%2Flog", ""), expect("get", "", "a", "pods", "log", "p"));
        assert_eq!(info("GET", "/api/v1/namespaces%2Fa%2fsecrets/s", ""), expect("get", "", "a", "secrets", "", "s"));
        // Decoded once only.
        assert_eq!(info("GET", "/api/v1/nodes/a%252Fb", ""), expect("get", "", "", "nodes", "", "a%2Fb"));
        // `splitPath` keeps empty parts.
        assert_eq!(info("GET", "/api/v1/namespaces//pods", ""), expect("list", "", "", "pods", "", ""));
        let empty = RequestInfo::new(&http::Method::GET, "/apis//metrics.example.com/v1", &Query::default());
        assert_eq!((empty.group.as_str(), empty.version.as_str()), ("", "metrics.example.com"));
    }
}
