//! Timestamps and durations.

use jiff::civil::Weekday;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::Answer;
use crate::api::cel::eval::{Error, Machine};
use crate::api::cel::value::Value;

pub(super) fn call<'a>(_: &mut Machine<'a>, function: &str, _: bool, args: &[Value<'a>]) -> Answer<'a> {
    match args {
        [Value::Timestamp(time)] => part(function, *time, "UTC"),
        [Value::Timestamp(time), Value::String(zone)] => part(function, *time, zone),
        [Value::Duration(duration)] => {
            let number = match function {
                "getHours" => duration.as_hours(),
                "getMinutes" => duration.as_mins(),
                "getSeconds" => duration.as_secs(),
                "getMilliseconds" => i64::try_from(duration.as_millis()).unwrap_or(i64::MAX),
                _ => return None,
            };
            Some(Ok(Value::Int(number)))
        }
        _ => None,
    }
}

/// A time in a zone: a name of the time zone database, or `+01:00`.
fn zoned(time: Timestamp, zone: &str) -> Result<Zoned, Error> {
    let unknown = || Error::new(format!("unknown time zone {zone}"));
    if zone == "UTC" {
        return Ok(time.to_zoned(TimeZone::UTC));
    }
    if let Some((hours, minutes)) = zone.split_once(':') {
        let negative = hours.starts_with('-');
        let hours: i32 = hours.trim_start_matches(['-', '+']).parse().map_err(|_| unknown())?;
        let minutes: i32 = minutes.parse().map_err(|_| unknown())?;
        let seconds = hours.saturating_mul(60).saturating_add(minutes).saturating_mul(60);
        let offset = Offset::from_seconds(if negative { -seconds } else { seconds }).map_err(|_| unknown())?;
        return Ok(time.to_zoned(TimeZone::fixed(offset)));
    }
    TimeZone::get(zone).map(|zone| time.to_zoned(zone)).map_err(|_| unknown())
}

fn part<'a>(function: &str, time: Timestamp, zone: &str) -> Answer<'a> {
    const PARTS: [&str; 10] = [
        "getFullYear",
        "getMonth",
        "getDate",
        "getDayOfMonth",
        "getDayOfWeek",
        "getDayOfYear",
        "getHours",
        "getMinutes",
        "getSeconds",
        "getMilliseconds",
    ];
    if !PARTS.contains(&function) {
        return None;
    }
    let time = match zoned(time, zone) {
        Ok(time) => time,
        Err(error) => return Some(Err(error)),
    };
    // Months, days of the month (but getDate), week and year begin with 0.
    let number = match function {
        "getFullYear" => i64::from(time.year()),
        "getMonth" => i64::from(time.month()) - 1,
        "getDate" => i64::from(time.day()),
        "getDayOfMonth" => i64::from(time.day()) - 1,
        "getDayOfWeek" => match time.weekday() {
            Weekday::Sunday => 0,
            weekday => i64::from(weekday.to_monday_one_offset()),
        },
        "getDayOfYear" => i64::from(time.day_of_year()) - 1,
        "getHours" => i64::from(time.hour()),
        "getMinutes" => i64::from(time.minute()),
        "getSeconds" => i64::from(time.second()),
        _ => i64::from(time.millisecond()),
    };
    Some(Ok(Value::Int(number)))
}

/// A duration as Go's `time.ParseDuration` reads it: `1h30m`, `-1.5s`.
pub(in crate::api::cel) fn parse_duration(text: &str) -> Option<SignedDuration> {
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(scale)?)?;
        let mut place = scale;
        for digit in fraction.bytes().take(18) {
            place /= 10;
            nanos += i128::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?) * place;
        }
        rest = after;
    }
    let nanos = i64::try_from(if negative { -nanos } else { nanos }).ok()?;
    Some(SignedDuration::from_nanos(nanos))
}

/// A duration as CEL writes it: in seconds.
pub(super) fn format_duration(duration: SignedDuration) -> String {
    let nanos = duration.as_nanos();
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    if fraction == 0 {
        return format!("{sign}{seconds}s");
    }
    format!("{sign}{seconds}.{}s", format!("{fraction:09}").trim_end_matches('0'))
}
