//! POST: a new object.

use std::sync::Arc;

use serde_json::Value;

use super::{Context, decode, default, kind_key, metadata, set_namespace, storage_failed};
use crate::api::kind::Subresource;
use crate::api::schema::Parsed;
use crate::api::{Kind, Status, StatusResult, meta};
use crate::apiserver::ApiServer;
use crate::apiserver::admission::{self, Operation, resource_quota};
use crate::storage::{Entry, Error, Expect};

/// How often a generated name that is taken is drawn again.
const NAME_ATTEMPTS: usize = 8;

impl ApiServer {
    /// Creates an object that a client sent.
    pub(crate) async fn create(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        object: Parsed,
    ) -> StatusResult<Arc<Entry>> {
        let object = decode(context, kind, object)?;
        self.create_decoded(context, kind, namespace, object).await
    }

    /// Creates an object that is decoded and defaulted.
    pub(crate) async fn create_decoded(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        mut object: Value,
    ) -> StatusResult<Arc<Entry>> {
        if kind.strategy.custom().is_some_and(|custom| custom.terminating) {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(Status::new(405, "MethodNotAllowed", why));
        }
        set_namespace(kind, namespace, &mut object)?;
        if !meta::resource_version(&object).is_empty() {
            return Err(Status::new(500, "", "resourceVersion should not be set on objects to be created"));
        }
        let attributes = admission::Attributes {
            user: context.user,
            context,
            operation: Operation::Create,
            kind,
            namespace,
            name: meta::name(&object).to_owned(),
            subresource: None,
        };
        admission::mutate(self, &attributes, &mut object, None).await?;
        default(kind, &mut object);
        self.note_manager(context, kind, super::update::Part::Main, None, &mut object);
        let template = object;
        for attempt in 1.. {
            let mut object = template.clone();
            let generated = metadata::fill_for_create(kind, &mut object, &self.env);
            match self.create_named(context, &attributes, kind, namespace, object).await {
                Err(status) if status.is_already_exists() && generated && attempt < NAME_ATTEMPTS => {}
                result => return result,
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn create_named(
        &self,
        context: &Context<'_>,
        attributes: &admission::Attributes<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        mut object: Value,
    ) -> StatusResult<Arc<Entry>> {
        if kind.has(Subresource::Status)
            && !kind.strategy.keeps_status_on_create()
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
        crate::apiserver::certificates::note_requester(kind, &mut object, context.user);
        kind.strategy.prepare_for_create(&mut object);
        let mut errors = metadata::validate(kind, &object);
        errors.extend(kind.strategy.validate(&object));
        if !errors.is_empty() {
            return Err(super::invalid(kind, meta::name(&object), &errors));
        }
        context.warn(kind.strategy.warnings(&object));
        admission::validate(self, attributes, &object, None).await?;
        let name = meta::name(&object).to_owned();
        let key = kind_key(kind, namespace, &name);
        if context.dry_run {
            if self.storage.get(&key).await.map_err(storage_failed)?.is_some() {
                return Err(Status::already_exists(&kind.gvr, &name));
            }
            resource_quota::charge(self, context, attributes, &object, None).await?;
            let claim = self.allocate(kind, &mut object, None).await?;
            self.release(claim).await;
            return Ok(self.dry(kind, &object, None));
        }
        let charge = resource_quota::charge(self, context, attributes, &object, None).await?;
        let claim = self.allocate(kind, &mut object, None).await?;
        match self.put(kind, &key, Expect::Absent, &object).await? {
            Ok(entry) => {
                charge.keep();
                self.keep(claim).await;
                self.in_version(kind, entry).await
            }
            Err(error) => {
                self.release(claim).await;
                Err(match error {
                    Error::Conflict(Some(there)) if meta::is_terminating(&there.value()) => {
                        let mut status = Status::already_exists(&kind.gvr, &name);
                        status.message = format!("object is being deleted: {}", status.message);
                        status
                    }
                    Error::Conflict(_) => Status::already_exists(&kind.gvr, &name),
                    other => storage_failed(other),
                })
            }
        }
    }
}
