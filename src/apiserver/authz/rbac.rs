//! The RBAC evaluator over an index of roles and bindings that follows the storage.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};

use serde_json::Value;

use super::Attributes;
use crate::api::selector::LabelSelector;
use crate::api::{StatusResult, meta};
use crate::apiserver::following::{Following, Seen, Told};
use crate::apiserver::{ApiServer, User};
use crate::storage::{Entry, Listing, News};

const GROUP_PREFIX: &str = "/rbac.authorization.k8s.io/";

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

impl Rule {
    pub fn parse(rule: &Value) -> Self {
        let texts = |field: &str| {
            rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: texts("verbs"),
            groups: texts("apiGroups"),
            resources: texts("resources"),
            names: texts("resourceNames"),
            urls: texts("nonResourceURLs"),
        }
    }

    /// Whether the rule allows it (`rbac.RuleAllows`).
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        let any = |list: &[String], value: &str| list.iter().any(|v| v == "*" || v == value);
        if !any(&self.verbs, a.verb) {
            return false;
        }
        if !a.path.is_empty() {
            return self.urls.iter().any(|url| {
                url == "*" || url == a.path || url.strip_suffix('*').is_some_and(|p| a.path.starts_with(p))
            });
        }
        let resource = self.resources.iter().any(|r| {
            r == "*"
                || match a.subresource {
                    "" => r == a.resource,
                    sub => r.split_once('/').is_some_and(|(res, s)| s == sub && (res == a.resource || res == "*")),
                }
        });
        resource && any(&self.groups, a.group) && (self.names.is_empty() || self.names.iter().any(|n| n == a.name))
    }

    /// Whether every single permission of `other` is in this rule.
    pub fn covers(&self, other: &Self) -> bool {
        let all = |have: &[String], want: &[String]| want.iter().all(|w| have.iter().any(|h| h == "*" || h == w));
        let resources = other.resources.iter().all(|w| {
            self.resources.iter().any(|h| {
                h == "*"
                    || h == w
                    || matches!((h.split_once('/'), w.split_once('/')), (Some(("*", a)), Some((_, b))) if a == b)
            })
        });
        let names =
            self.names.is_empty() || (!other.names.is_empty() && other.names.iter().all(|n| self.names.contains(n)));
        let urls = other.urls.iter().all(|w| {
            self.urls.iter().any(|h| h == "*" || h == w || h.strip_suffix('*').is_some_and(|p| w.starts_with(p)))
        });
        all(&self.verbs, &other.verbs) && all(&self.groups, &other.groups) && resources && names && urls
    }
}

/// A binding's subjects and role.
#[derive(Clone, Debug)]
struct Binding {
    /// How a reason names it.
    told: String,
    subjects: Vec<(Subject, String)>,
    /// `ClusterRole` or `Role`, and its name.
    role: (bool, String),
}

#[derive(Clone, Debug)]
enum Subject {
    User(String),
    Group(String),
}

impl Binding {
    fn parse(object: &Value) -> Self {
        let namespace = meta::namespace(object);
        let subjects = object["subjects"].as_array().into_iter().flatten().filter_map(|s| {
            let (kind, name) = (s["kind"].as_str()?, s["name"].as_str()?.to_owned());
            let told = format!("{kind} {name:?}");
            Some(match kind {
                "User" => (Subject::User(name), told),
                "Group" => (Subject::Group(name), told),
                "ServiceAccount" => {
                    let namespace = s["namespace"].as_str().filter(|n| !n.is_empty()).unwrap_or(namespace);
                    let told = format!("{kind} \"{name}/{namespace}\"");
                    (Subject::User(format!("system:serviceaccount:{namespace}:{name}")), told)
                }
                _ => return None,
            })
        });
        let (reference, name) = (&object["roleRef"], meta::name(object));
        let role = reference["name"].as_str().unwrap_or_default().to_owned();
        let kind = reference["kind"].as_str().unwrap_or_default();
        let told = match namespace {
            "" => format!("ClusterRoleBinding {name:?} of {kind} {role:?}"),
            namespace => format!("RoleBinding \"{name}/{namespace}\" of {kind} {role:?}"),
        };
        Self { told, subjects: subjects.collect(), role: (kind == "ClusterRole", role) }
    }

