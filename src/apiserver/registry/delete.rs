//! DELETE: preconditions, grace, finalizers; and deletecollection.

use std::sync::Arc;

use serde_json::Value;

use super::delete_options::DeleteOptions;
use super::list::{Listed, Page};
use super::{Context, metadata, storage_failed};
use crate::api::{Gvr, Kind, Status, StatusResult, meta};
use crate::apiserver::ApiServer;
use crate::apiserver::admission::{self, Operation};
use crate::apiserver::selector::Selection;
use crate::env::rfc3339;
use crate::storage::{Entry, Error, Expect};

/// The result of a delete.
pub(crate) struct Deleted {
    /// The last state, or the state that waits for its end.
    pub entry: Arc<Entry>,
    /// Whether it is gone.
    pub gone: bool,
}

pub(crate) fn is_namespace(kind: &Kind) -> bool {
    kind.gvr.group.is_empty() && kind.gvr.resource == "namespaces"
}

fn is_pod(kind: &Kind) -> bool {
    kind.gvr.group.is_empty() && kind.gvr.resource == "pods"
}

impl ApiServer {
    /// Deletes an object or begins to.
    pub(crate) async fn delete(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> StatusResult<Deleted> {
        let attributes = admission::Attributes {
            user: context.user,
            context,
            operation: Operation::Delete,
            kind,
            namespace,
            name: name.to_owned(),
            subresource: None,
        };
        loop {
            let entry = self.stored(kind, namespace, name).await?.ok_or_else(|| Status::not_found(&kind.gvr, name))?;
            let shown = self.in_version(kind, Arc::clone(&entry)).await?;
            let old = shown.value();
            check_preconditions(kind, name, &entry, &old, options)?;
            admission::announce_delete(self, &attributes, &old).await?;
            admission::validate(self, &attributes, &Value::Null, Some(&old)).await?;
            let object = self.mark(kind, &old, options);
            if super::update::is_finished(kind, &object) {
                if context.dry_run {
                    return Ok(Deleted { entry: shown, gone: true });
                }
                // What waited is shown without grace; what goes at once is shown as it was.
                let last = if meta::is_terminating(&old) { &object } else { &*old };
                match self.remove(kind, &entry, last).await? {
                    Ok(gone) if meta::is_terminating(&old) => {
                        return Ok(Deleted { entry: self.in_version(kind, gone).await?, gone: true });
                    }
                    Ok(_) => return Ok(Deleted { entry: shown, gone: true }),
                    Err(Error::Conflict(_)) => continue,
                    Err(error) => return Err(storage_failed(error)),
                }
            }
            if object == *old {
                return Ok(Deleted { entry: shown, gone: false });
            }
            if context.dry_run {
                return Ok(Deleted { entry: self.dry(kind, &object, Some(entry.revision)), gone: false });
            }
            match self.put(kind, &entry.key, Expect::Revision(entry.revision), &object).await? {
                Ok(entry) => return Ok(Deleted { entry: self.in_version(kind, entry).await?, gone: false }),
                Err(Error::Conflict(_)) => {}
                Err(error) => return Err(storage_failed(error)),
            }
        }
    }

    /// The object as a delete leaves it: with its deletion time, grace and finalizers (`rest.BeforeDelete`).
    fn mark(&self, kind: &Kind, old: &Value, options: &DeleteOptions) -> Value {
        let mut object = old.clone();
        set_propagation(kind, &mut object, options);
        let grace = grace(kind, old, options);
        let terminating = meta::is_terminating(old);
        let waits = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        if terminating {
            // The grace period can only become shorter.
            if grace < waits {
                let started =
                    old["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
                let m = metadata::metadata(&mut object);
                if let Some(end) = started
                    && grace > 0
                {
                    let end = end.saturating_add(jiff::SignedDuration::from_secs(grace - waits)).unwrap_or(end);
                    m.insert("deletionTimestamp".into(), rfc3339(end).into());
                }
                m.insert("deletionGracePeriodSeconds".into(), grace.into());
            }
            return object;
        }
        let now = self.env.now();
        kind.strategy.prepare_for_delete(&mut object, now);
        let end = now.saturating_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
        let generation = meta::generation(old);
        let m = metadata::metadata(&mut object);
        m.insert("deletionTimestamp".into(), rfc3339(end).into());
        m.insert("deletionGracePeriodSeconds".into(), grace.into());
        if generation > 0 {
            m.insert("generation".into(), (generation + 1).into());
        }
        if is_namespace(kind) {
            m.remove("deletionGracePeriodSeconds");
            object["status"]["phase"] = "Terminating".into();
        }
        object
    }

    /// Deletes all objects that match. Returns them as they were.
    pub(crate) async fn delete_collection(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        selection: &Selection,
        page: &Page,
        options: &DeleteOptions,
    ) -> StatusResult<Listed> {
        let listing = self.list(kind, namespace, selection, page).await?;
        for entry in &listing.entries {
            let value = entry.value();
            match self.delete(context, kind, meta::namespace(&value), meta::name(&value), options).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => {}
            }
        }
        Ok(listing)
    }
}

fn check_preconditions(
    kind: &Kind,
    name: &str,
    entry: &Entry,
    old: &Value,
    options: &DeleteOptions,
) -> StatusResult<()> {
    // These conflicts name the kind, not the resource.
    let conflict = |why: String| {
        let gvr = Gvr { resource: kind.kind.clone(), ..kind.gvr.clone() };
        Err(Status::conflict(&gvr, name, &why))
    };
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != meta::uid(old)) {
        let record = meta::uid(old);
        return conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({record}). \
             The object might have been deleted and then recreated"
        ));
    }
    if let Some(version) = options.resource_version.as_deref().filter(|v| *v != entry.revision.to_string()) {
        let record = entry.revision;
        return conflict(format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({record}). \
             The object might have been modified"
        ));
    }
    Ok(())
}

/// Adds or removes the finalizers of the garbage collector (`deletionFinalizersForGarbageCollection`).
fn set_propagation(kind: &Kind, object: &mut Value, options: &DeleteOptions) {
    let had: Vec<String> = meta::finalizers(object).map(str::to_owned).collect();
    let has = |finalizer: &str| had.iter().any(|f| f == finalizer);
    let orphan = match options.orphans() {
        Some(orphan) => orphan && !options.foreground(),
        None => has("orphan") || (!has("foregroundDeletion") && kind.strategy.orphans_by_default()),
    };
    let foreground = match (options.foreground(), options.orphans()) {
        (true, _) => true,
        (false, Some(_)) => false,
        (false, None) => has("foregroundDeletion"),
    };
    let mut finalizers: Vec<String> =
        had.iter().filter(|f| *f != "orphan" && *f != "foregroundDeletion").cloned().collect();
    if orphan {
        finalizers.push("orphan".into());
    }
    if foreground {
        finalizers.push("foregroundDeletion".into());
    }
    if finalizers != had {
        let m = metadata::metadata(object);
        if finalizers.is_empty() {
            m.remove("finalizers");
        } else {
            m.insert("finalizers".into(), finalizers.into());
        }
    }
}

/// How long the object stays for its own sake: only pods have grace (`podStrategy.CheckGracefulDelete`).
fn grace(kind: &Kind, old: &Value, options: &DeleteOptions) -> i64 {
    if !is_pod(kind) {
        return 0;
    }
    let asked = options.grace.or_else(|| old["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
    let unbound = old["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let ended = ["Failed", "Succeeded"].contains(&old["status"]["phase"].as_str().unwrap_or_default());
    if unbound || ended {
        0
    } else if asked < 0 {
        1
    } else {
        asked
    }
}
