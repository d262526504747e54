//! CronJobs.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set, set_text};
use super::job::{self, SELECTOR, validation};
use super::pod::warnings;
use super::workload::{wide_cells, wide_columns};
use super::{gvr, names, namespaced};
use crate::api::cron::{Schedule, time_zone};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, items, text};
use crate::api::printers::{age, age_column, column, name, name_column, since};
use crate::api::status::FieldError;
use crate::api::validation::meta::dns_label_messages;
use crate::api::validation::{Errors, non_negative};

/// The name of a Job is that of its CronJob and eleven characters more.
const LONGEST_NAME: usize = 52;

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["cj"]),
        categories: names(&["all"]),
        subresources: vec![Subresource::Status],
        has_generation: true,
        ..namespaced(gvr::CRON_JOBS, "CronJob", Arc::new(CronJobs))
    }
}

struct CronJobs;

impl Strategy for CronJobs {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        set_text(spec, "concurrencyPolicy", "Allow");
        set(spec, "suspend", false);
        set(spec, "successfulJobsHistoryLimit", 3);
        set(spec, "failedJobsHistoryLimit", 1);
        if let Some(template) = ensure_object(spec, "jobTemplate")
            && let Some(job) = ensure_object(template, "spec")
        {
            job::template_defaults(job);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), json!({}));
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        spec(&mut errors, &object["spec"], None);
        if meta::name(object).len() > LONGEST_NAME {
            let detail = format!("must be no more than {LONGEST_NAME} characters");
            errors.push(FieldError::invalid("metadata.name", &meta::name(object).into(), &detail));
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        spec(&mut errors, &object["spec"], Some(&old["spec"]));
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let (template, mut found) = (&object["spec"]["jobTemplate"]["spec"]["template"], Vec::new());
        let messages = dns_label_messages(meta::name(object));
        if meta::resource_version(object).is_empty() && !messages.is_empty() {
            found.push(format!(
                "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS \
                 label is recommended: [{}]",
                messages.join(" ")
            ));
        }
        found.extend(warnings::pod_spec(&template["spec"], "spec.jobTemplate.spec.template.spec"));
        found
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![
            name_column(),
            column("Schedule", "string", "The schedule in Cron format, see https://en.wikipedia.org/wiki/Cron."),
            column(
                "Timezone",
                "string",
                "The time zone name for the given schedule, see \
                 https://en.wikipedia.org/wiki/List_of_tz_database_time_zones. If not specified, this will default to \
                 the time zone of the kube-controller-manager process. The set of valid time zone names and the time \
                 zone offset is loaded from the system-wide time zone database by the API server during CronJob \
                 validation and the controller manager during execution. If no system-wide time zone database can be \
                 found a bundled version of the database is used instead. If the time zone name becomes invalid during \
                 the lifetime of a CronJob or due to a change in host configuration, the controller will stop creating \
                 new new Jobs and will create a system event with the reason UnknownTimeZone. More information can be \
                 found in \
                 https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#time-zones",
            ),
            column(
                "Suspend",
                "boolean",
                "This flag tells the controller to suspend subsequent executions, it does not apply to already started \
                 executions.  Defaults to false.",
            ),
            column("Active", "integer", "A list of pointers to currently running jobs."),
            column("Last Schedule", "string", "Information when was the last time the job was successfully scheduled."),
            age_column(),
        ];
        columns.extend(wide_columns(SELECTOR));
        columns
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let suspend = match spec["suspend"].as_bool() {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        let last = &status["lastScheduleTime"];
        let mut cells = vec![
            name(object),
            text(&spec["schedule"]).into(),
            spec["timeZone"].as_str().unwrap_or("<none>").into(),
            suspend.into(),
            items(&status["active"]).len().into(),
            if last.is_null() { "<none>".into() } else { since(last, now).into() },
            age(object, now),
        ];
        cells.extend(wide_cells(&spec["jobTemplate"]["spec"]));
        cells
    }
}

/// `validateCronJobSpec`; `old` is absent on creation.
fn spec(errors: &mut Errors, spec: &Value, old: Option<&Value>) {
    let schedule_value = &spec["schedule"];
    if text(schedule_value).is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    } else {
        schedule(errors, schedule_value, spec, old);
    }
    non_negative(errors, "spec.startingDeadlineSeconds", &spec["startingDeadlineSeconds"]);
    if old.is_none_or(|old| old["timeZone"] != spec["timeZone"]) {
        zone(errors, &spec["timeZone"]);
    }
    let policy = &spec["concurrencyPolicy"];
    match text(policy) {
        "" => errors.push(FieldError::required("spec.concurrencyPolicy", "")),
        "Allow" | "Forbid" | "Replace" => {}
        _ => {
            let supported = ["Allow", "Forbid", "Replace"];
            errors.push(FieldError::not_supported("spec.concurrencyPolicy", policy, &supported));
        }
    }
    let (job, path) = (&spec["jobTemplate"]["spec"], "spec.jobTemplate.spec");
    validation::spec(errors, job, path);
    if !job["selector"].is_null() {
        let detail = "`selector` will be auto-generated";
        errors.push(FieldError::invalid(format!("{path}.selector"), &job["selector"], detail));
    }
    if job["manualSelector"] == true {
        let (path, known) = (format!("{path}.manualSelector"), ["nil", "false"]);
        errors.push(FieldError::not_supported(path, &job["manualSelector"], &known));
    }
    non_negative(errors, "spec.successfulJobsHistoryLimit", &spec["successfulJobsHistoryLimit"]);
    non_negative(errors, "spec.failedJobsHistoryLimit", &spec["failedJobsHistoryLimit"]);
}

