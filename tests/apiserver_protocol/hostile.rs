//! A thousand malformed requests for each class of endpoint: none panics, hangs or leaves a partial write.

use std::time::Duration;

use axum::body::{Body, Bytes};
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request};
use mini::apiserver::User;
use mini::apiserver::testing::TestServer;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::world::{Answer, get, json as send_json, start};

/// How many requests are sent to each class.
const REQUESTS: usize = 1000;
/// Far more than any answer takes; a request that hangs runs into it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request before it is spoilt.
#[derive(Clone)]
struct Sample {
    method: &'static str,
    path: &'static str,
    content_type: &'static str,
    body: String,
}

fn sample(method: &'static str, path: &'static str, content_type: &'static str, body: Value) -> Sample {
    Sample { method, path, content_type, body: body.to_string() }
}

const JSON: &str = "application/json";
const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/d";

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"a": "b"}}, "spec": {
        "containers": [{"name": "c", "image": "a", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1"}}, "env": [{"name": "A", "value": "1"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [{"key": "a", "operator": "Exists"}]}})
}

/// The classes of endpoints.
fn classes() -> Vec<(&'static str, Vec<Sample>)> {
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "3"}, "scopes": ["BestEffort"]}});
    let ingress = json!({"metadata": {"name": "i"}, "spec": {"rules": [{"host": "a.b", "http": {"paths": [
        {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}});
    let claim = json!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": [
        {"name": "r", "exactly": {"deviceClassName": "gpu", "selectors": [{"cel": {"expression": "true"}}]}}]}}});
    let operations = json!([{"op": "add", "path": "/metadata/labels/x", "value": "y"},
        {"op": "test", "path": "/spec/replicas", "value": 1}, {"op": "move", "from": "/spec/replicas", "path": "/spec/x"}]);
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "$patch": "delete"},
        {"name": "e", "image": "b"}], "$setElementOrder/containers": [{"name": "e"}], "$retainKeys": ["containers"]}}}});
    let apply = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "b"}]}}}});
    let scale =
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "d"}, "spec": {"replicas": 3}});
    let access =
        json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}, "user": "jane", "groups": ["g"]}});
    let nothing = Value::Null;
    vec![
        (
            "creates",
            vec![
                sample("POST", PODS, JSON, pod("n")),
                sample("POST", "/api/v1/namespaces/default/resourcequotas", JSON, quota),
                sample("POST", "/apis/networking.k8s.io/v1/namespaces/default/ingresses", JSON, ingress),
                sample("POST", "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims", JSON, claim),
                sample("POST", PODS, "application/yaml", pod("n")),
                sample("POST", PODS, "application/vnd.kubernetes.protobuf", pod("n")),
            ],
        ),
        (
            "updates",
            vec![
                sample("PUT", "/api/v1/namespaces/default/pods/p", JSON, pod("p")),
                sample("PUT", "/api/v1/namespaces/default/pods/p/status", JSON, pod("p")),
                sample("PUT", "/api/v1/namespaces/default/finalize", JSON, json!({"metadata": {"name": "default"}})),
            ],
        ),
        (
            "patches",
            vec![
                sample("PATCH", DEPLOYMENT, "application/json-patch+json", operations),
                sample("PATCH", DEPLOYMENT, "application/merge-patch+json", json!({"spec": {"replicas": 2}})),
                sample("PATCH", DEPLOYMENT, "application/strategic-merge-patch+json", strategic),
            ],
        ),
        (
            "applies",
            vec![sample(
                "PATCH",
                "/apis/apps/v1/namespaces/default/deployments/d?fieldManager=m&force=true",
                "application/apply-patch+yaml",
                apply,
            )],
        ),
        (
            "subresources",
            vec![
                sample("PUT", "/apis/apps/v1/namespaces/default/deployments/d/scale", JSON, scale),
                sample(
                    "POST",
                    "/api/v1/namespaces/default/pods/p/binding",
                    JSON,
                    json!({"target": {"kind": "Node", "name": "n"}}),
                ),
                sample(
                    "POST",
                    "/api/v1/namespaces/default/pods/none/eviction",
                    JSON,
                    json!({"metadata": {"name": "none"}}),
                ),
                sample(
                    "POST",
                    "/api/v1/namespaces/default/serviceaccounts/default/token",
                    JSON,
                    json!({"spec": {"audiences": ["a"], "expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}}}),
                ),
            ],
        ),
        (
            "reviews",
            vec![
                sample("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", JSON, access.clone()),
                sample("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", JSON, access),
                sample(
                    "POST",
                    "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
                    JSON,
                    json!({"spec": {"namespace": "default"}}),
                ),
                sample(
                    "POST",
                    "/apis/authentication.k8s.io/v1/tokenreviews",
                    JSON,
                    json!({"spec": {"token": "x.y.z", "audiences": ["a"]}}),
                ),
            ],
        ),
        (
            "deletes",
            vec![sample(
                "DELETE",
                "/api/v1/namespaces/default/configmaps/none",
                JSON,
                json!({"kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": "x"}, "propagationPolicy": "Foreground"}),
            )],
        ),
        (
            "lists and watches",
            vec![
                sample(
                    "GET",
                    "/api/v1/pods?limit=1&labelSelector=a%20in%20(b,c),d!=e&fieldSelector=spec.nodeName=n",
                    "",
                    nothing.clone(),
                ),
                sample(
                    "GET",
                    "/api/v1/pods?watch=1&timeoutSeconds=1&resourceVersion=1&allowWatchBookmarks=true",
                    "",
                    nothing.clone(),
                ),
                sample(
                    "GET",
                    "/api/v1/pods?continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhXHUwMDAwIn0&limit=2",
                    "",
                    nothing.clone(),
                ),
                sample(
                    "GET",
                    "/apis/apps/v1/deployments?resourceVersionMatch=Exact&resourceVersion=1",
                    "",
                    nothing.clone(),
                ),
            ],
        ),
        (
            "documents",
            vec![
                sample("GET", "/openapi/v3/apis/apps/v1?hash=x", "", nothing.clone()),
                sample("GET", "/apis/networking.k8s.io/v1", "", nothing.clone()),
                sample("GET", "/healthz/ping?verbose&exclude=etcd", "", nothing.clone()),
                sample("GET", "/.well-known/openid-configuration", "", nothing.clone()),
            ],
        ),
        (
            "connections",
            vec![
                sample(
                    "GET",
                    "/api/v1/namespaces/default/pods/p/log?container=c&tailLines=1&sinceSeconds=1",
                    "",
                    nothing.clone(),
                ),
                sample(
                    "GET",
                    "/api/v1/namespaces/default/pods/p/exec?command=a&container=c&stdin=true",
                    "",
                    nothing.clone(),
                ),
                sample("GET", "/api/v1/namespaces/default/services/http:s:80/proxy/a/../b?x=%00", "", nothing.clone()),
                sample("POST", "/api/v1/namespaces/default/pods/p/portforward?ports=80", "", nothing),
            ],
        ),
    ]
}

const PIECES: [&str; 26] = [
    "\0",
    "\u{feff}",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "-1",
    "1e999",
    "99999999999999999999",
    "true",
    "../",
    "%",
    "%00",
    "%ff",
    "&*a",
    "<<: *x",
    "\"metadata\":{}",
    "\"spec\":[]",
    "\u{202e}é",
    "$patch",
];

/// Spoils a text in one of many ways.
fn spoil(rng: &mut StdRng, text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..8) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] = rng.random(),
            2 => drop(bytes.splice(at..at, PIECES[rng.random_range(0..PIECES.len())].bytes())),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            4 => {
                let piece = bytes[at..(at + 20).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => drop(bytes.splice(at..at, "[".repeat(rng.random_range(1..3000)).bytes())),
            6 => drop(bytes.splice(at..at, "a".repeat(rng.random_range(1..5000)).bytes())),
            _ => {
                // A value of another type.
                if let Ok(mut value) = serde_json::from_slice::<Value>(&bytes) {
                    confuse(rng, &mut value);
                    bytes = value.to_string().into_bytes();
                }
            }
        }
    }
    bytes
}

