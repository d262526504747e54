//! Watches as HTTP bodies: one JSON object a line, or protobuf messages with their lengths before them.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderValue, Response};
use serde_json::{Value, json};

use super::negotiate::{Accept, As, Encoding};
use super::request::RequestInfo;
use super::responses;
use crate::api::{Kind, protobuf};
use crate::apiserver::registry::watch::{Change, Changes};
use crate::apiserver::table::{self, Include};
use crate::apiserver::{ApiServer, codec};
use crate::storage::Entry;

/// How the objects of a watch are written.
struct Writer {
    server: Arc<ApiServer>,
    kind: Arc<Kind>,
    accept: Accept,
    include: Include,
    headers: bool,
}

/// Counts a watch while it lasts.
struct Counted(Arc<ApiServer>, RequestInfo);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.metrics.long_running(&self.1, -1);
    }
}

/// The answer that carries `changes` until they end.
pub(super) fn answer(
    server: &Arc<ApiServer>,
    kind: &Arc<Kind>,
    info: &RequestInfo,
    changes: Changes,
    accept: Accept,
    include: Include,
) -> Response<Body> {
    server.metrics.long_running(info, 1);
    let counted = Counted(Arc::clone(server), info.clone());
    let mut writer = Writer { server: Arc::clone(server), kind: Arc::clone(kind), accept, include, headers: true };
    let frames = changes.map(move |batch| {
        let _ = &counted;
        let mut out = Vec::new();
        for change in batch {
            writer.write(&mut out, change);
        }
        Ok::<_, std::convert::Infallible>(Bytes::from(out))
    });
    let content_type = match accept.encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    responses::answer(200, HeaderValue::from_static(content_type), Body::from_stream(frames))
}

impl Writer {
    fn write(&mut self, out: &mut Vec<u8>, change: Change) {
        match change {
            Change::Added(entry) => self.object(out, "ADDED", &entry),
            Change::Modified(entry) => self.object(out, "MODIFIED", &entry),
            Change::Deleted(entry) => self.object(out, "DELETED", &entry),
            Change::Bookmark { revision, initial_events_end } => {
                self.value(out, "BOOKMARK", &self.bookmark(revision, initial_events_end));
            }
            Change::Failed(status) => self.value(out, "ERROR", &status.to_object()),
        }
    }

    fn object(&mut self, out: &mut Vec<u8>, kind: &str, entry: &Arc<Entry>) {
        let now = self.server.env.now();
        match table::shaped(&self.kind, self.accept.shape, entry, self.include, now, self.headers) {
            // The stored bytes, as every other reader gets them.
            None if self.accept.encoding == Encoding::Json => frame(out, kind, &entry.json),
            None => self.value(out, kind, &entry.value()),
            Some(object) => {
                self.headers = false;
                self.value(out, kind, &object);
            }
        }
    }

    fn value(&self, out: &mut Vec<u8>, kind: &str, object: &Value) {
        if self.accept.encoding == Encoding::Protobuf
            && let Some(bytes) = codec::encode_protobuf(object)
        {
            return out.extend_from_slice(&protobuf::watch_frame(kind, &bytes));
        }
        frame(out, kind, object.to_string().as_bytes());
    }

    fn bookmark(&self, revision: u64, initial_events_end: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        match self.accept.shape {
            As::Table { beta } => table::table(
                &self.kind,
                &[],
                json!({"resourceVersion": revision.to_string()}),
                beta,
                self.include,
                self.server.env.now(),
                false,
            ),
            As::PartialObjectMetadata { beta } | As::PartialObjectMetadataList { beta } => {
                table::partial(&json!({"metadata": metadata}), beta)
            }
            As::Object => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.gvr.api_version(), "metadata": metadata})
            }
        }
    }
}

fn frame(out: &mut Vec<u8>, kind: &str, object: &[u8]) {
    out.reserve(object.len() + kind.len() + 24);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}
