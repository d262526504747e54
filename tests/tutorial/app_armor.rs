//! Chapter 4.1, "Restrict a container's access to resources with AppArmor", as far as the machine's kernel goes: without AppArmor,
//! pods that ask for a profile are refused with the page's status. Enforcement is tested against a faked kernel interface elsewhere.

use crate::images::shelf;
use crate::world::{World, like};

#[test]
fn chapter_4_1() {
    let w = World::new();
    let registry = shelf::registry(&w);
    w.ok(&format!("mini start --image-mirror http://{}", registry.address));
    let enabled = w.run("cat /sys/module/apparmor/parameters/enabled").out == "Y\n";

    let versions = "kubectl get nodes -o=jsonpath=$'{range .items[*]}{@.metadata.name}: {@.status.nodeInfo.kubeletVersion}\\n{end}'";
    like(&w.ok(versions), "mini: v1.35.*");
    let ready = "kubectl get nodes -o=jsonpath=$'{range .items[*]}{@.metadata.name}: {.status.conditions[?(@.reason==\"KubeletReady\")].message}\\n{end}'";
    like(&w.ok(ready), "mini: kubelet is posting ready status*");

    w.write(
        "hello-apparmor.yaml",
        "apiVersion: v1
kind: Pod
metadata:
  name: hello-apparmor
  annotations:
    container.apparmor.security.beta.kubernetes.io/hello: localhost/k8s-apparmor-example-deny-write
spec:
  containers:
  - name: hello
    image: busybox:1.28
    command: [ \"sh\", \"-c\", \"echo 'Hello AppArmor!' && sleep 1h\" ]
",
    );
    like(&w.ok("kubectl create -f ./hello-apparmor.yaml"), "pod/hello-apparmor created");
    let said = w.ok("kubectl create -f /dev/stdin <<EOF
apiVersion: v1
kind: Pod
metadata:
  name: hello-apparmor-2
  annotations:
    container.apparmor.security.beta.kubernetes.io/hello: localhost/k8s-apparmor-example-allow-write
spec:
  containers:
  - name: hello
    image: busybox:1.28
    command: [ \"sh\", \"-c\", \"echo 'Hello AppArmor!' && sleep 1h\" ]
EOF
");
    like(&said, "pod/hello-apparmor-2 created");
    let why = if enabled {
        "Cannot enforce AppArmor: profile \"k8s-apparmor-example-allow-write\" is not loaded"
    } else {
        "Cannot enforce AppArmor: AppArmor is not enabled on the host"
    };
    w.until("kubectl get events -w", "kubectl get events", why);
    let described = w.ok("kubectl describe pod hello-apparmor-2");
    let lines: Vec<String> =
        described.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "Name: hello-apparmor-2",
        "Namespace: default",
        "Annotations: container.apparmor.security.beta.kubernetes.io/hello: localhost/k8s-apparmor-example-allow-write",
        "Status: Pending",
        "Reason: AppArmor",
        &format!("Message: Pod {why}"),
        "State: Waiting",
        "Reason: Blocked",
        "Ready: False",
        "Restart Count: 0",
        "PodScheduled True",
        "QoS Class: BestEffort",
    ] {
        assert!(lines.iter().any(|l| l == line), "no {line:?} in\n{described}");
    }
    let event = lines.iter().find(|line| line.starts_with("Warning AppArmor ")).expect("an event");
    assert!(event.ends_with(why), "{event}");

    // Switched off.
    w.ok("mini delete");
    w.ok("mini start --feature-gates=AppArmor=false");
    let said = w.fails("kubectl create -f ./hello-apparmor.yaml");
    assert!(said.err.contains("Forbidden"), "{}", said.err);
}
