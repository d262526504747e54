//! `/api`, `/apis` and below: classic discovery and the aggregated form (v2).

use std::collections::BTreeMap;

use axum::body::Body;
use base64::Engine as _;
use http::{HeaderMap, HeaderValue, Response};
use serde_json::{Value, json};
use sha2::Digest as _;

use super::http::responses::{self, Format};
use super::{ApiServer, aggregation};
use crate::api::Kind;
use crate::api::kind::Subresource;

/// A version of a group.
struct Version {
    name: String,
    /// The entries of its `APIResourceList`.
    resources: Vec<Value>,
    /// Its place among its group's (`versionPriority`).
    priority: i64,
    /// Whether its backend does not answer.
    stale: bool,
}

/// Groups with their versions, the preferred ones first.
type Groups = Vec<(String, Vec<Version>)>;

/// Groups in the making.
#[derive(Default)]
struct Collected(BTreeMap<String, (i64, Vec<Version>)>);

impl Collected {
    fn add(&mut self, group: &str, version: &str, priority: (i64, i64), resources: Vec<Value>, stale: bool) {
        let (highest, versions) = self.0.entry(group.to_owned()).or_default();
        *highest = priority.0.max(*highest);
        match versions.iter_mut().find(|known| known.name == version) {
            Some(known) => known.resources.extend(resources),
            None => versions.push(Version { name: version.to_owned(), resources, priority: priority.1, stale }),
        }
    }

    /// In the order in which clients prefer them: by the priorities of their APIServices, then by name.
    fn sorted(self) -> Groups {
        let mut groups: Vec<_> = self.0.into_iter().collect();
        groups.sort_by_key(|(_, (priority, _))| std::cmp::Reverse(*priority));
        let sort = |(group, (_, mut versions)): (String, (i64, Vec<Version>))| {
            versions.sort_by_key(|version| std::cmp::Reverse((version.priority, priority(&version.name))));
            for version in &mut versions {
                // Subresources are in the order of their kind.
                let base =
                    |entry: &Value| entry["name"].as_str().and_then(|name| name.split('/').next()).map(str::to_owned);
                version.resources.sort_by_key(base);
            }
            (group, versions)
        };
        groups.into_iter().map(sort).collect()
    }
}

impl ApiServer {
    /// All groups with their versions and the entries of their `APIResourceList`.
    fn groups(&self) -> Groups {
        let mut groups = Collected::default();
        let backends = self.aggregation.registered(self.env.now());
        let is_backends =
            |group: &str, version: &str| backends.iter().any(|b| b.group == group && b.version == version);
        for kind in self.kinds.snapshot().all.iter() {
            let (group, version) = (&*kind.gvr.group, &*kind.gvr.version);
            if !is_backends(group, version) {
                groups.add(group, version, aggregation::priority(group, version), resources(kind), false);
            }
        }
        for ((group, version), api) in self.options.aggregated.all() {
            if !is_backends(&group, &version) {
                groups.add(&group, &version, aggregation::priority(&group, &version), api.resources(), false);
            }
        }
        for backend in backends {
            groups.add(&backend.group, &backend.version, backend.priority, backend.resources, backend.stale);
        }
        groups.sorted()
    }

    /// Answers a discovery path; `None` when nothing is served there.
    pub(crate) fn discover(&self, path: &str, headers: &HeaderMap, format: Format) -> Option<Response<Body>> {
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        if let (["api"] | ["apis"], Some(version)) = (&parts[..], aggregated_version(headers)) {
            return Some(self.aggregated(parts[0] == "api", version));
        }
        let object = match parts[..] {
            ["api"] => json!({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": self.address()}],
            }),
            ["apis"] => {
                let groups: Vec<Value> = self
                    .groups()
                    .iter()
                    .filter(|(g, _)| !g.is_empty())
                    .map(|(g, versions)| group(g, versions, false))
                    .collect();
                json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
            }
            ["apis", name] => {
                let groups = self.groups();
                let (name, versions) = groups.iter().find(|(g, _)| !g.is_empty() && g == name)?;
                group(name, versions, true)
            }
            ["api", version] => self.resource_list("", version)?,
            ["apis", name, version] if !name.is_empty() => self.resource_list(name, version)?,
            _ => return None,
        };
        Some(responses::object(200, format, &object))
    }

