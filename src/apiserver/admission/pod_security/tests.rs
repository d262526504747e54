//! The plugin as a client meets it: refusals, warnings, exemptions, existing pods.

use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::apiserver::User;
use crate::apiserver::admission::Configuration;
use crate::apiserver::admission::configuration::with_pod_security;
use crate::apiserver::testing::{self, TestServer};
use crate::env::Env;
use crate::storage::{Limits, memory};

struct Cluster {
    server: TestServer,
}

/// A code, the warnings and the body.
type Answer = (u16, Vec<String>, Value);

impl Cluster {
    async fn start(configuration: Value) -> Self {
        let document = if configuration.is_null() { Value::Null } else { with_pod_security(&configuration) };
        let admission = Configuration::new(&document).expect("it is right");
        let server =
            testing::start_with(memory(Limits::default()), Env::real(), |options| options.admission = admission);
        Self { server: server.await }
    }

    async fn ask(&self, user: &User, method: Method, path: &str, body: Value) -> Answer {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(Body::from(body.to_string())).expect("a request");
        let answer = self.server.call(Some(user), request).await;
        let warnings = answer.headers().get_all("warning").iter();
        let warnings = warnings.map(|w| w.to_str().expect("text").to_owned()).collect();
        let code = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
        (code, warnings, serde_json::from_slice(&bytes).expect("JSON"))
    }

    async fn admin(&self, method: Method, path: &str, body: Value) -> Answer {
        self.ask(&User::master("admin"), method, path, body).await
    }

    async fn namespace(&self, name: &str, labels: Value) -> Answer {
        self.admin(Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": name, "labels": labels}})).await
    }

    async fn label(&self, name: &str, labels: Value, query: &str) -> Answer {
        let path = format!("/api/v1/namespaces/{name}{query}");
        self.admin(Method::PATCH, &path, json!({"metadata": {"labels": labels}})).await
    }

    async fn pod(&self, namespace: &str, pod: Value) -> Answer {
        // Without the ServiceAccount controller there is no account `default` to be found.
        let account = json!({"metadata": {"name": "default"}});
        self.admin(Method::POST, &format!("/api/v1/namespaces/{namespace}/serviceaccounts"), account).await;
        self.admin(Method::POST, &format!("/api/v1/namespaces/{namespace}/pods"), pod).await
    }
}

fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = json!({"containers": [{"name": "nginx", "image": "nginx"}]});
    change(&mut spec);
    json!({"metadata": {"name": name}, "spec": spec})
}

const PLAIN: &str = "would violate PodSecurity \\\"restricted:latest\\\": allowPrivilegeEscalation != false \
    (container \\\"nginx\\\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities \
    (container \\\"nginx\\\" must set securityContext.capabilities.drop=[\\\"ALL\\\"]), runAsNonRoot != true \
    (pod or container \\\"nginx\\\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \
    \\\"nginx\\\" must set securityContext.seccompProfile.type to \\\"RuntimeDefault\\\" or \\\"Localhost\\\")";

#[tokio::test]
async fn a_namespace_enforces_and_warns() {
    let cluster = Cluster::start(Value::Null).await;
    cluster
        .namespace(
            "example",
            json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}),
        )
        .await;
    let (code, warnings, _) = cluster.pod("example", pod("nginx", |_| {})).await;
    assert_eq!((code, warnings), (201, vec![format!("299 - \"{PLAIN}\"")]));
    let (code, warnings, body) = cluster.pod("example", pod("host", |spec| spec["hostNetwork"] = true.into())).await;
    assert_eq!((code, warnings.len()), (403, 0));
    assert_eq!(
        body["message"],
        "pods \"host\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
    );
    let (code, warnings, _) = cluster.pod("default", pod("nginx", |_| {})).await;
    assert_eq!((code, warnings.len()), (201, 0));

    // Workloads are only warned about; their pods are refused.
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": pod("", |spec| spec["hostPID"] = true.into())["spec"]});
    let deployment =
        json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let (code, warnings, _) =
        cluster.admin(Method::POST, "/apis/apps/v1/namespaces/example/deployments", deployment).await;
    assert_eq!(code, 201);
    assert!(
        warnings[0].contains("would violate PodSecurity \\\"restricted:latest\\\": host namespaces (hostPID=true), ")
    );

    // What does not change containers is not judged again.
    let (code, warnings, _) = cluster
        .admin(Method::PATCH, "/api/v1/namespaces/example/pods/nginx", json!({"metadata": {"labels": {"x": "y"}}}))
        .await;
    assert_eq!((code, warnings.len()), (200, 0));
    let image = json!({"spec": {"containers": [{"name": "nginx", "image": "other"}]}});
    let request = Request::builder().method(Method::PATCH).uri("/api/v1/namespaces/example/pods/nginx");
    let request = request.header("content-type", "application/strategic-merge-patch+json");
    let request = request.body(Body::from(image.to_string())).expect("a request");
    let answer = cluster.server.call(Some(&User::master("admin")), request).await;
    assert_eq!((answer.status().as_u16(), answer.headers().get_all("warning").iter().count()), (200, 1));
}

