//! The node authorizer (`plugin/pkg/auth/authorizer/node`): a node may read what the pods that are bound to it use, and write
//! what is its own. The graph of that follows the storage; an authorisation that fails is tried again when the graph has seen
//! everything, because a node hears of a new pod as soon as the graph does.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock, RwLock};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::rbac::Rule;
use super::{Attributes, bootstrap};
use crate::api::selector::FieldSelector;
use crate::api::{StatusResult, meta};
use crate::apiserver::ApiServer;
use crate::apiserver::following::{Following, Told};
use crate::apiserver::registry::kind_prefix;
use crate::storage::{Entry, News};

/// The namespace of nodes' leases.
const LEASES: &str = "kube-node-lease";

/// What pods refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Claim,
    ConfigMap,
    Pod,
    Secret,
    ServiceAccount,
}

/// Kind, namespace and name.
type Reference = (Kind, String, String);

/// A pod that is bound to a node.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    node: String,
    references: BTreeSet<Reference>,
}

#[derive(Default)]
struct State {
    pods: HashMap<String, Bound>,
    /// By reference: how many pods of which node.
    users: HashMap<Reference, HashMap<String, usize>>,
    /// The claim of each volume.
    volumes: HashMap<String, (String, String)>,
}

type Question = (u64, oneshot::Sender<()>);

/// Which objects belong to which nodes.
#[derive(Default)]
pub(crate) struct NodeGraph {
    state: RwLock<State>,
    questions: OnceLock<mpsc::UnboundedSender<Question>>,
}

/// Begins to follow pods and volumes.
pub(crate) async fn follow(server: &Arc<ApiServer>) -> StatusResult<()> {
    let mut following = Following::new(server, "what nodes may read");
    for of in [Followed::Pods, Followed::Volumes] {
        let kind = server.known_kind("", "v1", of.resource())?;
        let listing = following.add(of, &kind_prefix(&kind, "")).await?;
        server.nodes.replace(of, &listing.entries);
    }
    let (questions, asked) = mpsc::unbounded_channel();
    if server.nodes.questions.set(questions).is_ok() {
        tokio::spawn(run(following, asked));
    }
    Ok(())
}

/// What the graph is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Followed {
    Pods,
    Volumes,
}

impl Followed {
    fn resource(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Volumes => "persistentvolumes",
        }
    }
}

async fn run(mut following: Following<Followed>, mut asked: mpsc::UnboundedReceiver<Question>) {
    let mut waiting: Vec<Question> = Vec::new();
    loop {
        let seen = following.seen();
        let (answered, rest) = waiting.into_iter().partition::<Vec<_>, _>(|(revision, _)| *revision <= seen);
        for (_, answer) in answered {
            // Whoever asked may have gone away.
            let _ = answer.send(());
        }
        waiting = rest;
        let Told { server, of, news } = tokio::select! {
            told = following.next() => match told {
                Some(told) => told,
                None => return,
            },
            Some(question) = asked.recv() => {
                waiting.push(question);
                continue;
            }
        };
        match news {
            News::Changes(events) => {
                events.iter().for_each(|event| server.nodes.apply(of, &event.entry.value(), event.deleted));
            }
            News::Everything(listing) => server.nodes.replace(of, &listing.entries),
        }
    }
}

impl NodeGraph {
    /// Waits until everything up to a revision is known.
    pub async fn caught_up(&self, revision: u64) {
        let (answer, answered) = oneshot::channel();
        if self.questions.get().is_some_and(|questions| questions.send((revision, answer)).is_ok()) {
            // The follower ends with the server.
            let _ = answered.await;
        }
    }

    fn apply(&self, of: Followed, object: &Value, deleted: bool) {
        self.state.write().expect("no panic under this lock").apply(of, object, deleted);
    }

