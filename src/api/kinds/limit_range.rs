//! LimitRanges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::created_at::CreatedAt;
use super::defaulting::{each, ensure_object};
use super::pod::{allows_overcommit, container_resource_name, resource_name};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{items, text};
use crate::api::quantity::{Quantity, canonicalize_resource_list};
use crate::api::status::FieldError;
use crate::api::validation::Errors;
use crate::api::validation::meta::qualified_name_messages;

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["limits"]),
        create_on_update: true,
        ..namespaced(gvr::LIMIT_RANGES, "LimitRange", Arc::new(LimitRanges))
    }
}

/// The resource lists of an item.
const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

struct LimitRanges;

impl Strategy for LimitRanges {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        for item in each(spec, "limits") {
            for list in LISTS {
                if let Some(list) = item.get_mut(list) {
                    canonicalize_resource_list(list);
                }
            }
            if text(&item["type"]) == "Container" {
                // What is missing comes from the next larger bound, requests at last from the smallest.
                fill(item, "default", "max");
                fill(item, "defaultRequest", "default");
                fill(item, "defaultRequest", "min");
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (mut errors, mut types) = (Errors::new(), BTreeSet::new());
        for (index, item) in items(&object["spec"]["limits"]).iter().enumerate() {
            let path = format!("spec.limits[{index}]");
            type_name(&mut errors, &item["type"], &format!("{path}.type"));
            if !types.insert(text(&item["type"])) {
                errors.push(FieldError::duplicate(format!("{path}.type"), &item["type"]));
            }
            limits(&mut errors, item, &path);
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        CreatedAt.columns()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        CreatedAt.cells(object, now)
    }
}

/// Gives a list the entries of another that it lacks.
fn fill(item: &mut Value, list: &str, from: &str) {
    let Some(source) = item[from].as_object().filter(|source| !source.is_empty()).cloned() else { return };
    let Some(target) = ensure_object(item, list).and_then(Value::as_object_mut) else { return };
    for (name, quantity) in source {
        target.entry(name).or_insert(quantity);
    }
}

fn type_name(errors: &mut Errors, value: &Value, path: &str) {
    let name = text(value);
    let given = Value::from(name);
    errors.extend(qualified_name_messages(name).iter().map(|m| FieldError::invalid(path, &given, m)));
    if !name.contains('/') && !matches!(name, "Pod" | "Container" | "PersistentVolumeClaim") {
        errors.push(FieldError::invalid(path, &given, "must be a standard limit type or fully qualified"));
    }
}

fn limits(errors: &mut Errors, item: &Value, path: &str) {
    let kind = text(&item["type"]);
    let empty = Map::new();
    let mut lists: BTreeMap<&str, BTreeMap<&str, Quantity>> = BTreeMap::new();
    for list in LISTS {
        let given = item[list].as_object().unwrap_or(&empty);
        if kind == "Pod" && list.starts_with("default") {
            if !given.is_empty() {
                let detail = "may not be specified when `type` is 'Pod'";
                errors.push(FieldError::forbidden(format!("{path}.{list}"), detail));
            }
            continue;
        }
        for (name, quantity) in given {
            let path = format!("{path}.{list}[{name}]");
            match kind {
                "Pod" | "Container" => container_resource_name(errors, name, &path),
                _ => drop(resource_name(errors, name, &path)),
            }
            match Quantity::from_value(quantity) {
                Ok(quantity) => drop(lists.entry(list).or_default().insert(name, quantity)),
                Err(e) => errors.push(FieldError::invalid(path, quantity, &e.to_string())),
            }
        }
    }
    if kind == "PersistentVolumeClaim" && item["min"]["storage"].is_null() && item["max"]["storage"].is_null() {
        let detail = "either minimum or maximum storage value is required, but neither was provided";
        errors.push(FieldError::required(format!("{path}.limits"), detail));
    }
    let all: BTreeSet<&str> = lists.values().flat_map(|list| list.keys().copied()).collect();
    for name in all {
        let of = |list: &str| lists.get(list).and_then(|list| list.get(name)).copied();
        let mut report = |list: &str, value: Quantity, detail: String| {
            errors.push(FieldError::invalid(format!("{path}.{list}[{name}]"), &value.to_string().into(), &detail));
        };
        bounds(name, of, &mut report);
    }
}

/// How the bounds of one resource must lie to each other.
fn bounds(name: &str, of: impl Fn(&str) -> Option<Quantity>, report: &mut impl FnMut(&str, Quantity, String)) {
    let (min, max, default, request) = (of("min"), of("max"), of("default"), of("defaultRequest"));
    let above = |a: Option<Quantity>, b: Option<Quantity>| a.zip(b).filter(|(a, b)| a > b);
    if let Some((min, max)) = above(min, max) {
        report("min", min, format!("min value {min} is greater than max value {max}"));
    }
    if let Some((min, request)) = above(min, request) {
        let detail = format!("min value {min} is greater than default request value {request}");
        report("defaultRequest", request, detail);
    }
    if let Some((request, max)) = above(request, max) {
        let detail = format!("default request value {request} is greater than max value {max}");
        report("defaultRequest", request, detail);
    }
    if let Some((request, default)) = above(request, default) {
        let detail = format!("default request value {request} is greater than default limit value {default}");
        report("defaultRequest", request, detail);
    }
    if let Some((min, default)) = above(min, default) {
        report("default", min, format!("min value {min} is greater than default value {default}"));
    }
    if let Some((default, max)) = above(default, max) {
        report("default", max, format!("default value {default} is greater than max value {max}"));
    }
    if let Some(ratio) = of("maxLimitRequestRatio") {
        if ratio < Quantity::from_millis(1000) {
            report("maxLimitRequestRatio", ratio, format!("ratio {ratio} is less than 1"));
        }
        if let Some((min, max)) = min.zip(max).filter(|(min, _)| !min.is_zero()) {
            let limit = max.as_f64() / min.as_f64();
            if ratio.as_f64() > limit {
                let detail = format!("ratio {ratio} is greater than max/min = {limit:.6}");
                report("maxLimitRequestRatio", ratio, detail);
            }
        }
    }
    if let Some((default, request)) = default.zip(request).filter(|(a, b)| a != b && !allows_overcommit(name)) {
        let detail = format!("default value {default} must equal to defaultRequest value {request} in {name}");
        report("defaultRequest", request, detail);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_of_containers_come_from_the_bounds() {
        // TestSetDefaultLimitRangeItem of defaults_test.go.
        let mut object = json!({"spec": {"limits": [
            {"type": "Container", "max": {"cpu": "100m"}, "min": {"memory": "100Mi"}},
            {"type": "Pod", "max": {"cpu": "4"}},
        ]}});
        LimitRanges.default(&mut object);
        let item = &object["spec"]["limits"][0];
        assert_eq!(item["default"], json!({"cpu": "100m"}));
        assert_eq!(item["defaultRequest"], json!({"cpu": "100m", "memory": "100Mi"}));
        assert!(object["spec"]["limits"][1]["default"].is_null());
    }

    #[test]
    fn bounds_that_contradict_each_other_are_told() {
        let errors = |item: Value| -> Vec<String> {
            let errors = LimitRanges.validate(&json!({"spec": {"limits": [item]}}));
            errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
        };
        // TestValidateLimitRange of validation_test.go.
        let ratio = json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "800m"}, "maxLimitRequestRatio": {"cpu": "10"}});
        let want = "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"10\": ratio 10 is greater than max/min = 8.000000";
        assert_eq!(errors(ratio), [want]);
        let small = json!({"type": "Container", "maxLimitRequestRatio": {"memory": "0"}});
        assert_eq!(
            errors(small),
            ["spec.limits[0].maxLimitRequestRatio[memory]: Invalid value: \"0\": ratio 0 is less than 1"]
        );
        let claim = json!({"type": "PersistentVolumeClaim"});
        let want = "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but \
            neither was provided";
        assert_eq!(errors(claim), [want]);
        assert_eq!(errors(json!({"type": "PersistentVolumeClaim", "max": {"storage": "5Gi"}})), Vec::<String>::new());
    }
}