    /// How the subject that is the user is told, if there is one.
    fn subject(&self, user: &User) -> Option<&str> {
        let found = self.subjects.iter().find(|(subject, _)| match subject {
            Subject::User(name) => *name == user.name,
            Subject::Group(group) => user.is_in(group),
        });
        found.map(|(_, told)| told.as_str())
    }
}

/// A role: its rules, or those of the cluster roles that it selects.
#[derive(Clone, Debug, Default)]
struct Role {
    rules: Vec<Rule>,
    labels: Arc<Value>,
    aggregates: Vec<LabelSelector>,
}

#[derive(Default)]
struct Index {
    cluster_roles: HashMap<String, Role>,
    roles: HashMap<(String, String), Role>,
    cluster_bindings: HashMap<String, Binding>,
    bindings: HashMap<String, HashMap<String, Binding>>,
}

impl Index {
    fn apply(&mut self, entry: &Entry, deleted: bool) {
        let Some(rest) = entry.key.strip_prefix(GROUP_PREFIX) else { return };
        let object = entry.value();
        let (name, namespace) = (meta::name(&object).to_owned(), meta::namespace(&object).to_owned());
        let role = || Role {
            rules: object["rules"].as_array().into_iter().flatten().map(Rule::parse).collect(),
            aggregates: object["aggregationRule"]["clusterRoleSelectors"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|s| LabelSelector::from_label_selector(s).ok())
                .collect(),
            labels: Arc::clone(&object),
        };
        match rest.split('/').next().unwrap_or_default() {
            "clusterroles" if deleted => drop(self.cluster_roles.remove(&name)),
            "clusterroles" => drop(self.cluster_roles.insert(name, role())),
            "roles" if deleted => drop(self.roles.remove(&(namespace, name))),
            "roles" => drop(self.roles.insert((namespace, name), role())),
            "clusterrolebindings" if deleted => drop(self.cluster_bindings.remove(&name)),
            "clusterrolebindings" => drop(self.cluster_bindings.insert(name, Binding::parse(&object))),
            "rolebindings" if deleted => drop(self.bindings.entry(namespace).or_default().remove(&name)),
            "rolebindings" => drop(self.bindings.entry(namespace).or_default().insert(name, Binding::parse(&object))),
            _ => {}
        }
    }

    /// The rules of a cluster role, or those that it aggregates: what it shows of them may be older.
    fn cluster_rules<'a>(&'a self, name: &str) -> Vec<&'a Rule> {
        let mut rules = Vec::new();
        let mut waiting = vec![name.to_owned()];
        let mut seen = Vec::new();
        while let Some(name) = waiting.pop() {
            let Some(role) = self.cluster_roles.get(&name).filter(|_| !seen.contains(&name)) else { continue };
            if role.aggregates.is_empty() {
                rules.extend(&role.rules);
            }
            for selector in &role.aggregates {
                let selected = self.cluster_roles.iter().filter(|(_, r)| selector.matches_object(&r.labels));
                waiting.extend(selected.map(|(name, _)| name.clone()));
            }
            seen.push(name);
        }
        rules
    }

    /// The bindings of a user in a namespace (or everywhere, when it is empty), each with the subject that the user is.
    fn bindings_of<'a>(&'a self, user: &User, namespace: &str) -> impl Iterator<Item = (&'a Binding, &'a str)> {
        let own = self.bindings.get(namespace).filter(|_| !namespace.is_empty());
        let all = self.cluster_bindings.values().chain(own.into_iter().flat_map(HashMap::values));
        all.filter_map(|binding| Some((binding, binding.subject(user)?)))
    }

    /// The rules that a user has in a namespace (or everywhere, when it is empty).
    fn rules_of<'a>(&'a self, user: &User, namespace: &str) -> Vec<&'a Rule> {
        let bindings = self.bindings_of(user, namespace);
        bindings.flat_map(|(binding, _)| self.rules_of_ref(&binding.role, namespace)).collect()
    }

    fn rules_of_ref<'a>(&'a self, role: &(bool, String), namespace: &str) -> Vec<&'a Rule> {
        self.referenced(role, namespace).unwrap_or_default()
    }

    /// The rules of a role of a namespace or of the cluster; `None` when there is no such role.
    fn referenced<'a>(&'a self, (cluster, name): &(bool, String), namespace: &str) -> Option<Vec<&'a Rule>> {
        if *cluster {
            return self.cluster_roles.contains_key(name).then(|| self.cluster_rules(name));
        }
        let role = self.roles.get(&(namespace.to_owned(), name.clone()))?;
        Some(role.rules.iter().collect())
    }
}

