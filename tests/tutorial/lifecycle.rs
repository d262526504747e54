//! Start, stop, start again, kill, delete: what a cluster keeps, and that it leaves nothing behind.

use std::process::Command;

use crate::images::{Protection, Registry, bootcamp, push};
use crate::world::{World, like};

/// Lines of /proc/mounts below a directory, and processes that run this world's binary.
pub fn remains(w: &World) -> String {
    let home = w.home().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<String> = mounts.lines().filter(|line| line.contains(&home)).map(str::to_owned).collect();
    for entry in std::fs::read_dir("/proc").expect("proc is there").flatten() {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&environ);
        let ours = text.split('\0').any(|v| v == format!("HOME={home}"));
        let command = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        if ours && command.contains("mini") {
            found.push(format!("{}: {command}", entry.file_name().to_string_lossy()));
        }
    }
    found.join("\n")
}

#[test]
fn a_stopped_cluster_comes_back_with_everything() {
    let w = World::new();
    let registry = Registry::start(&w, "registry", &Protection::default());
    push(&w, &bootcamp("bootcamp:v1", 1), &registry, "library/bootcamp:v1", "");
    let said = w.ok(&format!("mini start --image-mirror docker.io=http://{}", registry.address));
    assert!(said.contains("is ready after"), "{said}");
    assert_eq!(w.run("mini status").code, 0);
    like(&w.ok("mini start"), "The cluster \"mini\" is already running");
    w.ok("kubectl create configmap kept --from-literal=a=b");
    w.ok("kubectl create deployment web --image=docker.io/bootcamp:v1 --replicas=2");
    w.ok("kubectl expose deployment web --port 8080 --type NodePort");
    w.ok("kubectl rollout status deployment/web --timeout=60s");
    let uid = w.ok("kubectl get deployment web -o jsonpath='{.metadata.uid}'");
    w.ok("mini stop");
    assert_eq!(remains(&w), "", "stop leaves no process and no mount");
    let said = w.run("mini status");
    assert_eq!(said.code, 7);
    like(
        &said.out,
        "mini*type: Control Plane*host: Stopped*kubelet: Stopped*apiserver: Stopped*kubeconfig: Configured*",
    );
    like(&w.ok("mini stop"), "*was not running");
    drop(registry);
    // The registry is gone: the images that were pulled are enough.
    w.ok("mini start");
    assert_eq!(w.ok("kubectl get configmap kept -o jsonpath='{.data.a}'"), "b");
    assert_eq!(w.ok("kubectl get deployment web -o jsonpath='{.metadata.uid}'"), uid);
    w.ok("kubectl rollout status deployment/web --timeout=60s");
    w.ok("kubectl wait --for=condition=Ready pod -l app=web --timeout=60s");
    let port = w.ok("kubectl get service web -o jsonpath='{.spec.ports[0].nodePort}'");
    assert!(w.ok(&format!("curl -sS --max-time 10 $(mini ip):{port}")).contains("Running on"));
    w.ok("mini delete");
    assert_eq!(remains(&w), "", "delete leaves no process and no mount");
    assert!(!w.profile("mini").exists(), "delete leaves no file");
    assert!(!w.ok("kubectl config get-contexts -o name || true").contains("mini"));
    assert_eq!(w.run("mini status").code, 85);
}

#[test]
fn a_killed_daemon_loses_nothing_and_pods_survive_it() {
    let w = World::new();
    let registry = Registry::start(&w, "registry", &Protection::default());
    push(&w, &bootcamp("bootcamp:v1", 1), &registry, "library/bootcamp:v1", "");
    w.ok(&format!("mini start --image-mirror docker.io=http://{}", registry.address));
    w.ok("kubectl create deployment web --image=bootcamp:v1 --replicas=2");
    w.ok("kubectl expose deployment web --port 8080 --type NodePort");
    w.ok("kubectl rollout status deployment/web --timeout=60s");
    let pods = "kubectl get pods -l app=web -o jsonpath='{range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}'";
    let before = w.ok(pods);
    for round in 0..3 {
        w.ok(&format!("kubectl create configmap round-{round}"));
        let pid = w.ok("mini status -o json | sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'");
        assert!(Command::new("kill").args(["-KILL", pid.trim()]).status().expect("kill runs").success());
        w.ok("mini start");
        assert_eq!(w.ok(pods), before, "the same containers go on running");
        assert_eq!(
            w.ok(&format!("kubectl get configmap round-{round} -o name")).trim(),
            format!("configmap/round-{round}")
        );
        let port = w.ok("kubectl get service web -o jsonpath='{.spec.ports[0].nodePort}'");
        assert!(w.ok(&format!("curl -sS --max-time 10 $(mini ip):{port}")).contains("Running on"));
        assert!(w.ok("kubectl exec deployment/web -- hostname").starts_with("web-"));
    }
    // Killed and then stopped or deleted: what still ran goes too.
    let pid = w.ok("mini status -o json | sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'");
    assert!(Command::new("kill").args(["-KILL", pid.trim()]).status().expect("kill runs").success());
    w.ok("mini delete");
    assert_eq!(remains(&w), "");
}

