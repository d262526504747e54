//! Replays recordings of a real Kubernetes 1.20 (facts kept outside of the repository; without them these tests have
//! nothing to do). What 1.35 does differently is listed here, case by case.

use std::sync::Arc;

use serde_json::{Value, json};

use super::pod::update::same;
use crate::api::kind::{Kind, Strategy};
use crate::api::meta::{items, text};
use crate::api::schema::{self, Strictness};
use crate::api::status::{FieldError, Status};
use crate::apiserver::testing::recorded;

/// The cases of a folder, by name.
fn cases(folder: &str) -> Vec<(String, Value)> {
    let case = |(name, mut text): (String, String)| {
        for uid in 1..10 {
            text = text.replace(&format!("<uid:{uid}>"), &format!("uid-{uid}"));
        }
        (name, serde_json::from_str(&text).expect("recordings are JSON"))
    };
    recorded(folder).into_iter().map(case).collect()
}

/// The kind and the subresource that a request's path means.
fn route(path: &str) -> Option<(Arc<Kind>, String)> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    // Served as v1 since.
    let version = match group {
        "discovery.k8s.io" | "flowcontrol.apiserver.k8s.io" | "policy" | "batch" => "v1",
        "autoscaling" if version != "v1" => "v2",
        _ => version,
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() && !["status", "finalize"].contains(&rest[0]) => rest,
        rest => rest,
    };
    let (resource, subresource) = match rest {
        [resource] | [resource, _] => (*resource, ""),
        [resource, _, subresource] => (*resource, *subresource),
        _ => return None,
    };
    let kind = super::all()
        .into_iter()
        .find(|kind| kind.gvr.group == group && kind.gvr.version == version && kind.gvr.resource == resource)?;
    Some((kind, subresource.to_owned()))
}

/// Setup and steps, or the single request, in order.
fn exchanges(case: &Value) -> Vec<&Value> {
    let mut all: Vec<&Value> = items(&case["setup"]).iter().chain(items(&case["steps"])).collect();
    if case["request"].is_object() {
        all.push(case);
    }
    all
}

fn expand(value: &mut Value) {
    match value {
        Value::String(text) if text == "<time>" => *text = "2026-01-01T00:00:00Z".to_owned(),
        Value::String(text) => {
            *text = text.replace("<suffix:1>", "abcde");
            if let Some(count) = text.strip_prefix('<').and_then(|rest| rest.strip_suffix(" times 'x'>")) {
                *text = "x".repeat(count.parse().expect("a count"));
            }
        }
        Value::Array(array) => array.iter_mut().for_each(expand),
        Value::Object(map) => map.values_mut().for_each(expand),
        _ => {}
    }
}

/// A request body as the generic path makes it an object; `None` when decoding refuses it.
fn decoded(kind: &Kind, body: &Value) -> Option<Value> {
    let mut object = body.clone();
    expand(&mut object);
    object["apiVersion"] = kind.gvr.api_version().into();
    let ty = schema::of(&kind.gvk())?;
    schema::decode(ty, &mut object, Strictness::Ignore).ok()?;
    schema::apply_defaults(ty, &mut object);
    kind.strategy.default(&mut object);
    Some(object)
}

fn created(kind: &Kind, body: &Value) -> Option<Value> {
    let mut object = decoded(kind, body)?;
    if kind.namespaced && object["metadata"]["namespace"].is_null() {
        let involved =
            &object[if object["regarding"].is_object() { "regarding" } else { "involvedObject" }]["namespace"];
        object["metadata"]["namespace"] = involved.clone();
    }
    if kind.has(crate::api::kind::Subresource::Status) && !kind.strategy.keeps_status_on_create() {
        object.as_object_mut()?.remove("status");
    }
    if kind.kind == "Job" {
        object["metadata"]["uid"] = "uid-1".into();
    }
    kind.strategy.prepare_for_create(&mut object);
    Some(object)
}

fn report(compared: usize, failures: Vec<String>) {
    println!("{compared} compared");
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
}

// ---- tables ----

/// Columns that 1.35 has and 1.20 had not, by resource.
fn added_columns(resource: &str) -> &'static [&'static str] {
    match resource {
        "persistentvolumes" | "persistentvolumeclaims" => &["VolumeAttributesClass"],
        "priorityclasses" => &["PreemptionPolicy"],
        "jobs" => &["Status"],
        "cronjobs" => &["Timezone"],
        _ => &[],
    }
}

