//! Chapter 3.2, "Configuring Redis using a ConfigMap".

use crate::images::shelf;
use crate::terminal::Terminal;
use crate::world::{World, like};

#[test]
fn chapter_3_2() {
    let w = World::new();
    let registry = shelf::registry(&w);
    w.ok(&format!("mini start --image-mirror http://{}", registry.address));
    let settings = |memory: &str, policy: &str| {
        let mut terminal = Terminal::open(&w, "kubectl exec -it redis -- redis-cli");
        terminal.shows(PROMPT);
        for (name, value) in [("maxmemory", memory), ("maxmemory-policy", policy)] {
            terminal.types(&format!("CONFIG GET {name}"));
            let answer = terminal.shows(&format!("\n{PROMPT}"));
            assert!(answer.contains(&format!("1) \"{name}\"\n2) \"{value}\"\n")), "{name} is not {value}:\n{answer}");
        }
        terminal.types("exit");
        terminal.ends();
    };

    w.ok("cat <<EOF >./example-redis-config.yaml
apiVersion: v1
kind: ConfigMap
metadata:
  name: example-redis-config
data:
  redis-config: \"\"
EOF");
    like(&w.ok("kubectl apply -f example-redis-config.yaml"), "configmap/example-redis-config created");
    like(&w.ok(APPLY_POD), "pod/redis created");
    w.ok("kubectl wait --for=condition=Ready pod/redis --timeout=60s");
    like(
        &w.ok("kubectl get pod/redis configmap/example-redis-config"),
        "NAME        READY   STATUS    RESTARTS   AGE\npod/redis   1/1     Running   0          *\n\n\
         NAME                             DATA   AGE\nconfigmap/example-redis-config   1      *",
    );
    like(
        &w.ok("kubectl describe configmap/example-redis-config"),
        "Name:         example-redis-config\nNamespace:    default\nLabels:       <none>\nAnnotations:  <none>\n\n\
         Data\n====\nredis-config:\n*",
    );
    settings("0", "noeviction");

    // Two values more: the running server does not know them.
    w.write(
        "example-redis-config.yaml",
        "apiVersion: v1
kind: ConfigMap
metadata:
  name: example-redis-config
data:
  redis-config: |
    maxmemory 2mb
    maxmemory-policy allkeys-lru    
",
    );
    like(&w.ok("kubectl apply -f example-redis-config.yaml"), "configmap/example-redis-config configured");
    like(
        &w.ok("kubectl describe configmap/example-redis-config"),
        "Name:         example-redis-config\nNamespace:    default\nLabels:       <none>\nAnnotations:  <none>\n\n\
         Data\n====\nredis-config:\n----\nmaxmemory 2mb\nmaxmemory-policy allkeys-lru*",
    );
    settings("0", "noeviction");

    // A new pod does.
    like(&w.ok("kubectl delete pod redis"), "pod \"redis\" deleted*");
    like(&w.ok(APPLY_POD), "pod/redis created");
    w.ok("kubectl wait --for=condition=Ready pod/redis --timeout=60s");
    settings("2097152", "allkeys-lru");

    let said = w.ok("kubectl delete pod/redis configmap/example-redis-config");
    like(&said, "pod \"redis\" deleted*\nconfigmap \"example-redis-config\" deleted*");
}

const APPLY_POD: &str = "kubectl apply -f https://raw.githubusercontent.com/kubernetes/website/main/content/en/examples/pods/config/redis-pod.yaml";
const PROMPT: &str = "127.0.0.1:6379> ";
