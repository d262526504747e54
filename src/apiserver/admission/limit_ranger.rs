//! `LimitRanger`: containers get the defaults of the namespace's LimitRanges; pods and claims must keep their bounds.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::api::kind::Subresource;
use crate::api::meta::{self, items, text};
use crate::api::pod::{self, Resources, resource_list};
use crate::api::quantity::Quantity;
use crate::api::{Status, StatusResult};
use crate::apiserver::{ApiServer, registry};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub(super) struct LimitRanger;

#[async_trait]
impl Plugin for LimitRanger {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        let gvr = &attributes.kind.gvr;
        let of_core = |resource: &str| gvr.group.is_empty() && gvr.resource == resource;
        match (attributes.operation, attributes.subresource) {
            (Operation::Create, None) => of_core("pods") || of_core("persistentvolumeclaims"),
            (Operation::Update, None) => of_core("persistentvolumeclaims"),
            (Operation::Update, Some(Subresource::Resize)) => of_core("pods"),
            _ => false,
        }
    }

    async fn admit(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        object: &mut Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        if attributes.kind.gvr.resource == "pods" && object["spec"].is_object() {
            for range in ranges(server, attributes.namespace).await? {
                set_defaults(object, &range);
            }
        }
        Ok(())
    }

    async fn validate(
        &self,
        server: &ApiServer,
        attributes: &Attributes<'_>,
        object: &Value,
        old: Option<&Value>,
    ) -> StatusResult<()> {
        if old.is_some_and(meta::is_terminating) {
            return Ok(());
        }
        for range in ranges(server, attributes.namespace).await? {
            let problems = problems(&attributes.kind.gvr.resource, object, &range);
            let why = match problems.len() {
                0 => continue,
                1 => problems.concat(),
                _ => format!("[{}]", problems.join(", ")),
            };
            return Err(Status::forbidden(&attributes.kind.gvr, meta::name(object), &why));
        }
        Ok(())
    }
}

async fn ranges(server: &ApiServer, namespace: &str) -> StatusResult<Vec<std::sync::Arc<Value>>> {
    let prefix = registry::prefix("", "limitranges", namespace);
    let listing = server.storage.list(&prefix, None, 0, 0).await.map_err(registry::storage_failed)?;
    Ok(listing.entries.iter().map(|entry| entry.value()).collect())
}

/// Gives the containers of a pod what they lack of the defaults, and notes it in an annotation.
fn set_defaults(pod: &mut Value, range: &Value) {
    let (mut limits, mut requests) = (Value::Null, Value::Null);
    for item in items(&range["spec"]["limits"]).iter().filter(|item| text(&item["type"]) == "Container") {
        (limits, requests) = (item["default"].clone(), item["defaultRequest"].clone());
    }
    let mut notes = Vec::new();
    for (list, noun) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let name = text(&container["name"]).to_owned();
            for (list, what, defaults) in [("limits", "limit", &limits), ("requests", "request", &requests)] {
                let set = merge(container, list, defaults);
                if !set.is_empty() {
                    notes.push((what, format!("{} {what} for {noun} {name}", set.join(", "))));
                }
            }
            // Kubernetes tells requests before limits.
            if let [.., (first, _), (second, _)] = notes[..]
                && (first, second) == ("limit", "request")
            {
                let end = notes.len();
                notes.swap(end - 2, end - 1);
            }
        }
    }
    if !notes.is_empty() {
        let texts: Vec<String> = notes.into_iter().map(|(_, text)| text).collect();
        let annotations = meta::metadata_mut(pod).entry("annotations").or_insert(Value::Null);
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations[ANNOTATION] = format!("LimitRanger plugin set: {}", texts.join("; ")).into();
    }
}

/// Adds what is missing in a list of a container; returns the names.
fn merge(container: &mut Value, list: &str, defaults: &Value) -> Vec<String> {
    let mut set = Vec::new();
    for (name, quantity) in defaults.as_object().into_iter().flatten() {
        if !container.is_object() || !container["resources"][list][name].is_null() {
            continue;
        }
        for part in [&["resources"][..], &["resources", list]] {
            let place = part.iter().fold(&mut *container, |value, key| &mut value[*key]);
            if !place.is_object() {
                *place = json!({});
            }
        }
        container["resources"][list][name] = quantity.clone();
        set.push(name.clone());
    }
    set
}

/// What a LimitRange has against a pod or a claim.
fn problems(resource: &str, object: &Value, range: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for item in items(&range["spec"]["limits"]) {
        let kind = text(&item["type"]);
        match (resource, kind) {
            ("pods", "Container") => {
                let spec = &object["spec"];
                for container in items(&spec["containers"]).iter().chain(items(&spec["initContainers"])) {
                    let list = |list: &str| resource_list(&container["resources"][list]);
                    check(&mut problems, item, kind, &list("requests"), &list("limits"));
                }
            }
            ("pods", "Pod") => check(&mut problems, item, kind, &pod::requests(object), &pod::limits(object)),
            ("persistentvolumeclaims", "PersistentVolumeClaim") => {
                let requests = resource_list(&object["spec"]["resources"]["requests"]);
                claim(&mut problems, item, &requests);
            }
            _ => {}
        }
    }
    problems
}

