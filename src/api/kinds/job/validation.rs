//! Validation of Job specs (`pkg/apis/batch/validation`), in Jobs and in the templates of CronJobs.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{CONTROLLER_UID, JOB_NAME};
use crate::api::index_intervals::IndexIntervals;
use crate::api::kinds::pod::validation::pod_template;
use crate::api::meta::{self, items, number, text};
use crate::api::selector::LabelSelector;
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, dns_subdomain_messages, qualified_name_messages};
use crate::api::validation::selector::label_selector;
use crate::api::validation::{Errors, immutable, invalid_all, non_negative};

const MOST_PARALLELISM: i64 = 100_000;
const MOST_FAILED_INDEXES: i64 = 100_000;
/// With more completions than this the limits on the rest are stricter.
pub(super) const MANY_COMPLETIONS: i64 = 100_000;
pub(super) const PARALLELISM_OF_MANY: i64 = 10_000;
const FAILED_INDEXES_OF_MANY: i64 = 10_000;
const MOST_RULES: usize = 20;
const MOST_EXIT_CODES: usize = 255;
const MOST_CONDITIONS: usize = 20;
const LONGEST_MANAGED_BY: usize = 63;
const LONGEST_INDEXES: usize = 64 * 1024;

/// A whole Job. One that was made before labels had prefixes need not have those.
pub fn job(errors: &mut Errors, object: &Value, old: Option<&Value>) {
    let spec = &object["spec"];
    if spec["manualSelector"] != true && spec["selector"].is_object() {
        let labelled = |job: &Value| {
            let labels = &job["spec"]["template"]["metadata"]["labels"];
            labels[CONTROLLER_UID[1]].is_string() && labels[JOB_NAME[1]].is_string()
        };
        generated_selector(errors, object, old.is_none_or(labelled));
    }
    with_selector(errors, spec);
    let completions = number(&spec["completions"]);
    if spec["completionMode"] == "Indexed" && completions > 0 {
        let longest = format!("{}-{}", meta::name(object), completions - 1);
        if !dns_label_messages(&longest).is_empty() {
            let detail = format!("will not able to create pod with invalid DNS label: {longest}");
            errors.push(FieldError::invalid("metadata.name", &meta::name(object).into(), &detail));
        }
    }
}

/// The labels that the system sets must be there, whatever somebody wrote into the template.
fn generated_selector(errors: &mut Errors, object: &Value, with_prefix: bool) {
    if meta::uid(object).is_empty() {
        errors.push(FieldError::required("metadata.uid", ""));
    }
    let labels = &object["spec"]["template"]["metadata"]["labels"];
    let (uid, name) = (meta::uid(object), meta::name(object));
    let mut expected = serde_json::Map::new();
    let all = [(CONTROLLER_UID[0], uid), (JOB_NAME[0], name), (CONTROLLER_UID[1], uid), (JOB_NAME[1], name)];
    for (key, value) in all.into_iter().filter(|(key, _)| with_prefix || !key.contains('/')) {
        let (path, detail) = (format!("spec.template.metadata.labels[{key}]"), format!("must be '{value}'"));
        match labels[key].as_str() {
            None => errors.push(FieldError::required(path, &detail)),
            Some(actual) if actual != value => errors.push(FieldError::invalid(path, labels, &detail)),
            Some(_) => {}
        }
        expected.insert(key.into(), value.into());
    }
    let selector = &object["spec"]["selector"];
    let expected = serde_json::json!({"metadata": {"labels": expected}});
    if LabelSelector::from_label_selector(selector).is_ok_and(|selector| !selector.matches_object(&expected)) {
        errors.push(FieldError::invalid("spec.selector", selector, "`selector` not auto-generated"));
    }
}

/// The spec of a Job that exists (`ValidateJobSpec`).
fn with_selector(errors: &mut Errors, job_spec: &Value) {
    spec(errors, job_spec, "spec");
    let (selector, template) = (&job_spec["selector"], &job_spec["template"]);
    if selector.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else {
        label_selector(errors, selector, "spec.selector");
    }
    let matches = LabelSelector::from_label_selector(selector).map(|selector| selector.matches_object(template));
    if selector.is_null() || matches == Ok(false) {
        let labels = &template["metadata"]["labels"];
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
    }
}

