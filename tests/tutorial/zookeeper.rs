//! Chapter 6.4, "Running ZooKeeper, a distributed system coordinator": an ensemble on four nodes, and what it survives.

use crate::images::shelf;
use crate::watch::Watch;
use crate::world::{World, like};

const PODS: &str = "kubectl get pods -w -l app=zk";
const APPLY: &str = "kubectl apply -f https://k8s.io/examples/application/zookeeper/zookeeper.yaml";

/// What a watch shows of a pod that is made, runs, and becomes ready after its probe's delay.
fn starts(watch: &mut Watch<'_>, pod: &str) {
    watch.shows(&[
        &format!("{pod} 0/1 Pending"),
        &format!("{pod} 0/1 Pending"),
        &format!("{pod} 0/1 ContainerCreating"),
        &format!("{pod} 0/1 Running"),
        &format!("{pod} 1/1 Running"),
    ]);
}

/// Waits until a server is part of the ensemble: its probe says only that it lives.
#[track_caller]
fn serves(w: &World, pod: &str) {
    w.eventually(&format!("kubectl exec {pod} -- sh -c 'echo srvr | nc localhost 2181'"), "Mode: ");
}

/// The value that was written through one server, read through another.
#[track_caller]
fn reads_world(w: &World, pod: &str) {
    serves(w, pod);
    let said = w.run(&format!("kubectl exec {pod} -- zkCli.sh get -s /hello"));
    let text = format!("{}{}", said.out, said.err);
    for line in
        ["WatchedEvent state:SyncConnected type:None path:null", "\nworld\n", "dataLength = 5", "numChildren = 0"]
    {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
}

#[test]
fn chapter_6_4() {
    let w = World::new();
    let registry = shelf::registry(&w);
    w.ok(&format!("mini start --nodes 4 --image-mirror http://{}", registry.address));

    // The ensemble, in its order.
    let mut pods = Watch::get(&w, PODS);
    like(
        &w.ok(APPLY),
        "service/zk-hs created\nservice/zk-cs created\npoddisruptionbudget.policy/zk-pdb created\nstatefulset.apps/zk created",
    );
    for pod in ["zk-0", "zk-1", "zk-2"] {
        starts(&mut pods, pod);
    }
    drop(pods);
    assert_eq!(w.ok("for i in 0 1 2; do kubectl exec zk-$i -- hostname; done"), "zk-0\nzk-1\nzk-2\n");
    assert_eq!(
        w.ok("for i in 0 1 2; do echo \"myid zk-$i\";kubectl exec zk-$i -- cat /var/lib/zookeeper/data/myid; done"),
        "myid zk-0\n1\nmyid zk-1\n2\nmyid zk-2\n3\n"
    );
    assert_eq!(
        w.ok("for i in 0 1 2; do kubectl exec zk-$i -- hostname -f; done"),
        "zk-0.zk-hs.default.svc.cluster.local\nzk-1.zk-hs.default.svc.cluster.local\nzk-2.zk-hs.default.svc.cluster.local\n"
    );
    let configuration = w.ok("kubectl exec zk-0 -- cat /opt/zookeeper/conf/zoo.cfg");
    for line in [
        "clientPort=2181",
        "dataDir=/var/lib/zookeeper/data",
        "dataLogDir=/var/lib/zookeeper/data/log",
        "tickTime=2000",
        "initLimit=10",
        "syncLimit=5",
        "maxClientCnxns=60",
        "minSessionTimeout=4000",
        "maxSessionTimeout=40000",
        "autopurge.snapRetainCount=3",
        "autopurge.purgeInterval=12",
        "server.1=zk-0.zk-hs.default.svc.cluster.local:2888:3888",
        "server.2=zk-1.zk-hs.default.svc.cluster.local:2888:3888",
        "server.3=zk-2.zk-hs.default.svc.cluster.local:2888:3888",
    ] {
        assert!(configuration.lines().any(|l| l == line), "no {line} in\n{configuration}");
    }

    // Written through one server, read through another.
    serves(&w, "zk-0");
    let said = w.run("kubectl exec zk-0 -- zkCli.sh create /hello world");
    assert!(format!("{}{}", said.out, said.err).contains("Created /hello"), "{}{}", said.out, said.err);
    reads_world(&w, "zk-1");

    // Deleted and made anew: the data is there.
    let mut pods = Watch::get(&w, PODS);
    like(&w.ok("kubectl delete statefulset zk"), "statefulset.apps \"zk\" deleted*");
    for pod in ["zk-0", "zk-1", "zk-2"] {
        // All end at once, in any order.
        pods.rewind();
        pods.shows(&[&format!("{pod} 1/1 Terminating"), &format!("{pod} 0/1 *")]);
    }
    w.ok("kubectl wait --for=delete pod -l app=zk --timeout=90s");
    let mut pods = Watch::get(&w, PODS);
    like(
        &w.ok(APPLY),
        "service/zk-hs unchanged\nservice/zk-cs unchanged\npoddisruptionbudget.policy/zk-pdb *\nstatefulset.apps/zk created",
    );
    for pod in ["zk-0", "zk-1", "zk-2"] {
        starts(&mut pods, pod);
    }
    drop(pods);
    reads_world(&w, "zk-2");
    like(
        &w.ok("kubectl get pvc -l app=zk"),
        "NAME*\ndatadir-zk-0   Bound    pvc-*10Gi*RWO*\ndatadir-zk-1   Bound    pvc-*10Gi*RWO*\ndatadir-zk-2   Bound    pvc-*10Gi*RWO*",
    );

    configured(&w);
    updated(&w);
    healed(&w);
    drained(&w);
}

/// What the pods were told, how they log, and as whom they run.
fn configured(w: &World) {
    let set = w.ok("kubectl get sts zk -o yaml");
    assert!(set.contains("start-zookeeper --servers=3"), "{set}");
    assert_eq!(
        w.ok("kubectl exec zk-0 -- cat /usr/etc/zookeeper/log4j.properties"),
        "zookeeper.root.logger=CONSOLE
zookeeper.console.threshold=INFO
log4j.rootLogger=${zookeeper.root.logger}
log4j.appender.CONSOLE=org.apache.log4j.ConsoleAppender
log4j.appender.CONSOLE.Threshold=${zookeeper.console.threshold}
log4j.appender.CONSOLE.layout=org.apache.log4j.PatternLayout
log4j.appender.CONSOLE.layout.ConversionPattern=%d{ISO8601} [myid:%X{myid}] - %-5p [%t:%C{1}@%L] - %m%n
"
    );
    let log = w.ok("kubectl logs zk-0 --tail 20");
    assert_eq!(log.lines().count(), 20, "{log}");
    // The page's last lines are those of the probe; after an election there are others for a while.
    let log = w.ok("kubectl logs zk-0");
    assert!(log.contains("Processing ruok command from /127.0.0.1:"), "{log}");
    let processes = w.ok("kubectl exec zk-0 -- ps -elf");
    let first = processes.lines().nth(1).expect("a process");
    let cells: Vec<&str> = first.split_whitespace().collect();
    assert_eq!((cells[2], cells[3]), ("zookeep+", "1"), "{processes}");
    assert!(processes.contains("org.apache.zookeeper.server.quorum.QuorumPeerMain"), "{processes}");
    // The page's is `drwxr-sr-x`: when a volume comes to its next pod, its group is given what fsGroup promises.
    like(
        &w.ok("kubectl exec -ti zk-0 -- ls -ld /var/lib/zookeeper/data"),
        "drwxrwsr-x * zookeeper zookeeper * /var/lib/zookeeper/data",
    );
}

/// A rolling update, its history, and back.
fn updated(w: &World) {
    let patch = "kubectl patch sts zk --type='json' -p='[{\"op\": \"replace\", \"path\": \"/spec/template/spec/containers/0/resources/requests/cpu\", \"value\":\"0.3\"}]'";
    like(&w.ok(patch), "statefulset.apps/zk patched");
    let cpu = "kubectl get pods -l app=zk -o jsonpath='{.items[*].spec.containers[0].resources.requests.cpu}'";
    let status = w.ok("kubectl rollout status sts/zk --timeout=180s");
    like(
        status.lines().next().expect("a line"),
        "waiting for statefulset rolling update to complete 0 pods at revision zk-*...",
    );
    assert!(status.contains("Waiting for 1 pods to be ready..."), "{status}");
    like(status.lines().last().expect("a line"), "statefulset rolling update complete 3 pods at revision zk-*...");
    assert_eq!(w.ok(cpu), "300m 300m 300m");
    like(
        &w.ok("kubectl rollout history sts/zk"),
        "statefulset.apps/zk *\nREVISION  CHANGE-CAUSE\n1         <none>\n2         <none>",
    );
    like(&w.ok("kubectl rollout undo sts/zk"), "statefulset.apps/zk rolled back");
    w.ok("kubectl rollout status sts/zk --timeout=180s");
    assert_eq!(w.ok(cpu), "500m 500m 500m");
    reads_world(w, "zk-1");
}

/// A server that ends, and one that is not healthy any more.
fn healed(w: &World) {
    assert!(w.ok("kubectl exec zk-0 -- ps -ef").contains("QuorumPeerMain"));
    let mut pods = Watch::get(w, "kubectl get pod -w -l app=zk");
    w.run("kubectl exec zk-0 -- pkill java");
    // The page's watch shows `Error` before it: here the next container is on its way at once.
    pods.shows(&["zk-0 0/1 Running 1", "zk-0 1/1 Running 1"]);
    w.ok("kubectl exec zk-0 -- rm /opt/zookeeper/bin/zookeeper-ready");
    // The page's watch shows it unready first: liveness and readiness fail at the same time.
    pods.shows(&["zk-0 0/1 Running 2", "zk-0 1/1 Running 2"]);
    assert!(w.ok("kubectl describe pod zk-0").contains("Liveness probe failed"));
}

/// Nodes are emptied one after the other, as far as the budget allows.
fn drained(w: &World) {
    let nodes = w.ok("for i in 0 1 2; do kubectl get pod zk-$i --template {{.spec.nodeName}}; echo \"\"; done");
    let nodes: Vec<&str> = nodes.lines().collect();
    assert!(nodes.len() == 3 && nodes[0] != nodes[1] && nodes[1] != nodes[2] && nodes[0] != nodes[2], "{nodes:?}");
    assert_eq!(w.table("kubectl get nodes").len(), 4);
    like(
        &w.ok("kubectl get pdb zk-pdb"),
        "NAME     MIN AVAILABLE   MAX UNAVAILABLE   ALLOWED DISRUPTIONS   AGE\nzk-pdb   N/A             1                 1                     *",
    );
    let mut pods = Watch::get(w, PODS);
    let drain = |pod: &str| {
        format!(
            "kubectl drain $(kubectl get pod {pod} --template {{{{.spec.nodeName}}}}) --ignore-daemonsets --force --delete-emptydir-data"
        )
    };
    let said = w.ok(&drain("zk-0"));
    like(
        &said,
        &format!("node/{0} cordoned\n*evicting pod default/zk-0\npod/zk-0 evicted\nnode/{0} drained", nodes[0]),
    );
    pods.shows(&[
        "zk-0 1/1 Terminating",
        "zk-0 0/1 *",
        "zk-0 0/1 Pending",
        "zk-0 0/1 ContainerCreating",
        "zk-0 0/1 Running",
        "zk-0 1/1 Running",
    ]);
    like(&w.ok(&drain("zk-1")), &format!("node/{0} cordoned\n*pod/zk-1 evicted\nnode/{0} drained", nodes[1]));
    pods.shows(&["zk-1 1/1 Terminating", "zk-1 0/1 *", "zk-1 0/1 Pending"]);
    let scheduled = "kubectl get pod zk-1 -o jsonpath='{.status.conditions[?(@.type==\"PodScheduled\")].message}'";
    w.until("kubectl get pod zk-1 -w", scheduled, "0/4 nodes are available: ");
    like(
        &w.ok(scheduled),
        "0/4 nodes are available: 2 node(s) didn't match pod anti-affinity rules, 2 node(s) were unschedulable.*",
    );

    // The budget forbids a third; the service goes on.
    Watch::start(w, &drain("zk-2")).contains("Cannot evict pod as it would violate the pod's disruption budget.");
    like(&w.ok(&format!("kubectl get node {}", nodes[2])), "NAME*\n*Ready,SchedulingDisabled*");
    reads_world(w, "zk-0");
    like(&w.ok(&format!("kubectl uncordon {}", nodes[0])), &format!("node/{} uncordoned", nodes[0]));
    pods.shows(&["zk-1 0/1 Pending", "zk-1 0/1 ContainerCreating", "zk-1 0/1 Running", "zk-1 1/1 Running"]);
    let said = w.ok(&drain("zk-2"));
    like(&said, &format!("node/{0} already cordoned\n*pod/zk-2 evicted\nnode/{0} drained", nodes[2]));
    like(&w.ok(&format!("kubectl uncordon {}", nodes[1])), &format!("node/{} uncordoned", nodes[1]));
    pods.shows(&["zk-2 0/1 ContainerCreating", "zk-2 0/1 Running", "zk-2 1/1 Running"]);
    reads_world(w, "zk-2");
    drop(pods);

    // The processes of a node and of the control plane are killed, which no server notices.
    let containers = "kubectl get pods -l app=zk -o jsonpath='{.items[*].status.containerStatuses[0].containerID}'";
    let before = w.ok(containers);
    w.ok("pid=$(cut -d' ' -f1 .mini/profiles/mini/nodes/m02/run/pid); kill -KILL $pid; timeout 30 tail -s 0.1 --pid=$pid -f /dev/null");
    w.ok("mini node start m02");
    w.kill_daemon();
    w.ok("mini start");
    for pod in ["zk-0", "zk-1", "zk-2"] {
        reads_world(w, pod);
    }
    assert_eq!(w.ok(containers), before);

    // Clean up.
    w.ok("kubectl uncordon $(kubectl get nodes -o name)");
    w.ok("kubectl delete -f https://k8s.io/examples/application/zookeeper/zookeeper.yaml");
    w.ok("kubectl delete pvc -l app=zk");
    w.ok("kubectl wait --for=delete pv --all --timeout=60s");
}
