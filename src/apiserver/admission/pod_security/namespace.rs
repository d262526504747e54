//! Labels of namespaces: they must be readable, and a stricter level tells which pods break it already.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use serde_json::Value;

use super::checks::{self, Pod};
use super::configuration::Configuration;
use super::policy::{Level, LevelVersion, PREFIX, Policy};
use crate::api::meta::{self, text};
use crate::api::pod::controller_of;
use crate::api::{Status, StatusResult};
use crate::apiserver::admission::Attributes;
use crate::apiserver::{ApiServer, registry};

/// How many pods are looked at.
const MAX_PODS: usize = 3000;
/// How long.
const TIMEOUT: SignedDuration = SignedDuration::from_secs(1);

/// Judges a new or changed namespace.
pub(super) async fn validate(
    server: &ApiServer,
    configuration: &Configuration,
    attributes: &Attributes<'_>,
    namespace: &Value,
    old: Option<&Value>,
) -> StatusResult<()> {
    let labels = |object: &Value| Policy::of(&object["metadata"]["labels"], configuration.defaults);
    let (policy, errors) = labels(namespace);
    let before = old.map(labels);
    // What was wrong before may stay wrong.
    if !errors.is_empty() && before.as_ref().is_none_or(|(_, old_errors)| errors != *old_errors) {
        return Err(Status::invalid("", "Namespace", meta::name(namespace), &errors));
    }
    let is_exempt = configuration.namespaces.iter().any(|exempt| exempt == meta::name(namespace));
    if let Some((before, _)) = before {
        let relaxed = policy.enforce.version == before.enforce.version && policy.enforce.level <= before.enforce.level;
        if policy.enforce == before.enforce || policy.enforce.level == Level::Privileged || relaxed {
            return Ok(());
        }
        if !is_exempt {
            let warnings = existing_pods(server, configuration, meta::name(namespace), policy.enforce).await;
            attributes.context.warn(warnings);
            return Ok(());
        }
    }
    if is_exempt {
        attributes.context.warn(exempt_warning(namespace, &policy, &configuration.defaults));
    }
    Ok(())
}

/// That labels of an exempt namespace mean nothing.
fn exempt_warning(namespace: &Value, policy: &Policy, defaults: &Policy) -> Option<String> {
    if policy.is_fully_privileged() || policy.is_equivalent(defaults) {
        return None;
    }
    let is_set = |mode: &str| {
        ["", "-version"].iter().any(|part| meta::label(namespace, &format!("{PREFIX}{mode}{part}")).is_some())
    };
    let modes = policy.modes();
    let modes = modes.iter().filter(|(name, mode)| mode.level != Level::Privileged && is_set(name));
    let modes: Vec<String> = modes.map(|(name, mode)| format!("{name}={mode}")).collect();
    let (name, modes) = (meta::name(namespace), modes.join(", "));
    Some(format!("namespace {name:?} is exempt from Pod Security, and the policy ({modes}) will be ignored"))
}

/// Warnings about the pods that a new standard would not let in.
async fn existing_pods(
    server: &ApiServer,
    configuration: &Configuration,
    namespace: &str,
    standard: LevelVersion,
) -> Vec<String> {
    let deadline = server.env.now().saturating_add(TIMEOUT).unwrap_or_else(|_| server.env.now());
    let prefix = registry::prefix("", "pods", namespace);
    let Ok(found) = server.storage.list(&prefix, None, 0, 0).await else {
        return vec!["failed to list pods while checking new PodSecurity enforce level".to_owned()];
    };
    let pods: Vec<_> = found.entries.iter().map(|entry| entry.value()).collect();
    let pods = prioritized(configuration, pods.iter().map(|pod| &**pod));
    summarise(namespace, standard, &pods, || server.env.now() > deadline)
}

/// The pods that count, one of each controller first.
fn prioritized<'a>(configuration: &Configuration, pods: impl Iterator<Item = &'a Value>) -> Vec<&'a Value> {
    let is_exempt =
        |pod: &&Value| configuration.runtime_classes.iter().any(|c| c == text(&pod["spec"]["runtimeClassName"]));
    let mut controllers = BTreeSet::new();
    let (mut first, rest): (Vec<_>, Vec<_>) = pods
        .filter(|pod| !is_exempt(pod))
        .partition(|pod| controller_of(pod).is_none_or(|owner| controllers.insert(text(&owner["uid"]))));
    first.extend(rest);
    first
}

