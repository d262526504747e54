//! `spec.podFailurePolicy`: what the failure of a pod means (`pod_failure_policy.go`).

use k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};

use crate::client::typed::Meta;

/// What a failed pod means.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It counts towards the backoff limit.
    Counts,
    /// It counts for nothing.
    Ignored,
    /// Its index has failed.
    FailsIndex,
    /// The Job has failed, with this message.
    FailsJob(String),
}

/// The first rule that matches decides; without one the failure counts.
pub fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    for (index, rule) in policy.iter().flat_map(|policy| policy.rules.iter().enumerate()) {
        let action = rule.action.as_str();
        let (namespace, name) = (pod.namespace(), pod.name());
        let message = if let Some(wanted) = &rule.on_exit_codes {
            matching_container(pod, wanted).map(|(container, code)| {
                format!(
                    "Container {container} for pod {namespace}/{name} failed with exit code {code} matching {action} rule \
                     at index {index}"
                )
            })
        } else {
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            matching_condition(pod, patterns).map(|condition| {
                format!("Pod {namespace}/{name} has condition {condition} matching {action} rule at index {index}")
            })
        };
        match (message, action) {
            (Some(message), "FailJob") => return Verdict::FailsJob(message),
            (Some(_), "Ignore") => return Verdict::Ignored,
            (Some(_), "FailIndex") => return Verdict::FailsIndex,
            (Some(_), "Count") => return Verdict::Counts,
            _ => {}
        }
    }
    Verdict::Counts
}

fn matching_container<'a>(pod: &'a Pod, wanted: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let matches = |container: &'a ContainerStatus| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        let named = wanted.container_name.as_ref().is_none_or(|name| *name == container.name);
        let fits = match wanted.operator.as_str() {
            "In" => wanted.values.contains(&code),
            "NotIn" => !wanted.values.contains(&code),
            _ => false,
        };
        (named && code != 0 && fits).then_some((container.name.as_str(), code))
    };
    let (main, init) = (status.container_statuses.as_deref(), status.init_container_statuses.as_deref());
    main.unwrap_or_default().iter().chain(init.unwrap_or_default()).find_map(matches)
}

fn matching_condition<'a>(pod: &'a Pod, patterns: &[PodFailurePolicyOnPodConditionsPattern]) -> Option<&'a str> {
    let conditions = pod.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    let matches = |condition: &&PodCondition| {
        let same = |pattern: &PodFailurePolicyOnPodConditionsPattern| {
            pattern.type_ == condition.type_ && pattern.status.as_deref().unwrap_or("True") == condition.status
        };
        patterns.iter().any(same)
    };
    conditions.iter().find(matches).map(|condition| condition.type_.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use serde_json::{Value, json};

    fn check(rules: Value, expected: Verdict) {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": rules})).expect("a policy");
        let pod = json!({"metadata": {"name": "p", "namespace": "a"}, "status": {"phase": "Failed",
            "conditions": [{"type": "DisruptionTarget", "status": "True"}],
            "containerStatuses": [{"name": "main", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 42}}}],
            "initContainerStatuses": [{"name": "init", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"terminated": {"exitCode": 0}}}]}});
        assert_eq!(judge(Some(&policy), &Pod::parse(&pod).expect("a pod")), expected);
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let codes = |action: &str, operator: &str, values: &[i32]| json!({"action": action, "onExitCodes": {"operator": operator, "values": values}});
        check(json!([]), Verdict::Counts);
        let message = "Container main for pod a/p failed with exit code 42 matching FailJob rule at index 1";
        check(
            json!([codes("Ignore", "In", &[1]), codes("FailJob", "In", &[5, 42])]),
            Verdict::FailsJob(message.into()),
        );
        check(json!([codes("FailIndex", "NotIn", &[1])]), Verdict::FailsIndex);
        check(json!([codes("Count", "In", &[42]), codes("FailJob", "In", &[42])]), Verdict::Counts);
        let disrupted =
            json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]});
        check(json!([disrupted]), Verdict::Ignored);
        let failing = json!({"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]});
        let message = "Pod a/p has condition DisruptionTarget matching FailJob rule at index 0";
        check(json!([failing]), Verdict::FailsJob(message.into()));
        let init =
            json!({"action": "FailJob", "onExitCodes": {"containerName": "init", "operator": "NotIn", "values": [3]}});
        check(json!([init]), Verdict::Counts);
    }
}
