//! Shows in ClusterRoles with an `aggregationRule` the rules of the roles that it selects
//! (`pkg/controller/clusterroleaggregation`). The authorizer does not wait for that; who reads a role does.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;

use super::caches::Caches;
use super::plan::{Action, Plan};
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::typed::{Meta, gvr};
use crate::client::{Patch, selector};

/// The controller; its keys are ClusterRoles.
pub struct ClusterRoleAggregationController;

impl Controller for ClusterRoleAggregationController {
    fn name(&self) -> &'static str {
        "clusterrole-aggregation-controller"
    }
    fn account(&self) -> &'static str {
        "clusterrole-aggregation-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let (add, roles) = (enqueue.clone(), caches.cluster_roles.clone());
        // There are few of them, and a change may concern all that aggregate.
        caches.cluster_roles.subscribe(move |_| {
            let aggregating = roles.list().into_iter().filter(|role| role.aggregation_rule.is_some());
            aggregating.for_each(|role| add.add(Key::of(&*role)));
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(role) = caches.cluster_roles.get(key) else { return plan };
        let Some(rules) = aggregated(&role, caches.cluster_roles.list()) else { return plan };
        if role.rules.as_deref().unwrap_or_default() != rules {
            let patch = Patch::Merge(json!({"rules": rules}));
            plan.push(Action::patch(gvr::<ClusterRole>(), key.clone(), "", patch).tolerate(&["NotFound"]));
        }
        plan
    }
}

/// The rules of all roles that a role selects but itself: selector by selector, by name, none twice. `None`: it has rules of
/// its own.
fn aggregated(role: &ClusterRole, mut roles: Vec<Arc<ClusterRole>>) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    roles.retain(|other| other.name() != role.name());
    roles.sort_by(|a, b| a.name().cmp(b.name()));
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        for other in roles.iter().filter(|other| selector::matches(Some(selector), other.labels())) {
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::client::Object;
    use crate::controllers::plan::Write;

    fn rule(resource: &str) -> Value {
        json!({"apiGroups": [""], "resources": [resource], "verbs": ["get"]})
    }

    fn role(name: &str, labels: Value, rules: &[&str]) -> Value {
        let rules: Vec<Value> = rules.iter().map(|resource| rule(resource)).collect();
        json!({"metadata": {"name": name, "labels": labels}, "rules": rules})
    }

    fn aggregate(mut role: Value, labels: &[(&str, &str)]) -> Value {
        let selectors: Vec<Value> = labels.iter().map(|(key, value)| json!({"matchLabels": {*key: *value}})).collect();
        role["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
        role
    }

    /// The resources of the rules that the role gets, if it is written.
    fn check(name: &str, roles: &[Value]) -> Option<Vec<String>> {
        let caches = Caches::default();
        roles.iter().for_each(|role| caches.cluster_roles.put(Arc::new(ClusterRole::parse(role).expect("a role"))));
        let plan = ClusterRoleAggregationController.reconcile(&caches, &Key::new("", name), Timestamp::UNIX_EPOCH);
        plan.actions().find_map(|action| match &action.write {
            Write::Patch { patch: Patch::Merge(patch), .. } => Some(
                patch["rules"]
                    .as_array()?
                    .iter()
                    .map(|rule| rule["resources"][0].as_str().unwrap_or("").into())
                    .collect(),
            ),
            _ => None,
        })
    }

    // The cases of clusterroleaggregation_controller_test.go.
    #[test]
    fn rules_are_gathered_by_name_and_none_twice() {
        let (foo, bar) = (json!({"foo": "bar"}), json!({"baz": "bar"}));
        let hammer = aggregate(role("hammer", json!({"foo": "bar"}), &[]), &[("foo", "bar")]);
        let expect = |rules: &[&str]| Some(rules.iter().map(|rule| (*rule).to_owned()).collect::<Vec<String>>());
        let lever = role("lever", foo.clone(), &["first"]);
        assert_eq!(check("hammer", &[hammer.clone(), lever.clone()]), expect(&["first"]), "not itself");
        let screw = role("screw", foo.clone(), &["second", "first"]);
        assert_eq!(check("hammer", &[screw.clone(), hammer.clone(), lever.clone()]), expect(&["first", "second"]));
        let other = role("axe", bar, &["third"]);
        assert_eq!(check("hammer", &[other.clone(), hammer.clone()]), None, "nothing is selected");
        let both = aggregate(role("hammer", json!({}), &[]), &[("foo", "bar"), ("baz", "bar")]);
        assert_eq!(check("hammer", &[both, other, lever.clone()]), expect(&["first", "third"]));
        let done = aggregate(role("hammer", json!({}), &["first"]), &[("foo", "bar")]);
        assert_eq!(check("hammer", &[done, lever.clone()]), None, "it shows them already");
        let own = aggregate(role("hammer", json!({}), &["own"]), &[("foo", "bar")]);
        assert_eq!(check("hammer", &[own, lever]), expect(&["first"]), "what was written by hand goes");
        assert_eq!(check("screw", &[screw]), None, "it does not aggregate");
    }
}
