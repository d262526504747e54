//! kube-rs, the Rust client.

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, AttachParams, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::GroupVersionKind;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

const NS: &str = "rs-kube";
const GROUP: &str = "rs.example.com";

fn map(name: &str, data: Value) -> Result<ConfigMap> {
    Ok(serde_json::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}))?)
}

fn refused<T: std::fmt::Debug>(code: u16, result: kube::Result<T>) -> Result<String> {
    match result {
        Err(kube::Error::Api(status)) if status.code == code => Ok(status.message),
        other => anyhow::bail!("not refused with {code}: {other:?}"),
    }
}

async fn objects(maps: &Api<ConfigMap>) -> Result<()> {
    let post = PostParams::default();
    let mut made = maps.create(&post, &map("a", json!({"k": "1"}))?).await?;
    refused(409, maps.create(&post, &map("a", json!({}))?).await)?;
    let stale = made.clone();
    made.data.get_or_insert_default().insert("k".into(), "2".into());
    maps.replace("a", &post, &made).await?;
    refused(409, maps.replace("a", &post, &stale).await)?;
    let params = PatchParams::default();
    let merged = maps.patch("a", &params, &Patch::Merge(json!({"data": {"m": "3"}}))).await?;
    ensure!(merged.data.unwrap_or_default().len() == 2);
    let strategic = json!({"data": {"m": null}, "metadata": {"labels": {"t": "x"}}});
    let patched = maps.patch("a", &params, &Patch::Strategic(strategic)).await?;
    ensure!(patched.data.unwrap_or_default().len() == 1);
    let names: Vec<_> = maps.list(&ListParams::default().labels("t=x")).await?.iter().map(|m| m.name_any()).collect();
    ensure!(names == ["a"], "{names:?}");
    maps.delete("a", &DeleteParams::default()).await?;
    refused(404, maps.get("a").await)?;
    Ok(())
}

async fn watched(maps: &Api<ConfigMap>) -> Result<()> {
    let version = maps.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    let mut events = maps.watch(&WatchParams::default().timeout(60), &version).await?.boxed();
    maps.create(&PostParams::default(), &map("w", json!({}))?).await?;
    maps.patch("w", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "1"}}))).await?;
    maps.delete("w", &DeleteParams::default()).await?;
    let mut seen = Vec::new();
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(map) if map.name_any() == "w" => seen.push("added"),
            WatchEvent::Modified(map) if map.name_any() == "w" => seen.push("modified"),
            WatchEvent::Deleted(map) if map.name_any() == "w" => {
                seen.push("deleted");
                break;
            }
            _ => {}
        }
    }
    ensure!(seen == ["added", "modified", "deleted"], "{seen:?}");
    Ok(())
}

async fn applied(maps: &Api<ConfigMap>) -> Result<()> {
    let params = |manager: &str| PatchParams::apply(manager);
    maps.patch("applied", &params("one"), &Patch::Apply(map("applied", json!({"k": "one"}))?)).await?;
    let two = Patch::Apply(map("applied", json!({"k": "two"}))?);
    let message = refused(409, maps.patch("applied", &params("two"), &two).await)?;
    ensure!(message.contains("conflict with \"one\": .data.k"), "{message}");
    let forced = maps.patch("applied", &params("two").force(), &two).await?;
    ensure!(forced.data.unwrap_or_default().get("k").is_some_and(|k| k == "two"));
    Ok(())
}

async fn custom(client: &Client) -> Result<()> {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}});
    let name = format!("levers.{GROUP}");
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": name},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": {"kind": "Lever", "plural": "levers", "singular": "lever"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
    });
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &serde_json::from_value(definition)?).await?;
    await_condition(definitions.clone(), &name, conditions::is_crd_established()).await?;
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", "Lever"), "levers");
    let levers: Api<DynamicObject> = Api::namespaced_with(client.clone(), NS, &resource);
    let lever = DynamicObject::new("l", &resource).data(json!({"spec": {"size": 3, "lost": 1}}));
    let made = levers.create(&PostParams::default(), &lever).await?;
    ensure!(made.data["spec"] == json!({"size": 3}), "{:?}", made.data);
    let applied = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Lever", "metadata": {"name": "l"}, "spec": {"size": 4}});
    let patched = levers.patch("l", &PatchParams::apply("rs").force(), &Patch::Apply(applied)).await?;
    ensure!(patched.data["spec"]["size"] == 4);
    definitions.delete(&name, &DeleteParams::default()).await?;
    Ok(())
}

async fn executed(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let mut process = pods.exec("shell", ["sh", "-c", "echo out; exit 3"], &AttachParams::default().stderr(false)).await?;
    let mut text = String::new();
    process.stdout().context("stdout")?.read_to_string(&mut text).await?;
    let status = process.take_status().context("a status")?.await.context("a status")?;
    process.join().await?;
    ensure!(text == "out\n" && status.status.as_deref() == Some("Failure"), "{text:?} {status:?}");
    ensure!(pods.logs("shell", &LogParams::default()).await?.contains("started"));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::try_default().await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": NS}}))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NS);
    objects(&maps).await.context("objects")?;
    watched(&maps).await.context("watch")?;
    applied(&maps).await.context("apply")?;
    custom(&client).await.context("custom resources")?;
    executed(&client).await.context("exec")?;
    namespaces.delete(NS, &DeleteParams::default()).await?;
    println!("ok");
    Ok(())
}
