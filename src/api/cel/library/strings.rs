//! Strings: the standard functions, `ext.Strings` and Kubernetes' regular expressions.

use regex::Regex;

use super::operators::{double, plain};
use super::time::format_duration;
use super::{Answer, tenth};
use crate::api::cel::eval::{Error, Evaluated, Machine};
use crate::api::cel::value::Value;

pub(super) fn call<'a>(machine: &mut Machine<'a>, function: &str, method: bool, args: &[Value<'a>]) -> Answer<'a> {
    let Some(Value::String(text)) = args.first() else {
        return match (function, args) {
            ("join", [Value::List(_), ..]) => Some(join(machine, args)),
            _ => None,
        };
    };
    let rest = &args[1..];
    // Everything here looks at the text once.
    let once = tenth(text.len() as u64);
    let other = match rest.first() {
        Some(Value::String(other)) => Some(&**other),
        _ => None,
    };
    Some(match (function, rest, other) {
        ("contains", [_], Some(other)) => {
            // As cel-go counts it: a search may look at both for every place.
            paid(machine, once * tenth(other.len() as u64).max(1)).map(|()| Value::Bool(text.contains(other)))
        }
        ("startsWith", [_], Some(other)) => {
            paid(machine, tenth(other.len() as u64)).map(|()| Value::Bool(text.starts_with(other)))
        }
        ("endsWith", [_], Some(other)) => {
            paid(machine, tenth(other.len() as u64)).map(|()| Value::Bool(text.ends_with(other)))
        }
        ("matches", [_], Some(pattern)) => {
            with_pattern(machine, text, pattern, |regex| Value::Bool(regex.is_match(text)))
        }
        ("find", [_], Some(pattern)) => with_pattern(machine, text, pattern, |regex| {
            Value::text(regex.find(text).map_or("", |found| found.as_str()))
        }),
        ("findAll", [_], Some(pattern)) => find_all(machine, text, pattern, -1),
        ("findAll", [_, Value::Int(limit)], Some(pattern)) => find_all(machine, text, pattern, *limit),
        ("charAt", [Value::Int(place)], _) => paid(machine, once).and_then(|()| {
            let length = text.chars().count();
            match usize::try_from(*place).ok().filter(|place| *place <= length) {
                Some(place) => Ok(Value::text(text.chars().nth(place).map(String::from).unwrap_or_default())),
                None => Err(Error::new(format!("index out of range: {place}"))),
            }
        }),
        ("indexOf" | "lastIndexOf", [_], Some(_)) | ("indexOf" | "lastIndexOf", [_, Value::Int(_)], Some(_)) => {
            index_of(machine, text, function, rest)
        }
        ("lowerAscii", [], _) => paid(machine, once).map(|()| Value::text(text.to_ascii_lowercase())),
        ("upperAscii", [], _) => paid(machine, once).map(|()| Value::text(text.to_ascii_uppercase())),
        ("trim", [], _) => paid(machine, once).map(|()| Value::text(text.trim())),
        ("reverse", [], _) => paid(machine, once).map(|()| Value::text(text.chars().rev().collect::<String>())),
        ("replace", [_, Value::String(by)], Some(what)) => replace(machine, text, what, by, -1),
        ("replace", [_, Value::String(by), Value::Int(limit)], Some(what)) => replace(machine, text, what, by, *limit),
        ("split", [_], Some(separator)) => split(machine, text, separator, -1),
        ("split", [_, Value::Int(limit)], Some(separator)) => split(machine, text, separator, *limit),
        ("substring", [Value::Int(from)], _) => substring(machine, text, *from, None),
        ("substring", [Value::Int(from), Value::Int(to)], _) => substring(machine, text, *from, Some(*to)),
        ("format", [Value::List(values)], _) if method => format(machine, text, &values.iter().collect::<Vec<_>>()),
        ("strings.quote", [], _) => paid(machine, once).map(|()| Value::text(format!("{:?}", &**text))),
        _ => return None,
    })
}

fn paid(machine: &mut Machine<'_>, cost: u64) -> Result<(), Error> {
    machine.charge(cost)
}

/// A regular expression of at most this size, compiled, may be used.
const REGEX_SIZE: usize = 1 << 20;

fn with_pattern<'a>(
    machine: &mut Machine<'a>,
    text: &str,
    pattern: &str,
    make: impl FnOnce(&Regex) -> Value<'a>,
) -> Evaluated<'a> {
    // Searching takes the product of both sizes; compiling is paid for by the pattern's.
    machine.charge((1 + tenth(text.len() as u64)) * (1 + pattern.len() as u64 / 4))?;
    let regex = regex::RegexBuilder::new(pattern).size_limit(REGEX_SIZE).build();
    let regex = regex.map_err(|error| {
        let why = error.to_string();
        Error::new(format!("error parsing regexp: {}", why.lines().last().unwrap_or_default().trim()))
    })?;
    Ok(make(&regex))
}

