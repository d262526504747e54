//! Validation of a Job's status (`ValidateJobStatusUpdate`): another controller may write it (`spec.managedBy`), and those
//! who wait for a Job rely on what it says.

use std::collections::BTreeSet;

use serde_json::Value;

use super::has_condition;
use super::validation::without_value;
use crate::api::index_intervals::IndexIntervals;
use crate::api::meta::{items, number, text};
use crate::api::schema::parse_time;
use crate::api::status::FieldError;
use crate::api::validation::{Errors, non_negative};

fn is_finished(job: &Value) -> bool {
    has_condition(job, "Complete") || has_condition(job, "Failed")
}

/// An update of the status.
pub fn update(errors: &mut Errors, job: &Value, old: &Value) {
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        non_negative(errors, &format!("status.{field}"), &job["status"][field]);
    }
    uncounted(errors, &job["status"]["uncountedTerminatedPods"]);
    conditions(errors, job, old);
    times(errors, job, old);
    finished(errors, job, old);
    indexes(errors, job, old);
    transitions(errors, job, old);
}

fn uncounted(errors: &mut Errors, pods: &Value) {
    let mut seen = BTreeSet::new();
    for list in ["succeeded", "failed"] {
        for (index, uid) in items(&pods[list]).iter().enumerate() {
            let path = format!("status.uncountedTerminatedPods.{list}[{index}]");
            if text(uid).is_empty() {
                errors.push(FieldError::invalid(path, uid, "must not be empty"));
            } else if !seen.insert(text(uid)) {
                errors.push(FieldError::duplicate(path, uid));
            }
        }
    }
}

