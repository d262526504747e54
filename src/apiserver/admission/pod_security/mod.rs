//! `PodSecurity`: pods keep to the Pod Security Standard that the labels of their namespace name
//! (<https://kubernetes.io/docs/concepts/security/pod-security-admission/>).

mod checks;
mod configuration;
mod namespace;
mod policy;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use serde_json::Value;

pub(crate) use configuration::Configuration;

use self::checks::{Pod, Violations, seccomp_container_annotation};
use self::policy::{LevelVersion, PREFIX, Policy};
use super::{Attributes, Operation, Plugin, pod_template};
use crate::api::kind::Subresource;
use crate::api::meta::{self, items, text};
use crate::api::{Status, StatusResult};
use crate::apiserver::{ApiServer, registry};

pub(super) struct PodSecurity;

#[async_trait]
impl Plugin for PodSecurity {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        let changes = matches!(attributes.operation, Operation::Create | Operation::Update);
        // Of the subresources only those change what a pod runs that carry a whole pod.
        let carries_pod =
            matches!(attributes.subresource, Some(Subresource::EphemeralContainers | Subresource::Resize));
        changes
            && (attributes.is("", "namespaces")
                || is_pod(attributes) && carries_pod
                || attributes.subresource.is_none() && pod_template::path(attributes.kind).is_some())
    }

    async fn validate(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        object: &Value,
        old: Option<&Value>,
    ) -> StatusResult<()> {
        let configuration = &server.options.admission.pod_security;
        if attributes.is("", "namespaces") {
            return namespace::validate(server, configuration, attributes, object, old).await;
        }
        if let Some(why) = exempt(configuration, attributes) {
            attributes.context.annotate(&format!("{PREFIX}exempt"), why);
            return Ok(());
        }
        let (policy, errors) = policy_of(server, configuration, attributes.namespace).await?;
        let enforces = is_pod(attributes);
        let mut modes = policy;
        if !enforces {
            modes.enforce = Policy::PRIVILEGED.enforce;
        }
        if errors.is_empty() && modes.is_fully_privileged() {
            return Ok(());
        }
        if enforces && old.is_some_and(|old| !is_significant(object, old)) {
            return Ok(());
        }
        let Some(pod) = pod_template::of(attributes.kind, object) else { return Ok(()) };
        let class = text(&pod["spec"]["runtimeClassName"]);
        if configuration.runtime_classes.iter().any(|exempt| exempt == class) {
            attributes.context.annotate(&format!("{PREFIX}exempt"), "runtimeClass");
            return Ok(());
        }
        if !errors.is_empty() {
            let texts: Vec<_> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
            let texts = if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) };
            attributes.context.annotate(&format!("{PREFIX}error"), &format!("Failed to parse policy: {texts}"));
        }
        judge(attributes, &policy, enforces, pod)
    }
}

fn is_pod(attributes: &Attributes<'_>) -> bool {
    attributes.kind.gvr.group.is_empty() && attributes.kind.gvr.resource == "pods"
}

/// Why a request is not looked at.
fn exempt(configuration: &Configuration, attributes: &Attributes<'_>) -> Option<&'static str> {
    if configuration.namespaces.iter().any(|exempt| exempt == attributes.namespace) {
        Some("namespace")
    } else if configuration.usernames.contains(&attributes.user.name) {
        Some("user")
    } else {
        None
    }
}

/// The policy of a namespace, and what is wrong with its labels.
async fn policy_of(
    server: &ApiServer,
    configuration: &Configuration,
    namespace: &str,
) -> StatusResult<(Policy, Vec<crate::api::status::FieldError>)> {
    let key = registry::key("", "namespaces", "", namespace);
    let entry = server.storage.get(&key).await.map_err(registry::storage_failed)?;
    let Some(entry) = entry else {
        return Err(Status::internal(format!("failed to lookup namespace {namespace:?}")));
    };
    Ok(Policy::of(&entry.value()["metadata"]["labels"], configuration.defaults))
}

/// Refuses, records and warns, as each mode says.
fn judge(attributes: &Attributes<'_>, policy: &Policy, enforces: bool, pod: &Value) -> StatusResult<()> {
    let mut known: Vec<(LevelVersion, Violations)> = Vec::new();
    let mut violations = |standard: LevelVersion| -> Option<String> {
        if !known.iter().any(|(of, _)| *of == standard) {
            known.push((standard, checks::evaluate(standard, &Pod { metadata: &pod["metadata"], spec: &pod["spec"] })));
        }
        let found = known.iter().find(|(of, _)| *of == standard).map(|(_, found)| found)?;
        (!found.is_empty()).then(|| format!("PodSecurity \"{standard}\": {}", found.details()))
    };
    let mut refused = None;
    if enforces {
        attributes.context.annotate(&format!("{PREFIX}enforce-policy"), &policy.enforce.to_string());
        refused = violations(policy.enforce);
    }
    if let Some(found) = violations(policy.audit) {
        attributes.context.annotate(&format!("{PREFIX}audit-violations"), &format!("would violate {found}"));
    }
    if let Some(found) = refused {
        return Err(Status::forbidden(&attributes.kind.gvr, meta::name(pod), &format!("violates {found}")));
    }
    attributes.context.warn(violations(policy.warn).map(|found| format!("would violate {found}")));
    Ok(())
}

/// Whether an update changes what is judged (`isSignificantPodUpdate`): images, or the containers that there are.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let annotation = |pod: &Value, container: &Value| {
        pod["metadata"]["annotations"][seccomp_container_annotation(text(&container["name"]))].clone()
    };
    let changed = |new: &Value, before: &Value| {
        new["image"] != before["image"] || annotation(pod, new) != annotation(old, before)
    };
    let lists = ["containers", "initContainers"].map(|list| (items(&pod["spec"][list]), items(&old["spec"][list])));
    let ephemeral = items(&pod["spec"]["ephemeralContainers"]).iter().any(|new| {
        let before = items(&old["spec"]["ephemeralContainers"]).iter().find(|b| b["name"] == new["name"]);
        before.is_none_or(|before| changed(new, before))
    });
    ephemeral
        || lists.iter().any(|(new, old)| new.len() != old.len() || new.iter().zip(*old).any(|(n, o)| changed(n, o)))
}
