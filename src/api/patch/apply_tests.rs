//! Server-side apply and the tracking of managers, against the recordings of a real kube-apiserver.

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::tests::{recorded_cases, type_of, within};
use super::{Writer, apply, managed_fields};
use crate::api::Status;
use crate::api::schema::arbitrary::Arbitrary;
use crate::api::schema::{self, Strictness, TypeId};

fn writer(manager: &str) -> Writer<'_> {
    Writer { manager, subresource: "", api_version: "v1", now: Timestamp::UNIX_EPOCH }
}

fn config_map() -> TypeId {
    TypeId::of_definition("api.core.v1.ConfigMap").expect("a built-in kind")
}

fn applied(live: Option<&Value>, data: Value, manager: &str, force: bool) -> Result<Value, Status> {
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": data});
    apply(config_map(), live, &config, &writer(manager), force)
}

/// manager -> its fields.
fn owners(object: &Value) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let owner = |e: &Value| (e["manager"].as_str().unwrap_or_default().to_owned(), e["fieldsV1"].clone());
    Value::Object(entries.iter().map(owner).collect())
}

#[test]
fn two_managers_share_a_map() {
    let one = applied(None, json!({"x": "1", "z": "3"}), "m1", false).expect("no conflict");
    assert_eq!(owners(&one), json!({"m1": {"f:data": {"f:x": {}, "f:z": {}}}}));
    let refused = applied(Some(&one), json!({"x": "2", "z": "4"}), "m2", false).expect_err("a conflict");
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (409, "Apply failed with 2 conflicts: conflicts with \"m1\":\n- .data.x\n- .data.z")
    );
    let forced = applied(Some(&one), json!({"x": "2"}), "m2", true).expect("forced");
    assert_eq!(owners(&forced), json!({"m1": {"f:data": {"f:z": {}}}, "m2": {"f:data": {"f:x": {}}}}));
    assert_eq!(forced["data"], json!({"x": "2", "z": "3"}));
    // What m1 no longer applies goes; what m2 owns stays.
    let fewer = applied(Some(&forced), json!({"y": "1"}), "m1", false).expect("no conflict");
    assert_eq!(fewer["data"], json!({"x": "2", "y": "1"}));
}

#[test]
fn updates_take_fields() {
    let one = applied(None, json!({"a": "1", "b": "2"}), "m1", false).expect("no conflict");
    let mut two = one.clone();
    two["data"]["a"] = "changed".into();
    managed_fields::update(config_map(), Some(&one), &mut two, &writer("editor"));
    assert_eq!(owners(&two), json!({"editor": {"f:data": {"f:a": {}}}, "m1": {"f:data": {"f:b": {}}}}));
    let refused = applied(Some(&two), json!({"a": "1", "b": "2"}), "m1", false).expect_err("a conflict");
    assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"editor\" using v1: .data.a");
    let mut reset = two.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    managed_fields::update(config_map(), Some(&two), &mut reset, &writer("editor"));
    assert_eq!(reset["metadata"].get("managedFields"), None);
}

#[test]
fn refusals() {
    let text = |data: Value| applied(None, data, "m", false).map_err(|s| s.message);
    assert_eq!(
        text(json!({"a": 1})),
        Err("failed to create typed patch object (/cm; /v1, Kind=ConfigMap): .data.a: expected string, got 1"
            .to_owned())
    );
    let config =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "d"}, "bogus": 1});
    let refused = apply(config_map(), None, &config, &writer("m"), false).expect_err("not declared");
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (500, "failed to create typed patch object (d/x; /v1, Kind=ConfigMap): .bogus: field not declared in schema")
    );
}

proptest! {
    /// Applying twice changes nothing, and what a manager applied is what the object has.
    #[test]
    fn applying_twice_is_applying_once(seed in any::<u64>(), other in any::<u64>()) {
        let ty = TypeId::of_definition("api.apps.v1.Deployment").expect("a built-in kind");
        let config = |seed: u64| {
            let mut object = Arbitrary(seed).object(ty, 0);
            object["kind"] = "Deployment".into();
            object["apiVersion"] = "apps/v1".into();
            object["metadata"] = json!({"name": "d"});
            schema::decode(ty, &mut object, Strictness::Strict).expect("it is of its type");
            object
        };
        // Lists with duplicate keys are refused.
        let Ok(one) = apply(ty, None, &config(seed), &writer("m1"), false) else { return Ok(()) };
        let twice = apply(ty, Some(&one), &config(seed), &writer("m1"), false).expect("nobody else owns anything");
        prop_assert_eq!(&one, &twice);
        if let Ok(both) = apply(ty, Some(&one), &config(other), &writer("m2"), true) {
            let again = apply(ty, Some(&both), &config(other), &writer("m2"), false).expect("m2 owns it all");
            prop_assert_eq!(both, again);
        }
    }
}

