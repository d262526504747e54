//! Operators, conversions and the functions of every type (CEL specification, "Standard Definitions").

use std::cmp::Ordering;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::time::{format_duration, parse_duration};
use super::{Answer, tenth};
use crate::api::cel::eval::{Error, Evaluated, Machine};
use crate::api::cel::value::{Key, Text, Value};
use crate::api::schema::parse_time;

pub(super) fn call<'a>(machine: &mut Machine<'a>, function: &str, method: bool, args: &[Value<'a>]) -> Answer<'a> {
    Some(match (function, args) {
        ("_==_", [a, b]) => machine.equals(a, b).map(Value::Bool),
        ("_!=_", [a, b]) => machine.equals(a, b).map(|equal| Value::Bool(!equal)),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => compare(machine, function, a, b),
        ("_+_", [a, b]) => add(machine, a, b),
        ("_-_" | "_*_" | "_/_" | "_%_", [a, b]) => arithmetic(function, a, b),
        ("!_", [Value::Bool(flag)]) => Ok(Value::Bool(!flag)),
        ("-_", [Value::Int(number)]) => number.checked_neg().map(Value::Int).ok_or_else(overflow),
        ("-_", [Value::Double(number)]) => Ok(Value::Double(-number)),
        ("-_", [Value::Duration(duration)]) => duration.checked_neg().map(Value::Duration).ok_or_else(overflow),
        ("@in", [value, container]) => contains(machine, value, container),
        ("size", [value]) => size(machine, value),
        ("type", [value]) => Ok(Value::Type(value.type_name())),
        ("dyn", [value]) => Ok(value.clone()),
        ("int" | "uint" | "double" | "string" | "bytes" | "bool" | "timestamp" | "duration", [value]) if !method => {
            convert(machine, function, value)
        }
        _ => return None,
    })
}

fn overflow() -> Error {
    Error::new("integer overflow")
}

fn compare<'a>(machine: &mut Machine<'a>, function: &str, a: &Value<'a>, b: &Value<'a>) -> Evaluated<'a> {
    if let (Value::String(_) | Value::Bytes(_), Value::String(_) | Value::Bytes(_)) = (a, b) {
        machine.charge(tenth(a.size().min(b.size())))?;
    }
    let not_a_number = matches!(a, Value::Double(n) if n.is_nan()) || matches!(b, Value::Double(n) if n.is_nan());
    let Some(order) = a.compare(b) else {
        return if not_a_number { Ok(Value::Bool(false)) } else { Err(Error::overload()) };
    };
    Ok(Value::Bool(match function {
        "_<_" => order == Ordering::Less,
        "_<=_" => order != Ordering::Greater,
        "_>_" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    }))
}

fn add<'a>(machine: &mut Machine<'a>, a: &Value<'a>, b: &Value<'a>) -> Evaluated<'a> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.checked_add(*b).map(Value::Int).ok_or_else(overflow),
        (Value::Uint(a), Value::Uint(b)) => {
            a.checked_add(*b).map(Value::Uint).ok_or_else(|| Error::new("unsigned integer overflow"))
        }
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (Value::String(a), Value::String(b)) => {
            machine.charge(tenth((a.len() + b.len()) as u64))?;
            Ok(Value::text(format!("{}{}", &**a, &**b)))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            machine.charge(tenth((a.len() + b.len()) as u64))?;
            Ok(Value::Bytes(a.iter().chain(b.iter()).copied().collect()))
        }
        (Value::List(a), Value::List(b)) => {
            machine.charge((a.len() + b.len()) as u64)?;
            Ok(Value::list(a.concat(b)))
        }
        (Value::Timestamp(time), Value::Duration(by)) | (Value::Duration(by), Value::Timestamp(time)) => {
            time.checked_add(*by).map(Value::Timestamp).map_err(|_| Error::new("timestamp overflow"))
        }
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(|| Error::new("duration overflow"))
        }
        _ => Err(Error::overload()),
    }
}

