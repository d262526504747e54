//! The APIServices of what this server serves itself (kube-aggregator's auto-registration): those of built-in group versions once at
//! the start, those of custom resources as long as they are served.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};

use super::{ApiServer, USER, availability};
use crate::api::kinds::api_service::MANAGED;
use crate::api::meta;
use crate::api::{Kind, StatusResult};
use crate::apiserver::registry::Context;
use crate::apiserver::registry::delete_options::DeleteOptions;
use crate::apiserver::registry::update::Part;
use crate::apiserver::{User, codec};

/// `groupPriorityMinimum` and `versionPriority` of built-in group versions (`apiVersionPriorities` of kube-apiserver).
const PRIORITIES: [(&str, &str, i64, i64); 22] = [
    ("", "v1", 18_000, 1),
    ("apps", "v1", 17_800, 15),
    ("events.k8s.io", "v1", 17_750, 15),
    ("authentication.k8s.io", "v1", 17_700, 15),
    ("authorization.k8s.io", "v1", 17_600, 15),
    ("autoscaling", "v1", 17_500, 15),
    ("autoscaling", "v2", 17_500, 30),
    ("batch", "v1", 17_400, 15),
    ("certificates.k8s.io", "v1", 17_300, 15),
    ("networking.k8s.io", "v1", 17_200, 15),
    ("policy", "v1", 17_100, 15),
    ("rbac.authorization.k8s.io", "v1", 17_000, 15),
    ("storage.k8s.io", "v1", 16_800, 15),
    ("apiextensions.k8s.io", "v1", 16_700, 15),
    ("admissionregistration.k8s.io", "v1", 16_700, 15),
    ("scheduling.k8s.io", "v1", 16_600, 15),
    ("coordination.k8s.io", "v1", 16_500, 15),
    ("node.k8s.io", "v1", 16_300, 15),
    ("discovery.k8s.io", "v1", 16_200, 15),
    ("flowcontrol.apiserver.k8s.io", "v1", 16_100, 21),
    ("internal.apiserver.k8s.io", "v1alpha1", 16_000, 9),
    ("resource.k8s.io", "v1", 15_900, 15),
];
/// Those of custom resources.
const CUSTOM: (i64, i64) = (1_000, 100);

/// The priorities of a group version that this server serves itself; `apiregistration.k8s.io` comes first of all.
pub(crate) fn priority(group: &str, version: &str) -> (i64, i64) {
    if group == "apiregistration.k8s.io" {
        return (20_000, 15);
    }
    built_in(group, version).unwrap_or(CUSTOM)
}

fn built_in(group: &str, version: &str) -> Option<(i64, i64)> {
    let found = PRIORITIES.iter().find(|(g, v, ..)| *g == group && *v == version);
    found.map(|(.., group, version)| (*group, *version))
}

/// A write that brings the registrations closer to what they should be.
#[derive(Debug, PartialEq)]
enum Step {
    Create(Value),
    /// Gives the object this `spec`.
    Update(String, Value),
    Delete(String),
}

/// What should be registered, by name.
fn wanted(kinds: &[Arc<Kind>]) -> BTreeMap<String, Value> {
    let mut wanted = BTreeMap::new();
    for kind in kinds {
        let (group, version) = (&*kind.gvr.group, &*kind.gvr.version);
        let (managed, priority) = match kind.strategy.custom() {
            Some(_) => ("true", Some(CUSTOM)),
            None => ("onstart", built_in(group, version)),
        };
        let Some((group_priority, version_priority)) = priority else { continue };
        let mut spec =
            json!({"version": version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority});
        if !group.is_empty() {
            spec["group"] = group.into();
        }
        let name = format!("{version}.{group}");
        let object = json!({"metadata": {"name": name, "labels": {MANAGED: managed}}, "spec": spec});
        wanted.entry(name).or_insert(object);
    }
    wanted
}

fn managed(object: &Value) -> &str {
    object["metadata"]["labels"][MANAGED].as_str().unwrap_or_default()
}

/// What is to be done (the table above `checkAPIService`). An APIService without the label is its owner's.
fn plan(there: &BTreeMap<String, Arc<Value>>, wanted: &BTreeMap<String, Value>, at_start: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    for (name, object) in wanted {
        if managed(object) == "onstart" && !at_start {
            continue;
        }
        match there.get(name) {
            None => steps.push(Step::Create(object.clone())),
            Some(old) if managed(old).is_empty() || managed(old) == "onstart" && !at_start => {}
            Some(old) if old["spec"] == object["spec"] => {}
            Some(_) => steps.push(Step::Update(name.clone(), object["spec"].clone())),
        }
    }
    let is_ours = |object: &Value| managed(object) == "true" || managed(object) == "onstart" && at_start;
    let gone = there.iter().filter(|(name, object)| !wanted.contains_key(*name) && is_ours(object));
    steps.extend(gone.map(|(name, _)| Step::Delete(name.clone())));
    steps
}

