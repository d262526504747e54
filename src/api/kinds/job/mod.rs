//! Jobs.

pub mod status;
pub mod validation;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{each, ensure_object, set, set_text};
use super::pod::{defaults::pod_template, warnings};
use super::workload::{wide_cells, wide_columns};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, items, metadata_mut, number, text};
use crate::api::printers::{age, age_column, column, human_duration, name, name_column, since};
use crate::api::schema::parse_time;
use crate::api::status::FieldError;
use crate::api::validation::Errors;
use crate::api::validation::meta::dns_label_messages;

/// The label (and its older form) with the uid of the Job.
pub const CONTROLLER_UID: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
/// The label (and its older form) with the name of the Job.
pub const JOB_NAME: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];

/// The kind.
pub fn kind() -> Kind {
    Kind {
        categories: names(&["all"]),
        subresources: vec![Subresource::Status],
        has_generation: true,
        ..namespaced(gvr::JOBS, "Job", Arc::new(Jobs))
    }
}

struct Jobs;

/// What the template of a Job and that of a CronJob's Jobs have in common.
pub fn template_defaults(spec: &mut Value) {
    if let Some(template) = ensure_object(spec, "template") {
        pod_template(template);
    }
    if let Some(policy) = spec.get_mut("podFailurePolicy") {
        for rule in each(policy, "rules") {
            each(rule, "onPodConditions").for_each(|pattern| set_text(pattern, "status", "True"));
        }
    }
}

fn labels_from_template(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    let is_empty = |labels: &Value| labels.as_object().is_none_or(|labels| labels.is_empty());
    if !is_empty(&labels) && is_empty(&object["metadata"]["labels"]) {
        metadata_mut(object).insert("labels".into(), labels);
    }
}

/// Labels and a selector that match this Job's pods only (`generateSelector`).
fn generate_selector(object: &mut Value) {
    let (uid, name) = (meta::uid(object).to_owned(), meta::name(object).to_owned());
    let Some(spec) = ensure_object(object, "spec") else { return };
    if let Some(selector) = ensure_object(spec, "selector") {
        if let Some(labels) = ensure_object(selector, "matchLabels") {
            set(labels, CONTROLLER_UID[1], uid.as_str());
        }
    }
    let labels = ensure_object(spec, "template")
        .and_then(|template| ensure_object(template, "metadata"))
        .and_then(|metadata| ensure_object(metadata, "labels"));
    if let Some(labels) = labels {
        JOB_NAME.iter().for_each(|label| set(labels, label, name.as_str()));
        CONTROLLER_UID.iter().for_each(|label| set(labels, label, uid.as_str()));
    }
}

impl Strategy for Jobs {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        // For a non-parallel Job you may leave both unset; then one pod must succeed.
        if spec["completions"].is_null() && spec["parallelism"].is_null() {
            set(spec, "completions", 1);
        }
        set(spec, "parallelism", 1);
        let limit = if spec["backoffLimitPerIndex"].is_null() { 6 } else { i32::MAX };
        set(spec, "backoffLimit", limit);
        set(spec, "completionMode", "NonIndexed");
        set(spec, "suspend", false);
        let replacement = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
        set(spec, "podReplacementPolicy", replacement);
        set(spec, "manualSelector", false);
        template_defaults(spec);
    }

    fn orphans_by_default(&self) -> bool {
        true
    }

    fn prepare_for_create(&self, object: &mut Value) {
        if object["spec"]["manualSelector"] != true {
            generate_selector(object);
        }
        // A Job without labels has those of its pods, the generated ones included: in Go both are one map.
        labels_from_template(object);
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), json!({}));
        }
    }

    fn prepare_for_update(&self, object: &mut Value, _old: &Value) {
        labels_from_template(object);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validation::job(&mut errors, object, None);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validation::job(&mut errors, object, Some(old));
        validation::update(&mut errors, object, old);
        errors
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        status::update(&mut errors, object, old);
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let (spec, mut found) = (&object["spec"], Vec::new());
        let messages = dns_label_messages(meta::name(object));
        if meta::resource_version(object).is_empty() && !messages.is_empty() {
            found.push(format!(
                "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS \
                 label is recommended: [{}]",
                messages.join(" ")
            ));
        }
        if spec["completionMode"] == "Indexed"
            && number(&spec["completions"]) > validation::MANY_COMPLETIONS
            && number(&spec["parallelism"]) > validation::PARALLELISM_OF_MANY
        {
            found.push(
                "spec: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
                 Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
                    .to_owned(),
            );
        }
        found.extend(warnings::pod_spec(&spec["template"]["spec"], "spec.template.spec"));
        found
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![
            name_column(),
            column("Status", "string", "Status of the job."),
            column(
                "Completions",
                "string",
                "The number of pods which reached phase Succeeded. The value increases monotonically for a given spec. \
                 However, it may decrease in reaction to scale down of elastic indexed jobs.",
            ),
            column("Duration", "string", "Time required to complete the job."),
            age_column(),
        ];
        columns.extend(wide_columns(SELECTOR));
        columns
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut cells = vec![
            name(object),
            state(object).into(),
            completions(object).into(),
            duration(&object["status"], now).into(),
            age(object, now),
        ];
        cells.extend(wide_cells(&object["spec"]));
        cells
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.successful", number(&object["status"]["succeeded"]).to_string())]
    }

    fn knows_field(&self, field: &str) -> bool {
        field == "status.successful"
    }
}

