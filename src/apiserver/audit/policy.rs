//! The audit policy (`audit.k8s.io/v1` Policy): which requests are told, how much of them, and when.

use std::path::Path;

use serde_json::Value;

use crate::api::meta::{items, text};
use crate::api::schema::parse_yaml;
use crate::apiserver::User;
use crate::apiserver::http::request::RequestInfo;

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    const ALL: [(&'static str, Self); 4] = [
        ("None", Self::None),
        ("Metadata", Self::Metadata),
        ("Request", Self::Request),
        ("RequestResponse", Self::RequestResponse),
    ];

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, level)| *level)
    }

    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, level)| *level == self).expect("all levels are listed").0
    }
}

/// When something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
        }
    }
}

/// What the policy wants to know of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decision {
    pub level: Level,
    pub omit_managed_fields: bool,
    omitted: Vec<String>,
}

impl Decision {
    pub fn omits(&self, stage: Stage) -> bool {
        self.omitted.iter().any(|omitted| omitted == stage.as_str())
    }
}

/// A valid policy.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    rules: Vec<Value>,
    omit_stages: Vec<String>,
    omit_managed_fields: bool,
}

/// Reads a policy file.
///
/// # Errors
/// When it cannot be read or is no valid policy; in words.
pub fn read_policy(path: &Path) -> Result<Value, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let parsed = parse_yaml(&bytes, "Policy").map_err(|status| status.message)?;
    if let Some(duplicate) = parsed.duplicates.first() {
        return Err(duplicate.clone());
    }
    Policy::new(&parsed.value)?;
    Ok(parsed.value)
}

const STAGES: [&str; 4] = ["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"];
const FIELDS: [&str; 6] = ["apiVersion", "kind", "metadata", "rules", "omitStages", "omitManagedFields"];
const RULE_FIELDS: [&str; 9] = [
    "level",
    "users",
    "userGroups",
    "verbs",
    "resources",
    "namespaces",
    "nonResourceURLs",
    "omitStages",
    "omitManagedFields",
];

impl Policy {
    /// Checks a policy (`ValidatePolicy`).
    pub fn new(policy: &Value) -> Result<Self, String> {
        let version = text(&policy["apiVersion"]);
        if version != "audit.k8s.io/v1" || text(&policy["kind"]) != "Policy" {
            return Err(format!(
                "it must be a Policy of audit.k8s.io/v1, not {:?} of {version:?}",
                text(&policy["kind"])
            ));
        }
        known(policy, &FIELDS, "")?;
        stages(&policy["omitStages"], "omitStages")?;
        let rules = items(&policy["rules"]);
        if rules.is_empty() {
            // As kube-apiserver: a policy without rules is a mistake.
            return Err("rules: Required value: a policy without rules tells nothing".to_owned());
        }
        for (index, rule) in rules.iter().enumerate() {
            check_rule(rule, &format!("rules[{index}]"))?;
        }
        Ok(Self {
            rules: rules.to_vec(),
            omit_stages: items(&policy["omitStages"]).iter().map(|stage| text(stage).to_owned()).collect(),
            omit_managed_fields: policy["omitManagedFields"] == true,
        })
    }

    /// What the first rule that matches says.
    pub fn decide(&self, user: &User, info: &RequestInfo) -> Decision {
        let mut decision = Decision {
            level: Level::None,
            omit_managed_fields: self.omit_managed_fields,
            omitted: self.omit_stages.clone(),
        };
        if let Some(rule) = self.rules.iter().find(|rule| matches(rule, user, info)) {
            decision.level = Level::parse(text(&rule["level"])).expect("the policy is valid");
            decision.omitted.extend(items(&rule["omitStages"]).iter().map(|stage| text(stage).to_owned()));
            decision.omit_managed_fields = rule["omitManagedFields"].as_bool().unwrap_or(self.omit_managed_fields);
        }
        decision
    }
}