fn schedule(errors: &mut Errors, value: &Value, spec: &Value, old: Option<&Value>) {
    let (path, written) = ("spec.schedule", text(value));
    // A time zone in front of the schedule is refused below: what follows it may still be wrong.
    let bare = ["TZ=", "CRON_TZ="].iter().find_map(|prefix| written.strip_prefix(prefix));
    let bare = bare.map_or(written, |rest| rest.split_once(' ').map_or("", |(_, rest)| rest.trim()));
    if let Err(why) = Schedule::parse(bare) {
        errors.push(FieldError::invalid(path, value, &why));
    }
    if !written.contains("TZ") {
        return;
    }
    let allowed = old.is_some_and(|old| text(&old["schedule"]).contains("TZ"));
    if !allowed {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(FieldError::invalid(path, value, detail));
    } else if !spec["timeZone"].is_null() {
        let detail = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
        errors.push(FieldError::invalid(path, value, detail));
    }
}

fn zone(errors: &mut Errors, value: &Value) {
    let (path, zone) = ("spec.timeZone", text(value));
    if value.is_null() {
        return;
    }
    if zone.is_empty() {
        return errors.push(FieldError::invalid(path, value, "timeZone must be nil or non-empty string"));
    }
    let is_part = |part: &str| {
        !part.is_empty()
            && part.len() <= 14
            && part != "."
            && part != ".."
            && !part.starts_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_+".contains(&b))
    };
    if !zone.split('/').all(is_part) {
        return errors.push(FieldError::invalid(path, value, &format!("unknown time zone {zone}")));
    }
    if zone.eq_ignore_ascii_case("Local") {
        let detail = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.push(FieldError::invalid(path, value, detail));
    }
    // `Local` itself is a zone to Go.
    if zone != "Local"
        && let Err(why) = time_zone(zone)
    {
        errors.push(FieldError::invalid(path, value, &why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(change: Value) -> Vec<String> {
        let mut object = json!({"metadata": {"name": "cj"}, "spec": {"schedule": "* * * * ?", "jobTemplate": {"spec": {
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i",
                "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}}}}}});
        crate::api::patch::merge(&mut object["spec"], &change).expect("a patch");
        CronJobs.default(&mut object);
        let errors = CronJobs.validate(&object).into_iter();
        errors.map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn schedules_and_zones_are_checked() {
        // pkg/apis/batch/validation/validation_test.go
        assert_eq!(messages(json!({})), Vec::<String>::new());
        assert_eq!(messages(json!({"timeZone": "America/New_York"})), Vec::<String>::new());
        assert_eq!(
            messages(json!({"schedule": "error"})),
            ["spec.schedule: Invalid value: \"error\": expected exactly 5 fields, found 1: [error]"]
        );
        assert_eq!(
            messages(json!({"schedule": "TZ=UTC 0 * * * *"})),
            [
                "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
            ]
        );
        assert_eq!(messages(json!({"schedule": "TZ=0"})).len(), 2);
        let zone = |zone: &str| messages(json!({"timeZone": zone}));
        assert_eq!(zone(""), ["spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string"]);
        assert_eq!(
            zone("LOCAL"),
            [
                "spec.timeZone: Invalid value: \"LOCAL\": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
                "spec.timeZone: Invalid value: \"LOCAL\": unknown time zone LOCAL"
            ]
        );
        for bad in
            ["Amerrica/New_York", "America/New_York ", "Continent/../Zone", "-a", "2/2/3/3/3/3/3/3/3/3/3/3/3/3/3/3/x%"]
        {
            assert_eq!(zone(bad), [format!("spec.timeZone: Invalid value: {bad:?}: unknown time zone {bad}")]);
        }
    }

    #[test]
    fn an_update_may_keep_what_a_create_may_not_have() {
        let with = |schedule: &str, zone: Value| {
            json!({"spec": {"schedule": schedule, "timeZone": zone, "concurrencyPolicy": "Allow",
            "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "dnsPolicy": "ClusterFirst", "containers": [
                {"name": "c", "image": "i", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}}}}}})
        };
        let old = with("TZ=UTC 0 * * * *", Value::Null);
        assert!(CronJobs.validate_update(&with("TZ=UTC 1 * * * *", Value::Null), &old).is_empty());
        let both = CronJobs.validate_update(&with("TZ=UTC 1 * * * *", "UTC".into()), &old);
        assert_eq!(
            both[0].message.split(": ").last(),
            Some("cannot use both timeZone field and TZ or CRON_TZ in schedule")
        );
        let odd = with("0 * * * *", "Gone/Away".into());
        assert!(CronJobs.validate_update(&odd, &odd).is_empty());
    }
}
