//! Label selectors and node selectors as parts of objects.

use serde_json::Value;

use super::Errors;
use super::meta::{label_name, label_value_messages, labels};
use crate::api::meta::{items, text};
use crate::api::status::FieldError;

/// A `metav1.LabelSelector` (`ValidateLabelSelector`); nothing to say about null.
pub fn label_selector(errors: &mut Errors, selector: &Value, path: &str) {
    errors.extend(labels(&selector["matchLabels"], &format!("{path}.matchLabels")));
    for (index, expression) in items(&selector["matchExpressions"]).iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let values = items(&expression["values"]);
        match text(&expression["operator"]) {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.push(FieldError::invalid(
                format!("{path}.operator"),
                &expression["operator"],
                "not a valid selector operator",
            )),
        }
        errors.extend(label_name(text(&expression["key"]), &format!("{path}.key")));
        for (index, value) in values.iter().enumerate() {
            super::invalid_all(errors, &format!("{path}.values[{index}]"), value, label_value_messages(text(value)));
        }
    }
}

/// A `NodeSelector` (`ValidateNodeSelector`).
pub fn node_selector(errors: &mut Errors, selector: &Value, path: &str) {
    let terms = items(&selector["nodeSelectorTerms"]);
    if terms.is_empty() {
        let path = format!("{path}.nodeSelectorTerms");
        return errors.push(FieldError::required(path, "must have at least one node selector term"));
    }
    for (index, term) in terms.iter().enumerate() {
        node_selector_term(errors, term, &format!("{path}.nodeSelectorTerms[{index}]"));
    }
}

/// One term of a node selector or of a preference.
pub fn node_selector_term(errors: &mut Errors, term: &Value, path: &str) {
    for (index, expression) in items(&term["matchExpressions"]).iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let count = items(&expression["values"]).len();
        let values = format!("{path}.values");
        match text(&expression["operator"]) {
            "In" | "NotIn" if count == 0 => {
                errors.push(FieldError::required(values, "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if count > 0 => errors.push(FieldError::forbidden(
                values,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Gt" | "Lt" if count != 1 => errors
                .push(FieldError::required(values, "must be specified single value when `operator` is 'Lt' or 'Gt'")),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.push(FieldError::invalid(
                format!("{path}.operator"),
                &expression["operator"],
                "not a valid selector operator",
            )),
        }
        errors.extend(label_name(text(&expression["key"]), &format!("{path}.key")));
    }
    for (index, expression) in items(&term["matchFields"]).iter().enumerate() {
        let path = format!("{path}.matchFields[{index}]");
        if !matches!(text(&expression["operator"]), "In" | "NotIn") {
            let operator = format!("{path}.operator");
            errors.push(FieldError::invalid(operator, &expression["operator"], "not a valid selector operator"));
        } else if items(&expression["values"]).len() != 1 {
            let values = format!("{path}.values");
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(values, detail));
        }
        if text(&expression["key"]) != "metadata.name" {
            let key = format!("{path}.key");
            errors.push(FieldError::invalid(key, &expression["key"], "not a valid field selector key"));
        }
    }
}
