//! Sets of field paths (`structured-merge-diff/fieldpath`) and their form in `managedFields` (`FieldsV1`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// How deep `FieldsV1` of a request may nest.
const MAX_DEPTH: usize = 200;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A field of an object or an entry of a map.
    Field(String),
    /// An element of a list by its keys, as JSON (`{"name":"c"}`).
    Key(String),
    /// An element of a set by its value, as JSON.
    Value(String),
    /// An element by its place.
    Index(usize),
}

impl Element {
    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => {
                serde_json::from_str::<Map<String, Value>>(rest).ok().map(|m| Self::Key(Value::Object(m).to_string()))
            }
            "v" => serde_json::from_str::<Value>(rest).ok().map(|v| Self::Value(v.to_string())),
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }

    fn serialize(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(json) => format!("k:{json}"),
            Self::Value(json) => format!("v:{json}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }

    /// As error messages have it: `.spec`, `[name="c"]`, `[="x"]`, `[0]`.
    pub fn print(&self) -> String {
        match self {
            Self::Field(name) => format!(".{name}"),
            Self::Key(json) => {
                let keys: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
                let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("[{}]", keys.join(","))
            }
            Self::Value(json) => format!("[={json}]"),
            Self::Index(index) => format!("[{index}]"),
        }
    }
}

/// A set of paths: those that end here and, by their first step, those that go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// The paths of one step.
    pub members: BTreeSet<Element>,
    /// The longer ones.
    pub children: BTreeMap<Element, FieldSet>,
}

impl FieldSet {
    /// Whether there is no path.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(FieldSet::is_empty)
    }

    /// Adds a path; the empty one cannot be a member.
    pub fn insert(&mut self, path: &[Element]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Adds all paths of another set.
    pub fn union(&mut self, other: &FieldSet) {
        self.members.extend(other.members.iter().cloned());
        for (element, set) in &other.children {
            self.children.entry(element.clone()).or_default().union(set);
        }
    }

    /// The paths that `other` does not have.
    #[must_use]
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        let children = self.children.iter().map(|(element, set)| match other.children.get(element) {
            Some(theirs) => (element.clone(), set.difference(theirs)),
            None => (element.clone(), set.clone()),
        });
        FieldSet {
            members: self.members.difference(&other.members).cloned().collect(),
            children: children.filter(|(_, set)| !set.is_empty()).collect(),
        }
    }

    /// The paths that both have.
    #[must_use]
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let both = self.children.iter().filter_map(|(element, set)| {
            let both = set.intersection(other.children.get(element)?);
            (!both.is_empty()).then(|| (element.clone(), both))
        });
        FieldSet { members: self.members.intersection(&other.members).cloned().collect(), children: both.collect() }
    }

    /// The paths that are not at or below one of `other`.
    #[must_use]
    pub fn without_trees(&self, other: &FieldSet) -> FieldSet {
        let children =
            self.children.iter().filter(|(element, _)| !other.members.contains(element)).map(|(element, set)| {
                let rest = other.children.get(element).map_or_else(|| set.clone(), |theirs| set.without_trees(theirs));
                (element.clone(), rest)
            });
        FieldSet {
            members: self.members.difference(&other.members).cloned().collect(),
            children: children.filter(|(_, set)| !set.is_empty()).collect(),
        }
    }

    /// All paths, printed.
    pub fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.members.iter().map(Element::print).collect();
        for (element, set) in &self.children {
            let prefix = element.print();
            paths.extend(set.paths().into_iter().map(|rest| format!("{prefix}{rest}")));
        }
        paths
    }

    /// `FieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        for member in &self.members {
            map.insert(member.serialize(), Value::Object(Map::new()));
        }
        for (element, set) in self.children.iter().filter(|(_, set)| !set.is_empty()) {
            let mut inner = match set.to_json() {
                Value::Object(inner) => inner,
                _ => Map::new(),
            };
            if self.members.contains(element) {
                inner.insert(".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(element.serialize(), Value::Object(inner));
        }
        Value::Object(map)
    }

    /// The set of `FieldsV1`; `None` when it is malformed.
    pub fn from_json(json: &Value) -> Option<FieldSet> {
        Self::read(json, 0).map(|(set, _)| set)
    }

    /// The set and whether it has itself as a member.
    fn read(json: &Value, depth: usize) -> Option<(FieldSet, bool)> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut set = FieldSet::default();
        let mut own = false;
        for (key, value) in json.as_object()? {
            if key == "." {
                own = true;
                continue;
            }
            let element = Element::parse(key)?;
            let (inner, member) = Self::read(value, depth + 1)?;
            if member || inner.is_empty() {
                set.members.insert(element.clone());
            }
            if !inner.is_empty() {
                set.children.insert(element, inner);
            }
        }
        Some((set, own))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_v1() {
        let fields = json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:ports": {
            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}}}}}}, "f:metadata": {"f:finalizers": {"v:\"a/b\"": {}}}});
        let set = FieldSet::from_json(&fields).expect("well-formed");
        let expected = [
            ".metadata.finalizers[=\"a/b\"]",
            ".spec.containers[name=\"c\"]",
            ".spec.containers[name=\"c\"].image",
            ".spec.containers[name=\"c\"].ports[containerPort=80,protocol=\"TCP\"]",
        ];
        assert_eq!(set.paths(), expected);
        assert_eq!(FieldSet::from_json(&set.to_json()), Some(set.clone()));
        assert!(set.difference(&set).is_empty());
        assert_eq!(set.intersection(&set), set);
        assert_eq!(FieldSet::from_json(&json!({"x": {}})), None);
    }
}
