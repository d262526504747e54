//! `metadata.managedFields`: who owns which field, kept on every write (`apimachinery/pkg/util/managedfields`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::field_set::FieldSet;
use super::typed::{Comparison, Schema, compare};
use crate::api::meta;
use crate::api::schema::{self, Root, Strictness, format_time, parse_time};

/// At most this many managers that update are told apart; older ones are merged.
const MAX_UPDATE_MANAGERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// Who writes, where and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The manager: `fieldManager`, or what the `User-Agent` begins with.
    pub manager: &'a str,
    /// The subresource that is written; empty for the object itself.
    pub subresource: &'a str,
    /// The API version of the request, such as `apps/v1`.
    pub api_version: &'a str,
    /// The time of the request.
    pub now: Timestamp,
}

/// One manager's entry.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) manager: String,
    pub(super) applied: bool,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: String,
    pub(super) set: FieldSet,
}

impl Entry {
    pub(super) fn new(writer: &Writer<'_>, applied: bool, set: FieldSet) -> Self {
        Self {
            manager: writer.manager.to_owned(),
            applied,
            api_version: writer.api_version.to_owned(),
            subresource: writer.subresource.to_owned(),
            time: format_time(writer.now, false),
            set,
        }
    }

    /// What tells managers apart: those that apply are one whatever the version.
    pub(super) fn id(&self) -> String {
        let mut id = format!("{{\"manager\":{:?}", self.manager);
        id.push_str(if self.applied { ",\"operation\":\"Apply\"" } else { ",\"operation\":\"Update\"" });
        if !self.applied {
            id.push_str(&format!(",\"apiVersion\":{:?}", self.api_version));
        }
        if !self.subresource.is_empty() {
            id.push_str(&format!(",\"subresource\":{:?}", self.subresource));
        }
        id.push('}');
        id
    }

    fn from_json(json: &Value) -> Option<Self> {
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        let applied = match json["operation"].as_str()? {
            "Apply" => true,
            "Update" => false,
            _ => return None,
        };
        let set = match &json["fieldsV1"] {
            Value::Null => FieldSet::default(),
            fields => FieldSet::from_json(fields)?,
        };
        let (manager, api_version) = (text("manager"), text("apiVersion"));
        Some(Self { manager, applied, api_version, subresource: text("subresource"), time: text("time"), set })
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager,
            "operation": if self.applied { "Apply" } else { "Update" },
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.set.to_json(),
        });
        if !self.time.is_empty() {
            entry["time"] = self.time.as_str().into();
        }
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.as_str().into();
        }
        entry
    }
}

/// All managers of an object by [`Entry::id`].
pub(super) type Managers = BTreeMap<String, Entry>;

/// The managers of an object; `None` when the field is malformed.
pub(super) fn decode(object: &Value) -> Option<Managers> {
    let Some(entries) = object["metadata"]["managedFields"].as_array() else { return Some(Managers::new()) };
    entries.iter().map(|json| Entry::from_json(json).map(|entry| (entry.id(), entry))).collect()
}

/// Writes them, or removes the field when there are none.
pub(super) fn encode(object: &mut Value, managers: &Managers) {
    let mut entries: Vec<&Entry> = managers.values().collect();
    entries.sort_by_key(|e| {
        let seconds = parse_time(&e.time).map_or(0, Timestamp::as_second);
        (!e.applied, seconds, &e.manager, &e.api_version, &e.subresource)
    });
    let entries: Vec<Value> = entries.into_iter().map(Entry::to_json).collect();
    let metadata = meta::metadata_mut(object);
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), entries.into());
    }
}

