//! Strategic merge patch (`apimachinery/pkg/util/strategicpatch`): lists of objects are merged by their merge keys,
//! and `$patch`, `$retainKeys`, `$deleteFromPrimitiveList/…` and `$setElementOrder/…` direct it.

use serde_json::{Map, Value};

use super::{go_print, plain_error};
use crate::api::Status;
use crate::api::schema::{Field, Kind, Shape, TypeId};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// Applies a strategic merge patch; on an error the object is unchanged.
///
/// # Errors
/// What kube-apiserver answers: 400 for malformed directives, 500 for what its library merely reports.
pub fn strategic(ty: TypeId, object: &mut Value, patch: &Value) -> Result<(), Status> {
    let Value::Object(patch) = patch else {
        return Err(Status::bad_request("invalid JSON document"));
    };
    let original = match &*object {
        Value::Object(map) => map.clone(),
        _ => Map::new(),
    };
    let merged = merge_map(original, patch.clone(), Schema::Struct(ty))?;
    *object = Value::Object(merged);
    Ok(())
}

/// What is known of a map in the document.
#[derive(Clone, Copy)]
enum Schema {
    /// It is an object of that type.
    Struct(TypeId),
    /// A map, or something that the table does not describe.
    Unknown,
}

/// How a field is patched.
#[derive(Clone, Copy)]
struct Meta {
    inner: Schema,
    merge: bool,
    replace: bool,
    key: &'static str,
}

impl Schema {
    fn field(self, name: &str) -> Meta {
        let field: Option<&'static Field> = match self {
            Self::Struct(ty) => ty.get().field(name),
            Self::Unknown => None,
        };
        let Some(field) = field else { return Meta { inner: Self::Unknown, merge: false, replace: false, key: "" } };
        let inner = match (field.kind, field.shape) {
            (Kind::Type(ty), Shape::One | Shape::List) => Self::Struct(ty),
            _ => Self::Unknown,
        };
        let markers = field.markers();
        let has = |strategy: &str| markers.patch_strategy.split(',').any(|s| s == strategy);
        Meta { inner, merge: has("merge"), replace: has("replace"), key: markers.patch_merge_key }
    }
}

fn bad_request(message: &str) -> Status {
    Status::bad_request(message)
}

fn bad_directive(directive: &Value, patch: &Object) -> Status {
    let patch = go_print(&Value::Object(patch.clone()));
    plain_error(format!("unknown patch type: {} in map: {patch}", go_print(directive)))
}

fn no_merge_key(item: &Object, key: &str) -> Status {
    plain_error(format!("map: {} does not contain declared merge key: {key}", go_print(&Value::Object(item.clone()))))
}

fn bad_type(expected: &str, found: &Value) -> Status {
    let found = match found {
        Value::Object(_) => "map[string]interface {}",
        Value::Array(_) => "[]interface {}",
        Value::String(_) => "string",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::Bool(_) => "bool",
        Value::Null => "<nil>",
    };
    plain_error(format!("expected a {expected}, but received a {found}"))
}

fn merge_map(mut original: Object, mut patch: Object, schema: Schema) -> Result<Object, Status> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Map::new()),
            _ => Err(bad_directive(directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, schema)?;
    for (key, mut value) in patch {
        let deletes = key.strip_prefix(DELETE_PREFIX).map(str::to_owned);
        let (key, delete_list) = (deletes.clone().unwrap_or(key), deletes.is_some());
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let Some(current) = original.get_mut(&key) else {
            if !delete_list {
                discard_nulls(&mut value);
                if let Some(value) = without_directives(value) {
                    original.insert(key, value);
                }
            }
            continue;
        };
        let meta = schema.field(&key);
        *current = match (current.take(), value) {
            (Value::Object(current), Value::Object(value)) if meta.replace => {
                drop(current);
                Value::Object(value)
            }
            (Value::Object(current), Value::Object(value)) => Value::Object(merge_map(current, value, meta.inner)?),
            (Value::Array(current), Value::Array(value)) if meta.merge || delete_list => {
                Value::Array(merge_list(current, value, meta, delete_list)?)
            }
            (current, _) if delete_list => current,
            (_, mut value) => {
                discard_nulls(&mut value);
                value
            }
        };
    }
    Ok(original)
}

