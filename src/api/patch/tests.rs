//! Facts about patches from the recordings of a real kube-apiserver, the recordings themselves where they are at
//! hand, and properties.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{json as json_patch, merge, strategic};
use crate::api::Gvk;
use crate::api::schema::{self, Strictness, TypeId};
use crate::apiserver::testing::recorded;

fn pod() -> TypeId {
    TypeId::of_definition("api.core.v1.Pod").expect("a built-in kind")
}

/// Patches the pod spec.
fn patched(spec: Value, patch: Value) -> Result<Value, String> {
    let mut object = json!({"spec": spec});
    strategic(pod(), &mut object, &json!({"spec": patch})).map_err(|s| format!("{} {}", s.code, s.message))?;
    Ok(object["spec"].take())
}

#[test]
fn containers_merge_by_name() {
    let spec =
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}], "nodeSelector": {"x": "y"}});
    assert_eq!(
        patched(spec.clone(), json!({"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]})),
        Ok(
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}],
            "nodeSelector": {"x": "y"}})
        )
    );
    assert_eq!(
        patched(
            spec.clone(),
            json!({"containers": [{"name": "a", "$patch": "delete"}], "nodeSelector": {"$patch": "replace", "z": "1"}})
        ),
        Ok(json!({"containers": [{"name": "b", "image": "1"}], "nodeSelector": {"z": "1"}}))
    );
    assert_eq!(
        patched(spec.clone(), json!({"containers": [{"$patch": "replace"}, {"name": "c"}], "nodeSelector": null})),
        Ok(json!({"containers": [{"name": "c"}]}))
    );
    assert_eq!(
        patched(spec.clone(), json!({"containers": [{"$patch": "frob", "name": "c"}]})),
        Err("500 unknown patch type: frob in map: map[$patch:frob name:c]".to_owned())
    );
    assert_eq!(
        patched(spec, json!({"containers": [{"image": "x"}]})),
        Err("500 map: map[image:x] does not contain declared merge key: name".to_owned())
    );
}

#[test]
fn orders_and_primitive_lists() {
    let mut object = json!({"metadata": {"finalizers": ["a/1", "b/2", "c/3"]}});
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b/2"], "finalizers": ["d/4"],
        "$setElementOrder/finalizers": ["d/4", "c/3", "a/1"]}});
    strategic(pod(), &mut object, &patch).expect("valid");
    assert_eq!(object["metadata"]["finalizers"], json!(["d/4", "c/3", "a/1"]));
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    assert_eq!(
        patched(spec.clone(), json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]})),
        Ok(json!({"containers": [{"name": "b"}, {"name": "a"}]}))
    );
    assert_eq!(
        patched(
            spec,
            json!({"$setElementOrder/containers": [{"name": "c"}], "containers": [{"name": "n", "image": "new"}]})
        ),
        Err("500 The order in patch list:\n[map[image:new name:n]]\n doesn't match $setElementOrder list:\n\
            [map[name:c]]\n"
            .to_owned())
    );
}

#[test]
fn retain_keys_of_volumes() {
    let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    let volume = json!({"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}});
    assert_eq!(
        patched(spec.clone(), json!({"volumes": [volume]})),
        Ok(json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}))
    );
    let volume = json!({"$retainKeys": ["name"], "name": "v", "hostPath": {"path": "/x"}});
    assert_eq!(patched(spec, json!({"volumes": [volume]})), Err("400 invalid patch format of retainKeys".to_owned()));
}

#[test]
fn json_patch_refusals() {
    let code = |patch: Value| json_patch(&mut json!({"data": {"a": "1"}}), &patch).map_err(|s| (s.code, s.message));
    let rejected = || Err((422, "the server rejected our request due to an error in our request".to_owned()));
    assert_eq!(code(json!([{"op": "test", "path": "/data/a", "value": "zzz"}])), rejected());
    assert_eq!(code(json!([{"op": "remove", "path": "/data/none"}])), rejected());
    assert_eq!(code(json!([{"op": "replace", "path": "/data/none/x", "value": "a"}])), rejected());
    assert_eq!(code(json!([{"op": "frob", "path": "/data"}])), rejected());
    assert_eq!(
        code(json!({"op": "test"})),
        Err((400, "json: cannot unmarshal object into Go value of type jsonpatch.Patch".to_owned()))
    );
    let many = vec![json!({"op": "test", "path": "/data/a", "value": "1"}); 10_001];
    assert_eq!(
        code(Value::Array(many)),
        Err((
            413,
            "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001".to_owned()
        ))
    );
}

