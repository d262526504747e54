//! Kubernetes' list library: `isSorted`, `sum`, `min`, `max`, `indexOf`, `lastIndexOf`.

use std::cmp::Ordering;

use jiff::SignedDuration;

use super::Answer;
use crate::api::cel::eval::{Error, Evaluated, Machine};
use crate::api::cel::value::{List, Value};

pub(super) fn call<'a>(machine: &mut Machine<'a>, function: &str, _: bool, args: &[Value<'a>]) -> Answer<'a> {
    let [Value::List(list), rest @ ..] = args else { return None };
    let known = ["isSorted", "sum", "min", "max", "indexOf", "lastIndexOf"].contains(&function);
    if !known {
        return None;
    }
    if let Err(error) = machine.charge(list.len() as u64) {
        return Some(Err(error));
    }
    Some(match (function, rest) {
        ("isSorted", []) => is_sorted(list),
        ("sum", []) => sum(list),
        ("min", []) => extreme(list, Ordering::Less),
        ("max", []) => extreme(list, Ordering::Greater),
        ("indexOf", [value]) => index_of(machine, list, value, false),
        ("lastIndexOf", [value]) => index_of(machine, list, value, true),
        _ => return None,
    })
}

fn is_sorted<'a>(list: &List<'a>) -> Evaluated<'a> {
    let mut last: Option<Value<'a>> = None;
    for item in list.iter() {
        if let Some(last) = &last {
            match last.compare(&item) {
                None => return Err(Error::overload()),
                Some(Ordering::Greater) => return Ok(Value::Bool(false)),
                Some(_) => {}
            }
        }
        last = Some(item);
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(list: &List<'a>) -> Evaluated<'a> {
    let mut total: Option<Value<'a>> = None;
    for item in list.iter() {
        total = Some(match (total, item) {
            (None, item @ (Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::Duration(_))) => item,
            (Some(Value::Int(a)), Value::Int(b)) => {
                Value::Int(a.checked_add(b).ok_or_else(|| Error::new("integer overflow"))?)
            }
            (Some(Value::Uint(a)), Value::Uint(b)) => {
                Value::Uint(a.checked_add(b).ok_or_else(|| Error::new("unsigned integer overflow"))?)
            }
            (Some(Value::Double(a)), Value::Double(b)) => Value::Double(a + b),
            (Some(Value::Duration(a)), Value::Duration(b)) => {
                Value::Duration(SignedDuration::checked_add(a, b).ok_or_else(|| Error::new("duration overflow"))?)
            }
            _ => return Err(Error::overload()),
        });
    }
    Ok(total.unwrap_or(Value::Int(0)))
}

fn extreme<'a>(list: &List<'a>, wanted: Ordering) -> Evaluated<'a> {
    let mut best: Option<Value<'a>> = None;
    for item in list.iter() {
        let better = match &best {
            None => true,
            Some(best) => item.compare(best).ok_or_else(Error::overload)? == wanted,
        };
        if better {
            best = Some(item);
        }
    }
    let name = if wanted == Ordering::Less { "min" } else { "max" };
    best.ok_or_else(|| Error::new(format!("{name} called on empty list")))
}

fn index_of<'a>(machine: &mut Machine<'a>, list: &List<'a>, value: &Value<'a>, last: bool) -> Evaluated<'a> {
    let mut found = -1;
    for (place, item) in list.iter().enumerate() {
        if machine.equals(&item, value)? {
            found = i64::try_from(place).unwrap_or(i64::MAX);
            if !last {
                break;
            }
        }
    }
    Ok(Value::Int(found))
}
