//! Representations, pages, watches, dry runs.

use std::io::Read as _;
use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt as _;
use http::Request;
use mini::apiserver::User;
use mini::apiserver::testing::{self, TestServer};
use mini::env::Env;
use mini::storage::{Limits, memory};
use serde_json::{Value, json};

use super::world::{get, json, send, start};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

async fn maps(server: &TestServer, names: &[&str], size: usize) {
    for name in names {
        let object = json!({"metadata": {"name": name, "labels": {"own": "yes"}}, "data": {"k": "x".repeat(size)}});
        assert_eq!(json(server, "POST", MAPS, &object).await.code, 201);
    }
}

#[tokio::test]
async fn protobuf_for_objects_lists_metadata_and_watches() {
    let server = start().await;
    maps(&server, &["a", "b"], 1).await;
    for path in [format!("{MAPS}/a"), MAPS.to_owned()] {
        let answer = get(&server, &path, PROTOBUF).await;
        assert_eq!((answer.code, answer.header("content-type")), (200, PROTOBUF), "{path}");
        assert!(answer.bytes.starts_with(b"k8s\0"));
    }
    let metadata = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let answer = get(&server, MAPS, &metadata).await;
    assert_eq!((answer.code, answer.header("content-type")), (200, PROTOBUF));
    // Tables have no such form: the next clause is taken, or none.
    let table = format!("{PROTOBUF};as=Table;g=meta.k8s.io;v=v1");
    assert_eq!(get(&server, MAPS, &table).await.code, 406);
    let both = format!("{table},application/json;as=Table;g=meta.k8s.io;v=v1");
    assert_eq!(get(&server, MAPS, &both).await.json()["kind"], "Table");

    let watch = Request::get(format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Da"))
        .header("accept", format!("{PROTOBUF};stream=watch"))
        .body(Body::empty())
        .expect("a request");
    let response = server.call(Some(&User::master("admin")), watch).await;
    assert_eq!(response.headers()["content-type"], format!("{PROTOBUF};stream=watch").as_str());
    let frame = response.into_body().into_data_stream().next().await.expect("an event").expect("no failure");
    let length = u32::from_be_bytes(frame[..4].try_into().expect("four bytes"));
    assert_eq!(usize::try_from(length).expect("a small frame"), frame.len() - 4);
    assert_eq!(&frame[4..11], b"\x0a\x05ADDED");
    assert!(frame.windows(4).any(|window| window == b"k8s\0"), "the object has its envelope");
    let yaml = get(&server, &format!("{MAPS}?watch=1"), "application/yaml").await;
    assert_eq!(yaml.code, 406);
    // The refusal itself is YAML, which is what the client reads.
    let text = String::from_utf8_lossy(&yaml.bytes);
    let why = "only the following media types are accepted: application/json;stream=watch, \
         application/vnd.kubernetes.protobuf;stream=watch";
    assert!(text.contains(why), "{text}");
}

#[tokio::test]
async fn large_answers_are_compressed_when_the_client_likes() {
    let server = start().await;
    maps(&server, &["a", "b", "c"], 60_000).await;
    let plain = get(&server, MAPS, "application/json").await;
    assert_eq!(plain.header("content-encoding"), "");
    let packed = send(&server, "GET", MAPS, &[("accept-encoding", "gzip")], &Value::Null).await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed.bytes[..]).read_to_string(&mut text).expect("valid gzip");
    assert_eq!(text.as_bytes(), &plain.bytes[..]);
    let small = send(&server, "GET", &format!("{MAPS}/a"), &[("accept-encoding", "gzip")], &Value::Null).await;
    assert_eq!(small.header("content-encoding"), "", "below 128 KiB nothing is compressed");
}

#[tokio::test]
async fn a_list_whose_version_is_gone_goes_on_with_another_token() {
    let limits = Limits { events: 8, ..Limits::default() };
    let server = testing::start(memory(limits), Env::real()).await;
    maps(&server, &["a", "b", "c"], 1).await;
    let first = get(&server, &format!("{MAPS}?limit=1"), "application/json").await.json();
    assert_eq!(first["metadata"]["remainingItemCount"], 2);
    let token = first["metadata"]["continue"].as_str().expect("there is more").to_owned();
    let watch_from = first["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    for n in 0..20 {
        let object = json!({"metadata": {"name": format!("z{n}")}});
        json(&server, "POST", MAPS, &object).await;
    }
    let gone = get(&server, &format!("{MAPS}?limit=1&continue={token}"), "application/json").await;
    assert_eq!((gone.code, gone.json()["reason"].as_str()), (410, Some("Expired")));
    let other = gone.json()["metadata"]["continue"].as_str().expect("a token that goes on").to_owned();
    let next = get(&server, &format!("{MAPS}?limit=1&continue={other}"), "application/json").await.json();
    assert_eq!(next["items"][0]["metadata"]["name"], "b");
    // A watch from there fails with an event.
    let watch = get(&server, &format!("{MAPS}?watch=1&resourceVersion={watch_from}"), "application/json").await;
    assert_eq!(watch.code, 200);
    let event = watch.json();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
}

