//! `sets.contains`, `sets.equivalent`, `sets.intersects` on lists.

use super::Answer;
use crate::api::cel::eval::{Error, Machine};
use crate::api::cel::value::{List, Value};

pub(super) fn call<'a>(machine: &mut Machine<'a>, function: &str, _: bool, args: &[Value<'a>]) -> Answer<'a> {
    let [Value::List(a), Value::List(b)] = args else { return None };
    let result = match function {
        "sets.contains" => has_all(machine, a, b),
        "sets.equivalent" => match has_all(machine, a, b) {
            Ok(true) => has_all(machine, b, a),
            other => other,
        },
        "sets.intersects" => intersects(machine, a, b),
        _ => return None,
    };
    Some(result.map(Value::Bool))
}

fn has<'a>(machine: &mut Machine<'a>, list: &List<'a>, value: &Value<'a>) -> Result<bool, Error> {
    for item in list.iter() {
        if machine.equals(&item, value)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_all<'a>(machine: &mut Machine<'a>, list: &List<'a>, wanted: &List<'a>) -> Result<bool, Error> {
    for item in wanted.iter() {
        if !has(machine, list, &item)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn intersects<'a>(machine: &mut Machine<'a>, a: &List<'a>, b: &List<'a>) -> Result<bool, Error> {
    for item in a.iter() {
        if has(machine, b, &item)? {
            return Ok(true);
        }
    }
    Ok(false)
}
