//! The environment of a container: `env`, `envFrom`, references, `$(VAR)`, service variables. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use k8s_openapi::api::core::v1 as core;
use serde_json::Value;

use super::downward::{self, Facts};

/// Finds a ConfigMap or Secret (`configmaps` or `secrets`, name) in the pod's namespace.
pub type Lookup<'a> = &'a (dyn Fn(&str, &str) -> Option<Arc<Value>> + Sync);

/// The variables of a container, in the order in which they were first set.
///
/// # Errors
/// The kubelet's message of `CreateContainerConfigError`.
pub fn build(
    pod: &core::Pod,
    container: &core::Container,
    facts: &Facts,
    services: &BTreeMap<String, String>,
    lookup: Lookup<'_>,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Variables::default();
    for source in container.env_from.iter().flatten() {
        from_source(&mut env, pod, source, lookup)?;
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), |name| {
                env.get(name).or_else(|| services.get(name)).cloned()
            })),
            Some(from) => value_from(pod, container, facts, from, lookup)?,
        };
        if let Some(value) = value {
            env.set(&variable.name, value);
        }
    }
    for (name, value) in services {
        if env.get(name).is_none() {
            env.set(name, value.clone());
        }
    }
    Ok(env.list)
}

#[derive(Default)]
struct Variables {
    list: Vec<(String, String)>,
}

impl Variables {
    fn get(&self, name: &str) -> Option<&String> {
        self.list.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }
    fn set(&mut self, name: &str, value: String) {
        match self.list.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.list.push((name.to_owned(), value)),
        }
    }
}

fn from_source(
    env: &mut Variables,
    pod: &core::Pod,
    source: &core::EnvFromSource,
    lookup: Lookup<'_>,
) -> Result<(), String> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let (kind, resource, name, optional) = if let Some(r) = &source.config_map_ref {
        ("configmap", "configmaps", &r.name, r.optional)
    } else if let Some(r) = &source.secret_ref {
        ("secret", "secrets", &r.name, r.optional)
    } else {
        return Ok(());
    };
    let Some(object) = lookup(resource, name) else {
        return if optional == Some(true) { Ok(()) } else { Err(not_found(kind, name, pod)) };
    };
    for (key, value) in data(&object, resource) {
        // Since 1.34 any printable name without `=` is allowed; others are skipped.
        let name = format!("{prefix}{key}");
        if !name.is_empty() && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
            env.set(&name, String::from_utf8_lossy(&value).into_owned());
        }
    }
    Ok(())
}

fn not_found(kind: &str, name: &str, _pod: &core::Pod) -> String {
    format!("{kind} {name:?} not found")
}

/// The keys of a ConfigMap or Secret with their bytes.
pub fn data(object: &Value, resource: &str) -> BTreeMap<String, Vec<u8>> {
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    let entries = |field: &str| object[field].as_object().cloned().unwrap_or_default();
    let mut all = BTreeMap::new();
    for (key, value) in entries("data") {
        let text = value.as_str().unwrap_or_default();
        let bytes = if resource == "secrets" { decode(text) } else { text.as_bytes().to_vec() };
        all.insert(key, bytes);
    }
    for (key, value) in entries("binaryData") {
        all.insert(key, decode(value.as_str().unwrap_or_default()));
    }
    all
}

fn value_from(
    pod: &core::Pod,
    container: &core::Container,
    facts: &Facts,
    from: &core::EnvVarSource,
    lookup: Lookup<'_>,
) -> Result<Option<String>, String> {
    if let Some(r) = &from.field_ref {
        return downward::field(pod, facts, &r.field_path).map(Some);
    }
    if let Some(r) = &from.resource_field_ref {
        return downward::resource(pod, facts, &container.name, r).map(Some);
    }
    let (kind, title, resource, name, key, optional) = if let Some(r) = &from.config_map_key_ref {
        ("configmap", "ConfigMap", "configmaps", &r.name, &r.key, r.optional)
    } else if let Some(r) = &from.secret_key_ref {
        ("secret", "Secret", "secrets", &r.name, &r.key, r.optional)
    } else {
        return Ok(None);
    };
    let optional = optional == Some(true);
    let Some(object) = lookup(resource, name) else {
        return if optional { Ok(None) } else { Err(not_found(kind, name, pod)) };
    };
    match data(&object, resource).remove(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        None if optional => Ok(None),
        None => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            Err(format!("couldn't find key {key} in {title} {namespace}/{name}"))
        }
    }
}

