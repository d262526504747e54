//! Chapter 6.1, "StatefulSet basics": all of it.

use crate::images::shelf;
use crate::terminal::Terminal;
use crate::watch::Watch;
use crate::world::{World, like};

const WATCH: &str = "kubectl get pods -w -l app=nginx";

/// What a watch shows of a pod that is made and becomes ready.
fn starts(pod: &str) -> [String; 4] {
    ["0/1 Pending", "0/1 Pending", "0/1 ContainerCreating", "1/1 Running"].map(|state| format!("{pod} {state}"))
}

/// What a watch shows of a pod that is deleted: v1.35 says `Completed` once its container has ended, where the page's says
/// `Terminating` to the end.
fn ends(pod: &str) -> [String; 2] {
    [format!("{pod} 1/1 Terminating"), format!("{pod} 0/1 Completed")]
}

fn shows<const N: usize>(watch: &mut Watch<'_>, rows: [String; N]) {
    watch.shows(&rows.each_ref().map(String::as_str));
}

impl World {
    /// The pods of the set with their restarts, which must all be ready.
    #[track_caller]
    fn web(&self) -> Vec<String> {
        let rows = self.table("kubectl get pods -l app=nginx");
        let is_fine = |row: &std::collections::BTreeMap<String, String>| {
            (&*row["READY"], &*row["STATUS"], &*row["RESTARTS"]) == ("1/1", "Running", "0")
        };
        assert!(rows.iter().all(is_fine), "{rows:?}");
        rows.iter().map(|row| row["NAME"].clone()).collect()
    }

    #[track_caller]
    fn image_of(&self, pod: &str) -> String {
        self.ok(&format!(
            "kubectl get pod {pod} --template '{{{{range $i, $c := .spec.containers}}}}{{{{$c.image}}}}{{{{end}}}}'"
        ))
    }

    /// The pages that the servers of the first two pods give.
    #[track_caller]
    fn pages_are_those_of_the_hosts(&self) {
        let command = "for i in 0 1; do kubectl exec -i -t \"web-$i\" -- curl -s http://localhost/; done";
        assert_eq!(self.ok(command), "web-0\nweb-1\n");
    }
}

/// Looks both pods up from a pod of its own; returns their addresses.
fn look_up(w: &World, command: &str) -> [String; 2] {
    let mut shell = Terminal::open(w, command);
    shell.types("");
    shell.shows("/ # ");
    let addresses = ["web-0.nginx", "web-1.nginx"].map(|name| {
        shell.types(&format!("nslookup {name}"));
        let answer = shell.shows("/ # ");
        let begin = answer.find("Server:").unwrap_or_else(|| panic!("no answer: {answer}"));
        like(
            answer[begin..].trim_end_matches("/ # "),
            &format!(
                "Server:    10.96.0.10\nAddress 1: 10.96.0.10 kube-dns.kube-system.svc.cluster.local\n\n\
                 Name:      {name}\nAddress 1: 10.244.*"
            ),
        );
        let last = answer.rsplit("Address 1: ").next().expect("it was there");
        last.split_whitespace().next().expect("an address").to_owned()
    });
    shell.types("exit");
    assert!(shell.ends().contains("pod \"dns-test\" deleted"));
    addresses
}

