//! `matchLabelKeys` and `mismatchLabelKeys`: a new pod's own labels become part of its selectors (KEP-3633, KEP-3243).

use serde_json::{Value, json};

use crate::api::kinds::defaulting::each;
use crate::api::meta::{items, text};
use crate::api::status::FieldError;
use crate::api::validation::Errors;
use crate::api::validation::meta::label_name;

/// Puts what the keys mean into the label selectors of affinity terms and spread constraints.
pub fn merge(pod: &mut Value) {
    let labels = pod["metadata"]["labels"].clone();
    let Some(spec) = pod.get_mut("spec") else { return };
    for constraint in each(spec, "topologySpreadConstraints") {
        merge_into(constraint, &labels);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.get_mut("affinity").and_then(|affinity| affinity.get_mut(kind)) else { continue };
        for term in each(affinity, "requiredDuringSchedulingIgnoredDuringExecution") {
            merge_into(term, &labels);
        }
        for preference in each(affinity, "preferredDuringSchedulingIgnoredDuringExecution") {
            if let Some(term) = preference.get_mut("podAffinityTerm") {
                merge_into(term, &labels);
            }
        }
    }
}

fn merge_into(term: &mut Value, labels: &Value) {
    // Without a selector the term means nobody, and no key changes that.
    if !term["labelSelector"].is_object() {
        return;
    }
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in items(&term[list]).to_vec() {
            let Some(value) = labels.get(text(&key)).filter(|value| value.is_string()) else { continue };
            let requirement = json!({"key": key, "operator": operator, "values": [value]});
            let expressions = &mut term["labelSelector"]["matchExpressions"];
            match expressions.as_array_mut() {
                Some(all) => all.push(requirement),
                None => *expressions = json!([requirement]),
            }
        }
    }
}

/// The keys of an affinity term (`validateMatchLabelKeysAndMismatchLabelKeys`).
pub fn affinity_term(errors: &mut Errors, term: &Value, path: &str) {
    let selector = &term["labelSelector"];
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        names(errors, &term[list], selector, &format!("{path}.{list}"));
    }
    doubled(errors, &term["matchLabelKeys"], selector, path);
    for (index, key) in items(&term["matchLabelKeys"]).iter().enumerate() {
        if items(&term["mismatchLabelKeys"]).contains(key) {
            let path = format!("{path}.matchLabelKeys[{index}]");
            errors.push(FieldError::invalid(path, key, "exists in both matchLabelKeys and mismatchLabelKeys"));
        }
    }
}

/// The keys of a spread constraint.
pub fn spread_constraint(errors: &mut Errors, constraint: &Value, path: &str) {
    let (keys, selector, path) =
        (&constraint["matchLabelKeys"], &constraint["labelSelector"], format!("{path}.matchLabelKeys"));
    names(errors, keys, selector, &path);
    doubled(errors, keys, selector, &path);
}

fn names(errors: &mut Errors, keys: &Value, selector: &Value, path: &str) {
    if items(keys).is_empty() {
        return;
    }
    if !selector.is_object() {
        return errors.push(FieldError::forbidden(path, "must not be specified when labelSelector is not set"));
    }
    for (index, key) in items(keys).iter().enumerate() {
        errors.extend(label_name(text(key), &format!("{path}[{index}]")));
    }
}

/// A key whose requirement was added must not have been in the selector before.
fn doubled(errors: &mut Errors, keys: &Value, selector: &Value, path: &str) {
    let mut seen: Vec<&str> =
        selector["matchLabels"].as_object().into_iter().flatten().map(|(key, _)| &**key).collect();
    for expression in items(&selector["matchExpressions"]) {
        let key = text(&expression["key"]);
        let at = items(keys).iter().position(|listed| text(listed) == key);
        if let Some(index) = at.filter(|_| seen.contains(&key)) {
            let detail = "exists in both matchLabelKeys and labelSelector";
            errors.push(FieldError::invalid(format!("{path}[{index}]"), &key.into(), detail));
        }
        seen.push(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_labels_become_requirements_once() {
        let term = json!({"topologyKey": "z", "labelSelector": {"matchLabels": {"app": "x"}},
            "matchLabelKeys": ["hash", "absent"], "mismatchLabelKeys": ["tenant"]});
        let spread = json!({"labelSelector": {}, "matchLabelKeys": ["hash"]});
        let unselected = json!({"matchLabelKeys": ["hash"]});
        let mut pod = json!({"metadata": {"labels": {"hash": "1", "tenant": "t"}}, "spec": {
            "topologySpreadConstraints": [spread, unselected],
            "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]},
                "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}});
        merge(&mut pod);
        let own = json!({"key": "hash", "operator": "In", "values": ["1"]});
        let others = json!({"key": "tenant", "operator": "NotIn", "values": ["t"]});
        let affinity = &pod["spec"]["affinity"];
        let expected = json!({"matchLabels": {"app": "x"}, "matchExpressions": [own, others]});
        let preferred = &affinity["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0];
        assert_eq!(preferred["podAffinityTerm"]["labelSelector"], expected);
        let required = &affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
        assert_eq!(required["labelSelector"], expected);
        let constraints = &pod["spec"]["topologySpreadConstraints"];
        assert_eq!(constraints[0]["labelSelector"], json!({"matchExpressions": [own]}));
        assert!(constraints[1]["labelSelector"].is_null());
        for odd in
            [json!({"spec": {"topologySpreadConstraints": [7, {"labelSelector": {"matchExpressions": 1}}]}}), json!(1)]
        {
            merge(&mut odd.clone());
        }
    }

    #[test]
    fn keys_are_checked() {
        let check = |term: Value, expected: &[&str]| {
            let mut errors = Errors::new();
            affinity_term(&mut errors, &term, "t");
            let said: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
            assert_eq!(said.len(), expected.len(), "{said:?}");
            said.iter().zip(expected).for_each(|(said, expected)| assert!(said.starts_with(expected), "{said}"));
        };
        let selector =
            json!({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]});
        check(json!({"labelSelector": {}, "matchLabelKeys": ["a"], "mismatchLabelKeys": ["b"]}), &[]);
        check(
            json!({"matchLabelKeys": ["a"]}),
            &["t.matchLabelKeys: Forbidden: must not be specified when labelSelector is not set"],
        );
        check(
            json!({"labelSelector": selector, "matchLabelKeys": ["a"]}),
            &["t[0]: Invalid value: \"a\": exists in both matchLabelKeys and labelSelector"],
        );
        check(
            json!({"labelSelector": {}, "matchLabelKeys": ["a"], "mismatchLabelKeys": ["a"]}),
            &["t.matchLabelKeys[0]: Invalid value: \"a\": exists in both matchLabelKeys and mismatchLabelKeys"],
        );
        check(
            json!({"labelSelector": {}, "mismatchLabelKeys": ["/x"]}),
            &["t.mismatchLabelKeys[0]: Invalid value: \"/x\": prefix part must be non-empty"],
        );
    }
}