fn find_all<'a>(machine: &mut Machine<'a>, text: &str, pattern: &str, limit: i64) -> Evaluated<'a> {
    let count = usize::try_from(limit).unwrap_or(usize::MAX);
    with_pattern(machine, text, pattern, |regex| {
        Value::list(regex.find_iter(text).take(count).map(|found| Value::text(found.as_str())).collect())
    })
}

/// Places count characters.
fn index_of<'a>(machine: &mut Machine<'a>, text: &str, function: &str, args: &[Value<'a>]) -> Evaluated<'a> {
    let Some(Value::String(what)) = args.first() else { return Err(Error::overload()) };
    let (text, what): (Vec<char>, Vec<char>) = (text.chars().collect(), what.chars().collect());
    machine.charge(tenth(text.len() as u64) * tenth(what.len() as u64).max(1))?;
    let last = function == "lastIndexOf";
    let offset = match args.get(1) {
        Some(Value::Int(offset)) => usize::try_from(*offset)
            .ok()
            .filter(|offset| *offset <= text.len())
            .ok_or_else(|| Error::new(format!("index out of range: {offset}")))?,
        _ if last => text.len(),
        _ => 0,
    };
    if what.is_empty() {
        return Ok(Value::Int(i64::try_from(offset).unwrap_or(i64::MAX)));
    }
    let fits = |place: usize| text[place..].starts_with(&what);
    let ends = text.len().checked_sub(what.len());
    let found = match ends {
        None => None,
        Some(end) if last => (0..=end.min(offset)).rev().find(|place| fits(*place)),
        Some(end) => (offset..=end).find(|place| fits(*place)),
    };
    Ok(Value::Int(found.and_then(|place| i64::try_from(place).ok()).unwrap_or(-1)))
}

fn replace<'a>(machine: &mut Machine<'a>, text: &str, what: &str, by: &str, limit: i64) -> Evaluated<'a> {
    let places = if what.is_empty() { text.len() + 1 } else { text.len() / what.len() };
    let places = usize::try_from(limit).map_or(places, |limit| places.min(limit));
    machine.charge(tenth((text.len() + places.saturating_mul(by.len())) as u64))?;
    Ok(Value::text(match usize::try_from(limit) {
        Ok(limit) => text.replacen(what, by, limit),
        Err(_) => text.replace(what, by),
    }))
}

fn split<'a>(machine: &mut Machine<'a>, text: &str, separator: &str, limit: i64) -> Evaluated<'a> {
    machine.charge(tenth(text.len() as u64))?;
    let parts: Vec<String> = match (separator, limit) {
        (_, 0) => Vec::new(),
        ("", _) => {
            let all: Vec<char> = text.chars().collect();
            let count = usize::try_from(limit).unwrap_or(all.len()).min(all.len());
            let (single, rest) = all.split_at(count.saturating_sub(1));
            let mut parts: Vec<String> = single.iter().map(|c| c.to_string()).collect();
            if !rest.is_empty() {
                parts.push(rest.iter().collect());
            }
            parts
        }
        (_, 1..) => text.splitn(usize::try_from(limit).unwrap_or(1), separator).map(str::to_owned).collect(),
        _ => text.split(separator).map(str::to_owned).collect(),
    };
    machine.charge(parts.len() as u64)?;
    Ok(Value::list(parts.into_iter().map(Value::text).collect()))
}

fn substring<'a>(machine: &mut Machine<'a>, text: &str, from: i64, to: Option<i64>) -> Evaluated<'a> {
    machine.charge(tenth(text.len() as u64))?;
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let to = to.unwrap_or(length);
    if from > to {
        return Err(Error::new(format!("invalid substring range. start: {from}, end: {to}")));
    }
    for place in [from, to] {
        if !(0..=length).contains(&place) {
            return Err(Error::new(format!("index out of range: {place}")));
        }
    }
    let (from, count) = (usize::try_from(from).unwrap_or(0), usize::try_from(to - from).unwrap_or(0));
    Ok(Value::text(text.chars().skip(from).take(count).collect::<String>()))
}

fn join<'a>(machine: &mut Machine<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (Some(Value::List(list)), separator) = (args.first(), args.get(1)) else { return Err(Error::overload()) };
    let separator = match separator {
        None => "",
        Some(Value::String(text)) => &**text,
        Some(_) => return Err(Error::overload()),
    };
    let mut joined = String::new();
    for (index, item) in list.iter().enumerate() {
        let Value::String(text) = item else { return Err(Error::overload()) };
        machine.charge(tenth((text.len() + separator.len()) as u64))?;
        if index > 0 {
            joined.push_str(separator);
        }
        joined.push_str(&text);
    }
    Ok(Value::text(joined))
}