#[test]
fn chapter_6_1() {
    let w = World::new();
    let registry = shelf::registry(&w);
    w.ok(&format!("mini start --image-mirror http://{}", registry.address));
    w.ok("cp https://k8s.io/examples/application/web/*.yaml .");

    // Created in order.
    let mut pods = Watch::get(&w, WATCH);
    like(&w.ok("kubectl apply -f web.yaml"), "service/nginx created\nstatefulset.apps/web created");
    like(
        &w.ok("kubectl get service nginx"),
        "NAME    TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE\nnginx   ClusterIP   None         <none>        80/TCP    *",
    );
    shows(&mut pods, starts("web-0"));
    shows(&mut pods, starts("web-1"));
    drop(pods);
    like(&w.ok("kubectl get statefulset web"), "NAME   READY   AGE\nweb    2/2     *");
    assert_eq!(w.web(), ["web-0", "web-1"]);

    // Stable network identities.
    let hostnames = "for i in 0 1; do kubectl exec \"web-$i\" -- sh -c 'hostname'; done";
    assert_eq!(w.ok(hostnames), "web-0\nweb-1\n");
    let before = look_up(&w, "kubectl run -i --tty --image busybox:1.28 dns-test --restart=Never --rm");
    let mut pods = Watch::get(&w, WATCH);
    like(&w.ok("kubectl delete pod -l app=nginx"), "pod \"web-0\" deleted*\npod \"web-1\" deleted*");
    shows(&mut pods, starts("web-0"));
    shows(&mut pods, starts("web-1"));
    drop(pods);
    assert_eq!(w.ok(hostnames), "web-0\nweb-1\n");
    let after = look_up(&w, "kubectl run -i --tty --image busybox:1.28 dns-test --restart=Never --rm /bin/sh");
    for (pod, address) in ["web-0", "web-1"].iter().zip(&after) {
        assert_eq!(&w.ok(&format!("kubectl get pod {pod} -o jsonpath='{{.status.podIP}}'")), address);
    }
    println!("addresses before {before:?} and after {after:?}");

    // Stable storage.
    like(
        &w.ok("kubectl get pvc -l app=nginx"),
        "NAME*STATUS*VOLUME*CAPACITY   ACCESS MODES   STORAGECLASS*\nwww-web-0   Bound    pvc-*1Gi*RWO*standard*\n\
         www-web-1   Bound    pvc-*1Gi*RWO*standard*",
    );
    w.ok(
        "for i in 0 1; do kubectl exec \"web-$i\" -- sh -c 'echo $(hostname) > /usr/share/nginx/html/index.html'; done",
    );
    assert_eq!(w.ok("for i in 0 1; do kubectl exec -it \"web-$i\" -- curl -s localhost; done"), "web-0\nweb-1\n");
    let mut pods = Watch::get(&w, "kubectl get pod -w -l app=nginx");
    like(&w.ok("kubectl delete pod -l app=nginx"), "pod \"web-0\" deleted*\npod \"web-1\" deleted*");
    shows(&mut pods, starts("web-0"));
    shows(&mut pods, starts("web-1"));
    drop(pods);
    w.pages_are_those_of_the_hosts();

    // Scaled up in order, and down in the reverse one; claims stay.
    let mut pods = Watch::get(&w, WATCH);
    like(&w.ok("kubectl scale sts web --replicas=5"), "statefulset.apps/web scaled");
    for pod in ["web-2", "web-3", "web-4"] {
        shows(&mut pods, starts(pod));
    }
    like(&w.ok("kubectl patch sts web -p '{\"spec\":{\"replicas\":3}}'"), "statefulset.apps/web patched");
    shows(&mut pods, ends("web-4"));
    shows(&mut pods, ends("web-3"));
    drop(pods);
    w.ok("kubectl wait --for=delete pod/web-3 --timeout=60s");
    assert_eq!(w.web(), ["web-0", "web-1", "web-2"]);
    let claims = w.table("kubectl get pvc -l app=nginx");
    let names: Vec<&str> = claims.iter().map(|row| &*row["NAME"]).collect();
    assert_eq!(names, ["www-web-0", "www-web-1", "www-web-2", "www-web-3", "www-web-4"]);
    assert!(claims.iter().all(|row| row["STATUS"] == "Bound"), "{claims:?}");

    update(&w);
    delete(&w);
    in_parallel(&w);
}