/// What a Job may not change (`ValidateJobSpecUpdate`).
pub fn update(errors: &mut Errors, object: &Value, old: &Value) {
    let (spec, old_spec) = (&object["spec"], &old["spec"]);
    with_selector(errors, spec);
    completions(errors, spec, old_spec);
    immutable(errors, "spec.selector", &spec["selector"], &old_spec["selector"]);
    let mut template = old_spec["template"].clone();
    if old_spec["suspend"] == true && old["status"]["startTime"].is_null() {
        // Before its first start a Job may still be told where to run.
        allow_scheduling_directives(&mut template, &spec["template"]);
    }
    if !super::super::pod::update::same(&spec["template"], &template) {
        immutable(errors, "spec.template", &spec["template"], &template);
    }
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        immutable(errors, &format!("spec.{field}"), &spec[field], &old_spec[field]);
    }
}

fn completions(errors: &mut Errors, spec: &Value, old: &Value) {
    let (path, new) = ("spec.completions", &spec["completions"]);
    if spec["completionMode"] != "Indexed" {
        immutable(errors, path, new, &old["completions"]);
    } else if *new != old["completions"] && !new.is_null() && *new != spec["parallelism"] {
        errors.push(FieldError::invalid(path, new, "can only be modified in tandem with spec.parallelism"));
    }
}

fn allow_scheduling_directives(old: &mut Value, new: &Value) {
    let take = |old: &mut Value, new: &Value, field: &str| {
        let Some(map) = old.as_object_mut() else { return };
        match new.get(field).filter(|value| !value.is_null()) {
            Some(value) => map.insert(field.to_owned(), value.clone()),
            None => map.remove(field),
        };
    };
    if new["metadata"].is_object() && !old["metadata"].is_object() {
        old["metadata"] = serde_json::json!({});
    }
    for field in ["annotations", "labels"] {
        take(&mut old["metadata"], &new["metadata"], field);
    }
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        take(&mut old["spec"], &new["spec"], field);
    }
    let (old_spec, new_affinity) = (&mut old["spec"], &new["spec"]["affinity"]);
    if old_spec["affinity"].is_null() && !new_affinity.is_null() {
        old_spec["affinity"] = serde_json::json!({});
    }
    if !old_spec["affinity"].is_null() {
        take(&mut old_spec["affinity"], new_affinity, "nodeAffinity");
    }
    if new_affinity.is_null() && old_spec["affinity"].as_object().is_some_and(|affinity| affinity.is_empty()) {
        take(old_spec, &new["spec"], "affinity");
    }
}

/// A Job's spec at `path`, but for its selector.
pub fn spec(errors: &mut Errors, spec: &Value, path: &str) {
    let at = |field: &str| format!("{path}.{field}");
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        non_negative(errors, &at(field), &spec[field]);
    }
    if !spec["maxFailedIndexes"].is_null() && spec["backoffLimitPerIndex"].is_null() {
        errors.push(FieldError::required(at("backoffLimitPerIndex"), "when maxFailedIndexes is specified"));
    }
    managed_by(errors, &spec["managedBy"], &at("managedBy"));
    match text(&spec["completionMode"]) {
        "Indexed" => indexed(errors, spec, path),
        mode => {
            if !["", "NonIndexed"].contains(&mode) {
                let supported = ["NonIndexed", "Indexed"];
                errors.push(FieldError::not_supported(at("completionMode"), &spec["completionMode"], &supported));
            } else {
                for field in ["backoffLimitPerIndex", "maxFailedIndexes"].iter().filter(|f| !spec[**f].is_null()) {
                    errors.push(FieldError::invalid(at(field), &spec[*field], "requires indexed completion mode"));
                }
            }
            if !spec["successPolicy"].is_null() {
                let (path, detail) = (at("successPolicy"), "requires indexed completion mode");
                errors.push(FieldError::invalid(path, &spec["successPolicy"], detail));
            }
        }
    }
    if spec["podFailurePolicy"].is_object() {
        pod_failure_policy(errors, spec, &at("podFailurePolicy.rules"));
    }
    if spec["successPolicy"].is_object() && spec["completionMode"] == "Indexed" {
        success_policy(errors, spec, &at("successPolicy.rules"));
    }
    replacement_policy(errors, spec, &at("podReplacementPolicy"));
    pod_template(errors, &spec["template"], &at("template"));
    restart_policy(errors, spec, &at("template.spec.restartPolicy"));
}

