//! OpenAPI v2 and v3 of the kinds that are served, derived from the schema table and the registry of kinds.
//!
//! Documents are made when they are asked for and not kept: they are megabytes, and clients cache them by their hash.

mod custom;
mod foreign;
mod gnostic;
mod paths;
mod schemas;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::kind::Kind;
use super::schema::{Descriptions, TypeId};
pub use foreign::Foreign;
use schemas::{Dialect, reachable};

/// The media type of [`v2_protobuf`] to answer with: Go no longer parses the `@` of the one that clients ask for.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The media type that kubectl asks for; [`V2_PROTOBUF`] means the same.
pub const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// Part of every hash: raise it when the documents change in form.
const FORM: u32 = 1;

fn info() -> Value {
    json!({"title": "Kubernetes", "version": crate::config::KUBERNETES_VERSION})
}

/// `apps/v1` (or `v1`) -> its kinds.
fn by_group_version(kinds: &[Arc<Kind>]) -> BTreeMap<String, Vec<Arc<Kind>>> {
    let mut groups: BTreeMap<String, Vec<Arc<Kind>>> = BTreeMap::new();
    for kind in kinds {
        groups.entry(kind.gvr.api_version()).or_default().push(Arc::clone(kind));
    }
    groups
}

/// `/openapi/v3`: where the document of each group version is, with its hash.
pub fn v3_index(kinds: &[Arc<Kind>]) -> Value {
    let mut paths = serde_json::Map::new();
    for (group_version, kinds) in by_group_version(kinds) {
        let path =
            if group_version.contains('/') { format!("apis/{group_version}") } else { format!("api/{group_version}") };
        let hash = hash(&kinds);
        paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
    }
    json!({"paths": paths})
}

/// The hash of a group version's document (for the index and `ETag`); `None` when it is not served.
pub fn v3_hash(kinds: &[Arc<Kind>], group_version: &str) -> Option<String> {
    by_group_version(kinds).get(group_version).map(|kinds| hash(kinds))
}

/// The hash of the v2 document, for `ETag`.
pub fn v2_hash(kinds: &[Arc<Kind>], foreign: &Foreign) -> String {
    if foreign.paths.is_empty() {
        return hash(kinds);
    }
    let mut hasher = Sha256::new();
    hasher.update(hash(kinds));
    for (name, value) in foreign.paths.iter().chain(&foreign.definitions) {
        hasher.update(format!("{name} {value}\n"));
    }
    hex(&hasher.finalize())
}

/// The names of the definitions of the v2 document.
pub fn v2_names(kinds: &[Arc<Kind>]) -> BTreeSet<String> {
    schemas_of(kinds, Dialect::V2).map(|(name, _)| name).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}

/// A document is a function of the table, of this code and of the kinds.
fn hash(kinds: &[Arc<Kind>]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{} {} {FORM}", env!("CARGO_PKG_VERSION"), crate::config::KUBERNETES_VERSION));
    hasher.update(super::schema::fingerprint());
    for kind in kinds {
        hasher.update(format!("{:?} {} {:?} {:?}", kind.gvr, kind.kind, kind.subresources, kind.verbs));
        if let Some(custom) = kind.strategy.custom() {
            hasher.update(custom.published.to_string());
        }
    }
    hex(&hasher.finalize())
}