#[test]
fn tables_have_the_columns_and_cells_of_kubernetes() {
    const KNOWN: [(&str, &str); 3] = [
        ("prioritylevel", "shares have another name since 1.26"),
        ("pod-scheduling-gate-condition", "STATUS is SchedulingGated since 1.27"),
        ("pod-running-restarts", "RESTARTS say when since 1.22"),
    ];
    let (mut compared, mut failures) = (0, Vec::new());
    for (name, case) in cases("tables") {
        if KNOWN.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let mut object = None;
        for exchange in exchanges(&case) {
            let Some((kind, _)) = exchange["request"]["path"].as_str().and_then(route) else { continue };
            let body = &exchange["response"]["body"];
            if body["kind"] == *kind.kind && body["apiVersion"] == kind.gvr.api_version() {
                object = Some((kind, body.clone()));
            } else if body["kind"] == "Table" && items(&body["rows"]).len() == 1 {
                if let Some((of_kind, object)) = &object {
                    if of_kind.gvr == kind.gvr && name != "list-mixed-pods" {
                        compared += 1;
                        failures.extend(table_differences(&name, &kind, object, body));
                    }
                }
            }
        }
    }
    report(compared, failures);
}

fn table_differences(name: &str, kind: &Kind, object: &Value, table: &Value) -> Vec<String> {
    let object: Value =
        serde_json::from_str(&object.to_string().replace("\"<nodePort:1>\"", "31999")).expect("still JSON");
    let columns = kind.strategy.columns();
    let cells = kind.strategy.cells(&object, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(columns.len(), cells.len(), "{name}: one cell for each column");
    let added = added_columns(&kind.gvr.resource);
    let ours: Vec<_> = columns.iter().zip(&cells).filter(|(c, _)| !added.contains(&c.name.as_ref())).collect();
    let (definitions, expected) = (items(&table["columnDefinitions"]), items(&table["rows"][0]["cells"]));
    let mut failures = Vec::new();
    if definitions.is_empty() {
        return failures;
    }
    let shape = |name: &str, format: &str, priority: &Value| format!("{name} {format} {priority}");
    let theirs: Vec<String> =
        definitions.iter().map(|d| shape(text(&d["name"]), text(&d["format"]), &d["priority"])).collect();
    let mine: Vec<String> = ours.iter().map(|(c, _)| shape(&c.name, &c.format, &c.priority.into())).collect();
    if theirs != mine {
        failures.push(format!("{name}: columns {mine:?}, want {theirs:?}"));
        return failures;
    }
    for ((column, cell), want) in ours.into_iter().zip(expected) {
        let mut printed = cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
        printed = printed.replace("31999", "<nodePort>");
        // A target names its metric since 1.31.
        if column.name == "Targets" {
            printed = printed.replace("cpu: ", "");
        }
        let wanted = want.as_str().map_or_else(|| want.to_string(), str::to_owned);
        if printed != wanted && !wanted.contains("<age>") {
            failures.push(format!("{name}: {} is {printed:?}, want {wanted:?}", column.name));
        }
    }
    let conditions = Value::from(kind.strategy.row_conditions(&object));
    if !same(&conditions, &table["rows"][0]["conditions"]) {
        failures.push(format!("{name}: conditions {conditions}"));
    }
    failures
}

// ---- defaults ----

#[test]
fn defaults_are_those_of_kubernetes() {
    const KNOWN: [(&str, &str); 7] = [
        ("csr-min", "the API server writes who asks (tests/apiserver_recordings.rs compares it)"),
        ("pod-seccomp-annotation", "the annotation means nothing since 1.27"),
        ("ingressclass-rich", "parameters have a scope since 1.22"),
        ("csidriver-min", "seLinuxMount exists since 1.25"),
        ("csidriver-rich", "seLinuxMount exists since 1.25"),
        ("prioritylevel-min", "shares have another name since 1.26"),
        ("service-rich", "a Service with external IPs gets an externalTrafficPolicy"),
    ];
    let (mut compared, mut failures) = (0, Vec::new());
    for (name, case) in cases("defaults") {
        if KNOWN.iter().any(|(known, _)| *known == name) {
            continue;
        }
        for exchange in exchanges(&case) {
            let (request, response) = (&exchange["request"], &exchange["response"]);
            if request["method"] != "POST" || response["code"] != 201 || !request["body"].is_object() {
                continue;
            }
            let Some((kind, subresource)) = route(text(&request["path"])) else { continue };
            if !response["body"].is_object() {
                continue;
            }
            if !subresource.is_empty() || kind.verbs.len() == 1 || kind.kind != text(&request["body"]["kind"]) {
                continue;
            }
            let Some(mut object) = created(&kind, &request["body"]) else {
                failures.push(format!("{name}: it cannot be decoded"));
                continue;
            };
            let mut expected = response["body"].clone();
            expected["apiVersion"] = kind.gvr.api_version().into();
            compared += 1;
            normalize(&kind, &mut object);
            normalize(&kind, &mut expected);
            if object != expected {
                let diff = crate::api::validation::diff::unified(&expected, &object);
                failures.push(format!("{name}: - want, + have\n{diff}"));
            }
        }
    }
    report(compared, failures);
}

/// Takes away what the generic path, admission and allocators add, and what 1.35 writes differently.
fn normalize(kind: &Kind, object: &mut Value) {
    const METADATA: [&str; 8] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "namespace",
        "generation",
        "finalizers",
        "generateName",
    ];
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| !METADATA.contains(&key.as_str()));
        if kind.kind == "Namespace" {
            metadata.remove("labels");
        }
        if metadata.get("name").map_or("", text).contains("<suffix") {
            metadata.remove("name");
        }
    }
    if let Some(spec) = object["spec"].as_object_mut() {
        match kind.kind.as_ref() {
            "Pod" => {
                for field in [
                    "tolerations",
                    "priority",
                    "preemptionPolicy",
                    "serviceAccount",
                    "serviceAccountName",
                    "priorityClassName",
                ] {
                    spec.remove(field);
                }
                object["metadata"].as_object_mut().expect("checked").remove("annotations");
                without_token(object);
            }
            "Service" => {
                for field in ["clusterIP", "clusterIPs", "internalTrafficPolicy", "healthCheckNodePort"] {
                    spec.remove(field);
                }
                for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                    port.as_object_mut().expect("an object").remove("nodePort");
                }
            }
            "Node" => {
                spec.remove("taints");
            }
            "StatefulSet" => {
                spec.remove("persistentVolumeClaimRetentionPolicy");
                object["status"].as_object_mut().expect("an object").remove("availableReplicas");
            }
            "DaemonSet" => {
                let rolling = spec["updateStrategy"].get_mut("rollingUpdate").and_then(Value::as_object_mut);
                rolling.and_then(|rolling| rolling.remove("maxSurge"));
            }
            "Job" => without_new_job_fields(object),
            // Stored in v2 since 1.26: zeros of its status and the order of the metrics are v2's.
            "HorizontalPodAutoscaler" => {
                if let Some(metrics) = spec.get_mut("metrics").and_then(Value::as_array_mut) {
                    metrics.sort_by_key(Value::to_string);
                }
                let status = object["status"].as_object_mut();
                status.and_then(|status| status.remove("currentReplicas"));
            }
            _ => {}
        }
    }
    drop_nulls(object);
}

