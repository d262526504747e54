//! PriorityClasses, and the two that every cluster has.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::defaulting::set;
use super::{cluster_scoped, gvr, names};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{self, number, text};
use crate::api::printers::{age, age_column, column, name_column};
use crate::api::status::FieldError;
use crate::api::validation::{Errors, immutable, one_of};

/// The highest value of a class that is not the system's (`HighestUserDefinablePriority`).
const HIGHEST: i64 = 1_000_000_000;
/// Names with this prefix are the system's (`SystemPriorityClassPrefix`).
const SYSTEM_PREFIX: &str = "system-";

/// A class that always exists (`SystemPriorityClasses`).
pub struct SystemClass {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: i64,
    /// Its description.
    pub description: &'static str,
}

/// The classes that always exist.
pub const SYSTEM: [SystemClass; 2] = [
    SystemClass {
        name: "system-node-critical",
        value: 2_000_001_000,
        description: "Used for system critical pods that must not be moved from their current node.",
    },
    SystemClass {
        name: "system-cluster-critical",
        value: 2_000_000_000,
        description: "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    },
];

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["pc"]),
        has_generation: true,
        ..cluster_scoped(gvr::PRIORITY_CLASSES, "PriorityClass", Arc::new(PriorityClasses))
    }
}

struct PriorityClasses;

/// Why a class with a system name is not one of the system's (`IsKnownSystemPriorityClass`).
fn unknown_system_class(class: &Value) -> Option<String> {
    let name = meta::name(class);
    let Some(known) = SYSTEM.iter().find(|known| known.name == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if number(&class["value"]) != known.value {
        return Some(format!("value of {name} PriorityClass must be {}", known.value));
    }
    (class["globalDefault"] == true).then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

impl Strategy for PriorityClasses {
    fn default(&self, object: &mut Value) {
        set(object, "preemptionPolicy", "PreemptLowerPriority");
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        if meta::name(object).starts_with(SYSTEM_PREFIX) {
            if let Some(why) = unknown_system_class(object) {
                let detail = format!(
                    "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {why}"
                );
                errors.push(FieldError::forbidden("metadata.name", &detail));
            }
        } else if number(&object["value"]) > HIGHEST {
            let detail = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            errors.push(FieldError::forbidden("value", &detail));
        }
        one_of(&mut errors, "preemptionPolicy", &object["preemptionPolicy"], &["Never", "PreemptLowerPriority"]);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        if number(&object["value"]) != number(&old["value"]) {
            errors.push(FieldError::forbidden("value", "may not be changed in an update."));
        }
        immutable(&mut errors, "preemptionPolicy", &object["preemptionPolicy"], &old["preemptionPolicy"]);
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Value",
                "integer",
                "value represents the integer value of this priority class. This is the actual priority that pods \
                    receive when they have the name of this class in their pod spec.",
            ),
            column(
                "Global-Default",
                "boolean",
                "globalDefault specifies whether this PriorityClass should be considered as the default priority for \
                    pods that do not have any priority class. Only one PriorityClass can be marked as `globalDefault`. \
                    However, if more than one PriorityClasses exists with their `globalDefault` field set to true, the \
                    smallest value of such global default PriorityClasses will be used as the default priority.",
            ),
            age_column(),
            column(
                "PreemptionPolicy",
                "string",
                "preemptionPolicy is the Policy for preempting pods with lower priority. One of Never, \
                    PreemptLowerPriority. Defaults to PreemptLowerPriority if unset.",
            ),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            meta::name(object).into(),
            number(&object["value"]).into(),
            (object["globalDefault"] == true).into(),
            age(object, now),
            text(&object["preemptionPolicy"]).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(name: &str, value: i64, global: bool, expected: &str) {
        let class = json!({"metadata": {"name": name}, "value": value, "globalDefault": global,
            "preemptionPolicy": "PreemptLowerPriority"});
        let said: Vec<String> =
            PriorityClasses.validate(&class).iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        assert_eq!(said.join("; "), expected);
    }

    #[test]
    fn names_and_values_of_the_system_are_reserved() {
        check("high", HIGHEST, true, "");
        check(
            "high",
            HIGHEST + 1,
            false,
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
        );
        let reserved = "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: ";
        check("system-mine", 1, false, &format!("{reserved}system-mine is not a known system priority class"));
        let wrong = "value of system-node-critical PriorityClass must be 2000001000";
        check("system-node-critical", 1, false, &format!("{reserved}{wrong}"));
        check("system-node-critical", 2_000_001_000, false, "");
        let wrong = "globalDefault of system-node-critical PriorityClass must be false";
        check("system-node-critical", 2_000_001_000, true, &format!("{reserved}{wrong}"));
    }

    #[test]
    fn value_and_policy_do_not_change() {
        let class = |value: i64, policy: &str| json!({"value": value, "preemptionPolicy": policy});
        let said = |new: &Value, old: &Value| PriorityClasses.validate_update(new, old).len();
        assert_eq!(said(&class(1, "Never"), &class(1, "Never")), 0);
        assert_eq!(said(&class(2, "Never"), &class(1, "PreemptLowerPriority")), 2);
    }
}
