//! Chapter 5.1, "Exposing an external IP address to access an application in a cluster".

use std::collections::BTreeSet;

use crate::images::shelf;
use crate::world::{World, like};

#[test]
fn chapter_5_1() {
    let w = World::new();
    let registry = shelf::registry(&w);
    w.ok(&format!("mini start --image-mirror http://{}", registry.address));

    // Five instances of a Hello World application.
    like(
        &w.ok("kubectl apply -f https://k8s.io/examples/service/load-balancer-example.yaml"),
        "deployment.apps/hello-world created",
    );
    w.ok("kubectl rollout status deployment/hello-world --timeout=120s");
    like(
        &w.ok("kubectl get deployments hello-world"),
        "NAME          READY   UP-TO-DATE   AVAILABLE   AGE\nhello-world   5/5     5            5           *",
    );
    let described = w.ok("kubectl describe deployments hello-world");
    for part in [
        "Selector:               app.kubernetes.io/name=load-balancer-example",
        "5 desired | 5 updated | 5 total | 5 available | 0 unavailable",
        "Image:         gcr.io/google-samples/node-hello:1.0",
        "Scaled up replica set hello-world-",
    ] {
        assert!(described.contains(part), "no {part:?} in\n{described}");
    }
    let sets = w.table("kubectl get replicasets");
    like(&sets[0]["NAME"], "hello-world-*");
    assert_eq!([&*sets[0]["DESIRED"], &*sets[0]["CURRENT"], &*sets[0]["READY"]], ["5", "5", "5"]);
    let described = w.ok("kubectl describe replicasets");
    for part in ["Controlled By:  Deployment/hello-world", "5 Running / 0 Waiting / 0 Succeeded / 0 Failed"] {
        assert!(described.contains(part), "no {part:?} in\n{described}");
    }

    // A Service with an address.
    like(
        &w.ok("kubectl expose deployment hello-world --type=LoadBalancer --name=my-service"),
        "service/my-service exposed",
    );
    w.until("kubectl get services my-service -w", "kubectl get services my-service", "127.78.");
    let rows = w.table("kubectl get services my-service");
    like(&rows[0]["CLUSTER-IP"], "10.*");
    like(&rows[0]["PORT(S)"], "8080:3*/TCP");
    assert_eq!((&*rows[0]["NAME"], &*rows[0]["TYPE"]), ("my-service", "LoadBalancer"));
    let address = &rows[0]["EXTERNAL-IP"];
    let described = w.ok("kubectl describe services my-service");
    like(
        &described,
        &format!(
            "Name:*my-service\nNamespace:*default\nLabels:*app.kubernetes.io/name=load-balancer-example\nAnnotations:*<none>\n\
             Selector:*app.kubernetes.io/name=load-balancer-example\nType:*LoadBalancer\n*IP:*10.*\n\
             LoadBalancer Ingress:*{address}*\nPort:*<unset>*8080/TCP\n*NodePort:*<unset>*3*/TCP\nEndpoints:*:8080,*:8080,*:8080 + 2 more...\n\
             Session Affinity:*None\n*Events:*"
        ),
    );
    let pods = w.table("kubectl get pods --output=wide");
    let addresses: BTreeSet<&str> = pods.iter().map(|row| &*row["IP"]).collect();
    assert_eq!(addresses.len(), 5, "{pods:?}");
    let endpoints = described.lines().find_map(|line| line.strip_prefix("Endpoints:")).expect("it was there").trim();
    for endpoint in endpoints.split(" + ").next().expect("one part").split(',') {
        let address = endpoint.strip_suffix(":8080").expect("the pods' port");
        assert!(addresses.contains(address), "{address} is no pod's");
    }
    // The page has no probe: a pod runs before its server listens.
    w.eventually(&format!("curl -sS --max-time 10 http://{address}:8080"), "Hello Kubernetes!");

    // Clean up.
    like(&w.ok("kubectl delete services my-service"), "service \"my-service\" deleted*");
    like(&w.ok("kubectl delete deployment hello-world"), "deployment.apps \"hello-world\" deleted*");
    w.ok("kubectl wait --for=delete pod -l app.kubernetes.io/name=load-balancer-example --timeout=60s");
    w.fails(&format!("curl -sS --max-time 3 http://{address}:8080"));
}
