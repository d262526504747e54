//! ValidatingAdmissionPolicies, whose status tells what is wrong with the types of their expressions.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use serde_json::{Value, json};

use mini::api::{kinds, meta};
use mini::client::fake::{FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::Controller;
use mini::controllers::admission_policy_status::AdmissionPolicyStatusController;

use crate::story::{KindRow, Story};
use crate::world::{World, now};

/// Expressions about a Deployment, and whether their types fit.
const EXPRESSIONS: [(&str, bool); 4] = [
    ("object.spec.replicas <= 5", true),
    ("object.metadata.name.startsWith('a')", true),
    ("object.spec.replicas == 'many'", false),
    ("object.spec.copies <= 5", false),
];

/// The story, and the truth as the API's history tells it.
#[derive(Default)]
pub struct Policies {
    /// uid and generation -> whether the types fit.
    fitting: BTreeMap<(String, i64), bool>,
}

fn spec(world: &World) -> Value {
    let (expression, _) = EXPRESSIONS[world.pick(EXPRESSIONS.len())];
    let rule =
        json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]});
    json!({"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": expression}]})
}

fn fits(policy: &Value) -> bool {
    let expression = policy["spec"]["validations"][0]["expression"].as_str().unwrap_or_default();
    EXPRESSIONS.iter().find(|(known, _)| *known == expression).is_some_and(|(_, fits)| *fits)
}

impl Story for Policies {
    fn kinds(&self) -> Vec<KindRow> {
        vec![(gvr::<ValidatingAdmissionPolicy>(), "ValidatingAdmissionPolicy", false)]
    }

    fn controllers(&mut self, _world: &World) -> Vec<Arc<dyn Controller>> {
        // The sender may go: what is served does not change.
        let served = tokio::sync::watch::channel(Arc::new(kinds::all())).1;
        vec![Arc::new(AdmissionPolicyStatusController { kinds: served })]
    }

    fn begin(&mut self, _world: &World) {}

    fn user_acts(&mut self, world: &World) {
        let policies = gvr::<ValidatingAdmissionPolicy>();
        let there = world.api.all(&policies);
        if there.is_empty() || (there.len() < 3 && world.chance(30)) {
            let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
                "metadata": {"generateName": "policy-"}, "spec": spec(world)});
            now(world.api.create(&policies, "", "", "", policy)).expect("the name is free");
            return;
        }
        let name = meta::name(&there[world.pick(there.len())]).to_owned();
        if world.chance(15) {
            now(world.api.delete(&policies, "", &name, &DeleteOptions::default())).expect("it is there");
        } else {
            now(world.api.patch(&policies, "", &name, "", Patch::Merge(json!({"spec": spec(world)}))))
                .expect("it is there");
        }
    }

    fn see(&mut self, change: &Logged) {
        let policy = &change.object;
        let uid = meta::uid(policy).to_owned();
        self.fitting.insert((uid.clone(), meta::generation(policy)), fits(policy));
        let Some(observed) = policy["status"]["observedGeneration"].as_i64() else { return };
        let warned = !policy["status"]["typeChecking"]["expressionWarnings"].is_null();
        let fits = self.fitting.get(&(uid, observed)).expect("a generation that was");
        assert_eq!(warned, !fits, "the verdict on generation {observed} of {policy}");
    }

    fn at_rest(&mut self, api: &FakeApi) {
        for policy in api.all(&gvr::<ValidatingAdmissionPolicy>()) {
            assert_eq!(policy["status"]["observedGeneration"], policy["metadata"]["generation"], "{policy}");
        }
    }
}