fn managed_by(errors: &mut Errors, value: &Value, path: &str) {
    if value.is_null() {
        return;
    }
    // IsDomainPrefixedPath
    match text(value).split_once('/') {
        _ if text(value).is_empty() => errors.push(FieldError::required(path, "")),
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            invalid_all(errors, path, value, dns_subdomain_messages(domain));
            if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&b)) {
                let detail = "Invalid path (must be a valid HTTP path, regex used for validation is \
                    '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
                errors.push(FieldError::invalid(path, value, detail));
            }
        }
        _ => errors.push(FieldError::invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")")),
    }
    if text(value).len() > LONGEST_MANAGED_BY {
        errors.push(FieldError::too_long(path, LONGEST_MANAGED_BY));
    }
}

fn indexed(errors: &mut Errors, spec: &Value, path: &str) {
    let at = |field: &str| format!("{path}.{field}");
    let (parallelism, completions, failed) = (&spec["parallelism"], &spec["completions"], &spec["maxFailedIndexes"]);
    let above = |value: &Value, limit: i64| value.as_i64().is_some_and(|number| number > limit);
    if completions.is_null() {
        errors.push(FieldError::required(at("completions"), "when completion mode is Indexed"));
    }
    if above(parallelism, MOST_PARALLELISM) {
        let detail = format!("must be less than or equal to {MOST_PARALLELISM} when completion mode is Indexed");
        errors.push(FieldError::invalid(at("parallelism"), parallelism, &detail));
    }
    if !completions.is_null() && above(failed, number(completions)) {
        let detail = "must be less than or equal to completions";
        errors.push(FieldError::invalid(at("maxFailedIndexes"), failed, detail));
    }
    if above(failed, MOST_FAILED_INDEXES) {
        let detail = format!("must be less than or equal to {MOST_FAILED_INDEXES}");
        errors.push(FieldError::invalid(at("maxFailedIndexes"), failed, &detail));
    }
    if above(completions, MANY_COMPLETIONS) && !spec["backoffLimitPerIndex"].is_null() {
        if failed.is_null() {
            let detail = format!("must be specified when completions is above {MANY_COMPLETIONS}");
            errors.push(FieldError::required(at("maxFailedIndexes"), &detail));
        }
        let limits = [("parallelism", PARALLELISM_OF_MANY), ("maxFailedIndexes", FAILED_INDEXES_OF_MANY)];
        for (field, limit) in limits.into_iter().filter(|(field, limit)| above(&spec[*field], *limit)) {
            let detail = format!(
                "must be less than or equal to {limit} when completions are above {MANY_COMPLETIONS} and used with \
                 backoff limit per index"
            );
            errors.push(FieldError::invalid(at(field), &spec[field], &detail));
        }
    }
}

fn replacement_policy(errors: &mut Errors, spec: &Value, path: &str) {
    let (policy, only_failed) = (&spec["podReplacementPolicy"], spec["podFailurePolicy"].is_object());
    let supported: &[&str] = if only_failed { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    if !policy.is_null() && !supported.contains(&text(policy)) {
        errors.push(FieldError::not_supported(path, policy, supported));
    }
}

fn restart_policy(errors: &mut Errors, spec: &Value, path: &str) {
    let policy = &spec["template"]["spec"]["restartPolicy"];
    match text(policy) {
        "" | "Always" => errors.push(FieldError::required(path, "valid values: \"OnFailure\", \"Never\"")),
        "OnFailure" if !spec["podFailurePolicy"].is_null() => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(FieldError::invalid(path, policy, detail));
        }
        "OnFailure" | "Never" => {}
        _ => errors.push(FieldError::not_supported(path, policy, &["OnFailure", "Never"])),
    }
}

