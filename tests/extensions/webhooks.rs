//! Admission webhooks.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::world::{Backend, World};

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn hook(backend: &Backend, path: &str, more: Value) -> Value {
    let mut hook = json!({"name": "a.hooks.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": backend.client_config(path),
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE", "UPDATE", "DELETE"]}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        hook[key] = value.clone();
    }
    hook
}

fn configuration(kind: &str, name: &str, hooks: Value) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": hooks})
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn allow(review: &Value, more: Value) -> Value {
    let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
    for (key, value) in more.as_object().into_iter().flatten() {
        response[key] = value.clone();
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
}

fn patch(operations: Value) -> Value {
    json!({"patchType": "JSONPatch", "patch": base64::engine::general_purpose::STANDARD.encode(operations.to_string())})
}

#[tokio::test]
async fn objects_are_changed_and_refused() {
    let world = World::new().await;
    let backend = Backend::start(|path, review| match path {
        "/mutate" if review["request"]["operation"] == "CREATE" => {
            let mut answer = patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"by": "hook"}}]));
            answer["warnings"] = json!(["changed by a hook"]);
            allow(review, answer)
        }
        "/validate" if review["request"]["object"]["data"]["bad"] == "yes" => json!({"kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1", "response": {"uid": review["request"]["uid"], "allowed": false,
                "status": {"code": 403, "message": "bad is not allowed"}}}),
        "/validate"
            if review["request"]["operation"] == "DELETE"
                && review["request"]["oldObject"]["data"]["keep"] == "yes" =>
        {
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
                "response": {"uid": review["request"]["uid"], "allowed": false}})
        }
        _ => allow(review, json!({})),
    })
    .await;
    let hooks = json!([hook(&backend, "/mutate", json!({}))]);
    let made = world.post(MUTATING, &configuration("MutatingWebhookConfiguration", "m", hooks)).await.ok();
    assert_eq!(made["webhooks"][0]["reinvocationPolicy"], "Never");
    assert_eq!(made["webhooks"][0]["timeoutSeconds"], 10);
    let hooks = json!([hook(&backend, "/validate", json!({}))]);
    world.post(VALIDATING, &configuration("ValidatingWebhookConfiguration", "v", hooks)).await.ok();

    let made = world.post(MAPS, &map("a", json!({"keep": "yes"}))).await;
    assert_eq!(made.warnings, ["299 - \"changed by a hook\""]);
    assert_eq!(made.ok()["metadata"]["labels"], json!({"by": "hook"}));
    let refused = world.post(MAPS, &map("b", json!({"bad": "yes"}))).await;
    assert_eq!(
        refused.refused(),
        (403, "admission webhook \"a.hooks.example.com\" denied the request: bad is not allowed")
    );
    let refused = world.delete(&format!("{MAPS}/a")).await;
    assert_eq!(
        refused.refused(),
        (400, "admission webhook \"a.hooks.example.com\" denied the request without explanation")
    );
    let (_, review, _) = backend.seen.lock().expect("no panic")[0].clone();
    let request = &review["request"];
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(request["resource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!(
        (&request["name"], &request["namespace"], &request["operation"]),
        (&json!("a"), &json!("default"), &json!("CREATE"))
    );
    assert_eq!((&request["dryRun"], &request["userInfo"]["username"]), (&json!(false), &json!("admin")));
    assert_eq!((&request["object"]["kind"], &request["oldObject"]), (&json!("ConfigMap"), &Value::Null));
}

#[tokio::test]
async fn connections_are_asked_about_with_their_options() {
    let world = World::new().await;
    let backend = Backend::start(|path, review| match path {
        "/validate" if review["request"]["object"]["command"][0] == "sh" => json!({"kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1", "response": {"uid": review["request"]["uid"], "allowed": false,
                "status": {"code": 403, "message": "no shells"}}}),
        _ => allow(review, json!({})),
    })
    .await;
    let rules = json!({"rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/exec", "pods/proxy"],
        "operations": ["CONNECT"]}]});
    let hooks = json!([hook(&backend, "/validate", rules)]);
    world.post(VALIDATING, &configuration("ValidatingWebhookConfiguration", "v", hooks)).await.ok();
    let exec = "/api/v1/namespaces/default/pods/p/exec";
    let refused = world.post(&format!("{exec}?command=sh&stdout=true"), &Value::Null).await;
    assert_eq!(refused.refused(), (403, "admission webhook \"a.hooks.example.com\" denied the request: no shells"));
    let (_, review, _) = backend.seen.lock().expect("no panic")[0].clone();
    let request = &review["request"];
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "PodExecOptions"}));
    assert_eq!(request["resource"], json!({"group": "", "version": "v1", "resource": "pods"}));
    assert_eq!(
        (&request["operation"], &request["subResource"], &request["name"], &request["namespace"]),
        (&json!("CONNECT"), &json!("exec"), &json!("p"), &json!("default"))
    );
    assert_eq!(
        request["object"],
        json!({"kind": "PodExecOptions", "apiVersion": "v1", "stdout": true, "command": ["sh"]})
    );
    // Whoever is allowed gets on: there is no such pod.
    assert_eq!(world.post(&format!("{exec}?command=ls&stdout=true"), &Value::Null).await.code, 404);
    assert_eq!(world.get("/api/v1/namespaces/default/pods/p/proxy/").await.code, 404);
    assert_eq!(backend.calls(), 3);
}

