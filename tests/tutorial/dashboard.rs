//! The dashboard in a real headless Chromium: what its pages show, and that they change by themselves.

use crate::world::World;

/// Flags that keep Chromium from looking for its maker's servers.
const CHROMIUM: &str = "timeout 60 chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
    --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,900";

#[test]
fn pages_show_the_cluster_and_follow_it() {
    let w = World::new();
    w.ok("mini start");
    w.ok("kubectl create deployment echo --image=mini.local/echo:1.4 --replicas=2");
    w.ok("kubectl expose deployment echo --type=NodePort --port=8080");
    w.ok("kubectl rollout status deployment/echo --timeout=60s");
    let url = w.ok("mini dashboard --url");
    let dom = w.ok(&format!("{CHROMIUM} --user-data-dir=$PWD/browser-1 --dump-dom '{}' 2>/dev/null", url.trim()));
    for text in ["Overview", "Deployments", "Pods", "Services", "echo", "2/2", "Running", "All namespaces"] {
        assert!(dom.contains(text), "the page lacks {text:?}:\n{dom}");
    }
    // A session of curl's for the other pages.
    let url = w.ok("mini dashboard --url");
    w.ok(&format!("curl -sfL -c cookies -b cookies -o /dev/null '{}'", url.trim()));
    let base = url.split("/login").next().expect("a login link").to_owned();
    let pod = w.ok("kubectl get pods -o jsonpath='{.items[0].metadata.name}'");
    let get = |path: &str| w.ok(&format!("curl -sf --max-time 10 -b cookies '{base}{path}'"));
    assert!(get(&format!("/pods/default/{pod}")).contains("containerID"));
    assert!(get(&format!("/pods/default/{pod}/log")).contains("Log of"));
    assert!(get("/events").contains("SuccessfulCreate"));
    assert!(get("/nodes").contains("Ready"));
    assert!(get("/namespaces").contains("kube-system"));
    assert!(!get("/secrets").contains("no such page"));
    // Nobody without a session, and nobody from another site's name.
    assert_eq!(w.run(&format!("curl -s -o /dev/null -w '%{{http_code}}' {base}/pods")).out, "401");
    assert_eq!(
        w.run(&format!("curl -s -o /dev/null -w '%{{http_code}}' -H 'Host: evil.example' -b cookies {base}/pods")).out,
        "403"
    );
    // Live: the stream says that something changed.
    let stream = w
        .command(&format!(
            "curl -sN --max-time 20 -b cookies '{base}/stream/configmaps?namespace=default' | grep -m1 changed"
        ))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("bash runs");
    w.ok("for i in 1 2 3; do kubectl create configmap live-$i; done");
    let said = stream.wait_with_output().expect("curl ends");
    assert!(String::from_utf8_lossy(&said.stdout).contains("data: changed"));
    w.ok("mini addons disable dashboard");
    w.fails(&format!("curl -s --max-time 5 {base}/"));
}