/// The description of the selector's column.
pub const SELECTOR: &str = "A label query over pods that should match the pod count. Normally, the system sets this field \
    for you. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors";

/// Whether a condition of a Job is true.
pub fn has_condition(object: &Value, type_: &str) -> bool {
    let mut conditions = items(&object["status"]["conditions"]).iter();
    conditions.any(|condition| condition["type"] == type_ && condition["status"] == "True")
}

fn state(object: &Value) -> &'static str {
    let is = |type_: &str| has_condition(object, type_);
    match () {
        () if is("Complete") => "Complete",
        () if is("Failed") => "Failed",
        () if meta::is_terminating(object) => "Terminating",
        () if is("Suspended") => "Suspended",
        () if is("FailureTarget") => "FailureTarget",
        () => "Running",
    }
}

fn completions(object: &Value) -> String {
    let (spec, succeeded) = (&object["spec"], number(&object["status"]["succeeded"]));
    match spec["completions"].as_i64() {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None if number(&spec["parallelism"]) > 1 => format!("{succeeded}/1 of {}", number(&spec["parallelism"])),
        None => format!("{succeeded}/1"),
    }
}

fn duration(status: &Value, now: Timestamp) -> String {
    match (parse_time(text(&status["startTime"])), parse_time(text(&status["completionTime"]))) {
        (None, _) => String::new(),
        (Some(_), None) => since(&status["startTime"], now),
        (Some(start), Some(end)) => human_duration(end.duration_since(start)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "j", "uid": "u-1"}, "spec": spec});
        Jobs.default(&mut object);
        Jobs.prepare_for_create(&mut object);
        object
    }

    fn template() -> Value {
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i",
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}})
    }

    #[test]
    fn a_job_selects_its_own_pods_only() {
        let job = made(json!({"template": template()}));
        let labels = json!({"controller-uid": "u-1", "batch.kubernetes.io/controller-uid": "u-1",
            "job-name": "j", "batch.kubernetes.io/job-name": "j"});
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}}));
        assert_eq!((&job["spec"]["template"]["metadata"]["labels"], &job["metadata"]["labels"]), (&labels, &labels));
        let numbers = ["parallelism", "completions", "backoffLimit"].map(|field| number(&job["spec"][field]));
        assert_eq!(numbers, [1, 1, 6]);
        assert!(Jobs.validate(&job).is_empty(), "{:?}", Jobs.validate(&job));
        let parallel = made(json!({"template": template(), "parallelism": 3}));
        assert!(parallel["spec"]["completions"].is_null());
        let indexed =
            json!({"template": template(), "completions": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 1});
        assert_eq!(number(&made(indexed)["spec"]["backoffLimit"]), i64::from(i32::MAX));
    }

    #[test]
    fn the_status_column_names_the_state() {
        let mut job = made(json!({"template": template(), "parallelism": 3}));
        let cells = |job: &Value| Jobs.cells(job, "2026-01-02T00:01:00Z".parse().expect("a time"));
        assert_eq!(cells(&job)[1..4], [json!("Running"), json!("0/1 of 3"), json!("")]);
        job["status"] = json!({"startTime": "2026-01-02T00:00:00Z", "succeeded": 1,
            "conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]});
        assert_eq!(cells(&job)[1..4], [json!("Running"), json!("1/1 of 3"), json!("60s")]);
        job["status"]["completionTime"] = "2026-01-02T00:00:05Z".into();
        job["status"]["conditions"] = json!([{"type": "Complete", "status": "True"}]);
        assert_eq!(cells(&job)[1..4], [json!("Complete"), json!("1/1 of 3"), json!("5s")]);
    }
}
