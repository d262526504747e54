//! Answers: objects and failures, encoded as the client asked.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;

use super::negotiate::Encoding;
use crate::api::Status;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// How objects are written for this request.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The encoding.
    pub encoding: Encoding,
    /// Whether JSON is indented.
    pub pretty: bool,
}

impl Format {
    /// Plain JSON.
    pub const JSON: Self = Self { encoding: Encoding::Json, pretty: false };
}

/// An answer with a body of a media type.
pub fn answer(code: u16, content_type: HeaderValue, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// Plain text.
pub fn text(code: u16, body: impl Into<Body>) -> Response<Body> {
    let mut response = answer(code, HeaderValue::from_static("text/plain; charset=utf-8"), body);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// 429 of flow control.
pub fn too_many() -> Response<Body> {
    let mut response = text(429, "Too many requests, please try again later.\n");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// `404 page not found`, as Go's mux says it.
pub fn page_not_found() -> Response<Body> {
    text(404, "404 page not found\n")
}

/// JSON that is encoded already.
pub fn json_bytes(code: u16, format: Format, json: Bytes) -> Response<Body> {
    if format.encoding == Encoding::Json && !format.pretty {
        return answer(code, JSON, json);
    }
    match serde_json::from_slice::<Value>(&json) {
        Ok(value) => object(code, format, &value),
        Err(_) => answer(code, JSON, json),
    }
}

/// An object.
pub fn object(code: u16, format: Format, object: &Value) -> Response<Body> {
    match format.encoding {
        Encoding::Protobuf => {
            if let Some(bytes) = super::super::codec::encode_protobuf(object) {
                return answer(code, HeaderValue::from_static(PROTOBUF), bytes);
            }
            answer(code, JSON, object.to_string())
        }
        Encoding::Yaml => {
            answer(code, HeaderValue::from_static("application/yaml"), super::super::codec::to_yaml(object))
        }
        Encoding::Json if format.pretty => {
            let mut out = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(b"  ");
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
            serde::Serialize::serialize(object, &mut serializer).expect("a JSON value can be written to memory");
            out.push(b'\n');
            answer(code, JSON, out)
        }
        Encoding::Json => answer(code, JSON, object.to_string()),
    }
}

/// A failure.
pub fn status(format: Format, status: &Status) -> Response<Body> {
    let mut response = object(status.code, format, &status.to_object());
    if let Some(seconds) = status.details["retryAfterSeconds"].as_i64() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status.code == 401 {
        // Kubernetes sends no challenge; a browser would ask its user for a password.
        response.headers_mut().remove(header::WWW_AUTHENTICATE);
    }
    response
}

/// Adds `Warning: 299 - "…"` headers.
pub fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let mut quoted = String::from("299 - \"");
        for c in warning.chars().map(|c| if c.is_control() { ' ' } else { c }) {
            if matches!(c, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        quoted.push('"');
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