fn confuse(rng: &mut StdRng, value: &mut Value) {
    let odd = [
        json!(null),
        json!(-1),
        json!(1.5),
        json!(""),
        json!([]),
        json!({}),
        json!([[[]]]),
        json!({"a": null}),
        json!("a".repeat(300)),
        json!(u64::MAX),
        json!(true),
        json!("=,!("),
    ];
    let inside = match value {
        Value::Object(map) if !map.is_empty() && rng.random_range(0..4) > 0 => {
            let at = rng.random_range(0..map.len());
            map.values_mut().nth(at)
        }
        Value::Array(list) if !list.is_empty() && rng.random_range(0..4) > 0 => {
            let at = rng.random_range(0..list.len());
            list.get_mut(at)
        }
        _ => None,
    };
    match inside {
        Some(inside) => confuse(rng, inside),
        None => *value = odd[rng.random_range(0..odd.len())].clone(),
    }
}

/// A path that can be sent; what cannot stand in a URL is escaped.
fn spoilt_path(rng: &mut StdRng, path: &str) -> String {
    let spoilt = spoil(rng, path);
    let mut text = String::new();
    for byte in spoilt.iter().take(4000) {
        match byte {
            b'!'..=b'~' if !b"\"<>\\^`{|}#".contains(byte) => text.push(char::from(*byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    if text.starts_with('/') { text } else { format!("/{text}") }
}

fn headers(rng: &mut StdRng) -> Vec<(&'static str, Vec<u8>)> {
    const NAMES: [&str; 10] = [
        "accept",
        "accept-encoding",
        "impersonate-user",
        "impersonate-group",
        "impersonate-extra-scopes%2fx",
        "if-none-match",
        "user-agent",
        "authorization",
        "upgrade",
        "content-type",
    ];
    let name = NAMES[rng.random_range(0..NAMES.len())];
    vec![(name, spoil(rng, "application/json;as=Table;v=v1;g=meta.k8s.io;q=0.5,*/*"))]
}

fn request(rng: &mut StdRng, sample: &Sample) -> Option<Request<Body>> {
    let what = rng.random_range(0..10);
    let path = if sample.body == "null" || what == 0 { spoilt_path(rng, sample.path) } else { sample.path.to_owned() };
    let body = match sample.body.as_str() {
        "null" => Vec::new(),
        body if what != 1 => spoil(rng, body),
        body => body.as_bytes().to_vec(),
    };
    let mut request = Request::builder().method(sample.method).uri(path);
    if !sample.content_type.is_empty() {
        request = request.header("content-type", sample.content_type);
    }
    let mut request = request.body(Body::from(body)).ok()?;
    if what <= 2 {
        for (name, value) in headers(rng) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                request.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
    }
    Some(request)
}

async fn revision(server: &TestServer) -> u64 {
    let list = get(server, "/api/v1/namespaces?limit=1", JSON).await.json();
    list["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).expect("a version")
}

#[tokio::test]
async fn malformed_requests_are_refused_and_leave_nothing() {
    let server = start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    send_json(&server, "POST", accounts, &json!({"metadata": {"name": "default"}})).await;
    assert_eq!(send_json(&server, "POST", PODS, &pod("p")).await.code, 201);
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
    let deployment =
        json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let made = send_json(&server, "POST", "/apis/apps/v1/namespaces/default/deployments", &deployment).await;
    assert_eq!(made.code, 201);
    let mut rng = StdRng::seed_from_u64(20_261_125);
    for (class, samples) in classes() {
        let (mut sent, mut refused) = (0, 0);
        while sent < REQUESTS {
            let sample = &samples[sent % samples.len()];
            let Some(request) = request(&mut rng, sample) else { continue };
            sent += 1;
            let about = format!("{class}: {} {}", request.method(), request.uri());
            let before = revision(&server).await;
            let answer = async {
                // A watch that has begun lasts as long as it was asked to, and a mangled timeout is none.
                let is_watch = request.uri().query().is_some_and(|query| query.contains("watch"));
                let response = server.call(Some(&User::master("admin")), request).await;
                if is_watch && response.status().is_success() {
                    return Answer { code: response.status().as_u16(), headers: HeaderMap::new(), bytes: Bytes::new() };
                }
                Answer::of(response).await
            };
            let answer = tokio::time::timeout(PATIENCE, answer).await;
            let answer = answer.unwrap_or_else(|_| panic!("{about} hangs"));
            let text = String::from_utf8_lossy(&answer.bytes).into_owned();
            assert!(!text.contains("caused apiserver to panic"), "{about} panicked");
            if !(200..300).contains(&answer.code) {
                refused += 1;
                assert_eq!(revision(&server).await, before, "{about} was refused with {} and wrote", answer.code);
                // What Kubernetes answers with 500 or worse is told in so many words; nothing else is an internal error.
                assert!(answer.code < 500 || is_expected(answer.code, &text), "{about}: {} {text:.400}", answer.code);
            }
        }
        assert!(refused > REQUESTS / 10, "{class}: only {refused} were refused");
    }
}

/// Answers of 500 and more that Kubernetes gives too, or that say that something else is not there.
fn is_expected(code: u16, text: &str) -> bool {
    match code {
        500 => [
            "resourceVersion should not be set on objects to be created",
            "failed to create typed patch object",
            "Invalid JSON Patch",
            "without impersonating a user name",
            "unable to find",
            "cannot unmarshal",
            // `interpretStrategicMergePatchError` knows other errors only.
            "The order in patch list",
            ", but received a ",
            "unknown patch type: ",
            "does not contain declared merge key: ",
            "list element types are not identical",
            "cannot merge lists without merge key",
            "merging lists cannot yet be specified in the patch",
            // `ValidatePodBinding` is told as it is.
            "target.name: Required value",
            "target.kind: Unsupported value: ",
        ]
        .iter()
        .any(|known| text.contains(known)),
        // Nodes and pods that tests do not have; versions from the future.
        502..=504 => true,
        _ => false,
    }
}

#[tokio::test]
async fn large_bodies_deep_ones_and_bombs_are_refused() {
    let server = start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let before = revision(&server).await;
    let send = |content_type: &'static str, body: String| {
        let server = &server;
        async move {
            let request = Request::post(maps).header("content-type", content_type).body(Body::from(body));
            let response = server.call(Some(&User::master("admin")), request.expect("a request")).await;
            Answer::of(response).await
        }
    };
    let large = send(JSON, format!("{{\"data\":{{\"k\":\"{}\"}}}}", "x".repeat(3 << 20))).await;
    assert_eq!((large.code, large.message()), (413, "Request entity too large: limit is 3145728".to_owned()));
    for deep in ["[".repeat(1 << 20), "{\"a\":".repeat(1 << 18)] {
        assert_eq!(send(JSON, deep.clone()).await.code, 400);
        assert_eq!(send("application/yaml", deep).await.code, 400);
    }
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let references = vec![format!("*a{}", i - 1); 10].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{references}]\n"));
    }
    assert_eq!(send("application/yaml", bomb).await.code, 400);
    let selector = format!("{maps}?labelSelector={}", "a%20in%20(".to_owned() + &"b,".repeat(20_000) + "b)");
    assert_eq!(get(&server, &selector, JSON).await.code, 200, "long, but a selector");
    let selector = format!("{maps}?labelSelector={}", "(".repeat(50_000));
    assert_eq!(get(&server, &selector, JSON).await.code, 400);
    assert_eq!(revision(&server).await, before);
    // Duplicate keys are told, or refused.
    let twice = "{\"metadata\":{\"name\":\"m\"},\"data\":{\"a\":\"1\",\"a\":\"2\"}}";
    let strict = Request::post(format!("{maps}?fieldValidation=Strict")).header("content-type", JSON);
    let strict = server.call(Some(&User::master("admin")), strict.body(Body::from(twice)).expect("a request")).await;
    assert_eq!(strict.status(), 400);
    let warned = send(JSON, twice.to_owned()).await;
    assert_eq!((warned.code, warned.header("warning")), (201, "299 - \"duplicate field \\\"data.a\\\"\""));
}
