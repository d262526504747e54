//! Changing an object: PUT, and the loop that patches, scale, status and binding share.

use std::sync::Arc;

use serde_json::Value;

use super::{Context, decode, default, metadata, scale, set_namespace, storage_failed};
use crate::api::kind::Subresource;
use crate::api::schema::Parsed;
use crate::api::{Kind, Status, StatusResult, meta};
use crate::apiserver::ApiServer;
use crate::apiserver::admission::{self, Operation, resource_quota};
use crate::storage::{Entry, Error, Expect};

/// How often a change that lost against others is made anew (`etcd3.store.GuaranteedUpdate` has no limit; patches have 5).
const ATTEMPTS: usize = 16;

/// Which part of an object a change may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status.
    Main,
    /// The status, and metadata.
    Status,
    /// A subresource with rules of its own; the strategy is not asked, the maker of the change has checked it.
    Special(Subresource),
}

impl Part {
    pub(super) fn subresource(self) -> Option<Subresource> {
        match self {
            Self::Main => None,
            Self::Status => Some(Subresource::Status),
            Self::Special(sub) => Some(sub),
        }
    }
}

/// The result of a change.
pub(crate) struct Changed {
    /// The object, or its last state.
    pub entry: Arc<Entry>,
    /// Whether it did not exist.
    pub created: bool,
}

