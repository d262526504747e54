//! Label and field selector of a list, watch or deletecollection, checked against the kind.

use serde_json::Value;

use crate::api::selector::{FieldSelector, LabelSelector};
use crate::api::{Kind, Status, StatusResult, meta};

/// Which objects are meant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    /// Reads both selectors.
    ///
    /// # Errors
    /// 400 with Kubernetes' message.
    pub fn parse(kind: &Kind, labels: &str, fields: &str) -> StatusResult<Self> {
        let labels = LabelSelector::parse(labels).map_err(Status::bad_request)?;
        let fields = FieldSelector::parse(fields).map_err(Status::bad_request)?;
        for term in &fields.terms {
            let general = term.field == "metadata.name" || (kind.namespaced && term.field == "metadata.namespace");
            if !general && !kind.strategy.knows_field(&term.field) {
                // Kinds without a conversion of field labels of their own get the general one's words.
                let message = if kind.strategy.selectable_fields(&Value::Null).is_empty() {
                    format!(
                        "{:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        term.field
                    )
                } else {
                    format!("field label not supported: {}", term.field)
                };
                return Err(Status::bad_request(message));
            }
        }
        Ok(Self { labels, fields })
    }

    /// Whether every object is meant.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_empty()
    }

    /// Whether `object` is meant.
    pub fn matches(&self, kind: &Kind, object: &Value) -> bool {
        if !self.labels.is_everything() && !self.labels.matches_object(object) {
            return false;
        }
        if self.fields.is_empty() {
            return true;
        }
        self.fields.matches(|field| match field {
            "metadata.name" => Some(meta::name(object).to_owned()),
            "metadata.namespace" => Some(meta::namespace(object).to_owned()),
            other => kind.strategy.field_value(object, other),
        })
    }
}
