//! What a pod may not be, in Kubernetes' words (`validation_test.go` of v1.35 and the API reference).

use serde_json::{Value, json};

use super::Pods;
use crate::api::kind::Strategy;

fn errors(change: impl Fn(&mut Value)) -> Vec<String> {
    let mut pod = json!({"spec": {"containers": [{"name": "c", "image": "a:1"}]}});
    change(&mut pod["spec"]);
    Pods.default(&mut pod);
    Pods.validate(&pod).into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

#[test]
fn a_plain_pod_is_valid() {
    assert_eq!(errors(|_| {}), Vec::<String>::new());
}

#[test]
fn sidecars_may_have_probes_and_other_init_containers_not() {
    let init = |policy: Value| {
        errors(move |spec| {
            spec["initContainers"] = json!([{"name": "i", "image": "a:1", "restartPolicy": policy,
                "readinessProbe": {"tcpSocket": {"port": 80}}}]);
        })
    };
    assert_eq!(init(json!("Always")), Vec::<String>::new());
    assert_eq!(
        init(Value::Null),
        [
            "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always"
        ]
    );
}

#[test]
fn containers_may_restart_by_rules_of_their_own() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let with = |policy: Value| {
        let rules = rules.clone();
        errors(move |spec| {
            spec["containers"][0]["restartPolicy"] = policy.clone();
            spec["containers"][0]["restartPolicyRules"] = rules.clone();
        })
    };
    assert_eq!(with(json!("Never")), Vec::<String>::new());
    assert_eq!(
        with(Value::Null),
        ["spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used"]
    );
    assert_eq!(
        with(json!("Sometimes")),
        [
            "spec.containers[0].restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\""
        ]
    );
}

#[test]
fn host_ports_of_an_init_container_conflict_within_it() {
    let port = json!({"containerPort": 80, "hostPort": 80});
    assert_eq!(
        errors(|spec| spec["initContainers"] = json!([
            {"name": "h", "image": "a:1", "ports": [port]}, {"name": "i", "image": "a:1", "ports": [port, port]}])),
        ["spec.initContainers[1].ports[1].hostPort: Duplicate value: \"TCP//80\""]
    );
}

#[test]
fn requests_stay_below_limits() {
    assert_eq!(
        errors(
            |spec| spec["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1500m"}})
        ),
        [
            "spec.containers[0].resources.requests: Invalid value: \"1500m\": must be less than or equal to cpu limit of 1"
        ]
    );
}

#[test]
fn profiles_name_a_file_only_when_they_are_local() {
    let profile = |field: &'static str, profile: Value| {
        errors(move |spec| spec["containers"][0]["securityContext"] = json!({field: profile}))
    };
    assert_eq!(
        profile("seccompProfile", json!({"type": "Localhost", "localhostProfile": "a/b.json"})),
        Vec::<String>::new()
    );
    assert_eq!(
        profile("seccompProfile", json!({"type": "Localhost"})),
        [
            "spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp \
          type is Localhost"
        ]
    );
    assert_eq!(
        profile("appArmorProfile", json!({"type": "Foo"})),
        ["spec.containers[0].securityContext.appArmorProfile.type: Unsupported value: \"Foo\": supported values: \
          \"Localhost\", \"RuntimeDefault\", \"Unconfined\""]
    );
}

#[test]
fn projected_paths_do_not_collide() {
    let found = errors(|spec| {
        spec["serviceAccountName"] = "default".into();
        spec["volumes"] = json!([{"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 60}},
            {"configMap": {"name": "m", "items": [{"key": "k", "path": "token"}]}}]}}]);
    });
    assert_eq!(
        found,
        [
            "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 60: may not \
             specify a duration less than 10 minutes",
            "spec.volumes[0].projected.sources[1].configMap: Invalid value: \"token\": conflicting duplicate paths",
        ]
    );
}

#[test]
fn tokens_need_an_account() {
    let found = errors(|spec| {
        spec["volumes"] =
            json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]);
    });
    assert_eq!(
        found,
        ["spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when \
          serviceAccountName is not set"]
    );
}

#[test]
fn duplicate_variables_are_warned_of() {
    let pod = json!({"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"},
        {"name": "B", "value": "1"}, {"name": "B", "value": "$(B)2"}]}]}});
    assert_eq!(
        Pods.warnings(&pod),
        ["spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply"]
    );
}
