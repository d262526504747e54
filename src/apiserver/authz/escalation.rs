//! Nobody grants what they do not hold (`pkg/registry/rbac/*/policybased`): a plugin on writes of roles and bindings.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde_json::Value;

use super::Attributes as Wanted;
use super::rbac::{Rule, compact, missing};
use crate::api::kinds::gvr;
use crate::api::{Status, StatusResult, meta};
use crate::apiserver::admission::{Attributes, Operation, Plugin};
use crate::apiserver::{ApiServer, User};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) struct Escalation;

#[async_trait]
impl Plugin for Escalation {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.kind.gvr.group == GROUP && attributes.operation != Operation::Delete && !attributes.user.is_master()
    }

    async fn validate(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        object: &Value,
        old: Option<&Value>,
    ) -> StatusResult<()> {
        let resource = attributes.kind.gvr.resource.as_ref();
        let is_role = ["roles", "clusterroles"].contains(&resource);
        if old.is_some_and(|old| differs_for_the_collector_only(object, old)) {
            return Ok(());
        }
        let reference = &object["roleRef"];
        let cluster = reference["kind"] == "ClusterRole";
        let role = reference["name"].as_str().unwrap_or_default();
        // `escalate` on the role itself (whose name a create does not ask for), or `bind` on the role that is referred to,
        // permits it.
        let (verb, resource, name) = match (is_role, old) {
            (true, None) => ("escalate", resource, ""),
            (true, Some(_)) => ("escalate", resource, meta::name(object)),
            (false, _) => ("bind", if cluster { "clusterroles" } else { "roles" }, role),
        };
        let namespace = attributes.namespace;
        let wanted = Wanted { verb, group: GROUP, resource, namespace, name, ..Wanted::default() };
        if server.allowed(attributes.user, &wanted) {
            return Ok(());
        }
        let granted: Vec<Rule> = if is_role {
            object["rules"].as_array().into_iter().flatten().map(Rule::parse).collect()
        } else {
            let rules = server.rbac.referenced(cluster, role, namespace);
            let roles = if cluster { gvr::CLUSTER_ROLES } else { gvr::ROLES };
            rules.ok_or_else(|| Status::not_found(&roles, role))?
        };
        let held = server.rbac.rules(attributes.user, namespace);
        let lacking = missing(&held, &granted);
        if !lacking.is_empty() {
            let why = refusal(attributes.user, lacking);
            return Err(Status::forbidden(&attributes.kind.gvr, meta::name(object), &why));
        }
        // A role that selects others may come to grant anything.
        let aggregates = aggregates(object) || old.is_some_and(aggregates);
        if aggregates && !missing(&held, &full_authority()).is_empty() {
            let why = "must have cluster-admin privileges to use the aggregationRule";
            return Err(Status::forbidden(&attributes.kind.gvr, meta::name(object), why));
        }
        Ok(())
    }
}

/// Whether an update concerns nobody but the garbage collector (`IsOnlyMutatingGCFields`). Labels do not count as such:
/// other roles may select them.
fn differs_for_the_collector_only(object: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
                metadata.remove(field);
            }
        }
        object
    };
    rest(object) == rest(old)
}

/// Whether a role takes the rules of others.
fn aggregates(role: &Value) -> bool {
    role["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|selectors| !selectors.is_empty())
}

/// `*` on everything there is.
fn full_authority() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    [
        Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() },
        Rule { verbs: all(), urls: all(), ..Rule::default() },
    ]
}

/// What Kubernetes says of permissions that the user does not hold (`ConfirmNoEscalation`).
fn refusal(user: &User, lacking: Vec<Rule>) -> String {
    let lines: BTreeSet<String> = compact(lacking).iter().map(print).collect();
    let lines: Vec<String> = lines.into_iter().collect();
    format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        list(&user.groups),
        lines.join("\n")
    )
}