/// `$retainKeys`: only these keys survive, and the patch may set no others.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Status> {
    const BAD: &str = "invalid patch format of retainKeys";
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(bad_request(BAD)) };
    let keeps = |key: &str| keys.iter().any(|k| k == key);
    let directs = |key: &str| key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX);
    if patch.iter().any(|(key, value)| !value.is_null() && !directs(key) && !keeps(key)) {
        return Err(bad_request(BAD));
    }
    original.retain(|key, _| keeps(key));
    Ok(())
}

/// `$setElementOrder/<list>`, together with the patch of the list.
fn set_element_orders(original: &mut Object, patch: &mut Object, schema: Schema) -> Result<(), Status> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(ORDER_PREFIX)).cloned().collect();
    for directive in directives {
        let order = match patch.remove(&directive) {
            Some(Value::Array(order)) => order,
            other => return Err(bad_type("[]interface {}", &other.unwrap_or_default())),
        };
        let key = &directive[ORDER_PREFIX.len()..];
        let meta = schema.field(key);
        let list = |value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(bad_type("[]interface {}", &other)),
        };
        let current = list(original.get(key).filter(|v| !v.is_null()).cloned())?;
        let changes = list(patch.remove(key))?;
        check_order(changes.as_deref().unwrap_or_default(), &order, meta.key)?;
        let server = current.clone().unwrap_or_default();
        let merged = match (current, changes) {
            (None, None) => continue,
            (Some(current), None) => current,
            (None, Some(changes)) => match without_directives(Value::Array(changes)) {
                Some(Value::Array(items)) => items,
                _ => continue,
            },
            (Some(current), Some(changes)) if meta.merge => merge_list(current, changes, meta, false)?,
            (Some(_), Some(changes)) => changes,
        };
        let (ours, theirs) = partition(merged, &order, meta.key)?;
        let sorted = in_order(ours, theirs, &order, &server, meta.key)?;
        original.insert(key.to_owned(), Value::Array(sorted));
    }
    Ok(())
}

/// The list's patch must be within the order, in that order.
fn check_order(changes: &[Value], order: &[Value], key: &str) -> Result<(), Status> {
    let mut next = 0;
    for item in changes {
        if item.get(DIRECTIVE).is_some_and(|d| d == "delete") {
            continue;
        }
        if !key.is_empty() && item.get(key).is_none() {
            return Err(item.as_object().map_or_else(|| bad_type("map", item), |map| no_merge_key(map, key)));
        }
        match order[next..].iter().position(|o| same(o, item, key)) {
            Some(at) => next += at + 1,
            None => {
                return Err(plain_error(format!(
                    "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                    go_print(&Value::Array(changes.to_vec())),
                    go_print(&Value::Array(order.to_vec()))
                )));
            }
        }
    }
    Ok(())
}

/// Whether two elements are the same: by the merge key, or as scalars.
fn same(a: &Value, b: &Value, key: &str) -> bool {
    if key.is_empty() { a == b } else { a.get(key).is_some() && a.get(key) == b.get(key) }
}

fn merge_list(original: Vec<Value>, patch: Vec<Value>, meta: Meta, delete_list: bool) -> Result<Vec<Value>, Status> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let mut both = original.iter().chain(&patch);
    if both.clone().any(Value::is_array) {
        return Err(Status::new(422, "Invalid", "lists of lists are not supported"));
    }
    let objects = both.clone().any(Value::is_object);
    if objects && !both.all(Value::is_object) {
        return Err(plain_error("list element types are not identical".to_owned()));
    }
    if !objects {
        if delete_list {
            return Ok(original.into_iter().filter(|item| !patch.contains(item)).collect());
        }
        let mut merged = Vec::with_capacity(original.len() + patch.len());
        for item in original.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        let (ours, theirs) = partition(merged, &patch, "")?;
        return in_order(ours, theirs, &patch, &original, "");
    }
    if meta.key.is_empty() {
        return Err(plain_error("cannot merge lists without merge key".to_owned()));
    }
    let (original, patch) = special_elements(original, patch, meta.key)?;
    let merged = merge_elements(original.clone(), &patch, meta)?;
    let (ours, theirs) = partition(merged, &patch, meta.key)?;
    in_order(ours, theirs, &patch, &original, meta.key)
}

