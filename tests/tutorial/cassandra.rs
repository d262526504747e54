//! Chapter 6.3, "Deploying Cassandra with a StatefulSet". Debian has no Cassandra: the manifest runs unchanged with a stand-in that
//! is no database, but has the image's probe, hook and `nodetool`, an identity on its volume, and members that ask each other.

use crate::images::shelf;
use crate::watch::Watch;
use crate::world::{World, like};

#[test]
fn chapter_6_3() {
    let w = World::new();
    let registry = shelf::registry(&w);
    w.ok(&format!("mini start --cpus 4 --memory 8g --image-mirror http://{}", registry.address));

    let address = "https://k8s.io/examples/application/cassandra";
    like(&w.ok(&format!("kubectl apply -f {address}/cassandra-service.yaml")), "service/cassandra created");
    like(
        &w.ok("kubectl get svc cassandra"),
        "NAME        TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)    AGE\ncassandra   ClusterIP   None         <none>        9042/TCP   *",
    );
    let mut pods = Watch::get(&w, "kubectl get pods -l=app=cassandra -w");
    like(
        &w.ok(&format!("kubectl apply -f {address}/cassandra-statefulset.yaml")),
        "statefulset.apps/cassandra created\nstorageclass.storage.k8s.io/fast created",
    );
    like(&w.ok("kubectl get statefulset cassandra"), "NAME        READY   AGE\ncassandra   0/3     *");
    // One after the other: the second is made when the first is ready, 15 seconds after its start.
    pods.shows(&[
        "cassandra-0 1/1 Running",
        "cassandra-1 0/1 ContainerCreating",
        "cassandra-1 1/1 Running",
        "cassandra-2 1/1 Running",
    ]);
    like(
        &w.ok("kubectl get pods -l=\"app=cassandra\""),
        "NAME          READY   STATUS    RESTARTS   AGE\ncassandra-0   1/1     Running   0          *\n\
         cassandra-1   1/1     Running   0          *\ncassandra-2   1/1     Running   0          *",
    );
    assert_eq!(members(&w).len(), 3);
    let locked = w.ok("kubectl exec cassandra-0 -- grep CapEff /proc/1/status");
    let capabilities =
        u64::from_str_radix(locked.split_whitespace().last().expect("a number"), 16).expect("hexadecimal");
    assert_ne!(capabilities & 1 << 14, 0, "IPC_LOCK is not among {locked}");
    like(
        &w.ok("kubectl get pvc"),
        "NAME*\ncassandra-data-cassandra-0   Bound*1Gi*RWO*fast*\ncassandra-data-cassandra-1   Bound*fast*\ncassandra-data-cassandra-2   Bound*fast*",
    );

    // A fourth, by an editor.
    let said = w.ok("KUBE_EDITOR=\"sed -i 's/^  replicas: 3$/  replicas: 4/'\" kubectl edit statefulset cassandra");
    like(&said, "statefulset.apps/cassandra edited");
    pods.shows(&["cassandra-3 1/1 Running"]);
    like(&w.ok("kubectl get statefulset cassandra"), "NAME        READY   AGE\ncassandra   4/4     *");
    let before = members(&w);
    assert_eq!(before.len(), 4);

    // A pod that is killed or replaced keeps its identity; the hook of one that is deleted has run.
    w.kill_shim("pod/cassandra-1");
    let restarts = "kubectl get pod cassandra-1 -o jsonpath='{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}'";
    w.until("kubectl get pod cassandra-1 -w", restarts, "1 true");
    w.kill_daemon();
    w.ok("mini start");
    w.ok("kubectl rollout status sts/cassandra --timeout=60s");
    assert_eq!(members(&w), before);
    w.ok("kubectl delete pod cassandra-3");
    w.ok("kubectl rollout status sts/cassandra --timeout=60s");
    assert_eq!(members(&w), before);
    let log = w.ok("kubectl exec cassandra-3 -- cat /cassandra_data/system.log");
    let (drained, stopped) = (log.find("DRAINED"), log.find("Stopped"));
    assert!(drained.is_some() && drained < stopped, "preStop ran before the process was told to stop:\n{log}");

    // Clean up. The page sleeps for the grace period, half an hour; what it waits for is the pods' end.
    drop(pods);
    let said = w.ok("grace=$(kubectl get pod cassandra-0 -o=jsonpath='{.spec.terminationGracePeriodSeconds}') \
      && kubectl delete statefulset -l app=cassandra \
      && echo \"Waiting ${grace} seconds at most\" \
      && kubectl wait --for=delete pod -l app=cassandra --timeout=${grace}s \
      && kubectl delete persistentvolumeclaim -l app=cassandra");
    like(
        &said,
        "statefulset.apps \"cassandra\" deleted*\nWaiting 1800 seconds at most\n*persistentvolumeclaim \"cassandra-data-cassandra-0\" deleted*\n*1\" deleted*\n*2\" deleted*\n*3\" deleted*",
    );
    like(&w.ok("kubectl delete service -l app=cassandra"), "service \"cassandra\" deleted*");
    w.ok("kubectl wait --for=delete pv --all --timeout=60s");
}

/// The ring as `nodetool status` shows it: the host ids, sorted.
fn members(w: &World) -> Vec<String> {
    let status = w.ok("kubectl exec -it cassandra-0 -- nodetool status");
    like(
        &status,
        "Datacenter: DC1-K8Demo\n======================\nStatus=Up/Down\n|/ State=Normal/Leaving/Joining/Moving\n\
         --  Address*Load*Tokens*Owns (effective)*Host ID*Rack\n*",
    );
    let rows: Vec<Vec<&str>> = status.lines().skip(5).map(|line| line.split_whitespace().collect()).collect();
    for row in &rows {
        let [up, address, _, _, tokens, _, _, rack] = row[..] else { panic!("{row:?}") };
        assert_eq!((up, tokens, rack), ("UN", "32", "Rack1-K8Demo"));
        assert!(address.starts_with("10.244."), "{address}");
    }
    let mut ids: Vec<String> = rows.iter().map(|row| row[6].to_owned()).collect();
    ids.sort();
    ids
}