/// One line for each set of reasons, with the first pod and how many others.
fn summarise(namespace: &str, standard: LevelVersion, pods: &[&Value], is_late: impl Fn() -> bool) -> Vec<String> {
    // In the order in which they are found: reasons, the first pod by name, how many.
    let mut groups: Vec<(String, &str, usize)> = Vec::new();
    let mut checked = 0;
    for pod in pods.iter().take(MAX_PODS) {
        checked += 1;
        let violations = checks::evaluate(standard, &Pod { metadata: &pod["metadata"], spec: &pod["spec"] });
        let name = meta::name(pod);
        if !violations.is_empty() {
            let reasons = violations.reasons();
            match groups.iter_mut().find(|(known, ..)| *known == reasons) {
                Some((_, first, count)) => {
                    *first = name.min(*first);
                    *count += 1;
                }
                None => groups.push((reasons, name, 1)),
            }
        }
        if is_late() {
            break;
        }
    }
    let mut warnings = Vec::new();
    if checked < pods.len() {
        let all = pods.len();
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {all} existing pods"
        ));
    }
    if !groups.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{standard}\""
        ));
    }
    let mut lines: Vec<String> = groups
        .into_iter()
        .map(|(reasons, name, count)| match count {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            more => format!("{name} (and {} other pods): {reasons}", more - 1),
        })
        .collect();
    lines.sort();
    warnings.extend(lines);
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::policy::Version;
    use super::*;

    const BASELINE: LevelVersion = LevelVersion { level: Level::Baseline, version: Version::Latest };

    fn pod(name: &str, owner: Option<&str>, spec: Value) -> Value {
        let owners: Vec<Value> = owner.iter().map(|uid| json!({"uid": uid, "controller": true})).collect();
        json!({"metadata": {"name": name, "ownerReferences": owners}, "spec": spec})
    }

    /// The output of "Apply Pod Security Standards at the Cluster Level", step 4.
    #[test]
    fn pods_with_the_same_reasons_share_a_line() {
        let host = json!({"hostNetwork": true, "volumes": [{"name": "v", "hostPath": {"path": "/"}}]});
        let mut proxy = host.clone();
        proxy["containers"] = json!([{"name": "c", "securityContext": {"privileged": true}}]);
        let fine = json!({"containers": [{"name": "c"}]});
        let pods = [
            pod("kube-scheduler-x", None, host.clone()),
            pod("etcd-x", None, host.clone()),
            pod("kube-apiserver-x", None, host.clone()),
            pod("kube-controller-manager-x", None, host),
            pod("kube-proxy-m6hwf", Some("1"), proxy),
            pod("coredns-a", Some("2"), fine),
        ];
        let pods: Vec<&Value> = pods.iter().collect();
        assert_eq!(
            summarise("kube-system", BASELINE, &pods, || false),
            [
                "existing pods in namespace \"kube-system\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "etcd-x (and 3 other pods): host namespaces, hostPath volumes",
                "kube-proxy-m6hwf: host namespaces, hostPath volumes, privileged",
            ]
        );
        assert_eq!(
            summarise("n", BASELINE, &pods[..2], || true),
            [
                "new PodSecurity enforce level only checked against the first 1 of 2 existing pods",
                "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "kube-scheduler-x: host namespaces, hostPath volumes",
            ]
        );
        assert!(summarise("n", BASELINE, &[], || false).is_empty());
    }

    #[test]
    fn one_pod_of_each_controller_comes_first_and_exempt_classes_do_not() {
        let configuration = Configuration { runtime_classes: vec!["vm".to_owned()], ..Configuration::default() };
        let pods = [
            pod("a-1", Some("a"), json!({})),
            pod("a-2", Some("a"), json!({})),
            pod("alone", None, json!({})),
            pod("v", None, json!({"runtimeClassName": "vm"})),
            pod("b-1", Some("b"), json!({})),
        ];
        let order: Vec<&str> = prioritized(&configuration, pods.iter()).into_iter().map(meta::name).collect();
        assert_eq!(order, ["a-1", "alone", "b-1", "a-2"]);
    }

    #[test]
    fn labels_of_an_exempt_namespace_are_told_to_mean_nothing() {
        let namespace = json!({"metadata": {"name": "kube-system", "labels": {
            "pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "privileged"}}});
        let (policy, _) = Policy::of(&namespace["metadata"]["labels"], Policy::PRIVILEGED);
        assert_eq!(
            exempt_warning(&namespace, &policy, &Policy::PRIVILEGED).as_deref(),
            Some(
                "namespace \"kube-system\" is exempt from Pod Security, and the policy (enforce=baseline:latest) will be ignored"
            )
        );
        assert_eq!(exempt_warning(&namespace, &policy, &policy), None);
    }
}