impl ApiServer {
    /// PUT of an object (or its status) that a client sent.
    pub(crate) async fn replace(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        part: Part,
        object: Parsed,
    ) -> StatusResult<Changed> {
        let mut object = decode(context, kind, object)?;
        set_namespace(kind, namespace, &mut object)?;
        let sent = meta::name(&object).to_owned();
        if sent != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({sent}) does not match the name on the URL ({name})"
            )));
        }
        if part == Part::Main && kind.create_on_update && self.stored(kind, namespace, name).await?.is_none() {
            if !meta::resource_version(&object).is_empty() && meta::resource_version(&object) != "0" {
                return Err(Status::not_found(&kind.gvr, name));
            }
            metadata::metadata(&mut object).remove("resourceVersion");
            let entry = self.create_decoded(context, kind, namespace, object).await?;
            return Ok(Changed { entry, created: true });
        }
        if meta::resource_version(&object).is_empty() && !kind.unconditional_update {
            let errors = [crate::api::status::FieldError {
                reason: "FieldValueInvalid",
                field: "metadata.resourceVersion".into(),
                message: "Invalid value: 0x0: must be specified for an update".into(),
            }];
            // The resource stands where the kind does elsewhere (`Store.Update`).
            return Err(Status::invalid(&kind.gvr.group, &kind.gvr.resource, name, &errors));
        }
        let make = |old: &Value| check_uid(kind, namespace, name, &object, old).map(|()| object.clone());
        let entry = self.change(context, kind, namespace, name, part, make).await?;
        Ok(Changed { entry, created: false })
    }

    /// Makes a new object out of the current one and writes it, again if somebody was faster. The new object's resourceVersion, when
    /// it has one, must be the current one. Nothing is written when nothing changed.
    pub(crate) async fn change<F>(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        part: Part,
        make: F,
    ) -> StatusResult<Arc<Entry>>
    where
        F: Fn(&Value) -> StatusResult<Value> + Send + Sync,
    {
        for _ in 0..ATTEMPTS {
            let entry = self.stored(kind, namespace, name).await?.ok_or_else(|| Status::not_found(&kind.gvr, name))?;
            let old = self.in_version(kind, Arc::clone(&entry)).await?.value();
            let object = make(&old)?;
            let version = meta::resource_version(&object);
            if !version.is_empty() && version != "0" && version != entry.revision.to_string() {
                return Err(match version.parse::<u64>() {
                    Ok(_) => Status::modified(&kind.gvr, name),
                    Err(_) => invalid_version(kind, name, version),
                });
            }
            if meta::name(&object) != name {
                let sent = meta::name(&object);
                let why = format!("the name of the object ({sent}) does not match the name on the URL ({name})");
                return Err(Status::bad_request(why));
            }
            let object = self.finish(context, kind, namespace, name, part, object, &old).await?;
            if same(&object, &old) && !self.is_outdated(kind, &entry) {
                return self.in_version(kind, entry).await;
            }
            if is_finished(kind, &object) {
                if context.dry_run {
                    return Ok(self.dry(kind, &object, Some(entry.revision)));
                }
                // Watchers get the object as it was stored; the one who released it sees what they wrote.
                match self.remove(kind, &entry, &old).await? {
                    Ok(_) => return Ok(self.dry(kind, &object, Some(entry.revision))),
                    Err(Error::Conflict(_)) => continue,
                    Err(error) => return Err(storage_failed(error)),
                }
            }
            let mut object = object;
            let attributes = attributes(context, kind, namespace, name, part);
            let charge = resource_quota::charge(self, context, &attributes, &object, Some(&old)).await?;
            let claim = if part == Part::Main {
                self.allocate(kind, &mut object, Some(&old)).await?
            } else {
                Default::default()
            };
            if context.dry_run {
                self.release(claim).await;
                return Ok(self.dry(kind, &object, Some(entry.revision)));
            }
            match self.put(kind, &entry.key, Expect::Revision(entry.revision), &object).await? {
                Ok(entry) => {
                    charge.keep();
                    self.keep(claim).await;
                    return self.in_version(kind, entry).await;
                }
                Err(Error::Conflict(_)) => self.release(claim).await,
                Err(error) => {
                    self.release(claim).await;
                    return Err(storage_failed(error));
                }
            }
        }
        Err(Status::modified(&kind.gvr, name))
    }

    /// Everything between the client's new object and the stored one: system metadata, the parts that may not change, defaults,
    /// admission, validation.
    async fn finish(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        part: Part,
        mut object: Value,
        old: &Value,
    ) -> StatusResult<Value> {
        let attributes = attributes(context, kind, namespace, name, part);
        // Who admits a Scale sees nothing else of the object.
        let old_scale = if part == scale::PART { Some(scale::scale_of(kind, old)?) } else { None };
        if old_scale.is_some() {
            let mut wanted = scale::scale_of(kind, &object)?;
            admission::mutate(self, &attributes, &mut wanted, old_scale.as_ref()).await?;
            scale::set_scale(kind, &mut object, &wanted)?;
        } else {
            admission::mutate(self, &attributes, &mut object, Some(old)).await?;
        }
        default(kind, &mut object);
        let status_apart = kind.has(Subresource::Status);
        match part {
            Part::Main if status_apart => put_back(&mut object, old, "status"),
            Part::Status => {
                let mut whole = old.clone();
                if kind.strategy.custom().is_some() {
                    // Only the status of a custom resource changes here (`statusStrategy.PrepareForUpdate`).
                    put_back(&mut whole["metadata"], &object["metadata"], "managedFields");
                } else {
                    whole["metadata"] = object["metadata"].take();
                }
                put_back(&mut whole, &object, "status");
                object = whole;
            }
            Part::Special(sub) => object = special(sub, object, old),
            Part::Main => {}
        }
        crate::apiserver::certificates::fill_conditions(kind, &mut object, old, part, self.env.now());
        metadata::fill_for_update(&mut object, old);
        if part == Part::Main {
            crate::apiserver::service::carry_over(kind, &mut object, old);
        }
        self.note_manager(context, kind, part, Some(old), &mut object);
        if kind.has_generation && part != Part::Status && kind.strategy.changes_generation(&object, old) {
            metadata::metadata(&mut object).insert("generation".into(), (meta::generation(old) + 1).into());
        }
        let mut errors = Vec::new();
        match part {
            Part::Main => {
                kind.strategy.prepare_for_update(&mut object, old);
                errors.extend(metadata::validate_update(&object, old));
                errors.extend(kind.strategy.validate_update(&object, old));
            }
            Part::Status => {
                errors.extend(metadata::validate_update(&object, old));
                errors.extend(kind.strategy.validate_status_update(&object, old));
            }
            Part::Special(sub) => {
                errors.extend(metadata::validate_update(&object, old));
                errors.extend(kind.strategy.validate_special_update(sub, &object, old));
            }
        }
        if !errors.is_empty() {
            return Err(super::invalid(kind, name, &errors));
        }
        if part == Part::Main {
            context.warn(kind.strategy.warnings(&object));
        }
        match &old_scale {
            Some(old) => {
                admission::validate(self, &attributes, &scale::scale_of(kind, &object)?, Some(old)).await?;
            }
            None => admission::validate(self, &attributes, &object, Some(old)).await?,
        }
        Ok(object)
    }
}

fn attributes<'a>(
    context: &'a Context<'a>,
    kind: &'a Kind,
    namespace: &'a str,
    name: &str,
    part: Part,
) -> admission::Attributes<'a> {
    admission::Attributes {
        user: context.user,
        context,
        operation: Operation::Update,
        kind,
        namespace,
        name: name.to_owned(),
        subresource: part.subresource(),
    }
}

fn invalid_version(kind: &Kind, name: &str, version: &str) -> Status {
    let error = crate::api::status::FieldError::invalid(
        "metadata.resourceVersion",
        &Value::from(version),
        &format!("strconv.ParseUint: parsing {version:?}: invalid syntax"),
    );
    super::invalid(kind, name, &[error])
}