fn known(object: &Value, fields: &[&str], path: &str) -> Result<(), String> {
    let Some(map) = object.as_object() else { return Err(format!("{path}: it must be an object")) };
    match map.keys().find(|field| !fields.contains(&field.as_str())) {
        Some(field) => Err(format!("unknown field \"{path}{field}\"")),
        None => Ok(()),
    }
}

fn stages(list: &Value, path: &str) -> Result<(), String> {
    match items(list).iter().find(|stage| !STAGES.contains(&text(stage))) {
        Some(stage) => Err(format!("{path}: Invalid value: {stage}: allowed stages are {}", STAGES.join(","))),
        None => Ok(()),
    }
}

fn check_rule(rule: &Value, path: &str) -> Result<(), String> {
    known(rule, &RULE_FIELDS, &format!("{path}."))?;
    match text(&rule["level"]) {
        "" => return Err(format!("{path}.level: Required value")),
        level if Level::parse(level).is_none() => {
            let levels = Level::ALL.map(|(name, _)| format!("{name:?}")).join(", ");
            return Err(format!("{path}.level: Unsupported value: {level:?}: supported values: {levels}"));
        }
        _ => {}
    }
    stages(&rule["omitStages"], &format!("{path}.omitStages"))?;
    let about_resources = !items(&rule["resources"]).is_empty() || !items(&rule["namespaces"]).is_empty();
    let urls = items(&rule["nonResourceURLs"]);
    if about_resources && !urls.is_empty() {
        return Err(format!(
            "{path}.nonResourceURLs: Invalid value: rules cannot apply to both regular resources and non-resource URLs"
        ));
    }
    for url in urls.iter().map(text) {
        if url != "*" && !url.starts_with('/') {
            return Err(format!(
                "{path}.nonResourceURLs: Invalid value: {url:?}: non-resource URL rules must begin with a '/' character"
            ));
        }
        if url.strip_suffix('*').unwrap_or(url).contains('*') {
            return Err(format!(
                "{path}.nonResourceURLs: Invalid value: {url:?}: non-resource URL wildcards '*' must be the final character of the rule"
            ));
        }
    }
    for (index, resource) in items(&rule["resources"]).iter().enumerate() {
        let path = format!("{path}.resources[{index}]");
        known(resource, &["group", "resources", "resourceNames"], &format!("{path}."))?;
        if !items(&resource["resourceNames"]).is_empty() && items(&resource["resources"]).is_empty() {
            return Err(format!(
                "{path}.resourceNames: Invalid value: using resourceNames requires at least one resource"
            ));
        }
    }
    Ok(())
}

fn has(list: &Value, wanted: &str) -> bool {
    items(list).iter().any(|item| text(item) == wanted)
}

/// An empty list matches everything.
fn allows(list: &Value, wanted: impl Fn(&str) -> bool) -> bool {
    items(list).is_empty() || items(list).iter().any(|item| wanted(text(item)))
}

/// `ruleMatches` of `apiserver/pkg/audit/policy`.
fn matches(rule: &Value, user: &User, info: &RequestInfo) -> bool {
    if !allows(&rule["users"], |name| name == user.name)
        || !allows(&rule["userGroups"], |group| user.is_in(group))
        || !allows(&rule["verbs"], |verb| verb == info.verb)
    {
        return false;
    }
    if !items(&rule["namespaces"]).is_empty() || !items(&rule["resources"]).is_empty() {
        return info.is_resource
            && allows(&rule["namespaces"], |namespace| namespace == info.namespace)
            && (items(&rule["resources"]).is_empty()
                || items(&rule["resources"]).iter().any(|group| is_resource(group, info)));
    }
    items(&rule["nonResourceURLs"]).is_empty()
        || (!info.is_resource && items(&rule["nonResourceURLs"]).iter().any(|url| is_path(text(url), &info.path)))
}

