//! What may change about a pod whose scheduling is gated (KEP-3521, KEP-3838): it may be narrowed down, not widened.

use serde_json::{Value, json};

use super::update::same;
use crate::api::meta::items;
use crate::api::status::FieldError;
use crate::api::validation::Errors;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

/// Checks changes of `nodeSelector` and node affinity and then makes `munged` equal to `old` there, so that only other
/// changes are left. `munged` is the new spec.
pub fn narrowing(errors: &mut Errors, munged: &mut Value, old: &Value) {
    let Some(spec) = munged.as_object_mut() else { return };
    let null = Value::Null;
    let (selector, before) = (spec.get("nodeSelector").unwrap_or(&null), &old["nodeSelector"]);
    if !same(selector, before) {
        if before.as_object().is_some_and(|old| old.iter().any(|(key, value)| selector.get(key) != Some(value))) {
            let detail = "only additions are allowed to spec.nodeSelector (no mutations or deletions)";
            errors.push(FieldError::invalid("spec.nodeSelector", selector, detail));
        }
        spec.insert("nodeSelector".into(), before.clone());
    }
    let affinity = spec.get("affinity").unwrap_or(&null);
    let (node, before) = (&affinity["nodeAffinity"], &old["affinity"]["nodeAffinity"]);
    if same(node, before) {
        return;
    }
    node_affinity(errors, node, before);
    let mut affinity = affinity.clone();
    if !affinity.is_object() {
        affinity = json!({});
    }
    affinity["nodeAffinity"] = before.clone();
    let is_empty = affinity.as_object().is_some_and(|affinity| affinity.values().all(Value::is_null));
    spec.insert("affinity".into(), if is_empty && !old["affinity"].is_object() { Value::Null } else { affinity });
}

/// `validateNodeAffinityMutation`.
fn node_affinity(errors: &mut Errors, new: &Value, old: &Value) {
    if !old.is_object() {
        return;
    }
    let path = format!("spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms");
    let (before, after) = (&old[REQUIRED]["nodeSelectorTerms"], &new[REQUIRED]["nodeSelectorTerms"]);
    if items(before).is_empty() {
        return;
    }
    if items(before).len() != items(after).len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return errors.push(FieldError::invalid(path, after, detail));
    }
    for (index, (before, after)) in items(before).iter().zip(items(after)).enumerate() {
        let adds = |list: &str| {
            let (before, after) = (items(&before[list]), items(&after[list]));
            after.len() >= before.len() && before.iter().zip(after).all(|(before, after)| same(before, after))
        };
        // A term that matches nothing must not become one that matches something.
        let was_empty = items(&before["matchExpressions"]).is_empty() && items(&before["matchFields"]).is_empty();
        let grows = was_empty && !same(before, after);
        if grows || !adds("matchExpressions") || !adds("matchFields") {
            let detail = "only additions are allowed (no mutations or deletions)";
            errors.push(FieldError::invalid(format!("{path}[{index}]"), after, detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(new: Value, old: Value, expected: &str) {
        let mut errors = Errors::new();
        let mut munged = new.clone();
        narrowing(&mut errors, &mut munged, &old);
        let said: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        assert!(said.join("; ").ends_with(expected) && said.is_empty() == expected.is_empty(), "{said:?}");
        assert!(same(&munged, &old), "{munged} {old}");
    }

    fn terms(terms: &[&[&str]]) -> Value {
        let expressions = |keys: &&[&str]| {
            let keys: Vec<_> = keys.iter().map(|key| json!({"key": key, "operator": "Exists"})).collect();
            json!({"matchExpressions": keys})
        };
        let terms: Vec<_> = terms.iter().map(expressions).collect();
        json!({"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}})
    }

    #[test]
    fn selectors_only_grow() {
        let selector = |selector: Value| json!({"nodeSelector": selector});
        check(selector(json!({"a": "1", "b": "2"})), selector(json!({"a": "1"})), "");
        check(selector(json!({"a": "1"})), json!({}), "");
        let only = "only additions are allowed to spec.nodeSelector (no mutations or deletions)";
        check(selector(json!({"a": "2"})), selector(json!({"a": "1"})), only);
        check(json!({}), selector(json!({"a": "1"})), only);
    }

    #[test]
    fn terms_of_node_affinity_only_get_narrower() {
        check(terms(&[&["a"]]), json!({}), "");
        check(terms(&[&["a", "b"]]), terms(&[&["a"]]), "");
        let count = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        check(terms(&[&["a"], &["b"]]), terms(&[&["a"]]), count);
        check(json!({}), terms(&[&["a"]]), count);
        let only = "only additions are allowed (no mutations or deletions)";
        check(terms(&[&["b"]]), terms(&[&["a"]]), only);
        check(terms(&[&["a"]]), terms(&[&[]]), only);
    }

    #[test]
    fn affinity_to_pods_is_not_touched() {
        let with = |mut spec: Value| {
            spec["affinity"]["podAffinity"] = json!({"x": 1});
            spec
        };
        check(with(terms(&[&["a", "b"]])), with(terms(&[&["a"]])), "");
        let mut munged = with(json!({}));
        narrowing(&mut Errors::new(), &mut munged, &json!({}));
        assert!(!same(&munged, &json!({})), "this change is left for others to refuse");
    }
}