fn check(problems: &mut Vec<String>, item: &Value, kind: &str, requests: &Resources, limits: &Resources) {
    for (name, min) in resource_list(&item["min"]) {
        problems.extend(below(kind, &name, min, requests.get(&name), limits.get(&name)));
    }
    for (name, max) in resource_list(&item["max"]) {
        problems.extend(above(kind, &name, max, requests.get(&name), limits.get(&name)));
    }
    for (name, ratio) in resource_list(&item["maxLimitRequestRatio"]) {
        problems.extend(apart(kind, &name, ratio, requests.get(&name), limits.get(&name)));
    }
}

fn claim(problems: &mut Vec<String>, item: &Value, requests: &Resources) {
    let kind = "PersistentVolumeClaim";
    for (name, min) in resource_list(&item["min"]) {
        problems.extend(below(kind, &name, min, requests.get(&name), None));
    }
    for (name, max) in resource_list(&item["max"]) {
        problems.extend(match requests.get(&name) {
            None => Some(format!("maximum {name} usage per {kind} is {max}.  No request is specified")),
            Some(request) if *request > max => {
                Some(format!("maximum {name} usage per {kind} is {max}, but request is {request}"))
            }
            Some(_) => None,
        });
    }
}

/// `minConstraint`.
fn below(
    kind: &str,
    name: &str,
    min: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let head = format!("minimum {name} usage per {kind} is {min}");
    match (request, limit) {
        (None, _) => Some(format!("{head}.  No request is specified")),
        (Some(request), _) if *request < min => Some(format!("{head}, but request is {request}")),
        (_, Some(limit)) if *limit < min => Some(format!("{head}, but limit is {limit}")),
        _ => None,
    }
}

/// `maxConstraint`.
fn above(
    kind: &str,
    name: &str,
    max: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let head = format!("maximum {name} usage per {kind} is {max}");
    match (request, limit) {
        (_, None) => Some(format!("{head}.  No limit is specified")),
        (_, Some(limit)) if *limit > max => Some(format!("{head}, but limit is {limit}")),
        (Some(request), _) if *request > max => Some(format!("{head}, but request is {request}")),
        _ => None,
    }
}

/// `limitRequestRatioConstraint`.
fn apart(
    kind: &str,
    name: &str,
    ratio: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let head = format!("{name} max limit to request ratio per {kind} is {ratio}");
    let Some(request) = request.filter(|q| !q.is_zero()) else {
        return Some(format!("{head}, but no request is specified or request is 0"));
    };
    let Some(limit) = limit.filter(|q| !q.is_zero()) else {
        return Some(format!("{head}, but no limit is specified or limit is 0"));
    };
    let observed = limit.as_f64() / request.as_f64();
    (observed > ratio.as_f64()).then(|| format!("{head}, but provided ratio is {observed:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }
    fn pod(resources: Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn what_containers_lack_is_set_and_noted() {
        // TestMergePodResourceRequirements of admission_test.go.
        let range = range(
            json!({"type": "Container", "default": {"cpu": "75m", "memory": "10Mi"}, "defaultRequest": {"cpu": "50m", "memory": "5Mi"}}),
        );
        let mut object = json!({"spec": {
            "containers": [{"name": "foo-0", "resources": {"requests": {"memory": "10k"}}}], "initContainers": [{"name": "i"}]}});
        set_defaults(&mut object, &range);
        assert_eq!(
            object["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "75m", "memory": "10Mi"}, "requests": {"cpu": "50m", "memory": "10k"}})
        );
        assert_eq!(
            object["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container foo-0; cpu, memory limit for container foo-0; cpu, memory \
             request for init container i; cpu, memory limit for init container i"
        );
        let once = object.clone();
        set_defaults(&mut object, &range);
        assert_eq!(object, once);
    }

    #[test]
    fn bounds_are_told_in_kubernetes_words() {
        let told = |item: Value, resources: Value| problems("pods", &pod(resources), &range(item)).join("; ");
        let max = json!({"type": "Container", "max": {"memory": "1Gi"}});
        assert_eq!(
            told(max.clone(), json!({"limits": {"memory": "1536Mi"}, "requests": {"memory": "800Mi"}})),
            "maximum memory usage per Container is 1Gi, but limit is 1536Mi"
        );
        assert_eq!(told(max, json!({})), "maximum memory usage per Container is 1Gi.  No limit is specified");
        let min = json!({"type": "Pod", "min": {"memory": "500Mi"}});
        assert_eq!(
            told(min, json!({"limits": {"memory": "800Mi"}, "requests": {"memory": "100Mi"}})),
            "minimum memory usage per Pod is 500Mi, but request is 100Mi"
        );
        let ratio = json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "1500m"}});
        assert_eq!(
            told(ratio, json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}})),
            "cpu max limit to request ratio per Container is 1500m, but provided ratio is 2.000000"
        );
        let claim = json!({"spec": {"resources": {"requests": {"storage": "500Mi"}}}});
        let range =
            range(json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}));
        assert_eq!(
            problems("persistentvolumeclaims", &claim, &range),
            ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 500Mi"]
        );
    }
}