fn arithmetic<'a>(function: &str, a: &Value<'a>, b: &Value<'a>) -> Evaluated<'a> {
    match (function, a, b) {
        ("_/_", Value::Int(_), Value::Int(0)) | ("_/_", Value::Uint(_), Value::Uint(0)) => {
            Err(Error::new("division by zero"))
        }
        ("_%_", Value::Int(_), Value::Int(0)) | ("_%_", Value::Uint(_), Value::Uint(0)) => {
            Err(Error::new("modulus by zero"))
        }
        (_, Value::Int(a), Value::Int(b)) => match function {
            "_-_" => a.checked_sub(*b),
            "_*_" => a.checked_mul(*b),
            "_/_" => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Int)
        .ok_or_else(overflow),
        (_, Value::Uint(a), Value::Uint(b)) => match function {
            "_-_" => a.checked_sub(*b),
            "_*_" => a.checked_mul(*b),
            "_/_" => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Uint)
        .ok_or_else(|| Error::new("unsigned integer overflow")),
        ("_-_", Value::Double(a), Value::Double(b)) => Ok(Value::Double(a - b)),
        ("_*_", Value::Double(a), Value::Double(b)) => Ok(Value::Double(a * b)),
        ("_/_", Value::Double(a), Value::Double(b)) => Ok(Value::Double(a / b)),
        ("_-_", Value::Timestamp(time), Value::Duration(by)) => {
            time.checked_sub(*by).map(Value::Timestamp).map_err(|_| Error::new("timestamp overflow"))
        }
        ("_-_", Value::Timestamp(a), Value::Timestamp(b)) => Ok(Value::Duration(a.duration_since(*b))),
        ("_-_", Value::Duration(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(|| Error::new("duration overflow"))
        }
        _ => Err(Error::overload()),
    }
}

fn contains<'a>(machine: &mut Machine<'a>, value: &Value<'a>, container: &Value<'a>) -> Evaluated<'a> {
    match container {
        Value::List(list) => {
            for element in list.iter() {
                if machine.equals(value, &element)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        Value::Map(map) => Ok(Value::Bool(Key::of(value).is_some_and(|key| map.get(&key).is_some()))),
        _ => Err(Error::overload()),
    }
}

fn size<'a>(machine: &mut Machine<'a>, value: &Value<'a>) -> Evaluated<'a> {
    let size = match value {
        Value::String(text) => {
            machine.charge(tenth(text.len() as u64))?;
            text.chars().count()
        }
        Value::Bytes(bytes) => bytes.len(),
        Value::List(list) => list.len(),
        Value::Map(map) => map.len(),
        _ => return Err(Error::overload()),
    };
    Ok(Value::Int(i64::try_from(size).unwrap_or(i64::MAX)))
}

fn convert<'a>(machine: &mut Machine<'a>, to: &str, value: &Value<'a>) -> Evaluated<'a> {
    if let Value::String(_) | Value::Bytes(_) = value {
        machine.charge(tenth(value.size()))?;
    }
    let wrong = |text: &str| Error::new(format!("type conversion error from 'string' to '{to}': {text:?}"));
    let out_of_range = || Error::new(format!("type conversion error: value out of range of {to}"));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "ranges are checked"
    )]
    Ok(match (to, value) {
        ("int", Value::Int(_)) | ("uint", Value::Uint(_)) | ("double", Value::Double(_)) | ("bool", Value::Bool(_)) => {
            value.clone()
        }
        ("string", Value::String(_)) | ("bytes", Value::Bytes(_)) => value.clone(),
        ("timestamp", Value::Timestamp(_)) | ("duration", Value::Duration(_)) => value.clone(),
        ("int", Value::Uint(number)) => Value::Int(i64::try_from(*number).map_err(|_| out_of_range())?),
        ("int", Value::Double(number)) if number.abs() < 9.223_372_036_854_775e18 => Value::Int(*number as i64),
        ("int" | "uint", Value::Double(number)) if to == "int" || !(0.0..1.844_674_407_370_955e19).contains(number) => {
            return Err(out_of_range());
        }
        ("uint", Value::Double(number)) => Value::Uint(*number as u64),
        ("int", Value::String(text)) => Value::Int(text.parse().map_err(|_| wrong(text))?),
        ("int", Value::Timestamp(time)) => Value::Int(time.as_second()),
        ("int", Value::Duration(duration)) => {
            Value::Int(i64::try_from(duration.as_nanos()).map_err(|_| out_of_range())?)
        }
        ("uint", Value::Int(number)) => Value::Uint(u64::try_from(*number).map_err(|_| out_of_range())?),
        ("uint", Value::String(text)) => Value::Uint(text.parse().map_err(|_| wrong(text))?),
        ("double", Value::Int(number)) => Value::Double(*number as f64),
        ("double", Value::Uint(number)) => Value::Double(*number as f64),
        ("double", Value::String(text)) => Value::Double(text.parse().map_err(|_| wrong(text))?),
        ("bool", Value::String(text)) => Value::Bool(match &**text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
            "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
            other => return Err(wrong(other)),
        }),
        ("string", Value::Bytes(bytes)) => {
            let text = std::str::from_utf8(bytes)
                .map_err(|_| Error::new("invalid UTF-8 in bytes, cannot convert to string"))?;
            Value::text(text)
        }
        ("string", other) => Value::text(plain(other).ok_or_else(Error::overload)?),
        ("bytes", Value::String(text)) => Value::Bytes(text.as_bytes().into()),
        ("timestamp", Value::String(text)) => Value::Timestamp(parse_time(text).ok_or_else(|| wrong(text))?),
        ("timestamp", Value::Int(seconds)) => {
            Value::Timestamp(Timestamp::from_second(*seconds).map_err(|_| Error::new("timestamp overflow"))?)
        }
        ("duration", Value::String(text)) => Value::Duration(parse_duration(text).ok_or_else(|| wrong(text))?),
        ("duration", Value::Int(nanos)) => Value::Duration(SignedDuration::from_nanos(*nanos)),
        _ => return Err(Error::overload()),
    })
}

/// A scalar as `string()` writes it.
pub(super) fn plain(value: &Value<'_>) -> Option<Arc<str>> {
    Some(match value {
        Value::String(text) => match text {
            Text::Borrowed(text) => (*text).into(),
            Text::Shared(text) => text.clone(),
        },
        Value::Bool(flag) => flag.to_string().into(),
        Value::Int(number) => number.to_string().into(),
        Value::Uint(number) => number.to_string().into(),
        Value::Double(number) => double(*number).into(),
        Value::Timestamp(time) => time.to_string().into(),
        Value::Duration(duration) => format_duration(*duration).into(),
        Value::Ip(address) => address.to_string().into(),
        Value::Cidr(network) => network.to_string().into(),
        _ => return None,
    })
}

/// A float as Go's `strconv.FormatFloat(f, 'g', -1, 64)` writes it.
pub(super) fn double(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() };
    }
    let exponent = if number == 0.0 { 0.0 } else { number.abs().log10().floor() };
    if !(-4.0..21.0).contains(&exponent) {
        let text = format!("{number:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let sign = if exponent.starts_with('-') { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:0>2}", exponent.trim_start_matches('-'));
    }
    format!("{number}")
}
