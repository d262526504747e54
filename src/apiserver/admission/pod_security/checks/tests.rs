//! The words of the checks, as the tests and the documentation of Kubernetes have them.

use serde_json::json;

use super::*;

fn standard(text: &str) -> LevelVersion {
    let (level, version) = text.split_once(':').expect("level:version");
    LevelVersion { level: Level::parse(level).expect("a level"), version: Version::parse(version).expect("a version") }
}

fn details(of: &str, pod: &Value) -> String {
    evaluate(standard(of), &Pod { metadata: &pod["metadata"], spec: &pod["spec"] }).details()
}

/// A pod that keeps to `restricted`, and what makes it break it.
fn hardened(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({"metadata": {}, "spec": {
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
    }});
    change(&mut pod);
    pod
}

#[track_caller]
fn check(of: &str, change: impl FnOnce(&mut Value), expected: &str) {
    assert_eq!(details(of, &hardened(change)), expected);
}

#[test]
fn the_order_is_by_level_and_name() {
    let order: Vec<_> = ALL.iter().map(|check| (check.level, check.id)).collect();
    let mut sorted = order.clone();
    sorted.sort();
    assert_eq!(order, sorted);
    for check in ALL {
        assert!(check.revisions.is_sorted_by(|a, b| a.since < b.since), "{}", check.id);
    }
}