#[test]
fn two_profiles_run_side_by_side() {
    let w = World::new();
    w.ok("mini start -p one");
    w.ok("mini start -p two");
    w.ok("kubectl --context one create configmap only-in-one");
    assert!(w.run("kubectl --context two get configmap only-in-one").err.contains("NotFound"));
    let (one, two) = (w.ok("mini ip -p one"), w.ok("mini ip -p two"));
    assert_ne!(one, two);
    like(&w.ok("mini profile list"), "PROFILE*IP*PORT*VERSION*STATUS*one*OK*two*OK");
    w.ok("mini -p one kubectl -- get nodes one");
    w.ok("mini delete -p one");
    w.ok("kubectl --context two get nodes two");
    w.ok("mini delete --all --purge");
    assert!(!w.home().join(".mini").exists());
    assert_eq!(remains(&w), "");
}

#[test]
fn a_cluster_needs_no_network_for_its_own_images() {
    let w = World::new();
    w.ok("mini start");
    assert!(w.ok("mini image ls").contains("mini.local/echo:1.4"));
    w.ok("kubectl create deployment echo --image=mini.local/echo:1.4");
    w.ok("kubectl rollout status deployment/echo --timeout=60s");
    w.ok("kubectl expose deployment echo --type=NodePort --port=8080");
    let answer = w.ok("curl -sS --max-time 10 \"$(mini service echo --url)\"");
    assert!(answer.starts_with("CLIENT VALUES:"), "{answer}");
}

#[test]
fn a_claims_data_survives_pods_and_stops_and_goes_with_the_claim() {
    let w = World::new();
    w.ok("mini start");
    let archive = crate::images::busybox("shell:1", Vec::new(), &["/bin/sh"], &[]);
    std::fs::write(w.home().join("shell.tar"), archive).expect("written");
    w.ok("mini image load shell.tar");
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec:\n  accessModes: [ReadWriteOnce]\n  resources: {requests: {storage: 1Mi}}\n";
    let pod = |name: &str, command: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  - name: c\n    image: shell:1\n    imagePullPolicy: Never\n    command: [sh, -c, \"{command}\"]\n    volumeMounts: [{{name: v, mountPath: /data}}]\n  volumes: [{{name: v, persistentVolumeClaim: {{claimName: data}}}}]\n"
        )
    };
    let apply = |text: &str| {
        std::fs::write(w.home().join("manifest.yaml"), text).expect("written");
        w.ok("kubectl apply -f manifest.yaml");
    };
    apply(claim);
    apply(&pod("writer", "echo kept > /data/file"));
    w.ok("kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/writer --timeout=60s");
    like(&w.ok("kubectl get pvc data"), "NAME*data*Bound*pvc-*1Mi*RWO*standard*");
    w.ok("mini stop");
    w.ok("mini start");
    apply(&pod("reader", "cat /data/file"));
    w.ok("kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/reader --timeout=60s");
    assert_eq!(w.ok("kubectl logs reader"), "kept\n");
    w.ok("kubectl delete pod writer reader");
    w.ok("kubectl delete pvc data");
    w.ok("kubectl wait --for=delete pv --all --timeout=60s || true");
    assert_eq!(w.ok("kubectl get pv -o name"), "");
    assert_eq!(
        std::fs::read_dir(w.profile("mini").join("volumes")).expect("listed").count(),
        0,
        "the data went with the claim"
    );
    // A claim made anew under the old name starts empty.
    apply(claim);
    apply(&pod("again", "ls /data"));
    w.ok("kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/again --timeout=60s");
    assert_eq!(w.ok("kubectl logs again"), "");
}
