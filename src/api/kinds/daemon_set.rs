//! DaemonSets.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set, set_text};
use super::deployment::{not_more_than_100_percent, positive_int_or_percent};
use super::pod::defaults::pod_template;
use super::pod::update::same;
use super::pod::{validation, warnings};
use super::workload::{amount, collision_count, wide_cells, wide_columns};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, annotation, items, number, text};
use crate::api::printers::{age, age_column, column, name, name_column, or_none};
use crate::api::selector::LabelSelector;
use crate::api::status::FieldError;
use crate::api::validation::selector::label_selector;
use crate::api::validation::{Errors, immutable, non_negative};

/// Counts the changes of the template (`spec.templateGeneration` of old versions of the API).
const GENERATION: &str = "deprecated.daemonset.template.generation";

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["ds"]),
        categories: names(&["all"]),
        subresources: vec![Subresource::Status],
        has_generation: true,
        ..namespaced(gvr::DAEMON_SETS, "DaemonSet", Arc::new(DaemonSets))
    }
}

struct DaemonSets;

impl Strategy for DaemonSets {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        if let Some(strategy) = ensure_object(spec, "updateStrategy") {
            set_text(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                if let Some(update) = ensure_object(strategy, "rollingUpdate") {
                    set(update, "maxUnavailable", 1);
                    set(update, "maxSurge", 0);
                }
            }
        }
        set(spec, "revisionHistoryLimit", 10);
        if let Some(template) = ensure_object(spec, "template") {
            pod_template(template);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        let status = json!({
            "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0,
        });
        set(object, "status", status);
        let generation = template_generation(object).max(1);
        set_template_generation(object, generation);
    }

    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        let changed = !same(&object["spec"]["template"], &old["spec"]["template"]);
        set_template_generation(object, template_generation(old).max(1) + i64::from(changed));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        let (selector, template) = (&spec["selector"], &spec["template"]);
        label_selector(&mut errors, selector, "spec.selector");
        let matches = LabelSelector::from_label_selector(selector).is_ok_and(|labels| labels.matches_object(template));
        if !selector.is_object() || !matches {
            let detail = "`selector` does not match template `labels`";
            let labels = &template["metadata"]["labels"];
            errors.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
        }
        let no_labels = selector["matchLabels"].as_object().is_none_or(|labels| labels.is_empty());
        if selector.is_object() && no_labels && items(&selector["matchExpressions"]).is_empty() {
            errors.push(FieldError::invalid("spec.selector", selector, "empty selector is invalid for daemonset"));
        }
        validation::pod_template(&mut errors, template, "spec.template");
        let policy = &template["spec"]["restartPolicy"];
        if text(policy) != "Always" {
            errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
        }
        if !template["spec"]["activeDeadlineSeconds"].is_null() {
            let detail = "activeDeadlineSeconds in DaemonSet is not Supported";
            errors.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", detail));
        }
        non_negative(&mut errors, "spec.minReadySeconds", &spec["minReadySeconds"]);
        update_strategy(&mut errors, &spec["updateStrategy"], "spec.updateStrategy");
        non_negative(&mut errors, "spec.revisionHistoryLimit", &spec["revisionHistoryLimit"]);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        immutable(&mut errors, "spec.selector", &object["spec"]["selector"], &old["spec"]["selector"]);
        errors
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        const COUNTS: [&str; 8] = [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
        ];
        let mut errors = Errors::new();
        for field in COUNTS {
            non_negative(&mut errors, &format!("status.{field}"), &object["status"][field]);
        }
        collision_count(&mut errors, &object["status"], &old["status"]);
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        warnings::pod_spec(&object["spec"]["template"]["spec"], "spec.template.spec")
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![name_column()];
        columns.extend(COUNTS.map(|(name, _, about)| column(name, "integer", about)));
        columns.push(column(
            "Node Selector",
            "string",
            "NodeSelector is a selector which must be true for the pod to fit on a node. Selector which must match a \
             node's labels for the pod to be scheduled on that node. More info: \
             https://kubernetes.io/docs/concepts/configuration/assign-pod-node/",
        ));
        columns.push(age_column());
        columns.extend(wide_columns(
            "A label query over pods that are managed by the daemon set. Must match in order to be controlled. It must \
             match the pod template's labels. More info: \
             https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
        ));
        columns
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut cells = vec![name(object)];
        cells.extend(COUNTS.map(|(_, field, _)| Value::from(number(&object["status"][field]))));
        let nodes = &object["spec"]["template"]["spec"]["nodeSelector"];
        cells.push(
            or_none(&LabelSelector::from_map(nodes.as_object().unwrap_or(&Default::default())).to_string()).into(),
        );
        cells.push(age(object, now));
        cells.extend(wide_cells(&object["spec"]));
        cells
    }
}

/// Columns that are numbers of the status: header, field, description.
const COUNTS: [(&str, &str, &str); 5] = [
    (
        "Desired",
        "desiredNumberScheduled",
        "The total number of nodes that should be running the daemon pod (including nodes correctly running the daemon \
         pod). More info: https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/",
    ),
    (
        "Current",
        "currentNumberScheduled",
        "The number of nodes that are running at least 1 daemon pod and are supposed to run the daemon pod. More info: \
         https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/",
    ),
    (
        "Ready",
        "numberReady",
        "numberReady is the number of nodes that should be running the daemon pod and have one or more of the daemon \
         pod running with a Ready Condition.",
    ),
    ("Up-to-date", "updatedNumberScheduled", "The total number of nodes that are running updated daemon pod"),
    (
        "Available",
        "numberAvailable",
        "The number of nodes that should be running the daemon pod and have one or more of the daemon pod running and \
         available (ready for at least spec.minReadySeconds)",
    ),
];

