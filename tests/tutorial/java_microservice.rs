//! Chapter 3.1, "Configuring a Java microservice". The page is an introduction to an interactive one, whose commands stand here;
//! its two microservices are one small program without MicroProfile, which looks values up as MicroProfile Config does.

use crate::images::shelf;
use crate::watch::Watch;
use crate::world::{World, like};

#[test]
fn chapter_3_1() {
    let w = World::new();
    let registry = shelf::registry(&w);
    w.ok(&format!("mini start --image-mirror http://{}", registry.address));
    w.write("kubernetes.yaml", &manifest("", ""));
    let said = w.ok("kubectl apply -f kubernetes.yaml");
    like(
        &said,
        "deployment.apps/system-deployment created\ndeployment.apps/inventory-deployment created\n\
         service/system-service created\nservice/inventory-service created",
    );
    w.ok("kubectl wait --for=condition=ready pod -l app=inventory --timeout=90s");
    w.ok("kubectl wait --for=condition=ready pod -l app=system --timeout=90s");
    let properties = w.ok("curl -sS --max-time 10 -u bob:bobpwd http://$(mini ip):31000/system/properties");
    assert!(properties.contains("\"java.specification.version\":\"17\""), "{properties}");
    assert_eq!(w.ok(&format!("{STATUS} -u bob:wrong http://$(mini ip):31000/system/properties")), "401");
    let seen = w.ok("curl -sS --max-time 10 http://$(mini ip):32000/inventory/systems/system-service");
    assert!(seen.contains("\"java.specification.version\":\"17\""), "{seen}");
    assert_eq!(w.ok(APP_NAME).to_lowercase(), "x-app-name: system\nx-app-name: system\n");

    // What is configured moves out of the code.
    like(
        &w.ok("kubectl create configmap sys-app-name --from-literal name=my-system"),
        "configmap/sys-app-name created",
    );
    like(
        &w.ok("kubectl create secret generic sys-app-credentials --from-literal username=alice --from-literal password=wonderland"),
        "secret/sys-app-credentials created",
    );
    let name = reference("APP_NAME", "configMapKeyRef", "sys-app-name", "name");
    let credentials = reference("SYSTEM_APP_USERNAME", "secretKeyRef", "sys-app-credentials", "username")
        + &reference("SYSTEM_APP_PASSWORD", "secretKeyRef", "sys-app-credentials", "password");
    w.write("kubernetes.yaml", &manifest(&(name + &credentials), &credentials));
    let said = w.ok("kubectl replace --force -f kubernetes.yaml");
    for kind in ["deployment.apps", "service"] {
        for app in ["system", "inventory"] {
            let suffix = if kind == "service" { "service" } else { "deployment" };
            assert!(said.contains(&format!("{kind} \"{app}-{suffix}\" deleted")), "{said}");
            assert!(said.contains(&format!("{kind}/{app}-{suffix} replaced")), "{said}");
        }
    }
    Watch::start(&w, "kubectl get --watch pods -l app=system").shows(&["* 1/1 Running"]);
    w.ok("kubectl rollout status deployment/system-deployment --timeout=90s");
    w.ok("kubectl rollout status deployment/inventory-deployment --timeout=90s");
    assert_eq!(
        w.ok(&APP_NAME.replace("bob:bobpwd", "alice:wonderland")).to_lowercase(),
        "x-app-name: my-system\nx-app-name: my-system\n"
    );
    assert_eq!(w.ok(&format!("{STATUS} -u bob:bobpwd http://$(mini ip):31000/system/properties")), "401");
    let seen = w.ok("curl -sS --max-time 10 http://$(mini ip):32000/inventory/systems/system-service");
    assert!(seen.contains("\"java.specification.version\":\"17\""), "{seen}");
    assert!(w.ok("curl -sS --max-time 10 http://$(mini ip):32000/inventory/systems").contains("\"total\":1"));
    w.ok("kubectl delete -f kubernetes.yaml");
}

const STATUS: &str = "curl -s -o /dev/null --max-time 10 -w '%{http_code}'";
const APP_NAME: &str =
    "curl -# -I -u bob:bobpwd -D - http://$(mini ip):31000/system/properties | grep -i ^X-App-Name: | tr -d '\\r'";

/// An environment variable that comes from an object.
fn reference(variable: &str, kind: &str, object: &str, key: &str) -> String {
    format!(
        "        - name: {variable}\n          valueFrom:\n            {kind}:\n              name: {object}\n              key: {key}\n"
    )
}

fn manifest(system: &str, inventory: &str) -> String {
    let part = |app: &str, port: u16, env: &str| {
        let env = if env.is_empty() { String::new() } else { format!("        env:\n{env}") };
        let deployment = format!(
            "apiVersion: apps/v1
kind: Deployment
metadata:
  name: {app}-deployment
  labels:
    app: {app}
spec:
  selector:
    matchLabels:
      app: {app}
  template:
    metadata:
      labels:
        app: {app}
    spec:
      containers:
      - name: {app}-container
        image: {app}:1.0-SNAPSHOT
        ports:
        - containerPort: 9080
        readinessProbe:
          httpGet:
            path: /health/ready
            port: 9080
          periodSeconds: 1
          timeoutSeconds: 3
{env}"
        );
        let service = format!(
            "apiVersion: v1
kind: Service
metadata:
  name: {app}-service
spec:
  type: NodePort
  selector:
    app: {app}
  ports:
  - protocol: TCP
    port: 9080
    targetPort: 9080
    nodePort: {port}
"
        );
        (deployment, service)
    };
    let (system, inventory) = (part("system", 31000, system), part("inventory", 32000, inventory));
    [system.0, inventory.0, system.1, inventory.1].join("---\n")
}