/// Registers everything, and says of it that it is available, before anybody looks.
pub(super) async fn at_start(server: &ApiServer, kind: &Arc<Kind>) -> StatusResult<()> {
    let steps = plan(&server.aggregation.all(), &wanted(&server.kinds.snapshot().all), true);
    try_join_all(steps.iter().map(|step| take(server, kind, step, true))).await?;
    Ok(())
}

/// Registers the custom resources that are served, and no others.
pub(super) async fn keep(server: &ApiServer, kind: &Arc<Kind>) {
    let steps = plan(&server.aggregation.all(), &wanted(&server.kinds.snapshot().all), false);
    for result in join_all(steps.iter().map(|step| take(server, kind, step, false))).await {
        if let Err(status) = result {
            tracing::warn!(%status, "cannot register a group version");
        }
    }
}

async fn take(server: &ApiServer, kind: &Arc<Kind>, step: &Step, and_available: bool) -> StatusResult<()> {
    let user = User::master(USER);
    let context = Context::new(&user);
    let outcome = match step {
        Step::Create(object) => {
            let made = server.create(&context, kind, "", codec::made(object.clone())).await;
            if made.is_ok() && and_available {
                let now = server.env.now();
                let make = |current: &Value| {
                    let mut object = current.clone();
                    availability::set(&mut object, &availability::local(), now);
                    Ok(object)
                };
                server.change(&context, kind, "", meta::name(object), Part::Status, make).await?;
            }
            made.map(drop)
        }
        Step::Update(name, spec) => {
            let make = |current: &Value| {
                let mut object = current.clone();
                object["spec"] = spec.clone();
                Ok(object)
            };
            server.change(&context, kind, "", name, Part::Main, make).await.map(drop)
        }
        Step::Delete(name) => server.delete(&context, kind, "", name, &DeleteOptions::default()).await.map(drop),
    };
    match outcome {
        // Somebody was faster.
        Err(status) if !status.is_already_exists() && !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(managed: Option<&str>, version_priority: i64) -> Value {
        let labels = managed.map_or(json!({}), |managed| json!({MANAGED: managed}));
        json!({"metadata": {"name": "v1.a", "labels": labels}, "spec": {"versionPriority": version_priority}})
    }

    /// One wanted and one present registration of the same name; the kinds of steps.
    fn steps(there: Option<Value>, wanted: Option<Value>, at_start: bool) -> &'static str {
        let map = |object: Option<Value>| object.map(|object| ("v1.a".to_owned(), object)).into_iter();
        let there = map(there).map(|(name, object)| (name, Arc::new(object))).collect();
        match plan(&there, &map(wanted).collect(), at_start).as_slice() {
            [] => "",
            [Step::Create(_)] => "create",
            [Step::Update(..)] => "update",
            [Step::Delete(_)] => "delete",
            more => panic!("{more:?}"),
        }
    }

    #[test]
    fn the_table_of_kube_aggregator() {
        let (start, later) = (true, false);
        let made = |managed: &str| Some(object(Some(managed), 1));
        let other = |managed: &str| Some(object(Some(managed), 2));
        let owned = || Some(object(None, 2));
        // Not there.
        assert_eq!(steps(None, None, start), "");
        assert_eq!(steps(None, made("onstart"), start), "create");
        assert_eq!(steps(None, made("onstart"), later), "");
        assert_eq!(steps(None, made("true"), later), "create");
        // Somebody's own.
        assert_eq!(steps(owned(), None, start), "");
        assert_eq!(steps(owned(), made("true"), start), "");
        // Made at a start.
        assert_eq!(steps(other("onstart"), None, later), "");
        assert_eq!(steps(other("onstart"), None, start), "delete");
        assert_eq!(steps(other("onstart"), made("onstart"), start), "update");
        assert_eq!(steps(other("onstart"), made("onstart"), later), "");
        // Kept always.
        assert_eq!(steps(other("true"), None, later), "delete");
        assert_eq!(steps(other("true"), made("true"), later), "update");
        assert_eq!(steps(made("true"), made("true"), later), "");
    }

    #[test]
    fn every_built_in_group_version_is_registered_but_the_aggregators_own() {
        let kinds = crate::api::kinds::all();
        let wanted = wanted(&kinds);
        for kind in kinds.iter().filter(|kind| kind.gvr.group != "apiregistration.k8s.io") {
            assert!(wanted.contains_key(&format!("{}.{}", kind.gvr.version, kind.gvr.group)), "{:?}", kind.gvr);
        }
        assert!(!wanted.contains_key("v1.apiregistration.k8s.io"));
        assert_eq!(
            wanted["v1.apps"]["spec"],
            json!({"group": "apps", "version": "v1", "groupPriorityMinimum": 17800, "versionPriority": 15})
        );
    }
}
