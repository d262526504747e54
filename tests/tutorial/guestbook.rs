//! Chapter 5.2, "Deploying PHP Guestbook application with Redis", used in a real browser.

use crate::browser::Browser;
use crate::images::shelf;
use crate::watch::Watch;
use crate::world::{World, like};

#[test]
fn chapter_5_2() {
    let w = World::new();
    let registry = shelf::registry(&w);
    w.ok(&format!("mini start --image-mirror http://{}", registry.address));
    let apply = |file: &str, said: &str| {
        let address = "https://k8s.io/examples/application/guestbook";
        like(&w.ok(&format!("kubectl apply -f {address}/{file}.yaml")), said);
    };
    let service = |rows: &[(&str, &str)]| {
        let table = w.table("kubectl get service");
        let found: Vec<_> = table.iter().map(|row| (&*row["NAME"], &*row["PORT(S)"])).collect();
        assert_eq!(found, rows);
        assert!(table.iter().all(|row| row["TYPE"] == "ClusterIP" && row["EXTERNAL-IP"] == "<none>"), "{table:?}");
    };
    let running = |wanted: &[(&str, usize)]| {
        let rows = w.table("kubectl get pods");
        let mut count = 0;
        for (beginning, number) in wanted {
            let mine: Vec<_> = rows.iter().filter(|row| row["NAME"].starts_with(beginning)).collect();
            assert_eq!(mine.len(), *number, "{beginning}: {rows:?}");
            let is_fine = |row: &&_| -> bool {
                let row: &std::collections::BTreeMap<String, String> = row;
                (&*row["READY"], &*row["STATUS"], &*row["RESTARTS"]) == ("1/1", "Running", "0")
            };
            assert!(mine.iter().all(is_fine), "{rows:?}");
            count += number;
        }
        assert_eq!(rows.len(), count, "{rows:?}");
    };

    // The Redis database.
    apply("redis-leader-deployment", "deployment.apps/redis-leader created");
    w.ok("kubectl rollout status deployment/redis-leader --timeout=60s");
    running(&[("redis-leader-", 1)]);
    Watch::start(&w, "kubectl logs -f deployment/redis-leader").contains("Ready to accept connections");
    apply("redis-leader-service", "service/redis-leader created");
    service(&[("kubernetes", "443/TCP"), ("redis-leader", "6379/TCP")]);

    // Its followers.
    apply("redis-follower-deployment", "deployment.apps/redis-follower created");
    w.ok("kubectl rollout status deployment/redis-follower --timeout=60s");
    running(&[("redis-leader-", 1), ("redis-follower-", 2)]);
    apply("redis-follower-service", "service/redis-follower created");
    service(&[("kubernetes", "443/TCP"), ("redis-follower", "6379/TCP"), ("redis-leader", "6379/TCP")]);
    Watch::start(&w, "kubectl logs -f -l role=follower").contains("MASTER <-> REPLICA sync: Finished with success");

    // The web front end.
    apply("frontend-deployment", "deployment.apps/frontend created");
    w.ok("kubectl rollout status deployment/frontend --timeout=60s");
    let rows = w.table("kubectl get pods -l app=guestbook -l tier=frontend");
    assert_eq!(rows.len(), 3, "{rows:?}");
    apply("frontend-service", "service/frontend created");
    service(&[
        ("frontend", "80/TCP"),
        ("kubernetes", "443/TCP"),
        ("redis-follower", "6379/TCP"),
        ("redis-leader", "6379/TCP"),
    ]);

    // Used through a forwarded port.
    let mut forward = Watch::start(&w, "kubectl port-forward svc/frontend 8080:80");
    forward.shows(&["Forwarding from 127.0.0.1:8080 -> 80"]);
    let mut browser = Browser::open(&w);
    browser.go("http://localhost:8080");
    assert!(browser.text().contains("Guestbook"), "{}", browser.text());
    for message in ["Hello from the browser", "안녕하세요"] {
        browser.enter("input", message);
        browser.click("button");
        browser.until(&format!("document.querySelector('#messages').innerText.includes({message:?})"));
    }
    drop(forward);
    // What the leader was told, every follower says.
    for pod in w.ok("kubectl get pods -l app=redis -o name").lines() {
        let messages = w.ok(&format!("kubectl exec {pod} -- redis-cli --raw get messages"));
        assert_eq!(messages.trim(), ",Hello from the browser,안녕하세요", "{pod}");
    }
    assert!(w.ok("kubectl exec deployment/redis-leader -- redis-cli info replication").contains("connected_slaves:2"));

    // With an address of its own.
    like(
        &w.ok("kubectl patch service frontend -p '{\"spec\":{\"type\":\"LoadBalancer\"}}'"),
        "service/frontend patched",
    );
    w.until("kubectl get service frontend -w", "kubectl get service frontend", "127.78.");
    let rows = w.table("kubectl get service frontend");
    like(&rows[0]["PORT(S)"], "80:3*/TCP");
    let url = w.ok("mini service frontend --url");
    browser.go(url.trim());
    browser.until("document.querySelector('#messages').innerText.includes('안녕하세요')");
    assert!(browser.text().contains("Hello from the browser"), "{}", browser.text());

    // More and fewer front ends.
    like(&w.ok("kubectl scale deployment frontend --replicas=5"), "deployment.apps/frontend scaled");
    w.ok("kubectl rollout status deployment/frontend --timeout=60s");
    running(&[("frontend-", 5), ("redis-follower-", 2), ("redis-leader-", 1)]);
    like(&w.ok("kubectl scale deployment frontend --replicas=2"), "deployment.apps/frontend scaled");
    w.until("kubectl get pods -w", "kubectl get pods -l tier=frontend --no-headers | wc -l", "2\n");
    running(&[("frontend-", 2), ("redis-follower-", 2), ("redis-leader-", 1)]);

    // Clean up.
    like(
        &w.ok("kubectl delete deployment -l app=redis"),
        "deployment.apps \"redis-follower\" deleted*\ndeployment.apps \"redis-leader\" deleted*",
    );
    like(
        &w.ok("kubectl delete service -l app=redis"),
        "service \"redis-follower\" deleted*\nservice \"redis-leader\" deleted*",
    );
    like(&w.ok("kubectl delete deployment frontend"), "deployment.apps \"frontend\" deleted*");
    like(&w.ok("kubectl delete service frontend"), "service \"frontend\" deleted*");
    w.ok("kubectl wait --for=delete pod --all --timeout=60s");
    assert_eq!(w.run("kubectl get pods").err.trim(), "No resources found in default namespace.");
}