fn pod_failure_policy(errors: &mut Errors, spec: &Value, path: &str) {
    let rules = items(&spec["podFailurePolicy"]["rules"]);
    if rules.len() > MOST_RULES {
        errors.push(FieldError::too_many(path, rules.len(), MOST_RULES));
    }
    let pod = &spec["template"]["spec"];
    let containers = items(&pod["containers"]).iter().chain(items(&pod["initContainers"]));
    let names: BTreeSet<&str> = containers.map(|container| text(&container["name"])).collect();
    for (index, rule) in rules.iter().enumerate() {
        failure_rule(errors, spec, rule, &format!("{path}[{index}]"), &names);
    }
}

fn failure_rule(errors: &mut Errors, spec: &Value, rule: &Value, path: &str, names: &BTreeSet<&str>) {
    const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
    let (action, action_path) = (&rule["action"], format!("{path}.action"));
    match text(action) {
        "" => errors.push(FieldError::required(action_path, &valid_values(&ACTIONS))),
        "FailIndex" if spec["backoffLimitPerIndex"].is_null() => {
            errors.push(FieldError::invalid(action_path, action, "requires the backoffLimitPerIndex to be set"));
        }
        known if ACTIONS.contains(&known) => {}
        _ => errors.push(FieldError::not_supported(action_path, action, &ACTIONS)),
    }
    let (codes, conditions) = (&rule["onExitCodes"], items(&rule["onPodConditions"]));
    if codes.is_object() {
        exit_codes(errors, codes, &format!("{path}.onExitCodes"), names);
    }
    pod_conditions(errors, conditions, &format!("{path}.onPodConditions"));
    let omitted = match (codes.is_object(), conditions.is_empty()) {
        (true, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
        (false, true) => "specifying one of OnExitCodes and OnPodConditions is required",
        _ => return,
    };
    errors.push(without_value(path, omitted));
}

/// `Invalid value: <detail>`, where the value itself is left out (`field.OmitValueType`).
pub(super) fn without_value(path: &str, detail: &str) -> FieldError {
    let message = format!("Invalid value: {detail}");
    FieldError { reason: "FieldValueInvalid", field: path.to_owned(), message }
}

/// `valid values: ["a" "b"]`, as Go prints a list.
fn valid_values(values: &[&str]) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    format!("valid values: [{}]", quoted.join(" "))
}

fn pod_conditions(errors: &mut Errors, conditions: &[Value], path: &str) {
    const STATUSES: [&str; 3] = ["False", "True", "Unknown"];
    if conditions.len() > MOST_CONDITIONS {
        errors.push(FieldError::too_many(path, conditions.len(), MOST_CONDITIONS));
    }
    for (index, pattern) in conditions.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let messages = qualified_name_messages(text(&pattern["type"]));
        invalid_all(errors, &format!("{path}.type"), &pattern["type"], messages);
        let (status, path) = (&pattern["status"], format!("{path}.status"));
        match text(status) {
            "" => errors.push(FieldError::required(path, &valid_values(&STATUSES))),
            known if STATUSES.contains(&known) => {}
            _ => errors.push(FieldError::not_supported(path, status, &STATUSES)),
        }
    }
}

