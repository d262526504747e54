//! Rules that say which requests are meant (`RuleWithOperations`), with their validation and matching.

use serde_json::Value;

use crate::api::meta::{items, text};
use crate::api::status::FieldError;
use crate::api::validation::Errors;

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];

/// Validates one rule.
pub fn validate(errors: &mut Errors, rule: &Value, path: &str) {
    list(errors, &rule["operations"], &format!("{path}.operations"), "operations", false);
    for (index, operation) in items(&rule["operations"]).iter().enumerate() {
        if !OPERATIONS.contains(&text(operation)) {
            errors.push(FieldError::not_supported(format!("{path}.operations[{index}]"), operation, &OPERATIONS));
        }
    }
    list(errors, &rule["apiGroups"], &format!("{path}.apiGroups"), "API groups", false);
    list(errors, &rule["apiVersions"], &format!("{path}.apiVersions"), "API versions", true);
    resources(errors, &rule["resources"], &format!("{path}.resources"));
    if !rule["scope"].is_null() && !SCOPES.contains(&text(&rule["scope"])) {
        errors.push(FieldError::not_supported(format!("{path}.scope"), &rule["scope"], &SCOPES));
    }
}

fn list(errors: &mut Errors, values: &Value, path: &str, what: &str, no_empty: bool) {
    if items(values).is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    if items(values).len() > 1 && items(values).iter().any(|value| value == "*") {
        errors.push(FieldError::invalid(path, values, &format!("if '*' is present, must not specify other {what}")));
    }
    for (index, _) in items(values).iter().enumerate().filter(|(_, value)| no_empty && text(value).is_empty()) {
        errors.push(FieldError::required(format!("{path}[{index}]"), ""));
    }
}

fn resources(errors: &mut Errors, values: &Value, path: &str) {
    let all = items(values);
    if all.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    let has = |wanted: &str| all.iter().any(|value| value == wanted);
    for (index, value) in all.iter().enumerate() {
        let at = format!("{path}[{index}]");
        let (resource, sub) = text(value).split_once('/').unwrap_or((text(value), ""));
        if resource.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if resource != "*" && has(&format!("*/{sub}")) && !sub.is_empty() && all.len() > 1 {
            let why = format!("if '*/{sub}' is present, must not specify {}", text(value));
            errors.push(FieldError::invalid(at, value, &why));
        } else if sub != "*" && !sub.is_empty() && has(&format!("{resource}/*")) {
            let why = format!("if '{resource}/*' is present, must not specify {}", text(value));
            errors.push(FieldError::invalid(at, value, &why));
        }
    }
    if all.len() > 1 && has("*/*") {
        errors.push(FieldError::invalid(path, values, "if '*/*' is present, must not specify other resources"));
    }
    if all.len() > 1 && has("*") && all.iter().any(|value| *value != "*" && !text(value).contains('/')) {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.push(FieldError::invalid(path, values, why));
    }
}

/// What a rule is matched against.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// `CREATE`, `UPDATE`, `DELETE`, `CONNECT`.
    pub operation: &'a str,
    /// The API group.
    pub group: &'a str,
    /// The version.
    pub version: &'a str,
    /// The resource.
    pub resource: &'a str,
    /// The subresource; empty for the object itself.
    pub subresource: &'a str,
    /// Whether the resource lives in namespaces.
    pub namespaced: bool,
    /// The object's name.
    pub name: &'a str,
}

/// Whether a rule means a request (`predicates/rules`).
pub fn matches(rule: &Value, asked: &Asked<'_>) -> bool {
    let any = |field: &str, wanted: &str| items(&rule[field]).iter().any(|value| value == "*" || value == wanted);
    let scope = match text(&rule["scope"]) {
        "Cluster" => !asked.namespaced,
        "Namespaced" => asked.namespaced,
        _ => true,
    };
    let resource = items(&rule["resources"]).iter().any(|value| {
        let (resource, sub) = text(value).split_once('/').unwrap_or((text(value), ""));
        (resource == "*" || resource == asked.resource) && (sub == asked.subresource || sub == "*")
    });
    let names = items(&rule["resourceNames"]);
    let named = names.is_empty() || names.iter().any(|name| name == asked.name);
    scope
        && any("operations", asked.operation)
        && any("apiGroups", asked.group)
        && any("apiVersions", asked.version)
        && resource
        && named
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_match_as_documented() {
        let asked = Asked {
            operation: "CREATE",
            group: "apps",
            version: "v1",
            resource: "deployments",
            subresource: "",
            namespaced: true,
            name: "web",
        };
        let rule = |resources: Value| json!({"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["*"], "resources": resources});
        for (resources, plain, scale) in [
            (json!(["deployments"]), true, false),
            (json!(["deployments/*"]), true, true),
            (json!(["deployments/scale"]), false, true),
            (json!(["*"]), true, false),
            (json!(["*/*"]), true, true),
            (json!(["*/scale"]), false, true),
            (json!(["pods"]), false, false),
        ] {
            assert_eq!(matches(&rule(resources.clone()), &asked), plain, "{resources}");
            assert_eq!(
                matches(&rule(resources.clone()), &Asked { subresource: "scale", ..asked }),
                scale,
                "{resources}/scale"
            );
        }
        let mut cluster = rule(json!(["*"]));
        cluster["scope"] = "Cluster".into();
        assert!(!matches(&cluster, &asked));
        let mut named = rule(json!(["*"]));
        named["resourceNames"] = json!(["other"]);
        assert!(!matches(&named, &asked));
    }
}
