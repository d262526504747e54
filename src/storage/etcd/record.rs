//! How objects lie in etcd: under the cluster's prefix and the key; the value is a line that says where the revision belongs
//! (etcd itself knows it), and the JSON without it.

use std::sync::Arc;

use etcd_client::KeyValue;

use super::super::{Body, Entry, Error};

/// What the first line begins with; the number of JSON bytes before the revision follows.
const MARK: &[u8] = b"mini 1 ";

/// The value of an object.
pub fn encode(body: &Body) -> Vec<u8> {
    let mut value = MARK.to_vec();
    value.extend_from_slice(body.before.len().to_string().as_bytes());
    value.push(b'\n');
    value.extend_from_slice(&body.before);
    value.extend_from_slice(&body.after);
    value
}

/// The object of a value; `None` when it was not written by mini.
pub fn decode(value: &[u8]) -> Option<Body> {
    let rest = value.strip_prefix(MARK)?;
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let (digits, json) = (&rest[..end], &rest[end + 1..]);
    let at: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let (before, after) = json.split_at_checked(at)?;
    Some(Body { before: before.to_vec().into(), after: after.to_vec().into() })
}

/// The entry of a pair, as of the pair's last change.
pub fn entry(prefix: &str, pair: &KeyValue) -> Result<Entry, Error> {
    let revision = u64::try_from(pair.mod_revision()).unwrap_or_default();
    entry_at(prefix, pair.key(), pair.value(), revision)
}

/// The entry of a key and a value, as of a revision. What is no JSON is refused here: nobody looks again.
pub fn entry_at(prefix: &str, key: &[u8], value: &[u8], revision: u64) -> Result<Entry, Error> {
    let (key, body) = parts(prefix, key, value)?;
    let json = body.at(revision);
    serde_json::from_slice::<serde::de::IgnoredAny>(&json).map_err(|_| foreign(&key))?;
    Ok(Entry::new(key, revision, json))
}

/// The key without the prefix, and the object.
pub fn parts(prefix: &str, key: &[u8], value: &[u8]) -> Result<(Arc<str>, Body), Error> {
    let full = String::from_utf8_lossy(key);
    let key = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(prefix)).ok_or_else(|| foreign(&full))?;
    let body = decode(value).ok_or_else(|| foreign(&full))?;
    Ok((key.into(), body))
}

fn foreign(key: &str) -> Error {
    Error::Backend(format!("etcd: the key {key} was not written by mini"))
}

/// The first key and the one behind the last of everything below `below`, after the key `after`.
pub fn range(prefix: &str, below: &str, after: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    // Every key begins with a slash: what else begins with our prefix is somebody else's.
    let below = if below.is_empty() { "/" } else { below };
    let first = format!("{prefix}{below}").into_bytes();
    let start = match after.map(|after| format!("{prefix}{after}").into_bytes()) {
        // The smallest key behind `after`.
        Some(mut after) if after >= first => {
            after.push(0);
            after
        }
        _ => first.clone(),
    };
    (start, behind(first))
}

/// The smallest text that is greater than all that begin with `prefix`; etcd's `\0` ("to the end") when there is none.
fn behind(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if last < 0xff {
            prefix.push(last + 1);
            return prefix;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_and_foreign_ones_are_refused() {
        let body = Body { before: "{\"a\":\"".into(), after: "\"}".into() };
        let value = encode(&body);
        assert_eq!(value, b"mini 1 6\n{\"a\":\"\"}");
        let back = decode(&value).expect("it was written above");
        assert_eq!((back.before, back.after), (body.before, body.after));
        for foreign in ["", "mini 1 ", "mini 1 x\n{}", "mini 1 9\n{}", "k8s\0\n", "mini 1 -1\n{}", "mini 2 0\n{}"] {
            assert!(decode(foreign.as_bytes()).is_none(), "{foreign:?}");
        }
    }

    #[test]
    fn entries_are_json_below_the_prefix() {
        let entry = |key: &str, value: &str| entry_at("/r", key.as_bytes(), value.as_bytes(), 7);
        let good = entry("/r/a", "mini 1 6\n{\"a\":\"\"}").expect("it is ours");
        assert_eq!((&*good.key, &*good.json), ("/a", &b"{\"a\":\"7\"}"[..]));
        for (key, value) in [
            ("/other/a", "mini 1 6\n{\"a\":\"\"}"),
            ("/r/a", "mini 1 3\nno JSON"),
            ("/r/a", "mini 1 6\n{\"a\":\"\""),
            ("/r/a", "mini 1 1\n{"),
            ("/r/a", ""),
        ] {
            assert!(entry(key, value).is_err(), "{key} {value:?}");
        }
    }

    #[test]
    fn ranges_are_what_begins_with_the_prefix() {
        let text = |(start, end): (Vec<u8>, Vec<u8>)| (String::from_utf8(start), String::from_utf8(end));
        let expect = |start: &str, end: &str| (Ok(start.to_owned()), Ok(end.to_owned()));
        assert_eq!(text(range("/r", "/a/", None)), expect("/r/a/", "/r/a0"));
        assert_eq!(text(range("/r", "", None)), expect("/r/", "/r0"));
        assert_eq!(text(range("/r", "/a/", Some("/a/b"))), expect("/r/a/b\0", "/r/a0"));
        assert_eq!(text(range("/r", "/b/", Some("/a/b"))), expect("/r/b/", "/r/b0"), "not before the prefix");
        assert_eq!(behind(vec![0x61, 0xff]), vec![0x62]);
        assert_eq!(behind(vec![0xff]), vec![0]);
    }
}