fn conditions(errors: &mut Errors, job: &Value, old: &Value) {
    let is = |type_: &str| has_condition(job, type_);
    let changed = |type_: &str| has_condition(job, type_) != has_condition(old, type_);
    let mut refuse = |detail: &str| errors.push(without_value("status.conditions", detail));
    if is("Complete") && is("Failed") && (changed("Complete") || changed("Failed")) {
        refuse("cannot set Complete=True and Failed=true conditions");
    }
    if is("Complete") && is("FailureTarget") && (changed("Complete") || changed("FailureTarget")) {
        refuse("cannot set Complete=True and FailureTarget=true conditions");
    }
    if is("Failed") && !is("FailureTarget") && changed("Failed") {
        refuse("cannot set Failed=True condition without the FailureTarget=true condition");
    }
    if is("Complete") && !is("SuccessCriteriaMet") && changed("Complete") {
        refuse("cannot set Complete=True condition without the SuccessCriteriaMet=true condition");
    }
    if is("SuccessCriteriaMet") && is("Failed") {
        refuse("cannot set SuccessCriteriaMet=True and Failed=true conditions");
    }
    if is("SuccessCriteriaMet") && is("FailureTarget") {
        refuse("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    }
    for type_ in ["Failed", "Complete", "FailureTarget", "SuccessCriteriaMet"] {
        if has_condition(old, type_) && !is(type_) {
            let kind = if type_ == "SuccessCriteriaMet" { "" } else { "terminal " };
            refuse(&format!("cannot disable the {kind}{type_}=True condition"));
        }
    }
}

fn times(errors: &mut Errors, job: &Value, old: &Value) {
    let (start, end) = (&job["status"]["startTime"], &job["status"]["completionTime"]);
    let (old_start, old_end) = (&old["status"]["startTime"], &old["status"]["completionTime"]);
    let complete_changed = has_condition(job, "Complete") != has_condition(old, "Complete") || end != old_end;
    let path = "status.completionTime";
    if complete_changed && !end.is_null() && !has_condition(job, "Complete") {
        let detail = "cannot set completionTime when there is no Complete=True condition";
        errors.push(FieldError::invalid(path, end, detail));
    }
    if complete_changed && end.is_null() && has_condition(job, "Complete") {
        errors.push(FieldError::required(path, "completionTime is required for Complete jobs"));
    }
    if let (Some(started), Some(ended)) = (parse_time(text(start)), parse_time(text(end)))
        && ended < started
        && (start != old_start || end != old_end)
    {
        errors.push(FieldError::invalid(path, end, "completionTime cannot be set before startTime"));
    }
    if !end.is_null() && !old_end.is_null() && end != old_end {
        errors.push(FieldError::invalid(path, end, "completionTime cannot be mutated"));
    }
    if !old_start.is_null() && start != old_start && job["spec"]["suspend"] != true && !resumes(job, old) {
        errors.push(FieldError::required("status.startTime", "startTime cannot be removed for unsuspended job"));
    }
}

/// The start time begins anew in the write that ends a suspension.
fn resumes(job: &Value, old: &Value) -> bool {
    has_condition(old, "Suspended") && !has_condition(job, "Suspended") && !job["status"]["startTime"].is_null()
}

fn finished(errors: &mut Errors, job: &Value, old: &Value) {
    if !is_finished(job) {
        return;
    }
    let (status, old_status) = (&job["status"], &old["status"]);
    let now = !is_finished(old);
    let changed = |field: &str| now || status[field] != old_status[field];
    if number(&status["active"]) > 0 && changed("active") {
        let detail = "active>0 is invalid for finished job";
        errors.push(FieldError::invalid("status.active", &status["active"], detail));
    }
    if number(&status["terminating"]) > 0 && changed("terminating") {
        let detail = "terminating>0 is invalid for finished job";
        errors.push(FieldError::invalid("status.terminating", &status["terminating"], detail));
    }
    let never_starts = job["spec"]["suspend"] == true && job["spec"]["completions"] == 0;
    if status["startTime"].is_null() && changed("startTime") && !never_starts {
        errors.push(FieldError::required("status.startTime", "startTime is required for finished job"));
    }
    let pods = &status["uncountedTerminatedPods"];
    let left = items(&pods["succeeded"]).len() + items(&pods["failed"]).len();
    if left > 0 && changed("uncountedTerminatedPods") {
        let detail = "uncountedTerminatedPods needs to be empty for finished job";
        errors.push(FieldError::invalid("status.uncountedTerminatedPods", pods, detail));
    }
}

fn indexes(errors: &mut Errors, job: &Value, old: &Value) {
    let (spec, status, old_status) = (&job["spec"], &job["status"], &old["status"]);
    let completions = i32::try_from(number(&spec["completions"])).unwrap_or(i32::MAX);
    let (completed, failed) = (&status["completedIndexes"], &status["failedIndexes"]);
    let completed_changed = text(completed) != text(&old_status["completedIndexes"]);
    let failed_changed = failed != &old_status["failedIndexes"];
    if completed_changed && !spec["completions"].is_null() {
        if let Err(why) = IndexIntervals::parse_strict(text(completed), completions) {
            let detail = format!("error parsing completedIndexes: {why}");
            errors.push(FieldError::invalid("status.completedIndexes", completed, &detail));
        }
    }
    if failed_changed && !spec["completions"].is_null() && !spec["backoffLimitPerIndex"].is_null() {
        if let Err(why) = IndexIntervals::parse_strict(text(failed), completions) {
            let detail = format!("error parsing failedIndexes: {why}");
            errors.push(FieldError::invalid("status.failedIndexes", failed, &detail));
        }
    }
    if completed_changed && !text(completed).is_empty() && spec["completionMode"] != "Indexed" {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.push(FieldError::invalid("status.completedIndexes", completed, detail));
    }
    if failed_changed && !failed.is_null() && spec["backoffLimitPerIndex"].is_null() {
        let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.push(FieldError::invalid("status.failedIndexes", failed, detail));
    }
    if (completed_changed || failed_changed) && !failed.is_null() {
        let read = |value: &Value| IndexIntervals::parse_lenient(text(value), completions);
        if let Some(index) = read(completed).first_common(&read(failed)) {
            let detail = format!("failedIndexes and completedIndexes overlap at index: {index}");
            errors.push(FieldError::invalid("status.failedIndexes", failed, &detail));
        }
    }
}

fn transitions(errors: &mut Errors, job: &Value, old: &Value) {
    let (spec, status) = (&job["spec"], &job["status"]);
    let decreased = |field: &str| number(&status[field]) < number(&old["status"][field]);
    // Elastic Jobs can be made smaller.
    let elastic = spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
    if decreased("failed") {
        errors.push(FieldError::invalid("status.failed", &status["failed"], "cannot decrease the failed counter"));
    }
    if decreased("succeeded") && !elastic {
        let detail = "cannot decrease the succeeded counter";
        errors.push(FieldError::invalid("status.succeeded", &status["succeeded"], detail));
    }
    let ready = number(&status["ready"]);
    if ready > number(&status["active"]) && ready != number(&old["status"]["ready"]) {
        let detail = "cannot set more ready pods than active";
        errors.push(FieldError::invalid("status.ready", &status["ready"], detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(status: Value, old: Value) -> Vec<String> {
        let job = |status: Value| json!({"spec": {"completions": 5, "parallelism": 2, "completionMode": "Indexed"}, "status": status});
        let mut errors = Errors::new();
        update(&mut errors, &job(status), &job(old));
        errors.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    fn conditions(types: &[&str]) -> Value {
        types.iter().map(|type_| json!({"type": type_, "status": "True"})).collect()
    }

    #[test]
    fn the_end_of_a_job_is_told_in_the_right_order() {
        let complete = json!({"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:05Z",
            "conditions": conditions(&["SuccessCriteriaMet", "Complete"])});
        assert_eq!(check(complete.clone(), json!({})), Vec::<String>::new());
        let mut early = complete.clone();
        early["conditions"] = conditions(&["Complete"]);
        assert_eq!(
            check(early, json!({})),
            [
                "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition"
            ]
        );
        assert_eq!(
            check(json!({"conditions": conditions(&["SuccessCriteriaMet"])}), complete.clone()),
            [
                "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
                "status.startTime: Required value: startTime cannot be removed for unsuspended job"
            ]
        );
        let mut busy = complete;
        busy["active"] = 1.into();
        assert_eq!(check(busy, json!({})), ["status.active: Invalid value: 1: active>0 is invalid for finished job"]);
    }

    #[test]
    fn counts_do_not_shrink_and_indexes_make_sense() {
        assert_eq!(
            check(json!({"failed": 1}), json!({"failed": 2, "succeeded": 1})),
            [
                "status.failed: Invalid value: 1: cannot decrease the failed counter",
                "status.succeeded: Invalid value: null: cannot decrease the succeeded counter"
            ]
        );
        assert_eq!(
            check(json!({"completedIndexes": "0,5"}), json!({})),
            ["status.completedIndexes: Invalid value: \"0,5\": error parsing completedIndexes: too large index: \"5\""]
        );
        assert_eq!(
            check(json!({"uncountedTerminatedPods": {"succeeded": ["a"], "failed": ["a", ""]}}), json!({})),
            [
                "status.uncountedTerminatedPods.failed[0]: Duplicate value: \"a\"",
                "status.uncountedTerminatedPods.failed[1]: Invalid value: \"\": must not be empty"
            ]
        );
    }
}
