//! What the OpenAPI v2 documents of other servers add to ours (kube-aggregator's merge): the paths of their group versions and the
//! definitions that those need.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

const REFERENCE: &str = "#/definitions/";

/// Paths and definitions of other servers.
#[derive(Default)]
pub struct Foreign {
    pub(super) paths: BTreeMap<String, Value>,
    pub(super) definitions: BTreeMap<String, Value>,
}

impl Foreign {
    /// Takes what a server's document says about a group version. Definitions of Kubernetes' own that we have are ours; others
    /// that are called like another are renamed.
    pub fn add(&mut self, document: &Value, group: &str, version: &str, ours: &BTreeSet<String>) {
        let root = format!("/apis/{group}/{version}");
        let is_meant =
            |path: &str| path.strip_prefix(&*root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let mut paths: BTreeMap<String, Value> = document["paths"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(path, _)| is_meant(path))
            .map(|(path, item)| (path.clone(), item.clone()))
            .collect();
        let mut needed = needed(document, paths.values());
        let mut names = BTreeMap::new();
        for (name, definition) in &needed {
            let is_shared = ours.contains(name) && name.starts_with("io.k8s.");
            let clashes = ours.contains(name) || self.definitions.get(name).is_some_and(|known| known != definition);
            if !is_shared && clashes {
                let free = (2..).map(|number| format!("{name}_v{number}"));
                let mut free = free.filter(|name| !ours.contains(name) && !self.definitions.contains_key(name));
                names.insert(name.clone(), free.next().expect("there is always another number"));
            }
        }
        needed.retain(|name, _| names.contains_key(name) || !ours.contains(name));
        paths.values_mut().chain(needed.values_mut()).for_each(|value| rename(value, &names));
        self.paths.extend(paths);
        let renamed = needed.into_iter().map(|(name, value)| (names.get(&name).cloned().unwrap_or(name), value));
        self.definitions.extend(renamed);
    }
}

/// The definitions that some values refer to, and those that these refer to.
fn needed<'a>(document: &Value, roots: impl Iterator<Item = &'a Value>) -> BTreeMap<String, Value> {
    let mut open = Vec::new();
    roots.for_each(|root| references(root, &mut open));
    let mut needed = BTreeMap::new();
    while let Some(name) = open.pop() {
        if let Some(definition) = document["definitions"].get(&name).filter(|_| !needed.contains_key(&name)) {
            references(definition, &mut open);
            needed.insert(name, definition.clone());
        }
    }
    needed
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str().and_then(|text| text.strip_prefix(REFERENCE)) {
                    Some(name) if key == "$ref" => found.push(name.to_owned()),
                    _ => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let name =
                    value.as_str().and_then(|text| text.strip_prefix(REFERENCE)).and_then(|name| names.get(name));
                match name {
                    Some(name) if key == "$ref" => *value = format!("{REFERENCE}{name}").into(),
                    _ => rename(value, names),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_the_group_version_needs_is_taken() {
        let to = |name: &str| json!({"$ref": format!("{REFERENCE}{name}")});
        let document = json!({
            "paths": {"/apis/g/v1/": {"get": to("g.List")}, "/apis/g/v1beta1/": {"get": to("g.Old")}, "/version": {"get": to("io.k8s.Info")}},
            "definitions": {
                "g.List": {"properties": {"items": {"items": to("g.Item")}, "metadata": to("io.k8s.ListMeta")}},
                "g.Item": {"type": "object", "properties": {"next": to("g.Item")}},
                "g.Old": {}, "io.k8s.Info": {}, "io.k8s.ListMeta": {"type": "object"},
            },
        });
        let ours = BTreeSet::from(["io.k8s.ListMeta".to_owned(), "g.Item".to_owned()]);
        let mut foreign = Foreign::default();
        foreign.add(&document, "g", "v1", &ours);
        assert_eq!(foreign.paths.keys().collect::<Vec<_>>(), ["/apis/g/v1/"]);
        assert_eq!(foreign.definitions.keys().collect::<Vec<_>>(), ["g.Item_v2", "g.List"]);
        assert_eq!(foreign.definitions["g.List"]["properties"]["items"]["items"], to("g.Item_v2"));
        assert_eq!(foreign.definitions["g.Item_v2"]["properties"]["next"], to("g.Item_v2"));
        // The same again clashes with nothing.
        foreign.add(&document, "g", "v1", &BTreeSet::new());
        assert!(foreign.definitions.contains_key("g.Item"));
    }
}
