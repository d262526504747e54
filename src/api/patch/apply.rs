//! Server-side apply (KEP-555): a manager's configuration merged into the live object, with conflicts against other
//! managers' fields (`structured-merge-diff/merge`).

use serde_json::{Value, json};

use super::field_set::FieldSet;
use super::managed_fields::{self, Entry, Managers, Writer};
use super::plain_error;
use super::typed::{Comparison, Schema, compare, equal, field_set, merge, remove_items, validate, with_named};
use crate::api::schema::{self, Root, Strictness};
use crate::api::{Status, meta};

/// The manager of `kubectl apply --server-side`, which takes over what `kubectl apply` set before.
const KUBECTL: &str = "kubectl";
/// What `kubectl apply` applied last.
pub(super) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Applies `config` to the live object (`None`: it is created) and returns the new object with its managers. The
/// caller has checked name, kind and the manager, and goes on with defaults and admission.
///
/// Fields that `kubectl apply` set and nobody changed since are no conflicts for kubectl (KEP-555, "Upgrading from
/// client-side apply"); its annotation is kept up to date, so that both ways of applying can be mixed.
///
/// # Errors
/// 400 when the configuration sets `managedFields`, 409 with all conflicts unless `force`, 500 for what the schema
/// does not allow (as kube-apiserver answers).
pub fn apply<'a>(
    schema: impl Into<Root<'a>>,
    live: Option<&Value>,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, Status> {
    let ty = schema.into();
    let mut applied = apply_once(ty, live, config, writer, force);
    if let (KUBECTL, Err(Refused::Conflicts(conflicts)), Some(live)) = (writer.manager, &applied, live)
        && let Some(allowed) = last_applied(ty, live, writer)
    {
        let others: Vec<(Entry, FieldSet)> = conflicts
            .iter()
            .map(|(entry, set)| (entry.clone(), set.difference(&allowed)))
            .filter(|(_, set)| !set.is_empty())
            .collect();
        applied = if others.is_empty() {
            apply_once(ty, Some(live), config, writer, true)
        } else {
            Err(Refused::Conflicts(others))
        };
    }
    let mut object = applied.map_err(Refused::into_status)?;
    if writer.manager == KUBECTL && meta::annotation(&object, LAST_APPLIED).is_some_and(|text| !text.is_empty()) {
        let mut last = managed_fields::without(config);
        if let Some(annotations) = last.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
        object["metadata"]["annotations"][LAST_APPLIED] = format!("{last}\n").into();
    }
    Ok(object)
}

/// The fields that `kubectl apply` set last and that still are as it set them (`allowedConflictsFromLastApplied`).
fn last_applied(ty: Root<'_>, live: &Value, writer: &Writer<'_>) -> Option<FieldSet> {
    let last: Value = serde_json::from_str(meta::annotation(live, LAST_APPLIED)?).ok()?;
    if last["apiVersion"] != writer.api_version || check(ty, &last).is_err() {
        return None;
    }
    let root = Schema::of(ty);
    let comparison = compare(root, &last, &managed_fields::without(live));
    let set = field_set(root, &last).difference(&comparison.modified);
    Some(set.difference(&comparison.added).difference(&comparison.removed))
}

/// Why an apply is refused.
enum Refused {
    Status(Status),
    /// Who owns what of the changed fields.
    Conflicts(Vec<(Entry, FieldSet)>),
}

