//! JSON patch (RFC 6902), with the leniencies of the library that kube-apiserver uses (evanphx/json-patch v4).

use serde_json::{Value, json};

use crate::api::Status;

/// More operations than this are refused (`handlers.maxJSONPatchOperations`).
pub const MAX_OPERATIONS: usize = 10_000;
/// How many bytes `copy` operations may add up to (the limit of a request body).
const MAX_COPIED: usize = 3 << 20;

/// Applies a JSON patch; on an error the object is unchanged.
///
/// # Errors
/// 400 when it is not a list of operations, 413 with too many of them, 422 when one cannot be applied.
pub fn json(object: &mut Value, patch: &Value) -> Result<(), Status> {
    let Value::Array(operations) = patch else {
        let what = match patch {
            Value::Object(_) => "object",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            _ => return Ok(()),
        };
        let text = format!("json: cannot unmarshal {what} into Go value of type jsonpatch.Patch");
        return Err(Status::bad_request(text));
    };
    if operations.len() > MAX_OPERATIONS {
        let text = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        );
        return Err(Status::new(413, "RequestEntityTooLarge", text));
    }
    if let Some(wrong) = operations.iter().find(|o| !o.is_object()) {
        let what = if wrong.is_string() { "string" } else { "value" };
        let text = format!("json: cannot unmarshal {what} into Go value of type jsonpatch.Operation");
        return Err(Status::bad_request(text));
    }
    let mut patched = object.clone();
    let mut copied = 0;
    for operation in operations {
        apply(&mut patched, operation, &mut copied).ok_or_else(rejected)?;
    }
    *object = patched;
    Ok(())
}

/// What a client sees of any operation that fails.
fn rejected() -> Status {
    let mut status = Status::new(422, "Invalid", "the server rejected our request due to an error in our request");
    status.details = json!({});
    status
}

fn apply(document: &mut Value, operation: &Value, copied: &mut usize) -> Option<()> {
    let path = operation["path"].as_str()?;
    match operation["op"].as_str()? {
        "add" => add(document, path, operation.get("value")?.clone()),
        "remove" => remove(document, path).map(drop),
        "replace" => {
            let slot = find_mut(document, path)?;
            *slot = operation.get("value")?.clone();
            Some(())
        }
        "move" => {
            let value = remove(document, operation["from"].as_str()?)?;
            add(document, path, value)
        }
        "copy" => {
            let value = find(document, operation["from"].as_str()?)?.clone();
            *copied += value.to_string().len();
            if *copied > MAX_COPIED {
                return None;
            }
            add(document, path, value)
        }
        "test" => {
            let expected = operation.get("value").unwrap_or(&Value::Null);
            match find(document, path) {
                Some(found) => equal(found, expected).then_some(()),
                None => expected.is_null().then_some(()),
            }
        }
        _ => None,
    }
}

/// Equality in which 1 and 1.0 are the same number.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64() && a.is_f64() != b.is_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

/// The parent's pointer and the last token, unescaped; `None` for the whole document.
fn split(path: &str) -> Option<(&str, String)> {
    let (parent, token) = path.rsplit_once('/')?;
    Some((parent, unescape(token)))
}

fn unescape(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

/// An index of an array of that length; negative ones count from the end.
fn index(token: &str, length: usize) -> Option<usize> {
    let number: i64 = token.parse().ok()?;
    let length = i64::try_from(length).ok()?;
    let number = if number < 0 { number + length } else { number };
    (0..length).contains(&number).then(|| usize::try_from(number).ok()).flatten()
}

fn find<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    tokens(path)?.try_fold(document, |value, token| match value {
        Value::Object(map) => map.get(&token),
        Value::Array(items) => items.get(index(&token, items.len())?),
        _ => None,
    })
}

fn find_mut<'a>(document: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    tokens(path)?.try_fold(document, |value, token| match value {
        Value::Object(map) => map.get_mut(&token),
        Value::Array(items) => {
            let index = index(&token, items.len())?;
            items.get_mut(index)
        }
        _ => None,
    })
}

fn tokens(path: &str) -> Option<impl Iterator<Item = String>> {
    if !path.is_empty() && !path.starts_with('/') {
        return None;
    }
    Some(path.split('/').skip(1).map(unescape))
}

fn add(document: &mut Value, path: &str, value: Value) -> Option<()> {
    let Some((parent, token)) = split(path) else {
        if path.is_empty() {
            *document = value;
            return Some(());
        }
        return None;
    };
    match find_mut(document, parent)? {
        Value::Object(map) => {
            map.insert(token, value);
        }
        Value::Array(items) if token == "-" => items.push(value),
        Value::Array(items) => {
            let at = index(&token, items.len() + 1)?;
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(document: &mut Value, path: &str) -> Option<Value> {
    let (parent, token) = split(path)?;
    match find_mut(document, parent)? {
        Value::Object(map) => map.remove(&token),
        Value::Array(items) => {
            let at = index(&token, items.len())?;
            Some(items.remove(at))
        }
        _ => None,
    }
}
