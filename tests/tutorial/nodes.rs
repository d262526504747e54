//! Clusters of several nodes: they share the work, reach each other, and fall ill and get well again.

use std::process::{Child, Stdio};

use crate::lifecycle::remains;
use crate::world::{World, like};

/// A shell in an image, on every node.
pub fn load_shell(w: &World) {
    let archive = crate::images::busybox("shell:1", Vec::new(), &["/bin/sh"], &[]);
    std::fs::write(w.home().join("shell.tar"), archive).expect("written");
    w.ok("mini image load shell.tar");
}

fn apply(w: &World, manifest: &str) {
    std::fs::write(w.home().join("manifest.yaml"), manifest).expect("written");
    w.ok("kubectl apply -f manifest.yaml");
}

/// A pod on each node that says the node's name on port 8080.
const EVERYWHERE: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: shell:1
        imagePullPolicy: Never
        command: [sh, -c, "mkdir /www && echo serving from $NODE | tee /www/index.html && exec httpd -f -p 8080 -h /www"]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        readinessProbe: {httpGet: {port: 8080}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: echo}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec:
  nodeName: mini-m02
  containers: [{name: echo, image: "mini.local/echo:1.4"}]
"#;

/// Name, node and address of the pods with a label.
fn pods(w: &World, label: &str) -> Vec<[String; 3]> {
    let template = "{range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIP}{\"\\n\"}{end}";
    let lines = w.ok(&format!("kubectl get pods -l app={label} --sort-by=.spec.nodeName -o jsonpath='{template}'"));
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().expect("three words");
    lines.lines().map(words).collect()
}

/// What an HTTP server says to a pod. The command waits before it ends its side: not every server likes a half-closed peer.
fn fetch(address: &str, port: u16) -> String {
    format!("(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 0.3) | nc {address} {port}")
}

const NODES: [&str; 4] = ["mini", "mini-m02", "mini-m03", "mini-m04"];

#[test]
fn four_nodes_are_one_cluster() {
    let w = World::new();
    w.ok("mini start --nodes 4");
    let table = w.table("kubectl get nodes");
    let named: Vec<&str> = table.iter().map(|row| &*row["NAME"]).collect();
    assert_eq!(named, NODES);
    assert!(table.iter().all(|row| row["STATUS"] == "Ready"), "start waits for all");
    let roles: Vec<&str> = table.iter().map(|row| &*row["ROLES"]).collect();
    assert_eq!(roles, ["control-plane", "<none>", "<none>", "<none>"]);
    let rows: String = NODES.iter().zip(2..).map(|(node, n)| format!("{node}\t192.168.49.{n}\n")).collect();
    assert_eq!(w.ok("mini node list"), rows, "whichever of them came up first");
    let ranges = "kubectl get nodes -o jsonpath='{.items[*].spec.podCIDR}'";
    assert_eq!(w.ok(ranges), (0..4).map(|n| format!("10.244.{n}.0/24")).collect::<Vec<_>>().join(" "));
    load_shell(&w);
    apply(&w, EVERYWHERE);
    w.ok("kubectl rollout status daemonset/web --timeout=120s");
    w.ok("kubectl wait --for=condition=Ready pod/echo --timeout=60s");
    let web = pods(&w, "web");
    assert_eq!(web.iter().map(|[_, node, _]| &**node).collect::<Vec<_>>(), NODES);
    let addresses: Vec<&str> = web.iter().map(|[_, _, ip]| &**ip).collect();
    pods_reach_everything(&w, &web, &addresses);
    users_reach_everything(&w, &web);
    identities_are_narrow(&w);
    stops_and_starts(&w, &web);
    w.ok("mini delete");
    assert_eq!(remains(&w), "", "delete leaves no process and no mount");
    assert!(!w.profile("mini").exists(), "delete leaves no file");
}

