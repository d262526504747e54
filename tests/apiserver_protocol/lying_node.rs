//! A node that lies: what it says of others is refused, and what it says of itself has to make sense.

use mini::apiserver::User;
use mini::apiserver::testing::TestServer;
use serde_json::{Value, json};

use crate::world::{self, Answer, get, start};

const MERGE: (&str, &str) = ("content-type", "application/merge-patch+json");
const JSON: (&str, &str) = ("content-type", "application/json");
const PODS: &str = "/api/v1/namespaces/default/pods";

struct Liar {
    server: TestServer,
    user: User,
}

impl Liar {
    /// Two nodes with a pod each; one of them lies.
    async fn new() -> Self {
        let server = start().await;
        let made = async |path: &str, object: Value| {
            let answer = world::json(&server, "POST", path, &object).await;
            assert!([201, 409].contains(&answer.code), "{path}: {}", answer.message());
        };
        made("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
        for (node, pod) in [("liar", "mine"), ("honest", "theirs")] {
            made("/api/v1/nodes", json!({"metadata": {"name": node}})).await;
            let spec = json!({"nodeName": node, "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]});
            made(PODS, json!({"metadata": {"name": pod}, "spec": spec})).await;
            let lease = json!({"metadata": {"name": node}, "spec": {"holderIdentity": node}});
            made("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", lease).await;
        }
        Self { server, user: User::new("system:node:liar", &["system:nodes", "system:authenticated"]) }
    }

    async fn says(&self, method: &str, path: &str, content: (&str, &str), body: &Value) -> Answer {
        world::send_as(&self.user, &self.server, method, path, &[content], body).await
    }

    async fn patches(&self, path: &str, patch: Value) -> Answer {
        self.says("PATCH", path, MERGE, &patch).await
    }
}

#[tokio::test]
async fn of_others_it_changes_nothing() {
    let liar = Liar::new().await;
    let theirs = format!("{PODS}/theirs");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/honest";
    let everything = async || {
        let mut all = Vec::new();
        for path in [&*theirs, "/api/v1/nodes/honest", lease] {
            all.push(get(&liar.server, path, "application/json").await.json());
        }
        all
    };
    let before = everything().await;
    let failed = json!({"status": {"phase": "Failed"}});
    let own = "with spec.nodeName set to itself";
    for (answer, words) in [
        (liar.patches(&format!("{theirs}/status"), failed).await, own),
        (liar.says("DELETE", &theirs, JSON, &Value::Null).await, own),
        (liar.patches(&theirs, json!({"metadata": {"labels": {"a": "b"}}})).await, "forbidden"),
        (
            liar.patches("/api/v1/nodes/honest/status", json!({"status": {"capacity": {"cpu": "0"}}})).await,
            "node \"liar\" is not allowed to modify node \"honest\"",
        ),
        (liar.says("DELETE", "/api/v1/nodes/honest", JSON, &Value::Null).await, "honest"),
        (liar.patches(lease, json!({"spec": {"holderIdentity": "liar"}})).await, "honest"),
    ] {
        assert_eq!(answer.code, 403, "{}", answer.message());
        assert!(answer.message().contains(words), "{}", answer.message());
    }
    let uid = before[0]["metadata"]["uid"].clone();
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "theirs", "uid": uid});
    let request = json!({"spec": {"audiences": ["a"], "boundObjectRef": bound}});
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    assert_eq!(liar.says("POST", token, JSON, &request).await.code, 403, "a token of a pod that is not there");
    let binding = json!({"metadata": {"name": "theirs"}, "target": {"kind": "Node", "name": "liar"}});
    assert_eq!(liar.says("POST", &format!("{theirs}/binding"), JSON, &binding).await.code, 403);
    assert_eq!(everything().await, before);
}

#[tokio::test]
async fn of_itself_it_says_what_makes_sense() {
    let liar = Liar::new().await;
    let status = "/api/v1/nodes/liar/status";
    for (amounts, code) in [
        (json!({"cpu": "-1"}), 422),
        (json!({"memory": "-1Gi"}), 422),
        (json!({"pods": "1.5"}), 422),
        (json!({"cpu": "999999999999", "memory": "8Ei", "pods": "2147483647"}), 200),
        (json!({"cpu": "0", "memory": "0", "pods": "0"}), 200),
    ] {
        let answer = liar.patches(status, json!({"status": {"capacity": amounts, "allocatable": amounts}})).await;
        assert_eq!(answer.code, code, "{amounts}: {}", answer.message());
    }
    let taints = json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}});
    let answer = liar.patches("/api/v1/nodes/liar", taints).await;
    assert_eq!(answer.code, 403, "{}", answer.message());

    // What has ended does not run again.
    let mine = format!("{PODS}/mine/status");
    let state = |state: Value| {
        json!({"status": {"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false,
            "restartCount": 0, "state": state}]}})
    };
    let ended = state(json!({"terminated": {"exitCode": 1}}));
    assert_eq!(liar.patches(&mine, ended).await.code, 200);
    let answer = liar.patches(&mine, state(json!({"running": {}}))).await;
    assert_eq!(answer.code, 422, "{}", answer.message());
    assert!(answer.message().contains("may not be transitioned to non-terminated state"), "{}", answer.message());
    let answer = liar.patches(&mine, json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!(answer.code, 403, "{}", answer.message());
    assert_eq!(
        liar.says("DELETE", &format!("{PODS}/mine"), JSON, &Value::Null).await.code,
        200,
        "its own pod it may end"
    );
}

#[tokio::test]
async fn absurd_numbers_of_replicas_are_refused() {
    let server = start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = |replicas: Value| {
        json!({"metadata": {"name": "many"}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    };
    for (replicas, code) in [
        (json!(-1), 422),
        (json!(2_147_483_648_i64), 400),
        (json!(1e300), 400),
        (json!(1.5), 400),
        (json!("3"), 400),
        (json!(i32::MAX), 201),
    ] {
        let answer = world::json(&server, "POST", path, &deployment(replicas.clone())).await;
        assert_eq!(answer.code, code, "{replicas}: {}", answer.message());
    }
    let scale = format!("{path}/many/scale");
    let asked = |replicas: i64| json!({"spec": {"replicas": replicas}});
    for (replicas, code) in [(-1, 422), (1 << 40, 400), (0, 200)] {
        let answer = world::send(&server, "PATCH", &scale, &[MERGE], &asked(replicas)).await;
        assert_eq!(answer.code, code, "{replicas}: {}", answer.message());
    }
}
