//! Replays recordings of real Kubernetes against the API server. Without them (`testing::recordings` looks) there is nothing to do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use futures_util::StreamExt as _;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use mini::apiserver::User;
use mini::apiserver::testing::{self, TestServer};
use mini::env::Env;
use serde_json::{Value, json};

/// Cases that are not replayed, and why.
const SKIP: &[(&str, &str)] = &[
    ("discovery/openapi-v2-etag-media", "the paths of a mux that does not know /swagger.json"),
    ("discovery/openid-jwks", "the key set is answered whatever the client accepts"),
    ("defaults/pv-local", "the protection finalizers need their controller"),
    ("defaults/pvc-min", "the protection finalizers need their controller"),
    ("defaults/pvc-rich", "the protection finalizers need their controller"),
    ("errors/bad-continue-base64", "the token of the request is not in the recording"),
    ("errors/pod-uid-change", "1.20 tells one cause twice"),
    ("tables/csinode", "an empty list is written as one, where Go writes null"),
    ("tables/event-series", "the count of a series is shown as it is; 1.20 added one"),
    ("tables/pod-running-two-one-ready", "podIPs are the node's to write"),
    ("tables/service-externalips", "1.35 defaults externalTrafficPolicy for external addresses"),
    ("tables/service-lb-ready", "1.35 defaults ipMode"),
    ("tables/daemonset", "maxSurge is newer; rows hide the annotation that counts templates, which ours keep"),
    ("patches/apply-uid-mismatch", "1.20 tells one cause twice"),
    ("patches/apply-conflict-two-other-managers", "the order of the causes varies with the order of the managers"),
    ("patches/apply-env-order", "open: api::patch orders merged items after the configuration; 1.35 is not verified"),
    ("patches/apply-widget-set", "open: as apply-env-order"),
    ("patches/apply-widget-granular-map", "unknown maps are granular at every depth since structured-merge-diff 4"),
    ("defaults/widget-min", "1.35 warns about unknown fields"),
    ("errors/webhook-call-fails", "1.35 says \"failed to call webhook: \" as well"),
    ("errors/widget-map-missing-key", "1.35 has the index of the item in the path"),
    ("watch/bookmarks-widgets", "how many bookmarks come before the end is not fixed"),
    ("errors/bad-label-selector-value", "1.35 words it as a field error"),
    ("errors/configmap-too-large", "1.35: may not be more than N bytes"),
    ("errors/deployment-selector-mismatch", "1.35 prints values as JSON"),
    ("errors/expired-resourceversion-list", "nothing is compacted in a young storage: see the storage's own tests"),
    ("errors/pdb-both", "1.35 prints values as JSON"),
    ("errors/pod-image-empty-update", "1.20 tells one cause twice"),
    ("errors/resourceversionmatch-watch", "1.35 allows it with sendInitialEvents"),
    ("errors/service-dual-required", "worded anew since"),
    ("watch/finalizer-flow", "1.20 tells one cause twice"),
    ("watch/gc-background", "needs the garbage collector"),
    ("watch/gc-deployment-cascade", "needs the garbage collector"),
    ("watch/gc-foreground", "needs the garbage collector"),
    ("watch/gc-foreground-held-dependent", "needs the garbage collector"),
    ("watch/gc-orphan", "needs the garbage collector"),
    ("watch/gc-two-owners", "needs the garbage collector"),
    ("watch/job-lifecycle", "needs the Job controller"),
    (
        "watch/pod-graceful-deletion",
        "the last delete of a pod is one write here: no MODIFIED with grace 0 before the DELETED",
    ),
    ("watch/too-old-resourceversion", "nothing is compacted in a young storage: see the storage's own tests"),
];

/// What 1.35 adds to objects that 1.20 recorded without it: (kind, pointer).
const ADDED: &[(&str, &str)] = &[
    ("Service", "/spec/internalTrafficPolicy"),
    ("IngressClass", "/spec/parameters/scope"),
    ("Pod", "/metadata/generation"),
    ("PodTemplate", "/metadata/generation"),
    ("PartialObjectMetadata", "/metadata/generation"),
    ("Pod", "/status/observedGeneration"),
    ("Namespace", "/metadata/labels/kubernetes.io~1metadata.name"),
];