/// From a pod on each node: every other pod, Services by name, pods behind a Service see who asks.
fn pods_reach_everything(w: &World, web: &[[String; 3]], addresses: &[&str]) {
    let echo = w.ok("kubectl get pod echo -o jsonpath='{.status.podIP}'");
    for [pod, _, own] in web {
        let asked: Vec<String> = addresses.iter().map(|ip| fetch(ip, 8080)).collect();
        let said = w.ok(&format!("kubectl exec {pod} -- sh -c \"{}\"", asked.join("; ")));
        let served: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("serving from ")).collect();
        assert_eq!(served, NODES, "{pod} reaches the pods of all nodes");
        let said = w.ok(&format!("kubectl exec {pod} -- sh -c \"{}; {}\"", fetch(&echo, 8080), fetch("local", 8080)));
        let seen = format!("client_address={own}");
        assert_eq!(
            said.lines().filter(|line| **line == seen).count(),
            2,
            "{pod} is seen under its own address: {said}"
        );
        let said = w.ok(&format!("kubectl exec {pod} -- nslookup web.default.svc.cluster.local"));
        assert!(said.contains("10.96.") || said.contains("10."), "{said}");
    }
}

/// From the host: logs, exec, port-forward, proxy of pods of every node, NodePorts at every node, kubectl top.
fn users_reach_everything(w: &World, web: &[[String; 3]]) {
    w.ok("mini addons enable metrics-server");
    let port = w.ok("kubectl get service web -o jsonpath='{.spec.ports[0].nodePort}'");
    let local = w.ok("kubectl get service local -o jsonpath='{.spec.ports[0].nodePort}'");
    for [pod, node, _] in web {
        assert_eq!(w.ok(&format!("kubectl logs {pod}")), format!("serving from {node}\n"));
        assert_eq!(w.ok(&format!("kubectl exec {pod} -- sh -c 'echo $NODE'")), format!("{node}\n"));
        let proxied = w.ok(&format!("kubectl get --raw /api/v1/namespaces/default/pods/{pod}:8080/proxy/"));
        assert_eq!(proxied, format!("serving from {node}\n"));
        assert_eq!(forwarded(w, pod), format!("serving from {node}\n"));
        assert!(w.ok(&format!("curl -sS --max-time 10 $(mini ip -n {node}):{port}")).starts_with("serving from mini"));
        let local = w.run(&format!("curl -sS --max-time 3 $(mini ip -n {node}):{local}"));
        assert_eq!(local.code == 0, node == "mini-m02", "a local Service answers where its pods are: {}", local.err);
    }
    let named = |table: &str| w.table(table).iter().map(|row| row["NAME"].clone()).collect::<Vec<_>>();
    assert_eq!(named("kubectl top nodes"), NODES);
    let mut expected: Vec<&str> = web.iter().map(|[pod, _, _]| &**pod).chain(["echo"]).collect();
    expected.sort_unstable();
    assert_eq!(named("kubectl top pods"), expected);
}

/// What `kubectl port-forward` to a pod's port 8080 gives.
fn forwarded(w: &World, pod: &str) -> String {
    use std::io::BufRead as _;
    struct Ended(Child);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }
    let mut command = w.command(&format!("exec kubectl port-forward pod/{pod} :8080"));
    let mut kubectl = Ended(command.stdout(Stdio::piped()).spawn().expect("bash runs"));
    let mut line = String::new();
    // Kept open: what kubectl says afterwards would end it.
    let mut output = std::io::BufReader::new(kubectl.0.stdout.take().expect("it is piped"));
    output.read_line(&mut line).expect("a line");
    let port: u16 = line.split([':', ' ']).find_map(|word| word.parse().ok()).expect("a port is named");
    w.ok(&format!("curl -sS --max-time 10 127.0.0.1:{port}"))
}