fn exit_codes(errors: &mut Errors, codes: &Value, path: &str, names: &BTreeSet<&str>) {
    const OPERATORS: [&str; 2] = ["In", "NotIn"];
    let (operator, operator_path) = (&codes["operator"], format!("{path}.operator"));
    match text(operator) {
        "" => errors.push(FieldError::required(operator_path, &valid_values(&OPERATORS))),
        known if OPERATORS.contains(&known) => {}
        _ => errors.push(FieldError::not_supported(operator_path, operator, &OPERATORS)),
    }
    let container = &codes["containerName"];
    if !container.is_null() && !names.contains(text(container)) {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.push(FieldError::invalid(format!("{path}.containerName"), container, detail));
    }
    let (values, path) = (items(&codes["values"]), format!("{path}.values"));
    if values.is_empty() {
        errors.push(FieldError::invalid(&path, &codes["values"], "at least one value is required"));
    } else if values.len() > MOST_EXIT_CODES {
        errors.push(FieldError::too_many(&path, values.len(), MOST_EXIT_CODES));
    }
    let mut known = BTreeSet::new();
    for (index, value) in values.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if *operator == "In" && number(value) == 0 {
            errors.push(FieldError::invalid(&path, value, "must not be 0 for the In operator"));
        }
        if !known.insert(number(value)) {
            errors.push(FieldError::duplicate(path, value));
        }
    }
    if !values.is_sorted_by_key(number) {
        errors.push(FieldError::invalid(path, &codes["values"], "must be ordered"));
    }
}

fn success_policy(errors: &mut Errors, spec: &Value, path: &str) {
    let rules = items(&spec["successPolicy"]["rules"]);
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.push(FieldError::required(path, detail));
    }
    if rules.len() > MOST_RULES {
        errors.push(FieldError::too_many(path, rules.len(), MOST_RULES));
    }
    let completions = i32::try_from(number(&spec["completions"])).unwrap_or(i32::MAX);
    for (index, rule) in rules.iter().enumerate() {
        success_rule(errors, rule, completions, &format!("{path}[{index}]"));
    }
}

