//! Chapter 1, "Hello Minikube": every command of the page, in its order.

use crate::images::{Protection, Registry, push};
use crate::world::{World, like};

#[test]
fn chapter_1_with_the_newer_kubectl() {
    follow(World::new());
}

#[test]
fn chapter_1_with_kubectl_1_20() {
    let kubectl = std::env::var("MINI_OLD_KUBECTL").expect("MINI_OLD_KUBECTL names kubectl 1.20: tests/run sets it");
    follow(World::new().with_kubectl(&kubectl));
}

fn follow(w: World) {
    let registry = Registry::start(&w, "registry", &Protection::default());

    // Create a cluster; open the dashboard.
    let said = w.ok(&format!("mini start --image-mirror k8s.gcr.io=http://{}", registry.address));
    assert!(said.contains("kubectl uses the \"mini\" cluster"), "{said}");
    // The echo server that mini brings along, offered under the tutorial's name by a registry.
    w.ok("mini image save mini.local/echo:1.4 echo.tar");
    push(&w, &std::fs::read(w.home().join("echo.tar")).expect("saved"), &registry, "echoserver:1.4", "");
    let url = w.ok("mini dashboard --url");
    let page = w.ok(&format!("curl -sfL -c cookies -b cookies '{}'", url.trim()));
    assert!(page.contains("<h1>Overview</h1>"), "{page}");
    assert_eq!(
        w.run(&format!("curl -s -o /dev/null -w '%{{http_code}}' '{}'", url.trim())).out,
        "401",
        "a link works once"
    );

    // Create a Deployment.
    like(
        &w.ok("kubectl create deployment hello-node --image=k8s.gcr.io/echoserver:1.4"),
        "deployment.apps/hello-node created",
    );
    w.ok("kubectl rollout status deployment/hello-node --timeout=60s");
    let rows = w.table("kubectl get deployments");
    assert_eq!(
        (&*rows[0]["NAME"], &*rows[0]["READY"], &*rows[0]["UP-TO-DATE"], &*rows[0]["AVAILABLE"]),
        ("hello-node", "1/1", "1", "1")
    );
    let rows = w.table("kubectl get pods");
    assert!(rows[0]["NAME"].starts_with("hello-node-"), "{rows:?}");
    assert_eq!((&*rows[0]["READY"], &*rows[0]["STATUS"], &*rows[0]["RESTARTS"]), ("1/1", "Running", "0"));
    let events = w.ok("kubectl get events");
    for reason in ["ScalingReplicaSet", "SuccessfulCreate", "Scheduled", "Pulling", "Pulled", "Created", "Started"] {
        assert!(events.contains(reason), "no event {reason} in\n{events}");
    }
    let config = w.ok("kubectl config view");
    assert!(config.contains("name: mini") && config.contains("current-context: mini"), "{config}");

    // Create a Service.
    like(&w.ok("kubectl expose deployment hello-node --type=LoadBalancer --port=8080"), "service/hello-node exposed");
    w.until("kubectl get service hello-node -w", "kubectl get service hello-node", "127.78.");
    let rows = w.table("kubectl get services");
    let row = rows.iter().find(|r| r["NAME"] == "hello-node").expect("the service is listed");
    assert_eq!(row["TYPE"], "LoadBalancer");
    like(&row["CLUSTER-IP"], "10.*");
    like(&row["PORT(S)"], "8080:3*/TCP");
    let kubernetes = rows.iter().find(|r| r["NAME"] == "kubernetes").expect("the API is listed");
    assert_eq!(
        (&*kubernetes["CLUSTER-IP"], &*kubernetes["EXTERNAL-IP"], &*kubernetes["PORT(S)"]),
        ("10.96.0.1", "<none>", "443/TCP")
    );
    let url = w.ok("mini service hello-node --url");
    let answer = w.ok(&format!("curl -sS --max-time 10 {}", url.trim()));
    assert!(
        answer.starts_with("CLIENT VALUES:") && answer.contains("command=GET") && answer.contains("HEADERS RECEIVED:"),
        "{answer}"
    );
    let answer = w.ok(&format!("curl -sS --max-time 10 http://{}:8080/", row["EXTERNAL-IP"]));
    assert!(answer.contains("real path=/"), "{answer}");
    like(&w.ok("mini service list"), "NAMESPACE*NAME*TARGET PORT*URL*hello-node*http://127.77.*");

    // Addons.
    let list = w.ok("mini addons list");
    for line in [
        "dashboard: enabled",
        "default-storageclass: enabled",
        "metrics-server: disabled",
        "storage-provisioner: enabled",
    ] {
        assert!(list.contains(line), "no line {line:?} in\n{list}");
    }
    like(&w.ok("mini addons enable metrics-server"), "The 'metrics-server' addon is enabled");
    let system = w.ok("kubectl get pod,svc -n kube-system");
    like(&system, "*service/kube-dns*ClusterIP*10.96.0.10*<none>*53/UDP,53/TCP*");
    assert!(system.contains("service/metrics-server"), "{system}");
    for part in [
        "coredns",
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-proxy",
        "kube-scheduler",
        "metrics-server",
        "storage-provisioner",
    ] {
        like(&system, &format!("*pod/{part}-mini *1/1*Running*"));
    }
    like(&w.ok("kubectl logs -n kube-system kube-scheduler-mini"), "kube-scheduler runs in process *");
    w.fails("kubectl exec -n kube-system etcd-mini -- true");
    w.ok("kubectl delete pod -n kube-system etcd-mini");
    // It stays away for a moment, so that who waited for its end sees it.
    let phase =
        "kubectl get pods -n kube-system -o jsonpath='{.items[?(@.metadata.name==\"etcd-mini\")].status.phase}'";
    w.until("kubectl get pods -n kube-system -w", phase, "Running");
    let top = w.table("kubectl top nodes");
    like(&top[0]["CPU(cores)"], "*m");
    like(&top[0]["MEMORY(bytes)"], "*Mi");
    let top = w.table("kubectl top pods");
    assert!(top[0]["NAME"].starts_with("hello-node-"), "{top:?}");
    like(&w.ok("mini addons disable metrics-server"), "metrics-server was successfully disabled");
    w.fails("kubectl top nodes");

    // Clean up.
    like(&w.ok("kubectl delete service hello-node"), "service \"hello-node\" deleted*");
    like(&w.ok("kubectl delete deployment hello-node"), "deployment.apps \"hello-node\" deleted*");
    w.ok("kubectl wait --for=delete pod -l app=hello-node --timeout=60s || true");
    assert_eq!(w.ok("kubectl get pods -l app=hello-node -o name"), "");
    w.ok("mini stop");
    assert_eq!(w.run("mini status").code, 7);
    w.ok("mini delete");
    assert!(!w.profile("mini").exists());
}