/// What placeholders stood for.
#[derive(Default)]
struct Bindings {
    values: BTreeMap<String, String>,
}

impl Bindings {
    /// Notes the creation time of an object, which later requests carry as `<time>`.
    fn note_time(&mut self, object: &Value) {
        if let Some(time) = object["metadata"]["creationTimestamp"].as_str() {
            self.values.insert("<time>".into(), time.into());
        }
    }

    /// The text with the placeholders that are known filled in.
    fn fill(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (placeholder, value) in &self.values {
            text = text.replace(placeholder, value);
        }
        text
    }

    fn fill_value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.fill(&times(text)).into(),
            Value::Array(items) => items.iter().map(|v| self.fill_value(v)).collect(),
            Value::Object(map) => map.iter().map(|(k, v)| (self.fill(k), self.fill_value(v))).collect(),
            other => other.clone(),
        }
    }

    /// Whether `actual` is what `expected` says, with placeholders standing for the same text everywhere.
    fn text_matches(&mut self, expected: &str, actual: &str) -> bool {
        let Some(start) = expected.find('<') else { return expected == actual };
        let Some(length) = expected[start..].find('>') else { return expected == actual };
        let placeholder = &expected[start..=start + length];
        let known = [
            "label",
            "uid",
            "suffix",
            "rv",
            "time",
            "microtime",
            "date",
            "age",
            "clusterIP",
            "nodePort",
            "pod-template-hash",
            "revision-hash",
            "continue",
            "podIP",
            "podCIDR",
            "jwt",
            "token",
            "pem",
            "hex",
            "server",
            "host",
            "dir",
            "ptr",
        ];
        let name = placeholder.trim_matches(['<', '>']).split(':').next().unwrap_or_default();
        if !known.contains(&name) {
            return expected == actual;
        }
        let (before, after) = (&expected[..start], &expected[start + length + 1..]);
        let Some(rest) = actual.strip_prefix(before) else { return false };
        if placeholder.contains(':')
            && let Some(value) = self.values.get(placeholder).cloned()
        {
            return rest.strip_prefix(value.as_str()).is_some_and(|rest| self.text_matches(after, rest));
        }
        // The shortest text that lets the rest match.
        for (end, _) in rest.char_indices().chain([(rest.len(), ' ')]).skip(1) {
            let mut attempt = Self { values: self.values.clone() };
            if placeholder.contains(':') {
                attempt.values.insert(placeholder.to_owned(), rest[..end].to_owned());
            }
            if attempt.text_matches(after, &rest[end..]) {
                *self = attempt;
                return true;
            }
        }
        false
    }

    fn diff(&mut self, path: &str, expected: &Value, actual: &Value, out: &mut Vec<String>) {
        match (expected, actual) {
            (Value::Object(e), Value::Object(a)) => {
                for (key, value) in e {
                    match a.get(key) {
                        Some(there) => self.diff(&format!("{path}/{key}"), value, there, out),
                        None if value.is_null() => {}
                        None => out.push(format!("{path}/{key}: missing, expected {value}")),
                    }
                }
                for (key, value) in a.iter().filter(|(k, v)| !e.contains_key(*k) && !v.is_null()) {
                    out.push(format!("{path}/{key}: not expected: {value}"));
                }
            }
            (Value::Array(e), Value::Array(a)) if e.len() == a.len() => {
                for (i, (e, a)) in e.iter().zip(a).enumerate() {
                    self.diff(&format!("{path}/{i}"), e, a, out);
                }
            }
            (Value::String(e), Value::String(a)) => {
                if !self.text_matches(e, a) {
                    out.push(format!("{path}: expected {e:?}\n      but got  {a:?}"));
                }
            }
            (Value::String(e), Value::Number(a)) if e.starts_with('<') => {
                if !self.text_matches(e, &a.to_string()) {
                    out.push(format!("{path}: expected {e:?} but got {a}"));
                }
            }
            _ if expected == actual => {}
            (Value::Number(e), Value::String(a)) if path.contains("/cells/") && e.to_string() == *a => {}
            _ => out.push(format!("{path}: expected {expected}\n      but got  {actual}")),
        }
    }

    /// Smaller numbers of `<rv:N>` are older versions.
    fn check_versions(&self, out: &mut Vec<String>) {
        let mut versions: Vec<(u64, u64)> = self
            .values
            .iter()
            .filter_map(|(k, v)| Some((k.strip_prefix("<rv:")?.strip_suffix('>')?.parse().ok()?, v.parse().ok()?)))
            .collect();
        versions.sort_unstable();
        if !versions.is_sorted_by_key(|(_, v)| *v) {
            out.push(format!("versions are out of order: {versions:?}"));
        }
    }
}

