//! Schedules of CronJobs: the standard form of `robfig/cron` v3, with its messages, and what comes next in a time zone.

use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Span, Timestamp, Zoned};

/// A schedule that never comes within so many years never comes.
const YEARS: i16 = 5;

/// A parsed schedule.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// The five fields.
    Fields(Box<Fields>),
    /// `@every <duration>`, from when it is asked on; whole seconds, at least one.
    Every(SignedDuration),
}

/// Bit sets of the values that match, and whether the days were given as stars.
#[derive(Clone, Debug, PartialEq)]
pub struct Fields {
    minute: u64,
    hour: u64,
    day_of_month: u64,
    month: u64,
    day_of_week: u64,
    any_day_of_month: bool,
    any_day_of_week: bool,
}

/// What one field may hold.
struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Schedule {
    /// Reads a schedule (`cron.ParseStandard`). A leading `TZ=…` is not part of it.
    ///
    /// # Errors
    /// The parser's message.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        if text.starts_with('@') {
            return descriptor(text);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day_of_month, month, day_of_week] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        let (minute, _) = field(minute, &MINUTES)?;
        let (hour, _) = field(hour, &HOURS)?;
        let (day_of_month, any_day_of_month) = field(day_of_month, &DAYS)?;
        let (month, _) = field(month, &MONTHS)?;
        let (day_of_week, any_day_of_week) = field(day_of_week, &WEEKDAYS)?;
        let fields = Fields { minute, hour, day_of_month, month, day_of_week, any_day_of_month, any_day_of_week };
        Ok(Self::Fields(Box::new(fields)))
    }

    /// The first time after `after`; `None` when there is none within five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(period) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*period).ok()
            }
            Self::Fields(fields) => fields.next(after.to_zoned(zone.clone())).map(|found| found.timestamp()),
        }
    }
}

impl Fields {
    fn day_matches(&self, date: Date) -> bool {
        let in_month = has(self.day_of_month, date.day().unsigned_abs().into());
        let in_week = has(self.day_of_week, date.weekday().to_sunday_zero_offset().unsigned_abs().into());
        // Two restricted fields: either will do. One of them a star: the other decides.
        if self.any_day_of_month || self.any_day_of_week { in_month && in_week } else { in_month || in_week }
    }

    fn next(&self, after: Zoned) -> Option<Zoned> {
        let until = after.year().saturating_add(YEARS);
        // The upcoming whole minute.
        let seconds = 60 - after.timestamp().as_second().rem_euclid(60);
        let mut time = Timestamp::from_second(after.timestamp().as_second() + seconds).ok()?;
        let zone = after.time_zone().clone();
        loop {
            let now = time.to_zoned(zone.clone());
            if now.year() > until {
                return None;
            }
            let date = now.date();
            if !has(self.month, date.month().unsigned_abs().into()) {
                time = begin_of(date.first_of_month().checked_add(Span::new().months(1)).ok()?, &zone)?;
            } else if !self.day_matches(date) {
                time = begin_of(date.tomorrow().ok()?, &zone)?;
            } else if !has(self.hour, now.hour().unsigned_abs().into()) {
                // Hours pass as they do: one that the clocks skip never comes, one that they repeat comes twice.
                let rest = 3600 - i64::from(now.minute()) * 60;
                time = time.checked_add(SignedDuration::from_secs(rest)).ok()?;
            } else if !has(self.minute, now.minute().unsigned_abs().into()) {
                time = time.checked_add(SignedDuration::from_secs(60)).ok()?;
            } else {
                return Some(now);
            }
        }
    }
}

/// The first moment of a day.
fn begin_of(date: Date, zone: &TimeZone) -> Option<Timestamp> {
    Some(date.to_zoned(zone.clone()).ok()?.start_of_day().ok()?.timestamp())
}

fn has(bits: u64, value: u32) -> bool {
    bits & (1 << value) != 0
}

/// The values of a field, and whether it is a star.
fn field(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let (mut bits, mut star) = (0, false);
    for expression in text.split(',').filter(|expression| !expression.is_empty()) {
        let (more, is_star) = range(expression, bounds)?;
        bits |= more;
        star |= is_star;
    }
    Ok((bits, star))
}

