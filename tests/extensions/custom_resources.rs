//! Custom resources from their definition to its end.

use serde_json::{Value, json};

use crate::world::{DEFINITIONS, WIDGETS, World, version, widgets};

fn spec() -> Value {
    json!({"type": "object", "required": ["size"], "properties": {
        "size": {"type": "string"}, "replicas": {"type": "integer", "default": 1, "maximum": 10},
        "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"], "items": {
            "type": "object", "required": ["id"], "properties": {"id": {"type": "string"}, "n": {"type": "integer", "default": 7}}}}}})
}

fn rich() -> Value {
    let mut v1 = version("v1", true, spec());
    v1["subresources"] = json!({"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}});
    v1["additionalPrinterColumns"] = json!([{"name": "Size", "type": "string", "jsonPath": ".spec.size"}]);
    v1["selectableFields"] = json!([{"jsonPath": ".spec.size"}]);
    widgets(json!([v1]))
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "x.example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_definition_is_served_at_once_with_everything_around_it() {
    let world = World::new().await;
    assert_eq!(world.get(WIDGETS).await.code, 404);
    world.define(&rich()).await;
    let definition = world.get(&format!("{DEFINITIONS}/widgets.x.example.com")).await.ok();
    let conditions: Vec<&str> = definition["status"]["conditions"]
        .as_array()
        .expect("conditions")
        .iter()
        .filter_map(|c| c["reason"].as_str())
        .collect();
    assert_eq!(conditions, ["NoConflicts", "InitialNamesAccepted"]);
    assert_eq!(definition["status"]["acceptedNames"]["listKind"], "WidgetList");

    let resources = world.get("/apis/x.example.com/v1").await.ok();
    let names: Vec<&str> =
        resources["resources"].as_array().expect("a list").iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["widgets", "widgets/status", "widgets/scale"]);
    let document = world.get("/openapi/v3/apis/x.example.com/v1").await.ok();
    let schema = &document["components"]["schemas"]["com.example.x.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["replicas"]["default"], 1);
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
    let v2 = world.get("/openapi/v2").await.ok();
    assert!(v2["definitions"]["com.example.x.v1.WidgetList"].is_object());

    let made = world.post(WIDGETS, &widget("a", json!({"size": "small", "bogus": 1, "parts": [{"id": "x"}]}))).await;
    assert_eq!(made.warnings, ["299 - \"unknown field \\\"spec.bogus\\\"\""]);
    let made = made.ok();
    assert_eq!(made["spec"], json!({"size": "small", "replicas": 1, "parts": [{"id": "x", "n": 7}]}));
    assert_eq!(made["metadata"]["generation"], 1);
    let strict =
        world.post(&format!("{WIDGETS}?fieldValidation=Strict"), &widget("b", json!({"size": "s", "bogus": 1}))).await;
    let message =
        "Widget in version \"v1\" cannot be handled as a Widget: strict decoding error: unknown field \"spec.bogus\"";
    assert_eq!(strict.refused(), (400, message));
    let invalid = world.post(WIDGETS, &widget("b", json!({"replicas": 11}))).await;
    assert_eq!(invalid.code, 422);
    let table = world
        .ask(
            http::Request::builder()
                .uri(format!("{WIDGETS}?fieldSelector=spec.size%3Dsmall"))
                .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
                .body(axum::body::Body::empty())
                .expect("a request"),
        )
        .await
        .ok();
    assert_eq!(table["rows"][0]["cells"], json!(["a", "small"]));
    assert_eq!(world.get(&format!("{WIDGETS}?fieldSelector=spec.size%3Dlarge")).await.ok()["items"], json!([]));
    assert_eq!(
        world.get(&format!("{WIDGETS}?fieldSelector=spec.replicas%3D1")).await.refused(),
        (400, "field label not supported: spec.replicas")
    );
}

#[tokio::test]
async fn one_path_for_patches_status_scale_and_dry_runs() {
    let world = World::new().await;
    world.define(&rich()).await;
    let path = format!("{WIDGETS}/a");
    let applied =
        world.apply(&path, "m1", &widget("a", json!({"size": "small", "tags": ["a"], "parts": [{"id": "x"}]}))).await;
    assert_eq!(applied.code, 201);
    let managed = applied.ok()["metadata"]["managedFields"][0]["fieldsV1"].clone();
    assert_eq!(
        managed,
        json!({"f:spec": {"f:size": {}, "f:tags": {"v:\"a\"": {}},
            "f:parts": {"k:{\"id\":\"x\"}": {".": {}, "f:id": {}}}}})
    );
    world.apply(&path, "m2", &widget("a", json!({"tags": ["b"], "parts": [{"id": "y", "n": 1}]}))).await.ok();
    let conflict = world.apply(&path, "m2", &widget("a", json!({"size": "large"}))).await;
    assert_eq!(conflict.refused(), (409, "Apply failed with 1 conflict: conflict with \"m1\": .spec.size"));
    let merged = world.merge(&path, &json!({"spec": {"size": "large"}, "status": {"x": 1}})).await.ok();
    assert_eq!(merged["spec"]["tags"], json!(["a", "b"]));
    assert!(merged.get("status").is_none(), "the status is a subresource");
    assert_eq!(merged["metadata"]["generation"], 3);
    let strategic = world.send("PATCH", &path, "application/strategic-merge-patch+json", &json!({"spec": {}})).await;
    assert_eq!(strategic.code, 415);
    let status = world
        .merge(&format!("{path}/status"), &json!({"spec": {"size": "x"}, "status": {"replicas": 2, "selector": "a=b"}}))
        .await;
    let status = status.ok();
    assert_eq!((&status["spec"]["size"], &status["metadata"]["generation"]), (&json!("large"), &json!(3)));
    let scale = world.get(&format!("{path}/scale")).await.ok();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]), (&json!(1), &json!({"replicas": 2, "selector": "a=b"})));
    world.merge(&format!("{path}/scale"), &json!({"spec": {"replicas": 4}})).await.ok();
    assert_eq!(world.get(&path).await.ok()["spec"]["replicas"], 4);
    world.merge(&format!("{path}?dryRun=All"), &json!({"spec": {"size": "dry"}})).await.ok();
    assert_eq!(world.get(&path).await.ok()["spec"]["size"], "large");
    let unconditional = world.put(&path, &widget("a", json!({"size": "s"}))).await;
    assert_eq!(unconditional.code, 422, "custom resources are updated with their resourceVersion only");
}

