//! One request as `audit.k8s.io/v1` Events.

use std::collections::BTreeMap;

use axum::body::Body;
use http::{HeaderMap, Request, header};
use serde_json::{Value, json};

use super::Asker;
use super::policy::{Level, Stage};
use crate::api::schema::format_time;
use crate::apiserver::User;
use crate::apiserver::codec;
use crate::apiserver::http::negotiate;
use crate::apiserver::http::request::RequestInfo;
use crate::env::Env;

/// What is known of a request so far: the Event without its stage.
pub(super) struct Record {
    event: Value,
}

fn user(user: &User) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

impl Record {
    pub fn new(env: &Env, level: Level, asker: &Asker<'_>, info: &RequestInfo, request: &Request<Body>) -> Self {
        let text = |name: header::HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": level.as_str(),
            "auditID": env.uid(),
            "stage": "",
            "requestURI": request.uri().path_and_query().map_or("/", |path| path.as_str()),
            "verb": info.verb,
            "user": user(asker.user),
        });
        if let Some(impersonated) = asker.impersonated {
            event["impersonatedUser"] = user(impersonated);
        }
        if let Some(address) = request.extensions().get::<std::net::SocketAddr>() {
            event["sourceIPs"] = json!([address.ip()]);
        }
        if let Some(agent) = text(header::USER_AGENT) {
            event["userAgent"] = agent.into();
        }
        if info.is_resource {
            let mut reference = json!({});
            for (field, value) in [
                ("resource", &info.resource),
                ("namespace", &info.namespace),
                ("name", &info.name),
                ("apiGroup", &info.group),
                ("apiVersion", &info.version),
                ("subresource", &info.subresource),
            ] {
                if !value.is_empty() {
                    reference[field] = value.as_str().into();
                }
            }
            event["objectRef"] = reference;
        }
        event["requestReceivedTimestamp"] = format_time(env.now(), true).into();
        Self { event }
    }

    pub fn annotated(&mut self, annotations: &BTreeMap<String, String>) {
        if !annotations.is_empty() {
            self.event["annotations"] = json!(annotations);
        }
    }

    pub fn answered(&mut self, code: u16) {
        self.event["responseStatus"] = json!({"metadata": {}, "code": code});
    }

    /// Notes the object that was sent.
    pub fn request_object(&mut self, headers: &HeaderMap, bytes: &[u8], omit_managed_fields: bool) {
        if let Some(object) = parse(headers, bytes) {
            self.event["requestObject"] = without(object, omit_managed_fields);
        }
    }

    /// Notes the object that was answered, and what a failure says of itself.
    pub fn response_object(&mut self, headers: &HeaderMap, bytes: &[u8], tell: bool, omit_managed_fields: bool) {
        let Some(object) = parse(headers, bytes) else { return };
        if object["kind"] == "Status" {
            for field in ["status", "message", "reason", "details"] {
                if !object[field].is_null() {
                    self.event["responseStatus"][field] = object[field].clone();
                }
            }
        }
        if tell {
            self.event["responseObject"] = without(object, omit_managed_fields);
        }
        // Only the first object of a create tells its name.
        if self.event["objectRef"].is_object() && self.event["objectRef"]["name"].is_null() {
            let name = &self.event["responseObject"]["metadata"]["name"];
            if self.event["verb"] == "create" && name.is_string() {
                self.event["objectRef"]["name"] = name.clone();
            }
        }
    }

    /// The line of a stage.
    pub fn at(&self, stage: Stage, env: &Env) -> String {
        let mut event = self.event.clone();
        event["stage"] = stage.as_str().into();
        event["stageTimestamp"] = format_time(env.now(), true).into();
        if stage == Stage::RequestReceived {
            // The object is told with the answer.
            event.as_object_mut().map(|event| event.remove("requestObject"));
        }
        event.to_string()
    }
}

/// A body as an object.
fn parse(headers: &HeaderMap, bytes: &[u8]) -> Option<Value> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match content_type.split(';').next().unwrap_or_default().trim() {
        "application/apply-patch+yaml" => codec::parse(bytes, negotiate::Encoding::Yaml, "").ok(),
        patch if patch.ends_with("-patch+json") => codec::parse(bytes, negotiate::Encoding::Json, "").ok(),
        _ => codec::parse(bytes, negotiate::content_type(headers).ok()?, "").ok(),
    }
    .map(|parsed| parsed.value)
}

fn without(mut object: Value, managed_fields: bool) -> Value {
    let strip = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    if managed_fields {
        strip(&mut object);
        object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(strip);
    }
    object
}