/// `number`, `number-number`, `*` or `?`, each with an optional `/step`.
fn range(expression: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let parts: Vec<&str> = expression.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let mut star = ends[0] == "*" || ends[0] == "?";
    let (start, mut end) = match ends[..] {
        _ if star => (bounds.min, bounds.max),
        [only] => {
            let only = number_or_name(only, bounds)?;
            (only, only)
        }
        [first, last] => (number_or_name(first, bounds)?, number_or_name(last, bounds)?),
        _ => return Err(format!("too many hyphens: {expression}")),
    };
    let step = match parts[..] {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            if ends.len() == 1 {
                end = bounds.max;
            }
            star &= step <= 1;
            step
        }
        _ => return Err(format!("too many slashes: {expression}")),
    };
    if start < bounds.min {
        return Err(format!("beginning of range ({start}) below minimum ({}): {expression}", bounds.min));
    }
    if end > bounds.max {
        return Err(format!("end of range ({end}) above maximum ({}): {expression}", bounds.max));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {expression}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {expression}"));
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    Ok(((start..=end).step_by(step).fold(0, |bits, value| bits | 1 << value), star))
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let lower = text.to_lowercase();
    match bounds.names.iter().position(|name| *name == lower) {
        Some(position) => Ok(bounds.min + u32::try_from(position).expect("a name of a dozen")),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"));
    }
    let number: i64 = text
        .parse()
        .map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: value out of range"))?;
    if number < 0 {
        return Err(format!("negative number ({number}) not allowed: {text}"));
    }
    Ok(u32::try_from(number).unwrap_or(u32::MAX))
}

fn descriptor(text: &str) -> Result<Schedule, String> {
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let period = text.strip_prefix("@every ").ok_or_else(|| format!("unrecognized descriptor: {text}"))?;
            let period = duration(period).map_err(|why| format!("failed to parse duration {text}: {why}"))?;
            return Ok(Schedule::Every(SignedDuration::from_secs(period.as_secs().max(1))));
        }
    };
    Schedule::parse(fields)
}

/// A duration in Go's form, such as `1h30m`.
fn duration(text: &str) -> Result<SignedDuration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len());
        let amount: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let factor = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            unknown => return Err(format!("time: unknown unit {unknown:?} in duration {text:?}")),
        };
        rest = &rest[unit..];
        seconds += amount * factor;
    }
    let seconds = if negative { -seconds } else { seconds };
    // Go's durations have 64 bits of nanoseconds.
    if seconds.abs() > 9_223_372_036.0 {
        return Err(invalid());
    }
    SignedDuration::try_from_secs_f64(seconds).map_err(|_| invalid())
}

