//! Says in the status of ValidatingAdmissionPolicies what is wrong with the types of their expressions
//! (`pkg/controller/validatingadmissionpolicystatus`). Once for a generation: what is served later is not looked at.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::caches::Caches;
use super::plan::{Action, Plan};
use super::{Controller, Enqueue};
use crate::api::Kind;
use crate::api::cel::type_checking;
use crate::client::Patch;
use crate::client::cache::Key;
use crate::client::typed::gvr;

/// The controller; its keys are ValidatingAdmissionPolicies.
pub struct AdmissionPolicyStatusController {
    /// The kinds that the API serves.
    pub kinds: watch::Receiver<Arc<Vec<Arc<Kind>>>>,
}

impl Controller for AdmissionPolicyStatusController {
    fn name(&self) -> &'static str {
        "validatingadmissionpolicy-status-controller"
    }
    fn account(&self) -> &'static str {
        "validatingadmissionpolicy-status-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.admission_policies);
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _now: Timestamp) -> Plan {
        let policy = caches.admission_policies.get(key);
        policy.map(|policy| reconcile(&policy, key, &self.kinds.borrow())).unwrap_or_default()
    }
}

fn reconcile(policy: &ValidatingAdmissionPolicy, key: &Key, served: &[Arc<Kind>]) -> Plan {
    let mut plan = Plan::default();
    let generation = policy.metadata.generation.unwrap_or_default();
    let observed = policy.status.as_ref().and_then(|status| status.observed_generation).unwrap_or_default();
    if generation <= observed {
        return plan;
    }
    let spec = serde_json::to_value(&policy.spec).expect("a spec is plain JSON");
    let warnings = type_checking::warnings(&spec, served);
    // With the version: a newer generation has a verdict of its own. Null takes away what an older one had.
    let warnings = if warnings.is_empty() { Value::Null } else { warnings.into() };
    let patch = json!({"metadata": {"resourceVersion": policy.metadata.resource_version},
        "status": {"observedGeneration": generation, "typeChecking": {"expressionWarnings": warnings}}});
    let action = Action::patch(gvr::<ValidatingAdmissionPolicy>(), key.clone(), "status", Patch::Merge(patch));
    plan.push(action.tolerate(&["NotFound"]));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds;
    use crate::controllers::plan::Write;

    fn policy(generation: i64, observed: i64) -> ValidatingAdmissionPolicy {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "generation": generation, "resourceVersion": "7"},
            "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"],
                "operations": ["CREATE"], "resources": ["deployments"]}]}, "validations": [{"expression": "object.x"}]},
            "status": {"observedGeneration": observed},
        }))
        .expect("a policy")
    }

    #[test]
    fn a_generation_is_checked_once() {
        let key = Key::new("", "p");
        assert!(reconcile(&policy(2, 2), &key, &kinds::all()).is_empty());
        let plan = reconcile(&policy(2, 1), &key, &kinds::all());
        let writes: Vec<_> = plan.actions().map(|action| &action.write).collect();
        let [Write::Patch { subresource: "status", patch: Patch::Merge(patch), .. }] = &writes[..] else {
            panic!("one patch of the status")
        };
        assert_eq!(patch["status"]["observedGeneration"], 2);
        let warning = &patch["status"]["typeChecking"]["expressionWarnings"][0];
        assert_eq!(warning["fieldRef"], "spec.validations[0].expression");
    }
}