fn success_rule(errors: &mut Errors, rule: &Value, completions: i32, path: &str) {
    let (count, indexes) = (&rule["succeededCount"], &rule["succeededIndexes"]);
    if count.is_null() && indexes.is_null() {
        let detail = "at least one of succeededCount or succeededIndexes must be specified";
        errors.push(FieldError::required(path, detail));
    }
    let mut total = 0;
    if !indexes.is_null() {
        let path = format!("{path}.succeededIndexes");
        if text(indexes).len() > LONGEST_INDEXES {
            errors.push(FieldError::too_long(&path, LONGEST_INDEXES));
        }
        match IndexIntervals::parse_strict(text(indexes), completions) {
            Ok(parsed) => total = parsed.count(),
            Err(why) => {
                errors.push(FieldError::invalid(path, indexes, &format!("error parsing succeededIndexes: {why}")));
            }
        }
    }
    let path = format!("{path}.succeededCount");
    non_negative(errors, &path, count);
    if number(count) > completions.into() {
        let detail = format!("must be less than or equal to {completions} (the number of specified completions)");
        errors.push(FieldError::invalid(&path, count, &detail));
    }
    if !indexes.is_null() && number(count) > total.into() {
        let detail = format!(
            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        );
        errors.push(FieldError::invalid(path, count, &detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn messages(change: Value) -> Vec<String> {
        let mut object = json!({"parallelism": 1, "completions": 3, "completionMode": "Indexed", "template": {"spec": {
            "restartPolicy": "Never", "dnsPolicy": "ClusterFirst",
            "containers": [{"name": "c", "image": "i", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}}});
        crate::api::patch::merge(&mut object, &change).expect("a patch");
        let mut errors = Errors::new();
        spec(&mut errors, &object, "spec");
        errors.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn absurd_numbers_are_refused() {
        // pkg/apis/batch/validation/validation_test.go
        assert_eq!(messages(json!({})), Vec::<String>::new());
        assert_eq!(
            messages(json!({"parallelism": -1})),
            ["spec.parallelism: Invalid value: -1: must be greater than or equal to 0"]
        );
        assert_eq!(
            messages(json!({"parallelism": 100_001})),
            [
                "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed"
            ]
        );
        assert_eq!(
            messages(json!({"completions": null})),
            ["spec.completions: Required value: when completion mode is Indexed"]
        );
        assert_eq!(
            messages(json!({"completionMode": "NonIndexed", "backoffLimitPerIndex": 1})),
            ["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"]
        );
        assert_eq!(
            messages(json!({"maxFailedIndexes": 1})),
            ["spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"]
        );
        assert_eq!(
            messages(
                json!({"completions": 100_001, "parallelism": 10_001, "backoffLimitPerIndex": 1, "maxFailedIndexes": 10_001})
            ),
            [
                "spec.parallelism: Invalid value: 10001: must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index",
                "spec.maxFailedIndexes: Invalid value: 10001: must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index",
            ]
        );
    }

    #[test]
    fn rules_about_failures_are_checked() {
        let rule = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}, "podReplacementPolicy": "Failed"});
        let codes = |values: Value| json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": values}});
        let path = "spec.podFailurePolicy.rules[0]";
        assert_eq!(messages(rule(codes(json!([1, 42])))), Vec::<String>::new());
        assert_eq!(
            messages(rule(codes(json!([2, 0, 2])))),
            [
                format!("{path}.onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator"),
                format!("{path}.onExitCodes.values[2]: Duplicate value: 2"),
                format!("{path}.onExitCodes.values: Invalid value: [2,0,2]: must be ordered"),
            ]
        );
        assert_eq!(
            messages(rule(
                json!({"action": "FailIndex", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]})
            )),
            [format!("{path}.action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set")]
        );
        assert_eq!(
            messages(rule(json!({"action": "Ignore"}))),
            [format!("{path}: Invalid value: specifying one of OnExitCodes and OnPodConditions is required")]
        );
        assert_eq!(
            messages(rule(json!({"onPodConditions": [{"type": "a", "status": ""}]}))),
            [
                format!(
                    "{path}.action: Required value: valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"
                ),
                format!(
                    "{path}.onPodConditions[0].status: Required value: valid values: [\"False\" \"True\" \"Unknown\"]"
                ),
            ]
        );
        let on_failure = json!({"template": {"spec": {"restartPolicy": "OnFailure"}}, "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": []}});
        assert_eq!(
            messages(on_failure),
            [
                "spec.template.spec.restartPolicy: Invalid value: \"OnFailure\": only \"Never\" is supported when podFailurePolicy is specified"
            ]
        );
    }

    #[test]
    fn rules_about_success_are_checked() {
        let rule = |rule: Value| json!({"successPolicy": {"rules": [rule]}});
        let path = "spec.successPolicy.rules[0]";
        assert_eq!(messages(rule(json!({"succeededIndexes": "0,2", "succeededCount": 1}))), Vec::<String>::new());
        assert_eq!(
            messages(rule(json!({"succeededIndexes": "0-5"}))),
            [format!(
                "{path}.succeededIndexes: Invalid value: \"0-5\": error parsing succeededIndexes: too large index: \"5\""
            )]
        );
        assert_eq!(
            messages(rule(json!({"succeededIndexes": "0", "succeededCount": 2}))),
            [format!(
                "{path}.succeededCount: Invalid value: 2: must be less than or equal to 1 (the number of indexes in the specified succeededIndexes field)"
            )]
        );
        assert_eq!(
            messages(rule(json!({}))),
            [format!("{path}: Required value: at least one of succeededCount or succeededIndexes must be specified")]
        );
    }

    #[test]
    fn a_job_changes_only_where_it_may() {
        let job = |completions: i64, selector: &str| {
            json!({"spec": {"parallelism": completions, "completions": completions, "completionMode": "Indexed", "suspend": true,
                "manualSelector": true, "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Never", "dnsPolicy": "ClusterFirst",
                    "nodeSelector": {"disk": selector},
                    "containers": [{"name": "c", "image": "i", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}}},
                "status": {}})
        };
        let check = |new: &Value, old: &Value| {
            let mut errors = Errors::new();
            update(&mut errors, new, old);
            errors.into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        assert_eq!(check(&job(5, "ssd"), &job(3, "hdd")), Vec::<String>::new());
        let mut started = job(3, "hdd");
        started["status"]["startTime"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(check(&job(3, "ssd"), &started), ["spec.template"]);
        let mut plain = job(3, "hdd");
        plain["spec"]["completionMode"] = "NonIndexed".into();
        let mut other = plain.clone();
        other["spec"]["completions"] = 4.into();
        assert_eq!(check(&other, &plain), ["spec.completions"]);
    }
}