/// The index, and up to which revision it has seen the storage.
#[derive(Default)]
pub(crate) struct Rbac {
    index: RwLock<Index>,
    pub seen: Seen,
}

impl Rbac {
    /// By which binding a rule of the user's roles allows it, in Kubernetes' words; `None`: by none.
    pub fn allows(&self, user: &User, attributes: &Attributes<'_>) -> Option<String> {
        let index = self.index.read().expect("no panic under this lock");
        let mut bindings = index.bindings_of(user, attributes.namespace);
        let (binding, subject) = bindings.find(|(binding, _)| {
            index.rules_of_ref(&binding.role, attributes.namespace).iter().any(|rule| rule.allows(attributes))
        })?;
        Some(format!("RBAC: allowed by {} to {subject}", binding.told))
    }

    /// The rules that a user has in a namespace.
    pub fn rules(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let index = self.index.read().expect("no panic under this lock");
        index.rules_of(user, namespace).into_iter().cloned().collect()
    }

    /// The rules that a `roleRef` means in a namespace; `None` when there is no such role.
    pub fn referenced(&self, cluster: bool, name: &str, namespace: &str) -> Option<Vec<Rule>> {
        let index = self.index.read().expect("no panic under this lock");
        let rules = index.referenced(&(cluster, name.to_owned()), namespace)?;
        Some(rules.into_iter().cloned().collect())
    }

    fn replace(&self, listing: &Listing) {
        let mut index = Index::default();
        listing.entries.iter().for_each(|entry| index.apply(entry, false));
        *self.index.write().expect("no panic under this lock") = index;
        self.seen.reach(listing.revision);
    }

    fn apply<'a>(&self, entries: impl Iterator<Item = (&'a Entry, bool)>) {
        let mut index = self.index.write().expect("no panic under this lock");
        for (entry, deleted) in entries {
            index.apply(entry, deleted);
        }
    }
}

/// Begins to follow the storage.
pub(crate) async fn follow(server: &Arc<ApiServer>) -> StatusResult<()> {
    let mut following = Following::new(server, "roles and bindings");
    server.rbac.replace(&following.add((), GROUP_PREFIX).await?);
    tokio::spawn(run(following));
    Ok(())
}

async fn run(mut following: Following) {
    while let Some(Told { server, news, .. }) = following.next().await {
        match &news {
            News::Changes(events) => server.rbac.apply(events.iter().map(|event| (&*event.entry, event.deleted))),
            News::Everything(listing) => server.rbac.replace(listing),
        }
        server.rbac.seen.reach(news.revision());
    }
    if let Some(server) = following.server() {
        server.rbac.seen.end();
    }
}

/// What of `wanted` is not covered by `held` (`validation.Covers`, after breaking rules down to single permissions).
pub(crate) fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing = Vec::new();
    for rule in wanted {
        for single in break_down(rule) {
            if !held.iter().any(|h| h.covers(&single)) {
                missing.push(single);
            }
        }
    }
    missing
}

fn break_down(rule: &Rule) -> Vec<Rule> {
    let mut singles = Vec::new();
    for verb in &rule.verbs {
        for group in &rule.groups {
            for resource in &rule.resources {
                let base = Rule {
                    verbs: vec![verb.clone()],
                    groups: vec![group.clone()],
                    resources: vec![resource.clone()],
                    ..Rule::default()
                };
                if rule.names.is_empty() {
                    singles.push(base);
                } else {
                    singles.extend(rule.names.iter().map(|n| Rule { names: vec![n.clone()], ..base.clone() }));
                }
            }
        }
        singles.extend(rule.urls.iter().map(|url| Rule {
            verbs: vec![verb.clone()],
            urls: vec![url.clone()],
            ..Rule::default()
        }));
    }
    singles
}