/// `<N times 'x'>` and `<N bytes>`.
fn times(text: &str) -> String {
    if let Some(inner) = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')) {
        if let Some((n, letter)) = inner.split_once(" times ") {
            if let Ok(n) = n.parse() {
                return letter.trim_matches('\'').repeat(n);
            }
        }
        if let Some(n) = inner.strip_suffix(" bytes").and_then(|n| n.parse().ok()) {
            return "x".repeat(n);
        }
    }
    text.to_owned()
}

/// Removes what the comparison leaves out.
fn normalise(value: &mut Value, expected: &Value) {
    match value {
        Value::Object(map) => {
            map.remove("managedFields");
            // Descriptions are those of the newer API reference.
            for column in map.get_mut("columnDefinitions").and_then(Value::as_array_mut).into_iter().flatten() {
                let restarts = column["name"] == "Restarts";
                if let Some(column) = column.as_object_mut() {
                    column.remove("description");
                    // A text since it tells the time of the last restart.
                    column.retain(|key, _| !(restarts && key == "type"));
                }
            }
            if map.get("creationTimestamp").is_some_and(Value::is_null) {
                map.remove("creationTimestamp");
            }
            let kind = map.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
            for (of, pointer) in ADDED {
                if kind == *of && expected.pointer(pointer).is_none() {
                    remove(value, pointer);
                }
            }
            if let Some(map) = value.as_object_mut() {
                for (key, member) in map {
                    normalise(member, &expected[key.as_str()]);
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                normalise(item, &expected[i]);
            }
        }
        _ => {}
    }
}

fn remove(value: &mut Value, pointer: &str) {
    let Some((parent, key)) = pointer.rsplit_once('/') else { return };
    let Some(map) = value.pointer_mut(parent).and_then(Value::as_object_mut) else { return };
    map.remove(&key.replace("~1", "/"));
    let empty = map.is_empty();
    if empty && parent.ends_with("/labels") {
        remove(value, parent);
    }
}

fn percent(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                (b as char).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

fn build(case: &str, request: &Value, bindings: &Bindings) -> Request<Body> {
    let path = bindings.fill(request["path"].as_str().unwrap_or_default());
    let mut query = String::new();
    for (key, value) in request["query"].as_object().into_iter().flatten() {
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        for value in values {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = write!(
                query,
                "{}{}={}",
                if query.is_empty() { "?" } else { "&" },
                percent(key),
                percent(&bindings.fill(&text))
            );
        }
    }
    let body = match &request["body"] {
        Value::Null => Body::empty(),
        Value::String(text) if !case.ends_with("patch-too-many-ops") => Body::from(bindings.fill(&times(text))),
        Value::Object(map) if map.len() == 1 && map.contains_key("base64") => {
            let text = map["base64"].as_str().unwrap_or_default();
            Body::from(base64::engine::general_purpose::STANDARD.decode(text).expect("base64"))
        }
        _ if case.ends_with("patch-too-many-ops") && request["method"] == "PATCH" => {
            let operation = json!({"op": "test", "path": "/data/a", "value": "1"});
            Body::from(Value::from(vec![operation; 10_001]).to_string())
        }
        value => Body::from(bindings.fill_value(value).to_string()),
    };
    let mut builder =
        Request::builder().method(request["method"].as_str().unwrap_or("GET")).uri(format!("{path}{query}"));
    let headers = request["headers"].as_object();
    let has = |name: &str| headers.into_iter().flatten().any(|(k, _)| k.eq_ignore_ascii_case(name));
    if !has("accept") {
        builder = builder.header("accept", "application/json");
    }
    if !has("user-agent") {
        builder = builder.header("user-agent", "rec/1.0");
    }
    for (name, value) in headers.into_iter().flatten() {
        for value in value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]) {
            builder = builder.header(name, value.as_str().unwrap_or_default());
        }
    }
    builder.body(body).unwrap_or_else(|e| panic!("{case}: {e}"))
}

