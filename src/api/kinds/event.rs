//! Events: `v1` and `events.k8s.io/v1` are two shapes of the same stored objects.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::defaulting::{ensure_object, set};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Gvr, Kind, Strategy};
use crate::api::meta::{self, number, text};
use crate::api::printers::{column, name, since, wide_column};
use crate::api::status::FieldError;
use crate::api::validation::meta::qualified_name_messages;
use crate::api::validation::{Errors, invalid_all};

/// The kind of the core group; objects are stored in this shape.
pub fn core_kind() -> Kind {
    Kind {
        short_names: names(&["ev"]),
        create_on_update: true,
        lazy: true,
        ..namespaced(gvr::EVENTS, "Event", Arc::new(Core))
    }
}

/// The kind of `events.k8s.io`.
pub fn events_kind() -> Kind {
    Kind {
        short_names: names(&["ev"]),
        create_on_update: true,
        lazy: true,
        ..namespaced(gvr::EVENTS_V1, "Event", Arc::new(V1))
    }
}

/// Fields with another name: in the core group, in `events.k8s.io`.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

struct Core;
struct V1;

impl Strategy for Core {
    fn default(&self, object: &mut Value) {
        for field in ["involvedObject", "source"] {
            ensure_object(object, field);
        }
        for field in ["reportingComponent", "reportingInstance"] {
            set(object, field, "");
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validate(&mut errors, object, "reportingComponent");
        errors
    }

    fn columns(&self) -> Vec<Column> {
        columns()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        cells(object, now)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let involved = |field: &str| text(&object["involvedObject"][field]).to_owned();
        let component = text(&object["source"]["component"]);
        let source = if component.is_empty() { text(&object["reportingComponent"]) } else { component };
        vec![
            ("involvedObject.kind", involved("kind")),
            ("involvedObject.namespace", involved("namespace")),
            ("involvedObject.name", involved("name")),
            ("involvedObject.uid", involved("uid")),
            ("involvedObject.apiVersion", involved("apiVersion")),
            ("involvedObject.resourceVersion", involved("resourceVersion")),
            ("involvedObject.fieldPath", involved("fieldPath")),
            ("reason", text(&object["reason"]).to_owned()),
            ("reportingComponent", text(&object["reportingComponent"]).to_owned()),
            ("source", source.to_owned()),
            ("type", text(&object["type"]).to_owned()),
        ]
    }

    fn knows_field(&self, field: &str) -> bool {
        self.selectable_fields(&Value::Null).iter().any(|(known, _)| *known == field)
    }
}

impl Strategy for V1 {
    fn stored_as(&self) -> Option<Gvr> {
        Some(gvr::EVENTS)
    }

    fn to_stored(&self, object: &mut Value) {
        rename(object, |(core, v1)| (v1, core));
        convert_series(object);
        if let Some(map) = object.as_object_mut() {
            map.insert("apiVersion".into(), "v1".into());
        }
        Core.default(object);
    }

