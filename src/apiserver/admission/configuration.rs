//! The `AdmissionConfiguration` file that `mini start --admission-control-config-file` takes.

use std::fs;
use std::path::Path;

use serde_json::Value;
#[cfg(test)]
use serde_json::json;

use super::pod_security;
use crate::api::schema::parse_yaml;

/// What admission plugins are configured with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configuration {
    /// Of `PodSecurity`.
    pub(crate) pod_security: pod_security::Configuration,
}

/// Reads the file; what its plugins take from files of their own (`path`, relative to it) is put in, so that the result stands alone.
///
/// # Errors
/// When a file cannot be read or [`Configuration::new`] refuses what it says.
pub fn read(path: &Path) -> Result<Value, String> {
    let read = |path: &Path| {
        let bytes = fs::read(path).map_err(|error| {
            format!("unable to read admission control configuration from {:?} [{error}]", path.display().to_string())
        })?;
        parse_document(&bytes)
    };
    let mut document = read(path)?;
    for plugin in document["plugins"].as_array_mut().into_iter().flatten() {
        if let Some(file) = plugin["path"].as_str().filter(|_| plugin["configuration"].is_null()) {
            let base = path.parent().unwrap_or(Path::new("."));
            plugin["configuration"] = read(&base.join(file))?;
        }
        if let Some(plugin) = plugin.as_object_mut() {
            plugin.remove("path");
        }
    }
    Configuration::new(&document)?;
    Ok(document)
}

fn parse_document(bytes: &[u8]) -> Result<Value, String> {
    let parsed = parse_yaml(bytes, "AdmissionConfiguration").map_err(|status| status.message)?;
    match parsed.duplicates.first() {
        Some(key) => Err(format!("strict decoding error: {key}")),
        None => Ok(parsed.value),
    }
}

impl Configuration {
    /// Takes an `AdmissionConfiguration` (`apiserver.config.k8s.io/v1`); null is none.
    ///
    /// # Errors
    /// When it is not of that kind, names a plugin that takes no configuration here, or one that refuses its own.
    pub fn new(document: &Value) -> Result<Self, String> {
        let mut configuration = Self::default();
        if document.is_null() {
            return Ok(configuration);
        }
        let versions = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1alpha1"];
        expect_type(document, "AdmissionConfiguration", &versions)?;
        known_fields(document, "", &["apiVersion", "kind", "plugins"])?;
        let mut seen = Vec::new();
        for (index, plugin) in list(document, "plugins")?.iter().enumerate() {
            known_fields(plugin, &format!("plugins[{index}]."), &["configuration", "name", "path"])?;
            let name = plugin["name"].as_str().unwrap_or_default();
            if seen.contains(&name) {
                return Err(format!("plugins[{index}].name: Duplicate value: {name:?}"));
            }
            seen.push(name);
            let failed = |why: String| format!("couldn't init admission plugin {name:?}: {why}");
            match name {
                "PodSecurity" => {
                    configuration.pod_security =
                        pod_security::Configuration::new(&plugin["configuration"]).map_err(failed)?;
                }
                other => {
                    return Err(format!(
                        "plugins[{index}].name: {other:?} takes no configuration (\"PodSecurity\" does)"
                    ));
                }
            }
        }
        Ok(configuration)
    }
}

/// Refuses a document of another kind or version.
pub(super) fn expect_type(document: &Value, kind: &str, versions: &[&str]) -> Result<(), String> {
    let (found_version, found_kind) = (document["apiVersion"].as_str(), document["kind"].as_str());
    if found_version.is_none_or(str::is_empty) {
        return Err("Object 'apiVersion' is missing".to_owned());
    }
    if found_kind.is_none_or(str::is_empty) {
        return Err("Object 'Kind' is missing".to_owned());
    }
    if found_kind != Some(kind) || !versions.iter().any(|version| found_version == Some(version)) {
        let (version, found) = (found_version.unwrap_or_default(), found_kind.unwrap_or_default());
        return Err(format!(
            "no kind {found:?} is registered for version {version:?} (expected {kind:?} of {:?})",
            versions[0]
        ));
    }
    Ok(())
}

/// Refuses fields that nobody reads.
pub(super) fn known_fields(object: &Value, path: &str, known: &[&str]) -> Result<(), String> {
    match object.as_object() {
        None if object.is_null() => Ok(()),
        None => Err(format!("{}: expected an object, got {object}", path.trim_end_matches('.'))),
        Some(map) => match map.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(format!("strict decoding error: unknown field \"{path}{key}\"")),
            None => Ok(()),
        },
    }
}

/// A list; absent is empty.
pub(super) fn list<'a>(object: &'a Value, field: &str) -> Result<&'a [Value], String> {
    match &object[field] {
        Value::Null => Ok(&[]),
        Value::Array(items) => Ok(items),
        other => Err(format!("{field}: expected a list, got {other}")),
    }
}

/// An `AdmissionConfiguration` with one plugin, as the documentation shows it.
#[cfg(test)]
pub(crate) fn with_pod_security(configuration: &Value) -> Value {
    json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration",
        "plugins": [{"name": "PodSecurity", "configuration": configuration}]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_with_the_files_that_they_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        write(
            "admission.yaml",
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n- name: PodSecurity\n  path: pss.yaml\n",
        );
        write(
            "pss.yaml",
            "apiVersion: pod-security.admission.config.k8s.io/v1\nkind: PodSecurityConfiguration\ndefaults: {enforce: baseline}\n",
        );
        let document = read(&folder.path().join("admission.yaml")).expect("both are fine");
        assert_eq!(document["plugins"][0]["configuration"]["defaults"]["enforce"], "baseline");
        assert_eq!(document["plugins"][0].get("path"), None);
        let missing = read(&folder.path().join("none.yaml")).expect_err("it is not there");
        assert!(missing.starts_with("unable to read admission control configuration from \""), "{missing}");
    }

    #[test]
    fn what_nobody_reads_is_refused() {
        let refused = |document: Value| Configuration::new(&document).expect_err("refused");
        let with = |plugins: Value| json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": plugins});
        assert_eq!(refused(json!({"kind": "AdmissionConfiguration"})), "Object 'apiVersion' is missing");
        assert_eq!(
            refused(json!({"apiVersion": "v1", "kind": "Pod"})),
            "no kind \"Pod\" is registered for version \"v1\" (expected \"AdmissionConfiguration\" of \"apiserver.config.k8s.io/v1\")"
        );
        assert_eq!(refused(with(json!({}))), "plugins: expected a list, got {}");
        assert_eq!(refused(with(json!([{"nam": 1}]))), "strict decoding error: unknown field \"plugins[0].nam\"");
        assert_eq!(refused(with(json!([7]))), "plugins[0]: expected an object, got 7");
        assert_eq!(
            refused(with(json!([{"name": "EventRateLimit"}]))),
            "plugins[0].name: \"EventRateLimit\" takes no configuration (\"PodSecurity\" does)"
        );
        let pod_security = json!({"name": "PodSecurity"});
        assert_eq!(Configuration::new(&with(json!([pod_security]))), Ok(Configuration::default()));
        assert_eq!(
            refused(with(json!([pod_security, pod_security]))),
            "plugins[1].name: Duplicate value: \"PodSecurity\""
        );
        assert_eq!(Configuration::new(&Value::Null), Ok(Configuration::default()));
    }
}