#[tokio::test]
async fn pages_of_a_deletion() {
    let server = start().await;
    maps(&server, &["a", "b", "c"], 1).await;
    let deleted = send(&server, "DELETE", &format!("{MAPS}?labelSelector=own&limit=2"), &[], &Value::Null).await.json();
    assert_eq!(deleted["items"].as_array().map(Vec::len), Some(2));
    assert!(deleted["metadata"]["continue"].is_string());
    let left = get(&server, &format!("{MAPS}?labelSelector=own"), "application/json").await.json();
    assert_eq!(left["items"][0]["metadata"]["name"], "c");
}

/// The revision of the storage.
async fn revision(server: &TestServer) -> String {
    let list = get(server, "/api/v1/namespaces?limit=1", "application/json").await.json();
    list["metadata"]["resourceVersion"].as_str().expect("a version").to_owned()
}

#[tokio::test]
async fn dry_runs_write_nothing() {
    let server = start().await;
    maps(&server, &["a"], 1).await;
    json(&server, "POST", "/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
        .await;
    let spec = json!({"containers": [{"name": "c", "image": "a"}]});
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": spec});
    assert_eq!(json(&server, "POST", pods, &pod).await.code, 201);
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": spec});
    let deployment =
        json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    assert_eq!(json(&server, "POST", deployments, &deployment).await.code, 201);
    let map = |name: &str| json!({"metadata": {"name": name}, "data": {"k": "new"}});
    let scale =
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "d"}, "spec": {"replicas": 3}});
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let eviction = json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p"}});
    let apply = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "new"}, "data": {"k": "v"}});
    let merge = json!({"data": {"k": "v"}});
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let before = revision(&server).await;
    let dry = |path: &str| format!("{path}?dryRun=All&fieldManager=m");
    let (json_type, merge_type, apply_type) =
        ("application/json", "application/merge-patch+json", "application/apply-patch+yaml");
    for (method, path, content_type, body, code) in [
        ("POST", MAPS.to_owned(), json_type, &map("new"), 201),
        ("PUT", format!("{MAPS}/a"), json_type, &map("a"), 200),
        ("PATCH", format!("{MAPS}/a"), merge_type, &merge, 200),
        ("PATCH", format!("{MAPS}/new"), apply_type, &apply, 201),
        ("DELETE", format!("{MAPS}/a"), json_type, &Value::Null, 200),
        ("DELETE", MAPS.to_owned(), json_type, &Value::Null, 200),
        ("PUT", format!("{deployments}/d/scale"), json_type, &scale, 200),
        ("PATCH", format!("{deployments}/d/scale"), merge_type, &json!({"spec": {"replicas": 2}}), 200),
        ("POST", format!("{pods}/p/binding"), json_type, &binding, 201),
        ("POST", format!("{pods}/p/eviction"), json_type, &eviction, 201),
        ("POST", "/api/v1/namespaces/default/services".to_owned(), json_type, &service, 201),
        ("DELETE", "/api/v1/namespaces/default".to_owned(), json_type, &Value::Null, 403),
    ] {
        let answer = send(&server, method, &dry(&path), &[("content-type", content_type)], body).await;
        assert_eq!(answer.code, code, "{method} {path}: {:?}", answer.bytes);
        assert_eq!(revision(&server).await, before, "{method} {path} wrote something");
    }
    // kubectl and client-go ask for it in the body.
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"]});
    let evicted = json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p"},
        "deleteOptions": {"dryRun": ["All"]}});
    for (method, path, body, code) in [
        ("DELETE", format!("{MAPS}/a"), &options, 200),
        ("DELETE", MAPS.to_owned(), &options, 200),
        ("DELETE", format!("{pods}/p"), &options, 200),
        ("DELETE", format!("{deployments}/d"), &options, 200),
        ("POST", format!("{pods}/p/eviction"), &evicted, 201),
    ] {
        let answer = json(&server, method, &path, body).await;
        assert_eq!(answer.code, code, "{method} {path}: {:?}", answer.bytes);
        assert_eq!(revision(&server).await, before, "{method} {path} wrote something");
    }
    let uid = json(&server, "DELETE", &format!("{MAPS}/a?uid=other"), &Value::Null).await;
    assert_eq!(uid.code, 409, "preconditions of the query count: {:?}", uid.bytes);
    assert_eq!(json(&server, "DELETE", &format!("{MAPS}/a"), &json!({"dryRun": ["maybe"]})).await.code, 422);
    assert_eq!(json(&server, "DELETE", &format!("{MAPS}/a"), &json!({"dryRun": "All"})).await.code, 400);
    assert_eq!(revision(&server).await, before);
    let wrong = json(&server, "POST", &format!("{MAPS}?dryRun=maybe"), &map("new")).await;
    assert_eq!(wrong.code, 422);
}

