//! OpenAPI of backends: v3 documents stay with them, the v2 document is made of all.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Map, Value, json};

use super::ApiServer;
use super::backend::{self, Backend};
use crate::api::openapi::{self, Foreign};

/// How long a backend may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The backends that are not in this process.
fn backends(server: &ApiServer) -> Vec<(Backend, Option<String>)> {
    let mut backends = server.aggregation.available(server);
    backends.retain(|(backend, _)| server.options.aggregated.get(&backend.group, &backend.version).is_none());
    backends
}

/// Adds the documents of backends to the `paths` of `/openapi/v3`.
pub(crate) fn add_to_index(server: &ApiServer, paths: &mut Map<String, Value>) {
    for (backend, document) in backends(server) {
        if let Some(url) = document {
            paths.insert(format!("apis/{}/{}", backend.group, backend.version), json!({"serverRelativeURL": url}));
        }
    }
}

/// What the v2 documents of backends say; who does not answer in time says nothing.
pub(crate) async fn of_backends(server: &ApiServer) -> Foreign {
    let backends = backends(server);
    let documents = join_all(backends.iter().map(|(backend, _)| async move {
        let document = tokio::time::timeout(TIMEOUT, backend::get(server, backend, "/openapi/v2")).await;
        document.ok().and_then(Result::ok).filter(|(code, _)| *code == 200).map(|(_, document)| document)
    }))
    .await;
    let mut foreign = Foreign::default();
    if documents.iter().all(Option::is_none) {
        return foreign;
    }
    let ours: BTreeSet<String> = openapi::v2_names(&server.kinds.snapshot().all);
    for ((backend, _), document) in backends.iter().zip(documents) {
        if let Some(document) = document {
            foreign.add(&document, &backend.group, &backend.version, &ours);
        }
    }
    foreign
}
