//! PATCH: JSON, merge and strategic merge patches on the current object, tried again when somebody was faster.

use std::sync::Arc;

use serde_json::Value;

use super::update::Part;
use super::{Context, decode};
use crate::api::schema::Root;
use crate::api::{Kind, StatusResult, patch};
use crate::apiserver::http::negotiate::unsupported;
use crate::apiserver::{ApiServer, codec};
use crate::storage::Entry;

/// What may be sent for kinds without a schema table (custom resources).
const WITHOUT_STRATEGIC: &str =
    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

/// A patch as it was sent.
#[derive(Clone, Debug)]
pub(crate) enum PatchBody {
    Json(Value),
    Merge(Value),
    Strategic(Value),
}

impl PatchBody {
    /// Applies it to an object of a kind.
    pub fn apply(&self, kind: &Kind, current: &Value) -> StatusResult<Value> {
        let mut object = current.clone();
        match self {
            Self::Json(operations) => patch::json(&mut object, operations)?,
            Self::Merge(change) => patch::merge(&mut object, change)?,
            Self::Strategic(change) => match kind.schema() {
                Some(Root::Table(ty)) => patch::strategic(ty, &mut object, change)?,
                _ => return Err(unsupported(WITHOUT_STRATEGIC)),
            },
        }
        Ok(object)
    }
}

impl ApiServer {
    /// Patches an object or its status.
    pub(crate) async fn patch(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        part: Part,
        patch: &PatchBody,
    ) -> StatusResult<Arc<Entry>> {
        self.change(context, kind, namespace, name, part, |current| {
            let patched = patch.apply(kind, current)?;
            decode(context, kind, codec::made(patched))
        })
        .await
    }
}