#[tokio::test]
async fn managers_of_a_scale_are_told_apart() {
    let server = start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let apply = |manager: &'static str, path: String, body: Value| {
        let server = &server;
        async move {
            let headers = [("content-type", "application/apply-patch+yaml")];
            send(server, "PATCH", &format!("{path}?fieldManager={manager}"), &headers, &body).await
        }
    };
    assert_eq!(apply("owner", format!("{path}/d"), deployment.clone()).await.code, 201);
    let scale =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 4}});
    let refused = apply("scaler", format!("{path}/d/scale"), scale.clone()).await;
    assert_eq!(refused.code, 409);
    assert_eq!(refused.message(), "Apply failed with 1 conflict: conflict with \"owner\": .spec.replicas");
    let merge = [("content-type", "application/merge-patch+json")];
    let four = json!({"spec": {"replicas": 4}});
    let merged = send(&server, "PATCH", &format!("{path}/d/scale?fieldManager=hpa"), &merge, &four).await;
    assert_eq!(merged.json()["spec"]["replicas"], 4);
    let object = get(&server, &format!("{path}/d"), "application/json").await.json();
    let entries = object["metadata"]["managedFields"].as_array().expect("it is tracked");
    let hpa = entries.iter().find(|entry| entry["manager"] == "hpa").expect("it has an entry");
    assert_eq!(
        (&hpa["subresource"], &hpa["operation"], &hpa["fieldsV1"]),
        (&json!("scale"), &json!("Update"), &json!({"f:spec": {"f:replicas": {}}}))
    );
    let owner = entries.iter().find(|entry| entry["manager"] == "owner").expect("it has an entry");
    assert!(owner["fieldsV1"]["f:spec"].get("f:replicas").is_none());
    let again = apply("owner", format!("{path}/d"), deployment).await;
    assert_eq!(
        again.message(),
        "Apply failed with 1 conflict: conflict with \"hpa\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
}

#[tokio::test]
async fn component_statuses_tell_of_the_storage() {
    let server = start().await;
    let list = get(&server, "/api/v1/componentstatuses", "application/json").await;
    assert_eq!(list.header("warning"), "299 - \"v1 ComponentStatus is deprecated in v1.19+\"");
    assert_eq!(list.json()["items"][0]["metadata"]["name"], "etcd-0");
    let one = get(&server, "/api/v1/componentstatuses/etcd-0", "application/json").await.json();
    assert_eq!(one["conditions"][0]["status"], "True");
    assert_eq!(get(&server, "/api/v1/componentstatuses/x", "application/json").await.code, 404);
    assert_eq!(json(&server, "POST", "/api/v1/componentstatuses", &json!({"metadata": {"name": "x"}})).await.code, 405);
}

#[tokio::test]
async fn requests_are_classified() {
    let server = start().await;
    let schemas = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
    let admin = get(&server, &format!("{schemas}/exempt"), "application/json").await;
    assert_eq!(admin.header("x-kubernetes-pf-flowschema-uid"), admin.json()["metadata"]["uid"]);
    // What every cluster has comes back, and stays as it is.
    assert_eq!(send(&server, "DELETE", &format!("{schemas}/probes"), &[], &Value::Null).await.code, 200);
    let path = format!("{schemas}?watch=1&fieldSelector=metadata.name%3Dprobes");
    let watch = Request::get(path).body(Body::empty()).expect("a request");
    let response = server.call(Some(&User::master("admin")), watch).await;
    let event = tokio::time::timeout(Duration::from_secs(10), response.into_body().into_data_stream().next()).await;
    assert!(event.expect("it comes back").is_some());
    let mut changed = get(&server, &format!("{schemas}/exempt"), "application/json").await.json();
    changed["spec"]["matchingPrecedence"] = 5.into();
    let refused = json(&server, "PUT", &format!("{schemas}/exempt"), &changed).await;
    assert_eq!(refused.code, 422);
    let metrics = get(&server, "/metrics", "*/*").await;
    let text = String::from_utf8_lossy(&metrics.bytes).into_owned();
    for line in [
        "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"exempt\",priority_level=\"exempt\"}",
        "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"workload-low\"} 245",
    ] {
        assert!(text.contains(line), "{line}");
    }
}

#[tokio::test]
async fn the_whole_of_a_kind_list_is_in_discovery_and_openapi() {
    let server = start().await;
    let list = get(&server, "/apis/networking.k8s.io/v1", "application/json").await.json();
    let names: Vec<&str> =
        list["resources"].as_array().expect("a list").iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(
        names,
        [
            "ingressclasses",
            "ingresses",
            "ingresses/status",
            "ipaddresses",
            "networkpolicies",
            "servicecidrs",
            "servicecidrs/status"
        ]
    );
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let groups = get(&server, "/apis", aggregated).await.json();
    assert_eq!(groups["kind"], "APIGroupDiscoveryList");
    let index = get(&server, "/openapi/v3", "application/json").await.json();
    for group in
        ["networking.k8s.io", "node.k8s.io", "flowcontrol.apiserver.k8s.io", "resource.k8s.io", "storage.k8s.io"]
    {
        let items = groups["items"].as_array().expect("a list");
        assert!(items.iter().any(|item| item["metadata"]["name"] == group), "{group}");
        assert!(index["paths"].get(format!("apis/{group}/v1")).is_some(), "{group}");
    }
}