fn template_generation(object: &Value) -> i64 {
    annotation(object, GENERATION).and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn set_template_generation(object: &mut Value, generation: i64) {
    let annotations = meta::metadata_mut(object).entry("annotations").or_insert(Value::Null);
    if !annotations.is_object() {
        *annotations = json!({});
    }
    annotations[GENERATION] = generation.to_string().into();
}

fn update_strategy(errors: &mut Errors, strategy: &Value, path: &str) {
    let rolling = &strategy["rollingUpdate"];
    match text(&strategy["type"]) {
        "OnDelete" => {}
        "RollingUpdate" if rolling.is_null() => {
            errors.push(FieldError::required(format!("{path}.rollingUpdate"), ""));
        }
        "RollingUpdate" => rolling_update(errors, rolling, &format!("{path}.rollingUpdate")),
        kind => {
            let value = json!({"Type": kind, "RollingUpdate": rolling});
            errors.push(FieldError::not_supported(path, &value, &["RollingUpdate", "OnDelete"]));
        }
    }
}

/// Exactly one of surge and unavailability is allowed (`ValidateRollingUpdateDaemonSet`).
fn rolling_update(errors: &mut Errors, rolling: &Value, path: &str) {
    let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
    let (unavailable_path, surge_path) = (format!("{path}.maxUnavailable"), format!("{path}.maxSurge"));
    positive_int_or_percent(errors, unavailable, &unavailable_path);
    positive_int_or_percent(errors, surge, &surge_path);
    not_more_than_100_percent(errors, unavailable, &unavailable_path);
    not_more_than_100_percent(errors, surge, &surge_path);
    match (amount(unavailable) != 0, amount(surge) != 0) {
        (true, true) => {
            let detail = "may not be set when maxUnavailable is non-zero";
            errors.push(FieldError::invalid(surge_path, surge, detail));
        }
        (false, false) => {
            errors.push(FieldError::required(unavailable_path, "cannot be 0 when maxSurge is 0"));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_with(change: impl FnOnce(&mut Value)) -> Value {
        let mut set = json!({"metadata": {"name": "agent", "namespace": "a"}, "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": "i",
                "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}}}});
        change(&mut set);
        DaemonSets.default(&mut set);
        set
    }

    fn messages(errors: Vec<FieldError>) -> Vec<String> {
        errors.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn the_template_generation_follows_the_template() {
        let mut set = set_with(|_| {});
        DaemonSets.prepare_for_create(&mut set);
        assert_eq!(annotation(&set, GENERATION), Some("1"));
        let mut scaled = set.clone();
        scaled["metadata"]["annotations"] = Value::Null;
        scaled["spec"]["minReadySeconds"] = 5.into();
        DaemonSets.prepare_for_update(&mut scaled, &set);
        assert_eq!(annotation(&scaled, GENERATION), Some("1"));
        let mut changed = set.clone();
        changed["metadata"]["annotations"][GENERATION] = "40".into();
        changed["spec"]["template"]["spec"]["containers"][0]["image"] = "j".into();
        DaemonSets.prepare_for_update(&mut changed, &set);
        assert_eq!(annotation(&changed, GENERATION), Some("2"));
    }

    #[test]
    fn either_surge_or_unavailability() {
        let check = |unavailable: Value, surge: Value| {
            let rolling = json!({"maxUnavailable": unavailable, "maxSurge": surge});
            let set = set_with(|set| set["spec"]["updateStrategy"] = json!({"rollingUpdate": rolling}));
            messages(DaemonSets.validate(&set))
        };
        assert_eq!(check(Value::Null, Value::Null), Vec::<String>::new());
        assert_eq!(check(0.into(), "10%".into()), Vec::<String>::new());
        let path = "spec.updateStrategy.rollingUpdate";
        let both = format!("{path}.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero");
        assert_eq!(check(1.into(), 1.into()), [both]);
        let none = format!("{path}.maxUnavailable: Required value: cannot be 0 when maxSurge is 0");
        assert_eq!(check(0.into(), "0%".into()), [none]);
    }

    #[test]
    fn selectors_match_templates_and_never_change() {
        let without = set_with(|set| set["spec"]["selector"] = Value::Null);
        let expected = "spec.template.metadata.labels: Invalid value: {\"app\":\"agent\"}: `selector` does not match \
            template `labels`";
        assert_eq!(messages(DaemonSets.validate(&without)), [expected]);
        let wider = set_with(|set| set["spec"]["template"]["metadata"]["labels"]["tier"] = "node".into());
        let moved = set_with(|set| {
            set["spec"]["template"]["metadata"]["labels"]["tier"] = "node".into();
            set["spec"]["selector"] = json!({"matchLabels": {"tier": "node"}});
        });
        let expected = "spec.selector: Invalid value: {\"matchLabels\":{\"tier\":\"node\"}}: field is immutable";
        assert_eq!(messages(DaemonSets.validate_update(&moved, &wider)), [expected]);
    }
}
