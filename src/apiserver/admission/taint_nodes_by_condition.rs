//! `TaintNodesByCondition`: a new node takes no pods until the node controller has seen that it is ready.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::api::StatusResult;
use crate::api::meta::items;
use crate::apiserver::ApiServer;

const KEY: &str = "node.kubernetes.io/not-ready";
const EFFECT: &str = "NoSchedule";

pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Create && attributes.is("", "nodes")
    }

    async fn admit(&self, _: &ApiServer, _: &Attributes<'_>, node: &mut Value, _: Option<&Value>) -> StatusResult<()> {
        taint(node);
        Ok(())
    }
}

fn taint(node: &mut Value) {
    if !node["spec"].is_object() && !node["spec"].is_null() {
        return;
    }
    if items(&node["spec"]["taints"]).iter().any(|taint| taint["key"] == KEY && taint["effect"] == EFFECT) {
        return;
    }
    let taint = json!({"key": KEY, "effect": EFFECT});
    match node["spec"]["taints"].as_array_mut() {
        Some(all) => all.push(taint),
        None => node["spec"]["taints"] = json!([taint]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_is_tainted_once() {
        for spec in [Value::Null, json!({}), json!({"taints": [{"key": "mine", "effect": EFFECT}]})] {
            let mut node = json!({ "spec": spec });
            taint(&mut node);
            let once = node.clone();
            assert_eq!(items(&node["spec"]["taints"]).last(), Some(&json!({"key": KEY, "effect": EFFECT})));
            taint(&mut node);
            assert_eq!(node, once);
        }
        taint(&mut json!({"spec": "odd"}));
    }
}