/// `["a" "b"]`, as Go prints a list of quoted texts.
fn list(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|t| format!("{t:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

fn print(rule: &Rule) -> String {
    let parts = [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.names),
        ("NonResourceURLs", &rule.urls),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> =
        parts.iter().filter(|(_, v)| !v.is_empty()).map(|(name, v)| format!("{name}:{}", list(v))).collect();
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::Gvr;
    use crate::apiserver::testing::{self, TestServer};
    use crate::env::Env;
    use crate::storage::{Limits, memory};

    const API: &str = "rbac.authorization.k8s.io/v1";

    /// A server where `name` has a cluster role with these rules.
    async fn with(name: &str, rules: Value) -> TestServer {
        let test = testing::start(memory(Limits::default()), Env::real()).await;
        let admin = User::master("admin");
        let role = json!({"metadata": {"name": name}, "rules": rules});
        test.server.local_create(&admin, &gvr::CLUSTER_ROLES, "", "", "", role).await.expect("a role");
        let binding = json!({"metadata": {"name": name}, "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": GROUP, "kind": "User", "name": name}]});
        test.server.local_create(&admin, &gvr::CLUSTER_ROLE_BINDINGS, "", "", "", binding).await.expect("a binding");
        test
    }

    async fn create(test: &TestServer, user: &str, gvr: &Gvr, object: Value) -> Result<(), Status> {
        let user = User::new(user, &["system:authenticated"]);
        test.server.local_create(&user, gvr, "", "", "", object).await.map(drop)
    }

    fn keeps_roles() -> Value {
        json!({"apiGroups": [GROUP], "resources": ["clusterroles", "clusterrolebindings"],
            "verbs": ["get", "create", "update"]})
    }

    fn role(name: &str, rules: Value) -> Value {
        json!({"apiVersion": API, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules})
    }

    fn aggregated(name: &str) -> Value {
        let mut role = role(name, json!([]));
        role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]});
        role
    }

    #[tokio::test]
    async fn who_aggregates_needs_everything() {
        let alice = with("alice", json!([keeps_roles()])).await;
        let refused = create(&alice, "alice", &gvr::CLUSTER_ROLES, aggregated("all")).await.expect_err("an escalation");
        assert_eq!(
            refused.message,
            "clusterroles.rbac.authorization.k8s.io \"all\" is forbidden: must have cluster-admin privileges to use the aggregationRule"
        );
        // Neither is it taken away from a role, nor put on one that exists.
        let (server, admin) = (&alice.server, User::master("admin"));
        server.local_create(&admin, &gvr::CLUSTER_ROLES, "", "", "", aggregated("all")).await.expect("it is new");
        let user = User::new("alice", &[]);
        let update = async |object: Value| {
            let name = meta::name(&object).to_owned();
            server.local_update(&user, &gvr::CLUSTER_ROLES, "", &name, "", object).await.map(drop)
        };
        assert_eq!(update(role("all", json!([]))).await.map_err(|status| status.code), Err(403));
        assert_eq!(update(aggregated("alice")).await.map_err(|status| status.code), Err(403));

        let everything = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
            {"nonResourceURLs": ["*"], "verbs": ["*"]}]);
        let bob = with("bob", everything).await;
        assert_eq!(create(&bob, "bob", &gvr::CLUSTER_ROLES, aggregated("all")).await, Ok(()));
        let escalate = json!({"apiGroups": [GROUP], "resources": ["clusterroles"], "verbs": ["escalate"]});
        let carol = with("carol", json!([keeps_roles(), escalate])).await;
        assert_eq!(create(&carol, "carol", &gvr::CLUSTER_ROLES, aggregated("all")).await, Ok(()));
    }

    #[tokio::test]
    async fn labels_grant_what_other_roles_select() {
        let alice = with("alice", json!([keeps_roles()])).await;
        let (server, admin) = (&alice.server, User::master("admin"));
        let secrets = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]}]);
        server.local_create(&admin, &gvr::CLUSTER_ROLES, "", "", "", role("r", secrets)).await.expect("it is new");
        let stored = server.local_get(&admin, &gvr::CLUSTER_ROLES, "", "r").await.expect("it is there");
        let user = User::new("alice", &["a", "b"]);
        let update = async |field: &str, value: Value| {
            let mut object = (*stored).clone();
            object["metadata"][field] = value;
            object["metadata"]["resourceVersion"] = "".into();
            server.local_update(&user, &gvr::CLUSTER_ROLES, "", "r", "", object).await.map(drop)
        };
        let label = json!({"rbac.authorization.k8s.io/aggregate-to-admin": "true"});
        assert_eq!(
            update("labels", label).await.expect_err("an escalation").message,
            "clusterroles.rbac.authorization.k8s.io \"r\" is forbidden: user \"alice\" (groups=[\"a\" \"b\"]) is attempting \
             to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}"
        );
        assert_eq!(update("finalizers", json!(["example.com/x"])).await, Ok(()));
    }

    #[tokio::test]
    async fn a_binding_needs_its_role_and_what_it_grants() {
        let bind =
            json!({"apiGroups": [GROUP], "resources": ["clusterroles"], "resourceNames": ["view"], "verbs": ["bind"]});
        let alice = with("alice", json!([keeps_roles(), bind])).await;
        let binding = |name: &str, role: &str| {
            json!({"metadata": {"name": name}, "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": GROUP, "kind": "User", "name": "alice"}]})
        };
        let code = async |name: &str, role: &str| {
            create(&alice, "alice", &gvr::CLUSTER_ROLE_BINDINGS, binding(name, role))
                .await
                .map_err(|status| status.code)
        };
        assert_eq!(code("a", "none").await, Err(404));
        assert_eq!(code("a", "cluster-admin").await, Err(403));
        assert_eq!(code("a", "view").await, Ok(()));
        assert_eq!(code("b", "alice").await, Ok(()), "they hold it");
        // Another subject of a role that they do not hold is a grant too.
        let (server, admin) = (&alice.server, User::master("admin"));
        let mut other = binding("c", "cluster-admin");
        other["subjects"][0]["name"] = "root".into();
        server.local_create(&admin, &gvr::CLUSTER_ROLE_BINDINGS, "", "", "", other).await.expect("it is new");
        let user = User::new("alice", &[]);
        let updated =
            server.local_update(&user, &gvr::CLUSTER_ROLE_BINDINGS, "", "c", "", binding("c", "cluster-admin")).await;
        assert_eq!(updated.map(drop).map_err(|status| status.code), Err(403));
    }
}