#[tokio::test]
async fn pods_are_reached_over_https_whoever_signed_for_them() {
    let world = World::new().await;
    let backend = Backend::start(|path, _| json!({"path": path})).await;
    world.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    world.post(pods, &pod).await.ok();
    let status = json!({"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    world.merge(&format!("{pods}/p/status"), &status).await.ok();
    let port = backend.address.port();
    let answer = world.get(&format!("{pods}/https:p:{port}/proxy/a%20b?c=d")).await.ok();
    assert_eq!(answer, json!({"path": "/a%20b"}));
    assert_ne!(world.get(&format!("{pods}/p:{port}/proxy/")).await.code, 200, "it speaks TLS only");
}

#[tokio::test]
async fn failures_count_as_the_policy_says() {
    let world = World::new().await;
    let backend = Backend::start(|_, _| json!({"kind": "Nonsense"})).await;
    let create = |policy: &'static str, config: Value| {
        let hook = hook(&backend, "/x", json!({"failurePolicy": policy, "clientConfig": config, "timeoutSeconds": 1}));
        configuration("ValidatingWebhookConfiguration", "v", json!([hook]))
    };
    world.post(VALIDATING, &create("Fail", json!({"service": {"namespace": "none", "name": "none"}}))).await.ok();
    let failed = world.post(MAPS, &map("a", json!({}))).await;
    let message = "Internal error occurred: failed calling webhook \"a.hooks.example.com\": failed to call webhook: Post \
        \"https://none.none.svc:443/?timeout=1s\": service \"none\" not found";
    assert_eq!(failed.refused(), (500, message));
    let path = format!("{VALIDATING}/v");
    world.put(&path, &create("Fail", backend.client_config("/x"))).await.ok();
    let failed = world.post(MAPS, &map("a", json!({}))).await;
    assert!(failed.refused().1.contains("received invalid webhook response"), "{:?}", failed.refused());
    // Nobody answers on this one.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("https://localhost:{}/", silent.local_addr().expect("bound").port());
    world.put(&path, &create("Fail", json!({"url": url}))).await.ok();
    let failed = world.post(MAPS, &map("a", json!({}))).await;
    assert!(failed.refused().1.ends_with("context deadline exceeded"), "{:?}", failed.refused());
    world.put(&path, &create("Ignore", json!({"url": url}))).await.ok();
    world.post(MAPS, &map("a", json!({}))).await.ok();
    // An authority that did not sign the certificate.
    let mut config = backend.client_config("/x");
    config["caBundle"] = base64::engine::general_purpose::STANDARD.encode(&world.server.ca_pem).into();
    world.put(&path, &create("Fail", config)).await.ok();
    let failed = world.post(MAPS, &map("b", json!({}))).await;
    assert!(failed.refused().1.contains("x509: certificate signed by unknown authority"), "{:?}", failed.refused());
}

#[tokio::test]
async fn only_what_is_meant_is_asked_about() {
    let world = World::new().await;
    let backend = Backend::start(|_, review| allow(review, json!({}))).await;
    let more = json!({"objectSelector": {"matchLabels": {"hook": "yes"}},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
        "matchConditions": [{"name": "not-b", "expression": "object.metadata.name != 'b'"}]});
    let hooks = json!([hook(&backend, "/x", more)]);
    world.post(VALIDATING, &configuration("ValidatingWebhookConfiguration", "v", hooks)).await.ok();
    let labelled = |name: &str| {
        let mut object = map(name, json!({}));
        object["metadata"]["labels"] = json!({"hook": "yes"});
        object
    };
    world.post(MAPS, &map("a", json!({}))).await.ok();
    world.post(MAPS, &labelled("b")).await.ok();
    world.post("/api/v1/namespaces/kube-public/configmaps", &labelled("c")).await.ok();
    assert_eq!(backend.calls(), 0);
    world.post(MAPS, &labelled("d")).await.ok();
    assert_eq!(backend.calls(), 1);
    world.post(&format!("{MAPS}?dryRun=All"), &labelled("e")).await.ok();
    let (_, review, _) = backend.seen.lock().expect("no panic")[1].clone();
    assert_eq!(review["request"]["dryRun"], true);
    // Conditions that cannot be decided count as a failure.
    let broken = json!({"matchConditions": [{"name": "x", "expression": "object.nothing == 1"}]});
    let hooks = json!([hook(&backend, "/x", broken)]);
    world.put(&format!("{VALIDATING}/v"), &configuration("ValidatingWebhookConfiguration", "v", hooks)).await.ok();
    assert_eq!(world.post(MAPS, &map("f", json!({}))).await.code, 403);
    let wrong = json!({"matchConditions": [{"name": "x", "expression": "object.metadata.name + 1"}]});
    let hooks = json!([hook(&backend, "/x", wrong)]);
    assert_eq!(
        world.put(&format!("{VALIDATING}/v"), &configuration("ValidatingWebhookConfiguration", "v", hooks)).await.code,
        422
    );
}

#[tokio::test]
async fn a_scale_is_shown_as_one() {
    let world = World::new().await;
    let backend = Backend::start(|_, review| match review["request"]["object"]["spec"]["replicas"].as_i64() {
        Some(replicas) if replicas > 5 => {
            allow(review, patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 5}])))
        }
        _ => allow(review, json!({})),
    })
    .await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec});
    world.post(deployments, &deployment).await.ok();
    let rules = json!([{"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments/scale"], "operations": ["UPDATE"]}]);
    let hooks = json!([hook(&backend, "/scale", json!({"rules": rules}))]);
    world.post(MUTATING, &configuration("MutatingWebhookConfiguration", "m", hooks)).await.ok();
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "up"}, "spec": {"matchConstraints": {"resourceRules": rules}, "validations": [
            {"expression": "request.kind.kind == 'Scale' && object.spec.replicas >= oldObject.spec.replicas"}]}});
    world.post("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies", &policy).await.ok();
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "up"}, "spec": {"policyName": "up", "validationActions": ["Deny"]}});
    world.post("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings", &binding).await.ok();

    let scale = format!("{deployments}/d/scale");
    let scaled = world.merge(&scale, &json!({"spec": {"replicas": 9}})).await.ok();
    assert_eq!(scaled["spec"]["replicas"], 5, "the webhook allows five");
    assert_eq!(world.get(&format!("{deployments}/d")).await.ok()["spec"]["replicas"], 5);
    let (_, review, _) = backend.seen.lock().expect("no panic")[0].clone();
    let request = &review["request"];
    assert_eq!(request["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!(request["resource"], json!({"group": "apps", "version": "v1", "resource": "deployments"}));
    assert_eq!((&request["subResource"], &request["object"]["kind"]), (&json!("scale"), &json!("Scale")));
    let replicas = |object: &Value| object["spec"]["replicas"].as_i64();
    assert_eq!((replicas(&request["oldObject"]), replicas(&request["object"])), (Some(2), Some(9)));
    let refused = world.merge(&scale, &json!({"spec": {"replicas": 1}})).await;
    assert!(refused.refused().1.contains("ValidatingAdmissionPolicy 'up'"), "{:?}", refused.refused());
}

#[tokio::test]
async fn a_hook_is_asked_again_when_a_later_one_changed_the_object() {
    let world = World::new().await;
    let backend = Backend::start(|path, review| {
        let labels = &review["request"]["object"]["metadata"]["labels"];
        match path {
            "/first" if labels["second"] == "yes" => {
                allow(review, patch(json!([{"op": "add", "path": "/metadata/labels/seen", "value": "second"}])))
            }
            "/second" if labels["second"].is_null() => {
                allow(review, patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"second": "yes"}}])))
            }
            _ => allow(review, json!({})),
        }
    })
    .await;
    let hooks = json!([
        hook(&backend, "/first", json!({"name": "a.hooks.example.com", "reinvocationPolicy": "IfNeeded"})),
        hook(&backend, "/second", json!({"name": "b.hooks.example.com"})),
    ]);
    world.post(MUTATING, &configuration("MutatingWebhookConfiguration", "m", hooks)).await.ok();
    let made = world.post(MAPS, &map("a", json!({}))).await.ok();
    assert_eq!(made["metadata"]["labels"], json!({"second": "yes", "seen": "second"}));
    let order: Vec<String> = backend.seen.lock().expect("no panic").iter().map(|(path, ..)| path.clone()).collect();
    assert_eq!(order, ["/first", "/second", "/first"]);
}
