//! ValidatingAdmissionPolicies.

use serde_json::{Value, json};

use crate::world::{WIDGETS, World, version, widgets};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn policy(spec: Value) -> Value {
    let mut object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "limit"}, "spec": {"matchConstraints": {"resourceRules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE", "UPDATE"]}]}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

fn binding(spec: Value) -> Value {
    let mut object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "limit-binding"}, "spec": {"policyName": "limit", "validationActions": ["Deny"]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

#[tokio::test]
async fn a_policy_denies_warns_and_is_compiled() {
    let world = World::new().await;
    let spec = json!({"variables": [{"name": "n", "expression": "int(object.data.n)"}],
        "validations": [{"expression": "variables.n <= 5"}, {"expression": "variables.n != 3", "message": "three is no number",
            "reason": "Forbidden"}]});
    world.post(POLICIES, &policy(spec)).await.ok();
    world.post(MAPS, &map("unbound", json!({"n": "9"}))).await.ok();
    world.post(BINDINGS, &binding(json!({}))).await.ok();
    world.post(MAPS, &map("a", json!({"n": "5"}))).await.ok();
    let refused = world.post(MAPS, &map("b", json!({"n": "6"}))).await;
    let by =
        "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'limit' with binding 'limit-binding' denied request:";
    assert_eq!(refused.refused(), (422, format!("{by} failed expression: variables.n <= 5").as_str()));
    let refused = world.post(MAPS, &map("b", json!({"n": "3"}))).await;
    assert_eq!(refused.refused(), (403, format!("{by} three is no number").as_str()));
    let refused = world.post(MAPS, &map("b", json!({"m": "1"}))).await;
    assert!(
        refused.refused().1.contains("expression 'variables.n <= 5' resulted in error: no such key: n"),
        "{:?}",
        refused.refused()
    );
    world
        .put(&format!("{BINDINGS}/limit-binding"), &binding(json!({"validationActions": ["Warn", "Audit"]})))
        .await
        .ok();
    let warned = world.post(MAPS, &map("b", json!({"n": "6"}))).await;
    let text = "Validation failed for ValidatingAdmissionPolicy 'limit' with binding 'limit-binding': failed expression: variables.n <= 5";
    assert_eq!(warned.warnings, [format!("299 - \"{text}\"")]);
    warned.ok();
    let mut wrong = policy(json!({"validations": [{"expression": "object.metadata.name == request.foo"}]}));
    wrong["metadata"]["name"] = "wrong".into();
    let refused = world.post(POLICIES, &wrong).await;
    assert!(refused.refused().1.contains("undefined field 'foo'"), "{:?}", refused.refused());
}

#[tokio::test]
async fn parameters_come_from_custom_resources() {
    let world = World::new().await;
    let schema = json!({"type": "object", "properties": {"max": {"type": "integer"}}});
    world.define(&widgets(json!([version("v1", true, schema)]))).await;
    let spec = json!({"paramKind": {"apiVersion": "x.example.com/v1", "kind": "Widget"},
        "validations": [{"expression": "int(object.data.n) <= params.spec.max",
            "messageExpression": "'at most %d'.format([params.spec.max])"}]});
    world.post(POLICIES, &policy(spec)).await.ok();
    let reference = json!({"paramRef": {"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"}});
    world.post(BINDINGS, &binding(reference)).await.ok();
    let refused = world.post(MAPS, &map("a", json!({"n": "1"}))).await;
    assert!(
        refused.refused().1.contains("no params found for policy binding with `Deny` parameterNotFoundAction"),
        "{:?}",
        refused.refused()
    );
    let limits =
        json!({"apiVersion": "x.example.com/v1", "kind": "Widget", "metadata": {"name": "limits"}, "spec": {"max": 3}});
    world.post(WIDGETS, &limits).await.ok();
    world.post(MAPS, &map("a", json!({"n": "3"}))).await.ok();
    let refused = world.post(MAPS, &map("b", json!({"n": "4"}))).await;
    assert!(refused.refused().1.ends_with("denied request: at most 3"), "{:?}", refused.refused());
}