/// Replays the writes of every recorded case, each from the recorded object before it.
#[test]
fn recorded_managers() {
    let (cases, mut wrong, mut checked) = (recorded_cases(), Vec::new(), 0);
    for case in &cases {
        let name = case["case"].as_str().unwrap_or_default().to_owned();
        let mut writes: Vec<&Value> = ["setup", "steps"].iter().filter_map(|k| case[*k].as_array()).flatten().collect();
        if case["request"].is_object() {
            writes.push(case);
        }
        let mut live: Option<Value> = None;
        for (step, write) in writes.into_iter().enumerate() {
            let (request, response) = (&write["request"], &write["response"]);
            let path = request["path"].as_str().unwrap_or_default();
            // The scale subresource answers another kind, and only one object is followed.
            if path.ends_with("/scale") || path.ends_with("/status") || request["method"] == "DELETE" {
                break;
            }
            let Some(ty) =
                type_of(if response["code"].as_u64() < Some(400) { &response["body"] } else { &request["body"] })
            else {
                continue;
            };
            let manager = request["query"]["fieldManager"].as_str().unwrap_or("rec");
            let api_version = request["body"]["apiVersion"].as_str().or(response["body"]["apiVersion"].as_str());
            let writer = Writer { api_version: api_version.unwrap_or_default(), ..writer(manager) };
            let applies = request["headers"]["Content-Type"] == "application/apply-patch+yaml";
            let ok = response["code"].as_u64() < Some(300);
            let dry = request["query"]["dryRun"].is_string();
            if applies && request["body"].is_object() {
                checked += 1;
                let force = request["query"]["force"] == "true";
                match apply(ty, live.as_ref(), &request["body"], &writer, force) {
                    Err(status) if ok => wrong.push(format!("{name} {step}: {}", status.message)),
                    Err(status) => {
                        let message = response["body"]["message"].as_str().unwrap_or_default();
                        if status.message != message {
                            wrong.push(format!("{name} {step}: {}, not {message}", status.message));
                        }
                    }
                    Ok(_) if !ok => {}
                    Ok(object) => check(&name, step, ty, object, &response["body"], live.is_some(), &mut wrong),
                }
            } else if ok && !dry && !applies && (live.is_some() || !prepared(&response["body"])) {
                checked += 1;
                let mut object = response["body"].clone();
                object["metadata"]["managedFields"] =
                    live.as_ref().map_or(Value::Null, |l| l["metadata"]["managedFields"].clone());
                schema::decode(ty, &mut object, Strictness::Ignore).expect("it was stored");
                managed_fields::update(ty, live.as_ref(), &mut object, &writer);
                check(&name, step, ty, object, &response["body"], true, &mut wrong);
            }
            if ok && !dry {
                let mut object = response["body"].clone();
                schema::decode(ty, &mut object, Strictness::Ignore).expect("it was stored");
                live = Some(object);
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Kinds whose creation adds more, after the managers were noted.
fn prepared(object: &Value) -> bool {
    ["Pod", "Service", "Namespace", "Node"].iter().any(|kind| object["kind"] == *kind)
}

/// Cases in which v1.35 does otherwise (types that are atomic now, the order of merged lists), and such whose managers
/// come from more than the response tells (`User-Agent`, managers in the request, ports allocated later).
const OTHERWISE: [&str; 10] = [
    "apply-after-clear",
    "managedfields-user-agent",
    "merge-managedfields-reset",
    "merge-service-type",
    "apply-empty-map",
    "apply-env-order",
    "apply-service",
    "smp-ingress-rules-atomic",
    "smp-nodeselector-replace",
    "smp-ownerrefs",
];

fn check(name: &str, step: usize, ty: TypeId, mut ours: Value, theirs: &Value, whole: bool, wrong: &mut Vec<String>) {
    if OTHERWISE.contains(&name) {
        return;
    }
    let mut theirs = theirs.clone();
    schema::decode(ty, &mut theirs, Strictness::Ignore).expect("it was stored");
    let managers = |object: &Value| {
        let mut entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        for entry in &mut entries {
            entry["time"] = Value::Null;
            if let Some(fields) = entry["fieldsV1"].as_object_mut() {
                fields.remove("f:status");
            }
        }
        entries.retain(|e| e["fieldsV1"] != json!({}));
        // Their order tells when they wrote, and the replay has no times.
        entries.sort_by_key(Value::to_string);
        entries
    };
    let (a, b) = (managers(&ours), managers(&theirs));
    if a != b {
        wrong.push(format!("{name} {step}:\n  ours   {}\n  theirs {}", Value::from(a), Value::from(b)));
        return;
    }
    for object in [&mut ours, &mut theirs] {
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        for field in
            ["managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink", "namespace"]
        {
            metadata.remove(field);
        }
        object.as_object_mut().expect("an object").remove("status");
    }
    if whole && !within(&ours, &theirs) {
        wrong.push(format!("{name} {step}:\n  ours   {ours}\n  theirs {theirs}"));
    }
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client_side() {
    // TestUpgrade of lastappliedmanager_test.go: fields as kubectl applied them are no conflicts, others stay ones.
    let last = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "annotations": {}},
        "data": {"a": "1", "b": "1"}});
    let mut live = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "c", "annotations": {super::apply::LAST_APPLIED: last.to_string()}}, "data": {"a": "1", "b": "1"}});
    let writer =
        |manager: &'static str| Writer { manager, subresource: "", api_version: "v1", now: Timestamp::UNIX_EPOCH };
    managed_fields::update(config_map(), None, &mut live, &writer("kubectl-client-side-apply"));
    let mut changed = live.clone();
    changed["data"]["b"] = "other".into();
    managed_fields::update(config_map(), Some(&live), &mut changed, &writer("someone"));
    let config = |a: &str, b: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": a, "b": b}});
    let applied =
        apply(config_map(), Some(&changed), &config("2", "other"), &writer("kubectl"), false).expect("no conflict");
    assert_eq!(applied["data"]["a"], "2");
    let annotation = applied["metadata"]["annotations"][super::apply::LAST_APPLIED].as_str().expect("it is kept");
    assert!(annotation.contains("\"a\":\"2\"") && annotation.ends_with('\n'), "{annotation}");
    let refused = apply(config_map(), Some(&changed), &config("2", "2"), &writer("kubectl"), false);
    let refused = refused.expect_err("b belongs to someone");
    assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"someone\" using v1: .data.b");
    let other = apply(config_map(), Some(&changed), &config("2", "other"), &writer("another"), false);
    assert_eq!(other.expect_err("only kubectl takes over").code, 409);
}