    /// Everything that there is of it: changes were lost.
    fn replace(&self, of: Followed, entries: &[Arc<Entry>]) {
        let mut state = self.state.write().expect("no panic under this lock");
        match of {
            Followed::Pods => {
                state.pods.clear();
                state.users.clear();
            }
            Followed::Volumes => state.volumes.clear(),
        }
        entries.iter().for_each(|entry| state.apply(of, &entry.value(), false));
    }

    /// Whether a node may do it; else why not (empty: for no particular reason).
    ///
    /// # Errors
    /// See above.
    pub fn check(&self, node: &str, a: &Attributes<'_>) -> Result<(), String> {
        let no = |why: &str| Err(why.to_owned());
        let nothing = || Err(String::new());
        match (a.group, a.resource) {
            _ if !a.path.is_empty() => {}
            ("", "secrets") => return self.read_one(node, Kind::Secret, a),
            ("", "configmaps") => return self.read_one(node, Kind::ConfigMap, a),
            ("", "persistentvolumeclaims") if a.subresource == "status" => {
                return match a.verb {
                    "update" | "patch" => self.related(node, Kind::Claim, a),
                    _ => no("can only get/update/patch this type"),
                };
            }
            ("", "persistentvolumeclaims") => return self.get(node, Kind::Claim, a),
            ("", "persistentvolumes") => return self.get_volume(node, a),
            ("", "serviceaccounts") => {
                return match (a.verb, a.subresource) {
                    ("create", "token") if !a.name.is_empty() => self.related(node, Kind::ServiceAccount, a),
                    ("create", _) if !a.name.is_empty() => no("can only create token subresource of serviceaccount"),
                    _ => no("can only create tokens for individual service accounts"),
                };
            }
            ("coordination.k8s.io", "leases") => return lease(node, a),
            ("storage.k8s.io", "csinodes") => return csi_node(node, a),
            ("storage.k8s.io", "volumeattachments") => return nothing(),
            ("", "nodes") => {
                return match (a.subresource, a.verb) {
                    // NodeRestriction sees to it that it is its own.
                    ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
                    ("", "get" | "list" | "watch") if a.name == node => Ok(()),
                    ("", "get" | "list" | "watch") if a.name.is_empty() => {
                        no(&format!("node '{node}' cannot read all nodes, only its own Node object"))
                    }
                    ("", "get" | "list" | "watch") => {
                        no(&format!("node '{node}' cannot read '{}', only its own Node object", a.name))
                    }
                    _ => nothing(),
                };
            }
            ("", "pods") => {
                return match (a.subresource, a.verb) {
                    ("", "get") => self.get(node, Kind::Pod, a),
                    ("", "list" | "watch") if selects_node(a.fields, node) => Ok(()),
                    ("", "list" | "watch") if !a.name.is_empty() => self.related(node, Kind::Pod, a),
                    ("", "list" | "watch") => no("can only list/watch pods with spec.nodeName field selector"),
                    // As above.
                    ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
                    _ => nothing(),
                };
            }
            _ => {}
        }
        static RULES: OnceLock<Vec<Rule>> = OnceLock::new();
        let rules = RULES.get_or_init(|| bootstrap::node_rules().iter().map(Rule::parse).collect());
        if rules.iter().any(|rule| rule.allows(a)) { Ok(()) } else { nothing() }
    }

    fn get(&self, node: &str, kind: Kind, a: &Attributes<'_>) -> Result<(), String> {
        match (a.verb, a.subresource) {
            ("get", "") => self.related(node, kind, a),
            ("get", _) => Err("cannot get subresource".to_owned()),
            _ => Err("can only get individual resources of this type".to_owned()),
        }
    }

    fn get_volume(&self, node: &str, a: &Attributes<'_>) -> Result<(), String> {
        if a.verb != "get" || !a.subresource.is_empty() {
            return self.get(node, Kind::Claim, a);
        }
        let claim = self.state.read().expect("no panic under this lock").volumes.get(a.name).cloned();
        let (namespace, name) = claim.unwrap_or_default();
        self.related(node, Kind::Claim, &Attributes { namespace: &namespace, name: &name, ..*a })
    }