/// The OpenAPI v3 document of a group version (`apps/v1`, `v1`); `None` when no kind of it is served.
pub fn v3(kinds: &[Arc<Kind>], group_version: &str) -> Option<Bytes> {
    let kinds = by_group_version(kinds).remove(group_version)?;
    let mut out = br#"{"components":{"schemas":{"#.to_vec();
    write_members(&mut out, schemas_of(&kinds, Dialect::V3));
    out.extend_from_slice(br#"},"securitySchemes":{"BearerToken":{"description":"Bearer Token authentication","in":"header","name":"authorization","type":"apiKey"}}},"info":"#);
    out.extend_from_slice(info().to_string().as_bytes());
    out.extend_from_slice(br#","openapi":"3.0.0","paths":{"#);
    write_members(&mut out, kinds.iter().flat_map(|kind| paths::of(kind, Dialect::V3)));
    out.extend_from_slice(br#"},"security":[{"BearerToken":[]}]}"#);
    Some(out.into())
}

/// The OpenAPI v2 document of all kinds.
pub fn v2_json(kinds: &[Arc<Kind>], foreign: &Foreign) -> Bytes {
    let mut out = br#"{"definitions":{"#.to_vec();
    write_members(&mut out, schemas_of(kinds, Dialect::V2).chain(owned(&foreign.definitions)));
    out.extend_from_slice(br#"},"info":"#);
    out.extend_from_slice(info().to_string().as_bytes());
    out.extend_from_slice(br#","paths":{"#);
    write_members(&mut out, paths_of(kinds).chain(owned(&foreign.paths)));
    out.extend_from_slice(br#"},"security":[{"BearerToken":[]}],"securityDefinitions":{"BearerToken":{"description":"Bearer Token authentication","in":"header","name":"authorization","type":"apiKey"}},"swagger":"2.0"}"#);
    out.into()
}

/// The same as gnostic's `openapi.v2.Document` in protobuf, which kubectl asks for.
pub fn v2_protobuf(kinds: &[Arc<Kind>], foreign: &Foreign) -> Bytes {
    let schemas = schemas_of(kinds, Dialect::V2).chain(owned(&foreign.definitions));
    gnostic::document(&info(), schemas, paths_of(kinds).chain(owned(&foreign.paths))).into()
}

fn paths_of(kinds: &[Arc<Kind>]) -> impl Iterator<Item = (String, Value)> {
    kinds.iter().flat_map(|kind| paths::of(kind, Dialect::V2))
}

fn owned(members: &BTreeMap<String, Value>) -> impl Iterator<Item = (String, Value)> {
    members.iter().map(|(name, value)| (name.clone(), value.clone()))
}

/// All types that the kinds' documents need, sorted.
fn types_of(kinds: &[Arc<Kind>]) -> Vec<TypeId> {
    reachable(kinds.iter().flat_map(|kind| paths::types(kind)))
}

/// The schemas that the kinds need, each made when it is its turn.
fn schemas_of(kinds: &[Arc<Kind>], dialect: Dialect) -> impl Iterator<Item = (String, Value)> {
    let texts = Descriptions::unpack();
    let custom = kinds.iter().flat_map(move |kind| custom::definitions(kind, dialect));
    let leaves: Vec<_> = schemas::leaves(dialect, &texts).collect();
    types_of(kinds).into_iter().map(move |ty| schemas::of(ty, dialect, &texts)).chain(leaves).chain(custom)
}

fn write_members(out: &mut Vec<u8>, members: impl Iterator<Item = (String, Value)>) {
    for (index, (name, value)) in members.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(Value::String(name).to_string().as_bytes());
        out.push(b':');
        serde_json::to_writer(&mut *out, &value).expect("values have string keys");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(group_version: &str) -> Value {
        serde_json::from_slice(&v3(&crate::api::kinds::all(), group_version).expect("it is served")).expect("JSON")
    }

    /// Every `$ref` of a document, with where it must lead.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }

    #[test]
    fn references_lead_somewhere() {
        let v2: Value = serde_json::from_slice(&v2_json(&crate::api::kinds::all(), &Foreign::default())).expect("JSON");
        for document in by_group_version(&crate::api::kinds::all()).keys().map(|gv| document(gv)).chain([v2]) {
            let mut found = Vec::new();
            references(&document, &mut found);
            for reference in found {
                let name = reference.rsplit('/').next().expect("a name");
                let target = if reference.starts_with("#/definitions/") {
                    &document["definitions"][name]
                } else {
                    &document["components"]["schemas"][name]
                };
                assert!(target.is_object(), "{reference}");
            }
        }
    }

    #[test]
    fn deployments_as_kubectl_needs_them() {
        let document = document("apps/v1");
        let gvk = json!({"group": "apps", "kind": "Deployment", "version": "v1"});
        let item = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        let patch = &item["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"], gvk);
        assert_eq!(item["get"]["x-kubernetes-group-version-kind"], gvk);
        for media in ["application/strategic-merge-patch+json", "application/apply-patch+yaml"] {
            assert!(patch["requestBody"]["content"][media].is_object(), "{media}");
        }
        let names: Vec<&str> =
            patch["parameters"].as_array().expect("a list").iter().filter_map(|p| p["name"].as_str()).collect();
        assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun") && names.contains(&"force"));
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"], json!([gvk]));
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
        assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
        assert_eq!(schemas["io.k8s.api.core.v1.PodSpec"]["required"], json!(["containers"]));
    }

    #[test]
    fn the_index_names_what_is_served() {
        let kinds = crate::api::kinds::all();
        let index = v3_index(&kinds);
        let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("it is served");
        assert_eq!(url, format!("/openapi/v3/apis/apps/v1?hash={}", v3_hash(&kinds, "apps/v1").expect("it is served")));
        assert!(v3(&kinds, "nosuch/v1").is_none());
    }
}