    fn from_stored(&self, object: &mut Value) {
        rename(object, |(core, v1)| (core, v1));
        if let Some(map) = object.as_object_mut() {
            map.insert("apiVersion".into(), "events.k8s.io/v1".into());
            for field in ["reportingController", "reportingInstance", "note"] {
                if map.get(field).is_some_and(|value| value == "") {
                    map.remove(field);
                }
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let mut core = object.clone();
        self.to_stored(&mut core);
        validate(&mut errors, &core, "reportingController");
        if text(&core["eventTime"]).is_empty() {
            errors.push(FieldError::required("eventTime", ""));
        }
        let series = &core["series"];
        if series.is_object() {
            if number(&series["count"]) < 2 {
                errors.push(FieldError::invalid("series.count", &"".into(), "should be at least 2"));
            }
            if text(&series["lastObservedTime"]).is_empty() {
                errors.push(FieldError::required("series.lastObservedTime", ""));
            }
        }
        let kind = text(&core["type"]);
        if kind != "Normal" && kind != "Warning" {
            errors.push(FieldError::invalid("type", &"".into(), &format!("has invalid value: {kind}")));
        }
        let is_set = |value: &Value| !value.is_null() && value != "" && value.as_i64() != Some(0);
        for (field, path) in
            [("firstTimestamp", "firstTimestamp"), ("lastTimestamp", "lastTimestamp"), ("count", "count")]
        {
            if is_set(&core[field]) {
                errors.push(FieldError::invalid(path, &"".into(), "needs to be unset"));
            }
        }
        if is_set(&core["source"]["component"]) || is_set(&core["source"]["host"]) {
            errors.push(FieldError::invalid("source", &"".into(), "needs to be unset"));
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for field in [
            "reportingController",
            "reportingInstance",
            "action",
            "reason",
            "regarding",
            "related",
            "note",
            "type",
            "eventTime",
        ] {
            if !super::pod::update::same(&object[field], &old[field]) {
                errors.push(FieldError::invalid(field, &object[field], crate::api::validation::IMMUTABLE));
            }
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        columns()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut core = object.clone();
        self.to_stored(&mut core);
        cells(&core, now)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let regarding = |field: &str| text(&object["regarding"][field]).to_owned();
        vec![
            ("regarding.kind", regarding("kind")),
            ("regarding.namespace", regarding("namespace")),
            ("regarding.name", regarding("name")),
            ("regarding.uid", regarding("uid")),
            ("regarding.apiVersion", regarding("apiVersion")),
            ("regarding.resourceVersion", regarding("resourceVersion")),
            ("regarding.fieldPath", regarding("fieldPath")),
            ("reason", text(&object["reason"]).to_owned()),
            ("reportingController", text(&object["reportingController"]).to_owned()),
            ("type", text(&object["type"]).to_owned()),
        ]
    }

    fn knows_field(&self, field: &str) -> bool {
        self.selectable_fields(&Value::Null).iter().any(|(known, _)| *known == field)
    }
}

fn rename(object: &mut Value, direction: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str)) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in RENAMED.map(direction) {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

/// Only the fields that both versions have.
fn convert_series(object: &mut Value) {
    let Some(series) = object.get("series").and_then(Value::as_object) else { return };
    let kept: Map<String, Value> = series
        .iter()
        .filter(|(key, _)| matches!(key.as_str(), "count" | "lastObservedTime"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    object["series"] = kept.into();
}

/// `legacyValidateEvent`, on the stored shape.
fn validate(errors: &mut Errors, event: &Value, reporting_controller: &str) {
    let (namespace, involved) = (meta::namespace(event), &event["involvedObject"]["namespace"]);
    let mut mismatch = || {
        let detail = "does not match event.namespace";
        errors.push(FieldError::invalid("involvedObject.namespace", &text(involved).into(), detail));
    };
    if text(&event["eventTime"]).is_empty() {
        match text(involved) {
            "" if !matches!(namespace, "" | "default") => mismatch(),
            "" => {}
            other if other != namespace => mismatch(),
            _ => {}
        }
        return;
    }
    if text(involved).is_empty() && !matches!(namespace, "default" | "kube-system") {
        mismatch();
    }
    let controller = &event["reportingComponent"];
    if text(controller).is_empty() {
        errors.push(FieldError::required(reporting_controller, ""));
    }
    invalid_all(errors, reporting_controller, controller, qualified_name_messages(text(controller)));
    for field in ["reportingInstance", "action", "reason"] {
        match text(&event[field]).len() {
            0 => errors.push(FieldError::required(field, "")),
            129.. => errors.push(FieldError::invalid(field, &"".into(), "can have at most 128 characters")),
            _ => {}
        }
    }
    if text(&event["message"]).len() > 1024 {
        errors.push(FieldError::invalid("message", &"".into(), "can have at most 1024 characters"));
    }
}

fn columns() -> Vec<Column> {
    vec![
        column("Last Seen", "string", "The time at which the most recent occurrence of this event was recorded."),
        column("Type", "string", "Type of this event (Normal, Warning), new types could be added in the future"),
        column(
            "Reason",
            "string",
            "This should be a short, machine understandable string that gives the reason for the transition into the \
             object's current status.",
        ),
        column("Object", "string", "The object that this event is about."),
        wide_column(
            "Subobject",
            "string",
            "If referring to a piece of an object instead of an entire object, this string should contain a valid \
                JSON/Go \
             field access statement, such as desiredState.manifest.containers[2]. For example, if the object reference is \
             to a container within a pod, this would take on a value like: \"spec.containers{name}\" (where \
             \"name\" refers \
             to the name of the container that triggered the event) or if no container name is specified \
             \"spec.containers[2]\" (container with index 2 in this pod). This syntax is chosen only to have some \
             well-defined way of referencing a part of an object.",
        ),
        wide_column(
            "Source",
            "string",
            "The component reporting this event. Should be a short machine understandable string.",
        ),
        column("Message", "string", "A human-readable description of the status of this operation."),
        wide_column(
            "First Seen",
            "string",
            "The time at which the event was first recorded. (Time of server receipt is in TypeMeta.)",
        ),
        wide_column("Count", "string", "The number of times this event has occurred."),
        Column { format: "name".into(), ..wide_column("Name", "string", crate::api::printers::NAME) },
    ]
}

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let first_time = if text(&event["firstTimestamp"]).is_empty() { "eventTime" } else { "firstTimestamp" };
    let first = since(&event[first_time], now);
    let mut last = first.clone();
    if !text(&event["lastTimestamp"]).is_empty() {
        last = since(&event["lastTimestamp"], now);
    }
    let mut count = number(&event["count"]);
    if event["series"].is_object() {
        last = since(&event["series"]["lastObservedTime"], now);
        count = number(&event["series"]["count"]);
    } else if count == 0 {
        count = 1;
    }
    let involved = &event["involvedObject"];
    let kind = text(&involved["kind"]).to_lowercase();
    let target = match text(&involved["name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let or = |value: &Value, other: &Value| if text(value).is_empty() { text(other) } else { text(value) }.to_owned();
    let mut source = or(&event["source"]["component"], &event["reportingComponent"]);
    let host = or(&event["source"]["host"], &event["reportingInstance"]);
    if !host.is_empty() {
        source = format!("{source}, {host}");
    }
    vec![
        last.into(),
        text(&event["type"]).into(),
        text(&event["reason"]).into(),
        target.into(),
        text(&involved["fieldPath"]).into(),
        source.into(),
        text(&event["message"]).trim().into(),
        first.into(),
        count.into(),
        name(event),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_versions_are_one_object() {
        let v1 = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"kind": "Pod"}, "note": "n",
            "reportingController": "c", "reportingInstance": "i", "deprecatedSource": {}});
        let mut object = v1.clone();
        V1.to_stored(&mut object);
        assert_eq!((&object["involvedObject"]["kind"], &object["message"]), (&json!("Pod"), &json!("n")));
        assert_eq!(object["reportingComponent"], "c");
        V1.from_stored(&mut object);
        assert_eq!(object, v1);
    }
}