/// A node may do what its own pods need, and nothing to other nodes.
fn identities_are_narrow(w: &World) {
    w.ok("kubectl create secret generic hidden --from-literal=a=b");
    let pki = w.profile("mini").join("nodes/m02/pki");
    let server = w.ok("kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}'");
    let as_node = format!(
        "curl -sS --max-time 10 --cacert {pki}/ca.crt --cert {pki}/kubelet-client.crt --key {pki}/kubelet-client.key {server}",
        pki = pki.display()
    );
    for path in
        ["/api/v1/namespaces/default/secrets/hidden", "/api/v1/secrets", "/api/v1/namespaces/kube-system/secrets"]
    {
        let said = w.ok(&format!("{as_node}{path}"));
        assert!(said.contains("\"code\":403") || said.contains("\"code\": 403"), "{path}: {said}");
    }
    let patch =
        "-X PATCH -H 'Content-Type: application/merge-patch+json' -d '{\"metadata\":{\"labels\":{\"a\":\"b\"}}}'";
    let said = w.ok(&format!("{as_node}/api/v1/nodes/mini-m03 {patch}"));
    assert!(said.contains("node \\\"mini-m02\\\" is not allowed to modify node \\\"mini-m03\\\""), "{said}");
    let said = w.ok(&format!("{as_node}/api/v1/nodes/mini-m02 {patch}"));
    assert!(said.contains("\"a\":\"b\"") || said.contains("\"a\": \"b\""), "{said}");
}

fn stops_and_starts(w: &World, web: &[[String; 3]]) {
    like(&w.ok("mini node stop m04"), "Successfully stopped node m04");
    w.ok("kubectl wait --for=condition=Ready=False node/mini-m04 --timeout=30s");
    like(&w.ok("mini node start m04"), "Successfully started node m04!");
    w.ok("kubectl wait --for=condition=Ready node/mini-m04 --timeout=30s");
    w.ok("mini stop");
    assert_eq!(remains(w), "", "stop leaves no process and no mount");
    w.ok("mini start");
    w.ok("kubectl rollout status daemonset/web --timeout=120s");
    let names = |pods: &[[String; 3]]| pods.iter().map(|[pod, _, _]| pod.clone()).collect::<Vec<_>>();
    let list = w.ok("mini node list");
    assert!(list.ends_with("mini-m04\t192.168.49.5\n"), "addresses stay: {list}");
    let again = pods(w, "web");
    assert_eq!(names(&again), names(web), "the pods are the same ones");
    let proxied = w.ok(&format!("kubectl get --raw /api/v1/namespaces/default/pods/{}:8080/proxy/", again[3][0]));
    assert_eq!(proxied, "serving from mini-m04\n");
}

/// A Deployment whose pods leave a lost node after a second.
const MOVING: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: moving}
spec:
  replicas: 2
  selector: {matchLabels: {app: moving}}
  template:
    metadata: {labels: {app: moving}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: moving}}}
      containers: [{name: echo, image: "mini.local/echo:1.4"}]
"#;

fn kill(w: &World, pid: &str) {
    w.ok(&format!("kill -KILL {pid}"));
}

/// The process that wrote its pid into a file of the profile.
fn process(w: &World, file: &str) -> String {
    let pid = std::fs::read_to_string(w.profile("mini").join(file)).expect("a pid");
    pid.split(' ').next().expect("a word").to_owned()
}

fn agent(w: &World) -> String {
    process(w, "nodes/m02/run/pid")
}

/// Where the Deployment's pods that are not being deleted are.
fn spread(w: &World) -> Vec<String> {
    let mut nodes: Vec<String> = pods(w, "moving").into_iter().map(|[_, node, _]| node).collect();
    nodes.dedup();
    nodes
}

#[test]
fn nodes_are_drained_and_lost_and_found() {
    let w = World::new();
    w.ok("mini start");
    like(&w.ok("mini node add"), "Adding a node to cluster mini as [worker]*Successfully added m02 to mini!");
    apply(&w, MOVING);
    w.ok("kubectl rollout status deployment/moving --timeout=60s");
    assert_eq!(spread(&w), ["mini", "mini-m02"]);

    w.ok("kubectl drain mini-m02 --ignore-daemonsets");
    w.ok("kubectl rollout status deployment/moving --timeout=60s");
    assert_eq!(spread(&w), ["mini"], "a drained node has no pods");
    w.ok("kubectl uncordon mini-m02");
    w.ok("kubectl rollout restart deployment/moving");
    w.ok("kubectl rollout status deployment/moving --timeout=60s");

    a_killed_agent_leaves_its_pods(&w);
    a_killed_node_loses_its_pods(&w);
    the_daemon_may_be_killed(&w);

    // Nobody is there any more to end its pods.
    kill(&w, &agent(&w));
    w.ok(&format!("pgrep -f {SHIMS}"));
    like(&w.ok("mini node delete m02"), "Deleting node m02 from cluster mini*Node m02 was successfully deleted.");
    w.fails(&format!("pgrep -f {SHIMS}"));
    assert_eq!(w.ok("kubectl get nodes -o name"), "node/mini\n");
    assert_eq!(w.ok("kubectl get leases -n kube-node-lease -o name"), "");
    assert!(!w.profile("mini").join("nodes/m02").exists());
    w.ok("kubectl rollout status deployment/moving --timeout=60s");
    w.ok("mini delete");
    assert_eq!(remains(&w), "");
}