/// What Jobs have since 1.21: fields with defaults, and labels with a prefix.
fn without_new_job_fields(job: &mut Value) {
    if let Some(spec) = job["spec"].as_object_mut() {
        spec.retain(|field, _| !["completionMode", "suspend", "podReplacementPolicy"].contains(&field.as_str()));
        if spec.get("manualSelector") == Some(&Value::Bool(false)) {
            spec.remove("manualSelector");
        }
    }
    for labels in ["/metadata/labels", "/spec/template/metadata/labels", "/spec/selector/matchLabels"] {
        let Some(map) = job.pointer_mut(labels).and_then(Value::as_object_mut) else { continue };
        if let Some(uid) = map.remove("batch.kubernetes.io/controller-uid") {
            map.insert("controller-uid".into(), uid);
        }
        map.remove("batch.kubernetes.io/job-name");
    }
}

fn without_token(pod: &mut Value) {
    let is_token = |name: &Value| text(name).starts_with("kube-api-access-");
    let Some(spec) = pod["spec"].as_object_mut() else { return };
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.retain(|volume| !is_token(&volume["name"]));
        if volumes.is_empty() {
            spec.remove("volumes");
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(map) = container.as_object_mut() else { continue };
            let Some(mounts) = map.get_mut("volumeMounts").and_then(Value::as_array_mut) else { continue };
            mounts.retain(|mount| !is_token(&mount["name"]));
            if mounts.is_empty() {
                map.remove("volumeMounts");
            }
        }
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
            // The metadata of a template without labels is empty, and then absent or not.
            map.retain(|key, value| !(key == "metadata" && *value == json!({})));
        }
        Value::Array(array) => array.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

