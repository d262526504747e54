//! PriorityLevelConfigurations: how many requests may be answered at a time, and what happens to more.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{ensure_object, set, set_number};
use super::flow_schema::conditions;
use super::{cluster_scoped, gvr};
use crate::api::flow_control;
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{self, number, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::status::FieldError;
use crate::api::validation::Errors;

/// The kind.
pub fn kind() -> Kind {
    let strategy = Arc::new(PriorityLevelConfigurations);
    Kind {
        subresources: vec![Subresource::Status],
        has_generation: true,
        unconditional_update: false,
        ..cluster_scoped(gvr::PRIORITY_LEVEL_CONFIGURATIONS, "PriorityLevelConfiguration", strategy)
    }
}

const MAX_QUEUES: i64 = 10_000_000;
/// Bits of the hash that deals queues (`shufflesharding.MaxHashBits`).
const MAX_ENTROPY: i64 = 60;

struct PriorityLevelConfigurations;

impl Strategy for PriorityLevelConfigurations {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = ensure_object(object, "spec") {
            match text(&spec["type"]) {
                "Exempt" => {
                    if let Some(exempt) = ensure_object(spec, "exempt") {
                        set(exempt, "nominalConcurrencyShares", 0);
                        set(exempt, "lendablePercent", 0);
                    }
                }
                _ => limited_defaults(spec),
            }
        }
        ensure_object(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (name, spec) = (meta::name(object), &object["spec"]);
        let mut errors = Errors::new();
        if (name == "exempt") != (text(&spec["type"]) == "Exempt") {
            let detail = "type must be 'Exempt' if and only if name is 'exempt'";
            errors.push(FieldError::invalid("spec.type", &spec["type"], detail));
        }
        match text(&spec["type"]) {
            "Exempt" => {
                if spec["limited"].is_object() {
                    errors.push(FieldError::forbidden("spec.limited", "must be nil if the type is not Limited"));
                }
                shares(&mut errors, &spec["exempt"], "spec.exempt");
            }
            "Limited" => {
                if spec["exempt"].is_object() {
                    errors.push(FieldError::forbidden("spec.exempt", "must be nil if the type is Limited"));
                }
                if spec["limited"].is_object() {
                    limited(&mut errors, &spec["limited"]);
                } else {
                    errors.push(FieldError::required("spec.limited", "must not be empty when type is Limited"));
                }
            }
            kind => errors.push(FieldError::not_supported("spec.type", &kind.into(), &["Exempt", "Limited"])),
        }
        if let Some(fixed) = flow_control::mandatory_priority_level(name)
            && !is_as_fixed(name, spec, &fixed["spec"])
        {
            errors.push(FieldError::invalid("spec", spec, &format!("spec of '{name}' must equal the fixed value")));
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> Vec<FieldError> {
        conditions(&object["status"])
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Type",
                "string",
                "`type` indicates whether this priority level is subject to limitation on request execution.  A value of \
                 `\"Exempt\"` means that requests of this priority level are not subject to a limit (and thus are never \
                 queued) and do not detract from the capacity made available to other priority levels.  A value of \
                 `\"Limited\"` means that (a) requests of this priority level _are_ subject to limits and (b) some of \
                 the server's limited capacity is made available exclusively to this priority level. Required.",
            ),
            column(
                "NominalConcurrencyShares",
                "string",
                "`nominalConcurrencyShares` (NCS) contributes to the computation of the NominalConcurrencyLimit \
                 (NominalCL) of this level.",
            ),
            column("Queues", "string", "`queues` is the number of queues for this priority level."),
            column(
                "HandSize",
                "string",
                "`handSize` is a small positive number that configures the shuffle sharding of requests into queues.",
            ),
            column(
                "QueueLengthLimit",
                "string",
                "`queueLengthLimit` is the maximum number of requests allowed to be waiting in a given queue of this \
                 priority level at a time; excess requests are rejected.",
            ),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let queuing = &spec["limited"]["limitResponse"]["queuing"];
        let or_none = |value: &Value| if value.is_null() { "<none>".into() } else { value.clone() };
        vec![
            name(object),
            text(&spec["type"]).into(),
            or_none(&spec["limited"]["nominalConcurrencyShares"]),
            or_none(&queuing["queues"]),
            or_none(&queuing["handSize"]),
            or_none(&queuing["queueLengthLimit"]),
            age(object, now),
        ]
    }
}

/// The shares of `exempt` may be changed, all else of the mandatory levels may not.
fn is_as_fixed(name: &str, spec: &Value, fixed: &Value) -> bool {
    if name == "exempt" { spec["type"] == fixed["type"] } else { spec == fixed }
}

fn limited_defaults(spec: &mut Value) {
    let Some(limited) = spec.get_mut("limited").filter(|limited| limited.is_object()) else { return };
    set(limited, "nominalConcurrencyShares", 30);
    set(limited, "lendablePercent", 0);
    let Some(queuing) = limited.get_mut("limitResponse").and_then(|response| response.get_mut("queuing")) else {
        return;
    };
    set_number(queuing, "queues", 64);
    set_number(queuing, "handSize", 8);
    set_number(queuing, "queueLengthLimit", 50);
}

fn shares(errors: &mut Errors, level: &Value, path: &str) {
    let (shares, lendable) = (&level["nominalConcurrencyShares"], &level["lendablePercent"]);
    if number(shares) < 0 {
        let path = format!("{path}.nominalConcurrencyShares");
        errors.push(FieldError::invalid(path, shares, "must be a non-negative integer"));
    }
    if !(0..=100).contains(&number(lendable)) {
        let path = format!("{path}.lendablePercent");
        errors.push(FieldError::invalid(path, lendable, "must be between 0 and 100, inclusive"));
    }
}

fn limited(errors: &mut Errors, limited: &Value) {
    let path = "spec.limited";
    shares(errors, limited, path);
    let borrowing = &limited["borrowingLimitPercent"];
    if number(borrowing) < 0 {
        let path = format!("{path}.borrowingLimitPercent");
        errors.push(FieldError::invalid(path, borrowing, "if specified, must be a non-negative integer"));
    }
    let (response, path) = (&limited["limitResponse"], format!("{path}.limitResponse"));
    let queuing_path = format!("{path}.queuing");
    match text(&response["type"]) {
        "Reject" if response["queuing"].is_object() => {
            let detail = "must be nil if limited.limitResponse.type is not Limited";
            errors.push(FieldError::forbidden(queuing_path, detail));
        }
        "Reject" => {}
        "Queue" if !response["queuing"].is_object() => {
            let detail = "must not be empty if limited.limitResponse.type is Limited";
            errors.push(FieldError::required(queuing_path, detail));
        }
        "Queue" => queuing(errors, &response["queuing"], &queuing_path),
        kind => {
            errors.push(FieldError::not_supported(format!("{path}.type"), &kind.into(), &["Queue", "Reject"]));
        }
    }
}

fn queuing(errors: &mut Errors, queuing: &Value, path: &str) {
    let mut refuse = |field: &str, detail: &str| {
        errors.push(FieldError::invalid(format!("{path}.{field}"), &queuing[field], detail));
    };
    let (queues, hand) = (number(&queuing["queues"]), number(&queuing["handSize"]));
    if number(&queuing["queueLengthLimit"]) <= 0 {
        refuse("queueLengthLimit", "must be positive");
    }
    if queues <= 0 {
        refuse("queues", "must be positive");
    } else if queues > MAX_QUEUES {
        refuse("queues", &format!("must not be greater than {MAX_QUEUES}"));
    }
    if hand <= 0 {
        refuse("handSize", "must be positive");
    } else if hand > queues {
        refuse("handSize", &format!("should not be greater than queues ({queues})"));
    } else if entropy(queues, hand) > MAX_ENTROPY {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_ENTROPY}"
        );
        refuse("handSize", &detail);
    }
}

