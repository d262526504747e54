//! `DefaultTolerationSeconds`: pods stay five minutes on a node that is not ready or unreachable.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::api::StatusResult;
use crate::apiserver::ApiServer;

const SECONDS: i64 = 300;

pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Create && attributes.is("", "pods")
    }

    async fn admit(&self, _: &ApiServer, _: &Attributes<'_>, pod: &mut Value, _: Option<&Value>) -> StatusResult<()> {
        tolerate(pod);
        Ok(())
    }
}

fn tolerate(pod: &mut Value) {
    if !pod["spec"].is_object() {
        return;
    }
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerations = pod["spec"]["tolerations"].as_array();
        let tolerated = tolerations.into_iter().flatten().any(|t| {
            let text = |field: &str| t[field].as_str().unwrap_or_default();
            (text("key") == key || text("key").is_empty()) && ["", "NoExecute"].contains(&text("effect"))
        });
        if tolerated {
            continue;
        }
        let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS});
        match pod["spec"]["tolerations"].as_array_mut() {
            Some(all) => all.push(toleration),
            None => pod["spec"]["tolerations"] = json!([toleration]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toleration_of_its_own_is_left_alone() {
        let mut pod = json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]}});
        tolerate(&mut pod);
        let keys: Vec<_> =
            pod["spec"]["tolerations"].as_array().into_iter().flatten().map(|t| t["key"].clone()).collect();
        assert_eq!(keys, ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]);
    }
}