#[tokio::test]
async fn a_definition_goes_when_its_objects_have_gone() {
    let world = World::new().await;
    world.define(&rich()).await;
    let mut held = widget("held", json!({"size": "s"}));
    held["metadata"]["finalizers"] = json!(["x.example.com/held"]);
    world.post(WIDGETS, &held).await.ok();
    world.post(WIDGETS, &widget("free", json!({"size": "s"}))).await.ok();
    let definition = format!("{DEFINITIONS}/widgets.x.example.com");
    let going = world.delete(&definition).await.ok();
    assert_eq!(going["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    world.until(&format!("{WIDGETS}/free"), 404).await;
    let refused = world.post(WIDGETS, &widget("late", json!({"size": "s"}))).await;
    assert_eq!(refused.refused(), (405, "create not allowed while custom resource definition is terminating"));
    assert_eq!(world.get(&definition).await.code, 200, "it waits for the object that is held");
    world.merge(&format!("{WIDGETS}/held"), &json!({"metadata": {"finalizers": null}})).await.ok();
    world.until(&definition, 404).await;
    world.until("/apis/x.example.com/v1", 404).await;
    world.define(&rich()).await;
    assert_eq!(world.get(WIDGETS).await.ok()["items"], json!([]));
}

#[tokio::test]
async fn names_that_are_taken_are_not_accepted() {
    let world = World::new().await;
    world.define(&rich()).await;
    let mut other = rich();
    other["metadata"]["name"] = "gadgets.x.example.com".into();
    other["spec"]["names"] = json!({"plural": "gadgets", "singular": "gadget", "kind": "Widget"});
    world.post(DEFINITIONS, &other).await.ok();
    world.post(DEFINITIONS, &widgets(json!([]))).await;
    let path = format!("{DEFINITIONS}/gadgets.x.example.com");
    // The kind of lists is looked at last, and its reason stays.
    let mut reasons = Value::Null;
    for _ in 0..100 {
        let conditions = world.get(&path).await.ok()["status"]["conditions"].clone();
        reasons = conditions.as_array().into_iter().flatten().map(|c| c["reason"].clone()).collect();
        if reasons != json!([]) {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(reasons, json!(["ListKindConflict", "NotAccepted"]));
    assert_eq!(world.get("/apis/x.example.com/v1/namespaces/default/gadgets").await.code, 404);
}

#[tokio::test]
async fn rules_are_asked_on_every_write() {
    let world = World::new().await;
    let spec = json!({"type": "object", "properties": {"min": {"type": "integer"}, "max": {"type": "integer"},
        "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "name is immutable"}]}},
        "x-kubernetes-validations": [{"rule": "self.min <= self.max", "messageExpression": "'%d > %d'.format([self.min, self.max])"}]});
    world.define(&widgets(json!([version("v1", true, spec)]))).await;
    let refused = world.post(WIDGETS, &widget("a", json!({"min": 3, "max": 2}))).await;
    assert_eq!(
        refused.refused(),
        (422, "Widget.x.example.com \"a\" is invalid: spec: Invalid value: \"object\": 3 > 2")
    );
    world.post(WIDGETS, &widget("a", json!({"min": 1, "max": 2, "name": "n"}))).await.ok();
    let refused = world.merge(&format!("{WIDGETS}/a"), &json!({"spec": {"name": "m"}})).await;
    assert_eq!(
        refused.refused(),
        (422, "Widget.x.example.com \"a\" is invalid: spec.name: Invalid value: \"string\": name is immutable")
    );
}