/// Bits that say which hand is dealt (`shufflesharding.RequiredEntropyBits`).
fn entropy(queues: i64, hand: i64) -> i64 {
    ((queues as f64).log2() * hand as f64).ceil() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(name: &str, spec: Value) -> Vec<String> {
        let mut object = json!({"metadata": {"name": name}, "spec": spec});
        PriorityLevelConfigurations.default(&mut object);
        let errors = PriorityLevelConfigurations.validate(&object);
        errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn queues_must_be_dealt_from() {
        // TestPriorityLevelConfigurationValidation of validation_test.go.
        let queue = |queues: i64, hand: i64| json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {"queues": queues, "handSize": hand}}}});
        assert_eq!(errors("eg", queue(64, 8)), [""; 0]);
        assert_eq!(
            errors("eg", queue(100, 30)),
            [
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 30: required entropy bits of deckSize 100 and \
                handSize 30 should not be greater than 60"
            ]
        );
        assert_eq!(
            errors("eg", json!({"type": "Exempt"})),
            ["spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'"]
        );
    }

    #[test]
    fn the_bootstrap_levels_are_valid() {
        for level in flow_control::priority_levels() {
            assert_eq!(errors(meta::name(&level), level["spec"].clone()), [""; 0], "{level}");
        }
    }
}
