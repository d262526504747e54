//! Chapter 7.1, "Using source IP": whose address a server sees, by the type of the Service and its traffic policy.

use crate::images::{Protection, Registry, push, shelf};
use crate::terminal::Terminal;
use crate::world::{World, like};

/// As whom the cluster sees the host where the source is kept.
const HOST: &str = "192.168.49.1";

#[test]
fn chapter_7_1() {
    let w = World::new();
    let (pages, own) = (shelf::registry(&w), Registry::start(&w, "registry", &Protection::default()));
    w.ok(&format!(
        "mini start --nodes 3 --image-mirror k8s.gcr.io=http://{} --image-mirror http://{}",
        own.address, pages.address
    ));
    w.ok("mini image save mini.local/echo:1.4 echo.tar");
    push(&w, &std::fs::read(w.home().join("echo.tar")).expect("saved"), &own, "echoserver:1.4", "");

    like(
        &w.ok("kubectl create deployment source-ip-app --image=k8s.gcr.io/echoserver:1.4"),
        "deployment.apps/source-ip-app created",
    );
    let nodes = w.table("kubectl get nodes");
    let nodes: Vec<&str> = nodes.iter().map(|row| &*row["NAME"]).collect();
    assert_eq!(nodes, ["mini", "mini-m02", "mini-m03"]);
    // The page's answer is `iptables`: here a process keeps the addresses.
    for node in &nodes {
        assert_eq!(w.ok(&format!("mini ssh -n {node} -- curl -sS localhost:10249/proxyMode")), "userspace");
    }
    w.ok("kubectl rollout status deployment/source-ip-app --timeout=120s");
    cluster_ip(&w, &nodes);
    node_port(&w);
    load_balancer(&w, &nodes);

    // Clean up.
    let said = w.ok("kubectl delete svc -l app=source-ip-app");
    for name in ["clusterip", "loadbalancer", "nodeport"] {
        assert!(said.contains(&format!("service \"{name}\" deleted")), "{said}");
    }
    like(&w.ok("kubectl delete deployment source-ip-app"), "deployment.apps \"source-ip-app\" deleted*");
    w.ok("kubectl wait --for=delete pod -l app=source-ip-app --timeout=60s");
}

/// Inside the cluster nothing changes the source, whether client and server are on one node or not.
fn cluster_ip(w: &World, nodes: &[&str]) {
    like(
        &w.ok("kubectl expose deployment source-ip-app --name=clusterip --port=80 --target-port=8080"),
        "service/clusterip exposed",
    );
    let rows = w.table("kubectl get svc clusterip");
    let address = &*rows[0]["CLUSTER-IP"];
    like(address, "10.*");
    assert_eq!(
        (&*rows[0]["NAME"], &*rows[0]["TYPE"], &*rows[0]["EXTERNAL-IP"], &*rows[0]["PORT(S)"]),
        ("clusterip", "ClusterIP", "<none>", "80/TCP")
    );

    let mut shell = Terminal::open(w, "kubectl run busybox -it --image=busybox:1.28 --restart=Never --rm");
    shell.types("");
    shell.shows("/ # ");
    shell.types("ip addr");
    let links = shell.shows("/ # ");
    assert!(links.contains("1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536"), "{links}");
    let link = &links[links.find("eth0").unwrap_or_else(|| panic!("no eth0 in {links}"))..];
    let own = link.lines().find_map(|line| line.trim().strip_prefix("inet ")).expect("an address");
    let own = own.split('/').next().expect("a word").to_owned();
    assert!(own.starts_with("10.244."), "{links}");
    shell.types(&format!("wget -qO - {address}"));
    let answer = shell.shows("/ # ");
    assert!(answer.contains(&format!("CLIENT VALUES:\nclient_address={own}\ncommand=GET\n")), "{answer}");
    shell.types("exit");
    assert!(shell.ends().contains("pod \"busybox\" deleted"));

    for node in nodes {
        w.ok(&format!(
            "kubectl run from-{node} --image=busybox:1.28 --restart=Never --overrides='{{\"spec\": {{\"nodeName\": \"{node}\"}}}}' \
             -- sh -c 'hostname -i; wget -qO - {address}'"
        ));
        w.ok(&format!("kubectl wait --for=jsonpath='{{.status.phase}}'=Succeeded pod/from-{node} --timeout=120s"));
        let said = w.ok(&format!("kubectl logs from-{node}"));
        let own =
            said.lines().find(|line| line.starts_with("10.244.")).unwrap_or_else(|| panic!("no address in {said}"));
        assert!(said.contains(&format!("\nclient_address={own}\n")), "{said}");
    }
}

