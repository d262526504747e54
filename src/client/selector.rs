//! Label selectors of typed objects (`metav1.LabelSelector`, plain maps) and of their text form.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

type Labels = BTreeMap<String, String>;

/// Whether `labels` match a selector. As in Kubernetes an empty selector matches everything, an absent one nothing.
pub fn matches(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else { return false };
    let simple = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector.match_expressions.iter().flatten().all(|wanted| {
        requirement(&wanted.operator, labels.get(&wanted.key), wanted.values.as_deref().unwrap_or_default())
    });
    simple && expressions
}

/// Whether the selector has no requirement at all.
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// A selector as Go's `%v` prints it, for messages.
pub fn go_text(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}: {value},"));
    let expressions = selector.match_expressions.iter().flatten().map(|wanted| {
        let values = wanted.values.as_deref().unwrap_or_default().join(" ");
        format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", wanted.key, wanted.operator)
    });
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{}}},MatchExpressions:[]LabelSelectorRequirement{{{}}},}}",
        labels.collect::<String>(),
        expressions.collect::<String>()
    )
}

/// Whether every pair of `wanted` is in `labels` (a Service's selector, a node selector).
pub fn contains(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// One requirement (`In`, `NotIn`, `Exists`, `DoesNotExist`, and for nodes `Gt`, `Lt`) against a label's value.
/// An unknown operator matches nothing.
pub fn requirement(operator: &str, value: Option<&String>, values: &[String]) -> bool {
    let number = |text: &String| text.parse::<i64>().ok();
    let compare = |want: fn(&i64, &i64) -> bool| {
        let pair = (value.and_then(number), values.first().and_then(number));
        matches!(pair, (Some(have), Some(limit)) if values.len() == 1 && want(&have, &limit))
    };
    match operator {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|have, limit| have > limit),
        "Lt" => compare(|have, limit| have < limit),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: serde_json::Value, expected: bool) {
        let selector: LabelSelector = serde_json::from_value(selector).expect("a selector");
        let labels = Labels::from([("app".into(), "web".into()), ("rank".into(), "3".into())]);
        assert_eq!(matches(Some(&selector), &labels), expected, "{selector:?}");
    }

    #[test]
    fn selectors_match_as_in_kubernetes() {
        use serde_json::json;
        check(json!({}), true);
        check(json!({"matchLabels": {"app": "web"}}), true);
        check(json!({"matchLabels": {"app": "db"}}), false);
        let expression = |operator: &str, key: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        check(expression("In", "app", &["web", "db"]), true);
        check(expression("NotIn", "app", &["web"]), false);
        check(expression("NotIn", "absent", &["web"]), true);
        check(expression("Exists", "app", &[]), true);
        check(expression("DoesNotExist", "app", &[]), false);
        check(expression("Gt", "rank", &["2"]), true);
        check(expression("Lt", "rank", &["2"]), false);
        assert!(!matches(None, &Labels::new()));
    }
}