async fn exchange(
    server: &TestServer,
    case: &str,
    step: &Value,
    bindings: &mut Bindings,
    out: &mut Vec<String>,
    compare: bool,
) {
    let request = &step["request"];
    let admin = User::master("kubernetes-admin");
    let user = (request["credentials"] != "none").then_some(&admin);
    let at =
        format!("{} {}", request["method"].as_str().unwrap_or_default(), request["path"].as_str().unwrap_or_default());
    bind_version(server, request, bindings).await;
    let response = server.call(user, build(case, request, bindings)).await;
    let expected = &step["response"];
    let (code, kind, warnings) = head(&response);
    let bytes = response.into_body().collect().await.expect("a whole body").to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut actual: Value = serde_json::from_slice(&bytes).unwrap_or_else(|_| text.into());
    let mut wanted = expected["body"].clone();
    if kind.starts_with("application/yaml") {
        let parse = |value: &Value| serde_saphyr::from_str(value.as_str().unwrap_or_default()).unwrap_or(Value::Null);
        (wanted, actual) = (parse(&wanted), parse(&actual));
    }
    if wanted.is_null() && actual == "" {
        actual = Value::Null;
    }
    normalise(&mut wanted, &Value::Null);
    normalise(&mut actual, &wanted);
    bindings.note_time(&actual);
    let mut differences = Vec::new();
    if expected["code"].as_u64() != Some(u64::from(code)) {
        differences.push(format!(
            "code: expected {} but got {code}: {}",
            expected["code"],
            actual.to_string().chars().take(400).collect::<String>()
        ));
    }
    bindings.diff("", &wanted, &actual, &mut differences);
    if let Some(wanted) = expected["headers"]["Content-Type"].as_str()
        && wanted != kind
    {
        differences.push(format!("Content-Type: expected {wanted} but got {kind}"));
    }
    if compare {
        let wanted: Vec<String> = match &expected["headers"]["Warning"] {
            Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Value::String(one) => vec![one.clone()],
            _ => Vec::new(),
        };
        if wanted != warnings {
            differences.push(format!("Warning: expected {wanted:?} but got {warnings:?}"));
        }
        out.extend(differences.into_iter().map(|d| format!("{at}\n    {d}")));
    }
}

/// A request may begin at a version that only a list before the recording showed.
async fn bind_version(server: &TestServer, request: &Value, bindings: &mut Bindings) {
    let text = request["query"]["resourceVersion"].as_str().unwrap_or_default();
    if !text.starts_with("<rv:") || bindings.values.contains_key(text) {
        return;
    }
    let list = Request::builder().uri("/api/v1/namespaces?limit=1").body(Body::empty()).expect("a request");
    let response = server.call(Some(&User::master("kubernetes-admin")), list).await;
    let bytes = response.into_body().collect().await.expect("a whole body").to_bytes();
    let list: Value = serde_json::from_slice(&bytes).expect("a list");
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    bindings.values.insert(text.to_owned(), version.to_owned());
}

fn head(response: &Response<Body>) -> (u16, String, Vec<String>) {
    let header =
        |name: &str| response.headers().get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned);
    (response.status().as_u16(), header("content-type").next().unwrap_or_default(), header("warning").collect())
}

async fn prepare(server: &TestServer, namespace: &str) {
    let admin = User::master("kubernetes-admin");
    let post = |path: String, object: Value| {
        Request::builder()
            .method("POST")
            .uri(path)
            .header("content-type", "application/json")
            .body(Body::from(object.to_string()))
            .expect("a request")
    };
    server.call(Some(&admin), post("/api/v1/namespaces".into(), json!({"metadata": {"name": namespace}}))).await;
    let account = json!({"metadata": {"name": "default"}});
    server.call(Some(&admin), post(format!("/api/v1/namespaces/{namespace}/serviceaccounts"), account)).await;
    let authority = json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "x"}});
    server.call(Some(&admin), post(format!("/api/v1/namespaces/{namespace}/configmaps"), authority)).await;
}

