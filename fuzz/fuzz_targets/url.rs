//! Request lines: paths and queries of requests, and the URLs of webhooks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mini::api::validation::Errors;
use mini::api::webhook_client;
use mini::apiserver::http::request::{Query, RequestInfo};
use serde_json::json;

fuzz_target!(|text: &str| {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let query = Query::new(query);
    for method in [http::Method::GET, http::Method::POST, http::Method::DELETE] {
        let info = RequestInfo::new(&method, path, &query);
        assert!(!info.is_resource || !info.version.is_empty(), "a resource has a version");
    }
    let mut errors = Errors::new();
    webhook_client::validate(&mut errors, &json!({"url": text}), "clientConfig");
});