/// `'%s is %d'.format([…])`.
fn format<'a>(machine: &mut Machine<'a>, text: &str, values: &[Value<'a>]) -> Evaluated<'a> {
    machine.charge(tenth(text.len() as u64))?;
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            precision = Some(
                digits.parse::<usize>().ok().filter(|n| *n <= 1000).ok_or_else(|| Error::new("invalid precision"))?,
            );
        }
        let clause = chars.next().ok_or_else(|| Error::new("unexpected end of string"))?;
        let value = values.next().ok_or_else(|| Error::new("index out of range for the arguments of format"))?;
        let before = out.len();
        one(machine, &mut out, clause, precision, value)?;
        machine.charge(tenth((out.len() - before) as u64))?;
    }
    if values.next().is_some() {
        return Err(Error::new("too many arguments supplied to string.format"));
    }
    Ok(Value::text(out))
}

fn one<'a>(
    machine: &mut Machine<'a>,
    out: &mut String,
    clause: char,
    precision: Option<usize>,
    value: &Value<'a>,
) -> Result<(), Error> {
    let wrong = || Error::new(format!("error during formatting: %{clause} does not take {}", value.type_name()));
    match (clause, value) {
        ('s', value) => show(machine, out, value)?,
        ('d', Value::Int(number)) => out.push_str(&number.to_string()),
        ('d', Value::Uint(number)) => out.push_str(&number.to_string()),
        ('f', Value::Double(number)) => out.push_str(&format!("{number:.*}", precision.unwrap_or(6))),
        ('e', Value::Double(number)) => {
            let text = format!("{number:.*e}", precision.unwrap_or(6));
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let sign = if exponent.starts_with('-') { '-' } else { '+' };
            out.push_str(&format!("{mantissa}e{sign}{:0>2}", exponent.trim_start_matches('-')));
        }
        ('b', Value::Int(number)) if *number < 0 => out.push_str(&format!("-{:b}", number.unsigned_abs())),
        ('b', Value::Int(number)) => out.push_str(&format!("{number:b}")),
        ('b', Value::Uint(number)) => out.push_str(&format!("{number:b}")),
        ('b', Value::Bool(flag)) => out.push(if *flag { '1' } else { '0' }),
        ('o', Value::Int(number)) if *number < 0 => out.push_str(&format!("-{:o}", number.unsigned_abs())),
        ('o', Value::Int(number)) => out.push_str(&format!("{number:o}")),
        ('o', Value::Uint(number)) => out.push_str(&format!("{number:o}")),
        ('x', Value::Int(number)) if *number < 0 => out.push_str(&format!("-{:x}", number.unsigned_abs())),
        ('x', Value::Int(number)) => out.push_str(&format!("{number:x}")),
        ('x', Value::Uint(number)) => out.push_str(&format!("{number:x}")),
        ('X', Value::Int(number)) if *number < 0 => out.push_str(&format!("-{:X}", number.unsigned_abs())),
        ('X', Value::Int(number)) => out.push_str(&format!("{number:X}")),
        ('X', Value::Uint(number)) => out.push_str(&format!("{number:X}")),
        ('x' | 'X', Value::String(text)) => hex(out, text.as_bytes(), clause),
        ('x' | 'X', Value::Bytes(bytes)) => hex(out, bytes, clause),
        ('d' | 'f' | 'e' | 'b' | 'o' | 'x' | 'X', _) => return Err(wrong()),
        _ => {
            return Err(Error::new(format!(
                "could not parse formatting clause: unrecognized formatting clause \"{clause}\""
            )));
        }
    }
    Ok(())
}

fn hex(out: &mut String, bytes: &[u8], clause: char) {
    for byte in bytes {
        out.push_str(&if clause == 'x' { format!("{byte:02x}") } else { format!("{byte:02X}") });
    }
}

/// `%s` of any value.
fn show<'a>(machine: &mut Machine<'a>, out: &mut String, value: &Value<'a>) -> Result<(), Error> {
    machine.charge(1)?;
    match value {
        Value::Null => out.push_str("null"),
        Value::Double(number) => out.push_str(&double(*number)),
        Value::Duration(duration) => out.push_str(&format_duration(*duration)),
        Value::Bytes(bytes) => out.push_str(&String::from_utf8_lossy(bytes)),
        Value::Type(name) => out.push_str(name),
        Value::List(list) => {
            out.push('[');
            for (index, item) in list.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                show(machine, out, &item)?;
            }
            out.push(']');
        }
        Value::Map(map) => {
            out.push('{');
            for (index, (key, value)) in map.entries().into_iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                show(machine, out, &key)?;
                out.push_str(": ");
                show(machine, out, &value)?;
            }
            out.push('}');
        }
        other => match plain(other) {
            Some(text) => {
                machine.charge(tenth(text.len() as u64))?;
                out.push_str(&text);
            }
            None => return Err(Error::new(format!("error during formatting: %s does not take {}", other.type_name()))),
        },
    }
    Ok(())
}