    fn read_one(&self, node: &str, kind: Kind, a: &Attributes<'_>) -> Result<(), String> {
        let why = match a {
            _ if !["get", "list", "watch"].contains(&a.verb) => "can only read resources of this type",
            _ if !a.subresource.is_empty() => "cannot read subresource",
            _ if a.namespace.is_empty() => "can only read namespaced object of this type",
            _ => return self.related(node, kind, a),
        };
        Err(why.to_owned())
    }

    fn related(&self, node: &str, kind: Kind, a: &Attributes<'_>) -> Result<(), String> {
        if a.name.is_empty() {
            return Err("No Object name found".to_owned());
        }
        let reference = (kind, a.namespace.to_owned(), a.name.to_owned());
        let state = self.state.read().expect("no panic under this lock");
        match state.users.get(&reference).is_some_and(|nodes| nodes.contains_key(node)) {
            true => Ok(()),
            false => Err(format!("no relationship found between node '{node}' and this object")),
        }
    }
}

fn lease(node: &str, a: &Attributes<'_>) -> Result<(), String> {
    if !["get", "create", "update", "patch", "delete"].contains(&a.verb) {
        return Err("can only get, create, update, patch, or delete a node lease".to_owned());
    }
    if a.namespace != LEASES {
        return Err(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    if a.verb != "create" && a.name != node {
        return Err("can only access node lease with the same name as the requesting node".to_owned());
    }
    Ok(())
}

fn csi_node(node: &str, a: &Attributes<'_>) -> Result<(), String> {
    if !["get", "create", "update", "patch", "delete"].contains(&a.verb) {
        return Err("can only get, create, update, patch, or delete a CSINode".to_owned());
    }
    if !a.subresource.is_empty() {
        return Err("cannot authorize CSINode subresources".to_owned());
    }
    if a.verb != "create" && a.name != node {
        return Err("can only access CSINode with the same name as the requesting node".to_owned());
    }
    Ok(())
}

/// Whether a field selector selects only pods of a node.
fn selects_node(fields: &str, node: &str) -> bool {
    FieldSelector::parse(fields).is_ok_and(|selector| selector.required("spec.nodeName") == Some(node))
}

impl State {
    fn apply(&mut self, of: Followed, object: &Value, deleted: bool) {
        match of {
            Followed::Pods => self.apply_pod(object, deleted),
            Followed::Volumes => self.apply_volume(object, deleted),
        }
    }

    fn apply_volume(&mut self, volume: &Value, deleted: bool) {
        let claim = &volume["spec"]["claimRef"];
        let text = |field: &str| claim[field].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        match (text("namespace"), text("name")) {
            (Some(namespace), Some(name)) if !deleted => {
                self.volumes.insert(meta::name(volume).to_owned(), (namespace, name));
            }
            _ => drop(self.volumes.remove(meta::name(volume))),
        }
    }

    fn apply_pod(&mut self, pod: &Value, deleted: bool) {
        let key = format!("{}/{}", meta::namespace(pod), meta::name(pod));
        let node = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty() && !deleted);
        let bound = node.map(|node| Bound { node: node.to_owned(), references: references(pod) });
        if self.pods.get(&key) == bound.as_ref() {
            return;
        }
        if let Some(old) = self.pods.remove(&key) {
            for reference in old.references {
                let Some(nodes) = self.users.get_mut(&reference) else { continue };
                if let Some(count) = nodes.get_mut(&old.node) {
                    *count -= 1;
                    if *count == 0 {
                        nodes.remove(&old.node);
                    }
                }
                if nodes.is_empty() {
                    self.users.remove(&reference);
                }
            }
        }
        if let Some(bound) = bound {
            for reference in &bound.references {
                *self.users.entry(reference.clone()).or_default().entry(bound.node.clone()).or_default() += 1;
            }
            self.pods.insert(key, bound);
        }
    }
}

/// Everything that a pod refers to, and itself (`podutil.VisitPodSecretNames` and its siblings).
fn references(pod: &Value) -> BTreeSet<Reference> {
    let (spec, namespace, name) = (&pod["spec"], meta::namespace(pod), meta::name(pod));
    let mut found = BTreeSet::from([(Kind::Pod, namespace.to_owned(), name.to_owned())]);
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.insert((kind, namespace.to_owned(), name.to_owned()));
        }
    };
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    add(Kind::ServiceAccount, &spec["serviceAccountName"]);
    for secret in list(&spec["imagePullSecrets"]) {
        add(Kind::Secret, &secret["name"]);
    }
    for container in ["initContainers", "containers", "ephemeralContainers"].iter().flat_map(|l| list(&spec[*l])) {
        for source in list(&container["env"]) {
            add(Kind::Secret, &source["valueFrom"]["secretKeyRef"]["name"]);
            add(Kind::ConfigMap, &source["valueFrom"]["configMapKeyRef"]["name"]);
        }
        for source in list(&container["envFrom"]) {
            add(Kind::Secret, &source["secretRef"]["name"]);
            add(Kind::ConfigMap, &source["configMapRef"]["name"]);
        }
    }
    for volume in list(&spec["volumes"]) {
        add(Kind::Secret, &volume["secret"]["secretName"]);
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"].is_object() {
            add(Kind::Claim, &format!("{name}-{}", meta::text(&volume["name"])).into());
        }
        for source in list(&volume["projected"]["sources"]) {
            add(Kind::Secret, &source["secret"]["name"]);
            add(Kind::ConfigMap, &source["configMap"]["name"]);
        }
        add(Kind::Secret, &volume["csi"]["nodePublishSecretRef"]["name"]);
        add(Kind::Secret, &volume["azureFile"]["secretName"]);
        for plugin in ["cephfs", "cinder", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"] {
            add(Kind::Secret, &volume[plugin]["secretRef"]["name"]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn graph() -> NodeGraph {
        let graph = NodeGraph::default();
        let pod = |name: &str, node: &str, secret: &str| {
            json!({"metadata": {"namespace": "a", "name": name}, "spec": {"nodeName": node, "serviceAccountName": "sa",
                "containers": [{"envFrom": [{"configMapRef": {"name": "settings"}}]}],
                "volumes": [{"secret": {"secretName": secret}}, {"persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "scratch", "ephemeral": {}}]}})
        };
        graph.apply(Followed::Pods, &pod("one", "n1", "s1"), false);
        graph.apply(Followed::Pods, &pod("two", "n2", "s2"), false);
        graph.apply(Followed::Pods, &pod("waits", "", "s3"), false);
        let volume = json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "a", "name": "data"}}});
        graph.apply(Followed::Volumes, &volume, false);
        graph
    }

    /// `verb resource[/subresource] [namespace/]name`.
    fn check(graph: &NodeGraph, node: &str, request: &str, fields: &str) -> Result<(), String> {
        let parts: Vec<&str> = request.split(' ').collect();
        let (resource, subresource) = parts[1].split_once('/').unwrap_or((parts[1], ""));
        let (namespace, name) = parts.get(2).map_or(("", ""), |n| n.split_once('/').unwrap_or(("", n)));
        let group = match resource {
            "leases" => "coordination.k8s.io",
            "runtimeclasses" => "node.k8s.io",
            _ => "",
        };
        let attributes = Attributes { verb: parts[0], group, resource, subresource, namespace, name, fields, path: "" };
        graph.check(node, &attributes)
    }

    #[test]
    fn a_node_reads_what_its_pods_use_and_nothing_else() {
        let graph = graph();
        for request in [
            "get secrets a/s1",
            "watch secrets a/s1",
            "list configmaps a/settings",
            "get persistentvolumeclaims a/data",
            "get persistentvolumeclaims a/one-scratch",
            "patch persistentvolumeclaims/status a/data",
            "get persistentvolumes pv",
            "create serviceaccounts/token a/sa",
            "get pods a/one",
            "get nodes n1",
            "watch nodes n1",
            "patch nodes/status n1",
            "update leases kube-node-lease/n1",
            "create leases kube-node-lease/",
            "get services a/x",
            "get runtimeclasses x",
            "create events a/",
        ] {
            assert_eq!(check(&graph, "n1", request, ""), Ok(()), "{request}");
        }
        for (request, why) in [
            ("get secrets a/s2", "no relationship found between node 'n1' and this object"),
            ("get secrets a/s3", "no relationship found between node 'n1' and this object"),
            ("get secrets b/s1", "no relationship found between node 'n1' and this object"),
            ("list secrets a/", "No Object name found"),
            ("list secrets s1", "can only read namespaced object of this type"),
            ("update secrets a/s1", "can only read resources of this type"),
            ("list persistentvolumeclaims a/data", "can only get individual resources of this type"),
            ("get persistentvolumes other", "No Object name found"),
            ("create serviceaccounts/token a/other", "no relationship found between node 'n1' and this object"),
            ("get serviceaccounts a/sa", "can only create tokens for individual service accounts"),
            ("get pods a/two", "no relationship found between node 'n1' and this object"),
            ("list pods", "can only list/watch pods with spec.nodeName field selector"),
            ("list nodes", "node 'n1' cannot read all nodes, only its own Node object"),
            ("get nodes n2", "node 'n1' cannot read 'n2', only its own Node object"),
            ("delete nodes n1", ""),
            ("get leases a/n1", "can only access leases in the \"kube-node-lease\" system namespace"),
            ("get leases kube-node-lease/n2", "can only access node lease with the same name as the requesting node"),
            ("list leases kube-node-lease/", "can only get, create, update, patch, or delete a node lease"),
            ("create deployments a/", ""),
        ] {
            assert_eq!(check(&graph, "n1", request, ""), Err(why.to_owned()), "{request}");
        }
        assert_eq!(check(&graph, "n1", "list pods", "spec.nodeName=n1"), Ok(()));
        assert!(check(&graph, "n1", "list pods", "spec.nodeName=n2").is_err());
        assert!(check(&graph, "n1", "list pods", "spec.nodeName!=n1").is_err());
    }

    #[test]
    fn what_is_shared_is_readable_until_the_last_pod_goes() {
        let graph = graph();
        let may = |node: &str| check(&graph, node, "get configmaps a/settings", "").is_ok();
        assert!(may("n1") && may("n2"));
        graph.apply(Followed::Pods, &json!({"metadata": {"namespace": "a", "name": "one"}}), true);
        assert!(!may("n1") && may("n2"));
        assert!(check(&graph, "n1", "get persistentvolumes pv", "").is_err());
        let state = graph.state.read().expect("not poisoned");
        assert!(!state.users.keys().any(|(_, _, name)| name == "s1"), "nothing is left of a pod that went");
    }

    #[test]
    fn what_went_unseen_is_forgotten_when_everything_is_told_anew() {
        let graph = graph();
        let pod = json!({"metadata": {"namespace": "a", "name": "new"}, "spec": {"nodeName": "n1",
            "containers": [], "volumes": [{"secret": {"secretName": "s4"}}]}});
        let entry = Arc::new(Entry::new("/core/pods/a/new".into(), 9, pod.to_string().into()));
        graph.replace(Followed::Pods, &[entry]);
        assert!(check(&graph, "n1", "get secrets a/s1", "").is_err());
        assert_eq!(check(&graph, "n1", "get secrets a/s4", ""), Ok(()));
        graph.replace(Followed::Volumes, &[]);
        assert_eq!(check(&graph, "n1", "get persistentvolumes pv", ""), Err("No Object name found".to_owned()));
    }
}
