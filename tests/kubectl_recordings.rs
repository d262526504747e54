//! Replays what a person at kubectl saw of real Kubernetes, against the API server with its controllers. Without recordings
//! (`testing::recordings` looks for them), or without the kubectl that they were made with (1.32), there is nothing to do.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use mini::api::kinds::gvr::CUSTOM_RESOURCE_DEFINITIONS;
use mini::apiserver::testing::{self, TestServer};
use mini::client::Api;
use mini::client::https::{Access, HttpsApi};
use mini::env::Env;
use mini::storage::{Limits, memory};
use mini::{controllers, scheduler};
use serde_json::Value;

/// Cases that are not replayed, and why; `case#step` is a single command.
const SKIP: &[(&str, &str)] = &[
    ("api-resources", "it lists what 1.20 served"),
    ("api-versions", "it lists what 1.20 served"),
    ("cordon-drain", "needs nodes"),
    ("daemonset", "needs nodes"),
    ("statefulset", "needs nodes"),
    ("cronjob", "1.20 served batch/v1beta1"),
    ("cluster-info", "it shows the Services of an addon"),
    ("pod-describe-rich", "needs nodes"),
    ("pod-pending-describe", "the scheduler's words are others since"),
    ("rollout-objects", "needs nodes"),
    ("run-and-get", "needs nodes"),
    ("describe-storage", "columns were added since"),
    ("apply-deployment#4", "1.35 prints values as JSON"),
    ("apply-deployment#5", "kubectl has the server validate since 1.25"),
    ("auth-can-i#4", "selfsubjectreviews are newer"),
    ("auth-can-i#10", "selfsubjectreviews are newer"),
    ("create-others#4", "kubectl reads discovery.k8s.io/v1, which 1.20 had not"),
    ("create-others#6", "policy/v1 is newer"),
    ("create-quota-limits#1", "the columns are in another order since"),
    ("create-quota-limits#6", "the label kubernetes.io/metadata.name is newer"),
    ("create-rbac#10", "accounts have no token Secrets since 1.24"),
    ("delete-orphan#2", "needs nodes"),
    ("describe-config#2", "the annotation kubernetes.io/description is newer"),
    ("describe-misc#5", "policy/v1 is newer"),
    ("describe-network#1", "internalTrafficPolicy is newer; kubectl reads discovery.k8s.io/v1, which 1.20 had not"),
    ("describe-network#2", "kubectl reads discovery.k8s.io/v1, which 1.20 had not"),
    ("diff#0", "a creationTimestamp that is null is not written any more"),
    ("edit-and-others#4", "the context has another name"),
    ("edit-and-others#5", "how kubectl begins this error differs from build to build"),
    ("expose#7", "internalTrafficPolicy is newer"),
    ("expose#8", "as describe-network#1"),
    ("expose#9", "as describe-network#1"),
    ("run-dry-run#1", "a pod's metadata.generation is newer"),
    ("scale#4", "needs nodes"),
    ("scale#5", "needs nodes"),
    ("sort-and-chunks#3", "the order of fields in JSON says nothing"),
];

fn main_skip(name: &str) -> Option<&'static str> {
    SKIP.iter().find(|(known, _)| *known == name).map(|(_, why)| *why)
}

/// Whether `actual` is what `expected` says; placeholders stand for anything, the same ones for the same.
fn matches<'a>(expected: &'a str, actual: &'a str, bound: &mut BTreeMap<String, String>) -> bool {
    let Some((before, placeholder, after)) = next_placeholder(expected) else { return expected == actual };
    let Some(rest) = actual.strip_prefix(before) else { return false };
    if let Some(value) = bound.get(placeholder).filter(|_| placeholder.contains(':')).cloned() {
        return rest.strip_prefix(value.as_str()).is_some_and(|rest| matches(after, rest, bound));
    }
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]).skip(1);
    for end in ends {
        if rest[..end].contains(['\n']) && placeholder != "<pem>" {
            break;
        }
        let mut attempt = bound.clone();
        attempt.insert(placeholder.to_owned(), rest[..end].to_owned());
        if matches(after, &rest[end..], &mut attempt) {
            *bound = attempt;
            return true;
        }
    }
    false
}

/// What comes before the first placeholder, the placeholder, and what comes after it.
fn next_placeholder(text: &str) -> Option<(&str, &str, &str)> {
    const LITERAL: [&str; 9] =
        ["<none>", "<unset>", "<pending>", "<nil>", "<unknown>", "<default>", "<resource>", "<value>", "<name>"];
    let mut from = 0;
    while let Some(start) = text[from..].find('<').map(|at| at + from) {
        let end = text[start..].find('>').map(|at| start + at + 1)?;
        let inner = &text[start + 1..end - 1];
        let named = !inner.is_empty() && inner.chars().all(|c| c.is_ascii_alphanumeric() || "-:".contains(c));
        if named && !LITERAL.contains(&&text[start..end]) {
            return Some((&text[..start], &text[start..end], &text[end..]));
        }
        from = start + 1;
    }
    None
}

/// Blanks are not compared, nor lines that tell of waiting.
fn lines(text: &str) -> Vec<String> {
    let told = |line: &&str| !line.starts_with("Waiting for") && !line.contains(" over ");
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    // Some builds of kubectl begin their own errors with a capital.
    let text = text.replace("Error: ", "error: ");
    text.lines().filter(told).map(squeezed).filter(|line| !line.is_empty()).collect()
}

