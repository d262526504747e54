//! `meta.k8s.io` Table and PartialObjectMetadata of objects.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::http::negotiate::As;
use crate::api::Kind;
use crate::storage::Entry;

/// What the rows of a table carry of their objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    /// Of the query parameter `includeObject`.
    pub fn parse(text: &str) -> Self {
        match text {
            "None" => Self::None,
            "Object" => Self::Object,
            _ => Self::Metadata,
        }
    }
}

fn version(beta: bool) -> &'static str {
    if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
}

/// An object reduced to its metadata.
pub(crate) fn partial(object: &Value, beta: bool) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": version(beta), "metadata": object["metadata"]})
}

/// A Table of objects; `metadata` is the list's, `headers` whether the columns are told (only once in a watch).
pub(crate) fn table(
    kind: &Kind,
    entries: &[Arc<Entry>],
    metadata: Value,
    beta: bool,
    include: Include,
    now: Timestamp,
    headers: bool,
) -> Value {
    let rows: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let object = entry.value();
            let mut row = json!({"cells": kind.strategy.cells(&object, now)});
            let conditions = kind.strategy.row_conditions(&object);
            if !conditions.is_empty() {
                row["conditions"] = conditions.into();
            }
            match include {
                Include::None => {}
                Include::Metadata => row["object"] = partial(&object, beta),
                Include::Object => row["object"] = (*object).clone(),
            }
            row
        })
        .collect();
    let columns: Vec<Value> = if headers {
        let columns = kind.strategy.columns();
        columns
            .iter()
            .map(|c| json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority}))
            .collect()
    } else {
        Vec::new()
    };
    let columns = if headers { Value::from(columns) } else { Value::Null };
    json!({"kind": "Table", "apiVersion": version(beta), "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}

/// The shape's form of one object; `None` when it is the object itself.
pub(crate) fn shaped(
    kind: &Kind,
    shape: As,
    entry: &Arc<Entry>,
    include: Include,
    now: Timestamp,
    headers: bool,
) -> Option<Value> {
    match shape {
        As::Object => None,
        As::PartialObjectMetadata { beta } | As::PartialObjectMetadataList { beta } => {
            Some(partial(&entry.value(), beta))
        }
        As::Table { beta } => {
            let metadata = json!({"resourceVersion": entry.value()["metadata"]["resourceVersion"]});
            Some(table(kind, std::slice::from_ref(entry), metadata, beta, include, now, headers))
        }
    }
}