// ---- errors ----

/// Cases that pure kind code cannot decide, or that 1.35 answers differently.
const KNOWN_ERRORS: &[(&str, &str)] = &[
    ("create-dryrun-bad", "the generic path reads the query"),
    ("create-fieldmanager-bad", "the generic path reads the query"),
    ("create-generatename-bad", "the generic path validates metadata"),
    ("pod-finalizer-bad", "the generic path validates metadata"),
    ("netpol-bad", "the message about ranges of addresses is another"),
    ("node-podcidr-change", "configSource is gone"),
    ("pod-uid-change", "the generic path validates metadata"),
    ("patch-force-on-merge", "the generic path reads the query"),
    ("pod-immutable-patch-env", "the list of fields and the form of the difference are others"),
    ("pv-source-immutable", "the form of the difference is another"),
    ("pvc-immutable", "the form of the difference is another"),
    ("pod-no-name", "the generic path validates metadata"),
    ("pod-ownerref-bad", "the generic path validates metadata"),
    ("pod-ownerref-event", "the generic path validates metadata"),
    ("pod-ownerref-two-controllers", "the generic path validates metadata"),
    ("service-clusterip-out-of-range", "the allocator decides"),
    ("service-clusterip-taken", "the allocator decides"),
    ("service-nodeport-out-of-range", "the allocator decides"),
    ("service-nodeport-taken", "the allocator decides"),
    ("daemonset-negative", "maxSurge exists since 1.22"),
    ("statefulset-immutable", "more fields may change now"),
    ("endpoints-bad", "ranges name IPv6 too, and an address that is none is reported once"),
    ("service-external-ip-bad", "ranges name IPv6 too"),
    ("pod-dnsconfig-bad", "the message about addresses is that of all addresses"),
    ("pod-env-bad-name", "names are any printable ASCII since 1.34"),
    ("crd-scope-immutable", "a definition is established after the answer to its creation"),
    ("put-no-rv-required", "the generic path compares versions"),
    ("crd-two-storage", "1.20 printed Go values"),
    ("pod-env-fieldpath-unsupported", "status.hostIPs exists since 1.28"),
    ("pod-init-probe", "sidecars exist since 1.28"),
    ("pvc-bad-access-mode", "ReadWriteOncePod exists since 1.22"),
    ("sar-empty", "values are printed as JSON"),
    ("cronjob-bad-schedule", "version 3 of robfig/cron words it otherwise"),
    ("secret-basic-missing", "1.20 printed %s in the path"),
    ("secret-ssh-missing", "1.20 printed %s in the path"),
    ("service-external-traffic-clusterip", "Services with external IPs are accessible too"),
    ("service-dual-required", "the message is another"),
    ("service-ipv6-unconfigured", "the message is another"),
    ("service-loadbalancer-source-ranges", "each range is reported"),
];

#[test]
fn invalid_objects_get_the_messages_of_kubernetes() {
    let (mut compared, mut failures) = (0, Vec::new());
    for (name, case) in cases("errors") {
        if KNOWN_ERRORS.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let exchanges = exchanges(&case);
        let Some((last, before)) = exchanges.split_last() else { continue };
        let (request, want) = (&last["request"], &last["response"]["body"]);
        let Some((kind, subresource)) = request["path"].as_str().and_then(route) else { continue };
        if want["reason"] != "Invalid" || !request["body"].is_object() {
            continue;
        }
        let stored = before.iter().rev().map(|e| &e["response"]["body"]).find(|body| body["kind"] == *kind.kind);
        let stored = stored.and_then(|body| decoded(&kind, body));
        let Some((errors, object)) = verdict(&kind, &subresource, request, stored.as_ref()) else { continue };
        compared += 1;
        let status = Status::invalid(&kind.gvr.group, &kind.kind, text(&object["metadata"]["name"]), &errors);
        if let Some(difference) = error_difference(&status.to_object(), want) {
            failures.push(format!("{name}: {difference}"));
        }
    }
    report(compared, failures);
}