struct World {
    _server: TestServer,
    kubeconfig: String,
    _controllers: controllers::Handle,
    _scheduler: scheduler::Handle,
}

async fn start() -> World {
    let env = Env::real();
    let server = testing::start(memory(Limits::default()), env.clone()).await;
    let access = Access {
        server: format!("https://{}", server.address),
        ca_pem: server.ca_pem.clone().into_bytes(),
        cert_pem: server.client_cert_pem.clone().into_bytes(),
        key_pem: server.client_key_pem.clone().into_bytes(),
        token: String::new(),
    };
    let api: Arc<dyn Api> = Arc::new(HttpsApi::new(&access, "test", true).expect("a client"));
    let options = controllers::Options {
        root_ca: "the authority".into(),
        kinds: server.server.served_kinds(),
        local_node: "node-1".into(),
        networking: mini::config::Config::new("mini").networking(),
        authority: Default::default(),
    };
    let controllers = controllers::start(|_| api.clone(), env.clone(), options);
    let scheduler = scheduler::start(api.clone(), env);
    if let Some(root) = testing::recordings() {
        // It was there when everything was recorded.
        let widgets = std::fs::read(root.join("widgets-crd.json")).expect("readable");
        let widgets = serde_json::from_slice(&widgets).expect("JSON");
        api.create(&CUSTOM_RESOURCE_DEFINITIONS, "", "", "", widgets).await.expect("a definition");
    }
    World { kubeconfig: server.kubeconfig(), _server: server, _controllers: controllers, _scheduler: scheduler }
}

fn run(folder: &Path, command: &str, input: &str) -> (i32, String, String) {
    use std::io::Write as _;
    let mut child = Command::new("bash")
        .args(["-c", command])
        .current_dir(folder)
        .env("KUBECONFIG", folder.join(".kubeconfig"))
        .env("HOME", folder)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("bash runs");
    // A command that reads nothing has closed its input.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn replay(world: &World, name: &str, case: &Value) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let namespace = case["namespace"].as_str().map_or_else(|| format!("ku-{name}"), str::to_owned);
    let context = format!("    cluster: t\n    user: t\n    namespace: {namespace}");
    let kubeconfig = world.kubeconfig.replace("    cluster: t\n    user: t", &context);
    std::fs::write(folder.path().join(".kubeconfig"), kubeconfig).expect("it can be written");
    let wait = "kubectl wait --for=create serviceaccount/default configmap/kube-root-ca.crt --timeout=30s";
    run(folder.path(), &format!("kubectl create ns {namespace} && {wait}"), "");
    let (mut failures, mut bound) = (Vec::new(), BTreeMap::new());
    for step in case["setup"].as_array().into_iter().flatten() {
        for (file, text) in step["files"].as_object().into_iter().flatten() {
            std::fs::write(folder.path().join(file), text.as_str().unwrap_or_default()).expect("it can be written");
        }
        run(folder.path(), step["command"].as_str().unwrap_or_default(), step["stdin"].as_str().unwrap_or_default());
    }
    for (index, step) in case["steps"].as_array().into_iter().flatten().enumerate() {
        for (file, text) in step["files"].as_object().into_iter().flatten() {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().expect("it is in the folder")).expect("it can be made");
            std::fs::write(path, text.as_str().unwrap_or_default()).expect("it can be written");
        }
        let Some(command) = step["command"].as_str() else { continue };
        let (code, stdout, stderr) = run(folder.path(), command, step["stdin"].as_str().unwrap_or_default());
        if main_skip(&format!("{name}#{index}")).is_some() {
            continue;
        }
        let mut differences = Vec::new();
        if step["code"].as_i64() != Some(code.into()) {
            differences.push(format!("code: want {} have {code}", step["code"]));
        }
        for (stream, have) in [("stdout", &stdout), ("stderr", &stderr)] {
            let want = step[stream].as_str().unwrap_or_default();
            let (want, have) = (lines(want), lines(have));
            let equal =
                want.len() == have.len() && want.iter().zip(&have).all(|(want, have)| matches(want, have, &mut bound));
            if !equal {
                differences.push(format!(
                    "{stream}: want\n      {}\n    have\n      {}",
                    want.join("\n      "),
                    have.join("\n      ")
                ));
            }
        }
        if !differences.is_empty() {
            failures.push(format!("{name}#{index} $ {command}\n    {}", differences.join("\n    ")));
        }
    }
    failures
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_what_it_shows_of_kubernetes() {
    // What others print differs in words.
    let version = Command::new("kubectl").args(["version", "--client"]).output();
    if !version.is_ok_and(|version| String::from_utf8_lossy(&version.stdout).contains("v1.32.")) {
        return;
    }
    let only = std::env::var("MINI_RECORDINGS_ONLY").unwrap_or_default();
    let world = Arc::new(start().await);
    let mut failures = Vec::new();
    for (name, text) in testing::recorded("kubectl") {
        let case: Value = serde_json::from_str(&text).expect("JSON");
        if main_skip(&name).is_some() || (!only.is_empty() && !name.contains(&only)) {
            continue;
        }
        let world = Arc::clone(&world);
        let replayed = tokio::task::spawn_blocking(move || replay(&world, &name, &case)).await;
        failures.extend(replayed.expect("no panic"));
    }
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
}