/// A time zone by its name in the database that is part of this binary.
///
/// # Errors
/// The message of Go's `time.LoadLocation`.
pub fn time_zone(name: &str) -> Result<TimeZone, String> {
    if name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    let found = TimeZoneDatabase::bundled().get(name).ok();
    // Names are files to Go: their case counts.
    found.filter(|zone| zone.iana_name() == Some(name)).ok_or_else(|| format!("unknown time zone {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn next(schedule: &str, after: &str, zone: &str) -> String {
        let zone = time_zone(zone).expect("a zone");
        let after: Timestamp = after.parse().expect("a time");
        let found = Schedule::parse(schedule).expect("a schedule").next(after, &zone);
        found.map_or("never".to_owned(), |time| time.to_string())
    }

    fn refused(schedule: &str) -> String {
        Schedule::parse(schedule).expect_err("it is no schedule")
    }

    #[test]
    fn schedules_are_refused_with_the_parsers_words() {
        // parser_test.go of robfig/cron v3
        assert_eq!(refused(""), "empty spec string");
        assert_eq!(refused("hello"), "expected exactly 5 fields, found 1: [hello]");
        assert_eq!(refused("* * * * * *"), "expected exactly 5 fields, found 6: [* * * * * *]");
        assert_eq!(refused("60 0 * * *"), "end of range (60) above maximum (59): 60");
        assert_eq!(refused("0 0 0 * *"), "beginning of range (0) below minimum (1): 0");
        assert_eq!(refused("0 0 * * 7"), "end of range (7) above maximum (6): 7");
        assert_eq!(refused("5-3 * * * *"), "beginning of range (5) beyond end of range (3): 5-3");
        assert_eq!(refused("1-2-3 * * * *"), "too many hyphens: 1-2-3");
        assert_eq!(refused("1/2/3 * * * *"), "too many slashes: 1/2/3");
        assert_eq!(refused("*/0 * * * *"), "step of range should be a positive number: */0");
        assert_eq!(refused("*/-12 * * * *"), "negative number (-12) not allowed: -12");
        assert_eq!(refused("0 0 x * *"), "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax");
        assert_eq!(refused("@unrecognized"), "unrecognized descriptor: @unrecognized");
        assert_eq!(refused("@every x"), "failed to parse duration @every x: time: invalid duration \"x\"");
        assert_eq!(refused("@every 3"), "failed to parse duration @every 3: time: missing unit in duration \"3\"");
    }

    #[test]
    fn the_next_time_is_that_of_cron() {
        // spec_test.go of robfig/cron v3
        for (schedule, after, expected) in [
            ("0/15 * * * *", "2012-07-09T14:45:00Z", "2012-07-09T15:00:00Z"),
            ("0/15 * * * *", "2012-07-09T14:59:59Z", "2012-07-09T15:00:00Z"),
            ("20-35/15 * * * *", "2012-07-09T15:45:00Z", "2012-07-09T16:20:00Z"),
            ("*/15 * * * *", "2012-12-31T23:45:00Z", "2013-01-01T00:00:00Z"),
            ("0 0 9 Apr-Oct *", "2012-07-09T23:35:00Z", "2012-08-09T00:00:00Z"),
            ("0 0 */5 Apr,Aug,Oct Mon", "2012-07-09T23:35:00Z", "2012-08-01T00:00:00Z"),
            ("0 0 * Feb Mon", "2012-07-09T23:35:00Z", "2013-02-04T00:00:00Z"),
            ("0 0 29 Feb ?", "2012-07-09T23:35:00Z", "2016-02-29T00:00:00Z"),
            ("0 0 30 Feb ?", "2012-07-09T23:35:00Z", "never"),
            ("0 0 31 Apr ?", "2012-07-09T23:35:00Z", "never"),
            (", * * * *", "2012-07-09T23:35:00Z", "never"),
            ("@hourly", "2012-07-09T14:45:00.5Z", "2012-07-09T15:00:00Z"),
            ("@every 1h30m", "2012-07-09T14:45:00.5Z", "2012-07-09T16:15:00Z"),
            ("@every 10ms", "2012-07-09T14:45:00Z", "2012-07-09T14:45:01Z"),
            ("@yearly", "2012-07-09T14:45:00Z", "2013-01-01T00:00:00Z"),
            ("0 0 13 * FRI", "2012-07-13T00:00:00Z", "2012-07-20T00:00:00Z"),
        ] {
            assert_eq!(next(schedule, after, "UTC"), expected, "{schedule}");
        }
    }

    #[test]
    fn clocks_that_change_skip_and_repeat_hours() {
        let new_york = "America/New_York";
        // 2012-03-11: 2:00 becomes 3:00; 2012-11-04: 2:00 becomes 1:00.
        assert_eq!(next("30 2 11 Mar ?", "2012-03-11T00:00:00-05:00", new_york), "2013-03-11T06:30:00Z");
        assert_eq!(next("0 * * * ?", "2012-03-11T01:00:00-05:00", new_york), "2012-03-11T07:00:00Z");
        assert_eq!(next("30 1 04 Nov ?", "2012-11-04T01:30:00-04:00", new_york), "2012-11-04T06:30:00Z");
        assert_eq!(next("0 2 04 Nov ?", "2012-11-04T01:59:00-04:00", new_york), "2012-11-04T07:00:00Z");
        // Sao Paulo's midnight did not exist on 2018-11-04.
        assert_eq!(next("0 9 10 Nov ?", "2018-11-03T05:02:08-03:00", "America/Sao_Paulo"), "2018-11-10T11:00:00Z");
        assert_eq!(next("0 3 * * *", "2026-07-01T00:00:00Z", "Asia/Seoul"), "2026-07-01T18:00:00Z");
    }

    #[test]
    fn zones_are_known_by_their_exact_names() {
        assert!(time_zone("Europe/Berlin").is_ok() && time_zone("Etc/GMT+5").is_ok());
        assert_eq!(time_zone("Amerrica/New_York"), Err("unknown time zone Amerrica/New_York".into()));
        assert!(time_zone("europe/berlin").is_err() && time_zone("").is_err());
    }

    proptest! {
        #[test]
        fn no_schedule_hangs_or_panics(text in "[0-9*,/?@a-z -]{0,24}", after in -10_000_000_000i64..10_000_000_000) {
            if let Ok(schedule) = Schedule::parse(&text) {
                let after = Timestamp::from_second(after).expect("a time");
                if let Some(next) = schedule.next(after, &TimeZone::UTC) {
                    prop_assert!(next > after);
                }
            }
        }

        #[test]
        fn what_comes_next_matches_and_nothing_was_skipped(minute in 0u32..60, hour in 0u32..24, after in 1_300_000_000i64..1_900_000_000) {
            let schedule = Schedule::parse(&format!("{minute} {hour} * * *")).expect("a schedule");
            let after = Timestamp::from_second(after).expect("a time");
            let next = schedule.next(after, &TimeZone::UTC).expect("every day");
            let zoned = next.to_zoned(TimeZone::UTC);
            prop_assert_eq!((zoned.minute() as u32, zoned.hour() as u32, zoned.second()), (minute, hour, 0));
            prop_assert!(next > after && next.duration_since(after) <= SignedDuration::from_hours(24));
        }
    }
}
