//! The server behind an APIService, and requests to it as the front proxy that it trusts.

use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

use super::ApiServer;
use crate::api::kinds::api_service;
use crate::api::meta::text;
use crate::apiserver::outbound::{self, Place, Trust};
use crate::apiserver::{User, http::responses};

/// The largest document that is read of a backend.
const MAX_DOCUMENT: usize = 64 * 1024 * 1024;

/// The server behind an APIService.
#[derive(Clone)]
pub(crate) struct Backend {
    /// The APIService's name.
    name: String,
    pub group: String,
    pub version: String,
    place: Place,
    trust: Trust,
    available: bool,
}

impl Backend {
    /// Of an APIService that names a Service.
    pub fn of(server: &ApiServer, object: &Value) -> Self {
        let spec = &object["spec"];
        let service = &spec["service"];
        let ca_pem = base64::engine::general_purpose::STANDARD.decode(text(&spec["caBundle"])).unwrap_or_default();
        let (group, version) = (text(&spec["group"]).to_owned(), text(&spec["version"]).to_owned());
        let identity = server.options.front_proxy.as_ref();
        Self {
            name: format!("{version}.{group}"),
            group,
            version,
            place: Place::Service {
                namespace: text(&service["namespace"]).to_owned(),
                name: text(&service["name"]).to_owned(),
                port: service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
            },
            trust: Trust {
                ca_pem,
                insecure: spec["insecureSkipTLSVerify"] == true,
                identity: identity.map(|own| (Arc::clone(&own.certificate_pem), Arc::clone(&own.key_pem))),
            },
            available: api_service::is_available(object),
        }
    }

    /// The same without a look at its certificate: whether it answers is all that a check asks.
    pub(super) fn believing(mut self) -> Self {
        self.trust.insecure = true;
        self
    }
}

/// Passes a request on as `user`'s.
pub(crate) async fn pass_on(
    server: &ApiServer,
    backend: &Backend,
    user: &User,
    request: Request<Body>,
) -> Response<Body> {
    if !backend.available {
        return responses::text(503, "service unavailable\n");
    }
    match send(server, backend, user, request).await {
        Ok(response) => response,
        Err(why) => {
            // What the last check found is not true any more.
            server.aggregation.wake(|name, _| name == backend.name);
            responses::text(503, format!("error trying to reach service: {why}\n"))
        }
    }
}

async fn send(
    server: &ApiServer,
    backend: &Backend,
    user: &User,
    mut request: Request<Body>,
) -> Result<Response<Body>, String> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(|error| format!("{error}"))?;
    request.headers_mut().remove(header::HOST);
    introduce(request.headers_mut(), user);
    outbound::pass_on(server, &backend.place, &backend.trust, request).await
}

/// Replaces the headers that say who asks (`transport.SetAuthProxyHeaders`).
fn introduce(headers: &mut HeaderMap, user: &User) {
    let told: Vec<HeaderName> = headers.keys().filter(|name| is_about_user(name.as_str())).cloned().collect();
    for name in told {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_bytes()))
        {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    user.groups.iter().for_each(|group| add("x-remote-group", group));
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escape(key));
        values.iter().for_each(|value| add(&name, value));
    }
}

fn is_about_user(header: &str) -> bool {
    header == "authorization" || header.starts_with("impersonate-") || header.starts_with("x-remote-")
}

/// The key of something extra as a part of a header's name (`headerKeyEscape`).
fn escape(key: &str) -> String {
    let mut escaped = String::new();
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// Gets a JSON document of a backend as kube-aggregator itself. Returns the answer's code as well.
///
/// # Errors
/// Why there is no answer.
pub(super) async fn get(server: &ApiServer, backend: &Backend, path: &str) -> Result<(u16, Value), String> {
    let request = Request::builder().uri(path).header(header::ACCEPT, "application/json").body(Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let user = User::new("system:kube-aggregator", &["system:masters"]);
    let response = send(server, backend, &user, request).await?;
    let code = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_DOCUMENT).collect().await.map_err(|error| error.to_string())?;
    Ok((code, serde_json::from_slice(&body.to_bytes()).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_say_who_it_is() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("impersonate-user", "root"),
            ("x-remote-user", "root"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-a", "b"),
            ("accept", "application/json"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let mut user = User::new("jane", &["dev", "system:authenticated"]);
        user.uid = "7".to_owned();
        user.extra.insert("example.com/scopes %".to_owned(), vec!["a".to_owned(), "b".to_owned()]);
        introduce(&mut headers, &user);
        let mut all: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("a text"))).collect();
        all.sort();
        assert_eq!(
            all,
            [
                "accept: application/json",
                "x-remote-extra-example.com%2fscopes%20%25: a",
                "x-remote-extra-example.com%2fscopes%20%25: b",
                "x-remote-group: dev",
                "x-remote-group: system:authenticated",
                "x-remote-uid: 7",
                "x-remote-user: jane",
            ]
        );
    }
}