#[tokio::test]
async fn labels_are_judged_and_existing_pods_told_also_in_a_dry_run() {
    let cluster = Cluster::start(Value::Null).await;
    let (code, _, body) = cluster.namespace("x", json!({"pod-security.kubernetes.io/enforce": "strict"})).await;
    assert_eq!(code, 422);
    assert_eq!(
        body["message"],
        "Namespace \"x\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": \
         must be one of privileged, baseline, restricted"
    );
    for name in ["a", "b"] {
        cluster.pod("default", pod(name, |spec| spec["hostIPC"] = true.into())).await;
    }
    let baseline = json!({"pod-security.kubernetes.io/enforce": "baseline"});
    let (code, warnings, _) = cluster.label("default", baseline.clone(), "?dryRun=All").await;
    assert_eq!(code, 200);
    assert_eq!(
        warnings,
        [
            "299 - \"existing pods in namespace \\\"default\\\" violate the new PodSecurity enforce level \\\"baseline:latest\\\"\"",
            "299 - \"a (and 1 other pod): host namespaces\"",
        ]
    );
    let (_, warnings, _) = cluster.label("default", baseline.clone(), "").await;
    assert_eq!(warnings.len(), 2, "the dry run wrote nothing");
    let (_, warnings, _) = cluster.label("default", baseline, "").await;
    assert!(warnings.is_empty(), "nothing new");
    let (_, warnings, _) =
        cluster.label("default", json!({"pod-security.kubernetes.io/enforce": "privileged"}), "").await;
    assert!(warnings.is_empty(), "relaxed");
    let wrong = json!({"pod-security.kubernetes.io/warn": "nothing"});
    assert_eq!(cluster.label("default", wrong, "").await.0, 422);
}

#[tokio::test]
async fn the_cluster_has_defaults_and_exemptions() {
    let cluster = Cluster::start(json!({
        "apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration",
        "defaults": {"enforce": "baseline", "warn": "restricted"},
        "exemptions": {"namespaces": ["kube-system"], "usernames": ["robot"]},
    }))
    .await;
    let host = |name: &str| pod(name, |spec| spec["hostNetwork"] = true.into());
    assert_eq!(cluster.pod("default", host("p")).await.0, 403);
    assert_eq!(cluster.pod("kube-system", host("p")).await.0, 201);
    let robot = User::new("robot", &["system:masters"]);
    assert_eq!(cluster.ask(&robot, Method::POST, "/api/v1/namespaces/default/pods", host("q")).await.0, 201);
    let restricted = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let (_, warnings, _) = cluster.label("kube-system", restricted, "").await;
    assert_eq!(
        warnings,
        [
            "299 - \"namespace \\\"kube-system\\\" is exempt from Pod Security, and the policy (enforce=restricted:latest) will be ignored\""
        ]
    );
    cluster.namespace("free", json!({"pod-security.kubernetes.io/enforce": "privileged"})).await;
    let (code, warnings, _) = cluster.pod("free", host("p")).await;
    assert_eq!((code, warnings.len()), (201, 1));
}
