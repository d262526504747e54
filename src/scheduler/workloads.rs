//! What selects pods: Services and the controllers that own them. Topology spread uses it for pods that ask for nothing
//! (`helper.DefaultSelector`).

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

use super::selector::{Labels, Selector};
use crate::api::Gvr;
use crate::client::Object;
use crate::client::cache::{Change, Key};
use crate::client::typed::Meta;

/// The kinds whose selectors count.
pub const KINDS: [Gvr; 4] = [
    Gvr::new("", "v1", "services"),
    Gvr::new("", "v1", "replicationcontrollers"),
    Gvr::new("apps", "v1", "replicasets"),
    Gvr::new("apps", "v1", "statefulsets"),
];
const SERVICE: &str = "Service";
/// The kinds whose selector is a map of labels.
const PLAIN: [&str; 2] = [SERVICE, "ReplicationController"];

/// An object of one of [`KINDS`], reduced to its name and selector.
#[derive(Debug)]
pub struct Workload {
    kind: String,
    metadata: ObjectMeta,
    selector: Selector,
}

impl Object for Workload {
    fn parse(value: &Value) -> Result<Self, serde_json::Error> {
        let text = |at: &Value| at.as_str().map(str::to_owned);
        let from = &value["metadata"];
        let metadata = ObjectMeta {
            name: text(&from["name"]),
            namespace: text(&from["namespace"]),
            uid: text(&from["uid"]),
            resource_version: text(&from["resourceVersion"]),
            ..ObjectMeta::default()
        };
        let kind = text(&value["kind"]).unwrap_or_default();
        let selector = &value["spec"]["selector"];
        let selector = if PLAIN.contains(&kind.as_str()) {
            Selector::of_labels(&Option::<Labels>::deserialize(selector)?.unwrap_or_default())
        } else {
            Selector::of(Option::<LabelSelector>::deserialize(selector)?.as_ref())
        };
        Ok(Self { kind, metadata, selector })
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// Selectors by kind, namespace and name.
#[derive(Debug, Default)]
pub struct Workloads {
    /// Namespace -> name -> selector.
    services: HashMap<String, BTreeMap<String, Selector>>,
    owners: HashMap<(String, Key), Selector>,
}

impl Workloads {
    /// One has changed.
    pub fn apply(&mut self, change: &Change<Workload>) {
        let object = change.object();
        let key = Key::of(&**object);
        if object.kind != SERVICE {
            let key = (object.kind.clone(), key);
            match &change.new {
                Some(new) => drop(self.owners.insert(key, new.selector.clone())),
                None => drop(self.owners.remove(&key)),
            }
            return;
        }
        let services = self.services.entry(key.namespace.clone()).or_default();
        services.remove(&key.name);
        // A Service without a selector selects no pods.
        if let Some(new) = change.new.as_ref().filter(|new| !new.selector.is_everything()) {
            services.insert(key.name, new.selector.clone());
        }
        if services.is_empty() {
            self.services.remove(&key.namespace);
        }
    }

    /// What selects the pods that belong with this one: its Services' selectors and its controller's together.
    pub fn selector(&self, pod: &Pod) -> Selector {
        let services = self.services.get(pod.namespace()).into_iter().flatten().map(|(_, selector)| selector);
        let mut selector = Selector::default();
        for service in services.filter(|selector| selector.matches(pod.labels())) {
            selector = selector.and(service.clone());
        }
        if let Some(owner) = pod.controller() {
            let key = (owner.kind.clone(), Key::new(pod.namespace(), owner.name.clone()));
            if let Some(own) = self.owners.get(&key) {
                selector = selector.and(own.clone());
            }
        }
        selector
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn services_and_the_controller_count_together() {
        let mut workloads = Workloads::default();
        let mut put = |object: Value, gone: bool| {
            let object = Some(Arc::new(Workload::parse(&object).expect("a workload")));
            workloads.apply(&if gone { Change { old: object, new: None } } else { Change { old: None, new: object } });
        };
        let service = |name: &str, selector: Value| json!({"kind": "Service", "metadata": {"name": name, "namespace": "a"}, "spec": {"selector": selector}});
        put(service("web", json!({"app": "web"})), false);
        put(service("db", json!({"app": "db"})), false);
        put(service("old", json!({"app": "web", "old": "x"})), false);
        put(service("none", Value::Null), false);
        let set = json!({"kind": "ReplicaSet", "metadata": {"name": "web-1", "namespace": "a"},
            "spec": {"selector": {"matchLabels": {"app": "web", "hash": "1"}}}});
        put(set, false);
        put(service("old", json!({"app": "web"})), true);
        let pod = |owner: &str| {
            let owner =
                json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": "u", "controller": true}]);
            let pod = json!({"metadata": {"namespace": "a", "labels": {"app": "web", "hash": "1"}, "ownerReferences": owner}});
            Pod::parse(&pod).expect("a pod")
        };
        let pairs = |pod: &Pod| {
            let selector = workloads.selector(pod);
            selector.pairs().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(pairs(&pod("web-1")), ["app=web", "hash=1"]);
        assert_eq!(pairs(&pod("gone")), ["app=web"]);
    }
}