/// Joins single permissions on resources that differ only in the verb, for messages (`CompactRules`).
pub(crate) fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut by_rest: BTreeMap<String, Rule> = BTreeMap::new();
    let mut order = Vec::new();
    let (on_paths, on_resources): (Vec<Rule>, Vec<Rule>) = rules.into_iter().partition(|rule| !rule.urls.is_empty());
    for rule in on_resources {
        let key = format!("{:?}", (&rule.groups, &rule.resources, &rule.names, &rule.urls));
        match by_rest.get_mut(&key) {
            Some(joined) => {
                joined.verbs.extend(rule.verbs.into_iter().filter(|v| !joined.verbs.contains(v)).collect::<Vec<_>>())
            }
            None => {
                order.push(key.clone());
                by_rest.insert(key, rule);
            }
        }
    }
    order.iter().filter_map(|key| by_rest.remove(key)).chain(on_paths).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Rule {
        Rule::parse(&json!({"verbs": verbs, "apiGroups": groups, "resources": resources}))
    }

    fn wants<'a>(verb: &'a str, resource: &'a str, subresource: &'a str) -> Attributes<'a> {
        Attributes { verb, resource, subresource, namespace: "a", name: "x", ..Attributes::default() }
    }

    #[test]
    fn the_reason_names_binding_role_and_subject() {
        let rbac = Rbac::default();
        let object = |key: &str, object: Value| {
            let entry = Entry::new(format!("{GROUP_PREFIX}{key}").into(), 1, object.to_string().into());
            rbac.apply([(&entry, false)].into_iter());
        };
        let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        object("clusterroles/all", json!({"metadata": {"name": "all"}, "rules": rules}));
        object("roles/a/own", json!({"metadata": {"name": "own", "namespace": "a"}, "rules": rules}));
        let group = json!([{"kind": "User", "name": "x"}, {"kind": "Group", "name": "g"}]);
        let to_all = json!({"kind": "ClusterRole", "name": "all"});
        object("clusterrolebindings/b", json!({"metadata": {"name": "b"}, "roleRef": to_all, "subjects": group}));
        let account = json!([{"kind": "ServiceAccount", "name": "sa"}]);
        let to_own = json!({"kind": "Role", "name": "own"});
        object(
            "rolebindings/a/c",
            json!({"metadata": {"name": "c", "namespace": "a"}, "roleRef": to_own, "subjects": account}),
        );
        let check = |user: User, expected: Option<&str>| {
            assert_eq!(rbac.allows(&user, &wants("get", "pods", "")).as_deref(), expected, "{user:?}");
        };
        // As the audit logs of real clusters show them.
        check(
            User::new("u", &["g"]),
            Some("RBAC: allowed by ClusterRoleBinding \"b\" of ClusterRole \"all\" to Group \"g\""),
        );
        let account = User::new("system:serviceaccount:a:sa", &[]);
        check(account, Some("RBAC: allowed by RoleBinding \"c/a\" of Role \"own\" to ServiceAccount \"sa/a\""));
        check(User::new("u", &[]), None);
    }

    #[test]
    fn subresources_are_resources_of_their_own() {
        let pods = rule(&["get"], &[""], &["pods"]);
        assert!(pods.allows(&wants("get", "pods", "")));
        assert!(!pods.allows(&wants("get", "pods", "log")));
        assert!(rule(&["get"], &[""], &["*/scale"]).allows(&wants("get", "x", "scale")));
        assert!(rule(&["*"], &["*"], &["*"]).allows(&wants("get", "pods", "log")));
    }

    #[test]
    fn paths_match_exactly_or_by_a_star_at_the_end() {
        let rule = Rule::parse(&json!({"verbs": ["get"], "nonResourceURLs": ["/healthz/*", "/version"]}));
        let path = |path| Attributes { verb: "get", path, ..Attributes::default() };
        assert!(rule.allows(&path("/healthz/ping")) && rule.allows(&path("/version")));
        assert!(!rule.allows(&path("/healthz")) && !rule.allows(&path("/version/x")));
    }

    #[test]
    fn nobody_grants_what_they_do_not_hold() {
        let held = [rule(&["get", "list"], &[""], &["pods"])];
        let wanted = [rule(&["get", "delete"], &[""], &["pods"])];
        let missing = compact(missing(&held, &wanted));
        assert_eq!(missing, [rule(&["delete"], &[""], &["pods"])]);
    }
}
