//! No kind panics on an object of any shape.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::all;

/// One object that visits many fields of pods, Services, volumes and the rest at once.
fn sample() -> Value {
    let container = json!({
        "name": "c", "image": "a:b", "ports": [{"containerPort": 80, "hostPort": 80, "name": "http"}],
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}, "resourceFieldRef": {"resource": "limits.cpu"}}}],
        "envFrom": [{"prefix": "p", "configMapRef": {"name": "x"}}],
        "resources": {"limits": {"cpu": "1", "example.com/x": "2"}, "requests": {"cpu": "500m"}},
        "livenessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "a"}]}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
        "volumeMounts": [{"name": "v", "mountPath": "/x", "subPath": "a", "mountPropagation": "None"}],
        "securityContext": {"privileged": true, "capabilities": {"add": ["X"]}, "seccompProfile": {"type": "Localhost"}},
    });
    let pod_spec = json!({
        "containers": [container], "initContainers": [{"name": "i", "restartPolicy": "Always"}],
        "ephemeralContainers": [{"name": "e", "targetContainerName": "c"}],
        "volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}, {"downwardAPI": {"items": [{"path": "a"}]}}]}},
            {"name": "w", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}, {"name": "h", "hostPath": {"path": "/"}}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}]}},
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": {"labelSelector": {"matchExpressions": [{}]}}}]}},
        "tolerations": [{"key": "a"}], "topologySpreadConstraints": [{"maxSkew": 1}], "dnsConfig": {"options": [{}]},
        "securityContext": {"sysctls": [{"name": "a"}]}, "schedulingGates": [{"name": "a"}], "readinessGates": [{"conditionType": "a"}],
        "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a"]}], "imagePullSecrets": [{"name": "a"}], "overhead": {"cpu": "1"}, "hostNetwork": true,
    });
    let mut spec = json!({
        "selector": {"matchLabels": {"a": "b"}, "a": "b"}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod_spec},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}}, "replicas": 1, "minReadySeconds": 1,
        "type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30000}], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
        "externalIPs": ["1.2.3.4"], "sessionAffinity": "ClientIP", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "claimRef": {"name": "a"}, "nodeAffinity": {"required": {}}, "finalizers": ["a"], "taints": [{"key": "a"}], "podCIDR": "10.0.0.0/24",
        "resourceAttributes": {}, "leaseDurationSeconds": 0,
    });
    let (from, into) = (pod_spec.as_object().expect("an object"), spec.as_object_mut().expect("an object"));
    into.extend(from.clone());
    json!({
        "metadata": {"name": "a", "namespace": "b", "labels": {"a": "b"}, "annotations": {"c": "d"}, "ownerReferences": [{"controller": true}],
            "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec, "data": {"a": "YQ=="}, "stringData": {"b": "c"}, "binaryData": {"d": "ZQ=="}, "immutable": true, "type": "kubernetes.io/dockercfg",
        "subsets": [{"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 80}]}], "addressType": "IPv4",
        "endpoints": [{"addresses": ["1.2.3.4"]}], "ports": [{"port": 80}], "rules": [{"verbs": ["get"]}], "aggregationRule": {"clusterRoleSelectors": [{}]},
        "roleRef": {"kind": "Role"}, "subjects": [{"kind": "User"}], "parameters": {"a": "b"}, "provisioner": "a", "revision": 1,
        "involvedObject": {"kind": "Pod"}, "regarding": {"kind": "Pod"}, "source": {}, "series": {"count": 1}, "count": 1, "message": "a", "eventTime": "x",
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "podIPs": [{"ip": "x"}], "podIP": "y",
            "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 1}}, "lastState": {"terminated": {"finishedAt": "x"}}, "restartCount": 1}],
            "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "x"}}}], "loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]},
            "addresses": [{"type": "InternalIP", "address": "x"}], "nodeInfo": {"osImage": "x"}, "capacity": {"cpu": "1"}, "replicas": 1},
    })
}

/// Replaces what a walk by `steps` finds.
fn replace(value: &mut Value, steps: &[u8], with: Value) {
    let Some((step, rest)) = steps.split_first() else {
        *value = with;
        return;
    };
    let next = match value {
        Value::Object(map) if !map.is_empty() => {
            let at = usize::from(*step) % map.len();
            map.values_mut().nth(at)
        }
        Value::Array(array) if !array.is_empty() => {
            let at = usize::from(*step) % array.len();
            array.get_mut(at)
        }
        _ => None,
    };
    match next {
        Some(next) => replace(next, rest, with),
        None => *value = with,
    }
}

fn any_small() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!(true)),
        any::<i64>().prop_map(Value::from),
        "[a-z=/.%:0-9é-]{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([1, "a", null, {"a": []}])),
        Just(json!({"name": 1, "a": {"b": "c"}, "limits": 7})),
        Just(Value::Object(Map::from_iter([("cpu".to_owned(), json!("-1e99"))]))),
    ]
}

fn visit(object: &Value, old: &Value) {
    let now = jiff::Timestamp::UNIX_EPOCH;
    for kind in all() {
        let strategy = &kind.strategy;
        let mut object = object.clone();
        strategy.default(&mut object);
        strategy.prepare_for_create(&mut object);
        strategy.validate(&object);
        strategy.prepare_for_update(&mut object, old);
        strategy.validate_update(&object, old);
        strategy.validate_status_update(&object, old);
        strategy.warnings(&object);
        assert_eq!(strategy.cells(&object, now).len(), strategy.columns().len());
        strategy.row_conditions(&object);
        strategy.selectable_fields(&object);
        strategy.to_stored(&mut object);
        strategy.from_stored(&mut object);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn odd_objects_do_not_panic(changes in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..7), any_small()), 1..6)) {
        let old = sample();
        let mut object = old.clone();
        for (steps, with) in changes {
            replace(&mut object, &steps, with);
        }
        visit(&object, &old);
        visit(&old, &object);
    }
}

#[test]
fn defaults_are_idempotent() {
    for kind in all() {
        let mut once = sample();
        kind.strategy.default(&mut once);
        let mut twice = once.clone();
        kind.strategy.default(&mut twice);
        assert_eq!(once, twice, "{}", kind.kind);
    }
}
