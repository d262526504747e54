//! Several versions of one custom resource.

use serde_json::{Value, json};

use crate::world::{Backend, DEFINITIONS, WIDGETS, World, version, widgets};

const V2: &str = "/apis/x.example.com/v2/namespaces/default/widgets";

fn two(storage: &str) -> Value {
    let v1 = json!({"type": "object", "properties": {"size": {"type": "string"}}});
    let v2 = json!({"type": "object", "properties": {"size": {"type": "string"}, "color": {"type": "string", "default": "red"}}});
    let mut old = version("v1", storage == "v1", v1);
    old["deprecated"] = true.into();
    widgets(json!([old, version("v2", storage == "v2", v2)]))
}

fn widget(version: &str) -> Value {
    json!({"apiVersion": format!("x.example.com/{version}"), "kind": "Widget", "metadata": {"name": "a"}, "spec": {"size": "s"}})
}

#[tokio::test]
async fn without_a_converter_only_the_version_differs() {
    let world = World::new().await;
    world.define(&two("v1")).await;
    let made = world.post(WIDGETS, &widget("v1")).await;
    assert_eq!(made.warnings, ["299 - \"x.example.com/v1 Widget is deprecated\""]);
    let shown = world.get(&format!("{V2}/a")).await.ok();
    assert_eq!(
        (&shown["apiVersion"], &shown["spec"]),
        (&json!("x.example.com/v2"), &json!({"size": "s", "color": "red"}))
    );
    let group = world.get("/apis/x.example.com").await.ok();
    assert_eq!(group["preferredVersion"]["version"], "v2");

    // Another storage version: what is stored stays readable, and any write brings it up to date.
    let path = format!("{DEFINITIONS}/widgets.x.example.com");
    let stored = json!({"spec": {"versions": two("v2")["spec"]["versions"]}});
    let changed = world.merge(&path, &stored).await.ok();
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v2"]));
    let before = world.get(&format!("{V2}/a")).await.ok();
    assert_eq!(before["apiVersion"], "x.example.com/v2");
    let after = world.put(&format!("{V2}/a"), &before).await.ok();
    assert_ne!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"], "it was stored anew");
    let again = world.put(&format!("{V2}/a"), &after).await.ok();
    assert_eq!(again["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
    assert_eq!(world.get(&format!("{WIDGETS}/a")).await.ok()["apiVersion"], "x.example.com/v1");
}

#[tokio::test]
async fn a_webhook_converts() {
    // v1 has `size`, v2 `dimensions`.
    let backend = Backend::start(|_, review| {
        let request = &review["request"];
        let convert = |object: &Value| {
            let mut object = object.clone();
            object["apiVersion"] = request["desiredAPIVersion"].clone();
            let spec = object["spec"].clone();
            object["spec"] = match request["desiredAPIVersion"] == "x.example.com/v2" {
                true => json!({"dimensions": spec["size"]}),
                false => json!({"size": spec["dimensions"]}),
            };
            object
        };
        let objects: Vec<Value> = request["objects"].as_array().expect("objects").iter().map(convert).collect();
        json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
            "response": {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}})
    })
    .await;
    let world = World::new().await;
    let text = |name: &str| json!({"type": "object", "properties": {name: {"type": "string"}}});
    let mut definition = widgets(json!([version("v1", true, text("size")), version("v2", false, text("dimensions"))]));
    definition["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
        "conversionReviewVersions": ["v1"], "clientConfig": backend.client_config("/convert")}});
    world.define(&definition).await;
    world.post(WIDGETS, &widget("v1")).await.ok();
    assert_eq!(backend.calls(), 0, "the storage version needs no conversion");
    let shown = world.get(&format!("{V2}/a")).await.ok();
    assert_eq!(shown["spec"], json!({"dimensions": "s"}));
    world.merge(&format!("{V2}/a"), &json!({"spec": {"dimensions": "xl"}})).await.ok();
    assert_eq!(world.get(&format!("{WIDGETS}/a")).await.ok()["spec"], json!({"size": "xl"}));
    assert_eq!(world.get(V2).await.ok()["items"][0]["spec"], json!({"dimensions": "xl"}));
    let (path, review, _) = backend.seen.lock().expect("no panic")[0].clone();
    assert_eq!((path.as_str(), &review["request"]["desiredAPIVersion"]), ("/convert", &json!("x.example.com/v2")));

    // When nobody answers, only what needs no conversion works.
    let gone = json!({"spec": {"conversion": {"webhook": {"clientConfig": {"url": "https://localhost:1/convert"}}}}});
    world.merge(&format!("{DEFINITIONS}/widgets.x.example.com"), &gone).await.ok();
    let failed = world.get(&format!("{V2}/a")).await;
    let (code, message) = failed.refused();
    assert_eq!(code, 500);
    assert!(
        message.starts_with("Internal error occurred: conversion webhook for x.example.com/v1, Kind=Widget failed: Post \"https://localhost:1/convert?timeout=30s\": dial tcp 127.0.0.1:1: connect: connection refused"),
        "{message}"
    );
    assert_eq!(world.get(&format!("{WIDGETS}/a")).await.code, 200);
}
