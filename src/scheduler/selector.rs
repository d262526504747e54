//! Label selectors, read once so that they can be asked often.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Clone, Debug, PartialEq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// A selector; the default one selects everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// Selects nothing.
    pub fn nothing() -> Self {
        Self { nothing: true, ..Self::default() }
    }
    /// A `metav1.LabelSelector`: an absent one selects nothing, an empty one everything, one that cannot be read nothing.
    pub fn of(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else { return Self::nothing() };
        let mut read = selector.match_labels.as_ref().map(Self::of_labels).unwrap_or_default();
        for wanted in selector.match_expressions.iter().flatten() {
            let operator = match wanted.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return Self::nothing(),
            };
            let values = wanted.values.clone().unwrap_or_default();
            read.requirements.push(Requirement { key: wanted.key.clone(), operator, values });
        }
        read
    }
    /// Every pair must be there (a Service's selector).
    pub fn of_labels(wanted: &Labels) -> Self {
        let pair = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.clone()],
        };
        Self { requirements: wanted.iter().map(pair).collect(), nothing: false }
    }
    /// What both select.
    pub fn and(mut self, other: Self) -> Self {
        self.nothing |= other.nothing;
        for requirement in other.requirements {
            if !self.requirements.contains(&requirement) {
                self.requirements.push(requirement);
            }
        }
        self
    }
    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
    /// Whether it selects an object with these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        let holds = |wanted: &Requirement| {
            let value = labels.get(&wanted.key);
            match wanted.operator {
                Operator::In => value.is_some_and(|value| wanted.values.contains(value)),
                Operator::NotIn => value.is_none_or(|value| !wanted.values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        };
        !self.nothing && self.requirements.iter().all(holds)
    }
    /// Labels that everything selected has.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let single = |wanted: &&Requirement| wanted.operator == Operator::In && wanted.values.len() == 1;
        self.requirements.iter().filter(single).map(|wanted| (wanted.key.as_str(), wanted.values[0].as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(selector: Value, expected: bool) {
        let selector: LabelSelector = serde_json::from_value(selector).expect("a selector");
        let labels = Labels::from([("app".into(), "web".into())]);
        assert_eq!(Selector::of(Some(&selector)).matches(&labels), expected, "{selector:?}");
        assert_eq!(crate::client::selector::matches(Some(&selector), &labels), expected, "{selector:?}");
    }

    #[test]
    fn selectors_match_as_in_kubernetes() {
        check(json!({}), true);
        check(json!({"matchLabels": {"app": "web"}}), true);
        check(json!({"matchLabels": {"app": "db"}}), false);
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        check(expression("app", "In", &["web", "db"]), true);
        check(expression("app", "NotIn", &["web"]), false);
        check(expression("absent", "NotIn", &["web"]), true);
        check(expression("app", "Exists", &[]), true);
        check(expression("app", "DoesNotExist", &[]), false);
        check(expression("app", "Odd", &[]), false);
        assert!(!Selector::of(None).matches(&Labels::new()) && Selector::default().is_everything());
    }
}