/// The CustomResourceDefinition that was there when everything was recorded.
async fn install_widgets(server: &TestServer) {
    let Some(root) = testing::recordings() else { return };
    let definition = std::fs::read(root.join("widgets-crd.json")).expect("readable");
    let post = Request::builder()
        .method("POST")
        .uri("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")
        .header("content-type", "application/json")
        .header("user-agent", "rec/1.0")
        .body(Body::from(definition))
        .expect("a request");
    let mut kinds = server.server.served_kinds();
    let response = server.call(Some(&User::master("admin")), post).await;
    assert_eq!(response.status(), 201, "{:?}", response.into_body().collect().await);
    let served = kinds.wait_for(|kinds| kinds.iter().any(|kind| kind.gvr.resource == "widgets"));
    served.await.expect("the server runs");
}

/// A watch that runs beside the steps.
struct Running {
    name: String,
    expected: Value,
    body: axum::body::BodyDataStream,
    code: u16,
}

async fn replay(server: &TestServer, case: &Value) -> Vec<String> {
    let name = case["case"].as_str().unwrap_or_default();
    let mut out = Vec::new();
    let mut bindings = Bindings::default();
    if let Some(namespace) = case["namespace"].as_str().filter(|n| !n.is_empty()) {
        prepare(server, namespace).await;
    }
    let note = case["v1.35"].as_str().unwrap_or("assumed same");
    let compare = note == "same"
        || note == "assumed same"
        || note.starts_with("same;")
        || std::env::var_os("MINI_RECORDINGS_ALL").is_some();
    for step in case["setup"].as_array().into_iter().flatten() {
        exchange(server, name, step, &mut bindings, &mut out, compare).await;
    }
    let steps: Vec<Value> = match case["steps"].as_array() {
        // Steps without a request are kubectl commands, which are not replayed here.
        Some(steps) => steps.iter().filter(|s| s["request"].is_object()).cloned().collect(),
        None if case["request"].is_object() => vec![json!({"request": case["request"], "response": case["response"]})],
        None => Vec::new(),
    };
    let mut running = Vec::new();
    for done in 0..=steps.len() {
        for (watch_name, watch) in case["watches"].as_object().into_iter().flatten() {
            if watch["opened_after_steps"].as_u64() == Some(done as u64) {
                bind_version(server, &watch["request"], &mut bindings).await;
                let response = server
                    .call(Some(&User::master("kubernetes-admin")), build(name, &watch["request"], &bindings))
                    .await;
                let code = response.status().as_u16();
                running.push(Running {
                    name: watch_name.clone(),
                    expected: watch.clone(),
                    body: response.into_body().into_data_stream(),
                    code,
                });
            }
        }
        if let Some(step) = steps.get(done) {
            exchange(server, name, step, &mut bindings, &mut out, compare).await;
        }
    }
    for watch in running {
        let mut differences = Vec::new();
        follow(watch, &mut bindings, &mut differences).await;
        if compare {
            out.extend(differences);
        }
    }
    if case["after"].is_object() && steps.len() == 1 && compare {
        let path = steps[0]["request"]["path"].as_str().unwrap_or_default();
        let path = path.strip_suffix("/status").or_else(|| path.strip_suffix("/scale")).unwrap_or(path);
        if case["after"].get("request").is_none() {
            let step =
                json!({"request": {"method": "GET", "path": path}, "response": {"code": 200, "body": case["after"]}});
            exchange(server, name, &step, &mut bindings, &mut out, compare).await;
        }
    }
    if compare {
        bindings.check_versions(&mut out);
    }
    out
}