/// "Apply Pod Security Standards at the Namespace Level", step "Verify".
#[test]
fn a_plain_pod_breaks_restricted_in_the_tutorials_words() {
    let pod = json!({"spec": {"containers": [{"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}]}]}});
    assert_eq!(
        details("restricted:latest", &pod),
        "allowPrivilegeEscalation != false (container \"nginx\" must set securityContext.allowPrivilegeEscalation=false), \
         unrestricted capabilities (container \"nginx\" must set securityContext.capabilities.drop=[\"ALL\"]), \
         runAsNonRoot != true (pod or container \"nginx\" must set securityContext.runAsNonRoot=true), \
         seccompProfile (pod or container \"nginx\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
    assert_eq!(details("baseline:latest", &pod), "");
    assert_eq!(details("privileged:latest", &pod), "");
    assert_eq!(
        details("restricted:v1.0", &pod),
        "runAsNonRoot != true (pod or container \"nginx\" must set securityContext.runAsNonRoot=true)"
    );
}

#[test]
fn a_hardened_pod_breaks_nothing_in_any_version() {
    for minor in 0..40 {
        check(&format!("restricted:v1.{minor}"), |_| {}, "");
    }
}

#[test]
fn host_namespaces_ports_and_paths() {
    check(
        "baseline:latest",
        |pod| {
            for field in ["hostIPC", "hostNetwork", "hostPID"] {
                pod["spec"][field] = true.into();
            }
        },
        "host namespaces (hostNetwork=true, hostPID=true, hostIPC=true)",
    );
    let volumes = json!([{"name": "a", "hostPath": {}}, {"name": "b", "hostPath": {}}, {"name": "c", "emptyDir": {}}]);
    check("baseline:latest", |pod| pod["spec"]["volumes"] = volumes.clone(), "hostPath volumes (volumes \"a\", \"b\")");
    check(
        "restricted:latest",
        |pod| pod["spec"]["volumes"] = volumes.clone(),
        "restricted volume types (volumes \"a\", \"b\" use restricted volume type \"hostPath\")",
    );
    check(
        "restricted:latest",
        |pod| pod["spec"]["volumes"] = json!([{"name": "a", "nfs": {}}, {"name": "b", "image": {}}, {"name": "c"}]),
        "restricted volume types (volumes \"a\", \"c\" use restricted volume types \"nfs\", \"unknown\")",
    );
    check(
        "baseline:latest",
        |pod| {
            pod["spec"]["containers"][0]["ports"] = json!([{"hostPort": 9100}, {"hostPort": 80}, {"containerPort": 1}])
        },
        "hostPort (container \"a\" uses hostPorts 80, 9100)",
    );
}

#[test]
fn privileges_and_capabilities() {
    check(
        "baseline:latest",
        |pod| {
            pod["spec"]["initContainers"] = json!([{"name": "i", "securityContext": {"privileged": true}}]);
            pod["spec"]["containers"][0]["securityContext"]["privileged"] = true.into();
        },
        "privileged (containers \"i\", \"a\" must not set securityContext.privileged=true)",
    );
    let adds = |pod: &mut Value| {
        pod["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] = json!(["SYS_TIME", "CHOWN", "NET_RAW"])
    };
    check(
        "baseline:latest",
        adds,
        "non-default capabilities (container \"a\" must not include \"NET_RAW\", \"SYS_TIME\" in securityContext.capabilities.add)",
    );
    check(
        "restricted:latest",
        adds,
        "unrestricted capabilities (container \"a\" must not include \"CHOWN\", \"NET_RAW\", \"SYS_TIME\" in securityContext.capabilities.add)",
    );
    check(
        "restricted:latest",
        |pod| pod["spec"]["containers"][0]["securityContext"]["capabilities"] = json!({"add": ["CHOWN"]}),
        "unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]; \
         container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add)",
    );
}

#[test]
fn users() {
    check(
        "restricted:latest",
        |pod| {
            pod["spec"]["securityContext"]["runAsNonRoot"] = false.into();
            pod["spec"]["containers"][0]["securityContext"]["runAsNonRoot"] = false.into();
            pod["spec"]["securityContext"]["runAsUser"] = 0.into();
        },
        "runAsNonRoot != true (pod and container \"a\" must not set securityContext.runAsNonRoot=false), \
         runAsUser=0 (pod must not set runAsUser=0)",
    );
    let own_users = |pod: &mut Value| {
        pod["spec"]["hostUsers"] = false.into();
        pod["spec"]["securityContext"] = json!({"runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}});
        pod["spec"]["containers"][0]["securityContext"]["procMount"] = "Unmasked".into();
    };
    check(
        "restricted:latest",
        own_users,
        "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
    );
    check("baseline:latest", own_users, "");
    check(
        "restricted:v1.34",
        own_users,
        "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\"), \
         runAsNonRoot != true (pod or container \"a\" must set securityContext.runAsNonRoot=true), \
         runAsUser=0 (pod must not set runAsUser=0)",
    );
}

/// `check_seLinuxOptions_test.go`, "invalid pod and containers", and how its types grew.
#[test]
fn se_linux_options() {
    let options = |options: Value| json!({"seLinuxOptions": options});
    let pod = json!({"spec": {
        "securityContext": options(json!({"type": "foo", "user": "bar", "role": "baz"})),
        "containers": [
            {"name": "a", "securityContext": options(json!({"type": "container_t"}))},
            {"name": "d", "securityContext": options(json!({"type": "container_engine_t"}))},
            {"name": "e", "securityContext": options(json!({"type": "bar"}))},
            {"name": "f", "securityContext": options(json!({"user": "bar"}))},
            {"name": "g", "securityContext": options(json!({"role": "baz"}))},
        ],
    }});
    assert_eq!(
        details("baseline:v1.31", &pod),
        "seLinuxOptions (pod and containers \"e\", \"f\", \"g\" set forbidden securityContext.seLinuxOptions: \
         types \"bar\", \"foo\"; user may not be set; role may not be set)"
    );
    assert!(details("baseline:v1.30", &pod).contains("containers \"d\", \"e\""));
    let user = json!({"spec": {"securityContext": options(json!({"user": "bad"}))}});
    assert_eq!(
        details("baseline:latest", &user),
        "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: user may not be set)"
    );
}

#[test]
fn profiles() {
    let unconfined = json!({"type": "Unconfined"});
    let seccomp = |pod: &mut Value| pod["spec"]["securityContext"]["seccompProfile"] = unconfined.clone();
    let expected = "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")";
    check("baseline:latest", seccomp, expected);
    check("restricted:latest", seccomp, expected);
    check("baseline:v1.18", seccomp, "");
    check(
        "baseline:v1.18",
        |pod| pod["metadata"]["annotations"] = json!({"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}),
        "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")",
    );
    check(
        "baseline:latest",
        |pod| pod["spec"]["containers"][0]["securityContext"]["appArmorProfile"] = unconfined.clone(),
        "forbidden AppArmor profile (container \"a\" must not set AppArmor profile type to \"Unconfined\")",
    );
    let annotation = "container.apparmor.security.beta.kubernetes.io/a";
    check(
        "baseline:latest",
        |pod| pod["metadata"]["annotations"] = json!({annotation: "unconfined"}),
        &format!(
            "forbidden AppArmor profile (annotation must not set AppArmor profile type to \"{annotation}=\"unconfined\"\")"
        ),
    );
    check("baseline:latest", |pod| pod["metadata"]["annotations"] = json!({annotation: "localhost/x"}), "");
}

#[test]
fn sysctls_that_are_safe_grow_with_versions() {
    let asks = |pod: &mut Value| {
        let names = ["net.ipv4.tcp_rmem", "net.ipv4.tcp_keepalive_time", "kernel.shm_rmid_forced", "kernel.msgmax"];
        pod["spec"]["securityContext"]["sysctls"] =
            names.map(|name| json!({"name": name, "value": "1"})).to_vec().into();
    };
    check("baseline:latest", asks, "forbidden sysctls (kernel.msgmax)");
    check("baseline:v1.31", asks, "forbidden sysctls (net.ipv4.tcp_rmem, kernel.msgmax)");
    check("baseline:v1.28", asks, "forbidden sysctls (net.ipv4.tcp_rmem, net.ipv4.tcp_keepalive_time, kernel.msgmax)");
}

#[test]
fn probes_and_hooks_ask_no_other_host() {
    let asks = |pod: &mut Value| {
        pod["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"host": "b.example"}});
        pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"tcpSocket": {"host": "a.example"}}});
    };
    check(
        "baseline:v1.34",
        asks,
        "probe or lifecycle host (container \"a\" uses probe or lifecycle hosts \"a.example\", \"b.example\")",
    );
    check("baseline:v1.33", asks, "");
}

#[test]
fn windows() {
    let pod = json!({"spec": {"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true,
        "windowsOptions": {"hostProcess": true}}, "containers": [{"name": "w"}]}});
    assert_eq!(
        details("restricted:latest", &pod),
        "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)"
    );
    assert!(details("restricted:v1.24", &pod).contains("allowPrivilegeEscalation != false"));
}