/// Rolling updates, partitions, a canary.
fn update(w: &World) {
    let patch_image = |image: &str| {
        like(
            &w.ok(&format!("kubectl patch statefulset web --type='json' -p='[{{\"op\": \"replace\", \"path\": \"/spec/template/spec/containers/0/image\", \"value\":\"{image}\"}}]'")),
            "statefulset.apps/web patched",
        );
    };
    let patch_partition = |partition: u32| {
        like(
            &w.ok(&format!("kubectl patch statefulset web -p '{{\"spec\":{{\"updateStrategy\":{{\"type\":\"RollingUpdate\",\"rollingUpdate\":{{\"partition\":{partition}}}}}}}}}'")),
            "statefulset.apps/web patched*",
        );
    };
    like(
        &w.ok("kubectl patch statefulset web -p '{\"spec\":{\"updateStrategy\":{\"type\":\"RollingUpdate\"}}}'"),
        "statefulset.apps/web patched*",
    );
    let mut pods = Watch::get(w, "kubectl get pod -l app=nginx -w");
    patch_image("gcr.io/google_containers/nginx-slim:0.8");
    for pod in ["web-2", "web-1", "web-0"] {
        shows(&mut pods, ends(pod));
        shows(&mut pods, starts(pod));
    }
    drop(pods);
    // The page prints the old name here; the patch before set this one.
    let images = "for p in 0 1 2; do kubectl get pod \"web-$p\" --template '{{range $i, $c := .spec.containers}}{{$c.image}}{{end}}'; echo; done";
    assert_eq!(w.ok(images), "gcr.io/google_containers/nginx-slim:0.8\n".repeat(3));

    // A partition above all ordinals: a deleted pod comes back as it was.
    patch_partition(3);
    patch_image("k8s.gcr.io/nginx-slim:0.7");
    let mut pods = Watch::get(w, "kubectl get pod -l app=nginx -w");
    like(&w.ok("kubectl delete pod web-2"), "pod \"web-2\" deleted*");
    shows(&mut pods, starts("web-2"));
    assert_eq!(w.image_of("web-2"), "gcr.io/google_containers/nginx-slim:0.8");
    // A canary.
    patch_partition(2);
    shows(&mut pods, ends("web-2"));
    shows(&mut pods, starts("web-2"));
    assert_eq!(w.image_of("web-2"), "k8s.gcr.io/nginx-slim:0.7");
    like(&w.ok("kubectl delete pod web-1"), "pod \"web-1\" deleted*");
    shows(&mut pods, ends("web-1"));
    shows(&mut pods, starts("web-1"));
    assert_eq!(w.image_of("web-1"), "gcr.io/google_containers/nginx-slim:0.8");
    // All of them.
    patch_partition(0);
    for pod in ["web-1", "web-0"] {
        shows(&mut pods, ends(pod));
        shows(&mut pods, starts(pod));
    }
    assert_eq!(w.ok(images), "k8s.gcr.io/nginx-slim:0.7\n".repeat(3));
}

/// Deleted without its pods, adopted again, deleted with them, made anew: the pages stay.
fn delete(w: &World) {
    like(&w.ok("kubectl delete statefulset web --cascade=orphan"), "statefulset.apps \"web\" deleted*");
    assert_eq!(w.web(), ["web-0", "web-1", "web-2"]);
    like(&w.ok("kubectl delete pod web-0"), "pod \"web-0\" deleted*");
    assert_eq!(w.web(), ["web-1", "web-2"]);
    let mut pods = Watch::get(w, WATCH);
    like(&w.ok("kubectl apply -f web.yaml"), "service/nginx unchanged\nstatefulset.apps/web created");
    shows(&mut pods, starts("web-0"));
    shows(&mut pods, ends("web-2"));
    drop(pods);
    w.ok("kubectl rollout status sts/web --timeout=60s");
    w.pages_are_those_of_the_hosts();

    let mut pods = Watch::get(w, WATCH);
    like(&w.ok("kubectl delete statefulset web"), "statefulset.apps \"web\" deleted*");
    pods.shows(&["web-0 1/1 Terminating"]);
    w.ok("kubectl wait --for=delete pod -l app=nginx --timeout=60s");
    drop(pods);
    like(&w.ok("kubectl delete service nginx"), "service \"nginx\" deleted*");
    like(&w.ok("kubectl apply -f web.yaml"), "service/nginx created\nstatefulset.apps/web created");
    w.ok("kubectl rollout status sts/web --timeout=60s");
    w.pages_are_those_of_the_hosts();
    like(&w.ok("kubectl delete service nginx"), "service \"nginx\" deleted*");
    like(&w.ok("kubectl delete statefulset web"), "statefulset.apps \"web\" deleted*");
    w.ok("kubectl wait --for=delete pod -l app=nginx --timeout=60s");
}