/// From outside the node that is asked puts itself in the client's place, unless only its own endpoints may answer.
fn node_port(w: &World) {
    like(
        &w.ok("kubectl expose deployment source-ip-app --name=nodeport --port=80 --target-port=8080 --type=NodePort"),
        "service/nodeport exposed",
    );
    let own =
        w.ok("kubectl get nodes -o jsonpath='{ $.items[*].status.addresses[?(@.type==\"InternalIP\")].address }'");
    let expected: Vec<String> = own.split_whitespace().map(|ip| format!("client_address={ip}")).collect();
    // The page's loop asks each `InternalIP`. An ordinary user's host reaches a node by another address of it.
    let ask = "NODEPORT=$(kubectl get -o jsonpath=\"{.spec.ports[0].nodePort}\" services nodeport)\n\
        NODES=$(kubectl get nodes -o jsonpath='{ $.items[*].status.addresses[?(@.type==\"ExternalIP\")].address }')\n\
        echo \"[$(for node in $NODES; do curl --connect-timeout 1 -s $node:$NODEPORT | grep -i client_address; done)]\"";
    w.eventually(ask, &format!("[{}]", expected.join("\n")));
    // From a node, as it stands on the page.
    let port = w.ok("kubectl get -o jsonpath=\"{.spec.ports[0].nodePort}\" services nodeport");
    for ip in own.split_whitespace() {
        let answer = w.ok(&format!("mini ssh -- curl --max-time 10 -s {ip}:{port}"));
        assert!(answer.contains("\nclient_address=192.168.49."), "{answer}");
    }

    like(
        &w.ok("kubectl patch svc nodeport -p '{\"spec\":{\"externalTrafficPolicy\":\"Local\"}}'"),
        "service/nodeport patched",
    );
    w.eventually(ask, &format!("[client_address={HOST}]"));
}

/// A load balancer is outside too; with the policy `Local` it asks every node whether it has endpoints.
fn load_balancer(w: &World, nodes: &[&str]) {
    like(
        &w.ok("kubectl expose deployment source-ip-app --name=loadbalancer --port=80 --target-port=8080 --type=LoadBalancer"),
        "service/loadbalancer exposed",
    );
    w.until("kubectl get svc loadbalancer -w", "kubectl get svc loadbalancer", "127.78.");
    let rows = w.table("kubectl get svc loadbalancer");
    assert_eq!((&*rows[0]["NAME"], &*rows[0]["TYPE"]), ("loadbalancer", "LoadBalancer"));
    like(&rows[0]["PORT(S)"], "80:3*/TCP");
    // Port 80, or 8080 where an ordinary user may not listen below 1024: an event says so.
    let address = &rows[0]["EXTERNAL-IP"];
    let ask = format!("curl -sS --max-time 10 {address} || curl -sS --max-time 10 {address}:8080");
    let answer = w.eventually(&ask, "client_address=");
    assert!(answer.starts_with("CLIENT VALUES:\nclient_address=192.168.49.2\n"), "the first node balances: {answer}");
    if w.run(&format!("curl -sS --max-time 10 {address}")).code != 0 {
        let events = w.ok("kubectl get events --field-selector reason=HostPortMoved");
        assert!(events.contains(&format!("{address}:8080 answers instead")), "{events}");
    }

    let said = w.ok("kubectl patch svc loadbalancer -p '{\"spec\":{\"externalTrafficPolicy\":\"Local\"}}'");
    like(&said, "service/loadbalancer patched");
    let port = w.ok("kubectl get svc loadbalancer -o yaml | grep -i healthCheckNodePort");
    like(&port, "  healthCheckNodePort: 3*");
    let port = port.trim().split_once(": ").expect("a number").1;
    // The page's selector is that of an older kubectl: nothing has this label.
    assert_eq!(w.run("kubectl get pod -o wide -l run=source-ip-app").err, "No resources found in default namespace.\n");
    let rows = w.table("kubectl get pod -o wide -l app=source-ip-app");
    assert_eq!((rows.len(), &*rows[0]["READY"], &*rows[0]["STATUS"]), (1, "1/1", "Running"));
    for node in nodes {
        // v1.35 answers in JSON, and by the status, where the page shows one line.
        let here = u8::from(rows[0]["NODE"] == *node);
        let check = format!("mini ssh -n {node} -- \"curl -sS -w '%{{http_code}}' localhost:{port}/healthz\"");
        let answer = w.eventually(&check, &format!("\"localEndpoints\": {here}"));
        assert!(answer.ends_with(if here == 1 { "}200" } else { "}503" }), "{answer}");
        assert!(answer.contains("\"name\": \"loadbalancer\""), "{answer}");
    }
    assert!(w.eventually(&ask, &format!("client_address={HOST}\n")).starts_with("CLIENT VALUES:\n"));
}