/// Elements with `$patch`: deleted ones leave the original, and one `replace` replaces it all.
fn special_elements(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), Status> {
    let mut rest = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        let Value::Object(map) = &item else { continue };
        let Some(directive) = map.get(DIRECTIVE) else {
            rest.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let wanted = map.get(key).ok_or_else(|| no_merge_key(map, key))?;
                if let Some(keyless) = original.iter().filter_map(Value::as_object).find(|o| !o.contains_key(key)) {
                    return Err(no_merge_key(keyless, key));
                }
                original.retain(|o| o.get(key) != Some(wanted));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(plain_error("merging lists cannot yet be specified in the patch".to_owned())),
            _ => return Err(bad_directive(directive, map)),
        }
    }
    Ok(if replace { (rest, Vec::new()) } else { (original, rest) })
}

fn merge_elements(mut original: Vec<Value>, patch: &[Value], meta: Meta) -> Result<Vec<Value>, Status> {
    for item in patch {
        let Value::Object(map) = item else { continue };
        if !map.contains_key(meta.key) {
            return Err(no_merge_key(map, meta.key));
        }
        let found = original.iter_mut().find(|o| same(o, item, meta.key));
        if let Some(found) = found {
            let current = match found.take() {
                Value::Object(current) => current,
                _ => Map::new(),
            };
            *found = Value::Object(merge_map(current, map.clone(), meta.inner)?);
        } else {
            let mut item = item.clone();
            discard_nulls(&mut item);
            original.extend(without_directives(item));
        }
    }
    Ok(original)
}

/// Those that `order` has, and those that only the server has.
fn partition(items: Vec<Value>, order: &[Value], key: &str) -> Result<(Vec<Value>, Vec<Value>), Status> {
    if !key.is_empty() {
        let keyless = items.iter().chain(order).find(|item| item.get(key).is_none());
        if let Some(item) = keyless {
            return Err(item.as_object().map_or_else(|| bad_type("map", item), |map| no_merge_key(map, key)));
        }
    }
    Ok(items.into_iter().partition(|item| order.iter().any(|o| same(o, item, key))))
}

/// Sorts the patch's items by its order and weaves the server's in where they were.
fn in_order(
    mut ours: Vec<Value>,
    theirs: Vec<Value>,
    order: &[Value],
    server: &[Value],
    key: &str,
) -> Result<Vec<Value>, Status> {
    let place = |list: &[Value], item: &Value| list.iter().position(|o| same(o, item, key));
    ours.sort_by_key(|item| place(order, item));
    let mut merged = Vec::with_capacity(ours.len() + theirs.len());
    let mut ours = ours.into_iter().peekable();
    for item in theirs {
        let at = place(server, &item);
        // A server's item comes first only where both are known and it stood before.
        while let Some(next) = ours.peek() {
            let before = matches!((at, place(server, next)), (Some(mine), Some(next)) if mine < next);
            if before {
                break;
            }
            merged.extend(ours.next());
        }
        merged.push(item);
    }
    merged.extend(ours);
    Ok(merged)
}

/// Null means absent, at every depth of what is new.
fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// What is new without its directives; `None` when the whole is one (`removeDirectives`).
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(mut map) => {
            match map.remove(DIRECTIVE) {
                Some(directive) if directive == "delete" => return None,
                _ => {}
            }
            let cleaned = map
                .into_iter()
                .filter(|(k, _)| k != RETAIN_KEYS && !k.starts_with(DELETE_PREFIX) && !k.starts_with(ORDER_PREFIX));
            Some(Value::Object(cleaned.filter_map(|(k, v)| Some((k, without_directives(v)?))).collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}