/// Replaces `$(NAME)`; `$$` is a dollar sign; what is not known stays (`third_party/forked/golang/expansion`).
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables of Services (`envvars.FromServices`): those of `services` when links are enabled, and always the
/// cluster's own `kubernetes`.
pub fn service_variables(services: &[Arc<Value>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let own = |s: &&Arc<Value>| links && crate::api::meta::namespace(s) == namespace;
    let master =
        |s: &&Arc<Value>| crate::api::meta::namespace(s) == "default" && crate::api::meta::name(s) == "kubernetes";
    // A Service of the pod's namespace named `kubernetes` wins over the cluster's, so it comes last.
    for service in services.iter().filter(master).chain(services.iter().filter(own)) {
        let ip = service["spec"]["clusterIP"].as_str().unwrap_or_default();
        let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !ip.is_empty() && ip != "None" && !ports.is_empty() {
            one_service(&mut env, crate::api::meta::name(service), ip, ports);
        }
    }
    env
}

fn one_service(env: &mut BTreeMap<String, String>, name: &str, ip: &str, ports: &[Value]) {
    let variable = |text: &str| text.to_uppercase().replace('-', "_");
    let name = variable(name);
    let bracketed = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    env.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
    for (index, port) in ports.iter().enumerate() {
        let number = port["port"].as_i64().unwrap_or_default();
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let url = format!("{}://{bracketed}:{number}", protocol.to_lowercase());
        if index == 0 {
            env.insert(format!("{name}_SERVICE_PORT"), number.to_string());
            env.insert(format!("{name}_PORT"), url.clone());
        }
        if let Some(port_name) = port["name"].as_str().filter(|n| !n.is_empty()) {
            env.insert(format!("{name}_SERVICE_PORT_{}", variable(port_name)), number.to_string());
        }
        let prefix = format!("{name}_PORT_{number}_{}", protocol.to_uppercase());
        env.insert(prefix.clone(), url);
        env.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
        env.insert(format!("{prefix}_PORT"), number.to_string());
        env.insert(format!("{prefix}_ADDR"), ip.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn build_with(container: Value, objects: &[(&str, &str, Value)]) -> Result<Vec<(String, String)>, String> {
        let pod = json!({"metadata": {"name": "p", "namespace": "d"}, "spec": {"containers": [container]}});
        let pod: core::Pod = serde_json::from_value(pod).expect("a pod");
        let container = pod.spec.as_ref().expect("a spec").containers[0].clone();
        let lookup = |resource: &str, name: &str| {
            objects.iter().find(|(r, n, _)| *r == resource && *n == name).map(|(_, _, o)| Arc::new(o.clone()))
        };
        build(&pod, &container, &Facts::default(), &BTreeMap::new(), &lookup)
    }

    #[test]
    fn expansion_as_in_the_documentation() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("$(A)", "1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("x$", "x$"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    #[test]
    fn sources_in_order_and_later_values_win() {
        let env = build_with(
            json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "no", "optional": true}}],
            "env": [
                {"name": "A", "value": "a"}, {"name": "B", "value": "$(A)-$(P_k)-$(C)"}, {"name": "C", "value": "c"},
                {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "x"}}},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ]}),
            &[("configmaps", "m", json!({"data": {"k": "v"}})), ("secrets", "s", json!({"data": {"x": "aGk="}}))],
        );
        let expected = [("P_k", "v"), ("A", "a"), ("B", "a-v-$(C)"), ("C", "c"), ("S", "hi"), ("N", "p")];
        let expected: Vec<_> = expected.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        assert_eq!(env.expect("all there"), expected);
    }

    #[test]
    fn missing_objects_have_the_kubelets_words() {
        let missing = build_with(json!({"name": "c", "envFrom": [{"configMapRef": {"name": "m"}}]}), &[]);
        assert_eq!(missing.expect_err("missing"), "configmap \"m\" not found");
        let env =
            json!({"name": "c", "env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]});
        let missing = build_with(env, &[("secrets", "s", json!({}))]);
        assert_eq!(missing.expect_err("missing"), "couldn't find key k in Secret d/s");
    }

    #[test]
    fn service_variables_as_documented() {
        let service = |ns: &str, name: &str, ip: &str| {
            Arc::new(json!({"metadata": {"namespace": ns, "name": name}, "spec": {"clusterIP": ip,
                "ports": [{"port": 6379, "protocol": "TCP", "name": "db"}]}}))
        };
        let all = [
            service("default", "kubernetes", "10.96.0.1"),
            service("d", "redis-primary", "10.0.0.11"),
            service("d", "headless", "None"),
            service("e", "other", "10.0.0.12"),
        ];
        let env = service_variables(&all, "d", true);
        assert_eq!(env["REDIS_PRIMARY_SERVICE_HOST"], "10.0.0.11");
        assert_eq!(env["REDIS_PRIMARY_SERVICE_PORT_DB"], "6379");
        assert_eq!(env["REDIS_PRIMARY_PORT"], "tcp://10.0.0.11:6379");
        assert_eq!(env["REDIS_PRIMARY_PORT_6379_TCP_ADDR"], "10.0.0.11");
        assert_eq!(env["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
        assert!(!env.keys().any(|k| k.starts_with("OTHER") || k.starts_with("HEADLESS")));
        assert!(service_variables(&all, "d", false).keys().all(|k| k.starts_with("KUBERNETES")));
    }
}