    fn address(&self) -> String {
        format!("{}:{}", self.options.endpoint.0, self.options.endpoint.1)
    }

    fn resource_list(&self, group: &str, version: &str) -> Option<Value> {
        let groups = self.groups();
        let (_, versions) = groups.iter().find(|(g, _)| g == group)?;
        let resources = &versions.iter().find(|known| known.name == version)?.resources;
        if group.is_empty() {
            return Some(json!({"kind": "APIResourceList", "groupVersion": version, "resources": resources}));
        }
        Some(json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{group}/{version}"), "resources": resources,
        }))
    }

    /// `APIGroupDiscoveryList`.
    fn aggregated(&self, core: bool, version: &str) -> Response<Body> {
        let items: Vec<Value> = self
            .groups()
            .iter()
            .filter(|(g, _)| g.is_empty() == core)
            .map(|(g, versions)| {
                let version = |known: &Version| {
                    let resources = aggregated_resources(g, &known.name, &known.resources);
                    let freshness = if known.stale { "Stale" } else { "Current" };
                    json!({"version": known.name, "resources": resources, "freshness": freshness})
                };
                let versions: Vec<Value> = versions.iter().map(version).collect();
                let metadata = if g.is_empty() {
                    json!({"creationTimestamp": null})
                } else {
                    json!({"name": g, "creationTimestamp": null})
                };
                json!({"metadata": metadata, "versions": versions})
            })
            .collect();
        let list = json!({
            "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items,
        });
        let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        let body = list.to_string();
        let etag = hex(&sha2::Sha512::digest(body.as_bytes())).to_uppercase();
        let mut response = responses::answer(200, HeaderValue::from_str(&content_type).expect("a fixed text"), body);
        let headers = response.headers_mut();
        headers.insert(http::header::ETAG, HeaderValue::from_str(&format!("\"{etag}\"")).expect("hexadecimal digits"));
        headers.insert(http::header::VARY, HeaderValue::from_static("Accept"));
        headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("public"));
        response
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether the client takes aggregated discovery, and in which version.
fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get_all(http::header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    for clause in accept.flat_map(|v| v.split(',')) {
        let has = |text: &str| clause.split(';').any(|part| part.trim() == text);
        if has("application/json") && has("g=apidiscovery.k8s.io") && has("as=APIGroupDiscoveryList") {
            if has("v=v2") {
                return Some("v2");
            }
            if has("v=v2beta1") {
                return Some("v2beta1");
            }
        }
        // A plain clause that comes first is what the client prefers.
        if clause.trim() == "application/json" {
            return None;
        }
    }
    None
}

fn group(name: &str, versions: &[Version], alone: bool) -> Value {
    let version = |known: &Version| json!({"groupVersion": format!("{name}/{}", known.name), "version": known.name});
    let versions: Vec<Value> = versions.iter().map(version).collect();
    let mut object = json!({"name": name, "versions": versions, "preferredVersion": versions.first()});
    if alone {
        object["kind"] = "APIGroup".into();
        object["apiVersion"] = "v1".into();
    }
    object
}

/// GA before beta before alpha, and higher numbers first (`version.CompareKubeAwareVersionStrings`).
fn priority(version: &str) -> (u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = |text: &str| text.parse::<u32>().unwrap_or(0);
    for (level, word) in [(2, "beta"), (1, "alpha")] {
        if let Some((major, minor)) = rest.split_once(word) {
            return (level, digits(major), digits(minor));
        }
    }
    (3, digits(rest), 0)
}

