//! Bad input and missing things: a clear error, and nothing changed.

use crate::world::World;

#[test]
fn bad_manifests_are_refused_and_change_nothing() {
    let w = World::new();
    w.ok("mini start");
    let before = w.ok("kubectl get all,configmaps -A -o name");
    for (manifest, words) in [
        ("apiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: a}\\nbogus: 1", "unknown field \"bogus\""),
        ("apiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: A_b}", "a lowercase RFC 1123 subdomain"),
        ("apiVersion: apps/v1\\nkind: Deployment\\nmetadata: {name: a}\\nspec: {replicas: many}", "int32"),
        (
            "apiVersion: apps/v1\\nkind: Deployment\\nmetadata: {name: a}\\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: x, image: z}]}}}",
            "`selector` does not match template `labels`",
        ),
        ("apiVersion: v1\\nkind: Nonsense\\nmetadata: {name: a}", "error"),
        ("{not yaml", "error"),
    ] {
        let said = w.fails(&format!("printf \"{manifest}\" | kubectl create -f -"));
        assert!(said.err.contains(words), "{:?} lacks {words:?}", said.err);
    }
    let long = "x".repeat(254);
    assert!(w.fails(&format!("kubectl create configmap {long}")).err.contains("no more than 253"));
    assert_eq!(w.ok("kubectl get all,configmaps -A -o name"), before);
}

#[test]
fn a_taken_port_and_a_second_daemon_are_clear_errors() {
    let w = World::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let said = w.fails(&format!("mini start --apiserver-port {port}"));
    assert!(said.err.contains(&format!("port {port}")), "{}", said.err);
    w.ok("mini start");
    let said = w.fails("mini daemon --profile mini");
    assert!(format!("{}{}", said.out, said.err).contains("another process of this profile is running"));
    w.ok("kubectl get nodes");
}

#[test]
fn a_damaged_database_is_an_error_and_not_an_empty_cluster() {
    let w = World::new();
    w.ok("mini start");
    w.ok("kubectl create configmap precious");
    w.ok("mini stop");
    let db = w.profile("mini").join("db/db");
    let size = std::fs::metadata(&db).expect("the database file").len();
    let copy = std::fs::read(&db).expect("the database file");
    std::fs::OpenOptions::new().write(true).open(&db).and_then(|f| f.set_len(size / 3)).expect("truncated");
    let said = w.fails("mini start");
    assert!(said.err.contains("database") || said.err.contains("storage"), "{}", said.err);
    std::fs::write(&db, copy).expect("restored");
    w.ok("mini start");
    w.ok("kubectl get configmap precious");
}

#[test]
fn damaged_archives_are_refused() {
    let w = World::new();
    w.ok("mini start");
    let before = w.ok("mini image ls");
    std::fs::write(w.home().join("bad.tar"), b"this is no archive").expect("written");
    w.fails("mini image load bad.tar");
    let mut archive = crate::images::bootcamp("x:1", 1);
    // A byte of the compressed layer: its digest no longer fits.
    let position = archive.windows(2).position(|w| w == [0x1f, 0x8b]).expect("a gzip layer") + 4096;
    archive[position] ^= 0xff;
    std::fs::write(w.home().join("flipped.tar"), archive).expect("written");
    let said = w.fails("mini image load flipped.tar");
    assert!(said.err.contains("digest"), "{}", said.err);
    let escape = crate::images::busybox(
        "x:2",
        vec![crate::images::File { path: "a", content: Vec::new(), mode: 0o644 }],
        &["/bin/sh"],
        &[],
    );
    std::fs::write(w.home().join("fine.tar"), escape).expect("written");
    w.ok("mini image load fine.tar");
    assert_eq!(w.ok("mini image ls").lines().count(), before.lines().count() + 1);
}

/// One that keeps rows in a file, on a worker.
const ROWS: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      nodeSelector: {kubernetes.io/hostname: mini-m02}
      terminationGracePeriodSeconds: 0
      containers:
      - name: db
        image: shell:1
        imagePullPolicy: Never
        command: [sh, -c, "while :; do sleep 3600; done"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
"#;

#[test]
fn no_row_is_lost_whoever_is_killed() {
    let w = World::new();
    w.ok("mini start --nodes 2");
    crate::nodes::load_shell(&w);
    w.write("rows.yaml", ROWS);
    w.ok("kubectl apply -f rows.yaml");
    w.ok("kubectl rollout status statefulset/db --timeout=60s");
    let ids = "kubectl get pod db-0 -o jsonpath='{.metadata.uid} {.status.containerStatuses[0].containerID}'";
    let state = "kubectl get pod db-0 -o jsonpath='{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}'";
    let mut rows = 0;
    let mut write_and_read = |after: &str| {
        rows += 1;
        w.ok(&format!("kubectl exec db-0 -- sh -c 'echo {rows} >> /data/rows && sync /data/rows'"));
        let expected: String = (1..=rows).map(|row| format!("{row}\n")).collect();
        assert_eq!(w.ok("kubectl exec db-0 -- cat /data/rows"), expected, "after {after}");
    };
    write_and_read("nothing");
    w.kill_container("pod/db-0");
    w.until("kubectl get pod db-0 --watch", state, "1 true");
    write_and_read("the container was killed");
    w.kill_shim("pod/db-0");
    w.until("kubectl get pod db-0 --watch", state, "2 true");
    write_and_read("the shim was killed");
    let before = w.ok(ids);
    w.ok("kill -KILL $(cut -d' ' -f1 .mini/profiles/mini/nodes/m02/run/pid)");
    w.ok("mini node start m02");
    write_and_read("the node's process was killed");
    w.kill_daemon();
    w.ok("mini start");
    write_and_read("the daemon was killed");
    assert_eq!(w.ok(ids), before, "neither of the two is noticed by the pod");
    // All at once, in the middle of it.
    w.ok("kill -KILL $(cut -d' ' -f1 .mini/profiles/mini/run/pid) $(cut -d' ' -f1 .mini/profiles/mini/nodes/m02/run/pid) $(pgrep -f \"node-shim .*$HOME/.mini/profiles/mini/nodes/m02/pods\")");
    w.ok("mini start");
    w.until("kubectl get pod db-0 --watch", state, "3 true");
    write_and_read("all of them were killed");
    w.ok("kubectl delete pod db-0");
    w.ok("kubectl rollout status statefulset/db --timeout=60s");
    write_and_read("the pod was deleted");
}