/// The object without its managers.
pub(super) fn without(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// What a new object is compared with: what Go writes for the zero value.
pub(super) fn empty(schema: Root<'_>) -> Value {
    let mut object = json!({});
    let Root::Table(ty) = schema else { return object };
    if schema::decode(ty, &mut object, Strictness::Ignore).is_err() {
        object = json!({});
    }
    object
}

/// Fields that nobody owns.
pub(super) fn stripped() -> FieldSet {
    let fields = json!({"f:apiVersion": {}, "f:kind": {}, "f:metadata": {".": {}, "f:name": {}, "f:namespace": {},
        "f:creationTimestamp": {}, "f:selfLink": {}, "f:uid": {}, "f:clusterName": {}, "f:generation": {},
        "f:managedFields": {}, "f:resourceVersion": {}}});
    FieldSet::from_json(&fields).expect("it is well-formed")
}

/// Fields that the endpoint does not let through (`GetResetFields`).
pub(super) fn reset(schema: Root<'_>, subresource: &str) -> FieldSet {
    let status_apart = match schema {
        Root::Table(ty) => ty.get().field("status").is_some(),
        Root::Custom(_, status) => status,
    };
    let fields = match subresource {
        "" if status_apart => json!({"f:status": {}}),
        "status" => json!({"f:spec": {}}),
        _ => json!({}),
    };
    FieldSet::from_json(&fields).expect("it is well-formed")
}

/// Takes what a write changed or removed from its other owners.
pub(super) fn disown(managers: &mut Managers, comparison: &Comparison) {
    let mut changed = comparison.modified.clone();
    changed.union(&comparison.added);
    for entry in managers.values_mut() {
        entry.set = entry.set.difference(&changed).difference(&comparison.removed);
    }
    managers.retain(|_, entry| !entry.set.is_empty());
}

/// Keeps `metadata.managedFields` of an ordinary write (create, update, patches other than apply): what it changed
/// belongs to the writer now. Call it when the object is as it will be stored. `live` is the stored object.
pub fn update<'a>(schema: impl Into<Root<'a>>, live: Option<&Value>, object: &mut Value, writer: &Writer<'_>) {
    let ty: Root<'a> = schema.into();
    let sent = &object["metadata"]["managedFields"];
    let reset_asked =
        sent.as_array().is_some_and(|entries| matches!(&entries[..], [one] if one == &json!({}) || is_blank(one)));
    let from_live = || live.and_then(decode).unwrap_or_default();
    let mut managers = if !writer.subresource.is_empty() {
        from_live()
    } else if reset_asked {
        Managers::new()
    } else {
        decode(object).filter(|m| !m.is_empty()).unwrap_or_else(from_live)
    };
    if managers.is_empty() && live.is_some() {
        // Nobody tracked it before, or the request wants it so.
        encode(object, &managers);
        return;
    }
    let old = live.map_or_else(|| empty(ty), without);
    record_update(ty, &old, &without(object), &mut managers, writer);
    encode(object, &managers);
}

/// An entry of nothing but zero values.
fn is_blank(entry: &Value) -> bool {
    entry.as_object().is_some_and(|map| map.values().all(|v| v.is_null() || v == ""))
}

/// Records an update from one object to another.
pub(super) fn record_update(ty: Root<'_>, old: &Value, new: &Value, managers: &mut Managers, writer: &Writer<'_>) {
    let ignored = reset(ty, writer.subresource);
    let mut comparison = compare(Schema::of(ty), old, new);
    for set in [&mut comparison.added, &mut comparison.modified, &mut comparison.removed] {
        *set = set.without_trees(&ignored);
    }
    disown(managers, &comparison);
    let mut taken = comparison.modified;
    taken.union(&comparison.added);
    let taken = taken.difference(&stripped());
    if taken.is_empty() {
        return;
    }
    let mut entry = Entry::new(writer, false, taken);
    if let Some(previous) = managers.get(&entry.id()) {
        entry.set.union(&previous.set);
    }
    managers.insert(entry.id(), entry);
    cap(managers);
}

/// Merges the oldest updaters when there are too many.
fn cap(managers: &mut Managers) {
    loop {
        let mut updaters: Vec<(&String, &Entry)> =
            managers.iter().filter(|(_, e)| !e.applied && e.subresource.is_empty()).collect();
        if updaters.len() <= MAX_UPDATE_MANAGERS {
            return;
        }
        updaters.sort_by(|a, b| (&a.1.time, a.0).cmp(&(&b.1.time, b.0)));
        let oldest = updaters.iter().find(|(_, e)| e.manager != ANCIENT).map(|(id, _)| (*id).clone());
        let Some(mut entry) = oldest.and_then(|id| managers.remove(&id)) else { return };
        entry.manager = ANCIENT.to_owned();
        if let Some(ancient) = managers.get(&entry.id()) {
            entry.set.union(&ancient.set);
            // One fewer now; the other versions have buckets of their own.
        }
        let grew = !managers.contains_key(&entry.id());
        managers.insert(entry.id(), entry);
        if grew && managers.values().filter(|e| e.manager == ANCIENT).count() >= MAX_UPDATE_MANAGERS {
            return;
        }
    }
}