/// Replays each recorded patch that was not an apply: the object before, the patch, the object after (without what
/// the server sets itself).
#[test]
fn recorded_patches() {
    let (cases, mut checked, mut wrong) = (recorded_cases(), 0, Vec::new());
    for case in &cases {
        let name = case["case"].as_str().unwrap_or_default();
        let (request, response) = (&case["request"], &case["response"]);
        let media = request["headers"]["Content-Type"].as_str().unwrap_or_default();
        let path = request["path"].as_str().unwrap_or_default();
        // The status subresource, custom resources and texts are other parts' business.
        if case["before"].is_null()
            || !request["body"].is_object() && !request["body"].is_array()
            || path.ends_with("/scale")
        {
            continue;
        }
        let mut object = case["before"].clone();
        let Some(ty) = type_of(&object) else { continue };
        let result = match media {
            "application/json-patch+json" => json_patch(&mut object, &request["body"]),
            "application/merge-patch+json" => merge(&mut object, &request["body"]),
            "application/strategic-merge-patch+json" => strategic(ty, &mut object, &request["body"]),
            _ => continue,
        };
        let result = result.and_then(|()| schema::decode(ty, &mut object, Strictness::Ignore).map(drop));
        checked += 1;
        let code = response["code"].as_u64().unwrap_or_default();
        match result {
            Err(status) => {
                let message = response["body"]["message"].as_str().unwrap_or_default();
                if u64::from(status.code) != code || status.message != message {
                    wrong.push(format!("{name}: {} {}, not {code} {message}", status.code, status.message));
                }
            }
            // What validation refuses later is not this module's.
            Ok(()) if code >= 400 => {}
            Ok(()) => {
                let mut expected = response["body"].clone();
                if schema::decode(ty, &mut expected, Strictness::Ignore).is_err() {
                    continue;
                }
                let spec_only = !path.ends_with("/status");
                for side in [&mut object, &mut expected] {
                    strip(side, spec_only);
                }
                if !within(&object, &expected) && name != "merge-service-to-externalname" {
                    wrong.push(format!("{name}:\n  ours   {object}\n  theirs {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked > 40 || cases.is_empty(), "only {checked} cases");
}

/// The recorded cases, with times that parse in the places of the recorded ones.
pub(super) fn recorded_cases() -> Vec<Value> {
    let case = |(_, text): (String, String)| {
        let text = text.replace("<time>", "2021-01-01T00:00:00Z").replace("<microtime>", "2021-01-01T00:00:00.000000Z");
        let text = text.replace("\"<nodePort:1>\"", "30001").replace("\"<nodePort:2>\"", "30002");
        serde_json::from_str(&text).expect("JSON")
    };
    recorded("patches").into_iter().map(case).collect()
}

/// Whether both are equal but for defaults that the kinds' strategies add.
pub(super) fn within(ours: &Value, theirs: &Value) -> bool {
    const DEFAULTED: [&str; 7] = [
        "imagePullPolicy",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "defaultMode",
        "type",
        "protocol",
        "targetPort",
    ];
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            ours.keys().all(|k| theirs.contains_key(k))
                && theirs.iter().all(|(k, theirs)| match ours.get(k) {
                    Some(ours) => within(ours, theirs),
                    None => DEFAULTED.contains(&k.as_str()),
                })
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| within(a, b))
        }
        _ => ours == theirs,
    }
}

pub(super) fn type_of(object: &Value) -> Option<TypeId> {
    let api_version = object["apiVersion"].as_str()?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = object["kind"].as_str()?;
    schema::of(&Gvk {
        group: group.to_owned().into(),
        version: version.to_owned().into(),
        kind: kind.to_owned().into(),
    })
}

/// Removes what the server sets.
fn strip(object: &mut Value, spec_only: bool) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"] {
            metadata.remove(field);
        }
    }
    if spec_only && let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
}

/// Any JSON of a small vocabulary, so that patches and objects meet.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..4i64).prop_map(Value::from),
        "[a-c]".prop_map(Value::from)
    ];
    let key = prop_oneof![
        Just("name"),
        Just("spec"),
        Just("containers"),
        Just("volumes"),
        Just("env"),
        Just("metadata"),
        Just("finalizers"),
        Just("labels"),
        Just("$patch"),
        Just("$retainKeys"),
        Just("$setElementOrder/containers"),
        Just("$deleteFromPrimitiveList/finalizers")
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().any(has_null),
        _ => false,
    }
}

proptest! {
    #[test]
    fn strategic_never_panics_and_keeps_on_error(object in any_json(), patch in any_json()) {
        let mut patched = object.clone();
        if strategic(pod(), &mut patched, &patch).is_err() {
            prop_assert_eq!(patched, object);
        }
    }

    #[test]
    fn merge_sets_what_the_patch_says(object in any_json(), patch in any_json()) {
        let mut once = object;
        if merge(&mut once, &patch).is_ok() {
            let mut twice = once.clone();
            merge(&mut twice, &patch).expect("it was valid before");
            prop_assert_eq!(&once, &twice);
            let mut from_nothing = Value::Null;
            merge(&mut from_nothing, &patch).expect("it was valid before");
            prop_assert!(!has_null(&from_nothing));
        }
    }

    #[test]
    fn json_patch_agrees_with_the_crate(object in any_json(), path in "(/(name|spec|0|1|-|a)){0,3}", from in "(/(name|spec|0|a)){1,2}", value in any_json(), op in 0..5usize) {
        let op = ["add", "remove", "replace", "copy", "move"][op];
        // Root targets and moves into themselves are where libraries differ.
        prop_assume!(!path.is_empty() && !path.starts_with(&from));
        let patch = json!([{"op": op, "path": path, "from": from, "value": value}]);
        let theirs: ::json_patch::Patch = serde_json::from_value(patch.clone()).expect("a patch");
        let (mut a, mut b) = (object.clone(), object);
        let ours = json_patch(&mut a, &patch).is_ok();
        prop_assert_eq!(ours, ::json_patch::patch(&mut b, &theirs).is_ok());
        if ours {
            prop_assert_eq!(a, b);
        }
    }
}