fn verdict(
    kind: &Kind,
    subresource: &str,
    request: &Value,
    stored: Option<&Value>,
) -> Option<(Vec<FieldError>, Value)> {
    let strategy: &dyn Strategy = kind.strategy.as_ref();
    let body = &request["body"];
    let with_name = |object: &Value| {
        let name = text(&object["metadata"]["name"]);
        let messages = if name.is_empty() { Vec::new() } else { strategy.validate_name(name) };
        messages.iter().map(|m| FieldError::invalid("metadata.name", &name.into(), m)).collect::<Vec<_>>()
    };
    match (text(&request["method"]), subresource) {
        ("POST", "") => {
            let object = created(kind, body)?;
            let mut errors = with_name(&object);
            errors.extend(metadata_errors(&object));
            errors.extend(strategy.validate(&object));
            Some((errors, object))
        }
        ("PUT" | "PATCH", "" | "status") => {
            let stored = stored?;
            let mut object = match text(&request["method"]) {
                "PUT" => body.clone(),
                _ => patched(text(&request["headers"]["Content-Type"]), stored, body, kind)?,
            };
            object["metadata"] = stored["metadata"].clone();
            let mut object = decoded(kind, &object)?;
            if subresource == "status" {
                return Some((strategy.validate_status_update(&object, stored), object));
            }
            strategy.prepare_for_update(&mut object, stored);
            Some((strategy.validate_update(&object, stored), object))
        }
        _ => None,
    }
}

/// What the generic path says about labels and annotations.
fn metadata_errors(object: &Value) -> Vec<FieldError> {
    use crate::api::validation::meta::{annotations, labels};
    let metadata = &object["metadata"];
    let mut errors = labels(&metadata["labels"], "metadata.labels");
    errors.extend(annotations(&metadata["annotations"], "metadata.annotations"));
    errors
}

fn patched(media_type: &str, object: &Value, patch: &Value, kind: &Kind) -> Option<Value> {
    let mut object = object.clone();
    match media_type {
        "application/merge-patch+json" => crate::api::patch::merge(&mut object, patch).ok()?,
        "application/strategic-merge-patch+json" => {
            crate::api::patch::strategic(schema::of(&kind.gvk())?, &mut object, patch).ok()?;
        }
        _ => return None,
    }
    Some(object)
}

/// Causes, in any order: the server walks maps. Old wordings are brought up to date first.
fn error_difference(have: &Value, want: &Value) -> Option<String> {
    let list = |status: &Value| -> Vec<String> {
        let causes = items(&status["details"]["causes"]).iter();
        let mut texts: Vec<String> =
            causes.map(|c| format!("{}: {}", text(&c["field"]), modern(text(&c["message"])))).collect();
        texts.sort();
        texts
    };
    let (ours, theirs) = (list(have), list(want));
    let equal = ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(a, b)| a == b || alike(a, b));
    (!equal).then(|| format!("\n  have {}\n  want {}", ours.join("\n       "), theirs.join("\n       ")))
}

fn modern(message: &str) -> String {
    let message = message.replace("Too long: must have at most", "Too long: may not be more than");
    match message.strip_suffix(" characters") {
        Some(rest) if rest.contains("must be no more than ") => format!("{rest} bytes"),
        _ => message,
    }
}

/// 1.20 prints values as Go literals, 1.35 as JSON: only what follows the value is compared.
fn alike(have: &str, want: &str) -> bool {
    const LITERALS: [&str; 9] =
        ["core.", "v1.", "intstr.", "resource.Quantity{", "map[string]", "[]", "apps.", "authorization.", "policy."];
    let split = |text: &str| text.split_once(" value: ").map(|(head, rest)| (head.to_owned(), rest.to_owned()));
    let (Some((head, value)), Some((other_head, other))) = (split(have), split(want)) else { return false };
    let detail = other.rfind("}: ").map_or("", |at| &other[at + 3..]);
    head == other_head && LITERALS.iter().any(|l| other.starts_with(l)) && value.ends_with(detail)
}