/// Reads as many events as were recorded, and compares them.
async fn follow(mut watch: Running, bindings: &mut Bindings, out: &mut Vec<String>) {
    let at = format!("watch {}", watch.name);
    let code = watch.expected["response"]["code"].as_u64().unwrap_or(200);
    if u64::from(watch.code) != code {
        out.push(format!("{at}: code: expected {code} but got {}", watch.code));
        return;
    }
    let wanted = watch.expected["events"].as_array().cloned().unwrap_or_default();
    let mut buffer = Vec::new();
    let mut got: Vec<Value> = Vec::new();
    while got.len() < wanted.len() {
        // Only a server that sends too little runs into this: what is there is compared then.
        match tokio::time::timeout(Duration::from_secs(6), watch.body.next()).await {
            Ok(Some(Ok(bytes))) => buffer.extend_from_slice(&bytes),
            _ => break,
        }
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            got.push(serde_json::from_slice(&line).unwrap_or(Value::Null));
        }
    }
    if got.len() < wanted.len() {
        out.push(format!("{at}: expected {} events but got {}", wanted.len(), got.len()));
    }
    for (i, (wanted, got)) in wanted.iter().zip(&mut got).enumerate() {
        let mut wanted = wanted.clone();
        normalise(&mut wanted, &Value::Null);
        normalise(got, &wanted);
        let mut differences = Vec::new();
        bindings.diff("", &wanted, got, &mut differences);
        out.extend(differences.into_iter().map(|d| format!("{at} event {i}\n    {d}")));
    }
}

fn paths(case: &Value) -> Vec<String> {
    let mut all: Vec<&Value> = vec![&case["request"]];
    for list in ["setup", "steps"] {
        all.extend(case[list].as_array().into_iter().flatten().map(|s| &s["request"]));
    }
    all.extend(case["watches"].as_object().into_iter().flatten().map(|(_, w)| &w["request"]));
    all.into_iter().filter_map(|r| r["path"].as_str()).map(str::to_owned).collect()
}

/// The first differences of a case; one that answers otherwise differs in everything else as well.
fn summary(differences: &[String]) -> String {
    let code = differences.iter().position(|d| d.contains("\n    code: "));
    let shown = code.map_or_else(|| &differences[..differences.len().min(4)], |i| &differences[i..=i]);
    shown.join("\n  ")
}

async fn replay_folder(folder: &str) {
    let only = std::env::var("MINI_RECORDINGS_ONLY").unwrap_or_default();
    let server = Arc::new(testing::start(testing::store(&Env::real()).await, Env::real()).await);
    // Among the defaults there is a case that does this.
    if folder != "defaults" {
        install_widgets(&server).await;
    }
    let (mut passed, mut skipped, mut failed) = (0, Vec::new(), Vec::new());
    for (name, mut text) in testing::recorded(folder) {
        if folder != "discovery" {
            // Served as v1 and v2 since.
            for (old, new) in [
                ("policy/v1beta1", "policy/v1"),
                ("batch/v1beta1", "batch/v1"),
                ("autoscaling/v2beta2", "autoscaling/v2"),
            ] {
                text = text.replace(old, new);
            }
        }
        let case: Value = serde_json::from_str(&text).expect("JSON");
        let name = format!("{folder}/{name}");
        if !only.is_empty() && !name.contains(&only) {
            continue;
        }
        if let Some((_, why)) = SKIP.iter().find(|(n, _)| *n == name) {
            skipped.push(format!("{name}: {why}"));
            continue;
        }
        if let Some(path) = paths(&case).iter().find(|p| !server.serves(p)) {
            skipped.push(format!("{name}: not served yet: {path}"));
            continue;
        }
        let differences = replay(&server, &case).await;
        if differences.is_empty() {
            passed += 1;
        } else {
            failed.push(format!(
                "== {name} ({})\n  {}",
                case["v1.35"].as_str().unwrap_or_default(),
                summary(&differences)
            ));
        }
    }
    println!("{folder}: {passed} passed, {} skipped, {} failed", skipped.len(), failed.len());
    if std::env::var_os("MINI_RECORDINGS_SKIPPED").is_some() {
        println!("{}", skipped.join("\n"));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn discovery() {
    replay_folder("discovery").await;
}

#[tokio::test]
async fn errors() {
    replay_folder("errors").await;
}

#[tokio::test]
async fn lists() {
    replay_folder("list").await;
}

#[tokio::test]
async fn watches() {
    replay_folder("watch").await;
}

#[tokio::test]
async fn patches() {
    replay_folder("patches").await;
}

#[tokio::test]
async fn tables() {
    replay_folder("tables").await;
}

#[tokio::test]
async fn defaults() {
    replay_folder("defaults").await;
}