impl Refused {
    fn into_status(self) -> Status {
        match self {
            Self::Status(status) => status,
            Self::Conflicts(conflicts) => conflict(&conflicts),
        }
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

fn apply_once(
    ty: Root<'_>,
    live: Option<&Value>,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, Refused> {
    if config["metadata"]["managedFields"].as_array().is_some_and(|entries| !entries.is_empty()) {
        return Err(Status::bad_request("metadata.managedFields must be nil").into());
    }
    let root = Schema::of(ty);
    let config = managed_fields::without(config);
    check(ty, &config)?;

    let mut managers = live.and_then(managed_fields::decode).unwrap_or_default();
    let old = live.map_or_else(|| managed_fields::empty(ty), managed_fields::without);
    if let (true, Some(_)) = (managers.is_empty(), live) {
        let before = Writer { manager: "before-first-apply", subresource: "", ..*writer };
        managed_fields::record_update(ty, &managed_fields::empty(ty), &old, &mut managers, &before);
    }

    let mut new = merge(root, Some(&old), Some(&config)).unwrap_or_else(|| json!({}));
    let ignored = managed_fields::reset(ty, writer.subresource);
    // The identity of the object is nobody's, but while items are removed it counts as this manager's.
    let set = field_set(root, &config).without_trees(&ignored);
    let entry = Entry::new(writer, true, set);
    let id = entry.id();
    let last = managers.insert(id.clone(), entry);
    if let Some(last) = last.as_ref().filter(|last| !last.set.is_empty()) {
        new = prune(root, &new, &managers, &last.set);
    }
    if let Some(mine) = managers.get_mut(&id) {
        mine.set = mine.set.difference(&managed_fields::stripped());
    }
    normalise(ty, &mut new)?;
    let mut comparison = compare(root, &old, &new);
    for set in [&mut comparison.added, &mut comparison.modified, &mut comparison.removed] {
        *set = set.without_trees(&ignored);
    }
    take(&mut managers, &id, &comparison, force)?;

    // The time tells when something changed.
    if let (Some(mine), Some(last)) = (managers.get_mut(&id), last)
        && mine.set == last.set
        && equal(&old, &new)
    {
        mine.time = last.time;
    }
    if let Some(kind) = config.get("kind") {
        new["kind"] = kind.clone();
        new["apiVersion"] = config["apiVersion"].clone();
    }
    managed_fields::encode(&mut new, &managers);
    Ok(new)
}

/// Whether the configuration fits its type.
fn check(ty: Root<'_>, config: &Value) -> Result<(), Status> {
    let mut errors = Vec::new();
    validate(Schema::of(ty), config, "", &mut errors);
    let text = match &errors[..] {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("errors:\n{}", many.iter().map(|e| format!("  {e}")).collect::<Vec<_>>().join("\n")),
    };
    let api_version = config["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = config["kind"].as_str().unwrap_or_default();
    let (namespace, name) = (meta::namespace(config), meta::name(config));
    let about = format!("{namespace}/{name}; {group}/{version}, Kind={kind}");
    Err(plain_error(format!("failed to create typed patch object ({about}): {text}")))
}

/// The form in which the object will be stored; a nested error is the caller's to report when it decodes.
fn normalise(schema: Root<'_>, object: &mut Value) -> Result<(), Status> {
    match schema {
        Root::Table(ty) => schema::decode(ty, object, Strictness::Ignore).map(drop),
        // A custom resource has no other form than the one that was sent.
        Root::Custom(..) => Ok(()),
    }
}

/// Removes what this manager applied before and nobody owns now.
fn prune(root: Schema<'_>, merged: &Value, managers: &Managers, last: &FieldSet) -> Value {
    let named = |value: &Value| with_named(root, &field_set(root, value));
    let removed = |set: &FieldSet| remove_items(root, merged, set).unwrap_or_else(|| json!({}));
    let last = with_named(root, last);
    let all = named(merged);

    let pruned = removed(&last);
    let mut owned = FieldSet::default();
    for entry in managers.values() {
        owned.union(&entry.set);
    }
    let mut keep = named(&pruned);
    keep.union(&with_named(root, &owned));
    let pruned = removed(&all.difference(&keep));
    removed(&all.difference(&named(&pruned)).intersection(&last))
}

/// Takes changed fields from other managers, or refuses.
fn take(managers: &mut Managers, id: &str, comparison: &Comparison, force: bool) -> Result<(), Refused> {
    let mine = managers.remove(id);
    let mut changed = comparison.modified.clone();
    changed.union(&comparison.added);
    if !force {
        let conflicts: Vec<(Entry, FieldSet)> = managers
            .values()
            .map(|entry| (entry.clone(), entry.set.intersection(&changed)))
            .filter(|(_, set)| !set.is_empty())
            .collect();
        if !conflicts.is_empty() {
            return Err(Refused::Conflicts(conflicts));
        }
    }
    managed_fields::disown(managers, comparison);
    managers.extend(mine.filter(|m| !m.set.is_empty()).map(|m| (id.to_owned(), m)));
    Ok(())
}

/// 409: `Apply failed with 1 conflict: conflict with "m" using v1: .data.a`.
fn conflict(conflicts: &[(Entry, FieldSet)]) -> Status {
    let conflicts: Vec<(&Entry, Vec<String>)> = conflicts.iter().map(|(entry, set)| (entry, set.paths())).collect();
    let who = |entry: &Entry| {
        let mut text = format!("{:?}", entry.manager);
        if !entry.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", entry.subresource));
        }
        if !entry.applied {
            text.push_str(&format!(" using {}", entry.api_version));
        }
        text
    };
    let causes: Vec<Value> = conflicts
        .iter()
        .flat_map(|(entry, paths)| {
            let message = format!("conflict with {}", who(entry));
            paths.iter().map(move |path| json!({"reason": "FieldManagerConflict", "message": message, "field": path}))
        })
        .collect();
    let message = match &conflicts[..] {
        [(entry, paths)] if paths.len() == 1 => {
            format!("Apply failed with 1 conflict: conflict with {}: {}", who(entry), paths[0])
        }
        _ => {
            let lines = conflicts.iter().flat_map(|(entry, paths)| {
                std::iter::once(format!("conflicts with {}:", who(entry))).chain(paths.iter().map(|p| format!("- {p}")))
            });
            let lines: Vec<String> = lines.collect();
            format!("Apply failed with {} conflicts: {}", causes.len(), lines.join("\n"))
        }
    };
    let mut status = Status::new(409, "Conflict", message);
    status.details = json!({"causes": causes});
    status
}
