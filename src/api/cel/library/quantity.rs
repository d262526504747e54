//! Kubernetes' quantities.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Answer, tenth};
use crate::api::cel::eval::{Error, Machine};
use crate::api::cel::value::Value;
use crate::api::quantity::{Format, Quantity};

pub(super) fn call<'a>(machine: &mut Machine<'a>, function: &str, method: bool, args: &[Value<'a>]) -> Answer<'a> {
    if let ("quantity" | "isQuantity", false, [Value::String(text)]) = (function, method, args) {
        if let Err(error) = machine.charge(tenth(text.len() as u64)) {
            return Some(Err(error));
        }
        let parsed = text.parse::<Quantity>();
        return Some(match (function, parsed) {
            ("isQuantity", parsed) => Ok(Value::Bool(parsed.is_ok())),
            (_, Ok(quantity)) => Ok(Value::Quantity(Arc::new(quantity))),
            (_, Err(error)) => Err(Error::new(error.to_string())),
        });
    }
    let [Value::Quantity(quantity), rest @ ..] = args else { return None };
    let number = |order: Ordering| Value::Int(order as i64);
    Some(Ok(match (function, rest) {
        ("sign", []) => number(quantity.nanos().cmp(&0)),
        ("isInteger", []) => {
            Value::Bool(quantity.is_integer() && i64::try_from(quantity.nanos() / 1_000_000_000).is_ok())
        }
        ("asInteger", []) if quantity.is_integer() => Value::Int(quantity.value()),
        ("asInteger", []) => return Some(Err(Error::new("cannot convert value to integer"))),
        ("asApproximateFloat", []) => Value::Double(quantity.as_f64()),
        ("compareTo", [Value::Quantity(other)]) => number(quantity.cmp(other)),
        ("isGreaterThan", [Value::Quantity(other)]) => Value::Bool(quantity > other),
        ("isLessThan", [Value::Quantity(other)]) => Value::Bool(quantity < other),
        ("add", [Value::Quantity(other)]) => Value::Quantity(Arc::new(**quantity + **other)),
        ("sub", [Value::Quantity(other)]) => Value::Quantity(Arc::new(**quantity - **other)),
        ("add", [Value::Int(other)]) => Value::Quantity(Arc::new(**quantity + units(*other))),
        ("sub", [Value::Int(other)]) => Value::Quantity(Arc::new(**quantity - units(*other))),
        _ => return None,
    }))
}

fn units(number: i64) -> Quantity {
    Quantity::from_units(number, Format::DecimalSi)
}
