//! Pulls from a real registry: without TLS, with it, with a password, and what is said when it fails.

use crate::images::{Protection, Registry, bootcamp, push};
use crate::world::World;

#[test]
fn a_registry_with_a_password_wants_a_pull_secret() {
    let w = World::new();
    w.ok("htpasswd -Bbc users ada secret");
    let users = w.home().join("users");
    let registry = Registry::start(&w, "guarded", &Protection { htpasswd: Some(&users), ..Protection::default() });
    push(&w, &bootcamp("private:1", 1), &registry, "private:1", "--dest-creds ada:secret");
    w.ok("mini start");
    let image = format!("{}/private:1", registry.address);
    w.ok(&format!("kubectl run refused --image={image}"));
    w.until("kubectl get pods -w", "kubectl get pods", "ImagePullBackOff");
    assert!(w.ok("kubectl describe pod refused").contains("Failed to pull image"));
    w.ok(&format!(
        "kubectl create secret docker-registry ada --docker-server={} --docker-username=ada --docker-password=secret",
        registry.address
    ));
    w.ok(&format!(
        "kubectl run allowed --image={image} --overrides='{{\"spec\":{{\"imagePullSecrets\":[{{\"name\":\"ada\"}}]}}}}'"
    ));
    w.ok("kubectl wait --for=condition=Ready pod/allowed --timeout=60s");
}

#[test]
fn a_registry_whose_certificate_nobody_knows_is_refused() {
    let w = World::new();
    w.ok("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=registry -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE 2>&1");
    let (cert, key) = (w.home().join("cert.pem"), w.home().join("key.pem"));
    let registry = Registry::start(&w, "tls", &Protection { tls: Some((&cert, &key)), ..Protection::default() });
    push(&w, &bootcamp("sealed:1", 1), &registry, "library/sealed:1", "");
    w.ok(&format!("mini start --image-mirror docker.io=https://{}", registry.address));
    w.ok("kubectl run sealed --image=sealed:1");
    w.until("kubectl get pods -w", "kubectl get pods", "ErrImagePull");
    w.ok("mini stop");
    // The certificate made known: the same pull works.
    w.ok(&format!("SSL_CERT_FILE={} mini start", cert.display()));
    w.ok("kubectl wait --for=condition=Ready pod/sealed --timeout=60s");
}
