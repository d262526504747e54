//! YAML bodies, as `sigs.k8s.io/yaml` turns them to JSON: YAML 1.1 booleans, merge keys, duplicate keys told.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, Options};

use super::json::{Parsed, unrecognized};
use crate::api::Status;

thread_local! {
    /// Where the visitor notes duplicate keys: the parser's entry point takes no state.
    static DUPLICATES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Parses a YAML body.
///
/// # Errors
/// 400 as kube-apiserver words it; `kind` is the kind that the request should carry.
pub fn parse_yaml(bytes: &[u8], kind: &str) -> Result<Parsed, Status> {
    let mut options = Options::default();
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    options.legacy_octal_numbers = true;
    DUPLICATES.take();
    let parsed = serde_saphyr::from_slice_with_options::<Noted>(bytes, options);
    let duplicates = DUPLICATES.take();
    match parsed {
        Ok(Noted(value)) => Ok(Parsed { value, duplicates }),
        Err(error) => {
            let text = error.to_string();
            let why = text.lines().next().unwrap_or_default();
            Err(unrecognized(kind, &format!("yaml: {why}"), bytes))
        }
    }
}

struct Noted(Value);

impl<'de> Deserialize<'de> for Noted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        At(String::new()).deserialize(deserializer).map(Noted)
    }
}

/// A value at a path.
struct At(String);

impl<'de> DeserializeSeed<'de> for At {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // As JSON, 1.0 is 1.
        #[expect(clippy::cast_possible_truncation, reason = "the range was checked")]
        if value.fract() == 0.0 && value.abs() < 1e15 {
            return Ok((value as i64).into());
        }
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(At(format!("{}[{}]", self.0, items.len())))? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key_seed(At(String::new()))? {
            let key = match key {
                Value::String(text) => text,
                Value::Null => "null".to_owned(),
                Value::Array(_) | Value::Object(_) => {
                    return Err(serde::de::Error::custom("invalid map key: only scalars can be keys"));
                }
                other => other.to_string(),
            };
            let path = if self.0.is_empty() { key.clone() } else { format!("{}.{key}", self.0) };
            let value = access.next_value_seed(At(path.clone()))?;
            if map.insert(key, value).is_some() {
                DUPLICATES.with_borrow_mut(|all| all.push(format!("duplicate field {path:?}")));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn as_kubernetes_reads_it() {
        let parsed =
            parse_yaml(b"a: y\nb: 010\nc: 1.0\nd: \"no\"\ne: null\nf: &x {g: 1}\nh: {<<: *x, i: 2}\na: 1\n", "Pod");
        let parsed = parsed.expect("valid");
        assert_eq!(
            parsed.value,
            json!({"a": 1, "b": 8, "c": 1, "d": "no", "e": null, "f": {"g": 1}, "h": {"g": 1, "i": 2}})
        );
        assert_eq!(parsed.duplicates, ["duplicate field \"a\""]);
    }

    #[test]
    fn hostile() {
        let status = parse_yaml(b"a: b: c", "Pod").expect_err("not YAML");
        let text = "the object provided is unrecognized (must be of type Pod): yaml: ";
        assert!(status.message.starts_with(text) && status.message.ends_with("(613a20623a2063)"), "{}", status.message);
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(parse_yaml(bomb.as_bytes(), "Pod").is_err());
        assert!(parse_yaml("[".repeat(100_000).as_bytes(), "Pod").is_err());
    }
}