/// All pods at once.
fn in_parallel(w: &World) {
    let mut pods = Watch::get(w, "kubectl get pod -l app=nginx -w");
    like(&w.ok("kubectl apply -f web-parallel.yaml"), "service/nginx created\nstatefulset.apps/web created");
    pods.shows(&["web-0 0/1 Pending", "web-1 0/1 Pending", "web-0 1/1 Running"]);
    w.ok("kubectl rollout status sts/web --timeout=60s");
    like(&w.ok("kubectl scale statefulset/web --replicas=4"), "statefulset.apps/web scaled");
    pods.shows(&["web-2 0/1 Pending", "web-3 0/1 Pending", "web-2 1/1 Running"]);
    w.ok("kubectl rollout status sts/web --timeout=60s");
    assert_eq!(w.web(), ["web-0", "web-1", "web-2", "web-3"]);
    like(&w.ok("kubectl delete sts web"), "statefulset.apps \"web\" deleted*");
    // None waits for another's end.
    let terminating = w.ok("kubectl get pods -l app=nginx --no-headers || true");
    println!("{terminating}");
    w.ok("kubectl wait --for=delete pod -l app=nginx --timeout=60s");
    like(&w.ok("kubectl delete svc nginx"), "service \"nginx\" deleted*");
}

#[test]
fn faults_leave_a_stateful_set_as_it_was_meant() {
    let w = World::new();
    let registry = shelf::registry(&w);
    w.ok(&format!("mini start --image-mirror http://{}", registry.address));
    w.ok("kubectl apply -f https://k8s.io/examples/application/web/web.yaml");
    w.ok("kubectl rollout status sts/web --timeout=120s");
    let write =
        "for i in 0 1; do kubectl exec \"web-$i\" -- sh -c 'echo $(hostname) > /usr/share/nginx/html/index.html'; done";
    w.ok(write);
    // The daemon while a pod is being made.
    let mut pods = Watch::get(&w, WATCH);
    w.ok("kubectl scale sts web --replicas=4");
    pods.shows(&["web-2 0/1 Pending"]);
    w.kill_daemon();
    drop(pods);
    w.ok("mini start");
    w.ok("kubectl rollout status sts/web --timeout=120s");
    assert_eq!(w.web(), ["web-0", "web-1", "web-2", "web-3"]);
    // The daemon while a pod is being replaced.
    let mut pods = Watch::get(&w, WATCH);
    w.ok("kubectl set image sts/web nginx=k8s.gcr.io/nginx-slim:0.7");
    pods.shows(&["web-3 1/1 Terminating"]);
    w.kill_daemon();
    drop(pods);
    w.ok("mini start");
    w.ok("kubectl rollout status sts/web --timeout=120s");
    assert_eq!(
        w.ok("kubectl get pods -l app=nginx -o jsonpath='{.items[*].spec.containers[0].image}'"),
        ["k8s.gcr.io/nginx-slim:0.7"; 4].join(" ")
    );
    // A shim, and a server.
    let restarts = "kubectl get pod web-0 -o jsonpath='{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}'";
    w.kill_shim("pod/web-0");
    w.until("kubectl get pod web-0 -w", restarts, "1 true");
    w.kill_container("pod/web-0");
    w.until("kubectl get pod web-0 -w", restarts, "2 true");
    w.pages_are_those_of_the_hosts();
    let claims = w.table("kubectl get pvc -l app=nginx");
    assert_eq!(claims.len(), 4, "{claims:?}");
}
