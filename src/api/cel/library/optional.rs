//! Optional values.

use super::Answer;
use crate::api::cel::eval::{Error, Machine};
use crate::api::cel::value::Value;

pub(super) fn call<'a>(_: &mut Machine<'a>, function: &str, _: bool, args: &[Value<'a>]) -> Answer<'a> {
    Some(Ok(match (function, args) {
        ("optional.none", []) => Value::Optional(None),
        ("optional.of", [value]) => Value::optional(Some(value.clone())),
        ("optional.ofNonZeroValue", [value]) => Value::optional(Some(value.clone()).filter(|value| !value.is_zero())),
        ("hasValue", [Value::Optional(value)]) => Value::Bool(value.is_some()),
        ("value", [Value::Optional(value)]) => match value {
            Some(value) => (**value).clone(),
            None => return Some(Err(Error::new("optional.none() dereference"))),
        },
        ("or", [Value::Optional(value), other @ Value::Optional(_)]) => match value {
            Some(_) => args[0].clone(),
            None => other.clone(),
        },
        ("orValue", [Value::Optional(value), other]) => match value {
            Some(value) => (**value).clone(),
            None => other.clone(),
        },
        _ => return None,
    }))
}
