//! `RuntimeClass`: a pod's runtime class must exist; its overhead and scheduling become the pod's, and must not contradict it.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::api::meta::{items, text};
use crate::api::{Status, StatusResult, meta};
use crate::apiserver::{ApiServer, registry};

pub(super) struct RuntimeClass;

#[async_trait]
impl Plugin for RuntimeClass {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Create && attributes.is("", "pods")
    }

    async fn admit(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        pod: &mut Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        let class = class_of(server, attributes, pod).await?;
        apply(&class, pod).map_err(|why| Status::forbidden(&attributes.kind.gvr, meta::name(pod), &why))
    }

    async fn validate(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        pod: &Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        let class = class_of(server, attributes, pod).await?;
        check_overhead(&class, pod).map_err(|why| Status::forbidden(&attributes.kind.gvr, meta::name(pod), &why))
    }
}

/// The pod's class; null when it names none.
async fn class_of(server: &ApiServer, attributes: &Attributes<'_>, pod: &Value) -> StatusResult<Value> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str().filter(|n| !n.is_empty()) else {
        return Ok(Value::Null);
    };
    let key = registry::key("node.k8s.io", "runtimeclasses", "", name);
    let class = server.storage.get(&key).await.map_err(registry::storage_failed)?;
    class.map(|class| class.value().as_ref().clone()).ok_or_else(|| {
        let why = format!("pod rejected: RuntimeClass {name:?} not found");
        Status::forbidden(&attributes.kind.gvr, meta::name(pod), &why)
    })
}

const OVERHEAD_DIFFERS: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

fn apply(class: &Value, pod: &mut Value) -> Result<(), String> {
    let overhead = &class["overhead"]["podFixed"];
    if !class["overhead"].is_null() {
        if !is_empty(&pod["spec"]["overhead"]) && pod["spec"]["overhead"] != *overhead {
            return Err(OVERHEAD_DIFFERS.into());
        }
        pod["spec"]["overhead"] = overhead.clone();
    }
    for (key, wanted) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let own = &pod["spec"]["nodeSelector"][key];
        if !own.is_null() && own != wanted {
            let (own, wanted) = (text(own), text(wanted));
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {own}"
            ));
        }
        pod["spec"]["nodeSelector"][key] = wanted.clone();
    }
    let theirs = items(&class["scheduling"]["tolerations"]);
    if !theirs.is_empty() {
        let all = [items(&pod["spec"]["tolerations"]), theirs].concat();
        pod["spec"]["tolerations"] = json!(merged(&all));
    }
    Ok(())
}

fn check_overhead(class: &Value, pod: &Value) -> Result<(), String> {
    let (wanted, own) = (&class["overhead"]["podFixed"], &pod["spec"]["overhead"]);
    if class["overhead"].is_null() {
        return match is_empty(own) {
            true => Ok(()),
            false => Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".into()),
        };
    }
    let same = wanted == own || is_empty(wanted) && is_empty(own);
    if same { Ok(()) } else { Err(OVERHEAD_DIFFERS.into()) }
}

fn is_empty(map: &Value) -> bool {
    map.as_object().is_none_or(serde_json::Map::is_empty)
}

/// The tolerations without those that another one includes; of equal ones the first stays.
fn merged(all: &[Value]) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for (index, toleration) in all.iter().enumerate() {
        let later = all[index + 1..].iter().any(|other| other != toleration && includes(other, toleration));
        if !later && !kept.iter().any(|other| includes(other, toleration)) {
            kept.push(toleration.clone());
        }
    }
    kept
}

/// Whether `wide` tolerates all that `narrow` does.
fn includes(wide: &Value, narrow: &Value) -> bool {
    if wide == narrow {
        return true;
    }
    let exists = wide["operator"] == "Exists";
    let key = wide["key"] == narrow["key"] || text(&wide["key"]).is_empty() && exists;
    let effect = wide["effect"] == narrow["effect"] || text(&wide["effect"]).is_empty();
    let seconds = match (&wide["effect"], wide["tolerationSeconds"].as_i64()) {
        (effect, Some(most)) if effect == "NoExecute" => {
            narrow["tolerationSeconds"].as_i64().is_some_and(|seconds| seconds <= most)
        }
        _ => true,
    };
    let operator = |toleration: &Value| text(&toleration["operator"]).replace("Equal", "");
    let value = exists || operator(wide) == operator(narrow) && text(&wide["value"]) == text(&narrow["value"]);
    key && effect && seconds && value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_class_says_becomes_the_pods_or_contradicts_it() {
        let class = json!({"overhead": {"podFixed": {"cpu": "250m"}}, "scheduling": {
            "nodeSelector": {"kind": "isolated"}, "tolerations": [{"key": "isolated", "operator": "Exists"}]}});
        let mut pod =
            json!({"spec": {"tolerations": [{"key": "isolated", "operator": "Exists", "effect": "NoSchedule"}]}});
        apply(&class, &mut pod).expect("no contradiction");
        assert_eq!(
            pod["spec"],
            json!({"overhead": {"cpu": "250m"}, "nodeSelector": {"kind": "isolated"},
                "tolerations": [{"key": "isolated", "operator": "Exists"}]})
        );
        check_overhead(&class, &pod).expect("the same");
        let mut other = json!({"spec": {"nodeSelector": {"kind": "mine"}}});
        assert_eq!(
            apply(&class, &mut other).expect_err("another node"),
            "conflict: runtimeClass.scheduling.nodeSelector[kind] = isolated; pod.spec.nodeSelector[kind] = mine"
        );
        let mut other = json!({"spec": {"overhead": {"cpu": "1"}}});
        assert_eq!(apply(&class, &mut other).expect_err("another overhead"), OVERHEAD_DIFFERS);
        assert_eq!(
            check_overhead(&Value::Null, &other).expect_err("none is defined"),
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
        );
    }

    #[test]
    fn of_tolerations_the_widest_stay() {
        let all = json!([{"key": "a", "operator": "Equal", "value": "1", "effect": "NoExecute", "tolerationSeconds": 30},
            {"key": "b", "value": "1"}, {"key": "b", "value": "2"}, {"key": "a", "operator": "Exists"},
            {"key": "b", "value": "1"}]);
        let kept = merged(items(&all));
        assert_eq!(
            json!(kept),
            json!([{"key": "b", "value": "1"}, {"key": "b", "value": "2"}, {"key": "a", "operator": "Exists"}])
        );
        let short = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let long = json!({"key": "a", "operator": "Exists", "effect": "NoExecute"});
        assert!(includes(&long, &short) && !includes(&short, &long));
        assert!(includes(&json!({"operator": "Exists"}), &short));
    }
}
