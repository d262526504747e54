//! `mini node token` and `mini node join`: a machine becomes a node of another machine's cluster. The two machines are network
//! namespaces with a cable between them.

use std::io::BufRead as _;
use std::process::{Child, Stdio};

use crate::world::{World, like};

/// A network namespace, and a home of mini's there.
struct Machine<'a> {
    world: &'a World,
    process: Child,
    /// The beginning of a command that enters it.
    enter: String,
    home: &'static str,
}

impl<'a> Machine<'a> {
    /// A new machine. `inside`: the beginning of a command that enters the machine whose user namespace it shares.
    fn new(world: &'a World, home: &'static str, inside: Option<&str>) -> Self {
        let (new, user) = match (inside, is_root(world)) {
            (_, true) => (String::new(), ""),
            (Some(enter), false) => (enter.to_owned(), "-U --preserve-credentials"),
            (None, false) => ("unshare --user --map-auto --map-root-user".to_owned(), "-U --preserve-credentials"),
        };
        let command = format!("exec {new} unshare --net sh -c 'ip link set lo up && echo up && exec sleep infinity'");
        let mut process = world.command(&command).stdout(Stdio::piped()).spawn().expect("bash runs");
        let mut line = String::new();
        let output = process.stdout.take().expect("it is piped");
        std::io::BufReader::new(output).read_line(&mut line).expect("a line");
        assert_eq!(line, "up\n", "the namespace is there");
        let enter = format!("nsenter -t {} {user} -n", process.id());
        Self { world, process, enter, home }
    }

    fn inside(&self, command: &str) -> String {
        format!("MINI_HOME=$HOME/{} {} bash -c '{}'", self.home, self.enter, command.replace('\'', "'\\''"))
    }

    #[track_caller]
    fn ok(&self, command: &str) -> String {
        let said = self.world.run(&self.inside(command));
        if said.code != 0 {
            self.world.run(&self.inside(
                "kubectl describe pods,nodes; for p in $HOME/*/profiles/*; do tail -40 $p/logs/daemon.log; done",
            ));
            panic!("{command:?} exited with {}:\n{}{}", said.code, said.out, said.err);
        }
        said.out
    }
}

impl Drop for Machine<'_> {
    /// What runs there ends, and the namespace with it.
    fn drop(&mut self) {
        self.world.run(&self.inside("mini delete --all --purge"));
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn is_root(w: &World) -> bool {
    w.ok("id -u") == "0\n"
}

/// A pod on each node, behind a Service.
const EVERYWHERE: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec: {containers: [{name: echo, image: "mini.local/echo:1.4"}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{port: 8080}]}
"#;

#[test]
fn another_machine_joins() {
    let w = World::new();
    let one = Machine::new(&w, "one", None);
    let two = Machine::new(&w, "two", Some(&one.enter));
    one.ok(&format!("ip link add cable type veth peer name cable netns {}", two.process.id()));
    one.ok("ip addr add 192.0.2.1/24 dev cable && ip link set cable up");
    two.ok("ip addr add 192.0.2.2/24 dev cable && ip link set cable up");

    one.ok("mini start --listen-address 192.0.2.1");
    let token = one.ok("mini node token");
    like(&token, "mini node join 192.0.2.1:* --token *.* --ca-cert-hash sha256:*");
    let words: Vec<&str> = token.split_whitespace().collect();

    // Who has no token, or is told of another authority, does not join, and nothing is left of the attempt.
    let join = format!("mini node join {} --name second", words[3]);
    w.fails(&two.inside(&format!("{join} --token abcdef.0123456789abcdef --ca-cert-hash {}", words[7])));
    w.fails(&two.inside(&format!("{join} --token {} --ca-cert-hash sha256:{}", words[5], "0".repeat(64))));
    assert_eq!(one.ok("kubectl get nodes -o name"), "node/mini\n");

    let said = two.ok(&format!("{} --name second", token.trim()));
    like(&said, &format!("*The node \"second\" is part of the cluster at {}", words[3]));
    one.ok("kubectl wait --for=condition=Ready node/second --timeout=60s");
    w.write("everywhere.yaml", EVERYWHERE);
    one.ok("kubectl apply -f everywhere.yaml");
    one.ok("kubectl rollout status daemonset/echo --timeout=60s");
    reach_each_other(&one);

    // Stopped and started: its certificate is enough now.
    two.ok("mini stop");
    one.ok("kubectl wait --for=condition=Ready=False node/second --timeout=60s");
    two.ok("mini start");
    one.ok("kubectl wait --for=condition=Ready node/second --timeout=60s");
    one.ok("kubectl wait --for=condition=Ready pod -l app=echo --timeout=60s");
    reach_each_other(&one);
}

/// Each node reaches the pods of both, and the API server those of the machine that joined.
fn reach_each_other(one: &Machine<'_>) {
    let template = "{range .items[*]}{.spec.nodeName} {.metadata.name} {.status.podIP}{\"\\n\"}{end}";
    let pods = one.ok(&format!("kubectl get pods -l app=echo --sort-by=.spec.nodeName -o jsonpath='{template}'"));
    let rows: Vec<Vec<&str>> = pods.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), ["mini", "second"]);
    for row in rows {
        let [_, pod, ip] = row[..] else { panic!("{row:?}") };
        let proxied = one.ok(&format!("kubectl get --raw /api/v1/namespaces/default/pods/{pod}:8080/proxy/"));
        assert!(proxied.starts_with("CLIENT VALUES:"), "{proxied}");
        let direct = one.ok(&format!("mini ssh -- curl -sS --max-time 10 {ip}:8080"));
        assert!(direct.contains("client_address=192.168.49.2"), "{direct}");
        one.ok(&format!("kubectl logs {pod}"));
    }
}
