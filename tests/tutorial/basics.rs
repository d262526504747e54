//! Chapter 2, "Kubernetes basics": its modules with the commands of their interactive terminals.

use std::collections::BTreeSet;

use crate::images::{Protection, Registry, bootcamp, push};
use crate::world::{World, like};

#[test]
fn chapter_2() {
    let w = World::new();
    let registry = Registry::start(&w, "registry", &Protection::default());
    push(&w, &bootcamp("kubernetes-bootcamp:v1", 1), &registry, "google-samples/kubernetes-bootcamp:v1", "");
    push(&w, &bootcamp("kubernetes-bootcamp:v2", 2), &registry, "google-samples/kubernetes-bootcamp:v2", "");

    // 2.1 Create a cluster.
    like(&w.ok("mini version"), "mini version: v*");
    w.ok(&format!("mini start --image-mirror gcr.io=http://{}", registry.address));
    let version = w.ok("kubectl version");
    assert!(version.contains("v1.35."), "{version}");
    let info = w.ok("kubectl cluster-info");
    assert!(info.contains("is running at https://127.0.0.1:"), "{info}");
    let rows = w.table("kubectl get nodes");
    assert_eq!((&*rows[0]["NAME"], &*rows[0]["STATUS"], &*rows[0]["ROLES"]), ("mini", "Ready", "control-plane"));
    like(&rows[0]["VERSION"], "v1.35.*");

    // 2.2 Deploy an app; reach it through the API server's proxy.
    w.ok("kubectl create deployment kubernetes-bootcamp --image=gcr.io/google-samples/kubernetes-bootcamp:v1");
    w.ok("kubectl rollout status deployment/kubernetes-bootcamp --timeout=60s");
    let rows = w.table("kubectl get deployments");
    assert_eq!((&*rows[0]["NAME"], &*rows[0]["READY"]), ("kubernetes-bootcamp", "1/1"));
    let pod = w.ok("kubectl get pods -o go-template --template '{{range .items}}{{.metadata.name}}{{\"\\n\"}}{{end}}'");
    let pod = pod.trim();
    let proxied = w.ok(&format!("kubectl get --raw /api/v1/namespaces/default/pods/{pod}:8080/proxy/"));
    assert_eq!(proxied.trim(), format!("Hello Kubernetes bootcamp! | Running on: {pod} | v=1"));

    // 2.3 Explore it.
    let described = w.ok("kubectl describe pods");
    for part in [
        "Node:             mini/",
        "Status:           Running",
        "Controlled By:  ReplicaSet/kubernetes-bootcamp-",
        "Successfully assigned default/",
        "Container started",
    ] {
        assert!(
            described.contains(part) || described.contains(&part.replace("  ", " ")),
            "no {part:?} in\n{described}"
        );
    }
    assert!(w.ok(&format!("kubectl logs {pod}")).contains("Kubernetes Bootcamp App Started At:"));
    let env = w.ok(&format!("kubectl exec {pod} -- env"));
    assert!(env.contains(&format!("HOSTNAME={pod}")) && env.contains("KUBERNETES_SERVICE_HOST=10.96.0.1"), "{env}");
    assert!(
        w.ok(&format!("echo 'cat /bin/serve; wget -qO- localhost:8080; exit' | kubectl exec -i {pod} -- bash"))
            .contains("Running on")
    );
    let said = w.fails(&format!("kubectl exec {pod} -- sh -c 'exit 3'"));
    assert_eq!(said.code, 3);

    // 2.4 Expose it.
    w.ok("kubectl expose deployment/kubernetes-bootcamp --type=NodePort --port 8080");
    let described = w.ok("kubectl describe services/kubernetes-bootcamp");
    assert!(
        described.contains("NodePort") && described.contains("Endpoints:") && described.contains(":8080"),
        "{described}"
    );
    let port = w.ok("kubectl get services/kubernetes-bootcamp -o go-template='{{(index .spec.ports 0).nodePort}}'");
    let address = format!("$(mini ip):{port}");
    assert!(w.ok(&format!("curl -sS --max-time 10 {address}")).contains("v=1"));
    assert!(w.ok("kubectl get pods -l app=kubernetes-bootcamp").contains(pod));
    assert!(w.ok("kubectl get services -l app=kubernetes-bootcamp").contains("kubernetes-bootcamp"));
    like(&w.ok(&format!("kubectl label pods {pod} version=v1")), &format!("pod/{pod} labeled"));
    assert!(w.ok("kubectl get pods -l version=v1").contains(pod));
    w.ok("kubectl delete service -l app=kubernetes-bootcamp");
    w.fails(&format!("curl -sS --max-time 3 {address}"));
    assert!(w.ok(&format!("kubectl exec {pod} -- wget -qO- localhost:8080")).contains("Running on"));

    // 2.5 Scale it.
    w.ok("kubectl expose deployment/kubernetes-bootcamp --type=NodePort --port 8080");
    let port = w.ok("kubectl get services/kubernetes-bootcamp -o go-template='{{(index .spec.ports 0).nodePort}}'");
    let address = format!("$(mini ip):{port}");
    like(
        &w.ok("kubectl scale deployments/kubernetes-bootcamp --replicas=4"),
        "deployment.apps/kubernetes-bootcamp scaled",
    );
    w.ok("kubectl rollout status deployment/kubernetes-bootcamp --timeout=60s");
    assert_eq!(w.table("kubectl get deployments")[0]["READY"], "4/4");
    let rows = w.table("kubectl get pods -o wide");
    let addresses: BTreeSet<_> = rows.iter().map(|r| r["IP"].clone()).collect();
    assert_eq!((rows.len(), addresses.len()), (4, 4), "four pods with four addresses");
    assert!(
        w.ok("kubectl describe deployments/kubernetes-bootcamp").contains("Scaled up replica set kubernetes-bootcamp-")
    );
    let answers = w.ok(&format!("for i in $(seq 60); do curl -sS --max-time 10 {address}; done"));
    let answered: BTreeSet<_> = answers.lines().filter(|line| line.contains("Running on")).collect();
    assert_eq!(answered.len(), 4, "all four answer:\n{answers}");
    w.ok("kubectl scale deployments/kubernetes-bootcamp --replicas=2");
    w.until("kubectl get pods -w", "kubectl get pods --no-headers | grep -c Running", "2\n");

    // 2.6 Update it, while somebody uses it.
    w.ok("kubectl scale deployments/kubernetes-bootcamp --replicas=4 && kubectl rollout status deployment/kubernetes-bootcamp --timeout=60s");
    let mut client = w
        .command(&format!("a={address}; n=0; while [ ! -e enough ]; do curl -sS --max-time 10 -o /dev/null $a || echo failed; n=$((n+1)); done; echo $n requests"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("bash runs");
    w.ok("kubectl set image deployments/kubernetes-bootcamp kubernetes-bootcamp=gcr.io/google-samples/kubernetes-bootcamp:v2");
    w.ok("kubectl rollout status deployments/kubernetes-bootcamp --timeout=120s");
    let answers = w.ok(&format!("for i in $(seq 8); do curl -sS --max-time 10 {address}; done"));
    assert!(answers.lines().all(|line| line.ends_with("v=2")), "{answers}");
    w.ok("kubectl set image deployments/kubernetes-bootcamp kubernetes-bootcamp=gcr.io/google-samples/kubernetes-bootcamp:v10");
    w.until("kubectl get pods -w", "kubectl get pods", "ImagePullBackOff");
    assert!(
        w.ok("kubectl describe pods")
            .contains("Failed to pull image \"gcr.io/google-samples/kubernetes-bootcamp:v10\"")
    );
    like(
        &w.ok("kubectl rollout undo deployments/kubernetes-bootcamp"),
        "deployment.apps/kubernetes-bootcamp rolled back",
    );
    w.ok("kubectl rollout status deployments/kubernetes-bootcamp --timeout=120s");
    let history = w.ok("kubectl rollout history deployments/kubernetes-bootcamp");
    like(&history, "deployment.apps/kubernetes-bootcamp*REVISION  CHANGE-CAUSE*1*3*4*");
    let answers = w.ok(&format!("for i in $(seq 8); do curl -sS --max-time 10 {address}; done"));
    assert!(answers.lines().all(|line| line.ends_with("v=2")), "{answers}");
    std::fs::write(w.home().join("enough"), "").expect("a flag for the client");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut client.stdout.take().expect("it is piped"), &mut said)
        .expect("the client speaks");
    client.wait().expect("it was started");
    assert!(!said.contains("failed") && said.contains("requests"), "no request fails during updates:\n{said}");
    w.ok("kubectl delete deployments/kubernetes-bootcamp services/kubernetes-bootcamp");
}
