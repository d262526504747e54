//! `PodSecurityConfiguration`: the policy of namespaces without labels, and who is exempt.

use serde_json::Value;

use super::super::configuration::{expect_type, known_fields, list};
use super::policy::{Level, LevelVersion, Policy, Version};
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, dns_subdomain_messages};

/// The configuration of the plugin.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Configuration {
    /// The policy where labels say nothing.
    pub defaults: Policy,
    /// Users whose pods are not looked at.
    pub usernames: Vec<String>,
    /// Namespaces that are not looked at.
    pub namespaces: Vec<String>,
    /// Runtime classes whose pods are not looked at.
    pub runtime_classes: Vec<String>,
}

impl Default for Configuration {
    fn default() -> Self {
        let none = Vec::new;
        Self { defaults: Policy::PRIVILEGED, usernames: none(), namespaces: none(), runtime_classes: none() }
    }
}

impl Configuration {
    /// Takes a `PodSecurityConfiguration` (`pod-security.admission.config.k8s.io/v1`); null is the default.
    ///
    /// # Errors
    /// Everything that is wrong with it (`ValidatePodSecurityConfiguration`).
    pub fn new(document: &Value) -> Result<Self, String> {
        if document.is_null() {
            return Ok(Self::default());
        }
        let versions = ["v1", "v1beta1", "v1alpha1"].map(|v| format!("pod-security.admission.config.k8s.io/{v}"));
        expect_type(document, "PodSecurityConfiguration", &versions.each_ref().map(String::as_str))?;
        known_fields(document, "", &["apiVersion", "defaults", "exemptions", "kind"])?;
        let modes = ["enforce", "enforce-version", "audit", "audit-version", "warn", "warn-version"];
        known_fields(&document["defaults"], "defaults.", &modes)?;
        known_fields(&document["exemptions"], "exemptions.", &["namespaces", "runtimeClasses", "usernames"])?;
        let mut errors = Vec::new();
        let defaults = &document["defaults"];
        let defaults = Policy {
            enforce: mode(&mut errors, defaults, "enforce")?,
            warn: mode(&mut errors, defaults, "warn")?,
            audit: mode(&mut errors, defaults, "audit")?,
        };
        let exemptions = &document["exemptions"];
        let configuration = Self {
            defaults,
            namespaces: exempt(&mut errors, exemptions, "namespaces", dns_label_messages)?,
            runtime_classes: exempt(&mut errors, exemptions, "runtimeClasses", dns_subdomain_messages)?,
            usernames: exempt(&mut errors, exemptions, "usernames", |_| Vec::new())?,
        };
        match errors.as_slice() {
            [] => Ok(configuration),
            [error] => Err(format!("PodSecurity invalid: {}: {}", error.field, error.message)),
            all => {
                let all: Vec<_> = all.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
                Err(format!("PodSecurity invalid: [{}]", all.join(", ")))
            }
        }
    }
}

fn mode(errors: &mut Vec<FieldError>, defaults: &Value, name: &str) -> Result<LevelVersion, String> {
    let read = |field: String, absent: &'static str| -> Result<String, String> {
        match &defaults[&field] {
            Value::Null => Ok(absent.to_owned()),
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("defaults.{field}: expected a string, got {other}")),
        }
    };
    let (level, version) = (read(name.to_owned(), "privileged")?, read(format!("{name}-version"), "latest")?);
    let level = Level::parse(&level).unwrap_or_else(|why| {
        errors.push(FieldError::invalid(format!("defaults.{name}"), &level.into(), why));
        Level::Restricted
    });
    let version = Version::parse(&version).unwrap_or_else(|why| {
        errors.push(FieldError::invalid(format!("defaults.{name}-version"), &version.into(), why));
        Version::Latest
    });
    Ok(LevelVersion { level, version })
}

fn exempt(
    errors: &mut Vec<FieldError>,
    exemptions: &Value,
    field: &str,
    messages: fn(&str) -> Vec<String>,
) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for (index, item) in list(exemptions, field)?.iter().enumerate() {
        let path = format!("exemptions.{field}[{index}]");
        let Some(name) = item.as_str() else { return Err(format!("{path}: expected a string, got {item}")) };
        let wrong = messages(name);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(path, item, &wrong.join(", ")));
        } else if name.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else if names.iter().any(|known| known == name) {
            errors.push(FieldError::duplicate(path, item));
        } else {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn configuration(defaults: Value, exemptions: Value) -> Result<Configuration, String> {
        Configuration::new(&json!({"apiVersion": "pod-security.admission.config.k8s.io/v1beta1",
            "kind": "PodSecurityConfiguration", "defaults": defaults, "exemptions": exemptions}))
    }

    /// The file of the tutorial "Apply Pod Security Standards at the Cluster Level".
    #[test]
    fn the_tutorials_file_is_understood() {
        let defaults = json!({"enforce": "baseline", "enforce-version": "latest", "audit": "restricted",
            "audit-version": "latest", "warn": "restricted", "warn-version": "latest"});
        let exemptions = json!({"usernames": [], "runtimeClasses": [], "namespaces": ["kube-system"]});
        let found = configuration(defaults, exemptions).expect("it is right");
        assert_eq!(
            found.defaults.modes().map(|(name, mode)| format!("{name}={mode}")),
            ["enforce=baseline:latest", "audit=restricted:latest", "warn=restricted:latest"]
        );
        assert_eq!(found.namespaces, ["kube-system"]);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        assert_eq!(configuration(json!({}), json!(null)), Ok(Configuration::default()));
        assert_eq!(
            configuration(json!({"enforce": "none"}), json!({})).expect_err("refused"),
            "PodSecurity invalid: defaults.enforce: Invalid value: \"none\": must be one of privileged, baseline, restricted"
        );
        assert_eq!(
            configuration(json!({"warn-version": "1.2"}), json!({"namespaces": ["a", "a"], "usernames": [""]}))
                .expect_err("refused"),
            "PodSecurity invalid: [defaults.warn-version: Invalid value: \"1.2\": must be \"latest\" or \"v1.x\", \
             exemptions.namespaces[1]: Duplicate value: \"a\", exemptions.usernames[0]: Required value]"
        );
        assert_eq!(
            configuration(json!({"enforced": "x"}), json!({})).expect_err("refused"),
            "strict decoding error: unknown field \"defaults.enforced\""
        );
        assert_eq!(
            configuration(json!({}), json!({"namespaces": [5]})).expect_err("refused"),
            "exemptions.namespaces[0]: expected a string, got 5"
        );
    }
}
