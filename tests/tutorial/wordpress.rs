//! Chapter 6.2, "Deploying WordPress and MySQL with Persistent Volumes": set up in a real browser, and what was written there
//! outlives the database, the shim, the daemon and the cluster's stop.

use crate::browser::Browser;
use crate::images::shelf;
use crate::watch::Watch;
use crate::world::{World, like};

#[test]
fn chapter_6_2() {
    let w = World::new();
    let registry = shelf::registry(&w);
    w.ok(&format!("mini start --image-mirror http://{}", registry.address));

    w.ok("cat <<EOF >./kustomization.yaml
secretGenerator:
- name: mysql-pass
  literals:
  - password=YOUR_PASSWORD
EOF");
    for file in ["mysql-deployment.yaml", "wordpress-deployment.yaml"] {
        w.ok(&format!("cp https://k8s.io/examples/application/wordpress/{file} ."));
    }
    w.ok("cat <<EOF >>./kustomization.yaml
resources:
  - mysql-deployment.yaml
  - wordpress-deployment.yaml
EOF");
    let said = w.ok("kubectl apply -k ./");
    for object in [
        "secret/mysql-pass-",
        "service/wordpress created",
        "service/wordpress-mysql created",
        "persistentvolumeclaim/mysql-pv-claim created",
        "persistentvolumeclaim/wp-pv-claim created",
        "deployment.apps/wordpress created",
        "deployment.apps/wordpress-mysql created",
    ] {
        assert!(said.contains(object), "no {object} in\n{said}");
    }
    like(&w.ok("kubectl get secrets"), "NAME*TYPE*DATA   AGE\nmysql-pass-*Opaque*1*");
    w.until("kubectl get pvc -w", "kubectl get pvc --no-headers | grep -c Bound || true", "2\n");
    like(
        &w.ok("kubectl get pvc"),
        "NAME*STATUS*VOLUME*CAPACITY   ACCESS MODES   STORAGECLASS*\nmysql-pv-claim   Bound    pvc-*20Gi*RWO*standard*\n\
         wp-pv-claim      Bound    pvc-*20Gi*RWO*standard*",
    );
    w.ok("kubectl rollout status deployment/wordpress-mysql --timeout=120s");
    w.ok("kubectl rollout status deployment/wordpress --timeout=120s");
    let pods = w.ok("kubectl get pods");
    like(
        &pods,
        "NAME*READY   STATUS    RESTARTS   AGE\nwordpress-*1/1     Running*\nwordpress-mysql-*1/1     Running*",
    );
    let rows = w.table("kubectl get services wordpress");
    assert_eq!((&*rows[0]["NAME"], &*rows[0]["TYPE"]), ("wordpress", "LoadBalancer"));
    like(&rows[0]["PORT(S)"], "80:3*/TCP");
    let url = w.ok("mini service wordpress --url");
    let url = url.trim();

    // The set-up page, filled in.
    w.ok(&format!("curl -sS -o /dev/null --max-time 10 --retry 30 --retry-all-errors --retry-delay 1 {url}"));
    let mut browser = Browser::open(&w);
    browser.go(url);
    let page = browser.text();
    assert!(page.contains("Welcome") && page.contains("Information needed"), "{page}");
    // The page proposes a password once it can judge one.
    browser.until("window.zxcvbn && document.querySelector('#pass1').value");
    browser.enter("#weblog_title", "Written before the faults");
    browser.enter("#user_login", "ada");
    browser.enter("#pass1", "correct horse battery staple");
    browser.enter("#admin_email", "ada@example.com");
    browser.follow("#submit");
    assert!(browser.text().contains("WordPress has been installed"), "{}", browser.text());
    log_in(&mut browser, url);
    assert!(post(&mut browser, url, "First post").contains("First post"));

    // The database is killed, then its shim, then the daemon: nothing is lost.
    let mysql = w.ok("kubectl get pod -l tier=mysql -o name");
    let mysql = mysql.trim();
    let state = format!(
        "kubectl get {mysql} -o jsonpath='{{.status.containerStatuses[0].restartCount}} {{.status.containerStatuses[0].ready}}'"
    );
    let is_back = |restarts: u32| {
        w.until(&format!("kubectl get {mysql} -w"), &state, &format!("{restarts} true"));
        Watch::start(&w, &format!("kubectl logs -f {mysql}")).contains("ready for connections");
    };
    w.kill_container(mysql);
    is_back(1);
    assert!(post(&mut browser, url, "Second post").contains("First post"));
    w.kill_shim(mysql);
    is_back(2);
    assert!(post(&mut browser, url, "Third post").contains("Second post"));
    w.kill_daemon();
    w.ok("mini start");
    assert!(shows(&mut browser, url).contains("Third post"));

    // Stopped and started.
    w.ok("mini stop");
    w.ok("mini start");
    w.ok("kubectl wait --for=condition=Ready pod --all --timeout=120s");
    assert_eq!(w.ok("mini service wordpress --url").trim(), url, "the same address");
    w.ok(&format!("curl -sS -o /dev/null --max-time 10 --retry 30 --retry-all-errors --retry-delay 1 {url}"));
    let page = shows(&mut browser, url);
    for text in ["Written before the faults", "First post", "Second post", "Third post"] {
        assert!(page.contains(text), "no {text:?} in\n{page}");
    }
    drop(browser);

    let said = w.ok("kubectl delete -k ./");
    assert!(said.contains("persistentvolumeclaim \"mysql-pv-claim\" deleted"), "{said}");
    w.ok("kubectl wait --for=delete pv --all --timeout=60s");
    assert_eq!(w.ok("kubectl get pods,pv,pvc,secrets -o name"), "");
}

fn log_in(browser: &mut Browser, url: &str) {
    browser.go(&format!("{url}/wp-login.php"));
    browser.enter("#user_login", "ada");
    browser.enter("#user_pass", "correct horse battery staple");
    browser.follow("#wp-submit");
    assert!(browser.text().contains("Dashboard"), "{}", browser.text());
}

/// Writes a post as the logged-in user, by WordPress' own interface; returns the front page's text.
fn post(browser: &mut Browser, url: &str, title: &str) -> String {
    browser.go(&format!("{url}/wp-admin/post-new.php"));
    browser.until("window.wp && wp.apiFetch");
    let script = format!(
        "wp.apiFetch({{path: '/wp/v2/posts', method: 'POST', data: {{title: {title:?}, status: 'publish'}}}}).then(p => p.id)"
    );
    let id = browser.value(&script);
    assert!(id.is_u64(), "no post but {id}");
    shows(browser, url)
}

fn shows(browser: &mut Browser, url: &str) -> String {
    browser.go(url);
    browser.text()
}
