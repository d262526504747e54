//! The audit log of a server.

use axum::body::Body;
use http::Request;
use mini::apiserver::audit::Options;
use mini::apiserver::testing;
use mini::apiserver::{ApiServer, User};
use mini::config::AuditRotation;
use mini::env::Env;
use mini::storage::{Limits, memory};
use serde_json::{Value, json};

use super::world::{Answer, get, json, send};

/// The lines of the log, which are whole once the server has flushed them.
async fn lines(server: &ApiServer, path: &std::path::Path) -> Vec<Value> {
    server.flush_audit().await;
    let text = std::fs::read_to_string(path).expect("the log is there");
    text.lines().map(|line| serde_json::from_str(line).expect("every line is an Event")).collect()
}

#[tokio::test]
async fn the_log_tells_what_the_policy_wants() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let log_path = folder.path().join("audit.log");
    let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [
        {"level": "None", "nonResourceURLs": ["/healthz"]},
        {"level": "RequestResponse", "omitStages": ["RequestReceived"], "omitManagedFields": true,
            "resources": [{"group": "", "resources": ["configmaps"]}]},
        {"level": "Metadata"},
    ]});
    let options = Options { policy, log_path: log_path.clone(), rotation: AuditRotation::default() };
    let server = testing::start_with(memory(Limits::default()), Env::real(), move |o| o.audit = Some(options)).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(get(&server, "/healthz", "*/*").await.code, 200);
    json(&server, "POST", maps, &json!({"metadata": {"generateName": "m-"}, "data": {"k": "v"}})).await;
    assert_eq!(get(&server, "/api/v1/nodes/none", "application/json").await.code, 404);
    let jane = Request::get("/api/v1/secrets").header("user-agent", "me").body(Body::empty()).expect("a request");
    let refused = Answer::of(server.call(Some(&User::new("jane", &["system:authenticated"])), jane).await).await;
    assert_eq!(refused.code, 403);
    let headers = [("impersonate-user", "jane")];
    assert_eq!(send(&server, "GET", "/api/v1/pods", &headers, &Value::Null).await.code, 403);
    let events = lines(&server.server, &log_path).await;

    let stages = |resource: &str| -> Vec<&str> {
        let of = events.iter().filter(|event| event["objectRef"]["resource"] == resource);
        of.filter_map(|event| event["stage"].as_str()).collect()
    };
    assert_eq!(stages("configmaps"), ["ResponseComplete"]);
    assert_eq!(stages("nodes"), ["RequestReceived", "ResponseComplete"]);
    assert!(events.iter().all(|event| event["requestURI"] != "/healthz"));
    let created = events.iter().find(|event| event["objectRef"]["resource"] == "configmaps").expect("it was told");
    assert_eq!((&created["verb"], &created["level"]), (&json!("create"), &json!("RequestResponse")));
    assert_eq!(created["requestObject"]["data"], json!({"k": "v"}));
    assert!(created["responseObject"]["metadata"].get("managedFields").is_none());
    assert_eq!(created["responseStatus"]["code"], 201);
    assert_eq!(created["user"]["username"], "admin");
    let missing = events.iter().rfind(|event| event["objectRef"]["resource"] == "nodes").expect("it was told");
    assert_eq!(missing["responseStatus"]["reason"], "NotFound");
    assert!(missing.get("responseObject").is_none());
    let forbidden = events.iter().rfind(|event| event["objectRef"]["resource"] == "secrets").expect("it was told");
    assert_eq!(forbidden["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(forbidden["userAgent"], "me");
    let acted = events.iter().rfind(|event| event["objectRef"]["resource"] == "pods").expect("it was told");
    assert_eq!((&acted["user"]["username"], &acted["impersonatedUser"]["username"]), (&json!("admin"), &json!("jane")));
}

#[tokio::test]
async fn what_is_learnt_on_the_way_is_annotated() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let log_path = folder.path().join("audit.log");
    let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}]});
    let options = Options { policy, log_path: log_path.clone(), rotation: AuditRotation::default() };
    let server = testing::start_with(memory(Limits::default()), Env::real(), move |o| o.audit = Some(options)).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let binding = json!({"metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    assert_eq!(json(&server, "POST", &format!("{rbac}/clusterrolebindings"), &binding).await.code, 201);
    let list = Request::get("/api/v1/pods").body(Body::empty()).expect("a request");
    let listed = Answer::of(server.call(Some(&User::new("jane", &[])), list).await).await;
    assert_eq!(listed.code, 200);
    let review = json!({"spec": {"user": "jane", "resourceAttributes": {"verb": "list", "resource": "pods"}}});
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let reason = "RBAC: allowed by ClusterRoleBinding \"b\" of ClusterRole \"view\" to User \"jane\"";
    let review = json(&server, "POST", reviews, &review).await.json();
    assert_eq!(review["status"], json!({"allowed": true, "reason": reason}));

    let label = json!({"metadata": {"labels": {"pod-security.kubernetes.io/audit": "restricted"}}});
    let merge = [("content-type", "application/merge-patch+json")];
    assert_eq!(send(&server, "PATCH", "/api/v1/namespaces/default", &merge, &label).await.code, 200);
    let core = "/api/v1/namespaces/default";
    json(&server, "POST", &format!("{core}/serviceaccounts"), &json!({"metadata": {"name": "default"}})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(json(&server, "POST", &format!("{core}/pods"), &pod).await.code, 201);

    let events = lines(&server.server, &log_path).await;
    let annotations = |verb: &str, resource: &str| {
        let event = events.iter().find(|e| e["verb"] == verb && e["objectRef"]["resource"] == resource);
        event.expect("it was told")["annotations"].clone()
    };
    let listed = json!({"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": reason});
    assert_eq!(annotations("list", "pods"), listed);
    let created = annotations("create", "pods");
    assert_eq!(created["authorization.k8s.io/reason"], "");
    assert_eq!(created["pod-security.kubernetes.io/enforce-policy"], "privileged:latest");
    let violations = created["pod-security.kubernetes.io/audit-violations"].as_str().expect("it is told");
    assert!(violations.starts_with("would violate PodSecurity \"restricted:latest\": "), "{violations}");
}

#[tokio::test]
async fn a_watch_is_told_when_it_begins_and_when_it_ends() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let log_path = folder.path().join("audit.log");
    let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]});
    let options = Options { policy, log_path: log_path.clone(), rotation: AuditRotation::default() };
    let server = testing::start_with(memory(Limits::default()), Env::real(), move |o| o.audit = Some(options)).await;
    let path = "/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=1&resourceVersion=0";
    assert_eq!(get(&server, path, "application/json").await.code, 200);
    let events = lines(&server.server, &log_path).await;
    let stages: Vec<&str> = events.iter().filter_map(|event| event["stage"].as_str()).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
    assert!(events.iter().all(|event| event["auditID"] == events[0]["auditID"]));
}
