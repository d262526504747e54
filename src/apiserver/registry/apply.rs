//! PATCH with an apply patch, and the field managers of ordinary writes.

use std::sync::Arc;

use serde_json::Value;

use super::update::{Changed, Part};
use super::{Context, decode, set_namespace};
use crate::api::kind::Subresource;
use crate::api::patch::{self, Writer, managed_fields};
use crate::api::{Kind, Status, StatusResult, meta};
use crate::apiserver::http::negotiate::unsupported;
use crate::apiserver::{ApiServer, codec};

/// What may be sent for kinds without a schema table.
const WITHOUT_APPLY: &str = "application/json-patch+json, application/merge-patch+json";
/// The manager of writes from inside to objects whose managers are tracked.
const OWN: &str = "mini";

impl ApiServer {
    /// Server-side apply: creates the object, or merges the configuration into it.
    #[expect(clippy::too_many_arguments, reason = "the parts of a request")]
    pub(crate) async fn apply(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        part: Part,
        config: &Value,
        force: bool,
    ) -> StatusResult<Changed> {
        let Some(ty) = kind.schema() else { return Err(unsupported(WITHOUT_APPLY)) };
        let expected = kind.gvr.api_version();
        let sent = config["apiVersion"].as_str().unwrap_or_default();
        if sent != expected {
            return Err(Status::bad_request(format!(
                "Incorrect version specified in apply patch. Specified patch version: {sent}, expected: {expected}"
            )));
        }
        if !meta::name(config).is_empty() && meta::name(config) != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                meta::name(config)
            )));
        }
        let subresource = part.subresource().map_or("", Subresource::as_str);
        let writer = Writer { manager: &context.manager, subresource, api_version: &expected, now: self.env.now() };
        if part == Part::Main && self.stored(kind, namespace, name).await?.is_none() {
            let mut object = patch::apply(ty, None, config, &writer, force)?;
            meta::metadata_mut(&mut object).insert("name".to_owned(), name.into());
            let mut object = decode(context, kind, codec::made(object))?;
            set_namespace(kind, namespace, &mut object)?;
            let entry = self.create_decoded(context, kind, namespace, object).await?;
            return Ok(Changed { entry, created: true });
        }
        let make = |current: &Value| {
            let object = patch::apply(ty, Some(current), config, &writer, force)?;
            decode(context, kind, codec::made(object))
        };
        let entry = self.change(context, kind, namespace, name, part, make).await?;
        Ok(Changed { entry, created: false })
    }

    /// Keeps `metadata.managedFields` of a write that is no apply. Writes from inside are tracked only where a client's
    /// writes were, and never on the status.
    pub(super) fn note_manager(
        &self,
        context: &Context<'_>,
        kind: &Kind,
        part: Part,
        old: Option<&Value>,
        object: &mut Value,
    ) {
        if context.applying {
            return;
        }
        let tracked = old.map(|old| &old["metadata"]["managedFields"]).filter(|entries| entries.is_array());
        let inside = context.manager.is_empty();
        if inside && (part != Part::Main || tracked.is_none()) {
            let metadata = meta::metadata_mut(object);
            match tracked {
                Some(entries) => metadata.insert("managedFields".to_owned(), entries.clone()),
                None => metadata.remove("managedFields"),
            };
            return;
        }
        let Some(ty) = kind.schema() else { return };
        let subresource = part.subresource().map_or("", Subresource::as_str);
        let manager = if inside { OWN } else { &context.manager };
        let api_version = kind.gvr.api_version();
        let writer = Writer { manager, subresource, api_version: &api_version, now: self.env.now() };
        managed_fields::update(ty, old, object, &writer);
    }
}
