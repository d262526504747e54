//! Real clients in other languages against a real cluster: the programs of `tests/clients`.

use crate::images::busybox;
use crate::world::World;

/// A pod to look into: it says that it has started, and obeys SIGTERM.
const SHELL: &str = "
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  containers:
  - name: shell
    image: shell:1
    imagePullPolicy: Never
    command: [sh, -c, 'trap \"exit 0\" TERM; echo started; while :; do sleep 3600 & wait $!; done']
";

/// Runs a client out of the directory in which `tests/run` has installed them.
fn run(command: impl Fn(&str) -> String) {
    let installed = std::env::var("MINI_TEST_CLIENTS").expect("tests/run sets MINI_TEST_CLIENTS");
    let w = World::new();
    w.ok("mini start");
    std::fs::write(w.home().join("shell.tar"), busybox("shell:1", Vec::new(), &["/bin/sh"], &[])).expect("written");
    w.ok("mini image load shell.tar");
    std::fs::write(w.home().join("shell.yaml"), SHELL).expect("written");
    w.ok("kubectl apply -f shell.yaml");
    w.ok("kubectl wait --for=condition=Ready pod/shell --timeout=60s");
    let said = w.ok(&format!("KUBECONFIG=$HOME/.kube/config timeout 120 {}", command(&installed)));
    assert!(said.trim_end().ends_with("ok"), "{said}");
}

fn python(program: &str) {
    run(|clients| format!("{clients}/python/bin/python {clients}/{program}"));
}

#[test]
fn the_python_client() {
    python("kubernetes_client.py");
}

#[test]
fn lightkube() {
    python("lightkube_client.py");
}

#[test]
fn kr8s() {
    python("kr8s_client.py");
}

#[test]
fn the_javascript_client() {
    run(|clients| format!("{clients}/node {clients}/client_node.mjs"));
}

#[test]
fn kube_rs() {
    run(|clients| format!("{clients}/kube-rs-client"));
}
