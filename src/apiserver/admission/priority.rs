//! `Priority`: a pod's priority and preemption policy are those of its class, or of the global default class.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::api::kinds::priority_class::SYSTEM;
use crate::api::meta::{self, text};
use crate::api::{Status, StatusResult};
use crate::apiserver::{ApiServer, registry};

const GROUP: &str = "scheduling.k8s.io";
const CLASSES: &str = "priorityclasses";

pub(super) struct Priority;

#[async_trait]
impl Plugin for Priority {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
        (writes && attributes.is("", "pods"))
            || (attributes.operation != Operation::Connect && attributes.is(GROUP, CLASSES))
    }

    async fn admit(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        object: &mut Value,
        old: Option<&Value>,
    ) -> StatusResult<()> {
        if !attributes.is("", "pods") || !object["spec"].is_object() {
            return Ok(());
        }
        if let Some(old) = old {
            keep(object, old);
            return Ok(());
        }
        let class = match text(&object["spec"]["priorityClassName"]) {
            "" => default_class(server).await?,
            name => {
                let why = format!("no PriorityClass with name {name} was found");
                let missing = || Status::forbidden(&attributes.kind.gvr, meta::name(object), &why);
                Some(find(server, name).await?.ok_or_else(missing)?)
            }
        };
        prioritise(object, class.as_deref())
            .map_err(|why| Status::forbidden(&attributes.kind.gvr, meta::name(object), &why))
    }

    async fn validate(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        object: &Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        if !attributes.is(GROUP, CLASSES) {
            return Ok(());
        }
        let forbidden = |name: &str, why: &str| Err(Status::forbidden(&attributes.kind.gvr, name, why));
        if attributes.operation == Operation::Delete {
            return match SYSTEM.iter().any(|class| class.name == attributes.name) {
                true => forbidden(&attributes.name, "this is a system priority class and cannot be deleted"),
                false => Ok(()),
            };
        }
        if object["globalDefault"] == true {
            let there = default_class(server).await?;
            let other = there
                .as_deref()
                .map(meta::name)
                .filter(|name| attributes.operation == Operation::Create || *name != meta::name(object));
            if let Some(name) = other {
                let why = format!("PriorityClass {name} is already marked as default. Only one default can exist");
                return forbidden(meta::name(object), &why);
            }
        }
        Ok(())
    }
}

/// The class with this name.
async fn find(server: &ApiServer, name: &str) -> StatusResult<Option<Arc<Value>>> {
    let entry = server.storage.get(&registry::key(GROUP, CLASSES, "", name)).await.map_err(registry::storage_failed)?;
    Ok(entry.map(|entry| entry.value()))
}

/// The global default class; of several the one with the lowest value.
async fn default_class(server: &ApiServer) -> StatusResult<Option<Arc<Value>>> {
    let prefix = registry::prefix(GROUP, CLASSES, "");
    let classes = server.storage.list(&prefix, None, 0, 0).await.map_err(registry::storage_failed)?;
    let defaults = classes.entries.iter().map(|entry| entry.value()).filter(|class| class["globalDefault"] == true);
    Ok(defaults.min_by_key(|class| class["value"].as_i64()))
}

/// An update that leaves the two fields out does not mean to change them.
fn keep(pod: &mut Value, old: &Value) {
    for field in ["priority", "preemptionPolicy"] {
        if pod["spec"][field].is_null() && !old["spec"][field].is_null() {
            pod["spec"][field] = old["spec"][field].clone();
        }
    }
}

/// Gives a pod what its class says; without any class 0 and `PreemptLowerPriority`.
///
/// # Errors
/// The pod says something else: why it is forbidden.
fn prioritise(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    let value = class.and_then(|class| class["value"].as_i64()).unwrap_or_default();
    let policy = class.map_or("PreemptLowerPriority", |class| text(&class["preemptionPolicy"]));
    let spec = &mut pod["spec"];
    if let Some(asked) = spec["priority"].as_i64().filter(|asked| *asked != value) {
        return Err(format!(
            "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name"
        ));
    }
    let asked = text(&spec["preemptionPolicy"]);
    if !policy.is_empty() && !spec["preemptionPolicy"].is_null() && asked != policy {
        return Err(format!(
            "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        ));
    }
    if let Some(class) = class {
        spec["priorityClassName"] = meta::name(class).into();
    }
    spec["priority"] = value.into();
    if !policy.is_empty() {
        spec["preemptionPolicy"] = policy.into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_gets_what_its_class_says_and_may_not_say_otherwise() {
        let class = json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"});
        let check = |spec: Value, class: Option<&Value>, expected: Result<Value, &str>| {
            let mut pod = json!({ "spec": spec });
            let said = prioritise(&mut pod, class).map(|()| pod["spec"].clone());
            assert_eq!(said, expected.map_err(str::to_owned));
        };
        let set = json!({"priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never"});
        check(json!({}), Some(&class), Ok(set.clone()));
        check(set.clone(), Some(&class), Ok(set));
        check(json!({}), None, Ok(json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"})));
        check(
            json!({"priority": 2}),
            None,
            Err("the integer value of priority (2) must not be provided in pod spec; priority admission controller \
                 computed 0 from the given PriorityClass name"),
        );
        check(
            json!({"preemptionPolicy": "PreemptLowerPriority"}),
            Some(&class),
            Err(
                "the string value of PreemptionPolicy (PreemptLowerPriority) must not be provided in pod spec; priority \
                 admission controller computed Never from the given PriorityClass name",
            ),
        );
    }

    #[test]
    fn an_update_keeps_the_priority() {
        let old = json!({"spec": {"priority": 7, "preemptionPolicy": "Never"}});
        let mut pod = json!({"spec": {"priority": 8}});
        keep(&mut pod, &old);
        assert_eq!(pod, json!({"spec": {"priority": 8, "preemptionPolicy": "Never"}}));
    }
}
