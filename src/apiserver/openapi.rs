//! `/openapi/v2` and `/openapi/v3`: documents that are made when asked for, with hashes that let clients keep them.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, header};

use super::ApiServer;
use super::aggregation::openapi::{add_to_index, of_backends};
use super::http::request::Query;
use super::http::responses::{self, Format};
use crate::api::openapi;

/// Answers a path below `/openapi`.
pub(crate) async fn answer(server: &ApiServer, path: &str, query: &Query, headers: &HeaderMap) -> Response<Body> {
    let served = server.kinds.snapshot();
    let kinds = &served.all[..];
    let path = path.trim_end_matches('/');
    if path == "/openapi/v2" {
        return v2(server, headers).await;
    }
    if path == "/openapi/v3" {
        let mut index = openapi::v3_index(kinds);
        if let Some(paths) = index["paths"].as_object_mut() {
            add_to_index(server, paths);
        }
        return responses::object(200, Format::JSON, &index);
    }
    let Some(rest) = path.strip_prefix("/openapi/v3/") else { return responses::page_not_found() };
    let group_version = rest.strip_prefix("apis/").or_else(|| rest.strip_prefix("api/")).unwrap_or_default();
    let Some(hash) = openapi::v3_hash(kinds, group_version) else { return responses::page_not_found() };
    if known(headers, &hash) {
        return tagged(responses::answer(304, JSON, Body::empty()), &hash);
    }
    let Some(document) = openapi::v3(kinds, group_version) else { return responses::page_not_found() };
    let mut response = tagged(responses::answer(200, JSON, document), &hash);
    if query.get("hash") == Some(&hash) {
        // The address names the content: it never changes.
        let forever = HeaderValue::from_static("public, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    response
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

async fn v2(server: &ApiServer, headers: &HeaderMap) -> Response<Body> {
    let foreign = of_backends(server).await;
    let served = server.kinds.snapshot();
    let kinds = &served.all[..];
    let hash = openapi::v2_hash(kinds, &foreign);
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let protobuf = accept.split(',').any(|clause| {
        [openapi::V2_PROTOBUF, openapi::V2_PROTOBUF_ASKED].iter().any(|media| clause.trim().starts_with(media))
    });
    if known(headers, &hash) {
        return tagged(responses::answer(304, JSON, Body::empty()), &hash);
    }
    let response = if protobuf {
        responses::answer(200, HeaderValue::from_static(openapi::V2_PROTOBUF), openapi::v2_protobuf(kinds, &foreign))
    } else {
        responses::answer(200, JSON, openapi::v2_json(kinds, &foreign))
    };
    tagged(response, &hash)
}

/// Whether the client has the document with this hash.
fn known(headers: &HeaderMap, hash: &str) -> bool {
    let given = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).unwrap_or_default();
    given.split(',').any(|tag| tag.trim().trim_matches('"') == hash)
}

fn tagged(mut response: Response<Body>, hash: &str) -> Response<Body> {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{hash}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    response
}