/// A PUT may carry the uid that it means.
fn check_uid(kind: &Kind, namespace: &str, name: &str, object: &Value, old: &Value) -> StatusResult<()> {
    let (sent, stored) = (meta::uid(object), meta::uid(old));
    if sent.is_empty() || sent == stored {
        return Ok(());
    }
    let key = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: /registry/{}/{key}, ResourceVersion: 0, AdditionalErrorMsg: \
         Precondition failed: UID in precondition: {sent}, UID in object meta: {stored}",
        kind.gvr.resource
    );
    Err(Status::conflict(&kind.gvr, name, &why))
}

/// The part of an object that a subresource may change; all else stays as it was.
fn special(sub: Subresource, mut object: Value, old: &Value) -> Value {
    if sub == Subresource::Approval {
        let mut whole = old.clone();
        whole["metadata"] = object["metadata"].take();
        if !whole["status"].is_object() {
            whole["status"] = serde_json::json!({});
        }
        put_back(&mut whole["status"], &object["status"], "conditions");
        return whole;
    }
    let field = match sub {
        Subresource::EphemeralContainers => "ephemeralContainers",
        Subresource::Finalize => "finalizers",
        Subresource::Resize => return resized(object, old),
        _ => return object,
    };
    let mut whole = old.clone();
    whole["metadata"] = object["metadata"].take();
    put_back(&mut whole["spec"], &object["spec"], field);
    whole
}

/// The pod with the resources (and policies) that were sent. Lists with other containers stay as they were sent: the validation
/// refuses them (`dropNonResizeUpdates`).
fn resized(mut object: Value, old: &Value) -> Value {
    let mut whole = old.clone();
    whole["metadata"] = object["metadata"].take();
    for list in ["containers", "initContainers"] {
        let sent = &object["spec"][list];
        let names = |list: &Value| -> Vec<Value> {
            list.as_array().into_iter().flatten().map(|container| container["name"].clone()).collect()
        };
        if names(sent) != names(&old["spec"][list]) {
            put_back(&mut whole["spec"], &object["spec"], list);
            continue;
        }
        let containers = whole["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, sent) in containers.zip(sent.as_array().into_iter().flatten()) {
            put_back(container, sent, "resources");
            put_back(container, sent, "resizePolicy");
        }
    }
    whole
}

/// Gives `object` the `field` of `from`, or none if that has none.
fn put_back(object: &mut Value, from: &Value, field: &str) {
    let Some(map) = object.as_object_mut() else { return };
    match from.get(field).filter(|v| !v.is_null()) {
        Some(value) => map.insert(field.to_owned(), value.clone()),
        None => map.remove(field),
    };
}

/// Whether nothing changed but the resourceVersion and the times in managedFields.
fn same(object: &Value, old: &Value) -> bool {
    let (Some(a), Some(b)) = (object.as_object(), old.as_object()) else { return false };
    let keys = |map: &serde_json::Map<String, Value>| {
        map.iter().filter(|(k, v)| !["metadata", "kind", "apiVersion"].contains(&k.as_str()) && !v.is_null()).count()
    };
    let rest = keys(a) == keys(b)
        && a.iter().all(|(k, v)| {
            ["metadata", "kind", "apiVersion"].contains(&k.as_str()) || v.is_null() || b.get(k) == Some(v)
        });
    rest && same_metadata(&a["metadata"], &b["metadata"])
}

fn same_metadata(a: &Value, b: &Value) -> bool {
    let strip = |value: &Value| -> Vec<(String, Value)> {
        let fields = value.as_object().into_iter().flatten();
        fields
            .filter(|(k, v)| !["resourceVersion", "managedFields"].contains(&k.as_str()) && !is_empty(v))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    strip(a) == strip(b) && same_managers(&a["managedFields"], &b["managedFields"])
}

fn same_managers(a: &Value, b: &Value) -> bool {
    let strip = |value: &Value| -> Vec<Value> {
        let entries = value.as_array().into_iter().flatten();
        entries
            .map(|entry| {
                let mut entry = entry.clone();
                entry.as_object_mut().map(|e| e.remove("time"));
                entry
            })
            .collect()
    };
    strip(a) == strip(b)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Whether an object under deletion has nothing left to wait for.
pub(crate) fn is_finished(kind: &Kind, object: &Value) -> bool {
    meta::is_terminating(object)
        && meta::finalizers(object).next().is_none()
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && (!super::delete::is_namespace(kind) || object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty))
}
