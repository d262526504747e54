//! A server, and requests to it.

use axum::body::{Body, Bytes};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use mini::apiserver::User;
use mini::apiserver::testing::{self, TestServer};
use mini::env::Env;
use mini::storage::{Limits, memory};
use serde_json::Value;

/// A server over memory.
pub async fn start() -> TestServer {
    testing::start(memory(Limits::default()), Env::real()).await
}

/// An answer as a whole.
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        Self { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {:?}", self.bytes))
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// A request of the administrator with these headers.
pub async fn send(server: &TestServer, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    send_as(&User::master("admin"), server, method, path, headers, body).await
}

/// A request of somebody with these headers.
pub async fn send_as(
    user: &User,
    server: &TestServer,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Answer {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body).expect("a valid request");
    Answer::of(server.call(Some(user), request).await).await
}

/// A GET.
pub async fn get(server: &TestServer, path: &str, accept: &str) -> Answer {
    send(server, "GET", path, &[("accept", accept)], &Value::Null).await
}

/// A request with a JSON body.
pub async fn json(server: &TestServer, method: &str, path: &str, body: &Value) -> Answer {
    send(server, method, path, &[("content-type", "application/json")], body).await
}
