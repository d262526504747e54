//! Where a pod may run: tolerations against taints, node selectors and required affinity against nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, PodSpec, Taint, Toleration};

use super::selector::{contains, requirement};
use super::typed::Meta;

/// Whether the toleration covers the taint (`ToleratesTaint`).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let value = match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    };
    (effect.is_empty() || effect == taint.effect) && (key.is_empty() || key == taint.key) && value
}

/// Whether the pod's `nodeSelector` and required node affinity allow the node (`GetRequiredNodeAffinity`).
pub fn allows(spec: &PodSpec, node: &Node) -> bool {
    let selected = spec.node_selector.as_ref().is_none_or(|wanted| contains(node.labels(), wanted));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let matches = |term: &NodeSelectorTerm| term_matches(term, node.labels(), node.name());
    selected && required.is_none_or(|terms| terms.node_selector_terms.iter().any(matches))
}

/// Whether a term matches a node with these labels and this name; an empty term matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = name.to_owned();
    !(expressions.is_empty() && fields.is_empty())
        && expressions
            .iter()
            .all(|one| requirement(&one.operator, labels.get(&one.key), one.values.as_deref().unwrap_or_default()))
        && fields.iter().all(|one| {
            let values = one.values.as_deref().unwrap_or_default();
            one.key == "metadata.name" && requirement(&one.operator, Some(&name), values)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use serde_json::{Value, json};

    fn check(spec: Value, expected: bool) {
        let node = json!({"metadata": {"name": "n1", "labels": {"disk": "ssd", "cores": "8"}}});
        let node = Node::parse(&node).expect("a node");
        let spec: PodSpec = serde_json::from_value(spec).expect("a spec");
        assert_eq!(allows(&spec, &node), expected, "{spec:?}");
    }

    #[test]
    fn selectors_and_affinity_both_have_to_allow() {
        let affinity = |terms: Value| {
            json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
        };
        check(json!({"containers": []}), true);
        check(json!({"containers": [], "nodeSelector": {"disk": "ssd"}}), true);
        check(json!({"containers": [], "nodeSelector": {"disk": "hdd"}}), false);
        check(affinity(json!([{}])), false);
        check(affinity(json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}])), true);
        check(
            affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}])),
            false,
        );
        let second = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]});
        check(affinity(json!([{}, second])), true);
    }
}