fn is_path(url: &str, path: &str) -> bool {
    url == "*" || url == path || url.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

fn is_resource(group: &Value, info: &RequestInfo) -> bool {
    if text(&group["group"]) != info.group {
        return false;
    }
    if !items(&group["resourceNames"]).is_empty() && !has(&group["resourceNames"], &info.name) {
        return false;
    }
    let (resource, sub) = (info.resource.as_str(), info.subresource.as_str());
    let combined = if sub.is_empty() { resource.to_owned() } else { format!("{resource}/{sub}") };
    allows(&group["resources"], |wanted| {
        wanted == combined
            || wanted == "*"
            || (!sub.is_empty() && wanted.strip_prefix("*/") == Some(sub))
            || wanted.strip_suffix("/*") == Some(resource)
    })
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::apiserver::http::request::Query;

    /// The example of the documentation ("Audit policy", `audit/audit-policy.yaml`).
    fn example() -> Policy {
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "RequestResponse", "resources": [{"group": "", "resources": ["pods"]}]},
                {"level": "Metadata", "resources": [{"group": "", "resources": ["pods/log", "pods/status"]}]},
                {"level": "None", "resources": [{"group": "", "resources": ["configmaps"], "resourceNames": ["controller-leader"]}]},
                {"level": "None", "users": ["system:kube-proxy"], "verbs": ["watch"], "resources": [{"group": "", "resources": ["endpoints", "services"]}]},
                {"level": "None", "userGroups": ["system:authenticated"], "nonResourceURLs": ["/api*", "/version"]},
                {"level": "Request", "resources": [{"group": "", "resources": ["configmaps"]}], "namespaces": ["kube-system"]},
                {"level": "Metadata", "resources": [{"group": "", "resources": ["secrets", "configmaps"]}]},
                {"level": "Request", "resources": [{"group": ""}, {"group": "extensions"}]},
                {"level": "Metadata", "omitStages": ["ResponseStarted"]},
            ],
        });
        Policy::new(&policy).expect("it is valid")
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let user = User::new("jane", &["system:authenticated"]);
        let level = |user: &User, method: Method, path: &str, query: &str| {
            example().decide(user, &RequestInfo::new(&method, path, &Query::new(query))).level.as_str()
        };
        assert_eq!(level(&user, Method::POST, "/api/v1/namespaces/a/pods", ""), "RequestResponse");
        assert_eq!(level(&user, Method::GET, "/api/v1/namespaces/a/pods/p/log", ""), "Metadata");
        assert_eq!(level(&user, Method::GET, "/api/v1/namespaces/a/configmaps/controller-leader", ""), "None");
        assert_eq!(level(&user, Method::GET, "/api/v1/namespaces/kube-system/configmaps/x", ""), "Request");
        assert_eq!(level(&user, Method::GET, "/api/v1/namespaces/a/secrets/x", ""), "Metadata");
        assert_eq!(level(&user, Method::GET, "/apis", ""), "None");
        assert_eq!(level(&user, Method::GET, "/metrics", ""), "Metadata");
        assert_eq!(level(&user, Method::GET, "/api/v1/nodes", ""), "Request");
        let proxy = User::new("system:kube-proxy", &[]);
        assert_eq!(level(&proxy, Method::GET, "/api/v1/services", "watch=1"), "None");
        let decision = example().decide(&user, &RequestInfo::new(&Method::GET, "/metrics", &Query::default()));
        assert!(decision.omits(Stage::RequestReceived) && decision.omits(Stage::ResponseStarted));
        assert!(!decision.omits(Stage::ResponseComplete));
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        let with = |rule: Value| {
            let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [rule]});
            Policy::new(&policy).err().unwrap_or_default()
        };
        assert_eq!(with(json!({})), "rules[0].level: Required value");
        assert!(with(json!({"level": "All"})).starts_with("rules[0].level: Unsupported value: \"All\""));
        assert_eq!(with(json!({"level": "None", "user": ["a"]})), "unknown field \"rules[0].user\"");
        assert!(with(json!({"level": "None", "nonResourceURLs": ["a"]})).contains("must begin with a '/'"));
        assert!(with(json!({"level": "None", "omitStages": ["x"]})).starts_with("rules[0].omitStages: Invalid value"));
        assert_eq!(with(json!({"level": "None"})), "");
        assert!(Policy::new(&json!({"apiVersion": "v1", "kind": "Pod"})).is_err());
    }
}