const CONTAINERS: &str = "kubectl get pods -l app=moving --field-selector spec.nodeName=mini-m02 -o jsonpath='{range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID}{\"\\n\"}{end}'";

/// What the command lines of the node's shims contain.
const SHIMS: &str = "\"$HOME/.mini/profiles/mini/nodes/m02/pods\"";

fn a_killed_agent_leaves_its_pods(w: &World) {
    let before = w.ok(CONTAINERS);
    assert!(!before.is_empty());
    let killed = agent(w);
    kill(w, &killed);
    // Nobody has to notice: the next process takes over what it finds.
    like(&w.ok("mini node start m02"), "Successfully started node m02!");
    assert_eq!(w.ok(CONTAINERS), before, "the same containers go on running");
    let pod = before.split(' ').next().expect("a pod");
    w.ok(&format!("kubectl logs {pod}"));
}

fn a_killed_node_loses_its_pods(w: &World) {
    let before = w.ok(CONTAINERS);
    // All that belongs to the node: what keeps its pods first, so that nobody can start them again.
    let agent = agent(w);
    let shims = w.ok(&format!("pgrep -f {SHIMS}"));
    w.ok(&format!("kill -STOP {agent}"));
    shims.lines().for_each(|pid| kill(w, pid));
    kill(w, &agent);
    w.ok("kubectl wait --for=condition=Ready=Unknown node/mini-m02 --timeout=120s");
    let taints = "kubectl get node mini-m02 -o jsonpath='{.spec.taints[*].key} {.spec.taints[*].effect}'";
    w.until("kubectl get node mini-m02 --watch -o name", taints, "node.kubernetes.io/unreachable");
    w.ok("kubectl rollout status deployment/moving --timeout=60s");
    let there = "kubectl get pods -l app=moving -o jsonpath='{range .items[*]}{.spec.nodeName} {.metadata.deletionTimestamp}{\"\\n\"}{end}'";
    let said = w.ok(there);
    assert_eq!(said.lines().filter(|line| *line == "mini ").count(), 2, "the pods have moved: {said}");
    assert!(said.lines().any(|line| line.starts_with("mini-m02 2")), "those of the lost node wait for it: {said}");
    assert_eq!(w.ok("mini status | grep -A3 m02"), "mini-m02\ntype: Worker\nhost: Stopped\nkubelet: Stopped\n");
    w.ok("mini node start m02");
    w.ok("kubectl wait --for=condition=Ready node/mini-m02 --timeout=60s");
    for pod in before.lines().filter_map(|line| line.split(' ').next()) {
        w.ok(&format!("kubectl wait --for=delete pod/{pod} --timeout=60s"));
    }
    assert_eq!(w.ok("kubectl get node mini-m02 -o jsonpath='{.spec.taints}'"), "", "a node that is back is clean");
}

fn the_daemon_may_be_killed(w: &World) {
    w.ok("kubectl rollout restart deployment/moving");
    w.ok("kubectl rollout status deployment/moving --timeout=60s");
    let before = (agent(w), w.ok(CONTAINERS));
    assert!(!before.1.is_empty());
    kill(w, &process(w, "run/pid"));
    w.ok("mini start");
    assert_eq!((agent(w), w.ok(CONTAINERS)), before, "the workers do not care");
    let pod = before.1.split(' ').next().expect("a pod");
    w.ok(&format!("kubectl logs {pod}"));
}