/// The discovery entries of a kind: itself and its subresources.
fn resources(kind: &Kind) -> Vec<Value> {
    let gvr = &kind.gvr;
    let mut own = json!({
        "name": gvr.resource, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind, "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        own["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        own["categories"] = json!(kind.categories);
    }
    if kind.verbs.contains(&"list") {
        own["storageVersionHash"] = storage_hash(kind).into();
    }
    let mut all = vec![own];
    for sub in &kind.subresources {
        let (foreign, name, verbs) = subresource(kind, *sub);
        let mut entry = json!({
            "name": format!("{}/{}", gvr.resource, sub.as_str()), "singularName": "", "namespaced": kind.namespaced,
            "kind": name, "verbs": verbs,
        });
        if let Some((group, version)) = foreign {
            entry["group"] = group.into();
            entry["version"] = version.into();
        }
        all.push(entry);
    }
    // Those of custom resources are `status` before `scale`.
    if kind.strategy.custom().is_none() {
        all.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    }
    all
}

/// Group and version where they differ, kind and verbs of a subresource.
pub(super) fn subresource<'a>(
    kind: &'a Kind,
    sub: Subresource,
) -> (Option<(&'static str, &'static str)>, &'a str, &'static [&'static str]) {
    const CHANGE: &[&str] = &["get", "patch", "update"];
    const STREAM: &[&str] = &["create", "get"];
    let proxied = match &*kind.gvr.resource {
        "services" => "ServiceProxyOptions",
        "nodes" => "NodeProxyOptions",
        _ => "PodProxyOptions",
    };
    match sub {
        Subresource::Status | Subresource::EphemeralContainers | Subresource::Resize | Subresource::Approval => {
            (None, &kind.kind, CHANGE)
        }
        Subresource::Finalize => (None, &kind.kind, &["update"]),
        Subresource::Log => (None, &kind.kind, &["get"]),
        Subresource::Scale => (Some(("autoscaling", "v1")), "Scale", CHANGE),
        Subresource::Binding => (None, "Binding", &["create"]),
        Subresource::Eviction => (Some(("policy", "v1")), "Eviction", &["create"]),
        Subresource::Token => (Some(("authentication.k8s.io", "v1")), "TokenRequest", &["create"]),
        Subresource::Exec => (None, "PodExecOptions", STREAM),
        Subresource::Attach => (None, "PodAttachOptions", STREAM),
        Subresource::PortForward => (None, "PodPortForwardOptions", STREAM),
        Subresource::Proxy => (None, proxied, &["create", "delete", "get", "patch", "update"]),
    }
}

/// `discovery.StorageVersionHash`.
fn storage_hash(kind: &Kind) -> String {
    let stored = kind.strategy.stored_as();
    let (group, mut version) =
        stored.map_or((kind.gvr.group.clone(), kind.gvr.version.clone()), |g| (g.group, g.version));
    if let Some(custom) = kind.strategy.custom() {
        version = custom.storage_version.clone().into();
    }
    let digest = sha2::Sha256::digest(format!("{group}/{version}/{}", kind.kind).as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// The `resources` of a version in aggregated discovery, from its classic entries.
fn aggregated_resources(group: &str, version: &str, list: &[Value]) -> Vec<Value> {
    let kind_of = |entry: &Value| {
        let text = |field: &str, default: &str| entry[field].as_str().unwrap_or(default).to_owned();
        json!({"group": text("group", group), "version": text("version", version), "kind": entry["kind"]})
    };
    let mut resources: Vec<Value> = Vec::new();
    for entry in list {
        let name = entry["name"].as_str().unwrap_or_default();
        if let Some((parent, sub)) = name.split_once('/') {
            let subresource = json!({"subresource": sub, "responseKind": kind_of(entry), "verbs": entry["verbs"]});
            if let Some(parent) = resources.iter_mut().find(|r| r["resource"] == parent) {
                match parent["subresources"].as_array_mut() {
                    Some(all) => all.push(subresource),
                    None => parent["subresources"] = json!([subresource]),
                }
            }
            continue;
        }
        let scope = if entry["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let mut resource = json!({
            "resource": name, "responseKind": kind_of(entry), "scope": scope, "singularResource": entry["singularName"],
            "verbs": entry["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if entry[field].is_array() {
                resource[field] = entry[field].clone();
            }
        }
        resources.push(resource);
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_preferred_as_kubernetes_prefers_them() {
        let mut versions = ["v1alpha1", "v2", "v1beta2", "v1", "v1beta10", "v10"];
        versions.sort_by_key(|v| std::cmp::Reverse(priority(v)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta10", "v1beta2", "v1alpha1"]);
    }

    #[test]
    fn the_storage_hash_is_that_of_kubernetes() {
        let all = crate::api::kinds::all();
        let pods = all.iter().find(|k| k.gvr.resource == "pods").expect("pods are built in");
        assert_eq!(storage_hash(pods), "xPOwRZ+Yhw8=");
    }
}
